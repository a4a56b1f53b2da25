/*
 * The struct of pointers to weights, and where a tensor's pointer lies in it.
 */
#include <string.h>

#include "base/mem.h"
#include "runtime/model.h"

lh_weights *lh_weights_carve(lh_carve *c, const lh_dims *d)
{
    lh_weights *w = lh_carve_take(c, 1, sizeof *w, 64);
    lh_layer_weights *layers = lh_carve_take(c, (size_t)d->n_layers, sizeof *layers, 64);

    if (w)
        w->layers = layers;
    for (int i = d->n_dense_layers; i < d->n_layers; i++) {
        void *gate = lh_carve_take(c, (size_t)d->n_experts, sizeof(void *), 64);
        void *up = lh_carve_take(c, (size_t)d->n_experts, sizeof(void *), 64);
        void *down = lh_carve_take(c, (size_t)d->n_experts, sizeof(void *), 64);
        if (layers) {
            layers[i].w_gate = gate;
            layers[i].w_up = up;
            layers[i].w_down = down;
        }
    }
    return w;
}

/* Pointers of all kinds go through bytes: their types differ, their sizes do not. */

static char *find_slot(const lh_weights *w, int layer, int expert, size_t slot)
{
    const void *in = layer < 0 ? (const void *)w : (const void *)&w->layers[layer];
    char *at = (char *)(uintptr_t)in + slot, *array;

    if (expert < 0)
        return at;
    memcpy(&array, at, sizeof array);
    return array + (size_t)expert * sizeof(void *);
}

void lh_weights_set(lh_weights *w, int layer, int expert, size_t slot, const void *pointer)
{
    memcpy(find_slot(w, layer, expert, slot), &pointer, sizeof pointer);
}

const void *lh_weights_get(const lh_weights *w, int layer, int expert, size_t slot)
{
    const void *pointer;

    memcpy(&pointer, find_slot(w, layer, expert, slot), sizeof pointer);
    return pointer;
}

size_t lh_expected_elements(const lh_expected *t)
{
    size_t n = 1;

    for (int i = 0; i < t->n_dims; i++)
        n *= (size_t)t->dims[i];
    return n;
}

size_t lh_expected_bytes(const lh_expected *t)
{
    return lh_expected_elements(t) * (t->allow_bf16 ? sizeof(lh_bf16) : sizeof(float));
}
