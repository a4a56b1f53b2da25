/*
 * Drawing a token from its logits (base/sampling.h): the arithmetic that the backends share, and
 * the draw of one row from host memory.
 *
 * The order. Candidates stand by logit, the highest first, the lower id first among equals. top_k
 * keeps the first k. top_p keeps the shortest front part with at least top_p of the mass that is
 * left; min_p those with at least min_p times the first one's weight. The draw walks the survivors
 * in that order; without top_k and top_p nothing needs sorting, and it walks by id.
 *
 * The sums are of weights at positions: ids, or places in the order. Groups of LH_SAMPLE_GROUP
 * positions are summed each from 0, in rising order: s(i) ends with position i. S(i) = P(g) + s(i),
 * with P(g) the groups before that of i, added in rising order. So a GPU can sum groups at once and
 * get the bits of one loop. The draw is the first position with S > u * S(the last survivor's).
 *
 * Nothing here changes with the compiler or the machine: random numbers are integers, exp is our
 * own, since libraries' differ in the last bit, and a product is exact, compared, or summed by an
 * explicit fma(), so that contraction has nothing to change. Both C and CUDA include this.
 */
#ifndef LH_KERNELS_SAMPLE_H
#define LH_KERNELS_SAMPLE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/sampling.h"
#include "base/synth.h"

#ifdef __CUDACC__
#define LH_SAMPLE_INLINE static inline __host__ __device__
#else
#define LH_SAMPLE_INLINE static inline
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define LH_SAMPLE_GROUP 256
#define LH_SAMPLE_SORTED 1024 /* candidates that a backend puts in order, at least */

/*
 * The draw from logits [n_vocab] in host memory, n_vocab in [1, 2^31 - 1]; never LH_SAMPLE_OPEN,
 * and infinite logits are as good as others. scratch: lh_sample_row_bytes, 8-byte aligned; unused
 * at temperature 0.
 */
int32_t lh_sample_row(const float *logits, int64_t n_vocab, const lh_draw *draw, void *scratch);
size_t lh_sample_row_bytes(int64_t n_vocab);

/* exp(x) for x <= 0 to within 2 units in the last place; 0 where it is below the normal numbers. */
LH_SAMPLE_INLINE double lh_sample_exp(double x)
{
    double k, r, y, scale;
    uint64_t bits;

    if (!(x >= -708))
        return 0;
    k = nearbyint(x * 0x1.71547652b82fep+0);
    r = fma(k, -0x1.62e42fefa39efp-1, x);
    r = fma(k, -0x1.abc9e3b39803fp-56, r);
    y = 1.0 / 6227020800.0;
    y = fma(y, r, 1.0 / 479001600.0);
    y = fma(y, r, 1.0 / 39916800.0);
    y = fma(y, r, 1.0 / 3628800.0);
    y = fma(y, r, 1.0 / 362880.0);
    y = fma(y, r, 1.0 / 40320.0);
    y = fma(y, r, 1.0 / 5040.0);
    y = fma(y, r, 1.0 / 720.0);
    y = fma(y, r, 1.0 / 120.0);
    y = fma(y, r, 1.0 / 24.0);
    y = fma(y, r, 1.0 / 6.0);
    y = fma(y, r, 1.0 / 2.0);
    y = fma(y, r, 1.0);
    y = fma(y, r, 1.0);
    bits = (uint64_t)((int64_t)k + 1023) << 52;
    memcpy(&scale, &bits, sizeof scale);
    return y * scale; /* exact: a power of two, and no result below the normal numbers */
}

/* The probability of a logit relative to that of `top`, the largest; NaN has none. */
LH_SAMPLE_INLINE double lh_sample_weight(double top, double inverse_temperature, float logit)
{
    double x = (double)logit;

    if (x == top)
        return 1;
    return x < top ? lh_sample_exp((x - top) * inverse_temperature) : 0;
}

/* Uniform in [0, 1), a function of seed and number alone. */
LH_SAMPLE_INLINE double lh_sample_uniform(const lh_draw *d)
{
    const uint64_t step = 0x9e3779b97f4a7c15u;
    uint64_t key = lh_synth_mix(d->how.seed + step);

    return (double)(lh_synth_mix(key + d->number * step) >> 11) * 0x1p-53;
}

LH_SAMPLE_INLINE int64_t lh_sample_groups(int64_t n_vocab)
{
    return (n_vocab + LH_SAMPLE_GROUP - 1) / LH_SAMPLE_GROUP;
}

/* 1: the draw walks by id; 0: in order. */
LH_SAMPLE_INLINE int lh_sample_is_by_id(const lh_sampling *how)
{
    return how->top_k == 0 && !(how->top_p < 1);
}

#ifdef __cplusplus
}
#endif
#endif
