#include <stdint.h>
#include <stdio.h>

#include "launch/launch.h"
#include "launch/threads_internal.h"

/* What the system could give without swapping; SIZE_MAX: it does not say. */
static size_t available(void)
{
    char line[256];
    unsigned long long kib = 0;
    int known = 0;
    FILE *f = fopen("/proc/meminfo", "re");

    while (f && !known && fgets(line, sizeof line, f))
        known = sscanf(line, "MemAvailable: %llu kB", &kib) == 1;
    if (f)
        (void)fclose(f);
    return known ? (size_t)kib * 1024 : SIZE_MAX;
}

size_t lh_host_memory(void)
{
    size_t all = available();
    double group = lh_cgroup_memory("/proc/self/cgroup", "/sys/fs/cgroup");

    return group < (double)all ? (size_t)group : all;
}
