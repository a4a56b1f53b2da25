#include "kernels/cuda/cuda.cuh"

#define THREADS 128 /* 8 channels of q, k or v each */
#define MOST_SEQ 65535

/* n is that of 8 channels. The sum is short_conv's. */
template <int TAPS>
static __global__ void __launch_bounds__(THREADS) step_kernel(const lh_conv_step_args a, int n)
{
    int column = (int)(blockIdx.x * THREADS + threadIdx.x), part = column / n, channel = column % n;
    int64_t seq = blockIdx.y, width = 3 * (int64_t)n;
    uint4 row[TAPS];
    float flat[8 * TAPS], sum[8] = {0}; /* flat [8 channels, TAPS] */

    if (part >= 3)
        return;
    uint4 *rows = (uint4 *)a.rows[seq] + column;
    const void *all_w = part == 0 ? a.w[0] : part == 1 ? a.w[1] : a.w[2];
    const uint4 *w = (const uint4 *)all_w + (int64_t)channel * TAPS;
    void *y = part == 0 ? a.y[0] : part == 1 ? a.y[1] : a.y[2];
#pragma unroll
    for (int j = 0; j < TAPS - 1; j++)
        row[j] = rows[j * width];
    row[TAPS - 1] = ((const uint4 *)a.x)[seq * width + column];
#pragma unroll
    for (int j = 0; j < TAPS; j++)
        unpack8(flat + 8 * j, __ldg(w + j));
#pragma unroll
    for (int j = 0; j < TAPS; j++) {
        float f[8];
        unpack8(f, row[j]);
#pragma unroll
        for (int c = 0; c < 8; c++)
            sum[c] = fmaf(flat[c * TAPS + j], f[c], sum[c]);
    }
#pragma unroll
    for (int c = 0; c < 8; c++)
        sum[c] = silu_f(sum[c]);
    ((uint4 *)y)[seq * n + channel] = pack8(sum);
#pragma unroll
    for (int j = 0; j < TAPS - 1; j++)
        rows[j * width] = row[j + 1];
}

template <int TAPS> static void launch(lh_stream *s, const lh_conv_step_args *a)
{
    int n = (int)(a->n_channels / 8);
    dim3 grid((unsigned)div_up(3 * (int64_t)n, THREADS), (unsigned)a->n_seq);

    step_kernel<TAPS><<<grid, THREADS, 0, s->stream>>>(*a, n);
}

/* Reads and writes taps rows of 3 n_channels for each sequence. */
lh_status lh_cuda_conv_step(lh_stream *s, const lh_conv_step_args *a)
{
    static void (*const by_taps[])(lh_stream *, const lh_conv_step_args *) = {
        launch<2>, launch<3>, launch<4>, launch<5>, launch<6>, launch<7>, launch<8>};

    static_assert(sizeof by_taps / sizeof *by_taps == LH_MAX_TAPS - 1, "2 .. LH_MAX_TAPS");
    LH_TRY(lh_check_conv_step(a));
    LH_TRY(lh_cuda_multiple("conv_step", "n_channels", a->n_channels, 8));
    LH_TRY(lh_cuda_most("conv_step", "n_seq", a->n_seq, MOST_SEQ));
    if (a->n_seq == 0)
        return LH_OK;
    LH_TRY(lh_cuda_aligned("conv_step", "x", a->x));
    for (int i = 0; i < 3; i++) {
        LH_TRY(lh_cuda_aligned("conv_step", "y", a->y[i]));
        LH_TRY(lh_cuda_aligned("conv_step", "w", a->w[i]));
    }
    by_taps[a->taps - 2](s, a);
    return lh_cuda_launched(s, "conv_step");
}
