/*
 * Speed of prefill and decoding on this machine; see speed.h for how.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/mem.h"
#include "runtime/cli/speed.h"

typedef struct bench_run {
    lh_cli *c;
    lh_speed speed;
    int filled; /* --fill synthetic */
    int n_rows;
    lh_speed_row rows[2 * LH_OPT_MAX_ITEMS];
    float *want;     /* [n_vocab] of the row at hand */
    char digest[65]; /* of the last sequence's logits, at the end */
} bench_run;

static void list_rows(bench_run *b)
{
    static const lh_opt_id ids[] = {LH_OPT_PREFILL, LH_OPT_DECODE_AT};

    for (int kind = 0; kind < 2; kind++) {
        const lh_opt_value *v = &b->c->opts->values[ids[kind]];
        for (int i = 0; i < v->n_items; i++) {
            int64_t length = v->items.sizes[i];
            b->rows[b->n_rows++] =
                (lh_speed_row){.is_decode = kind, .is_filled = kind && b->filled, .length = length};
            b->speed.room = lh_max64(b->speed.room, lh_speed_room(&b->speed, kind, length));
        }
    }
}

static lh_status allocate(bench_run *b)
{
    LH_TRY(lh_speed_allocate(&b->speed));
    LH_TRY(lh_alloc((void **)&b->want, (size_t)b->speed.n_vocab * sizeof *b->want, "logits"));
    for (int i = 0; i < b->n_rows; i++)
        b->rows[i].want = b->want;
    return LH_OK;
}

static lh_status measure(bench_run *b)
{
    LH_TRY(lh_speed_open(&b->speed, b->speed.room));
    for (int i = 0; i < b->n_rows; i++)
        LH_TRY(lh_speed_measure(&b->speed, &b->rows[i]));
    lh_digest(lh_speed_logits(&b->speed), (size_t)b->speed.n_vocab * sizeof *b->want, b->digest);
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

static const char *name(const lh_speed_row *r)
{
    return r->is_decode ? "decode" : "prefill";
}

static const char *caches(const lh_speed_row *r)
{
    return r->is_filled ? "filled" : "computed";
}

static lh_status print_rows(const lh_cli *c, const bench_run *b)
{
    LH_TRY(lh_cli_printf(c,
                         "longhaul " LH_VERSION ", commit %s\n%s, %s weights\n%s, %d x %d "
                         "threads, segments of %s, blocks of %s, %d repeats\n\n",
                         lh_build_commit, c->model_dir, lh_opt_text(c->opts, LH_OPT_WEIGHTS),
                         lh_engine_backend(c->engine), c->rank.size, c->n_threads,
                         lh_cli_number(lh_engine_segment(c->engine)),
                         lh_cli_number(lh_engine_block(c->engine)), b->speed.repeat));
    LH_TRY(lh_cli_printf(c, "%-8s %10s %6s %12s %10s %12s %10s\n", "", "tokens", "batch",
                         "tokens/s", "+- sd", "ms/token", "+- sd"));
    for (int i = 0; i < b->n_rows; i++) {
        const lh_speed_row *r = &b->rows[i];
        /* Of decoding, what one sequence waits for a token. */
        double rate = r->tokens / r->mean_s, each = r->is_decode ? 1 : r->tokens;
        LH_TRY(lh_cli_printf(c, "%-8s %10s %6d %12.1f %10.1f %12.4f %10.4f%s\n", name(r),
                             lh_cli_number(r->length), b->speed.batch, rate,
                             rate * r->sd_s / r->mean_s, 1e3 * r->mean_s / each,
                             1e3 * r->sd_s / each, r->is_filled ? "  filled" : ""));
    }
    LH_TRY(lh_cli_printf(c, "\npeak memory of rank 0: %s, planned %s\n", lh_cli_bytes(peak_bytes()),
                         lh_cli_bytes(lh_engine_plan(c->engine)->total)));
    return lh_cli_printf(c,
                         "VALID: the logits of every %s are those of the same prompt in other "
                         "blocks (%s)%s\n",
                         b->filled ? "prefill" : "row", lh_speed_validity(&b->speed),
                         b->filled ? "; those of decoding are the same bits in two runs (caches "
                                     "filled, not computed)"
                                   : "");
}

static json_t *make_json(const lh_cli *c, const bench_run *b)
{
    json_t *lists[2] = {json_array(), json_array()};
    int bad = 0;

    for (int i = 0; i < b->n_rows; i++) {
        const lh_speed_row *r = &b->rows[i];
        bad |= json_array_append_new(lists[r->is_decode],
                                     json_pack("{s:I,s:i,s:f,s:f,s:f,s:s}", "tokens",
                                               (json_int_t)r->length, "batch", b->speed.batch,
                                               "mean_s", r->mean_s, "sd_s", r->sd_s, "tokens_per_s",
                                               r->tokens / r->mean_s, "caches", caches(r)));
    }
    json_t *json = json_pack(
        "{s:s,s:s,s:s,s:s,s:I,s:i,s:I,s:I,s:i,s:I,s:I,s:b,s:s,s:o,s:o}", "version", LH_VERSION,
        "commit", lh_build_commit, "model", c->model_dir, "weights",
        lh_opt_text(c->opts, LH_OPT_WEIGHTS), "seed",
        (json_int_t)lh_opt_number(c->opts, LH_OPT_SEED), "threads", c->n_threads, "segment",
        (json_int_t)lh_engine_segment(c->engine), "block", (json_int_t)lh_engine_block(c->engine),
        "repeat", b->speed.repeat, "peak_bytes", (json_int_t)peak_bytes(), "planned_bytes",
        (json_int_t)lh_engine_plan(c->engine)->total, "valid", 1, "validity",
        lh_speed_validity(&b->speed), "prefill", lists[0], "decode", lists[1]);
    if (bad) {
        json_decref(json);
        json = NULL;
    }
    return json;
}

static void print_csv(FILE *f, const void *bench)
{
    const bench_run *b = bench;

    (void)fputs("kind,tokens,batch,ranks,threads,backend,mean_s,sd_s,tokens_per_s,peak_bytes,"
                "commit,caches\n",
                f);
    for (int i = 0; i < b->n_rows; i++) {
        const lh_speed_row *r = &b->rows[i];
        (void)fprintf(f, "%s,%lld,%d,%d,%d,%s,%.9f,%.9f,%.3f,%zu,%s,%s\n", name(r),
                      (long long)r->length, b->speed.batch, b->c->rank.size, b->c->n_threads,
                      lh_engine_backend(b->c->engine), r->mean_s, r->sd_s, r->tokens / r->mean_s,
                      peak_bytes(), lh_build_commit, caches(r));
    }
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
        LH_TRY_OUT(lh_cli_print_file(csv, print_csv, b));
    LH_TRY_OUT(lh_cli_report(c, b->digest, json));
out:
    json_decref(json);
    return st;
}

lh_status lh_cli_bench(lh_cli *c)
{
    lh_status st = LH_OK;
    const lh_opts *o = c->opts;
    bench_run b = {
        .c = c,
        .filled = strcmp(lh_opt_text(o, LH_OPT_FILL), "synthetic") == 0,
        .speed = {.c = c,
                  .batch = lh_opt_given(o, LH_OPT_BATCH) ? (int)lh_opt_number(o, LH_OPT_BATCH) : 1,
                  .repeat = (int)lh_opt_number(o, LH_OPT_REPEAT),
                  .flags = "--prefill, --decode",
                  .where = "the same prompt in other blocks"}};

    LH_TRY(lh_cli_check_outputs(c));
    LH_TRY(lh_cli_open_config(c));
    list_rows(&b);
    LH_TRY_OUT(lh_job_agree(c->job, allocate(&b)));
    LH_TRY_OUT(measure(&b));
    LH_TRY_OUT(finish(c, &b));
out:
    lh_speed_free(&b.speed);
    free(b.want);
    return st;
}
