#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "runtime/cli/request.h"

typedef struct logits_run {
    int32_t *ids; /* [n_ids] */
    int64_t n_ids, n_last, n_greedy;
    float *logits;   /* [n_last, n_vocab] */
    int64_t *greedy; /* [n_greedy] */
    double prefill_s, decode_s;
    char digest[65];
} logits_run;

static lh_status read_ids(lh_cli *c, logits_run *run)
{
    const char *path = lh_opt_text(c->opts, LH_OPT_TOKENS);
    int64_t most = lh_cli_context(c, INT64_MAX);
    char *text = NULL;
    size_t n = 0;

    LH_TRY(lh_cli_read(c, &path, path ? 1 : 0, &text, &n));
    lh_status st = lh_cli_parse_ids(text, n, c->model.n_vocab, path ? path : "standard input",
                                    &run->ids, &run->n_ids);
    free(text);
    if (st == LH_OK && run->n_ids == 0)
        st = LH_FAIL(LH_ERR_DATA, "--tokens: empty, expected at least one token");
    else if (st == LH_OK && run->n_ids + run->n_greedy > most)
        st = LH_FAIL(LH_ERR_DATA,
                     "--tokens: %lld tokens and %lld greedy ones, expected at most the "
                     "context's %lld",
                     (long long)run->n_ids, (long long)run->n_greedy, (long long)most);
    else if (st == LH_OK && run->n_last > run->n_ids)
        st = LH_FAIL(LH_ERR_USAGE, "--last: %lld, expected at most the %lld tokens given",
                     (long long)run->n_last, (long long)run->n_ids);
    return lh_job_agree(c->job, st);
}

static lh_status allocate(const lh_cli *c, logits_run *run)
{
    size_t bytes;

    LH_REQUIRE(lh_mul_size(&bytes, (size_t)run->n_last, (size_t)c->model.n_vocab) == 0 &&
                   lh_mul_size(&bytes, bytes, sizeof *run->logits) == 0,
               LH_ERR_NOMEM, "--last: too many positions");
    LH_TRY(lh_alloc((void **)&run->logits, bytes, "logits"));
    return lh_alloc((void **)&run->greedy, (size_t)run->n_greedy * sizeof *run->greedy,
                    "greedy tokens");
}

static lh_status compute(lh_cli *c, logits_run *run, lh_session *session)
{
    const lh_draw greedy = LH_DRAW_GREEDY;
    int64_t n_vocab = c->model.n_vocab;
    int32_t fed, token = 0;
    lh_step_item item = {session, run->ids, run->n_ids, run->n_last, run->logits, &greedy, &token};
    double begin = lh_log_seconds();

    LH_TRY(lh_step(c->engine, &item, 1));
    run->prefill_s = lh_log_seconds() - begin;
    lh_digest(run->logits + (run->n_last - 1) * n_vocab, (size_t)n_vocab * sizeof *run->logits,
              run->digest);
    begin = lh_log_seconds();
    for (int64_t i = 0; i < run->n_greedy; i++) {
        run->greedy[i] = fed = token;
        item = (lh_step_item){
            .session = session, .tokens = &fed, .n_tokens = 1, .draw = &greedy, .token = &token};
        if (i + 1 < run->n_greedy)
            LH_TRY(lh_step(c->engine, &item, 1));
    }
    run->decode_s = lh_log_seconds() - begin;
    return LH_OK;
}

static lh_status step(lh_cli *c, logits_run *run, int64_t context)
{
    lh_status st = LH_OK;
    lh_session *session = NULL;

    LH_TRY_OUT(lh_session_create(&session, c->engine, context));
    LH_TRY_OUT(compute(c, run, session));
out:
    lh_session_destroy(session);
    return st;
}

static lh_status write_tensors(const lh_cli *c, const logits_run *run, const char *path)
{
    lh_tensor tensors[2] = {{"logits", "F32", 2, {run->n_last, c->model.n_vocab}, run->logits},
                            {"greedy", "I64", 1, {run->n_greedy}, run->greedy}};

    return lh_write_tensors(path, tensors, 2);
}

/* The likeliest token of every position, then the greedy ones. */
static lh_status print_result(const lh_cli *c, const logits_run *run)
{
    int64_t n_vocab = c->model.n_vocab;

    for (int64_t i = 0; i < run->n_last; i++) {
        const float *row = run->logits + i * n_vocab;
        int64_t best = 0;
        for (int64_t k = 1; k < n_vocab; k++)
            best = row[k] > row[best] ? k : best;
        LH_TRY(lh_cli_printf(c, "position %lld: token %lld, logit %.6f\n",
                             (long long)(run->n_ids - run->n_last + i), (long long)best,
                             (double)row[best]));
    }
    if (run->n_greedy > 0)
        LH_TRY(lh_cli_printf(c, "greedy:"));
    for (int64_t i = 0; i < run->n_greedy; i++)
        LH_TRY(lh_cli_printf(c, " %lld", (long long)run->greedy[i]));
    return run->n_greedy > 0 ? lh_cli_printf(c, "\n") : LH_OK;
}

static lh_status finish(lh_cli *c, const logits_run *run)
{
    lh_status st = LH_OK;
    const char *out = lh_opt_text(c->opts, LH_OPT_OUT);
    json_t *greedy = json_array();

    for (int64_t i = 0; i < run->n_greedy; i++)
        (void)json_array_append_new(greedy, json_integer(run->greedy[i]));
    json_t *json =
        json_pack("{s:I,s:o,s:f,s:f,s:f,s:f}", "prompt_tokens", (json_int_t)run->n_ids, "greedy",
                  greedy, "prefill_s", run->prefill_s, "prefill_tokens_per_s",
                  lh_rate(run->n_ids, run->prefill_s), "decode_s", run->decode_s,
                  "decode_tokens_per_s", lh_rate(lh_max64(run->n_greedy - 1, 0), run->decode_s));
    LH_REQUIRE_OUT(json, LH_ERR_NOMEM, "the JSON result: out of memory");
    if (c->rank.rank == 0 && out)
        LH_TRY_OUT(write_tensors(c, run, out));
    if (c->rank.rank == 0 && !lh_cli_json_only(c))
        LH_TRY_OUT(print_result(c, run));
    LH_TRY_OUT(lh_cli_report(c, run->digest, json));
out:
    json_decref(json);
    return st;
}

lh_status lh_cli_logits(lh_cli *c)
{
    lh_status st = LH_OK;
    logits_run run = {.n_last = lh_opt_number(c->opts, LH_OPT_LAST),
                      .n_greedy = lh_opt_number(c->opts, LH_OPT_GREEDY)};

    LH_TRY(lh_cli_check_outputs(c));
    LH_TRY(lh_cli_open_config(c));
    LH_TRY_OUT(read_ids(c, &run));
    LH_TRY_OUT(lh_job_agree(c->job, allocate(c, &run)));
    int64_t context = lh_cli_context(c, run.n_ids + run.n_greedy);
    LH_TRY_OUT(lh_cli_open_engine(c, context, 1));
    LH_TRY_OUT(step(c, &run, context));
    LH_TRY_OUT(finish(c, &run));
out:
    free(run.ids);
    free(run.logits);
    free(run.greedy);
    return st;
}
