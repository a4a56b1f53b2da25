/*
 * One token on all ranks, and the logits: every output element is computed whole by one rank, then
 * gathered.
 */
#include "base/mem.h"
#include "runtime/engine_internal.h"

lh_status lh_gather_parts(lh_engine *e, void *y, int64_t n, size_t unit_bytes)
{
    size_t *bytes = e->host.recv_bytes, *offset = e->host.recv_offset;

    for (int r = 0; r < e->comm->size; r++) {
        lh_range part = lh_split(n, r, e->comm->size);
        bytes[r] = (size_t)lh_range_size(part) * unit_bytes;
        offset[r] = (size_t)part.begin * unit_bytes;
    }
    return lh_comm_allgatherv(e->comm, (char *)y + offset[e->comm->rank], y, bytes, offset, e->s);
}

lh_status lh_logits(lh_engine *e, const void *x, int64_t n, int owner, float *out)
{
    lh_workspace *w = &e->ws;
    int64_t d = e->d.d_model, own = lh_range_size(e->g.vocab);

    if (x)
        LH_TRY(e->k->rmsnorm(e->s, &(lh_rmsnorm_args){.y = w->last,
                                                      .x = x,
                                                      .w = e->w->final_norm,
                                                      .n_rows = n,
                                                      .d = d,
                                                      .eps = e->d.norm_eps}));
    if (owner >= 0)
        LH_TRY(lh_comm_bcast(e->comm, w->last, (size_t)(n * d) * e->g.act_bytes, owner, e->s));
    if (own > 0)
        LH_TRY(e->k->linear(e->s, &(lh_linear_args){.y = w->logits_part,
                                                    .ldy = own,
                                                    .x = w->last,
                                                    .ldx = d,
                                                    .w = e->w->head + e->g.vocab.begin * d,
                                                    .n_rows = n,
                                                    .n_in = d,
                                                    .n_out = own,
                                                    .f32_out = 1,
                                                    .tiles = {(int)n, e->host.unit_start}}));
    for (int64_t i = 0; i < n; i++) {
        LH_TRY(e->k->device->copy(e->s, w->logits + e->g.vocab.begin, w->logits_part + i * own,
                                  (size_t)own * sizeof(float)));
        LH_TRY(lh_gather_parts(e, w->logits, e->d.n_vocab, sizeof(float)));
        LH_TRY(e->k->device->download(e->s, out + i * e->d.n_vocab, w->logits,
                                      (size_t)e->d.n_vocab * sizeof(float)));
        LH_TRY(lh_comm_wait(e->comm, e->s)); /* `logits` is free for the next row */
    }
    return LH_OK;
}

/* Everything of a step between its input and its logits: the same calls for every token of a
 * session. */
static lh_status run_step(lh_engine *e, lh_session *s)
{
    int kda = 0, mla = 0;

    lh_enter(e, LH_PHASE_EMBED, -1);
    LH_TRY(e->k->embed(e->s, &(lh_embed_args){.out = e->ws.x,
                                              .ids = &e->ws.input->id,
                                              .table = e->w->embed,
                                              .n_rows = 1,
                                              .d = e->d.d_model,
                                              .n_vocab = e->d.n_vocab}));
    for (int l = 0; l < e->d.n_layers; l++) {
        if (e->d.attn[l] == LH_ATTN_KDA)
            LH_TRY(lh_kda_decode(e, s, l, kda++));
        else
            LH_TRY(lh_mla_decode(e, s, l, mla++));
        LH_TRY(lh_ffn_decode(e, l));
    }
    return LH_OK;
}

/* The first step of a session's slot runs as it is, which connects whatever connects at first use.
 */
static lh_status record_step(lh_engine *e, lh_session *s, lh_recording *r)
{
    LH_TRY(e->k->device->record_begin(e->s));
    lh_status st = run_step(e, s);
    lh_status ended = e->k->device->record_end(e->s, &r->steps);
    return st != LH_OK ? st : ended;
}

lh_status lh_decode(lh_engine *e, const lh_step_item *item)
{
    lh_session *s = item->session;
    lh_recording *r = &e->recordings[s->slot];
    const lh_step_input input = {s->position, s->position + 1, item->tokens[0]};

    lh_enter(e, LH_PHASE_EMBED, -1);
    LH_TRY(e->k->device->upload(e->s, e->ws.input, &input, sizeof input));
    if (r->ran && e->k->device->record_begin && !r->steps)
        LH_TRY(record_step(e, s, r));
    if (r->steps) {
        lh_enter(e, LH_PHASE_STEP, -1);
        LH_TRY(e->k->device->replay(e->s, r->steps));
    } else {
        LH_TRY(run_step(e, s));
    }
    r->ran = 1;
    s->position++;
    if (item->n_logits == 0)
        return lh_comm_wait(e->comm, e->s);
    lh_enter(e, LH_PHASE_HEAD, -1);
    LH_TRY(lh_logits(e, e->ws.x, 1, -1, item->logits));
    return lh_logits_done(e, item, s->position - 1, 0, 1);
}
