/* KDA token by token in float64, straight from the recurrence. */
#ifndef LH_TESTS_REFERENCE_KDA_H
#define LH_TESTS_REFERENCE_KDA_H

#include <stdint.h>

/*
 * n_tokens of the recurrence for every head; state [n_heads, d_k, d_v] is read and updated:
 *     S <- (I - beta k k^T) Diag(exp g) S + beta k v^T,   o = S^T q      Kimi Linear report, eq.
 * (1) q, k, g [n_tokens, n_heads, d_k], v and o [n_tokens, n_heads, d_v], beta [n_tokens, n_heads].
 */
void ref_kda(double *o, double *state, const float *q, const float *k, const float *v,
             const float *g, const float *beta, int64_t n_tokens, int n_heads, int d_k, int d_v);

#endif
