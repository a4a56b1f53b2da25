/*
 * What the commands of the program share. Every rank runs the same command with the same options;
 * functions marked collective are called by all of them. Rank 0 alone reads input and writes
 * results.
 */
#ifndef LH_RUNTIME_CLI_CLI_H
#define LH_RUNTIME_CLI_CLI_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/opts.h"
#include "launch/launch.h"
#include "runtime/longhaul.h"

typedef struct lh_cli {
    const lh_opts *opts;
    lh_rank_info rank;
    int n_threads;
    lh_binding binding; /* lh_cli_bind */
    char model_dir[4096];
    lh_job *job;             /* NULL in commands of rank 0 alone */
    lh_tokenizer *tokenizer; /* lh_cli_open_model */
    lh_model_info model;     /* lh_cli_open_config */
    int n_ranks;             /* of the engine: the first so many, and the others wait; 0: all */
    lh_engine *engine;       /* lh_cli_open_engine */
    double progress_shown;   /* second of the last line of progress */
} lh_cli;

/* The commands. */
lh_status lh_cli_generate(lh_cli *c);
lh_status lh_cli_needle(lh_cli *c);
lh_status lh_cli_logits(lh_cli *c);
lh_status lh_cli_tokenize(lh_cli *c);
lh_status lh_cli_inspect(lh_cli *c);
lh_status lh_cli_plan(lh_cli *c);
lh_status lh_cli_topo(lh_cli *c);
lh_status lh_cli_info(lh_cli *c);
lh_status lh_cli_score(lh_cli *c);
lh_status lh_cli_bench(lh_cli *c);
lh_status lh_cli_scale(lh_cli *c);
lh_status lh_cli_synth(lh_cli *c);

/* The commit that was built, for reports; made by the build. */
extern const char lh_build_commit[];

/* ------------------------------------------------------------------- setup */

/* Finds --model, or the demonstration checkpoint beside the sources or where it was installed.
 * LH_ERR_OPEN: no such directory. */
lh_status lh_cli_find_model(lh_cli *c);

/* The model's directory and facts, on every rank. Collective. */
lh_status lh_cli_open_config(lh_cli *c);

/* The same, and the tokenizer. Collective. */
lh_status lh_cli_open_model(lh_cli *c);

/* The context of a run that needs `wanted` tokens: --context, else that, at most the model's. */
int64_t lh_cli_context(const lh_cli *c, int64_t wanted);

/* Binds this rank to its cores, before its threads start, and takes no more threads than these have
 * unless --threads says so. Where the system does not let it, the rank goes on unbound. */
void lh_cli_bind(lh_cli *c);

/* "bound by longhaul", .. */
const char *lh_cli_bound_text(lh_bound_by by);

/* The engine, for sessions of at most `context` tokens. Binds the rank first. Collective over
 * c->n_ranks. */
lh_status lh_cli_open_engine(lh_cli *c, int64_t context, int max_sessions);

/* Ends engine and job in their order. Collective. */
void lh_cli_close(lh_cli *c);

/* One line on standard error that is rewritten on a terminal, else a line every 10 s. */
void lh_cli_progress(void *cli, const lh_progress *p);

/* 1: drawing this token ends the answer. */
int lh_cli_is_end(const lh_cli *c, int32_t token);

/* ---------------------------------------------------------- input and output */

/*
 * Rank 0 reads the files (joined; none, or "-": standard input), all ranks get the bytes, with a 0
 * byte after them. Collective. *text is for the caller to free().
 */
lh_status lh_cli_read(lh_cli *c, const char *const *paths, int n_paths, char **text,
                      size_t *n_bytes);

/* The same for bytes that rank 0 has made: *text and *n_bytes are rank 0's in, everyone's out. */
lh_status lh_cli_share(lh_cli *c, lh_status mine, char **text, size_t *n_bytes);

/* A JSON array of token ids of this vocabulary. `where` begins the message. *ids is for free(). */
lh_status lh_cli_parse_ids(const char *text, size_t n_bytes, int64_t n_vocab, const char *where,
                           int32_t **ids, int64_t *n_ids);

/* Fails early, on all ranks, when --json, --svg, --out, --csv or --profile cannot be written.
 * Collective. */
lh_status lh_cli_check_outputs(lh_cli *c);

/* Rank 0 writes bytes to standard output, at once; nothing on the others. */
lh_status lh_cli_print(const lh_cli *c, const char *bytes, size_t n);
lh_status lh_cli_printf(const lh_cli *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* 1: --json -, which leaves standard output to the JSON. */
int lh_cli_json_only(const lh_cli *c);

/* 1: the summary on standard error is wanted, here. */
int lh_cli_talks(const lh_cli *c);

/* Rank 0 writes `value` where --json says, if it was given. NULL is out of memory. Takes the
 * reference. */
lh_status lh_cli_write_json(const lh_cli *c, json_t *value);

/* A file of rank 0, whole. */
lh_status lh_cli_write_file(const char *path, const char *bytes, size_t n);

/* The same, with what `print` prints of `what`. */
lh_status lh_cli_print_file(const char *path, void (*print)(FILE *f, const void *what),
                            const void *what);

/* "1,234,567", "1.5 GiB" and, of tokens, "4k" or "4097", in a ring of buffers: good for one printf.
 */
const char *lh_cli_number(int64_t x);
const char *lh_cli_bytes(size_t bytes);
const char *lh_cli_length(int64_t tokens);

/* ------------------------------------------------------------------ report */

#define LH_CLI_PHASES 48 /* of an engine, at most */

/* A list of name, min_s, mean_s, max_s, bytes, calls. NULL: out of memory. */
json_t *lh_cli_phases_json(const lh_phase *p, int n);

/* The end of a run: phases, memory and digest on standard error, --profile's file, and *json (an
 * object, or NULL), with the members that every run has, where --json says. Collective. */
lh_status lh_cli_report(lh_cli *c, const char *digest, json_t *json);

#endif
