/* What the process's control groups allow: CPU time and memory, in versions 2 and 1. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "launch/threads_internal.h"

/* What one group allows; INFINITY: no limit. */
typedef double (*group_limit)(const char *dir, int version);

/* Numbers of the first line of a file, or with `key` of the line that this begins: how many of at
 * most two. */
static int read_numbers(double out[2], const char *dir, const char *file, const char *key)
{
    char path[4352], line[256];
    size_t skip = key ? strlen(key) : 0;
    int found = 0, n = 0;

    (void)snprintf(path, sizeof path, "%s/%s", dir, file);
    FILE *f = fopen(path, "re");
    if (!f)
        return 0;
    while (!found && fgets(line, sizeof line, f))
        found = !key || (strncmp(line, key, skip) == 0 && line[skip] == ' ');
    if (found)
        n = sscanf(line + skip, "%lf %lf", &out[0], &out[1]);
    (void)fclose(f);
    return n < 0 ? 0 : n;
}

/* quota / period. Version 2: "max 100000" or "150000 100000". */
static double cpu_limit(const char *dir, int version)
{
    double quota[2] = {0}, period[2] = {0};

    if (version == 2 && read_numbers(quota, dir, "cpu.max", NULL) == 2)
        return quota[1] > 0 ? quota[0] / quota[1] : INFINITY;
    if (version == 1 && read_numbers(quota, dir, "cpu.cfs_quota_us", NULL) == 1 &&
        read_numbers(period, dir, "cpu.cfs_period_us", NULL) == 1)
        return quota[0] > 0 && period[0] > 0 ? quota[0] / period[0] : INFINITY;
    return INFINITY;
}

/* What is left of the limit; of what is taken, files that are only cached make room. */
static double memory_limit(const char *dir, int version)
{
    static const char *const names[2][4] = {
        {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
         "total_active_file"},
        {"memory.max", "memory.current", "inactive_file", "active_file"}};
    const char *const *name = names[version == 2];
    double limit[2], used[2], files[2];

    if (read_numbers(limit, dir, name[0], NULL) != 1 || read_numbers(used, dir, name[1], NULL) != 1)
        return INFINITY;
    for (int i = 2; i < 4; i++)
        if (read_numbers(files, dir, "memory.stat", name[i]) == 1)
            used[0] -= files[0];
    return fmax(limit[0] - used[0], 0);
}

/* The smallest limit of `group` ("/a/b") and its parents below `root`. */
static double smallest_limit(const char *root, const char *group, int version, group_limit limit)
{
    char dir[4200];
    size_t top = strlen(root);
    double smallest = INFINITY;

    if (snprintf(dir, sizeof dir, "%s%s", root, group) >= (int)sizeof dir)
        return INFINITY;
    for (;;) {
        smallest = fmin(smallest, limit(dir, version));
        char *slash = strrchr(dir + top, '/');
        if (!slash)
            return smallest;
        *slash = '\0';
    }
}

/* Whether a list like "cpu,cpuacct" has this controller. */
static int has(const char *controllers, const char *name)
{
    for (const char *p = controllers; *p; p += strcspn(p, ","), p += *p == ',')
        if (strcspn(p, ",") == strlen(name) && strncmp(p, name, strlen(name)) == 0)
            return 1;
    return 0;
}

static double walk(const char *membership, const char *mount, const char *controller,
                   group_limit limit)
{
    char line[4096], root[256];
    double smallest = INFINITY;
    FILE *f = fopen(membership, "re");

    if (!f)
        return INFINITY;
    while (fgets(line, sizeof line, f)) { /* "0::/group", "4:cpu,cpuacct:/group" */
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = '\0';
        controllers++;
        group[strcspn(group, "\n")] = '\0';
        int version = *controllers ? 1 : 2;
        if (version == 1 && !has(controllers, controller))
            continue;
        (void)snprintf(root, sizeof root, "%s%s%s", mount, version == 1 ? "/" : "", controllers);
        smallest = fmin(smallest, smallest_limit(root, group, version, limit));
    }
    (void)fclose(f);
    return smallest;
}

double lh_cgroup_cpus(const char *membership, const char *mount)
{
    return walk(membership, mount, "cpu", cpu_limit);
}

double lh_cgroup_memory(const char *membership, const char *mount)
{
    return walk(membership, mount, "memory", memory_limit);
}
