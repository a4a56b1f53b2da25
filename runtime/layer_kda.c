/*
 * The KDA layer: x += W_o (gated norm of KDA(norm(x))).
 *
 * A session's state and convolution rows are split by heads over the ranks. A block of prefill
 * collects them on the rank of its first run, hands the state from run to run in the order of
 * positions, and spreads what the last run leaves.
 */
#include "base/mem.h"
#include "runtime/engine_internal.h"

typedef enum direction { COLLECT, SPREAD } direction;

/*
 * Between the ranks' parts by heads (`mine`) and the whole on rank `root` (`all`, in the order of
 * ranks): head_bytes for each head.
 */
static lh_status move_heads(lh_engine *e, direction way, void *mine, void *all, size_t head_bytes,
                            int root)
{
    size_t *send = e->host.send_bytes, *recv = e->host.recv_bytes;
    int collect = way == COLLECT, at_root = e->comm->rank == root;

    for (int r = 0; r < e->comm->size; r++) {
        size_t part =
            (size_t)lh_range_size(lh_split(e->d.kda_heads, r, e->comm->size)) * head_bytes;
        size_t own = (size_t)lh_range_size(e->g.kda_heads) * head_bytes;
        send[r] = collect ? (r == root ? own : 0) : (at_root ? part : 0);
        recv[r] = collect ? (at_root ? part : 0) : (r == root ? own : 0);
    }
    return lh_comm_alltoallv(e->comm, collect ? mine : all, send, collect ? all : mine, recv, e->s);
}

static lh_status permute_conv(lh_engine *e, void *to, const void *from, const int32_t *index)
{
    return e->k->gather(e->s,
                        &(lh_gather_args){.y = to,
                                          .x = from,
                                          .index = index,
                                          .n_rows = (int64_t)(e->d.taps - 1) * 3 * e->d.kda_heads,
                                          .width = e->d.kda_dim});
}

/* The last taps - 1 rows of (halo, rows): what the next run's convolution starts from. */
static lh_status copy_tail(lh_engine *e, void *tail, const void *halo, const void *rows, int64_t n)
{
    int64_t taps = e->d.taps - 1, width = 3 * (int64_t)e->d.kda_heads * e->d.kda_dim;
    int64_t from_rows = lh_min64(taps, n), from_halo = taps - from_rows;
    size_t row_bytes = (size_t)width * e->g.act_bytes;

    LH_TRY(e->k->device->copy(e->s, tail, lh_act(e, halo, from_rows * width),
                              (size_t)from_halo * row_bytes));
    return e->k->device->copy(e->s, lh_act(e, tail, from_halo * width),
                              lh_act(e, rows, (n - from_rows) * width),
                              (size_t)from_rows * row_bytes);
}

/* Every run's halo: the first from the session, the others from the run before, in the order of
 * positions. */
static lh_status exchange_halo(lh_engine *e, int at)
{
    const lh_block *b = &e->block;
    lh_workspace *w = &e->ws;
    const lh_run *runs = e->host.runs;
    int me = e->comm->rank, own = 0, last = b->n_runs - 1;
    int64_t width = 3 * (int64_t)e->d.kda_heads * e->d.kda_dim;
    size_t unit =
        (size_t)(e->d.taps - 1) * 3 * (size_t)e->d.kda_dim * e->g.act_bytes; /* of a head */

    LH_TRY(move_heads(e, COLLECT, lh_conv_at(b->session, at), w->kda.by_rank, unit, runs[0].rank));
    if (runs[0].rank == me)
        LH_TRY(permute_conv(e, w->kda.halo[0], w->kda.by_rank, w->conv_gather));
    for (int i = 0; i < b->n_runs; i++) {
        int next = i < last ? runs[i + 1].rank : -1;
        if (runs[i].rank == me) {
            const void *rows = lh_act(e, w->kda.raw, b->run_start[own] * width);
            LH_TRY(copy_tail(e, w->kda.tail, w->kda.halo[own], rows, runs[i].n_tokens));
            own++;
        }
        if (i < last && (runs[i].rank == me || next == me))
            LH_TRY(lh_comm_sendrecv(
                e->comm, w->kda.tail, unit * (size_t)e->d.kda_heads, runs[i].rank == me ? next : -1,
                next == me ? w->kda.halo[own] : NULL, unit * (size_t)e->d.kda_heads,
                next == me ? runs[i].rank : -1, e->s));
    }
    if (runs[last].rank == me)
        LH_TRY(permute_conv(e, w->kda.by_rank, w->kda.tail, w->conv_scatter));
    return move_heads(e, SPREAD, lh_conv_at(b->session, at), w->kda.by_rank, unit, runs[last].rank);
}

static lh_status convolve(lh_engine *e, const lh_layer_weights *lw)
{
    const lh_block *b = &e->block;
    const lh_bf16 *weights[3] = {lw->q_conv, lw->k_conv, lw->v_conv};
    void *out[3] = {e->ws.kda.q, e->ws.kda.k, e->ws.kda.v};
    int64_t width = (int64_t)e->d.kda_heads * e->d.kda_dim;

    for (int i = 0; i < b->n_own; i++)
        for (int c = 0; c < 3; c++)
            LH_TRY(e->k->short_conv(
                e->s, &(lh_short_conv_args){
                          .y = lh_act(e, out[c], b->run_start[i] * width),
                          .ldy = width,
                          .x = lh_act(e, e->ws.kda.raw, b->run_start[i] * 3 * width + c * width),
                          .ldx = 3 * width,
                          .halo = lh_act(e, e->ws.kda.halo[i], c * width),
                          .w = weights[c],
                          .n_rows = b->run_start[i + 1] - b->run_start[i],
                          .n_channels = width,
                          .taps = e->d.taps}));
    return LH_OK;
}

static int64_t state_floats(const lh_engine *e)
{
    return (int64_t)e->d.kda_heads * e->d.kda_dim * e->d.kda_dim;
}

/* The rows of the block as these tiles, with maps and addends of each or without. */
static lh_status prepare(lh_engine *e, lh_tiles tiles, int maps)
{
    lh_workspace *w = &e->ws;

    return e->k->kda_prepare(e->s, &(lh_kda_prepare_args){.q = w->kda.q,
                                                          .k = w->kda.k,
                                                          .v = w->kda.v,
                                                          .g = w->kda.g,
                                                          .beta = w->kda.beta,
                                                          .map = maps ? w->kda.map : NULL,
                                                          .add = maps ? w->kda.add : NULL,
                                                          .work = w->kda.work,
                                                          .n_rows = e->block.n_rows,
                                                          .n_heads = e->d.kda_heads,
                                                          .d_k = e->d.kda_dim,
                                                          .d_v = e->d.kda_dim,
                                                          .tiles = tiles});
}

static lh_status finish(lh_engine *e, lh_tiles tiles, const float *state_in, float *state_out)
{
    lh_workspace *w = &e->ws;

    return e->k->kda_finish(e->s, &(lh_kda_finish_args){.o = w->kda.o,
                                                        .state_in = state_in,
                                                        .state_out = state_out,
                                                        .q = w->kda.q,
                                                        .k = w->kda.k,
                                                        .v = w->kda.v,
                                                        .g = w->kda.g,
                                                        .work = w->kda.work,
                                                        .n_rows = e->block.n_rows,
                                                        .n_heads = e->d.kda_heads,
                                                        .d_k = e->d.kda_dim,
                                                        .d_v = e->d.kda_dim,
                                                        .tiles = tiles});
}

/* The state before tile t to `state`; the state after it becomes the one that is carried. */
static lh_status fold(lh_engine *e, int t)
{
    lh_workspace *w = &e->ws;
    int64_t square = state_floats(e);
    float *carry = w->kda.carry[0];

    LH_TRY(
        e->k->device->copy(e->s, w->kda.state + t * square, carry, (size_t)square * sizeof(float)));
    LH_TRY(e->k->kda_fold(e->s, &(lh_kda_fold_args){.state_out = w->kda.carry[1],
                                                    .state_in = carry,
                                                    .map = w->kda.map + t * square,
                                                    .add = w->kda.add + t * square,
                                                    .n_heads = e->d.kda_heads,
                                                    .d_k = e->d.kda_dim,
                                                    .d_v = e->d.kda_dim}));
    w->kda.carry[0] = w->kda.carry[1];
    w->kda.carry[1] = carry;
    return LH_OK;
}

/*
 * Hands the carried state through the runs in the order of positions, from rank to rank; `through`
 * takes it through the own run number `own`.
 */
static lh_status pass_state(lh_engine *e, int at, lh_status (*through)(lh_engine *e, int own))
{
    const lh_block *b = &e->block;
    lh_workspace *w = &e->ws;
    const lh_run *runs = e->host.runs;
    int me = e->comm->rank, own = 0, last = b->n_runs - 1;
    size_t bytes = (size_t)state_floats(e) * sizeof(float),
           head_bytes = bytes / (size_t)e->d.kda_heads;
    float *mine = lh_state_at(b->session, at);

    LH_TRY(move_heads(e, COLLECT, mine, w->kda.carry[0], head_bytes, runs[0].rank));
    for (int i = 0; i <= last; i++) {
        if (runs[i].rank != me)
            continue;
        if (i > 0 && runs[i - 1].rank != me)
            LH_TRY(lh_comm_sendrecv(e->comm, NULL, 0, -1, w->kda.carry[0], bytes, runs[i - 1].rank,
                                    e->s));
        LH_TRY(through(e, own++));
        if (i < last && runs[i + 1].rank != me)
            LH_TRY(lh_comm_sendrecv(e->comm, w->kda.carry[0], bytes, runs[i + 1].rank, NULL, 0, -1,
                                    e->s));
    }
    return move_heads(e, SPREAD, mine, w->kda.carry[0], head_bytes, runs[last].rank);
}

/* By segments: the state before each comes from the fold over their maps, on any number of ranks.
 */
static lh_status fold_run(lh_engine *e, int own)
{
    for (int t = e->block.run_tile[own]; t < e->block.run_tile[own + 1]; t++)
        LH_TRY(fold(e, t));
    return LH_OK;
}

static lh_status recur_by_segments(lh_engine *e, int l, int at)
{
    const lh_block *b = &e->block;

    LH_TRY(prepare(e, b->tiles, 1));
    lh_enter(e, LH_PHASE_STATE_PASSING, l);
    LH_TRY(pass_state(e, at, fold_run));
    lh_enter(e, LH_PHASE_KDA, l);
    return finish(e, b->tiles, e->ws.kda.state, NULL);
}

/*
 * By runs: one chain over a whole run. A block's only run starts from a known state and needs no
 * map. Of several runs all make theirs, at once on all ranks and for both runs of a rank in one
 * call, which fills a GPU better than the first run's chain by itself would.
 */
static lh_status chain_run(lh_engine *e, int own)
{
    lh_workspace *w = &e->ws;

    (void)own;
    return finish(e, (lh_tiles){1, e->block.run_start}, w->kda.carry[0], w->kda.carry[0]);
}

static lh_status recur_by_runs(lh_engine *e, int l, int at)
{
    const lh_block *b = &e->block;
    lh_workspace *w = &e->ws;
    lh_tiles runs = {b->n_own, b->run_start};
    int maps = b->n_runs > 1;

    LH_TRY(prepare(e, runs, maps));
    lh_enter(e, LH_PHASE_STATE_PASSING, l);
    LH_TRY(pass_state(e, at, maps ? fold : chain_run));
    lh_enter(e, LH_PHASE_KDA, l);
    return maps ? finish(e, runs, w->kda.state, NULL) : LH_OK;
}

static lh_status gates(lh_engine *e, const lh_layer_weights *lw)
{
    const lh_dims *d = &e->d;
    lh_workspace *w = &e->ws;
    int64_t width = (int64_t)d->kda_heads * d->kda_dim;

    LH_TRY(lh_rows_linear(e, w->kda.low, d->kda_dim, w->h, d->d_model, lw->f_a, d->kda_dim, 0));
    LH_TRY(lh_rows_linear(e, w->kda.f, width, w->kda.low, d->kda_dim, lw->f_b, width, 0));
    LH_TRY(lh_rows_linear(e, w->kda.b, d->kda_heads, w->h, d->d_model, lw->b, d->kda_heads, 0));
    return e->k->kda_gate(e->s, &(lh_kda_gate_args){.q = w->kda.q,
                                                    .k = w->kda.k,
                                                    .f = w->kda.f,
                                                    .b = w->kda.b,
                                                    .a_log = lw->a_log,
                                                    .dt_bias = lw->dt_bias,
                                                    .g = w->kda.g,
                                                    .beta = w->kda.beta,
                                                    .n_rows = e->block.n_rows,
                                                    .n_heads = d->kda_heads,
                                                    .d_k = d->kda_dim});
}

static lh_status output(lh_engine *e, const lh_layer_weights *lw)
{
    const lh_dims *d = &e->d;
    lh_workspace *w = &e->ws;
    int64_t width = (int64_t)d->kda_heads * d->kda_dim;

    LH_TRY(lh_rows_linear(e, w->kda.low, d->kda_dim, w->h, d->d_model, lw->g_a, d->kda_dim, 0));
    LH_TRY(lh_rows_linear(e, w->kda.z, width, w->kda.low, d->kda_dim, lw->g_b, width, 0));
    LH_TRY(e->k->gated_norm(e->s, &(lh_gated_norm_args){.y = w->kda.o,
                                                        .o = w->kda.o,
                                                        .z = w->kda.z,
                                                        .w = lw->o_norm,
                                                        .n_rows = e->block.n_rows,
                                                        .n_heads = d->kda_heads,
                                                        .d = d->kda_dim,
                                                        .eps = d->norm_eps}));
    return lh_rows_linear(e, w->x, d->d_model, w->kda.o, width, lw->o, d->d_model, 1);
}

lh_status lh_kda_prefill(lh_engine *e, int l, int at)
{
    const lh_layer_weights *lw = &e->w->layers[l];
    const lh_dims *d = &e->d;
    lh_workspace *w = &e->ws;
    int64_t n = e->block.n_rows, width = (int64_t)d->kda_heads * d->kda_dim;
    const lh_bf16 *qkv[3] = {lw->q, lw->k, lw->v};

    lh_enter(e, LH_PHASE_KDA_PROJECTIONS, l);
    LH_TRY(lh_rows_norm(e, lw->attn_norm, n));
    for (int c = 0; c < 3; c++)
        LH_TRY(lh_rows_linear(e, lh_act(e, w->kda.raw, c * width), 3 * width, w->h, d->d_model,
                              qkv[c], width, 0));
    lh_enter(e, LH_PHASE_CONVOLUTION, l);
    LH_TRY(exchange_halo(e, at));
    LH_TRY(convolve(e, lw));
    lh_enter(e, LH_PHASE_KDA_PROJECTIONS, l);
    LH_TRY(gates(e, lw)); /* `raw` is free from here on */
    lh_enter(e, LH_PHASE_KDA, l);
    LH_TRY(e->g.by_runs ? recur_by_runs(e, l, at) : recur_by_segments(e, l, at));
    lh_enter(e, LH_PHASE_KDA_PROJECTIONS, l);
    return output(e, lw);
}

/* ------------------------------------------------------------------ decode */

/* One step of the convolution of this rank's heads, and of the rows that sessions remember. */
static lh_status convolve_step(lh_engine *e, const lh_layer_weights *lw, int at)
{
    lh_workspace *w = &e->ws;
    int64_t dim = e->d.kda_dim, first = e->g.kda_heads.begin * dim * e->d.taps;

    return e->k->conv_step(
        e->s,
        &(lh_conv_step_args){.y = {w->step.q, w->step.k, w->step.v},
                             .rows = lh_step_pointers(e, LH_STEP_CONV, at),
                             .x = w->step.raw,
                             .w = {lw->q_conv + first, lw->k_conv + first, lw->v_conv + first},
                             .n_seq = e->batch,
                             .n_channels = lh_range_size(e->g.kda_heads) * dim,
                             .taps = e->d.taps});
}

/* This rank's heads of the batch, from the normed rows to the gated outputs y. */
static lh_status own_heads_step(lh_engine *e, void *y, const lh_layer_weights *lw, int l, int at)
{
    const lh_dims *d = &e->d;
    lh_workspace *w = &e->ws;
    int heads = (int)lh_range_size(e->g.kda_heads);
    int64_t n = e->batch, first = e->g.kda_heads.begin, dim = d->kda_dim, width = heads * dim;
    int64_t d_in = d->d_model;
    const lh_bf16 *qkv[3] = {lw->q, lw->k, lw->v};

    if (heads == 0)
        return LH_OK;
    for (int c = 0; c < 3; c++)
        LH_TRY(lh_step_linear(e, lh_act(e, w->step.raw, c * width), 3 * width, w->h, d_in,
                              qkv[c] + first * dim * d_in, width, 0));
    LH_TRY(lh_step_linear(e, w->step.low, dim, w->h, d_in, lw->f_a, dim, 0));
    LH_TRY(lh_step_linear(e, w->step.f, width, w->step.low, dim, lw->f_b + first * dim * dim, width,
                          0));
    LH_TRY(lh_step_linear(e, w->step.b, heads, w->h, d_in, lw->b + first * d_in, heads, 0));
    LH_TRY(lh_step_linear(e, w->step.low, dim, w->h, d_in, lw->g_a, dim, 0));
    LH_TRY(lh_step_linear(e, w->step.z, width, w->step.low, dim, lw->g_b + first * dim * dim, width,
                          0));
    lh_enter(e, LH_PHASE_CONVOLUTION, l);
    LH_TRY(convolve_step(e, lw, at));
    lh_enter(e, LH_PHASE_KDA, l);
    LH_TRY(e->k->kda_gate(e->s, &(lh_kda_gate_args){.q = w->step.q,
                                                    .k = w->step.k,
                                                    .f = w->step.f,
                                                    .b = w->step.b,
                                                    .a_log = lw->a_log + first,
                                                    .dt_bias = lw->dt_bias + first * dim,
                                                    .g = w->step.g,
                                                    .beta = w->step.beta,
                                                    .n_rows = n,
                                                    .n_heads = heads,
                                                    .d_k = d->kda_dim}));
    LH_TRY(e->k->kda_step(
        e->s, &(lh_kda_step_args){.o = y,
                                  .state = (float *const *)lh_step_pointers(e, LH_STEP_STATE, at),
                                  .q = w->step.q,
                                  .k = w->step.k,
                                  .v = w->step.v,
                                  .g = w->step.g,
                                  .beta = w->step.beta,
                                  .n_seq = n,
                                  .n_heads = heads,
                                  .d_k = d->kda_dim,
                                  .d_v = d->kda_dim}));
    return e->k->gated_norm(e->s, &(lh_gated_norm_args){.y = y,
                                                        .o = y,
                                                        .z = w->step.z,
                                                        .w = lw->o_norm,
                                                        .n_rows = n,
                                                        .n_heads = heads,
                                                        .d = d->kda_dim,
                                                        .eps = d->norm_eps});
}

lh_status lh_kda_decode(lh_engine *e, int l, int at)
{
    const lh_layer_weights *lw = &e->w->layers[l];
    const lh_dims *d = &e->d;
    lh_workspace *w = &e->ws;
    lh_parts y = {w->step.y, w->step.parts, e->batch, d->kda_heads,
                  (size_t)d->kda_dim * e->g.act_bytes};

    lh_enter(e, LH_PHASE_KDA_PROJECTIONS, l);
    LH_TRY(lh_rows_norm(e, lw->attn_norm, y.n));
    LH_TRY(own_heads_step(e, lh_own_part(e, &y), lw, l, at));
    lh_enter(e, LH_PHASE_KDA_PROJECTIONS, l);
    LH_TRY(lh_gather_parts(e, &y));
    return lh_step_output(e, y.y, lw->o, (int64_t)d->kda_heads * d->kda_dim);
}
