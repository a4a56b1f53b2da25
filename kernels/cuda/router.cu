#include "kernels/cuda/cuda.cuh"

/*
 * Logits by the tensor cores, then the choice by a warp for each row. Row-invariant, but for a
 * stream that need not be deterministic, which leaves many rows to cuBLAS: a logit is the
 * sum, in rising order, of slices of SLICE elements, each summed by the same instructions in the
 * same order whether the call has few rows (a warp for each slice) or many (all slices in turn).
 */
#define SLICE 256
#define STEP 16 /* of an mma */

#define FEW_ROWS 1024    /* up to this many a block takes 16 rows and 8 experts */
#define FEW_ROWS_BLAS 32 /* the same where cuBLAS may take the rest */
#define FEW_WARPS 12
#define MOST_SLICES 64

#define TILE 128 /* rows, and experts, of a block with many rows */
#define WARPS 16 /* 4 along the rows, 4 along the experts: 32 by 32 each */
#define STAGE 64 /* elements of k in a stage */
#define STAGES 3

#define CHOICE_WARPS 4 /* rows of a block */
#define MOST_EXPERTS 1024

typedef struct few_smem {
    uint4 x[16 * SLICE / 8], w[8 * SLICE / 8];
} few_smem;

typedef struct tiles_smem {
    uint4 x[STAGES][TILE * STAGE / 8], w[STAGES][TILE * STAGE / 8];
} tiles_smem;

/* c += 16 rows times 8 experts over a step. */
static __device__ __forceinline__ void multiply(float c[4], uint4 a, unsigned b0, unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

/* Four 8 by 8 matrices; lane i has the place of row i % 8 of matrix i / 8. */
static __device__ __forceinline__ uint4 load_matrices(const uint4 *at)
{
    uint4 v;

    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"((unsigned)__cvta_generic_to_shared(at))
                 : "memory");
    return v;
}

/* 16 bytes from global to shared memory in the background; zeros when not `there`. */
static __device__ __forceinline__ void copy_async(uint4 *to, const uint4 *from, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

/* Where 16 bytes of a row lie among rows of `pieces` >= 8: 8 rows' pieces of one number are in
 * different banks. */
static __device__ __forceinline__ int piece_at(int pieces, int row, int piece)
{
    return row * pieces + (piece ^ (row & 7));
}

static __global__ void __launch_bounds__(FEW_WARPS * 32)
    logits_few_kernel(float *scores, const uint4 *x, const uint4 *w, int n_rows, int n_experts,
                      int n, int n_slices)
{
    enum { PIECES = SLICE / 8 };
    extern __shared__ __align__(128) char bytes[];
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    few_smem *smem = (few_smem *)bytes + warp;                    /* a slice of each warp */
    float *part = (float *)((few_smem *)bytes + blockDim.x / 32); /* [n_slices, 16, 8] */
    int first_row = (int)blockIdx.y * 16, first_expert = (int)blockIdx.x * 8;

    for (int slice = warp; slice < n_slices; slice += (int)blockDim.x / 32) {
        int at = slice * PIECES + lane;
        float c[4] = {0};
        __syncwarp(); /* the slice before has been read */
#pragma unroll
        for (int i = 0; i < 8; i++) {
            bool there = at < n && first_expert + i < n_experts;
            copy_async(smem->w + piece_at(PIECES, i, lane),
                       there ? w + (int64_t)(first_expert + i) * n + at : w, there);
        }
#pragma unroll
        for (int i = 0; i < 16; i++) {
            bool there = at < n && first_row + i < n_rows;
            copy_async(smem->x + piece_at(PIECES, i, lane),
                       there ? x + (int64_t)(first_row + i) * n + at : x, there);
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
        __syncwarp();
#pragma unroll
        for (int i = 0; i < SLICE / STEP; i += 2) {
            uint4 b = load_matrices(smem->w + piece_at(PIECES, lane % 8, i * 2 + lane / 8));
#pragma unroll
            for (int k = 0; k < 2; k++) {
                uint4 a =
                    load_matrices(smem->x + piece_at(PIECES, lane % 16, (i + k) * 2 + lane / 16));
                multiply(c, a, k ? b.z : b.x, k ? b.w : b.y);
            }
        }
        float *to = part + slice * 128 + lane / 4 * 8 + lane % 4 * 2;
        to[0] = c[0], to[1] = c[1], to[64] = c[2], to[65] = c[3];
    }
    __syncthreads();
    int row = first_row + (int)threadIdx.x / 8, expert = first_expert + (int)threadIdx.x % 8;
    if (threadIdx.x < 128 && row < n_rows && expert < n_experts) {
        float sum = 0;
        for (int slice = 0; slice < n_slices; slice++)
            sum += part[slice * 128 + threadIdx.x];
        scores[(int64_t)row * n_experts + expert] = sum;
    }
}

/* What a thread copies of each stage of x or of w: one piece of every ROWS_APART-th row. */
#define ROWS_APART (WARPS * 32 / (STAGE / 8))

typedef struct tile_source {
    const uint4 *from;
    int64_t apart;  /* between its rows */
    unsigned there; /* bit i: row i exists */
} tile_source;

static __device__ __forceinline__ tile_source source_of(const uint4 *from, int first, int n_all,
                                                        int n)
{
    int row = first + (int)threadIdx.x / (STAGE / 8);
    tile_source s = {.from = from + (int64_t)row * n + threadIdx.x % (STAGE / 8),
                     .apart = (int64_t)ROWS_APART * n};

    for (int i = 0; i < TILE / ROWS_APART; i++)
        s.there |= (unsigned)(row + i * ROWS_APART < n_all) << i;
    return s;
}

static __device__ __forceinline__ void load_stage(uint4 *to, const tile_source *s, int n, int stage)
{
    int row = (int)threadIdx.x / (STAGE / 8), piece = (int)threadIdx.x % (STAGE / 8);
    const uint4 *from = s->from + stage * (STAGE / 8);
    unsigned there = stage * (STAGE / 8) + piece < n ? s->there : 0;

    to += piece_at(STAGE / 8, row, piece); /* ROWS_APART is a multiple of 8 */
#pragma unroll
    for (int i = 0; i < TILE / ROWS_APART; i++, from += s->apart)
        copy_async(to + i * ROWS_APART * (STAGE / 8), from, there >> i & 1);
}

static __global__ void __launch_bounds__(WARPS * 32, 1)
    logits_many_kernel(float *scores, const uint4 *x, const uint4 *w, int n_rows, int n_experts,
                       int n, int n_stages)
{
    extern __shared__ __align__(128) char bytes[];
    tiles_smem *smem = (tiles_smem *)bytes;
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int first_row = (int)blockIdx.y * TILE, first_expert = (int)blockIdx.x * TILE;
    int row = warp % 4 * 32, expert = warp / 4 * 32; /* of the warp, in the tile */
    float c[2][4][4] = {0}, sum[2][4][4] = {0};
    tile_source from_x = source_of(x, first_row, n_rows, n);
    tile_source from_w = source_of(w, first_expert, n_experts, n);

#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < n_stages) {
            load_stage(smem->x[i], &from_x, n, i);
            load_stage(smem->w[i], &from_w, n, i);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    for (int stage = 0; stage < n_stages; stage++) {
        const uint4 *sx = smem->x[stage % STAGES], *sw = smem->w[stage % STAGES];
        int next = stage + STAGES - 1;
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads(); /* this stage is there for all; all are done with the one before it */
#pragma unroll
        for (int i = 0; i < STAGE / STEP; i++) {
            uint4 a[2], b[2];
#pragma unroll
            for (int m = 0; m < 2; m++)
                a[m] = load_matrices(
                    sx + piece_at(STAGE / 8, row + m * 16 + lane % 16, i * 2 + lane / 16));
#pragma unroll
            for (int e = 0; e < 2; e++)
                b[e] = load_matrices(sw + piece_at(STAGE / 8,
                                                   expert + e * 16 + lane / 16 * 8 + lane % 8,
                                                   i * 2 + lane / 8 % 2));
#pragma unroll
            for (int e = 0; e < 4; e++)
#pragma unroll
                for (int m = 0; m < 2; m++)
                    multiply(c[m][e], a[m], e % 2 ? b[e / 2].z : b[e / 2].x,
                             e % 2 ? b[e / 2].w : b[e / 2].y);
            if (i == 0) { /* while the tensor cores are busy */
                if (next < n_stages) {
                    load_stage(smem->x[next % STAGES], &from_x, n, next);
                    load_stage(smem->w[next % STAGES], &from_w, n, next);
                }
                asm volatile("cp.async.commit_group;" ::: "memory");
            }
        }
        if (stage % (SLICE / STAGE) == SLICE / STAGE - 1 || stage == n_stages - 1) {
#pragma unroll
            for (int i = 0; i < 32; i++) {
                sum[i / 16][i / 4 % 4][i % 4] += c[i / 16][i / 4 % 4][i % 4];
                c[i / 16][i / 4 % 4][i % 4] = 0;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 32; i++) {
        int to_row = first_row + row + i / 16 * 16 + i % 4 / 2 * 8 + lane / 4;
        int to_expert = first_expert + expert + i / 4 % 4 * 8 + lane % 4 * 2 + i % 2;
        if (to_row < n_rows && to_expert < n_experts)
            scores[(int64_t)to_row * n_experts + to_expert] = sum[i / 16][i / 4 % 4][i % 4];
    }
}

/* As an unsigned number of the same order; a NaN above all so that it shows. Never 0. */
static __device__ __forceinline__ unsigned key_of(float x)
{
    return ordered(isnan(x) ? INFINITY : x);
}

/* A lane has N experts of the row: lane, lane + 32, ... */
template <int N>
static __global__ void __launch_bounds__(CHOICE_WARPS * 32)
    choice_kernel(int32_t *expert, float *weight, const float *scores, const float *bias,
                  int n_rows, int n_experts, int top_k, int renormalize, float scale)
{
    int64_t row = (int64_t)blockIdx.x * CHOICE_WARPS + threadIdx.x / 32;
    int lane = (int)threadIdx.x % 32;
    float s[N], b[N], sum = 0;
    unsigned key[N], chosen = 0;

    if (row >= n_rows)
        return;
    scores += row * n_experts;
    expert += row * top_k;
    weight += row * top_k;
#pragma unroll
    for (int i = 0; i < N; i++) /* all loads first: past the end, the last again */
        s[i] = scores[min(lane + 32 * i, n_experts - 1)];
#pragma unroll
    for (int i = 0; i < N; i++)
        b[i] = __ldg(bias + min(lane + 32 * i, n_experts - 1));
#pragma unroll
    for (int i = 0; i < N; i++) {
        s[i] = __fdividef(1.0f, 1.0f + expf(-s[i]));
        key[i] = lane + 32 * i < n_experts ? key_of(s[i] + b[i]) : 0;
    }
    for (int j = 0; j < top_k; j++) {
        unsigned best[N];
        int at[N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            best[i] = key[i];
            at[i] = i;
        }
#pragma unroll
        for (int apart = 1; apart < N; apart *= 2) /* ties stay with the lower */
#pragma unroll
            for (int i = 0; i < N; i += 2 * apart)
                if (best[i + apart] > best[i]) {
                    best[i] = best[i + apart];
                    at[i] = at[i + apart];
                }
        unsigned top = __reduce_max_sync(0xffffffffu, best[0]);
        unsigned id = __reduce_min_sync(0xffffffffu, best[0] == top ? lane + 32u * at[0] : ~0u);
#pragma unroll
        for (int i = 0; i < N; i++)
            if (id == lane + 32u * i) {
                key[i] = 0;
                chosen |= 1u << i;
            }
    }
    if (renormalize) {
#pragma unroll
        for (int i = 0; i < N; i++)
            sum += chosen >> i & 1 ? s[i] : 0.0f;
        scale /= warp_sum(sum) + 1e-20f;
    }
    int before = 0; /* chosen with lower ids */
#pragma unroll
    for (int i = 0; i < N; i++) {
        unsigned lanes = __ballot_sync(0xffffffffu, chosen >> i & 1);
        int to = before + __popc(lanes & ((1u << lane) - 1));
        if (chosen >> i & 1) {
            expert[to] = lane + 32 * i;
            weight[to] = s[i] * scale;
        }
        before += __popc(lanes);
    }
}

template <int N> static void launch_choice(lh_stream *s, const lh_router_args *a)
{
    choice_kernel<N>
        <<<(unsigned)div_up(a->n_rows, CHOICE_WARPS), CHOICE_WARPS * 32, 0, s->stream>>>(
            a->expert, a->weight, a->scores, a->bias, (int)a->n_rows, a->n_experts, a->top_k,
            a->renormalize, a->scale);
}

/* y = x W^T in column order: [n_rows, n_experts] in ours. */
static lh_status blas_logits(lh_stream *s, const lh_router_args *a)
{
    const float one = 1, zero = 0;

    return lh_cuda_blas_status(
        cublasGemmEx(s->blas, CUBLAS_OP_T, CUBLAS_OP_N, a->n_experts, (int)a->n_rows, (int)a->d,
                     &one, a->w, CUDA_R_16BF, (int)a->d, a->x, CUDA_R_16BF, (int)a->d, &zero,
                     a->scores, CUDA_R_32F, a->n_experts, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "router: logits by cublasGemmEx");
}

static lh_status launch_logits(lh_stream *s, const lh_router_args *a)
{
    int n_slices = (int)div_up(a->d, SLICE), n = (int)(a->d / 8);

    if (!s->deterministic && a->n_rows > FEW_ROWS_BLAS)
        return blas_logits(s, a);
    if (a->n_rows <= FEW_ROWS) {
        int warps = n_slices < 4 ? 4 : n_slices < FEW_WARPS ? n_slices : FEW_WARPS;
        dim3 grid((unsigned)div_up(a->n_experts, 8), (unsigned)div_up(a->n_rows, 16));
        size_t parts = (size_t)n_slices * 128 * sizeof(float);
        while (warps > 4 && warps * sizeof(few_smem) + parts > (size_t)s->most_shared_bytes)
            warps--;
        size_t bytes = warps * sizeof(few_smem) + parts;
        LH_TRY(lh_cuda_shared((const void *)logits_few_kernel, bytes));
        logits_few_kernel<<<grid, warps * 32, bytes, s->stream>>>(
            a->scores, (const uint4 *)a->x, (const uint4 *)a->w, (int)a->n_rows, a->n_experts, n,
            n_slices);
    } else {
        dim3 grid((unsigned)div_up(a->n_experts, TILE), (unsigned)div_up(a->n_rows, TILE));
        LH_TRY(lh_cuda_shared((const void *)logits_many_kernel, sizeof(tiles_smem)));
        logits_many_kernel<<<grid, WARPS * 32, sizeof(tiles_smem), s->stream>>>(
            a->scores, (const uint4 *)a->x, (const uint4 *)a->w, (int)a->n_rows, a->n_experts, n,
            (int)div_up(a->d, STAGE));
    }
    return lh_cuda_launched(s, "router: logits");
}

lh_status lh_cuda_router(lh_stream *s, const lh_router_args *a)
{
    LH_TRY(lh_check_router(a));
    LH_TRY(lh_cuda_multiple("router", "d", a->d, 8));
    LH_TRY(lh_cuda_most("router", "d", a->d, MOST_SLICES * SLICE));
    LH_TRY(lh_cuda_most("router", "n_experts", a->n_experts, MOST_EXPERTS));
    LH_TRY(lh_cuda_most("router", "n_rows", a->n_rows, 65535 * TILE));
    if (a->n_rows == 0)
        return LH_OK;
    LH_TRY(lh_cuda_aligned("router", "x", a->x));
    LH_TRY(lh_cuda_aligned("router", "w", a->w));
    LH_TRY(launch_logits(s, a));
    if (a->n_experts <= 32)
        launch_choice<1>(s, a);
    else if (a->n_experts <= 64)
        launch_choice<2>(s, a);
    else if (a->n_experts <= 128)
        launch_choice<4>(s, a);
    else if (a->n_experts <= 256)
        launch_choice<8>(s, a);
    else
        launch_choice<32>(s, a);
    return lh_cuda_launched(s, "router: choice");
}
