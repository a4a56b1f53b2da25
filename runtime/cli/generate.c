#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "runtime/cli/request.h"

static lh_status check_options(const lh_opts *o)
{
    int n = lh_opt_given(o, LH_OPT_PROMPT) + lh_opt_given(o, LH_OPT_PROMPT_FILE) +
            lh_opt_given(o, LH_OPT_PROMPTS);

    LH_REQUIRE(n <= 1, LH_ERR_USAGE,
               "%d of --prompt, --prompt-file and --prompts, expected at most one", n);
    LH_REQUIRE(!lh_opt_given(o, LH_OPT_SYSTEM) || lh_opt_number(o, LH_OPT_CHAT), LH_ERR_USAGE,
               "--system without --chat: expected both");
    LH_REQUIRE(!lh_opt_given(o, LH_OPT_PROMPTS) || !lh_opt_number(o, LH_OPT_CHAT), LH_ERR_USAGE,
               "--chat with --prompts: expected \"messages\" in the file instead");
    LH_REQUIRE(!lh_opt_given(o, LH_OPT_PROMPTS) || !lh_opt_given(o, LH_OPT_JSON) ||
                   strcmp(lh_opt_text(o, LH_OPT_JSON), "-") != 0,
               LH_ERR_USAGE,
               "--json - with --prompts, whose results are JSON lines already: expected a file");
    LH_REQUIRE(!lh_opt_number(o, LH_OPT_LOGPROBS) || lh_opt_given(o, LH_OPT_JSON) ||
                   lh_opt_given(o, LH_OPT_PROMPTS),
               LH_ERR_USAGE, "--logprobs without --json or --prompts: expected one of them");
    return LH_OK;
}

/* The request of --prompt, --prompt-file or standard input. */
static lh_status make_request(lh_cli *c, const char *text, size_t n_bytes, lh_request **out, int *n)
{
    lh_status st = LH_OK;
    const char *system = lh_opt_text(c->opts, LH_OPT_SYSTEM);
    lh_message messages[2] = {{"system", system, system ? strlen(system) : 0},
                              {"user", text, n_bytes}};
    lh_request *r = calloc(1, sizeof *r);

    LH_REQUIRE(r, LH_ERR_NOMEM, "the request: out of memory");
    LH_REQUIRE_OUT(n_bytes > 0, LH_ERR_DATA, "the prompt is empty, expected a text");
    LH_TRY_OUT(lh_request_init(c, r));
    if (lh_opt_number(c->opts, LH_OPT_CHAT))
        LH_TRY_OUT(lh_tokenizer_chat(c->tokenizer, messages + !system, system ? 2 : 1, &r->ids,
                                     &r->n_ids));
    else
        LH_TRY_OUT(lh_tokenizer_encode(c->tokenizer, text, n_bytes, 0, &r->ids, &r->n_ids));
    LH_TRY_OUT(lh_request_check(c, r, "the prompt"));
    *out = r;
    *n = 1;
    return LH_OK;
out:
    lh_request_free(r);
    free(r);
    return st;
}

/* All ranks get the input's bytes and make the same requests of them. */
static lh_status read_requests(lh_cli *c, lh_request **out, int *n)
{
    const lh_opt_value *files = &c->opts->values[LH_OPT_PROMPT_FILE];
    const char *prompt = lh_opt_text(c->opts, LH_OPT_PROMPT);
    const char *prompts = lh_opt_text(c->opts, LH_OPT_PROMPTS);
    char *text = NULL;
    size_t n_bytes = prompt ? strlen(prompt) : 0;
    lh_status st = LH_OK;

    if (prompts)
        LH_TRY(lh_cli_read(c, &prompts, 1, &text, &n_bytes));
    else if (!prompt)
        LH_TRY(lh_cli_read(c, files->items.texts, files->n_items, &text, &n_bytes));
    st = prompts ? lh_batch_parse(c, text, n_bytes, out, n)
                 : make_request(c, prompt ? prompt : text, n_bytes, out, n);
    free(text);
    return lh_job_agree(c->job, st);
}

static lh_status stream(lh_cli *c, const char *bytes, size_t n)
{
    return lh_cli_print(c, bytes, n);
}

static lh_status print_line(const lh_cli *c, const lh_request *r)
{
    json_t *json = lh_request_json(r);
    char *text = json ? json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    lh_status st = text ? lh_cli_printf(c, "%s\n", text)
                        : LH_FAIL(LH_ERR_NOMEM, "a result line: out of memory");

    free(text);
    json_decref(json);
    return st;
}

/* Results come in the order of the requests. */
static lh_status run_batch(lh_cli *c, lh_run *run, lh_request *requests, int n, int at_once,
                           int64_t context)
{
    for (int at = 0; at < n; at += at_once) {
        int count = (int)lh_min64(at_once, n - at);
        LH_TRY(lh_run_requests(c, run, requests + at, count, context));
        for (int i = at; i < at + count && c->rank.rank == 0; i++)
            LH_TRY(print_line(c, &requests[i]));
    }
    return LH_OK;
}

/* A batch's own results are out already: its JSON is about the run. */
static lh_status report(lh_cli *c, const lh_run *run, const lh_request *first, int is_batch)
{
    lh_status st = LH_OK;
    json_t *json = NULL;
    double prefill = lh_rate(run->prefill_tokens, run->prefill_s);
    double decode = lh_rate(run->decode_tokens, run->decode_s);

    if (lh_cli_talks(c))
        (void)fprintf(stderr,
                      "prefill %s tokens in %.2f s, %.1f tokens/s; decode %s tokens in %.2f s, "
                      "%.1f tokens/s\n",
                      lh_cli_number(run->prefill_tokens), run->prefill_s, prefill,
                      lh_cli_number(run->decode_tokens), run->decode_s, decode);
    if (lh_opt_given(c->opts, LH_OPT_JSON)) {
        json = is_batch ? json_object() : lh_request_json(first);
        int bad = !json || json_object_set_new(json, "prefill_s", json_real(run->prefill_s));
        bad = bad || json_object_set_new(json, "prefill_tokens_per_s", json_real(prefill));
        bad = bad || json_object_set_new(json, "decode_s", json_real(run->decode_s));
        bad = bad || json_object_set_new(json, "decode_tokens_per_s", json_real(decode));
        LH_REQUIRE_OUT(!bad, LH_ERR_NOMEM, "the JSON result: out of memory");
    }
    LH_TRY_OUT(lh_cli_report(c, first->digest, json));
out:
    json_decref(json);
    return st;
}

static lh_status run_all(lh_cli *c, lh_request *requests, int n)
{
    int is_batch = lh_opt_given(c->opts, LH_OPT_PROMPTS);
    int64_t batch = lh_opt_given(c->opts, LH_OPT_BATCH) ? lh_opt_number(c->opts, LH_OPT_BATCH) : 8;
    int at_once = (int)lh_min64(batch, n);
    int64_t wanted = 1;
    lh_run run = {.on_text = is_batch || lh_cli_json_only(c) ? NULL : stream};

    for (int i = 0; i < n; i++)
        wanted = lh_max64(wanted, requests[i].n_ids + requests[i].max_tokens);
    wanted = lh_cli_context(c, wanted);
    LH_TRY(lh_cli_open_engine(c, wanted, at_once));
    LH_TRY(is_batch ? run_batch(c, &run, requests, n, at_once, wanted)
                    : lh_run_requests(c, &run, requests, n, wanted));
    /* mpirun ends the output with a line's end, so that one rank does the same. */
    const lh_text *text = &requests[0].text;
    if (run.on_text && (text->n == 0 || text->bytes[text->n - 1] != '\n'))
        LH_TRY(lh_cli_print(c, "\n", 1));
    return report(c, &run, &requests[0], is_batch);
}

lh_status lh_cli_generate(lh_cli *c)
{
    lh_request *requests = NULL;
    int n = 0;

    LH_TRY(lh_job_agree(c->job, check_options(c->opts)));
    LH_TRY(lh_cli_check_outputs(c));
    LH_TRY(lh_cli_open_model(c));
    LH_TRY(read_requests(c, &requests, &n));
    lh_status st = run_all(c, requests, n);
    for (int i = 0; i < n; i++)
        lh_request_free(&requests[i]);
    free(requests);
    return st;
}
