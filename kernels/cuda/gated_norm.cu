#include "kernels/cuda/group.cuh"

#define THREADS 256

template <int LANES>
static __global__ void __launch_bounds__(THREADS)
    gated_norm_kernel(uint4 *y, const uint4 *o, const uint4 *z, const uint4 *w, int64_t n_rows,
                      int n, float inverse_d, float eps)
{
    int64_t row = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / LANES;
    int lane = (int)threadIdx.x % LANES;
    bool mine = row < n_rows && lane < n;
    uint4 zero = make_uint4(0, 0, 0, 0);
    uint4 v = mine ? o[row * n + lane] : zero, gate = mine ? z[row * n + lane] : zero;
    float x[8], g[8], weight[8];

    unpack8(weight, lane < n ? __ldg(w + lane) : zero);
    unpack8(x, v);
    unpack8(g, gate);
    float r = rsqrtf(group_sum<LANES>(sum_of_squares(x)) * inverse_d + eps);
#pragma unroll
    for (int j = 0; j < 8; j++)
        x[j] = x[j] * r * weight[j] * sigmoid_f(g[j]);
    if (mine)
        y[row * n + lane] = pack8(x);
}

template <int LANES> static void launch(lh_stream *s, const lh_gated_norm_args *a)
{
    int64_t n_rows = a->n_rows * a->n_heads;

    gated_norm_kernel<LANES><<<(unsigned)div_up(n_rows * LANES, THREADS), THREADS, 0, s->stream>>>(
        (uint4 *)a->y, (const uint4 *)a->o, (const uint4 *)a->z, (const uint4 *)a->w, n_rows,
        a->d / 8, 1.0f / (float)a->d, a->eps);
}

/* Row-invariant: a head's result depends on the head alone. */
lh_status lh_cuda_gated_norm(lh_stream *s, const lh_gated_norm_args *a)
{
    LH_TRY(lh_check_gated_norm(a));
    LH_TRY(lh_cuda_multiple("gated_norm", "d", a->d, 8));
    LH_TRY(lh_cuda_most("gated_norm", "d", a->d, LH_GROUP_MOST));
    if (a->n_rows == 0)
        return LH_OK;
    LH_TRY(lh_cuda_aligned("gated_norm", "y", a->y));
    LH_TRY(lh_cuda_aligned("gated_norm", "o", a->o));
    LH_TRY(lh_cuda_aligned("gated_norm", "z", a->z));
    LH_TRY(lh_cuda_aligned("gated_norm", "w", a->w));
    LH_GROUP_LAUNCH(a->d, launch, s, a);
    return lh_cuda_launched(s, "gated_norm");
}
