/*
 * One token of each of some sessions on all ranks: every output element is computed whole by one
 * rank, then gathered. Rows are tiles of their own, so a session's bits do not depend on those
 * beside it.
 */
#include <string.h>

#include "base/mem.h"
#include "runtime/engine_internal.h"

_Static_assert(LH_MAX_BATCH <= LH_CHUNK, "the residual stream has rows for a batch");

/* ------------------------------------------------------------------- parts */

static int in_place(const lh_engine *e, const lh_parts *p)
{
    return e->comm->size == 1 || p->n == 1;
}

void *lh_own_part(const lh_engine *e, const lh_parts *p)
{
    int64_t begin = lh_split(p->units, e->comm->rank, e->comm->size).begin;
    char *at = in_place(e, p) ? p->y : p->parts;

    return at + (size_t)(p->n * begin) * p->unit_bytes;
}

lh_status lh_gather_parts(lh_engine *e, const lh_parts *p)
{
    size_t *bytes = e->host.recv_bytes, *offset = e->host.recv_offset;
    size_t row_bytes = (size_t)p->units * p->unit_bytes;

    for (int r = 0; r < e->comm->size; r++) {
        lh_range part = lh_split(p->units, r, e->comm->size);
        bytes[r] = (size_t)(p->n * lh_range_size(part)) * p->unit_bytes;
        offset[r] = (size_t)(p->n * part.begin) * p->unit_bytes;
    }
    LH_TRY(lh_comm_allgatherv(e->comm, lh_own_part(e, p), in_place(e, p) ? p->y : p->parts, bytes,
                              offset, e->s));
    for (int r = 0; r < e->comm->size && !in_place(e, p); r++) {
        lh_range part = lh_split(p->units, r, e->comm->size);
        size_t part_bytes = (size_t)lh_range_size(part) * p->unit_bytes;
        LH_TRY(e->k->device->copy_rows(e->s, (char *)p->y + (size_t)part.begin * p->unit_bytes,
                                       row_bytes, (const char *)p->parts + offset[r], part_bytes,
                                       part_bytes, p->n));
    }
    return LH_OK;
}

lh_status lh_step_output(lh_engine *e, const void *y, const lh_bf16 *w, int64_t width)
{
    int64_t d = e->d.d_model, first = e->g.d_model.begin, own = lh_range_size(e->g.d_model);
    size_t act = e->g.act_bytes;
    lh_parts x = {e->ws.x, e->ws.step.parts, e->batch, d, act};
    void *part = lh_own_part(e, &x);

    if (!in_place(e, &x))
        LH_TRY(e->k->device->copy_rows(e->s, part, (size_t)own * act, lh_act(e, e->ws.x, first),
                                       (size_t)d * act, (size_t)own * act, x.n));
    LH_TRY(lh_step_linear(e, part, own, y, width, w + first * width, own, 1));
    return lh_gather_parts(e, &x);
}

/* -------------------------------------------------------------------- step */

/* Everything of a step between its input and its logits: the same calls for any tokens of so many
 * sessions. */
static lh_status run_step(lh_engine *e)
{
    int kda = 0, mla = 0;

    lh_enter(e, LH_PHASE_EMBED, -1);
    LH_TRY(e->k->embed(e->s, &(lh_embed_args){.out = e->ws.x,
                                              .ids = e->ws.input->id,
                                              .table = e->w->embed,
                                              .n_rows = e->batch,
                                              .d = e->d.d_model,
                                              .n_vocab = e->d.n_vocab}));
    for (int l = 0; l < e->d.n_layers; l++) {
        if (e->d.attn[l] == LH_ATTN_KDA)
            LH_TRY(lh_kda_decode(e, l, kda++));
        else
            LH_TRY(lh_mla_decode(e, l, mla++));
        LH_TRY(lh_ffn_decode(e, l));
    }
    return LH_OK;
}

/* 1: the device has the pointers of these sessions already. Otherwise notes that it gets them. */
static int has_pointers(lh_engine *e, const lh_step_item *const *items)
{
    int same = e->n_step_slots == e->batch;

    for (int i = 0; i < e->batch; i++) {
        same = same && e->step_slots[i] == items[i]->session->slot;
        e->step_slots[i] = items[i]->session->slot;
    }
    e->n_step_slots = e->batch;
    return same;
}

/* Where the states and caches of the step's sessions lie, for the device to read. */
static lh_status upload_pointers(lh_engine *e, const lh_step_item *const *items)
{
    int n_kda = e->d.n_kda_layers, n_mla = e->d.n_mla_layers, batch = e->g.batch;

    if (has_pointers(e, items))
        return LH_OK;
    for (int i = 0; i < e->batch; i++) {
        const lh_session *s = items[i]->session;
        void **to = e->host.step_at + i; /* in the order of lh_step_kind */
        for (int l = 0; l < n_kda; l++) {
            to[l * batch] = lh_state_at(s, l);
            to[(n_kda + l) * batch] = lh_conv_at(s, l);
        }
        for (int l = 0; l < n_mla; l++)
            to[(2 * n_kda + l) * batch] = lh_latent_at(s, l);
    }
    return e->k->device->upload(e->s, e->ws.step_at, e->host.step_at,
                                (size_t)(2 * n_kda + n_mla) * (size_t)batch * sizeof(void *));
}

static lh_status begin_step(lh_engine *e, const lh_step_item *const *items, int n)
{
    lh_step_input input = {0};
    int64_t n_keys = 0;

    e->batch = n;
    for (int i = 0; i < n; i++) {
        input.row[i] = items[i]->session->position;
        input.n_keys[i] = input.row[i] + 1;
        input.id[i] = items[i]->tokens[0];
        n_keys += input.n_keys[i];
    }
    e->shares_keys = lh_step_shares_keys(&e->g, n, n_keys);
    LH_TRY(upload_pointers(e, items));
    return e->k->device->upload(e->s, e->ws.input, &input, sizeof input);
}

/* The first step runs as it is, which connects whatever connects at first use. */
static lh_status record_step(lh_engine *e, lh_recording *r)
{
    LH_TRY(e->k->device->record_begin(e->s));
    e->clock.is_recording = 1;
    lh_status st = run_step(e);
    lh_status ended = e->k->device->record_end(e->s, &r->steps);
    e->clock.is_recording = 0;
    return st != LH_OK ? st : ended;
}

/* What the items want of the head, in one go. */
static lh_status step_head(lh_engine *e, const lh_step_item *const *items, int n)
{
    lh_want want[LH_MAX_BATCH];
    int wanted = 0;

    for (int i = 0; i < n; i++) {
        const lh_step_item *item = items[i];
        want[i] = (lh_want){item->n_logits ? item->logits : NULL, item->draw, item->token};
        wanted |= want[i].logits || want[i].draw;
    }
    if (!wanted)
        return lh_comm_wait(e->comm, e->s);
    LH_TRY(lh_head(e, e->ws.x, n, -1, want));
    for (int i = 0; i < n; i++)
        if (items[i]->n_logits)
            LH_TRY(lh_logits_done(e, items[i], items[i]->session->position - 1, 0, 1));
    return LH_OK;
}

lh_status lh_decode(lh_engine *e, const lh_step_item *const *items, int n)
{
    lh_enter(e, LH_PHASE_EMBED, -1);
    LH_TRY(begin_step(e, items, n));
    lh_recording *r = &e->recordings[e->shares_keys][n];
    if (r->ran && e->k->device->record_begin && !r->steps)
        LH_TRY(record_step(e, r));
    if (r->steps) {
        lh_enter(e, LH_PHASE_STEP, -1);
        LH_TRY(e->k->device->replay(e->s, r->steps));
    } else {
        LH_TRY(run_step(e));
    }
    r->ran = 1;
    for (int i = 0; i < n; i++)
        items[i]->session->position++;
    return step_head(e, items, n);
}
