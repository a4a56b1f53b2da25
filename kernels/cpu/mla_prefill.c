/*
 * Attention of MLA over a prompt, expanded, key tile by key tile.
 *
 * All queries of the call pass over one tile of keys before the next tile is expanded, so the
 * expanded keys and values of one tile are all that is ever kept of them; the sums of the values
 * grow in the output itself. Every shape of a product follows from absolute positions and the cut
 * of the queries into pieces, so a row's bits do too.
 */
#include <string.h>

#include "base/mem.h"
#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/softmax.h"

#define PIECE_ROWS                                                                                 \
    128          /* queries that are multiplied at a time, counted from their tile's start         \
                  */
#define PANEL 64 /* outputs of W_kvb that one item expands */

_Static_assert(PIECE_ROWS *LH_KEY_TILE <= LH_CPU_SCRATCH, "the scores of a piece fit the scratch");
_Static_assert(LH_KEY_TILE % LH_SOFTMAX_LANES == 0, "a row of scores has room for whole lanes");

typedef struct piece {
    int64_t row, n_rows;
    int64_t position; /* of its first row */
} piece;

typedef struct workspace {
    float *keys;       /* [n_heads, LH_KEY_TILE, d_nope + d_rope] */
    float *values;     /* [n_heads, LH_KEY_TILE, d_v] */
    lh_softmax *state; /* [n_rows, n_heads] */
    piece *pieces;     /* [n_rows] are enough: none is empty */
} workspace;

typedef struct pass {
    const lh_mla_prefill_args *a;
    workspace w;
    int64_t n_pieces;
    int64_t first_piece; /* the first with a key in this tile */
    int64_t tile;        /* position of the tile's first key */
} pass;

static size_t layout(workspace *w, void *base, int64_t n_rows, int n_heads, int d_qk, int d_v)
{
    lh_carve c = {.base = base};
    size_t heads = (size_t)n_heads;

    w->keys = lh_carve_take(&c, heads * LH_KEY_TILE, (size_t)d_qk * sizeof(float), 64);
    w->values = lh_carve_take(&c, heads * LH_KEY_TILE, (size_t)d_v * sizeof(float), 64);
    w->state = lh_carve_take(&c, (size_t)n_rows, heads * sizeof(lh_softmax), 64);
    w->pieces = lh_carve_take(&c, (size_t)n_rows, sizeof(piece), 64);
    return c.used;
}

size_t lh_cpu_mla_prefill_work_bytes(int64_t n_rows, int n_heads, int d_nope, int d_rope, int d_v,
                                     int d_latent)
{
    workspace w;

    (void)d_latent;
    return n_rows == 0 ? 0 : layout(&w, NULL, n_rows, n_heads, d_nope + d_rope, d_v);
}

static int64_t cut_pieces(piece *pieces, const lh_mla_prefill_args *a)
{
    int64_t n = 0;

    for (int t = 0, run = 0; t < a->tiles.n; t++) {
        int64_t end = a->tiles.start[t + 1];
        for (int64_t row = a->tiles.start[t]; row < end; row += PIECE_ROWS) {
            while (row >= a->run_start[run + 1])
                run++;
            pieces[n++] = (piece){.row = row,
                                  .n_rows = lh_min64(PIECE_ROWS, end - row),
                                  .position = a->run_position[run] + row - a->run_start[run]};
        }
    }
    return n;
}

static int64_t last_position(const piece *p)
{
    return p->position + p->n_rows - 1;
}

static int panels(int n_out)
{
    return (n_out + PANEL - 1) / PANEL;
}

/* One panel of keys or values of one head, for the whole tile: rows that no query uses yet are
 * computed too, so that the products have one shape. */
static void expand(void *ctx, int64_t item, float *scratch)
{
    const pass *p = ctx;
    const lh_mla_prefill_args *a = p->a;
    int64_t per_head = panels(a->d_nope) + panels(a->d_v);
    int64_t head = item / per_head, panel = item % per_head;
    int is_value = panel >= panels(a->d_nope);
    int64_t begin = (panel - (is_value ? panels(a->d_nope) : 0)) * PANEL;
    int64_t n = lh_min64(PANEL, (is_value ? a->d_v : a->d_nope) - begin);
    int64_t d_qk = a->d_nope + a->d_rope, ld = a->d_latent + a->d_rope;
    int64_t w_row = head * (a->d_nope + a->d_v) + (is_value ? a->d_nope : 0) + begin;
    const float *latent = (const float *)a->latent + p->tile * ld;
    float *keys = p->w.keys + head * LH_KEY_TILE * d_qk;
    float *values = p->w.values + head * LH_KEY_TILE * a->d_v;

    lh_cpu_widen(scratch, a->w_kvb + w_row * a->d_latent, n * a->d_latent);
    lh_cpu_gemm(LH_KEY_TILE, n, a->d_latent, 1.0f, latent, ld, scratch, a->d_latent, 1, 0.0f,
                (is_value ? values : keys) + begin, is_value ? a->d_v : d_qk);
    if (!is_value && begin == 0)
        for (int64_t i = 0; i < LH_KEY_TILE; i++)
            memcpy(keys + i * d_qk + a->d_nope, latent + i * ld + a->d_latent,
                   (size_t)a->d_rope * sizeof(float));
}

static void scale_row(float *x, int64_t n, float factor)
{
    for (int64_t i = 0; i < n; i++)
        x[i] *= factor;
}

/* One piece of queries of one head against the tile. */
static void attend(void *ctx, int64_t item, float *scores)
{
    const pass *p = ctx;
    const lh_mla_prefill_args *a = p->a;
    int64_t n_pieces = p->n_pieces - p->first_piece;
    int64_t head = item / n_pieces;
    const piece *pc = &p->w.pieces[p->first_piece + item % n_pieces];
    int64_t d_qk = a->d_nope + a->d_rope, ldq = a->n_heads * d_qk;
    int64_t ldo = (int64_t)a->n_heads * a->d_v;
    const float *q = (const float *)a->q + pc->row * ldq + head * d_qk;
    const float *keys = p->w.keys + head * LH_KEY_TILE * d_qk;
    const float *values = p->w.values + head * LH_KEY_TILE * a->d_v;
    float *o = (float *)a->o + pc->row * ldo + head * a->d_v;
    lh_softmax *state = p->w.state + pc->row * a->n_heads + head;
    int first_tile = p->tile == 0;
    int64_t n_keys = lh_min64(LH_KEY_TILE, last_position(pc) + 1 - p->tile);
    int64_t begin = lh_max64(0, p->tile - pc->position); /* rows before it lie before the tile */
    float scale = 1.0f / sqrtf((float)d_qk);

    lh_cpu_gemm(pc->n_rows - begin, n_keys, d_qk, scale, q + begin * ldq, ldq, keys, d_qk, 1, 0.0f,
                scores, LH_KEY_TILE);
    for (int64_t i = begin; i < pc->n_rows; i++) {
        float *s = scores + (i - begin) * LH_KEY_TILE;
        int64_t seen = lh_min64(n_keys, pc->position + i + 1 - p->tile);
        if (first_tile)
            state[i * a->n_heads] = lh_softmax_empty;
        float factor = lh_softmax_take(&state[i * a->n_heads], s, seen);
        for (int64_t j = seen; j < n_keys; j++)
            s[j] = 0;
        if (!first_tile && factor != 1.0f)
            scale_row(o + i * ldo, a->d_v, factor);
    }
    lh_cpu_gemm(pc->n_rows - begin, a->d_v, n_keys, 1.0f, scores, LH_KEY_TILE, values, a->d_v, 0,
                first_tile ? 0.0f : 1.0f, o + begin * ldo, ldo);
    if (last_position(pc) < p->tile + LH_KEY_TILE)
        for (int64_t i = 0; i < pc->n_rows; i++)
            scale_row(o + i * ldo, a->d_v, 1.0f / state[i * a->n_heads].sum);
}

lh_status lh_cpu_mla_prefill(lh_stream *s, const lh_mla_prefill_args *a)
{
    pass p = {.a = a};

    LH_TRY(lh_check_mla_prefill(a));
    LH_REQUIRE((int64_t)a->d_latent * PANEL <= LH_CPU_SCRATCH, LH_ERR_UNSUPPORTED,
               "mla_prefill: d_latent is %d, the cpu takes up to %d", a->d_latent,
               LH_CPU_SCRATCH / PANEL);
    if (a->n_rows == 0)
        return LH_OK;
    layout(&p.w, a->work, a->n_rows, a->n_heads, a->d_nope + a->d_rope, a->d_v);
    p.n_pieces = cut_pieces(p.w.pieces, a);
    for (;; p.tile += LH_KEY_TILE) {
        while (p.first_piece < p.n_pieces && last_position(&p.w.pieces[p.first_piece]) < p.tile)
            p.first_piece++;
        if (p.first_piece == p.n_pieces)
            return LH_OK;
        lh_cpu_parallel(s, (int64_t)a->n_heads * (panels(a->d_nope) + panels(a->d_v)), expand, &p);
        lh_cpu_parallel(s, a->n_heads * (p.n_pieces - p.first_piece), attend, &p);
    }
}
