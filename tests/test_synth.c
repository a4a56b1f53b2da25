/*
 * Synthetic weights: the elements, the checkpoint on disk against the weights in memory, and what
 * they do to activations. On several ranks each rank writes its own copy of the checkpoint.
 */
#include "base/mem.h"
#include "runtime/synth.h"
#include "tests/model_util.h"
#include "tests/temp_dir.h"

/* From tests/make/synth_values.py. */
static const struct {
    uint64_t seed;
    const char *name;
    uint64_t index;
    int flat;
    int32_t offset;
    float scale;
    uint32_t f32;
    uint16_t bf16;
} values[] = {
    {0u, "model.embed_tokens.weight", 0u, 0, 0, 3.0517578125e-05f, 0x3e94cc00, 0x3e95},
    {0u, "model.embed_tokens.weight", 1u, 0, 0, 3.0517578125e-05f, 0x3f7fc200, 0x3f80},
    {1u, "model.embed_tokens.weight", 1u, 0, 0, 3.0517578125e-05f, 0xbf462200, 0xbf46},
    {7u, "lm_head.weight", 377487359u, 0, 0, 5.5e-07f, 0xbc5ded86, 0xbc5e},
    {18446744073709551615u, "model.layers.26.block_sparse_moe.experts.255.w2.weight", 8589934597u,
     0, 605396, 1.65e-06f, 0x3f6dd67a, 0x3f6e},
    {3u, "model.layers.0.self_attn.A_log", 31u, 1, 0, 2.6441e-06f, 0x3f7f78ec, 0x3f7f},
    {3u, "model.layers.0.self_attn.dt_bias", 4095u, 1, -1555895, 4.43944e-06f, 0xc0ba7bce, 0xc0ba},
};

static void test_values(void)
{
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        lh_synth_law law = {lh_synth_key(values[i].seed, values[i].name), values[i].flat,
                            values[i].offset, values[i].scale};
        float x = lh_synth_f32(&law, values[i].index);
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        CHECK_EQ(bits, values[i].f32);
        CHECK_EQ(lh_synth_bf16(&law, values[i].index), values[i].bf16);
    }
}

/* Any window and any number of threads give the same bytes. */
static void test_any_cut(void)
{
    enum { BYTES = 1 << 20 };
    lh_synth_law law = {lh_synth_key(5, "x"), 0, 0, 1e-5f};
    const lh_synth_piece pieces[] = {{law, LH_SYNTH_AS_BF16, 3, 1001, 2002},
                                     {law, LH_SYNTH_AS_F32, 2006, 77, 308},
                                     {law, LH_SYNTH_AS_WIDENED, 2314, 200000, 800000},
                                     {law, LH_SYNTH_AS_BF16, 900000, 5, 10}};
    unsigned char *whole = malloc(BYTES), *again = malloc(BYTES);

    lh_synth_fill(pieces, 4, whole, 0, BYTES, 1);
    CHECK(whole[2] == 0 && whole[2005] == 0 && whole[899999] == 0 && whole[BYTES - 1] == 0);
    for (int trial = 0; trial < 20; trial++) {
        memset(again, 0xa5, BYTES);
        for (size_t at = 0, n; at < BYTES; at += n) {
            n = trial == 0 ? BYTES : 1 + check_random() % (trial % 2 ? 5000 : 800000);
            n = n < BYTES - at ? n : BYTES - at;
            lh_synth_fill(pieces, 4, again + at, at, at + n, 1 + trial % 5);
        }
        CHECK_SAME_BITS(again, whole, BYTES);
    }
    free(whole);
    free(again);
}

/* Every 4th layer and the last one is MLA. */
static void write_config(const char *name, int n_layers, int d_model, int n_experts, int top_k)
{
    char kda[256] = "", mla[256] = "", text[2048];

    for (int i = 1; i <= n_layers; i++) {
        char *list = i % 4 == 0 || i == n_layers ? mla : kda;
        (void)snprintf(list + strlen(list), 256 - strlen(list), *list ? ",%d" : "%d", i);
    }
    (void)snprintf(
        text, sizeof text,
        "{\"model_type\":\"kimi_linear\",\"dtype\":\"bfloat16\",\"vocab_size\":515,"
        "\"hidden_size\":%d,\"num_hidden_layers\":%d,\"num_attention_heads\":4,"
        "\"num_key_value_heads\":4,\"linear_attn_config\":{\"num_heads\":4,\"head_dim\":32,"
        "\"short_conv_kernel_size\":4,\"kda_layers\":[%s],\"full_attn_layers\":[%s]},"
        "\"kv_lora_rank\":48,\"qk_nope_head_dim\":32,\"qk_rope_head_dim\":16,\"v_head_dim\":32,"
        "\"mla_use_nope\":true,\"intermediate_size\":%d,\"first_k_dense_replace\":1,"
        "\"num_experts\":%d,\"num_experts_per_token\":%d,\"num_shared_experts\":1,"
        "\"moe_intermediate_size\":40,\"routed_scaling_factor\":2.446,\"moe_renormalize\":true,"
        "\"rms_norm_eps\":1e-5,\"model_max_length\":4096}",
        d_model, n_layers, kda, mla, 4 * d_model, n_experts, top_k);
    temp_write_text(name, text);
}

static void remove_checkpoint(const char *name)
{
    char path[1024];
    DIR *d = opendir(temp_path(name));

    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.') {
            (void)snprintf(path, sizeof path, "%s/%s", temp_path(name), e->d_name);
            (void)unlink(path);
        }
    if (d)
        (void)closedir(d);
    (void)rmdir(temp_path(name));
}

static lh_status write_checkpoint(const char *name, lh_synth_opts o)
{
    return lh_synth_write(temp_path("small.json"), temp_path(name), &o);
}

static void test_write(void)
{
    lh_synth_opts o = {.seed = 3, .router_skew = 1, .n_threads = 2, .n_shards = 3};
    lh_dims d;
    lh_checkpoint *c = NULL;
    char path[600];

    temp_dir_clear();
    write_config("small.json", 5, 64, 6, 2);
    CHECK_OK(mkdir(temp_path("out"), 0777) == 0 ? LH_OK : LH_ERR_IO);
    CHECK_OK(write_checkpoint("out/", o)); /* into an empty directory */
    CHECK_STATUS(write_checkpoint("out", o), LH_ERR_USAGE);
    CHECK(strstr(lh_last_error(), "nothing is overwritten"));
    CHECK_STATUS(write_checkpoint("small.json", o), LH_ERR_USAGE); /* a file */
    o.n_shards = 1000;
    CHECK_STATUS(write_checkpoint("other", o), LH_ERR_USAGE);
    CHECK_OK(lh_config_read(&d, temp_path("out"), NULL));
    CHECK_OK(lh_checkpoint_open(&c, temp_path("out"), &d));
    CHECK_EQ(lh_checkpoint_n_files(c), 3);
    lh_checkpoint_close(c);

    /* one shard, other threads: the same values */
    o.n_shards = 0;
    o.n_threads = 1;
    CHECK_OK(write_checkpoint("one", o));
    (void)snprintf(path, sizeof path, "%s/model-00001-of-00001.safetensors", temp_path("one"));
    CHECK(access(path, R_OK) == 0);
    lh_inspection *a = NULL, *b = NULL;
    CHECK_OK(lh_inspect(&a, temp_path("out"), 1, NULL, NULL));
    CHECK_OK(lh_inspect(&b, temp_path("one"), 1, NULL, NULL));
    CHECK_EQ(a->n_tensors, b->n_tensors);
    CHECK_EQ(a->n_nonfinite + b->n_nonfinite, 0);
    lh_inspection_free(a);
    lh_inspection_free(b);
    remove_checkpoint("out");
    remove_checkpoint("one");

    int left = 0; /* nothing but the config, no temporary directory */
    DIR *dir = opendir(temp_dir);
    while (dir && readdir(dir))
        left++;
    CHECK_EQ(left, 3);
    if (dir)
        (void)closedir(dir);
}

static lh_engine *open_weights(const char *name, const char *weights, int over_ranks, int n_threads,
                               double skew)
{
    lh_engine *e = NULL;
    lh_status st = lh_engine_open(&e, &(lh_engine_opts){.model_dir = temp_path(name),
                                                        .backend = "cpu",
                                                        .use_mpi = over_ranks && under_mpi(),
                                                        .n_threads = n_threads,
                                                        .segment_tokens = 64,
                                                        .context_tokens = 400,
                                                        .weights = weights,
                                                        .synth_seed = 3,
                                                        .router_skew = skew});
    if (st != LH_OK) {
        printf("engine: %s\n", lh_last_error());
        exit(1);
    }
    return e;
}

enum { N_TOKENS = 300, N_LOGITS = 40 };
static int size_of_job = 1;

static void logits_of(lh_engine *e, float *out)
{
    int32_t tokens[N_TOKENS];
    lh_session *s = open_session(e);

    for (int i = 0; i < N_TOKENS; i++)
        tokens[i] = (int32_t)(lh_synth_bits(1, (uint64_t)i) % (uint64_t)e->d.n_vocab);
    CHECK_OK(feed(e, s, tokens, N_TOKENS, N_LOGITS, out));
    lh_session_destroy(s);
}

/* In memory as on disk, alone as on ranks. */
static void test_same_logits(void)
{
    lh_synth_opts o = {.seed = 3, .router_skew = 0.5, .n_threads = 1, .n_shards = 2};
    const char *weights[] = {"checkpoint", "synthetic", "synthetic"};
    float *want = NULL, *got = NULL;

    temp_dir_clear();
    write_config("small.json", 5, 64, 7, 2);
    CHECK_OK(write_checkpoint("model", o));
    for (int i = 0; i < 3; i++) {
        lh_engine *e = open_weights("model", weights[i], i != 1, 1 + i, 0.5);
        size_t bytes = N_LOGITS * (size_t)e->d.n_vocab * sizeof *want;
        float **out = i == 0 ? &want : &got;
        size_of_job = lh_engine_size(e) > 1 ? lh_engine_size(e) : size_of_job;
        *out = *out ? *out : malloc(bytes);
        logits_of(e, *out);
        if (i > 0)
            CHECK_SAME_BITS(got, want, bytes);
        lh_engine_close(e);
    }
    free(want);
    free(got);
    remove_checkpoint("model");
}

/* Through a device whose memory is not the host's, as far as lh_synth_bind knows: some of the
 * experts, against the same from disk. */
static void test_bind(void)
{
    lh_synth_opts o = {.seed = 3, .router_skew = 1, .n_threads = 2};
    lh_device_ops other = lh_device_cpu;
    lh_kernels k = lh_kernels_cpu;
    const lh_weights *a = NULL, *b = NULL;
    size_t dense[2], experts[2], row;
    lh_synth *y = NULL;
    lh_checkpoint *c = NULL;
    lh_stream *s = NULL;
    lh_dims d;

    temp_dir_clear();
    write_config("small.json", 5, 64, 7, 2);
    CHECK_OK(write_checkpoint("model", o));
    CHECK_OK(lh_config_read(&d, temp_path("model"), NULL));
    CHECK_OK(lh_checkpoint_open(&c, temp_path("model"), &d));
    CHECK_OK(lh_checkpoint_bind(c, 2, 5, &a, &dense[0], &experts[0], NULL, NULL));
    other.reads_host = 0;
    k.device = &other;
    CHECK_OK(other.open(&s, 0, 1, 1));
    CHECK_OK(lh_synth_bind(&y, &d, &o, &k, s, 2, 5, &b, &dense[1], &experts[1]));
    CHECK_EQ(dense[1], dense[0]);
    CHECK_EQ(experts[1], experts[0]);
    row = (size_t)d.d_model * sizeof(lh_bf16);
    CHECK_SAME_BITS(a->embed, b->embed, (size_t)d.n_vocab * row);
    CHECK_SAME_BITS(a->head, b->head, (size_t)d.n_vocab * row);
    for (int l = 1; l < d.n_layers; l++) {
        const lh_layer_weights *x = &a->layers[l], *z = &b->layers[l];
        CHECK_SAME_BITS(x->router_bias, z->router_bias, (size_t)d.n_experts * sizeof(float));
        CHECK_SAME_BITS(x->down, z->down, (size_t)d.d_shared * row);
        for (int e = 0; e < d.n_experts; e++) {
            CHECK_EQ(z->w_gate[e] != NULL, e >= 2 && e < 5);
            if (x->w_gate[e])
                CHECK_SAME_BITS(x->w_gate[e], z->w_gate[e], (size_t)d.d_expert * row);
        }
    }
    CHECK_SAME_BITS(a->layers[0].a_log, b->layers[0].a_log, (size_t)d.kda_heads * sizeof(float));
    lh_synth_close(y);
    other.close(s);
    lh_checkpoint_close(c);
    remove_checkpoint("model");
}

/* ------------------------------------------------- logits group by group */

typedef struct groups {
    const float *want;
    int64_t n_vocab, next;
} groups;

static lh_status take_group(void *user, int64_t first, int64_t n, const float *logits)
{
    groups *g = user;

    CHECK(n >= 1 && n <= LH_LOGIT_ROWS);
    CHECK_EQ(first, g->next);
    CHECK_SAME_BITS(logits, g->want + (first - (N_TOKENS - N_LOGITS)) * g->n_vocab,
                    (size_t)(n * g->n_vocab) * sizeof *logits);
    g->next = first + n;
    return LH_OK;
}

static lh_status refuse_group(void *user, int64_t first, int64_t n, const float *logits)
{
    (void)user, (void)first, (void)n, (void)logits;
    return LH_FAIL(LH_ERR_IO, "no more");
}

static void test_groups(void)
{
    int32_t tokens[N_TOKENS];

    temp_dir_clear();
    write_config("config.json", 5, 64, 7, 2);
    lh_engine *e = open_weights(".", "synthetic", 1, 2, 0);
    size_t row = (size_t)e->d.n_vocab * sizeof(float);
    float *want = malloc(N_LOGITS * row), *group = malloc(LH_LOGIT_ROWS * row);
    groups g = {want, e->d.n_vocab, N_TOKENS - N_LOGITS};
    const lh_draw greedy = {.how = {.top_p = 1}};
    int32_t drawn = -1;
    lh_session *s = open_session(e);

    for (int i = 0; i < N_TOKENS; i++)
        tokens[i] = (int32_t)(lh_synth_bits(1, (uint64_t)i) % (uint64_t)e->d.n_vocab);
    lh_step_item item = turn(s, tokens, N_TOKENS, N_LOGITS, want);
    CHECK_OK(lh_step(e, &item, 1));
    CHECK_OK(lh_session_reset(s));
    item.logits = group;
    item.draw = &greedy;
    item.token = &drawn;
    CHECK_OK(lh_step_groups(e, &item, take_group, &g));
    CHECK_EQ(g.next, N_TOKENS);
    CHECK_EQ(drawn,
             lh_sample(want + (N_LOGITS - 1) * e->d.n_vocab, e->d.n_vocab, &greedy.how, 0, NULL));
    CHECK_OK(lh_session_reset(s));
    CHECK_STATUS(lh_step_groups(e, &item, refuse_group, NULL), LH_ERR_IO);
    lh_session_destroy(s);
    lh_engine_close(e);
    free(want);
    free(group);
}

/* ------------------------------------------------------------- statistics */

typedef struct seen {
    const lh_engine *e;
    double low, high; /* of the RMS of the stream before each layer and after the last */
    double chosen[64];
} seen;

static void observe(void *user, const char *what, int layer, const void *rows, int64_t n_rows,
                    const int64_t *position)
{
    seen *x = user;
    const float *h = rows;
    const int32_t *id = rows;
    int64_t n = n_rows * x->e->d.d_model;
    double sum = 0;

    (void)position;
    for (int64_t i = 0; layer == 1 && strcmp(what, "expert") == 0 && i < n_rows * x->e->d.top_k;
         i++)
        x->chosen[id[i]]++;
    if (strcmp(what, "hidden") != 0)
        return;
    for (int64_t i = 0; i < n; i++)
        sum += (double)h[i] * (double)h[i];
    sum = sqrt(sum / (double)n);
    x->low = sum < x->low ? sum : x->low;
    x->high = sum > x->high ? sum : x->high;
}

/* The largest share of any expert, of an even one. */
static double run_observed(double skew, seen *x)
{
    lh_engine *e = open_weights(".", "synthetic", 0, 2, skew);
    float *logits = malloc((size_t)N_LOGITS * (size_t)e->d.n_vocab * sizeof *logits);
    double sum = 0, top = 0;

    *x = (seen){.e = e, .low = 1e30};
    e->observer = (lh_observer){observe, x};
    logits_of(e, logits);
    for (int64_t i = 0; i < N_LOGITS * e->d.n_vocab; i++)
        sum += (double)logits[i] * (double)logits[i];
    sum = sqrt(sum / (double)(N_LOGITS * e->d.n_vocab));
    CHECK_MSG(sum > 0.7 && sum < 1.4, "RMS of the logits: %g", sum);
    for (int i = 0; i < e->d.n_experts; i++)
        top = fmax(top, x->chosen[i] * e->d.n_experts / (N_TOKENS * e->d.top_k));
    free(logits);
    lh_engine_close(e);
    return top;
}

static void test_statistics(void)
{
    seen x;

    temp_dir_clear();
    write_config("config.json", 27, 256, 32, 4);
    double even = run_observed(0, &x);
    printf("stream %.3f to %.3f; the largest expert has %.2f of an even share", x.low, x.high,
           even);
    CHECK_MSG(x.low > 0.5 && x.high < 4, "RMS of the stream: %g to %g", x.low, x.high);
    CHECK_MSG(even < 2.5, "%g of an even share", even);
    double skewed = run_observed(4, &x);
    printf(", with skew 4 %.2f\n", skewed);
    CHECK_MSG(x.low > 0.5 && x.high < 4, "RMS of the stream: %g to %g", x.low, x.high);
    CHECK_MSG(skewed > 5, "%g of an even share", skewed);
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    temp_dir_create();
    RUN(test_values);
    RUN(test_any_cut);
    RUN(test_write);
    RUN(test_bind);
    RUN(test_same_logits);
    RUN(test_groups);
    if (size_of_job == 1)
        RUN(test_statistics);
    temp_dir_remove();
    lh_runtime_finalize();
    return check_done();
}
