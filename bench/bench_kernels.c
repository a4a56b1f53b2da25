/*
 * Every operation in the published shape beside what the machine gives in the same run. A result
 * is compared with float64 before it is timed; a wrong one prints WRONG and no time.
 *
 *     bench_kernels [--backend cpu|cuda] [--threads N] [--only TEXT] [--csv FILE] [--deterministic]
 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "bench/cases.h"

static const char usage[] =
    "usage: bench_kernels [--backend cpu|cuda] [--threads N] [--only PART OF A NAME] [--csv FILE]\n"
    "                     [--deterministic]\n";

static lh_status parse(rig_opts *o, int argc, char **argv)
{
    static const struct option known[] = {{"backend", required_argument, NULL, 'b'},
                                          {"threads", required_argument, NULL, 't'},
                                          {"only", required_argument, NULL, 'o'},
                                          {"csv", required_argument, NULL, 'c'},
                                          {"deterministic", no_argument, NULL, 'd'},
                                          {"help", no_argument, NULL, 'h'},
                                          {0}};
    int c;

    *o = (rig_opts){.backend = "cpu", .n_threads = 1};
    while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
        char *end = NULL;
        switch (c) {
        case 'b':
            LH_REQUIRE(strcmp(optarg, "cpu") == 0 || strcmp(optarg, "cuda") == 0, LH_ERR_USAGE,
                       "--backend %s: expected cpu or cuda", optarg);
            o->backend = optarg;
            break;
        case 't':
            o->n_threads = (int)strtol(optarg, &end, 10);
            LH_REQUIRE(end != optarg && *end == 0 && o->n_threads >= 1 && o->n_threads <= 4096,
                       LH_ERR_USAGE, "--threads %s: expected 1 to 4096", optarg);
            break;
        case 'o':
            o->only = optarg;
            break;
        case 'c':
            o->csv = optarg;
            break;
        case 'd':
            o->deterministic = 1;
            break;
        case 'h':
            (void)fputs(usage, stdout);
            exit(0);
        default:
            return LH_FAIL(LH_ERR_USAGE, "see bench_kernels --help");
        }
    }
    LH_REQUIRE(optind == argc, LH_ERR_USAGE, "'%s': expected options only", argv[optind]);
    return LH_OK;
}

int main(int argc, char **argv)
{
    rig_opts o;
    rig r;

    rig_must(parse(&o, argc, argv));
    rig_open(&r, &o);
    cases_rows(&r);
    cases_plan(&r);
    cases_product(&r);
    cases_kda(&r);
    cases_mla(&r);
    rig_close(&r);
    if (r.n_right + r.n_wrong == 0)
        rig_must(LH_FAIL(LH_ERR_USAGE, "--only %s: no case has this in its name", o.only));
    return r.n_wrong > 0;
}
