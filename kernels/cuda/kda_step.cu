/*
 * One token of KDA: bound by the memory of the state, which is read once, held in registers and
 * written once. With s = diag(alpha) S and r = beta (v - s^T k), the new state is s + k r^T and o =
 * s^T q + (q . k) r.
 *
 * A block has all columns of a head, or a part of them where few sequences would leave the machine
 * empty. Sums have one order in both: of 4 rows in turn, of four such in pairs, of the 8 warps in
 * turn.
 */
#include "kernels/cuda/kda.cuh"

#define WARPS 8

typedef struct step_shared {
    float alpha[KDA_D], q[KDA_D], k[KDA_D];
    float4 part[2][WARPS][32]; /* of s^T k and s^T q */
} step_shared;

static __device__ __forceinline__ float4 plus(float4 a, float4 b)
{
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

static __device__ __forceinline__ float4 plus_times(float4 a, float b, float4 c)
{
    return make_float4(fmaf(b, c.x, a.x), fmaf(b, c.y, a.y), fmaf(b, c.z, a.z), fmaf(b, c.w, a.w));
}

/* The sum over lanes whose numbers differ in `mask`. */
static __device__ __forceinline__ float4 plus_lane(float4 a, int mask)
{
    return plus(a, make_float4(__shfl_xor_sync(0xffffffffu, a.x, mask),
                               __shfl_xor_sync(0xffffffffu, a.y, mask),
                               __shfl_xor_sync(0xffffffffu, a.z, mask),
                               __shfl_xor_sync(0xffffffffu, a.w, mask)));
}

/* PARTS blocks for a head. A thread has 4 columns and, of its warp's 16 rows, 16 / PARTS. */
template <int PARTS>
static __global__ void __launch_bounds__(WARPS * 32, 2) step_kernel(const lh_kda_step_args a)
{
    enum { LANES = 32 / PARTS, ROWS = 16 / PARTS, GROUPS = 4 / PARTS };
    __shared__ step_shared s;
    int64_t item = blockIdx.x / PARTS;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int column = blockIdx.x % PARTS * (KDA_D / PARTS) + lane % LANES * 4;
    int row = warp * 16 + lane / LANES * ROWS;
    const bf16 *q = (const bf16 *)a.q + item * KDA_D, *k = (const bf16 *)a.k + item * KDA_D;
    const bf16 *v = (const bf16 *)a.v + item * KDA_D;
    float *state = a.state[item / a.n_heads] + item % a.n_heads * KDA_D * KDA_D + column;
    float4 x[ROWS];

#pragma unroll
    for (int i = 0; i < ROWS; i++)
        x[i] = __ldcs((const float4 *)(state + (row + i) * KDA_D));
    if (threadIdx.x < KDA_D) {
        s.alpha[threadIdx.x] = __expf(a.g[item * KDA_D + threadIdx.x]);
        s.q[threadIdx.x] = __bfloat162float(q[threadIdx.x]);
        s.k[threadIdx.x] = __bfloat162float(k[threadIdx.x]);
    }
    float beta = a.beta[item];
    uint2 v4 = *(const uint2 *)(v + column);
    float2 v0 = unpack_bf16(v4.x), v1 = unpack_bf16(v4.y);
    __syncthreads(); /* alpha, q, k */

    float4 sum_k[GROUPS], sum_q[GROUPS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        float alpha = s.alpha[row + i];
        float4 zero = make_float4(0, 0, 0, 0);
        x[i] = make_float4(x[i].x * alpha, x[i].y * alpha, x[i].z * alpha, x[i].w * alpha);
        sum_k[i / 4] = plus_times(i % 4 ? sum_k[i / 4] : zero, s.k[row + i], x[i]);
        sum_q[i / 4] = plus_times(i % 4 ? sum_q[i / 4] : zero, s.q[row + i], x[i]);
    }
    if (PARTS == 1) {
        sum_k[0] =
            plus(plus(sum_k[0], sum_k[GROUPS > 1]), plus(sum_k[GROUPS / 2], sum_k[GROUPS - 1]));
        sum_q[0] =
            plus(plus(sum_q[0], sum_q[GROUPS > 1]), plus(sum_q[GROUPS / 2], sum_q[GROUPS - 1]));
    } else {
        sum_k[0] = plus_lane(plus_lane(sum_k[0], LANES), 2 * LANES);
        sum_q[0] = plus_lane(plus_lane(sum_q[0], LANES), 2 * LANES);
    }
    if (lane < LANES) {
        s.part[0][warp][lane] = sum_k[0];
        s.part[1][warp][lane] = sum_q[0];
    }
    float qk = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        qk = fmaf(s.q[lane * 4 + i], s.k[lane * 4 + i], qk);
    qk = warp_sum(qk);
    __syncthreads(); /* the parts */

    float4 seen = s.part[0][0][lane % LANES];
#pragma unroll
    for (int i = 1; i < WARPS; i++)
        seen = plus(seen, s.part[0][i][lane % LANES]);
    float4 r = make_float4(beta * (v0.x - seen.x), beta * (v0.y - seen.y), beta * (v1.x - seen.z),
                           beta * (v1.y - seen.w));
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        __stcs((float4 *)(state + (row + i) * KDA_D), plus_times(x[i], s.k[row + i], r));
    if (threadIdx.x < LANES) {
        float4 o = s.part[1][0][lane];
#pragma unroll
        for (int i = 1; i < WARPS; i++)
            o = plus(o, s.part[1][i][lane]);
        o = plus_times(o, qk, r);
        *(uint2 *)((bf16 *)a.o + item * KDA_D + column) =
            make_uint2(pack_bf16(o.x, o.y), pack_bf16(o.z, o.w));
    }
}

/* Reads and writes 64 KiB for each sequence and head. */
lh_status lh_cuda_kda_step(lh_stream *s, const lh_kda_step_args *a)
{
    LH_TRY(lh_check_kda_step(a));
    LH_TRY(kda_check_size("kda_step", a->d_k, a->d_v));
    if (a->n_seq == 0)
        return LH_OK;
    int64_t n_items = a->n_seq * a->n_heads;
    LH_REQUIRE(n_items <= INT32_MAX / 4, LH_ERR_UNSUPPORTED, "kda_step: %lld sequences of %d heads",
               (long long)a->n_seq, a->n_heads);
    if (n_items < 4 * s->n_sms)
        step_kernel<4><<<(unsigned)n_items * 4, WARPS * 32, 0, s->stream>>>(*a);
    else
        step_kernel<1><<<(unsigned)n_items, WARPS * 32, 0, s->stream>>>(*a);
    return lh_cuda_launched(s, "kda_step");
}
