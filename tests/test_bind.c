#include <jansson.h>

#include "base/sha256.h"
#include "tests/small_checkpoint.h"

static void put(lh_sha256 *s, const void *p, int64_t n, size_t elem_bytes)
{
    CHECK(p || n == 0);
    CHECK((uintptr_t)p % elem_bytes == 0);
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
    RUN(test_unaligned);
    RUN(test_expert_ranges);
    RUN(test_others_untouched);
    RUN(test_inspect);
    RUN(test_nonfinite);
    temp_dir_remove();
    return check_done();
}
