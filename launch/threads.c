#define _GNU_SOURCE /* sched_getaffinity */
#include "launch/launch.h"

#include <sched.h>
#include <unistd.h>

#include "launch/threads_internal.h"

/* CPUs in the affinity mask of process `pid` (0: this one); 0 if it cannot be read. */
static int mask_cpus(pid_t pid)
{
    for (size_t n = 1024; n <= LH_MAX_CPUS; n *= 2) {
        size_t bytes = CPU_ALLOC_SIZE(n);
        cpu_set_t *set = CPU_ALLOC(n);
        int known = set && sched_getaffinity(pid, bytes, set) == 0;
        int count = known ? CPU_COUNT_S(bytes, set) : 0;
        CPU_FREE(set);
        if (known)
            return count;
    }
    return 0; /* the kernel's masks are larger than all that were tried, or the process is gone */
}

/*
 * A rank takes what its mask allows, but not more than its fair share of what all local ranks have
 * together: the mask of whoever started them, and the limit of the control group.
 */
int lh_default_threads(const lh_rank_info *r)
{
    int own = mask_cpus(0), all = mask_cpus(getppid());
    double limit = lh_cgroup_cpus("/proc/self/cgroup", "/sys/fs/cgroup");

    if (all < own)
        all = own;
    if (limit < all)
        all = (int)limit;
    int share = all / r->local_size;
    int threads = own < share ? own : share;
    return threads < 1 ? 1 : threads;
}
