/*
 * Products of rows cut into tiles. The work is cut twice: the outputs into panels, whose weights a
 * thread widens to f32 once, and the rows into groups of neighbouring tiles of one network, which
 * share the widened panel. Panels and pieces fix the shape of every call of the product; groups and
 * threads only say who makes the call.
 */
#include "base/mem.h"
#include "kernels/cpu/cpu.h"

/* Weights in an item of dot products: some microseconds for a row, and they fit the cache. */
#define DOT_ITEM 65536

/* Tiles of fewer rows go by dot products over the bf16 weights: for these few the product of
 * matrices would spend its time on widening and packing weights. */
#define GEMM_ROWS 16

/* Rows of a group: enough to pay for the widening, few enough to keep every thread busy. */
#define GROUP_MAX (8 * LH_CPU_PIECE)
#define ITEMS_PER_THREAD 4

typedef struct call {
    const lh_cpu_product *p;
    int64_t panel, n_panels; /* outputs of an item */
    int64_t strip;           /* outputs whose dot products are taken together */
    int64_t group_rows;
} call;

/* Rows [begin, end), which start in `tile`: whole pieces of tiles of one network. */
typedef struct group {
    int tile;
    int64_t begin, end;
} group;

static int net_of(const lh_cpu_product *p, int tile)
{
    return p->net ? p->net[tile] : 0;
}

static int64_t tile_rows(const lh_cpu_product *p, int tile)
{
    return p->tiles->start[tile + 1] - p->tiles->start[tile];
}

/* End of the piece that starts at `row` of `tile`. */
static int64_t piece_end(const lh_cpu_product *p, int tile, int64_t row)
{
    return lh_min64(row + LH_CPU_PIECE, p->tiles->start[tile + 1]);
}

/* The tile of `row`, at or after `tile`; the number of tiles when there is none. */
static int tile_of(const lh_cpu_product *p, int tile, int64_t row)
{
    while (tile < p->tiles->n && p->tiles->start[tile + 1] <= row)
        tile++;
    return tile;
}

/* Moves to the next group; 0 when there is none. The first comes after {0}. */
static int next_group(const call *c, group *g)
{
    int tile = tile_of(c->p, g->tile, g->end);

    g->tile = tile;
    g->begin = g->end;
    while (tile < c->p->tiles->n && g->end - g->begin < c->group_rows &&
           net_of(c->p, tile) == net_of(c->p, g->tile)) {
        g->end = piece_end(c->p, tile, g->end);
        tile = tile_of(c->p, tile, g->end);
    }
    return g->end > g->begin;
}

static int by_dots(const lh_cpu_product *p, int tile)
{
    return tile_rows(p, tile) < GEMM_ROWS;
}

/* The group's tiles of few rows; three rows at a time share the widening, of any tiles. */
static void run_dots(const lh_cpu_product *p, const group *g, const lh_bf16 *w, float *y, int64_t n)
{
    const float *from[3];
    float *to[3];
    int have = 0, tile = g->tile;

    for (int64_t row = g->begin; row < g->end; row++) {
        tile = tile_of(p, tile, row);
        if (!by_dots(p, tile))
            continue;
        from[have] = p->x + row * p->ldx;
        to[have++] = y + row * p->ldy;
        if (have == 3) {
            lh_cpu_row_dots(to, from, 3, w, p->n_in, n, p->accumulate);
            have = 0;
        }
    }
    if (have > 0)
        lh_cpu_row_dots(to, from, have, w, p->n_in, n, p->accumulate);
}

/* The other tiles. Returns the number of tiles that are left to run_dots. */
static int run_gemms(const lh_cpu_product *p, const group *g, const lh_bf16 *w, float *y, int64_t n,
                     float *scratch)
{
    int tile = g->tile, widened = 0, n_left = 0;

    for (int64_t row = g->begin, end; row < g->end; row = end, tile = tile_of(p, tile, row)) {
        end = piece_end(p, tile, row);
        if (by_dots(p, tile)) {
            n_left++;
            continue;
        }
        if (!widened)
            lh_cpu_widen(scratch, w, n * p->n_in);
        widened = 1;
        lh_cpu_gemm(end - row, n, p->n_in, 1.0f, p->x + row * p->ldx, p->ldx, scratch, p->n_in, 1,
                    p->accumulate ? 1.0f : 0.0f, y + row * p->ldy, p->ldy);
    }
    return n_left;
}

static void product_item(void *ctx, int64_t item, float *scratch)
{
    const call *c = ctx;
    const lh_cpu_product *p = c->p;
    int64_t begin = item % c->n_panels * c->panel;
    int part = (int)(item / c->n_panels % p->n_parts);
    int64_t n = lh_min64(c->panel, p->n_out - begin);
    group g = {0};

    for (int64_t i = item / c->n_panels / p->n_parts; i >= 0; i--)
        next_group(c, &g);
    const lh_bf16 *w = p->w[part][net_of(p, g.tile)] + begin * p->n_in;
    float *y = p->y + part * p->n_out + begin;
    if (run_gemms(p, &g, w, y, n, scratch) == 0)
        return;
    for (int64_t j = 0; j < n; j += c->strip) /* weights that stay in the cache for all rows */
        run_dots(p, &g, w + j * p->n_in, y + j, lh_min64(c->strip, n - j));
}

static int only_dots(const lh_cpu_product *p)
{
    for (int i = 0; i < p->tiles->n; i++)
        if (!by_dots(p, i))
            return 0;
    return 1;
}

lh_status lh_cpu_run_product(lh_stream *s, const lh_cpu_product *p)
{
    LH_REQUIRE(p->n_in <= LH_CPU_MAX_IN, LH_ERR_UNSUPPORTED,
               "rows of %lld weights: the cpu backend takes at most %d", (long long)p->n_in,
               LH_CPU_MAX_IN);
    int64_t n_rows = p->tiles->n > 0 ? p->tiles->start[p->tiles->n] : 0;
    call c = {.p = p};
    int64_t n_groups = 0;

    /* where there are no products of matrices a panel is nothing but an item */
    c.strip = lh_max64(1, DOT_ITEM / p->n_in);
    c.panel = only_dots(p) ? c.strip : lh_cpu_panel(p->n_in);
    c.n_panels = (p->n_out + c.panel - 1) / c.panel;
    c.group_rows = n_rows * c.n_panels * p->n_parts / (ITEMS_PER_THREAD * lh_cpu_threads(s));
    c.group_rows = lh_max64(LH_CPU_PIECE, lh_min64(c.group_rows, GROUP_MAX));
    for (group g = {0}; next_group(&c, &g);)
        n_groups++;
    lh_cpu_parallel(s, n_groups * p->n_parts * c.n_panels, product_item, &c);
    return LH_OK;
}
