/* Which cores and GPUs ranks get: on a made-up machine whose two nodes are two CPUs of this one. */
#define _GNU_SOURCE /* sched_setaffinity */
#include <sched.h>
#include <unistd.h>

#include "launch/launch.h"
#include "tests/check.h"

static cpu_set_t before;
static int cpus[2], n_cpus;

/* Node n is cpus[n]; GPU 0 is next to node 1, GPU 1 to node 0. */
static lh_topo_numa numas[] = {{.n_cores = 1}, {.os_index = 1, .first_core = 1, .n_cores = 1}};
static lh_topo_core cores[] = {{.n_pus = 1}, {.package = 1, .numa = 1, .first_pu = 1, .n_pus = 1}};
static lh_topo_device devices[] = {{.kind = LH_TOPO_GPU, .bus = "0000:17:00.0", .numa = 1},
                                   {.kind = LH_TOPO_GPU, .bus = "0000:9a:00.0", .numa = 0},
                                   {.kind = LH_TOPO_NIC, .bus = "0000:9b:00.0", .numa = 0}};
static const lh_topology machine = {.n_packages = 2,
                                    .n_numas = 2,
                                    .n_cores = 2,
                                    .n_pus = 2,
                                    .n_devices = 3,
                                    .numas = numas,
                                    .cores = cores,
                                    .pus = cpus,
                                    .devices = devices};

static void restore(void)
{
    CHECK_EQ(sched_setaffinity(0, sizeof before, &before), 0);
}

/* Binds rank `local` of `size`: who chose, and the one CPU that is left, or -1. */
static lh_bound_by bind_rank(int local, int size, int use_gpus, int *cpu)
{
    lh_rank_info r = {.rank = local,
                      .size = size,
                      .local_rank = local,
                      .local_size = size,
                      .launcher = "Open MPI"};
    lh_binding b;
    cpu_set_t now;

    CHECK_OK(lh_bind_cores(&b, &r, &machine, use_gpus));
    CHECK_EQ(sched_getaffinity(0, sizeof now, &now), 0);
    CHECK_EQ(CPU_COUNT(&now), b.n_pus);
    *cpu = -1;
    for (int i = 0; i < 2 && b.n_pus == 1; i++)
        if (CPU_ISSET((size_t)cpus[i], &now))
            *cpu = cpus[i];
    return b.by;
}

static void test_cores(void)
{
    int cpu;

    for (int r = 0; r < 2; r++) {
        CHECK_EQ(bind_rank(r, 2, 0, &cpu), LH_BOUND_BY_LONGHAUL);
        CHECK_EQ(cpu, cpus[r]);
        restore();
    }
    CHECK_EQ(bind_rank(0, 3, 0, &cpu), LH_BOUND_BY_NOBODY); /* more ranks than cores */
    CHECK_EQ(bind_rank(0, 1, 0, &cpu), LH_BOUND_BY_NOBODY); /* nothing to share */
}

static void test_gpus(void)
{
    int cpu;

    (void)unsetenv("CUDA_VISIBLE_DEVICES");
    CHECK_EQ(bind_rank(0, 1, 1, &cpu), LH_BOUND_BY_LONGHAUL);
    CHECK_EQ(cpu, cpus[1]);
    restore();
    for (int r = 0; r < 2; r++) {
        CHECK_EQ(bind_rank(r, 2, 1, &cpu), LH_BOUND_BY_LONGHAUL);
        CHECK_EQ(cpu, cpus[1 - r]);
        restore();
        (void)setenv("CUDA_VISIBLE_DEVICES", "1,0", 1);
        CHECK_EQ(bind_rank(r, 2, 1, &cpu), LH_BOUND_BY_LONGHAUL);
        CHECK_EQ(cpu, cpus[r]);
        restore();
        (void)unsetenv("CUDA_VISIBLE_DEVICES");
    }
    (void)setenv("CUDA_VISIBLE_DEVICES", "1", 1);
    CHECK_EQ(bind_rank(0, 1, 1, &cpu), LH_BOUND_BY_LONGHAUL);
    CHECK_EQ(cpu, cpus[0]);
    restore();
    (void)setenv("CUDA_VISIBLE_DEVICES", "", 1); /* none */
    CHECK_EQ(bind_rank(0, 1, 1, &cpu), LH_BOUND_BY_NOBODY);
    (void)unsetenv("CUDA_VISIBLE_DEVICES");
}

/* Without a machine given: this one is looked at where ranks are to be bound. */
static void test_this_machine(void)
{
    lh_rank_info r = {.size = 2, .local_size = 2, .launcher = "none"};
    lh_topology *t = NULL;
    lh_binding b;
    int usable = 0, n_cores = 0;

    CHECK_OK(lh_topology_open(&t, NULL));
    for (int i = 0; i < t->n_cores; i++)
        usable += t->cores[i].usable;
    lh_topology_close(t);
    for (r.local_rank = 0; r.local_rank < 2; r.local_rank++) {
        CHECK_OK(lh_bind_cores(&b, &r, NULL, 0));
        CHECK_EQ(b.by, usable >= 2 ? LH_BOUND_BY_LONGHAUL : LH_BOUND_BY_NOBODY);
        n_cores += b.n_cores;
        restore();
    }
    CHECK(usable < 2 || (n_cores >= 2 && n_cores <= usable));
    r = (lh_rank_info){.size = 70000, .local_size = 70000, .launcher = "none"};
    CHECK_OK(lh_bind_cores(&b, &r, NULL, 0));
    CHECK_EQ(b.by, LH_BOUND_BY_NOBODY);
    r = (lh_rank_info){.size = 1, .local_size = 1, .launcher = "none"};
    CHECK_OK(lh_bind_cores(&b, &r, NULL, 0));
    CHECK_EQ(b.by, LH_BOUND_BY_NOBODY);
}

/* A launcher that binds leaves a smaller mask than its own. */
static void test_launcher(void)
{
    cpu_set_t one, parent;
    int cpu;

    CHECK_EQ(sched_getaffinity(getppid(), sizeof parent, &parent), 0);
    CPU_ZERO(&one);
    CPU_SET((size_t)cpus[0], &one);
    CHECK_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    CHECK_EQ(bind_rank(0, 1, 1, &cpu),
             CPU_COUNT(&parent) > 1 ? LH_BOUND_BY_LAUNCHER : LH_BOUND_BY_LONGHAUL);
    CHECK_EQ(cpu, cpus[0]);
    restore();
}

static void test_visible(void)
{
    static const struct {
        const char *text;
        int n, gpus[3];
    } cases[] = {{"0", 1, {0}},      {"3,1,0", 3, {3, 1, 0}}, {"", 0, {0}},
                 {"2,-1,1", 1, {2}}, {"GPU-8b1c", -1, {0}},   {"1,x", -1, {0}}};

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int gpus[8];
        (void)setenv("CUDA_VISIBLE_DEVICES", cases[i].text, 1);
        CHECK_EQ(lh_visible_gpus(gpus, 8), cases[i].n);
        for (int k = 0; k < cases[i].n; k++)
            CHECK_EQ(gpus[k], cases[i].gpus[k]);
    }
    (void)unsetenv("CUDA_VISIBLE_DEVICES");
    CHECK_EQ(lh_visible_gpus(NULL, 0), -1);
}

static void test_shared_gpus(void)
{
    lh_rank_info r = {.rank = 5, .size = 8, .local_rank = 5, .local_size = 8};
    lh_gpu_id ids[3];
    char want[256];
    int gpu = -1;

    CHECK_OK(lh_choose_gpu(&gpu, &r, 8));
    CHECK_EQ(gpu, 5);
    CHECK_OK(lh_choose_gpu(&gpu, &r, 1)); /* its own, and the only one that it sees */
    CHECK_EQ(gpu, 0);
    CHECK_STATUS(lh_choose_gpu(&gpu, &r, 0), LH_ERR_UNAVAILABLE);
    lh_gpu_id_fill(&ids[0], "0000:17:00.0");
    lh_gpu_id_fill(&ids[1], "0000:9a:00.0");
    lh_gpu_id_fill(&ids[2], "0000:17:00.0");
    CHECK(ids[0].host[0]);
    CHECK_OK(lh_gpus_differ(ids, 2));
    CHECK_STATUS(lh_gpus_differ(ids, 3), LH_ERR_UNAVAILABLE);
    (void)snprintf(want, sizeof want,
                   "ranks 0 and 2 would share the GPU 0000:17:00.0 of %s, expected a GPU for each",
                   ids[0].host);
    CHECK_STR(lh_last_error(), want);
    (void)strncpy(ids[2].host, "elsewhere", sizeof ids[2].host);
    CHECK_OK(lh_gpus_differ(ids, 3));
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    CHECK_EQ(sched_getaffinity(0, sizeof before, &before), 0);
    for (int i = 0; i < CPU_SETSIZE && n_cpus < 2; i++)
        if (CPU_ISSET((size_t)i, &before))
            cpus[n_cpus++] = i;
    if (n_cpus == 2) {
        RUN(test_cores);
        RUN(test_gpus);
        RUN(test_launcher);
    }
    RUN(test_this_machine);
    RUN(test_visible);
    RUN(test_shared_gpus);
    return check_done();
}
