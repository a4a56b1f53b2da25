#include <math.h>
#include <stdlib.h>

#include "tests/reference/reference_mla.h"

/* out [n_out] = w [n_out, d_latent] c; eight sums each, so that large dimensions do not take long
 */
static void expand(double *out, const lh_bf16 *w, const float *c, int n_out, int d_latent)
{
    for (int i = 0; i < n_out; i++) {
        double sum[8] = {0};
        int j = 0;
        for (; j + 8 <= d_latent; j += 8)
            for (int k = 0; k < 8; k++)
                sum[k] += (double)lh_bf16_to_f32(w[i * d_latent + j + k]) * (double)c[j + k];
        for (; j < d_latent; j++)
            sum[0] += (double)lh_bf16_to_f32(w[i * d_latent + j]) * (double)c[j];
        out[i] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
    }
}

static void attend_row(double *o, double *p, const reference_mla *r, const float *q,
                       const double *kv, int64_t n_keys)
{
    int d_kv = r->d_nope + r->d_v, width = r->d_latent + r->d_rope;
    double max = -INFINITY, sum = 0;

    for (int64_t j = 0; j < n_keys; j++) {
        const float *k_rope = r->latent + j * width + r->d_latent;
        p[j] = 0;
        for (int i = 0; i < r->d_nope; i++)
            p[j] += (double)q[i] * kv[j * d_kv + i];
        for (int i = 0; i < r->d_rope; i++)
            p[j] += (double)q[r->d_nope + i] * (double)k_rope[i];
        p[j] /= sqrt((double)(r->d_nope + r->d_rope));
        max = fmax(max, p[j]);
    }
    for (int64_t j = 0; j < n_keys; j++)
        sum += p[j] = exp(p[j] - max);
    for (int i = 0; i < r->d_v; i++) {
        o[i] = 0;
        for (int64_t j = 0; j < n_keys; j++)
            o[i] += p[j] / sum * kv[j * d_kv + r->d_nope + i];
    }
}

void reference_mla_attend(double *o, const reference_mla *r, int64_t n_rows,
                          const int64_t *position)
{
    int d_kv = r->d_nope + r->d_v, d_qk = r->d_nope + r->d_rope;
    int64_t n_keys = 0;

    for (int64_t i = 0; i < n_rows; i++)
        n_keys = position[i] + 1 > n_keys ? position[i] + 1 : n_keys;
    double *kv = calloc((size_t)(n_keys * d_kv + 1), sizeof *kv);
    double *p = calloc((size_t)n_keys + 1, sizeof *p);
    if (!kv || !p)
        abort();
    for (int h = 0; h < r->n_heads; h++) {
        const lh_bf16 *w = r->w_kvb + (int64_t)h * d_kv * r->d_latent;
        for (int64_t j = 0; j < n_keys; j++)
            expand(kv + j * d_kv, w, r->latent + j * (r->d_latent + r->d_rope), d_kv, r->d_latent);
        for (int64_t i = 0; i < n_rows; i++)
            attend_row(o + (i * r->n_heads + h) * r->d_v, p, r, r->q + (i * r->n_heads + h) * d_qk,
                       kv, position[i] + 1);
    }
    free(p);
    free(kv);
}
