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

static size_t tensor_bytes(const lh_expected *t)
{
    size_t n = t->allow_bf16 ? sizeof(lh_bf16) : sizeof(float);
    for (int i = 0; i < t->n_dims; i++)
        n *= (size_t)t->dims[i];
    return n;
}

static int is_router_bias(const lh_expected *t)
{
    return t->allow_f32 && t->allow_bf16;
}

static int wanted(const lh_geometry *g, const lh_expected *t)
{
    return t->expert < 0 || (t->expert >= g->experts.begin && t->expert < g->experts.end);
}

/* Where the pointer to tensor t lies in `w`. */
static void *pointer_slot(const lh_weights *w, const lh_expected *t)
{
    char *in =
        (char *)(uintptr_t)(t->layer < 0 ? (const void *)w : (const void *)&w->layers[t->layer]);
    void *array;

    if (t->expert < 0)
        return in + t->slot;
    memcpy(&array, in + t->slot, sizeof array);
    return (char *)array + (size_t)t->expert * sizeof(void *);
}

size_t lh_weight_arena_bytes(const lh_geometry *g)
{
    lh_carve c = {0};
    lh_expected t;

    for (int64_t i = 0; i < lh_expected_count(g->d); i++) {
        lh_expected_tensor(&t, g->d, i);
        if (wanted(g, &t) && !is_router_bias(&t))
            (void)lh_carve_take(&c, tensor_bytes(&t), 1, WEIGHT_ALIGN);
    }
    return c.used;
}

/* The struct and its pointer arrays, on the host, empty. */
static lh_status make_struct(lh_weights **out, const lh_dims *d)
{
    lh_carve c = {0};
    void *block = NULL;

    for (int pass = 0; pass < 2; pass++) {
        lh_weights *w = lh_carve_take(&c, 1, sizeof *w, 64);
        lh_layer_weights *layers = lh_carve_take(&c, (size_t)d->n_layers, sizeof *layers, 64);
        for (int l = d->n_dense_layers; l < d->n_layers; l++)
            for (int kind = 0; kind < 3; kind++) {
                void *array = lh_carve_take(&c, (size_t)d->n_experts, sizeof(void *), 64);
                if (layers)
                    *(kind == 0   ? &layers[l].w_gate
                      : kind == 1 ? &layers[l].w_up
                                  : &layers[l].w_down) = array;
            }
        if (pass == 0) {
            LH_TRY(lh_alloc(&block, c.used, "weight pointers"));
            c = (lh_carve){.base = block};
        } else {
            w->layers = layers;
            *out = w;
        }
    }
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
        const void *from;
        void *to;

        lh_expected_tensor(&t, &e->d, i);
        if (!wanted(&e->g, &t))
            continue;
        memcpy(&from, pointer_slot(host, &t), sizeof from);
        if (is_router_bias(&t)) {
            to = e->ws.router_bias + (int64_t)t.layer * e->d.n_experts;
            LH_TRY(device->load(e->s, to, from, (size_t)e->d.n_experts * sizeof(float)));
        } else {
            to = lh_carve_take(&c, tensor_bytes(&t), 1, WEIGHT_ALIGN);
            LH_TRY(device->load(e->s, to, from, tensor_bytes(&t)));
            p.done += (int64_t)tensor_bytes(&t);
        }
        memcpy(pointer_slot(w, &t), &to, sizeof to);
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
