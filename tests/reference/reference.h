/*
 * The specification of the dense operations: float64, plain loops, in the order of the contracts in
 * kernels/kernels.h. Activations come as f32 (already rounded to the backend's type), weights as
 * bf16, results are double; rows are contiguous.
 */
#ifndef LH_TESTS_REFERENCE_REFERENCE_H
#define LH_TESTS_REFERENCE_REFERENCE_H

#include <stdint.h>

#include "base/dtype.h"

/* y [n_rows, n_out] = x [n_rows, n_in] w^T */
void ref_linear(double *y, const float *x, const lh_bf16 *w, int64_t n_rows, int64_t n_in,
                int64_t n_out);

/* y [n_rows, d] */
void ref_rmsnorm(double *y, const float *x, const lh_bf16 *w, int64_t n_rows, int64_t d,
                 double eps);

/* y [n_rows, n_channels]; halo [taps - 1, n_channels]; w [n_channels, taps] */
void ref_short_conv(double *y, const float *x, const float *halo, const lh_bf16 *w, int64_t n_rows,
                    int64_t n_channels, int taps);

/* One row of one head: out [d_k] = in / sqrt(sum in^2 + 1e-6) * scale */
void ref_l2norm(double *out, const float *in, int d_k, double scale);

/* g [n_rows, n_heads, d_k] */
void ref_kda_decay(double *g, const float *f, const float *a_log, const float *dt_bias,
                   int64_t n_rows, int n_heads, int d_k);

/* y [n, d] of n rows of single heads */
void ref_gated_norm(double *y, const float *o, const float *z, const lh_bf16 *w, int64_t n, int d,
                    double eps);

/* One row, from the logits: ids rising, ties to the lower id; weights [top_k]. */
void ref_route(int32_t *expert, double *weight, const double *logits, const float *bias,
               int n_experts, int top_k, int renormalize, double scale);

/* y [n_rows, d] of one network */
void ref_ffn(double *y, const float *x, const lh_bf16 *w_gate, const lh_bf16 *w_up,
             const lh_bf16 *w_down, int64_t n_rows, int64_t d, int64_t d_hidden);

/* x [n_rows, d] as after the operation; shared may be NULL */
void ref_combine(double *out, const float *x, const float *rows, const int32_t *source,
                 const float *weight, const float *shared, int64_t n_rows, int64_t d, int top_k);

double ref_sigmoid(double x);
double ref_softplus(double x);

#endif
