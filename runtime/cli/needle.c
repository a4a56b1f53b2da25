#include "runtime/cli/needle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "runtime/cli/request.h"

#define ANSWER_TOKENS 24 /* a whole sentence with the number in it */

static const char *const names[] = {
    "Acorn",    "Amber",   "Basil",   "Birch",   "Cedar",  "Clover",   "Copper", "Coral",
    "Dahlia",   "Ember",   "Falcon",  "Fern",    "Garnet", "Ginger",   "Hazel",  "Heron",
    "Indigo",   "Ivory",   "Jasmine", "Juniper", "Lark",   "Lavender", "Linden", "Maple",
    "Marigold", "Meadow",  "Olive",   "Opal",    "Orchid", "Pebble",   "Poppy",  "Quartz",
    "Raven",    "Saffron", "Sparrow", "Thistle", "Tundra", "Violet",   "Walnut", "Willow",
};

typedef struct needle {
    int32_t *hay; /* [n_hay] */
    int64_t n_hay;
    int64_t context;
    const lh_opt_value *lengths, *depths;
    int trials;
    int *found; /* [n_lengths][n_depths] */
    json_t *results;
    int64_t prefill_tokens, decode_tokens; /* of one length */
    double prefill_s, decode_s;
} needle;

typedef struct trial {
    int64_t length, depth;
    const char *name;
    char number[8];
    uint64_t random; /* splitmix64's state */
} trial;

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* A trial's name and number depend on the seed and its place alone. */
static trial make_trial(const lh_cli *c, int64_t length, int64_t depth, int number)
{
    trial t = {.length = length, .depth = depth};

    t.random = (uint64_t)lh_opt_number(c->opts, LH_OPT_SEED);
    t.random = next_random(&t.random) ^ (uint64_t)length;
    t.random = next_random(&t.random) ^ (uint64_t)depth;
    t.random = next_random(&t.random) ^ (uint64_t)number;
    t.name = names[next_random(&t.random) % (sizeof names / sizeof *names)];
    (void)snprintf(t.number, sizeof t.number, "%u",
                   100000 + (unsigned)(next_random(&t.random) % 900000));
    return t;
}

typedef struct ids {
    int32_t *ids;
    int64_t n;
} ids;

/* The prompt without its text, and where the text goes. */
static lh_status make_frame(const lh_cli *c, const trial *t, ids *out, int64_t *text_at)
{
    char ask[192];
    int chat = (int)lh_opt_number(c->opts, LH_OPT_CHAT);
    int n = snprintf(ask, sizeof ask,
                     chat ? "\n\nWhat is the secret number of %s?"
                          : "\n\nQuestion: What is the secret number of %s?\nAnswer: The secret "
                            "number of %s is",
                     t->name, t->name);
    lh_message turn = {"user", ask, (size_t)n};

    *text_at = 0;
    if (!chat)
        return lh_tokenizer_encode(c->tokenizer, ask, (size_t)n, 0, &out->ids, &out->n);
    LH_TRY(lh_tokenizer_chat(c->tokenizer, &turn, 1, &out->ids, &out->n));
    while (*text_at < out->n &&
           out->ids[(*text_at)++] != lh_tokenizer_special(c->tokenizer, LH_IM_MIDDLE))
        ;
    return LH_OK;
}

static int32_t *put(int32_t *at, const int32_t *from, int64_t n)
{
    memcpy(at, from, (size_t)n * sizeof *at);
    return at + n;
}

static int32_t *put_hay(int32_t *at, const needle *w, int64_t from, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        *at++ = w->hay[(from + i) % w->n_hay];
    return at;
}

/* Exactly `length` tokens, less at the end of the context so that the answer has room: the text is
 * cut between tokens of the haystack, which starts anywhere and goes round. */
static lh_status make_prompt(const lh_cli *c, const needle *w, trial *t, lh_request *r)
{
    lh_status st = LH_OK;
    ids frame = {0}, sentence = {0};
    char text[96];
    int64_t text_at, from = (int64_t)(next_random(&t->random) % (uint64_t)w->n_hay);
    int bos = !lh_opt_number(c->opts, LH_OPT_CHAT);
    int n =
        snprintf(text, sizeof text, "\n\nThe secret number of %s is %s.\n\n", t->name, t->number);

    LH_TRY_OUT(lh_tokenizer_encode(c->tokenizer, text, (size_t)n, 0, &sentence.ids, &sentence.n));
    LH_TRY_OUT(make_frame(c, t, &frame, &text_at));
    int64_t length = lh_min64(t->length, w->context - ANSWER_TOKENS);
    int64_t hay = length - bos - frame.n - sentence.n, before = hay * t->depth / 100;
    LH_REQUIRE_OUT(hay >= 0, LH_ERR_USAGE, "--lengths: %lld, expected at least %lld tokens",
                   (long long)t->length, (long long)(length - hay));
    LH_TRY_OUT(lh_alloc((void **)&r->ids, (size_t)length * sizeof *r->ids, "a prompt"));
    int32_t *at = r->ids;
    if (bos)
        *at++ = lh_tokenizer_special(c->tokenizer, LH_BOS);
    at = put(at, frame.ids, text_at);
    at = put_hay(at, w, from, before);
    at = put(at, sentence.ids, sentence.n);
    at = put_hay(at, w, from + before, hay - before);
    at = put(at, frame.ids + text_at, frame.n - text_at);
    r->n_ids = at - r->ids;
    st = lh_request_check(c, r, "--lengths");
out:
    free(frame.ids);
    free(sentence.ids);
    return st;
}

static lh_status add_result(const lh_cli *c, needle *w, const trial *t, const lh_request *r,
                            const lh_run *run, int found)
{
    if (c->rank.rank > 0)
        return LH_OK;
    json_t *one = json_pack("{s:I,s:I,s:s,s:s,s:s%,s:b,s:f,s:f}", "length", (json_int_t)t->length,
                            "depth", (json_int_t)t->depth, "name", t->name, "number", t->number,
                            "answer", r->text.n ? r->text.bytes : "", r->text.n, "found", found,
                            "prefill_tokens_per_s", lh_rate(run->prefill_tokens, run->prefill_s),
                            "decode_tokens_per_s", lh_rate(run->decode_tokens, run->decode_s));
    LH_REQUIRE(json_array_append_new(w->results, one) == 0, LH_ERR_NOMEM,
               "needle: results: out of memory");
    return LH_OK;
}

static lh_status run_trial(lh_cli *c, needle *w, trial *t, int *found)
{
    lh_request r = {.max_tokens = ANSWER_TOKENS, .draw = LH_DRAW_GREEDY};
    lh_run run = {0};
    lh_status st = lh_job_agree(c->job, make_prompt(c, w, t, &r));

    LH_TRY_OUT(st);
    LH_TRY_OUT(lh_run_requests(c, &run, &r, 1, w->context));
    int hit = r.text.n > 0 && strstr(r.text.bytes, t->number) != NULL;
    *found += hit;
    w->prefill_tokens += run.prefill_tokens;
    w->prefill_s += run.prefill_s;
    w->decode_tokens += run.decode_tokens;
    w->decode_s += run.decode_s;
    st = add_result(c, w, t, &r, &run, hit);
out:
    lh_request_free(&r);
    return st;
}

static lh_status print_head(const lh_cli *c, const needle *w)
{
    LH_TRY(lh_cli_printf(c, "%-8s", "length"));
    for (int d = 0; d < w->depths->n_items; d++)
        LH_TRY(lh_cli_printf(c, " %4lld%%", (long long)w->depths->items.sizes[d]));
    return lh_cli_printf(c, " %7s %15s %15s\n", "recall", "prefill tok/s", "decode tok/s");
}

static lh_status print_row(const lh_cli *c, const needle *w, int l)
{
    const int *found = w->found + l * w->depths->n_items;
    int sum = 0;

    LH_TRY(lh_cli_printf(c, "%-8s", lh_cli_length(w->lengths->items.sizes[l])));
    for (int d = 0; d < w->depths->n_items; d++) {
        LH_TRY(lh_cli_printf(c, " %4.0f%%", 100.0 * found[d] / w->trials));
        sum += found[d];
    }
    return lh_cli_printf(
        c, " %6.0f%% %15.1f %15.1f\n", 100.0 * sum / (w->trials * w->depths->n_items),
        lh_rate(w->prefill_tokens, w->prefill_s), lh_rate(w->decode_tokens, w->decode_s));
}

static lh_status run_length(lh_cli *c, needle *w, int l)
{
    w->prefill_tokens = w->decode_tokens = 0;
    w->prefill_s = w->decode_s = 0;
    for (int d = 0; d < w->depths->n_items; d++)
        for (int i = 0; i < w->trials; i++) {
            trial t = make_trial(c, w->lengths->items.sizes[l], w->depths->items.sizes[d], i);
            LH_TRY(run_trial(c, w, &t, &w->found[l * w->depths->n_items + d]));
        }
    return lh_cli_json_only(c) ? LH_OK : print_row(c, w, l);
}

static lh_status run_all(lh_cli *c, needle *w)
{
    const char *svg = lh_opt_text(c->opts, LH_OPT_SVG);
    int64_t longest = 0;

    LH_TRY(lh_needle_haystack(c, &w->hay, &w->n_hay));
    for (int l = 0; l < w->lengths->n_items; l++)
        longest = lh_max64(longest, w->lengths->items.sizes[l]);
    w->context = lh_cli_context(c, longest + ANSWER_TOKENS);
    LH_TRY(lh_cli_open_engine(c, w->context, 1));
    if (!lh_cli_json_only(c))
        LH_TRY(print_head(c, w));
    for (int l = 0; l < w->lengths->n_items; l++)
        LH_TRY(run_length(c, w, l));
    LH_TRY(lh_cli_report(c, NULL, NULL));
    if (svg && c->rank.rank == 0) {
        lh_needle_grid grid = {w->lengths->items.sizes,
                               w->depths->items.sizes,
                               w->lengths->n_items,
                               w->depths->n_items,
                               w->trials,
                               w->found};
        LH_TRY(lh_needle_svg(svg, &grid));
    }
    return lh_cli_write_json(c, json_incref(w->results));
}

lh_status lh_cli_needle(lh_cli *c)
{
    needle w = {.lengths = &c->opts->values[LH_OPT_LENGTHS],
                .depths = &c->opts->values[LH_OPT_DEPTHS],
                .trials = (int)lh_opt_number(c->opts, LH_OPT_TRIALS)};
    lh_status st = LH_OK;

    LH_TRY(lh_cli_check_outputs(c));
    LH_TRY(lh_cli_open_model(c));
    w.results = json_array();
    w.found = calloc((size_t)(w.lengths->n_items * w.depths->n_items), sizeof *w.found);
    if (!w.results || !w.found)
        st = LH_FAIL(LH_ERR_NOMEM, "needle: results: out of memory");
    LH_TRY_OUT(lh_job_agree(c->job, st));
    st = run_all(c, &w);
out:
    free(w.hay);
    free(w.found);
    json_decref(w.results);
    return st;
}
