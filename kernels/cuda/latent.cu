#include "kernels/cuda/cuda.cuh"

#define WARPS 4 /* rows of a block */
#define MOST_N 8

/* A warp takes a row: N times 8 elements of the latent part a lane, then what follows it. */
template <int N>
static __global__ void __launch_bounds__(WARPS * 32)
    latent_kernel(uint4 *y, uint4 *const *caches, const uint4 *x, const uint4 *w,
                  const int64_t *place, int n_rows, int n, int n_tail, float inverse_d, float eps)
{
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    int lane = (int)threadIdx.x % 32;
    uint4 v[N], weight[N], tail = make_uint4(0, 0, 0, 0);
    float sum = 0;

    if (row >= n_rows)
        return;
    y = (caches ? caches[row] : y) + (place ? place[row] : row) * (n + n_tail);
    x += row * (n + n_tail);
#pragma unroll
    for (int i = 0; i < N; i++)
        v[i] = lane + 32 * i < n ? x[lane + 32 * i] : make_uint4(0, 0, 0, 0);
    if (lane < n_tail)
        tail = x[n + lane];
#pragma unroll
    for (int i = 0; i < N; i++)
        weight[i] = lane + 32 * i < n ? __ldg(w + lane + 32 * i) : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < N; i++) {
        float f[8];
        unpack8(f, v[i]);
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum = fmaf(f[j], f[j], sum);
    }
    float r = rsqrtf(warp_sum(sum) * inverse_d + eps);
#pragma unroll
    for (int i = 0; i < N; i++) {
        float f[8], g[8];
        unpack8(f, v[i]);
        unpack8(g, weight[i]);
#pragma unroll
        for (int j = 0; j < 8; j++)
            f[j] = f[j] * r * g[j];
        if (lane + 32 * i < n)
            y[lane + 32 * i] = pack8(f);
    }
    if (lane < n_tail)
        y[n + lane] = tail;
    for (int i = lane + 32; i < n_tail; i += 32)
        y[n + i] = x[n + i];
}

template <int N> static void launch(lh_stream *s, const lh_latent_args *a)
{
    latent_kernel<N><<<(unsigned)div_up(a->n_rows, WARPS), WARPS * 32, 0, s->stream>>>(
        (uint4 *)a->y, (uint4 *const *)a->caches, (const uint4 *)a->x, (const uint4 *)a->w, a->row,
        (int)a->n_rows, a->d_latent / 8, a->d_rope / 8, 1.0f / (float)a->d_latent, a->eps);
}

/* Row-invariant: a row's result depends on the row alone. */
lh_status lh_cuda_latent(lh_stream *s, const lh_latent_args *a)
{
    LH_TRY(lh_check_latent(a));
    LH_TRY(lh_cuda_multiple("latent", "d_latent", a->d_latent, 8));
    LH_TRY(lh_cuda_multiple("latent", "d_rope", a->d_rope, 8));
    LH_TRY(lh_cuda_most("latent", "d_latent", a->d_latent, 32 * MOST_N * 8));
    if (a->n_rows == 0)
        return LH_OK;
    LH_TRY(lh_cuda_aligned("latent", "y", a->y));
    LH_TRY(lh_cuda_aligned("latent", "x", a->x));
    LH_TRY(lh_cuda_aligned("latent", "w", a->w));
    if (a->d_latent <= 256)
        launch<1>(s, a);
    else if (a->d_latent <= 512)
        launch<2>(s, a);
    else if (a->d_latent <= 1024)
        launch<4>(s, a);
    else
        launch<MOST_N>(s, a);
    return lh_cuda_launched(s, "latent");
}
