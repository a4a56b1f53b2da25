/*
 * The model as the runtime sees it: its dimensions, and its weights bound once to named fields.
 */
#ifndef LH_RUNTIME_MODEL_H
#define LH_RUNTIME_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/mem.h"
#include "base/status.h"
#include "runtime/longhaul.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LH_MAX_LAYERS 1024

typedef enum lh_attn_kind { LH_ATTN_KDA, LH_ATTN_MLA } lh_attn_kind;

/*
 * From config.json, checked. From 1: layers to 1,024, n_vocab to 2^21, d_model to 65,536, heads to
 * 1,024, kda_dim to 256, d_nope, d_rope and d_v to 1,024, d_latent to 4,096, d_ffn and d_expert to
 * 2^20, max_context to 2^24, top_k to 64 and n_experts; taps 2 to 8. From 0: n_experts to 4,096,
 * n_shared to 64, d_shared to 2^24. Numbers of a kind of layer that the model has none of may be 0.
 */
typedef struct lh_dims {
    int n_layers, n_kda_layers, n_mla_layers;
    unsigned char attn[LH_MAX_LAYERS]; /* [n_layers] lh_attn_kind */
    int n_dense_layers;                /* the first layers have a dense feed-forward */
    int64_t n_vocab, d_model;
    int kda_heads, kda_dim; /* d_k = d_v = kda_dim */
    int taps;               /* of the short convolution */
    int mla_heads, d_nope, d_rope, d_v, d_latent;
    int64_t d_ffn, d_expert,
        d_shared; /* hidden widths; d_shared = n_shared * d_expert, 0 without shared experts */
    int n_experts, top_k, n_shared, renormalize;
    float route_scale, norm_eps;
    float latent_eps; /* 1e-6: what the published code does, whatever norm_eps is */
    int64_t max_context;
    int32_t bos_token; /* -1: none */
    int n_eos;
    int32_t eos_tokens[16];
} lh_dims;

/* Pointers into memory that the backend can read. Those of experts are [n_experts], NULL for
 * experts of other ranks. */
typedef struct lh_layer_weights {
    const lh_bf16 *attn_norm, *ffn_norm; /* [d_model] */

    /* KDA, heads * dim = kda_heads * kda_dim = D */
    const lh_bf16 *q, *k, *v;                /* [D, d_model] */
    const lh_bf16 *q_conv, *k_conv, *v_conv; /* [D, taps] */
    const lh_bf16 *f_a, *g_a;                /* [kda_dim, d_model] */
    const lh_bf16 *f_b, *g_b;                /* [D, kda_dim] */
    const lh_bf16 *b;                        /* [kda_heads, d_model] */
    const float *a_log;                      /* [kda_heads] */
    const float *dt_bias;                    /* [D] */
    const lh_bf16 *o_norm;                   /* [kda_dim] */
    const lh_bf16 *o;                        /* [d_model, D]; MLA: [d_model, mla_heads * d_v] */

    /* MLA */
    const lh_bf16 *mla_q;   /* [mla_heads * (d_nope + d_rope), d_model] */
    const lh_bf16 *kv_a;    /* [d_latent + d_rope, d_model] */
    const lh_bf16 *kv_norm; /* [d_latent] */
    const lh_bf16 *kv_b;    /* [mla_heads * (d_nope + d_v), d_latent] */

    /* feed-forward: dense layers have one network, others the shared one (NULL without) */
    const lh_bf16 *gate, *up;       /* [d_ffn or d_shared, d_model] */
    const lh_bf16 *down;            /* [d_model, d_ffn or d_shared] */
    const lh_bf16 *router;          /* [n_experts, d_model] */
    const float *router_bias;       /* [n_experts] f32, widened if the file has bf16 */
    const lh_bf16 **w_gate, **w_up; /* [n_experts] pointers to [d_expert, d_model] */
    const lh_bf16 **w_down;         /* [n_experts] pointers to [d_model, d_expert] */
} lh_layer_weights;

typedef struct lh_weights {
    const lh_bf16 *embed;      /* [n_vocab, d_model] */
    const lh_bf16 *final_norm; /* [d_model] */
    const lh_bf16 *head;       /* [n_vocab, d_model] */
    lh_layer_weights *layers;  /* [n_layers] */
} lh_weights;

/*
 * config.json of a directory, and generation_config.json's eos_token_id where present. Values
 * outside what is supported are refused by key (LH_ERR_DATA: seen and expected). *ignored_out (may
 * be NULL) gets the keys that do not matter, a NULL-terminated array for one free(). LH_ERR_OPEN:
 * no such file.
 */
lh_status lh_config_read(lh_dims *out, const char *model_dir, char ***ignored_out);

/* The same of a file of any name, with the generation_config.json beside it. */
lh_status lh_config_read_file(lh_dims *out, const char *path);

/* What the public interface tells about a model. weight_bytes and n_parameters are those of the
 * published layout. */
void lh_model_info_fill(lh_model_info *out, const lh_dims *d);

/*
 * A tensor that a checkpoint of these dimensions must have. lh_expected_tensor gives number i of
 * lh_expected_count, in the order of the layers; each name is there exactly once.
 */
typedef struct lh_expected {
    char name[160];
    int n_dims;
    int64_t dims[4];
    int allow_f32, allow_bf16; /* dtypes that the file may have */
    int layer;                 /* -1 outside the layers */
    int expert;                /* global id, -1 for what every rank holds */
    size_t slot; /* offset of its pointer in lh_weights (layer -1) or lh_layer_weights; an expert's
                    is element `expert` of the array that lies there */
} lh_expected;

int64_t lh_expected_count(const lh_dims *d);
void lh_expected_tensor(lh_expected *out, const lh_dims *d, int64_t i);

size_t lh_expected_elements(const lh_expected *t);
size_t lh_expected_bytes(const lh_expected *t); /* in the published layout */

/* Whether a rank with experts [begin, end) holds the tensors of `expert` (-1: of none). */
static inline int lh_holds_expert(int expert, int64_t begin, int64_t end)
{
    return expert < 0 || (expert >= begin && expert < end);
}

/* The struct and its arrays from a carve, to be filled in; NULL while that measures. */
lh_weights *lh_weights_carve(lh_carve *c, const lh_dims *d);

/* The pointer of a tensor: layer, expert and slot as in lh_expected. */
void lh_weights_set(lh_weights *w, int layer, int expert, size_t slot, const void *pointer);
const void *lh_weights_get(const lh_weights *w, int layer, int expert, size_t slot);

#ifdef __cplusplus
}
#endif
#endif
