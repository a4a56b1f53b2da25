/*
 * What opening a checkpoint leaves behind for binding its weights.
 */
#ifndef LH_RUNTIME_CHECKPOINT_INTERNAL_H
#define LH_RUNTIME_CHECKPOINT_INTERNAL_H

#include "runtime/checkpoint.h"
#include "runtime/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct checkpoint_file {
    char *path;
    const char *name; /* its last component */
    lh_safetensors *file;
} checkpoint_file;

typedef struct checkpoint_entry {
    const lh_st_tensor *tensor;
    int file;
    int expected;      /* it is one of the model's, and the following is known */
    int layer, expert; /* as in lh_expected */
    size_t slot;
    int widen; /* bf16 in the file, f32 in the weights */
} checkpoint_entry;

struct lh_checkpoint {
    lh_dims dims;
    int n_files;
    checkpoint_file *files; /* [n_files], by name */
    int64_t n_entries;
    checkpoint_entry *entries; /* [n_entries], in the order of the files */
    size_t file_bytes;
    void *block; /* the bound weights: pointers, and what had to be copied */
};

/* Calls `progress` (may be NULL) about every 64 MB, and at the end. */
typedef struct lh_meter {
    void (*progress)(void *user, const lh_progress *p);
    void *user;
    lh_progress state;
    double start;
    int64_t reported;
} lh_meter;

void lh_meter_start(lh_meter *m, const char *phase, size_t total,
                    void (*progress)(void *user, const lh_progress *p), void *user);
void lh_meter_add(lh_meter *m, size_t bytes);
void lh_meter_end(lh_meter *m);

#ifdef __cplusplus
}
#endif
#endif
