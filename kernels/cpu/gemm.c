/*
 * Matrix products and dot products of the CPU backend. OpenBLAS runs on the calling thread only:
 * threads are the stream's.
 */
#include <cblas.h>

#include "kernels/cpu/cpu.h"

void lh_cpu_gemm(int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                 const float *b, int64_t ldb, int b_transposed, float beta, float *c, int64_t ldc)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, b_transposed ? CblasTrans : CblasNoTrans, (int)m,
                (int)n, (int)k, alpha, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
}

void lh_cpu_gemm_at(int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                    const float *b, int64_t ldb, float beta, float *c, int64_t ldc)
{
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)m, (int)n, (int)k, alpha, a, (int)lda,
                b, (int)ldb, beta, c, (int)ldc);
}

void lh_cpu_widen(float *out, const lh_bf16 *in, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = lh_bf16_to_f32(in[i]);
}

/* 32 running sums, merged pairwise: enough of them to hide the latency of the additions. */
#define LANES 32

static float merge(float *sum)
{
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            sum[j] += sum[j + half];
    return sum[0];
}

float lh_cpu_dot_bf16(const float *x, const lh_bf16 *w, int64_t n)
{
    float sum[LANES] = {0};
    int64_t i = 0;

    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            sum[j] += x[i + j] * lh_bf16_to_f32(w[i + j]);
    for (int j = 0; i < n; i++, j++)
        sum[j] += x[i] * lh_bf16_to_f32(w[i]);
    return merge(sum);
}

float lh_cpu_dot(const float *x, const float *y, int64_t n)
{
    float sum[LANES] = {0};
    int64_t i = 0;

    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            sum[j] += x[i + j] * y[i + j];
    for (int j = 0; i < n; i++, j++)
        sum[j] += x[i] * y[i];
    return merge(sum);
}

int64_t lh_cpu_panel(int64_t n_in)
{
    int64_t fit = LH_CPU_SCRATCH / n_in / 16 * 16;
    return fit > 256 ? 256 : fit < 16 ? 16 : fit;
}

void lh_cpu_tile_linear(float *y, int64_t ldy, const float *x, int64_t ldx, const lh_bf16 *w,
                        int64_t rows, int64_t n_in, int64_t out_begin, int64_t out_end,
                        int accumulate, float *scratch)
{
    if (rows == 1) {
        for (int64_t j = out_begin; j < out_end; j++) {
            float dot = lh_cpu_dot_bf16(x, w + j * n_in, n_in);
            y[j] = accumulate ? y[j] + dot : dot;
        }
        return;
    }
    int64_t n = out_end - out_begin;
    lh_cpu_widen(scratch, w + out_begin * n_in, n * n_in);
    lh_cpu_gemm(rows, n, n_in, 1.0f, x, ldx, scratch, n_in, 1, accumulate ? 1.0f : 0.0f,
                y + out_begin, ldy);
}
