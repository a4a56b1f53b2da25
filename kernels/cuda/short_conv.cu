#include "kernels/cuda/cuda.cuh"

#define THREADS 128 /* 8 channels each */
#define AHEAD 4     /* rows whose loads are in flight together */

/*
 * A thread takes 8 channels of a run of rows and keeps the taps and the last taps - 1 rows in
 * registers; a run starts by reading the rows before it. Sums in the order of the taps: a row's
 * result does not depend on where a run starts.
 */
template <int TAPS>
static __global__ void __launch_bounds__(THREADS)
    short_conv_kernel(uint4 *y, int64_t ldy, const uint4 *x, int64_t ldx, const uint4 *halo,
                      const uint4 *w, int n_rows, int n, int run)
{
    int channel = (int)(blockIdx.y * THREADS + threadIdx.x);
    int begin = (int)blockIdx.x * run, end = min(begin + run, n_rows);
    uint4 row[TAPS - 1 + AHEAD], next[AHEAD];
    float flat[8 * TAPS]; /* [8 channels, TAPS] */

    if (channel >= n)
        return;
    y += channel;
    x += channel;
    halo += channel;
#pragma unroll
    for (int j = 0; j < TAPS - 1; j++) {
        int t = begin + j - (TAPS - 1);
        row[j] = t < 0 ? halo[(t + TAPS - 1) * ldx] : x[t * ldx];
    }
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
        next[i] = begin + i < end ? x[(begin + i) * ldx] : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < TAPS; j++)
        unpack8(flat + 8 * j, __ldg(w + (int64_t)channel * TAPS + j));
    for (int t = begin; t < end; t += AHEAD) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            int ahead = t + AHEAD + i;
            row[TAPS - 1 + i] = next[i];
            next[i] = ahead < end ? x[ahead * ldx] : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            float sum[8] = {0};
#pragma unroll
            for (int j = 0; j < TAPS; j++) {
                float f[8];
                unpack8(f, row[i + j]);
#pragma unroll
                for (int c = 0; c < 8; c++)
                    sum[c] = fmaf(flat[c * TAPS + j], f[c], sum[c]);
            }
#pragma unroll
            for (int c = 0; c < 8; c++)
                sum[c] = silu_f(sum[c]);
            if (t + i < end)
                y[(t + i) * ldy] = pack8(sum);
        }
#pragma unroll
        for (int j = 0; j < TAPS - 1; j++)
            row[j] = row[j + AHEAD];
    }
}

template <int TAPS> static void launch(lh_stream *s, const lh_short_conv_args *a)
{
    int n = (int)(a->n_channels / 8);
    int64_t blocks = div_up(n, THREADS);
    int64_t rows_per_sm = a->n_rows * blocks / s->n_sms;
    int run = rows_per_sm >= 256 ? 32 : rows_per_sm >= 16 ? 8 : AHEAD;
    dim3 grid((unsigned)div_up(a->n_rows, run), (unsigned)blocks);

    short_conv_kernel<TAPS><<<grid, THREADS, 0, s->stream>>>(
        (uint4 *)a->y, a->ldy / 8, (const uint4 *)a->x, a->ldx / 8, (const uint4 *)a->halo,
        (const uint4 *)a->w, (int)a->n_rows, n, run);
}

lh_status lh_cuda_short_conv(lh_stream *s, const lh_short_conv_args *a)
{
    LH_TRY(lh_check_short_conv(a));
    LH_TRY(lh_cuda_multiple("short_conv", "n_channels", a->n_channels, 8));
    LH_TRY(lh_cuda_multiple("short_conv", "ldx", a->ldx, 8));
    LH_TRY(lh_cuda_multiple("short_conv", "ldy", a->ldy, 8));
    LH_TRY(lh_cuda_most("short_conv", "n_channels", a->n_channels, 65535 * THREADS * 8));
    if (a->n_rows == 0)
        return LH_OK;
    LH_TRY(lh_cuda_aligned("short_conv", "y", a->y));
    LH_TRY(lh_cuda_aligned("short_conv", "x", a->x));
    LH_TRY(lh_cuda_aligned("short_conv", "halo", a->halo));
    LH_TRY(lh_cuda_aligned("short_conv", "w", a->w));
    switch (a->taps) {
    case 2:
        launch<2>(s, a);
        break;
    case 3:
        launch<3>(s, a);
        break;
    case 4:
        launch<4>(s, a);
        break;
    case 5:
        launch<5>(s, a);
        break;
    case 6:
        launch<6>(s, a);
        break;
    case 7:
        launch<7>(s, a);
        break;
    default:
        launch<8>(s, a);
    }
    return lh_cuda_launched(s, "short_conv");
}
