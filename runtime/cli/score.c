/*
 * How likely a text is: -log p(token | the tokens before it) of every token but the first. One
 * prefill, whose logits come in groups and are not kept.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "runtime/cli/request.h"

typedef struct score_run {
    lh_cli *c;
    int32_t *ids; /* [n_ids] */
    int64_t n_ids;
    double *nll;   /* [n_ids], of each token; the first is not scored */
    float *logits; /* [LH_LOGIT_ROWS, n_vocab] */
    double sum, prefill_s;
    char digest[65]; /* of the last position's logits */
} score_run;

static lh_status check_options(const lh_opts *o)
{
    LH_REQUIRE(!lh_opt_text(o, LH_OPT_FILE) || !lh_opt_text(o, LH_OPT_TOKENS), LH_ERR_USAGE,
               "--file and --tokens: expected at most one");
    return LH_OK;
}

static lh_status read_ids(lh_cli *c, score_run *run)
{
    const char *tokens = lh_opt_text(c->opts, LH_OPT_TOKENS);
    const char *path = tokens ? tokens : lh_opt_text(c->opts, LH_OPT_FILE);
    const char *name = path && strcmp(path, "-") != 0 ? path : "standard input";
    int64_t most = lh_cli_context(c, INT64_MAX);
    char *text = NULL;
    size_t n = 0;

    LH_TRY(lh_cli_read(c, &path, path ? 1 : 0, &text, &n));
    lh_status st = tokens
                       ? lh_cli_parse_ids(text, n, c->model.n_vocab, name, &run->ids, &run->n_ids)
                       : lh_tokenizer_encode(c->tokenizer, text, n, 0, &run->ids, &run->n_ids);
    free(text);
    if (st == LH_OK && (run->n_ids < 2 || run->n_ids > most))
        st = LH_FAIL(LH_ERR_DATA, "%s: %lld tokens, expected 2 to the context's %lld", name,
                     (long long)run->n_ids, (long long)most);
    return lh_job_agree(c->job, st);
}

/* The logits after token i are about token i + 1. Rank 0 alone needs the scores. */
static lh_status take(void *user, int64_t first, int64_t n, const float *logits)
{
    score_run *run = user;
    int64_t n_vocab = run->c->model.n_vocab;

    if (run->c->rank.rank > 0)
        return LH_OK;
    for (int64_t i = first; i < first + n && i + 1 < run->n_ids; i++)
        run->nll[i + 1] = -lh_logprob(logits + (i - first) * n_vocab, n_vocab, run->ids[i + 1]);
    if (first + n == run->n_ids)
        lh_digest(logits + (n - 1) * n_vocab, (size_t)n_vocab * sizeof *logits, run->digest);
    return LH_OK;
}

static lh_status allocate(score_run *run)
{
    size_t row = (size_t)run->c->model.n_vocab * sizeof *run->logits;

    LH_TRY(lh_alloc((void **)&run->nll, (size_t)run->n_ids * sizeof *run->nll, "the scores"));
    return lh_alloc((void **)&run->logits, LH_LOGIT_ROWS * row, "logits");
}

static lh_status compute(lh_cli *c, score_run *run, int64_t context)
{
    lh_session *session = NULL;

    LH_TRY(lh_session_create(&session, c->engine, context));
    lh_step_item item = {.session = session,
                         .tokens = run->ids,
                         .n_tokens = run->n_ids,
                         .n_logits = run->n_ids,
                         .logits = run->logits};
    double begin = lh_log_seconds();
    lh_status st = lh_step_groups(c->engine, &item, take, run);
    run->prefill_s = lh_log_seconds() - begin;
    for (int64_t i = 1; i < run->n_ids; i++)
        run->sum += run->nll[i];
    lh_session_destroy(session);
    return st;
}

static lh_status print_result(const lh_cli *c, const score_run *run)
{
    double mean = run->sum / (double)(run->n_ids - 1);

    for (int64_t i = 1; i < run->n_ids; i++)
        LH_TRY(lh_cli_printf(c, "position %lld: token %d, nll %.6f\n", (long long)i,
                             (int)run->ids[i], run->nll[i]));
    return lh_cli_printf(c, "tokens %lld, mean nll %.6f, perplexity %.4f\n",
                         (long long)run->n_ids - 1, mean, exp(mean));
}

/* JSON has no infinity. */
static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static lh_status finish(lh_cli *c, const score_run *run)
{
    lh_status st = LH_OK;
    double mean = run->sum / (double)(run->n_ids - 1);
    json_t *each = json_array();
    int bad = 0;

    for (int64_t i = 1; i < run->n_ids; i++)
        bad |= json_array_append_new(each, number(run->nll[i]));
    json_t *json = json_pack("{s:I,s:o,s:o,s:o,s:o,s:f,s:f}", "tokens", (json_int_t)run->n_ids - 1,
                             "nll", number(run->sum), "mean", number(mean), "perplexity",
                             number(exp(mean)), "each", each, "prefill_s", run->prefill_s,
                             "prefill_tokens_per_s", lh_rate(run->n_ids, run->prefill_s));
    LH_REQUIRE_OUT(json && !bad, LH_ERR_NOMEM, "the JSON result: out of memory");
    if (!lh_cli_json_only(c))
        LH_TRY_OUT(print_result(c, run));
    LH_TRY_OUT(lh_cli_report(c, run->digest, json));
out:
    json_decref(json);
    return st;
}

lh_status lh_cli_score(lh_cli *c)
{
    lh_status st = LH_OK;
    score_run run = {.c = c};

    LH_TRY(lh_job_agree(c->job, check_options(c->opts)));
    LH_TRY(lh_cli_check_outputs(c));
    LH_TRY(lh_opt_text(c->opts, LH_OPT_TOKENS) ? lh_cli_open_config(c) : lh_cli_open_model(c));
    LH_TRY_OUT(read_ids(c, &run));
    LH_TRY_OUT(lh_job_agree(c->job, allocate(&run)));
    int64_t context = lh_cli_context(c, run.n_ids);
    LH_TRY_OUT(lh_cli_open_engine(c, context, 1));
    LH_TRY_OUT(compute(c, &run, context));
    LH_TRY_OUT(finish(c, &run));
out:
    free(run.ids);
    free(run.nll);
    free(run.logits);
    return st;
}
