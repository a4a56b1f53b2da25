/*
 * The MLA layer: x += W_o attention(norm(x)). Every rank keeps the whole latent cache: 576 numbers
 * a token.
 *
 * Prefill: each rank computes the latent rows of its own tokens straight into the cache, the ranks
 * exchange them, and each attends for its own queries. Decode: the new row is computed by every
 * rank alike; the keys are shared out for all heads, or, where the backend cannot do that, the
 * heads for all keys.
 */
#include "base/mem.h"
#include "runtime/engine_internal.h"

static int64_t latent_width(const lh_engine *e)
{
    return e->d.d_latent + e->d.d_rope;
}

static void *cache(const lh_engine *e, const lh_session *s, int at)
{
    return lh_act(e, s->at.latent, at * e->g.latent_rows * latent_width(e));
}

/* Rows of the cache from rows of the projection: at `to`, or (one row) at row *row from there. */
static lh_status store_latent(lh_engine *e, void *to, const int64_t *row, const void *raw,
                              const lh_layer_weights *lw, int64_t n)
{
    return e->k->latent(e->s, &(lh_latent_args){.y = to,
                                                .x = raw,
                                                .w = lw->kv_norm,
                                                .row = row,
                                                .n_rows = n,
                                                .d_latent = e->d.d_latent,
                                                .d_rope = e->d.d_rope,
                                                .eps = e->d.latent_eps});
}

/* Rows of all runs to all ranks, in place: every rank's first run, then every rank's second. */
static lh_status exchange_latents(lh_engine *e, void *rows)
{
    const lh_block *b = &e->block;
    size_t *bytes = e->host.recv_bytes, *offset = e->host.recv_offset;
    size_t row_bytes = (size_t)latent_width(e) * e->g.act_bytes;

    for (int nth = 0; nth < 2; nth++) {
        for (int r = 0; r < e->comm->size; r++) {
            bytes[r] = offset[r] = 0;
            for (int i = 0, seen = 0; i < b->n_runs; i++) {
                const lh_run *run = &e->host.runs[i];
                if (run->rank != r || seen++ != nth)
                    continue;
                bytes[r] = (size_t)run->n_tokens * row_bytes;
                offset[r] = (size_t)(b->turn + run->token) * row_bytes;
            }
        }
        LH_TRY(lh_comm_allgatherv(e->comm, (char *)rows + offset[e->comm->rank], rows, bytes,
                                  offset, e->s));
    }
    return LH_OK;
}

lh_status lh_mla_prefill(lh_engine *e, int l, int at)
{
    const lh_layer_weights *lw = &e->w->layers[l];
    const lh_dims *d = &e->d;
    const lh_block *b = &e->block;
    lh_workspace *w = &e->ws;
    int64_t q_width = (int64_t)d->mla_heads * (d->d_nope + d->d_rope), width = latent_width(e);
    char *rows = cache(e, b->session, at);

    lh_enter(e, LH_PHASE_MLA_PROJECTIONS, l);
    LH_TRY(lh_rows_norm(e, lw->attn_norm, b->n_rows));
    LH_TRY(lh_rows_linear(e, w->mla.q, q_width, w->h, d->d_model, lw->mla_q, q_width, 0));
    LH_TRY(lh_rows_linear(e, w->mla.raw, width, w->h, d->d_model, lw->kv_a, width, 0));
    for (int i = 0; i < b->n_own; i++)
        LH_TRY(store_latent(e, lh_act(e, rows, b->run_position[i] * width), NULL,
                            lh_act(e, w->mla.raw, b->run_start[i] * width), lw,
                            b->run_start[i + 1] - b->run_start[i]));
    lh_enter(e, LH_PHASE_LATENT_EXCHANGE, l);
    LH_TRY(exchange_latents(e, rows));
    lh_enter(e, LH_PHASE_ATTENTION, l);
    LH_TRY(e->k->mla_prefill(e->s, &(lh_mla_prefill_args){.o = w->mla.o,
                                                          .q = w->mla.q,
                                                          .latent = rows,
                                                          .w_kvb = lw->kv_b,
                                                          .n_rows = b->n_rows,
                                                          .n_runs = b->n_own,
                                                          .run_start = b->run_start,
                                                          .run_position = b->run_position,
                                                          .tiles = b->tiles,
                                                          .n_heads = d->mla_heads,
                                                          .d_nope = d->d_nope,
                                                          .d_rope = d->d_rope,
                                                          .d_v = d->d_v,
                                                          .d_latent = d->d_latent,
                                                          .work = w->mla.work}));
    lh_enter(e, LH_PHASE_MLA_PROJECTIONS, l);
    return lh_rows_linear(e, w->x, d->d_model, w->mla.o, (int64_t)d->mla_heads * d->d_v, lw->o,
                          d->d_model, 1);
}

/* The ranks' ranges of keys, each for all heads; then every rank merges them alike. */
static lh_status attend_shared(lh_engine *e, lh_mla_decode_args *a, int l)
{
    int64_t n = lh_mla_ranges(*a->n_keys);
    lh_range own = lh_split(n, e->comm->rank, e->comm->size);

    a->first_range = (int)own.begin;
    a->n_ranges = (int)lh_range_size(own);
    LH_TRY(e->k->mla_attend(e->s, a));
    lh_enter(e, LH_PHASE_LATENT_EXCHANGE, l);
    LH_TRY(lh_gather_parts(e, a->partial, n,
                           (size_t)lh_mla_partial_size(a->n_heads, a->d_latent) * sizeof(float)));
    a->first_range = 0;
    a->n_ranges = (int)n;
    lh_enter(e, LH_PHASE_ATTENTION, l);
    return e->k->mla_merge(e->s, a);
}

/* The new token's attention, for all heads on every rank. */
static lh_status attend_step(lh_engine *e, lh_session *s, int l, int at)
{
    const lh_dims *d = &e->d;
    lh_workspace *w = &e->ws;
    lh_range heads = e->g.mla_heads;
    const void *const *latent = (const void *const *)w->latent_at + s->slot * d->n_mla_layers + at;
    lh_mla_decode_args a = {.o = lh_act(e, w->step.mla_o, heads.begin * d->d_v),
                            .q = w->step.mla_q,
                            .latent = latent,
                            .n_keys = &w->input->n_keys,
                            .max_keys = s->context,
                            .w_kvb = e->w->layers[l].kv_b +
                                     heads.begin * (d->d_nope + d->d_v) * d->d_latent,
                            .n_seq = 1,
                            .n_heads = (int)lh_range_size(heads),
                            .d_nope = d->d_nope,
                            .d_rope = d->d_rope,
                            .d_v = d->d_v,
                            .d_latent = d->d_latent,
                            .work = w->step.mla_work,
                            .partial = w->step.mla_partial};

    lh_enter(e, LH_PHASE_ATTENTION, l);
    if (e->g.shares_keys)
        return attend_shared(e, &a, l);
    if (a.n_heads > 0)
        LH_TRY(e->k->mla_decode(e->s, &a));
    lh_enter(e, LH_PHASE_MLA_PROJECTIONS, l);
    return lh_gather_parts(e, w->step.mla_o, d->mla_heads, (size_t)d->d_v * e->g.act_bytes);
}

lh_status lh_mla_decode(lh_engine *e, lh_session *s, int l, int at)
{
    const lh_layer_weights *lw = &e->w->layers[l];
    const lh_dims *d = &e->d;
    lh_workspace *w = &e->ws;
    int64_t q_dim = d->d_nope + d->d_rope, o_width = (int64_t)d->mla_heads * d->d_v;
    lh_range heads = e->g.mla_heads, out = e->g.d_model;

    lh_enter(e, LH_PHASE_MLA_PROJECTIONS, l);
    LH_TRY(lh_rows_norm(e, lw->attn_norm, 1));
    LH_TRY(lh_row_linear(e, w->step.mla_q, w->h, d->d_model,
                         lw->mla_q + heads.begin * q_dim * d->d_model, lh_range_size(heads) * q_dim,
                         0));
    LH_TRY(lh_row_linear(e, w->step.mla_raw, w->h, d->d_model, lw->kv_a, latent_width(e), 0));
    LH_TRY(store_latent(e, cache(e, s, at), &w->input->row, w->step.mla_raw, lw, 1));
    LH_TRY(attend_step(e, s, l, at));
    lh_enter(e, LH_PHASE_MLA_PROJECTIONS, l);
    LH_TRY(lh_row_linear(e, lh_act(e, w->x, out.begin), w->step.mla_o, o_width,
                         lw->o + out.begin * o_width, lh_range_size(out), 1));
    return lh_gather_parts(e, w->x, d->d_model, e->g.act_bytes);
}
