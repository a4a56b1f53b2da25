/*
 * Products: linear, router, feed-forward networks. Operations are 2 for each weight and row.
 * Bytes are the weights (bf16), the rows in and the rows out, each once.
 */
#include <math.h>

#include "base/mem.h"
#include "bench/cases.h"
#include "tests/reference/reference.h"

#define MATRIX (D_MODEL * D_EXPERT) /* weights of one of an expert's three */

/* ----------------------------------------------------------------- linear */

typedef struct linear_data {
    rig_buf y, x, w;
    int64_t n, n_in, n_out;
    lh_tiles tiles;
} linear_data;

static lh_status run_linear(rig *r, void *data, int copy)
{
    linear_data *c = data;
    return r->k->linear(r->s, &(lh_linear_args){.y = rig_at(c->y, copy),
                                                .ldy = c->n_out,
                                                .x = rig_at(c->x, copy),
                                                .ldx = c->n_in,
                                                .w = rig_at(c->w, copy),
                                                .n_rows = c->n,
                                                .n_in = c->n_in,
                                                .n_out = c->n_out,
                                                .tiles = c->tiles});
}

static int check_linear(rig *r, void *data)
{
    linear_data *c = data;
    lh_bf16 *w = rig_fetch(r, c->w.p, 0, c->n_in * c->n_out, sizeof *w);
    double *y = rig_host(r, c->n_out, sizeof *y);
    int64_t rows[3];

    for (int i = 0, n = rig_samples(c->n, rows); i < n; i++) {
        ref_linear(y, rig_acts(r, c->x.p, rows[i] * c->n_in, c->n_in), w, 1, c->n_in, c->n_out);
        if (!rig_near(r, "y", rig_acts(r, c->y.p, rows[i] * c->n_out, c->n_out), y, c->n_out))
            return 0;
    }
    return 1;
}

static void bench_linear(rig *r, int64_t n_in, int64_t n_out, int64_t n)
{
    linear_data c = {.n = n, .n_in = n_in, .n_out = n_out};
    double weights = (double)(n_in * n_out);
    int decode = n <= 8; /* sequences, a tile each; more are a prompt's */

    if (!rig_begin(r, "linear",
                   2 * weights + (double)(n * (n_in + n_out)) * (double)r->k->act_bytes,
                   2 * weights * (double)n, "%lld -> %lld, %lld row%s", (long long)n_in,
                   (long long)n_out, (long long)n,
                   n == 1   ? ""
                   : decode ? "s, a tile each"
                            : "s"))
        return;
    c.y = rig_zeros(r, RIG_ACT, n * n_out);
    c.x = rig_random(r, RIG_ACT, n * n_in, 1);
    c.w = rig_random(r, RIG_BF16, n_in * n_out, 1 / sqrt((double)n_in));
    c.tiles = rig_tiles(r, n, decode ? 1 : SEGMENT);
    rig_measure(r, &c, run_linear, NULL, check_linear);
}

/* ----------------------------------------------------------------- router */

typedef struct router_data {
    rig_buf expert, weight, scores, x, w, bias;
    int64_t n;
    lh_tiles tiles;
} router_data;

static lh_status run_router(rig *r, void *data, int copy)
{
    router_data *c = data;
    return r->k->router(r->s, &(lh_router_args){.expert = rig_at(c->expert, copy),
                                                .weight = rig_at(c->weight, copy),
                                                .scores = rig_at(c->scores, copy),
                                                .x = rig_at(c->x, copy),
                                                .w = rig_at(c->w, copy),
                                                .bias = rig_at(c->bias, copy),
                                                .n_rows = c->n,
                                                .d = D_MODEL,
                                                .n_experts = EXPERTS,
                                                .top_k = TOP_K,
                                                .renormalize = 1,
                                                .scale = 1,
                                                .tiles = c->tiles});
}

/* The chosen rise, none left out is better (but for rounding), and their weights are right. */
static int check_choice(rig *r, const double *score, const float *bias, const int32_t *expert,
                        const float *weight)
{
    double want[TOP_K], sum = 0, worst = INFINITY, best = -INFINITY;

    for (int j = 0; j < TOP_K; j++)
        if (expert[j] < 0 || expert[j] >= EXPERTS || (j > 0 && expert[j] <= expert[j - 1]))
            return rig_true(r, "experts do not rise", 0);
    for (int e = 0, j = 0; e < EXPERTS; e++) {
        double by = score[e] + (double)bias[e];
        if (j < TOP_K && expert[j] == e) {
            worst = fmin(worst, by);
            sum += want[j++] = score[e];
        } else {
            best = fmax(best, by);
        }
    }
    for (int j = 0; j < TOP_K; j++)
        want[j] /= sum;
    return rig_true(r, "a better expert was left out", worst >= best - 1e-4) &&
           rig_near(r, "weight", weight, want, TOP_K);
}

static int check_router(rig *r, void *data)
{
    router_data *c = data;
    lh_bf16 *w = rig_fetch(r, c->w.p, 0, EXPERTS * D_MODEL, sizeof *w);
    float *bias = rig_fetch(r, c->bias.p, 0, EXPERTS, sizeof *bias);
    int64_t rows[3];

    for (int i = 0, n = rig_samples(c->n, rows); i < n; i++) {
        double score[EXPERTS];
        ref_linear(score, rig_acts(r, c->x.p, rows[i] * D_MODEL, D_MODEL), w, 1, D_MODEL, EXPERTS);
        for (int e = 0; e < EXPERTS; e++)
            score[e] = ref_sigmoid(score[e]);
        if (!check_choice(r, score, bias, rig_fetch(r, c->expert.p, rows[i] * TOP_K, TOP_K, 4),
                          rig_fetch(r, c->weight.p, rows[i] * TOP_K, TOP_K, 4)))
            return 0;
    }
    return 1;
}

static void bench_router(rig *r)
{
    router_data c = {.n = r->gpu ? 32768 : 2048};
    double rows = (double)c.n, weights = EXPERTS * D_MODEL;

    /* the products alone count as operations; out go a number and a weight for each choice */
    if (!rig_begin(r, "router",
                   2 * weights + rows * (D_MODEL * (double)r->k->act_bytes + TOP_K * 8),
                   2 * weights * rows, "%lld rows, %d of %d", (long long)c.n, TOP_K, EXPERTS))
        return;
    c.expert = rig_zeros(r, RIG_I32, c.n * TOP_K);
    c.weight = rig_zeros(r, RIG_F32, c.n * TOP_K);
    c.scores = rig_zeros(r, RIG_F32, c.n * EXPERTS);
    c.x = rig_random(r, RIG_ACT, c.n * D_MODEL, 1);
    c.w = rig_random(r, RIG_BF16, EXPERTS * D_MODEL, 1 / sqrt(D_MODEL));
    c.bias = rig_random(r, RIG_F32, EXPERTS, 0.05);
    c.tiles = rig_tiles(r, c.n, SEGMENT);
    rig_measure(r, &c, run_router, NULL, check_router);
}

/* --------------------------------------------------------------- networks */

typedef struct net_data {
    rig_buf y, x, work;
    rig_buf w[3];         /* gate, up, down: all networks' matrices, one copy for all calls */
    rig_buf at[3];        /* pointers to them, on the device */
    const lh_bf16 **p[3]; /* the same, on the host */
    rig_buf expert;
    int n_nets;
    int64_t n; /* rows, or sequences */
    lh_tiles tiles;
    int32_t *net;
} net_data;

/* The matrices are the same for every copy: moe_step takes other experts each time, and all of
 * ffn's are larger than a cache. */
static void make_nets(rig *r, net_data *c)
{
    static const double sd[3] = {1.0 / 48, 1.0 / 48, 1.0 / 32}; /* outputs of order 1 */
    int n_copies = r->n_copies;

    r->n_copies = 1;
    for (int m = 0; m < 3; m++) {
        c->w[m] = rig_random(r, RIG_BF16, (int64_t)c->n_nets * MATRIX, sd[m]);
        c->at[m] = rig_pointers(r, c->w[m], c->n_nets, MATRIX * sizeof(lh_bf16));
        c->p[m] = rig_fetch(r, c->at[m].p, 0, c->n_nets, sizeof(void *));
    }
    r->n_copies = n_copies;
}

/* One row through network e, against row `row` of y. */
static int check_row(rig *r, const net_data *c, int64_t row, int64_t x_row, int e)
{
    const lh_bf16 *w[3];
    double y[D_MODEL];

    for (int m = 0; m < 3; m++)
        w[m] = rig_fetch(r, c->w[m].p, (int64_t)e * MATRIX, MATRIX, sizeof(lh_bf16));
    ref_ffn(y, rig_acts(r, c->x.p, x_row * D_MODEL, D_MODEL), w[0], w[1], w[2], 1, D_MODEL,
            D_EXPERT);
    return rig_near(r, "y", rig_acts(r, c->y.p, row * D_MODEL, D_MODEL), y, D_MODEL);
}

static lh_status run_ffn(rig *r, void *data, int copy)
{
    net_data *c = data;
    return r->k->ffn(r->s, &(lh_ffn_args){.y = rig_at(c->y, copy),
                                          .x = rig_at(c->x, copy),
                                          .w_gate = c->p[0],
                                          .w_up = c->p[1],
                                          .w_down = c->p[2],
                                          .n_nets = c->n_nets,
                                          .n_rows = c->n,
                                          .d = D_MODEL,
                                          .d_hidden = D_EXPERT,
                                          .tiles = c->tiles,
                                          .net = c->net,
                                          .work = c->work.p});
}

static int check_ffn(rig *r, void *data)
{
    net_data *c = data;
    int64_t rows[3];

    for (int i = 0, n = rig_samples(c->n, rows); i < n; i++)
        if (!check_row(r, c, rows[i], rows[i], (int)(rows[i] * c->n_nets / c->n)))
            return 0;
    return 1;
}

static void bench_ffn(rig *r, int n_nets, int64_t net_rows)
{
    net_data c = {.n_nets = n_nets, .n = n_nets * net_rows};
    double weights = 3.0 * MATRIX; /* of one network */

    if (!rig_begin(r, "ffn",
                   2 * weights * n_nets + (double)(2 * c.n * D_MODEL) * (double)r->k->act_bytes,
                   2 * weights * (double)c.n, "%d networks x %lld rows of %dx%d", n_nets,
                   (long long)net_rows, D_MODEL, D_EXPERT))
        return;
    make_nets(r, &c);
    c.y = rig_zeros(r, RIG_ACT, c.n * D_MODEL);
    c.x = rig_random(r, RIG_ACT, c.n * D_MODEL, 1);
    c.work = rig_zeros(r, RIG_ACT, c.n * 2 * D_EXPERT);
    c.tiles = rig_tiles(r, c.n, lh_min64(net_rows, SEGMENT));
    c.net = rig_host(r, c.tiles.n, sizeof *c.net);
    for (int i = 0; i < c.tiles.n; i++)
        c.net[i] = (int32_t)(c.tiles.start[i] / net_rows);
    rig_measure(r, &c, run_ffn, NULL, check_ffn);
}

static lh_status run_moe_step(rig *r, void *data, int copy)
{
    net_data *c = data;
    return r->k->moe_step(r->s,
                          &(lh_moe_step_args){.y = rig_at(c->y, copy),
                                              .x = rig_at(c->x, copy),
                                              .expert = rig_at(c->expert, copy),
                                              .w_gate = (const lh_bf16 *const *)rig_at(c->at[0], 0),
                                              .w_up = (const lh_bf16 *const *)rig_at(c->at[1], 0),
                                              .w_down = (const lh_bf16 *const *)rig_at(c->at[2], 0),
                                              .n_nets = c->n_nets,
                                              .n_seq = c->n,
                                              .d = D_MODEL,
                                              .d_hidden = D_EXPERT,
                                              .top_k = TOP_K,
                                              .work = c->work.p});
}

static int check_moe_step(rig *r, void *data)
{
    net_data *c = data;
    int32_t *expert = rig_fetch(r, c->expert.p, 0, c->n * TOP_K, sizeof *expert);
    int64_t pairs[3];

    for (int i = 0, n = rig_samples(c->n * TOP_K, pairs); i < n; i++)
        if (!check_row(r, c, pairs[i], pairs[i] / TOP_K, expert[pairs[i]]))
            return 0;
    return 1;
}

/* A token's experts are `step` apart: token t of call i begins at expert (i + t) % step. */
static void choose(rig *r, net_data *c)
{
    int step = c->n_nets / TOP_K;
    int32_t *expert = rig_host(r, c->n * TOP_K, sizeof *expert);

    c->expert = rig_zeros(r, RIG_I32, c->n * TOP_K);
    for (int copy = 0; copy < r->n_copies; copy++) {
        for (int64_t i = 0; i < c->n * TOP_K; i++)
            expert[i] = (int32_t)((copy + i / TOP_K) % step + i % TOP_K * step);
        rig_upload(r, rig_at(c->expert, copy), expert, (size_t)(c->n * TOP_K) * sizeof *expert);
    }
}

static void bench_moe_step(rig *r, int64_t n_seq)
{
    net_data c = {.n_nets = r->gpu ? EXPERTS : 64, .n = n_seq};
    double weights = 3.0 * MATRIX;
    int64_t used = lh_min64(c.n_nets, n_seq * TOP_K); /* different networks of a call */

    if (!rig_begin(r, "moe_step",
                   2 * weights * (double)used +
                       (double)(n_seq * (1 + TOP_K) * D_MODEL) * (double)r->k->act_bytes,
                   2 * weights * (double)(n_seq * TOP_K), "%lld token%s, %d of %d experts",
                   (long long)n_seq, n_seq == 1 ? "" : "s", TOP_K, c.n_nets))
        return;
    if (n_seq == 1)
        r->n_copies = c.n_nets / TOP_K; /* calls go through all networks */
    make_nets(r, &c);
    c.y = rig_zeros(r, RIG_ACT, n_seq * TOP_K * D_MODEL);
    c.x = rig_random(r, RIG_ACT, n_seq * D_MODEL, 1);
    c.work = rig_zeros(r, RIG_ACT, n_seq * TOP_K * 2 * D_EXPERT);
    choose(r, &c);
    rig_measure(r, &c, run_moe_step, NULL, check_moe_step);
}

void cases_product(rig *r)
{
    static const int64_t shapes[3][2] = {{D_MODEL, 4096}, {4096, D_MODEL}, {D_MODEL, 12288}};
    static const int64_t rows[5] = {1, 8, 64, 2048, 32768};
    static const int64_t net_rows[4] = {2048, 512, 64, 8};
    static const int nets_cpu[4] = {2, 8, 64, 64}; /* fewer, so that a call takes 2 s at most */

    for (int i = 0; i < 3; i++)
        for (int j = 0; j < (r->gpu ? 5 : 4); j++)
            bench_linear(r, shapes[i][0], shapes[i][1], rows[j]);
    bench_router(r);
    for (int i = 0; i < 4; i++)
        bench_ffn(r, r->gpu ? 64 : nets_cpu[i], net_rows[i]);
    bench_moe_step(r, 1);
    bench_moe_step(r, 64);
}
