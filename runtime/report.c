/*
 * Where the time goes: one clock per rank that is always in exactly one phase, and the table over
 * ranks at the end.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "runtime/engine_internal.h"

static const char *const names[LH_N_PHASES] = {
    [LH_PHASE_LOAD] = "load",
    [LH_PHASE_EMBED] = "embed",
    [LH_PHASE_KDA_PROJECTIONS] = "KDA projections",
    [LH_PHASE_CONVOLUTION] = "convolution",
    [LH_PHASE_KDA] = "KDA",
    [LH_PHASE_STATE_PASSING] = "state passing",
    [LH_PHASE_MLA_PROJECTIONS] = "MLA projections",
    [LH_PHASE_ATTENTION] = "attention",
    [LH_PHASE_LATENT_EXCHANGE] = "latent exchange",
    [LH_PHASE_ROUTE] = "route",
    [LH_PHASE_DISPATCH] = "dispatch",
    [LH_PHASE_EXPERTS] = "experts",
    [LH_PHASE_COMBINE] = "combine",
    [LH_PHASE_HEAD] = "head",
    [LH_PHASE_SAMPLE] = "sample",
    [LH_PHASE_STEP] = "decode",
};

/* Adds up the phases that began before mark `end`, which is set. A device that fails says so where
 * its work is waited for. */
static void settle(lh_engine *e, int64_t end)
{
    lh_phase_clock *c = &e->clock;

    for (; c->n_settled < end; c->n_settled++) {
        int at = (int)(c->n_settled % LH_MARK_RING), next = (at + 1) % LH_MARK_RING;
        double seconds;
        if (c->begun[at] < LH_N_PHASES && e->k->device->between(e->s, at, next, &seconds) == LH_OK)
            c->of[c->begun[at]].seconds += seconds;
    }
}

/* Seconds by marks in the queue, where there are any. */
static void note_mark(lh_engine *e, lh_phase_id phase)
{
    lh_phase_clock *c = &e->clock;
    int at = (int)(c->n_marks % LH_MARK_RING);

    if (c->is_recording)
        return;
    if (c->n_marks - c->n_settled == LH_MARK_RING)
        settle(e, c->n_marks - LH_MARK_RING / 2);
    if (e->k->device->mark(e->s, at) != LH_OK)
        return;
    c->begun[at] = phase;
    c->n_marks++;
}

static int has_marks(const lh_engine *e)
{
    return e->s && e->k->device->mark;
}

void lh_enter(lh_engine *e, lh_phase_id phase, int layer)
{
    lh_phase_clock *c = &e->clock;
    double now = lh_log_seconds();

    if (c->now < LH_N_PHASES) {
        c->of[c->now].seconds += has_marks(e) ? 0 : now - c->since;
        c->of[c->now].bytes += e->comm->bytes_sent - c->bytes_since;
    }
    if (has_marks(e))
        note_mark(e, phase);
    c->now = phase;
    c->since = now;
    c->bytes_since = e->comm->bytes_sent;
    if (phase < LH_N_PHASES) {
        c->of[phase].calls++;
        lh_comm_at(e->comm, names[phase], layer);
    }
}

/* Ends the phase under way; all before are in the books then. */
static void close_books(lh_engine *e)
{
    lh_enter(e, LH_PHASE_NONE, -1);
    settle(e, e->clock.n_marks - 1);
}

void lh_engine_phases_reset(lh_engine *e)
{
    close_books(e);
    memset(e->clock.of, 0, sizeof e->clock.of);
}

lh_status lh_engine_phases(lh_engine *e, lh_phase *out, int max, int *n)
{
    lh_status st = LH_OK;
    size_t ranks = (size_t)e->comm->size;
    int count = 0;

    close_books(e);
    lh_comm_at(e->comm, "report", -1);
    lh_phase_total(*all)[LH_N_PHASES] = malloc(ranks * sizeof *all);
    LH_TRY(
        lh_comm_agree(e->comm, all ? LH_OK : LH_FAIL(LH_ERR_NOMEM, "phases of %zu ranks", ranks)));
    LH_TRY_OUT(lh_comm_allgather(e->comm, e->clock.of, sizeof *all, all, NULL));
    for (int i = 0; i < LH_N_PHASES && count < max; i++) {
        lh_phase p = {.name = names[i], .min_s = all[0][i].seconds, .calls = all[0][i].calls};
        for (size_t r = 0; r < ranks; r++) {
            double s = all[r][i].seconds;
            p.min_s = s < p.min_s ? s : p.min_s;
            p.max_s = s > p.max_s ? s : p.max_s;
            p.mean_s += s / (double)ranks;
            p.bytes += all[r][i].bytes;
        }
        if (p.calls > 0 || p.max_s > 0)
            out[count++] = p;
    }
    *n = count;
out:
    free(all);
    return st;
}
