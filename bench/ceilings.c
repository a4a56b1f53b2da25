/*
 * What the machine gives in the same run: bytes from memory and operations of products.
 *
 *     GPU: a copy of 1 GiB, counted as read and written; the backend's own product of 8,192 cubed,
 *          which is cuBLAS in the default mode.
 *     CPU: every thread sums its part of 256 MiB (reading alone: an operation that also writes
 *          cannot reach it); every thread multiplies f32 matrices of 768 by OpenBLAS.
 */
#include <cblas.h>
#include <string.h>

#include "bench/rig.h"
#include "kernels/cpu/cpu.h"

#define COPY_BYTES ((size_t)1 << 30)
#define GPU_DIM 8192
#define CPU_DIM 768
#define READ_FLOATS ((int64_t)1 << 26)

typedef struct peak {
    rig_buf a, b, c;
    lh_tiles tiles;
    int n_threads;
} peak;

static lh_status gpu_copy(rig *r, void *data, int copy)
{
    peak *p = data;
    (void)copy;
    return r->dev->copy(r->s, p->c.p, p->a.p, COPY_BYTES);
}

static lh_status gpu_product(rig *r, void *data, int copy)
{
    peak *p = data;
    return r->k->linear(r->s, &(lh_linear_args){.y = rig_at(p->c, copy),
                                                .ldy = GPU_DIM,
                                                .x = rig_at(p->a, copy),
                                                .ldx = GPU_DIM,
                                                .w = rig_at(p->b, copy),
                                                .n_rows = GPU_DIM,
                                                .n_in = GPU_DIM,
                                                .n_out = GPU_DIM,
                                                .tiles = p->tiles});
}

static void read_part(void *ctx, int64_t item, float *scratch)
{
    peak *p = ctx;
    int64_t n = READ_FLOATS / p->n_threads;
    const float *at = (const float *)(void *)p->a.p + item * n;
    float sum[64] = {0};

    for (int64_t i = 0; i + 64 <= n; i += 64)
        for (int j = 0; j < 64; j++)
            sum[j] += at[i + j];
    memcpy(scratch, sum, sizeof sum); /* so that the sums are wanted */
}

static lh_status cpu_read(rig *r, void *data, int copy)
{
    peak *p = data;
    (void)copy;
    lh_cpu_parallel(r->s, p->n_threads, read_part, p);
    return LH_OK;
}

static void multiply(void *ctx, int64_t item, float *scratch)
{
    peak *p = ctx;
    const float *a = (const float *)(void *)p->a.p, *b = (const float *)(void *)p->b.p;
    float *c = (float *)(void *)p->c.p + item * CPU_DIM * CPU_DIM;
    (void)scratch;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, CPU_DIM, CPU_DIM, CPU_DIM, 1, a, CPU_DIM,
                b, CPU_DIM, 0, c, CPU_DIM);
}

static lh_status cpu_product(rig *r, void *data, int copy)
{
    peak *p = data;
    (void)copy;
    lh_cpu_parallel(r->s, p->n_threads, multiply, p);
    return LH_OK;
}

/* The rate of the fastest run, which is the most that the machine gave; `amount` is of one call.
 * The row shows how steady it is: the median's rate as a share of that. */
static double measure(rig *r, peak *p, rig_call run, const char *name, double amount, double unit,
                      const char *unit_name)
{
    rig_time t = rig_time_of(r, p, run, NULL);
    double rate = amount / t.least_s;

    (void)snprintf(r->size, sizeof r->size, "%s", name);
    rig_print(r, t, amount / t.median_s / unit, rate / unit, unit_name);
    rig_release(r);
    return rate;
}

static void measure_gpu(rig *r)
{
    int64_t square = (int64_t)GPU_DIM * GPU_DIM;
    peak p = {.a = rig_random(r, RIG_F32, (int64_t)(COPY_BYTES / 4), 1),
              .c = rig_zeros(r, RIG_F32, (int64_t)(COPY_BYTES / 4))};

    r->is_queued = 1;
    r->bytes_per_s =
        measure(r, &p, gpu_copy, "copy of 1 GiB", 2.0 * (double)COPY_BYTES, 1e9, "GB/s");
    r->is_queued = 0;
    p = (peak){.a = rig_random(r, RIG_ACT, square, 1),
               .b = rig_random(r, RIG_BF16, square, 1.0 / 90),
               .c = rig_zeros(r, RIG_ACT, square),
               .tiles = rig_tiles(r, GPU_DIM, GPU_DIM)};
    r->flops_per_s = measure(r, &p, gpu_product, "product 8192^3, bf16",
                             2.0 * GPU_DIM * GPU_DIM * GPU_DIM, 1e12, "TFLOP/s");
}

static void measure_cpu(rig *r)
{
    int n = r->opts.n_threads;
    int64_t square = (int64_t)CPU_DIM * CPU_DIM;
    peak p = {.a = rig_random(r, RIG_F32, READ_FLOATS, 1), .n_threads = n};

    r->bytes_per_s =
        measure(r, &p, cpu_read, "reading 256 MiB", 4.0 * (double)READ_FLOATS, 1e9, "GB/s");
    p = (peak){.a = rig_random(r, RIG_F32, square, 1),
               .b = rig_random(r, RIG_F32, square, 1),
               .c = rig_zeros(r, RIG_F32, square * n),
               .n_threads = n};
    r->flops_per_s = measure(r, &p, cpu_product, "products 768^3 of each thread, f32",
                             2.0 * CPU_DIM * CPU_DIM * CPU_DIM * n, 1e9, "GFLOP/s");
}

void rig_measure_ceilings(rig *r, const char *op)
{
    r->op = op;
    r->n_copies = 1;
    if (r->gpu)
        measure_gpu(r);
    else
        measure_cpu(r);
}
