#include <stdio.h>

#include "base/log.h"
#include "runtime/cli/cli.h"

/* What was written, read back as an engine would. */
static lh_status report(lh_cli *c, const char *dir, double seconds)
{
    lh_status st = LH_OK;
    lh_inspection *i = NULL;

    LH_TRY(lh_inspect(&i, dir, 0, NULL, NULL));
    if (!lh_cli_json_only(c))
        LH_TRY_OUT(lh_cli_printf(c, "%s: %s parameters in %s tensors of %d %s, %s in %.1f s\n", dir,
                                 lh_cli_number(i->model.n_parameters), lh_cli_number(i->n_tensors),
                                 i->n_files, i->n_files == 1 ? "file" : "files",
                                 lh_cli_bytes(i->file_bytes), seconds));
    if (lh_opt_given(c->opts, LH_OPT_JSON))
        st = lh_cli_write_json(c, json_pack("{s:s,s:I,s:f,s:I,s:I,s:i,s:I,s:f}", "model", dir,
                                            "seed", (json_int_t)lh_opt_number(c->opts, LH_OPT_SEED),
                                            "router_skew", lh_opt_real(c->opts, LH_OPT_ROUTER_SKEW),
                                            "parameters", (json_int_t)i->model.n_parameters,
                                            "n_tensors", (json_int_t)i->n_tensors, "n_files",
                                            i->n_files, "file_bytes", (json_int_t)i->file_bytes,
                                            "seconds", seconds));
out:
    lh_inspection_free(i);
    return st;
}

lh_status lh_cli_synth(lh_cli *c)
{
    const char *config = lh_opt_text(c->opts, LH_OPT_CONFIG);
    const char *out = lh_opt_text(c->opts, LH_OPT_OUT);
    lh_synth_opts opts = {.seed = (uint64_t)lh_opt_number(c->opts, LH_OPT_SEED),
                          .router_skew = lh_opt_real(c->opts, LH_OPT_ROUTER_SKEW),
                          .n_threads = c->n_threads,
                          .n_shards = (int)lh_opt_number(c->opts, LH_OPT_SHARDS),
                          .progress = lh_cli_progress,
                          .user = c};
    double begin = lh_log_seconds();

    LH_REQUIRE(config, LH_ERR_USAGE, "--config: nothing, expected the config.json of a model");
    LH_REQUIRE(out, LH_ERR_USAGE, "--out: nothing, expected the directory to write");
    LH_TRY(lh_cli_check_outputs(c));
    LH_TRY(lh_synth_write(config, out, &opts));
    return report(c, out, lh_log_seconds() - begin);
}
