#include <jansson.h>

#include "runtime/model.h"
#include "tests/check.h"
#include "tests/temp_dir.h"

#define PUBLISHED LH_SOURCE_DIR "/tests/golden/kimi-linear-48b"

static json_t *published(void)
{
    json_error_t e;
    json_t *c = json_load_file(PUBLISHED "/config.json", 0, &e);
    CHECK_MSG(c, "%s: %s", PUBLISHED, e.text);
    return c;
}

/* Sets a key, "outer.inner" or plain, to a value in JSON; "" removes it. */
static void set(json_t *c, const char *key, const char *value)
{
    static const char linear[] = "linear_attn_config.";

    if (strncmp(key, linear, strlen(linear)) == 0) {
        c = json_object_get(c, "linear_attn_config");
        key += strlen(linear);
    }
    if (*value)
        CHECK(json_object_set_new(c, key, json_loads(value, JSON_DECODE_ANY, NULL)) == 0);
    else
        (void)json_object_del(c, key);
}

static lh_status read_json(lh_dims *d, json_t *c)
{
    char *text = json_dumps(c, 0);
    temp_write_text("config.json", text);
    free(text);
    return lh_config_read(d, temp_dir, NULL);
}

static lh_status read_text(const char *text)
{
    lh_dims d;
    temp_write_text("config.json", text);
    return lh_config_read(&d, temp_dir, NULL);
}

/* The published configuration with changes: key, value, key, value, .. NULL. */
static lh_status read_changed(lh_dims *d, const char *const *changes)
{
    json_t *c = published();
    for (; changes[0]; changes += 2)
        set(c, changes[0], changes[1]);
    lh_status st = read_json(d, c);
    json_decref(c);
    return st;
}
#define CHANGED(d, ...) read_changed(d, (const char *const[]){__VA_ARGS__, NULL})

static void test_published(void)
{
    static const int mla[] = {3, 7, 11, 15, 19, 23, 26};
    lh_dims d;
    lh_model_info m;
    char **ignored = NULL;
    size_t n_mla = 0;

    CHECK_OK(lh_config_read(&d, PUBLISHED, &ignored));
    CHECK_EQ(d.n_layers, 27);
    CHECK_EQ(d.n_kda_layers, 20);
    CHECK_EQ(d.n_mla_layers, 7);
    for (int i = 0; i < 27; i++)
        if (d.attn[i] == LH_ATTN_MLA && n_mla < 7)
            CHECK_EQ(i, mla[n_mla++]);
    CHECK_EQ(n_mla, 7);
    CHECK_EQ(d.taps, 4);
    CHECK_EQ(d.d_shared, 1024);
    CHECK_EQ(d.renormalize, 1);
    CHECK(d.norm_eps == 1e-5f && d.latent_eps == 1e-6f && d.route_scale == 2.446f);
    CHECK_EQ(d.bos_token, 163584);
    CHECK_EQ(d.n_eos, 1);
    CHECK_EQ(d.eos_tokens[0], 163586);

    /* The numbers that the published index states. */
    lh_model_info_fill(&m, &d);
    CHECK_EQ(m.n_parameters, 49122681728);
    CHECK_EQ(m.weight_bytes, 98245528576);
    CHECK_EQ(lh_expected_count(&d), 20493);

    size_t n = 0, seen = 0;
    for (; ignored && ignored[n]; n++)
        seen += strcmp(ignored[n], "head_dim") == 0 || strcmp(ignored[n], "architectures") == 0;
    CHECK_EQ(seen, 2);
    CHECK_EQ(n, 7);
    free(ignored);
}

/* The names are distinct, and their sizes add up to what the sums say. */
static void test_expected(void)
{
    lh_dims d;
    lh_model_info m;
    int64_t bytes = 0, elements = 0, experts = 0;
    char previous[160] = "";

    CHECK_OK(lh_config_read(&d, LH_SOURCE_DIR "/models/needle", NULL));
    lh_model_info_fill(&m, &d);
    for (int64_t i = 0; i < lh_expected_count(&d); i++) {
        lh_expected e;
        int64_t n = 1;
        lh_expected_tensor(&e, &d, i);
        for (int k = 0; k < e.n_dims; k++)
            n *= e.dims[k];
        elements += n;
        bytes += n * (e.allow_bf16 ? 2 : 4);
        experts += e.expert >= 0;
        CHECK(strcmp(e.name, previous) != 0);
        strcpy(previous, e.name);
    }
    CHECK_EQ(elements, m.n_parameters);
    CHECK_EQ(bytes, m.weight_bytes);
    CHECK_EQ(experts, 3 * 16 * 3);
}

static const char *const number_keys[] = {
    "num_hidden_layers",
    "hidden_size",
    "vocab_size",
    "model_max_length",
    "num_attention_heads",
    "num_key_value_heads",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "kv_lora_rank",
    "intermediate_size",
    "moe_intermediate_size",
    "num_experts_per_token",
    "num_experts",
    "first_k_dense_replace",
    "num_shared_experts",
    "num_expert_group",
    "topk_group",
    "moe_layer_freq",
    "num_nextn_predict_layers",
    "bos_token_id",
    "eos_token_id",
    "linear_attn_config.num_heads",
    "linear_attn_config.head_dim",
    "linear_attn_config.short_conv_kernel_size",
};
static const char *const other_keys[] = {
    "model_type",
    "mla_use_nope",
    "rope_scaling",
    "q_lora_rank",
    "moe_router_activation_func",
    "hidden_act",
    "tie_word_embeddings",
    "dtype",
    "moe_renormalize",
    "rms_norm_eps",
    "routed_scaling_factor",
    "linear_attn_config",
    "linear_attn_config.kda_layers",
    "linear_attn_config.full_attn_layers",
    /* keys that may change the meaning of the rest */
    "quantization_config",
    "sliding_window",
    "linear_attn_config.gate_lower_bound",
};
static const char *const bad_values[] = {
    "-1",   "-2147483649", "2147483648", "4294967297", "9223372036854775807",
    "4.0",  "1e308",       "\"8\"",      "[true]",     "{\"a\":1}",
    "[-5]", "[1e5]",       "\"\"",       "[\"x\"]",    "-1e-30",
};

static void refuse(const char *key, const char *value)
{
    lh_dims d;
    lh_status st = CHANGED(&d, key, value);
    int is_list = strstr(key, "_layers") && strncmp(key, "linear", 6) == 0;

    if (is_list) /* a message about a list may name the list's key only, which is what we have */
        key = strrchr(key, '.') + 1;
    CHECK_MSG(st == LH_ERR_DATA, "%s = %s: %s, expected ERR_DATA", key, value, lh_status_name(st));
    CHECK_MSG(st == LH_OK || strstr(lh_last_error(), key), "%s = %s: '%s' does not name the key",
              key, value, lh_last_error());
}

static void test_bad_values(void)
{
    const size_t n_values = sizeof bad_values / sizeof *bad_values;

    for (size_t k = 0; k < sizeof number_keys / sizeof *number_keys; k++) {
        for (size_t i = 0; i < n_values; i++)
            refuse(number_keys[k], bad_values[i]);
        refuse(number_keys[k], "true");
    }
    for (size_t k = 0; k < sizeof other_keys / sizeof *other_keys; k++)
        for (size_t i = 0; i < n_values; i++)
            if (strcmp(other_keys[k], "routed_scaling_factor") != 0 ||
                strcmp(bad_values[i], "4.0") != 0)
                refuse(other_keys[k], bad_values[i]);
}

/* One step outside of each range, and what must be there. */
static void test_edges(void)
{
    static const char *const cases[][2] = {
        {"num_hidden_layers", "0"},
        {"num_hidden_layers", "1025"},
        {"hidden_size", "0"},
        {"hidden_size", "65537"},
        {"vocab_size", "0"},
        {"vocab_size", "2097153"},
        {"model_max_length", "0"},
        {"model_max_length", "16777217"},
        {"num_attention_heads", "0"},
        {"num_attention_heads", "1025"},
        {"num_key_value_heads", "16"},
        {"qk_nope_head_dim", "0"},
        {"qk_nope_head_dim", "1025"},
        {"qk_rope_head_dim", "0"},
        {"v_head_dim", "0"},
        {"v_head_dim", "1025"},
        {"kv_lora_rank", "0"},
        {"kv_lora_rank", "4097"},
        {"intermediate_size", "0"},
        {"moe_intermediate_size", "0"},
        {"moe_intermediate_size", "1048577"},
        {"num_experts", "0"},
        {"num_experts", "4097"},
        {"num_experts_per_token", "0"},
        {"num_experts_per_token", "65"},
        {"num_shared_experts", "65"},
        {"first_k_dense_replace", "28"},
        {"rms_norm_eps", "0"},
        {"rms_norm_eps", "0.0"},
        {"rms_norm_eps", "1"},
        {"rms_norm_eps", "1e-60"},
        {"routed_scaling_factor", "0"},
        {"routed_scaling_factor", "1e7"},
        {"routed_scaling_factor", "1e-60"},
        {"bos_token_id", "163840"},
        {"eos_token_id", "163840"},
        {"eos_token_id", "[163586, 163840]"},
        {"eos_token_id", "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]"},
        {"linear_attn_config.num_heads", "0"},
        {"linear_attn_config.num_heads", "1025"},
        {"linear_attn_config.head_dim", "257"},
        {"linear_attn_config.short_conv_kernel_size", "1"},
        {"linear_attn_config.short_conv_kernel_size", "9"},
        {"linear_attn_config.kda_layers", "[0]"},
        {"linear_attn_config.kda_layers", "[28]"},
        {"linear_attn_config.kda_layers", "[1, 1]"},
        {"linear_attn_config.kda_layers", "[1]"},
        {"linear_attn_config.kda_layers", "null"},
        {"linear_attn_config.kda_layers", ""},
        {"tie_word_embeddings", "true"},
        {"mla_use_nope", "false"},
        {"torch_dtype", "\"float16\""},
        {"torch_dtype", "\"float32\""},
        {"moe_renormalize", "1"},
        {"moe_renormalize", "null"},
    };
    static const char *const needed[] = {
        "model_type",   "mla_use_nope",          "dtype",
        "vocab_size",   "num_hidden_layers",     "hidden_size",
        "kv_lora_rank", "num_attention_heads",   "num_experts_per_token",
        "num_experts",  "moe_intermediate_size", "first_k_dense_replace",
        "rms_norm_eps", "routed_scaling_factor", "linear_attn_config",
        "v_head_dim",   "intermediate_size",     "linear_attn_config.num_heads",
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuse(cases[i][0], cases[i][1]);
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        refuse(needed[i], "");
    lh_dims d;
    CHECK_STATUS(CHANGED(&d, "num_experts", "7"), LH_ERR_DATA); /* top 8 of 7 */
    CHECK(strstr(lh_last_error(), "num_experts_per_token"));
    CHECK_STATUS(CHANGED(&d, "linear_attn_config.full_attn_layers", "[1]"), LH_ERR_DATA);
    CHECK(strstr(lh_last_error(), "layer 1 a second time"));
    CHECK_STATUS(CHANGED(&d, "linear_attn_config.full_attn_layers", "[4,8,12,16,20,24,27,28]"),
                 LH_ERR_DATA);
    CHECK_STATUS(CHANGED(&d, "num_shared_experts", "64", "moe_intermediate_size", "1000000"),
                 LH_ERR_DATA);
}

static void test_allowed(void)
{
    static const char *const none = "";
    lh_dims d;

    CHECK_OK(CHANGED(&d, "dtype", none, "torch_dtype", "\"bfloat16\""));
    CHECK_OK(CHANGED(&d, "num_key_value_heads", none, "model_max_length", none, "moe_layer_freq",
                     none, "num_nextn_predict_layers", none, "topk_group", none, "hidden_act",
                     none));
    CHECK_EQ(d.max_context, 1048576);
    CHECK_EQ(d.renormalize, 1);
    CHECK_OK(CHANGED(&d, "moe_renormalize", "false", "routed_scaling_factor", "1",
                     "num_shared_experts", none));
    CHECK_EQ(d.renormalize, 0);
    CHECK_EQ(d.d_shared, 0);
    CHECK(d.route_scale == 1);
    CHECK_OK(CHANGED(&d, "eos_token_id", "[5, 7, 5]", "bos_token_id", "null"));
    CHECK_EQ(d.n_eos, 2);
    CHECK_EQ(d.eos_tokens[1], 7);
    CHECK_EQ(d.bos_token, -1);
    CHECK_OK(CHANGED(&d, "id2label", "{\"0\": \"a\"}", "chunk_size_feed_forward", "0"));
    /* models without one of the kinds of layer need nothing of it */
    CHECK_OK(CHANGED(&d, "num_hidden_layers", "2", "linear_attn_config.kda_layers", "[2, 1]",
                     "linear_attn_config.full_attn_layers", none, "kv_lora_rank", none,
                     "num_attention_heads", none, "num_key_value_heads", none, "qk_rope_head_dim",
                     "0"));
    CHECK_EQ(d.n_mla_layers, 0);
    CHECK_OK(CHANGED(&d, "num_hidden_layers", "1", "linear_attn_config",
                     "{\"full_attn_layers\":[1]}", "num_experts", "0", "num_experts_per_token",
                     none, "moe_intermediate_size", none, "routed_scaling_factor", none,
                     "first_k_dense_replace", none));
    CHECK_EQ(d.n_dense_layers, 1);
    CHECK_EQ(lh_expected_count(&d), 3 + 2 + 5 + 3);
}

static void test_broken_files(void)
{
    static const char *const texts[] = {
        "",
        "null",
        "[]",
        "{",
        "{}",
        "{\"a\": NaN}",
        "{\"vocab_size\": 1e400}",
        "{} x",
        "{\"a\":1,\"a\":1}",
        "{\"vocab_size\": 99999999999999999999}",
        "\xff",
        "{\"a\": \"\xc3\x28\"}",
        "{'a': 1}",
        "{\"a\": 1,}",
    };
    lh_dims d;
    char deep[5000];

    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        CHECK_STATUS(read_text(texts[i]), LH_ERR_DATA);
    memset(deep, '[', sizeof deep - 1);
    deep[sizeof deep - 1] = '\0';
    CHECK_STATUS(read_text(deep), LH_ERR_DATA);
    CHECK_STATUS(lh_config_read(&d, "/nonexistent", NULL), LH_ERR_OPEN);
    temp_dir_clear();
    CHECK_STATUS(lh_config_read(&d, temp_dir, NULL), LH_ERR_OPEN);
    CHECK_EQ(mkfifo(temp_path("config.json"), 0600), 0);
    CHECK_STATUS(lh_config_read(&d, temp_dir, NULL), LH_ERR_DATA);
    temp_dir_clear();
}

static void test_generation_config(void)
{
    static const char *const bad[] = {"{", "[]", "{\"eos_token_id\": -1}",
                                      "{\"eos_token_id\": \"163586\"}",
                                      "{\"eos_token_id\": [163840]}"};
    lh_dims d;

    temp_write_text("generation_config.json",
                    "{\"eos_token_id\": [163586, 163585], \"temperature\": 1.0}");
    CHECK_OK(CHANGED(&d, "use_cache", "true"));
    CHECK_EQ(d.n_eos, 2);
    CHECK_EQ(d.eos_tokens[0], 163586);
    CHECK_EQ(d.eos_tokens[1], 163585);
    temp_write_text("generation_config.json", "{\"eos_token_id\": null}");
    CHECK_OK(CHANGED(&d, "eos_token_id", "null"));
    CHECK_EQ(d.n_eos, 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        temp_write_text("generation_config.json", bad[i]);
        CHECK_STATUS(CHANGED(&d, "use_cache", "true"), LH_ERR_DATA);
        CHECK(strstr(lh_last_error(), "generation_config.json"));
    }
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    temp_dir_create();
    RUN(test_published);
    RUN(test_expected);
    RUN(test_bad_values);
    RUN(test_edges);
    RUN(test_allowed);
    RUN(test_broken_files);
    RUN(test_generation_config);
    temp_dir_remove();
    return check_done();
}
