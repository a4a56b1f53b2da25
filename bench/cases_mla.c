/*
 * Attention of MLA. Operations are those of attention itself, 2 for each element of a key that is
 * compared and of a value that is summed; the products with W_kvb are in the time, not counted.
 */
#include <math.h>

#include "base/mem.h"
#include "bench/cases.h"

#define D_QK (D_NOPE + D_ROPE)
#define D_ROW (D_LATENT + D_ROPE)
#define W_HEAD ((D_NOPE + D_HEAD) * D_LATENT) /* weights of a head of W_kvb: keys, then values */

/* sum of a . b in eight partial sums, which is what makes a reference over 1M keys bearable */
static double dot(const double *a, const float *b, int n)
{
    double sum[8] = {0};

    for (int i = 0; i < n; i += 8)
        for (int j = 0; j < 8; j++)
            sum[j] += a[i + j] * (double)b[i + j];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

/*
 * o [D_HEAD] of one query of a head in float64. Keys k_j = W_k c_j and values W_v c_j are linear in
 * the latent c_j, so W_k^T q is compared with the rows and W_v applied to their weighted sum.
 */
static void attend(rig *r, double *o, const float *q, const float *latent, int64_t n_keys,
                   const lh_bf16 *w)
{
    double key[D_ROW] = {0}, sum[D_LATENT] = {0}, total = 0, top = -INFINITY;
    double *score = rig_host(r, n_keys, sizeof *score);

    for (int i = 0; i < D_NOPE; i++)
        for (int j = 0; j < D_LATENT; j++)
            key[j] += (double)q[i] * (double)lh_bf16_to_f32(w[i * D_LATENT + j]);
    for (int i = 0; i < D_ROPE; i++)
        key[D_LATENT + i] = (double)q[D_NOPE + i];
    for (int64_t t = 0; t < n_keys; t++) {
        score[t] = dot(key, latent + t * D_ROW, D_ROW) / sqrt(D_QK);
        top = fmax(top, score[t]);
    }
    for (int64_t t = 0; t < n_keys; t++) {
        double p = exp(score[t] - top);
        total += p;
        for (int j = 0; j < D_LATENT; j++)
            sum[j] += p * (double)latent[t * D_ROW + j];
    }
    for (int i = 0; i < D_HEAD; i++) {
        const lh_bf16 *row = w + (D_NOPE + i) * D_LATENT;
        o[i] = 0;
        for (int j = 0; j < D_LATENT; j++)
            o[i] += sum[j] / total * (double)lh_bf16_to_f32(row[j]);
    }
}

typedef struct mla_data {
    rig_buf o, q, latent, w;
    rig_buf at, keys; /* decode: pointers to the caches, and their lengths */
    void *work;
    int64_t n;      /* queries, or sequences */
    int64_t n_keys; /* of the last query, or of every sequence */
    int64_t run_start[2], run_position[1];
    lh_tiles tiles;
} mla_data;

/* The sampled heads of query `row`, which sees n_keys rows of a latent cache. */
static int check_query(rig *r, const mla_data *c, int64_t row, const float *latent, int64_t n_keys)
{
    int64_t heads[3];

    for (int i = 0, n = rig_samples(HEADS, heads); i < n; i++) {
        double want[D_HEAD];
        int64_t at = row * HEADS + heads[i];
        attend(r, want, rig_acts(r, c->q.p, at * D_QK, D_QK), latent, n_keys,
               rig_fetch(r, c->w.p, heads[i] * W_HEAD, W_HEAD, 2));
        if (!rig_near(r, "o", rig_acts(r, c->o.p, at * D_HEAD, D_HEAD), want, D_HEAD))
            return 0;
    }
    return 1;
}

static void make_mla(rig *r, mla_data *c, int64_t n_caches)
{
    int64_t rows = lh_round_up(c->n_keys, LH_KEY_TILE);

    c->q = rig_random(r, RIG_ACT, c->n * HEADS * D_QK, 1);
    c->o = rig_zeros(r, RIG_ACT, c->n * HEADS * D_HEAD);
    c->latent = rig_random(r, RIG_ACT, n_caches * rows * D_ROW, 1);
    c->w = rig_random(r, RIG_BF16, HEADS * W_HEAD, 1 / sqrt(D_LATENT));
}

/* ---------------------------------------------------------------- prefill */

static lh_status run_prefill(rig *r, void *data, int copy)
{
    mla_data *c = data;
    return r->k->mla_prefill(r->s, &(lh_mla_prefill_args){.o = rig_at(c->o, copy),
                                                          .q = rig_at(c->q, copy),
                                                          .latent = rig_at(c->latent, copy),
                                                          .w_kvb = rig_at(c->w, copy),
                                                          .n_rows = c->n,
                                                          .n_runs = 1,
                                                          .run_start = c->run_start,
                                                          .run_position = c->run_position,
                                                          .tiles = c->tiles,
                                                          .n_heads = HEADS,
                                                          .d_nope = D_NOPE,
                                                          .d_rope = D_ROPE,
                                                          .d_v = D_HEAD,
                                                          .d_latent = D_LATENT,
                                                          .work = c->work});
}

static int check_prefill(rig *r, void *data)
{
    mla_data *c = data;
    float *latent = rig_acts(r, c->latent.p, 0, c->n_keys * D_ROW);
    int64_t rows[3];

    for (int i = 0, n = rig_samples(c->n, rows); i < n; i++)
        if (!check_query(r, c, rows[i], latent, c->run_position[0] + rows[i] + 1))
            return 0;
    return 1;
}

static void bench_prefill(rig *r, int64_t n, int64_t position)
{
    mla_data c = {.n = n, .n_keys = position + n, .run_start = {0, n}, .run_position = {position}};
    double act = (double)r->k->act_bytes, queries = (double)n * HEADS;
    /* query i sees position + i + 1 keys */
    double pairs = queries * ((double)position + ((double)n + 1) / 2);

    /* q, o, the cache, W_kvb */
    if (!rig_begin(
            r, "mla_prefill",
            act * (queries * (D_QK + D_HEAD) + (double)c.n_keys * D_ROW) + 2.0 * HEADS * W_HEAD,
            2 * pairs * (D_QK + D_HEAD), "%lld queries at %lld", (long long)n, (long long)position))
        return;
    make_mla(r, &c, 1);
    c.work = rig_work(r, r->k->mla_prefill_work_bytes(n, HEADS, D_NOPE, D_ROPE, D_HEAD, D_LATENT));
    c.tiles = rig_tiles(r, n, SEGMENT);
    rig_measure(r, &c, run_prefill, NULL, check_prefill);
}

/* ----------------------------------------------------------------- decode */

static lh_status run_decode(rig *r, void *data, int copy)
{
    mla_data *c = data;
    return r->k->mla_decode(
        r->s, &(lh_mla_decode_args){.o = rig_at(c->o, copy),
                                    .q = rig_at(c->q, copy),
                                    .latent = (const void *const *)rig_at(c->at, copy),
                                    .n_keys = rig_at(c->keys, copy),
                                    .max_keys = c->n_keys,
                                    .w_kvb = rig_at(c->w, copy),
                                    .n_seq = c->n,
                                    .n_heads = HEADS,
                                    .d_nope = D_NOPE,
                                    .d_rope = D_ROPE,
                                    .d_v = D_HEAD,
                                    .d_latent = D_LATENT,
                                    .work = c->work});
}

static int check_decode(rig *r, void *data)
{
    mla_data *c = data;
    int64_t rows = lh_round_up(c->n_keys, LH_KEY_TILE), seqs[3];

    for (int i = 0, n = rig_samples(c->n, seqs); i < n; i++)
        if (!check_query(r, c, seqs[i],
                         rig_acts(r, c->latent.p, seqs[i] * rows * D_ROW, c->n_keys * D_ROW),
                         c->n_keys))
            return 0;
    return 1;
}

static void bench_decode(rig *r, int64_t n, int64_t n_keys)
{
    mla_data c = {.n = n, .n_keys = n_keys};
    double act = (double)r->k->act_bytes, keys = (double)(n * n_keys);

    /* the caches, W_kvb, q, o; every head compares and sums whole rows of the cache */
    if (!rig_begin(r, "mla_decode",
                   act * (keys * D_ROW + (double)(n * HEADS * (D_QK + D_HEAD))) +
                       2.0 * HEADS * W_HEAD,
                   2 * keys * HEADS * (D_ROW + D_LATENT), "%lld sequence%s of %lld", (long long)n,
                   n == 1 ? "" : "s", (long long)n_keys))
        return;
    make_mla(r, &c, n);
    c.at = rig_pointers(r, c.latent, n,
                        (size_t)(lh_round_up(n_keys, LH_KEY_TILE) * D_ROW) * r->k->act_bytes);
    c.keys = rig_zeros(r, RIG_I64, n);
    int64_t *lengths = rig_host(r, n, sizeof *lengths);
    for (int64_t i = 0; i < n; i++)
        lengths[i] = n_keys;
    for (int copy = 0; copy < r->n_copies; copy++)
        rig_upload(r, rig_at(c.keys, copy), lengths, (size_t)n * sizeof *lengths);
    c.work = rig_work(r, r->k->mla_decode_work_bytes(n, n_keys, HEADS, D_LATENT, D_ROPE));
    rig_measure(r, &c, run_decode, NULL, check_decode);
}

void cases_mla(rig *r)
{
    bench_prefill(r, r->gpu ? 8192 : 256, r->gpu ? 122880 : 4096);
    bench_prefill(r, r->gpu ? 32768 : 1024, 0);
    bench_decode(r, 1, r->gpu ? 131072 : 8192);
    bench_decode(r, 1, r->gpu ? 1048576 : 65536);
    bench_decode(r, r->gpu ? 64 : 8, 4096);
}
