#include <jansson.h>

#include "base/sha256.h"
#include "runtime/checkpoint.h"
#include "runtime/safetensors.h"
#include "tests/check.h"
#include "tests/temp_dir.h"

#define INDEX "model.safetensors.index.json"
#define MAX_TENSORS 256

/* ------------------------------------------------- checkpoints on disk */

static void put(lh_sha256 *s, const void *p, int64_t n, size_t elem_bytes)
{
    CHECK(p || n == 0);
    if (p)
        lh_sha256_update(s, p, (size_t)n * elem_bytes);
}

/* All weights in the order of the structs, experts one after the other. */
static void digest_weights(char out[65], const lh_weights *w, const lh_dims *d)
{
    const int64_t kda = (int64_t)d->kda_heads * d->kda_dim, m = d->d_model;
    unsigned char sum[32];
    lh_sha256 s;

    lh_sha256_init(&s);
    put(&s, w->embed, d->n_vocab * m, 2);
    put(&s, w->final_norm, m, 2);
    put(&s, w->head, d->n_vocab * m, 2);
    for (int i = 0; i < d->n_layers; i++) {
        const lh_layer_weights *l = &w->layers[i];
        int64_t ffn = i < d->n_dense_layers ? d->d_ffn : d->d_shared;
        put(&s, l->attn_norm, m, 2);
        put(&s, l->ffn_norm, m, 2);
        if (d->attn[i] == LH_ATTN_KDA) {
            put(&s, l->q, kda * m, 2);
            put(&s, l->k, kda * m, 2);
            put(&s, l->v, kda * m, 2);
            put(&s, l->q_conv, kda * d->taps, 2);
            put(&s, l->k_conv, kda * d->taps, 2);
            put(&s, l->v_conv, kda * d->taps, 2);
            put(&s, l->f_a, d->kda_dim * m, 2);
            put(&s, l->g_a, d->kda_dim * m, 2);
            put(&s, l->f_b, kda * d->kda_dim, 2);
            put(&s, l->g_b, kda * d->kda_dim, 2);
            put(&s, l->b, d->kda_heads * m, 2);
            put(&s, l->a_log, d->kda_heads, 4);
            put(&s, l->dt_bias, kda, 4);
            put(&s, l->o_norm, d->kda_dim, 2);
            put(&s, l->o, m * kda, 2);
        } else {
            put(&s, l->mla_q, (int64_t)d->mla_heads * (d->d_nope + d->d_rope) * m, 2);
            put(&s, l->kv_a, (d->d_latent + d->d_rope) * m, 2);
            put(&s, l->kv_norm, d->d_latent, 2);
            put(&s, l->kv_b, (int64_t)d->mla_heads * (d->d_nope + d->d_v) * d->d_latent, 2);
            put(&s, l->o, m * d->mla_heads * d->d_v, 2);
        }
        put(&s, l->gate, ffn * m, 2);
        put(&s, l->up, ffn * m, 2);
        put(&s, l->down, m * ffn, 2);
        if (i < d->n_dense_layers)
            continue;
        put(&s, l->router, d->n_experts * m, 2);
        put(&s, l->router_bias, d->n_experts, 4);
        for (int e = 0; e < d->n_experts; e++) {
            put(&s, l->w_gate[e], d->d_expert * m, 2);
            put(&s, l->w_up[e], d->d_expert * m, 2);
            put(&s, l->w_down[e], m * d->d_expert, 2);
        }
    }
    lh_sha256_final(&s, sum);
    for (int i = 0; i < 32; i++)
        (void)snprintf(out + 2 * i, 3, "%02x", sum[i]);
}

/* Opens a directory and binds all of it; the digest of what was bound. */
static lh_status digest_dir(char out[65], const char *dir)
{
    lh_dims d;
    lh_checkpoint *c = NULL;
    const lh_weights *w = NULL;
    size_t dense = 0, experts = 0;
    lh_status st = lh_config_read(&d, dir, NULL);

    out[0] = '\0';
    if (st == LH_OK)
        st = lh_checkpoint_open(&c, dir, &d);
    if (st == LH_OK)
        st = lh_checkpoint_bind(c, 0, d.n_experts, &w, &dense, &experts, NULL, NULL);
    if (st == LH_OK)
        digest_weights(out, w, &d);
    lh_checkpoint_close(c);
    return st;
}

/* The digests are from a Python program over the same files. */
static void test_golden(void)
{
    static const char *const cases[][2] = {
        {"tests/golden/alpha", "42fcad17b3cd42e24e1a8daf7bbdf77dfa97c783ef6983916b2b9d3dddb3cffc"},
        {"tests/golden/beta", "9d37258e11b52f559152c0f91a3e6b2ec28c09ac9aecacf9bc9e557c5713ea9b"},
        {"models/needle", "b8155fe860cc1f4973381059b138a0800814133aa39377fd6f2d21ecf0cb4f79"},
    };
    char dir[512], digest[65];

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        (void)snprintf(dir, sizeof dir, LH_SOURCE_DIR "/%s", cases[i][0]);
        CHECK_OK(digest_dir(digest, dir));
        CHECK_STR(digest, cases[i][1]);
    }
}

/* ------------------------------------ a small checkpoint of the test's own */

static const char small_config[] =
    "{\"model_type\":\"kimi_linear\",\"dtype\":\"bfloat16\",\"vocab_size\":16,\"hidden_size\":8,"
    "\"num_hidden_layers\":3,\"num_attention_heads\":1,\"num_key_value_heads\":1,"
    "\"linear_attn_config\":{\"num_heads\":2,\"head_dim\":4,\"short_conv_kernel_size\":3,"
    "\"kda_layers\":[1,2],\"full_attn_layers\":[3]},\"kv_lora_rank\":5,\"qk_nope_head_dim\":4,"
    "\"qk_rope_head_dim\":2,\"v_head_dim\":3,\"mla_use_nope\":true,\"intermediate_size\":6,"
    "\"first_k_dense_replace\":1,\"num_experts\":2,\"num_experts_per_token\":1,"
    "\"num_shared_experts\":1,\"moe_intermediate_size\":7,\"routed_scaling_factor\":2.0,"
    "\"rms_norm_eps\":1e-5,\"use_cache\":true}";

static lh_dims dims;
static lh_st_tensor tensors[MAX_TENSORS + 1]; /* room for one more */
static char names[MAX_TENSORS][160];
static int n_tensors;

/* Every expected tensor with random finite values; the router's bias in bf16, as published. */
static void make_tensors(const char *config)
{
    temp_dir_clear();
    temp_write_text("config.json", config);
    CHECK_OK(lh_config_read(&dims, temp_dir, NULL));
    n_tensors = (int)lh_expected_count(&dims);
    CHECK(n_tensors <= MAX_TENSORS);
    for (int i = 0; i < n_tensors; i++) {
        lh_expected e;
        size_t n = 1;
        lh_expected_tensor(&e, &dims, i);
        strcpy(names[i], e.name);
        tensors[i] = (lh_st_tensor){.name = names[i], .n_dims = e.n_dims};
        memcpy(tensors[i].dims, e.dims, sizeof e.dims);
        for (int k = 0; k < e.n_dims; k++)
            n *= (size_t)e.dims[k];
        tensors[i].dtype = e.allow_bf16 ? "BF16" : "F32";
        tensors[i].bytes = n * (e.allow_bf16 ? 2 : 4);
        uint16_t *p = malloc(tensors[i].bytes);
        for (size_t k = 0; k < tensors[i].bytes / 2; k++)
            p[k] = (uint16_t)(check_random() & 0xbfff);
        tensors[i].data = p;
    }
}

static void free_tensors(void)
{
    for (int i = 0; i < n_tensors; i++)
        free((void *)(uintptr_t)tensors[i].data);
}

static lh_status open_small(void)
{
    lh_checkpoint *c = NULL;
    lh_status st = lh_checkpoint_open(&c, temp_dir, &dims);
    lh_checkpoint_close(c);
    return st;
}

static lh_status write_single(const lh_st_tensor *t, int n)
{
    return lh_safetensors_write(temp_path("model.safetensors"), t, n);
}

/* Refused, and the message says why. */
static void check_refused(lh_status want, const char *text)
{
    lh_status st = open_small();
    CHECK_MSG(st == want, "%s: %s, expected %s", text, lh_status_name(st), lh_status_name(want));
    CHECK_MSG(strstr(lh_last_error(), text), "'%s' lacks '%s'", lh_last_error(), text);
}

/* Each tensor in turn is missing, misnamed, of another shape, of another type. */
static void test_each_tensor(void)
{
    static lh_st_tensor changed[MAX_TENSORS];

    make_tensors(small_config);
    CHECK_OK(write_single(tensors, n_tensors));
    CHECK_OK(open_small());
    for (int i = 0; i < n_tensors; i++) {
        memcpy(changed, tensors, sizeof changed);
        changed[i].name = "model.other";
        CHECK_OK(write_single(changed, n_tensors));
        check_refused(LH_ERR_DATA, names[i]);

        changed[i] = tensors[i];
        changed[i].dims[changed[i].n_dims++] = 1;
        CHECK_OK(write_single(changed, n_tensors));
        check_refused(LH_ERR_DATA, names[i]);

        changed[i] = tensors[i];
        changed[i].dtype = strcmp(tensors[i].dtype, "F32") == 0 ? "I32" : "F16";
        CHECK_OK(write_single(changed, n_tensors));
        check_refused(LH_ERR_DATA, names[i]);

        memmove(changed + i, tensors + i + 1, (size_t)(n_tensors - 1 - i) * sizeof *changed);
        CHECK_OK(write_single(changed, n_tensors - 1));
        check_refused(LH_ERR_DATA, names[i]);
    }
    tensors[n_tensors] = (lh_st_tensor){.name = "model.extra", .dtype = "F32"};
    tensors[n_tensors].dims[0] = 0;
    tensors[n_tensors].n_dims = 1;
    CHECK_OK(write_single(tensors, n_tensors + 1));
    check_refused(LH_ERR_DATA, "model.extra");
    free_tensors();
}

/* --------------------------------------------------------------- the index */

/* Two shards, odd and even tensors; the index as an object to be changed. */
static json_t *write_shards(void)
{
    static lh_st_tensor part[2][MAX_TENSORS];
    json_t *map = json_object();
    int n[2] = {0, 0};

    make_tensors(small_config);
    for (int i = 0; i < n_tensors; i++) {
        part[i % 2][n[i % 2]++] = tensors[i];
        (void)json_object_set_new(map, names[i],
                                  json_string(i % 2 ? "b.safetensors" : "a.safetensors"));
    }
    CHECK_OK(lh_safetensors_write(temp_path("a.safetensors"), part[0], n[0]));
    CHECK_OK(lh_safetensors_write(temp_path("b.safetensors"), part[1], n[1]));
    return json_pack("{s:{s:i}, s:o}", "metadata", "total_size", 1, "weight_map", map);
}

static void write_index(json_t *index)
{
    char *text = json_dumps(index, 0);
    temp_write_text(INDEX, text);
    free(text);
}

static void test_index(void)
{
    json_t *index = write_shards(), *map = json_object_get(index, "weight_map");
    char digest[65], single[65];

    write_index(index);
    CHECK_OK(digest_dir(digest, temp_dir));
    temp_write_text("model.safetensors", "not looked at: the index wins");
    CHECK_OK(digest_dir(single, temp_dir));
    CHECK_STR(digest, single);
    CHECK_EQ(remove(temp_path(INDEX)), 0);
    CHECK_OK(write_single(tensors, n_tensors));
    CHECK_OK(digest_dir(single, temp_dir));
    CHECK_STR(digest, single);

    /* one shard named for a tensor of the other */
    (void)json_object_set_new(map, names[4], json_string("b.safetensors"));
    write_index(index);
    check_refused(LH_ERR_DATA, names[4]);
    (void)json_object_del(map, names[4]);
    write_index(index);
    check_refused(LH_ERR_DATA, names[4]);
    (void)json_object_set_new(map, names[4], json_string("a.safetensors"));
    (void)json_object_set_new(map, "model.none", json_string("a.safetensors"));
    write_index(index);
    check_refused(LH_ERR_DATA, "model.none");
    (void)json_object_set_new(map, "model.none", json_string("c.safetensors"));
    write_index(index);
    check_refused(LH_ERR_OPEN, "c.safetensors");
    /* a tensor in two shards, whichever of them the index names */
    CHECK_OK(lh_safetensors_write(temp_path("c.safetensors"), tensors, 1));
    (void)json_object_del(map, "model.none");
    (void)json_object_set_new(map, names[1], json_string("c.safetensors"));
    write_index(index);
    check_refused(LH_ERR_DATA, names[1]);
    (void)json_object_set_new(map, names[1], json_string("b.safetensors"));
    (void)json_object_set_new(map, names[0], json_string("c.safetensors"));
    write_index(index);
    check_refused(LH_ERR_DATA, names[0]);
    json_decref(index);
    free_tensors();
}

static void test_broken_index(void)
{
    static const char *const texts[] = {
        "",
        "{",
        "[]",
        "{}",
        "{\"weight_map\":[]}",
        "{\"weight_map\":{}}",
        "{\"weight_map\":null}",
        "{\"weight_map\":{\"a\":1}}",
        "{\"weight_map\":{\"a\":null}}",
        "{\"weight_map\":{\"a\":[\"a.safetensors\"]}}",
        "{\"weight_map\":{\"a\":\"a.safetensors\",\"a\":\"a.safetensors\"}}",
    };

    json_decref(write_shards());
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        temp_write_text(INDEX, texts[i]);
        check_refused(LH_ERR_DATA, INDEX);
    }
    free_tensors();
}

/* Names that leave the directory, or are no files. */
static void test_shard_names(void)
{
    static const char *const bad[] = {
        "../x", "..",      ".",         "",        "/etc/passwd", "a/b",       "a/",
        "./a",  ".hidden", "..\\\\x",   "a\\\\b",  "\\u0000",     "a\\u0000b", "/",
        "//a",  "a/../b",  "/dev/zero", "\\ud800", "~/../a/b",    "C:\\\\a",
    };
    char text[256], long_name[400];

    json_decref(write_shards());
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        (void)snprintf(text, sizeof text, "{\"weight_map\":{\"a\":\"%s\"}}", bad[i]);
        temp_write_text(INDEX, text);
        check_refused(LH_ERR_DATA, INDEX);
    }
    memset(long_name, 'n', sizeof long_name);
    memcpy(long_name, "{\"weight_map\":{\"a\":\"", 20);
    strcpy(long_name + 300, "\"}}");
    temp_write_text(INDEX, long_name);
    check_refused(LH_ERR_DATA, INDEX);
    free_tensors();
}

static void test_shard_files(void)
{
    json_t *index = write_shards();
    const char *a = temp_path("a.safetensors"), *moved = temp_path("moved");
    char path[512], elsewhere[512];

    strcpy(path, a);
    strcpy(elsewhere, moved);
    write_index(index);
    CHECK_EQ(rename(path, elsewhere), 0);
    check_refused(LH_ERR_OPEN, "a.safetensors");
    CHECK_EQ(mkfifo(path, 0600), 0);
    check_refused(LH_ERR_DATA, "not a regular file");
    CHECK_EQ(remove(path), 0);
    CHECK_EQ(mkdir(path, 0700), 0);
    check_refused(LH_ERR_DATA, "not a regular file");
    CHECK_EQ(remove(path), 0);
    CHECK_EQ(symlink("/dev/zero", path), 0);
    check_refused(LH_ERR_DATA, "not a regular file");
    CHECK_EQ(remove(path), 0);
    CHECK_EQ(symlink("a.safetensors", path), 0);
    check_refused(LH_ERR_OPEN, "a.safetensors");
    CHECK_EQ(remove(path), 0);
    CHECK_EQ(symlink(elsewhere, path), 0); /* how caches of downloads look: fine */
    CHECK_OK(open_small());
    json_decref(index);
    free_tensors();
}

static void test_truncated(void)
{
    size_t n;
    unsigned char *file;

    make_tensors(small_config);
    CHECK_OK(write_single(tensors, n_tensors));
    file = read_whole(temp_path("model.safetensors"), &n);
    for (size_t k = check_random() % 40; k < n; k += 1 + check_random() % 80) {
        temp_write("model.safetensors", file, k);
        CHECK_STATUS(open_small(), LH_ERR_DATA);
    }
    temp_write("model.safetensors", file, n + 1 - 1);
    CHECK_OK(open_small());
    CHECK_EQ(remove(temp_path("model.safetensors")), 0);
    CHECK_STATUS(open_small(), LH_ERR_OPEN);
    free(file);
    free_tensors();
}

/* ------------------------------------------------------------------ binding */

/* One more blank in the header moves all data to odd addresses. */
static void test_unaligned(void)
{
    size_t n;
    unsigned char *file;
    char want[65], got[65];

    make_tensors(small_config);
    CHECK_OK(write_single(tensors, n_tensors));
    CHECK_OK(digest_dir(want, temp_dir));
    file = read_whole(temp_path("model.safetensors"), &n);
    size_t header = file[0] + ((size_t)file[1] << 8);
    for (int blanks = 1; blanks <= 3; blanks++) {
        file = realloc(file, n + 1);
        memmove(file + 9 + header, file + 8 + header, n - 8 - header);
        file[8 + header] = ' ';
        header++;
        n++;
        file[0] = (unsigned char)header;
        file[1] = (unsigned char)(header >> 8);
        temp_write("model.safetensors", file, n);
        CHECK_OK(digest_dir(got, temp_dir));
        CHECK_STR(got, want);
    }
    free(file);
    free_tensors();
}

static int64_t progress_calls, progress_done, progress_total;

static void on_progress(void *user, const lh_progress *p)
{
    CHECK_STR(p->phase, user);
    CHECK(p->done >= progress_done && p->done <= p->total && p->seconds >= 0);
    progress_calls++;
    progress_done = p->done;
    progress_total = p->total;
}

static void test_expert_ranges(void)
{
    lh_model_info info;

    make_tensors(small_config);
    CHECK_OK(write_single(tensors, n_tensors));
    lh_model_info_fill(&info, &dims);
    const size_t per_expert = 2 * 3 * 7 * 8 * 2; /* layers, matrices, shape, bf16 */
    for (int begin = 0; begin <= 2; begin++)
        for (int end = begin; end <= 2; end++) {
            lh_checkpoint *c = NULL;
            const lh_weights *w = NULL;
            size_t dense = 0, experts = 0;
            progress_calls = progress_done = progress_total = 0;
            CHECK_OK(lh_checkpoint_open(&c, temp_dir, &dims));
            CHECK_OK(lh_checkpoint_bind(c, begin, end, &w, &dense, &experts, on_progress, "load"));
            CHECK_EQ(experts, per_expert * (size_t)(end - begin));
            CHECK_EQ(dense, info.weight_bytes - 2 * per_expert);
            CHECK_EQ(progress_total, dense + experts);
            CHECK_EQ(progress_done, progress_total);
            CHECK(progress_calls >= 1);
            for (int e = 0; e < 2; e++)
                for (int i = 1; i < 3; i++) {
                    int here = e >= begin && e < end;
                    const lh_layer_weights *l = &w->layers[i];
                    CHECK(!!l->w_gate[e] == here && !!l->w_up[e] == here && !!l->w_down[e] == here);
                }
            CHECK(!w->layers[0].w_gate && !w->layers[0].router && w->layers[1].router);
            CHECK_STATUS(lh_checkpoint_bind(c, 0, 1, &w, &dense, &experts, NULL, NULL),
                         LH_ERR_INVALID);
            lh_checkpoint_close(c);
        }
    lh_checkpoint *c = NULL;
    CHECK_OK(lh_checkpoint_open(&c, temp_dir, &dims));
    CHECK_STATUS(lh_checkpoint_bind(c, 1, 3, NULL, NULL, NULL, NULL, NULL), LH_ERR_INVALID);
    CHECK_STATUS(lh_checkpoint_bind(c, -1, 1, NULL, NULL, NULL, NULL, NULL), LH_ERR_INVALID);
    lh_checkpoint_close(c);
    free_tensors();
}

/* How much of the mapping that holds `p` this process has touched; 0 where the system does not say.
 */
static size_t touched_bytes(const void *p)
{
    FILE *f = fopen("/proc/self/smaps", "r");
    char line[512];
    unsigned long begin, end, kib = 0;
    int inside = 0;

    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "%lx-%lx ", &begin, &end) == 2)
            inside = (uintptr_t)p >= begin && (uintptr_t)p < end;
        else if (inside && sscanf(line, "Rss: %lu kB", &kib) == 1)
            break;
    }
    if (f)
        (void)fclose(f);
    return kib * 1024;
}

/* Experts of other ranks are not read: 16 experts of 384 KiB, of which 3 are ours. */
static void test_others_untouched(void)
{
    json_t *c = json_loads(small_config, 0, NULL);
    lh_checkpoint *checkpoint = NULL;
    const lh_weights *w = NULL;
    size_t dense = 0, experts = 0;

    (void)json_object_set_new(c, "hidden_size", json_integer(256));
    (void)json_object_set_new(c, "num_experts", json_integer(16));
    (void)json_object_set_new(c, "moe_intermediate_size", json_integer(256));
    (void)json_object_set_new(c, "num_shared_experts", json_integer(0));
    char *text = json_dumps(c, 0);
    make_tensors(text);
    CHECK_OK(write_single(tensors, n_tensors));
    CHECK_OK(lh_checkpoint_open(&checkpoint, temp_dir, &dims));
    CHECK_OK(lh_checkpoint_bind(checkpoint, 8, 11, &w, &dense, &experts, NULL, NULL));
    CHECK_EQ(experts, 2 * 3 * 3 * 256 * 256 * 2);
    size_t file = lh_checkpoint_file_bytes(checkpoint), touched = touched_bytes(w->embed);
    printf("     %zu bytes bound, %zu touched, of %zu\n", dense + experts, touched, file);
    /* A fault may map up to 64 KiB around it, at both ends of three runs of tensors. */
    CHECK(touched <= dense + experts + 8 * 65536);
    CHECK(touched == 0 || touched + 8 * 65536 >= dense + experts);
    CHECK(!w->layers[1].gate && !w->layers[1].down); /* no shared expert */
    lh_checkpoint_close(checkpoint);
    free(text);
    json_decref(c);
    free_tensors();
}

/* --------------------------------------------------------------- inspection */

static void test_inspect(void)
{
    lh_inspection *i = NULL;

    progress_calls = progress_done = progress_total = 0;
    CHECK_OK(lh_inspect(&i, LH_SOURCE_DIR "/models/needle", 1, on_progress, "verify"));
    CHECK_EQ(progress_done, 19298704); /* total_size of its index */
    CHECK_EQ(progress_total, 19298704);
    CHECK_EQ(i->model.weight_bytes, 19298704);
    CHECK_EQ(i->n_files, 2);
    CHECK_EQ(i->file_bytes, 9685784 + 9639176);
    CHECK_EQ(i->n_ignored_keys, 7);
    CHECK_EQ(i->verified, 1);
    CHECK_EQ(i->n_nonfinite, 0);
    CHECK(!i->first_nonfinite);
    CHECK_STR(i->tensors[0].file, "model-00001-of-00002.safetensors");
    CHECK_STR(i->tensors[i->n_tensors - 1].file, "model-00002-of-00002.safetensors");
    lh_inspection_free(i);
    CHECK_OK(lh_inspect(&i, LH_SOURCE_DIR "/tests/golden/alpha", 0, NULL, NULL));
    CHECK_EQ(i->verified, 0);
    lh_inspection_free(i);
    lh_inspection_free(NULL);
    CHECK_STATUS(lh_inspect(&i, "/nonexistent", 0, NULL, NULL), LH_ERR_OPEN);
    CHECK_STATUS(lh_inspect(&i, LH_SOURCE_DIR "/tests/golden/kimi-linear-48b", 0, NULL, NULL),
                 LH_ERR_OPEN);
}

/* NaN and infinities are found in every tensor, at its first and last value. */
static void test_nonfinite(void)
{
    make_tensors(small_config);
    for (int i = 0; i < n_tensors; i++) {
        lh_inspection *seen = NULL;
        unsigned char *p = (unsigned char *)(uintptr_t)tensors[i].data, *saved;
        size_t n = tensors[i].bytes, size = strcmp(tensors[i].dtype, "F32") == 0 ? 4 : 2;
        uint32_t infinity = size == 4 ? 0xff800000u : 0xff80u,
                 nan = size == 4 ? 0x7f800001u : 0x7fc1u;
        saved = malloc(n);
        memcpy(saved, p, n);
        memcpy(p, &infinity, size);
        memcpy(p + n - size, &nan, size);
        CHECK_OK(write_single(tensors, n_tensors));
        CHECK_OK(lh_inspect(&seen, temp_dir, 1, NULL, NULL));
        CHECK_EQ(seen->n_nonfinite, 2);
        CHECK_STR(seen->first_nonfinite ? seen->first_nonfinite : "none", names[i]);
        lh_inspection_free(seen);
        memcpy(p, saved, n);
        free(saved);
    }
    free_tensors();
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    temp_dir_create();
    RUN(test_golden);
    RUN(test_each_tensor);
    RUN(test_index);
    RUN(test_broken_index);
    RUN(test_shard_names);
    RUN(test_shard_files);
    RUN(test_truncated);
    RUN(test_unaligned);
    RUN(test_expert_ranges);
    RUN(test_others_untouched);
    RUN(test_inspect);
    RUN(test_nonfinite);
    temp_dir_remove();
    return check_done();
}
