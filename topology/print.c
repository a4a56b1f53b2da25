/* A machine as text. */
#include <stdlib.h>

#include "topology/topology.h"

static void print_bytes(FILE *out, size_t bytes)
{
    static const char unit[] = "KMGT";
    double x = (double)bytes / 1024;
    int u = 0;

    for (; x >= 1024 && u < 3; u++)
        x /= 1024;
    fprintf(out, x < 100 && x != (double)(long)x ? "%.1f %ciB" : "%.0f %ciB", x, unit[u]);
}

static void print_count(FILE *out, int n, const char *what)
{
    fprintf(out, "%d %s%s", n, what, n == 1 ? "" : "s");
}

static int by_number(const void *x, const void *y)
{
    int a = *(const int *)x, b = *(const int *)y;

    return (a > b) - (a < b);
}

/* Cores first .. first + n - 1 and their hardware threads: "cores 0-3 (PUs 0-3,8-11)". `pus` is
 * scratch. */
static void print_cores(FILE *out, const lh_topology *t, int first, int n, int *pus)
{
    int n_pus = 0;

    for (int c = first; c < first + n; c++)
        for (int p = 0; p < t->cores[c].n_pus; p++)
            pus[n_pus++] = t->pus[t->cores[c].first_pu + p];
    if (n_pus == 0) {
        fprintf(out, "no cores");
        return;
    }
    qsort(pus, (size_t)n_pus, sizeof *pus, by_number);
    fprintf(out, n > 1 ? "cores %d-%d (PUs " : "core %d (PUs ", first, first + n - 1);
    for (int i = 0, j; i < n_pus; i = j) {
        for (j = i + 1; j < n_pus && pus[j] == pus[j - 1] + 1;)
            j++;
        fprintf(out, i ? ",%d" : "%d", pus[i]);
        if (j > i + 1)
            fprintf(out, "-%d", pus[j - 1]);
    }
    fprintf(out, ")");
}

static void print_machine(FILE *out, const lh_topology *t, int *pus)
{
    int n_usable = 0;

    fprintf(out, "%s: ", t->cpu[0] ? t->cpu : "machine");
    print_count(out, t->n_packages, "package");
    fprintf(out, ", ");
    print_count(out, t->n_numas, "NUMA node");
    fprintf(out, ", ");
    print_count(out, t->n_cores, "core");
    fprintf(out, ", ");
    print_count(out, t->n_pus, "PU");
    for (int i = 0; i < t->n_cores; i++)
        n_usable += t->cores[i].usable;
    if (n_usable < t->n_cores)
        fprintf(out, "; this process may use %d", n_usable);
    fprintf(out, "\n");
    for (int i = 0; i < t->n_caches; i++) {
        fprintf(out, "cache   %d x L%d of ", t->caches[i].count, t->caches[i].level);
        print_bytes(out, t->caches[i].bytes);
        fprintf(out, ", shared by ");
        print_count(out, t->caches[i].n_pus, "PU");
        fprintf(out, "\n");
    }
    for (int i = 0; i < t->n_numas; i++) {
        fprintf(out, "node %-2d ", i);
        print_bytes(out, t->numas[i].bytes);
        fprintf(out, ", ");
        print_cores(out, t, t->numas[i].first_core, t->numas[i].n_cores, pus);
        fprintf(out, "\n");
    }
}

static void print_devices(FILE *out, const lh_topology *t)
{
    for (int i = 0; i < t->n_devices; i++) {
        const lh_topo_device *d = &t->devices[i];
        if (d->kind == LH_TOPO_GPU)
            fprintf(out, "gpu %-2d  ", i);
        else
            fprintf(out, "nic     ");
        fprintf(out, "%s", d->bus);
        if (d->name[0])
            fprintf(out, ", %s", d->name);
        if (d->model[0])
            fprintf(out, ", %s", d->model);
        if (d->numa >= 0)
            fprintf(out, ", node %d", d->numa);
        fprintf(out, "\n");
    }
}

lh_status lh_topology_print(FILE *out, const lh_topology *t, int local_size)
{
    int *pus = calloc((size_t)t->n_pus, sizeof *pus);

    LH_REQUIRE(pus, LH_ERR_NOMEM, "topology: a list of %d PUs", t->n_pus);
    print_machine(out, t, pus);
    print_devices(out, t);
    for (int r = 0; r < local_size; r++) {
        lh_place p;
        lh_status st = lh_topology_place(&p, t, r, local_size);
        LH_ASSERT(st == LH_OK);
        fprintf(out, "rank %-2d ", r);
        if (p.gpu >= 0)
            fprintf(out, "gpu %d, ", p.gpu);
        fprintf(out, "node %d, ", p.numa);
        print_cores(out, t, p.first_core, p.n_cores, pus);
        fprintf(out, "\n");
    }
    free(pus);
    return LH_OK;
}
