/*
 * Weights bound to fields: pointers into the mappings, copies where a mapping cannot serve.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/mem.h"
#include "runtime/checkpoint_internal.h"

#define TOUCH_BYTES ((size_t)16 << 20)

typedef struct expert_range {
    int begin, end;
} expert_range;

/* The tensor itself, or a copy in the carve (whose pieces are NULL while it measures). */
static const void *usable(const checkpoint_entry *e, lh_carve *carve)
{
    const lh_st_tensor *t = e->tensor;
    size_t align = strcmp(t->dtype, "F32") == 0 ? sizeof(float) : sizeof(lh_bf16);

    if (e->widen) {
        size_t n = t->bytes / sizeof(lh_bf16);
        float *wide = lh_carve_take(carve, n, sizeof *wide, 64);
        for (size_t i = 0; wide && i < n; i++) {
            lh_bf16 x;
            memcpy(&x, (const char *)t->data + i * sizeof x, sizeof x);
            wide[i] = lh_bf16_to_f32(x);
        }
        return wide;
    }
    if ((uintptr_t)t->data % align == 0)
        return t->data;
    void *copy = lh_carve_take(carve, t->bytes, 1, 64);
    return copy ? memcpy(copy, t->data, t->bytes) : NULL;
}

/* Measures with base NULL, places and fills with a block of that size. */
static size_t layout(const lh_checkpoint *c, expert_range experts, void *base, lh_weights **out)
{
    lh_carve carve = {.base = base};
    lh_weights *w = lh_weights_carve(&carve, &c->dims);

    for (int64_t i = 0; i < c->n_entries; i++) {
        const checkpoint_entry *e = &c->entries[i];
        if (!lh_holds_expert(e->expert, experts.begin, experts.end))
            continue;
        const void *data = usable(e, &carve);
        if (base)
            lh_weights_set(w, e->layer, e->expert, e->slot, data);
    }
    *out = w;
    return carve.used;
}

/* Reads one byte of every page, so that the kernel reads all of it. */
static void touch(const checkpoint_entry *e, size_t page, lh_meter *meter)
{
    const lh_st_tensor *t = e->tensor;
    const volatile unsigned char *p = t->data;

    for (size_t at = 0; at < t->bytes; at += TOUCH_BYTES) {
        size_t n = t->bytes - at < TOUCH_BYTES ? t->bytes - at : TOUCH_BYTES;
        uintptr_t begin = (uintptr_t)(p + at) / page * page, end = (uintptr_t)(p + at + n);
        /* Advice: many pages at a time instead of one fault after the other. */
        (void)madvise((void *)begin, end - begin, MADV_WILLNEED);
        for (size_t i = at; i < at + n; i += page)
            (void)p[i];
        (void)p[at + n - 1];
        lh_meter_add(meter, n);
    }
}

lh_status lh_checkpoint_bind(lh_checkpoint *c, int expert_begin, int expert_end,
                             const lh_weights **weights, size_t *dense_bytes, size_t *expert_bytes,
                             void (*progress)(void *user, const lh_progress *p), void *user)
{
    expert_range experts = {expert_begin, expert_end};
    size_t page = (size_t)sysconf(_SC_PAGESIZE), dense = 0, expert = 0;
    lh_weights *w = NULL;
    lh_meter meter;

    LH_REQUIRE(0 <= expert_begin && expert_begin <= expert_end && expert_end <= c->dims.n_experts,
               LH_ERR_INVALID, "experts %d to %d of %d", expert_begin, expert_end,
               c->dims.n_experts);
    LH_REQUIRE(!c->block, LH_ERR_INVALID, "the checkpoint's weights are bound already");
    for (int64_t i = 0; i < c->n_entries; i++)
        if (lh_holds_expert(c->entries[i].expert, expert_begin, expert_end))
            *(c->entries[i].expert < 0 ? &dense : &expert) += c->entries[i].tensor->bytes;
    LH_TRY(lh_alloc(&c->block, layout(c, experts, NULL, &w), "weights"));
    lh_meter_start(&meter, "load", dense + expert, progress, user);
    for (int64_t i = 0; i < c->n_entries; i++)
        if (lh_holds_expert(c->entries[i].expert, expert_begin, expert_end))
            touch(&c->entries[i], page, &meter);
    (void)layout(c, experts, c->block, &w);
    lh_meter_end(&meter);
    *weights = w;
    *dense_bytes = dense;
    *expert_bytes = expert;
    return LH_OK;
}
