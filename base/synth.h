/*
 * Elements of synthetic weights: a value is a function of (seed, name of the tensor, index of the
 * element) and of nothing else, so that every rank, thread, layout and backend makes the same bits.
 *
 * A counter is hashed to 64 bits, the bits to an integer below 2^24, and that is multiplied once by
 * a factor in f32: one rounding, no library function, nothing that contraction could change. Both C
 * and CUDA include this.
 */
#ifndef LH_BASE_SYNTH_H
#define LH_BASE_SYNTH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define LH_SYNTH_INLINE static inline __host__ __device__
#else
#define LH_SYNTH_INLINE static inline
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Standard deviation of a bell's integers, the root of (2^32 - 1) / 3; how many a flat law has. */
#define LH_SYNTH_BELL_SD 37837.227237206
#define LH_SYNTH_FLAT_N 1048576.0

/*
 * How the elements of one tensor are drawn: (offset + integer) * scale. The integers of a bell are
 * the sum of four uniforms of 16 bits less its mean, -131,070 to 131,070; of a flat law one uniform
 * of 20 bits, from 0. |offset| is below 2^23, so that the sum is exact in f32.
 */
typedef struct lh_synth_law {
    uint64_t key; /* lh_synth_key */
    int32_t flat; /* 0: a bell */
    int32_t offset;
    float scale;
} lh_synth_law;

/* What is kept of an element. */
typedef enum lh_synth_form {
    LH_SYNTH_AS_BF16,
    LH_SYNTH_AS_F32,
    LH_SYNTH_AS_WIDENED /* f32, rounded to bf16 before */
} lh_synth_form;

/* The finalizer of splitmix64: every bit of x reaches every bit of the result. */
LH_SYNTH_INLINE uint64_t lh_synth_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Of a seed and a name: FNV-1a, mixed. */
LH_SYNTH_INLINE uint64_t lh_synth_key(uint64_t seed, const char *name)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 0x100000001b3u;
    return lh_synth_mix(h ^ lh_synth_mix(seed + 0x9e3779b97f4a7c15u));
}

/* 64 random bits, number `index` of a key. */
LH_SYNTH_INLINE uint64_t lh_synth_bits(uint64_t key, uint64_t index)
{
    return lh_synth_mix(key + (index + 1) * 0x9e3779b97f4a7c15u);
}

LH_SYNTH_INLINE float lh_synth_f32(const lh_synth_law *law, uint64_t index)
{
    uint64_t bits = lh_synth_bits(law->key, index);
    int32_t bell =
        (int32_t)((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48)) -
        131070;

    return (float)(law->offset + (law->flat ? (int32_t)(bits >> 44) : bell)) * law->scale;
}

/* The same, rounded to bf16: to nearest, ties to even. */
LH_SYNTH_INLINE uint16_t lh_synth_bf16(const lh_synth_law *law, uint64_t index)
{
    float value = lh_synth_f32(law, index);
    uint32_t bits;

    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* The same, as the f32 of that value. */
LH_SYNTH_INLINE float lh_synth_widened(const lh_synth_law *law, uint64_t index)
{
    uint32_t bits = (uint32_t)lh_synth_bf16(law, index) << 16;
    float value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

LH_SYNTH_INLINE size_t lh_synth_form_bytes(lh_synth_form form)
{
    return form == LH_SYNTH_AS_BF16 ? sizeof(uint16_t) : sizeof(float);
}

/* Elements first .. first + n - 1 to `out`, at any alignment. */
static inline void lh_synth_elements(void *out, const lh_synth_law *law, lh_synth_form form,
                                     uint64_t first, size_t n)
{
    const lh_synth_law own = *law; /* out cannot change it */
    char *to = (char *)out;

    if (form == LH_SYNTH_AS_BF16) {
        for (size_t i = 0; i < n; i++) {
            uint16_t x = lh_synth_bf16(&own, first + i);
            memcpy(to + i * sizeof x, &x, sizeof x);
        }
        return;
    }
    for (size_t i = 0; i < n; i++) {
        float x = form == LH_SYNTH_AS_F32 ? lh_synth_f32(&own, first + i)
                                          : lh_synth_widened(&own, first + i);
        memcpy(to + i * sizeof x, &x, sizeof x);
    }
}

#ifdef __cplusplus
}
#endif
#endif
