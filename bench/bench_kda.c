/*
 * Time of KDA on the CPU backend: prefill per (chunk, head), in parts, and the step by the bytes of
 * the state, read and written once.
 *
 *     bench_kda [threads] [heads] [tokens] [d]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "kernels/kernels.h"

#define REPEATS 7

typedef struct bench {
    const lh_kernels *k;
    lh_stream *s;
    int n_heads, d;
    int64_t n_rows;
    lh_tiles tiles;
    float *in[4], *use[4]; /* q, k, v, g as given, and the copies that are consumed */
    float *beta, *map, *add, *state, *o;
    void *work;
} bench;

static double uniform(void)
{
    return rand() / (RAND_MAX + 1.0);
}

static lh_status setup(bench *b)
{
    size_t n = (size_t)b->n_rows * (size_t)b->n_heads, row = (size_t)b->d * sizeof(float);
    size_t state = (size_t)b->n_heads * (size_t)b->d * row;

    for (int i = 0; i < 4; i++) {
        LH_TRY(lh_alloc((void **)&b->in[i], n * row, "in"));
        LH_TRY(lh_alloc((void **)&b->use[i], n * row, "use"));
        for (size_t j = 0; j < n * (size_t)b->d; j++)
            b->in[i][j] = (float)(i == 3 ? -0.1 * uniform() : (uniform() - 0.5) / 4);
    }
    LH_TRY(lh_alloc((void **)&b->beta, n * sizeof(float), "beta"));
    for (size_t j = 0; j < n; j++)
        b->beta[j] = (float)uniform();
    LH_TRY(lh_alloc((void **)&b->map, state, "map"));
    LH_TRY(lh_alloc((void **)&b->add, state, "add"));
    LH_TRY(lh_alloc((void **)&b->state, state, "state"));
    LH_TRY(lh_alloc((void **)&b->o, n * row, "o"));
    size_t work = b->k->kda_work_bytes(b->n_rows, b->tiles.n, b->n_heads, b->d, b->d);
    return b->k->device->alloc(b->s, &b->work, work, "work");
}

static void teardown(bench *b)
{
    for (int i = 0; i < 4; i++)
        free(b->in[i]), free(b->use[i]);
    free(b->beta), free(b->map), free(b->add), free(b->state), free(b->o);
    b->k->device->release(b->s, b->work);
    b->k->device->close(b->s);
}

static lh_status prefill(bench *b, double *prepare_s, double *finish_s)
{
    for (int i = 0; i < 4; i++)
        memcpy(b->use[i], b->in[i],
               (size_t)b->n_rows * (size_t)b->n_heads * (size_t)b->d * sizeof(float));
    lh_kda_prepare_args p = {.q = b->use[0],
                             .k = b->use[1],
                             .v = b->use[2],
                             .g = b->use[3],
                             .beta = b->beta,
                             .map = b->map,
                             .add = b->add,
                             .work = b->work,
                             .n_rows = b->n_rows,
                             .n_heads = b->n_heads,
                             .d_k = b->d,
                             .d_v = b->d,
                             .tiles = b->tiles};
    lh_kda_finish_args f = {.o = b->o,
                            .state_in = b->state,
                            .q = b->use[0],
                            .k = b->use[1],
                            .v = b->use[2],
                            .g = b->use[3],
                            .work = b->work,
                            .n_rows = b->n_rows,
                            .n_heads = b->n_heads,
                            .d_k = b->d,
                            .d_v = b->d,
                            .tiles = b->tiles};
    double begin = lh_log_seconds();
    LH_TRY(b->k->kda_prepare(b->s, &p));
    LH_TRY(b->k->device->sync(b->s));
    double middle = lh_log_seconds();
    LH_TRY(b->k->kda_finish(b->s, &f));
    LH_TRY(b->k->device->sync(b->s));
    *prepare_s = middle - begin;
    *finish_s = lh_log_seconds() - middle;
    return LH_OK;
}

/* One token of one sequence. */
static lh_status step(bench *b, double *step_s)
{
    float *state = b->state;
    double begin = lh_log_seconds();
    LH_TRY(b->k->kda_step(b->s, &(lh_kda_step_args){.o = b->o,
                                                    .state = &state,
                                                    .q = b->in[0],
                                                    .k = b->in[1],
                                                    .v = b->in[2],
                                                    .g = b->in[3],
                                                    .beta = b->beta,
                                                    .n_seq = 1,
                                                    .n_heads = b->n_heads,
                                                    .d_k = b->d,
                                                    .d_v = b->d}));
    LH_TRY(b->k->device->sync(b->s));
    *step_s = lh_log_seconds() - begin;
    return LH_OK;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x)
{
    qsort(x, REPEATS, sizeof *x, compare);
    return x[REPEATS / 2];
}

static lh_status run(bench *b, int threads)
{
    double prepare_s[REPEATS], finish_s[REPEATS], step_s[REPEATS];

    LH_TRY(setup(b));
    for (int i = 0; i < REPEATS; i++) {
        LH_TRY(prefill(b, &prepare_s[i], &finish_s[i]));
        LH_TRY(step(b, &step_s[i]));
    }
    double p = median(prepare_s), f = median(finish_s), st = median(step_s), d = b->d;
    double chunks = (double)(b->n_rows / LH_CHUNK) * b->n_heads;
    /* products of d x d with a chunk: four in the chains of prepare, three in finish; scores, UT
     * transform and scores times values are products of chunk x chunk with d */
    double flop = 2 * LH_CHUNK * d * (7 * d + 3.5 * LH_CHUNK);
    double core_s = 1e6 * threads / chunks;
    printf("prefill: prepare %.0f us, finish %.0f us of a core per chunk and head, %.1f GFLOP/s "
           "per core\n",
           p * core_s, f * core_s, flop * chunks / (p + f) / threads * 1e-9);
    printf("step: %.1f us, %.1f GB/s of state\n", st * 1e6,
           2 * sizeof(float) * d * d * b->n_heads / st * 1e-9);
    return LH_OK;
}

static int argument(int argc, char **argv, int i, int other)
{
    int x = i < argc ? atoi(argv[i]) : other;
    return x > 0 ? x : 1;
}

int main(int argc, char **argv)
{
    int threads = argument(argc, argv, 1, 1);
    bench b = {.k = &lh_kernels_cpu,
               .n_heads = argument(argc, argv, 2, 32),
               .n_rows = argument(argc, argv, 3, 512),
               .d = argument(argc, argv, 4, 128)};
    b.tiles = (lh_tiles){.n = 1, .start = (int64_t[]){0, b.n_rows}};
    lh_status st = b.k->device->open(&b.s, 0, threads, 1);
    if (st == LH_OK)
        st = run(&b, threads);
    teardown(&b);
    if (st != LH_OK)
        fprintf(stderr, "bench_kda: %s\n", lh_last_error());
    return lh_exit_code(st);
}
