/*
 * The exchange of tokens with the experts alone (parallel/expert.h), beside the plain exchange of
 * as many bytes. Checked before it is timed; a wrong one prints WRONG and no time.
 *
 *     mpirun -n 4 bench_exchange [--backend cpu|cuda] [--threads N] [--tokens N,N,..] [--csv FILE]
 *
 * A rank's time is from a barrier to the end of its stream's work, of some calls one after the
 * other (64 of few tokens); the time of a run the longest of them, divided by the calls.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "bench/exchange.h"
#include "bench/median.h"

#define REPEATS 9
#define MOST_SIZES 16
#define MOST_CALLS 64
#define TOKENS_OF_A_TIME 65536
#define MOST_TOKENS 1048576

extern const char lh_build_commit[];

static const char usage[] =
    "usage: mpirun -n RANKS bench_exchange [--backend cpu|cuda] [--threads N] [--tokens N,N,..]\n"
    "                                      [--csv FILE]\n";

typedef struct options {
    int cuda, n_threads, n_sizes;
    int64_t tokens[MOST_SIZES]; /* of a rank */
    const char *csv;
} options;

typedef struct step {
    const char *name;
    lh_status (*work)(void *x);
    int way; /* whose bytes travel; N_WAYS: none that count */
    int is_plain;
} step;

static const step steps[] = {
    {"plan", exchange_plan, N_WAYS, 0},
    {"all-to-all, as dispatch", exchange_dispatch_plain, EXCHANGE_THERE, 1},
    {"dispatch", exchange_dispatch, EXCHANGE_THERE, 0},
    {"dispatch, wire alone", exchange_dispatch_wire, EXCHANGE_THERE, 0},
    {"all-to-all, as collect", exchange_collect_plain, EXCHANGE_BACK, 1},
    {"collect", exchange_collect, EXCHANGE_BACK, 0},
    {"collect, wire alone", exchange_collect_wire, EXCHANGE_BACK, 0},
    {"combine", exchange_combine, N_WAYS, 0},
};
#define N_STEPS ((int)(sizeof steps / sizeof steps[0]))

typedef struct bench {
    ranks r;
    options o;
    FILE *csv; /* rank 0's, or NULL */
    int n_wrong;
} bench;

/* The number at *at, in [1, most], which ends at the end of text or at `separator`; *at: there. */
static lh_status number(const char *option, const char *text, const char **at, int64_t most,
                        char separator, int64_t *out)
{
    char *end = NULL;

    *out = strtoll(*at, &end, 10);
    LH_REQUIRE(end != *at && (*end == 0 || *end == separator) && *out >= 1 && *out <= most,
               LH_ERR_USAGE, "%s %s: expected %s1 to %lld", option, text,
               separator ? "numbers with commas between, " : "", (long long)most);
    *at = end;
    return LH_OK;
}

static lh_status parse_tokens(options *o, const char *text)
{
    o->n_sizes = 0;
    for (const char *at = text;; at++) {
        LH_REQUIRE(o->n_sizes < MOST_SIZES, LH_ERR_USAGE, "--tokens %s: expected at most %d", text,
                   MOST_SIZES);
        LH_TRY(number("--tokens", text, &at, MOST_TOKENS, ',', &o->tokens[o->n_sizes++]));
        if (*at == 0)
            return LH_OK;
    }
}

static lh_status parse(options *o, int argc, char **argv)
{
    static const struct option known[] = {
        {"backend", required_argument, NULL, 'b'}, {"threads", required_argument, NULL, 't'},
        {"tokens", required_argument, NULL, 'n'},  {"csv", required_argument, NULL, 'c'},
        {"help", no_argument, NULL, 'h'},          {0}};
    int64_t threads = 1;
    int c;

    while ((c = getopt_long(argc, argv, "", known, NULL)) != -1)
        switch (c) {
        case 'b':
            LH_REQUIRE(strcmp(optarg, "cpu") == 0 || strcmp(optarg, "cuda") == 0, LH_ERR_USAGE,
                       "--backend %s: expected cpu or cuda", optarg);
            o->cuda = strcmp(optarg, "cuda") == 0;
            break;
        case 't':
            LH_TRY(number("--threads", optarg, &(const char *){optarg}, 4096, 0, &threads));
            break;
        case 'n':
            LH_TRY(parse_tokens(o, optarg));
            break;
        case 'c':
            o->csv = optarg;
            break;
        case 'h':
            (void)fputs(usage, stdout);
            exit(0);
        default:
            return LH_FAIL(LH_ERR_USAGE, "see bench_exchange --help");
        }
    LH_REQUIRE(optind == argc, LH_ERR_USAGE, "'%s': expected options only", argv[optind]);
    o->n_threads = (int)threads;
    if (o->n_sizes == 0) {
        o->tokens[o->n_sizes++] = o->cuda ? 16384 : 2048;
        o->tokens[o->n_sizes++] = 128;
    }
    return LH_OK;
}

/* plain_s: the median of the plain exchange of as many bytes. Sorts seconds. */
static void print(const bench *b, const exchange *x, const step *t, double *seconds, double plain_s)
{
    int size = b->r.comm->size;
    double sd_s = deviation(seconds, REPEATS), median_s = median(seconds, REPEATS);
    char bytes[32] = "", rate[32] = "", beside[32] = "";

    if (t->way != N_WAYS) {
        size_t sent =
            t->is_plain ? x->piece_bytes[t->way] * (size_t)(size - 1) : x->mean_bytes[t->way];
        (void)snprintf(bytes, sizeof bytes, "%zu", sent);
        (void)snprintf(rate, sizeof rate, "%.3f", (double)sent / median_s / 1e9);
        (void)snprintf(beside, sizeof beside, "%.2f", median_s / plain_s);
    }
    printf("%-24s %8lld %13s %13.4f %6.1f %9s %10s\n", t->name, (long long)x->n_rows, bytes,
           1e3 * median_s, 100 * sd_s / median_s, rate, beside);
    if (b->csv)
        (void)fprintf(b->csv, "\"%s\",%lld,%d,%s,%s,%.9f,%.9f,%s,%s\n", t->name,
                      (long long)x->n_rows, size, b->r.k->name, bytes, median_s, sd_s, rate,
                      lh_build_commit);
}

/* A step as often as one after the other makes a time that can be told from the barrier's. */
typedef struct calls {
    const step *step;
    exchange *x;
    int n;
} calls;

static lh_status call(void *data)
{
    const calls *c = data;

    for (int i = 0; i < c->n; i++)
        LH_TRY(c->step->work(c->x));
    return LH_OK;
}

/* The steps take turns, so that what else the machine does meets all of them. The first turn
 * connects and warms up. */
static lh_status time_steps(bench *b, exchange *x)
{
    double seconds[N_STEPS][REPEATS];
    int n = (int)lh_max64(1, lh_min64(MOST_CALLS, TOKENS_OF_A_TIME / x->n_rows));

    for (int turn = -1; turn < REPEATS; turn++)
        for (int i = 0; i < N_STEPS; i++) {
            double *s = &seconds[i][turn < 0 ? 0 : turn];
            LH_TRY(ranks_time(&b->r, call, &(calls){&steps[i], x, n}, s));
            *s /= n;
        }
    double plain_s = 0;
    for (int i = 0; i < N_STEPS && b->r.comm->rank == 0; i++) {
        if (steps[i].is_plain)
            plain_s = median(seconds[i], REPEATS);
        print(b, x, &steps[i], seconds[i], plain_s);
    }
    return LH_OK;
}

/* Checks an exchange, and times it if it is right and not of hot experts. */
static lh_status run_case(bench *b, exchange *x, int hot)
{
    const char *wrong;

    LH_TRY(exchange_check(x, &wrong));
    b->n_wrong += wrong != NULL;
    if (b->r.comm->rank == 0 && (hot || wrong))
        printf("%-24s %8lld %s%s\n", hot ? "hot experts" : "exchange", (long long)x->n_rows,
               wrong ? "WRONG: " : "right", wrong ? wrong : "");
    if (!hot && !wrong)
        LH_TRY(time_steps(b, x));
    (void)fflush(stdout);
    return LH_OK;
}

static lh_status run_size(bench *b, int64_t n_tokens, uint64_t seed)
{
    for (int hot = 1; hot >= 0; hot--) {
        exchange x;
        lh_status st = exchange_create(&x, &b->r, n_tokens, seed, hot);
        if (st == LH_OK)
            st = run_case(b, &x, hot);
        exchange_destroy(&x);
        LH_TRY(st);
    }
    return LH_OK;
}

static lh_status open_csv(bench *b)
{
    if (b->r.comm->rank != 0 || !b->o.csv)
        return LH_OK;
    b->csv = fopen(b->o.csv, "w");
    LH_REQUIRE(b->csv, LH_ERR_OPEN, "%s: cannot be written", b->o.csv);
    (void)fprintf(b->csv,
                  "kind,tokens_per_rank,ranks,backend,bytes,median_s,sd_s,gb_per_s,commit\n");
    return LH_OK;
}

static lh_status close_csv(bench *b)
{
    if (!b->csv)
        return LH_OK;
    int written = !ferror(b->csv);
    LH_REQUIRE(fclose(b->csv) == 0 && written, LH_ERR_IO, "%s: writing failed", b->o.csv);
    return LH_OK;
}

static lh_status run(bench *b)
{
    uint64_t seed = 0;
    struct timespec now = {0};

    if (b->r.comm->size == 1) {
        printf("bench_exchange: one rank: the exchange moves nothing\n");
        return LH_OK;
    }
    (void)clock_gettime(CLOCK_REALTIME, &now);
    seed = (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
    LH_TRY(lh_comm_bcast(b->r.boot, &seed, sizeof seed, 0, NULL));
    LH_TRY(lh_comm_agree(b->r.boot, open_csv(b)));
    if (b->r.comm->rank == 0) {
        printf("bench_exchange, commit %s, %d ranks, %s backend, %d thread%s, rows of %d, %d of %d "
               "experts, seed %llu\n",
               lh_build_commit, b->r.comm->size, b->r.k->name, b->o.n_threads,
               b->o.n_threads == 1 ? "" : "s", D_MODEL, TOP_K, N_EXPERTS, (unsigned long long)seed);
        printf("%-24s %8s %13s %13s %6s %9s %10s\n", "operation", "tokens", "bytes sent",
               "median, ms", "sd, %", "GB/s", "all-to-all");
    }
    for (int i = 0; i < b->o.n_sizes; i++)
        LH_TRY(run_size(b, b->o.tokens[i], seed));
    return lh_comm_agree(b->r.boot, close_csv(b));
}

int main(int argc, char **argv)
{
    bench b = {0};
    lh_status st = parse(&b.o, argc, argv);

    if (st == LH_OK)
        st = ranks_open(&b.r, b.o.cuda ? lh_kernels_cuda() : &lh_kernels_cpu, b.o.n_threads);
    if (st == LH_OK)
        st = run(&b);
    int code = ranks_close(&b.r, "bench_exchange", st);
    return code ? code : b.n_wrong > 0;
}
