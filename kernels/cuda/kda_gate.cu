#include "kernels/cuda/group.cuh"

#define THREADS 256

/* log(1 + u) for u in [0, 1], right to 2 roundings of itself: 2 atanh(u / (2 + u)) by its series.
 */
static __device__ __forceinline__ float log1p_unit(float u)
{
    float s = __fdividef(u, 2.0f + u), t = s * s;
    float p = 1.0f / 15;

    p = fmaf(p, t, 1.0f / 13);
    p = fmaf(p, t, 1.0f / 11);
    p = fmaf(p, t, 1.0f / 9);
    p = fmaf(p, t, 1.0f / 7);
    p = fmaf(p, t, 1.0f / 5);
    p = fmaf(p, t, 1.0f / 3);
    p = p * t;
    return 2.0f * fmaf(p, s, s);
}

static __device__ __forceinline__ float softplus_f(float x)
{
    return fmaxf(x, 0.0f) + log1p_unit(expf(-fabsf(x)));
}

/* A group of lanes takes a head of a row. */
template <int LANES>
static __global__ void __launch_bounds__(THREADS)
    kda_gate_kernel(uint4 *q, uint4 *k, const uint4 *f, const bf16 *b, const float *a_log,
                    const float4 *dt_bias, float4 *g, float *beta, unsigned n_items,
                    unsigned n_heads, int n, float scale)
{
    unsigned item = blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES, head = item % n_heads;
    int lane = (int)threadIdx.x % LANES;
    bool mine = item < n_items && lane < n;
    int64_t at = (int64_t)item * n + lane;
    uint4 zero = make_uint4(0, 0, 0, 0);
    int bias_at = (int)(head * n + (lane < n ? lane : 0)) * 2;
    float4 low = __ldg(dt_bias + bias_at), high = __ldg(dt_bias + bias_at + 1);
    float log_rate = __ldg(a_log + head);
    uint4 vq = mine ? q[at] : zero, vk = mine ? k[at] : zero, vf = mine ? f[at] : zero;
    float x[8], y[8];

    unpack8(x, vq);
    unpack8(y, vk);
    float rq = scale * rsqrtf(group_sum<LANES>(sum_of_squares(x)) + 1e-6f);
    float rk = rsqrtf(group_sum<LANES>(sum_of_squares(y)) + 1e-6f);
    if (!mine)
        return;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        x[j] *= rq;
        y[j] *= rk;
    }
    q[at] = pack8(x);
    k[at] = pack8(y);

    float bias[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    float rate = -expf(log_rate);
    unpack8(x, vf);
#pragma unroll
    for (int j = 0; j < 8; j++)
        x[j] = rate * softplus_f(x[j] + bias[j]);
    g[at * 2] = make_float4(x[0], x[1], x[2], x[3]);
    g[at * 2 + 1] = make_float4(x[4], x[5], x[6], x[7]);
    if (lane == 0)
        beta[item] = 1.0f / (1.0f + expf(-__bfloat162float(b[item])));
}

template <int LANES> static void launch(lh_stream *s, const lh_kda_gate_args *a)
{
    int64_t n_items = a->n_rows * a->n_heads;

    kda_gate_kernel<LANES><<<(unsigned)div_up(n_items * LANES, THREADS), THREADS, 0, s->stream>>>(
        (uint4 *)a->q, (uint4 *)a->k, (const uint4 *)a->f, (const bf16 *)a->b, a->a_log,
        (const float4 *)a->dt_bias, (float4 *)a->g, a->beta, (unsigned)n_items,
        (unsigned)a->n_heads, a->d_k / 8, 1.0f / sqrtf((float)a->d_k));
}

/* Row-invariant: a head's result depends on the head alone. */
lh_status lh_cuda_kda_gate(lh_stream *s, const lh_kda_gate_args *a)
{
    LH_TRY(lh_check_kda_gate(a));
    LH_TRY(lh_cuda_multiple("kda_gate", "d_k", a->d_k, 8));
    LH_TRY(lh_cuda_most("kda_gate", "d_k", a->d_k, LH_GROUP_MOST));
    LH_TRY(lh_cuda_most("kda_gate", "n_rows * n_heads", a->n_rows * a->n_heads, INT32_MAX));
    if (a->n_rows == 0)
        return LH_OK;
    LH_TRY(lh_cuda_aligned("kda_gate", "q", a->q));
    LH_TRY(lh_cuda_aligned("kda_gate", "k", a->k));
    LH_TRY(lh_cuda_aligned("kda_gate", "f", a->f));
    LH_TRY(lh_cuda_aligned("kda_gate", "dt_bias", a->dt_bias));
    LH_TRY(lh_cuda_aligned("kda_gate", "g", a->g));
    LH_GROUP_LAUNCH(a->d_k, launch, s, a);
    return lh_cuda_launched(s, "kda_gate");
}
