/*
 * The experts of single tokens, chosen on the device: a warp takes an output, so that one token's
 * few experts fill the GPU. The bits of a row depend on nothing else in the call.
 */
#include "kernels/cuda/cuda.cuh"

#define WARPS 8

typedef struct step {
    bf16 *y, *hidden; /* [n_pairs, d], [n_pairs, 2, d_hidden]: the first half of a row is used */
    const bf16 *x;
    const int32_t *expert;
    const bf16 *const *w_gate, *const *w_up, *const *w_down;
    int first_expert, n_nets, top_k, d, d_hidden;
} step;

/* Sum over the warp of 8-element pieces lane, lane + 32, .. of a . b; n pieces. */
static __device__ __forceinline__ float dot(const uint4 *a, const uint4 *b, int n)
{
    float sum = 0;

#pragma unroll 4
    for (int i = (int)threadIdx.x % 32; i < n; i += 32) {
        float f[8], g[8];
        unpack8(f, __ldg(a + i));
        unpack8(g, b[i]);
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum = fmaf(f[j], g[j], sum);
    }
    return warp_sum(sum);
}

/* The pair's expert among this rank's, or -1. */
static __device__ __forceinline__ int own_expert(const step *s, int pair)
{
    int e = s->expert[pair] - s->first_expert;
    return e >= 0 && e < s->n_nets ? e : -1;
}

static __global__ void __launch_bounds__(WARPS * 32) up_kernel(step s)
{
    int i = (int)blockIdx.x * WARPS + (int)threadIdx.x / 32, pair = (int)blockIdx.y;
    int e = own_expert(&s, pair);

    if (e < 0 || i >= s.d_hidden)
        return;
    const uint4 *x = (const uint4 *)(s.x + (int64_t)(pair / s.top_k) * s.d);
    float gate = dot((const uint4 *)(s.w_gate[e] + (int64_t)i * s.d), x, s.d / 8);
    float up = dot((const uint4 *)(s.w_up[e] + (int64_t)i * s.d), x, s.d / 8);
    if (threadIdx.x % 32 == 0)
        s.hidden[(int64_t)pair * 2 * s.d_hidden + i] =
            __float2bfloat16_rn(gate * sigmoid_f(gate) * up);
}

static __global__ void __launch_bounds__(WARPS * 32) down_kernel(step s)
{
    int i = (int)blockIdx.x * WARPS + (int)threadIdx.x / 32, pair = (int)blockIdx.y;
    int e = own_expert(&s, pair);
    float y = 0;

    if (i >= s.d)
        return;
    if (e >= 0)
        y = dot((const uint4 *)(s.w_down[e] + (int64_t)i * s.d_hidden),
                (const uint4 *)(s.hidden + (int64_t)pair * 2 * s.d_hidden), s.d_hidden / 8);
    if (threadIdx.x % 32 == 0)
        s.y[(int64_t)pair * s.d + i] = __float2bfloat16_rn(y);
}

lh_status lh_cuda_moe_step(lh_stream *s, const lh_moe_step_args *a)
{
    LH_TRY(lh_check_moe_step(a));
    LH_TRY(lh_cuda_multiple("moe_step", "d", a->d, 8));
    LH_TRY(lh_cuda_multiple("moe_step", "d_hidden", a->d_hidden, 8));
    LH_TRY(lh_cuda_most("moe_step", "n_seq * top_k", a->n_seq * a->top_k, 65535));
    if (a->n_seq == 0)
        return LH_OK;
    step k = {(bf16 *)a->y,
              (bf16 *)a->work,
              (const bf16 *)a->x,
              a->expert,
              (const bf16 *const *)a->w_gate,
              (const bf16 *const *)a->w_up,
              (const bf16 *const *)a->w_down,
              a->first_expert,
              a->n_nets,
              a->top_k,
              (int)a->d,
              (int)a->d_hidden};
    unsigned pairs = (unsigned)(a->n_seq * a->top_k);
    if (a->n_nets > 0)
        up_kernel<<<dim3((unsigned)div_up(a->d_hidden, WARPS), pairs), WARPS * 32, 0, s->stream>>>(
            k);
    down_kernel<<<dim3((unsigned)div_up(a->d, WARPS), pairs), WARPS * 32, 0, s->stream>>>(k);
    return lh_cuda_launched(s, "moe_step");
}
