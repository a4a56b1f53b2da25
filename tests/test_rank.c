#define _GNU_SOURCE /* sched_setaffinity */
#include <math.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launch/launch.h"
#include "launch/threads_internal.h"
#include "tests/check.h"

static const char *const variables[] = {"OMPI_COMM_WORLD_RANK",
                                        "OMPI_COMM_WORLD_SIZE",
                                        "OMPI_COMM_WORLD_LOCAL_RANK",
                                        "OMPI_COMM_WORLD_LOCAL_SIZE",
                                        "SLURM_PROCID",
                                        "SLURM_NTASKS",
                                        "SLURM_STEP_NUM_TASKS",
                                        "SLURM_LOCALID",
                                        "SLURM_NODEID",
                                        "SLURM_STEP_TASKS_PER_NODE",
                                        "PMI_RANK",
                                        "PMI_SIZE",
                                        "MPI_LOCALRANKID",
                                        "MPI_LOCALNRANKS"};

/* The environment is exactly `assignments`: "NAME=value" strings, NULL at the end. */
static lh_status read_with(lh_rank_info *out, const char *const *assignments)
{
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++)
        (void)unsetenv(variables[i]);
    for (; *assignments; assignments++) {
        char name[64];
        size_t len = strcspn(*assignments, "=");
        memcpy(name, *assignments, len);
        name[len] = '\0';
        (void)setenv(name, *assignments + len + 1, 1);
    }
    return lh_rank_info_read(out);
}
#define READ(...) read_with(&r, (const char *const[]){__VA_ARGS__, NULL})

static void check_info(const lh_rank_info *r, const char *launcher, int rank, int size,
                       int local_rank, int local_size)
{
    CHECK_STR(r->launcher, launcher);
    CHECK_EQ(r->rank, rank);
    CHECK_EQ(r->size, size);
    CHECK_EQ(r->local_rank, local_rank);
    CHECK_EQ(r->local_size, local_size);
}

#define OMPI(rank, size, local_rank, local_size)                                                   \
    "OMPI_COMM_WORLD_RANK=" rank, "OMPI_COMM_WORLD_SIZE=" size,                                    \
        "OMPI_COMM_WORLD_LOCAL_RANK=" local_rank, "OMPI_COMM_WORLD_LOCAL_SIZE=" local_size
#define STEP(rank, size, local_rank, node, list)                                                   \
    "SLURM_PROCID=" rank, "SLURM_STEP_NUM_TASKS=" size, "SLURM_LOCALID=" local_rank,               \
        "SLURM_NODEID=" node, "SLURM_STEP_TASKS_PER_NODE=" list

static void test_launchers(void)
{
    lh_rank_info r;

    CHECK_OK(read_with(&r, (const char *const[]){NULL}));
    check_info(&r, "none", 0, 1, 0, 1);
    CHECK_OK(READ(OMPI("5", "8", "1", "4")));
    check_info(&r, "Open MPI", 5, 8, 1, 4);
    CHECK_OK(READ(STEP("9", "11", "1", "2", "4(x2),3")));
    check_info(&r, "Slurm", 9, 11, 1, 3);
    CHECK_OK(READ(STEP("1", "2", "1", "0", "2")));
    check_info(&r, "Slurm", 1, 2, 1, 2);
    CHECK_OK(READ("PMI_RANK=2", "PMI_SIZE=4"));
    check_info(&r, "PMI", 2, 4, 2, 4);
    CHECK_OK(READ("PMI_RANK=2", "PMI_SIZE=4", "MPI_LOCALRANKID=0", "MPI_LOCALNRANKS=2"));
    check_info(&r, "PMI", 2, 4, 0, 2);
}

static void test_priority(void)
{
    lh_rank_info r;

    /* mpirun inside a Slurm job, and the job's own shell */
    CHECK_OK(
        READ(OMPI("1", "2", "1", "2"), STEP("0", "4", "0", "0", "4"), "PMI_RANK=3", "PMI_SIZE=4"));
    check_info(&r, "Open MPI", 1, 2, 1, 2);
    CHECK_OK(READ(STEP("3", "4", "3", "0", "4"), "PMI_RANK=3", "PMI_SIZE=4"));
    check_info(&r, "Slurm", 3, 4, 3, 4);
    CHECK_OK(READ("SLURM_PROCID=0", "SLURM_NTASKS=8", "SLURM_LOCALID=0", "SLURM_NODEID=0"));
    check_info(&r, "none", 0, 1, 0, 1);
    CHECK_OK(READ(STEP("0", "1", "0", "0", "1")));
    check_info(&r, "none", 0, 1, 0, 1);
}

static void test_nonsense(void)
{
    lh_rank_info r;

    CHECK_STATUS(READ("OMPI_COMM_WORLD_RANK=0"), LH_ERR_USAGE);
    CHECK_STR(lh_last_error(),
              "OMPI_COMM_WORLD_SIZE is not set, though the launcher's other variables are");
    CHECK_STATUS(READ(OMPI("8", "8", "0", "1")), LH_ERR_USAGE);
    CHECK_STR(lh_last_error(), "OMPI_COMM_WORLD_RANK is '8', expected a number from 0 to 7");
    CHECK_STATUS(READ(OMPI("-1", "8", "0", "1")), LH_ERR_USAGE);
    CHECK_STATUS(READ(OMPI("", "8", "0", "1")), LH_ERR_USAGE);
    CHECK_STATUS(READ(OMPI("1x", "8", "0", "1")), LH_ERR_USAGE);
    CHECK_STATUS(READ(OMPI("0", "0", "0", "1")), LH_ERR_USAGE);
    CHECK_STATUS(READ(OMPI("0", "4294967297", "0", "1")), LH_ERR_USAGE);
    CHECK_STATUS(READ(OMPI("1", "8", "2", "2")), LH_ERR_USAGE);
    CHECK_STATUS(READ(OMPI("1", "8", "1", "9")), LH_ERR_USAGE);
    CHECK_STATUS(READ(STEP("1", "4", "1", "2", "2(x2)")), LH_ERR_USAGE);
    CHECK_STATUS(READ(STEP("1", "4", "1", "0", "2(x2")), LH_ERR_USAGE);
    CHECK_STATUS(READ(STEP("1", "4", "1", "0", "(x2)")), LH_ERR_USAGE);
    CHECK_STATUS(READ(STEP("1", "4", "1", "0", "")), LH_ERR_USAGE);
    CHECK_STATUS(READ(STEP("1", "four", "1", "0", "4")), LH_ERR_USAGE);
    CHECK_STATUS(READ("PMI_RANK=4", "PMI_SIZE=4"), LH_ERR_USAGE);
}

static char dir[256];

static void write_file(const char *name, const char *text)
{
    char path[320];

    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    CHECK(f && fputs(text, f) >= 0);
    if (f)
        (void)fclose(f);
}

static void make_dir(const char *name)
{
    char path[320];

    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    (void)mkdir(path, 0700);
}

static double cpus(const char *membership)
{
    char path[320];

    write_file("self", membership);
    (void)snprintf(path, sizeof path, "%s/self", dir);
    return lh_cgroup_cpus(path, dir);
}

/* A made-up tree of control groups, below the build folder. */
static void test_cgroups(void)
{
    (void)snprintf(dir, sizeof dir, "%s/tests/cgroup", LH_BINARY_DIR);
    (void)mkdir(dir, 0700);
    make_dir("job");
    make_dir("job/step");
    write_file("cpu.max", "max 100000\n");
    write_file("job/cpu.max", "250000 100000\n");
    write_file("job/step/cpu.max", "max 100000\n");
    CHECK(isinf(cpus("0::/\n")));
    CHECK(cpus("0::/job\n") == 2.5);
    CHECK(cpus("0::/job/step\n") == 2.5); /* a parent's limit holds */
    CHECK(cpus("0::/job/step/not/visible\n") == 2.5);
    write_file("job/step/cpu.max", "150000 100000\n");
    CHECK(cpus("0::/job/step\n") == 1.5);
    CHECK(isinf(cpus("no colon\n")));
    CHECK(isinf(lh_cgroup_cpus("/nonexistent", dir)));

    make_dir("cpu,cpuacct");
    make_dir("cpu,cpuacct/pod");
    write_file("cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
    write_file("cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    write_file("cpu,cpuacct/pod/cpu.cfs_quota_us", "300000\n");
    write_file("cpu,cpuacct/pod/cpu.cfs_period_us", "100000\n");
    CHECK(cpus("11:cpuset:/pod\n4:cpu,cpuacct:/pod\n1:name=systemd:/\n0::/\n") == 3);
    CHECK(isinf(cpus("4:cpu,cpuacct:/other\n")));
    CHECK(isinf(cpus("4:cpuset:/pod\n")));
}

static double memory(const char *membership)
{
    char path[320];

    write_file("self", membership);
    (void)snprintf(path, sizeof path, "%s/self", dir);
    return lh_cgroup_memory(path, dir);
}

static void test_memory(void)
{
    (void)snprintf(dir, sizeof dir, "%s/tests/cgroup-memory", LH_BINARY_DIR);
    (void)mkdir(dir, 0700);
    make_dir("job");
    make_dir("job/step");
    write_file("job/memory.max", "1000\n");
    write_file("job/memory.current", "900\n");
    write_file("job/memory.stat", "anon 1\ninactive_file 300\nactive_file 50\n");
    write_file("job/step/memory.max", "max\n");
    write_file("job/step/memory.current", "7\n");
    CHECK(isinf(memory("0::/\n")));
    CHECK(memory("0::/job/step\n") == 450); /* a parent's limit holds */
    write_file("job/step/memory.max", "5\n");
    CHECK(memory("0::/job/step\n") == 0);

    make_dir("memory");
    make_dir("memory/pod");
    write_file("memory/memory.limit_in_bytes", "9223372036854771712\n");
    write_file("memory/memory.usage_in_bytes", "4096\n");
    write_file("memory/pod/memory.limit_in_bytes", "800\n");
    write_file("memory/pod/memory.usage_in_bytes", "500\n");
    write_file("memory/pod/memory.stat", "inactive_file 200\ntotal_inactive_file 100\n");
    CHECK(memory("11:cpuset:/pod\n4:memory:/pod\n0::/\n") == 400);
    CHECK(lh_host_memory() > 0 && lh_host_memory() < (size_t)1 << 60);
}

static void test_threads(void)
{
    lh_rank_info r = {.size = 1, .local_size = 1, .launcher = "none"};
    int alone = lh_default_threads(&r), online = (int)sysconf(_SC_NPROCESSORS_ONLN);
    cpu_set_t before, one;

    CHECK(alone >= 1 && alone <= online);
    r.local_size = 2;
    CHECK_EQ(lh_default_threads(&r), alone < 2 ? 1 : alone / 2);
    r.local_size = 100000;
    CHECK_EQ(lh_default_threads(&r), 1);

    /* A mask of one CPU, as from a launcher that binds. */
    CHECK_EQ(sched_getaffinity(0, sizeof before, &before), 0);
    CPU_ZERO(&one);
    for (size_t i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++)
        if (CPU_ISSET(i, &before))
            CPU_SET(i, &one);
    CHECK_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    r.local_size = 1;
    CHECK_EQ(lh_default_threads(&r), 1);
    CHECK_EQ(sched_setaffinity(0, sizeof before, &before), 0);
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    RUN(test_launchers);
    RUN(test_priority);
    RUN(test_nonsense);
    RUN(test_cgroups);
    RUN(test_memory);
    RUN(test_threads);
    return check_done();
}
