/*
 * Prefill and decode of a whole checkpoint, on one rank or under mpiexec: median tokens/s and
 * milliseconds a token.
 *
 *     bench_model MODEL_DIR THREADS LENGTH... (default: models/needle, 2 threads, 4096 and 8192
 * tokens)
 *
 * Tokens are random; before any time is printed, the logits of a short prompt fed in two blocks
 * must equal those fed in one, bit by bit.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/synth.h"
#include "bench/median.h"
#include "launch/launch.h"
#include "runtime/longhaul.h"

#define REPEATS 5
#define STEPS 256

static void need(lh_engine *e, lh_status st, const char *what)
{
    if (st == LH_OK)
        return;
    (void)fprintf(stderr, "bench_model: %s: %s: %s\n", what, lh_status_text(st), lh_last_error());
    if (e)
        lh_engine_abort(e, st);
    exit(lh_exit_code(st));
}

static lh_engine *open_engine(const char *model, const lh_rank_info *r, int threads, int64_t block,
                              int64_t context)
{
    lh_engine *e = NULL;
    need(NULL,
         lh_engine_open(&e, &(lh_engine_opts){.model_dir = model,
                                              .use_mpi = r->size > 1,
                                              .n_threads = threads,
                                              .block_tokens = block,
                                              .context_tokens = context,
                                              .max_sessions = 1}),
         model);
    return e;
}

/* One turn, and the logits after it. */
static void feed(lh_engine *e, lh_session *s, const int32_t *tokens, int64_t n, float *out)
{
    lh_step_item item = {
        .session = s, .tokens = tokens, .n_tokens = n, .n_logits = 1, .logits = out};

    need(e, lh_step(e, &item, 1), n > 1 ? "prefill" : "decode");
}

static void logits_of(lh_engine *e, const int32_t *tokens, int64_t n, float *out)
{
    lh_session *s = NULL;
    need(e, lh_session_create(&s, e, n), "session");
    feed(e, s, tokens, n, out);
    lh_session_destroy(s);
}

static void check_first(const char *model, const lh_rank_info *r, int threads,
                        const int32_t *tokens, float *logits)
{
    lh_engine *whole = open_engine(model, r, threads, 0, 1200);
    size_t bytes = (size_t)lh_engine_model(whole)->n_vocab * sizeof *logits;
    float *again = malloc(bytes);
    logits_of(whole, tokens, 1200, logits);
    lh_engine_close(whole);
    lh_engine *pieces = open_engine(model, r, threads, 512, 1200);
    logits_of(pieces, tokens, 1200, again);
    lh_engine_close(pieces);
    if (!again || memcmp(logits, again, bytes) != 0) {
        (void)fprintf(stderr, "bench_model: logits differ between one block and three: no times\n");
        exit(70);
    }
    free(again);
}

static void measure(const char *model, const lh_rank_info *r, int threads, const int32_t *tokens,
                    int64_t n, float *logits)
{
    lh_engine *e = open_engine(model, r, threads, 0, n + STEPS);
    lh_session *s = NULL;
    double prefill[REPEATS], decode[STEPS];
    lh_phase phases[32], later[32];
    int n_phases = 0;

    need(e, lh_session_create(&s, e, n + STEPS), "session");
    for (int i = 0; i < REPEATS; i++) {
        need(e, lh_session_reset(s), "reset");
        double start = lh_log_seconds();
        feed(e, s, tokens, n, logits);
        prefill[i] = lh_log_seconds() - start;
    }
    need(e, lh_engine_phases(e, phases, 32, &n_phases), "phases");
    for (int i = 0; i < STEPS; i++) {
        double start = lh_log_seconds();
        feed(e, s, &tokens[i], 1, logits);
        decode[i] = lh_log_seconds() - start;
    }
    need(e, lh_engine_phases(e, later, 32, &n_phases), "phases");
    if (lh_engine_rank(e) == 0) {
        printf(
            "%8lld tokens, %d ranks x %d threads: prefill %8.1f tokens/s, decode %7.3f ms/token\n",
            (long long)n, lh_engine_size(e), threads, (double)n / median(prefill, REPEATS),
            1e3 * median(decode, STEPS));
        for (int i = 0; i < n_phases; i++)
            if (later[i].max_s > 0)
                printf("    %-18s %8.2f us/token in prefill, %8.2f us/token in decode\n",
                       phases[i].name, 1e6 * phases[i].mean_s / (double)(n * REPEATS),
                       1e6 * (later[i].mean_s - phases[i].mean_s) / STEPS);
    }
    lh_session_destroy(s);
    lh_engine_close(e);
}

int main(int argc, char **argv)
{
    static const char *const defaults[] = {"4096", "8192"};
    const char *model = argc > 1 ? argv[1] : LH_SOURCE_DIR "/models/needle";
    int threads = argc > 2 ? atoi(argv[2]) : 2, n_lengths = argc > 3 ? argc - 3 : 2;
    lh_rank_info r;
    lh_plan *plan = NULL;

    need(NULL, lh_rank_info_read(&r), "ranks");
    need(NULL,
         lh_plan_make(&plan, &(lh_plan_opts){.model_dir = model, .backend = "cpu", .n_ranks = 1}),
         model);
    int64_t vocab = plan->model.n_vocab, longest = plan->model.max_context;
    lh_plan_free(plan);
    int32_t *tokens = malloc((size_t)longest * sizeof *tokens);
    float *logits = malloc((size_t)vocab * sizeof *logits);
    if (!tokens || !logits)
        return 71;
    for (int64_t i = 0; i < longest; i++)
        tokens[i] = (int32_t)(lh_synth_bits(1, (uint64_t)i) % (uint64_t)vocab);
    check_first(model, &r, threads, tokens, logits);
    for (int i = 0; i < n_lengths; i++)
        measure(model, &r, threads, tokens, strtoll(argc > 3 ? argv[3 + i] : defaults[i], NULL, 10),
                logits);
    free(tokens);
    free(logits);
    lh_runtime_finalize();
    return 0;
}
