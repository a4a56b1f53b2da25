/*
 * One safetensors file: 8 bytes of header length, a JSON header, the tensors' bytes. Format:
 * github.com/huggingface/safetensors.
 *
 * Checked when opened, before anything is used: length of the header (at most 100 MB) and of the
 * file; entries that start at 0, touch without gap or overlap and end at the end of the file; size
 * = product of the shape times the dtype's size, without overflow; known dtypes; names of at most
 * 1,024 bytes without control characters, none twice; at most 8 dimensions. Any alignment of the
 * data works.
 */
#ifndef LH_RUNTIME_SAFETENSORS_H
#define LH_RUNTIME_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lh_safetensors lh_safetensors;

typedef struct lh_st_tensor {
    const char *name;  /* owned by the file */
    const char *dtype; /* "BF16", "F32", "I64", ..: a literal */
    int n_dims;
    int64_t dims[8];
    size_t bytes;
    size_t offset;    /* in the file */
    const void *data; /* mapped read-only, NULL when bytes is 0 */
} lh_st_tensor;

/* Maps a file. `path` is kept for messages. LH_ERR_OPEN, LH_ERR_DATA (file and what is wrong),
 * LH_ERR_IO. */
lh_status lh_safetensors_open(lh_safetensors **out, const char *path);
void lh_safetensors_close(lh_safetensors *f); /* accepts NULL */
int64_t lh_safetensors_count(const lh_safetensors *f);
const lh_st_tensor *lh_safetensors_at(const lh_safetensors *f,
                                      int64_t i); /* in the order of their bytes */
const lh_st_tensor *lh_safetensors_find(const lh_safetensors *f,
                                        const char *name); /* NULL: not there */
size_t lh_safetensors_file_bytes(const lh_safetensors *f);

/* Writes a file: header, then the tensors in the given order (data must be there). To a temporary
 * name first, then renamed. */
lh_status lh_safetensors_write(const char *path, const lh_st_tensor *tensors, int n);

/* Makes n bytes of a file's tensors, from byte `begin` of all of them in a row. */
typedef lh_status (*lh_st_source)(void *user, void *out, size_t begin, size_t n);

/* The same for tensors that are nowhere yet: their bytes are asked for in rising order, in pieces
 * of at most 64 MiB. */
lh_status lh_safetensors_stream(const char *path, const lh_st_tensor *tensors, int n,
                                lh_st_source source, void *user);

#ifdef __cplusplus
}
#endif
#endif
