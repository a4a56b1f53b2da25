/*
 * Speed of prefill and decoding on this machine. Tokens are random. Before the times of a length
 * are believed, the logits of its runs must be those of a reference run: the last sequence alone,
 * its prompt in two turns that meet between two segments, which is the same computation in other
 * blocks. The reference also warms up.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/synth.h"
#include "runtime/cli/request.h"

#define STEPS 16 /* tokens of each sequence in one measurement of decoding */
/* Root mean square, where bits may differ: bf16 sums in other orders, and experts whose scores
 * nearly tie. */
#define MAX_DIFFERENCE 0.25
#define LH_TEXT_(x) #x
#define LH_TEXT(x) LH_TEXT_(x)

typedef struct row {
    int is_decode;
    int64_t length;
    double mean_s, sd_s; /* of one prefill, or of one step of decoding */
    double tokens;       /* in that time, of all sequences */
} row;

typedef struct bench_run {
    lh_cli *c;
    int batch, repeat, exact;
    int64_t n_vocab, room;
    lh_session **sessions; /* [batch] */
    lh_step_item *items;   /* [batch] */
    int32_t *tokens;       /* [batch, room] */
    float *logits;         /* [batch, n_vocab] */
    float *want;           /* [n_vocab] the reference's for the last sequence */
    double worst;          /* relative difference from a reference that was seen */
    double *seconds;       /* [repeat] */
    int n_rows;
    row rows[2 * LH_OPT_MAX_ITEMS];
    char digest[65]; /* of the last sequence's logits, at the end */
} bench_run;

/* ------------------------------------------------------------------- steps */

static const int32_t *token_at(const bench_run *b, int sequence, int64_t position)
{
    return b->tokens + sequence * b->room + position;
}

static lh_status reset(bench_run *b)
{
    for (int i = 0; i < b->batch; i++)
        LH_TRY(lh_session_reset(b->sessions[i]));
    return LH_OK;
}

/* Tokens [begin, end) of every sequence, or of the last one alone. */
static lh_status step(bench_run *b, int64_t begin, int64_t end, int only_last)
{
    for (int i = 0; i < b->batch; i++)
        b->items[i] = (lh_step_item){b->sessions[i], token_at(b, i, begin), end - begin, 1,
                                     b->logits + i * b->n_vocab};
    int first = only_last ? b->batch - 1 : 0;
    return lh_step(b->c->engine, b->items + first, b->batch - first);
}

static float *last_logits(const bench_run *b)
{
    return b->logits + (b->batch - 1) * b->n_vocab;
}

/* The last sequence: `length` tokens in two turns, then one by one up to `end`. A prompt of one
 * segment cannot be cut. */
static lh_status run_reference(bench_run *b, int64_t length, int64_t end)
{
    int64_t segment = lh_engine_segment(b->c->engine), cut = length / 2 / segment * segment;

    if (cut == 0 && length >= segment + 2)
        cut = segment;
    LH_TRY(reset(b));
    if (cut > 0)
        LH_TRY(step(b, 0, cut, 1));
    LH_TRY(step(b, cut, length, 1));
    for (int64_t i = length; i < end; i++)
        LH_TRY(step(b, i, i + 1, 1));
    memcpy(b->want, last_logits(b), (size_t)b->n_vocab * sizeof *b->want);
    return LH_OK;
}

static lh_status compare(bench_run *b, const row *r)
{
    const float *got = last_logits(b);
    double all = 0, off = 0;

    if (memcmp(got, b->want, (size_t)b->n_vocab * sizeof *got) == 0)
        return LH_OK;
    for (int64_t i = 0; i < b->n_vocab; i++) {
        double d = (double)got[i] - (double)b->want[i];
        off += d * d;
        all += (double)b->want[i] * (double)b->want[i];
    }
    off = all > 0 ? sqrt(off / all) : 1;
    b->worst = fmax(b->worst, off);
    LH_REQUIRE(
        !b->exact && off <= MAX_DIFFERENCE, LH_ERR_INTERNAL,
        "not valid: %s of %lld tokens: logits differ by %.3g of their size from those of the "
        "same prompt in other blocks, expected %s",
        r->is_decode ? "decoding after" : "prefill", (long long)r->length, off,
        b->exact ? "the same bits" : "at most " LH_TEXT(MAX_DIFFERENCE));
    return LH_OK;
}

/* ------------------------------------------------------------ measurements */

static void statistics(const bench_run *b, row *r, double per_sample)
{
    double sum = 0, squares = 0;

    for (int i = 0; i < b->repeat; i++)
        sum += b->seconds[i] / per_sample;
    r->mean_s = sum / b->repeat;
    for (int i = 0; i < b->repeat; i++)
        squares += pow(b->seconds[i] / per_sample - r->mean_s, 2);
    r->sd_s = b->repeat > 1 ? sqrt(squares / (b->repeat - 1)) : 0;
}

static lh_status measure_prefill(bench_run *b, row *r)
{
    LH_TRY(run_reference(b, r->length, r->length));
    for (int i = 0; i < b->repeat; i++) {
        LH_TRY(reset(b));
        double begin = lh_log_seconds();
        LH_TRY(step(b, 0, r->length, 0));
        b->seconds[i] = lh_log_seconds() - begin;
        LH_TRY(lh_job_agree(b->c->job, compare(b, r)));
    }
    r->tokens = (double)r->length * b->batch;
    statistics(b, r, 1);
    return LH_OK;
}

static lh_status measure_decode(bench_run *b, row *r)
{
    int64_t at = r->length;

    LH_TRY(run_reference(b, r->length, r->length + (int64_t)STEPS * b->repeat));
    LH_TRY(reset(b));
    LH_TRY(step(b, 0, r->length, 0));
    for (int i = 0; i < b->repeat; i++) {
        double begin = lh_log_seconds();
        for (int64_t end = at + STEPS; at < end; at++)
            LH_TRY(step(b, at, at + 1, 0));
        b->seconds[i] = lh_log_seconds() - begin;
    }
    LH_TRY(lh_job_agree(b->c->job, compare(b, r)));
    r->tokens = b->batch;
    statistics(b, r, STEPS);
    return LH_OK;
}

/* ------------------------------------------------------------------- setup */

static void list_rows(bench_run *b)
{
    static const lh_opt_id ids[] = {LH_OPT_PREFILL, LH_OPT_DECODE_AT};

    for (int kind = 0; kind < 2; kind++) {
        const lh_opt_value *v = &b->c->opts->values[ids[kind]];
        for (int i = 0; i < v->n_items; i++) {
            row *r = &b->rows[b->n_rows++];
            *r = (row){.is_decode = kind, .length = v->items.sizes[i]};
            b->room = lh_max64(b->room, r->length + (kind ? (int64_t)STEPS * b->repeat : 0));
        }
    }
}

static lh_status allocate(bench_run *b)
{
    size_t batch = (size_t)b->batch, vocab = (size_t)b->n_vocab;
    int64_t most = lh_cli_context(b->c, INT64_MAX);
    uint64_t key = lh_synth_key((uint64_t)lh_opt_number(b->c->opts, LH_OPT_SEED), "bench tokens");

    LH_REQUIRE(b->room <= most, LH_ERR_USAGE,
               "--prefill, --decode: %lld tokens, expected at most the context's %lld",
               (long long)b->room, (long long)most);
    LH_TRY(lh_alloc((void **)&b->sessions, batch * sizeof *b->sessions, "list of sessions"));
    LH_TRY(lh_alloc((void **)&b->items, batch * sizeof *b->items, "list of sessions"));
    LH_TRY(lh_alloc((void **)&b->tokens, batch * (size_t)b->room * sizeof *b->tokens, "tokens"));
    LH_TRY(lh_alloc((void **)&b->logits, batch * vocab * sizeof *b->logits, "logits"));
    LH_TRY(lh_alloc((void **)&b->want, vocab * sizeof *b->want, "logits"));
    LH_TRY(lh_alloc((void **)&b->seconds, (size_t)b->repeat * sizeof *b->seconds, "times"));
    for (size_t i = 0; i < batch * (size_t)b->room; i++)
        b->tokens[i] = (int32_t)(lh_synth_bits(key, i) % vocab);
    return LH_OK;
}

static lh_status measure(bench_run *b)
{
    for (int i = 0; i < b->batch; i++)
        LH_TRY(lh_session_create(&b->sessions[i], b->c->engine, b->room));
    for (int i = 0; i < b->n_rows; i++)
        LH_TRY(b->rows[i].is_decode ? measure_decode(b, &b->rows[i])
                                    : measure_prefill(b, &b->rows[i]));
    lh_digest(last_logits(b), (size_t)b->n_vocab * sizeof *b->logits, b->digest);
    return LH_OK;
}

/* ----------------------------------------------------------------- results */

/* The most that this process had in memory at once, of its rank. */
static size_t peak_bytes(void)
{
    struct rusage u = {0};

    (void)getrusage(RUSAGE_SELF, &u);
    return (size_t)u.ru_maxrss * 1024;
}

static const char *name(const row *r)
{
    return r->is_decode ? "decode" : "prefill";
}

static const char *validity(const bench_run *b)
{
    static char text[64];

    if (b->worst == 0)
        return "the same bits";
    (void)snprintf(text, sizeof text, "differing by at most %.2g of their size", b->worst);
    return text;
}

static lh_status print_rows(const lh_cli *c, const bench_run *b)
{
    LH_TRY(lh_cli_printf(c,
                         "longhaul " LH_VERSION ", commit %s\n%s, %s weights\n%s, %d x %d "
                         "threads, segments of %s, blocks of %s, %d repeats\n\n",
                         lh_build_commit, c->model_dir, lh_opt_text(c->opts, LH_OPT_WEIGHTS),
                         lh_engine_backend(c->engine), c->rank.size, c->n_threads,
                         lh_cli_number(lh_engine_segment(c->engine)),
                         lh_cli_number(lh_engine_block(c->engine)), b->repeat));
    LH_TRY(lh_cli_printf(c, "%-8s %10s %6s %12s %10s %12s %10s\n", "", "tokens", "batch",
                         "tokens/s", "+- sd", "ms/token", "+- sd"));
    for (int i = 0; i < b->n_rows; i++) {
        const row *r = &b->rows[i];
        /* Of decoding, what one sequence waits for a token. */
        double rate = r->tokens / r->mean_s, each = r->is_decode ? 1 : r->tokens;
        LH_TRY(lh_cli_printf(c, "%-8s %10s %6d %12.1f %10.1f %12.4f %10.4f\n", name(r),
                             lh_cli_number(r->length), b->batch, rate, rate * r->sd_s / r->mean_s,
                             1e3 * r->mean_s / each, 1e3 * r->sd_s / each));
    }
    LH_TRY(lh_cli_printf(c, "\npeak memory of rank 0: %s, planned %s\n", lh_cli_bytes(peak_bytes()),
                         lh_cli_bytes(lh_engine_plan(c->engine)->total)));
    return lh_cli_printf(c,
                         "VALID: the logits of every row are those of the same prompt in other "
                         "blocks (%s)\n",
                         validity(b));
}

static json_t *make_json(const lh_cli *c, const bench_run *b)
{
    json_t *lists[2] = {json_array(), json_array()};
    int bad = 0;

    for (int i = 0; i < b->n_rows; i++) {
        const row *r = &b->rows[i];
        bad |= json_array_append_new(
            lists[r->is_decode],
            json_pack("{s:I,s:i,s:f,s:f,s:f}", "tokens", (json_int_t)r->length, "batch", b->batch,
                      "mean_s", r->mean_s, "sd_s", r->sd_s, "tokens_per_s", r->tokens / r->mean_s));
    }
    json_t *json = json_pack("{s:s,s:s,s:s,s:s,s:I,s:i,s:I,s:I,s:i,s:I,s:I,s:b,s:s,s:o,s:o}",
                             "version", LH_VERSION, "commit", lh_build_commit, "model",
                             c->model_dir, "weights", lh_opt_text(c->opts, LH_OPT_WEIGHTS), "seed",
                             (json_int_t)lh_opt_number(c->opts, LH_OPT_SEED), "threads",
                             c->n_threads, "segment", (json_int_t)lh_engine_segment(c->engine),
                             "block", (json_int_t)lh_engine_block(c->engine), "repeat", b->repeat,
                             "peak_bytes", (json_int_t)peak_bytes(), "planned_bytes",
                             (json_int_t)lh_engine_plan(c->engine)->total, "valid", 1, "validity",
                             validity(b), "prefill", lists[0], "decode", lists[1]);
    if (bad) {
        json_decref(json);
        json = NULL;
    }
    return json;
}

static lh_status write_csv(const lh_cli *c, const bench_run *b, const char *path)
{
    char text[2 * LH_OPT_MAX_ITEMS * 200 + 200];
    size_t used = (size_t)snprintf(text, sizeof text,
                                   "kind,tokens,batch,ranks,threads,backend,mean_s,sd_s,"
                                   "tokens_per_s,peak_bytes,commit\n");

    for (int i = 0; i < b->n_rows; i++) {
        const row *r = &b->rows[i];
        used += (size_t)snprintf(text + used, sizeof text - used,
                                 "%s,%lld,%d,%d,%d,%s,%.9f,%.9f,%.3f,%zu,%.40s\n", name(r),
                                 (long long)r->length, b->batch, c->rank.size, c->n_threads,
                                 lh_engine_backend(c->engine), r->mean_s, r->sd_s,
                                 r->tokens / r->mean_s, peak_bytes(), lh_build_commit);
    }
    return lh_cli_write_file(path, text, used);
}

static lh_status finish(lh_cli *c, const bench_run *b)
{
    lh_status st = LH_OK;
    const char *csv = lh_opt_text(c->opts, LH_OPT_CSV);
    json_t *json = make_json(c, b);

    LH_REQUIRE_OUT(json, LH_ERR_NOMEM, "the JSON result: out of memory");
    if (!lh_cli_json_only(c))
        LH_TRY_OUT(print_rows(c, b));
    if (csv && c->rank.rank == 0)
        LH_TRY_OUT(write_csv(c, b, csv));
    LH_TRY_OUT(lh_cli_report(c, b->digest, json));
    LH_TRY_OUT(lh_cli_write_json(c, json_incref(json)));
out:
    json_decref(json);
    return st;
}

lh_status lh_cli_bench(lh_cli *c)
{
    lh_status st = LH_OK;
    const lh_opts *o = c->opts;
    bench_run b = {.c = c,
                   .batch = lh_opt_given(o, LH_OPT_BATCH) ? (int)lh_opt_number(o, LH_OPT_BATCH) : 1,
                   .repeat = (int)lh_opt_number(o, LH_OPT_REPEAT)};

    LH_TRY(lh_cli_check_outputs(c));
    LH_TRY(lh_cli_open_config(c));
    b.n_vocab = c->model.n_vocab;
    list_rows(&b);
    LH_TRY_OUT(lh_job_agree(c->job, allocate(&b)));
    LH_TRY_OUT(lh_cli_open_engine(c, b.room, b.batch));
    b.exact = strcmp(lh_engine_backend(c->engine), "cpu") == 0 ||
              lh_opt_number(o, LH_OPT_DETERMINISTIC) != 0;
    LH_TRY_OUT(measure(&b));
    LH_TRY_OUT(finish(c, &b));
out:
    for (int i = 0; b.sessions && i < b.batch; i++)
        lh_session_destroy(b.sessions[i]);
    free(b.sessions);
    free(b.items);
    free(b.tokens);
    free(b.logits);
    free(b.want);
    free(b.seconds);
    return st;
}
