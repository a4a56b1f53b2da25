/* Ranks that measure together: how they are opened, timed and ended. */
#ifndef LH_BENCH_RANKS_H
#define LH_BENCH_RANKS_H

#include "kernels/kernels.h"
#include "parallel/comm.h"

#define RANKS_MAX 32

typedef struct ranks {
    const lh_kernels *k;
    lh_stream *s;
    lh_comm *boot; /* in host memory */
    lh_comm *comm; /* in memory of the stream's device: NCCL between GPUs, else `boot` */
    int rank;
} ranks;

/* Joins the ranks of the job, each with its stream and n_threads threads. k NULL: a backend that is
 * not here, LH_ERR_UNAVAILABLE. */
lh_status ranks_open(ranks *r, const lh_kernels *k, int n_threads);

/*
 * Seconds of the longest rank: each from a barrier, before which all that it has queued has run, to
 * the end of what `work` queues. Collective.
 */
lh_status ranks_time(ranks *r, lh_status (*work)(void *data), void *data, double *seconds);

/* The end of main: with a failure says why and ends the job. The exit code. */
int ranks_close(ranks *r, const char *program, lh_status st);

#endif
