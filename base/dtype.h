/*
 * Number formats of weights and activations. bf16 is kept as its 16 bits: the upper half of the f32
 * with the same value.
 */
#ifndef LH_BASE_DTYPE_H
#define LH_BASE_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef uint16_t lh_bf16;

typedef enum lh_dtype {
    LH_BF16,
    LH_F32,
    LH_I64,
    LH_I32,
} lh_dtype;

static inline size_t lh_dtype_bytes(lh_dtype t)
{
    return t == LH_BF16 ? 2 : t == LH_I64 ? 8 : 4;
}

/* As safetensors spells it. */
static inline const char *lh_dtype_name(lh_dtype t)
{
    return t == LH_BF16 ? "BF16" : t == LH_F32 ? "F32" : t == LH_I64 ? "I64" : "I32";
}

static inline float lh_bf16_to_f32(lh_bf16 x)
{
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Rounds to nearest, ties to even; NaN stays NaN. */
static inline lh_bf16 lh_f32_to_bf16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (lh_bf16)((bits >> 16) | 0x40u);
    return (lh_bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#ifdef __cplusplus
}
#endif
#endif
