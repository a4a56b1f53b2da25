/*
 * How this process was started: which rank of how many, before MPI is touched, and which cores are
 * its own.
 */
#ifndef LH_LAUNCH_LAUNCH_H
#define LH_LAUNCH_LAUNCH_H

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lh_rank_info {
    int rank, size;             /* 0, 1 without a launcher */
    int local_rank, local_size; /* on this node */
    const char *launcher;       /* "none", "Open MPI", "Slurm", "PMI": a literal */
} lh_rank_info;

/*
 * From the environment of Open MPI, then Slurm, then PMI. LH_ERR_USAGE: a variable of them that
 * makes no sense. A Slurm allocation without a step of more than one task (a batch script's own
 * shell) counts as no launcher.
 */
lh_status lh_rank_info_read(lh_rank_info *out);

/*
 * Threads that this rank should use when the user does not say: the cores that the process may run
 * on (its affinity mask, and its cgroup's limit of CPU time), shared with the other local ranks if
 * the mask is the same for all; at least 1.
 */
int lh_default_threads(const lh_rank_info *r);

#ifdef __cplusplus
}
#endif
#endif
