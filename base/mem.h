/*
 * Host memory: checked sizes, aligned blocks, and the carve, by which one function both measures
 * and places a layout.
 */
#ifndef LH_BASE_MEM_H
#define LH_BASE_MEM_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* *out = a * b, or a + b. Return 0, or -1 (and *out = SIZE_MAX) when the result does not fit. For
 * sizes from a file. */
int lh_mul_size(size_t *out, size_t a, size_t b);
int lh_add_size(size_t *out, size_t a, size_t b);

/*
 * A zeroed block of `bytes` (0 gives a valid, empty block), aligned to 64 bytes. The caller frees
 * it with free(). LH_ERR_NOMEM: `what` names the block in the message.
 */
lh_status lh_alloc(void **out, size_t bytes, const char *what);

/*
 * A carve walks through a block and hands out pieces. With base NULL it only measures: every piece
 * is NULL, `used` is the size of the block that the same calls will need. A size that overflows
 * makes `used` SIZE_MAX, and every piece after it NULL.
 *
 *     size_t layout(struct ws *w, void *base) { lh_carve c = {.base = base}; w->a =
 * lh_carve_take(&c, n, 4, 64); return c.used; }
 */
typedef struct lh_carve {
    void *base;
    size_t used;
} lh_carve;

/* The next piece: count elements of elem_bytes each, at a multiple of `align` (a power of two, at
 * most 256). */
void *lh_carve_take(lh_carve *c, size_t count, size_t elem_bytes, size_t align);

/* x rounded up to a multiple of m > 0. */
static inline int64_t lh_round_up(int64_t x, int64_t m)
{
    return (x + m - 1) / m * m;
}

static inline int64_t lh_min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t lh_max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

#ifdef __cplusplus
}
#endif
#endif
