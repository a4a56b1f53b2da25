/*
 * The feed-forward half of a layer: x += ffn(norm(x)), dense in the first layers, a mixture of
 * experts in the others.
 *
 * Prefill: tokens go to the ranks that own their experts, in rounds of a few segments, and come
 * back. Decode: every rank has the token and routes it alike; each computes its own experts, the
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

/* y[i] = x[index[i]] with an index of the plan, which is host memory. */
static lh_status permute(lh_engine *e, void *y, const void *x, const int32_t *index, int64_t n)
{
    LH_TRY(e->k->device->upload(e->s, e->ws.moe.index, index, (size_t)n * sizeof *index));
    return e->k->gather(
        e->s, &(lh_gather_args){
                  .y = y, .x = x, .index = e->ws.moe.index, .n_rows = n, .width = e->d.d_model});
}

/* Rows [begin, end) of the block: to the experts and back. */
static lh_status exchange_round(lh_engine *e, const lh_layer_weights *lw, int l, int64_t begin,
                                int64_t end)
{
    lh_workspace *w = &e->ws;
    int64_t d = e->d.d_model, k = e->d.top_k;
    size_t row_bytes = (size_t)d * e->g.act_bytes;
    const lh_expert_plan *p;

    lh_enter(e, LH_PHASE_DISPATCH, l);
    LH_TRY(lh_expert_make_plan(e->expert, e->host.expert + begin * k, e->host.segment + begin,
                               end - begin, &p, e->s));
    LH_TRY(permute(e, w->moe.sent, lh_act(e, w->h, begin * d), p->send_row, p->n_sent));
    LH_TRY(lh_expert_dispatch(e->expert, w->moe.sent, w->moe.received, row_bytes, e->s));
    lh_enter(e, LH_PHASE_EXPERTS, l);
    LH_TRY(permute(e, w->moe.pair_x, w->moe.received, p->pair_copy, p->n_pairs));
    LH_TRY(own_experts(e, lw, w->moe.pair_y, w->moe.pair_x, p->n_pairs, p->tiles, p->net,
                       w->moe.hidden));
    lh_enter(e, LH_PHASE_COMBINE, l);
    LH_TRY(permute(e, w->moe.pair_x, w->moe.pair_y, p->back_pair, p->n_pairs));
    LH_TRY(lh_expert_collect(e->expert, w->moe.pair_x, w->moe.back, row_bytes, e->s));
    LH_TRY(e->k->device->upload(e->s, w->moe.index, p->source,
                                (size_t)((end - begin) * k) * sizeof *p->source));
    return e->k->combine(
        e->s,
        &(lh_combine_args){.x = lh_act(e, w->x, begin * d),
                           .rows = w->moe.back,
                           .source = w->moe.index,
                           .weight = w->moe.weight + begin * k,
                           .shared = e->d.n_shared ? lh_act(e, w->moe.shared, begin * d) : NULL,
                           .n_rows = end - begin,
                           .d = d,
                           .top_k = (int)k});
}

lh_status lh_ffn_prefill(lh_engine *e, int l)
{
    const lh_layer_weights *lw = &e->w->layers[l];
    const lh_block *b = &e->block;
    lh_workspace *w = &e->ws;
    int64_t n = b->n_rows, k = e->d.top_k;

    lh_enter(e, LH_PHASE_EXPERTS, l);
    LH_TRY(lh_rows_norm(e, lw->ffn_norm, n));
    if (l < e->d.n_dense_layers)
        return one_network(e, lw, w->x, n, e->d.d_ffn, b->tiles, 1, w->dense.hidden);
    if (e->d.n_shared)
        LH_TRY(
            one_network(e, lw, w->moe.shared, n, e->d.d_shared, b->tiles, 0, w->moe.shared_hidden));
    lh_enter(e, LH_PHASE_ROUTE, l);
    LH_TRY(route(e, lw, n, b->tiles, w->moe.scores, w->moe.expert, w->moe.weight));
    LH_TRY(e->k->device->download(e->s, e->host.expert, w->moe.expert,
                                  (size_t)(n * k) * sizeof(int32_t)));
    LH_TRY(e->k->device->sync(e->s));
    if (e->observer.rows) {
        e->observer.rows(e->observer.user, "expert", l, w->moe.expert, n, e->host.position);
        e->observer.rows(e->observer.user, "weight", l, w->moe.weight, n, e->host.position);
    }
    for (int i = 0; i < b->n_rounds; i++) {
        int64_t first = lh_min64((int64_t)i * e->g.round_segments, b->tiles.n);
        int64_t last = lh_min64(first + e->g.round_segments, b->tiles.n);
        LH_TRY(exchange_round(e, lw, l, b->tiles.start[first], b->tiles.start[last]));
    }
    return LH_OK;
}

/*
 * Who computes which row of a decoding token: rank r has slots[r] of the chosen experts, `sharer`
 * also the shared network. Rows are gathered in the order of ranks; experts rise with the ranks, so
 * only the shared row stands among them.
 */
typedef struct step_plan {
    int first, count; /* this rank's slots */
    int sharer;       /* -1: no shared network */
    int shared_row;
} step_plan;

static step_plan plan_step(lh_engine *e, size_t row_bytes)
{
    const int32_t *expert = e->host.expert;
    size_t *bytes = e->host.recv_bytes, *offset = e->host.recv_offset;
    step_plan p = {.sharer = e->d.n_shared ? 0 : -1};
    int size = e->comm->size, row = 0;

    for (int r = 0; r < size; r++)
        bytes[r] = 0;
    for (int j = 0; j < e->d.top_k; j++) {
        int owner = lh_split_owner(e->d.n_experts, expert[j], size);
        p.first += owner < e->comm->rank;
        bytes[owner]++;
    }
    p.count = (int)bytes[e->comm->rank];
    for (int r = 1; r < size && p.sharer >= 0; r++)
        if (bytes[r] < bytes[p.sharer])
            p.sharer = r;
    for (int r = 0; r < size; r++) {
        int rows = (int)bytes[r] + (r == p.sharer);
        if (r == p.sharer)
            p.shared_row = row + rows - 1;
        offset[r] = (size_t)row * row_bytes;
        bytes[r] = (size_t)rows * row_bytes;
        row += rows;
    }
    return p;
}

static lh_status moe_step(lh_engine *e, const lh_layer_weights *lw, int l)
{
    lh_workspace *w = &e->ws;
    lh_host_space *h = &e->host;
    int64_t d = e->d.d_model;
    int k = e->d.top_k;
    lh_tiles one = {1, h->unit_start};

    lh_enter(e, LH_PHASE_ROUTE, l);
    LH_TRY(route(e, lw, 1, one, w->step.scores, w->step.expert, w->step.weight));
    LH_TRY(e->k->device->download(e->s, h->expert, w->step.expert, (size_t)k * sizeof(int32_t)));
    LH_TRY(e->k->device->sync(e->s));
    lh_enter(e, LH_PHASE_EXPERTS, l);
    step_plan p = plan_step(e, (size_t)d * e->g.act_bytes);
    char *mine = (char *)w->step.rows + h->recv_offset[e->comm->rank];
    for (int j = 0; j < p.count; j++)
        h->slot_net[j] = h->expert[p.first + j] - (int32_t)e->g.experts.begin;
    LH_TRY(e->k->gather(
        e->s, &(lh_gather_args){
                  .y = w->step.px, .x = w->h, .index = w->zeros, .n_rows = p.count, .width = d}));
    LH_TRY(own_experts(e, lw, mine, w->step.px, p.count, (lh_tiles){p.count, h->unit_start},
                       h->slot_net, w->step.hidden));
    if (p.sharer == e->comm->rank)
        LH_TRY(one_network(e, lw, lh_act(e, mine, p.count * d), 1, e->d.d_shared, one, 0,
                           w->step.hidden));
    lh_enter(e, LH_PHASE_COMBINE, l);
    LH_TRY(lh_comm_allgatherv(e->comm, mine, w->step.rows, h->recv_bytes, h->recv_offset, e->s));
    for (int j = 0; j < k; j++) /* the index of each slot's row, in the memory of the ids */
        h->expert[j] = j + (p.sharer >= 0 && j >= p.shared_row);
    LH_TRY(e->k->device->upload(e->s, w->step.source, h->expert, (size_t)k * sizeof(int32_t)));
    return e->k->combine(
        e->s, &(lh_combine_args){.x = w->x,
                                 .rows = w->step.rows,
                                 .source = w->step.source,
                                 .weight = w->step.weight,
                                 .shared = p.sharer >= 0 ? lh_act(e, w->step.rows, p.shared_row * d)
                                                         : NULL,
                                 .n_rows = 1,
                                 .d = d,
                                 .top_k = k});
}

lh_status lh_ffn_decode(lh_engine *e, int l)
{
    const lh_layer_weights *lw = &e->w->layers[l];
    lh_tiles one = {1, e->host.unit_start};

    lh_enter(e, LH_PHASE_EXPERTS, l);
    LH_TRY(lh_rows_norm(e, lw->ffn_norm, 1));
    if (l < e->d.n_dense_layers)
        return one_network(e, lw, e->ws.x, 1, e->d.d_ffn, one, 1, e->ws.step.hidden);
    return moe_step(e, lw, l);
}
