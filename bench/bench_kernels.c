/*
 * Times of single operations of the CPU backend beside what the machine gives in the same run: a
 * plain product of f32 matrices by every thread at once (operations), a plain sum over memory of
 * the same size by every thread (bytes). Before a case is timed its result is checked.
 *
 *     bench_kernels [threads] [part of a case's name]
 */
#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "kernels/cpu/cpu.h"

#define RUNS 9
#define LEAST_S 0.02 /* of one timed run: short operations are repeated */
#define MAX_TILES 64

static lh_stream *stream;
static int n_threads = 1;

static void *block(int64_t n, size_t bytes)
{
    void *p = NULL;
    if (lh_alloc(&p, (size_t)n * bytes, "benchmark data") != LH_OK) {
        fprintf(stderr, "bench_kernels: %s\n", lh_last_error());
        exit(lh_exit_code(LH_ERR_NOMEM));
    }
    return p;
}

static float random_f32(void)
{
    static uint32_t x = 1;
    x = x * 1664525u + 1013904223u;
    return (float)(x >> 8) * 0x1p-23f - 1.0f;
}

static float *random_rows(int64_t n)
{
    float *p = block(n, sizeof *p);
    for (int64_t i = 0; i < n; i++)
        p[i] = random_f32();
    return p;
}

static lh_bf16 *random_weights(int64_t n)
{
    lh_bf16 *p = block(n, sizeof *p);
    for (int64_t i = 0; i < n; i++)
        p[i] = lh_f32_to_bf16(random_f32());
    return p;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median seconds of one call. */
static double median_s(void (*run)(void *), void *ctx)
{
    double seconds[RUNS];
    int repeat = 1;

    for (double s = 0;; repeat *= 2) {
        s = lh_log_seconds();
        for (int i = 0; i < repeat; i++)
            run(ctx);
        if (lh_log_seconds() - s >= LEAST_S)
            break;
    }
    for (int r = 0; r < RUNS; r++) {
        double start = lh_log_seconds();
        for (int i = 0; i < repeat; i++)
            run(ctx);
        seconds[r] = (lh_log_seconds() - start) / repeat;
    }
    qsort(seconds, RUNS, sizeof *seconds, by_value);
    return seconds[RUNS / 2];
}

/* The ceilings. */

#define PEAK_DIM 768
typedef struct peak {
    float *a, *b, *c; /* c: one product for each item */
    const float *memory;
    int64_t n_floats;
} peak;

static void peak_product(void *ctx, int64_t item, float *scratch)
{
    peak *p = ctx;
    (void)scratch;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, PEAK_DIM, PEAK_DIM, PEAK_DIM, 1, p->a,
                PEAK_DIM, p->b, PEAK_DIM, 0, p->c + item * PEAK_DIM * PEAK_DIM, PEAK_DIM);
}

static void peak_read(void *ctx, int64_t item, float *scratch)
{
    peak *p = ctx;
    int64_t n = p->n_floats / n_threads;
    const float *at = p->memory + item * n;
    float sum[64] = {0};

    for (int64_t i = 0; i + 64 <= n; i += 64)
        for (int j = 0; j < 64; j++)
            sum[j] += at[i + j];
    memcpy(scratch, sum, sizeof sum); /* so that the sums are wanted */
}

static void run_peak_product(void *ctx)
{
    lh_cpu_parallel(stream, n_threads, peak_product, ctx);
}

static void run_peak_read(void *ctx)
{
    lh_cpu_parallel(stream, n_threads, peak_read, ctx);
}

static double peak_flops(void)
{
    int64_t n = PEAK_DIM * PEAK_DIM;
    peak p = {.a = random_rows(n), .b = random_rows(n), .c = block(n * n_threads, sizeof(float))};
    double s = median_s(run_peak_product, &p);
    free(p.a), free(p.b), free(p.c);
    return 2.0 * PEAK_DIM * PEAK_DIM * PEAK_DIM * n_threads / s;
}

static double peak_bytes(int64_t bytes)
{
    float *memory = random_rows(bytes / 4);
    peak p = {.memory = memory, .n_floats = bytes / 4};
    double s = median_s(run_peak_read, &p);
    free(memory);
    return (double)bytes / s;
}

/* The cases: rows in equal tiles through one or more networks. */

typedef enum kind { LINEAR, FFN } kind;

typedef struct bench_case {
    const char *name;
    kind kind;
    int64_t n_rows, tile_rows;
    int64_t n_in, n_out; /* of an ffn: d, d_hidden */
    int n_nets;          /* tiles are dealt to them in order */
} bench_case;

static const bench_case cases[] = {
    {"linear, 1 segment of 512", LINEAR, 512, 512, 256, 512, 1},
    {"linear, 8 segments of 512", LINEAR, 4096, 512, 256, 512, 1},
    {"linear, 2304 wide", LINEAR, 1024, 512, 2304, 4096, 1},
    {"linear, tiles of 3 rows", LINEAR, 96, 3, 2304, 1024, 1},
    {"decode, 1 row, in cache", LINEAR, 1, 1, 256, 768, 1},
    {"decode, 1 row, 2304 wide", LINEAR, 1, 1, 2304, 4096, 1},
    {"decode, 8 rows, 2304 wide", LINEAR, 8, 1, 2304, 4096, 1},
    {"ffn, 1 segment of 512", FFN, 512, 512, 256, 512, 1},
    {"ffn, 8 experts of 64 rows", FFN, 512, 64, 2304, 1024, 8},
    {"ffn, 8 experts of 4 rows", FFN, 32, 4, 2304, 1024, 8},
    {"ffn, decode, 8 experts", FFN, 8, 1, 2304, 1024, 8},
};

typedef struct run_data {
    const bench_case *c;
    float *x, *y, *work;
    lh_bf16 *w[3];
    const lh_bf16 *nets[3][MAX_TILES];
    int64_t start[MAX_TILES + 1];
    int32_t net[MAX_TILES];
    int n_tiles;
} run_data;

static void must(lh_status st)
{
    if (st == LH_OK)
        return;
    fprintf(stderr, "bench_kernels: %s\n", lh_last_error());
    exit(lh_exit_code(st));
}

static void run_case(void *ctx)
{
    run_data *r = ctx;
    const bench_case *c = r->c;
    lh_tiles tiles = {.n = r->n_tiles, .start = r->start};

    if (c->kind == LINEAR)
        must(lh_kernels_cpu.linear(stream, &(lh_linear_args){.y = r->y,
                                                             .ldy = c->n_out,
                                                             .x = r->x,
                                                             .ldx = c->n_in,
                                                             .w = r->w[0],
                                                             .n_rows = c->n_rows,
                                                             .n_in = c->n_in,
                                                             .n_out = c->n_out,
                                                             .tiles = tiles}));
    else
        must(lh_kernels_cpu.ffn(stream, &(lh_ffn_args){.y = r->y,
                                                       .x = r->x,
                                                       .w_gate = r->nets[0],
                                                       .w_up = r->nets[1],
                                                       .w_down = r->nets[2],
                                                       .n_nets = c->n_nets,
                                                       .n_rows = c->n_rows,
                                                       .d = c->n_in,
                                                       .d_hidden = c->n_out,
                                                       .tiles = tiles,
                                                       .net = r->net,
                                                       .work = r->work}));
}

static double dot(const float *x, const lh_bf16 *w, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)lh_bf16_to_f32(w[i]);
    return sum;
}

/* The last row's last output, in float64. */
static double expected(const run_data *r)
{
    const bench_case *c = r->c;
    const float *x = r->x + (c->n_rows - 1) * c->n_in;
    int net = r->net[r->n_tiles - 1];
    double sum = 0;

    if (c->kind == LINEAR)
        return dot(x, r->w[0] + (c->n_out - 1) * c->n_in, c->n_in);
    for (int64_t i = 0; i < c->n_out; i++) {
        double gate = dot(x, r->nets[0][net] + i * c->n_in, c->n_in);
        double up = dot(x, r->nets[1][net] + i * c->n_in, c->n_in);
        lh_bf16 down = r->nets[2][net][(c->n_in - 1) * c->n_out + i];
        sum += gate / (1 + exp(-gate)) * up * (double)lh_bf16_to_f32(down);
    }
    return sum;
}

static int bench(const bench_case *c)
{
    run_data r = {.c = c, .n_tiles = (int)((c->n_rows + c->tile_rows - 1) / c->tile_rows)};
    int64_t size = c->n_in * c->n_out;
    int n_matrices = c->kind == LINEAR ? 1 : 3, ok;
    int64_t y_width = c->kind == LINEAR ? c->n_out : c->n_in;

    LH_ASSERT(r.n_tiles <= MAX_TILES);
    r.x = random_rows(c->n_rows * c->n_in);
    r.y = block(c->n_rows * y_width, sizeof *r.y);
    r.work = block(c->n_rows * 2 * c->n_out, sizeof *r.work);
    for (int m = 0; m < n_matrices; m++) {
        r.w[m] = random_weights(size * c->n_nets);
        for (int i = 0; i < c->n_nets; i++)
            r.nets[m][i] = r.w[m] + i * size;
    }
    for (int i = 0; i < r.n_tiles; i++) {
        r.start[i + 1] = lh_min64(r.start[i] + c->tile_rows, c->n_rows);
        r.net[i] = i * c->n_nets / r.n_tiles;
    }

    run_case(&r);
    double want = expected(&r), got = (double)r.y[c->n_rows * y_width - 1];
    ok = fabs(got - want) <= 1e-4 * fmax(fabs(want), sqrt((double)c->n_in));
    if (ok) {
        double s = median_s(run_case, &r);
        double flops = 2.0 * (double)(c->n_rows * size * n_matrices);
        double bytes = 2.0 * (double)(size * n_matrices * c->n_nets);
        if (c->tile_rows > 1)
            printf("%-28s %9.1f us %8.1f GFLOP/s %5.0f%%\n", c->name, s * 1e6, flops / s / 1e9,
                   100 * flops / s / peak_flops());
        else
            printf("%-28s %9.1f us %8.1f GB/s    %5.0f%%\n", c->name, s * 1e6, bytes / s / 1e9,
                   100 * bytes / s / peak_bytes((int64_t)bytes));
    } else {
        printf("%-28s WRONG: %g, expected %g\n", c->name, got, want);
    }
    fflush(stdout);
    free(r.x), free(r.y), free(r.work);
    for (int m = 0; m < n_matrices; m++)
        free(r.w[m]);
    return ok;
}

int main(int argc, char **argv)
{
    int ok = 1;

    if (argc > 1)
        n_threads = atoi(argv[1]);
    must(lh_device_cpu.open(&stream, 0, n_threads, 1));
    printf("%d threads: products of f32 matrices %.1f GFLOP/s, reading 256 MiB %.1f GB/s\n",
           n_threads, peak_flops() / 1e9, peak_bytes((int64_t)1 << 28) / 1e9);
    printf("%-28s %12s %16s %6s\n", "case", "median", "rate", "of the machine");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (argc < 3 || strstr(cases[i].name, argv[2]))
            ok &= bench(&cases[i]);
    lh_device_cpu.close(stream);
    return !ok;
}
