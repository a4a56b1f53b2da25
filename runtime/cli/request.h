/*
 * Requests: prompts with how to continue them, run together as one batch. Every rank runs the same
 * requests and draws the same tokens.
 */
#ifndef LH_RUNTIME_CLI_REQUEST_H
#define LH_RUNTIME_CLI_REQUEST_H

#include "runtime/cli/cli.h"
#include "runtime/cli/text.h"

#define LH_MAX_STOPS LH_OPT_MAX_ITEMS

typedef struct lh_request {
    int32_t *ids; /* [n_ids] the prompt */
    int64_t n_ids;
    int64_t max_tokens;
    lh_draw draw;   /* how its tokens are drawn, and the number of the next one */
    int n_logprobs; /* 0: none */
    const char *stops[LH_MAX_STOPS];
    int n_stops;
    json_t *origin; /* keeps the strings of `stops` alive, or NULL */

    int32_t *tokens; /* results: [n_tokens] drawn, the end token included */
    int64_t n_tokens;
    lh_text text;
    const char *finish; /* "stop", "length"; NULL: not yet */
    json_t *logprobs;   /* array, on rank 0 */
    char digest[65];    /* of the logits of the last prompt position */

    lh_session *session; /* while it runs */
    float *logits;       /* [n_vocab], of the last token's position, where they are wanted */
    int32_t token;       /* drawn by the step, to be added */
    size_t n_shown;      /* bytes of text handed to on_text */
} lh_request;

typedef struct lh_run {
    /* New text of a request that nothing can take back; may be NULL. */
    lh_status (*on_text)(lh_cli *c, const char *bytes, size_t n);
    double prefill_s, decode_s; /* results, of all requests together */
    int64_t prefill_tokens, decode_tokens;
} lh_run;

/* Runs requests to their ends, in one batch of new sessions of `context` tokens each. Collective.
 */
lh_status lh_run_requests(lh_cli *c, lh_run *run, lh_request *requests, int n, int64_t context);

void lh_request_free(lh_request *r);

/* Settings of the command line. */
lh_status lh_request_init(lh_cli *c, lh_request *r);

/* LH_ERR_DATA: no token, or more than the context holds. `where` begins the message. */
lh_status lh_request_check(const lh_cli *c, const lh_request *r, const char *where);

/* "text", "tokens", "finish_reason", "prompt_tokens", "completion_tokens", "logprobs". NULL: out of
 * memory. */
json_t *lh_request_json(const lh_request *r);

/* Tokens a second, 0 when nothing was measured. */
double lh_rate(int64_t tokens, double seconds);

/* One line of JSON to a request, and many (rank-independent; `text` is all of --prompts' file). */
lh_status lh_batch_parse(lh_cli *c, const char *text, size_t n_bytes, lh_request **out, int *n);

#endif
