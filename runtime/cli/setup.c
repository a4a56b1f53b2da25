#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "runtime/cli/cli.h"

#define PROGRESS_LINE_S 10.0
#define PROGRESS_REDRAW_S 0.1

static int is_directory(const char *path)
{
    struct stat info;

    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

/* PREFIX/bin/longhaul has its models in PREFIX/share/longhaul/models. */
static void installed_model(char *out, size_t size)
{
    char exe[2048];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);

    exe[n > 0 ? n : 0] = '\0';
    for (int up = 0; up < 2; up++) {
        char *slash = strrchr(exe, '/');
        if (slash)
            *slash = '\0';
    }
    (void)snprintf(out, size, "%s/share/longhaul/models/needle", exe);
}

lh_status lh_cli_find_model(lh_cli *c)
{
    const char *given = lh_opt_text(c->opts, LH_OPT_MODEL);

    if (given) {
        LH_REQUIRE(strlen(given) < sizeof c->model_dir, LH_ERR_USAGE,
                   "--model: a path of %zu bytes, expected fewer than %zu", strlen(given),
                   sizeof c->model_dir);
        (void)snprintf(c->model_dir, sizeof c->model_dir, "%s", given);
    } else {
        (void)snprintf(c->model_dir, sizeof c->model_dir, "%s", LH_SOURCE_MODELS "/needle");
        if (!is_directory(c->model_dir))
            installed_model(c->model_dir, sizeof c->model_dir);
    }
    LH_REQUIRE(is_directory(c->model_dir), LH_ERR_OPEN,
               "%s: no such directory, expected a checkpoint (--model or LH_MODEL)", c->model_dir);
    return LH_OK;
}

/* On one rank: what config.json says, with the checks of a plan. */
static lh_status read_model(lh_cli *c)
{
    lh_plan *plan = NULL;
    lh_plan_opts opts = {.model_dir = c->model_dir,
                         .backend = "cpu",
                         .n_ranks = c->rank.size,
                         .n_threads = c->n_threads,
                         .segment_tokens = lh_opt_number(c->opts, LH_OPT_SEGMENT),
                         .context_tokens = 1,
                         .batch = 1};

    LH_TRY(lh_plan_make(&plan, &opts));
    c->model = plan->model;
    lh_plan_free(plan);
    return LH_OK;
}

lh_status lh_cli_open_config(lh_cli *c)
{
    lh_status st = lh_cli_find_model(c);

    if (st == LH_OK)
        st = read_model(c);
    return lh_job_agree(c->job, st);
}

lh_status lh_cli_open_model(lh_cli *c)
{
    LH_TRY(lh_cli_open_config(c));
    return lh_job_agree(c->job, lh_tokenizer_open(&c->tokenizer, c->model_dir));
}

int64_t lh_cli_context(const lh_cli *c, int64_t wanted)
{
    int64_t given = lh_opt_number(c->opts, LH_OPT_CONTEXT);

    return given ? given : lh_min64(wanted, c->model.max_context);
}

void lh_cli_bind(lh_cli *c)
{
    int use_gpus = lh_backend_uses_gpu(lh_opt_text(c->opts, LH_OPT_BACKEND));
    lh_binding *b = &c->binding;

    if (b->n_pus > 0) /* an engine before this one has; now it would look like the launcher's */
        return;
    if (lh_bind_cores(b, &c->rank, NULL, use_gpus) != LH_OK)
        LH_LOG_W("launch", "this rank goes on unbound: %s", lh_last_error());
    if (b->by == LH_BOUND_BY_LONGHAUL && !lh_opt_given(c->opts, LH_OPT_THREADS))
        c->n_threads = (int)lh_min64(c->n_threads, b->n_pus);
}

const char *lh_cli_bound_text(lh_bound_by by)
{
    static const char *const text[] = {[LH_BOUND_BY_NOBODY] = "not bound",
                                       [LH_BOUND_BY_LAUNCHER] = "bound by the launcher",
                                       [LH_BOUND_BY_LONGHAUL] = "bound by longhaul"};

    return text[by];
}

lh_status lh_cli_open_engine(lh_cli *c, int64_t context, int max_sessions)
{
    lh_cli_bind(c);
    lh_engine_opts opts = {
        .model_dir = c->model_dir,
        .backend = lh_opt_text(c->opts, LH_OPT_BACKEND),
        .use_mpi = c->rank.size > 1,
        .n_ranks = c->n_ranks,
        .n_threads = c->n_threads,
        .segment_tokens = lh_opt_number(c->opts, LH_OPT_SEGMENT),
        .block_tokens = lh_opt_number(c->opts, LH_OPT_BLOCK),
        .context_tokens = context,
        .max_sessions = max_sessions,
        .memory_bytes = (size_t)lh_opt_number(c->opts, LH_OPT_MEMORY),
        .peer_timeout_s = lh_opt_real(c->opts, LH_OPT_PEER_TIMEOUT),
        .allow_nonfinite = (int)lh_opt_number(c->opts, LH_OPT_ALLOW_NONFINITE),
        .deterministic = (int)lh_opt_number(c->opts, LH_OPT_DETERMINISTIC),
        .progress = lh_cli_progress,
        .user = c,
    };

    if (lh_opt_applies(c->opts, LH_OPT_WEIGHTS)) {
        opts.weights = lh_opt_text(c->opts, LH_OPT_WEIGHTS);
        opts.synth_seed = (uint64_t)lh_opt_number(c->opts, LH_OPT_SEED);
        opts.router_skew = lh_opt_real(c->opts, LH_OPT_ROUTER_SKEW);
    }
    return lh_engine_open(&c->engine, &opts);
}

void lh_cli_close(lh_cli *c)
{
    lh_tokenizer_close(c->tokenizer);
    lh_engine_close(c->engine);
    lh_job_close(c->job);
    lh_runtime_finalize();
}

void lh_cli_progress(void *cli, const lh_progress *p)
{
    lh_cli *c = cli;
    int terminal = isatty(STDERR_FILENO), is_bytes = strcmp(p->phase, "prefill") != 0;
    double now = lh_log_seconds(), rate = p->seconds > 0 ? (double)p->done / p->seconds : 0;
    double left_s = rate > 0 ? (double)(p->total - p->done) / rate : 0;
    const char *own = c->rank.size > 1 ? " on rank 0" : "", *unit = is_bytes ? own : " tokens";
    char speed[48];

    if (!lh_cli_talks(c))
        return;
    if (p->done >= p->total) {
        if (terminal && c->progress_shown > 0)
            (void)fputs("\r\033[K", stderr);
        c->progress_shown = 0;
        return;
    }
    if (terminal ? now - c->progress_shown < PROGRESS_REDRAW_S
                 : p->seconds < PROGRESS_LINE_S || now - c->progress_shown < PROGRESS_LINE_S)
        return;
    c->progress_shown = now;
    if (is_bytes)
        (void)snprintf(speed, sizeof speed, "%.2f GB/s", rate * 1e-9);
    else
        (void)snprintf(speed, sizeof speed, "%s tokens/s", lh_cli_number((int64_t)rate));
    (void)fprintf(stderr, "%s%s %s of %s%s, %s, %.0f s left%s", terminal ? "\r" : "", p->phase,
                  is_bytes ? lh_cli_bytes((size_t)p->done) : lh_cli_number(p->done),
                  is_bytes ? lh_cli_bytes((size_t)p->total) : lh_cli_number(p->total), unit, speed,
                  left_s, terminal ? "\033[K" : "\n");
}

int lh_cli_is_end(const lh_cli *c, int32_t token)
{
    for (int i = 0; i < c->model.n_eos; i++)
        if (token == c->model.eos_tokens[i])
            return 1;
    return token == lh_tokenizer_special(c->tokenizer, LH_EOS) ||
           token == lh_tokenizer_special(c->tokenizer, LH_EOT);
}
