/*
 * Prefill of one turn: block after block, all layers over the rows of this rank's segments.
 */
#include "base/log.h"
#include "base/mem.h"
#include "runtime/engine_internal.h"

/* The geometry of a block: who owns which runs, this rank's rows, their positions and tiles. */
static void describe_block(lh_engine *e, lh_session *s, int64_t turn, int64_t begin, int64_t end)
{
    lh_block *b = &e->block;
    lh_host_space *h = &e->host;
    int per_rank = 0;

    *b = (lh_block){.session = s, .turn = turn, .begin = begin, .end = end};
    b->n_runs = lh_block_runs(h->runs, begin, end, e->g.segment, e->comm->size);
    for (int i = 0; i < b->n_runs; i++) {
        const lh_run *run = &h->runs[i];
        if (run->rank == 0)
            per_rank += run->n_segments; /* rank 0 has the most */
        if (run->rank != e->comm->rank)
            continue;
        b->run_position[b->n_own] = turn + run->token;
        b->own[b->n_own++] = i;
        for (int j = 0; j < run->n_segments; j++)
            h->tile_start[b->tiles.n + j] = b->n_rows + j * e->g.segment;
        b->tiles.n += run->n_segments;
        for (int64_t t = 0; t < run->n_tokens; t++) {
            h->position[b->n_rows + t] = turn + run->token + t;
            if (!e->g.by_runs)
                h->segment[b->n_rows + t] = (run->token + t) / e->g.segment;
        }
        b->n_rows += run->n_tokens;
        h->tile_start[b->tiles.n] = b->n_rows;
        b->run_start[b->n_own] = b->n_rows;
        b->run_tile[b->n_own] = b->tiles.n;
    }
    h->tile_start[0] = 0;
    b->tiles.start = h->tile_start;
    b->n_rounds = (per_rank + e->g.round_segments - 1) / e->g.round_segments;
}

static lh_status embed(lh_engine *e, const int32_t *tokens)
{
    const lh_block *b = &e->block;

    lh_enter(e, LH_PHASE_EMBED, -1);
    for (int i = 0; i < b->n_own; i++) {
        const lh_run *run = &e->host.runs[b->own[i]];
        LH_TRY(e->k->device->upload(e->s, e->ws.ids + b->run_start[i], tokens + run->token,
                                    (size_t)run->n_tokens * sizeof *tokens));
    }
    return e->k->embed(e->s, &(lh_embed_args){.out = e->ws.x,
                                              .ids = e->ws.ids,
                                              .table = e->w->embed,
                                              .n_rows = b->n_rows,
                                              .d = e->d.d_model,
                                              .n_vocab = e->d.n_vocab});
}

static void observe(lh_engine *e, int layer)
{
    if (e->observer.rows)
        e->observer.rows(e->observer.user, "hidden", layer, e->ws.x, e->block.n_rows,
                         e->host.position);
}

static lh_status run_layers(lh_engine *e)
{
    int kda = 0, mla = 0;

    for (int l = 0; l < e->d.n_layers; l++) {
        observe(e, l);
        if (e->d.attn[l] == LH_ATTN_KDA)
            LH_TRY(lh_kda_prefill(e, l, kda++));
        else
            LH_TRY(lh_mla_prefill(e, l, mla++));
        LH_TRY(lh_ffn_prefill(e, l));
    }
    observe(e, e->d.n_layers);
    return LH_OK;
}

/* Logits of those of the turn's last n_logits positions that lie in this block, and the token drawn
 * after the last: run by run, from the rank that has the rows. */
static lh_status block_head(lh_engine *e, const lh_step_item *item)
{
    const lh_block *b = &e->block;
    int64_t last = item->n_tokens - 1, row = 0;
    int64_t first = item->n_tokens - (item->draw ? lh_max64(item->n_logits, 1) : item->n_logits);

    for (int i = 0; i < b->n_runs; i++) {
        const lh_run *run = &e->host.runs[i];
        int64_t end = run->token + run->n_tokens;
        int own = run->rank == e->comm->rank;
        for (int64_t t = lh_max64(run->token, first); t < end; t += LH_LOGIT_ROWS) {
            int64_t n = lh_min64(LH_LOGIT_ROWS, end - t);
            const void *x = own ? lh_act(e, e->ws.x, (row + t - run->token) * e->d.d_model) : NULL;
            lh_want want[LH_LOGIT_ROWS] = {0};
            for (int64_t j = 0; j < n && item->n_logits; j++)
                want[j].logits = lh_logits_at(e, item, t - first) + j * e->d.n_vocab;
            if (t + n - 1 == last)
                want[n - 1].draw = item->draw, want[n - 1].token = item->token;
            LH_TRY(lh_head(e, x, n, run->rank, want));
            if (item->n_logits)
                LH_TRY(lh_logits_done(e, item, b->turn, t, n));
        }
        row += own ? run->n_tokens : 0;
    }
    return LH_OK;
}

lh_status lh_prefill(lh_engine *e, const lh_step_item *item)
{
    lh_session *s = item->session;
    int64_t turn = s->position;
    double start = lh_log_seconds();

    for (int64_t begin = 0; begin < item->n_tokens; begin += e->g.block) {
        int64_t end = lh_min64(begin + e->g.block, item->n_tokens);
        describe_block(e, s, turn, begin, end);
        LH_TRY(embed(e, item->tokens));
        LH_TRY(run_layers(e));
        LH_TRY(block_head(e, item));
        s->position = turn + end;
        if (e->progress)
            e->progress(e->user, &(lh_progress){.phase = "prefill",
                                                .done = end,
                                                .total = item->n_tokens,
                                                .seconds = lh_log_seconds() - start});
    }
    return lh_comm_wait(e->comm, e->s);
}
