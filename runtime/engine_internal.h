/*
 * Inside the runtime: the engine, its geometry and buffers, and the functions of the forward pass.
 *
 * Prefill: a turn's tokens are taken in blocks, a block's segments are owned by ranks
 * (parallel/shard.h), every rank runs all layers over the rows of its own segments. Decode: every
 * rank has the token; each computes its heads, its rows of the projections, its experts, and the
 * parts are gathered. Nothing is ever summed across ranks, so no bit depends on their number.
 */
#ifndef LH_RUNTIME_ENGINE_INTERNAL_H
#define LH_RUNTIME_ENGINE_INTERNAL_H

#include "kernels/kernels.h"
#include "parallel/comm.h"
#include "parallel/expert.h"
#include "parallel/shard.h"
#include "runtime/checkpoint.h"
#include "runtime/longhaul.h"
#include "runtime/model.h"
#include "runtime/synth.h"

#define LH_MAX_RANKS 4096
#define LH_DEFAULT_SEGMENT 512

/* ---------------------------------------------------------------- geometry */

/* Everything that sizes follow from; the same function of it measures the plan and places the
 * engine's buffers. */
typedef struct lh_geometry {
    const lh_dims *d;
    const lh_kernels *k; /* sizes of work areas */
    size_t act_bytes;    /* 4 for the CPU's types, 2 for CUDA's */
    int rank, size, n_threads;
    int64_t segment, block, context; /* tokens; block a multiple of segment; context of a session */
    int max_sessions;
    int batch;           /* sequences of a decoding step, at most */
    int by_runs;         /* KDA carries its state by whole runs instead of segments */
    int shares_keys;     /* decoding steps may share MLA's keys, see lh_step_shares_keys */
    int64_t latent_rows; /* rows of a latent cache: context rounded up to LH_KEY_TILE */
    int64_t max_rows;    /* rows of a block on one rank */
    int max_segments;    /* segments of a block on one rank */
    int round_segments;  /* segments of a rank in one round of expert dispatch */
    int64_t round_rows;
    lh_range kda_heads, mla_heads, experts, d_model, vocab; /* this rank's */
} lh_geometry;

/* What the caller of an engine or of a plan chooses; 0 means the default for segment, block,
 * context. */
typedef struct lh_settings {
    int rank, size, n_threads;
    int64_t segment, block, context;
    int max_sessions;
    int by_runs;
} lh_settings;

/* LH_ERR_USAGE: a value out of range. */
lh_status lh_geometry_make(lh_geometry *out, const lh_dims *d, const lh_kernels *k,
                           size_t act_bytes, const lh_settings *o);

/*
 * In a decoding step of n_seq sequences, n_keys keys together, the ranks either share MLA's keys,
 * for all heads each, or its heads, for all keys each. On the CPU they share keys always. A GPU
 * then has the queries of all heads to make and sums of all heads to send: it pays from so many
 * keys on that the others read instead. The bits are the same where they may not depend on the
 * ranks.
 */
#define LH_SHARE_KEYS 49152
#define LH_SHARE_KEYS_EACH 4096 /* more, for each sequence */
int lh_step_shares_keys(const lh_geometry *g, int64_t n_seq, int64_t n_keys);

#define LH_MAX_BATCH 64 /* sequences of a decoding step */

/* Rows that the head takes at once. */
static inline int64_t lh_head_rows(const lh_geometry *g)
{
    return lh_max64(LH_LOGIT_ROWS, g->batch);
}

/* What a decoding step reads from the device's memory, so that a recording of it serves every
 * token. */
typedef struct lh_step_input {
    int64_t row[LH_MAX_BATCH];    /* of the caches: each token's position */
    int64_t n_keys[LH_MAX_BATCH]; /* row + 1 */
    int32_t id[LH_MAX_BATCH];
} lh_step_input;

/* Device buffers of a step. Those of different kinds of layers, and of the head, share memory. */
typedef struct lh_workspace {
    /* all layers; n = max_rows */
    int32_t *ids;          /* [n] */
    void *x, *h;           /* [n, d_model] act: residual stream, normed */
    int32_t *conv_gather;  /* [taps - 1, 3, kda_heads] index: rows by token from rows by rank */
    int32_t *conv_scatter; /* the inverse */
    int32_t *slots;        /* [batch, top_k] 0, 1, ..: decoding tokens' rows as they lie */
    lh_step_input *input;  /* [1] what changes from one decoding step to the next */
    void **step_at;        /* [.., batch] of the step's sessions, see lh_step_pointers */
    void **expert_at;      /* [n_layers, 3, own experts] gate, up, down, on such devices */
    float *router_bias;    /* [n_layers, n_experts], on devices with memory of their own */

    struct {
        void *raw; /* [n, 3, D] act: before the convolution; later f, z, o [n, D] each */
        void *f, *z, *o;
        void *q, *k, *v;  /* [n, D] act */
        float *g;         /* [n, D] */
        void *b;          /* [n, heads] act */
        float *beta;      /* [n, heads] */
        void *low;        /* [n, dim] act: between the two factors of a gate */
        void *halo[2];    /* [taps - 1, 3, D] act, of each own run */
        void *tail;       /* [taps - 1, 3, D] act */
        void *by_rank;    /* [taps - 1, 3, D] act, in the order of ranks */
        float *map, *add; /* [segments, heads, dim, dim] */
        float *state;     /* [segments, heads, dim, dim]: before each segment */
        float *carry[2];  /* [heads, dim, dim] */
        void *work;
    } kda;
    struct {
        void *q;   /* [n, heads, d_nope + d_rope] act */
        void *raw; /* [n, d_latent + d_rope] act */
        void *o;   /* [n, heads, d_v] act */
        void *work;
    } mla;
    struct {
        void *hidden; /* [n, 2, d_ffn] act */
    } dense;
    struct {
        float *scores;       /* [n, n_experts] */
        int32_t *expert;     /* [n, top_k] */
        float *weight;       /* [n, top_k] */
        void *shared;        /* [n, d_model] act */
        void *shared_hidden; /* [n, 2, d_shared] act */
        /* sent, received, back: over one rank nothing travels, and they are empty */
        void *sent;            /* copies that leave, one per (row, rank) [.., d_model] act */
        void *received;        /* copies that arrive */
        void *pair_x, *pair_y; /* (token, expert) pairs computed here */
        void *hidden;          /* [pairs, 2, d_expert] act */
        void *back;            /* [round_rows, top_k, d_model] act */
        int32_t *index;        /* the longest of the plan's index lists; not by runs */
        void *lists;           /* by runs: of plans made on the device */
    } moe;
    struct {
        /* n = batch; [n, own heads, dim] act; raw [n, 3, own heads, dim] */
        void *raw, *q, *k, *v, *f, *z;
        float *g, *beta;
        void *b, *low;
        void *y;                        /* [n, D] act, all heads */
        void *mla_q, *mla_o, *mla_work; /* own heads; mla_o all heads */
        float *mla_partial; /* [ranges or sections, lh_mla_partial_size()] where keys are shared */
        void *mla_raw;      /* [n, d_latent + d_rope] act */
        float *scores, *weight;
        int32_t *expert;
        void *rows;    /* [n, top_k, d_model] act: experts' outputs; then [n, d_model] the shared
                          network's */
        void *merging; /* [size] times that */
        void *hidden;  /* [n, top_k, 2, d_expert] or [n, 2, d_shared] or [n, 2, d_ffn] act */
        void *parts;   /* [n] times the widest row that ranks share, in parts: see lh_own_part */
    } step;
    struct {
        /* n = head rows */
        void *last;         /* [n, d_model] act */
        float *logits_part; /* [n, n_vocab] in parts, see lh_own_part */
        float *logits;      /* [n, n_vocab] */
        lh_draw *draw;      /* [n] */
        int32_t *token;     /* [n] */
        void *work;
    } head;
} lh_workspace;

/* Host arrays of a step. */
typedef struct lh_host_space {
    int32_t *expert;     /* [n, top_k] as downloaded; not by runs */
    int32_t *totals;     /* by runs: of plans made on the device, see lh_expert_device */
    int64_t *position;   /* [n] absolute position of each row */
    int64_t *segment;    /* [n] segment of each row, from the start of the turn; not by runs */
    int64_t *tile_start; /* [max_segments + 1] */
    int32_t *net;        /* [max(max_segments, head rows)]: zeros, for calls of one network */
    int64_t *unit_start; /* [head rows + 1] tiles of one row */
    lh_draw *draw;       /* [head rows] */
    int32_t *token;      /* [head rows] as downloaded */
    float *row;          /* [n_vocab] logits, where the device leaves a draw to the host */
    void *sampling;      /* and the scratch for that */
    void **step_at;      /* as the device has it */
    lh_run *runs;        /* [2 * size] */
    size_t *send_bytes, *recv_bytes, *recv_offset; /* [size] */
} lh_host_space;

/* Memory of one session's slot. */
typedef struct lh_slot {
    float *kda;   /* [kda layers, own heads, dim, dim] */
    void *conv;   /* [kda layers, taps - 1, 3, own heads, dim] act */
    void *latent; /* [mla layers, latent_rows, d_latent + d_rope] act */
} lh_slot;

/* Each places its buffers from `base` (NULL: only measures) and returns the bytes; SIZE_MAX when
 * they cannot be. */
size_t lh_workspace_layout(lh_workspace *w, void *base, const lh_geometry *g);
size_t lh_communication_layout(lh_workspace *w, void *base, const lh_geometry *g);
size_t lh_host_layout(lh_host_space *h, void *base, const lh_geometry *g);

/* Bytes of one session on this rank. */
size_t lh_slot_kda_bytes(const lh_geometry *g);
size_t lh_slot_conv_bytes(const lh_geometry *g);
size_t lh_slot_latent_bytes(const lh_geometry *g);

/* On devices with memory of their own: the weights' arena, and the way there from bound host
 * weights. */
size_t lh_weight_arena_bytes(const lh_geometry *g);
lh_status lh_weights_upload(lh_engine *e, const lh_weights *host, lh_weights **out);

/* The pointers of e->w to this rank's experts, for operations that choose experts on the device. */
lh_status lh_upload_expert_pointers(lh_engine *e);

/* Bytes of all weights but those of experts, and of one expert in all layers. */
typedef struct lh_weight_sizes {
    size_t dense, expert;
} lh_weight_sizes;

lh_weight_sizes lh_weight_sizes_make(const lh_dims *d);

/* The plan of g's rank, weights included; and all but the weights anew, for another context. */
void lh_rank_plan_make(lh_rank_plan *out, const lh_geometry *g, const lh_weight_sizes *sizes);
void lh_rank_plan_arenas(lh_rank_plan *out, const lh_geometry *g);

/* ------------------------------------------------------------- does it fit? */

/* A rank's plan and the memory for it, as ranks tell each other. */
typedef struct lh_room {
    lh_rank_plan plan;
    size_t bytes; /* that are there; SIZE_MAX: not known */
    int n_threads;
    int is_mapped;   /* its weights are mapped files, whose pages ranks of a host share */
    char host[64];   /* ranks of one host share `bytes`; "": they are this rank's alone */
    char source[32]; /* who says so: "--memory", .. */
} lh_room;

typedef struct lh_fit {
    const lh_dims *d;
    const lh_kernels *k;
    lh_settings settings; /* of any rank */
    lh_room *rooms;       /* [settings.size] */
} lh_fit;

/* Whether the plans of all ranks that share memory with this one fit. */
int lh_fits(const lh_fit *f, int rank);

/* The largest context with which all ranks fit: the model's, or whole segments; 0: none. Overwrites
 * the plans of f->rooms. */
int64_t lh_largest_context(lh_fit *f);

/* LH_ERR_NOMEM, with what this rank needs, what it has, and the largest context. Overwrites the
 * plans. */
lh_status lh_fit_refuse(lh_fit *f, int rank);

/* Refuses, on all ranks, what does not fit: e's plan against o->memory_bytes, else what the device
 * or the host has left. Collective. */
lh_status lh_engine_check_fit(lh_engine *e, const lh_engine_opts *o);
lh_settings lh_engine_settings(const lh_engine *e, const lh_engine_opts *o);
int lh_is_synthetic(const lh_engine_opts *o);

/* ------------------------------------------------------------------ phases */

typedef enum lh_phase_id {
    LH_PHASE_LOAD,
    LH_PHASE_EMBED,
    LH_PHASE_KDA_PROJECTIONS,
    LH_PHASE_CONVOLUTION,
    LH_PHASE_KDA,
    LH_PHASE_STATE_PASSING,
    LH_PHASE_MLA_PROJECTIONS,
    LH_PHASE_ATTENTION,
    LH_PHASE_LATENT_EXCHANGE,
    LH_PHASE_ROUTE,
    LH_PHASE_DISPATCH,
    LH_PHASE_EXPERTS,
    LH_PHASE_COMBINE,
    LH_PHASE_HEAD,
    LH_PHASE_SAMPLE,
    LH_PHASE_STEP, /* a recorded step as a whole */
    LH_N_PHASES,
    LH_PHASE_NONE = LH_N_PHASES
} lh_phase_id;

typedef struct lh_phase_total {
    double seconds;
    uint64_t bytes, calls;
} lh_phase_total;

/*
 * On a device whose queue runs behind the host a phase lasts from its mark in the queue to the next
 * one; seconds are asked for half a ring of marks later, when they have long passed.
 */
#define LH_MARK_RING 1024
#define LH_MARK_ROUTED LH_MARK_RING /* beside the clock's: a plan's download has run */
_Static_assert(LH_MARK_ROUTED < LH_MARKS, "a mark for each use");

typedef struct lh_phase_clock {
    lh_phase_id now;
    double since;         /* seconds at which `now` began, without marks */
    uint64_t bytes_since; /* what the communicator had sent then */
    lh_phase_total of[LH_N_PHASES];
    lh_phase_id begun[LH_MARK_RING]; /* at each mark */
    int64_t n_marks, n_settled;      /* so far; marks whose seconds are in `of` */
    int is_recording;                /* marks are not for recordings */
} lh_phase_clock;

/* ------------------------------------------------------------------ engine */

/* For tests: sees the rows of this rank as they pass. `what`: "hidden" [n, d_model] act before
 * layer i (and after the last), "expert" [n, top_k] i32, "weight" [n, top_k] f32. Device memory.
 * position [n]. */
typedef struct lh_observer {
    void (*rows)(void *user, const char *what, int layer, const void *rows, int64_t n_rows,
                 const int64_t *position);
    void *user;
} lh_observer;

struct lh_session {
    lh_engine *engine;
    int slot;
    lh_slot at;
    int64_t context, position;
};

/* The block of prefill that is under way, on this rank. */
typedef struct lh_block {
    lh_session *session;
    int64_t turn;       /* absolute position of the turn's first token */
    int64_t begin, end; /* tokens of the turn */
    int n_runs;         /* host.runs */
    int own[2], n_own;  /* which runs are this rank's */
    int64_t n_rows;
    int64_t run_start[3];    /* rows of the own runs */
    int64_t run_position[2]; /* absolute */
    int run_tile[3];         /* tiles of the own runs */
    lh_tiles tiles;          /* the segments of this rank's rows */
    int n_rounds;            /* of expert dispatch, the same on all ranks */
} lh_block;

/* A decoding step of so many sessions: run once, then recorded, then replayed for any of them. */
typedef struct lh_recording {
    int ran;
    void *steps;
} lh_recording;

struct lh_engine {
    lh_comm *boot; /* host memory: set-up and expert plans of the host */
    lh_comm *comm; /* rows and states, in memory of the stream's device; may be `boot` */
    const lh_kernels *k;
    lh_stream *s;
    lh_dims d;
    lh_geometry g;
    lh_model_info info;
    lh_checkpoint *checkpoint; /* or synth: what the weights are in */
    lh_synth *synth;
    const lh_weights *w;
    lh_weights *device_w; /* pointers into arena_weights, on devices with memory of their own */
    lh_expert *expert;

    void *arena_weights, *arena_work, *arena_comm, *arena_kda, *arena_conv, *arena_latent,
        *arena_host;
    lh_workspace ws;
    lh_host_space host;
    unsigned char *slot_taken;                    /* [max_sessions] */
    int step_slots[LH_MAX_BATCH], n_step_slots;   /* whose pointers the device has */
    lh_recording recordings[2][LH_MAX_BATCH + 1]; /* shares_keys, sessions of a step */
    lh_rank_plan plan, used;
    size_t free_at_start; /* on a device with memory of its own, before any arena */

    lh_block block;
    int batch;       /* sessions of the decoding step that is under way */
    int shares_keys; /* whether it shares keys */
    lh_phase_clock clock;
    lh_observer observer;
    lh_take_logits take; /* during lh_step_groups, else NULL */
    void *take_user;
    int allow_nonfinite, by_runs;
    void (*progress)(void *user, const lh_progress *p);
    void *user;
};

/* Enters a phase: closes the one before in the books, and tells the communicator where the program
 * is. */
void lh_enter(lh_engine *e, lh_phase_id phase, int layer);

/* One turn of at least two tokens; one token of each of n <= batch items. Logits as in
 * lh_step_item. */
lh_status lh_prefill(lh_engine *e, const lh_step_item *item);
lh_status lh_decode(lh_engine *e, const lh_step_item *const *items, int n);

/* Where the logits of position `at` of the n_logits wanted go. */
static inline float *lh_logits_at(const lh_engine *e, const lh_step_item *item, int64_t at)
{
    return item->logits + (e->take ? 0 : at * e->d.n_vocab);
}

/* After the logits of tokens first .. first + n - 1 of the turn that began at `turn`: with e->take
 * checks that they are finite, and hands them on. */
lh_status lh_logits_done(lh_engine *e, const lh_step_item *item, int64_t turn, int64_t first,
                         int64_t n);

/* The attention half of layer l: x += attention(norm(x)). `at` counts the layers of this kind. */
lh_status lh_kda_prefill(lh_engine *e, int l, int at);
lh_status lh_mla_prefill(lh_engine *e, int l, int at);
lh_status lh_kda_decode(lh_engine *e, int l, int at);
lh_status lh_mla_decode(lh_engine *e, int l, int at);

/* Where those of the step's sessions lie, [batch] pointers on the device: states and convolution
 * rows of KDA layer `at`, latent caches of MLA layer `at`. */
typedef enum lh_step_kind { LH_STEP_STATE, LH_STEP_CONV, LH_STEP_LATENT } lh_step_kind;

static inline void *const *lh_step_pointers(const lh_engine *e, lh_step_kind kind, int at)
{
    int first = (int)kind * e->d.n_kda_layers; /* latent caches come last */
    return (void *const *)e->ws.step_at + (first + at) * e->g.batch;
}

/* The feed-forward half. */
lh_status lh_ffn_prefill(lh_engine *e, int l);
lh_status lh_ffn_decode(lh_engine *e, int l);

/* What is wanted of a row of the head; host memory, as in lh_step_item. */
typedef struct lh_want {
    float *logits;       /* [n_vocab], or NULL */
    const lh_draw *draw; /* or NULL */
    int32_t *token;      /* LH_SAMPLE_NOT_FINITE where that ends the step */
} lh_want;

/* Logits and tokens of n <= lh_head_rows rows of x (device, on rank `owner`; the same on all if
 * owner is -1), on all ranks. */
lh_status lh_head(lh_engine *e, const void *x, int64_t n, int owner, const lh_want *want);

/*
 * Rows that are computed in parts: n rows y of `units` units of unit_bytes, of which every rank
 * computes its units by lh_split. lh_own_part is where: a matrix [n, own units] of its own, in
 * `parts` (room for all n rows), or in y where that is the same. lh_gather_parts brings everyone's
 * parts together in y.
 */
typedef struct lh_parts {
    void *y, *parts;
    int64_t n, units;
    size_t unit_bytes;
} lh_parts;

void *lh_own_part(const lh_engine *e, const lh_parts *p);
lh_status lh_gather_parts(lh_engine *e, const lh_parts *p);

/* In a decoding step, x += W y: the own rows of w [d_model, width] over y [n, width], gathered. */
lh_status lh_step_output(lh_engine *e, const void *y, const lh_bf16 *w, int64_t width);

/* A pointer `n` elements of activations further. */
static inline void *lh_act(const lh_engine *e, const void *p, int64_t n)
{
    return (char *)(uintptr_t)p + n * (int64_t)e->g.act_bytes;
}

static inline int64_t lh_range_size(lh_range r)
{
    return r.end - r.begin;
}

/* Where a session keeps layer `at` of its kind on this rank: the state of the own heads, their rows
 * before the convolution, and the latent cache; shapes as in lh_slot. */
static inline float *lh_state_at(const lh_session *s, int at)
{
    const lh_engine *e = s->engine;
    return s->at.kda + at * lh_range_size(e->g.kda_heads) * e->d.kda_dim * e->d.kda_dim;
}

static inline void *lh_conv_at(const lh_session *s, int at)
{
    const lh_engine *e = s->engine;
    int64_t width = 3 * lh_range_size(e->g.kda_heads) * e->d.kda_dim;
    return lh_act(e, s->at.conv, at * (e->d.taps - 1) * width);
}

static inline void *lh_latent_at(const lh_session *s, int at)
{
    const lh_engine *e = s->engine;
    return lh_act(e, s->at.latent, at * e->g.latent_rows * (e->d.d_latent + e->d.d_rope));
}

/* y = x W^T (or += with accumulate) over the block's rows. */
static inline lh_status lh_rows_linear(lh_engine *e, void *y, int64_t ldy, const void *x,
                                       int64_t n_in, const lh_bf16 *w, int64_t n_out,
                                       int accumulate)
{
    return e->k->linear(e->s, &(lh_linear_args){.y = y,
                                                .ldy = ldy,
                                                .x = x,
                                                .ldx = n_in,
                                                .w = w,
                                                .n_rows = e->block.n_rows,
                                                .n_in = n_in,
                                                .n_out = n_out,
                                                .accumulate = accumulate,
                                                .tiles = e->block.tiles});
}

/* The same for the rows of a decoding step. Nothing to do for no outputs. */
static inline lh_status lh_step_linear(lh_engine *e, void *y, int64_t ldy, const void *x,
                                       int64_t n_in, const lh_bf16 *w, int64_t n_out,
                                       int accumulate)
{
    if (n_out == 0)
        return LH_OK;
    return e->k->linear(e->s, &(lh_linear_args){.y = y,
                                                .ldy = ldy,
                                                .x = x,
                                                .ldx = n_in,
                                                .w = w,
                                                .n_rows = e->batch,
                                                .n_in = n_in,
                                                .n_out = n_out,
                                                .accumulate = accumulate,
                                                .tiles = {e->batch, e->host.unit_start}});
}

static inline lh_status lh_rows_norm(lh_engine *e, const lh_bf16 *w, int64_t n_rows)
{
    return e->k->rmsnorm(e->s, &(lh_rmsnorm_args){.y = e->ws.h,
                                                  .x = e->ws.x,
                                                  .w = w,
                                                  .n_rows = n_rows,
                                                  .d = e->d.d_model,
                                                  .eps = e->d.norm_eps});
}

#endif
