/*
 * What kda_prepare leaves for the chain over chunks, and the instructions that both use.
 *
 * For each chunk and head there is one image of operands, written in the order in which the lanes
 * of a warp hold them for mma.m16n8k16, so that a tile comes by one 16-byte access per lane without
 * bank conflicts and an image by few bulk copies. The chain works on the transposed state: a warp
 * keeps 16 columns of S as S^T [16, d_k] in accumulators, which are the next product's left operand
 * after rounding, so the chain itself needs neither shared memory nor barriers between warps.
 *
 * Operands of the chain are f16, which has 8 times the precision of bf16. w, k, q and the scores
 * are at most about 1. Values scale with v: u is kept times a power of two per chunk and 16
 * columns, the state times one per tile and 16 columns, both from the largest |v|, so that nothing
 * can overflow or vanish. The scores are products of bf16, which has the range they need.
 */
#ifndef LH_KERNELS_CUDA_KDA_CUH
#define LH_KERNELS_CUDA_KDA_CUH

#include <cuda_fp16.h>

#include "base/mem.h"
#include "kernels/cuda/cuda.cuh"

#define KDA_D 128    /* d_k and d_v */
#define KDA_GROUP 16 /* columns of a warp of the chain */
#define KDA_GROUPS (KDA_D / KDA_GROUP)
#define KDA_PAIRS 10 /* 16x16 blocks of the lower triangle of a chunk's scores */

/* Operands of 16x16: [step over the summed dimension][step over the other][lane] of four registers.
 * For right operands, two of 8 columns. */
typedef struct kda_image {
    uint4 w[8][4][32];           /* -w, right: d_k, tokens */
    uint4 k[4][8][32];           /* k exp(G_last - G), right: tokens, d_k */
    float decay[KDA_D];          /* exp(G_last) */
    float v_scale[KDA_GROUPS];   /* u is stored divided by it */
    float unused[120];           /* parts of an image start at multiples of 128 bytes */
    uint4 q[8][4][32];           /* q exp(G), left: d_k, tokens */
    uint4 scores[KDA_PAIRS][32]; /* left: query and key blocks (0,0), (1,0), (1,1), (2,0) .. */
    uint4 u[KDA_GROUPS][4][32];  /* u^T as accumulators: [group of columns][16 tokens] */
} kda_image;

static_assert(sizeof(kda_image) == LH_CUDA_KDA_IMAGE_BYTES, "the size that plans count with");
static_assert(sizeof(kda_image) % 128 == 0, "images start at multiples of 128 bytes");
static_assert(KDA_GROUPS == LH_CUDA_KDA_GROUPS, "the number that plans count with");

typedef struct kda_work {
    kda_image *image;    /* [slots, n_heads] */
    unsigned *v_largest; /* [n_tiles, n_heads, KDA_GROUPS] bits of the largest |v| */
} kda_work;

/* Chunks are numbered in slots: those of tile i from start[i] / LH_CHUNK + i on. */
static __host__ __device__ __forceinline__ int64_t kda_first_slot(const int64_t *start, int tile)
{
    return start[tile] / LH_CHUNK + tile;
}

static inline void kda_place_work(kda_work *w, void *base, int64_t n_rows, int n_tiles, int n_heads)
{
    lh_cuda_kda_work at = {};

    (void)lh_cuda_kda_layout(&at, base, n_rows, n_tiles, n_heads);
    w->image = (kda_image *)at.image;
    w->v_largest = (unsigned *)at.v_largest;
}

/* The chains from 0 and from I that make map and add, after the images; `start` is on the device.
 */
lh_status kda_maps(lh_stream *s, const lh_kda_prepare_args *a, const int64_t *start);

static inline lh_status kda_check_size(const char *op, int d_k, int d_v)
{
    LH_REQUIRE(d_k == KDA_D && d_v == KDA_D, LH_ERR_UNSUPPORTED,
               "%s: d_k %d, d_v %d, expected %d on CUDA", op, d_k, d_v, KDA_D);
    return LH_OK;
}

/* GPUs with 99 KiB for a block do not have what prefill needs. */
static inline lh_status kda_check_shared(const lh_stream *s, const char *op, size_t bytes)
{
    LH_REQUIRE(bytes <= (size_t)s->most_shared_bytes, LH_ERR_UNSUPPORTED,
               "%s: GPU %d has %d bytes of shared memory for a block, expected at least %zu", op,
               s->device, s->most_shared_bytes, bytes);
    return LH_OK;
}

/* The power of two that brings values up to `largest` to 4 .. 8, as its exponent. */
static __device__ __forceinline__ int kda_scale_exponent(float largest)
{
    int e = (int)(__float_as_uint(largest) >> 23 & 255) - 127;
    return largest == 0.0f ? 0 : max(-126, min(126, 2 - e));
}

static __device__ __forceinline__ float power_of_two(int e)
{
    return __uint_as_float((unsigned)(e + 127) << 23);
}

/* 2^x; below the normal numbers 0. */
static __device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

static __device__ __forceinline__ unsigned pack_half(float low, float high)
{
    __half2 x = __floats2half2_rn(low, high);
    return *(unsigned *)&x;
}

static __device__ __forceinline__ unsigned pack_bf16(float low, float high)
{
    __nv_bfloat162 x = __floats2bfloat162_rn(low, high);
    return *(unsigned *)&x;
}

static __device__ __forceinline__ float2 unpack_half(unsigned x)
{
    return __half22float2(*(__half2 *)&x);
}

static __device__ __forceinline__ float2 unpack_bf16(unsigned x)
{
    return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u));
}

static __device__ __forceinline__ unsigned shared_address(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

static __device__ __forceinline__ uint4 load_matrices(unsigned address)
{
    uint4 r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "r"(address));
    return r;
}

static __device__ __forceinline__ uint4 load_matrices_transposed(unsigned address)
{
    uint4 r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "r"(address));
    return r;
}

/* c [16, 8] += a [16, 16] b [16, 8] */
static __device__ __forceinline__ void mma_bf16(float (&c)[4], uint4 a, unsigned b0, unsigned b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void mma_half(float (&c)[4], uint4 a, unsigned b0, unsigned b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

#endif
