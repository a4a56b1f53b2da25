/*
 * Inside the CPU backend: its stream (a pool of threads that take items of work by number), the
 * scratch of each thread, matrix products of fixed shape, and the operations' names for the table.
 *
 * Which thread computes an item never shows in the result: an item's arithmetic depends on the item
 * alone.
 */
#ifndef LH_KERNELS_CPU_CPU_H
#define LH_KERNELS_CPU_CPU_H

#include "kernels/kernels.h"

/* f32 elements of scratch that each thread has to itself inside an item; 64-byte aligned, content
 * undefined. */
#define LH_CPU_SCRATCH (1 << 20)

typedef void (*lh_cpu_item)(void *ctx, int64_t item, float *scratch);

/* Runs fn(ctx, i, scratch of the thread) for every i in [0, n_items), by all threads of the stream;
 * returns when all are done. */
void lh_cpu_parallel(lh_stream *s, int64_t n_items, lh_cpu_item fn, void *ctx);

int lh_cpu_threads(const lh_stream *s);

/* Runs fn(args, begin, end) over ranges that cover the rows; few elements (rows times width) are
 * one range, run at once by the caller. For work in which each row stands alone. */
typedef void (*lh_cpu_rows_fn)(const void *args, int64_t begin, int64_t end);
void lh_cpu_rows(lh_stream *s, int64_t n_rows, int64_t width, lh_cpu_rows_fn fn, const void *args);

/*
 * c [m, n] = alpha a op(b) + beta c by OpenBLAS on the calling thread; a [m, k]; b [k, n], or [n,
 * k] with b_transposed. All row-major with the given row distances. The bits depend on the shape,
 * so callers keep the shape a function of the tile.
 */
void lh_cpu_gemm(int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                 const float *b, int64_t ldb, int b_transposed, float beta, float *c, int64_t ldc);

/* The same with a transposed: c [m, n] = alpha a^T b + beta c; a [k, m], b [k, n]. */
void lh_cpu_gemm_at(int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                    const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

/* Widens n weights to f32. */
void lh_cpu_widen(float *out, const lh_bf16 *in, int64_t n);

/* Sum over k of x[k] w[k], in a fixed order that depends on n alone. */
float lh_cpu_dot_bf16(const float *x, const lh_bf16 *w, int64_t n);
float lh_cpu_dot(const float *x, const float *y, int64_t n);

/* y[r][0 .. n_out) = (or +=) x[r] w^T for n_rows <= 3 rows, w [n_out, n_in], each as by
 * lh_cpu_dot_bf16. */
void lh_cpu_row_dots(float *const *y, const float *const *x, int n_rows, const lh_bf16 *w,
                     int64_t n_in, int64_t n_out, int accumulate);

/* y = x / sqrt(mean(x^2) + eps) * w for one row; y may be x. */
void lh_cpu_rmsnorm_row(float *y, const float *x, const lh_bf16 *w, int64_t n, float eps);

/* A tile of more rows goes to lh_cpu_gemm in pieces of so many, counted from its start. */
#define LH_CPU_PIECE 256

/* Longest row of weights, so that a panel of 16 fits the scratch. */
#define LH_CPU_MAX_IN (LH_CPU_SCRATCH / 16)

/*
 * Rows of one tile through a weight matrix: y [rows, n_out] = (or +=) x w^T, for outputs
 * [out_begin, out_end). One row by dot products, more by lh_cpu_gemm over a widened panel; the
 * caller passes panels from lh_cpu_panel, so that the shape is a function of the tile.
 */
void lh_cpu_tile_linear(float *y, int64_t ldy, const float *x, int64_t ldx, const lh_bf16 *w,
                        int64_t rows, int64_t n_in, int64_t out_begin, int64_t out_end,
                        int accumulate, float *scratch);

/* Outputs of a panel for this length of row: n_in * panel f32 fit the scratch; a multiple of 16, at
 * most 256. */
int64_t lh_cpu_panel(int64_t n_in);

/*
 * Products of rows cut into tiles, tile i by the weights of network net[i]: for each part p of
 * n_parts, y[:, p n_out ..] = (or +=) x w[p][net]^T. Tiles of a few rows by dot products, others by
 * lh_cpu_gemm. Which tiles and threads share the widened weights does not show in the result.
 */
typedef struct lh_cpu_product {
    float *y;
    int64_t ldy;
    const float *x;
    int64_t ldx;
    const lh_bf16 *const *w[2]; /* per part: the networks' matrices [n_out, n_in] */
    int n_parts;                /* 1 or 2 */
    int64_t n_in, n_out;
    int accumulate;
    const lh_tiles *tiles;
    const int32_t *net; /* [tiles->n], or NULL: all 0 */
} lh_cpu_product;

/* LH_ERR_UNSUPPORTED: n_in is more than LH_CPU_MAX_IN. */
lh_status lh_cpu_run_product(lh_stream *s, const lh_cpu_product *p);

lh_status lh_cpu_embed(lh_stream *s, const lh_embed_args *a);
lh_status lh_cpu_rmsnorm(lh_stream *s, const lh_rmsnorm_args *a);
lh_status lh_cpu_linear(lh_stream *s, const lh_linear_args *a);
lh_status lh_cpu_short_conv(lh_stream *s, const lh_short_conv_args *a);
lh_status lh_cpu_conv_step(lh_stream *s, const lh_conv_step_args *a);
lh_status lh_cpu_kda_gate(lh_stream *s, const lh_kda_gate_args *a);
lh_status lh_cpu_kda_prepare(lh_stream *s, const lh_kda_prepare_args *a);
lh_status lh_cpu_kda_fold(lh_stream *s, const lh_kda_fold_args *a);
lh_status lh_cpu_kda_finish(lh_stream *s, const lh_kda_finish_args *a);
lh_status lh_cpu_kda_step(lh_stream *s, const lh_kda_step_args *a);
lh_status lh_cpu_gated_norm(lh_stream *s, const lh_gated_norm_args *a);
lh_status lh_cpu_latent(lh_stream *s, const lh_latent_args *a);
lh_status lh_cpu_mla_prefill(lh_stream *s, const lh_mla_prefill_args *a);
lh_status lh_cpu_mla_decode(lh_stream *s, const lh_mla_decode_args *a);
lh_status lh_cpu_mla_attend(lh_stream *s, const lh_mla_decode_args *a);
lh_status lh_cpu_mla_merge(lh_stream *s, const lh_mla_decode_args *a);
lh_status lh_cpu_router(lh_stream *s, const lh_router_args *a);
lh_status lh_cpu_ffn(lh_stream *s, const lh_ffn_args *a);
lh_status lh_cpu_moe_step(lh_stream *s, const lh_moe_step_args *a);
lh_status lh_cpu_gather(lh_stream *s, const lh_gather_args *a);
lh_status lh_cpu_combine(lh_stream *s, const lh_combine_args *a);
lh_status lh_cpu_sample(lh_stream *s, const lh_sample_args *a);
lh_status lh_cpu_plan_send(lh_stream *s, const lh_plan_send_args *a);
lh_status lh_cpu_plan_receive(lh_stream *s, const lh_plan_receive_args *a);
lh_status lh_cpu_synth_fill(lh_stream *s, const lh_synth_fill_args *a);

size_t lh_cpu_kda_work_bytes(int64_t n_rows, int n_tiles, int n_heads, int d_k, int d_v);
size_t lh_cpu_mla_prefill_work_bytes(int64_t n_rows, int n_heads, int d_nope, int d_rope, int d_v,
                                     int d_latent);
size_t lh_cpu_mla_decode_work_bytes(int64_t n_seq, int64_t n_keys, int n_heads, int d_latent,
                                    int d_rope);
size_t lh_cpu_sample_work_bytes(int64_t n_rows, int64_t n_vocab);
size_t lh_cpu_plan_send_work_bytes(int64_t n_rows, int size);
size_t lh_cpu_plan_receive_work_bytes(int64_t n_pairs, int n_nets);
size_t lh_cpu_stream_bytes(int n_threads);

#endif
