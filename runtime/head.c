/*
 * The head: logits of rows of the residual stream, and tokens drawn from them. Every rank computes
 * the logits of its part of the vocabulary; gathered, all ranks have the same bits of all of them,
 * and draw the same tokens.
 */
#include "kernels/sample.h"
#include "runtime/engine_internal.h"

static lh_status queue_logits(lh_engine *e, const void *x, int64_t n, int owner)
{
    lh_workspace *w = &e->ws;
    int64_t d = e->d.d_model, own = lh_range_size(e->g.vocab), vocab = e->d.n_vocab;
    lh_parts logits = {w->head.logits, w->head.logits_part, n, vocab, sizeof(float)};

    if (x)
        LH_TRY(e->k->rmsnorm(e->s, &(lh_rmsnorm_args){.y = w->head.last,
                                                      .x = x,
                                                      .w = e->w->final_norm,
                                                      .n_rows = n,
                                                      .d = d,
                                                      .eps = e->d.norm_eps}));
    if (owner >= 0)
        LH_TRY(lh_comm_bcast(e->comm, w->head.last, (size_t)(n * d) * e->g.act_bytes, owner, e->s));
    if (own > 0)
        LH_TRY(e->k->linear(e->s, &(lh_linear_args){.y = lh_own_part(e, &logits),
                                                    .ldy = own,
                                                    .x = w->head.last,
                                                    .ldx = d,
                                                    .w = e->w->head + e->g.vocab.begin * d,
                                                    .n_rows = n,
                                                    .n_in = d,
                                                    .n_out = own,
                                                    .f32_out = 1,
                                                    .tiles = {(int)n, e->host.unit_start}}));
    return lh_gather_parts(e, &logits);
}

/* Tokens of all rows to the host; where none is wanted, the largest logit's, which costs least. */
static lh_status queue_draws(lh_engine *e, int64_t n, const lh_want *want)
{
    lh_workspace *w = &e->ws;

    lh_enter(e, LH_PHASE_SAMPLE, -1);
    for (int64_t i = 0; i < n; i++)
        e->host.draw[i] = want[i].draw ? *want[i].draw : LH_DRAW_GREEDY;
    LH_TRY(
        e->k->device->upload(e->s, w->head.draw, e->host.draw, (size_t)n * sizeof *e->host.draw));
    LH_TRY(e->k->sample(e->s, &(lh_sample_args){.token = w->head.token,
                                                .logits = w->head.logits,
                                                .draw = w->head.draw,
                                                .n_rows = n,
                                                .n_vocab = e->d.n_vocab,
                                                .work = w->head.work}));
    return e->k->device->download(e->s, e->host.token, w->head.token,
                                  (size_t)n * sizeof *e->host.token);
}

static lh_status download_row(lh_engine *e, float *to, int64_t row)
{
    int64_t vocab = e->d.n_vocab;

    return e->k->device->download(e->s, to, e->ws.head.logits + row * vocab,
                                  (size_t)vocab * sizeof *to);
}

/* The row's token; what the device leaves open is drawn here, from the logits where they are. */
static lh_status take_token(lh_engine *e, int64_t row, const lh_want *want)
{
    int32_t token = e->host.token[row];
    const float *logits = want->logits;

    if (token == LH_SAMPLE_OPEN || (token == LH_SAMPLE_NOT_FINITE && e->allow_nonfinite)) {
        if (!logits) {
            logits = e->host.row;
            LH_TRY(download_row(e, e->host.row, row));
            LH_TRY(e->k->device->sync(e->s));
        }
        token = lh_sample_row(logits, e->d.n_vocab, want->draw, e->host.sampling);
    }
    *want->token = token;
    return LH_OK;
}

lh_status lh_head(lh_engine *e, const void *x, int64_t n, int owner, const lh_want *want)
{
    int draws = 0;

    lh_enter(e, LH_PHASE_HEAD, -1);
    LH_TRY(queue_logits(e, x, n, owner));
    for (int64_t i = 0; i < n; i++)
        draws |= want[i].draw != NULL;
    if (draws)
        LH_TRY(queue_draws(e, n, want));
    LH_TRY(lh_comm_wait(e->comm, e->s)); /* with its deadline; a download of pages has none */
    lh_enter(e, LH_PHASE_HEAD, -1);
    for (int64_t i = 0; i < n; i++)
        if (want[i].logits)
            LH_TRY(download_row(e, want[i].logits, i));
    LH_TRY(e->k->device->sync(e->s));
    for (int64_t i = 0; i < n; i++)
        if (want[i].draw)
            LH_TRY(take_token(e, i, &want[i]));
    return LH_OK;
}
