#include <math.h>

#include "tests/reference/reference_kda.h"

/* One token of one head. */
static void token(double *o, double *state, const float *q, const float *k, const float *v,
                  const float *g, double beta, int d_k, int d_v)
{
    for (int i = 0; i < d_k; i++) {
        double alpha = exp((double)g[i]);
        for (int j = 0; j < d_v; j++)
            state[i * d_v + j] *= alpha;
    }
    for (int j = 0; j < d_v; j++) {
        double seen = 0;
        for (int i = 0; i < d_k; i++)
            seen += k[i] * state[i * d_v + j];
        o[j] = beta * (v[j] - seen);
    }
    for (int i = 0; i < d_k; i++)
        for (int j = 0; j < d_v; j++)
            state[i * d_v + j] += k[i] * o[j];
    for (int j = 0; j < d_v; j++) {
        o[j] = 0;
        for (int i = 0; i < d_k; i++)
            o[j] += q[i] * state[i * d_v + j];
    }
}

void ref_kda(double *o, double *state, const float *q, const float *k, const float *v,
             const float *g, const float *beta, int64_t n_tokens, int n_heads, int d_k, int d_v)
{
    for (int64_t row = 0; row < n_tokens * n_heads; row++) {
        int64_t at_k = row * d_k, at_v = row * d_v;
        token(o + at_v, state + row % n_heads * d_k * d_v, q + at_k, k + at_k, v + at_v, g + at_k,
              (double)beta[row], d_k, d_v);
    }
}
