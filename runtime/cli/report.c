#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cli/cli.h"

static void print_phases(const lh_phase *p, int n)
{
    double all = 0;

    for (int i = 0; i < n; i++)
        all += p[i].mean_s;
    (void)fprintf(stderr, "%-18s %9s %9s %9s %6s %10s %9s\n", "phase", "min s", "mean s", "max s",
                  "share", "sent", "imbalance");
    for (int i = 0; i < n; i++)
        (void)fprintf(stderr, "%-18s %9.3f %9.3f %9.3f %5.1f%% %10s %9.2f\n", p[i].name, p[i].min_s,
                      p[i].mean_s, p[i].max_s, all > 0 ? 100 * p[i].mean_s / all : 0,
                      lh_cli_bytes((size_t)p[i].bytes),
                      p[i].mean_s > 0 ? p[i].max_s / p[i].mean_s : 1);
}

/* Every rank loads the dense weights, and its own experts. */
static void print_load(const lh_engine *e, double seconds)
{
    size_t bytes = lh_engine_model(e)->weight_bytes +
                   (size_t)(lh_engine_size(e) - 1) * lh_engine_plan(e)->weights_dense;

    (void)fprintf(stderr, "load: %s on all ranks in %.2f s, %.2f GB/s\n", lh_cli_bytes(bytes),
                  seconds, seconds > 0 ? (double)bytes * 1e-9 / seconds : 0);
}

static void print_memory(const lh_engine *e)
{
    const lh_rank_plan *plan = lh_engine_plan(e), *used = lh_engine_used(e);

    (void)fprintf(stderr,
                  "memory of rank 0: planned %s, used %s (weights %s, states and caches %s, "
                  "workspace %s, communication %s)\n",
                  lh_cli_bytes(plan->total), lh_cli_bytes(used->total),
                  lh_cli_bytes(used->weights_dense + used->weights_experts),
                  lh_cli_bytes(used->kda_state + used->conv_state + used->latent_cache),
                  lh_cli_bytes(used->workspace), lh_cli_bytes(used->communication));
    if (strcmp(lh_engine_backend(e), "cpu") != 0)
        (void)fprintf(stderr, "the GPU's driver counts %s %s than planned\n",
                      lh_cli_bytes(used->total > plan->total ? used->total - plan->total
                                                             : plan->total - used->total),
                      used->total > plan->total ? "more" : "less");
}

static void print_cores(const lh_cli *c)
{
    const lh_binding *b = &c->binding;

    (void)fprintf(stderr, "threads of rank 0: %d, %s", c->n_threads, lh_cli_bound_text(b->by));
    if (b->by == LH_BOUND_BY_LONGHAUL)
        (void)fprintf(stderr, ", cores: %d, from NUMA node %d on", b->n_cores, b->numa);
    (void)fputc('\n', stderr);
}

typedef struct profile {
    const lh_phase *phases;
    int n;
} profile;

static void print_profile(FILE *f, const void *what)
{
    const profile *p = what;

    (void)fputs("phase,min_s,mean_s,max_s,bytes,calls\n", f);
    for (int i = 0; i < p->n; i++)
        (void)fprintf(f, "%s,%.6f,%.6f,%.6f,%llu,%llu\n", p->phases[i].name, p->phases[i].min_s,
                      p->phases[i].mean_s, p->phases[i].max_s,
                      (unsigned long long)p->phases[i].bytes,
                      (unsigned long long)p->phases[i].calls);
}

json_t *lh_cli_phases_json(const lh_phase *p, int n)
{
    json_t *phases = json_array();

    for (int i = 0; i < n; i++)
        if (json_array_append_new(
                phases, json_pack("{s:s,s:f,s:f,s:f,s:I,s:I}", "name", p[i].name, "min_s",
                                  p[i].min_s, "mean_s", p[i].mean_s, "max_s", p[i].max_s, "bytes",
                                  (json_int_t)p[i].bytes, "calls", (json_int_t)p[i].calls)) != 0) {
            json_decref(phases);
            return NULL;
        }
    return phases;
}

static lh_status add_to_json(const lh_cli *c, const lh_phase *p, int n, const char *digest,
                             json_t *json)
{
    int bad = json_object_set_new(json, "ranks", json_integer(c->rank.size));

    bad |= json_object_set_new(json, "backend", json_string(lh_engine_backend(c->engine)));
    bad |= json_object_set_new(json, "phases", lh_cli_phases_json(p, n));
    bad |= json_object_set_new(json, "digest", json_string(digest));
    LH_REQUIRE(!bad, LH_ERR_NOMEM, "the JSON result: out of memory");
    return LH_OK;
}

lh_status lh_cli_report(lh_cli *c, const char *digest, json_t *json)
{
    lh_phase phases[LH_CLI_PHASES];
    const char *path = lh_opt_text(c->opts, LH_OPT_PROFILE);
    int n = 0;

    LH_TRY(lh_engine_phases(c->engine, phases, LH_CLI_PHASES, &n));
    if (lh_cli_talks(c)) {
        print_phases(phases, n);
        if (n > 0 && strcmp(phases[0].name, "load") == 0)
            print_load(c->engine, phases[0].max_s);
        print_memory(c->engine);
        print_cores(c);
        if (digest)
            (void)fprintf(stderr, "digest %s\n", digest);
    }
    if (c->rank.rank == 0 && path)
        LH_TRY(lh_cli_print_file(path, print_profile, &(profile){phases, n}));
    if (!json)
        return LH_OK;
    LH_TRY(add_to_json(c, phases, n, digest ? digest : "", json));
    return lh_cli_write_json(c, json_incref(json));
}
