/*
 * One token of KDA: bound by the memory of the state, which is read once and written once.
 */
#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/kda_chunk.h"
#include "kernels/cpu/vmath.h"

/* Elements of state from which the threads are worth waking. */
#define PARALLEL_MIN (1 << 16)
/* Columns at a time: their sums stay in registers, their part of the state in the cache. */
#define PANEL 64

/*
 * Columns of one head's state. With s = diag(alpha) S and r = beta (v - s^T k), the new state is
 * s + k r^T and o = s^T q + (q . k) r, so that one look at S gives both products.
 */
static void step_columns(float *restrict state, float *restrict o, const float *restrict q,
                         const float *restrict k, const float *restrict v,
                         const float *restrict alpha, float beta, float qk, int64_t d_k,
                         int64_t d_v, int64_t n)
{
    float s_k[PANEL] = {0}, s_q[PANEL] = {0}, r[PANEL];

    for (int64_t i = 0; i < d_k; i++)
        for (int64_t j = 0; j < n; j++) {
            float s = alpha[i] * state[i * d_v + j];
            s_k[j] += k[i] * s;
            s_q[j] += q[i] * s;
        }
    for (int64_t j = 0; j < n; j++) {
        r[j] = beta * (v[j] - s_k[j]);
        o[j] = s_q[j] + qk * r[j];
    }
    for (int64_t i = 0; i < d_k; i++)
        for (int64_t j = 0; j < n; j++)
            state[i * d_v + j] = alpha[i] * state[i * d_v + j] + k[i] * r[j];
}

static void step_item(void *ctx, int64_t item, float *scratch)
{
    const lh_kda_step_args *a = ctx;
    int64_t d_k = a->d_k, d_v = a->d_v, seq = item / a->n_heads, head = item % a->n_heads;
    const float *q = (const float *)a->q + item * d_k, *k = (const float *)a->k + item * d_k;
    const float *v = (const float *)a->v + item * d_v, *g = a->g + item * d_k;
    float *state = a->state[seq] + head * d_k * d_v, *o = (float *)a->o + item * d_v;
    float qk = lh_cpu_dot(q, k, d_k), alpha[LH_CPU_KDA_MAX_D];

    (void)scratch;
    for (int64_t i = 0; i < d_k; i++)
        alpha[i] = lh_exp(g[i]);
    int64_t j = 0;
    for (; j + PANEL <= d_v; j += PANEL)
        step_columns(state + j, o + j, q, k, v + j, alpha, a->beta[item], qk, d_k, d_v, PANEL);
    if (j < d_v)
        step_columns(state + j, o + j, q, k, v + j, alpha, a->beta[item], qk, d_k, d_v, d_v - j);
}

lh_status lh_cpu_kda_step(lh_stream *s, const lh_kda_step_args *a)
{
    lh_kda_step_args args = *a;
    int64_t n_items = a->n_seq * a->n_heads;

    LH_TRY(lh_check_kda_step(a));
    LH_REQUIRE(a->d_k <= LH_CPU_KDA_MAX_D, LH_ERR_UNSUPPORTED,
               "kda_step: d_k %d, expected at most %d on the CPU", a->d_k, LH_CPU_KDA_MAX_D);
    if (n_items * a->d_k * a->d_v >= PARALLEL_MIN)
        lh_cpu_parallel(s, n_items, step_item, &args);
    else
        for (int64_t i = 0; i < n_items; i++)
            step_item(&args, i, NULL);
    return LH_OK;
}
