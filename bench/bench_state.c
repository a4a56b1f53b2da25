/*
 * KDA of one layer over one long sequence, shared by the ranks as a prefill shares it: every rank
 * makes the maps of its two runs, the state goes through the runs from rank to rank, and every rank
 * finishes; beside it the same on one rank, where a chain needs no map. With a state in and out.
 *
 *     mpirun -n 2 bench_state [cpu|cuda] [tokens] [heads] [threads]
 *
 * Inputs are random, restored before every run; the state at the end and the last outputs of both
 * ways are compared before a time is printed. A rank's time is from a barrier to the end of its
 * stream's work, the time of a run the longest of them.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "base/synth.h"
#include "bench/median.h"
#include "bench/ranks.h"
#include "parallel/shard.h"

#define DIM 128
#define PERIOD 4096 /* rows of random numbers; longer inputs repeat them */
#define REPEATS 9
/* Of the largest: bf16 rounds the chunk's products, and chains and maps round in other places. */
#define MAX_DIFFERENCE 2e-2
#define LAST_ROWS 64

enum { Q, K, V, G, BETA, N_INPUTS };

typedef struct bench {
    ranks r;
    int64_t n_tokens, n_heads;
    int n_runs;
    lh_run runs[2 * RANKS_MAX];
    void *pattern[N_INPUTS]; /* [PERIOD rows], on the device */
    void *in[N_INPUTS];      /* [n_rows], consumed */
    void *o, *work;
    float *map, *add, *state, *carry[2], *begin; /* [runs]; carry and begin [1] */
} bench;

/* One way to share: the runs of this rank, one behind the other. */
typedef struct share {
    int n_own, first; /* number of the first own run in b->runs, for a chain */
    int64_t start[3];
    int maps;
} share;

static size_t row_bytes(const bench *b, int input)
{
    size_t head = input == BETA ? sizeof(float)
                  : input == G  ? DIM * sizeof(float)
                                : DIM * b->r.k->act_bytes;
    return head * (size_t)b->n_heads;
}

static size_t state_bytes(const bench *b)
{
    return (size_t)b->n_heads * DIM * DIM * sizeof(float);
}

static double uniform(uint64_t key, size_t i)
{
    return (double)(lh_synth_bits(key, i) >> 11) * 0x1p-53;
}

/* q and k of norm about 1 (q scaled), v of order 1, decays that keep some hundred tokens. */
static double value(int input, uint64_t key, size_t i)
{
    double x = uniform(key, i);
    switch (input) {
    case Q:
        return (x - 0.5) * sqrt(12.0) / DIM;
    case K:
        return (x - 0.5) * sqrt(12.0 / DIM);
    case G:
        return -0.02 * x;
    case BETA:
        return x;
    default:
        return x - 0.5;
    }
}

static lh_status make_pattern(bench *b, int input, uint64_t seed)
{
    lh_status st = LH_OK;
    size_t bytes = row_bytes(b, input) * PERIOD, f32 = input >= G ? 4 : b->r.k->act_bytes;
    uint64_t key = lh_synth_mix(seed + (uint64_t)input);
    char *host = NULL;

    LH_TRY_OUT(lh_alloc((void **)&host, bytes, "random rows"));
    for (size_t i = 0; i < bytes / f32; i++) {
        float x = (float)value(input, key, i);
        lh_bf16 half = lh_f32_to_bf16(x);
        memcpy(host + i * f32, f32 == 4 ? (void *)&x : (void *)&half, f32);
    }
    LH_TRY_OUT(b->r.k->device->alloc(b->r.s, &b->pattern[input], bytes, "random rows"));
    LH_TRY_OUT(b->r.k->device->upload(b->r.s, b->pattern[input], host, bytes));
    LH_TRY_OUT(b->r.k->device->sync(b->r.s));
out:
    free(host);
    return st;
}

/* Tokens [token, token + n) of the sequence to row `row` of the inputs. */
static lh_status restore(bench *b, int64_t row, int64_t token, int64_t n)
{
    while (n > 0) {
        int64_t at = token % PERIOD, some = lh_min64(n, PERIOD - at);
        for (int i = 0; i < N_INPUTS; i++) {
            size_t bytes = row_bytes(b, i);
            LH_TRY(b->r.k->device->copy(b->r.s, (char *)b->in[i] + (size_t)row * bytes,
                                        (char *)b->pattern[i] + (size_t)at * bytes,
                                        (size_t)some * bytes));
        }
        row += some, token += some, n -= some;
    }
    return LH_OK;
}

static lh_status prepare(bench *b, const share *h)
{
    return b->r.k->kda_prepare(b->r.s, &(lh_kda_prepare_args){.q = b->in[Q],
                                                              .k = b->in[K],
                                                              .v = b->in[V],
                                                              .g = b->in[G],
                                                              .beta = b->in[BETA],
                                                              .map = h->maps ? b->map : NULL,
                                                              .add = h->maps ? b->add : NULL,
                                                              .work = b->work,
                                                              .n_rows = h->start[h->n_own],
                                                              .n_heads = (int)b->n_heads,
                                                              .d_k = DIM,
                                                              .d_v = DIM,
                                                              .tiles = {h->n_own, h->start}});
}

static lh_status finish(bench *b, const share *h, const float *state_in, float *state_out)
{
    return b->r.k->kda_finish(b->r.s, &(lh_kda_finish_args){.o = b->o,
                                                            .state_in = state_in,
                                                            .state_out = state_out,
                                                            .q = b->in[Q],
                                                            .k = b->in[K],
                                                            .v = b->in[V],
                                                            .g = b->in[G],
                                                            .work = b->work,
                                                            .n_rows = h->start[h->n_own],
                                                            .n_heads = (int)b->n_heads,
                                                            .d_k = DIM,
                                                            .d_v = DIM,
                                                            .tiles = {h->n_own, h->start}});
}

static lh_status fold(bench *b, int own)
{
    int64_t square = b->n_heads * DIM * DIM;
    float *carry = b->carry[0];

    LH_TRY(b->r.k->device->copy(b->r.s, b->state + own * square, carry, state_bytes(b)));
    LH_TRY(b->r.k->kda_fold(b->r.s, &(lh_kda_fold_args){.state_out = b->carry[1],
                                                        .state_in = carry,
                                                        .map = b->map + own * square,
                                                        .add = b->add + own * square,
                                                        .n_heads = (int)b->n_heads,
                                                        .d_k = DIM,
                                                        .d_v = DIM}));
    b->carry[0] = b->carry[1];
    b->carry[1] = carry;
    return LH_OK;
}

static lh_status shared(bench *b, const share *h)
{
    int me = b->r.comm->rank, own = 0, last = b->n_runs - 1;

    LH_TRY(prepare(b, h));
    for (int i = 0; i <= last; i++) {
        if (b->runs[i].rank != me)
            continue;
        if (i > 0 && b->runs[i - 1].rank != me)
            LH_TRY(lh_comm_sendrecv(b->r.comm, NULL, 0, -1, b->carry[0], state_bytes(b),
                                    b->runs[i - 1].rank, b->r.s));
        LH_TRY(fold(b, own++));
        if (i < last && b->runs[i + 1].rank != me)
            LH_TRY(lh_comm_sendrecv(b->r.comm, b->carry[0], state_bytes(b), b->runs[i + 1].rank,
                                    NULL, 0, -1, b->r.s));
    }
    return h->n_own > 0 ? finish(b, h, b->state, NULL) : LH_OK;
}

static lh_status alone(bench *b, const share *h)
{
    LH_TRY(prepare(b, h));
    return finish(b, h, b->carry[0], b->carry[0]);
}

/* A way to share that is being timed. */
typedef struct timed {
    bench *b;
    const share *h;
} timed;

static lh_status work(void *data)
{
    const timed *t = data;

    if (t->h->n_own == 0)
        return LH_OK;
    return t->h->maps ? shared(t->b, t->h) : alone(t->b, t->h);
}

/* Ranks without rows take part in the barriers. */
static lh_status time_once(bench *b, const share *h, double *seconds)
{
    int64_t row = 0;

    if (!h->maps)
        LH_TRY(restore(b, 0, 0, h->start[h->n_own]));
    for (int i = 0; h->maps && i < b->n_runs; i++)
        if (b->runs[i].rank == b->r.comm->rank) {
            LH_TRY(restore(b, row, b->runs[i].token, b->runs[i].n_tokens));
            row += b->runs[i].n_tokens;
        }
    LH_TRY(b->r.k->device->copy(b->r.s, b->carry[0], b->begin, state_bytes(b)));
    return ranks_time(&b->r, work, &(timed){b, h}, seconds);
}

static lh_status measure(bench *b, const share *h, double *median_s)
{
    double seconds[REPEATS];

    LH_TRY(time_once(b, h, &seconds[0])); /* connects and warms up */
    for (int i = 0; i < REPEATS; i++)
        LH_TRY(time_once(b, h, &seconds[i]));
    *median_s = median(seconds, REPEATS);
    return LH_OK;
}

/* The final state and the last rows of the sequence, on rank 0, which has them both ways: its back
 * run is the last one. */
typedef struct result {
    float *state, *o;
} result;

static lh_status take(bench *b, result *r, int64_t n_rows)
{
    size_t n = (size_t)LAST_ROWS * (size_t)b->n_heads * DIM, act = b->r.k->act_bytes;
    const char *from = (const char *)b->o + ((size_t)n_rows * (size_t)b->n_heads * DIM - n) * act;

    LH_TRY(lh_alloc((void **)&r->state, state_bytes(b), "state"));
    LH_TRY(lh_alloc((void **)&r->o, n * sizeof(float), "outputs"));
    LH_TRY(b->r.k->device->download(b->r.s, r->state, b->carry[0], state_bytes(b)));
    LH_TRY(b->r.k->device->download(b->r.s, r->o, from, n * act));
    LH_TRY(b->r.k->device->sync(b->r.s));
    if (act == 2)
        for (size_t i = n; i-- > 0;) {
            lh_bf16 half;
            memcpy(&half, (char *)r->o + i * 2, 2);
            r->o[i] = lh_bf16_to_f32(half);
        }
    return LH_OK;
}

static double difference(const float *x, const float *want, size_t n)
{
    double off = 0, top = 0;

    for (size_t i = 0; i < n; i++) {
        off = fmax(off, fabs((double)x[i] - (double)want[i]));
        top = fmax(top, fabs((double)want[i]));
    }
    return top > 0 ? off / top : INFINITY;
}

static lh_status compare(const bench *b, const result *x, const result *want)
{
    double state = difference(x->state, want->state, state_bytes(b) / sizeof(float));
    double o = difference(x->o, want->o, (size_t)LAST_ROWS * (size_t)b->n_heads * DIM);

    LH_REQUIRE(state <= MAX_DIFFERENCE && o <= MAX_DIFFERENCE, LH_ERR_INTERNAL,
               "not valid: states differ by %.2g, outputs by %.2g of the largest, expected at most "
               "%g",
               state, o, MAX_DIFFERENCE);
    printf("states of the two ways differ by %.2g, outputs by %.2g of the largest\n", state, o);
    return LH_OK;
}

static lh_status allocate(bench *b, int64_t n_rows, uint64_t seed)
{
    const lh_device_ops *d = b->r.k->device;
    size_t rows = (size_t)n_rows * (size_t)b->n_heads * DIM, square = state_bytes(b);
    float **states[] = {&b->state, &b->map, &b->add, &b->carry[0], &b->carry[1], &b->begin};
    size_t work = b->r.k->kda_work_bytes(n_rows, 2, (int)b->n_heads, DIM, DIM);

    for (int i = 0; i < N_INPUTS; i++) {
        LH_TRY(make_pattern(b, i, seed));
        LH_TRY(d->alloc(b->r.s, &b->in[i], row_bytes(b, i) * (size_t)n_rows, "inputs"));
    }
    LH_TRY(d->alloc(b->r.s, &b->o, rows * b->r.k->act_bytes, "outputs"));
    LH_TRY(d->alloc(b->r.s, &b->work, work, "work"));
    for (size_t i = 0; i < sizeof states / sizeof states[0]; i++)
        LH_TRY(d->alloc(b->r.s, (void **)states[i], i < 3 ? 2 * square : square, "states"));
    /* any numbers do as the state before the first token */
    return d->copy(b->r.s, b->begin, b->pattern[G], square);
}

static lh_status run(bench *b)
{
    uint64_t seed = (uint64_t)time(NULL);
    int rank = b->r.comm->rank, size = b->r.comm->size;
    share one = {.n_own = rank == 0, .start = {0, rank == 0 ? b->n_tokens : 0}}, all = {.maps = 1};
    double one_s, all_s;
    result want = {0}, got = {0};

    LH_TRY(lh_comm_bcast(b->r.boot, &seed, sizeof seed, 0, NULL));
    b->n_runs = lh_block_runs(b->runs, 0, b->n_tokens, LH_CHUNK, size);
    for (int i = 0; i < b->n_runs; i++)
        if (b->runs[i].rank == rank) {
            all.start[all.n_own + 1] = all.start[all.n_own] + b->runs[i].n_tokens;
            all.n_own++;
        }
    LH_TRY(lh_comm_agree(b->r.boot,
                         allocate(b, rank == 0 ? b->n_tokens : all.start[all.n_own], seed)));
    LH_TRY(measure(b, &one, &one_s));
    LH_TRY(lh_comm_agree(b->r.boot, rank == 0 ? take(b, &want, b->n_tokens) : LH_OK));
    LH_TRY(measure(b, &all, &all_s));
    LH_TRY(lh_comm_agree(b->r.boot, rank == 0 ? take(b, &got, all.start[all.n_own]) : LH_OK));
    if (rank == 0) {
        LH_TRY(compare(b, &got, &want));
        printf("%s, %lld tokens, %lld heads: one rank %.3f ms, %d ranks %.3f ms, %.2f times\n",
               b->r.k->name, (long long)b->n_tokens, (long long)b->n_heads, 1e3 * one_s, size,
               1e3 * all_s, one_s / all_s);
    }
    return LH_OK;
}

static int64_t argument(int argc, char **argv, int i, int64_t other)
{
    int64_t x = i < argc ? strtoll(argv[i], NULL, 10) : other;
    return x > 0 ? x : 1;
}

int main(int argc, char **argv)
{
    int cuda = argc > 1 && strcmp(argv[1], "cuda") == 0;
    bench b = {.n_tokens = lh_round_up(argument(argc, argv, 2, 8192), LH_CHUNK),
               .n_heads = argument(argc, argv, 3, 4)};
    lh_status st = ranks_open(&b.r, cuda ? lh_kernels_cuda() : &lh_kernels_cpu,
                              (int)argument(argc, argv, 4, 1));

    if (st == LH_OK)
        st = run(&b);
    return ranks_close(&b.r, "bench_state", st);
}
