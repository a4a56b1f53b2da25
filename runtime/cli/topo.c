/*
 * The machine and the ranks on it: alone, where so many ranks of one node would go; in a job of
 * several ranks, where each of them is.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "runtime/cli/cli.h"
#include "topology/topology.h"

#define MAX_CORES 4096
#define MAX_RANKS 4096

/* A rank as it tells the others. */
typedef struct where {
    char host[64];
    int32_t gpu; /* element of the devices of its machine, -1: none */
    char bus[16];
    int32_t bound_by;
    int32_t n_cores;
    unsigned char cores[MAX_CORES]; /* 1: it may run there */
    char text[512];                 /* the cores, in words */
} where;

typedef struct topo {
    lh_topology *t;
    int n_ranks, n_here; /* all, and those of this node: the first of `ranks` */
    int in_job;          /* they are running, not planned */
    where *all;          /* [n_ranks] */
    lh_topo_rank *ranks; /* [n_here] */
} topo;

static lh_status check_cores(const lh_topology *t)
{
    LH_REQUIRE(t->n_cores <= MAX_CORES, LH_ERR_UNSUPPORTED, "%d cores, expected at most %d",
               t->n_cores, MAX_CORES);
    return LH_OK;
}

static void set_gpu(where *w, const lh_topology *t, int gpu)
{
    w->gpu = gpu;
    if (gpu >= 0)
        (void)snprintf(w->bus, sizeof w->bus, "%s", t->devices[gpu].bus);
}

/* ------------------------------------------------------------------ planned */

static int default_ranks(const lh_topology *t)
{
    int n = 0;

    for (int i = 0; i < t->n_numas; i++)
        n += t->numas[i].n_cores > 0;
    return lh_topology_gpus(t) > 0 ? lh_topology_gpus(t) : n;
}

static lh_status plan_ranks(const lh_cli *c, topo *p)
{
    lh_place place;
    void *all = NULL;

    p->n_ranks = lh_opt_given(c->opts, LH_OPT_RANKS) ? (int)lh_opt_number(c->opts, LH_OPT_RANKS)
                                                     : default_ranks(p->t);
    LH_REQUIRE(p->n_ranks <= MAX_RANKS, LH_ERR_USAGE, "--ranks: %d, expected at most %d",
               p->n_ranks, MAX_RANKS);
    LH_TRY(lh_alloc(&all, (size_t)p->n_ranks * sizeof *p->all, "places of ranks"));
    p->all = all;
    for (int r = 0; r < p->n_ranks; r++) {
        where *w = &p->all[r];
        LH_TRY(lh_topology_place(&place, p->t, r, p->n_ranks));
        w->n_cores = p->t->n_cores;
        set_gpu(w, p->t, place.gpu);
        lh_place_cores(w->cores, p->t, &place);
    }
    return LH_OK;
}

/* ------------------------------------------------------------------ running */

/* Binds this rank as every command does, and looks where it is then. */
static lh_status look(const lh_cli *c, const lh_topology *t, where *w)
{
    lh_topology *after = NULL;
    lh_binding b;
    int use_gpus = lh_backend_uses_gpu(lh_opt_text(c->opts, LH_OPT_BACKEND));

    LH_TRY(lh_bind_cores(&b, &c->rank, t, use_gpus));
    LH_TRY(lh_topology_open(&after, NULL));
    (void)gethostname(w->host, sizeof w->host - 1);
    w->bound_by = (int32_t)b.by;
    w->n_cores = after->n_cores;
    set_gpu(w, t, b.gpu);
    lh_status st = check_cores(after);
    for (int i = 0; i < after->n_cores && st == LH_OK; i++)
        w->cores[i] = (unsigned char)(after->cores[i].usable != 0);
    if (st == LH_OK)
        st = lh_topology_cores_text(w->text, sizeof w->text, after, w->cores);
    lh_topology_close(after);
    return st;
}

static lh_status gather_ranks(const lh_cli *c, topo *p)
{
    lh_status st = LH_OK;
    void *mine = NULL, *all = NULL;

    p->n_ranks = c->rank.size;
    st = lh_alloc(&mine, sizeof *p->all, "the place of a rank");
    if (st == LH_OK)
        st = lh_alloc(&all, (size_t)p->n_ranks * sizeof *p->all, "places of ranks");
    if (st == LH_OK)
        st = look(c, p->t, mine);
    p->all = all;
    st = lh_job_agree(c->job, st);
    if (st == LH_OK)
        st = lh_job_gather(c->job, mine, sizeof *p->all, all);
    free(mine);
    return st;
}

/* ------------------------------------------------------------------- output */

static lh_status list_ranks(topo *p)
{
    void *ranks = NULL;

    LH_TRY(lh_alloc(&ranks, (size_t)p->n_ranks * sizeof *p->ranks, "ranks to draw"));
    p->ranks = ranks;
    for (int r = 0; r < p->n_ranks; r++)
        if (strcmp(p->all[r].host, p->all[0].host) == 0 && p->all[r].n_cores == p->t->n_cores)
            p->ranks[p->n_here++] =
                (lh_topo_rank){.rank = r, .gpu = p->all[r].gpu, .cores = p->all[r].cores};
    return LH_OK;
}

static void print_running(FILE *f, const topo *p)
{
    for (int r = 0; r < p->n_ranks && p->in_job; r++) {
        const where *w = &p->all[r];
        fprintf(f, "rank %-2d %s, ", r, w->host);
        if (w->gpu >= 0)
            fprintf(f, "gpu %d (%s), ", w->gpu, w->bus);
        fprintf(f, "%s, %s\n", w->text, lh_cli_bound_text((lh_bound_by)w->bound_by));
    }
}

/* The text to standard output, or the picture to `path`. */
static lh_status write_text(const lh_cli *c, const topo *p, const char *path)
{
    lh_status st = LH_OK;
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);

    LH_REQUIRE(f, LH_ERR_NOMEM, "the machine as text: out of memory");
    if (path) {
        lh_topology_draw(f, p->t, p->ranks, p->n_here);
    } else {
        st = lh_topology_print(f, p->t, p->in_job ? 0 : p->n_ranks);
        print_running(f, p);
    }
    if (fclose(f) != 0 && st == LH_OK)
        st = LH_FAIL(LH_ERR_NOMEM, "the machine as text: out of memory");
    if (st == LH_OK)
        st = path ? lh_cli_write_file(path, text, n) : lh_cli_print(c, text, n);
    free(text);
    return st;
}

static json_t *devices_json(const lh_topology *t, lh_topo_kind kind)
{
    json_t *list = json_array();

    for (int i = 0; i < t->n_devices; i++) {
        const lh_topo_device *d = &t->devices[i];
        if (d->kind == kind)
            json_array_append_new(list, json_pack("{s:s,s:s,s:s,s:i}", "bus", d->bus, "name",
                                                  d->name, "model", d->model, "node", d->numa));
    }
    return list;
}

static json_t *rank_json(const topo *p, int r)
{
    const where *w = &p->all[r];
    json_t *cores = json_array();

    for (int i = 0; i < w->n_cores; i++)
        if (w->cores[i])
            json_array_append_new(cores, json_integer(i));
    json_t *rank = json_pack("{s:i,s:i,s:o}", "rank", r, "gpu", (int)w->gpu, "cores", cores);
    if (p->in_job) {
        json_object_set_new(rank, "host", json_string(w->host));
        json_object_set_new(rank, "bound",
                            json_string(lh_cli_bound_text((lh_bound_by)w->bound_by)));
    }
    return rank;
}

static json_t *make_json(const topo *p)
{
    const lh_topology *t = p->t;
    json_t *nodes = json_array(), *links = json_array(), *ranks = json_array();

    for (int i = 0; i < t->n_numas; i++)
        json_array_append_new(
            nodes, json_pack("{s:I,s:i,s:i}", "bytes", (json_int_t)t->numas[i].bytes, "first_core",
                             t->numas[i].first_core, "cores", t->numas[i].n_cores));
    for (int i = 0; i < t->n_links; i++)
        json_array_append_new(links,
                              json_pack("{s:i,s:i,s:f}", "from", t->links[i].a, "to", t->links[i].b,
                                        "bytes_per_s", t->links[i].bytes_per_s));
    for (int r = 0; r < p->n_ranks; r++)
        json_array_append_new(ranks, rank_json(p, r));
    return json_pack("{s:s,s:i,s:i,s:i,s:o,s:o,s:o,s:o,s:o}", "cpu", t->cpu, "packages",
                     t->n_packages, "cores", t->n_cores, "pus", t->n_pus, "nodes", nodes, "gpus",
                     devices_json(t, LH_TOPO_GPU), "nics", devices_json(t, LH_TOPO_NIC), "links",
                     links, "ranks", ranks);
}

static lh_status show(const lh_cli *c, topo *p)
{
    const char *svg = lh_opt_text(c->opts, LH_OPT_SVG);

    LH_TRY(list_ranks(p));
    if (!lh_cli_json_only(c))
        LH_TRY(write_text(c, p, NULL));
    if (svg)
        LH_TRY(write_text(c, p, svg));
    return lh_opt_given(c->opts, LH_OPT_JSON) ? lh_cli_write_json(c, make_json(p)) : LH_OK;
}

lh_status lh_cli_topo(lh_cli *c)
{
    lh_status st = LH_OK;
    const char *xml = lh_opt_text(c->opts, LH_OPT_XML);
    topo p = {.in_job = c->rank.size > 1 && !xml && !lh_opt_given(c->opts, LH_OPT_RANKS)};

    LH_TRY(lh_cli_check_outputs(c));
    if (p.in_job || c->rank.rank == 0)
        st = lh_topology_open(&p.t, xml);
    if (st == LH_OK && p.t)
        st = check_cores(p.t);
    if (st == LH_OK && p.t && !p.in_job)
        st = plan_ranks(c, &p);
    LH_TRY_OUT(lh_job_agree(c->job, st));
    if (p.in_job)
        LH_TRY_OUT(gather_ranks(c, &p));
    if (c->rank.rank == 0)
        st = show(c, &p);
out:
    free(p.ranks);
    free(p.all);
    lh_topology_close(p.t);
    return st;
}
