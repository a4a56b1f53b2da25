/*
 * What the tests of the whole model share: engines over this job's ranks or over one, reference
 * data, greedy decoding.
 */
#ifndef LH_TESTS_MODEL_UTIL_H
#define LH_TESTS_MODEL_UTIL_H

#include "runtime/engine_internal.h"
#include "runtime/safetensors.h"
#include "tests/check.h"

/* 1 when mpiexec started this program. */
int under_mpi(void);

/* The path of a file or folder of the sources; valid until the 8th call after. */
const char *source_path(const char *relative);

/* An engine for `model` (relative to the sources) over all ranks of the job, or over this one
 * alone. Ends the program on failure. */
lh_engine *open_engine(const char *model, int over_ranks, int n_threads, int64_t segment,
                       int64_t block, int64_t context);

/* The next engines carry KDA's state by runs (1) or by segments (0). */
void carry_by_runs(int by_runs);

/* One session with all of the engine's context; ends the program on failure. */
lh_session *open_session(lh_engine *e);

/* A tensor of a reference file; ends the program when it is not there. */
const void *golden(const lh_safetensors *f, const char *name, int64_t *n_values);
const float *golden_f32(const lh_safetensors *f, int64_t *n_values, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Ids of an i64 tensor, for free(). */
int32_t *golden_ids(const lh_safetensors *f, const char *name, int64_t *n);

/* An item of a step that draws nothing, and a step of it alone. */
lh_step_item turn(lh_session *s, const int32_t *tokens, int64_t n_tokens, int64_t n_logits,
                  float *logits);
lh_status feed(lh_engine *e, lh_session *s, const int32_t *tokens, int64_t n_tokens,
               int64_t n_logits, float *logits);

/* Feeds `tokens` as one turn and draws n greedy tokens; last [n_vocab] are the logits after the
 * turn. */
void greedy(lh_engine *e, lh_session *s, const int32_t *tokens, int64_t n_tokens, int32_t *out,
            int n, float *last);

#endif
