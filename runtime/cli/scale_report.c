#include <stdlib.h>
#include <string.h>

#include "runtime/cli/scale.h"

static const char *const kind_names[LH_N_SCALE_KINDS] = {"strong", "weak", "decode"};
static const char *const share_names[LH_N_SHARES] = {
    "computing", "state_passing", "expert_exchange", "latent_exchange", "imbalance"};

const char *lh_scale_model(const lh_scale *s)
{
    const char *slash = strrchr(s->c->model_dir, '/');

    return slash && slash[1] ? slash + 1 : s->c->model_dir;
}

/* ------------------------------------------------------------------ tables */

static lh_status print_table(const lh_scale *s, int kind)
{
    static const char *const titles[LH_N_SCALE_KINDS] = {
        "strong scaling: prefill of the same prompt",
        "weak scaling: prefill of a prompt that grows with the ranks",
        "decoding of one sequence after a prompt"};
    const lh_cli *c = s->c;

    LH_TRY(lh_cli_printf(c, "%s%s\n%10s %6s %12s %10s %9s %10s | %9s %7s %8s %8s %9s\n",
                         titles[kind],
                         s->filled && kind == LH_SCALE_DECODE ? " (caches filled)" : "", "tokens",
                         "ranks", "tokens/s", "+- sd", "speed-up", "efficiency", "computing",
                         "states", "experts", "latents", "imbalance"));
    for (int l = 0; l < s->n_lengths; l++)
        for (int k = 0; k < s->n_counts; k++) {
            const lh_scale_row *r = lh_scale_row_at(s, kind, l, k);
            LH_TRY(lh_cli_printf(
                c,
                "%10s %6d %12.1f %10.1f %9.2f %9.1f%% | %8.1f%% %6.1f%% %7.1f%% %7.1f%% %8.1f%%\n",
                lh_cli_number(r->tokens), r->ranks, r->rate, r->rate_sd, r->speedup,
                100 * r->efficiency, 100 * r->shares[LH_SHARE_COMPUTING],
                100 * r->shares[LH_SHARE_STATES], 100 * r->shares[LH_SHARE_EXPERTS],
                100 * r->shares[LH_SHARE_LATENTS], 100 * r->shares[LH_SHARE_IMBALANCE]));
        }
    return lh_cli_printf(c, "\n");
}

static lh_status print_tables(const lh_scale *s)
{
    const lh_cli *c = s->c;

    LH_TRY(lh_cli_printf(c,
                         "longhaul " LH_VERSION ", commit %s\n%s, %s weights\n%s, up to %d of %d "
                         "ranks, threads of each whatever their number: %d, segments of %s, %d "
                         "repeats\n\n",
                         lh_build_commit, c->model_dir, lh_opt_text(c->opts, LH_OPT_WEIGHTS),
                         s->backend, s->counts[s->n_counts - 1], c->rank.size, c->n_threads,
                         lh_cli_number(s->segment), s->speed.repeat));
    for (int kind = 0; kind < LH_N_SCALE_KINDS; kind++)
        LH_TRY(print_table(s, kind));
    return lh_cli_printf(c,
                         "VALID: the logits of every %s are those of the same prompt in other "
                         "blocks and on every count that ran it (%s)%s\n",
                         s->filled ? "prefill" : "row", lh_speed_validity(&s->speed),
                         s->filled ? "; those of decoding are the same bits in two runs, and like "
                                     "those of every count (caches filled, not computed)"
                                   : "");
}

/* ------------------------------------------------------------------- files */

static const char *caches(const lh_scale *s, int kind)
{
    return s->filled && kind == LH_SCALE_DECODE ? "filled" : "computed";
}

static void print_csv(FILE *f, const void *scale)
{
    const lh_scale *s = scale;

    (void)fputs("kind,tokens,ranks,threads,backend,mean_s,sd_s,tokens_per_s,speedup,efficiency", f);
    for (int i = 0; i < LH_N_SHARES; i++)
        (void)fprintf(f, ",%s", share_names[i]);
    (void)fputs(",commit,caches\n", f);
    for (int kind = 0; kind < LH_N_SCALE_KINDS; kind++)
        for (int i = 0; i < s->n_lengths * s->n_counts; i++) {
            const lh_scale_row *r = lh_scale_row_at(s, kind, 0, i);
            (void)fprintf(f, "%s,%lld,%d,%d,%s,%.9f,%.9f,%.3f,%.4f,%.4f", kind_names[kind],
                          (long long)r->tokens, r->ranks, s->c->n_threads, s->backend, r->mean_s,
                          r->sd_s, r->rate, r->speedup, r->efficiency);
            for (int j = 0; j < LH_N_SHARES; j++)
                (void)fprintf(f, ",%.4f", r->shares[j]);
            (void)fprintf(f, ",%s,%s\n", lh_build_commit, caches(s, kind));
        }
}

static json_t *row_json(const lh_scale_row *r, const char *caches_are)
{
    json_t *json =
        json_pack("{s:I,s:i,s:f,s:f,s:f,s:f,s:f,s:s}", "tokens", (json_int_t)r->tokens, "ranks",
                  r->ranks, "mean_s", r->mean_s, "sd_s", r->sd_s, "tokens_per_s", r->rate,
                  "speedup", r->speedup, "efficiency", r->efficiency, "caches", caches_are);

    int bad = json_object_set_new(json, "phases", lh_cli_phases_json(r->phases, r->n_phases));

    for (int i = 0; i < LH_N_SHARES; i++)
        bad |= json_object_set_new(json, share_names[i], json_real(r->shares[i]));
    if (bad) {
        json_decref(json);
        return NULL;
    }
    return json;
}

/* NULL: out of memory. */
static json_t *make_json(const lh_scale *s)
{
    const lh_cli *c = s->c;
    json_t *json = json_pack(
        "{s:s,s:s,s:s,s:s,s:I,s:s,s:i,s:i,s:I,s:i,s:b,s:s}", "version", LH_VERSION, "commit",
        lh_build_commit, "model", c->model_dir, "weights", lh_opt_text(c->opts, LH_OPT_WEIGHTS),
        "seed", (json_int_t)lh_opt_number(c->opts, LH_OPT_SEED), "backend", s->backend, "ranks",
        c->rank.size, "threads", c->n_threads, "segment", (json_int_t)s->segment, "repeat",
        s->speed.repeat, "valid", 1, "validity", lh_speed_validity(&s->speed));
    int bad = 0;

    for (int kind = 0; kind < LH_N_SCALE_KINDS; kind++) {
        json_t *rows = json_array();
        for (int i = 0; i < s->n_lengths * s->n_counts; i++)
            bad |= json_array_append_new(rows,
                                         row_json(lh_scale_row_at(s, kind, 0, i), caches(s, kind)));
        bad |= json_object_set_new(json, kind_names[kind], rows);
    }
    if (bad) {
        json_decref(json);
        return NULL;
    }
    return json;
}

lh_status lh_scale_report(const lh_scale *s)
{
    const char *csv = lh_opt_text(s->c->opts, LH_OPT_CSV);
    const char *svg = lh_opt_text(s->c->opts, LH_OPT_SVG);

    if (!lh_cli_json_only(s->c))
        LH_TRY(print_tables(s));
    if (csv)
        LH_TRY(lh_cli_print_file(csv, print_csv, s));
    if (svg)
        LH_TRY(lh_scale_svg(svg, s));
    return lh_cli_write_json(s->c, make_json(s));
}
