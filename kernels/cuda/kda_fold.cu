/*
 * The state after a segment from the state before it: map S + add, in f32, per head. A block makes
 * 32x64 elements, a thread 4x4; sums go over d_k in rising order.
 */
#include "kernels/cuda/kda.cuh"

#define ROWS 32
#define COLUMNS 64
#define THREADS 128

typedef struct fold_shared {
    float map[ROWS][KDA_D + 4];
    float state[KDA_D][COLUMNS];
} fold_shared;

static __device__ __forceinline__ float4 plus_times(float4 sum, float m, float4 x)
{
    return make_float4(fmaf(m, x.x, sum.x), fmaf(m, x.y, sum.y), fmaf(m, x.z, sum.z),
                       fmaf(m, x.w, sum.w));
}

static __global__ void __launch_bounds__(THREADS) fold_kernel(const lh_kda_fold_args a)
{
    extern __shared__ __align__(16) char raw[];
    fold_shared *s = (fold_shared *)raw;
    int64_t head = (int64_t)blockIdx.z * KDA_D * KDA_D;
    int row0 = blockIdx.y * ROWS, column0 = blockIdx.x * COLUMNS;
    int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
    int64_t at = head + (row0 + row) * KDA_D + column0 + column;
    float4 sum[4];

#pragma unroll
    for (int i = 0; i < ROWS * KDA_D / 4; i += THREADS) {
        int r = (i + threadIdx.x) / 32, c = threadIdx.x % 32 * 4;
        *(float4 *)&s->map[r][c] = *(const float4 *)(a.map + head + (row0 + r) * KDA_D + c);
    }
#pragma unroll
    for (int i = 0; i < KDA_D * COLUMNS / 4; i += THREADS) {
        int r = (i + threadIdx.x) / 16, c = threadIdx.x % 16 * 4;
        *(float4 *)&s->state[r][c] = *(const float4 *)(a.state_in + head + r * KDA_D + column0 + c);
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        sum[i] = *(const float4 *)(a.add + at + i * KDA_D);
    __syncthreads(); /* the tiles */
#pragma unroll 4
    for (int j = 0; j < KDA_D; j += 4) {
        float4 x[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            x[i] = *(const float4 *)&s->state[j + i][column];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float4 m = *(const float4 *)&s->map[row + i][j];
            sum[i] = plus_times(sum[i], m.x, x[0]);
            sum[i] = plus_times(sum[i], m.y, x[1]);
            sum[i] = plus_times(sum[i], m.z, x[2]);
            sum[i] = plus_times(sum[i], m.w, x[3]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        *(float4 *)(a.state_out + at + i * KDA_D) = sum[i];
}

lh_status lh_cuda_kda_fold(lh_stream *s, const lh_kda_fold_args *a)
{
    LH_TRY(lh_check_kda_fold(a));
    LH_TRY(kda_check_size("kda_fold", a->d_k, a->d_v));
    LH_REQUIRE(a->n_heads <= 65535, LH_ERR_UNSUPPORTED,
               "kda_fold: %d heads, expected at most 65535", a->n_heads);
    dim3 grid(KDA_D / COLUMNS, KDA_D / ROWS, (unsigned)a->n_heads);
    LH_TRY(lh_cuda_shared((const void *)fold_kernel, sizeof(fold_shared)));
    fold_kernel<<<grid, THREADS, sizeof(fold_shared), s->stream>>>(*a);
    return lh_cuda_launched(s, "kda_fold");
}
