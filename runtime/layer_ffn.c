/*
 * The feed-forward half of a layer: x += ffn(norm(x)), dense in the first layers, a mixture of
 * experts in the others.
 *
 * Prefill: tokens go to the ranks that own their experts, in rounds of a few segments, and come
 * back. Decode: every rank has the tokens and routes them alike; each computes its own experts, the
 * one with the fewest of them the shared one too, and the rows are gathered.
 */
#include "base/mem.h"
#include "runtime/engine_internal.h"

static lh_status route(lh_engine *e, const lh_layer_weights *lw, int64_t n, lh_tiles tiles,
                       float *scores, int32_t *expert, float *weight)
{
    return e->k->router(e->s, &(lh_router_args){.expert = expert,
                                                .weight = weight,
                                                .scores = scores,
                                                .x = e->ws.h,
                                                .w = lw->router,
                                                .bias = lw->router_bias,
                                                .n_rows = n,
                                                .d = e->d.d_model,
                                                .n_experts = e->d.n_experts,
                                                .top_k = e->d.top_k,
                                                .renormalize = e->d.renormalize,
                                                .scale = e->d.route_scale,
                                                .tiles = tiles});
}

/* The dense or shared network of a layer. */
static lh_status one_network(lh_engine *e, const lh_layer_weights *lw, void *y, int64_t n,
                             int64_t d_hidden, lh_tiles tiles, int accumulate, void *work)
{
    return e->k->ffn(e->s, &(lh_ffn_args){.y = y,
                                          .x = e->ws.h,
                                          .w_gate = &lw->gate,
                                          .w_up = &lw->up,
                                          .w_down = &lw->down,
                                          .n_nets = 1,
                                          .n_rows = n,
                                          .d = e->d.d_model,
                                          .d_hidden = d_hidden,
                                          .accumulate = accumulate,
                                          .tiles = tiles,
                                          .net = e->host.net,
                                          .work = work});
}

/* This rank's experts over rows grouped by expert. */
static lh_status own_experts(lh_engine *e, const lh_layer_weights *lw, void *y, const void *x,
                             int64_t n, lh_tiles tiles, const int32_t *net, void *work)
{
    int64_t first = e->g.experts.begin;

    if (n == 0)
        return LH_OK;
    return e->k->ffn(e->s, &(lh_ffn_args){.y = y,
                                          .x = x,
                                          .w_gate = lw->w_gate + first,
                                          .w_up = lw->w_up + first,
                                          .w_down = lw->w_down + first,
                                          .n_nets = (int)lh_range_size(e->g.experts),
                                          .n_rows = n,
                                          .d = e->d.d_model,
                                          .d_hidden = e->d.d_expert,
                                          .tiles = tiles,
                                          .net = net,
                                          .work = work});
}

static size_t row_bytes(const lh_engine *e)
{
    return (size_t)e->d.d_model * e->g.act_bytes;
}

/* A list of the plan where the device can read it: in place, or in the one room for all lists. */
static lh_status place_list(lh_engine *e, const lh_expert_plan *p, const int32_t **list, int64_t n)
{
    const int32_t *from = *list;

    if (p->on_device)
        return LH_OK;
    *list = e->ws.moe.index;
    return e->k->device->upload(e->s, e->ws.moe.index, from, (size_t)n * sizeof *from);
}

/* y[i] = x[list[i]] with a list of the plan. */
static lh_status permute(lh_engine *e, const lh_expert_plan *p, void *y, const void *x,
                         const int32_t *list, int64_t n)
{
    LH_TRY(place_list(e, p, &list, n));
    return e->k->gather(
        e->s, &(lh_gather_args){.y = y, .x = x, .index = list, .n_rows = n, .width = e->d.d_model});
}

/* The rows of the block from `begin` on to the ranks of their experts; *x: where the copies that
 * the plan counts are here. On one rank the copies are the rows. */
static lh_status dispatch(lh_engine *e, const lh_expert_plan *p, int64_t begin, const void **x)
{
    lh_workspace *w = &e->ws;
    const void *rows = lh_act(e, w->h, begin * e->d.d_model);

    if (e->comm->size == 1) {
        *x = rows;
        return LH_OK;
    }
    *x = w->moe.received;
    LH_TRY(permute(e, p, w->moe.sent, rows, p->send_row, p->n_sent));
    return lh_expert_dispatch(e->expert, w->moe.sent, w->moe.received, row_bytes(e), e->s);
}

/* The experts' rows to the ranks of their tokens; *rows, *source: where they are then. On one rank
 * they stay. */
static lh_status collect(lh_engine *e, const lh_expert_plan *p, const void **rows,
                         const int32_t **source)
{
    lh_workspace *w = &e->ws;

    if (e->comm->size == 1) {
        *rows = w->moe.pair_y;
        *source = p->back_pair;
        return LH_OK;
    }
    *rows = w->moe.back;
    *source = p->source;
    LH_TRY(permute(e, p, w->moe.pair_x, w->moe.pair_y, p->back_pair, p->n_pairs));
    return lh_expert_collect(e->expert, w->moe.pair_x, w->moe.back, row_bytes(e), e->s);
}

/* Rows of the block that go to the experts and back in a round. */
static lh_range round_rows(const lh_engine *e, int round)
{
    const lh_tiles *tiles = &e->block.tiles;
    int64_t first = lh_min64((int64_t)round * e->g.round_segments, tiles->n);
    int64_t last = lh_min64(first + e->g.round_segments, tiles->n);

    return (lh_range){tiles->start[first], tiles->start[last]};
}

/* Queues what the host has to know before rows can travel, and a mark: by runs the device's plan of
 * the round; else the routing of all rows, once, from which the host plans each round. */
static lh_status begin_plan(lh_engine *e, int round)
{
    lh_range rows = round_rows(e, round);
    int64_t k = e->d.top_k;
    const int32_t *expert = e->ws.moe.expert;

    if (e->g.by_runs)
        LH_TRY(lh_expert_queue_plan(e->expert, expert + rows.begin * k, lh_range_size(rows), e->s));
    else
        LH_TRY(e->k->device->download(e->s, e->host.expert, expert,
                                      (size_t)(e->block.n_rows * k) * sizeof *expert));
    return e->k->device->mark ? e->k->device->mark(e->s, LH_MARK_ROUTED) : LH_OK;
}

static lh_status end_plan(lh_engine *e, int round, const lh_expert_plan **p)
{
    lh_range rows = round_rows(e, round);

    LH_TRY(lh_comm_wait_for(e->comm, e->s, LH_MARK_ROUTED));
    if (e->g.by_runs)
        return lh_expert_finish_plan(e->expert, e->s, p);
    return lh_expert_make_plan(e->expert, e->host.expert + rows.begin * e->d.top_k,
                               e->host.segment + rows.begin, lh_range_size(rows), p);
}

/* Rows of the block to the experts and back. */
static lh_status exchange_round(lh_engine *e, const lh_layer_weights *lw, int l, int round)
{
    lh_workspace *w = &e->ws;
    lh_range range = round_rows(e, round);
    int64_t begin = range.begin, n = lh_range_size(range), d = e->d.d_model, k = e->d.top_k;
    const lh_expert_plan *p;
    const void *x, *rows;
    const int32_t *source;

    lh_enter(e, LH_PHASE_DISPATCH, l);
    LH_TRY(end_plan(e, round, &p));
    LH_TRY(dispatch(e, p, begin, &x));
    lh_enter(e, LH_PHASE_EXPERTS, l);
    LH_TRY(permute(e, p, w->moe.pair_x, x, p->pair_copy, p->n_pairs));
    LH_TRY(own_experts(e, lw, w->moe.pair_y, w->moe.pair_x, p->n_pairs, p->tiles, p->net,
                       w->moe.hidden));
    lh_enter(e, LH_PHASE_COMBINE, l);
    LH_TRY(collect(e, p, &rows, &source));
    LH_TRY(place_list(e, p, &source, n * k));
    return e->k->combine(
        e->s,
        &(lh_combine_args){.x = lh_act(e, w->x, begin * d),
                           .rows = rows,
                           .source = source,
                           .weight = w->moe.weight + begin * k,
                           .shared = e->d.n_shared ? lh_act(e, w->moe.shared, begin * d) : NULL,
                           .n_rows = n,
                           .d = d,
                           .top_k = (int)k});
}

lh_status lh_ffn_prefill(lh_engine *e, int l)
{
    const lh_layer_weights *lw = &e->w->layers[l];
    const lh_block *b = &e->block;
    lh_workspace *w = &e->ws;
    int64_t n = b->n_rows;
    int is_dense = l < e->d.n_dense_layers;

    lh_enter(e, is_dense ? LH_PHASE_EXPERTS : LH_PHASE_ROUTE, l);
    LH_TRY(lh_rows_norm(e, lw->ffn_norm, n));
    if (is_dense)
        return one_network(e, lw, w->x, n, e->d.d_ffn, b->tiles, 1, w->dense.hidden);
    LH_TRY(route(e, lw, n, b->tiles, w->moe.scores, w->moe.expert, w->moe.weight));
    LH_TRY(begin_plan(e, 0));
    lh_enter(e, LH_PHASE_EXPERTS, l);
    if (e->d.n_shared) /* the device has this to do while the host reads and plans */
        LH_TRY(
            one_network(e, lw, w->moe.shared, n, e->d.d_shared, b->tiles, 0, w->moe.shared_hidden));
    if (e->observer.rows) {
        e->observer.rows(e->observer.user, "expert", l, w->moe.expert, n, e->host.position);
        e->observer.rows(e->observer.user, "weight", l, w->moe.weight, n, e->host.position);
    }
    for (int i = 0; i < b->n_rounds; i++) {
        if (i > 0 && e->g.by_runs) {
            lh_enter(e, LH_PHASE_ROUTE, l);
            LH_TRY(begin_plan(e, i));
        }
        LH_TRY(exchange_round(e, lw, l, i));
    }
    return LH_OK;
}

/* This rank's pointers to networks of one kind (0 gate, 1 up, 2 down), where the device can read
 * them. */
static const lh_bf16 *const *own_pointers(const lh_engine *e, int l, int kind)
{
    const lh_layer_weights *lw = &e->w->layers[l];
    const lh_bf16 *const *all[3] = {lw->w_gate, lw->w_up, lw->w_down};

    if (e->k->device->reads_host)
        return all[kind] + e->g.experts.begin;
    return (const lh_bf16 *const *)e->ws.expert_at +
           ((int64_t)l * 3 + kind) * lh_range_size(e->g.experts);
}

/*
 * Every rank computes its own experts' rows among zeros, one rank the shared network's; merged,
 * they are all there on all ranks. Nothing on this path is read by the host.
 */
static lh_status moe_step(lh_engine *e, const lh_layer_weights *lw, int l)
{
    lh_workspace *w = &e->ws;
    int64_t n = e->batch, d = e->d.d_model, k = e->d.top_k;
    lh_tiles rows = {(int)n, e->host.unit_start};
    void *shared = lh_act(e, w->step.rows, n * k * d);

    lh_enter(e, LH_PHASE_ROUTE, l);
    LH_TRY(route(e, lw, n, rows, w->step.scores, w->step.expert, w->step.weight));
    lh_enter(e, LH_PHASE_EXPERTS, l);
    LH_TRY(e->k->moe_step(e->s, &(lh_moe_step_args){.y = w->step.rows,
                                                    .x = w->h,
                                                    .expert = w->step.expert,
                                                    .w_gate = own_pointers(e, l, 0),
                                                    .w_up = own_pointers(e, l, 1),
                                                    .w_down = own_pointers(e, l, 2),
                                                    .first_expert = (int)e->g.experts.begin,
                                                    .n_nets = (int)lh_range_size(e->g.experts),
                                                    .n_seq = n,
                                                    .d = d,
                                                    .d_hidden = e->d.d_expert,
                                                    .top_k = (int)k,
                                                    .work = w->step.hidden}));
    if (e->d.n_shared && l % e->comm->size == e->comm->rank)
        LH_TRY(one_network(e, lw, shared, n, e->d.d_shared, rows, 0, w->step.hidden));
    else
        LH_TRY(e->k->device->zero(e->s, shared, (size_t)n * row_bytes(e)));
    lh_enter(e, LH_PHASE_COMBINE, l);
    LH_TRY(lh_comm_merge(e->comm, w->step.rows, (size_t)(n * (k + 1)) * row_bytes(e),
                         w->step.merging, e->s));
    return e->k->combine(e->s, &(lh_combine_args){.x = w->x,
                                                  .rows = w->step.rows,
                                                  .source = w->slots,
                                                  .weight = w->step.weight,
                                                  .shared = e->d.n_shared ? shared : NULL,
                                                  .n_rows = n,
                                                  .d = d,
                                                  .top_k = (int)k});
}

lh_status lh_ffn_decode(lh_engine *e, int l)
{
    const lh_layer_weights *lw = &e->w->layers[l];
    int64_t n = e->batch;
    lh_tiles rows = {(int)n, e->host.unit_start};

    lh_enter(e, LH_PHASE_EXPERTS, l);
    LH_TRY(lh_rows_norm(e, lw->ffn_norm, n));
    if (l < e->d.n_dense_layers)
        return one_network(e, lw, e->ws.x, n, e->d.d_ffn, rows, 1, e->ws.step.hidden);
    return moe_step(e, lw, l);
}
