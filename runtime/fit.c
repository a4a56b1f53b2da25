/*
 * Does it fit: the plans of all ranks against the memory that is there, before anything is loaded.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "launch/launch.h"
#include "runtime/engine_internal.h"

/* What ranks that share memory need together. */
typedef struct lh_need {
    size_t bytes, has;
    int n_ranks;
} lh_need;

static lh_need add_up_sharing(const lh_fit *f, int rank)
{
    const lh_room *own = &f->rooms[rank];
    int shared = own->host[0] != '\0';
    lh_need need = {.has = own->bytes};
    size_t dense = 0; /* mapped by all, in memory once */

    for (int r = shared ? 0 : rank; r < (shared ? f->settings.size : rank + 1); r++) {
        const lh_room *room = &f->rooms[r];
        size_t mapped = room->is_mapped ? room->plan.weights_dense : 0;
        if (strcmp(room->host, own->host) != 0)
            continue;
        (void)lh_add_size(&need.bytes, need.bytes, room->plan.total - mapped);
        dense = mapped > dense ? mapped : dense;
        need.has = room->bytes < need.has ? room->bytes : need.has;
        need.n_ranks++;
    }
    (void)lh_add_size(&need.bytes, need.bytes, dense);
    return need;
}

int lh_fits(const lh_fit *f, int rank)
{
    lh_need need = add_up_sharing(f, rank);
    return need.bytes <= need.has;
}

/* Plans every rank anew for a context, and asks whether all fit. */
static int fits_with(lh_fit *f, int64_t context)
{
    lh_settings s = f->settings;
    lh_geometry g;

    s.context = context;
    for (s.rank = 0; s.rank < s.size; s.rank++) {
        s.n_threads = f->rooms[s.rank].n_threads;
        if (lh_geometry_make(&g, f->d, f->k, f->k->act_bytes, &s) != LH_OK)
            return 0;
        lh_rank_plan_arenas(&f->rooms[s.rank].plan, &g);
    }
    for (int r = 0; r < s.size; r++)
        if (!lh_fits(f, r))
            return 0;
    return 1;
}

int64_t lh_largest_context(lh_fit *f)
{
    int64_t segment = f->settings.segment ? f->settings.segment : LH_DEFAULT_SEGMENT;
    int64_t low = 0, high = lh_round_up(f->d->max_context, segment) / segment;

    if (fits_with(f, f->d->max_context))
        return f->d->max_context;
    while (high - low > 1) { /* low segments fit or are none, high do not */
        int64_t middle = low + (high - low) / 2;
        if (fits_with(f, middle * segment))
            low = middle;
        else
            high = middle;
    }
    return low * segment;
}

lh_status lh_fit_refuse(lh_fit *f, int rank)
{
    lh_need need = add_up_sharing(f, rank);
    int64_t largest = lh_largest_context(f);
    char who[128], context[96] = "no context would fit";

    if (need.n_ranks == 1)
        (void)snprintf(who, sizeof who, "rank %d needs", rank);
    else
        (void)snprintf(who, sizeof who, "rank %d and %d others on %.63s need", rank,
                       need.n_ranks - 1, f->rooms[rank].host);
    if (largest > 0)
        (void)snprintf(context, sizeof context, "the largest context that would fit is %lld tokens",
                       (long long)largest);
    return LH_FAIL(LH_ERR_NOMEM, "the plan does not fit: %s %zu bytes, %zu are there (%s); %s", who,
                   need.bytes, need.has, f->rooms[rank].source, context);
}

/* What this rank has for its plan. */
static lh_status look(lh_room *out, lh_engine *e, const lh_engine_opts *o)
{
    const lh_device_ops *device = e->k->device;
    const char *source = "--memory";
    lh_gpu_id id;

    memset(out, 0, sizeof *out);
    out->plan = e->plan;
    out->n_threads = e->g.n_threads;
    out->bytes = o->memory_bytes;
    if (!o->memory_bytes && device->available) {
        source = "free on its GPU";
        LH_TRY(device->available(e->s, &out->bytes));
        out->bytes += e->k->stream_bytes(e->g.n_threads); /* planned, and taken already */
    } else if (!o->memory_bytes) {
        source = "free memory";
        out->bytes = lh_host_memory();
        out->is_mapped = !lh_is_synthetic(o);
        lh_gpu_id_fill(&id, "");
        memcpy(out->host, id.host, sizeof out->host);
    }
    (void)snprintf(out->source, sizeof out->source, "%s", source);
    return LH_OK;
}

lh_status lh_engine_check_fit(lh_engine *e, const lh_engine_opts *o)
{
    lh_status st = LH_OK;
    size_t n = (size_t)e->comm->size;
    lh_room mine, *rooms = calloc(n, sizeof *rooms);
    lh_fit f = {.d = &e->d, .k = e->k, .settings = lh_engine_settings(e, o), .rooms = rooms};

    st = rooms ? look(&mine, e, o) : LH_FAIL(LH_ERR_NOMEM, "memory of %zu ranks", n);
    LH_TRY_OUT(lh_comm_agree(e->boot, st));
    LH_TRY_OUT(lh_comm_allgather(e->boot, &mine, sizeof mine, rooms, NULL));
    if (!lh_fits(&f, e->comm->rank))
        st = lh_fit_refuse(&f, e->comm->rank);
    st = lh_comm_agree(e->boot, st);
out:
    free(rooms);
    return st;
}
