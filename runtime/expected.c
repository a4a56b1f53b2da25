#include <stdio.h>
#include <string.h>

#include "runtime/model.h"

/* Sizes that occur in shapes. */
typedef enum size_name {
    NONE,
    ONE,
    VOCAB,
    MODEL,
    KDA_HEADS,
    KDA_DIM,
    KDA_ALL, /* heads * dim */
    TAPS,
    MLA_Q,
    MLA_O,
    LATENT,
    KV_A,
    KV_B,
    FFN,
    SHARED,
    EXPERT,
    EXPERTS,
} size_name;

static int64_t size_of(const lh_dims *d, unsigned char name)
{
    switch ((size_name)name) {
    case NONE:
    case ONE:
        return 1;
    case VOCAB:
        return d->n_vocab;
    case MODEL:
        return d->d_model;
    case KDA_HEADS:
        return d->kda_heads;
    case KDA_DIM:
        return d->kda_dim;
    case KDA_ALL:
        return (int64_t)d->kda_heads * d->kda_dim;
    case TAPS:
        return d->taps;
    case MLA_Q:
        return (int64_t)d->mla_heads * (d->d_nope + d->d_rope);
    case MLA_O:
        return (int64_t)d->mla_heads * d->d_v;
    case LATENT:
        return d->d_latent;
    case KV_A:
        return d->d_latent + d->d_rope;
    case KV_B:
        return (int64_t)d->mla_heads * (d->d_nope + d->d_v);
    case FFN:
        return d->d_ffn;
    case SHARED:
        return d->d_shared;
    case EXPERT:
        return d->d_expert;
    case EXPERTS:
        return d->n_experts;
    }
    return 1;
}

typedef enum allowed { BF16, F32, EITHER } allowed; /* EITHER: published as bf16 */

typedef struct spec {
    const char *name;
    unsigned char dims[4]; /* size_name */
    size_t slot;
    allowed dtype;
} spec;

#define TOP(field) offsetof(lh_weights, field)
#define IN(field) offsetof(lh_layer_weights, field)

static const spec first[] = {
    {"model.embed_tokens.weight", {VOCAB, MODEL}, TOP(embed), BF16},
};
static const spec last[] = {
    {"model.norm.weight", {MODEL}, TOP(final_norm), BF16},
    {"lm_head.weight", {VOCAB, MODEL}, TOP(head), BF16},
};
static const spec norms[] = {
    {"input_layernorm.weight", {MODEL}, IN(attn_norm), BF16},
    {"post_attention_layernorm.weight", {MODEL}, IN(ffn_norm), BF16},
};
static const spec kda[] = {
    {"self_attn.q_proj.weight", {KDA_ALL, MODEL}, IN(q), BF16},
    {"self_attn.k_proj.weight", {KDA_ALL, MODEL}, IN(k), BF16},
    {"self_attn.v_proj.weight", {KDA_ALL, MODEL}, IN(v), BF16},
    {"self_attn.q_conv1d.weight", {KDA_ALL, ONE, TAPS}, IN(q_conv), BF16},
    {"self_attn.k_conv1d.weight", {KDA_ALL, ONE, TAPS}, IN(k_conv), BF16},
    {"self_attn.v_conv1d.weight", {KDA_ALL, ONE, TAPS}, IN(v_conv), BF16},
    {"self_attn.A_log", {ONE, ONE, KDA_HEADS, ONE}, IN(a_log), F32},
    {"self_attn.dt_bias", {KDA_ALL}, IN(dt_bias), F32},
    {"self_attn.f_a_proj.weight", {KDA_DIM, MODEL}, IN(f_a), BF16},
    {"self_attn.f_b_proj.weight", {KDA_ALL, KDA_DIM}, IN(f_b), BF16},
    {"self_attn.b_proj.weight", {KDA_HEADS, MODEL}, IN(b), BF16},
    {"self_attn.g_a_proj.weight", {KDA_DIM, MODEL}, IN(g_a), BF16},
    {"self_attn.g_b_proj.weight", {KDA_ALL, KDA_DIM}, IN(g_b), BF16},
    {"self_attn.o_norm.weight", {KDA_DIM}, IN(o_norm), BF16},
    {"self_attn.o_proj.weight", {MODEL, KDA_ALL}, IN(o), BF16},
};
static const spec mla[] = {
    {"self_attn.q_proj.weight", {MLA_Q, MODEL}, IN(mla_q), BF16},
    {"self_attn.kv_a_proj_with_mqa.weight", {KV_A, MODEL}, IN(kv_a), BF16},
    {"self_attn.kv_a_layernorm.weight", {LATENT}, IN(kv_norm), BF16},
    {"self_attn.kv_b_proj.weight", {KV_B, LATENT}, IN(kv_b), BF16},
    {"self_attn.o_proj.weight", {MODEL, MLA_O}, IN(o), BF16},
};
static const spec dense[] = {
    {"mlp.gate_proj.weight", {FFN, MODEL}, IN(gate), BF16},
    {"mlp.up_proj.weight", {FFN, MODEL}, IN(up), BF16},
    {"mlp.down_proj.weight", {MODEL, FFN}, IN(down), BF16},
};
static const spec router[] = {
    {"block_sparse_moe.gate.weight", {EXPERTS, MODEL}, IN(router), BF16},
    {"block_sparse_moe.gate.e_score_correction_bias", {EXPERTS}, IN(router_bias), EITHER},
};
static const spec shared[] = {
    {"block_sparse_moe.shared_experts.gate_proj.weight", {SHARED, MODEL}, IN(gate), BF16},
    {"block_sparse_moe.shared_experts.up_proj.weight", {SHARED, MODEL}, IN(up), BF16},
    {"block_sparse_moe.shared_experts.down_proj.weight", {MODEL, SHARED}, IN(down), BF16},
};
static const spec expert[] = {
    {"w1.weight", {EXPERT, MODEL}, IN(w_gate), BF16},
    {"w2.weight", {MODEL, EXPERT}, IN(w_down), BF16},
    {"w3.weight", {EXPERT, MODEL}, IN(w_up), BF16},
};

/* A table, so many times over: once, or for every expert. */
typedef struct section {
    const spec *specs;
    int n, times;
} section;

#define SECTION(table, times) ((section){table, (int)(sizeof(table) / sizeof(table)[0]), times})
#define MAX_SECTIONS 5

static int layer_sections(section out[MAX_SECTIONS], const lh_dims *d, int layer)
{
    int n = 0;

    out[n++] = SECTION(norms, 1);
    out[n++] = d->attn[layer] == LH_ATTN_KDA ? SECTION(kda, 1) : SECTION(mla, 1);
    if (layer < d->n_dense_layers) {
        out[n++] = SECTION(dense, 1);
        return n;
    }
    out[n++] = SECTION(router, 1);
    if (d->n_shared > 0)
        out[n++] = SECTION(shared, 1);
    out[n++] = SECTION(expert, d->n_experts);
    return n;
}

static int64_t layer_count(const lh_dims *d, int layer)
{
    section s[MAX_SECTIONS];
    int n = layer_sections(s, d, layer);
    int64_t count = 0;

    for (int i = 0; i < n; i++)
        count += (int64_t)s[i].n * s[i].times;
    return count;
}

int64_t lh_expected_count(const lh_dims *d)
{
    int64_t count = SECTION(first, 1).n + SECTION(last, 1).n;

    for (int layer = 0; layer < d->n_layers; layer++)
        count += layer_count(d, layer);
    return count;
}

/* Everything but the name. */
static void fill(lh_expected *out, const lh_dims *d, const spec *s, int layer, int expert_id)
{
    out->n_dims = 0;
    memset(out->dims, 0, sizeof out->dims);
    while (out->n_dims < 4 && s->dims[out->n_dims] != NONE) {
        out->dims[out->n_dims] = size_of(d, s->dims[out->n_dims]);
        out->n_dims++;
    }
    out->allow_bf16 = s->dtype != F32;
    out->allow_f32 = s->dtype != BF16;
    out->layer = layer;
    out->expert = expert_id;
    out->slot = s->slot;
}

/* Number i of a layer. */
static void layer_tensor(lh_expected *out, const lh_dims *d, int layer, int64_t i)
{
    section sections[MAX_SECTIONS], *s = sections;
    int n = layer_sections(sections, d, layer);

    for (; s < sections + n - 1 && i >= (int64_t)s->n * s->times; s++)
        i -= (int64_t)s->n * s->times;
    const spec *what = &s->specs[i % s->n];
    if (s->specs == expert) {
        int id = (int)(i / s->n);
        (void)snprintf(out->name, sizeof out->name,
                       "model.layers.%d.block_sparse_moe.experts.%d.%s", layer, id, what->name);
        fill(out, d, what, layer, id);
    } else {
        (void)snprintf(out->name, sizeof out->name, "model.layers.%d.%s", layer, what->name);
        fill(out, d, what, layer, -1);
    }
}

void lh_expected_tensor(lh_expected *out, const lh_dims *d, int64_t i)
{
    const spec *s = &first[0];
    int64_t n;

    if (i > 0) {
        i--;
        for (int layer = 0; layer < d->n_layers; layer++, i -= n) {
            n = layer_count(d, layer);
            if (i < n) {
                layer_tensor(out, d, layer, i);
                return;
            }
        }
        s = &last[i];
    }
    (void)snprintf(out->name, sizeof out->name, "%s", s->name);
    fill(out, d, s, -1, -1);
}

/* Neither sum overflows: lh_config_read bounds a model to 2^24 tensors of 2^37 elements. */
static void add_section(lh_model_info *info, const lh_dims *d, section s)
{
    for (int i = 0; i < s.n; i++) {
        int64_t elements = s.times;
        for (int k = 0; k < 4; k++)
            elements *= size_of(d, s.specs[i].dims[k]);
        info->n_parameters += elements;
        info->weight_bytes += (size_t)elements * (s.specs[i].dtype == F32 ? 4 : 2);
    }
}

void lh_model_info_fill(lh_model_info *out, const lh_dims *d)
{
    *out = (lh_model_info){
        .n_layers = d->n_layers,
        .n_kda_layers = d->n_kda_layers,
        .n_mla_layers = d->n_mla_layers,
        .n_vocab = d->n_vocab,
        .d_model = d->d_model,
        .n_experts = d->n_experts,
        .top_k = d->top_k,
        .n_shared_experts = d->n_shared,
        .n_dense_layers = d->n_dense_layers,
        .kda_heads = d->kda_heads,
        .kda_head_dim = d->kda_dim,
        .mla_heads = d->mla_heads,
        .latent_dim = d->d_latent,
        .rope_dim = d->d_rope,
        .max_context = d->max_context,
        .bos_token = d->bos_token,
        .n_eos = d->n_eos,
    };
    memcpy(out->eos_tokens, d->eos_tokens, sizeof out->eos_tokens);
    add_section(out, d, SECTION(first, 1));
    for (int layer = 0; layer < d->n_layers; layer++) {
        section s[MAX_SECTIONS];
        int n = layer_sections(s, d, layer);
        for (int i = 0; i < n; i++)
            add_section(out, d, s[i]);
    }
    add_section(out, d, SECTION(last, 1));
}
