/*
 * A checkpoint of a few KB of the test's own: a layer of each kind, every kind of tensor.
 */
#ifndef LH_TESTS_SMALL_CHECKPOINT_H
#define LH_TESTS_SMALL_CHECKPOINT_H

#include <stdlib.h>
#include <string.h>

#include "runtime/checkpoint.h"
#include "runtime/safetensors.h"
#include "tests/check.h"
#include "tests/temp_dir.h"

#define MAX_TENSORS 256

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
static inline void make_tensors(const char *config)
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

static inline void free_tensors(void)
{
    for (int i = 0; i < n_tensors; i++)
        free((void *)(uintptr_t)tensors[i].data);
}

static inline lh_status open_small(void)
{
    lh_checkpoint *c = NULL;
    lh_status st = lh_checkpoint_open(&c, temp_dir, &dims);
    lh_checkpoint_close(c);
    return st;
}

static inline lh_status write_single(const lh_st_tensor *t, int n)
{
    return lh_safetensors_write(temp_path("model.safetensors"), t, n);
}

#endif
