#include <stdio.h>
#include <unistd.h>

#include "runtime/cli/cli.h"

#ifdef __clang__
#define COMPILER "clang " __clang_version__
#else
#define COMPILER "gcc " __VERSION__
#endif
#ifdef __AVX512F__
#define VECTORS "AVX-512"
#elif defined(__AVX2__)
#define VECTORS "AVX2"
#else
#define VECTORS "SSE"
#endif

static json_t *make_json(const lh_cli *c)
{
    json_t *settings = json_object();
    int bad = 0;

    for (int i = 0; i < LH_N_OPTS; i++) {
        char value[512];
        lh_opt_show(c->opts, (lh_opt_id)i, value, sizeof value);
        bad |= json_object_set_new(settings, lh_opt_flag((lh_opt_id)i),
                                   json_pack("{s:s,s:s}", "value", value, "origin",
                                             lh_opt_origin_name(c->opts->values[i].origin)));
    }
    json_t *json =
        json_pack("{s:s,s:s,s:s,s:s,s:s,s:i,s:s,s:s,s:o}", "version", LH_VERSION, "commit",
                  lh_build_commit, "compiler", COMPILER, "vectors", VECTORS, "digest", "SHA-256",
                  "threads", c->n_threads, "bound", lh_cli_bound_text(c->binding.by), "launcher",
                  c->rank.launcher, "settings", settings);
    if (bad) {
        json_decref(json);
        json = NULL;
    }
    return json;
}

static lh_status print_settings(const lh_cli *c)
{
    for (int i = 0; i < LH_N_OPTS; i++) {
        char value[512];
        if (i == LH_OPT_HELP || i == LH_OPT_VERSION)
            continue;
        lh_opt_show(c->opts, (lh_opt_id)i, value, sizeof value);
        LH_TRY(lh_cli_printf(c, "  %-16s %-44s %s\n", lh_opt_flag((lh_opt_id)i), value,
                             lh_opt_origin_name(c->opts->values[i].origin)));
    }
    return LH_OK;
}

lh_status lh_cli_info(lh_cli *c)
{
    lh_cli_bind(c);
    LH_TRY(lh_cli_check_outputs(c));
    if (!lh_cli_json_only(c)) {
        LH_TRY(lh_cli_printf(c, "longhaul " LH_VERSION ", commit %s\n", lh_build_commit));
        LH_TRY(lh_cli_printf(c, "built with   %s, for %s\n", COMPILER, VECTORS));
        LH_TRY(lh_cli_printf(c, "libraries    jansson %s\n", jansson_version_str()));
        LH_TRY(lh_cli_printf(c, "digests      SHA-256\n"));
        LH_TRY(lh_cli_printf(c, "launcher     %s, rank %d of %d\n", c->rank.launcher, c->rank.rank,
                             c->rank.size));
        LH_TRY(lh_cli_printf(c, "cores        %ld on this machine, threads of this rank: %d, %s\n",
                             sysconf(_SC_NPROCESSORS_ONLN), c->n_threads,
                             lh_cli_bound_text(c->binding.by)));
        LH_TRY(lh_cli_printf(c, "backends     cpu\nsettings\n"));
        LH_TRY(print_settings(c));
    }
    return lh_opt_given(c->opts, LH_OPT_JSON) ? lh_cli_write_json(c, make_json(c)) : LH_OK;
}
