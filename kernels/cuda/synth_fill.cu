#include "base/synth.h"
#include "kernels/cuda/cuda.cuh"

#define THREADS 256

/*
 * The elements are those of base/synth.h: integers, and one product in f32 that nothing is added
 * to, so that there is nothing to contract. A thread makes eight of bf16, 16 bytes, or one of f32
 * (small tensors only).
 */
static __global__ void __launch_bounds__(THREADS)
    bf16_kernel(uint16_t *out, const lh_synth_law law, int64_t first, int64_t n)
{
    int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 8;

    if (at + 8 <= n) {
        unsigned pair[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint64_t index = (uint64_t)(first + at + 2 * i);
            pair[i] = lh_synth_bf16(&law, index) | (unsigned)lh_synth_bf16(&law, index + 1) << 16;
        }
        *(uint4 *)(out + at) = make_uint4(pair[0], pair[1], pair[2], pair[3]);
    } else {
        for (; at < n; at++)
            out[at] = lh_synth_bf16(&law, (uint64_t)(first + at));
    }
}

static __global__ void __launch_bounds__(THREADS)
    f32_kernel(float *out, const lh_synth_law law, int64_t first, int64_t n, bool widened)
{
    int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    uint64_t index = (uint64_t)(first + at);

    if (at < n)
        out[at] = widened ? lh_synth_widened(&law, index) : lh_synth_f32(&law, index);
}

/* An element of bf16, 2 bytes, takes about 41 instructions, 26 of them on the integer units: these
 * are the limit, of about 1.1 TB/s on an H200. */
lh_status lh_cuda_synth_fill(lh_stream *s, const lh_synth_fill_args *a)
{
    LH_TRY(lh_check_synth_fill(a));
    if (a->n == 0)
        return LH_OK;
    if (a->form == LH_SYNTH_AS_BF16)
        bf16_kernel<<<(unsigned)div_up(a->n, THREADS * 8), THREADS, 0, s->stream>>>(
            (uint16_t *)a->out, a->law, a->first, a->n);
    else
        f32_kernel<<<(unsigned)div_up(a->n, THREADS), THREADS, 0, s->stream>>>(
            (float *)a->out, a->law, a->first, a->n, a->form == LH_SYNTH_AS_WIDENED);
    return lh_cuda_launched(s, "synth_fill");
}
