/*
 * Softmax over keys that come range by range: a running maximum and sum per query.
 */
#ifndef LH_KERNELS_CPU_SOFTMAX_H
#define LH_KERNELS_CPU_SOFTMAX_H

#include <math.h>
#include <stdint.h>

#include "kernels/cpu/vmath.h"

#define LH_SOFTMAX_LANES 16 /* running maxima and sums, merged pairwise at the end */

typedef struct lh_softmax {
    float max, sum;
} lh_softmax;

static const lh_softmax lh_softmax_empty = {.max = -INFINITY, .sum = 0};

/*
 * Takes the scores s [n] of the next keys, n >= 1, and leaves exp(s - maximum so far) in their
 * place. `s` has room up to the next multiple of LH_SOFTMAX_LANES and gets zeros there. Returns the
 * factor that what was summed before has to be multiplied with; 0 the first time.
 */
static inline float lh_softmax_take(lh_softmax *state, float *s, int64_t n)
{
    float top[LH_SOFTMAX_LANES], sum[LH_SOFTMAX_LANES] = {0};
    int64_t width = (n + LH_SOFTMAX_LANES - 1) / LH_SOFTMAX_LANES * LH_SOFTMAX_LANES;

    for (int64_t i = n; i < width; i++)
        s[i] = -INFINITY;
    for (int j = 0; j < LH_SOFTMAX_LANES; j++)
        top[j] = state->max;
    for (int64_t i = 0; i < width; i += LH_SOFTMAX_LANES)
        for (int j = 0; j < LH_SOFTMAX_LANES; j++)
            top[j] = s[i + j] > top[j] ? s[i + j] : top[j];
    for (int half = LH_SOFTMAX_LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            top[j] = top[j + half] > top[j] ? top[j + half] : top[j];

    float max = top[0];
    for (int64_t i = 0; i < width; i++)
        s[i] = lh_exp(s[i] - max);
    for (int64_t i = 0; i < width; i += LH_SOFTMAX_LANES)
        for (int j = 0; j < LH_SOFTMAX_LANES; j++)
            sum[j] += s[i + j];
    for (int half = LH_SOFTMAX_LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            sum[j] += sum[j + half];

    float factor = lh_exp(state->max - max);
    state->max = max;
    state->sum = state->sum * factor + sum[0];
    return factor;
}

#endif
