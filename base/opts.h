/*
 * The program's settings: one table gives every option its flag, variable, type, range, default and
 * line of help. A setting comes from the command line, else from its variable, else from its
 * default, and remembers which. The environment is read here and nowhere else but launch/rank.c.
 *
 * A variable is the flag in capitals after LH_: --peer-timeout is LH_PEER_TIMEOUT. A variable of
 * another command's option is accepted and has no effect; an unknown LH_ variable is an error. Two
 * commands may have options of one name and different types.
 */
#ifndef LH_BASE_OPTS_H
#define LH_BASE_OPTS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* name, as typed, one line of help */
#define LH_COMMAND_LIST(X)                                                                         \
    X(GENERATE, "generate", "continue a prompt, or answer it as a chat turn")                      \
    X(NEEDLE, "needle", "hide a number in long texts, ask for it: recall and speed")               \
    X(LOGITS, "logits", "logits for given token ids, to compare with other programs")              \
    X(TOKENIZE, "tokenize", "text to token ids, and back")                                         \
    X(INSPECT, "inspect", "what is in a checkpoint, and whether it is whole")                      \
    X(PLAN, "plan", "memory of every rank and messages of every layer, from config.json")          \
    X(SCORE, "score", "negative log-likelihood of a text, token by token")                         \
    X(BENCH, "bench", "speed of this machine on this model: prefill and decode")                   \
    X(SCALE, "scale", "speed on more and more of the ranks: strong and weak scaling, decoding")    \
    X(SYNTH, "synth", "write a checkpoint of random weights for a config")                         \
    X(TOPO, "topo", "this machine, and where ranks go on it")                                      \
    X(INFO, "info", "version, build, settings with their origin")

typedef enum lh_command {
#define LH_X(id, name, help) LH_CMD_##id,
    LH_COMMAND_LIST(LH_X)
#undef LH_X
        LH_N_COMMANDS,
    LH_CMD_NONE = LH_N_COMMANDS /* only --help or --version was given */
} lh_command;

typedef enum lh_opt_type {
    LH_OPT_FLAG,   /* on the command line without a value, in a variable 0 or 1 */
    LH_OPT_INT,    /* a whole number */
    LH_OPT_SIZE,   /* a whole number, perhaps with k, m or g (1,024-based) */
    LH_OPT_REAL,   /* a finite number */
    LH_OPT_TEXT,   /* any text; a later one replaces an earlier one */
    LH_OPT_CHOICE, /* one of the words of `arg` */
    LH_OPT_TEXTS,  /* repeatable, in order */
    LH_OPT_SIZES   /* sizes with commas between */
} lh_opt_type;

/* Commands that take an option. */
#define LH_C(id) (1u << LH_CMD_##id)
#define LH_C_ALL (~0u)
#define LH_C_RUN (LH_C(GENERATE) | LH_C(NEEDLE) | LH_C(LOGITS) | LH_C(SCORE) | LH_C(BENCH))
/* With synthetic weights. */
#define LH_C_SYNTH (LH_C(SYNTH) | LH_C(BENCH) | LH_C(SCALE) | LH_C(LOGITS))

/* id, flag, type, least, most, default, commands, argument, help. A default in parentheses is said
 * in words: the value is then 0, NULL or empty, and the command knows what to do. */
#define LH_OPT_LIST(X)                                                                             \
    X(PROMPT, "prompt", TEXT, 0, 0, "(none)", LH_C(GENERATE), "TEXT", "the prompt")                \
    X(PROMPT_FILE, "prompt-file", TEXTS, 0, 0, "(standard input)", LH_C(GENERATE), "FILE",         \
      "the prompt's file; repeatable, joined")                                                     \
    X(PROMPTS, "prompts", TEXT, 0, 0, "(none)", LH_C(GENERATE), "FILE",                            \
      "a batch: one JSON object a line in, one result a line out")                                 \
    X(CHAT, "chat", FLAG, 0, 1, "0", LH_C(GENERATE) | LH_C(NEEDLE), "", "ask as one chat turn")    \
    X(SYSTEM, "system", TEXT, 0, 0, "(none)", LH_C(GENERATE), "TEXT",                              \
      "a system message before the chat turn")                                                     \
    X(MAX_TOKENS, "max-tokens", SIZE, 1, 1 << 30, "256", LH_C(GENERATE), "N",                      \
      "most tokens to generate")                                                                   \
    X(TEMPERATURE, "temperature", REAL, 0, 100, "0", LH_C(GENERATE), "T", "0: greedy")             \
    X(TOP_P, "top-p", REAL, 0, 1, "1", LH_C(GENERATE), "P", "keep the likeliest of this mass")     \
    X(TOP_K, "top-k", INT, 0, 1 << 30, "0", LH_C(GENERATE), "N", "keep the N likeliest; 0: all")   \
    X(MIN_P, "min-p", REAL, 0, 1, "0", LH_C(GENERATE), "P",                                        \
      "keep what has this share of the likeliest")                                                 \
    X(STOP, "stop", TEXTS, 0, 0, "(none)", LH_C(GENERATE), "TEXT",                                 \
      "end before this text; repeatable")                                                          \
    X(LOGPROBS, "logprobs", INT, 0, 100, "0", LH_C(GENERATE), "N",                                 \
      "in JSON results: logarithms of the N likeliest tokens' probabilities")                      \
    X(HAYSTACK, "haystack", TEXTS, 0, 0, "(this project's and the system's texts)", LH_C(NEEDLE),  \
      "FILE", "text to hide the number in; repeatable")                                            \
    X(LENGTHS, "lengths", SIZES, 64, 1 << 30, "1k,4k,16k", LH_C(NEEDLE), "TOKENS,..",              \
      "lengths of the whole prompt")                                                               \
    X(SCALE_LENGTHS, "lengths", SIZES, 2, 1 << 30, "4k,16k", LH_C(SCALE), "TOKENS,..",             \
      "of the prompt (strong, decoding), or for each rank (weak)")                                 \
    X(COUNTS, "counts", SIZES, 1, 65536, "(powers of two, and all)", LH_C(SCALE), "RANKS,..",      \
      "how many of the ranks take part")                                                           \
    X(DEPTHS, "depths", SIZES, 0, 100, "0,25,50,75,100", LH_C(NEEDLE), "PERCENT,..",               \
      "where the number stands; 0 is the beginning")                                               \
    X(TRIALS, "trials", INT, 1, 1 << 20, "1", LH_C(NEEDLE), "N",                                   \
      "questions for each length and depth")                                                       \
    X(SVG, "svg", TEXT, 0, 0, "(none)", LH_C(NEEDLE) | LH_C(TOPO) | LH_C(SCALE), "FILE",           \
      "a picture: the recall as a heat map, the machine, the scaling")                             \
    X(SEED, "seed", INT, 0, INT64_MAX, "0", LH_C(GENERATE) | LH_C(NEEDLE) | LH_C_SYNTH, "N",       \
      "of everything random")                                                                      \
    X(TOKENS, "tokens", TEXT, 0, 0, "(standard input)", LH_C(LOGITS) | LH_C(SCORE), "FILE",        \
      "JSON array of token ids")                                                                   \
    X(LAST, "last", SIZE, 1, 1 << 30, "1", LH_C(LOGITS), "N", "logits of the last N positions")    \
    X(GREEDY, "greedy", SIZE, 0, 1 << 30, "0", LH_C(LOGITS), "N",                                  \
      "then N greedy tokens, whatever they are")                                                   \
    X(OUT, "out", TEXT, 0, 0, "(none)", LH_C(LOGITS) | LH_C(SYNTH), "PATH",                        \
      "logits: safetensors of logits [last, vocab] f32, greedy [N] i64; synth: a new directory")   \
    X(CONFIG, "config", TEXT, 0, 0, "(none)", LH_C(SYNTH), "FILE", "the model's config.json")      \
    X(SHARDS, "shards", INT, 1, 4096, "(of at most 5 GB)", LH_C(SYNTH), "N", "files of weights")   \
    X(WEIGHTS, "weights", CHOICE, 0, 0, "checkpoint", LH_C(BENCH) | LH_C(SCALE) | LH_C(LOGITS),    \
      "checkpoint|synthetic", "synthetic: random, config.json is all that is read")                \
    X(ROUTER_SKEW, "router-skew", REAL, 0, 100, "0", LH_C_SYNTH, "X",                              \
      "of synthetic weights: 0 loads experts alike, 1 favours some, 4 uses few")                   \
    X(PREFILL, "prefill", SIZES, 2, 1 << 30, "1k,4k", LH_C(BENCH), "TOKENS,..",                    \
      "lengths of prompts")                                                                        \
    X(DECODE_AT, "decode", SIZES, 2, 1 << 30, "1k,4k", LH_C(BENCH), "TOKENS,..",                   \
      "lengths of contexts after which tokens are decoded")                                        \
    X(FILL, "fill", CHOICE, 0, 0, "prefill", LH_C(BENCH) | LH_C(SCALE), "prefill|synthetic",       \
      "contexts of --decode; synthetic: random values in the caches")                              \
    X(REPEAT, "repeat", INT, 1, 1000, "5", LH_C(BENCH), "N", "measurements of each length")        \
    X(SCALE_REPEAT, "repeat", INT, 1, 1000, "3", LH_C(SCALE), "N", "measurements of each row")     \
    X(CSV, "csv", TEXT, 0, 0, "(none)", LH_C(BENCH) | LH_C(SCALE), "FILE", "the tables as CSV")    \
    X(FILE, "file", TEXT, 0, 0, "(standard input)", LH_C(TOKENIZE) | LH_C(SCORE), "FILE",          \
      "what to read")                                                                              \
    X(DECODE, "decode", FLAG, 0, 1, "0", LH_C(TOKENIZE), "", "JSON array of ids to text")          \
    X(LINES, "lines", FLAG, 0, 1, "0", LH_C(TOKENIZE), "",                                         \
      "one JSON value a line in, one a line out")                                                  \
    X(SPECIAL, "special", FLAG, 0, 1, "0", LH_C(TOKENIZE), "", "let control tokens through")       \
    X(VERIFY, "verify", FLAG, 0, 1, "0", LH_C(INSPECT), "", "read every byte")                     \
    X(TENSORS, "tensors", FLAG, 0, 1, "0", LH_C(INSPECT), "", "list every tensor")                 \
    X(XML, "xml", TEXT, 0, 0, "(this machine)", LH_C(TOPO), "FILE",                                \
      "another machine, as hwloc saved it")                                                        \
    X(RANKS, "ranks", INT, 1, 65536, "(plan 1, topo one a GPU or NUMA node)",                      \
      LH_C(PLAN) | LH_C(TOPO), "N", "ranks to plan for; topo: on this node")                       \
    X(RANKS_PER_NODE, "ranks-per-node", INT, 1, 65536, "(all)", LH_C(PLAN), "N",                   \
      "also add up every node's memory")                                                           \
    X(MEMORY, "memory", SIZE, 1, INT64_MAX, "(plan: not asked; a run: what is free)",              \
      LH_C(PLAN) | LH_C_RUN, "BYTES", "plan and run within so many bytes per rank")                \
    X(BATCH, "batch", INT, 1, 65536, "(generate 8, else 1)",                                       \
      LH_C(PLAN) | LH_C(GENERATE) | LH_C(BENCH), "N", "sequences at once")                         \
    X(MODEL, "model", TEXT, 0, 0, "(the demonstration checkpoint)", LH_C_ALL, "DIR",               \
      "checkpoint directory")                                                                      \
    X(BACKEND, "backend", CHOICE, 0, 0, "auto", LH_C_ALL, "auto|cpu|cuda", "where to compute")     \
    X(THREADS, "threads", INT, 1, 4096, "(this rank's share of the cores)", LH_C_ALL, "N",         \
      "threads of each rank")                                                                      \
    X(DETERMINISTIC, "deterministic", FLAG, 0, 1, "0", LH_C_ALL, "",                               \
      "same bits on any number of ranks (the cpu backend always)")                                 \
    X(SEGMENT, "segment", SIZE, 64, 65536, "512", LH_C_ALL, "TOKENS",                              \
      "grid of state passing, a multiple of 64")                                                   \
    X(BLOCK, "block", SIZE, 1, 1 << 30, "(chosen)", LH_C_ALL, "TOKENS",                            \
      "prefill block, rounded up to whole segments")                                               \
    X(CONTEXT, "context", SIZE, 1, 1 << 30, "(what the run needs; plan: the model's)", LH_C_ALL,   \
      "TOKENS", "room of a sequence")                                                              \
    X(JSON, "json", TEXT, 0, 0, "(none)", LH_C_ALL, "FILE",                                        \
      "the result as JSON; - puts it on standard output")                                          \
    X(LOG, "log", TEXT, 0, 0, "warn", LH_C_ALL, "LEVEL[,component=LEVEL]",                         \
      "error, warn, info, debug or trace")                                                         \
    X(QUIET, "quiet", FLAG, 0, 1, "0", LH_C_ALL, "", "no progress and no summary")                 \
    X(PROFILE, "profile", TEXT, 0, 0, "(none)", LH_C_RUN, "FILE",                                  \
      "seconds and bytes of every phase, as CSV")                                                  \
    X(PEER_TIMEOUT, "peer-timeout", REAL, 1, 1000000, "60", LH_C_ALL, "S",                         \
      "longest wait for another rank")                                                             \
    X(ALLOW_NONFINITE, "allow-nonfinite", FLAG, 0, 1, "0", LH_C_ALL, "",                           \
      "go on when logits are not finite")                                                          \
    X(HELP, "help", FLAG, 0, 1, "0", LH_C_ALL, "", "this text")                                    \
    X(VERSION, "version", FLAG, 0, 1, "0", LH_C_ALL, "", "the version")

typedef enum lh_opt_id {
#define LH_X(id, flag, type, min, max, def, commands, arg, help) LH_OPT_##id,
    LH_OPT_LIST(LH_X)
#undef LH_X
        LH_N_OPTS
} lh_opt_id;

typedef enum lh_opt_origin { LH_FROM_DEFAULT, LH_FROM_ENVIRONMENT, LH_FROM_COMMAND } lh_opt_origin;

#define LH_OPT_MAX_ITEMS 64

typedef struct lh_opt_value {
    lh_opt_origin origin;
    int64_t number;   /* flag, int, size; index of a choice */
    double real;      /* real */
    const char *text; /* text, choice: of argv, the environment or the table; NULL: none */
    int n_items;      /* texts, sizes */
    union {
        const char *texts[LH_OPT_MAX_ITEMS];
        int64_t sizes[LH_OPT_MAX_ITEMS];
    } items;
} lh_opt_value;

typedef struct lh_opts {
    lh_command command;
    lh_opt_value values[LH_N_OPTS];
} lh_opts;

/*
 * "program COMMAND --flag VALUE --flag=VALUE ..", and the environment. Keeps pointers into both.
 * LH_ERR_USAGE: no or an unknown command, an unknown option or LH_ variable (with the nearest known
 * name), an option of another command, a bad value (with what was expected).
 */
lh_status lh_opts_parse(lh_opts *out, int argc, char *const *argv);

/* The same with a given environment: "NAME=value" strings, ended by NULL. */
lh_status lh_opts_parse_env(lh_opts *out, int argc, char *const *argv, char *const *env);

static inline int64_t lh_opt_number(const lh_opts *o, lh_opt_id id)
{
    return o->values[id].number;
}

static inline double lh_opt_real(const lh_opts *o, lh_opt_id id)
{
    return o->values[id].real;
}

static inline const char *lh_opt_text(const lh_opts *o, lh_opt_id id)
{
    return o->values[id].text;
}

static inline int lh_opt_given(const lh_opts *o, lh_opt_id id)
{
    return o->values[id].origin != LH_FROM_DEFAULT;
}

/* 1: the command has this option. */
int lh_opt_applies(const lh_opts *o, lh_opt_id id);

const char *lh_command_name(lh_command c); /* "" for LH_CMD_NONE */
const char *lh_opt_flag(lh_opt_id id);     /* "peer-timeout" */
const char *lh_opt_origin_name(lh_opt_origin origin);

/* The value as it would be typed; the default's words where it has no value. Cut to `size`. */
void lh_opt_show(const lh_opts *o, lh_opt_id id, char *out, size_t size);

/* The help of a command, or of the program for LH_CMD_NONE. */
void lh_opts_help(FILE *f, lh_command c);

#ifdef __cplusplus
}
#endif
#endif
