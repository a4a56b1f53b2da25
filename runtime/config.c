/*
 * config.json. Every key is one of four: a number in a range, a value that must be what the runtime
 * computes, one of a few with their own rule, or harmless. A key that is none of them may change
 * what the model means, so it is an error.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "runtime/config_keys.h"
#include "runtime/json_file.h"
#include "runtime/model.h"

#define COUNT(table) (sizeof(table) / sizeof(table)[0])
#define MAX_CONFIG_BYTES ((size_t)1 << 20)
#define MAX_EOS 16
#define LINEAR "linear_attn_config"

/* The published model computes its latent norm with the default of its class, not with
 * rms_norm_eps. */
#define LATENT_EPS 1e-6f

/* Integers as read, before they are narrowed to lh_dims. */
typedef struct numbers {
    int64_t layers, hidden, heads, kv_heads, vocab, context, experts, dense_layers;
    int64_t kda_heads, kda_dim, taps;
    int64_t nope, rope, v, latent;
    int64_t ffn;
    int64_t expert, shared, top_k;
} numbers;

/* When a key is needed: always, or where the model has that kind of layer. */
typedef enum part { BASE, OF_KDA, OF_MLA, OF_DENSE, OF_MOE, N_PARTS } part;

#define REQUIRED INT64_MIN

typedef struct number_key {
    const char *key;
    part of;
    int64_t min, max;
    int64_t fallback; /* REQUIRED, or the value of an absent key */
    size_t field;
} number_key;

#define FIELD(name) offsetof(numbers, name)

static const number_key number_keys[] = {
    {"num_hidden_layers", BASE, 1, LH_MAX_LAYERS, REQUIRED, FIELD(layers)},
    {"hidden_size", BASE, 1, 65536, REQUIRED, FIELD(hidden)},
    {"vocab_size", BASE, 1, 1 << 21, REQUIRED, FIELD(vocab)},
    {"model_max_length", BASE, 1, 1 << 24, 1048576, FIELD(context)},
    {"num_experts", BASE, 0, 4096, 0, FIELD(experts)},
    {"first_k_dense_replace", BASE, 0, LH_MAX_LAYERS, -1, FIELD(dense_layers)},
    {"num_heads", OF_KDA, 1, 1024, REQUIRED, FIELD(kda_heads)},
    {"head_dim", OF_KDA, 1, 256, REQUIRED, FIELD(kda_dim)},
    {"short_conv_kernel_size", OF_KDA, 2, 8, REQUIRED, FIELD(taps)},
    {"num_attention_heads", OF_MLA, 1, 1024, REQUIRED, FIELD(heads)},
    {"num_key_value_heads", OF_MLA, 1, 1024, -1, FIELD(kv_heads)},
    {"qk_nope_head_dim", OF_MLA, 1, 1024, REQUIRED, FIELD(nope)},
    {"qk_rope_head_dim", OF_MLA, 1, 1024, REQUIRED, FIELD(rope)},
    {"v_head_dim", OF_MLA, 1, 1024, REQUIRED, FIELD(v)},
    {"kv_lora_rank", OF_MLA, 1, 4096, REQUIRED, FIELD(latent)},
    {"intermediate_size", OF_DENSE, 1, 1 << 20, REQUIRED, FIELD(ffn)},
    {"moe_intermediate_size", OF_MOE, 1, 1 << 20, REQUIRED, FIELD(expert)},
    {"num_experts_per_token", OF_MOE, 1, 64, REQUIRED, FIELD(top_k)},
    {"num_shared_experts", OF_MOE, 0, 64, 0, FIELD(shared)},
};

/* Values that the runtime computes with and no others, as compact JSON. */
static const struct {
    const char *key, *want;
    int may_be_absent;
} fixed_keys[] = {
    {"model_type", "\"kimi_linear\"", 0},
    {"mla_use_nope", "true", 0},
    {"rope_scaling", "null", 1},
    {"q_lora_rank", "null", 1},
    {"moe_layer_freq", "1", 1},
    {"num_nextn_predict_layers", "0", 1},
    {"num_expert_group", "1", 1},
    {"topk_group", "1", 1},
    {"moe_router_activation_func", "\"sigmoid\"", 1},
    {"hidden_act", "\"silu\"", 1},
    {"tie_word_embeddings", "false", 1},
    {"dtype", "\"bfloat16\"", 1}, /* one of the two spellings must be there */
    {"torch_dtype", "\"bfloat16\"", 1},
};

static const char *const other_keys[] = {
    LINEAR,         "moe_renormalize", "routed_scaling_factor",
    "rms_norm_eps", "bos_token_id",    "eos_token_id",
};

static int is_known(const char *key)
{
    for (size_t i = 0; i < COUNT(number_keys); i++)
        if (number_keys[i].of != OF_KDA && strcmp(number_keys[i].key, key) == 0)
            return 1;
    for (size_t i = 0; i < COUNT(fixed_keys); i++)
        if (strcmp(fixed_keys[i].key, key) == 0)
            return 1;
    for (size_t i = 0; i < COUNT(other_keys); i++)
        if (strcmp(other_keys[i], key) == 0)
            return 1;
    return 0;
}

static lh_status check_keys(json_t *config, json_t *linear, const char *path)
{
    const char *key;
    json_t *value;

    json_object_foreach(config, key, value)
    {
        LH_REQUIRE(is_known(key) || lh_config_key_harmless(key), LH_ERR_DATA,
                   "%s: unknown key %.100s, which may change what the model computes", path, key);
    }
    json_object_foreach(linear, key, value)
    {
        int known = strcmp(key, "kda_layers") == 0 || strcmp(key, "full_attn_layers") == 0;
        for (size_t i = 0; i < COUNT(number_keys); i++)
            known |= number_keys[i].of == OF_KDA && strcmp(number_keys[i].key, key) == 0;
        LH_REQUIRE(known, LH_ERR_DATA,
                   "%s: unknown key " LINEAR ".%.100s, which may change what the model computes",
                   path, key);
    }
    return LH_OK;
}

static lh_status check_fixed(json_t *config, const char *path)
{
    char seen[64];

    for (size_t i = 0; i < COUNT(fixed_keys); i++) {
        json_t *v = json_object_get(config, fixed_keys[i].key);
        if (!v && fixed_keys[i].may_be_absent)
            continue;
        LH_REQUIRE(v && strcmp(lh_json_show(v, seen), fixed_keys[i].want) == 0, LH_ERR_DATA,
                   "%s: %s is %s, expected %s", path, fixed_keys[i].key, lh_json_show(v, seen),
                   fixed_keys[i].want);
    }
    LH_REQUIRE(json_object_get(config, "dtype") || json_object_get(config, "torch_dtype"),
               LH_ERR_DATA, "%s: dtype is absent, expected \"bfloat16\"", path);
    return LH_OK;
}

/* The numbers of one part. Those of a part that the model does not have may be absent or 0. */
static lh_status read_numbers(numbers *out, json_t *from, part of, int in_use, const char *path)
{
    char seen[64];

    for (size_t i = 0; i < COUNT(number_keys); i++) {
        const number_key *k = &number_keys[i];
        if (k->of != of)
            continue;
        json_t *v = json_object_get(from, k->key);
        int64_t min = in_use ? k->min : 0, x = k->fallback;
        int absent_is_fine = !in_use || k->fallback != REQUIRED;
        if (v || !absent_is_fine) {
            x = json_integer_value(v);
            LH_REQUIRE(json_is_integer(v) && x >= min && x <= k->max, LH_ERR_DATA,
                       "%s: %s%s is %s, expected an integer from %lld to %lld", path,
                       of == OF_KDA ? LINEAR "." : "", k->key, lh_json_show(v, seen),
                       (long long)min, (long long)k->max);
        } else if (x == REQUIRED) {
            x = 0;
        }
        memcpy((char *)out + k->field, &x, sizeof x);
    }
    return LH_OK;
}

/* One list of layers, counted from 1; marks them in `seen`. An empty one may be absent. */
static lh_status read_layer_list(lh_dims *d, int *count_out, unsigned char *seen, json_t *linear,
                                 const char *key, lh_attn_kind kind, const char *path)
{
    json_t *list = json_object_get(linear, key), *v;
    char shown[64];
    size_t i;

    LH_REQUIRE(!list || json_is_array(list), LH_ERR_DATA,
               "%s: " LINEAR ".%s is %s, expected a list of layers", path, key,
               lh_json_show(list, shown));
    json_array_foreach(list, i, v)
    {
        json_int_t layer = json_integer_value(v);
        LH_REQUIRE(json_is_integer(v) && layer >= 1 && layer <= d->n_layers, LH_ERR_DATA,
                   "%s: " LINEAR ".%s has %s, expected an integer from 1 to %d", path, key,
                   lh_json_show(v, shown), d->n_layers);
        LH_REQUIRE(!seen[layer - 1], LH_ERR_DATA, "%s: " LINEAR ".%s has layer %d a second time",
                   path, key, (int)layer);
        seen[layer - 1] = 1;
        d->attn[layer - 1] = (unsigned char)kind;
        ++*count_out;
    }
    return LH_OK;
}

static lh_status read_layers(lh_dims *d, json_t *linear, const char *path)
{
    unsigned char seen[LH_MAX_LAYERS] = {0};

    LH_TRY(read_layer_list(d, &d->n_kda_layers, seen, linear, "kda_layers", LH_ATTN_KDA, path));
    LH_TRY(
        read_layer_list(d, &d->n_mla_layers, seen, linear, "full_attn_layers", LH_ATTN_MLA, path));
    for (int i = 0; i < d->n_layers; i++)
        LH_REQUIRE(seen[i], LH_ERR_DATA,
                   "%s: layer %d is in neither " LINEAR ".kda_layers nor .full_attn_layers", path,
                   i + 1);
    return LH_OK;
}

static lh_status read_real(float *out, json_t *config, const char *key, double above, double below,
                           int in_use, const char *path)
{
    json_t *v = json_object_get(config, key);
    double x = json_number_value(v);
    char seen[64];

    *out = 0;
    if (!v && !in_use)
        return LH_OK;
    /* As f32 too: a tiny number must not become 0. */
    LH_REQUIRE(json_is_number(v) && x > above && x < below && (float)x > above && (float)x < below,
               LH_ERR_DATA, "%s: %s is %s, expected a number above %g and below %g", path, key,
               lh_json_show(v, seen), above, below);
    *out = (float)x;
    return LH_OK;
}

static lh_status read_token(int32_t *out, const lh_dims *d, json_t *v, const char *key,
                            const char *path)
{
    json_int_t id = json_integer_value(v);
    char seen[64];

    LH_REQUIRE(json_is_integer(v) && id >= 0 && id < d->n_vocab, LH_ERR_DATA,
               "%s: %s is %s, expected a token from 0 to %lld", path, key, lh_json_show(v, seen),
               (long long)d->n_vocab - 1);
    *out = (int32_t)id;
    return LH_OK;
}

/* Adds a file's eos_token_id, one or a list, to those known; absent and null add none. */
static lh_status add_eos(lh_dims *d, json_t *from, const char *path)
{
    static const char key[] = "eos_token_id";
    json_t *v = json_object_get(from, key);
    size_t n = json_is_array(v) ? json_array_size(v) : !v || json_is_null(v) ? 0 : 1;

    for (size_t i = 0; i < n; i++) {
        int32_t id = -1;
        int known = 0;
        LH_TRY(read_token(&id, d, json_is_array(v) ? json_array_get(v, i) : v, key, path));
        for (int k = 0; k < d->n_eos; k++)
            known |= d->eos_tokens[k] == id;
        if (known)
            continue;
        LH_REQUIRE(d->n_eos < MAX_EOS, LH_ERR_DATA, "%s: %s: more than %d tokens", path, key,
                   MAX_EOS);
        d->eos_tokens[d->n_eos++] = id;
    }
    return LH_OK;
}

static lh_status read_tokens(lh_dims *d, json_t *config, const char *path, const char *model_dir)
{
    json_t *bos = json_object_get(config, "bos_token_id"), *generation = NULL;
    char other[4096];

    d->bos_token = -1;
    if (bos && !json_is_null(bos))
        LH_TRY(read_token(&d->bos_token, d, bos, "bos_token_id", path));
    LH_TRY(add_eos(d, config, path));
    (void)snprintf(other, sizeof other, "%s/generation_config.json", model_dir);
    if (!lh_file_exists(other))
        return LH_OK;
    LH_TRY(lh_json_read(&generation, other, MAX_CONFIG_BYTES));
    lh_status st = add_eos(d, generation, other);
    json_decref(generation);
    return st;
}

/* What holds between numbers that are each in range. */
static lh_status check_together(const numbers *x, const char *path)
{
    LH_REQUIRE(x->kv_heads == x->heads, LH_ERR_DATA,
               "%s: num_key_value_heads is %lld, expected num_attention_heads, %lld", path,
               (long long)x->kv_heads, (long long)x->heads);
    LH_REQUIRE(x->dense_layers <= x->layers, LH_ERR_DATA,
               "%s: first_k_dense_replace is %lld, expected at most num_hidden_layers, %lld", path,
               (long long)x->dense_layers, (long long)x->layers);
    LH_REQUIRE(x->experts > 0 || x->dense_layers == x->layers, LH_ERR_DATA,
               "%s: num_experts is 0, but first_k_dense_replace is %lld of %lld layers", path,
               (long long)x->dense_layers, (long long)x->layers);
    LH_REQUIRE(x->dense_layers == x->layers || x->top_k <= x->experts, LH_ERR_DATA,
               "%s: num_experts_per_token is %lld, expected at most num_experts, %lld", path,
               (long long)x->top_k, (long long)x->experts);
    LH_REQUIRE(x->shared * x->expert <= 1 << 24, LH_ERR_DATA,
               "%s: num_shared_experts * moe_intermediate_size is %lld, expected at most %d", path,
               (long long)(x->shared * x->expert), 1 << 24);
    return LH_OK;
}

static lh_status read_all(lh_dims *d, json_t *config, const char *path, const char *model_dir)
{
    json_t *linear = json_object_get(config, LINEAR);
    json_t *renormalize = json_object_get(config, "moe_renormalize");
    numbers x = {0};
    char seen[64];

    LH_REQUIRE(json_is_object(linear), LH_ERR_DATA, "%s: " LINEAR " is %s, expected an object",
               path, lh_json_show(linear, seen));
    LH_TRY(check_keys(config, linear, path));
    LH_TRY(check_fixed(config, path));
    LH_TRY(read_numbers(&x, config, BASE, 1, path));
    d->n_layers = (int)x.layers;
    d->n_vocab = x.vocab;
    LH_TRY(read_layers(d, linear, path));
    if (x.dense_layers < 0) {
        LH_REQUIRE(x.experts == 0, LH_ERR_DATA, "%s: first_k_dense_replace is absent", path);
        x.dense_layers = x.layers;
    }
    int moe = x.dense_layers < x.layers;
    LH_TRY(read_numbers(&x, linear, OF_KDA, d->n_kda_layers > 0, path));
    LH_TRY(read_numbers(&x, config, OF_MLA, d->n_mla_layers > 0, path));
    LH_TRY(read_numbers(&x, config, OF_DENSE, x.dense_layers > 0, path));
    LH_TRY(read_numbers(&x, config, OF_MOE, moe, path));
    if (x.kv_heads < 0)
        x.kv_heads = x.heads;
    LH_TRY(check_together(&x, path));
    LH_TRY(read_real(&d->norm_eps, config, "rms_norm_eps", 0, 1, 1, path));
    LH_TRY(read_real(&d->route_scale, config, "routed_scaling_factor", 0, 1000001, moe, path));
    LH_REQUIRE(!renormalize || json_is_boolean(renormalize), LH_ERR_DATA,
               "%s: moe_renormalize is %s, expected true or false", path,
               lh_json_show(renormalize, seen));
    d->renormalize = !json_is_false(renormalize);

    d->n_dense_layers = (int)x.dense_layers;
    d->d_model = x.hidden;
    d->kda_heads = (int)x.kda_heads;
    d->kda_dim = (int)x.kda_dim;
    d->taps = (int)x.taps;
    d->mla_heads = (int)x.heads;
    d->d_nope = (int)x.nope;
    d->d_rope = (int)x.rope;
    d->d_v = (int)x.v;
    d->d_latent = (int)x.latent;
    d->d_ffn = x.ffn;
    d->d_expert = x.expert;
    d->d_shared = x.shared * x.expert;
    d->n_experts = (int)x.experts;
    d->top_k = (int)x.top_k;
    d->n_shared = (int)x.shared;
    d->latent_eps = LATENT_EPS;
    d->max_context = x.context;
    return read_tokens(d, config, path, model_dir);
}

/* The harmless keys that the file has: pointers and texts in one block. */
static lh_status list_ignored(char ***out, json_t *config)
{
    size_t n = 0, text_bytes = 0;
    const char *key;
    json_t *value;

    json_object_foreach(config, key, value)
    {
        if (lh_config_key_harmless(key)) {
            n++;
            text_bytes += strlen(key) + 1;
        }
    }
    char **list = malloc((n + 1) * sizeof *list + text_bytes);
    LH_REQUIRE(list, LH_ERR_NOMEM, "list of ignored keys");
    char *text = (char *)(list + n + 1);
    n = 0;
    json_object_foreach(config, key, value)
    {
        if (lh_config_key_harmless(key)) {
            list[n++] = text;
            text = stpcpy(text, key) + 1;
        }
    }
    list[n] = NULL;
    *out = list;
    return LH_OK;
}

static lh_status read_config(lh_dims *out, const char *path, const char *model_dir,
                             char ***ignored_out)
{
    lh_status st = LH_OK;
    json_t *config = NULL;
    lh_dims d = {0};

    LH_TRY(lh_json_read(&config, path, MAX_CONFIG_BYTES));
    LH_TRY_OUT(read_all(&d, config, path, model_dir));
    if (ignored_out)
        LH_TRY_OUT(list_ignored(ignored_out, config));
    *out = d;
out:
    json_decref(config);
    return st;
}

lh_status lh_config_read(lh_dims *out, const char *model_dir, char ***ignored_out)
{
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/config.json", model_dir);

    /* Longer names follow: generation_config.json. */
    LH_REQUIRE(length > 0 && length < (int)sizeof path - 64, LH_ERR_USAGE,
               "model directory: the name is longer than %d bytes", (int)sizeof path - 64);
    return read_config(out, path, model_dir, ignored_out);
}

lh_status lh_config_read_file(lh_dims *out, const char *path)
{
    char dir[4096];
    int length = snprintf(dir, sizeof dir, "%s", path);

    LH_REQUIRE(length > 0 && length < (int)sizeof dir - 64, LH_ERR_USAGE,
               "the config's name is longer than %d bytes", (int)sizeof dir - 64);
    char *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir] = '\0';
    return read_config(out, path, slash ? dir : ".", NULL);
}
