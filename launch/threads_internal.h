/* Private to launch/ and its tests. */
#ifndef LH_LAUNCH_THREADS_INTERNAL_H
#define LH_LAUNCH_THREADS_INTERNAL_H

#define LH_MAX_CPUS 65536 /* in an affinity mask */

/*
 * CPUs that the process's control groups allow, as CPU time per time: the smallest limit on the way
 * from its group up to the root, INFINITY if there is none. membership: the path of what
 * /proc/self/cgroup says; mount: where the hierarchies are mounted, /sys/fs/cgroup. Versions 2 and
 * 1. A group that is not visible under the mount (as in a container) counts as its nearest visible
 * parent.
 */
double lh_cgroup_cpus(const char *membership, const char *mount);

/* The same for bytes of memory that they leave. */
double lh_cgroup_memory(const char *membership, const char *mount);

#endif
