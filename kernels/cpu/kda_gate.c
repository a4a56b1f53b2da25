#include <math.h>

#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vmath.h"

/* x <- x / sqrt(sum x^2 + 1e-6) * scale */
static void l2norm(float *x, int n, float scale)
{
    float r = scale / sqrtf(lh_cpu_dot(x, x, n) + 1e-6f);

    for (int i = 0; i < n; i++)
        x[i] *= r;
}

static void kda_gate_rows(const void *args, int64_t begin, int64_t end)
{
    const lh_kda_gate_args *a = args;
    float scale = 1.0f / sqrtf((float)a->d_k);

    for (int64_t row = begin; row < end; row++) {
        for (int h = 0; h < a->n_heads; h++) {
            int64_t at = row * a->n_heads + h;
            float *restrict g = a->g + at * a->d_k;
            const float *restrict f = (const float *)a->f + at * a->d_k;
            const float *restrict dt_bias = a->dt_bias + (int64_t)h * a->d_k;
            float rate = -lh_exp(a->a_log[h]);
            l2norm((float *)a->q + at * a->d_k, a->d_k, scale);
            l2norm((float *)a->k + at * a->d_k, a->d_k, 1.0f);
            for (int i = 0; i < a->d_k; i++)
                g[i] = rate * lh_softplus(f[i] + dt_bias[i]);
            a->beta[at] = lh_sigmoid(((const float *)a->b)[at]);
        }
    }
}

lh_status lh_cpu_kda_gate(lh_stream *s, const lh_kda_gate_args *a)
{
    LH_TRY(lh_check_kda_gate(a));
    lh_cpu_rows(s, a->n_rows, (int64_t)a->n_heads * a->d_k * 3, kda_gate_rows, a);
    return LH_OK;
}
