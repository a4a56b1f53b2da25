/*
 * Exponentials in f32 that the compiler vectorizes: straight-line code, no table, no errno, the
 * same result on every lane.
 */
#ifndef LH_KERNELS_CPU_VMATH_H
#define LH_KERNELS_CPU_VMATH_H

#include <stdint.h>
#include <string.h>

/* e^x, within 1.5 ulp for -87.3 <= x <= 88.7; 0 below, +inf above; NaN stays NaN. */
static inline float lh_exp(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float clamped = x < -87.33654f ? -87.33654f : x > 88.72283f ? 88.72283f : x;
    float n = clamped * 1.44269504f + magic;
    uint32_t n_bits;
    memcpy(&n_bits, &n, sizeof n_bits);
    n -= magic;
    float r = clamped - n * 0.693359375f;
    r -= n * -2.12194440e-4f;
    /* e^r on |r| <= ln(2) / 2 */
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    /* 2^n in two steps, so that n = 128 and the smallest normal numbers come out right */
    int32_t k = (int32_t)(n_bits - 0x4b400000u); /* the bits of `magic` */
    uint32_t half_bits = (uint32_t)((k >> 1) + 127) << 23;
    uint32_t rest_bits = (uint32_t)((k - (k >> 1)) + 127) << 23;
    float half, rest;
    memcpy(&half, &half_bits, sizeof half);
    memcpy(&rest, &rest_bits, sizeof rest);
    float y = p * half * rest;
    y = x < -87.33654f ? 0.0f : y;
    y = x > 88.72283f ? __builtin_inff() : y;
    return x != x ? x : y;
}

static inline float lh_sigmoid(float x)
{
    /* of the non-positive side, so that nothing overflows */
    float e = lh_exp(x < 0 ? x : -x);
    float big = 1.0f / (1.0f + e);
    return x < 0 ? e * big : big;
}

static inline float lh_silu(float x)
{
    return x * lh_sigmoid(x);
}

/* log(1 + e^x), within 3e-7 of itself, however small (0 where lh_exp is); NaN stays NaN. */
static inline float lh_softplus(float x)
{
    /* max(x, 0) + log1p(u) with u in [0, 1]; log1p(u) = 2 atanh(u / (2 + u)), or above
     * sqrt(2) - 1 log(2) + 2 atanh((u - 1) / (u + 3)): so |s| < 0.172, and a short series does */
    float u = lh_exp(x < 0 ? x : -x);
    int upper = u > 0.41421356f;
    float s = (upper ? u - 1.0f : u) / (upper ? u + 3.0f : u + 2.0f);
    float s2 = s * s;
    float p = 1.0f / 9;
    p = p * s2 + 1.0f / 7;
    p = p * s2 + 1.0f / 5;
    p = p * s2 + 1.0f / 3;
    float twice = s + s;
    float log1p_u = (upper ? 0.69314718f : 0.0f) + (twice + twice * s2 * p);
    return (x > 0 ? x : 0.0f) + log1p_u;
}

#endif
