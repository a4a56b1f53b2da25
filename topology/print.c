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

/* Rising numbers: "0-3,8". */
static void print_ranges(FILE *out, const int *x, int n)
{
    for (int i = 0, j; i < n; i = j) {
        for (j = i + 1; j < n && x[j] == x[j - 1] + 1;)
            j++;
        fprintf(out, i ? ",%d" : "%d", x[i]);
        if (j > i + 1)
            fprintf(out, "-%d", x[j - 1]);
    }
}

/* `numbers` is scratch for n_pus numbers. */
static void print_cores(FILE *out, const lh_topology *t, const unsigned char *cores, int *numbers)
{
    int n_cores = 0, n_pus = 0;

    for (int c = 0; c < t->n_cores; c++)
        if (cores[c])
            numbers[n_cores++] = c;
    if (n_cores == 0) {
        fprintf(out, "no cores");
        return;
    }
    fprintf(out, n_cores > 1 ? "cores " : "core ");
    print_ranges(out, numbers, n_cores);
    for (int c = 0; c < t->n_cores; c++)
        for (int p = 0; cores[c] && p < t->cores[c].n_pus; p++)
            numbers[n_pus++] = t->pus[t->cores[c].first_pu + p];
    qsort(numbers, (size_t)n_pus, sizeof *numbers, by_number);
    fprintf(out, " (PUs ");
    print_ranges(out, numbers, n_pus);
    fprintf(out, ")");
}

/* Scratch for print_cores, and marks of the cores; for free() also after a failure. */
static lh_status make_scratch(const lh_topology *t, int **numbers, unsigned char **cores)
{
    *numbers = calloc((size_t)t->n_pus, sizeof **numbers);
    *cores = calloc((size_t)t->n_cores, 1);
    if (*numbers && *cores)
        return LH_OK;
    return LH_FAIL(LH_ERR_NOMEM, "topology: a list of %d PUs", t->n_pus);
}

lh_status lh_topology_cores_text(char *out, size_t size, const lh_topology *t,
                                 const unsigned char *cores)
{
    int *numbers = calloc((size_t)t->n_pus, sizeof *numbers);
    FILE *f = fmemopen(out, size, "w");
    lh_status st = numbers && f ? LH_OK : LH_FAIL(LH_ERR_NOMEM, "topology: a list of PUs");

    if (st == LH_OK)
        print_cores(f, t, cores, numbers);
    if (f)
        (void)fclose(f); /* text that does not fit is cut */
    out[size - 1] = '\0';
    free(numbers);
    return st;
}

static void print_machine(FILE *out, const lh_topology *t, int *numbers, unsigned char *cores)
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
        lh_place_cores(
            cores, t,
            &(lh_place){.first_core = t->numas[i].first_core, .n_cores = t->numas[i].n_cores});
        print_cores(out, t, cores, numbers);
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

/* For each GPU the others that it reaches equally fast: "nvlink  gpu 0 to 1-3, 450 GB/s". */
static void print_links(FILE *out, const lh_topology *t, int *others)
{
    for (int gpu = 0; gpu < lh_topology_gpus(t); gpu++)
        for (int first = 0; first < t->n_links; first++) {
            const lh_topo_link *l = &t->links[first];
            int n = 0, seen = 0;
            if (l->a != gpu)
                continue;
            for (int i = 0; i < t->n_links; i++)
                if (t->links[i].a == gpu && t->links[i].bytes_per_s == l->bytes_per_s) {
                    seen |= i < first;
                    others[n++] = t->links[i].b;
                }
            if (seen)
                continue;
            fprintf(out, "nvlink  gpu %d to ", gpu);
            print_ranges(out, others, n);
            fprintf(out, ", %.0f GB/s\n", l->bytes_per_s / 1e9);
        }
}

lh_status lh_topology_print(FILE *out, const lh_topology *t, int local_size)
{
    int *numbers = NULL, *others = calloc((size_t)t->n_devices + 1, sizeof *others);
    unsigned char *cores = NULL;
    lh_status st = LH_OK;

    LH_REQUIRE_OUT(others, LH_ERR_NOMEM, "topology: a list of %d devices", t->n_devices);
    LH_TRY_OUT(make_scratch(t, &numbers, &cores));
    print_machine(out, t, numbers, cores);
    print_devices(out, t);
    print_links(out, t, others);
    for (int r = 0; r < local_size; r++) {
        lh_place p;
        LH_TRY_OUT(lh_topology_place(&p, t, r, local_size));
        fprintf(out, "rank %-2d ", r);
        if (p.gpu >= 0)
            fprintf(out, "gpu %d, ", p.gpu);
        fprintf(out, "node %d, ", p.numa);
        lh_place_cores(cores, t, &p);
        print_cores(out, t, cores, numbers);
        fprintf(out, "\n");
    }
out:
    free(others);
    free(numbers);
    free(cores);
    return st;
}
