#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

int lh_mul_size(size_t *out, size_t a, size_t b)
{
    if (__builtin_mul_overflow(a, b, out)) {
        *out = SIZE_MAX;
        return -1;
    }
    return 0;
}

int lh_add_size(size_t *out, size_t a, size_t b)
{
    if (__builtin_add_overflow(a, b, out)) {
        *out = SIZE_MAX;
        return -1;
    }
    return 0;
}

lh_status lh_alloc(void **out, size_t bytes, const char *what)
{
    size_t padded = 0;
    void *p = NULL;

    *out = NULL;
    if (lh_add_size(&padded, bytes, 64) == 0)
        p = aligned_alloc(64, padded / 64 * 64);
    LH_REQUIRE(p, LH_ERR_NOMEM, "%s: %zu bytes not available", what, bytes);
    memset(p, 0, bytes);
    *out = p;
    return LH_OK;
}

void *lh_carve_take(lh_carve *c, size_t count, size_t elem_bytes, size_t align)
{
    size_t bytes = 0, start = 0, end = 0;

    if (c->used == SIZE_MAX || lh_mul_size(&bytes, count, elem_bytes) != 0 ||
        lh_add_size(&start, c->used, align - 1) != 0 ||
        lh_add_size(&end, start & ~(align - 1), bytes) != 0) {
        c->used = SIZE_MAX;
        return NULL;
    }
    start &= ~(align - 1);
    c->used = end;
    return c->base ? (char *)c->base + start : NULL;
}
