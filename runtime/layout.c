/*
 * Where everything lies: one function per arena that both measures (for the plan) and places (for
 * the engine).
 */
#include "base/mem.h"
#include "kernels/sample.h"
#include "runtime/engine_internal.h"

/* Rows of a rank: of a block where the user does not say, and of a round of expert dispatch. A GPU
 * wants many rows for each expert; on the CPU a smaller round keeps its buffers in the caches. */
#define CPU_BLOCK_ROWS 4096
#define CPU_ROUND_ROWS 1024
#define GPU_BLOCK_ROWS 32768
#define ALIGN 256

lh_status lh_geometry_make(lh_geometry *out, const lh_dims *d, const lh_kernels *k,
                           size_t act_bytes, const lh_settings *o)
{
    lh_geometry g = {.d = d, .k = k, .act_bytes = act_bytes, .rank = o->rank, .size = o->size};
    int size = o->size;
    int64_t block_rows = k->device->reads_host ? CPU_BLOCK_ROWS : GPU_BLOCK_ROWS;

    LH_REQUIRE(size >= 1 && size <= LH_MAX_RANKS, LH_ERR_UNAVAILABLE, "%d ranks: expected 1 to %d",
               size, LH_MAX_RANKS);
    LH_REQUIRE(o->n_threads >= 1 && o->n_threads <= 4096, LH_ERR_USAGE,
               "%d threads: expected 1 to 4096", o->n_threads);
    LH_REQUIRE(o->max_sessions >= 1 && o->max_sessions <= 65536, LH_ERR_USAGE,
               "%d sessions: expected 1 to 65536", o->max_sessions);
    g.n_threads = o->n_threads;
    g.max_sessions = o->max_sessions;
    g.batch = (int)lh_min64(o->max_sessions, LH_MAX_BATCH);
    g.by_runs = o->by_runs;
    g.segment = o->segment ? o->segment : LH_DEFAULT_SEGMENT;
    LH_REQUIRE(g.segment >= LH_CHUNK && g.segment <= 65536 && g.segment % LH_CHUNK == 0,
               LH_ERR_USAGE, "a segment of %lld tokens: expected a multiple of %d, at most 65536",
               (long long)g.segment, LH_CHUNK);
    g.context = o->context ? o->context : d->max_context;
    LH_REQUIRE(g.context >= 1 && g.context <= d->max_context, LH_ERR_USAGE,
               "a context of %lld tokens: the model has at most %lld", (long long)g.context,
               (long long)d->max_context);
    LH_REQUIRE(o->block >= 0, LH_ERR_USAGE, "a block of %lld tokens: expected at least 1",
               (long long)o->block);
    g.block = o->block ? o->block : block_rows * size;
    g.block = lh_round_up(lh_min64(g.block, g.context), g.segment);
    g.latent_rows = lh_round_up(g.context, LH_KEY_TILE);
    g.max_segments = (int)((g.block / g.segment + size - 1) / size);
    g.max_rows = g.max_segments * g.segment;
    g.round_segments = (int)lh_min64(lh_max64(CPU_ROUND_ROWS / g.segment, 1), g.max_segments);
    if (!k->device->reads_host)
        g.round_segments = g.max_segments;
    g.round_rows = g.round_segments * g.segment;
    g.kda_heads = lh_split(d->kda_heads, g.rank, size);
    g.shares_keys = size > 1 && (k->mla_sections == 0 || size <= k->mla_sections);
    g.mla_heads = lh_split(d->mla_heads, g.rank, size);
    g.experts = lh_split(d->n_experts, g.rank, size);
    g.d_model = lh_split(d->d_model, g.rank, size);
    g.vocab = lh_split(d->n_vocab, g.rank, size);
    *out = g;
    return LH_OK;
}

int lh_step_shares_keys(const lh_geometry *g, int64_t n_seq, int64_t n_keys)
{
    int64_t spared = n_keys - n_keys / g->size;

    if (!g->shares_keys || g->k->mla_sections == 0)
        return g->shares_keys;
    return spared >= LH_SHARE_KEYS + n_seq * LH_SHARE_KEYS_EACH;
}

static void *take(lh_carve *c, int64_t rows, int64_t width, size_t elem_bytes)
{
    size_t count = 0;

    if (lh_mul_size(&count, (size_t)rows, (size_t)width) != 0)
        c->used = SIZE_MAX;
    return lh_carve_take(c, count, elem_bytes, ALIGN);
}

/* An area whose size an operation of the backend names. */
static void *take_work(lh_carve *c, size_t bytes)
{
    return lh_carve_take(c, bytes, 1, ALIGN);
}

static void layout_kda(lh_workspace *w, lh_carve *c, const lh_geometry *g)
{
    const lh_dims *d = g->d;
    int64_t n = g->max_rows, heads = d->kda_heads, dim = d->kda_dim, width = heads * dim;
    int64_t square = heads * dim * dim, tail = 3 * (d->taps - 1);
    size_t act = g->act_bytes;

    w->kda.raw = take(c, n, 3 * width, act);
    w->kda.f = w->kda.raw;
    w->kda.z = w->kda.raw ? (char *)w->kda.raw + (size_t)(n * width) * act : NULL;
    w->kda.o = w->kda.raw ? (char *)w->kda.raw + (size_t)(2 * n * width) * act : NULL;
    w->kda.q = take(c, n, width, act);
    w->kda.k = take(c, n, width, act);
    w->kda.v = take(c, n, width, act);
    w->kda.g = take(c, n, width, sizeof(float));
    w->kda.b = take(c, n, heads, act);
    w->kda.beta = take(c, n, heads, sizeof(float));
    w->kda.low = take(c, n, dim, act);
    w->kda.halo[0] = take(c, tail, width, act);
    w->kda.halo[1] = take(c, tail, width, act);
    w->kda.tail = take(c, tail, width, act);
    w->kda.by_rank = take(c, tail, width, act);
    int n_maps = g->by_runs ? 2 : g->max_segments;
    w->kda.map = take(c, n_maps, square, sizeof(float));
    w->kda.add = take(c, n_maps, square, sizeof(float));
    w->kda.state = take(c, n_maps, square, sizeof(float));
    w->kda.carry[0] = take(c, 1, square, sizeof(float));
    w->kda.carry[1] = take(c, 1, square, sizeof(float));
    w->kda.work =
        take_work(c, g->k->kda_work_bytes(n, n_maps, d->kda_heads, d->kda_dim, d->kda_dim));
}

static void layout_mla(lh_workspace *w, lh_carve *c, const lh_geometry *g)
{
    const lh_dims *d = g->d;
    int64_t n = g->max_rows;

    w->mla.q = take(c, n, (int64_t)d->mla_heads * (d->d_nope + d->d_rope), g->act_bytes);
    w->mla.raw = take(c, n, d->d_latent + d->d_rope, g->act_bytes);
    w->mla.o = take(c, n, (int64_t)d->mla_heads * d->d_v, g->act_bytes);
    w->mla.work = take_work(c, g->k->mla_prefill_work_bytes(n, d->mla_heads, d->d_nope, d->d_rope,
                                                            d->d_v, d->d_latent));
}

static void layout_moe(lh_workspace *w, lh_carve *c, const lh_geometry *g)
{
    const lh_dims *d = g->d;
    int64_t n = g->max_rows;

    w->moe.scores = take(c, n, d->n_experts, sizeof(float));
    w->moe.expert = take(c, n, d->top_k, sizeof(int32_t));
    w->moe.weight = take(c, n, d->top_k, sizeof(float));
    w->moe.shared = take(c, n, d->n_shared ? d->d_model : 0, g->act_bytes);
    w->moe.shared_hidden = take(c, n, 2 * d->d_shared, g->act_bytes);
    w->moe.hidden =
        take(c, g->round_rows * g->size, (int64_t)d->top_k * 2 * d->d_expert, g->act_bytes);
}

static void layout_step(lh_workspace *w, lh_carve *c, const lh_geometry *g)
{
    const lh_dims *d = g->d;
    int64_t n = g->batch, own = lh_range_size(g->kda_heads), dim = d->kda_dim;
    int64_t own_mla = g->shares_keys ? d->mla_heads : lh_range_size(g->mla_heads);
    int64_t sums = !g->shares_keys      ? 0
                   : g->k->mla_sections ? g->k->mla_sections
                                        : lh_mla_most_ranges(g->context);
    int64_t mla_width = (int64_t)d->mla_heads * d->d_v;
    int64_t widest = lh_max64(d->d_model, lh_max64(d->kda_heads * dim, mla_width));
    int64_t hidden =
        lh_max64(lh_max64(d->top_k * d->d_expert, d->d_shared), d->n_dense_layers ? d->d_ffn : 0);
    size_t act = g->act_bytes;

    w->step.raw = take(c, n, 3 * own * dim, act);
    w->step.q = take(c, n, own * dim, act);
    w->step.k = take(c, n, own * dim, act);
    w->step.v = take(c, n, own * dim, act);
    w->step.f = take(c, n, own * dim, act);
    w->step.z = take(c, n, own * dim, act);
    w->step.g = take(c, n, own * dim, sizeof(float));
    w->step.beta = take(c, n, own, sizeof(float));
    w->step.b = take(c, n, own, act);
    w->step.low = take(c, n, dim, act);
    w->step.y = take(c, n, d->kda_heads * dim, act);
    w->step.mla_q = take(c, n, own_mla * (d->d_nope + d->d_rope), act);
    w->step.mla_o = take(c, n, mla_width, act);
    w->step.mla_work = take_work(
        c, g->k->mla_decode_work_bytes(n, g->context, (int)own_mla, d->d_latent, d->d_rope));
    w->step.mla_partial =
        take(c, n * sums, lh_mla_partial_size(d->mla_heads, d->d_latent), sizeof(float));
    w->step.scores = take(c, n, d->n_experts, sizeof(float));
    w->step.weight = take(c, n, d->top_k, sizeof(float));
    w->step.expert = take(c, n, d->top_k, sizeof(int32_t));
    w->step.mla_raw = take(c, n, d->d_latent + d->d_rope, act);
    w->step.rows = take(c, n * (d->top_k + 1), d->d_model, act);
    w->step.merging = take(c, n * g->size * (d->top_k + 1), d->d_model, act);
    w->step.hidden = take(c, n, 2 * hidden, act);
    w->step.parts = take(c, g->size > 1 ? n : 0, widest, act);
}

static void layout_head(lh_workspace *w, lh_carve *c, const lh_geometry *g)
{
    int64_t rows = lh_head_rows(g), vocab = g->d->n_vocab;

    w->head.last = take(c, rows, g->d->d_model, g->act_bytes);
    w->head.logits_part = take(c, g->size > 1 ? rows : 0, vocab, sizeof(float));
    w->head.logits = take(c, rows, vocab, sizeof(float));
    w->head.draw = take(c, rows, 1, sizeof(lh_draw));
    w->head.token = take(c, rows, 1, sizeof(int32_t));
    w->head.work = take_work(c, g->k->sample_work_bytes(rows, vocab));
}

size_t lh_workspace_layout(lh_workspace *w, void *base, const lh_geometry *g)
{
    const lh_dims *d = g->d;
    lh_carve c = {.base = base};
    int64_t n = g->max_rows, conv_rows = (int64_t)(d->taps - 1) * 3 * d->kda_heads;

    w->ids = take(&c, n, 1, sizeof(int32_t));
    w->x = take(&c, n, d->d_model, g->act_bytes);
    w->h = take(&c, n, d->d_model, g->act_bytes);
    w->conv_gather = take(&c, conv_rows, 1, sizeof(int32_t));
    w->conv_scatter = take(&c, conv_rows, 1, sizeof(int32_t));
    w->slots = take(&c, g->batch, d->top_k, sizeof(int32_t));
    w->input = take(&c, 1, 1, sizeof(lh_step_input));
    w->step_at = take(&c, d->n_layers + d->n_kda_layers, g->batch, sizeof(void *));
    w->expert_at = take(&c, g->k->device->reads_host ? 0 : 3 * (int64_t)d->n_layers,
                        lh_range_size(g->experts), sizeof(void *));
    w->router_bias =
        take(&c, g->k->device->reads_host ? 0 : d->n_layers, d->n_experts, sizeof(float));

    /* the layers and the head take turns in the memory behind */
    lh_carve kda = c, mla = c, dense = c, moe = c, step = c, head = c;
    if (d->n_kda_layers > 0)
        layout_kda(w, &kda, g);
    if (d->n_mla_layers > 0)
        layout_mla(w, &mla, g);
    if (d->n_dense_layers > 0)
        w->dense.hidden = take(&dense, n, 2 * d->d_ffn, g->act_bytes);
    if (d->n_dense_layers < d->n_layers)
        layout_moe(w, &moe, g);
    layout_step(w, &step, g);
    layout_head(w, &head, g);
    size_t used = kda.used;
    used = mla.used > used ? mla.used : used;
    used = dense.used > used ? dense.used : used;
    used = moe.used > used ? moe.used : used;
    used = head.used > used ? head.used : used;
    return step.used > used ? step.used : used;
}

/* What travels between ranks for the experts, on the device: at worst every pair of a round lands
 * here. */
size_t lh_communication_layout(lh_workspace *w, void *base, const lh_geometry *g)
{
    const lh_dims *d = g->d;
    lh_carve c = {.base = base};

    if (d->n_dense_layers == d->n_layers)
        return 0;
    int64_t round = g->round_rows * g->size, own = lh_range_size(g->experts);
    int64_t pairs = round * lh_min64(d->top_k, own);
    int travel = g->size > 1;
    w->moe.sent =
        take(&c, travel * g->round_rows * lh_min64(d->top_k, g->size), d->d_model, g->act_bytes);
    w->moe.received = take(&c, travel && own ? round : 0, d->d_model, g->act_bytes);
    w->moe.pair_x = take(&c, pairs, d->d_model, g->act_bytes);
    w->moe.pair_y = take(&c, pairs, d->d_model, g->act_bytes);
    w->moe.back = take(&c, travel * g->round_rows, d->top_k * d->d_model, g->act_bytes);
    if (g->by_runs)
        w->moe.lists =
            take_work(&c, lh_expert_device_bytes(g->k, g->round_rows, round, d->n_experts, d->top_k,
                                                 g->rank, g->size));
    else
        w->moe.index = take(&c, lh_max64(pairs, g->round_rows * d->top_k), 1, sizeof(int32_t));
    return c.used;
}

size_t lh_host_layout(lh_host_space *h, void *base, const lh_geometry *g)
{
    const lh_dims *d = g->d;
    lh_carve c = {.base = base};
    int64_t n = g->max_rows, rows = lh_head_rows(g);
    int64_t routed = g->by_runs ? 0 : n; /* rows whose exchange the host plans */

    h->expert = take(&c, routed, d->top_k, sizeof(int32_t));
    h->totals = take(&c, g->by_runs ? g->size : 0, d->n_experts + g->size, sizeof(int32_t));
    h->position = take(&c, n, 1, sizeof(int64_t));
    h->segment = take(&c, routed, 1, sizeof(int64_t));
    h->tile_start = take(&c, g->max_segments + 1, 1, sizeof(int64_t));
    h->net = take(&c, lh_max64(g->max_segments, rows), 1, sizeof(int32_t));
    h->unit_start = take(&c, rows + 1, 1, sizeof(int64_t));
    h->draw = take(&c, rows, 1, sizeof(lh_draw));
    h->token = take(&c, rows, 1, sizeof(int32_t));
    h->row = take(&c, 1, d->n_vocab, sizeof(float));
    h->sampling = take_work(&c, lh_sample_row_bytes(d->n_vocab));
    h->step_at = take(&c, d->n_layers + d->n_kda_layers, g->batch, sizeof(void *));
    h->runs = take(&c, 2 * (int64_t)g->size, 1, sizeof(lh_run));
    h->send_bytes = take(&c, g->size, 1, sizeof(size_t));
    h->recv_bytes = take(&c, g->size, 1, sizeof(size_t));
    h->recv_offset = take(&c, g->size, 1, sizeof(size_t));
    return c.used;
}

/* Products of checked dimensions: at most 2^10 layers, 2^24 rows or heads * dim, 2^13 wide: no
 * overflow in 64 bits. */
size_t lh_slot_kda_bytes(const lh_geometry *g)
{
    const lh_dims *d = g->d;
    return (size_t)d->n_kda_layers * (size_t)lh_range_size(g->kda_heads) * (size_t)d->kda_dim *
           (size_t)d->kda_dim * sizeof(float);
}

size_t lh_slot_conv_bytes(const lh_geometry *g)
{
    const lh_dims *d = g->d;
    return (size_t)d->n_kda_layers * (size_t)(d->taps - 1) * 3 *
           (size_t)lh_range_size(g->kda_heads) * (size_t)d->kda_dim * g->act_bytes;
}

size_t lh_slot_latent_bytes(const lh_geometry *g)
{
    const lh_dims *d = g->d;
    return (size_t)d->n_mla_layers * (size_t)g->latent_rows * (size_t)(d->d_latent + d->d_rope) *
           g->act_bytes;
}
