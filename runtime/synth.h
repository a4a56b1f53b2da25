/*
 * Synthetic weights: random values with the statistics of a network at its start, for any
 * config.json. The same bits in memory as in the checkpoint that lh_synth_write makes
 * (runtime/longhaul.h), whatever the ranks and threads. base/synth.h has the elements.
 *
 * Projections have the standard deviation 1 / sqrt(inputs), so that they keep the size of what they
 * read; those that add to the residual stream are smaller by sqrt(2 layers), so that all of them
 * together add about as much as the embedding, whose rows have the standard deviation 1: the stream
 * stays of order one. Norms are about 1. A_log is even between ln 1 and ln 16, dt_bias between the
 * inverse softplus of 0.001 and of 0.1. The router's bias has the standard deviation router_skew
 * times 0.208, that of the scores it is added to.
 */
#ifndef LH_RUNTIME_SYNTH_H
#define LH_RUNTIME_SYNTH_H

#include "base/synth.h"
#include "kernels/kernels.h"
#include "runtime/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How the elements of a tensor are drawn. Indices count in its own row-major order. A router's bias
 * is rounded to bf16, as published, also where it is kept in f32. */
void lh_synth_law_make(lh_synth_law *out, const lh_dims *d, const lh_expected *t,
                       const lh_synth_opts *o);

/* A tensor in a row of bytes. */
typedef struct lh_synth_piece {
    lh_synth_law law;
    lh_synth_form form;
    size_t offset;     /* in the row */
    size_t n, n_bytes; /* elements, and their bytes */
} lh_synth_piece;

/* Writes bytes [begin, end) of the row to `out`, zeros between the pieces (which are sorted,
 * without overlap). Any cut gives the same bytes. */
void lh_synth_fill(const lh_synth_piece *pieces, size_t n_pieces, void *out, size_t begin,
                   size_t end, int n_threads);

/* This rank's weights in memory of the device. */
typedef struct lh_synth lh_synth;

/*
 * Parallel to lh_checkpoint_bind: all dense weights, and of the experts those in [expert_begin,
 * expert_end). *weights is owned by *out; dense_bytes and expert_bytes are sizes as in files.
 * Allocates from the device of `k`, and waits for its stream. Threads of the host make them where
 * the device reads host memory, elsewhere the device itself does.
 */
lh_status lh_synth_bind(lh_synth **out, const lh_dims *d, const lh_synth_opts *o,
                        const lh_kernels *k, lh_stream *s, int expert_begin, int expert_end,
                        const lh_weights **weights, size_t *dense_bytes, size_t *expert_bytes);
void lh_synth_close(lh_synth *y); /* accepts NULL; before the stream is closed */

#ifdef __cplusplus
}
#endif
#endif
