/*
 * The plan: every byte of every rank and every message of a prefill block, from config.json alone.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "runtime/engine_internal.h"

static size_t saturating_add(size_t a, size_t b)
{
    size_t sum = 0;
    (void)lh_add_size(&sum, a, b);
    return sum;
}

static size_t saturating_mul(size_t a, size_t b)
{
    size_t product = 0;
    (void)lh_mul_size(&product, a, b);
    return product;
}

static void add_up(lh_rank_plan *p)
{
    const size_t parts[] = {p->weights_dense, p->weights_experts, p->kda_state,    p->conv_state,
                            p->latent_cache,  p->workspace,       p->communication};
    p->total = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        p->total = saturating_add(p->total, parts[i]);
}

void lh_rank_plan_arenas(lh_rank_plan *out, const lh_geometry *g)
{
    lh_workspace w = {0};
    lh_host_space h = {0};
    size_t sessions = (size_t)g->max_sessions;
    int has_experts = g->d->n_dense_layers < g->d->n_layers;

    out->kda_state = saturating_mul(lh_slot_kda_bytes(g), sessions);
    out->conv_state = saturating_mul(lh_slot_conv_bytes(g), sessions);
    out->latent_cache = saturating_mul(lh_slot_latent_bytes(g), sessions);
    out->workspace = saturating_add(lh_workspace_layout(&w, NULL, g), lh_host_layout(&h, NULL, g));
    out->workspace = saturating_add(out->workspace, g->k->stream_bytes(g->n_threads));
    out->communication = lh_communication_layout(&w, NULL, g);
    if (has_experts)
        out->communication =
            saturating_add(out->communication,
                           lh_expert_bytes(g->round_rows, g->round_rows * g->size, g->d->n_experts,
                                           g->d->top_k, g->rank, g->size, g->by_runs));
    add_up(out);
}

lh_weight_sizes lh_weight_sizes_make(const lh_dims *d)
{
    lh_weight_sizes sizes = {0};
    lh_expected t;

    for (int64_t i = 0; i < lh_expected_count(d); i++) {
        lh_expected_tensor(&t, d, i);
        if (t.expert < 0)
            sizes.dense += lh_expected_bytes(&t);
        else if (t.expert == 0)
            sizes.expert += lh_expected_bytes(&t);
    }
    return sizes;
}

void lh_rank_plan_make(lh_rank_plan *out, const lh_geometry *g, const lh_weight_sizes *sizes)
{
    memset(out, 0, sizeof *out);
    out->weights_dense = sizes->dense;
    out->weights_experts = sizes->expert * (size_t)lh_range_size(g->experts);
    lh_rank_plan_arenas(out, g);
}

/* Bytes that a block of full length sends between ranks, per layer: expected values where they
 * depend on the routing. */
static void plan_messages(lh_plan *p, const lh_geometry *g)
{
    const lh_dims *d = g->d;
    size_t ranks = (size_t)g->size, block = (size_t)g->block, act = g->act_bytes;
    size_t width = (size_t)d->kda_heads * (size_t)d->kda_dim;
    size_t halo = (size_t)(d->taps - 1) * 3 * width * act;
    size_t state = width * (size_t)d->kda_dim * sizeof(float);
    lh_run *runs = calloc(2 * ranks, sizeof *runs);
    int n_runs = runs ? lh_block_runs(runs, 0, g->block, g->segment, g->size) : 0;
    size_t hops = 0;
    for (int i = 1; i < n_runs; i++)
        hops += runs[i].rank != runs[i - 1].rank;
    free(runs);

    /* to the first run's rank and from the last one's, for all heads that live elsewhere */
    size_t elsewhere = (size_t)(d->kda_heads - lh_range_size(lh_split(d->kda_heads, 0, g->size))) *
                       (size_t)d->kda_dim;
    size_t carried =
        2 * elsewhere * ((size_t)d->kda_dim * sizeof(float) + (size_t)(d->taps - 1) * 3 * act);
    int moe_layers = d->n_layers - d->n_dense_layers;
    double reach = 0; /* ranks other than its own that a token's experts live on */
    for (int r = 0; r < g->size && d->n_experts > 0; r++) {
        double miss = 1;
        for (int j = 0; j < d->top_k; j++)
            miss *= 1 - (double)lh_range_size(lh_split(d->n_experts, r, g->size)) /
                            (double)(d->n_experts - j);
        reach += 1 - (miss > 0 ? miss : 0);
    }
    double away = 1 - 1.0 / (double)g->size;
    const lh_message_plan messages[] = {
        {"convolution halo", d->n_kda_layers, hops * halo},
        {"state passing", d->n_kda_layers, hops * state + carried},
        {"latent exchange", d->n_mla_layers,
         block * (ranks - 1) * (size_t)(d->d_latent + d->d_rope) * act},
        {"dispatch", moe_layers,
         (size_t)((double)block * reach * away * (double)d->d_model * (double)act)},
        {"combine", moe_layers,
         (size_t)((double)block * (double)d->top_k * away * (double)d->d_model * (double)act)},
    };
    p->n_messages = (int)(sizeof messages / sizeof *messages);
    memcpy(p->messages, messages, sizeof messages);
}

/* Answers what o->memory_bytes asks. */
static lh_status plan_fits(lh_plan *p, const lh_plan_opts *o, const lh_dims *d, const lh_kernels *k,
                           const lh_settings *settings)
{
    size_t n = (size_t)p->n_ranks;
    lh_fit f = {.d = d, .k = k, .settings = *settings, .rooms = calloc(n, sizeof *f.rooms)};
    int worst = 0;

    LH_REQUIRE(f.rooms, LH_ERR_NOMEM, "plan of %zu ranks", n);
    for (int r = 0; r < p->n_ranks; r++) {
        f.rooms[r] = (lh_room){.plan = p->ranks[r],
                               .bytes = o->memory_bytes,
                               .n_threads = settings->n_threads,
                               .source = "--memory"};
        worst = p->ranks[r].total > p->ranks[worst].total ? r : worst;
    }
    p->fits = lh_fits(&f, worst);
    if (!p->fits) {
        (void)lh_fit_refuse(&f, worst);
        (void)snprintf(p->shortage, sizeof p->shortage, "%s", lh_last_error());
    }
    p->largest_context = lh_largest_context(&f);
    free(f.rooms);
    return LH_OK;
}

lh_status lh_plan_make(lh_plan **out, const lh_plan_opts *o)
{
    lh_status st = LH_OK;
    lh_dims *d = NULL;
    lh_plan *p = NULL;
    lh_geometry g;
    int cuda = o->backend && strcmp(o->backend, "cuda") == 0;
    const lh_kernels *k = cuda ? lh_kernels_cuda_sizes() : &lh_kernels_cpu;

    LH_REQUIRE(o->n_ranks >= 1 && o->n_ranks <= LH_MAX_RANKS, LH_ERR_USAGE,
               "%d ranks: expected 1 to %d", o->n_ranks, LH_MAX_RANKS);
    d = calloc(1, sizeof *d);
    p = calloc(1, sizeof *p);
    LH_REQUIRE_OUT(d && p, LH_ERR_NOMEM, "plan");
    p->ranks = calloc((size_t)o->n_ranks, sizeof *p->ranks);
    LH_REQUIRE_OUT(p->ranks, LH_ERR_NOMEM, "plan of %d ranks", o->n_ranks);
    LH_TRY_OUT(lh_config_read(d, o->model_dir, NULL));
    lh_model_info_fill(&p->model, d);
    lh_settings s = {.size = o->n_ranks,
                     .n_threads = o->n_threads > 0 ? o->n_threads : 1,
                     .segment = o->segment_tokens,
                     .block = o->block_tokens,
                     .context = o->context_tokens,
                     .max_sessions = o->batch > 0 ? o->batch : 1,
                     .by_runs = cuda && !o->deterministic};
    lh_weight_sizes sizes = lh_weight_sizes_make(d);
    for (s.rank = 0; s.rank < o->n_ranks; s.rank++) {
        LH_TRY_OUT(lh_geometry_make(&g, d, k, k->act_bytes, &s));
        lh_rank_plan_make(&p->ranks[s.rank], &g, &sizes);
    }
    plan_messages(p, &g);
    p->n_ranks = o->n_ranks;
    p->segment_tokens = g.segment;
    p->block_tokens = g.block;
    p->context_tokens = g.context;
    p->batch = g.max_sessions;
    if (o->memory_bytes)
        LH_TRY_OUT(plan_fits(p, o, d, k, &s));
    *out = p;
    p = NULL;
out:
    lh_plan_free(p);
    free(d);
    return st;
}

void lh_plan_free(lh_plan *p)
{
    if (!p)
        return;
    free(p->ranks);
    free(p);
}
