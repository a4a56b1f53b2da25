/* The backend, times, the table and the CSV. */
#include "bench/rig.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/mem.h"
#include "bench/median.h"

#define RUNS 9
#define RUNS_LONG 5 /* of those over LONG_S */
#define LONG_S 0.1
#define LEAST_S 0.02 /* of one timed run: short calls are repeated */
#define MOST_CALLS 1024
#define CACHE_GPU ((size_t)256 << 20) /* larger than any last cache */
#define CACHE_CPU ((size_t)64 << 20)

extern const char lh_build_commit[];

void rig_must(lh_status st)
{
    if (st == LH_OK)
        return;
    (void)fprintf(stderr, "bench_kernels: %s\n", lh_last_error());
    exit(lh_exit_code(st));
}

/* ------------------------------------------------------------ the machine */

/* What follows `key` and a colon in a line of a file of the system; 0: there is none. */
static int system_value(const char *path, const char *key, char *out, size_t size)
{
    char line[512];
    int found = 0;
    FILE *f = fopen(path, "r");

    while (f && !found && fgets(line, sizeof line, f)) {
        char *value = strchr(line, ':');
        if (strncmp(line, key, strlen(key)) != 0 || !value)
            continue;
        value += 1 + strspn(value + 1, " \t");
        value[strcspn(value, "\n,\"")] = 0; /* it goes to a CSV */
        (void)snprintf(out, size, "%s", value);
        found = 1;
    }
    if (f)
        (void)fclose(f);
    return found;
}

/* "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.1.2  Mon ..": the word with two dots or
 * one, of digits. */
static void driver_version(char *out, size_t size)
{
    char line[256], *rest = NULL;

    if (!system_value("/proc/driver/nvidia/version", "NVRM version", line, sizeof line))
        return;
    for (char *w = strtok_r(line, " ", &rest); w; w = strtok_r(NULL, " ", &rest))
        if (strchr(w, '.') && strspn(w, "0123456789.") == strlen(w))
            (void)snprintf(out, size, "%s", w);
}

static void name_machine(rig *r)
{
    char bus[16], path[80], name[120];

    if (!r->gpu) {
        if (!system_value("/proc/cpuinfo", "model name", name, sizeof name))
            (void)snprintf(name, sizeof name, "CPU");
        (void)snprintf(r->machine, sizeof r->machine, "%s; %d thread%s", name, r->opts.n_threads,
                       r->opts.n_threads == 1 ? "" : "s");
        return;
    }
    rig_must(r->dev->bus(0, bus));
    (void)snprintf(path, sizeof path, "/proc/driver/nvidia/gpus/%s/information", bus);
    if (!system_value(path, "Model", r->machine, sizeof r->machine))
        (void)snprintf(r->machine, sizeof r->machine, "GPU %s", bus);
    driver_version(r->driver, sizeof r->driver);
}

/* In place of the one that is open. */
static void open_stream(rig *r, int deterministic)
{
    r->dev->close(r->s);
    r->s = NULL;
    rig_must(r->dev->open(&r->s, 0, r->opts.n_threads, deterministic));
    r->deterministic = deterministic;
}

void rig_open(rig *r, const rig_opts *o)
{
    int cuda = strcmp(o->backend, "cuda") == 0;

    *r = (rig){.opts = *o, .gpu = cuda, .n_copies = 1};
    r->k = cuda ? lh_kernels_cuda() : &lh_kernels_cpu;
    if (!r->k)
        rig_must(LH_FAIL(LH_ERR_UNAVAILABLE,
                         "no CUDA backend in this build, or no GPU that it can use"));
    r->dev = r->k->device;
    if (o->csv && !(r->csv = fopen(o->csv, "w")))
        rig_must(LH_FAIL(LH_ERR_OPEN, "%s: cannot be written", o->csv));
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_REALTIME, &now);
    r->random = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    name_machine(r);
    printf("bench_kernels, commit %s, %s%s%s, %s backend%s, random values from seed %llu\n",
           lh_build_commit, r->machine, r->driver[0] ? ", driver " : "", r->driver, r->k->name,
           o->deterministic && cuda ? " (deterministic)" : "", (unsigned long long)r->random);
    printf("%-13s %-34s %13s %6s %17s %9s %6s  %s\n", "operation", "size", "median", "sd", "rate",
           "ceiling", "share", "calls");
    if (r->csv)
        (void)fprintf(r->csv, "date,commit,machine,driver,operation,size,ms,rate,unit,share\n");
    open_stream(r, 0);
    rig_measure_ceilings(r, "ceiling");
    if (o->deterministic)
        open_stream(r, 1);
}

void rig_close(rig *r)
{
    open_stream(r, 0);
    rig_measure_ceilings(r, "ceiling (end)");
    r->dev->close(r->s);
    int written = !r->csv || !ferror(r->csv);
    if ((r->csv && fclose(r->csv) != 0) || !written)
        rig_must(LH_FAIL(LH_ERR_IO, "%s: writing failed", r->opts.csv));
}

/* ------------------------------------------------------------------ cases */

int rig_begin(rig *r, const char *op, double bytes, double flops, const char *size, ...)
{
    char name[128];
    size_t cache = r->gpu ? CACHE_GPU : CACHE_CPU;
    va_list list;

    va_start(list, size);
    (void)vsnprintf(r->size, sizeof r->size, size, list);
    va_end(list);
    (void)snprintf(name, sizeof name, "%s, %s", op, r->size);
    if (r->opts.only && !strstr(name, r->opts.only))
        return 0;
    r->op = op;
    r->bytes = bytes;
    r->flops = flops;
    r->n_copies = 1 + (int)((double)cache / bytes);
    return 1;
}

void rig_release(rig *r)
{
    while (r->n_device > 0)
        r->dev->release(r->s, r->device[--r->n_device]);
    while (r->n_host > 0)
        free(r->host[--r->n_host]);
}

static rig_time summary(double *seconds, int n, rig_way way)
{
    double sd_s = deviation(seconds, n), middle = median(seconds, n); /* which sorts */

    return (rig_time){.median_s = middle, .sd_s = sd_s, .least_s = seconds[0], .way = way};
}

static lh_status queue(rig *r, void *data, rig_call run, int n_calls)
{
    for (int i = 0; i < n_calls; i++)
        LH_TRY(run(r, data, i % r->n_copies));
    return LH_OK;
}

/* The calls as a recording, or NULL where the device has none or an operation refuses. */
static void *record(rig *r, void *data, rig_call run, int n_calls)
{
    void *recording = NULL;

    if (r->is_queued || !r->dev->record_begin || r->dev->record_begin(r->s) != LH_OK)
        return NULL;
    lh_status queued = queue(r, data, run, n_calls);
    if (r->dev->record_end(r->s, &recording) == LH_OK && queued == LH_OK)
        return recording;
    r->dev->forget(r->s, recording);
    return NULL;
}

/* Seconds of n_calls calls, to the end of the last. */
static double seconds_of(rig *r, void *data, rig_call run, int n_calls, void *recording)
{
    rig_must(r->dev->sync(r->s));
    double start = lh_log_seconds();
    rig_must(recording ? r->dev->replay(r->s, recording) : queue(r, data, run, n_calls));
    rig_must(r->dev->sync(r->s));
    return lh_log_seconds() - start;
}

static rig_time time_single(rig *r, void *data, rig_call run, rig_call restore)
{
    double seconds[RUNS];
    int n = RUNS;

    for (int i = 0; i < n; i++) {
        rig_must(restore(r, data, 0));
        seconds[i] = seconds_of(r, data, run, 1, NULL);
        n = seconds[0] > LONG_S ? RUNS_LONG : RUNS;
    }
    return summary(seconds, n, RIG_SINGLE);
}

rig_time rig_time_of(rig *r, void *data, rig_call run, rig_call restore)
{
    double seconds[RUNS];

    if (restore)
        return time_single(r, data, run, restore);
    double once = seconds_of(r, data, run, 1, NULL);
    int n = once > LONG_S ? RUNS_LONG : RUNS;
    int n_calls = (int)fmin(MOST_CALLS, ceil(LEAST_S / once));
    n_calls = (int)lh_round_up(n_calls, r->n_copies);
    void *recording = record(r, data, run, n_calls);
    (void)seconds_of(r, data, run, n_calls, recording); /* warm: memory, clocks, the recording */
    for (int i = 0; i < n; i++)
        seconds[i] = seconds_of(r, data, run, n_calls, recording) / n_calls;
    if (recording)
        r->dev->forget(r->s, recording);
    return summary(seconds, n, recording ? RIG_REPLAY : RIG_LOOP);
}

void rig_print(rig *r, rig_time t, double rate, double top, const char *unit)
{
    static const char *const ways[] = {"loop", "replay", "single"};
    char date[16] = "";
    time_t now = time(NULL);
    struct tm day;

    printf("%-13s %-34s %10.4f ms %5.1f%% %9.1f %-7s %9.1f %5.1f%%  %s\n", r->op, r->size,
           1e3 * t.median_s, 100 * t.sd_s / t.median_s, rate, unit, top, 100 * rate / top,
           ways[t.way]);
    (void)fflush(stdout);
    if (!r->csv)
        return;
    if (gmtime_r(&now, &day))
        (void)strftime(date, sizeof date, "%Y-%m-%d", &day);
    (void)fprintf(r->csv, "%s,%s,%s,%s,%s%s,\"%s\",%.6f,%.2f,%s,%.4f\n", date, lh_build_commit,
                  r->machine, r->driver, r->op,
                  r->deterministic && r->gpu ? " (deterministic)" : "", r->size, 1e3 * t.median_s,
                  rate, unit, rate / top);
    (void)fflush(r->csv);
}

void rig_measure(rig *r, void *data, rig_call run, rig_call restore, rig_check check)
{
    if (restore)
        rig_must(restore(r, data, 0));
    rig_must(run(r, data, 0));
    rig_must(r->dev->sync(r->s));
    if (check(r, data)) {
        r->n_right++;
        rig_time t = rig_time_of(r, data, run, restore);
        if (r->flops / r->flops_per_s > r->bytes / r->bytes_per_s) {
            double unit = r->gpu ? 1e12 : 1e9;
            rig_print(r, t, r->flops / t.median_s / unit, r->flops_per_s / unit,
                      r->gpu ? "TFLOP/s" : "GFLOP/s");
        } else {
            rig_print(r, t, r->bytes / t.median_s / 1e9, r->bytes_per_s / 1e9, "GB/s");
        }
    } else {
        r->n_wrong++;
        (void)fflush(stdout);
    }
    rig_release(r);
}
