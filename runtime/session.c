/*
 * Sessions: slots of the arenas, and the step that advances them.
 */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "runtime/engine_internal.h"

static lh_status take_slot(lh_session **out, lh_engine *e, int64_t context)
{
    const lh_geometry *g = &e->g;
    int slot = 0;

    LH_REQUIRE(context >= 1 && context <= g->context, LH_ERR_DATA,
               "a session of %lld tokens: the engine was opened for at most %lld",
               (long long)context, (long long)g->context);
    while (slot < g->max_sessions && e->slot_taken[slot])
        slot++;
    LH_REQUIRE(slot < g->max_sessions, LH_ERR_NOMEM, "all %d sessions of the engine are in use",
               g->max_sessions);
    lh_session *s = calloc(1, sizeof *s);
    LH_REQUIRE(s, LH_ERR_NOMEM, "session");
    s->engine = e;
    s->slot = slot;
    s->context = context;
    s->at.kda = (float *)(void *)((char *)e->arena_kda + (size_t)slot * lh_slot_kda_bytes(g));
    s->at.conv = (char *)e->arena_conv + (size_t)slot * lh_slot_conv_bytes(g);
    s->at.latent = (char *)e->arena_latent + (size_t)slot * lh_slot_latent_bytes(g);
    e->slot_taken[slot] = 1;
    *out = s;
    return LH_OK;
}

lh_status lh_session_create(lh_session **out, lh_engine *e, int64_t context)
{
    lh_session *s = NULL;
    lh_status st = take_slot(&s, e, context);

    if (st == LH_OK)
        st = lh_session_reset(s);
    st = lh_engine_agree(e, st);
    if (st != LH_OK) {
        lh_session_destroy(s);
        return st;
    }
    *out = s;
    return LH_OK;
}

void lh_session_destroy(lh_session *s)
{
    if (!s)
        return;
    s->engine->slot_taken[s->slot] = 0;
    free(s);
}

/* The states before the first token are zero; latents need no clearing, nothing reads past the
 * position. */
lh_status lh_session_reset(lh_session *s)
{
    lh_engine *e = s->engine;

    s->position = 0;
    LH_TRY(e->k->device->zero(e->s, s->at.kda, lh_slot_kda_bytes(&e->g)));
    return e->k->device->zero(e->s, s->at.conv, lh_slot_conv_bytes(&e->g));
}

int64_t lh_session_position(const lh_session *s)
{
    return s->position;
}

int64_t lh_session_context(const lh_session *s)
{
    return s->context;
}

static lh_status check_item(const lh_engine *e, const lh_step_item *item)
{
    const lh_session *s = item->session;

    LH_REQUIRE(s && s->engine == e, LH_ERR_INVALID, "a session of another engine");
    LH_REQUIRE(item->n_tokens >= 1, LH_ERR_DATA, "a turn of %lld tokens: expected at least 1",
               (long long)item->n_tokens);
    LH_REQUIRE(item->n_tokens <= s->context - s->position, LH_ERR_DATA,
               "%lld tokens after %lld: the context has room for %lld", (long long)item->n_tokens,
               (long long)s->position, (long long)s->context);
    LH_REQUIRE(item->n_logits >= 0 && item->n_logits <= item->n_tokens &&
                   (item->n_logits == 0 || item->logits),
               LH_ERR_INVALID, "logits of %lld positions of %lld tokens", (long long)item->n_logits,
               (long long)item->n_tokens);
    LH_REQUIRE(!item->draw || item->token, LH_ERR_INVALID, "a draw without room for its token");
    if (item->draw)
        LH_TRY(lh_sampling_check(&item->draw->how));
    for (int64_t i = 0; i < item->n_tokens; i++)
        LH_REQUIRE(item->tokens[i] >= 0 && item->tokens[i] < e->d.n_vocab, LH_ERR_DATA,
                   "token %lld is %d: the vocabulary has ids 0 to %lld", (long long)i,
                   item->tokens[i], (long long)e->d.n_vocab - 1);
    return LH_OK;
}

/* bad: known to be without looking */
static lh_status check_finite(const lh_engine *e, int bad, const float *logits, int64_t n_rows,
                              int64_t position)
{
    size_t n = (size_t)n_rows * (size_t)e->d.n_vocab;

    for (size_t i = 0; i < n;
         i++) /* the exponent of infinities and NaN is all ones: x - x is not 0 */
        bad |= !(logits[i] - logits[i] == 0.0f);
    LH_REQUIRE(
        !bad || e->allow_nonfinite, LH_ERR_DATA,
        "logits that are not finite after %lld tokens: the weights or the input are out of range",
        (long long)position);
    return LH_OK;
}

/* What is wrong on all ranks alike is said by one of them. */
static lh_status alike(lh_engine *e, lh_status st)
{
    return st == LH_OK ? LH_OK : lh_comm_agree(e->comm, st);
}

lh_status lh_logits_done(lh_engine *e, const lh_step_item *item, int64_t turn, int64_t first,
                         int64_t n)
{
    if (!e->take)
        return LH_OK;
    LH_TRY(alike(e, check_finite(e, 0, item->logits, n, turn + first + n)));
    return e->take(e->take_user, first, n, item->logits);
}

static lh_status check_items(const lh_engine *e, const lh_step_item *items, int n_items)
{
    for (int i = 0; i < n_items; i++) {
        LH_TRY(check_item(e, &items[i]));
        for (int j = 0; j < i; j++)
            LH_REQUIRE(items[i].session != items[j].session, LH_ERR_INVALID,
                       "a session occurs twice in one step");
    }
    return LH_OK;
}

lh_status lh_step(lh_engine *e, const lh_step_item *items, int n_items)
{
    const lh_step_item *single[LH_MAX_BATCH];
    int n = 0;

    lh_comm_at(e->comm, "step", -1);
    LH_TRY(alike(e, check_items(e, items, n_items)));
    for (int i = 0; i < n_items; i++) {
        if (items[i].n_tokens > 1) {
            LH_TRY(lh_prefill(e, &items[i]));
            continue;
        }
        single[n++] = &items[i];
        if (n == e->g.batch) {
            LH_TRY(lh_decode(e, single, n));
            n = 0;
        }
    }
    if (n > 0)
        LH_TRY(lh_decode(e, single, n));
    for (int i = 0; i < n_items; i++) {
        const lh_step_item *item = &items[i];
        int bad = item->draw && *item->token == LH_SAMPLE_NOT_FINITE;
        LH_TRY(alike(e, check_finite(e, bad, item->logits, e->take ? 0 : item->n_logits,
                                     item->session->position)));
    }
    lh_enter(e, LH_PHASE_NONE, -1);
    return LH_OK;
}

lh_status lh_step_groups(lh_engine *e, const lh_step_item *item, lh_take_logits take, void *user)
{
    e->take = take;
    e->take_user = user;
    lh_status st = lh_step(e, item, 1);
    e->take = NULL;
    return st;
}
