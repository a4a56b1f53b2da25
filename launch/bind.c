#define _GNU_SOURCE /* sched_setaffinity */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "launch/launch.h"
#include "launch/threads_internal.h"

#define MAX_GPUS 256

/* ------------------------------------------------------------------- masks */

/* A mask of any size that the kernel has. */
typedef struct mask {
    cpu_set_t *set;
    size_t bytes;
} mask;

/* Of process `pid`, 0: this one. LH_ERR_UNAVAILABLE: it cannot be read. */
static lh_status read_mask(mask *m, pid_t pid)
{
    for (size_t n = 1024; n <= LH_MAX_CPUS; n *= 2) {
        *m = (mask){.set = CPU_ALLOC(n), .bytes = CPU_ALLOC_SIZE(n)};
        LH_REQUIRE(m->set, LH_ERR_NOMEM, "a mask of %zu CPUs", n);
        CPU_ZERO_S(m->bytes, m->set);
        if (sched_getaffinity(pid, m->bytes, m->set) == 0)
            return LH_OK;
        CPU_FREE(m->set);
        m->set = NULL;
        if (errno != EINVAL)
            break;
    }
    return LH_FAIL(LH_ERR_UNAVAILABLE, "the CPUs of process %d: %s", (int)pid, strerror(errno));
}

static int has(const mask *m, int cpu)
{
    return CPU_ISSET_S((size_t)cpu, m->bytes, m->set) != 0;
}

static int count(const mask *m)
{
    return CPU_COUNT_S(m->bytes, m->set);
}

/* --------------------------------------------------------- what may be used */

/*
 * The part of a machine that this process may use, as a machine of its own: cores with at least one
 * hardware thread in the mask, and the visible GPUs in CUDA's order. Hardware threads keep their
 * places in the whole.
 */
typedef struct part {
    lh_topology t;
    int gpu[MAX_GPUS]; /* elements of the whole machine's devices */
    void *block;
} part;

static size_t layout(part *p, void *base, const lh_topology *t)
{
    lh_carve c = {.base = base};

    p->t = (lh_topology){.n_packages = t->n_packages, .n_pus = t->n_pus, .pus = t->pus};
    p->t.numas = lh_carve_take(&c, (size_t)t->n_numas, sizeof *t->numas, 64);
    p->t.cores = lh_carve_take(&c, (size_t)t->n_cores, sizeof *t->cores, 64);
    p->t.devices = lh_carve_take(&c, MAX_GPUS, sizeof *t->devices, 64);
    return c.used;
}

static int core_usable(const lh_topology *t, const lh_topo_core *core, const mask *m)
{
    for (int i = 0; i < core->n_pus; i++)
        if (has(m, t->pus[core->first_pu + i]))
            return 1;
    return 0;
}

static void take_cores(part *p, const lh_topology *t, const mask *m)
{
    p->t.n_numas = t->n_numas;
    for (int n = 0; n < t->n_numas; n++) {
        const lh_topo_numa *numa = &t->numas[n];
        p->t.numas[n] = *numa;
        p->t.numas[n].first_core = p->t.n_cores;
        for (int c = numa->first_core; c < numa->first_core + numa->n_cores; c++)
            if (core_usable(t, &t->cores[c], m))
                p->t.cores[p->t.n_cores++] = t->cores[c];
        p->t.numas[n].n_cores = p->t.n_cores - p->t.numas[n].first_core;
    }
}

static void take_gpus(part *p, const lh_topology *t)
{
    int gpus[MAX_GPUS], n_all = lh_topology_gpus(t), n = lh_visible_gpus(gpus, MAX_GPUS);

    for (int i = 0; i < (n < 0 ? n_all : n) && i < MAX_GPUS; i++) {
        int gpu = n < 0 ? i : gpus[i];
        if (gpu >= n_all)
            return; /* CUDA ends the list at a GPU that is not there */
        p->gpu[p->t.n_devices] = gpu;
        p->t.devices[p->t.n_devices++] = t->devices[gpu];
    }
}

/* ----------------------------------------------------------------- binding */

/* The hardware threads of the rank's cores that the process may use. */
static lh_status bind_to(const part *p, const lh_place *place, const mask *allowed, int *n_pus)
{
    lh_status st = LH_OK;
    mask m = {0};

    m.bytes = allowed->bytes;
    m.set = malloc(m.bytes);
    LH_REQUIRE(m.set, LH_ERR_NOMEM, "a mask of %zu bytes", m.bytes);
    CPU_ZERO_S(m.bytes, m.set);
    for (int c = place->first_core; c < place->first_core + place->n_cores; c++)
        for (int i = 0; i < p->t.cores[c].n_pus; i++) {
            int pu = p->t.pus[p->t.cores[c].first_pu + i];
            if (has(allowed, pu))
                CPU_SET_S((size_t)pu, m.bytes, m.set);
        }
    *n_pus = count(&m);
    LH_REQUIRE_OUT(sched_setaffinity(0, m.bytes, m.set) == 0, LH_ERR_UNAVAILABLE,
                   "binding to %d cores from core %d on: %s", place->n_cores, place->first_core,
                   strerror(errno));
out:
    free(m.set);
    return st;
}

/* The launcher has bound this process if whoever started it may use more. A parent that cannot be
 * asked counts as one that may not. */
static int bound_already(const lh_rank_info *r, const mask *own)
{
    mask parent = {0};
    int bound = strcmp(r->launcher, "none") != 0 && read_mask(&parent, getppid()) == LH_OK &&
                count(own) < count(&parent);

    CPU_FREE(parent.set);
    return bound;
}

lh_status lh_bind_cores(lh_binding *out, const lh_rank_info *r, const lh_topology *t, int use_gpus)
{
    lh_status st = LH_OK;
    mask own = {0};
    part p = {0};
    lh_place place;
    lh_topology *found = NULL;

    *out = (lh_binding){.gpu = -1, .numa = -1};
    LH_TRY_OUT(read_mask(&own, 0));
    out->n_pus = count(&own);
    if (bound_already(r, &own))
        out->by = LH_BOUND_BY_LAUNCHER;
    if (!t) { /* finding out takes a moment: not where nothing can follow from it */
        if (out->by == LH_BOUND_BY_LAUNCHER || out->n_pus < r->local_size ||
            (r->local_size == 1 && !use_gpus))
            goto out;
        LH_TRY_OUT(lh_topology_open(&found, NULL));
        t = found;
    }
    LH_TRY_OUT(lh_alloc(&p.block, layout(&p, NULL, t), "usable cores"));
    (void)layout(&p, p.block, t);
    take_cores(&p, t, &own);
    if (use_gpus)
        take_gpus(&p, t);
    if (p.t.n_devices > 0)
        out->gpu = p.gpu[r->local_rank % p.t.n_devices];
    if (out->by == LH_BOUND_BY_LAUNCHER || p.t.n_cores < r->local_size ||
        (r->local_size == 1 && p.t.n_devices == 0))
        goto out;
    LH_TRY_OUT(lh_topology_place(&place, &p.t, r->local_rank, r->local_size));
    LH_TRY_OUT(bind_to(&p, &place, &own, &out->n_pus));
    out->by = LH_BOUND_BY_LONGHAUL;
    out->numa = place.numa;
    out->n_cores = place.n_cores;
out:
    free(p.block);
    CPU_FREE(own.set);
    lh_topology_close(found);
    return st;
}

/* -------------------------------------------------------------------- GPUs */

lh_status lh_choose_gpu(int *out, const lh_rank_info *r, int n_visible)
{
    LH_REQUIRE(n_visible > 0, LH_ERR_UNAVAILABLE, "rank %d sees no GPU", r->rank);
    *out = r->local_rank % n_visible;
    return LH_OK;
}

void lh_gpu_id_fill(lh_gpu_id *out, const char *bus)
{
    memset(out, 0, sizeof *out);
    (void)gethostname(out->host, sizeof out->host - 1);
    (void)strncpy(out->bus, bus, sizeof out->bus - 1);
}

lh_status lh_gpus_differ(const lh_gpu_id *ids, int size)
{
    for (int b = 1; b < size; b++)
        for (int a = 0; a < b; a++)
            LH_REQUIRE(memcmp(&ids[a], &ids[b], sizeof *ids) != 0, LH_ERR_UNAVAILABLE,
                       "ranks %d and %d would share the GPU %s of %.63s, expected a GPU for each",
                       a, b, ids[a].bus, ids[a].host);
    return LH_OK;
}
