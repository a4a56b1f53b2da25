#include "runtime/cli/request.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"

double lh_rate(int64_t tokens, double seconds)
{
    return seconds > 0 ? (double)tokens / seconds : 0;
}

lh_status lh_request_init(lh_cli *c, lh_request *r)
{
    const lh_opts *o = c->opts;
    const lh_opt_value *stops = &o->values[LH_OPT_STOP];

    *r = (lh_request){
        .max_tokens = lh_opt_number(o, LH_OPT_MAX_TOKENS),
        .draw.how = {.temperature = (float)lh_opt_real(o, LH_OPT_TEMPERATURE),
                     .top_k = (int)lh_opt_number(o, LH_OPT_TOP_K),
                     .top_p = (float)lh_opt_real(o, LH_OPT_TOP_P),
                     .min_p = (float)lh_opt_real(o, LH_OPT_MIN_P),
                     .seed = (uint64_t)lh_opt_number(o, LH_OPT_SEED)},
        .n_logprobs = (int)lh_opt_number(o, LH_OPT_LOGPROBS),
        .n_stops = stops->n_items,
    };
    memcpy(r->stops, stops->items.texts, sizeof r->stops);
    return lh_sampling_check(&r->draw.how);
}

void lh_request_free(lh_request *r)
{
    lh_session_destroy(r->session);
    lh_text_free(&r->text);
    json_decref(r->origin);
    json_decref(r->logprobs);
    free(r->ids);
    free(r->tokens);
    free(r->logits);
    *r = (lh_request){0};
}

lh_status lh_request_check(const lh_cli *c, const lh_request *r, const char *where)
{
    int64_t most = lh_cli_context(c, INT64_MAX);

    LH_REQUIRE(r->n_ids > 0, LH_ERR_DATA, "%s: empty, expected at least one token", where);
    LH_REQUIRE(r->n_ids <= most, LH_ERR_DATA,
               "%s: %lld tokens, expected at most the context's %lld", where, (long long)r->n_ids,
               (long long)most);
    return LH_OK;
}

static json_t *token_array(const int32_t *tokens, int64_t n)
{
    json_t *list = json_array();

    for (int64_t i = 0; i < n; i++)
        if (json_array_append_new(list, json_integer(tokens[i])) != 0) {
            json_decref(list);
            return NULL;
        }
    return list;
}

json_t *lh_request_json(const lh_request *r)
{
    json_t *json = json_pack("{s:s%,s:o,s:s,s:I,s:I}", "text", r->text.n ? r->text.bytes : "",
                             r->text.n, "tokens", token_array(r->tokens, r->n_tokens),
                             "finish_reason", r->finish, "prompt_tokens", (json_int_t)r->n_ids,
                             "completion_tokens", (json_int_t)r->n_tokens);

    if (json && r->logprobs && json_object_set(json, "logprobs", r->logprobs) != 0) {
        json_decref(json);
        return NULL;
    }
    return json;
}

/* --------------------------------------------------------------- running them */

/* {"token", "logprob", "top": [..]}: the others follow from the drawn one by their logits. */
static lh_status add_logprobs(lh_request *r, int32_t token, int64_t n_vocab)
{
    int32_t top[100];
    int n = 0, most = (int)lh_min64(r->n_logprobs, n_vocab);
    double logprob = lh_logprob(r->logits, n_vocab, token);
    json_t *list = json_array();

    for (int32_t id = 0; id < n_vocab; id++) {
        int at = n;
        if (n == most && !(r->logits[id] > r->logits[top[n - 1]]))
            continue;
        while (at > 0 && r->logits[id] > r->logits[top[at - 1]])
            at--;
        n += n < most;
        memmove(top + at + 1, top + at, (size_t)(n - at - 1) * sizeof *top);
        top[at] = id;
    }
    int bad = 0;
    for (int i = 0; i < n; i++)
        bad |= json_array_append_new(
            list, json_pack("{s:i,s:f}", "token", top[i], "logprob",
                            logprob + (double)r->logits[top[i]] - (double)r->logits[token]));
    bad |= json_array_append_new(
        r->logprobs, json_pack("{s:i,s:f,s:o}", "token", token, "logprob", logprob, "top", list));
    LH_REQUIRE(!bad, LH_ERR_NOMEM, "log-probabilities: out of memory");
    return LH_OK;
}

static lh_status show_text(lh_cli *c, const lh_run *run, lh_request *r)
{
    if (run->on_text && r->text.n_safe > r->n_shown)
        LH_TRY(run->on_text(c, r->text.bytes + r->n_shown, r->text.n_safe - r->n_shown));
    r->n_shown = r->text.n_safe;
    return LH_OK;
}

static lh_status add_text(lh_cli *c, lh_request *r, int32_t token)
{
    char *bytes;
    size_t n;

    LH_TRY(lh_tokenizer_decode(c->tokenizer, &token, 1, 0, &bytes, &n));
    lh_status st = lh_text_add(&r->text, bytes, n);
    free(bytes);
    return st;
}

/* Adds the token that the step has drawn, and says whether the request goes on. */
static lh_status add_token(lh_cli *c, const lh_run *run, lh_request *r)
{
    int32_t token = r->token;

    if (r->n_logprobs > 0 && c->rank.rank == 0)
        LH_TRY(add_logprobs(r, token, c->model.n_vocab));
    r->tokens[r->n_tokens++] = token;
    if (lh_cli_is_end(c, token))
        r->finish = "stop";
    else
        LH_TRY(add_text(c, r, token));
    if (r->text.stopped)
        r->finish = "stop";
    if (!r->finish && (r->n_tokens == r->max_tokens ||
                       lh_session_position(r->session) == lh_session_context(r->session)))
        r->finish = "length";
    if (r->finish)
        LH_TRY(lh_text_end(&r->text));
    return show_text(c, run, r);
}

static lh_status prepare(lh_cli *c, lh_request *r, int64_t context)
{
    size_t n_vocab = (size_t)c->model.n_vocab;
    size_t most = (size_t)lh_min64(r->max_tokens, context - r->n_ids + 1);

    r->text.stops = r->stops;
    r->text.n_stops = r->n_stops;
    LH_REQUIRE(!r->n_logprobs || (r->logprobs = json_array()), LH_ERR_NOMEM,
               "log-probabilities: out of memory");
    LH_TRY(lh_alloc((void **)&r->tokens, most * sizeof *r->tokens, "tokens of an answer"));
    LH_TRY(lh_alloc((void **)&r->logits, n_vocab * sizeof *r->logits, "logits of a request"));
    return LH_OK;
}

/* A step of these tokens that draws the next one. */
static lh_step_item make_item(lh_request *r, const int32_t *tokens, int64_t n_tokens,
                              int wants_logits)
{
    r->draw.number = (uint64_t)r->n_tokens;
    return (lh_step_item){.session = r->session,
                          .tokens = tokens,
                          .n_tokens = n_tokens,
                          .n_logits = wants_logits,
                          .logits = r->logits,
                          .draw = &r->draw,
                          .token = &r->token};
}

static lh_status prefill(lh_cli *c, lh_run *run, lh_request *requests, int n, lh_step_item *items)
{
    double begin = lh_log_seconds();

    for (int i = 0; i < n; i++) {
        items[i] = make_item(&requests[i], requests[i].ids, requests[i].n_ids, 1);
        run->prefill_tokens += requests[i].n_ids;
    }
    LH_TRY(lh_step(c->engine, items, n));
    run->prefill_s += lh_log_seconds() - begin;
    for (int i = 0; i < n; i++)
        lh_digest(requests[i].logits, (size_t)c->model.n_vocab * sizeof(float), requests[i].digest);
    return LH_OK;
}

static lh_status decode(lh_cli *c, lh_run *run, lh_request *requests, int n, lh_step_item *items)
{
    double begin = lh_log_seconds();

    for (;;) {
        int n_items = 0;
        for (int i = 0; i < n; i++) {
            lh_request *r = &requests[i];
            if (r->finish)
                continue;
            LH_TRY(add_token(c, run, r));
            if (!r->finish)
                items[n_items++] = make_item(r, r->tokens + r->n_tokens - 1, 1, r->n_logprobs > 0);
        }
        if (n_items == 0)
            break;
        LH_TRY(lh_step(c->engine, items, n_items));
        run->decode_tokens += n_items;
    }
    run->decode_s += lh_log_seconds() - begin;
    return LH_OK;
}

lh_status lh_run_requests(lh_cli *c, lh_run *run, lh_request *requests, int n, int64_t context)
{
    lh_status st = LH_OK;
    lh_step_item *items = calloc((size_t)n, sizeof *items);

    st = items ? LH_OK : LH_FAIL(LH_ERR_NOMEM, "a batch of %d: out of memory", n);
    for (int i = 0; i < n && st == LH_OK; i++)
        st = prepare(c, &requests[i], context);
    LH_TRY_OUT(lh_job_agree(c->job, st));
    for (int i = 0; i < n; i++)
        LH_TRY_OUT(lh_session_create(&requests[i].session, c->engine, context));
    LH_TRY_OUT(prefill(c, run, requests, n, items));
    LH_TRY_OUT(decode(c, run, requests, n, items));
out:
    for (int i = 0; i < n; i++) {
        lh_session_destroy(requests[i].session);
        requests[i].session = NULL;
        free(requests[i].logits);
        requests[i].logits = NULL;
    }
    free(items);
    return st;
}
