/*
 * The MLA layer: x += W_o attention(norm(x)). Every rank keeps the whole latent cache: 576 numbers
 * a token.
 *
 * Prefill: each rank computes the latent rows of its own tokens straight into the cache, the ranks
 * exchange them, and each attends for its own queries. Decode: the new row is computed by every
 * rank alike; the keys are shared out for all heads, or, where that does not pay, the heads for all
 * keys.
 */
#include "base/mem.h"
#include "runtime/engine_internal.h"

static int64_t latent_width(const lh_engine *e)
{
    return e->d.d_latent + e->d.d_rope;
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
    char *rows = lh_latent_at(b->session, at);

    lh_enter(e, LH_PHASE_MLA_PROJECTIONS, l);
    LH_TRY(lh_rows_norm(e, lw->attn_norm, b->n_rows));
    LH_TRY(lh_rows_linear(e, w->mla.q, q_width, w->h, d->d_model, lw->mla_q, q_width, 0));
    LH_TRY(lh_rows_linear(e, w->mla.raw, width, w->h, d->d_model, lw->kv_a, width, 0));
    for (int i = 0; i < b->n_own; i++)
        LH_TRY(e->k->latent(e->s,
                            &(lh_latent_args){.y = lh_act(e, rows, b->run_position[i] * width),
                                              .x = lh_act(e, w->mla.raw, b->run_start[i] * width),
                                              .w = lw->kv_norm,
                                              .n_rows = b->run_start[i + 1] - b->run_start[i],
                                              .d_latent = d->d_latent,
                                              .d_rope = d->d_rope,
                                              .eps = d->latent_eps}));
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

/* The ranks' ranges of keys, or sections of them, each for all heads; then every rank merges them
 * alike. */
static lh_status attend_shared(lh_engine *e, lh_mla_decode_args *a, int l)
{
    size_t row_bytes = (size_t)lh_mla_partial_size(a->n_heads, a->d_latent) * sizeof(float);
    lh_parts sums = {a->partial, NULL, 1, e->k->mla_sections, (size_t)a->n_seq * row_bytes};

    if (e->k->mla_sections == 0) {
        sums.unit_bytes = row_bytes;
        for (int i = 0; i < e->batch; i++)
            sums.units += lh_mla_ranges(a->n_keys[i]);
    }
    lh_range own = lh_split(sums.units, e->comm->rank, e->comm->size);
    a->first_range = (int)own.begin;
    a->n_ranges = (int)lh_range_size(own);
    LH_TRY(e->k->mla_attend(e->s, a));
    lh_enter(e, LH_PHASE_LATENT_EXCHANGE, l);
    LH_TRY(lh_gather_parts(e, &sums));
    lh_enter(e, LH_PHASE_ATTENTION, l);
    a->first_range = 0;
    a->n_ranges = (int)sums.units;
    return e->k->mla_merge(e->s, a);
}

/* The heads that this rank attends for. */
static lh_range step_heads(const lh_engine *e)
{
    return e->shares_keys ? (lh_range){0, e->d.mla_heads} : e->g.mla_heads;
}

/* The new tokens' attention, for all heads on every rank. */
static lh_status attend_step(lh_engine *e, int l, int at)
{
    const lh_dims *d = &e->d;
    lh_workspace *w = &e->ws;
    lh_range heads = step_heads(e);
    lh_parts o = {w->step.mla_o, w->step.parts, e->batch, d->mla_heads,
                  (size_t)d->d_v * e->g.act_bytes};
    lh_mla_decode_args a = {.o = e->shares_keys ? o.y : lh_own_part(e, &o),
                            .q = w->step.mla_q,
                            .latent = (const void *const *)lh_step_pointers(e, LH_STEP_LATENT, at),
                            .n_keys = w->input->n_keys,
                            .max_keys = e->g.context,
                            .w_kvb = e->w->layers[l].kv_b +
                                     heads.begin * (d->d_nope + d->d_v) * d->d_latent,
                            .n_seq = e->batch,
                            .n_heads = (int)lh_range_size(heads),
                            .d_nope = d->d_nope,
                            .d_rope = d->d_rope,
                            .d_v = d->d_v,
                            .d_latent = d->d_latent,
                            .work = w->step.mla_work,
                            .partial = w->step.mla_partial};

    lh_enter(e, LH_PHASE_ATTENTION, l);
    if (e->shares_keys)
        return attend_shared(e, &a, l);
    if (a.n_heads > 0)
        LH_TRY(e->k->mla_decode(e->s, &a));
    lh_enter(e, LH_PHASE_MLA_PROJECTIONS, l);
    return lh_gather_parts(e, &o);
}

lh_status lh_mla_decode(lh_engine *e, int l, int at)
{
    const lh_layer_weights *lw = &e->w->layers[l];
    const lh_dims *d = &e->d;
    lh_workspace *w = &e->ws;
    int64_t n = e->batch, width = latent_width(e), q_dim = d->d_nope + d->d_rope;
    lh_range heads = step_heads(e);
    int64_t first = heads.begin * q_dim, q_width = lh_range_size(heads) * q_dim;

    lh_enter(e, LH_PHASE_MLA_PROJECTIONS, l);
    LH_TRY(lh_rows_norm(e, lw->attn_norm, n));
    LH_TRY(lh_step_linear(e, w->step.mla_q, q_width, w->h, d->d_model,
                          lw->mla_q + first * d->d_model, q_width, 0));
    LH_TRY(lh_step_linear(e, w->step.mla_raw, width, w->h, d->d_model, lw->kv_a, width, 0));
    LH_TRY(e->k->latent(e->s, &(lh_latent_args){.caches = lh_step_pointers(e, LH_STEP_LATENT, at),
                                                .x = w->step.mla_raw,
                                                .w = lw->kv_norm,
                                                .row = w->input->row,
                                                .n_rows = n,
                                                .d_latent = d->d_latent,
                                                .d_rope = d->d_rope,
                                                .eps = d->latent_eps}));
    LH_TRY(attend_step(e, l, at));
    lh_enter(e, LH_PHASE_MLA_PROJECTIONS, l);
    return lh_step_output(e, w->step.mla_o, lw->o, (int64_t)d->mla_heads * d->d_v);
}
