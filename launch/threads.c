#define _GNU_SOURCE /* sched_getaffinity */
#include "launch/launch.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
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

/* quota / period of one group, or 0 without a limit. Version 2: "max 100000" or "150000 100000". */
static double group_limit(const char *dir, int version)
{
    const char *files[2] = {version == 2 ? "cpu.max" : "cpu.cfs_quota_us",
                            version == 2 ? NULL : "cpu.cfs_period_us"};
    double value[2] = {0, 0};
    int n = 0;

    for (int i = 0; i < 2 && files[i]; i++) {
        char path[4352];
        (void)snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        FILE *f = fopen(path, "re");
        if (!f)
            return 0;
        n +=
            version == 2 ? fscanf(f, "%lf %lf", &value[0], &value[1]) : fscanf(f, "%lf", &value[i]);
        (void)fclose(f);
    }
    return n == 2 && value[0] > 0 && value[1] > 0 ? value[0] / value[1] : 0;
}

/* The smallest limit of `group` ("/a/b") and its parents below `root`. */
static double smallest_limit(const char *root, const char *group, int version)
{
    char dir[4200];
    size_t top = strlen(root);
    double smallest = 0;

    if (snprintf(dir, sizeof dir, "%s%s", root, group) >= (int)sizeof dir)
        return 0;
    for (;;) {
        double limit = group_limit(dir, version);
        if (limit > 0 && (smallest == 0 || limit < smallest))
            smallest = limit;
        char *slash = strrchr(dir + top, '/');
        if (!slash)
            return smallest;
        *slash = '\0';
    }
}

/* Whether a list like "cpu,cpuacct" has the controller "cpu". */
static int has_cpu(const char *controllers)
{
    for (const char *p = controllers; *p; p += strcspn(p, ","), p += *p == ',')
        if (strcspn(p, ",") == 3 && strncmp(p, "cpu", 3) == 0)
            return 1;
    return 0;
}

double lh_cgroup_cpus(const char *membership, const char *mount)
{
    char line[4096], root[256];
    double smallest = 0;
    FILE *f = fopen(membership, "re");

    if (!f)
        return 0;
    while (fgets(line, sizeof line, f)) { /* "0::/group", "4:cpu,cpuacct:/group" */
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = '\0';
        controllers++;
        group[strcspn(group, "\n")] = '\0';
        int version = *controllers ? 1 : 2;
        if (version == 1 && !has_cpu(controllers))
            continue;
        (void)snprintf(root, sizeof root, "%s%s%s", mount, version == 1 ? "/" : "", controllers);
        double limit = smallest_limit(root, group, version);
        if (limit > 0 && (smallest == 0 || limit < smallest))
            smallest = limit;
    }
    (void)fclose(f);
    return smallest;
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
    if (limit > 0 && limit < all)
        all = (int)limit;
    int share = all / r->local_size;
    int threads = own < share ? own : share;
    return threads < 1 ? 1 : threads;
}
