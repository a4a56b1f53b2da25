/*
 * What bench_kernels stands on: one backend and its stream, random data on the device, the
 * machine's ceilings, comparison with float64, times, the table and the CSV.
 *
 * A case goes: rig_begin (is it wanted, what does it move and compute), its data, rig_measure
 * (correct first, then timed), which releases the data. A failure of a call ends the program with
 * one line and the documented exit code: a benchmark has nobody to hand it to.
 */
#ifndef LH_BENCH_RIG_H
#define LH_BENCH_RIG_H

#include <stdint.h>
#include <stdio.h>

#include "kernels/kernels.h"

typedef struct rig_opts {
    const char *backend; /* "cpu" or "cuda" */
    int n_threads;
    const char *only; /* NULL, or what "operation, size" must contain */
    const char *csv;  /* NULL, or the file's path */
    int deterministic;
} rig_opts;

/* How a time was taken. */
typedef enum rig_way {
    RIG_LOOP,   /* calls queued one after the other */
    RIG_REPLAY, /* the same calls, recorded once: no launches in the time */
    RIG_SINGLE  /* one call, its inputs restored before it, untimed */
} rig_way;

typedef struct rig_time {
    double median_s, sd_s, least_s; /* of one call */
    rig_way way;
} rig_time;

#define RIG_MOST_BLOCKS 512 /* of memory that a case has at once, on either side */

typedef struct rig {
    const lh_kernels *k;
    const lh_device_ops *dev;
    lh_stream *s;
    rig_opts opts;
    int gpu;           /* 1: the sizes for a GPU */
    int deterministic; /* of the stream that is open; the ceilings' is not */
    uint64_t random;
    double bytes_per_s, flops_per_s; /* the ceilings */
    char machine[160], driver[40];
    FILE *csv;
    int n_right, n_wrong; /* cases */
    /* of the case at hand */
    const char *op;
    char size[80];
    double bytes, flops;
    int n_copies;  /* of its data, which calls take in turn */
    int is_queued; /* 1: its calls are never recorded (copies in a recording go another way) */
    void *device[RIG_MOST_BLOCKS], *host[RIG_MOST_BLOCKS];
    int n_device, n_host;
} rig;

/* Copy `copy` (from 0 on) of a case's data is at p + copy * bytes. */
typedef struct rig_buf {
    char *p;
    size_t bytes;
} rig_buf;

static inline void *rig_at(rig_buf b, int copy)
{
    return b.p + (size_t)copy * b.bytes;
}

/* Queues the case's operation on copy `copy` of its data; restore makes ready what run consumes. */
typedef lh_status (*rig_call)(rig *r, void *data, int copy);

/* Compares the outputs of copy 0 with float64 by rig_near or rig_equal. */
typedef int (*rig_check)(rig *r, void *data);

/* Opens the backend and the CSV, measures the ceilings. */
void rig_open(rig *r, const rig_opts *o);

/* Measures the ceilings once more, which shows whether the machine was the same all along. */
void rig_close(rig *r);

/* Ends the program unless st is LH_OK. */
void rig_must(lh_status st);

/*
 * Begins the case `op` of this size, whose call moves `bytes` to and from memory at the least and
 * computes `flops`. 0: not wanted, the case is left out. n_copies is then set so that all copies
 * of `bytes` together are larger than the last cache.
 */
int rig_begin(rig *r, const char *op, double bytes, double flops, const char *size, ...)
    __attribute__((format(printf, 5, 6)));

/*
 * Runs copy 0 and checks it; if right, times `run` and prints the row. The share is that of the
 * ceiling which allows the least speed: operations or bytes, whichever would take longer there.
 * Then releases all data of the case.
 */
void rig_measure(rig *r, void *data, rig_call run, rig_call restore, rig_check check);

/* The median of 9 times (5 of those over 100 ms); short calls are repeated 20 ms long and over all
 * copies. */
rig_time rig_time_of(rig *r, void *data, rig_call run, rig_call restore);

/* The row of a time in the table and the CSV; `share` of its ceiling `top`, all in `unit`. */
void rig_print(rig *r, rig_time t, double rate, double top, const char *unit);

/* Releases all data of the case. */
void rig_release(rig *r);

/* bytes_per_s and flops_per_s, and their rows under the name `op`. For a stream of the default
 * mode. */
void rig_measure_ceilings(rig *r, const char *op);

/* ------------------------------------------------------------------- data */

/*
 * Device memory of the case, n_copies copies of n elements: zeros, or random values, uniform with
 * this standard deviation. At most 4,194,301 values are drawn; a larger array repeats them, out of
 * step with its rows.
 */
typedef enum rig_type { RIG_ACT, RIG_BF16, RIG_F32, RIG_I32, RIG_I64, RIG_POINTER } rig_type;
rig_buf rig_zeros(rig *r, rig_type t, int64_t n);
rig_buf rig_random(rig *r, rig_type t, int64_t n, double sd);

/* Work of an operation: bytes from lh_kernels, one copy. */
void *rig_work(rig *r, size_t bytes);

/* Each copy n different numbers below `below`, in random order (int32). */
rig_buf rig_choice(rig *r, int64_t n, int64_t below);

/* Pointers p + i * step for i < n, as device memory, for each copy. */
rig_buf rig_pointers(rig *r, rig_buf p, int64_t n, size_t step);

/* Fills device memory from the host and waits. */
void rig_upload(rig *r, void *device, const void *host, size_t bytes);

/* Host memory of the case, zeroed. */
void *rig_host(rig *r, int64_t n, size_t elem_bytes);

/* n elements from element `first` on, from the device to such memory; activations as f32. */
float *rig_acts(rig *r, const void *device, int64_t first, int64_t n);
void *rig_fetch(rig *r, const void *device, int64_t first, int64_t n, size_t elem_bytes);

/* The same pointer, `n` activations further. */
static inline void *rig_act(const rig *r, const void *p, int64_t n)
{
    return (char *)(uintptr_t)p + n * (int64_t)r->k->act_bytes;
}

/* Uniform in [0, 1). */
double rig_uniform(rig *r);

/* Cuts n rows into tiles of tile_rows (the last may be shorter), in host memory of the case. */
lh_tiles rig_tiles(rig *r, int64_t n, int64_t tile_rows);

/* First, middle and last of n, without repetition; returns how many. */
int rig_samples(int64_t n, int64_t out[3]);

/* ------------------------------------------------------------- comparison */

/*
 * 1 if all of got are within the tolerance of want, relative to the largest |want|: 1e-2 where
 * activations are bf16 (2^-9 of every rounding on the way), 1e-5 where they are f32. Else prints
 * WRONG with the first bad place, and returns 0.
 */
int rig_near(rig *r, const char *what, const float *got, const double *want, int64_t n);
int rig_true(rig *r, const char *what, int right);

#endif
