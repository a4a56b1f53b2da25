/*
 * Matrix products and dot products of the CPU backend. OpenBLAS runs on the calling thread only:
 * threads are the stream's.
 */
#include <cblas.h>

#include <string.h>

#include "base/mem.h"
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

/*
 * Dot products keep 32 running sums in four vectors, enough to hide the latency of the additions,
 * and merge them pairwise. Written with vectors because compilers leave an array of sums in memory.
 */
#define LANES 32
typedef float v8 __attribute__((vector_size(32)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));

static inline v8 load(const float *p)
{
    v8 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline v8 load_bf16(const lh_bf16 *p)
{
    u16x8 half;
    memcpy(&half, p, sizeof half);
    return (v8)(__builtin_convertvector(half, u32x8) << 16);
}

static inline float merge(const v8 *sum, float rest)
{
    v8 v = (sum[0] + sum[2]) + (sum[1] + sum[3]);
    float lane[LANES / 4];
    memcpy(lane, &v, sizeof lane);
    for (int half = LANES / 8; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            lane[j] += lane[j + half];
    return lane[0] + rest;
}

float lh_cpu_dot_bf16(const float *x, const lh_bf16 *w, int64_t n)
{
    v8 sum[4] = {0};
    float rest = 0;
    int64_t i = 0;

    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < 4; j++)
            sum[j] += load(x + i + 8 * j) * load_bf16(w + i + 8 * j);
    for (; i < n; i++)
        rest += x[i] * lh_bf16_to_f32(w[i]);
    return merge(sum, rest);
}

float lh_cpu_dot(const float *x, const float *y, int64_t n)
{
    v8 sum[4] = {0};
    float rest = 0;
    int64_t i = 0;

    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < 4; j++)
            sum[j] += load(x + i + 8 * j) * load(y + i + 8 * j);
    for (; i < n; i++)
        rest += x[i] * y[i];
    return merge(sum, rest);
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
    for (int64_t i = 0; i < rows; i += LH_CPU_PIECE)
        lh_cpu_gemm(lh_min64(rows - i, LH_CPU_PIECE), n, n_in, 1.0f, x + i * ldx, ldx, scratch,
                    n_in, 1, accumulate ? 1.0f : 0.0f, y + i * ldy + out_begin, ldy);
}
