/*
 * Plans of whole jobs: sizes of changed models, what fits and what does not, the largest context.
 */
#include <jansson.h>

#include "base/mem.h"
#include "runtime/engine_internal.h"
#include "tests/check.h"
#include "tests/temp_dir.h"

#define PUBLISHED LH_SOURCE_DIR "/tests/golden/kimi-linear-48b"
#define NEEDLE LH_SOURCE_DIR "/models/needle"

static lh_plan *make(const lh_plan_opts *o)
{
    lh_plan *p = NULL;
    lh_status st = lh_plan_make(&p, o);

    CHECK_MSG(st == LH_OK, "%s", lh_last_error());
    if (!p)
        exit(1);
    return p;
}

/* The published shape with an MLA layer in place of every KDA layer. */
static void write_all_mla(void)
{
    json_t *config = json_load_file(PUBLISHED "/config.json", 0, NULL), *layers = json_array();
    json_t *linear = json_object_get(config, "linear_attn_config");
    json_int_t n = json_integer_value(json_object_get(config, "num_hidden_layers"));

    for (json_int_t i = 1; i <= n; i++)
        json_array_append_new(layers, json_integer(i));
    json_object_set_new(linear, "full_attn_layers", layers);
    json_object_set_new(linear, "kda_layers", json_array());
    char *text = json_dumps(config, 0);
    CHECK(text);
    temp_write_text("config.json", text);
    free(text);
    json_decref(config);
}

static void test_all_mla(void)
{
    lh_plan_opts o = {.model_dir = temp_dir, .backend = "cuda", .n_ranks = 1};

    write_all_mla();
    for (o.context_tokens = 512; o.context_tokens <= 1 << 20; o.context_tokens *= 2) {
        lh_plan *p = make(&o);
        CHECK_EQ(p->model.n_mla_layers, 27);
        CHECK_EQ(p->ranks[0].latent_cache, 31104 * o.context_tokens); /* 27 * (512 + 64) * 2 */
        CHECK_EQ(p->ranks[0].kda_state + p->ranks[0].conv_state, 0);
        lh_plan_free(p);
    }
}

/* A GPU carries KDA's state by runs, as its engine does, or by segments, which needs more maps. */
static void test_deterministic(void)
{
    lh_plan_opts o = {.model_dir = PUBLISHED, .backend = "cuda", .n_ranks = 1};
    lh_plan *by_runs = make(&o), *by_segments;

    o.deterministic = 1;
    by_segments = make(&o);
    CHECK(by_runs->ranks[0].workspace < by_segments->ranks[0].workspace);
    lh_plan_free(by_runs);
    lh_plan_free(by_segments);
}

static size_t largest_total(lh_plan_opts o, int64_t context)
{
    size_t most = 0;

    o.memory_bytes = 0;
    o.context_tokens = context;
    lh_plan *p = make(&o);
    for (int r = 0; r < p->n_ranks; r++)
        most = p->ranks[r].total > most ? p->ranks[r].total : most;
    lh_plan_free(p);
    return most;
}

/* The answer fits, and a segment more does not. */
static void check_largest(const lh_plan_opts *o)
{
    int64_t segment = o->segment_tokens ? o->segment_tokens : 512;
    lh_plan *p = make(o);
    int64_t at = p->largest_context, all = p->model.max_context;

    CHECK_EQ(p->fits, largest_total(*o, o->context_tokens) <= o->memory_bytes);
    CHECK_EQ(p->fits, p->shortage[0] == '\0');
    CHECK(at == all || at % segment == 0);
    CHECK(at == 0 || largest_total(*o, at) <= o->memory_bytes);
    CHECK(at == all || largest_total(*o, lh_min64(at + segment, all)) > o->memory_bytes);
    lh_plan_free(p);
}

static void test_largest_context(void)
{
    static const lh_plan_opts jobs[] = {
        {.model_dir = NEEDLE, .backend = "cpu", .n_ranks = 1, .context_tokens = 4096},
        {.model_dir = NEEDLE, .backend = "cpu", .n_ranks = 3, .n_threads = 2, .batch = 5},
        {.model_dir = NEEDLE, .backend = "cuda", .n_ranks = 2, .segment_tokens = 192},
        {.model_dir = NEEDLE, .backend = "cpu", .n_ranks = 1, .block_tokens = 100000}};

    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++) {
        lh_plan_opts o = jobs[i];
        size_t least = largest_total(o, o.segment_tokens ? o.segment_tokens : 512);
        size_t most = largest_total(o, 0);
        for (int k = 0; k < 8; k++) {
            o.memory_bytes = least + (most - least) / 8 * (size_t)k;
            check_largest(&o);
            o.memory_bytes += check_random() % (most - least);
            check_largest(&o);
        }
        o.memory_bytes = least - 1;
        check_largest(&o);
        o.memory_bytes = most;
        check_largest(&o);
        o.memory_bytes = most - 1;
        check_largest(&o);
    }
}

/* Ranks of a host share its memory, and the pages of mapped dense weights. */
static void test_sharing(void)
{
    lh_room rooms[4] = {
        {.plan = {.weights_dense = 100, .total = 150}, .bytes = 200, .is_mapped = 1, .host = "a"},
        {.plan = {.weights_dense = 100, .total = 150}, .bytes = 201, .is_mapped = 1, .host = "a"},
        {.plan = {.weights_dense = 100, .total = 150}, .bytes = 150, .host = "b"},
        {.plan = {.weights_dense = 100, .total = 150}, .bytes = 150}};
    lh_fit f = {.settings = {.size = 4}, .rooms = rooms};

    for (int r = 0; r < 4; r++)
        CHECK(lh_fits(&f, r));
    rooms[0].bytes = 199; /* seen by the other rank, too */
    rooms[2].bytes = rooms[3].bytes = 149;
    for (int r = 0; r < 4; r++)
        CHECK(!lh_fits(&f, r));
    rooms[0].bytes = 299;
    rooms[0].is_mapped = rooms[1].is_mapped = 0;
    CHECK(!lh_fits(&f, 1));
    rooms[0].bytes = rooms[1].bytes = SIZE_MAX; /* nobody knows */
    CHECK(lh_fits(&f, 0));
}

/* Ranks of GPUs have room for the sums of a sequence's sections, as many as there are at all
 * lengths, and share keys where it pays; CPUs have room for ranges, and always do. */
static void test_shared_keys(void)
{
    const lh_kernels *gpu = lh_kernels_cuda_sizes();
    lh_settings o = {.size = 2, .n_threads = 1, .max_sessions = 3};
    lh_dims *d = calloc(1, sizeof *d);
    lh_geometry g;

    CHECK_OK(lh_config_read(d, PUBLISHED, NULL));
    for (int on_gpu = 0; on_gpu <= 1; on_gpu++) {
        const lh_kernels *k = on_gpu ? gpu : &lh_kernels_cpu;
        int64_t rows = on_gpu ? gpu->mla_sections : LH_MLA_RANGES;
        lh_workspace w = {0};
        CHECK_OK(lh_geometry_make(&g, d, k, k->act_bytes, &o));
        lh_workspace_layout(&w, (void *)(uintptr_t)256, &g);
        CHECK_EQ((char *)w.step.scores - (char *)w.step.mla_partial,
                 3 * rows * lh_mla_partial_size(d->mla_heads, d->d_latent) * 4);
        CHECK_EQ(lh_step_shares_keys(&g, 1, 1), !on_gpu);
        CHECK(lh_step_shares_keys(&g, 1, 131072));
        CHECK_EQ(lh_step_shares_keys(&g, 64, 131072), !on_gpu);
        CHECK(lh_step_shares_keys(&g, 64, 1 << 20));
    }
    o.size = gpu->mla_sections + 1; /* one would have none */
    CHECK_OK(lh_geometry_make(&g, d, gpu, gpu->act_bytes, &o));
    CHECK(!lh_step_shares_keys(&g, 1, 1 << 20));
    o.size = 1;
    CHECK_OK(lh_geometry_make(&g, d, &lh_kernels_cpu, 4, &o));
    CHECK(!lh_step_shares_keys(&g, 1, 1 << 20));
    free(d);
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    temp_dir_create();
    RUN(test_all_mla);
    RUN(test_deterministic);
    RUN(test_largest_context);
    RUN(test_sharing);
    RUN(test_shared_keys);
    temp_dir_remove();
    return check_done();
}
