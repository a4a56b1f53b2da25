/* Machines from files, where ranks go on them, and the text. The files are hwloc's description of
 * synthetic machines; the devices of gpus.xml were added by hand. */
#include "tests/check.h"
#include "topology/topology.h"

static const char *machine_path(const char *name)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/tests/topo/%s", LH_SOURCE_DIR, name);
    return path;
}

static lh_topology *open_machine(const char *name)
{
    lh_topology *t = NULL;
    CHECK_OK(lh_topology_open(&t, machine_path(name)));
    if (!t)
        abort();
    return t;
}

/* Ranks 0 .. size - 1 get these GPUs, first cores and numbers of cores. */
static void check_places(const lh_topology *t, int size, const int (*want)[3])
{
    for (int r = 0; r < size; r++) {
        lh_place p;
        CHECK_OK(lh_topology_place(&p, t, r, size));
        CHECK_MSG(p.gpu == want[r][0] && p.first_core == want[r][1] && p.n_cores == want[r][2],
                  "rank %d of %d: gpu %d, cores %d + %d, expected gpu %d, cores %d + %d", r, size,
                  p.gpu, p.first_core, p.n_cores, want[r][0], want[r][1], want[r][2]);
        CHECK_EQ(p.numa, t->cores[p.first_core].numa);
    }
}

static void test_gpus(void)
{
    lh_topology *t = open_machine("gpus.xml");

    CHECK_EQ(t->n_packages, 2);
    CHECK_EQ(t->n_numas, 2);
    CHECK_EQ(t->n_cores, 8);
    CHECK_EQ(t->n_pus, 16);
    CHECK(t->numas[1].bytes == (size_t)256 << 30);
    CHECK_EQ(t->numas[1].first_core, 4);
    CHECK_EQ(t->cores[5].package, 1);
    CHECK_EQ(t->cores[5].n_pus, 2);
    CHECK_EQ(t->pus[t->cores[5].first_pu], 5);
    CHECK_EQ(t->pus[t->cores[5].first_pu + 1], 13);
    CHECK_EQ(t->n_caches, 3);
    CHECK_EQ(t->caches[0].level, 3);
    CHECK_EQ(t->caches[1].count, 8);
    CHECK_EQ(t->caches[1].n_pus, 2);
    CHECK_EQ(t->n_devices, 4); /* not the display of the board's controller */
    CHECK_STR(t->devices[0].name, "nvml0");
    CHECK_STR(t->devices[0].model, "GH100 [H100 SXM5 80GB]");
    CHECK_STR(t->devices[1].bus, "0000:9a:00.0");
    CHECK_EQ(t->devices[1].numa, 1);
    CHECK_EQ(t->devices[2].kind, LH_TOPO_NIC);
    CHECK_STR(t->devices[2].name, "ib0");
    CHECK_STR(t->devices[3].name, "mlx5_0");
    CHECK_EQ(lh_topology_gpus(t), 2);
    CHECK_EQ(t->n_links, 1);
    CHECK(t->links[0].a == 0 && t->links[0].b == 1 && t->links[0].bytes_per_s == 450e9);
    check_places(t, 1, (const int[][3]){{0, 0, 4}});
    check_places(t, 2, (const int[][3]){{0, 0, 4}, {1, 4, 4}});
    check_places(t, 3, (const int[][3]){{0, 0, 2}, {1, 4, 4}, {0, 2, 2}});
    t->devices[0].numa = -1; /* far from both: dealt as if without a GPU */
    check_places(t, 2, (const int[][3]){{0, 0, 4}, {1, 4, 4}});
    lh_topology_close(t);
}

static void test_nodes(void)
{
    lh_topology *t = open_machine("two-nodes.xml"); /* 2 packages, 1 node of 6 cores each */

    CHECK_EQ(t->n_devices, 0);
    CHECK_EQ(t->n_cores, 12);
    check_places(t, 1, (const int[][3]){{-1, 0, 12}});
    check_places(t, 2, (const int[][3]){{-1, 0, 6}, {-1, 6, 6}});
    check_places(t, 3, (const int[][3]){{-1, 0, 3}, {-1, 3, 3}, {-1, 6, 6}});
    check_places(t, 4, (const int[][3]){{-1, 0, 3}, {-1, 3, 3}, {-1, 6, 3}, {-1, 9, 3}});
    int used[12] = {0};
    for (int r = 0; r < 30; r++) { /* more ranks than cores: every core, none more than 3 times */
        lh_place p;
        CHECK_OK(lh_topology_place(&p, t, r, 30));
        CHECK_EQ(p.n_cores, 1);
        CHECK(p.first_core >= 0 && p.first_core < 12 && ++used[p.first_core] <= 3);
    }
    for (int c = 0; c < 12; c++)
        CHECK(used[c] > 0);
    lh_place p;
    CHECK_STATUS(lh_topology_place(&p, t, 3, 3), LH_ERR_INVALID);
    CHECK_STATUS(lh_topology_place(&p, t, 0, 0), LH_ERR_INVALID);
    lh_topology_close(t);
}

static void test_odd_machines(void)
{
    lh_topology *t = open_machine("no-cores.xml"); /* 3 nodes of 1 PU, no cores */

    CHECK_EQ(t->n_cores, 3);
    check_places(t, 2, (const int[][3]){{-1, 0, 1}, {-1, 1, 2}});
    t->numas[0].n_cores = 0; /* memory alone */
    check_places(t, 2, (const int[][3]){{-1, 1, 1}, {-1, 2, 1}});
    lh_topology_close(t);
    CHECK_STATUS(lh_topology_open(&t, machine_path("missing.xml")), LH_ERR_OPEN);
    CHECK_STATUS(lh_topology_open(&t, machine_path("../check.h")), LH_ERR_DATA);
    lh_topology_close(NULL);
}

static void test_this_machine(void)
{
    lh_topology *t = NULL;
    int usable = 0, pus = 0;

    CHECK_OK(lh_topology_open(&t, NULL));
    if (!t)
        return;
    for (int c = 0; c < t->n_cores; c++) {
        usable += t->cores[c].usable;
        pus += t->cores[c].n_pus;
        CHECK(t->cores[c].numa >= 0 && t->cores[c].numa < t->n_numas);
    }
    CHECK(usable > 0);
    CHECK_EQ(pus, t->n_pus);
    lh_topology_close(t);
}

static void test_print(void)
{
    static const char want[] = "machine: 2 packages, 2 NUMA nodes, 8 cores, 16 PUs\n"
                               "cache   2 x L3 of 32 MiB, shared by 8 PUs\n"
                               "cache   8 x L2 of 1 MiB, shared by 2 PUs\n"
                               "cache   8 x L1 of 32 KiB, shared by 2 PUs\n"
                               "node 0  256 GiB, cores 0-3 (PUs 0-3,8-11)\n"
                               "node 1  256 GiB, cores 4-7 (PUs 4-7,12-15)\n"
                               "gpu 0   0000:17:00.0, nvml0, GH100 [H100 SXM5 80GB], node 0\n"
                               "gpu 1   0000:9a:00.0, nvml1, GH100 [H100 SXM5 80GB], node 1\n"
                               "nic     0000:18:00.0, ib0, MT2910 [ConnectX-7], node 0\n"
                               "nic     0000:18:00.0, mlx5_0, MT2910 [ConnectX-7], node 0\n"
                               "nvlink  gpu 0 to 1, 450 GB/s\n"
                               "rank 0  gpu 0, node 0, cores 0-1 (PUs 0-1,8-9)\n"
                               "rank 1  gpu 1, node 1, cores 4-7 (PUs 4-7,12-15)\n"
                               "rank 2  gpu 0, node 0, cores 2-3 (PUs 2-3,10-11)\n";
    lh_topology *t = open_machine("gpus.xml");
    char *text = NULL;
    size_t length = 0;
    FILE *f = open_memstream(&text, &length);

    CHECK(f);
    if (f) {
        CHECK_OK(lh_topology_print(f, t, 3));
        fclose(f);
        CHECK_STR(text, want);
    }
    free(text);
    lh_topology_close(t);
}

static int count_of(const char *text, const char *part)
{
    int n = 0;

    for (; (text = strstr(text, part)); text += strlen(part))
        n++;
    return n;
}

/* Every core, GPU and rank once, and well-formed as far as counting tells. */
static void check_drawing(const char *name, int n_ranks)
{
    lh_topology *t = open_machine(name);
    unsigned char cores[8][16] = {{0}};
    lh_topo_rank ranks[8];
    char *text = NULL, part[64];
    size_t length = 0;
    FILE *f = open_memstream(&text, &length);

    for (int r = 0; r < n_ranks; r++) {
        lh_place p;
        CHECK_OK(lh_topology_place(&p, t, r, n_ranks));
        lh_place_cores(cores[r], t, &p);
        ranks[r] = (lh_topo_rank){.rank = r, .gpu = p.gpu, .cores = cores[r]};
    }
    CHECK(f);
    if (f) {
        snprintf(t->cpu, sizeof t->cpu, "a <b> & \"c\"");
        lh_topology_draw(f, t, ranks, n_ranks);
        fclose(f);
        CHECK(strncmp(text, "<svg ", 5) == 0 && strcmp(text + length - 7, "</svg>\n") == 0);
        CHECK_EQ(count_of(text, "<text "), count_of(text, "</text>"));
        CHECK_EQ(count_of(text, "<"), count_of(text, ">"));
        CHECK_EQ(count_of(text, "a &#60;b&#62; &#38; &#34;c&#34;"), 1);
        for (int c = 0; c < t->n_cores; c++) {
            snprintf(part, sizeof part, ">%d</text>", c);
            CHECK_EQ(count_of(text, part), 1);
        }
        for (int r = 0; r < n_ranks; r++) {
            snprintf(part, sizeof part, ">rank %d", r);
            CHECK_EQ(count_of(text, part), 1);
        }
        CHECK_EQ(count_of(text, ">gpu "), lh_topology_gpus(t));
    }
    free(text);
    lh_topology_close(t);
}

static void test_draw(void)
{
    check_drawing("gpus.xml", 3);
    check_drawing("two-nodes.xml", 8);
    check_drawing("no-cores.xml", 0);
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    RUN(test_gpus);
    RUN(test_nodes);
    RUN(test_odd_machines);
    RUN(test_this_machine);
    RUN(test_print);
    RUN(test_draw);
    return check_done();
}
