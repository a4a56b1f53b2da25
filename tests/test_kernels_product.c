/*
 * linear, router and ffn: right against the float64 reference, and the same bits whatever else is
 * in the call and however many threads share it.
 */
#include "tests/kernel_data.h"
#include "tests/product_tolerance.h"
#include "tests/reference/reference.h"

#define MAX_TILES 12
typedef struct shape {
    int64_t n_in, n_out;
    int n_tiles;
    int64_t rows[MAX_TILES];
} shape;

static const shape shapes[] = {
    {7, 16, 1, {0}},
    {1, 1, 1, {1}},
    {33, 7, 3, {1, 1, 1}},
    {7, 33, 4, {2, 0, 3, 1}},
    {96, 256, 5, {1, 63, 64, 65, 1}},
    {256, 300, 3, {511, 2, 1}},
    {16, 700, 2, {513, 3}},
    {33, 96, 2, {1000, 1}},
    {2304, 40, 3, {1, 5, 1}},
    {2304, 300, 9, {1, 1, 1, 1, 1, 1, 1, 1, 1}},
    {64, 17, 6, {300, 257, 256, 1, 255, 600}},
    {96, 300, 5, {15, 16, 17, 2, 1}},
    {5000, 270, 2, {16, 1}},
};
#define N_SHAPES (int)(sizeof shapes / sizeof shapes[0])

static lh_tiles tiles_of(const shape *s)
{
    int64_t *start = data_host(s->n_tiles + 1, sizeof *start);
    for (int i = 0; i < s->n_tiles; i++)
        start[i + 1] = start[i] + s->rows[i];
    return (lh_tiles){.n = s->n_tiles, .start = start};
}

/* The size of a product of a row with random weights. */
static double norm_of(const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

typedef struct problem {
    lh_linear_args a;
    float *x, *y;
    lh_bf16 *w;
    void *dx, *dy;
    int64_t y_size;
} problem;

static problem problem_of(const shape *s)
{
    problem p = {.a = {.tiles = tiles_of(s)}};
    lh_linear_args *a = &p.a;

    a->n_in = act_width(s->n_in);
    a->n_out = act_width(s->n_out);
    a->n_rows = a->tiles.start[s->n_tiles];
    a->ldx = a->n_in + act_width(3);
    a->ldy = a->n_out + act_width(5);
    p.y_size = a->n_rows * a->ldy;
    p.x = act_random(a->n_rows * a->ldx, 1);
    p.y = act_random(p.y_size, 1);
    p.w = bf16_random(a->n_in * a->n_out, 1);
    a->x = p.dx = act_device(p.x, a->n_rows * a->ldx);
    a->y = p.dy = act_device(p.y, p.y_size);
    a->w = data_device(p.w, a->n_in * a->n_out, 2);
    return p;
}

static void check_linear(const problem *p)
{
    const lh_linear_args *a = &p->a;
    double *want = data_host(a->n_out, sizeof *want);

    CHECK_OK(kernels->linear(stream, a));
    float *got = act_host(p->dy, p->y_size);
    for (int64_t i = 0; i < a->n_rows; i++) {
        float *row = got + i * a->ldy, *before = p->y + i * a->ldy;
        ref_linear(want, p->x + i * a->ldx, p->w, 1, a->n_in, a->n_out);
        for (int64_t j = 0; j < a->n_out && a->accumulate; j++)
            want[j] += (double)before[j];
        double tol =
            tol_typical(TOL_PRODUCT(a->n_in), want, a->n_out, norm_of(p->x + i * a->ldx, a->n_in));
        CHECK_NEAR(row, want, a->n_out, tol);
        CHECK_SAME_BITS(row + a->n_out, before + a->n_out, 5 * sizeof *row);
    }
}

static void test_linear(void)
{
    for (int i = 0; i < N_SHAPES; i++, data_free()) {
        problem p = problem_of(&shapes[i]);
        check_linear(&p);
        p = problem_of(&shapes[i]);
        p.a.accumulate = 1;
        check_linear(&p);
    }
}

/* Logits: f32 whatever the activations are. */
static void test_f32_out(void)
{
    problem p = problem_of(&shapes[4]);
    double *want = data_host(p.a.n_out, sizeof *want);
    float *y = data_device(p.y, p.y_size, sizeof *y);

    p.a.y = y;
    p.a.f32_out = 1;
    CHECK_OK(kernels->linear(stream, &p.a));
    float *got = f32_host(y, p.y_size);
    for (int64_t i = 0; i < p.a.n_rows; i++) {
        ref_linear(want, p.x + i * p.a.ldx, p.w, 1, p.a.n_in, p.a.n_out);
        CHECK_NEAR(got + i * p.a.ldy, want, p.a.n_out, f32_tol(SUM(p.a.n_in)));
    }
    data_free();
}

static float *run_linear(const problem *p)
{
    act_upload(p->dy, p->y, p->y_size);
    CHECK_OK(kernels->linear(stream, &p->a));
    return act_host(p->dy, p->y_size);
}

static void check_linear_bits(problem p)
{
    lh_linear_args a = p.a;
    size_t act = kernels->act_bytes;

    reopen(1);
    float *one = run_linear(&p);
    for (int n_threads = 2; n_threads <= 3; n_threads++) {
        reopen(n_threads);
        CHECK_SAME_BITS(run_linear(&p), one, (size_t)p.y_size * sizeof *one);
    }
    for (int i = 0; i < a.tiles.n; i++) { /* each tile alone */
        int64_t first = a.tiles.start[i], n = a.tiles.start[i + 1] - first, start[2] = {0, n};
        size_t x_at = (size_t)(first * a.ldx) * act, y_at = (size_t)(first * a.ldy) * act;
        p.a.tiles = (lh_tiles){.n = 1, .start = start};
        p.a.n_rows = n;
        p.a.x = (char *)p.dx + x_at;
        p.a.y = (char *)p.dy + y_at;
        CHECK_SAME_BITS(run_linear(&p) + first * a.ldy, one + first * a.ldy,
                        (size_t)(n * a.ldy) * sizeof *one);
        if (n != 1 || a.n_out < act_width(3) * 3)
            continue;
        int64_t from = act_width(a.n_out / 3); /* a slice of the outputs of a row */
        p.a.w = a.w + from * a.n_in;
        p.a.n_out = a.n_out - from;
        p.a.y = (char *)p.dy + y_at + (size_t)from * act;
        CHECK_SAME_BITS(run_linear(&p) + first * a.ldy + from, one + first * a.ldy + from,
                        (size_t)p.a.n_out * sizeof *one);
        p.a.w = a.w;
        p.a.n_out = a.n_out;
    }
    reopen(2);
}

static void test_linear_bits(void)
{
    for (int i = 0; i < N_SHAPES; i++, data_free())
        check_linear_bits(problem_of(&shapes[i]));
}

/* NaN and infinity show in their row only; in one-row tiles and in others. */
static void test_linear_nan(void)
{
    for (int i = 3; i < 5; i++, data_free()) {
        problem p = problem_of(&shapes[i]);
        int64_t last = p.a.n_rows - 1;
        p.x[0] = NAN;
        p.x[last * p.a.ldx + p.a.n_in - 1] = NAN;
        act_upload(p.dx, p.x, p.a.n_rows * p.a.ldx);
        CHECK_OK(kernels->linear(stream, &p.a));
        float *y = act_host(p.dy, p.y_size);
        for (int64_t j = 0; j < p.a.n_out; j++) {
            CHECK(isnan(y[j]) && isnan(y[last * p.a.ldy + j]));
            CHECK(isfinite(y[p.a.ldy + j]));
        }
    }
}

/* Extreme inputs: all zero, denormal, large. */
static void test_linear_extreme(void)
{
    static const double scales[] = {0, 1e-41, 1e-30, 1e30};
    for (int i = 0; i < 4; i++, data_free()) {
        problem p = problem_of(&shapes[4]);
        p.x = act_random(p.a.n_rows * p.a.ldx, scales[i]);
        p.a.x = act_device(p.x, p.a.n_rows * p.a.ldx);
        if (i != 1)
            check_linear(&p);
        else /* a denormal has few bits; lost altogether it must not be */
            CHECK_OK(kernels->linear(stream, &p.a));
        CHECK(isfinite(act_host(p.dy, 1)[0]));
    }
}

/* The ids are the largest keys but for ties within `tol`, rising; the weights are theirs. */
static void check_choice(const int32_t *id, const float *weight, const double *logits,
                         const float *bias, int n, int top_k, int renormalize, double scale,
                         double tol)
{
    double least = INFINITY, sum = 0, want[LH_MAX_TOP_K];

    for (int j = 0; j < top_k; j++) {
        CHECK(id[j] >= 0 && id[j] < n && (j == 0 || id[j] > id[j - 1]));
        if (id[j] < 0 || id[j] >= n)
            return;
        want[j] = ref_sigmoid(logits[id[j]]);
        least = fmin(least, want[j] + (double)bias[id[j]]);
        sum += want[j];
    }
    for (int e = 0, j = 0; e < n; e++) {
        if (j < top_k && id[j] == e)
            j++;
        else
            CHECK(ref_sigmoid(logits[e]) + (double)bias[e] <= least + tol);
    }
    for (int j = 0; j < top_k; j++)
        want[j] *= renormalize ? scale / (sum + 1e-20) : scale;
    CHECK_NEAR(weight, want, top_k, tol);
}

typedef struct router_problem {
    lh_router_args a;
    float *x, *bias;
    lh_bf16 *w;
} router_problem;

/* n_out experts. */
static router_problem router_problem_of(const shape *s, int top_k, int renormalize)
{
    router_problem p = {.a = {.tiles = tiles_of(s), .top_k = top_k, .scale = 2.446f}};
    lh_router_args *a = &p.a;
    int64_t n = a->n_rows = a->tiles.start[s->n_tiles], d = a->d = act_width(s->n_in);

    a->n_experts = (int)s->n_out;
    a->renormalize = renormalize;
    p.x = act_random(n * d, 1 / sqrt((double)d));
    p.bias = act_random(s->n_out, 0.1);
    p.w = bf16_random(s->n_out * d, 1);
    a->x = act_device(p.x, n * d);
    a->w = data_device(p.w, s->n_out * d, 2);
    a->bias = data_device(p.bias, s->n_out, 4);
    a->expert = data_device(data_host(n * top_k, 4), n * top_k, 4);
    a->weight = data_device(data_host(n * top_k, 4), n * top_k, 4);
    a->scores = data_device(data_host(n * s->n_out, 4), n * s->n_out, 4);
    return p;
}

static int32_t *ids_host(const int32_t *device, int64_t n)
{
    int32_t *x = data_host(n, sizeof *x);
    CHECK_OK(kernels->device->download(stream, x, device, (size_t)n * sizeof *x));
    CHECK_OK(kernels->device->sync(stream));
    return x;
}

static void check_router(const shape *s, int top_k, int renormalize, int deterministic)
{
    router_problem p = router_problem_of(s, top_k, renormalize);
    lh_router_args a = p.a;
    int64_t size = a.n_rows * top_k;
    double *logits = data_host(a.n_rows * a.n_experts, sizeof *logits), want[LH_MAX_TOP_K];
    double tol = f32_tol(SUM(a.d) + 8 * EPS);
    int32_t want_id[LH_MAX_TOP_K];

    CHECK_OK(kernels->router(stream, &a));
    float *weight = f32_host(a.weight, size);
    int32_t *id = ids_host(a.expert, size);
    ref_linear(logits, p.x, p.w, a.n_rows, a.d, a.n_experts);
    for (int64_t i = 0; i < a.n_rows; i++) {
        const double *row = logits + i * a.n_experts;
        ref_route(want_id, want, row, p.bias, a.n_experts, top_k, renormalize, (double)a.scale);
        if (kernels->act_bytes == 4)
            CHECK_SAME_BITS(id + i * top_k, want_id, (size_t)top_k * sizeof *want_id);
        check_choice(id + i * top_k, weight + i * top_k, row, p.bias, a.n_experts, top_k,
                     renormalize, (double)a.scale, tol);
    }
    for (int i = 0; i < a.tiles.n && deterministic; i++) { /* each tile alone */
        int64_t first = a.tiles.start[i], n = a.tiles.start[i + 1] - first, start[2] = {0, n};
        lh_router_args b = a;
        b.tiles = (lh_tiles){.n = 1, .start = start};
        b.n_rows = n;
        b.x = (const char *)a.x + (size_t)(first * a.d) * kernels->act_bytes;
        CHECK_OK(kernels->router(stream, &b));
        CHECK_SAME_BITS(f32_host(b.weight, n * top_k), weight + first * top_k,
                        (size_t)(n * top_k) * sizeof *weight);
        CHECK_SAME_BITS(ids_host(b.expert, n * top_k), id + first * top_k,
                        (size_t)(n * top_k) * sizeof *id);
    }
}

static void check_routers(int deterministic)
{
    for (int i = 0; i < N_SHAPES; i++) {
        int n = (int)shapes[i].n_out;
        check_router(&shapes[i], n < 8 ? n : 8, i % 2, deterministic);
        data_free();
        check_router(&shapes[i], 1, 1, deterministic);
        data_free();
    }
    check_router(&shapes[4], 64, 1, deterministic);
    data_free();
    /* long sums for many rows, and for few of them alone */
    check_router(&(shape){600, 300, 4, {1100, 2, 40, 1}}, 8, 1, deterministic);
    data_free();
}

static void test_router(void)
{
    check_routers(1);
    if (kernels == &lh_kernels_cpu) /* is always deterministic */
        return;
    reopen_as(2, 0);
    check_routers(0);
    reopen(2);
}

/* Equal scores go to the lower ids; a NaN is chosen, and its weight is NaN. */
static void test_router_ties(void)
{
    enum { N = 40, K = 6, D = 8 };
    float x[D] = {0}, bias[N] = {0}, zero[N * D] = {0};
    int64_t start[] = {0, 1};
    lh_router_args a = {.n_rows = 1, .d = D, .n_experts = N, .top_k = K, .scale = 2};

    a.tiles = (lh_tiles){.n = 1, .start = start};
    a.expert = data_device(zero, K, 4), a.weight = data_device(zero, K, 4);
    a.scores = data_device(zero, N, 4), a.w = data_device(zero, N * D, 2);
    bias[30] = bias[20] = 1;
    a.x = act_device(x, D), a.bias = data_device(bias, N, 4);
    CHECK_OK(kernels->router(stream, &a));
    for (int j = 0; j < K; j++) {
        CHECK_EQ(ids_host(a.expert, K)[j], j < 4 ? j : j == 4 ? 20 : 30);
        CHECK(f32_host(a.weight, K)[j] == 1.0f); /* without the bias */
    }
    bias[35] = NAN;
    a.bias = data_device(bias, N, 4);
    CHECK_OK(kernels->router(stream, &a));
    CHECK_EQ(ids_host(a.expert, K)[K - 1], 35);
    x[0] = NAN;
    a.x = act_device(x, D);
    CHECK_OK(kernels->router(stream, &a));
    float *weight = f32_host(a.weight, K);
    CHECK(isnan(weight[0]) && isnan(weight[K - 1]));
    data_free();
}

typedef struct ffn_problem {
    lh_ffn_args a;
    float *x;
    const lh_bf16 *w[3][3]; /* gate, up, down of each network, on the host */
    const lh_bf16 *dw[3][3];
    int32_t net[MAX_TILES];
} ffn_problem;

/* d is the shape's n_in, d_hidden its n_out. */
static void ffn_problem_of(ffn_problem *p, const shape *s)
{
    lh_ffn_args *a = &p->a;
    int64_t d = act_width(s->n_in), h = act_width(s->n_out);

    *a = (lh_ffn_args){.n_nets = 3, .d = d, .d_hidden = h, .tiles = tiles_of(s), .net = p->net};
    a->n_rows = a->tiles.start[s->n_tiles];
    for (int i = 0; i < s->n_tiles; i++)
        p->net[i] = (2 + 3 * i / s->n_tiles) % 3;
    for (int m = 0; m < 3; m++)
        for (int net = 0; net < 3; net++) {
            p->w[m][net] = bf16_random(d * h, 1 / sqrt((double)(m < 2 ? d : h)));
            p->dw[m][net] = data_device(p->w[m][net], d * h, 2);
        }
    a->w_gate = p->dw[0], a->w_up = p->dw[1], a->w_down = p->dw[2];
    p->x = act_random(a->n_rows * d, 2);
    a->x = act_device(p->x, a->n_rows * d);
    a->y = act_device(p->x, a->n_rows * d);
    a->work = act_device(data_host(a->n_rows * 2 * h, 4), a->n_rows * 2 * h);
}

static void check_ffn(const ffn_problem *p)
{
    const lh_ffn_args *a = &p->a;
    int64_t size = a->n_rows * a->d;
    double *want = data_host(size, sizeof *want);

    CHECK_OK(kernels->ffn(stream, a));
    for (int i = 0; i < a->tiles.n; i++) {
        int64_t at = a->tiles.start[i] * a->d;
        int net = p->net[i];
        ref_ffn(want + at, p->x + at, p->w[0][net], p->w[1][net], p->w[2][net],
                a->tiles.start[i + 1] - a->tiles.start[i], a->d, a->d_hidden);
    }
    for (int64_t i = 0; i < size && a->accumulate; i++)
        want[i] += (double)p->x[i];
    CHECK_ACT(a->y, want, size, TOL_FFN(a->d, a->d_hidden));
}

static void check_ffn_bits(ffn_problem *p)
{
    lh_ffn_args a = p->a;
    int64_t size = a.n_rows * a.d;

    reopen(1);
    CHECK_OK(kernels->ffn(stream, &a));
    float *one = act_host(a.y, size);
    reopen(3);
    CHECK_OK(kernels->ffn(stream, &a));
    CHECK_SAME_BITS(act_host(a.y, size), one, (size_t)size * sizeof *one);
    for (int i = 0; i < a.tiles.n; i++) { /* each tile alone */
        int64_t first = a.tiles.start[i], n = a.tiles.start[i + 1] - first, start[2] = {0, n};
        lh_ffn_args b = a;
        b.tiles = (lh_tiles){.n = 1, .start = start};
        b.n_rows = n;
        b.net = a.net + i;
        b.x = (const char *)a.x + (size_t)(first * a.d) * kernels->act_bytes;
        CHECK_OK(kernels->ffn(stream, &b));
        CHECK_SAME_BITS(act_host(b.y, n * a.d), one + first * a.d, (size_t)(n * a.d) * sizeof *one);
    }
    reopen(2);
}

static void test_ffn(void)
{
    static ffn_problem p;
    for (int i = 0; i < N_SHAPES; i++, data_free()) {
        if (shapes[i].n_in == 5000)
            continue;
        ffn_problem_of(&p, &shapes[i]);
        check_ffn(&p);
        check_ffn_bits(&p);
        ffn_problem_of(&p, &shapes[i]);
        p.a.accumulate = 1;
        check_ffn(&p);
    }
}

int main(int argc, char **argv)
{
    const char *missing = choose_backend(&argc, argv);
    if (missing)
        SKIP(missing);
    check_init(argc, argv);
    reopen(2);
    RUN(test_linear);
    RUN(test_f32_out);
    RUN(test_linear_bits);
    RUN(test_linear_nan);
    RUN(test_linear_extreme);
    RUN(test_router);
    RUN(test_router_ties);
    RUN(test_ffn);
    kernels->device->close(stream);
    return check_done();
}
