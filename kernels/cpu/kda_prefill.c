/*
 * Chunked KDA in prefill: the work inside chunks goes over all chunks and heads at once, then
 * chains run over the chunks of each segment and head. The chunks' arithmetic is in kda_chunk.c.
 */
#include <string.h>

#include "base/mem.h"
#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/kda_chunk.h"

/* What prepare and finish have in common. */
typedef struct prefill {
    float *q, *k, *v, *g;
    const float *beta; /* NULL in finish */
    float *aqk;        /* [slots, n_heads, LH_CHUNK, LH_CHUNK] */
    float *decay;      /* [slots, n_heads, d_k] */
    int64_t n_heads, d_k, d_v;
    lh_tiles tiles;
    float *map, *add;      /* prepare, or NULL */
    float *o;              /* finish */
    const float *state_in; /* finish */
    float *state_out;      /* finish, or NULL */
} prefill;

/*
 * Chunks are numbered in slots: those of tile i from start[i] / LH_CHUNK + i on, which leaves each
 * tile room for its short last chunk. A slot may stay empty.
 */
static int64_t first_slot(const lh_tiles *t, int64_t tile)
{
    return t->start[tile] / LH_CHUNK + tile;
}

static int64_t n_slots(int64_t n_rows, int64_t n_tiles)
{
    return n_rows / LH_CHUNK + n_tiles;
}

static int64_t tile_of_slot(const lh_tiles *t, int64_t slot)
{
    int64_t low = 0, high = t->n - 1;

    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        if (first_slot(t, middle) <= slot)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

static size_t place_work(prefill *p, void *base, int64_t n_rows, int n_tiles, int n_heads, int d_k)
{
    lh_carve c = {.base = base};
    size_t count = 0, decays = 0;

    if (n_rows == 0)
        return 0;
    /* an overflow leaves SIZE_MAX, which the carve refuses */
    lh_mul_size(&count, (size_t)n_slots(n_rows, n_tiles), (size_t)n_heads);
    lh_mul_size(&decays, count, (size_t)d_k);
    p->aqk = lh_carve_take(&c, count, LH_CHUNK * LH_CHUNK * sizeof(float), 64);
    p->decay = lh_carve_take(&c, decays, sizeof(float), 64);
    return c.used;
}

size_t lh_cpu_kda_work_bytes(int64_t n_rows, int n_tiles, int n_heads, int d_k, int d_v)
{
    prefill p;

    (void)d_v;
    return place_work(&p, NULL, n_rows, n_tiles, n_heads, d_k);
}

static int64_t n_chunks(const prefill *p, int64_t tile)
{
    return (p->tiles.start[tile + 1] - p->tiles.start[tile] + LH_CHUNK - 1) / LH_CHUNK;
}

static lh_kda_chunk chunk_at(const prefill *p, int64_t tile, int64_t chunk, int64_t head)
{
    int64_t row = p->tiles.start[tile] + chunk * LH_CHUNK;
    int64_t at = row * p->n_heads + head;
    int64_t slot = (first_slot(&p->tiles, tile) + chunk) * p->n_heads + head;

    return (lh_kda_chunk){
        .q = p->q + at * p->d_k,
        .k = p->k + at * p->d_k,
        .g = p->g + at * p->d_k,
        .v = p->v + at * p->d_v,
        .beta = p->beta ? p->beta + at : NULL,
        .aqk = p->aqk + slot * LH_CHUNK * LH_CHUNK,
        .decay = p->decay + slot * p->d_k,
        .ldk = p->n_heads * p->d_k,
        .ldv = p->n_heads * p->d_v,
        .ldb = p->n_heads,
        .n = lh_min64(LH_CHUNK, p->tiles.start[tile + 1] - row),
        .d_k = p->d_k,
        .d_v = p->d_v,
    };
}

static void chunk_item(void *ctx, int64_t item, float *scratch)
{
    const prefill *p = ctx;
    int64_t slot = item / p->n_heads, tile = tile_of_slot(&p->tiles, slot);
    int64_t chunk = slot - first_slot(&p->tiles, tile);

    if (chunk < n_chunks(p, tile)) {
        lh_kda_chunk c = chunk_at(p, tile, chunk, item % p->n_heads);
        lh_cpu_kda_chunk(&c, scratch);
    }
}

/* state [d_k, n] <- diag(decay) state + k^T fresh */
static void advance(const lh_kda_chunk *c, float *state, int64_t n, const float *fresh)
{
    for (int64_t i = 0; i < c->d_k; i++)
        for (int64_t j = 0; j < n; j++)
            state[i * n + j] *= c->decay[i];
    lh_cpu_gemm_at(c->d_k, n, c->n, 1.0f, c->k, c->ldk, fresh, n, 1.0f, state, n);
}

static void copy_rows(float *to, int64_t ld_to, const float *from, int64_t ld, int64_t n, int64_t d)
{
    for (int64_t i = 0; i < n; i++)
        memcpy(to + i * ld_to, from + i * ld, (size_t)d * sizeof *to);
}

/* The segment's state from the state 0. */
static void chain_add(const prefill *p, int64_t tile, int64_t head, float *fresh)
{
    float *state = p->add + (tile * p->n_heads + head) * p->d_k * p->d_v;

    memset(state, 0, (size_t)(p->d_k * p->d_v) * sizeof *state);
    for (int64_t i = 0; i < n_chunks(p, tile); i++) {
        lh_kda_chunk c = chunk_at(p, tile, i, head);
        copy_rows(fresh, c.d_v, c.v, c.ldv, c.n, c.d_v);
        if (i > 0)
            lh_cpu_gemm(c.n, c.d_v, c.d_k, -1.0f, c.g, c.ldk, state, c.d_v, 0, 1.0f, fresh, c.d_v);
        advance(&c, state, c.d_v, fresh);
    }
}

/* The segment's map: the same chain from the identity, without the values. */
static void chain_map(const prefill *p, int64_t tile, int64_t head, float *fresh)
{
    int64_t d = p->d_k;
    float *map = p->map + (tile * p->n_heads + head) * d * d;

    memset(map, 0, (size_t)(d * d) * sizeof *map);
    for (int64_t i = 0; i < d; i++)
        map[i * d + i] = 1.0f;
    for (int64_t i = 0; i < n_chunks(p, tile); i++) {
        lh_kda_chunk c = chunk_at(p, tile, i, head);
        lh_cpu_gemm(c.n, d, d, -1.0f, c.g, c.ldk, map, d, 0, 0.0f, fresh, d);
        advance(&c, map, d, fresh);
    }
}

static void chain_item(void *ctx, int64_t item, float *scratch)
{
    const prefill *p = ctx;
    int64_t tile = item / 2 / p->n_heads, head = item / 2 % p->n_heads;

    if (item % 2 == 0)
        chain_add(p, tile, head, scratch);
    else
        chain_map(p, tile, head, scratch);
}

static void finish_item(void *ctx, int64_t item, float *scratch)
{
    const prefill *p = ctx;
    int64_t tile = item / p->n_heads, head = item % p->n_heads, last = n_chunks(p, tile) - 1;
    int64_t d = p->d_v, ldo = p->n_heads * d;
    float *state = scratch, *fresh = scratch + p->d_k * d;

    memcpy(state, p->state_in + item * p->d_k * d, (size_t)(p->d_k * d) * sizeof *state);
    for (int64_t i = 0; i <= last; i++) {
        lh_kda_chunk c = chunk_at(p, tile, i, head);
        int64_t row = p->tiles.start[tile] + i * LH_CHUNK;
        float *o = p->o + row * ldo + head * d;
        copy_rows(fresh, d, c.v, c.ldv, c.n, d);
        lh_cpu_gemm(c.n, d, c.d_k, -1.0f, c.g, c.ldk, state, d, 0, 1.0f, fresh, d);
        lh_cpu_gemm(c.n, d, c.d_k, 1.0f, c.q, c.ldk, state, d, 0, 0.0f, o, ldo);
        lh_cpu_gemm(c.n, d, c.n, 1.0f, c.aqk, LH_CHUNK, fresh, d, 0, 1.0f, o, ldo);
        if (i < last || p->state_out)
            advance(&c, state, d, fresh);
    }
    if (p->state_out)
        memcpy(p->state_out + item * p->d_k * d, state, (size_t)(p->d_k * d) * sizeof *state);
}

static lh_status check_size(const char *op, int d_k, int d_v)
{
    LH_REQUIRE(d_k <= LH_CPU_KDA_MAX_D && d_v <= LH_CPU_KDA_MAX_D, LH_ERR_UNSUPPORTED,
               "%s: d_k %d, d_v %d, expected at most %d on the CPU", op, d_k, d_v,
               LH_CPU_KDA_MAX_D);
    return LH_OK;
}

lh_status lh_cpu_kda_prepare(lh_stream *s, const lh_kda_prepare_args *a)
{
    prefill p = {
        .q = a->q,
        .k = a->k,
        .v = a->v,
        .g = a->g,
        .beta = a->beta,
        .n_heads = a->n_heads,
        .d_k = a->d_k,
        .d_v = a->d_v,
        .tiles = a->tiles,
        .map = a->map,
        .add = a->add,
    };

    LH_TRY(lh_check_kda_prepare(a));
    LH_TRY(check_size("kda_prepare", a->d_k, a->d_v));
    if (a->n_rows == 0)
        return LH_OK;
    place_work(&p, a->work, a->n_rows, a->tiles.n, a->n_heads, a->d_k);
    lh_cpu_parallel(s, n_slots(a->n_rows, a->tiles.n) * p.n_heads, chunk_item, &p);
    if (a->map)
        lh_cpu_parallel(s, 2 * a->tiles.n * p.n_heads, chain_item, &p);
    return LH_OK;
}

lh_status lh_cpu_kda_finish(lh_stream *s, const lh_kda_finish_args *a)
{
    prefill p = {
        .q = a->q,
        .k = a->k,
        .v = a->v,
        .g = a->g,
        .n_heads = a->n_heads,
        .d_k = a->d_k,
        .d_v = a->d_v,
        .tiles = a->tiles,
        .o = a->o,
        .state_in = a->state_in,
        .state_out = a->state_out,
    };

    LH_TRY(lh_check_kda_finish(a));
    LH_TRY(check_size("kda_finish", a->d_k, a->d_v));
    if (a->n_rows == 0)
        return LH_OK;
    place_work(&p, a->work, a->n_rows, a->tiles.n, a->n_heads, a->d_k);
    lh_cpu_parallel(s, a->tiles.n * p.n_heads, finish_item, &p);
    return LH_OK;
}

static void fold_item(void *ctx, int64_t head, float *scratch)
{
    const lh_kda_fold_args *a = ctx;
    int64_t d_k = a->d_k, d_v = a->d_v, at = head * d_k * d_v;

    (void)scratch;
    memcpy(a->state_out + at, a->add + at, (size_t)(d_k * d_v) * sizeof(float));
    lh_cpu_gemm(d_k, d_v, d_k, 1.0f, a->map + head * d_k * d_k, d_k, a->state_in + at, d_v, 0, 1.0f,
                a->state_out + at, d_v);
}

lh_status lh_cpu_kda_fold(lh_stream *s, const lh_kda_fold_args *a)
{
    lh_kda_fold_args args = *a;

    LH_TRY(lh_check_kda_fold(a));
    lh_cpu_parallel(s, a->n_heads, fold_item, &args);
    return LH_OK;
}
