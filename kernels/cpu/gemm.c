/*
 * Matrix products and dot products of the CPU backend. OpenBLAS runs on the calling thread only:
 * threads are the stream's.
 */
#include <cblas.h>
#include <math.h>
#include <string.h>
#if defined(__AVX2__) || defined(__FMA__)
#include <immintrin.h>
#endif

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
typedef float v4 __attribute__((vector_size(16)));
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
#ifdef __AVX2__ /* one instruction, of which gcc 12 makes four for the general form */
    __m128i half = _mm_loadu_si128((const __m128i *)(const void *)p);
    return (v8)_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
#else
    u16x8 half;
    memcpy(&half, p, sizeof half);
    return (v8)(__builtin_convertvector(half, u32x8) << 16);
#endif
}

/* a b + c, one rounding. Said outright: left to the compiler, two functions with the same sum may
 * get different bits. */
static inline v8 madd(v8 a, v8 b, v8 c)
{
#ifdef __FMA__
    return (v8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    for (int j = 0; j < 8; j++)
        c[j] = fmaf(a[j], b[j], c[j]);
    return c;
#endif
}

static inline float merge(const v8 *sum, float rest)
{
    v8 v = (sum[0] + sum[2]) + (sum[1] + sum[3]);
    v4 half = __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
    return ((half[0] + half[2]) + (half[1] + half[3])) + rest;
}

float lh_cpu_dot_bf16(const float *x, const lh_bf16 *w, int64_t n)
{
    v8 sum[4] = {0};
    float rest = 0;
    int64_t i = 0;

    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < 4; j++)
            sum[j] = madd(load(x + i + 8 * j), load_bf16(w + i + 8 * j), sum[j]);
    for (; i < n; i++)
        rest = fmaf(x[i], lh_bf16_to_f32(w[i]), rest);
    return merge(sum, rest);
}

/* The same sums for three rows and one w, which is widened once. */
static inline void dot3_bf16(float *out, const float *const *x, const lh_bf16 *w, int64_t n)
{
    v8 sum[3][4] = {{{0}}};
    float rest[3] = {0};
    int64_t i = 0;

    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < 4; j++) {
            v8 wide = load_bf16(w + i + 8 * j);
            for (int r = 0; r < 3; r++)
                sum[r][j] = madd(load(x[r] + i + 8 * j), wide, sum[r][j]);
        }
    for (; i < n; i++)
        for (int r = 0; r < 3; r++)
            rest[r] = fmaf(x[r][i], lh_bf16_to_f32(w[i]), rest[r]);
    for (int r = 0; r < 3; r++)
        out[r] = merge(sum[r], rest[r]);
}

float lh_cpu_dot(const float *x, const float *y, int64_t n)
{
    v8 sum[4] = {0};
    float rest = 0;
    int64_t i = 0;

    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < 4; j++)
            sum[j] = madd(load(x + i + 8 * j), load(y + i + 8 * j), sum[j]);
    for (; i < n; i++)
        rest = fmaf(x[i], y[i], rest);
    return merge(sum, rest);
}

int64_t lh_cpu_panel(int64_t n_in)
{
    int64_t fit = LH_CPU_SCRATCH / n_in / 16 * 16;
    return fit > 256 ? 256 : fit < 16 ? 16 : fit;
}

void lh_cpu_row_dots(float *const *y, const float *const *x, int n_rows, const lh_bf16 *w,
                     int64_t n_in, int64_t n_out, int accumulate)
{
    /* two rows take less time as three, one of them twice, than one after the other */
    const float *three[3] = {x[0], x[n_rows / 2], x[n_rows - 1]};

    for (int64_t j = 0; j < n_out; j++) {
        float dot[3];
        if (n_rows == 1)
            dot[0] = lh_cpu_dot_bf16(x[0], w + j * n_in, n_in);
        else
            dot3_bf16(dot, three, w + j * n_in, n_in);
        for (int r = 0; r < n_rows; r++)
            y[r][j] = accumulate ? y[r][j] + dot[r] : dot[r];
    }
}

void lh_cpu_tile_linear(float *y, int64_t ldy, const float *x, int64_t ldx, const lh_bf16 *w,
                        int64_t rows, int64_t n_in, int64_t out_begin, int64_t out_end,
                        int accumulate, float *scratch)
{
    int64_t n = out_end - out_begin;

    w += out_begin * n_in;
    y += out_begin;
    if (rows == 1) {
        lh_cpu_row_dots(&y, &x, 1, w, n_in, n, accumulate);
        return;
    }
    lh_cpu_widen(scratch, w, n * n_in);
    for (int64_t i = 0; i < rows; i += LH_CPU_PIECE)
        lh_cpu_gemm(lh_min64(rows - i, LH_CPU_PIECE), n, n_in, 1.0f, x + i * ldx, ldx, scratch,
                    n_in, 1, accumulate ? 1.0f : 0.0f, y + i * ldy, ldy);
}
