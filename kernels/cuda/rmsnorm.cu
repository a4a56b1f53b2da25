#include "kernels/cuda/cuda.cuh"

/*
 * A block takes a row and keeps it in registers, N times 8 elements a thread; the number of threads
 * and so the order of the sum follow from d alone.
 */
#define THREADS 128 /* as many as wanted; up to 1,024 for long rows */
#define MOST_N 4

template <int N>
static __global__ void __launch_bounds__(1024)
    rmsnorm_kernel(uint4 *y, const uint4 *x, const uint4 *w, int n, float inverse_d, float eps)
{
    uint4 v[N], weight[N];
    float sum = 0;

    y += (int64_t)blockIdx.x * n;
    x += (int64_t)blockIdx.x * n;
#pragma unroll
    for (int i = 0; i < N; i++) {
        int at = (int)(i * blockDim.x + threadIdx.x);
        v[i] = at < n ? x[at] : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        int at = (int)(i * blockDim.x + threadIdx.x);
        weight[i] = at < n ? __ldg(w + at) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        float f[8];
        unpack8(f, v[i]);
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum = fmaf(f[j], f[j], sum);
    }
    float r = rsqrtf(block_sum(sum) * inverse_d + eps);
#pragma unroll
    for (int i = 0; i < N; i++) {
        int at = (int)(i * blockDim.x + threadIdx.x);
        float f[8], g[8];
        unpack8(f, v[i]);
        unpack8(g, weight[i]);
#pragma unroll
        for (int j = 0; j < 8; j++)
            f[j] = f[j] * r * g[j];
        if (at < n)
            y[at] = pack8(f);
    }
}

template <int N> static void launch(lh_stream *s, const lh_rmsnorm_args *a, int n)
{
    unsigned threads = (unsigned)div_up(div_up(n, N), 32) * 32;

    rmsnorm_kernel<N><<<(unsigned)a->n_rows, threads, 0, s->stream>>>(
        (uint4 *)a->y, (const uint4 *)a->x, (const uint4 *)a->w, n, 1.0f / (float)a->d, a->eps);
}

/* Row-invariant: a row's result depends on the row alone. */
lh_status lh_cuda_rmsnorm(lh_stream *s, const lh_rmsnorm_args *a)
{
    LH_TRY(lh_check_rmsnorm(a));
    LH_TRY(lh_cuda_multiple("rmsnorm", "d", a->d, 8));
    LH_TRY(lh_cuda_most("rmsnorm", "d", a->d, 1024 * MOST_N * 8));
    if (a->n_rows == 0)
        return LH_OK;
    LH_TRY(lh_cuda_aligned("rmsnorm", "y", a->y));
    LH_TRY(lh_cuda_aligned("rmsnorm", "x", a->x));
    LH_TRY(lh_cuda_aligned("rmsnorm", "w", a->w));
    int n = (int)(a->d / 8);
    if (n <= THREADS)
        launch<1>(s, a, n);
    else if (n <= 2 * THREADS)
        launch<2>(s, a, n);
    else if (n <= 3 * THREADS)
        launch<3>(s, a, n);
    else
        launch<MOST_N>(s, a, n);
    return lh_cuda_launched(s, "rmsnorm");
}
