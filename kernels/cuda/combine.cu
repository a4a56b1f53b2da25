#include "kernels/cuda/cuda.cuh"

#define THREADS 96 /* 8 columns each */
#define AHEAD 8    /* rows whose loads are in flight together */

static __global__ void __launch_bounds__(THREADS)
    combine_kernel(uint4 *x, const uint4 *rows, const int32_t *source, const float *weight,
                   const uint4 *shared, int n, int top_k)
{
    int64_t row = blockIdx.x;
    int column = (int)(blockIdx.y * THREADS + threadIdx.x);
    float sum[8] = {0}, f[8];

    if (column >= n)
        return;
    source += row * top_k;
    weight += row * top_k;
    uint4 v = x[row * n + column];
    uint4 last = shared ? shared[row * n + column] : make_uint4(0, 0, 0, 0);
    for (int begin = 0; begin < top_k; begin += AHEAD) {
        uint4 from[AHEAD];
        float factor[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (begin + j < top_k) {
                from[j] = rows[(int64_t)__ldg(source + begin + j) * n + column];
                factor[j] = __ldg(weight + begin + j);
            }
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (begin + j < top_k) {
                unpack8(f, from[j]);
#pragma unroll
                for (int c = 0; c < 8; c++)
                    sum[c] = fmaf(factor[j], f[c], sum[c]);
            }
    }
    if (shared) {
        unpack8(f, last);
#pragma unroll
        for (int c = 0; c < 8; c++)
            sum[c] += f[c];
    }
    unpack8(f, v);
#pragma unroll
    for (int c = 0; c < 8; c++)
        f[c] += sum[c];
    x[row * n + column] = pack8(f);
}

/* Row-invariant: sums in the order of the slots. */
lh_status lh_cuda_combine(lh_stream *s, const lh_combine_args *a)
{
    LH_TRY(lh_check_combine(a));
    LH_TRY(lh_cuda_multiple("combine", "d", a->d, 8));
    LH_TRY(lh_cuda_most("combine", "d", a->d, 65535 * THREADS * 8));
    if (a->n_rows == 0)
        return LH_OK;
    LH_TRY(lh_cuda_aligned("combine", "x", a->x));
    LH_TRY(lh_cuda_aligned("combine", "rows", a->rows));
    LH_TRY(lh_cuda_aligned("combine", "shared", a->shared));
    int n = (int)(a->d / 8);
    dim3 grid((unsigned)a->n_rows, (unsigned)div_up(n, THREADS));
    combine_kernel<<<grid, THREADS, 0, s->stream>>>((uint4 *)a->x, (const uint4 *)a->rows,
                                                    a->source, a->weight, (const uint4 *)a->shared,
                                                    n, a->top_k);
    return lh_cuda_launched(s, "combine");
}
