/*
 * The operations that work row by row. Bytes are those of every input read once and every output
 * written once; their few operations an element are not counted.
 */
#include <string.h>

#include "bench/cases.h"
#include "kernels/sample.h"
#include "tests/reference/reference.h"

#define EPS 1e-5f
#define VOCAB_GPU 163840 /* the published vocabulary */
#define VOCAB_CPU 32768

static int64_t row_count(const rig *r)
{
    return r->gpu ? 32768 : 2048;
}

/* Bytes of so many activations. */
static double acts(const rig *r, int64_t n)
{
    return (double)n * (double)r->k->act_bytes;
}

typedef struct rows_data rows_data;
struct rows_data {
    rig_buf y, x, z, w, index, weight, before; /* before: y before the first call */
    int64_t n, d;                              /* rows, elements of a row */
    int64_t n_vocab;
    void (*want)(rig *r, const rows_data *c, int64_t i, double *y); /* row i, in float64 */
};

static int check_rows(rig *r, void *data)
{
    rows_data *c = data;
    int64_t rows[3];
    double *y = rig_host(r, c->d, sizeof *y);

    for (int i = 0, n = rig_samples(c->n, rows); i < n; i++) {
        c->want(r, c, rows[i], y);
        if (!rig_near(r, "y", rig_acts(r, c->y.p, rows[i] * c->d, c->d), y, c->d))
            return 0;
    }
    return 1;
}

/* --------------------------------------------------------- embed, gather */

static lh_status run_embed(rig *r, void *data, int copy)
{
    rows_data *c = data;
    return r->k->embed(r->s, &(lh_embed_args){.out = rig_at(c->y, copy),
                                              .ids = rig_at(c->index, copy),
                                              .table = rig_at(c->w, copy),
                                              .n_rows = c->n,
                                              .d = c->d,
                                              .n_vocab = c->n_vocab});
}

static void want_embed(rig *r, const rows_data *c, int64_t i, double *y)
{
    int32_t *id = rig_fetch(r, c->index.p, i, 1, sizeof *id);
    lh_bf16 *row = rig_fetch(r, c->w.p, *id * c->d, c->d, sizeof *row);
    for (int64_t j = 0; j < c->d; j++)
        y[j] = (double)lh_bf16_to_f32(row[j]);
}

static void bench_embed(rig *r)
{
    rows_data c = {.want = want_embed,
                   .n = row_count(r),
                   .d = D_MODEL,
                   .n_vocab = r->gpu ? VOCAB_GPU : VOCAB_CPU};
    int64_t size = c.n * c.d;

    /* a row of the table (bf16), the row, the id */
    if (!rig_begin(r, "embed", 2.0 * (double)size + acts(r, size) + 4.0 * (double)c.n, 0,
                   "%lld rows of %d", (long long)c.n, D_MODEL))
        return;
    c.y = rig_zeros(r, RIG_ACT, size);
    c.index = rig_choice(r, c.n, c.n_vocab);
    c.w = rig_random(r, RIG_BF16, c.n_vocab * c.d, 1);
    rig_measure(r, &c, run_embed, NULL, check_rows);
}

static lh_status run_gather(rig *r, void *data, int copy)
{
    rows_data *c = data;
    return r->k->gather(r->s, &(lh_gather_args){.y = rig_at(c->y, copy),
                                                .x = rig_at(c->x, copy),
                                                .index = rig_at(c->index, copy),
                                                .n_rows = c->n,
                                                .width = c->d});
}

static void want_gather(rig *r, const rows_data *c, int64_t i, double *y)
{
    int32_t *from = rig_fetch(r, c->index.p, i, 1, sizeof *from);
    float *row = rig_acts(r, c->x.p, *from * c->d, c->d);
    for (int64_t j = 0; j < c->d; j++)
        y[j] = (double)row[j];
}

static void bench_gather(rig *r)
{
    rows_data c = {.want = want_gather, .n = row_count(r), .d = D_MODEL};
    int64_t size = c.n * c.d;

    /* a row in, a row out, the index */
    if (!rig_begin(r, "gather", acts(r, 2 * size) + 4.0 * (double)c.n, 0, "%lld rows of %d",
                   (long long)c.n, D_MODEL))
        return;
    c.y = rig_zeros(r, RIG_ACT, size);
    c.x = rig_random(r, RIG_ACT, size, 1);
    c.index = rig_choice(r, c.n, c.n);
    rig_measure(r, &c, run_gather, NULL, check_rows);
}

/* ------------------------------------------------------------------ norms */

static lh_status run_rmsnorm(rig *r, void *data, int copy)
{
    rows_data *c = data;
    return r->k->rmsnorm(r->s, &(lh_rmsnorm_args){.y = rig_at(c->y, copy),
                                                  .x = rig_at(c->x, copy),
                                                  .w = rig_at(c->w, copy),
                                                  .n_rows = c->n,
                                                  .d = c->d,
                                                  .eps = EPS});
}

static void want_rmsnorm(rig *r, const rows_data *c, int64_t i, double *y)
{
    ref_rmsnorm(y, rig_acts(r, c->x.p, i * c->d, c->d), rig_fetch(r, c->w.p, 0, c->d, 2), 1, c->d,
                (double)EPS);
}

static void bench_rmsnorm(rig *r)
{
    rows_data c = {.want = want_rmsnorm, .n = row_count(r), .d = D_MODEL};
    int64_t size = c.n * c.d;

    if (!rig_begin(r, "rmsnorm", acts(r, 2 * size), 0, "%lld rows of %d", (long long)c.n, D_MODEL))
        return;
    c.y = rig_zeros(r, RIG_ACT, size);
    c.x = rig_random(r, RIG_ACT, size, 1);
    c.w = rig_random(r, RIG_BF16, c.d, 1);
    rig_measure(r, &c, run_rmsnorm, NULL, check_rows);
}

static lh_status run_gated_norm(rig *r, void *data, int copy)
{
    rows_data *c = data;
    return r->k->gated_norm(r->s, &(lh_gated_norm_args){.y = rig_at(c->y, copy),
                                                        .o = rig_at(c->x, copy),
                                                        .z = rig_at(c->z, copy),
                                                        .w = rig_at(c->w, copy),
                                                        .n_rows = c->n,
                                                        .n_heads = HEADS,
                                                        .d = D_HEAD,
                                                        .eps = EPS});
}

static void want_gated_norm(rig *r, const rows_data *c, int64_t i, double *y)
{
    ref_gated_norm(y, rig_acts(r, c->x.p, i * c->d, c->d), rig_acts(r, c->z.p, i * c->d, c->d),
                   rig_fetch(r, c->w.p, 0, D_HEAD, 2), HEADS, D_HEAD, (double)EPS);
}

static void bench_gated_norm(rig *r)
{
    rows_data c = {.want = want_gated_norm, .n = row_count(r), .d = WIDTH};
    int64_t size = c.n * c.d;

    /* o, z, y */
    if (!rig_begin(r, "gated_norm", acts(r, 3 * size), 0, "%lld rows of %d x %d", (long long)c.n,
                   HEADS, D_HEAD))
        return;
    c.y = rig_zeros(r, RIG_ACT, size);
    c.x = rig_random(r, RIG_ACT, size, 1);
    c.z = rig_random(r, RIG_ACT, size, 1);
    c.w = rig_random(r, RIG_BF16, D_HEAD, 1);
    rig_measure(r, &c, run_gated_norm, NULL, check_rows);
}

static lh_status run_latent(rig *r, void *data, int copy)
{
    rows_data *c = data;
    return r->k->latent(r->s, &(lh_latent_args){.y = rig_at(c->y, copy),
                                                .x = rig_at(c->x, copy),
                                                .w = rig_at(c->w, copy),
                                                .n_rows = c->n,
                                                .d_latent = D_LATENT,
                                                .d_rope = D_ROPE,
                                                .eps = EPS});
}

static void want_latent(rig *r, const rows_data *c, int64_t i, double *y)
{
    float *x = rig_acts(r, c->x.p, i * c->d, c->d);
    ref_rmsnorm(y, x, rig_fetch(r, c->w.p, 0, D_LATENT, 2), 1, D_LATENT, (double)EPS);
    for (int64_t j = D_LATENT; j < c->d; j++)
        y[j] = (double)x[j];
}

static void bench_latent(rig *r)
{
    rows_data c = {.want = want_latent, .n = row_count(r), .d = D_LATENT + D_ROPE};
    int64_t size = c.n * c.d;

    if (!rig_begin(r, "latent", acts(r, 2 * size), 0, "%lld rows of %d + %d", (long long)c.n,
                   D_LATENT, D_ROPE))
        return;
    c.y = rig_zeros(r, RIG_ACT, size);
    c.x = rig_random(r, RIG_ACT, size, 1);
    c.w = rig_random(r, RIG_BF16, D_LATENT, 1);
    rig_measure(r, &c, run_latent, NULL, check_rows);
}

/* ----------------------------------------------------------- convolution */

#define HALO (TAPS - 1)

/* As in a layer: one of q, k, v, whose rows lie side by side; x begins with the halo's rows. */
static lh_status run_short_conv(rig *r, void *data, int copy)
{
    rows_data *c = data;
    void *x = rig_at(c->x, copy);
    return r->k->short_conv(r->s, &(lh_short_conv_args){.y = rig_at(c->y, copy),
                                                        .ldy = WIDTH,
                                                        .x = rig_act(r, x, HALO * 3 * WIDTH),
                                                        .ldx = 3 * WIDTH,
                                                        .halo = x,
                                                        .w = rig_at(c->w, copy),
                                                        .n_rows = c->n,
                                                        .n_channels = WIDTH,
                                                        .taps = TAPS});
}

/* Row i from rows i .. i + HALO of x, of which the last is its own. */
static void want_short_conv(rig *r, const rows_data *c, int64_t i, double *y)
{
    float *rows = rig_host(r, TAPS * WIDTH, sizeof *rows);
    for (int t = 0; t < TAPS; t++)
        memcpy(rows + t * WIDTH, rig_acts(r, c->x.p, (i + t) * 3 * WIDTH, WIDTH),
               WIDTH * sizeof *rows);
    ref_short_conv(y, rows + HALO * WIDTH, rows, rig_fetch(r, c->w.p, 0, WIDTH * TAPS, 2), 1, WIDTH,
                   TAPS);
}

static void bench_short_conv(rig *r)
{
    rows_data c = {.want = want_short_conv, .n = row_count(r), .d = WIDTH};
    int64_t size = c.n * c.d;

    if (!rig_begin(r, "short_conv", acts(r, 2 * size), 0, "%lld rows of %d, %d taps",
                   (long long)c.n, WIDTH, TAPS))
        return;
    c.y = rig_zeros(r, RIG_ACT, size);
    c.x = rig_random(r, RIG_ACT, (c.n + HALO) * 3 * WIDTH, 1);
    c.w = rig_random(r, RIG_BF16, WIDTH * TAPS, 0.5);
    rig_measure(r, &c, run_short_conv, NULL, check_rows);
}

/* ---------------------------------------------------------------- combine */

/* x grows a little with every call. */
static lh_status run_combine(rig *r, void *data, int copy)
{
    rows_data *c = data;
    return r->k->combine(r->s, &(lh_combine_args){.x = rig_at(c->y, copy),
                                                  .rows = rig_at(c->x, copy),
                                                  .source = rig_at(c->index, copy),
                                                  .weight = rig_at(c->weight, copy),
                                                  .shared = rig_at(c->z, copy),
                                                  .n_rows = c->n,
                                                  .d = c->d,
                                                  .top_k = TOP_K});
}

static void want_combine(rig *r, const rows_data *c, int64_t i, double *y)
{
    static const int32_t own[TOP_K] = {0, 1, 2, 3, 4, 5, 6, 7};
    int32_t *source = rig_fetch(r, c->index.p, i * TOP_K, TOP_K, sizeof *source);
    float *rows = rig_host(r, TOP_K * c->d, sizeof *rows);
    for (int j = 0; j < TOP_K; j++)
        memcpy(rows + j * c->d, rig_acts(r, c->x.p, source[j] * c->d, c->d),
               (size_t)c->d * sizeof *rows);
    ref_combine(y, rig_acts(r, c->before.p, i * c->d, c->d), rows, own,
                rig_fetch(r, c->weight.p, i * TOP_K, TOP_K, sizeof(float)),
                rig_acts(r, c->z.p, i * c->d, c->d), 1, c->d, TOP_K);
}

static void bench_combine(rig *r)
{
    rows_data c = {.want = want_combine, .n = row_count(r), .d = D_MODEL};
    int64_t size = c.n * c.d;

    /* every expert's row once, the shared row, x in and out; index and weight */
    if (!rig_begin(r, "combine", acts(r, (TOP_K + 3) * size) + 8.0 * TOP_K * (double)c.n, 0,
                   "%lld rows of %d, %d experts", (long long)c.n, D_MODEL, TOP_K))
        return;
    c.y = rig_random(r, RIG_ACT, size, 1);
    c.before = rig_zeros(r, RIG_ACT, size);
    rig_must(r->dev->copy(r->s, c.before.p, c.y.p, c.y.bytes));
    c.x = rig_random(r, RIG_ACT, TOP_K * size, 1);
    c.z = rig_random(r, RIG_ACT, size, 1);
    c.index = rig_choice(r, TOP_K * c.n, TOP_K * c.n);
    c.weight = rig_random(r, RIG_F32, TOP_K * c.n, 0.3);
    rig_measure(r, &c, run_combine, NULL, check_rows);
}

/* ----------------------------------------------------------------- sample */

typedef struct sample_data {
    rig_buf token, logits;
    lh_draw *draw; /* on the device; the same for all copies */
    void *work;
    int64_t n;
} sample_data;

static lh_status run_sample(rig *r, void *data, int copy)
{
    sample_data *c = data;
    return r->k->sample(r->s, &(lh_sample_args){.token = rig_at(c->token, copy),
                                                .logits = rig_at(c->logits, copy),
                                                .draw = c->draw,
                                                .n_rows = c->n,
                                                .n_vocab = VOCAB_GPU,
                                                .work = c->work});
}

static int check_sample(rig *r, void *data)
{
    sample_data *c = data;
    void *scratch = rig_host(r, 1, lh_sample_row_bytes(VOCAB_GPU));
    int64_t rows[3];
    int right = 1;

    for (int i = 0, n = rig_samples(c->n, rows); i < n; i++) {
        float *logits = rig_fetch(r, c->logits.p, rows[i] * VOCAB_GPU, VOCAB_GPU, sizeof *logits);
        lh_draw *draw = rig_fetch(r, c->draw, rows[i], 1, sizeof *draw);
        int32_t *token = rig_fetch(r, c->token.p, rows[i], 1, sizeof *token);
        right &= *token == lh_sample_row(logits, VOCAB_GPU, draw, scratch);
    }
    return rig_true(r, "a token is not that of the host", right);
}

/* Rows of the published vocabulary on both backends: what a step of decoding ends with. */
static void bench_sample(rig *r, int64_t n_rows, const lh_sampling *how, const char *what)
{
    sample_data c = {.n = n_rows};
    size_t bytes = (size_t)n_rows * sizeof(lh_draw);

    /* the logits once, however often they are read */
    if (!rig_begin(r, "sample", 4.0 * VOCAB_GPU * (double)n_rows, 0, "%lld row%s of %d, %s",
                   (long long)n_rows, n_rows == 1 ? "" : "s", VOCAB_GPU, what))
        return;
    lh_draw *draw = rig_host(r, n_rows, sizeof *draw);
    for (int64_t i = 0; i < n_rows; i++)
        draw[i] = (lh_draw){*how, (uint64_t)i};
    c.draw = rig_work(r, bytes);
    rig_upload(r, c.draw, draw, bytes);
    c.token = rig_zeros(r, RIG_I32, n_rows);
    c.logits = rig_random(r, RIG_F32, n_rows * VOCAB_GPU, 3);
    c.work = rig_work(r, r->k->sample_work_bytes(n_rows, VOCAB_GPU));
    rig_measure(r, &c, run_sample, NULL, check_sample);
}

void cases_rows(rig *r)
{
    const lh_sampling greedy = {.top_p = 1}, by_id = {.temperature = 1, .top_p = 1};
    const lh_sampling in_order = {.temperature = 1, .top_k = 50, .top_p = 0.95f};

    bench_embed(r);
    bench_rmsnorm(r);
    bench_gated_norm(r);
    bench_short_conv(r);
    bench_latent(r);
    bench_gather(r);
    bench_combine(r);
    bench_sample(r, 1, &greedy, "greedy");
    bench_sample(r, 64, &greedy, "greedy");
    bench_sample(r, 64, &by_id, "T 1");
    bench_sample(r, 64, &in_order, "k 50, p 0.95");
}
