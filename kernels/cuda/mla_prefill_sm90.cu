/*
 * The two steps of prefill attention for Hopper: tensor map loads into swizzled shared memory by
 * one warp, warpgroup products by two groups of four.
 *
 * A row of queries is one row of every product, and keys are added in tiles of 128 at fixed
 * positions, in rising order: its bits do not depend on the rows beside it, nor on masked tiles
 * that only they need (a factor of 1 and zeros).
 */
#include <cuda.h>

#include "kernels/cuda/mla_sm90.cuh"

#define TILE 128         /* keys, queries and outputs of a tile */
#define SLAB (TILE * 64) /* elements of 64 columns of a tile: rows of 128 bytes */
#define SLAB_BYTES (SLAB * 2)
#define STEPS_LATENT (MLA_LATENT / 64)
#define CONSUMERS 256
#define THREADS (CONSUMERS + 128) /* one more group: its first thread loads */

#define EXPAND_STAGES 3 /* of each group */
typedef struct expand_shared {
    bf16 w[STEPS_LATENT][SLAB];
    bf16 latent[2][EXPAND_STAGES][SLAB];
    uint64_t w_full, full[2][EXPAND_STAGES], empty[2][EXPAND_STAGES];
} expand_shared;

#define ATTEND_STAGES 2
typedef struct attend_shared {
    bf16 q[3][SLAB];
    bf16 k[ATTEND_STAGES][3][SLAB];
    bf16 v[ATTEND_STAGES][2][SLAB];
    uint64_t q_full;
    uint64_t k_full[ATTEND_STAGES], k_empty[ATTEND_STAGES];
    uint64_t v_full[ATTEND_STAGES], v_empty[ATTEND_STAGES];
} attend_shared;

#ifndef LH_MLA_TURNS
#define LH_MLA_TURNS true
#endif

#if HAVE_SM90

/* 128 rows of 64 columns from (column, row); rows behind the tensor's last are zeros. */
static __device__ __forceinline__ void load_slab(bf16 *to, const CUtensorMap *map, int column,
                                                 int row, uint64_t *full)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_at(to)),
                 "l"(map), "r"(shared_at(full)), "r"(column), "r"(row)
                 : "memory");
}

/* The compiler must not move uses of x over this line: products write x on their own. */
static __device__ __forceinline__ void hold(float x[64])
{
#pragma unroll
    for (int i = 0; i < 64; i++)
        asm volatile("" : "+f"(x[i])::"memory");
}

#define ACC8(x, i)                                                                                 \
    "+f"(x[i]), "+f"(x[i + 1]), "+f"(x[i + 2]), "+f"(x[i + 3]), "+f"(x[i + 4]), "+f"(x[i + 5]),    \
        "+f"(x[i + 6]), "+f"(x[i + 7])
#define ACC64(x)                                                                                   \
    ACC8(x, 0), ACC8(x, 8), ACC8(x, 16), ACC8(x, 24), ACC8(x, 32), ACC8(x, 40), ACC8(x, 48),       \
        ACC8(x, 56)
#define ACC64_NAMES                                                                                \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "  \
    "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "   \
    "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "   \
    "%56, %57, %58, %59, %60, %61, %62, %63}"

/* d [64, 128] = a b^T, or += with `add`; both operands have the index of the sum in their columns
 * (16 of them). */
static __device__ __forceinline__ void product_ss(float d[64], uint64_t a, uint64_t b, int add)
{
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " ACC64_NAMES
                 ", %64, %65, add, 1, 1, 0, 0;\n"
                 "}"
                 : ACC64(d)
                 : "l"(a), "l"(b), "r"(add));
}

/* d [64, 128] += a b; a in registers, b has the index of the sum in its rows. */
static __device__ __forceinline__ void product_rs(float d[64], const uint32_t a[4], uint64_t b)
{
    asm volatile("{\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " ACC64_NAMES
                 ", {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
                 "}"
                 : ACC64(d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/* Four pairs of columns, one of each of four neighbouring eights, become the four pairs of one
 * eight: lane i of a quad gets the i-th. */
static __device__ __forceinline__ uint4 gather_quad(uint32_t x0, uint32_t x1, uint32_t x2,
                                                    uint32_t x3)
{
    int odd = threadIdx.x & 1, high = threadIdx.x & 2;
    uint32_t a, b;

    a = __shfl_xor_sync(0xffffffffu, odd ? x0 : x1, 1);
    b = __shfl_xor_sync(0xffffffffu, odd ? x2 : x3, 1);
    x0 = odd ? a : x0;
    x1 = odd ? x1 : a;
    x2 = odd ? b : x2;
    x3 = odd ? x3 : b;
    a = __shfl_xor_sync(0xffffffffu, high ? x0 : x2, 2);
    b = __shfl_xor_sync(0xffffffffu, high ? x1 : x3, 2);
    return high ? make_uint4(a, b, x2, x3) : make_uint4(x0, x1, a, b);
}

/* Row half r (0: rows lane / 4, 1: eight below) of a [64, 128] product to 128 elements at `to`. */
static __device__ __forceinline__ void store_row(bf16 *to, const float x[64], int r, float factor,
                                                 bool present)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t p[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float *y = x + 16 * i + 4 * j + 2 * r;
            p[j] = pack2(y[0] * factor, y[1] * factor);
        }
        uint4 v = gather_quad(p[0], p[1], p[2], p[3]);
        if (present)
            *(uint4 *)(to + 32 * i + (threadIdx.x & 3) * 8) = v;
    }
}

/* The latents of one group's tiles; by one thread. */
static __device__ void expand_load(expand_shared *sh, const CUtensorMap *latent, int group, int key,
                                   int n_tiles)
{
    int chunk = 0;

    for (int t = blockIdx.y + group * gridDim.y; t < n_tiles; t += 2 * gridDim.y)
        for (int c = 0; c < STEPS_LATENT; c++, chunk++) {
            int stage = chunk % EXPAND_STAGES;
            barrier_wait(&sh->empty[group][stage], (chunk / EXPAND_STAGES & 1) ^ 1);
            barrier_expect(&sh->full[group][stage], SLAB_BYTES);
            load_slab(sh->latent[group][stage], latent, c * 64, key + t * TILE,
                      &sh->full[group][stage]);
        }
}

static __device__ __forceinline__ void expand_step(float d[2][64], uint32_t latent, uint32_t w,
                                                   int add)
{
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            product_ss(d[i], operand(latent + i * (SLAB_BYTES / 2) + k * 32, 16),
                       operand(w + k * 32, 16), add + k);
    product_commit();
}

/* The products of one step run while the next is queued; a stage is free when its step has run. */
static __device__ __forceinline__ void expand_tile(float d[2][64], expand_shared *sh, int group,
                                                   int chunk)
{
    bool leader = threadIdx.x % 32 == 0;

#pragma unroll 1
    for (int c = 0; c < STEPS_LATENT; c++, chunk++) {
        int stage = chunk % EXPAND_STAGES;
        barrier_wait(&sh->full[group][stage], chunk / EXPAND_STAGES & 1);
        hold(d[0]);
        hold(d[1]);
        product_begin();
        expand_step(d, shared_at(sh->latent[group][stage]), shared_at(sh->w[c]), c);
        product_wait<1>();
        if (c > 0 && leader)
            barrier_arrive(&sh->empty[group][(chunk - 1) % EXPAND_STAGES]);
    }
    product_wait<0>();
    hold(d[0]);
    hold(d[1]);
    if (leader)
        barrier_arrive(&sh->empty[group][(chunk - 1) % EXPAND_STAGES]);
}

#endif

/* Keys, or values, of one head: their rows of w_kvb stay in shared memory, the latents of every
 * gridDim.y-th tile pass by. The two groups take tiles in turn, each at its own pace: one stores
 * while the other multiplies. */
static __global__ void __launch_bounds__(THREADS, 1)
    expand_kernel(const __grid_constant__ CUtensorMap latent, const __grid_constant__ CUtensorMap w,
                  bf16 *kv, int kv_rows, int key, int n_tiles)
{
#if HAVE_SM90
    extern __shared__ __align__(1024) char memory[];
    expand_shared *sh = (expand_shared *)memory;
    int head = blockIdx.x / 2, is_value = blockIdx.x % 2, group = threadIdx.x / 128;

    let_next_start();
    if (threadIdx.x == 0) {
        barrier_init(&sh->w_full, 1);
        for (int i = 0; i < 2 * EXPAND_STAGES; i++) {
            barrier_init(&sh->full[0][0] + i, 1);
            barrier_init(&sh->empty[0][0] + i, 4);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x >= CONSUMERS) {
        if (threadIdx.x == CONSUMERS) {
            barrier_expect(&sh->w_full, STEPS_LATENT * SLAB_BYTES);
            for (int c = 0; c < STEPS_LATENT; c++)
                load_slab(sh->w[c], &w, c * 64, head * MLA_KV + is_value * MLA_NOPE, &sh->w_full);
        }
        if (threadIdx.x % 32 == 0 && threadIdx.x < CONSUMERS + 64)
            expand_load(sh, &latent, (threadIdx.x - CONSUMERS) / 32, key, n_tiles);
        return;
    }
    int row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    bf16 *to = kv + (int64_t)head * kv_rows * MLA_KV + is_value * MLA_NOPE;

    barrier_wait(&sh->w_full, 0);
    for (int nth = 0, t = blockIdx.y + group * gridDim.y; t < n_tiles; nth++, t += 2 * gridDim.y) {
        float d[2][64];
        expand_tile(d, sh, group, nth * STEPS_LATENT);
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int r = 0; r < 2; r++)
                store_row(to + (int64_t)(t * TILE + i * 64 + r * 8 + row) * MLA_KV, d[i], r, 1.0f,
                          true);
    }
    await_previous(); /* what waits for this kernel waits for the attention before, too */
#endif
}

#if HAVE_SM90

static __device__ void attend_load(attend_shared *sh, const CUtensorMap *q, const CUtensorMap *kv,
                                   const CUtensorMap *latent, int q_row, int q_column, int kv_row,
                                   int key, int n_tiles)
{
    barrier_expect(&sh->q_full, 3 * SLAB_BYTES);
    for (int c = 0; c < 3; c++)
        load_slab(sh->q[c], q, q_column + c * 64, q_row, &sh->q_full);
    for (int t = 0; t < n_tiles; t++) {
        int stage = t % ATTEND_STAGES;
        uint32_t parity = (t / ATTEND_STAGES & 1) ^ 1;
        barrier_wait(&sh->k_empty[stage], parity);
        barrier_expect(&sh->k_full[stage], 3 * SLAB_BYTES);
        for (int c = 0; c < 2; c++)
            load_slab(sh->k[stage][c], kv, c * 64, kv_row + t * TILE, &sh->k_full[stage]);
        load_slab(sh->k[stage][2], latent, MLA_LATENT, key + t * TILE, &sh->k_full[stage]);
        barrier_wait(&sh->v_empty[stage], parity);
        barrier_expect(&sh->v_full[stage], 2 * SLAB_BYTES);
        for (int c = 0; c < 2; c++)
            load_slab(sh->v[stage][c], kv, MLA_NOPE + c * 64, kv_row + t * TILE,
                      &sh->v_full[stage]);
    }
}

/* The groups' turns: each waits for the other to have queued its products. */
static __device__ __forceinline__ void await_turn(int group)
{
    asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory");
}

static __device__ __forceinline__ void pass_turn(int group)
{
    asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory");
}

/* s = q k^T, queued. */
static __device__ __forceinline__ void scores(float s[64], uint32_t q, uint32_t k)
{
#pragma unroll
    for (int i = 0; i < MLA_QK / 16; i++) {
        uint32_t at = i / 4 * SLAB_BYTES + i % 4 * 32;
        product_ss(s, operand(q + at, 16), operand(k + at, 16), i);
    }
    product_commit();
}

/* o += p v, queued. */
static __device__ __forceinline__ void weigh(float o[64], const uint32_t p[32], uint32_t v)
{
#pragma unroll
    for (int i = 0; i < TILE / 16; i++)
        product_rs(o, p + 4 * i, operand(v + i * 16 * 128, SLAB_BYTES));
    product_commit();
}

/* Keys behind the row's own position: `seen` is its position less the tile's first key. */
static __device__ __forceinline__ void mask(float s[64], int seen)
{
    int column = threadIdx.x % 4 * 2;

#pragma unroll
    for (int i = 0; i < 64; i++)
        if (column + i / 4 * 8 + i % 2 > seen + i / 2 % 2 * 8)
            s[i] = -INFINITY;
}

/* Scores become weights relative to the new maximum; factor is what older sums are worth. The sum
 * is of this thread's columns only. */
static __device__ __forceinline__ void softmax(float s[64], float max[2], float sum[2],
                                               float factor[2])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top0 = s[2 * r], top1 = s[2 * r + 1], add0 = 0, add1 = 0;
#pragma unroll
        for (int i = 1; i < 16; i++) {
            top0 = fmaxf(top0, s[4 * i + 2 * r]);
            top1 = fmaxf(top1, s[4 * i + 2 * r + 1]);
        }
        float top = fmaxf(max[r], quad_max(fmaxf(top0, top1)) * MLA_SCALE_LOG2);
        factor[r] = exp2_f(max[r] - top);
        max[r] = top;
#pragma unroll
        for (int i = 0; i < 16; i++) {
            float *x = s + 4 * i + 2 * r;
            x[0] = exp2_f(fmaf(x[0], MLA_SCALE_LOG2, -top));
            x[1] = exp2_f(fmaf(x[1], MLA_SCALE_LOG2, -top));
            add0 += x[0];
            add1 += x[1];
        }
        sum[r] = fmaf(sum[r], factor[r], add0 + add1);
    }
}

static __device__ __forceinline__ void scale_rows(float o[64], const float factor[2])
{
#pragma unroll
    for (int i = 0; i < 64; i++)
        o[i] *= factor[i / 2 % 2];
}

/* The product's rows are its operand's rows: columns 2 i, 2 i + 1 of both. */
static __device__ __forceinline__ void pack_weights(uint32_t p[32], const float s[64])
{
#pragma unroll
    for (int i = 0; i < 32; i++)
        p[i] = pack2(s[2 * i], s[2 * i + 1]);
}

#endif

/* One piece of queries of one head against the block's keys; the longest pieces first. With `turns`
 * the two groups queue their products one after the other, so that one multiplies while the other
 * computes weights. */
template <bool turns>
static __global__ void __launch_bounds__(THREADS, 1)
    attend_kernel(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap kv,
                  const __grid_constant__ CUtensorMap latent, const __grid_constant__ mla_pass p)
{
#if HAVE_SM90
    extern __shared__ __align__(1024) char memory[];
    attend_shared *sh = (attend_shared *)memory;
    int head = blockIdx.x % p.n_heads, group = threadIdx.x / 128;
    const mla_piece piece = mla_piece_at(&p, p.run_piece[p.n_runs] - 1 - blockIdx.x / p.n_heads);
    int end = min(piece.position + piece.n_rows, p.key + p.n_keys);
    int n_tiles = (end - p.key + TILE - 1) / TILE;

    if (threadIdx.x == 0) {
        barrier_init(&sh->q_full, 1);
        for (int i = 0; i < ATTEND_STAGES; i++) {
            barrier_init(&sh->k_full[i], 1);
            barrier_init(&sh->k_empty[i], CONSUMERS / 32);
            barrier_init(&sh->v_full[i], 1);
            barrier_init(&sh->v_empty[i], CONSUMERS / 32);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    await_previous();
    let_next_start();
    if (threadIdx.x >= CONSUMERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == CONSUMERS)
            attend_load(sh, &q, &kv, &latent, piece.row, (p.head + head) * MLA_QK, head * p.kv_rows,
                        p.key, n_tiles);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");

    int in_piece = group * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    int64_t row = piece.row + in_piece;
    bool present[2] = {in_piece < piece.n_rows, in_piece + 8 < piece.n_rows};
    bool leader = threadIdx.x % 32 == 0;
    float s[64], o[64], max[2], sum[2], factor[2];
    uint32_t weights[32];
    uint32_t q_at = shared_at(sh->q) + group * (SLAB_BYTES / 2);

#pragma unroll
    for (int r = 0; r < 2; r++) {
        bool again = p.key > 0 && present[r];
        float2 state =
            again ? p.state[(row + 8 * r) * p.n_heads + head] : make_float2(-INFINITY, 0);
        const float *from =
            p.sum + ((row + 8 * r) * p.n_heads + head) * MLA_V + threadIdx.x % 4 * 2;
        max[r] = state.x;
        sum[r] = threadIdx.x % 4 == 0 ? state.y : 0;
#pragma unroll
        for (int i = 0; i < 16; i++) {
            float2 v = again ? *(const float2 *)(from + 8 * i) : make_float2(0, 0);
            o[4 * i + 2 * r] = v.x;
            o[4 * i + 2 * r + 1] = v.y;
        }
    }

    int seen = piece.position + in_piece - p.key;    /* keys of the block that lie before the row */
    int clear = piece.position + group * 64 - p.key; /* the same of the group's first row */

    barrier_wait(&sh->q_full, 0);
    if (turns && group == 1)
        pass_turn(group);
    barrier_wait(&sh->k_full[0], 0);
    if (turns)
        await_turn(group);
    hold(s);
    product_begin();
    scores(s, q_at, shared_at(sh->k[0]));
    if (turns && !(group == 1 && n_tiles == 1))
        pass_turn(group);
    product_wait<0>();
    hold(s);
    if (leader)
        barrier_arrive(&sh->k_empty[0]);
    if (TILE - 1 > clear)
        mask(s, seen);
    softmax(s, max, sum, factor);
    scale_rows(o, factor);
    pack_weights(weights, s);
#pragma unroll 1
    for (int t = 1; t < n_tiles; t++) {
        int stage = t % ATTEND_STAGES, before = (t - 1) % ATTEND_STAGES;

        barrier_wait(&sh->k_full[stage], t / ATTEND_STAGES & 1);
        if (turns)
            await_turn(group);
        hold(s);
        hold(o);
        product_begin();
        scores(s, q_at, shared_at(sh->k[stage]));
        barrier_wait(&sh->v_full[before], (t - 1) / ATTEND_STAGES & 1);
        product_begin();
        weigh(o, weights, shared_at(sh->v[before]));
        if (turns && !(group == 1 && t == n_tiles - 1))
            pass_turn(group);
        product_wait<1>();
        hold(s);
        if (leader)
            barrier_arrive(&sh->k_empty[stage]);
        if (t * TILE + TILE - 1 > clear)
            mask(s, seen - t * TILE);
        softmax(s, max, sum, factor);
        product_wait<0>();
        hold(o);
        if (leader)
            barrier_arrive(&sh->v_empty[before]);
        scale_rows(o, factor);
        pack_weights(weights, s);
    }
    barrier_wait(&sh->v_full[(n_tiles - 1) % ATTEND_STAGES], (n_tiles - 1) / ATTEND_STAGES & 1);
    hold(o);
    product_begin();
    weigh(o, weights, shared_at(sh->v[(n_tiles - 1) % ATTEND_STAGES]));
    product_wait<0>();
    hold(o);

    bool last = piece.position + piece.n_rows <= p.key + p.n_keys;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int64_t at = row + 8 * r;
        float total = quad_sum(sum[r]);
        if (last) {
            store_row(p.o + (at * p.n_all_heads + p.head + head) * MLA_V, o, r, 1.0f / total,
                      present[r]);
        } else if (present[r]) {
            float *to = p.sum + (at * p.n_heads + head) * MLA_V + threadIdx.x % 4 * 2;
#pragma unroll
            for (int i = 0; i < 16; i++)
                *(float2 *)(to + 8 * i) = make_float2(o[4 * i + 2 * r], o[4 * i + 2 * r + 1]);
            if (threadIdx.x % 4 == 0)
                p.state[at * p.n_heads + head] = make_float2(max[r], total);
        }
    }
#endif
}

/* Boxes of 128 rows of 64 columns of a matrix of bf16. */
static lh_status tensor_map(CUtensorMap *map, const void *base, int64_t n_rows, int64_t n_columns)
{
    void *f = NULL;
    cudaDriverEntryPointQueryResult found;
    cuuint64_t size[2] = {(cuuint64_t)n_columns, (cuuint64_t)n_rows};
    cuuint64_t row_bytes[1] = {(cuuint64_t)n_columns * sizeof(bf16)};
    cuuint32_t box[2] = {64, TILE}, step[2] = {1, 1};

    LH_CUDA_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000,
                                                 cudaEnableDefault, &found));
    LH_REQUIRE(f && found == cudaDriverEntryPointSuccess, LH_ERR_CUDA,
               "the driver has no cuTensorMapEncodeTiled");
    CUresult e = ((CUresult(*)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                               const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                               const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                               CUtensorMapL2promotion, CUtensorMapFloatOOBfill))f)(
        map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)base, size, row_bytes, box, step,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    LH_REQUIRE(e == CUDA_SUCCESS, LH_ERR_CUDA, "tensor map of [%lld, %lld]: error %d",
               (long long)n_rows, (long long)n_columns, (int)e);
    return LH_OK;
}

lh_status lh_cuda_mla_expand_sm90(lh_stream *s, const mla_pass *p, int first)
{
    CUtensorMap latent, w;
    unsigned columns = (unsigned)p->n_heads * 2;
    unsigned n_tiles = (unsigned)div_up(p->n_keys, TILE);
    unsigned slices = (unsigned)s->n_sms / columns;

    LH_TRY(tensor_map(&latent, p->latent, (int64_t)p->key + p->n_keys, MLA_WIDTH));
    LH_TRY(tensor_map(&w, p->w_kvb, (int64_t)p->n_heads * MLA_KV, MLA_LATENT));
    slices = slices < 1 ? 1 : slices > n_tiles ? n_tiles : slices;
    return mla_launch(s, !first, expand_kernel, dim3(columns, slices), THREADS,
                      sizeof(expand_shared), latent, w, p->kv, p->kv_rows, p->key, (int)n_tiles);
}

lh_status lh_cuda_mla_attend_sm90(lh_stream *s, const mla_pass *p)
{
    CUtensorMap q, kv, latent;

    LH_TRY(tensor_map(&q, p->q, p->n_rows, (int64_t)p->n_all_heads * MLA_QK));
    LH_TRY(tensor_map(&kv, p->kv, (int64_t)p->n_heads * p->kv_rows, MLA_KV));
    LH_TRY(tensor_map(&latent, p->latent, (int64_t)p->key + p->n_keys, MLA_WIDTH));
    return mla_launch(s, 1, attend_kernel<LH_MLA_TURNS>,
                      dim3((unsigned)(mla_n_pieces(p) * p->n_heads)), THREADS,
                      sizeof(attend_shared), q, kv, latent, *p);
}
