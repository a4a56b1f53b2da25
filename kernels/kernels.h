/*
 * The operations of the model: one argument struct each, one table per backend.
 *
 * Common to all. Pointers are device memory of the backend unless the line says host. Shapes are
 * written slowest axis first, the last axis is contiguous; ld... is the distance between rows in
 * elements. `act` is the backend's type of activations: f32 on the CPU, bf16 on CUDA (void * here).
 * State, decay, maps, gates, router and logits are f32 on both. Weights are bf16, torch order [out,
 * in]. Work is queued on the stream; nothing allocates. Zero rows are a normal case and do nothing.
 * Outputs never alias inputs unless said.
 *
 * Tiles. The result of a row must not depend on what else is in the call, but libraries of matrix
 * products do not promise that: a row's bits change with the number of rows and with its place
 * among them. So rows come with `tiles`, a cut at places that the caller derives from absolute
 * positions only (segments of a prompt; one row per decoding sequence; the rows of one expert
 * within one segment). The CPU backend computes each tile by calls whose shapes depend on the tile
 * alone. A tile of one row is computed by dot products over the bf16 weights, which gives a slice
 * of outputs the same bits as the whole.
 *
 * Errors, all operations: LH_ERR_INVALID for a dimension or pointer out of range,
 * LH_ERR_UNSUPPORTED for a size that the backend lacks; nothing was queued then.
 */
#ifndef LH_KERNELS_KERNELS_H
#define LH_KERNELS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/sampling.h"
#include "base/status.h"
#include "base/synth.h"
#include "kernels/device.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LH_CHUNK 64 /* tokens of a KDA chunk; chunks start at the start of their tile */
#define LH_KEY_TILE                                                                                \
    512 /* keys that prefill attention takes at a time, at multiples of this position */
#define LH_MAX_TAPS 8 /* largest kernel of the short convolution */
#define LH_MAX_TOP_K 64

/* Rows of a call, cut into tiles: tile i is rows start[i] .. start[i + 1] - 1. Host memory;
 * start[0] = 0, not falling. */
typedef struct lh_tiles {
    int n;
    const int64_t *start; /* [n + 1] */
} lh_tiles;

/* out[i] = table[ids[i]]. */
typedef struct lh_embed_args {
    void *out;            /* out [n_rows, d] act */
    const int32_t *ids;   /* in [n_rows], each in [0, n_vocab) */
    const lh_bf16 *table; /* in [n_vocab, d] */
    int64_t n_rows;
    int64_t d;
    int64_t n_vocab;
} lh_embed_args;

/* y = x / sqrt(mean(x^2) + eps) * w, per row; f32 inside, one rounding. */
typedef struct lh_rmsnorm_args {
    void *y;       /* out [n_rows, d] act; may be x */
    const void *x; /* in [n_rows, d] act */
    const lh_bf16 *w;
    int64_t n_rows;
    int64_t d;
    float eps;
} lh_rmsnorm_args;

/* y = x W^T, or y += x W^T. */
typedef struct lh_linear_args {
    void *y; /* out [n_rows, n_out], row distance ldy; act, or f32 with f32_out */
    int64_t ldy;
    const void *x; /* in [n_rows, n_in] act, row distance ldx */
    int64_t ldx;
    const lh_bf16 *w; /* in [n_out, n_in] */
    int64_t n_rows, n_in, n_out;
    int accumulate; /* add to y instead of overwriting it */
    int f32_out;    /* y is f32 whatever the activation type; not with accumulate */
    lh_tiles tiles; /* of the rows */
} lh_linear_args;

/*
 * Short convolution of one run of consecutive tokens, depthwise and causal, then SiLU:
 *     y[t, c] = silu(sum over j of w[c, j] * x[t + j - (taps - 1), c]),   rows before the first
 * come from `halo`.
 */
typedef struct lh_short_conv_args {
    void *y; /* out [n_rows, n_channels] act, row distance ldy */
    int64_t ldy;
    const void *x; /* in [n_rows, n_channels] act, row distance ldx: before the convolution */
    int64_t ldx;
    const void *halo; /* in [taps - 1, n_channels] act, row distance ldx, oldest first; zeros before
                         a sequence's first token */
    const lh_bf16 *w; /* in [n_channels, taps]; the last tap multiplies the current token */
    int64_t n_rows, n_channels;
    int taps; /* 2 .. LH_MAX_TAPS */
} lh_short_conv_args;

/*
 * The same for one token of each of n_seq sequences, of q, k and v together, with what a sequence
 * remembers as halo; that then moves on by the token. The bits are those of short_conv.
 */
typedef struct lh_conv_step_args {
    void *y[3];          /* out: q, k, v, each [n_seq, n_channels] act */
    void *const *rows;   /* in [n_seq] pointers to [taps - 1, 3, n_channels] act, oldest first,
                            in/out; no two alike */
    const void *x;       /* in [n_seq, 3, n_channels] act: before the convolution */
    const lh_bf16 *w[3]; /* in, each [n_channels, taps] */
    int64_t n_seq, n_channels;
    int taps; /* 2 .. LH_MAX_TAPS */
} lh_conv_step_args;

/*
 * Everything between the convolution and the recurrence, per row and head:
 *     q <- q / sqrt(sum q^2 + 1e-6) * d_k^-1/2,   k <- k / sqrt(sum k^2 + 1e-6),
 *     g = -exp(a_log[h]) * softplus(f + dt_bias),   beta = sigmoid(b).         (unbounded gate,
 * report section 3) g <= 0 always, without a lower bound. Heads may be a slice: the pointers then
 * point to the slice's first head.
 */
typedef struct lh_kda_gate_args {
    void *q, *k;          /* in/out [n_rows, n_heads, d_k] act */
    const void *f;        /* in [n_rows, n_heads, d_k] act: decay projection */
    const void *b;        /* in [n_rows, n_heads] act */
    const float *a_log;   /* in [n_heads] */
    const float *dt_bias; /* in [n_heads, d_k] */
    float *g;             /* out [n_rows, n_heads, d_k]: log of the decay */
    float *beta;          /* out [n_rows, n_heads] */
    int64_t n_rows;
    int n_heads, d_k;
} lh_kda_gate_args;

/*
 * Chunked KDA in prefill, first half: all that a segment can do without the state before it.
 *
 * Tiles are segments. The recurrence, per head, state S [d_k, d_v], o = S^T q after the update:
 *     S <- (I - beta k k^T) Diag(exp g) S + beta k v^T                          Kimi Linear report,
 * eq. (1) is affine in S over a segment: S_out = map S_in + add. Inside chunks of LH_CHUNK tokens
 * the UT transform is used (section 3.1); every exponential is of a sum of g over tokens j+1 .. i
 * with i >= j, so <= 0: strong decay underflows to 0, nothing overflows. A tile without rows in a
 * call that has some gets the map I and the addend 0.
 *
 * q, k, v, g are consumed: afterwards they hold what kda_finish needs and belong to it, with
 * `work`.
 */
typedef struct lh_kda_prepare_args {
    void *q, *k;       /* in, consumed [n_rows, n_heads, d_k] act: q scaled, both normalized */
    void *v;           /* in, consumed [n_rows, n_heads, d_v] act */
    float *g;          /* in, consumed [n_rows, n_heads, d_k], <= 0 */
    const float *beta; /* in [n_rows, n_heads], in [0, 1] */
    float *map;        /* out [n_tiles, n_heads, d_k, d_k], or NULL: neither is made */
    float *add;        /* out [n_tiles, n_heads, d_k, d_v], or NULL with map */
    void *work;        /* lh_kernels.kda_work_bytes(...) bytes, 256-byte aligned */
    int64_t n_rows;
    int n_heads, d_k, d_v;
    lh_tiles tiles;
} lh_kda_prepare_args;

/* state_out = map state_in + add, per head: the state after a segment from the state before it. */
typedef struct lh_kda_fold_args {
    float *state_out;      /* out [n_heads, d_k, d_v] */
    const float *state_in; /* in [n_heads, d_k, d_v] */
    const float *map;      /* in [n_heads, d_k, d_k] */
    const float *add;      /* in [n_heads, d_k, d_v] */
    int n_heads, d_k, d_v;
} lh_kda_fold_args;

/*
 * Chunked KDA in prefill, second half: the outputs, from the state before each segment. With
 * state_out also the state after each, by the chain over its chunks: other bits than the fold's.
 */
typedef struct lh_kda_finish_args {
    void *o;               /* out [n_rows, n_heads, d_v] act */
    const float *state_in; /* in [n_tiles, n_heads, d_k, d_v]: the state before each segment */
    float *state_out;      /* out, the same shape, or NULL; may be state_in */
    void *q, *k, *v;       /* in, as kda_prepare left them; may be overwritten */
    float *g;              /* the same */
    void *work;            /* the same */
    int64_t n_rows;
    int n_heads, d_k, d_v;
    lh_tiles tiles;
} lh_kda_finish_args;

/*
 * One token of KDA for each of n_seq sequences (the recurrence above, once).
 * Heads may be a slice. Same result for a sequence whatever else is in the call.
 */
typedef struct lh_kda_step_args {
    void *o; /* out [n_seq, n_heads, d_v] act */
    float *const
        *state; /* in/out [n_seq] pointers to [n_heads, d_k, d_v], d_v fastest; no two alike */
    const void *q, *k; /* in [n_seq, n_heads, d_k] act: q scaled, both normalized */
    const void *v;     /* in [n_seq, n_heads, d_v] act */
    const float *g;    /* in [n_seq, n_heads, d_k], <= 0 */
    const float *beta; /* in [n_seq, n_heads] */
    int64_t n_seq;
    int n_heads, d_k, d_v;
} lh_kda_step_args;

/* y = rmsnorm(o; w, eps over one head) * sigmoid(z). */
typedef struct lh_gated_norm_args {
    void *y;          /* out [n_rows, n_heads, d] act; may be o */
    const void *o;    /* in [n_rows, n_heads, d] act */
    const void *z;    /* in [n_rows, n_heads, d] act */
    const lh_bf16 *w; /* in [d], the same for all heads */
    int64_t n_rows;
    int n_heads, d;
    float eps;
} lh_gated_norm_args;

/*
 * The rows that MLA keeps of tokens: rmsnorm of the first d_latent elements, the d_rope after them
 * as they are. With `row` the i-th goes to row row[i] of y instead of row i, with `caches` too to
 * that row of caches[i]: places that only the device knows, no two alike.
 */
typedef struct lh_latent_args {
    void *y;             /* out [n_rows, d_latent + d_rope] act; may be x; unused with caches */
    void *const *caches; /* in [n_rows] pointers to [.., d_latent + d_rope] act, out; or NULL */
    const void *x;       /* in [n_rows, d_latent + d_rope] act */
    const lh_bf16 *w;    /* in [d_latent] */
    const int64_t *row;  /* in [n_rows], or NULL: not with caches */
    int64_t n_rows;
    int d_latent, d_rope;
    float eps;
} lh_latent_args;

/*
 * Causal attention of MLA in prefill, expanded: per head, with [k_nope | v] = W_kvb c of each
 * latent row c and k_rope its tail, score(i, j) = (q_nope . k_nope_j + q_rope . k_rope_j) * (d_nope
 * + d_rope)^-1/2,  j <= position of i;   o = softmax(score) v. No rotation. Softmax in f32, over
 * key tiles of LH_KEY_TILE at fixed positions in rising order.
 *
 * Rows are the queries; run r of n_runs, none of them empty, holds rows run_start[r] .. run_start[r
 * + 1] - 1, whose positions are consecutive from run_position[r] and rise from run to run. Tiles
 * cut the rows further (a tile lies within one run). The latent cache must have rows 0 .. last
 * position, and memory up to the next multiple of LH_KEY_TILE, whose content does not matter but
 * must be finite.
 */
typedef struct lh_mla_prefill_args {
    void *o;              /* out [n_rows, n_heads, d_v] act */
    const void *q;        /* in [n_rows, n_heads, d_nope + d_rope] act */
    const void *latent;   /* in [context, d_latent + d_rope] act */
    const lh_bf16 *w_kvb; /* in [n_heads, d_nope + d_v, d_latent] */
    int64_t n_rows;
    int n_runs;
    const int64_t *run_start;    /* host [n_runs + 1], rows */
    const int64_t *run_position; /* host [n_runs], absolute positions */
    lh_tiles tiles;
    int n_heads, d_nope, d_rope, d_v, d_latent;
    void *work; /* lh_kernels.mla_prefill_work_bytes(...) bytes, 256-byte aligned */
} lh_mla_prefill_args;

/*
 * Attention of MLA for one new token of each of n_seq sequences, absorbed: q~ = W_uk^T q_nope is
 * compared with the latent rows themselves, their weighted sum goes through W_uv. Heads may be a
 * slice of the model's (q, w_kvb and o then point to the slice). Keys are summed in ranges whose
 * places depend on n_keys alone, and the ranges are merged in rising order.
 *
 * Ranks that share the keys make of it two steps with an exchange between them, for the same bits
 * (on CUDA with a deterministic stream): mla_attend sums keys into rows of `partial`, mla_merge
 * reads all rows and writes o. lh_kernels.mla_sections says what the rows are. 0: ranges, those of
 * all sequences one behind the other, lh_mla_ranges(n_keys) of each; mla_attend fills rows
 * first_range .. first_range + n_ranges - 1. Otherwise the host need not know n_keys: the ranges of
 * each sequence are summed up in so many sections, whose places depend on n_keys alone (the last
 * may be empty). Row section * n_seq + i is sequence i's; first_range and n_ranges count sections.
 */
typedef struct lh_mla_decode_args {
    void *o;                   /* out [n_seq, n_heads, d_v] act */
    const void *q;             /* in [n_seq, n_heads, d_nope + d_rope] act */
    const void *const *latent; /* in [n_seq] pointers to [n_keys, d_latent + d_rope] act, the new
                                  token's row included */
    const int64_t *n_keys;     /* in [n_seq], each in [1, max_keys] */
    int64_t max_keys;
    const lh_bf16 *w_kvb; /* in [n_heads, d_nope + d_v, d_latent] */
    int64_t n_seq;
    int n_heads, d_nope, d_rope, d_v, d_latent;
    void *work;     /* lh_kernels.mla_decode_work_bytes(...) bytes for max_keys, 256-byte aligned */
    float *partial; /* mla_attend and mla_merge alone: [rows, lh_mla_partial_size(..)]: weighted
                       sums [n_heads, d_latent], then (maximum, sum) [n_heads] of the softmax */
    int first_range, n_ranges;
} lh_mla_decode_args;

#define LH_MLA_RANGES 64      /* of one sequence, at most */
#define LH_MLA_RANGE_KEYS 256 /* of a range but the last, at least */

/* Keys of every range but the last, for a sequence of n_keys. */
static inline int64_t lh_mla_range_keys(int64_t n_keys)
{
    int64_t step = (int64_t)LH_MLA_RANGES * 64, least = LH_MLA_RANGE_KEYS;
    int64_t keys = (n_keys / step + (n_keys % step != 0)) * 64;
    return keys < least ? least : keys;
}

static inline int64_t lh_mla_ranges(int64_t n_keys)
{
    int64_t keys = lh_mla_range_keys(n_keys);
    return n_keys / keys + (n_keys % keys != 0);
}

/* The most ranges of sequences of up to n_keys: longer ones may have fewer. */
static inline int64_t lh_mla_most_ranges(int64_t n_keys)
{
    int64_t n = n_keys / LH_MLA_RANGE_KEYS + 1;
    return n < LH_MLA_RANGES ? n : LH_MLA_RANGES;
}

/* Floats of a row of partial sums: whole 16 bytes. */
static inline int64_t lh_mla_partial_size(int n_heads, int d_latent)
{
    return ((int64_t)n_heads * (d_latent + 2) + 3) / 4 * 4;
}

/*
 * The router: s = sigmoid(x W^T) in f32; the top_k experts by s + bias (ties: the lower id), in
 * rising order of id; weights s of the chosen (without bias), with `renormalize` divided by (their
 * sum + 1e-20), times `scale`.
 */
typedef struct lh_router_args {
    int32_t *expert;   /* out [n_rows, top_k] */
    float *weight;     /* out [n_rows, top_k] */
    float *scores;     /* scratch [n_rows, n_experts] */
    const void *x;     /* in [n_rows, d] act */
    const lh_bf16 *w;  /* in [n_experts, d] */
    const float *bias; /* in [n_experts] */
    int64_t n_rows, d;
    int n_experts, top_k, renormalize;
    float scale;
    lh_tiles tiles;
} lh_router_args;

/*
 * Feed-forward networks with SwiGLU, grouped: rows of tile i go through network net[i]: y = W_down
 * (silu(W_gate x) * (W_up x)). A dense or shared feed-forward is the case of one network.
 */
typedef struct lh_ffn_args {
    void *y;                      /* out [n_rows, d] act */
    const void *x;                /* in [n_rows, d] act */
    const lh_bf16 *const *w_gate; /* host [n_nets] pointers to [d_hidden, d] */
    const lh_bf16 *const *w_up;   /* host [n_nets] pointers to [d_hidden, d] */
    const lh_bf16 *const *w_down; /* host [n_nets] pointers to [d, d_hidden] */
    int n_nets;
    int64_t n_rows, d, d_hidden;
    int accumulate; /* add to y instead of overwriting it */
    lh_tiles tiles;
    const int32_t *net; /* host [n_tiles]; tiles of one network are neighbours */
    void *work;         /* [n_rows, 2, d_hidden] act */
} lh_ffn_args;

/*
 * The experts of single tokens, chosen on the device: for every (token t, slot j) whose expert is
 * one of n_nets from first_expert on, y[t * top_k + j] = W_down (silu(W_gate x[t]) * (W_up x[t]));
 * the rows of other ranks' experts become 0.
 */
typedef struct lh_moe_step_args {
    void *y;                      /* out [n_seq, top_k, d] act */
    const void *x;                /* in [n_seq, d] act */
    const int32_t *expert;        /* in [n_seq, top_k], each row rising */
    const lh_bf16 *const *w_gate; /* in [n_nets] pointers to [d_hidden, d] */
    const lh_bf16 *const *w_up;   /* in [n_nets] pointers to [d_hidden, d] */
    const lh_bf16 *const *w_down; /* in [n_nets] pointers to [d, d_hidden] */
    int first_expert, n_nets;
    int64_t n_seq, d, d_hidden;
    int top_k;
    void *work; /* [n_seq * top_k, 2, d_hidden] act */
} lh_moe_step_args;

/* y[i] = x[index[i]]; rows of `width` act elements. */
typedef struct lh_gather_args {
    void *y;              /* out [n_rows, width] act */
    const void *x;        /* in [.., width] act */
    const int32_t *index; /* in [n_rows] */
    int64_t n_rows, width;
} lh_gather_args;

/*
 * The end of a mixture-of-experts layer: x[t] += sum over j (rising) of weight[t, j] *
 * rows[source[t, j]] + shared[t]. The sum over j is formed first, in f32, in this order.
 */
typedef struct lh_combine_args {
    void *x;               /* in/out [n_rows, d] act */
    const void *rows;      /* in [.., d] act: outputs of experts */
    const int32_t *source; /* in [n_rows, top_k] */
    const float *weight;   /* in [n_rows, top_k] */
    const void *shared;    /* in [n_rows, d] act, or NULL */
    int64_t n_rows, d;
    int top_k;
} lh_combine_args;

/* In place of a token: rows that sample leaves to the host, which has lh_sample_row. */
#define LH_SAMPLE_OPEN (-1)       /* the filters let through more than the backend sorts */
#define LH_SAMPLE_NOT_FINITE (-2) /* a logit is infinite or NaN */

/*
 * One token a row from its logits, as base/sampling.h says: that of lh_sample_row
 * (kernels/sample.h), or one of the two above. OPEN comes only where top_k leaves more than
 * LH_SAMPLE_SORTED candidates, never on the CPU: when neither top_p nor min_p ends the list among
 * the first LH_SAMPLE_SORTED, or top_p needs the mass of a part that long.
 */
typedef struct lh_sample_args {
    int32_t *token;      /* out [n_rows]: the token, or one of the two above */
    const float *logits; /* in [n_rows, n_vocab] */
    const lh_draw *draw; /* in [n_rows], settings in their ranges */
    int64_t n_rows, n_vocab;
    void *work; /* lh_kernels.sample_work_bytes(...) bytes, 256-byte aligned */
} lh_sample_args;

/*
 * The exchange of rows with the ranks of their experts, planned where the routing lies
 * (parallel/expert.h). Rank r has experts first[r] .. first[r + 1] - 1; one copy of a row goes to
 * each rank that has any of its experts. A pair is a row and one of its experts; pairs are sent by
 * rank, then by row, then by slot. The same integers on every backend.
 */
typedef struct lh_plan_send_args {
    int32_t *total;        /* out [n_experts + size]: pairs of each expert, then copies to each
                              rank; without rows too */
    int32_t *send_row;     /* out [copies]: which row each copy is, by rank, then by row */
    int32_t *source;       /* out [n_rows, top_k]: which pair, in the order sent, each slot is */
    uint32_t *pair_expert; /* out [n_rows * top_k], in the order sent: twice the expert's number,
                              counted from its rank's first, plus 1 where a copy begins */
    const int32_t *expert; /* in [n_rows, top_k], each row rising, below n_experts */
    const int32_t *first;  /* host [size + 1], from 0 to n_experts, not falling */
    int64_t n_rows;        /* n_rows * top_k below 2^31 */
    int n_experts, top_k, size;
    void *work; /* lh_kernels.plan_send_work_bytes(...) bytes, 256-byte aligned */
} lh_plan_send_args;

/*
 * The other side: pairs as they were sent, rank after rank, are put in order of their experts; the
 * pairs of one expert stay as they came. Numbers of a peer that cannot be right are taken as the
 * nearest that can, so that nothing outside is read or written, then or later.
 */
typedef struct lh_plan_receive_args {
    int32_t *pair_copy;          /* out [n_pairs]: which received copy each pair in order reads */
    int32_t *back_pair;          /* out [n_pairs]: the place in order of each received pair */
    const uint32_t *pair_expert; /* in [n_pairs], as of plan_send */
    int64_t n_pairs, n_copies;   /* with pairs there are copies */
    int n_nets;                  /* experts of this rank */
    void *work; /* lh_kernels.plan_receive_work_bytes(...) bytes, 256-byte aligned */
} lh_plan_receive_args;

/* Elements `first` .. first + n - 1 of a synthetic tensor (base/synth.h), the same bits on every
 * backend. */
typedef struct lh_synth_fill_args {
    void *out; /* out [n] bf16 or f32, 16-byte aligned */
    lh_synth_law law;
    lh_synth_form form;
    int64_t first; /* 0 .. 2^40 */
    int64_t n;     /* 0 .. 2^38 */
} lh_synth_fill_args;

/* A backend. Complete: what it lacks is a stub that returns LH_ERR_UNSUPPORTED. */
typedef struct lh_kernels {
    const char *name; /* "cpu", "cuda" */
    size_t act_bytes; /* of one activation element */
    int mla_sections; /* of a sequence's keys, see lh_mla_decode_args; 0: ranges */
    const lh_device_ops *device;
    lh_status (*embed)(lh_stream *s, const lh_embed_args *a);
    lh_status (*rmsnorm)(lh_stream *s, const lh_rmsnorm_args *a);
    lh_status (*linear)(lh_stream *s, const lh_linear_args *a);
    lh_status (*short_conv)(lh_stream *s, const lh_short_conv_args *a);
    lh_status (*conv_step)(lh_stream *s, const lh_conv_step_args *a);
    lh_status (*kda_gate)(lh_stream *s, const lh_kda_gate_args *a);
    lh_status (*kda_prepare)(lh_stream *s, const lh_kda_prepare_args *a);
    lh_status (*kda_fold)(lh_stream *s, const lh_kda_fold_args *a);
    lh_status (*kda_finish)(lh_stream *s, const lh_kda_finish_args *a);
    lh_status (*kda_step)(lh_stream *s, const lh_kda_step_args *a);
    lh_status (*gated_norm)(lh_stream *s, const lh_gated_norm_args *a);
    lh_status (*latent)(lh_stream *s, const lh_latent_args *a);
    lh_status (*mla_prefill)(lh_stream *s, const lh_mla_prefill_args *a);
    lh_status (*mla_decode)(lh_stream *s, const lh_mla_decode_args *a);
    lh_status (*mla_attend)(lh_stream *s, const lh_mla_decode_args *a);
    lh_status (*mla_merge)(lh_stream *s, const lh_mla_decode_args *a);
    lh_status (*router)(lh_stream *s, const lh_router_args *a);
    lh_status (*ffn)(lh_stream *s, const lh_ffn_args *a);
    lh_status (*moe_step)(lh_stream *s, const lh_moe_step_args *a);
    lh_status (*gather)(lh_stream *s, const lh_gather_args *a);
    lh_status (*combine)(lh_stream *s, const lh_combine_args *a);
    lh_status (*sample)(lh_stream *s, const lh_sample_args *a);
    lh_status (*plan_send)(lh_stream *s, const lh_plan_send_args *a);
    lh_status (*plan_receive)(lh_stream *s, const lh_plan_receive_args *a);
    lh_status (*synth_fill)(lh_stream *s, const lh_synth_fill_args *a);

    /* Bytes of `work`, by the same functions that lay it out; 0 rows need 0 bytes. SIZE_MAX: does
     * not fit in memory at all. */
    size_t (*kda_work_bytes)(int64_t n_rows, int n_tiles, int n_heads, int d_k, int d_v);
    size_t (*mla_prefill_work_bytes)(int64_t n_rows, int n_heads, int d_nope, int d_rope, int d_v,
                                     int d_latent);
    size_t (*mla_decode_work_bytes)(int64_t n_seq, int64_t n_keys, int n_heads, int d_latent,
                                    int d_rope);
    size_t (*sample_work_bytes)(int64_t n_rows, int64_t n_vocab);
    size_t (*plan_send_work_bytes)(int64_t n_rows, int size);
    size_t (*plan_receive_work_bytes)(int64_t n_pairs, int n_nets);

    /* Bytes that opening a stream with so many threads takes: scratch of the threads. */
    size_t (*stream_bytes)(int n_threads);
} lh_kernels;

extern const lh_kernels lh_kernels_cpu;

/* NULL: not in this build, or no driver or GPU that it can use. */
const lh_kernels *lh_kernels_cuda(void);

/*
 * The CUDA backend's types and sizes, for plans: only act_bytes, mla_sections, device->reads_host
 * and the functions that tell bytes may be used. The same in a build without CUDA.
 */
const lh_kernels *lh_kernels_cuda_sizes(void);

#ifdef __cplusplus
}
#endif
#endif
