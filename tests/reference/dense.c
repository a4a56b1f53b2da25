#include <math.h>
#include <stdlib.h>

#include "tests/reference/reference.h"

double ref_sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

double ref_softplus(double x)
{
    return x > 20 ? x + exp(-x) : log1p(exp(x));
}

void ref_linear(double *y, const float *x, const lh_bf16 *w, int64_t n_rows, int64_t n_in,
                int64_t n_out)
{
    for (int64_t i = 0; i < n_rows; i++)
        for (int64_t j = 0; j < n_out; j++) {
            double sum = 0;
            for (int64_t k = 0; k < n_in; k++)
                sum += (double)x[i * n_in + k] * (double)lh_bf16_to_f32(w[j * n_in + k]);
            y[i * n_out + j] = sum;
        }
}

void ref_rmsnorm(double *y, const float *x, const lh_bf16 *w, int64_t n_rows, int64_t d, double eps)
{
    for (int64_t i = 0; i < n_rows; i++) {
        double sum = 0;
        for (int64_t j = 0; j < d; j++)
            sum += (double)x[i * d + j] * (double)x[i * d + j];
        for (int64_t j = 0; j < d; j++)
            y[i * d + j] =
                (double)x[i * d + j] / sqrt(sum / (double)d + eps) * (double)lh_bf16_to_f32(w[j]);
    }
}

void ref_short_conv(double *y, const float *x, const float *halo, const lh_bf16 *w, int64_t n_rows,
                    int64_t n_channels, int taps)
{
    for (int64_t t = 0; t < n_rows; t++)
        for (int64_t c = 0; c < n_channels; c++) {
            double sum = 0;
            for (int j = 0; j < taps; j++) {
                int64_t from = t + j - (taps - 1);
                float v =
                    from < 0 ? halo[(from + taps - 1) * n_channels + c] : x[from * n_channels + c];
                sum += (double)lh_bf16_to_f32(w[c * taps + j]) * (double)v;
            }
            y[t * n_channels + c] = sum * ref_sigmoid(sum);
        }
}

void ref_l2norm(double *out, const float *in, int d_k, double scale)
{
    double sum = 0;
    for (int i = 0; i < d_k; i++)
        sum += (double)in[i] * (double)in[i];
    for (int i = 0; i < d_k; i++)
        out[i] = (double)in[i] / sqrt(sum + 1e-6) * scale;
}

void ref_kda_decay(double *g, const float *f, const float *a_log, const float *dt_bias,
                   int64_t n_rows, int n_heads, int d_k)
{
    for (int64_t i = 0; i < n_rows; i++)
        for (int h = 0; h < n_heads; h++)
            for (int j = 0; j < d_k; j++) {
                int64_t at = (i * n_heads + h) * d_k + j;
                /* the sum is f32's: where it cancels nothing else would be comparable */
                float x = f[at] + dt_bias[h * d_k + j];
                g[at] = -exp((double)a_log[h]) * ref_softplus((double)x);
            }
}

void ref_gated_norm(double *y, const float *o, const float *z, const lh_bf16 *w, int64_t n, int d,
                    double eps)
{
    ref_rmsnorm(y, o, w, n, d, eps);
    for (int64_t i = 0; i < n * d; i++)
        y[i] *= ref_sigmoid((double)z[i]);
}

void ref_route(int32_t *expert, double *weight, const double *logits, const float *bias,
               int n_experts, int top_k, int renormalize, double scale)
{
    char *taken = calloc((size_t)n_experts, 1);
    double sum = 0;

    for (int j = 0; j < top_k; j++) {
        int best = -1;
        for (int e = 0; e < n_experts; e++)
            if (!taken[e] && (best < 0 || ref_sigmoid(logits[e]) + (double)bias[e] >
                                              ref_sigmoid(logits[best]) + (double)bias[best]))
                best = e;
        taken[best] = 1;
        sum += ref_sigmoid(logits[best]);
    }
    for (int e = 0, j = 0; e < n_experts; e++)
        if (taken[e]) {
            double s = ref_sigmoid(logits[e]);
            expert[j] = e;
            weight[j++] = (renormalize ? s / (sum + 1e-20) : s) * scale;
        }
    free(taken);
}

void ref_ffn(double *y, const float *x, const lh_bf16 *w_gate, const lh_bf16 *w_up,
             const lh_bf16 *w_down, int64_t n_rows, int64_t d, int64_t d_hidden)
{
    double *hidden = calloc((size_t)d_hidden, sizeof *hidden);
    double *up = calloc((size_t)d_hidden, sizeof *up);

    for (int64_t i = 0; i < n_rows; i++) {
        ref_linear(hidden, x + i * d, w_gate, 1, d, d_hidden);
        ref_linear(up, x + i * d, w_up, 1, d, d_hidden);
        for (int64_t j = 0; j < d_hidden; j++)
            hidden[j] *= ref_sigmoid(hidden[j]) * up[j];
        for (int64_t j = 0; j < d; j++) {
            double sum = 0;
            for (int64_t k = 0; k < d_hidden; k++)
                sum += hidden[k] * (double)lh_bf16_to_f32(w_down[j * d_hidden + k]);
            y[i * d + j] = sum;
        }
    }
    free(hidden);
    free(up);
}

void ref_combine(double *out, const float *x, const float *rows, const int32_t *source,
                 const float *weight, const float *shared, int64_t n_rows, int64_t d, int top_k)
{
    for (int64_t i = 0; i < n_rows; i++)
        for (int64_t c = 0; c < d; c++) {
            double sum = 0;
            for (int j = 0; j < top_k; j++)
                sum += (double)weight[i * top_k + j] * (double)rows[source[i * top_k + j] * d + c];
            out[i * d + c] = (double)x[i * d + c] + sum + (shared ? (double)shared[i * d + c] : 0);
        }
}
