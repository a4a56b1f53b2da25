/*
 * A checkpoint on disk: files mapped read-only, headers checked, every expected tensor found once
 * with its shape and dtype.
 */
#ifndef LH_RUNTIME_CHECKPOINT_H
#define LH_RUNTIME_CHECKPOINT_H

#include "runtime/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lh_checkpoint lh_checkpoint;

/*
 * Opens model.safetensors.index.json and its shards, or model.safetensors, of a directory; checks
 * sizes, overlaps, holes, names, shapes and dtypes against what `d` expects. Reads headers only.
 * Missing, unknown, doubly defined and ill-shaped tensors: LH_ERR_DATA with tensor and file. A file
 * that is not there: LH_ERR_OPEN.
 */
lh_status lh_checkpoint_open(lh_checkpoint **out, const char *model_dir, const lh_dims *d);
void lh_checkpoint_close(lh_checkpoint *c); /* accepts NULL; bound weights end here */

/*
 * Binds this rank's weights: all dense ones, and of the experts those in [expert_begin,
 * expert_end). Nothing of other experts is read. What a mapping cannot serve (f32 that lies
 * unaligned, router biases in bf16) is copied. Touches every byte that it binds once, with
 * progress, so that loading is loading; *weights is owned by the checkpoint.
 * dense_bytes, expert_bytes: sizes of the tensors bound, as in the files.
 */
lh_status lh_checkpoint_bind(lh_checkpoint *c, int expert_begin, int expert_end,
                             const lh_weights **weights, size_t *dense_bytes, size_t *expert_bytes,
                             void (*progress)(void *user, const lh_progress *p), void *user);

int64_t lh_checkpoint_n_tensors(const lh_checkpoint *c);
void lh_checkpoint_tensor(const lh_checkpoint *c, int64_t i,
                          lh_tensor_info *out);                    /* in the order of the files */
const void *lh_checkpoint_data(const lh_checkpoint *c, int64_t i); /* mapped */
int lh_checkpoint_n_files(const lh_checkpoint *c);
size_t lh_checkpoint_file_bytes(const lh_checkpoint *c);

#ifdef __cplusplus
}
#endif
#endif
