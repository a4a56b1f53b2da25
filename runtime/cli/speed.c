#include "runtime/cli/speed.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/synth.h"

#define STEPS 16 /* tokens of each sequence in one measurement of decoding */
/* Root mean square, where bits may differ: bf16 sums in other orders, and experts whose scores
 * nearly tie. */
#define MAX_DIFFERENCE 0.25
#define LH_TEXT_(x) #x
#define LH_TEXT(x) LH_TEXT_(x)

/* ------------------------------------------------------------------- steps */

static lh_status reset(lh_speed *s)
{
    for (int i = 0; i < s->batch; i++)
        LH_TRY(lh_session_reset(s->sessions[i]));
    return LH_OK;
}

/* Tokens [begin, end) of every sequence, or of the last one alone. Each draws a token, as in use,
 * though the tokens fed are known; with wants_logits the last one's logits come along. */
static lh_status step(lh_speed *s, int64_t begin, int64_t end, int only_last, int wants_logits)
{
    const lh_draw greedy = LH_DRAW_GREEDY;
    int last = s->batch - 1, first = only_last ? last : 0;

    for (int i = first; i <= last; i++)
        s->items[i] = (lh_step_item){.session = s->sessions[i],
                                     .tokens = s->tokens + i * s->room + begin,
                                     .n_tokens = end - begin,
                                     .n_logits = wants_logits && i == last,
                                     .logits = s->logits,
                                     .draw = &greedy,
                                     .token = &s->drawn[i]};
    return lh_step(s->c->engine, s->items + first, s->batch - first);
}

const float *lh_speed_logits(const lh_speed *s)
{
    return s->logits;
}

/* The last logits with r->want, which are of `other`. */
static lh_status compare_with(lh_speed *s, const lh_speed_row *r, int exact, const char *other)
{
    const float *got = lh_speed_logits(s);
    double all = 0, off = 0;

    if (memcmp(got, r->want, (size_t)s->n_vocab * sizeof *got) == 0)
        return LH_OK;
    for (int64_t i = 0; i < s->n_vocab; i++) {
        double d = (double)got[i] - (double)r->want[i];
        off += d * d;
        all += (double)r->want[i] * (double)r->want[i];
    }
    off = all > 0 ? sqrt(off / all) : 1;
    s->worst = fmax(s->worst, off);
    LH_REQUIRE(!exact && off <= MAX_DIFFERENCE, LH_ERR_INTERNAL,
               "not valid: %s of %lld tokens: logits differ by %.3g of their size from those of "
               "%s, expected %s",
               r->is_decode ? "decoding after a context" : "prefill", (long long)r->length, off,
               other, exact ? "the same bits" : "at most " LH_TEXT(MAX_DIFFERENCE));
    return LH_OK;
}

/* A measured run: the same calls as its reference from the same caches, or other blocks. */
static lh_status compare(lh_speed *s, const lh_speed_row *r)
{
    return r->is_filled ? compare_with(s, r, 1, "a first run from the same filled caches")
                        : compare_with(s, r, s->exact, s->where);
}

/* Every session after `length` tokens, ready to decode. */
static lh_status begin_decode(lh_speed *s, const lh_speed_row *r)
{
    uint64_t seed = (uint64_t)lh_opt_number(s->c->opts, LH_OPT_SEED);

    if (!r->is_filled) {
        LH_TRY(reset(s));
        return step(s, 0, r->length, 0, 0);
    }
    for (int i = 0; i < s->batch; i++)
        LH_TRY(lh_session_fill(s->sessions[i], r->length, seed + (uint64_t)i));
    return LH_OK;
}

/* Makes the reference of what the sessions have come to. One that is known, of other ranks, must
 * be like it; runs from filled caches are then held against their own. */
static lh_status take_reference(lh_speed *s, lh_speed_row *r)
{
    const char *other = r->is_filled ? "the same filled caches on fewer ranks" : s->where;
    lh_status st = r->known ? compare_with(s, r, s->exact, other) : LH_OK;

    if (!r->known || r->is_filled)
        memcpy(r->want, lh_speed_logits(s), (size_t)s->n_vocab * sizeof *r->want);
    r->known = 1;
    return lh_engine_agree(s->c->engine, st);
}

/* The same calls as will be measured. */
static lh_status run_filled_reference(lh_speed *s, lh_speed_row *r, int64_t end)
{
    LH_TRY(begin_decode(s, r));
    for (int64_t i = r->length; i < end; i++)
        LH_TRY(step(s, i, i + 1, 0, i + 1 == end));
    return take_reference(s, r);
}

/* The last sequence: the row's length in two turns, then one by one up to `end`. A prompt of one
 * segment cannot be cut. */
static lh_status run_reference(lh_speed *s, lh_speed_row *r, int64_t end)
{
    int64_t segment = lh_engine_segment(s->c->engine), cut = r->length / 2 / segment * segment;

    if (cut == 0 && r->length >= segment + 2)
        cut = segment;
    LH_TRY(reset(s));
    if (cut > 0)
        LH_TRY(step(s, 0, cut, 1, 0));
    LH_TRY(step(s, cut, r->length, 1, r->length == end));
    for (int64_t i = r->length; i < end; i++)
        LH_TRY(step(s, i, i + 1, 1, i + 1 == end));
    return take_reference(s, r);
}

/* ------------------------------------------------------------ measurements */

static void statistics(const lh_speed *s, lh_speed_row *r, double per_sample)
{
    double sum = 0, squares = 0;

    for (int i = 0; i < s->repeat; i++)
        sum += s->seconds[i] / per_sample;
    r->mean_s = sum / s->repeat;
    for (int i = 0; i < s->repeat; i++)
        squares += pow(s->seconds[i] / per_sample - r->mean_s, 2);
    r->sd_s = s->repeat > 1 ? sqrt(squares / (s->repeat - 1)) : 0;
}

static void begin_phases(lh_speed *s)
{
    if (s->phases_of_a_row)
        lh_engine_phases_reset(s->c->engine);
}

static lh_status measure_prefill(lh_speed *s, lh_speed_row *r)
{
    LH_TRY(run_reference(s, r, r->length));
    begin_phases(s);
    for (int i = 0; i < s->repeat; i++) {
        LH_TRY(reset(s));
        double begin = lh_log_seconds();
        LH_TRY(step(s, 0, r->length, 0, 1));
        s->seconds[i] = lh_log_seconds() - begin;
        LH_TRY(lh_engine_agree(s->c->engine, compare(s, r)));
    }
    r->tokens = (double)r->length * s->batch;
    statistics(s, r, 1);
    return LH_OK;
}

static lh_status measure_decode(lh_speed *s, lh_speed_row *r)
{
    int64_t at = r->length, last = lh_speed_room(s, 1, at);

    LH_TRY(r->is_filled ? run_filled_reference(s, r, last) : run_reference(s, r, last));
    LH_TRY(begin_decode(s, r));
    begin_phases(s);
    for (int i = 0; i < s->repeat; i++) {
        double begin = lh_log_seconds();
        for (int64_t end = at + STEPS; at < end; at++)
            LH_TRY(step(s, at, at + 1, 0, at + 1 == last));
        s->seconds[i] = lh_log_seconds() - begin;
    }
    LH_TRY(lh_engine_agree(s->c->engine, compare(s, r)));
    r->tokens = s->batch;
    statistics(s, r, STEPS);
    return LH_OK;
}

lh_status lh_speed_measure(lh_speed *s, lh_speed_row *r)
{
    return r->is_decode ? measure_decode(s, r) : measure_prefill(s, r);
}

/* ------------------------------------------------------------------- setup */

int64_t lh_speed_room(const lh_speed *s, int is_decode, int64_t length)
{
    return length + (is_decode ? (int64_t)STEPS * s->repeat : 0);
}

lh_status lh_speed_allocate(lh_speed *s)
{
    size_t batch = (size_t)s->batch, vocab = (size_t)s->c->model.n_vocab;
    int64_t most = lh_cli_context(s->c, INT64_MAX);
    uint64_t key = lh_synth_key((uint64_t)lh_opt_number(s->c->opts, LH_OPT_SEED), "bench tokens");

    s->n_vocab = s->c->model.n_vocab;
    LH_REQUIRE(s->room <= most, LH_ERR_USAGE,
               "%s: %lld tokens, expected at most the context's %lld", s->flags, (long long)s->room,
               (long long)most);
    LH_TRY(lh_alloc((void **)&s->sessions, batch * sizeof *s->sessions, "list of sessions"));
    LH_TRY(lh_alloc((void **)&s->items, batch * sizeof *s->items, "list of sessions"));
    LH_TRY(lh_alloc((void **)&s->tokens, batch * (size_t)s->room * sizeof *s->tokens, "tokens"));
    LH_TRY(lh_alloc((void **)&s->logits, vocab * sizeof *s->logits, "logits"));
    LH_TRY(lh_alloc((void **)&s->drawn, batch * sizeof *s->drawn, "tokens"));
    LH_TRY(lh_alloc((void **)&s->seconds, (size_t)s->repeat * sizeof *s->seconds, "times"));
    for (size_t i = 0; i < batch * (size_t)s->room; i++)
        s->tokens[i] = (int32_t)(lh_synth_bits(key, i) % vocab);
    return LH_OK;
}

lh_status lh_speed_open(lh_speed *s, int64_t context)
{
    LH_TRY(lh_cli_open_engine(s->c, context, s->batch));
    s->exact = strcmp(lh_engine_backend(s->c->engine), "cpu") == 0 ||
               lh_opt_number(s->c->opts, LH_OPT_DETERMINISTIC) != 0;
    for (int i = 0; i < s->batch; i++)
        LH_TRY(lh_session_create(&s->sessions[i], s->c->engine, context));
    return LH_OK;
}

static void destroy_sessions(lh_speed *s)
{
    for (int i = 0; s->sessions && i < s->batch; i++) {
        lh_session_destroy(s->sessions[i]);
        s->sessions[i] = NULL;
    }
}

void lh_speed_close(lh_speed *s)
{
    destroy_sessions(s);
    lh_engine_close(s->c->engine);
    s->c->engine = NULL;
}

void lh_speed_free(lh_speed *s)
{
    destroy_sessions(s);
    free(s->sessions);
    free(s->items);
    free(s->tokens);
    free(s->logits);
    free(s->drawn);
    free(s->seconds);
}

const char *lh_speed_validity(const lh_speed *s)
{
    static char text[64];

    if (s->worst == 0)
        return "the same bits";
    (void)snprintf(text, sizeof text, "differing by at most %.2g of their size", s->worst);
    return text;
}
