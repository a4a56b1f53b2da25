/*
 * longhaul: the start and the end of every command. One error line, one exit code.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/maps.h"
#include "runtime/cli/cli.h"

static const struct {
    lh_status (*run)(lh_cli *c);
    int needs_ranks; /* 0: rank 0 does it, the others have nothing to do */
} commands[LH_N_COMMANDS] = {
    [LH_CMD_GENERATE] = {lh_cli_generate, 1}, [LH_CMD_NEEDLE] = {lh_cli_needle, 1},
    [LH_CMD_LOGITS] = {lh_cli_logits, 1},     [LH_CMD_TOKENIZE] = {lh_cli_tokenize, 0},
    [LH_CMD_INSPECT] = {lh_cli_inspect, 0},   [LH_CMD_PLAN] = {lh_cli_plan, 0},
    [LH_CMD_INFO] = {lh_cli_info, 0},         [LH_CMD_SCORE] = {lh_cli_score, 1},
    [LH_CMD_BENCH] = {lh_cli_bench, 1},       [LH_CMD_SYNTH] = {lh_cli_synth, 0},
    [LH_CMD_TOPO] = {lh_cli_topo, 1},         [LH_CMD_SCALE] = {lh_cli_scale, 1},
};

static char line_start[64] = "longhaul: ";

/* ----------------------------------------------------------------- signals */

static void write_text(const char *text)
{
    ssize_t n = write(STDERR_FILENO, text, strlen(text));
    (void)n; /* nowhere to report it to */
}

/* A page of a mapped file that cannot be read: the file was cut, or the disk failed. */
static void on_bus_error(int signal_number, siginfo_t *info, void *context)
{
    const char *path = lh_map_find(info->si_addr);

    (void)context;
    if (!path) {
        (void)signal(signal_number, SIG_DFL);
        return; /* the access faults again, and ends the program */
    }
    write_text(line_start);
    write_text(path);
    write_text(": reading the mapped file failed: it was cut short, or the disk has an error\n");
    _exit(lh_exit_code(LH_ERR_IO));
}

static void install_signals(void)
{
    struct sigaction bus = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
    struct sigaction ignore = {.sa_handler = SIG_IGN};

    (void)sigemptyset(&bus.sa_mask);
    (void)sigemptyset(&ignore.sa_mask);
    (void)sigaction(SIGBUS, &bus, NULL);
    (void)sigaction(SIGPIPE, &ignore, NULL); /* a closed pipe is a failed write, with a line */
}

/* A launcher that is gone takes its ranks along. */
static void die_with_launcher(void)
{
    pid_t parent = getppid();

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        (void)raise(SIGKILL);
}

/* ------------------------------------------------------------------ errors */

/* Before there is a job every rank fails alike, and rank 0 says it. A launcher ends all ranks when
 * the first leaves with an error: the others wait until that line is out. */
static int fail_alone(const lh_cli *c, lh_status st)
{
    const struct timespec wait = {.tv_nsec = 300 * 1000 * 1000};

    if (c->rank.rank == 0)
        (void)fprintf(stderr, "longhaul: %s\n", lh_last_error());
    else
        (void)nanosleep(&wait, NULL);
    return lh_exit_code(st);
}

static void say_error(lh_status st)
{
    if (st == LH_ERR_PEER) /* the rank that failed says it */
        return;
    (void)fflush(stdout);
    (void)fprintf(stderr, "%s%s\n", line_start, lh_last_error());
    LH_LOG_D("main", "%s at %s", lh_status_name(st), lh_last_error_where());
}

/*
 * Once an engine runs, ranks fail apart, and the one that knows why must take the others along; so
 * must one of a few ranks that the others wait for. Who heard of it, or has come to the end, stays
 * for that: a rank that leaves MPI while another aborts has made mpirun itself crash or hang.
 */
static int end(lh_cli *c, lh_status st)
{
    const struct timespec stay = {.tv_sec = 5};
    int at_work = c->engine || c->n_ranks > 0;

    if (c->job && (st == LH_OK || !at_work))
        st = lh_job_agree(c->job, st);
    if (st != LH_OK)
        say_error(st);
    if (st == LH_ERR_PEER && at_work) {
        (void)nanosleep(&stay, NULL);
    } else if (st != LH_OK && at_work) {
        if (c->engine)
            lh_engine_abort(c->engine, st);
        lh_job_abort(c->job, st);
    }
    lh_cli_close(c);
    return lh_exit_code(st);
}

static lh_status start(lh_cli *c)
{
    if (c->rank.size > 1) {
        (void)snprintf(line_start, sizeof line_start, "longhaul: rank %d: ", c->rank.rank);
        lh_log_set_rank(c->rank.rank, c->rank.size);
    }
    LH_TRY(lh_log_configure(lh_opt_text(c->opts, LH_OPT_LOG)));
    c->n_threads = (int)lh_opt_number(c->opts, LH_OPT_THREADS);
    if (c->n_threads == 0)
        c->n_threads = lh_default_threads(&c->rank);
    return LH_OK;
}

int main(int argc, char **argv)
{
    static lh_opts opts;
    lh_cli c = {.opts = &opts, .rank = {.size = 1}};
    lh_status st = lh_rank_info_read(&c.rank);

    install_signals();
    if (strcmp(c.rank.launcher ? c.rank.launcher : "none", "none") != 0)
        die_with_launcher();
    if (st == LH_OK)
        st = lh_opts_parse(&opts, argc, argv);
    if (st == LH_OK)
        st = start(&c);
    if (st != LH_OK)
        return fail_alone(&c, st);

    int help = (int)lh_opt_number(&opts, LH_OPT_HELP);
    if (help || lh_opt_number(&opts, LH_OPT_VERSION)) {
        if (c.rank.rank == 0 && help)
            lh_opts_help(stdout, opts.command);
        else if (c.rank.rank == 0)
            (void)puts("longhaul " LH_VERSION);
        return 0;
    }
    if (!commands[opts.command].needs_ranks) {
        st = c.rank.rank == 0 ? commands[opts.command].run(&c) : LH_OK;
        lh_tokenizer_close(c.tokenizer);
        return st == LH_OK ? 0 : fail_alone(&c, st);
    }
    st = lh_job_open(&c.job, c.rank.size > 1);
    if (st == LH_OK)
        st = commands[opts.command].run(&c);
    return end(&c, st);
}
