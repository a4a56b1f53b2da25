/*
 * How this process was started: which rank of how many, before MPI is touched, and which cores are
 * its own.
 */
#ifndef LH_LAUNCH_LAUNCH_H
#define LH_LAUNCH_LAUNCH_H

#include "base/status.h"
#include "topology/topology.h"

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

/* Memory that this node has left, for all its ranks together: what the system can give, and what
 * the process's control groups leave. SIZE_MAX: the system does not say. */
size_t lh_host_memory(void);

/*
 * CUDA_VISIBLE_DEVICES: which GPUs of the node the process may see, in CUDA's order. Fills numbers
 * of GPUs by bus address [most] and returns how many, or -1 where it does not say so: the variable
 * is not set, or names GPUs in another way than by number.
 */
int lh_visible_gpus(int *gpus, int most);

/* Who chose a rank's cores. */
typedef enum lh_bound_by {
    LH_BOUND_BY_NOBODY,   /* it runs where the system puts it: no choice makes sense */
    LH_BOUND_BY_LAUNCHER, /* its mask is smaller than that of who started it */
    LH_BOUND_BY_LONGHAUL
} lh_bound_by;

typedef struct lh_binding {
    lh_bound_by by;
    int gpu;     /* element of lh_topology.devices that the rank takes, -1: none */
    int numa;    /* the node of its first core, -1: bound by nobody or the launcher */
    int n_cores; /* that it is bound to by us, else 0 */
    int n_pus;   /* hardware threads in its mask */
} lh_binding;

/*
 * Binds the calling thread, and all that it starts later, to this rank's share of the cores that
 * the process may use: next to its GPU with `use_gpus` (the rank takes GPU local_rank of the
 * visible ones, in turn), else dealt evenly, as lh_topology_place says. Does nothing if the
 * launcher has bound the ranks already, or there are fewer cores than ranks, or a single rank
 * without a GPU. Called before threads start. t: this machine; NULL: it is looked at here, if need
 * be, and `gpu` is said only for ranks that are bound here. LH_ERR_UNAVAILABLE: the system refuses
 * the mask.
 */
lh_status lh_bind_cores(lh_binding *out, const lh_rank_info *r, const lh_topology *t, int use_gpus);

/* Which GPU a rank uses, as ranks tell each other. Compared as bytes: unused ones are 0. */
typedef struct lh_gpu_id {
    char host[64];
    char bus[16]; /* "0000:17:00.0" */
} lh_gpu_id;

/* The number among n_visible GPUs of this process that the rank takes: local ranks in turn.
 * LH_ERR_UNAVAILABLE: there is none. */
lh_status lh_choose_gpu(int *out, const lh_rank_info *r, int n_visible);

/* Fills in this host's name. */
void lh_gpu_id_fill(lh_gpu_id *out, const char *bus);

/* ids [size], of all ranks: LH_ERR_UNAVAILABLE names the first two that have the same GPU. */
lh_status lh_gpus_differ(const lh_gpu_id *ids, int size);

#ifdef __cplusplus
}
#endif
#endif
