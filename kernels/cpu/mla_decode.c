/*
 * Attention of MLA for single tokens, absorbed, in three passes: the queries into latent space;
 * ranges of keys, each for itself; the ranges merged and brought to the values' space.
 *
 * A row of the cache is read from memory once for all heads of an item, but every head's sums are
 * its own loops over its own numbers, so its bits do not depend on the heads beside it.
 */
#include <string.h>

#include "base/mem.h"
#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/softmax.h"

#define LANES 8             /* sums of a dot product */
#define ROWS 8              /* rows of a dot product at a time: their sums stay in registers */
#define COLUMNS (8 * LANES) /* of a weighted sum at a time, for the same reason */
#define BLOCK 64 /* keys of a step: their rows stay in the second cache while the heads pass */
#define MAX_HEADS (LH_CPU_SCRATCH / (BLOCK + 1)) /* their scores and factors fit the scratch */

_Static_assert(LH_MLA_RANGE_KEYS % BLOCK == 0 && BLOCK % LH_SOFTMAX_LANES == 0,
               "whole blocks and lanes");

typedef float vec __attribute__((vector_size(LANES * sizeof(float))));

typedef struct workspace {
    float *q;       /* [n_seq, n_heads, d_latent + d_rope]: scaled, in latent space */
    float *partial; /* [ranges of all sequences, lh_mla_partial_size()] */
    int64_t *first; /* [n_seq + 1]: ranges of the sequences before */
} workspace;

typedef struct pass {
    const lh_mla_decode_args *a;
    workspace w;
    int64_t first_range; /* of those that are summed here */
    int heads_per_item;
    int items_per_range;
} pass;

static size_t layout(workspace *w, void *base, int64_t n_seq, int64_t n_keys, int n_heads,
                     int d_latent, int d_rope)
{
    lh_carve c = {.base = base};
    size_t heads = (size_t)n_heads, ranges;

    lh_mul_size(&ranges, (size_t)n_seq, (size_t)lh_mla_most_ranges(n_keys));
    w->q =
        lh_carve_take(&c, (size_t)n_seq, heads * (size_t)(d_latent + d_rope) * sizeof(float), 64);
    w->partial = lh_carve_take(&c, ranges,
                               (size_t)lh_mla_partial_size(n_heads, d_latent) * sizeof(float), 64);
    w->first = lh_carve_take(&c, (size_t)n_seq + 1, sizeof(int64_t), 64);
    return c.used;
}

static float *sums_of(const pass *p, int64_t range, int64_t head)
{
    const lh_mla_decode_args *a = p->a;
    return p->w.partial + range * lh_mla_partial_size(a->n_heads, a->d_latent) + head * a->d_latent;
}

static lh_softmax *state_of(const pass *p, int64_t range, int64_t head)
{
    return (lh_softmax *)sums_of(p, range, p->a->n_heads) + head;
}

size_t lh_cpu_mla_decode_work_bytes(int64_t n_seq, int64_t n_keys, int n_heads, int d_latent,
                                    int d_rope)
{
    workspace w;

    return n_seq == 0 ? 0 : layout(&w, NULL, n_seq, n_keys, n_heads, d_latent, d_rope);
}

static vec load(const float *x)
{
    vec v;
    memcpy(&v, x, sizeof v);
    return v;
}

static void store(float *x, vec v)
{
    memcpy(x, &v, sizeof v);
}

/* Pass 1, one head of one sequence: q_nope W_uk, and the rest of q as it is, scaled. */
static void absorb(void *ctx, int64_t item, float *scratch)
{
    const pass *p = ctx;
    const lh_mla_decode_args *a = p->a;
    int64_t head = item % a->n_heads, d_latent = a->d_latent, d_qk = a->d_nope + a->d_rope;
    const lh_bf16 *w = a->w_kvb + head * (a->d_nope + a->d_v) * d_latent;
    const float *q = (const float *)a->q + item * d_qk;
    float *out = p->w.q + item * (d_latent + a->d_rope);
    float scale = 1.0f / sqrtf((float)d_qk);

    (void)scratch;
    memset(out, 0, (size_t)d_latent * sizeof(float));
    for (int64_t i = 0; i < a->d_nope; i++)
        for (int64_t j = 0; j < d_latent; j++)
            out[j] += q[i] * scale * lh_bf16_to_f32(w[i * d_latent + j]);
    for (int64_t i = 0; i < a->d_rope; i++)
        out[d_latent + i] = q[a->d_nope + i] * scale;
}

/* out[r] = q . x[r] for `rows` (a constant) rows; for each of them the same sums in the same order.
 */
static inline void dot_rows(float *out, const float *q, const float *x, int64_t width, int rows)
{
    vec sum[ROWS] = {{0}};
    int64_t k = 0;

    for (; k + LANES <= width; k += LANES) {
        vec v = load(q + k);
        for (int r = 0; r < rows; r++)
            sum[r] += v * load(x + r * width + k);
    }
    for (int r = 0; r < rows; r++) {
        for (int64_t i = k; i < width; i++)
            sum[r][i - k] += q[i] * x[r * width + i];
        vec s = sum[r];
        out[r] = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
    }
}

/* sum = sum * factor + weights x, for `columns` <= COLUMNS of the rows of x. */
static void add_rows(float *sum, float factor, const float *weight, const float *x, int64_t n_rows,
                     int64_t width, int64_t columns)
{
    vec v[COLUMNS / LANES];

    if (columns < COLUMNS) {
        for (int64_t c = 0; c < columns; c++) {
            sum[c] *= factor;
            for (int64_t r = 0; r < n_rows; r++)
                sum[c] += weight[r] * x[r * width + c];
        }
        return;
    }
    for (int i = 0; i < COLUMNS / LANES; i++)
        v[i] = load(sum + i * LANES) * factor;
    for (int64_t r = 0; r < n_rows; r++)
        for (int i = 0; i < COLUMNS / LANES; i++)
            v[i] += weight[r] * load(x + r * width + i * LANES);
    for (int i = 0; i < COLUMNS / LANES; i++)
        store(sum + i * LANES, v[i]);
}

/* The sequence that a range belongs to. */
static int64_t find_seq(const int64_t *first, int64_t n_seq, int64_t range)
{
    int64_t low = 0, high = n_seq;

    while (high - low > 1) {
        int64_t mid = low + (high - low) / 2;
        if (first[mid] <= range)
            low = mid;
        else
            high = mid;
    }
    return low;
}

/* Some heads of one sequence against one range of its keys. */
typedef struct part {
    int n_heads;
    int64_t d_latent, width;
    const float *q;
    float *sum, *scores, *factor; /* scores [n_heads, BLOCK] */
    lh_softmax *state;
} part;

/* One block of keys. Rows, then columns are the outer loops: what the heads share is in the first
 * cache when the second head comes. */
static void add_block(const part *p, const float *x, int64_t n_keys)
{
    int64_t r = 0;

    for (; r + ROWS <= n_keys; r += ROWS)
        for (int h = 0; h < p->n_heads; h++)
            dot_rows(p->scores + h * BLOCK + r, p->q + h * p->width, x + r * p->width, p->width,
                     ROWS);
    for (; r < n_keys; r++)
        for (int h = 0; h < p->n_heads; h++)
            dot_rows(p->scores + h * BLOCK + r, p->q + h * p->width, x + r * p->width, p->width, 1);
    for (int h = 0; h < p->n_heads; h++)
        p->factor[h] = lh_softmax_take(&p->state[h], p->scores + h * BLOCK, n_keys);
    for (int64_t c = 0; c < p->d_latent; c += COLUMNS)
        for (int h = 0; h < p->n_heads; h++)
            add_rows(p->sum + h * p->d_latent + c, p->factor[h], p->scores + h * BLOCK, x + c,
                     n_keys, p->width, lh_min64(COLUMNS, p->d_latent - c));
}

/* Pass 2, one range of keys of one sequence for some heads. */
static void attend(void *ctx, int64_t item, float *scratch)
{
    const pass *p = ctx;
    const lh_mla_decode_args *a = p->a;
    int64_t d_latent = a->d_latent, width = d_latent + a->d_rope;
    int64_t range = p->first_range + item / p->items_per_range;
    int64_t head = item % p->items_per_range * p->heads_per_item;
    int64_t seq = find_seq(p->w.first, a->n_seq, range), keys = lh_mla_range_keys(a->n_keys[seq]);
    int64_t key = (range - p->w.first[seq]) * keys;
    int64_t n_keys = lh_min64(keys, a->n_keys[seq] - key);
    const float *x = (const float *)a->latent[seq] + key * width;
    int n_heads = (int)lh_min64(p->heads_per_item, a->n_heads - head);
    part t = {.n_heads = n_heads,
              .d_latent = d_latent,
              .width = width,
              .q = p->w.q + (seq * a->n_heads + head) * width,
              .sum = sums_of(p, range, head),
              .scores = scratch,
              .factor = scratch + n_heads * BLOCK,
              .state = state_of(p, range, head)};

    for (int h = 0; h < n_heads; h++)
        t.state[h] = lh_softmax_empty;
    memset(t.sum, 0, (size_t)(n_heads * d_latent) * sizeof(float));
    for (int64_t i = 0; i < n_keys; i += BLOCK)
        add_block(&t, x + i * width, lh_min64(BLOCK, n_keys - i));
}

/* Pass 3, one head of one sequence: its ranges merged in rising order, then W_uv. */
static void finish(void *ctx, int64_t item, float *latent)
{
    const pass *p = ctx;
    const lh_mla_decode_args *a = p->a;
    int64_t head = item % a->n_heads, seq = item / a->n_heads, d_latent = a->d_latent;
    int64_t begin = p->w.first[seq], end = p->w.first[seq + 1];
    const lh_bf16 *w = a->w_kvb + (head * (a->d_nope + a->d_v) + a->d_nope) * d_latent;
    float *o = (float *)a->o + item * a->d_v;
    float max = -INFINITY, total = 0;

    for (int64_t r = begin; r < end; r++)
        max = fmaxf(max, state_of(p, r, head)->max);
    memset(latent, 0, (size_t)d_latent * sizeof(float));
    for (int64_t r = begin; r < end; r++) {
        const lh_softmax *state = state_of(p, r, head);
        const float *sum = sums_of(p, r, head);
        float factor = lh_exp(state->max - max);
        total += state->sum * factor;
        for (int64_t j = 0; j < d_latent; j++)
            latent[j] += sum[j] * factor;
    }
    for (int64_t i = 0; i < a->d_v; i++)
        o[i] = lh_cpu_dot_bf16(latent, w + i * d_latent, d_latent) / total;
}

static lh_status check(const lh_mla_decode_args *a)
{
    LH_TRY(lh_check_mla_decode(a));
    LH_REQUIRE(a->d_latent <= LH_CPU_SCRATCH, LH_ERR_UNSUPPORTED,
               "mla_decode: d_latent is %d, the cpu takes up to %d", a->d_latent, LH_CPU_SCRATCH);
    LH_REQUIRE(a->n_heads <= MAX_HEADS, LH_ERR_UNSUPPORTED,
               "mla_decode: %d heads, the cpu takes up to %d", a->n_heads, MAX_HEADS);
    for (int64_t i = 0; i < a->n_seq; i++)
        LH_REQUIRE(a->n_keys[i] >= 1 && a->n_keys[i] <= a->max_keys, LH_ERR_INVALID,
                   "mla_decode: n_keys[%lld] is %lld, expected 1 to %lld", (long long)i,
                   (long long)a->n_keys[i], (long long)a->max_keys);
    return LH_OK;
}

static pass prepare(const lh_mla_decode_args *a)
{
    pass p = {.a = a};

    layout(&p.w, a->work, a->n_seq, a->max_keys, a->n_heads, a->d_latent, a->d_rope);
    p.w.first[0] = 0;
    for (int64_t i = 0; i < a->n_seq; i++)
        p.w.first[i + 1] = p.w.first[i] + lh_mla_ranges(a->n_keys[i]);
    return p;
}

static void attend_ranges(lh_stream *s, pass *p, int64_t begin, int64_t end)
{
    const lh_mla_decode_args *a = p->a;

    if (begin == end)
        return;
    /* heads share a reading of the cache, unless there are too few ranges for the threads */
    int64_t wanted = lh_cpu_threads(s) > 1 ? 2 * lh_cpu_threads(s) : 1;
    int64_t items = lh_min64(a->n_heads, (wanted + end - begin - 1) / (end - begin));
    p->first_range = begin;
    p->heads_per_item = (int)((a->n_heads + items - 1) / items);
    p->items_per_range = (a->n_heads + p->heads_per_item - 1) / p->heads_per_item;
    lh_cpu_parallel(s, a->n_seq * a->n_heads, absorb, p);
    lh_cpu_parallel(s, (end - begin) * p->items_per_range, attend, p);
}

lh_status lh_cpu_mla_decode(lh_stream *s, const lh_mla_decode_args *a)
{
    LH_TRY(check(a));
    if (a->n_seq == 0)
        return LH_OK;
    pass p = prepare(a);
    attend_ranges(s, &p, 0, p.w.first[a->n_seq]);
    lh_cpu_parallel(s, a->n_seq * a->n_heads, finish, &p);
    return LH_OK;
}

static lh_status prepare_shared(pass *p, const lh_mla_decode_args *a)
{
    LH_TRY(check(a));
    *p = prepare(a);
    p->w.partial = a->partial;
    return lh_check_mla_ranges(a, p->w.first[a->n_seq]);
}

lh_status lh_cpu_mla_attend(lh_stream *s, const lh_mla_decode_args *a)
{
    pass p;

    LH_TRY(prepare_shared(&p, a));
    attend_ranges(s, &p, a->first_range, a->first_range + a->n_ranges);
    return LH_OK;
}

lh_status lh_cpu_mla_merge(lh_stream *s, const lh_mla_decode_args *a)
{
    pass p;

    LH_TRY(prepare_shared(&p, a));
    lh_cpu_parallel(s, a->n_seq * a->n_heads, finish, &p);
    return LH_OK;
}
