/*
 * The public interface of Longhaul: an engine that holds a model, sessions that hold sequences, a
 * step over any of them, a tokenizer, a sampler, a plan. The program's commands use nothing else of
 * the runtime.
 *
 * Ranks. A job of several ranks is one program on every rank that makes the same calls in the same
 * order with the same arguments (tokens and options included): every function below marked
 * collective. All ranks receive the same results.
 *
 * Errors. Functions return lh_status; the text is lh_last_error() (base/status.h). Outputs are
 * written on success only. During set-up (open, create) all ranks succeed or all fail, ranks that
 * are not at fault with LH_ERR_PEER. A failure inside lh_step on a job of several ranks leaves the
 * engine unusable: destroy it, or end the job with lh_engine_abort.
 *
 * Objects belong to the thread that made them.
 */
#ifndef LH_RUNTIME_LONGHAUL_H
#define LH_RUNTIME_LONGHAUL_H

#include <stddef.h>
#include <stdint.h>

#include "base/sampling.h"
#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LH_VERSION "0.1.0"

typedef struct lh_engine lh_engine;
typedef struct lh_session lh_session;
typedef struct lh_tokenizer lh_tokenizer;

/* --------------------------------------------------------------------- job */

/*
 * The ranks of one program before there is an engine: what rank 0 read goes to all, and all end
 * alike. No wait has a deadline here, because rank 0 may be reading from a person.
 */
typedef struct lh_job lh_job;

/* use_mpi 1: a rank of an MPI job, which is begun here; 0: alone. Collective. */
lh_status lh_job_open(lh_job **out, int use_mpi);
/* Accepts NULL. MPI goes on until lh_runtime_finalize. */
void lh_job_close(lh_job *j);
/* Ends the whole job at once with the exit code of `why`. On one rank it returns. */
void lh_job_abort(lh_job *j, lh_status why);
/* Collective. agree: LH_OK when all bring it; else the lowest failing rank has its own status, the
 * others LH_ERR_PEER. bcast: rank 0's bytes to all. */
lh_status lh_job_agree(lh_job *j, lh_status mine);
lh_status lh_job_bcast(lh_job *j, void *buf, size_t bytes);
/* all [size][bytes]: everyone's `mine`, in rank order. Collective. */
lh_status lh_job_gather(lh_job *j, const void *mine, size_t bytes, void *all);

/* ------------------------------------------------------------------ engine */

typedef struct lh_progress {
    const char *phase;   /* "load", "write", "prefill" */
    int64_t done, total; /* tokens of the step for "prefill", else bytes of this rank */
    double seconds;      /* since the phase began */
} lh_progress;

typedef struct lh_engine_opts {
    const char *model_dir;
    const char *backend;    /* "auto", "cpu", "cuda"; NULL is "auto" */
    int use_mpi;            /* 1: a rank of an MPI job; 0: alone */
    int n_ranks;            /* only the job's first so many ranks take part, and they alone call;
                               0: all. A single one ends the job by lh_job_abort */
    int n_threads;          /* of this rank, >= 1 */
    int64_t segment_tokens; /* grid of state passing; 0: 512. A multiple of 64, at most 65,536 */
    int64_t block_tokens;   /* tokens of a prefill block; 0: chosen. Rounded up to whole segments */
    int64_t context_tokens; /* largest context of a session, >= 1 */
    int max_sessions;       /* sessions that may exist at once, >= 1 */
    size_t memory_bytes;    /* that this rank's plan may take; 0: what the GPU has free, or what the
                               host has left for all its ranks */
    double peer_timeout_s;  /* limit of every wait for another rank; 0: 60 */
    int allow_nonfinite;    /* go on when logits are not finite */
    int deterministic;      /* same bits on any ranks, block and batch; the CPU always is */
    int debug_by_runs;      /* validation: the CPU carries KDA states by runs, as GPUs by default */
    const char *weights;    /* "checkpoint", "synthetic": random values, for which config.json is
                               all that is read; NULL is "checkpoint" */
    uint64_t synth_seed;    /* of synthetic weights; see lh_synth_opts */
    double router_skew;
    void (*progress)(void *user, const lh_progress *p); /* may be NULL; called on every rank */
    void *user;
} lh_engine_opts;

/* 1: engines with this backend compute on a GPU here. */
int lh_backend_uses_gpu(const char *backend);

/* Opens a checkpoint and allocates what the plan says. Collective. The directory's name is copied.
 * LH_ERR_NOMEM: the plan does not fit, said before anything is loaded, with the largest context
 * that would. */
lh_status lh_engine_open(lh_engine **out, const lh_engine_opts *opts);

/* Accepts NULL. Sessions must be destroyed before. Not collective. */
void lh_engine_close(lh_engine *e);

/* Ends what engines of several ranks began (MPI); at the end of main. */
void lh_runtime_finalize(void);

/* Ends the whole job at once with the exit code of `why`. On one rank it returns. */
void lh_engine_abort(lh_engine *e, lh_status why);

int lh_engine_rank(const lh_engine *e);
int lh_engine_size(const lh_engine *e);
const char *lh_engine_backend(const lh_engine *e); /* "cpu", "cuda" */
int64_t lh_engine_segment(const lh_engine *e);
int64_t lh_engine_block(const lh_engine *e);

/* For a program's own set-up steps. Collective. agree: see lh_comm_agree. bcast: `bytes` of rank
 * 0's buffer to all. */
lh_status lh_engine_agree(lh_engine *e, lh_status mine);
lh_status lh_engine_bcast(lh_engine *e, void *buf, size_t bytes);

/* --------------------------------------------------------------- the model */

typedef struct lh_model_info {
    int n_layers, n_kda_layers, n_mla_layers;
    int64_t n_vocab, d_model;
    int n_experts, top_k, n_shared_experts, n_dense_layers;
    int kda_heads, kda_head_dim, mla_heads;
    int latent_dim, rope_dim;
    int64_t max_context; /* model_max_length */
    int64_t n_parameters;
    size_t weight_bytes; /* of the whole checkpoint's tensors */
    int32_t bos_token;
    int n_eos;
    int32_t eos_tokens[16]; /* of config.json and generation_config.json, one id or a list */
} lh_model_info;

const lh_model_info *lh_engine_model(const lh_engine *e);

/* ---------------------------------------------------------------- sessions */

/* A sequence with room for `context` tokens, at most the engine's. Collective. */
lh_status lh_session_create(lh_session **out, lh_engine *e, int64_t context);
void lh_session_destroy(lh_session *s);           /* accepts NULL; not collective */
int64_t lh_session_position(const lh_session *s); /* tokens so far */
int64_t lh_session_context(const lh_session *s);

/* Forgets everything; the room stays. Not collective, but all ranks must do it. */
lh_status lh_session_reset(lh_session *s);

/*
 * For measurements: puts a session after n_tokens tokens without computing them. States, rows
 * before the convolutions and latents become random values of the size that prefills give them,
 * bits that follow from the seed and config.json alone, whatever the ranks, threads and block;
 * latents repeat every 4,096 tokens. What the session held is gone. Collective.
 *
 * LH_ERR_DATA: n_tokens is not in 1 .. the context; nothing was changed. After any other failure
 * reset the session.
 */
lh_status lh_session_fill(lh_session *s, int64_t n_tokens, uint64_t seed);

/*
 * Advances sessions of any lengths. Each item's tokens are one turn: its segments are counted from
 * its first token. One token takes the decoding path. No session may occur twice. Collective.
 *
 * Nothing was computed: LH_ERR_DATA: a token outside the vocabulary, or more tokens than the
 * context has room for. LH_ERR_USAGE: a setting of a draw out of range. LH_ERR_INVALID: a draw
 * without room for its token. After computing: LH_ERR_DATA: logits that are not finite; the
 * sessions, logits and tokens of the step are not to be used then.
 */
typedef struct lh_step_item {
    lh_session *session;
    const int32_t *tokens; /* [n_tokens], n_tokens >= 1 */
    int64_t n_tokens;
    int64_t n_logits; /* how many of the last positions' logits are wanted, 0 .. n_tokens */
    float *logits;    /* out [n_logits, n_vocab], oldest first; the caller's memory, filled on every
                         rank */
    const lh_draw *draw; /* how the token after the last one is drawn; NULL: it is not */
    int32_t *token;      /* out with draw, on every rank: what lh_sample draws from its logits */
} lh_step_item;

lh_status lh_step(lh_engine *e, const lh_step_item *items, int n_items);

/*
 * A step of one item whose logits are handed on group by group, oldest first, in place of being
 * kept: `take` gets those after tokens first .. first + n - 1 of the turn, n at most LH_LOGIT_ROWS.
 * item->logits is [LH_LOGIT_ROWS, n_vocab] here, overwritten by each group. Called on every rank; a
 * failure of take ends the step. Collective.
 */
#define LH_LOGIT_ROWS 16
typedef lh_status (*lh_take_logits)(void *user, int64_t first, int64_t n, const float *logits);
lh_status lh_step_groups(lh_engine *e, const lh_step_item *item, lh_take_logits take, void *user);

/* --------------------------------------------------------------- tokenizer */

/*
 * Reads tiktoken.model and, where present, tokenizer_config.json of a checkpoint directory. Not
 * collective. LH_ERR_OPEN: no tokenizer there. LH_ERR_DATA: a malformed file, with its line.
 */
lh_status lh_tokenizer_open(lh_tokenizer **out, const char *model_dir);
void lh_tokenizer_close(lh_tokenizer *t); /* accepts NULL */
int64_t lh_tokenizer_size(
    const lh_tokenizer *t); /* ids are 0 .. size - 1: base tokens, then 256 special ones */

typedef enum lh_special {
    LH_BOS = 0,
    LH_EOS = 1,
    LH_IM_END = 2,
    LH_IM_USER = 3,
    LH_IM_ASSISTANT = 4,
    LH_EOT = 9,
    LH_IM_SYSTEM = 10,
    LH_IM_MIDDLE = 17,
    LH_PAD = 255,
} lh_special;

/* The id of a special token: the first special id plus its offset, unless tokenizer_config.json
 * says otherwise. */
int32_t lh_tokenizer_special(const lh_tokenizer *t, lh_special which);

/*
 * Text to ids. With `special` names of control tokens in the text become those tokens; without,
 * they are ordinary text, always. *ids is for the caller to free(). LH_ERR_DATA: invalid UTF-8,
 * with its offset.
 */
lh_status lh_tokenizer_encode(const lh_tokenizer *t, const char *text, size_t n_bytes, int special,
                              int32_t **ids, int64_t *n_ids);

/*
 * Ids to bytes (which may cut a character in two: the caller that streams waits for the rest).
 * Control tokens give their names with `special`, nothing without. *text is for the caller to
 * free(), with a 0 byte after *n_bytes. LH_ERR_DATA: an id out of range.
 */
lh_status lh_tokenizer_decode(const lh_tokenizer *t, const int32_t *ids, int64_t n_ids, int special,
                              char **text, size_t *n_bytes);

typedef struct lh_message {
    const char *role; /* "system", "user", "assistant" */
    const char *text;
    size_t n_bytes;
} lh_message;

/*
 * A conversation in the model's chat format, ready for the assistant's answer. Text never becomes
 * control tokens. *ids is for the caller to free(). LH_ERR_DATA: an unknown role, or invalid UTF-8.
 */
lh_status lh_tokenizer_chat(const lh_tokenizer *t, const lh_message *messages, int n_messages,
                            int32_t **ids, int64_t *n_ids);

/* ----------------------------------------------------------------- sampler */

/* LH_ERR_USAGE: a field out of range, with its name. */
lh_status lh_sampling_check(const lh_sampling *p);

/*
 * Draws the token of draw number `draw` (0, 1, ..) from logits [n_vocab], as base/sampling.h says.
 * scratch: lh_sample_scratch_bytes(n_vocab), 8-byte aligned.
 */
int32_t lh_sample(const float *logits, int64_t n_vocab, const lh_sampling *p, uint64_t draw,
                  void *scratch);
size_t lh_sample_scratch_bytes(int64_t n_vocab);

/* log(softmax(logits))[token] in f64. */
double lh_logprob(const float *logits, int64_t n_vocab, int32_t token);

/* -------------------------------------------------------------------- plan */

typedef struct lh_rank_plan {
    size_t weights_dense, weights_experts;      /* mapped, of the checkpoint */
    size_t kda_state, conv_state, latent_cache; /* of all sessions */
    size_t workspace, communication;
    size_t total;
} lh_rank_plan;

typedef struct lh_message_plan {
    const char *name; /* "convolution halo", "state passing", "latent exchange", "dispatch",
                         "combine", .. */
    int layers;       /* how many layers send it */
    size_t bytes; /* per layer, of a full prefill block, all ranks together, sent to other ranks:
                     expected value */
} lh_message_plan;

typedef struct lh_plan_opts {
    const char *model_dir; /* config.json is all that is read */
    const char *backend;   /* "cpu" or "cuda": decides the types */
    int n_ranks, n_threads;
    int64_t segment_tokens, block_tokens,
        context_tokens;  /* 0: default; context 0: the model's maximum */
    int batch;           /* sessions */
    int deterministic;   /* as of an engine */
    size_t memory_bytes; /* of each rank: does it fit? 0: not asked */
} lh_plan_opts;

typedef struct lh_plan {
    lh_model_info model;
    int n_ranks;
    lh_rank_plan *ranks; /* [n_ranks] */
    int n_messages;
    lh_message_plan messages[8];
    int64_t segment_tokens, block_tokens, context_tokens;
    int batch;
    /* with memory_bytes */
    int fits;
    int64_t largest_context; /* that would fit: the model's, or whole segments; 0: none */
    char shortage[512];      /* why it does not fit, as an engine says it; else "" */
} lh_plan;

/* What an engine with these options will allocate, on every rank, without weights, GPU or MPI. Not
 * collective. */
lh_status lh_plan_make(lh_plan **out, const lh_plan_opts *opts);
void lh_plan_free(lh_plan *p); /* accepts NULL */

/* What this engine planned for this rank, and what its arenas took. Equal, to the byte:
 * lh_engine_open checks it. But for the total used on a GPU: that is by how much the driver's free
 * memory became less. */
const lh_rank_plan *lh_engine_plan(const lh_engine *e);
const lh_rank_plan *lh_engine_used(const lh_engine *e);

/* ----------------------------------------------------------------- reports */

typedef struct lh_phase {
    const char *name; /* "load", "embed", "KDA projections", .. in the order of the forward pass */
    double min_s, mean_s, max_s; /* over ranks */
    uint64_t bytes;              /* sent to other ranks, all ranks together */
    uint64_t calls;              /* of rank 0 */
} lh_phase;

/* Phases since the engine was opened, or since the last lh_engine_phases_reset; at most `max`,
 * returns how many in *n. Collective. */
lh_status lh_engine_phases(lh_engine *e, lh_phase *out, int max, int *n);

/* Not collective, but all ranks must do it. */
void lh_engine_phases_reset(lh_engine *e);

/* SHA-256 of n bytes, in 64 hexadecimal digits and a 0 byte. */
void lh_digest(const void *bytes, size_t n, char out[65]);

/* A file of tensors (safetensors). dtype "F32" or "I64"; data may be NULL when a dimension is 0. */
typedef struct lh_tensor {
    const char *name;
    const char *dtype;
    int n_dims;
    int64_t dims[8];
    const void *data;
} lh_tensor;

lh_status lh_write_tensors(const char *path, const lh_tensor *tensors, int n);

/* -------------------------------------------------------------- checkpoint */

typedef struct lh_tensor_info {
    const char *name;
    const char *dtype; /* as in the file: "BF16", "F32" */
    int n_dims;
    int64_t dims[8];
    const char *file;
    size_t offset, bytes; /* in the file */
} lh_tensor_info;

typedef struct lh_inspection {
    lh_model_info model;
    int64_t n_tensors;
    lh_tensor_info *tensors; /* [n_tensors], in the order of the files */
    int n_files;
    size_t file_bytes;
    int n_ignored_keys;
    const char **ignored_keys; /* of config.json: they do not matter to the computation */
    int verified;
    int64_t n_nonfinite;         /* values, with verify */
    const char *first_nonfinite; /* tensor, or NULL */
} lh_inspection;

/*
 * Reads config and headers and checks every tensor's name, shape and dtype as an engine would; with
 * `verify` also reads every byte. Non-finite values do not fail it: they are counted. Not
 * collective.
 */
lh_status lh_inspect(lh_inspection **out, const char *model_dir, int verify,
                     void (*progress)(void *user, const lh_progress *p), void *user);
void lh_inspection_free(lh_inspection *i); /* accepts NULL */

/* A checkpoint of random values: the same bits for a seed and a config.json, on any machine. */
typedef struct lh_synth_opts {
    uint64_t seed;
    /* Spread of the router's bias over experts, as a multiple of the spread that an expert's scores
     * have over tokens. Of 256 experts, 8 chosen, the one with the most work has about 3 times its
     * even share at 0, 4 at 0.1, 7 at 0.25, 20 at 1 and 32, of every token, at 4. Which ones are
     * favoured is random, in each layer anew. */
    double router_skew;
    int n_threads; /* >= 1 */
    int n_shards;  /* files of weights; 0: as many as keep each below 5 GB */
    void (*progress)(void *user, const lh_progress *p); /* may be NULL */
    void *user;
} lh_synth_opts;

/*
 * Writes a checkpoint directory in the published layout: `config_path` as config.json, the
 * tokenizer's files and generation_config.json where they lie beside it, shards and their index.
 * Memory is bounded. Into a directory OUT.PID.tmp first, then renamed. LH_ERR_USAGE: out_dir exists
 * and is not an empty directory, or n_shards is more than the tensors. Not collective.
 */
lh_status lh_synth_write(const char *config_path, const char *out_dir, const lh_synth_opts *o);

#ifdef __cplusplus
}
#endif
#endif
