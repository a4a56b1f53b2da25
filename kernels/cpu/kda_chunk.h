/*
 * One chunk of one head of KDA in prefill, as the two halves of the operation share it.
 *
 * Before lh_cpu_kda_chunk the rows hold the operation's inputs, after it what the chain over the
 * chunks needs. With G the running sum of g inside the chunk and S the state before it:
 *
 *     v' = u - w S,   o = q exp(G) S + aqk v',   S <- diag(exp G_last) S + (k exp(G_last - G))^T v'
 */
#ifndef LH_KERNELS_CPU_KDA_CHUNK_H
#define LH_KERNELS_CPU_KDA_CHUNK_H

#include "kernels/kernels.h"

typedef struct lh_kda_chunk {
    float *q;          /* in q, out q exp(G) [n, d_k], row distance ldk */
    float *k;          /* in k, out k exp(G_last - G), the same shape */
    float *g;          /* in g, out w, the same shape */
    float *v;          /* in v, out u [n, d_v], row distance ldv */
    const float *beta; /* in [n], distance ldb */
    float *aqk;   /* out [n, n], row distance LH_CHUNK: q_i . k_j exp(G_i - G_j), 0 for j > i */
    float *decay; /* out [d_k]: exp(G_last) */
    int64_t ldk, ldv, ldb;
    int64_t n; /* 1 .. LH_CHUNK tokens */
    int64_t d_k, d_v;
} lh_kda_chunk;

/* Largest d_k and d_v: what the scratch of a thread has room for. */
#define LH_CPU_KDA_MAX_D 256

/* All that the chunk can do without the state before it. `scratch` has LH_CPU_SCRATCH elements. */
void lh_cpu_kda_chunk(const lh_kda_chunk *c, float *scratch);

#endif
