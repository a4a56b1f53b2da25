/*
 * The engine's life: communicator, configuration, plan, arenas, weights; every step of it agreed by
 * all ranks.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "launch/launch.h"
#include "runtime/engine_internal.h"

#define DEFAULT_PEER_TIMEOUT_S 60.0

static lh_status choose_backend(lh_engine *e, const lh_engine_opts *o)
{
    const char *name = o->backend ? o->backend : "auto";
    int automatic = strcmp(name, "auto") == 0;

    LH_REQUIRE(automatic || strcmp(name, "cpu") == 0 || strcmp(name, "cuda") == 0, LH_ERR_USAGE,
               "backend '%s': expected auto, cpu or cuda", name);
    e->k = strcmp(name, "cpu") == 0 ? &lh_kernels_cpu : lh_kernels_cuda();
    LH_REQUIRE(e->k || automatic, LH_ERR_UNAVAILABLE,
               "backend 'cuda': this build has none, or there is no GPU that it can use");
    if (!e->k)
        e->k = &lh_kernels_cpu;
    e->by_runs = e->k->device->reads_host ? o->debug_by_runs : !o->deterministic;
    return LH_OK;
}

int lh_backend_uses_gpu(const char *backend)
{
    return strcmp(backend, "cpu") != 0 && lh_kernels_cuda() != NULL;
}

int lh_is_synthetic(const lh_engine_opts *o)
{
    return o->weights && strcmp(o->weights, "synthetic") == 0;
}

/* What must be alike on all ranks for their results to fit together. */
static lh_status same_settings(lh_engine *e, const lh_engine_opts *o)
{
    const lh_geometry *g = &e->g;
    const int64_t settings[] = {g->segment,      g->block,   g->context,
                                g->max_sessions, g->by_runs, (int64_t)g->act_bytes};
    struct {
        uint64_t seed;
        double skew;
        int64_t is_synthetic;
    } weights = {o->synth_seed, o->router_skew, lh_is_synthetic(o)};

    lh_comm_at(e->comm, "set-up", -1);
    LH_TRY(lh_comm_same(e->comm, LH_VERSION, sizeof LH_VERSION, "version of longhaul"));
    LH_TRY(lh_comm_same(e->comm, &e->d, sizeof e->d, "config.json"));
    LH_TRY(lh_comm_same(e->comm, &weights, sizeof weights, "weights (kind, seed, skew)"));
    return lh_comm_same(e->comm, settings, sizeof settings,
                        "settings (segment, block, context, sessions, types)");
}

/* The GPU of this rank: the one of its local rank, which no other rank has. */
static lh_status choose_gpu(lh_engine *e, int *index)
{
    const lh_device_ops *device = e->k->device;
    size_t n = (size_t)e->comm->size;
    lh_rank_info rank = {.size = 1, .local_size = 1};
    lh_gpu_id *ids = calloc(n, sizeof *ids), mine;
    char bus[16] = "";
    lh_status st = ids ? LH_OK : LH_FAIL(LH_ERR_NOMEM, "GPUs of %zu ranks", n);

    if (st == LH_OK && n > 1)
        st = lh_rank_info_read(&rank);
    if (st == LH_OK)
        st = lh_choose_gpu(index, &rank, device->count());
    if (st == LH_OK)
        st = device->bus(*index, bus);
    LH_TRY_OUT(lh_comm_agree(e->boot, st));
    lh_gpu_id_fill(&mine, bus);
    LH_TRY_OUT(lh_comm_allgather(e->boot, &mine, sizeof mine, ids, NULL));
    LH_TRY_OUT(lh_gpus_differ(ids, e->comm->size));
out:
    free(ids);
    return st;
}

static lh_status open_stream(lh_engine *e, int index)
{
    const lh_device_ops *device = e->k->device;

    LH_TRY(device->open(&e->s, index, e->g.n_threads, !e->by_runs));
    return device->available ? device->available(e->s, &e->free_at_start) : LH_OK;
}

/* The stream, and over several GPUs the communicator between their memories. Collective. */
static lh_status open_device(lh_engine *e)
{
    const lh_device_ops *device = e->k->device;
    int index = 0;

    if (!device->reads_host)
        LH_TRY(choose_gpu(e, &index));
    LH_TRY(lh_comm_agree(e->boot, open_stream(e, index)));
    if (device->reads_host || e->comm->size == 1)
        return LH_OK;
    return lh_comm_nccl_create(&e->comm, e->boot, e->s, e->boot->timeout_s);
}

/* One arena on the device: exactly the planned bytes. */
static lh_status arena(lh_engine *e, void **out, size_t bytes, size_t *used, const char *what)
{
    LH_REQUIRE(bytes < SIZE_MAX, LH_ERR_NOMEM, "%s: larger than any memory", what);
    LH_TRY(e->k->device->alloc(e->s, out, bytes, what));
    *used += bytes;
    return LH_OK;
}

static lh_status allocate(lh_engine *e)
{
    lh_rank_plan *used = &e->used;
    const lh_rank_plan *plan = &e->plan;
    const lh_geometry *g = &e->g;
    lh_workspace none = {0};
    lh_host_space no_host = {0};
    size_t work = lh_workspace_layout(&none, NULL, g), host = lh_host_layout(&no_host, NULL, g);
    size_t comm = lh_communication_layout(&none, NULL, g);

    LH_TRY(arena(e, &e->arena_work, work, &used->workspace, "workspace"));
    LH_TRY(arena(e, &e->arena_comm, comm, &used->communication, "expert exchange"));
    LH_TRY(arena(e, &e->arena_kda, plan->kda_state, &used->kda_state, "KDA states"));
    LH_TRY(arena(e, &e->arena_conv, plan->conv_state, &used->conv_state, "convolution states"));
    LH_TRY(arena(e, &e->arena_latent, plan->latent_cache, &used->latent_cache, "latent cache"));
    LH_TRY(e->k->device->alloc_host(e->s, &e->arena_host, host, "index arrays"));
    used->workspace += host + e->k->stream_bytes(g->n_threads);
    (void)lh_workspace_layout(&e->ws, e->arena_work, g);
    (void)lh_communication_layout(&e->ws, e->arena_comm, g);
    (void)lh_host_layout(&e->host, e->arena_host, g);
    if (e->d.n_dense_layers < e->d.n_layers) {
        lh_expert_device device = {e->k, e->ws.moe.lists, e->host.totals};
        LH_TRY(lh_expert_create(&e->expert, g->round_rows, g->round_rows * g->size, e->d.n_experts,
                                e->d.top_k, e->comm, e->boot, g->by_runs ? &device : NULL));
        used->communication +=
            lh_expert_bytes(g->round_rows, g->round_rows * g->size, e->d.n_experts, e->d.top_k,
                            g->rank, g->size, g->by_runs);
    }
    e->slot_taken = calloc((size_t)g->max_sessions, 1);
    LH_REQUIRE(e->slot_taken, LH_ERR_NOMEM, "%d sessions", g->max_sessions);
    return LH_OK;
}

/* Rows of d_k elements: where (tap, q|k|v, head) of the tail lies among the parts that the ranks
 * hold, and the reverse. */
static lh_status make_conv_index(lh_engine *e)
{
    int taps = e->d.taps - 1, heads = e->d.kda_heads;
    size_t n = (size_t)taps * 3 * (size_t)heads;
    int32_t *index = malloc(2 * n * sizeof *index);
    lh_status st = LH_OK;

    LH_REQUIRE(index, LH_ERR_NOMEM, "index of convolution rows");
    for (int r = 0; r < e->comm->size; r++) {
        lh_range own = lh_split(heads, r, e->comm->size);
        int64_t at = own.begin * 3 * taps;
        for (int t = 0; t < taps; t++)
            for (int c = 0; c < 3; c++)
                for (int64_t h = own.begin; h < own.end; h++, at++) {
                    int64_t whole = ((int64_t)t * 3 + c) * heads + h;
                    index[whole] = (int32_t)at;
                    index[(int64_t)n + at] = (int32_t)whole;
                }
    }
    LH_TRY_OUT(e->k->device->upload(e->s, e->ws.conv_gather, index, n * sizeof *index));
    LH_TRY_OUT(e->k->device->upload(e->s, e->ws.conv_scatter, index + n, n * sizeof *index));
    LH_TRY_OUT(e->k->device->sync(e->s));
out:
    free(index);
    return st;
}

/* Rows of decoding tokens as they lie. */
static lh_status upload_slots(lh_engine *e)
{
    size_t n = (size_t)e->g.batch * (size_t)e->d.top_k;
    int32_t *slots = malloc((n + 1) * sizeof *slots);
    lh_status st = LH_OK;

    LH_REQUIRE(slots, LH_ERR_NOMEM, "index of decoding rows");
    for (size_t i = 0; i < n; i++)
        slots[i] = (int32_t)i;
    LH_TRY_OUT(e->k->device->upload(e->s, e->ws.slots, slots, n * sizeof *slots));
    LH_TRY_OUT(e->k->device->sync(e->s));
out:
    free(slots);
    return st;
}

static void fill_constants(lh_engine *e)
{
    for (int64_t i = 0; i <= lh_head_rows(&e->g); i++)
        e->host.unit_start[i] = i;
}

/* From the maps to an arena on the device; the maps are not needed any more. */
static lh_status upload(lh_engine *e)
{
    size_t counted = 0;

    LH_TRY(arena(e, &e->arena_weights, lh_weight_arena_bytes(&e->g), &counted, "weights"));
    LH_TRY(lh_weights_upload(e, e->w, &e->device_w));
    e->w = e->device_w;
    lh_checkpoint_close(e->checkpoint);
    e->checkpoint = NULL;
    return LH_OK;
}

static lh_status load_weights(lh_engine *e, const lh_engine_opts *o)
{
    int first = (int)e->g.experts.begin, end = (int)e->g.experts.end;
    lh_synth_opts synth = {.seed = o->synth_seed,
                           .router_skew = o->router_skew,
                           .n_threads = e->g.n_threads,
                           .progress = e->progress,
                           .user = e->user};

    lh_enter(e, LH_PHASE_LOAD, -1);
    if (lh_is_synthetic(o)) {
        LH_TRY(lh_synth_bind(&e->synth, &e->d, &synth, e->k, e->s, first, end, &e->w,
                             &e->used.weights_dense, &e->used.weights_experts));
    } else {
        LH_TRY(lh_checkpoint_open(&e->checkpoint, o->model_dir, &e->d));
        LH_TRY(lh_checkpoint_bind(e->checkpoint, first, end, &e->w, &e->used.weights_dense,
                                  &e->used.weights_experts, e->progress, e->user));
        if (!e->k->device->reads_host)
            LH_TRY(upload(e));
    }
    if (!e->k->device->reads_host)
        LH_TRY(lh_upload_expert_pointers(e));
    lh_enter(e, LH_PHASE_NONE, -1);
    return LH_OK;
}

static void add_up_used(lh_rank_plan *u)
{
    u->total = u->weights_dense + u->weights_experts + u->kda_state + u->conv_state +
               u->latent_cache + u->workspace + u->communication;
}

/* Our own arenas must be what was planned, to the byte: otherwise the plan lies to its readers. */
static lh_status check_plan(const lh_engine *e)
{
    const lh_rank_plan *p = &e->plan, *u = &e->used;
    LH_REQUIRE(p->kda_state == u->kda_state && p->conv_state == u->conv_state &&
                   p->latent_cache == u->latent_cache && p->workspace == u->workspace &&
                   p->communication == u->communication,
               LH_ERR_INTERNAL,
               "the plan of rank %d names %zu bytes beside the weights, %zu were allocated",
               e->comm->rank, p->total - p->weights_dense - p->weights_experts,
               u->total - u->weights_dense - u->weights_experts);
    return LH_OK;
}

lh_settings lh_engine_settings(const lh_engine *e, const lh_engine_opts *o)
{
    return (lh_settings){.rank = e->comm->rank,
                         .size = e->comm->size,
                         .n_threads = o->n_threads,
                         .segment = o->segment_tokens,
                         .block = o->block_tokens,
                         .context = o->context_tokens,
                         .max_sessions = o->max_sessions > 0 ? o->max_sessions : 1,
                         .by_runs = e->by_runs};
}

static lh_status open_configured(lh_engine *e, const lh_engine_opts *o)
{
    LH_REQUIRE(!o->weights || lh_is_synthetic(o) || strcmp(o->weights, "checkpoint") == 0,
               LH_ERR_USAGE, "weights '%s': expected checkpoint or synthetic", o->weights);
    LH_TRY(choose_backend(e, o));
    LH_TRY(lh_config_read(&e->d, o->model_dir, NULL));
    lh_model_info_fill(&e->info, &e->d);
    lh_settings settings = lh_engine_settings(e, o);
    LH_TRY(lh_geometry_make(&e->g, &e->d, e->k, e->k->act_bytes, &settings));
    lh_weight_sizes sizes = lh_weight_sizes_make(&e->d);
    lh_rank_plan_make(&e->plan, &e->g, &sizes);
    return LH_OK;
}

static lh_status open_allocated(lh_engine *e)
{
    LH_TRY(allocate(e));
    fill_constants(e);
    LH_TRY(upload_slots(e));
    return e->d.n_kda_layers > 0 ? make_conv_index(e) : LH_OK;
}

/* What the driver counts as used: the arenas, and what it and the libraries took beside them. */
static lh_status ask_driver(lh_engine *e)
{
    size_t now = 0;

    LH_TRY(e->k->device->available(e->s, &now));
    e->used.total =
        e->k->stream_bytes(e->g.n_threads) + (e->free_at_start > now ? e->free_at_start - now : 0);
    return LH_OK;
}

static lh_status open_loaded(lh_engine *e, const lh_engine_opts *o)
{
    LH_TRY(load_weights(e, o));
    add_up_used(&e->used);
    LH_TRY(check_plan(e));
    return e->k->device->available ? ask_driver(e) : LH_OK;
}

lh_status lh_engine_open(lh_engine **out, const lh_engine_opts *o)
{
    lh_status st = LH_OK;
    lh_engine *e = calloc(1, sizeof *e);

    LH_REQUIRE(e, LH_ERR_NOMEM, "engine");
    e->clock.now = LH_PHASE_NONE;
    e->progress = o->progress;
    e->user = o->user;
    e->allow_nonfinite = o->allow_nonfinite;
    double timeout_s = o->peer_timeout_s > 0 ? o->peer_timeout_s : DEFAULT_PEER_TIMEOUT_S;
    if (!o->use_mpi || o->n_ranks == 1)
        LH_TRY_OUT(lh_comm_self_create(&e->boot));
    else if (o->n_ranks > 0)
        LH_TRY_OUT(lh_comm_mpi_create_first(&e->boot, o->n_ranks, timeout_s));
    else
        LH_TRY_OUT(lh_comm_mpi_create(&e->boot, timeout_s));
    e->comm = e->boot;
    lh_log_set_rank(e->comm->rank, e->comm->size);
    lh_comm_at(e->comm, "set-up", -1);
    LH_TRY_OUT(lh_comm_agree(e->comm, open_configured(e, o)));
    LH_TRY_OUT(same_settings(e, o));
    LH_TRY_OUT(open_device(e));
    LH_TRY_OUT(lh_engine_check_fit(e, o));
    LH_TRY_OUT(lh_comm_agree(e->comm, open_allocated(e)));
    LH_TRY_OUT(lh_comm_agree(e->comm, open_loaded(e, o)));
    LH_LOG_I("engine", "%s, %d ranks of %d threads, %zu MB planned here", e->k->name, e->comm->size,
             e->g.n_threads, e->plan.total >> 20);
    *out = e;
    e = NULL;
out:
    lh_engine_close(e);
    return st;
}

void lh_engine_close(lh_engine *e)
{
    if (!e)
        return;
    if (e->s) {
        const lh_device_ops *device = e->k->device;
        for (int i = 0; i < 2 * (LH_MAX_BATCH + 1); i++) {
            void *steps = e->recordings[i % 2][i / 2].steps;
            if (steps)
                device->forget(e->s, steps);
        }
        void *arenas[] = {e->arena_weights, e->arena_work, e->arena_comm,
                          e->arena_kda,     e->arena_conv, e->arena_latent};
        for (size_t i = 0; i < sizeof arenas / sizeof *arenas; i++)
            device->release(e->s, arenas[i]);
        device->release_host(e->s, e->arena_host);
        lh_synth_close(e->synth);
    }
    lh_expert_destroy(e->expert);
    if (e->comm != e->boot)
        lh_comm_destroy(e->comm);
    if (e->s)
        e->k->device->close(e->s);
    lh_checkpoint_close(e->checkpoint);
    free(e->device_w);
    free(e->slot_taken);
    lh_comm_destroy(e->boot);
    free(e);
}

void lh_runtime_finalize(void)
{
    lh_comm_mpi_finalize();
}

void lh_engine_abort(lh_engine *e, lh_status why)
{
    lh_comm_abort(e->comm, lh_exit_code(why));
}

int lh_engine_rank(const lh_engine *e)
{
    return e->comm->rank;
}

int lh_engine_size(const lh_engine *e)
{
    return e->comm->size;
}

const char *lh_engine_backend(const lh_engine *e)
{
    return e->k->name;
}

int64_t lh_engine_segment(const lh_engine *e)
{
    return e->g.segment;
}

int64_t lh_engine_block(const lh_engine *e)
{
    return e->g.block;
}

const lh_model_info *lh_engine_model(const lh_engine *e)
{
    return &e->info;
}

const lh_rank_plan *lh_engine_plan(const lh_engine *e)
{
    return &e->plan;
}

const lh_rank_plan *lh_engine_used(const lh_engine *e)
{
    return &e->used;
}

lh_status lh_engine_agree(lh_engine *e, lh_status mine)
{
    lh_comm_at(e->comm, "set-up", -1);
    return lh_comm_agree(e->comm, mine);
}

lh_status lh_engine_bcast(lh_engine *e, void *buf, size_t bytes)
{
    lh_comm_at(e->comm, "set-up", -1);
    return lh_comm_bcast(e->comm, buf, bytes, 0, NULL);
}
