/*
 * Weights to the memory of a device that cannot read the host's: one arena, in the order of the
 * layers, with pointers bound to the same fields.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "runtime/engine_internal.h"

#define WEIGHT_ALIGN                                                                               \
    16 /* what kernels load at a time; every supported tensor is a multiple of it */

static int is_router_bias(const lh_expected *t)
{
    return t->allow_f32 && t->allow_bf16;
}

size_t lh_weight_arena_bytes(const lh_geometry *g)
{
    lh_carve c = {0};
    lh_expected t;

    for (int64_t i = 0; i < lh_expected_count(g->d); i++) {
        lh_expected_tensor(&t, g->d, i);
        if (lh_holds_expert(t.expert, g->experts.begin, g->experts.end) && !is_router_bias(&t))
            (void)lh_carve_take(&c, lh_expected_bytes(&t), 1, WEIGHT_ALIGN);
    }
    return c.used;
}

/* The struct and its pointer arrays, on the host, empty. */
static lh_status make_struct(lh_weights **out, const lh_dims *d)
{
    lh_carve c = {0};
    void *block = NULL;

    (void)lh_weights_carve(&c, d);
    LH_TRY(lh_alloc(&block, c.used, "weight pointers"));
    c = (lh_carve){.base = block};
    *out = lh_weights_carve(&c, d);
    return LH_OK;
}

/* The pointers to this rank's experts, for operations that choose experts on the device. */
lh_status lh_upload_expert_pointers(lh_engine *e)
{
    const lh_weights *w = e->w;
    int64_t own = lh_range_size(e->g.experts), first = e->g.experts.begin;

    for (int l = e->d.n_dense_layers; l < e->d.n_layers; l++) {
        const lh_bf16 **kinds[3] = {w->layers[l].w_gate, w->layers[l].w_up, w->layers[l].w_down};
        for (int kind = 0; kind < 3; kind++)
            LH_TRY(e->k->device->upload(e->s, e->ws.expert_at + ((int64_t)l * 3 + kind) * own,
                                        kinds[kind] + first, (size_t)own * sizeof(void *)));
    }
    return LH_OK;
}

lh_status lh_weights_upload(lh_engine *e, const lh_weights *host, lh_weights **out)
{
    const lh_device_ops *device = e->k->device;
    lh_carve c = {.base = e->arena_weights};
    lh_progress p = {.phase = "upload", .total = (int64_t)lh_weight_arena_bytes(&e->g)};
    double start = lh_log_seconds();
    lh_weights *w = NULL;
    lh_expected t;

    LH_TRY(make_struct(&w, &e->d));
    *out = w; /* the engine frees it, whatever follows */
    for (int64_t i = 0; i < lh_expected_count(&e->d); i++) {
        void *to;

        lh_expected_tensor(&t, &e->d, i);
        if (!lh_holds_expert(t.expert, e->g.experts.begin, e->g.experts.end))
            continue;
        const void *from = lh_weights_get(host, t.layer, t.expert, t.slot);
        if (is_router_bias(&t)) {
            to = e->ws.router_bias + (int64_t)t.layer * e->d.n_experts;
            LH_TRY(device->load(e->s, to, from, (size_t)e->d.n_experts * sizeof(float)));
        } else {
            to = lh_carve_take(&c, lh_expected_bytes(&t), 1, WEIGHT_ALIGN);
            LH_TRY(device->load(e->s, to, from, lh_expected_bytes(&t)));
            p.done += (int64_t)lh_expected_bytes(&t);
        }
        lh_weights_set(w, t.layer, t.expert, t.slot, to);
        p.seconds = lh_log_seconds() - start;
        if (e->progress)
            e->progress(e->user, &p);
    }
    LH_TRY(device->sync(e->s));
    p.seconds = lh_log_seconds() - start;
    LH_LOG_I("load", "%.1f GB to the device in %.1f s, %.2f GB/s", (double)p.total * 1e-9,
             p.seconds, p.seconds > 0 ? (double)p.total * 1e-9 / p.seconds : 0.0);
    return LH_OK;
}
