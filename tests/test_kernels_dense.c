/*
 * The operations that work row by row, against the float64 reference.
 *
 * Tolerances are relative to the largest result, in units of f32's rounding (2^-24); what a backend
 * adds to them is in tests/kernel_data.h. A sum of n
 * terms of random sign is off by about sqrt(n) roundings of its partial sums, here in 32 partial
 * sums; a norm's sum of squares enters by its root; sigmoid and softplus are off by 4 roundings.
 */
#include "tests/kernel_data.h"
#include "tests/reference/reference.h"

#define EPS 0x1p-24
/* sum of squares, root, two products */
#define TOL_NORM(n) act_tol((8 + sqrt((double)(n)) / 8) * EPS)
#define TOL_GATE(n) act_tol((12 + sqrt((double)(n)) / 8) * EPS) /* and a sigmoid */
#define TOL_CONV(taps) act_tol((8 + (taps)) * EPS)              /* a short sum, a silu */
#define TOL_SUM(n) act_tol((4 + (n)) * EPS)                     /* a short sum */

static const int64_t row_counts[] = {0, 1, 2, 3, 63, 64, 65, 511, 513, 1000};
static const int64_t widths[] = {1, 7, 16, 33, 96, 256, 2304};
#define N_ROW_COUNTS (int)(sizeof row_counts / sizeof row_counts[0])
#define N_WIDTHS (int)(sizeof widths / sizeof widths[0])

/* Many rows only with short rows: the reference is slow. */
#define FOR_SHAPES(n_rows, width)                                                                  \
    for (int case_ = 0; case_ < N_ROW_COUNTS * N_WIDTHS; case_++, data_free())                     \
        for (int64_t n_rows = row_counts[case_ / N_WIDTHS],                                        \
                     width = act_width(widths[case_ % N_WIDTHS]), go_ = 1;                         \
             go_ && n_rows * width <= 300000; go_ = 0)

static void test_embed(void)
{
    FOR_SHAPES(n, d)
    {
        int64_t n_vocab = 50;
        lh_bf16 *table = bf16_random(n_vocab * d, 1);
        int32_t *ids = data_host(n, sizeof *ids);
        for (int64_t i = 0; i < n; i++)
            ids[i] = (int32_t)(check_random() % (uint64_t)n_vocab);
        void *out = act_device(act_random(n * d, 1), n * d);
        CHECK_OK(kernels->embed(stream, &(lh_embed_args){
                                            .out = out,
                                            .ids = data_device(ids, n, sizeof *ids),
                                            .table = data_device(table, n_vocab * d, 2),
                                            .n_rows = n,
                                            .d = d,
                                            .n_vocab = n_vocab,
                                        }));
        float *got = act_host(out, n * d);
        int64_t wrong = 0;
        for (int64_t i = 0; i < n * d; i++)
            wrong += got[i] != lh_bf16_to_f32(table[ids[i / d] * d + i % d]);
        CHECK_EQ(wrong, 0);
    }
}

static void check_rmsnorm(int64_t n, int64_t d, double scale, double eps)
{
    float *x = act_random(n * d, scale);
    lh_bf16 *w = bf16_random(d, 1);
    double *want = data_host(n * d, sizeof *want);
    void *dx = act_device(x, n * d), *y = act_device(x, n * d);
    lh_rmsnorm_args a = {
        .y = y, .x = dx, .w = data_device(w, d, 2), .n_rows = n, .d = d, .eps = (float)eps};

    ref_rmsnorm(want, x, w, n, d, (double)a.eps);
    CHECK_OK(kernels->rmsnorm(stream, &a));
    float *got = act_host(y, n * d);
    CHECK_NEAR(got, want, n * d, TOL_NORM(d));
    a.y = dx; /* in place */
    CHECK_OK(kernels->rmsnorm(stream, &a));
    CHECK_SAME_BITS(act_host(dx, n * d), got, (size_t)(n * d) * sizeof *got);
}

static void test_rmsnorm(void)
{
    FOR_SHAPES(n, d) check_rmsnorm(n, d, 1, 1e-5);
    static const double scales[] = {0, 1e-30, 1e-3, 1e4, 1e15};
    for (int i = 0; i < 5; i++, data_free())
        check_rmsnorm(3, 96, scales[i], 1e-5);
}

static void check_short_conv(int64_t n, int64_t channels, int taps)
{
    int64_t ldx = channels + act_width(3), pad = act_width(5), ldy = channels + pad;
    int64_t n_halo = (taps - 1) * ldx;
    float *x = act_random(n_halo + n * ldx, 1);
    lh_bf16 *w = bf16_random(channels * taps, 1);
    float *dense = data_host((n + taps - 1) * channels, sizeof *dense);
    double *want = data_host(n * channels, sizeof *want);
    float *y0 = act_random(n * ldy, 1);
    void *y = act_device(y0, n * ldy);
    char *dx = act_device(x, n_halo + n * ldx);

    for (int64_t t = 0; t < n + taps - 1; t++)
        memcpy(dense + t * channels, x + t * ldx, (size_t)channels * sizeof *x);
    ref_short_conv(want, dense + (taps - 1) * channels, dense, w, n, channels, taps);
    CHECK_OK(kernels->short_conv(stream, &(lh_short_conv_args){
                                             .y = y,
                                             .ldy = ldy,
                                             .x = dx + (size_t)n_halo * kernels->act_bytes,
                                             .ldx = ldx,
                                             .halo = dx,
                                             .w = data_device(w, channels * taps, 2),
                                             .n_rows = n,
                                             .n_channels = channels,
                                             .taps = taps,
                                         }));
    float *got = act_host(y, n * ldy);
    for (int64_t t = 0; t < n; t++)
        CHECK_NEAR(got + t * ldy, want + t * channels, channels, TOL_CONV(taps));
    for (int64_t t = 0; t < n; t++) /* between the rows nothing was touched */
        CHECK_SAME_BITS(got + t * ldy + channels, y0 + t * ldy + channels,
                        (size_t)pad * sizeof *got);
}

static void test_short_conv(void)
{
    static const int64_t shapes[][3] = {{0, 7, 4},   {1, 7, 4},    {2, 16, 4},  {3, 33, 2},
                                        {65, 96, 8}, {200, 33, 3}, {3, 513, 4}, {130, 1100, 4}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++, data_free())
        check_short_conv(shapes[i][0], act_width(shapes[i][1]), (int)shapes[i][2]);
}

/* Against short_conv, whose bits it has. */
static void check_conv_step(int64_t n_seq, int64_t channels, int taps)
{
    int64_t width = 3 * channels, kept = (taps - 1) * width;
    float *x = act_random(n_seq * width, 1), *old = act_random(n_seq * kept, 1);
    char *dx = act_device(x, n_seq * width), *want[3];
    void **rows = data_host(n_seq, sizeof *rows);
    lh_conv_step_args a = {.x = dx, .n_seq = n_seq, .n_channels = channels, .taps = taps};
    size_t part_bytes = (size_t)channels * kernels->act_bytes;

    for (int64_t i = 0; i < n_seq; i++)
        rows[i] = act_device(old + i * kept, kept);
    a.rows = data_device(rows, n_seq, sizeof *rows);
    for (int c = 0; c < 3; c++) {
        a.w[c] = data_device(bf16_random(channels * taps, 1), channels * taps, 2);
        a.y[c] = act_device(x, n_seq * channels);
        want[c] = act_device(x, n_seq * channels);
        for (int64_t i = 0; i < n_seq; i++)
            CHECK_OK(kernels->short_conv(
                stream, &(lh_short_conv_args){.y = want[c] + (size_t)i * part_bytes,
                                              .ldy = channels,
                                              .x = dx + (size_t)(3 * i + c) * part_bytes,
                                              .ldx = width,
                                              .halo = (char *)rows[i] + (size_t)c * part_bytes,
                                              .w = a.w[c],
                                              .n_rows = 1,
                                              .n_channels = channels,
                                              .taps = taps}));
    }
    CHECK_OK(kernels->conv_step(stream, &a));
    for (int c = 0; c < 3; c++)
        CHECK_SAME_BITS(act_host(a.y[c], n_seq * channels), act_host(want[c], n_seq * channels),
                        (size_t)(n_seq * channels) * sizeof(float));
    for (int64_t i = 0; i < n_seq; i++) {
        const float *now = act_host(rows[i], kept);
        CHECK_SAME_BITS(now, old + i * kept + width, (size_t)(kept - width) * sizeof *now);
        CHECK_SAME_BITS(now + kept - width, x + i * width, (size_t)width * sizeof *now);
    }
}

static void test_conv_step(void)
{
    static const int64_t shapes[][3] = {{0, 7, 4},   {1, 7, 4},    {2, 33, 2},
                                        {5, 96, 8},  {3, 16, 3},   {4, 513, 5},
                                        {2, 100, 6}, {1, 4096, 4}, {9, 1100, 7}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++, data_free())
        check_conv_step(shapes[i][0], act_width(shapes[i][1]), (int)shapes[i][2]);
}

static void check_kda_gate(int64_t n, int n_heads, int d_k, double scale)
{
    int64_t heads = n * n_heads, size = heads * d_k;
    float *q = act_random(size, scale), *k = act_random(size, scale);
    float *f = act_random(size, 8 * scale), *b = act_random(heads, 3 * scale);
    float *a_log = data_host(n_heads, sizeof *a_log);
    float *dt_bias = data_host(n_heads * d_k, sizeof *dt_bias);
    double *want = data_host(size, sizeof *want);
    for (int i = 0; i < n_heads; i++)
        a_log[i] = (float)(check_uniform() * 2.7);
    for (int i = 0; i < n_heads * d_k; i++)
        dt_bias[i] = (float)check_normal();
    void *dq = act_device(q, size), *dk = act_device(k, size);
    float *g = data_device(q, size, 4), *beta = data_device(b, heads, 4);

    CHECK_OK(kernels->kda_gate(stream, &(lh_kda_gate_args){
                                           .q = dq,
                                           .k = dk,
                                           .f = act_device(f, size),
                                           .b = act_device(b, heads),
                                           .a_log = data_device(a_log, n_heads, 4),
                                           .dt_bias = data_device(dt_bias, n_heads * d_k, 4),
                                           .g = g,
                                           .beta = beta,
                                           .n_rows = n,
                                           .n_heads = n_heads,
                                           .d_k = d_k,
                                       }));
    for (int64_t i = 0; i < heads; i++)
        ref_l2norm(want + i * d_k, q + i * d_k, d_k, 1 / sqrt(d_k));
    CHECK_ACT(dq, want, size, TOL_NORM(d_k));
    for (int64_t i = 0; i < heads; i++)
        ref_l2norm(want + i * d_k, k + i * d_k, d_k, 1);
    CHECK_ACT(dk, want, size, TOL_NORM(d_k));
    for (int64_t i = 0; i < heads; i++)
        want[i] = ref_sigmoid((double)b[i]);
    CHECK_F32(beta, want, heads, f32_tol(4 * EPS));

    /* the decay is right relative to itself: a weak one matters over many tokens */
    double worst = 0;
    float *got = f32_host(g, size);
    ref_kda_decay(want, f, a_log, dt_bias, n, n_heads, d_k);
    for (int64_t i = 0; i < size; i++) {
        double e = fabs((double)got[i] - want[i]);
        if (!(e <= worst * fabs(want[i])) && want[i] < -1e-36)
            worst = e / -want[i];
    }
    CHECK_MSG(worst <= f32_tol(8 * EPS), "g: off by %g of itself", worst);
}

static void test_kda_gate(void)
{
    static const int shapes[][3] = {{0, 1, 16}, {1, 1, 1},   {1, 4, 128}, {3, 3, 7},
                                    {2, 5, 33}, {65, 4, 32}, {9, 32, 128}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++, data_free())
        check_kda_gate(shapes[i][0], shapes[i][1], (int)act_width(shapes[i][2]), 1);
    static const double scales[] = {0, 1e-4, 1e-20, 10, 1e4};
    for (int i = 0; i < 5; i++, data_free())
        check_kda_gate(3, 2, 16, scales[i]);
}

static void test_gated_norm(void)
{
    FOR_SHAPES(n, d)
    {
        int n_heads = 1 + (int)(n % 3);
        if (kernels->act_bytes == 2 && d > 256)
            continue; /* of one head */
        int64_t size = n * n_heads * d;
        float *o = act_random(size, 1), *z = act_random(size, 4);
        lh_bf16 *w = bf16_random(d, 1);
        double *want = data_host(size, sizeof *want);
        void *y = act_device(o, size);
        lh_gated_norm_args a = {
            .y = y, .o = act_device(o, size), .z = act_device(z, size), .n_rows = n};
        a.w = data_device(w, d, 2), a.n_heads = n_heads, a.d = (int)d, a.eps = 1e-5f;

        ref_gated_norm(want, o, z, w, n * n_heads, (int)d, (double)a.eps);
        CHECK_OK(kernels->gated_norm(stream, &a));
        float *got = act_host(y, size);
        CHECK_NEAR(got, want, size, TOL_GATE(d));
        a.y = data.device[0], a.o = a.y; /* y again, as its own input */
        CHECK_OK(
            kernels->device->copy(stream, a.y, data.device[1], (size_t)size * kernels->act_bytes));
        CHECK_OK(kernels->gated_norm(stream, &a));
        CHECK_SAME_BITS(act_host(a.y, size), got, (size_t)size * sizeof *got);
    }
}

static void test_latent(void)
{
    static const int shapes[][3] = {{0, 16, 4}, {1, 512, 64}, {3, 33, 0},
                                    {65, 7, 1}, {513, 32, 8}, {9, 2048, 300}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++, data_free()) {
        int n = shapes[i][0], d = (int)act_width(shapes[i][1]), r = (int)act_width(shapes[i][2]);
        int width = d + r;
        float *x = act_random(n * width, 1);
        lh_bf16 *w = bf16_random(d, 1);
        double want[2048];
        void *dx = act_device(x, n * width), *y = act_device(x, n * width);
        lh_latent_args a = {.y = y, .x = dx, .w = data_device(w, d, 2), .n_rows = n};
        a.d_latent = d, a.d_rope = r, a.eps = 1e-5f;

        CHECK_OK(kernels->latent(stream, &a));
        float *got = act_host(y, n * width);
        for (int64_t row = 0; row < n; row++) {
            ref_rmsnorm(want, x + row * width, w, 1, d, (double)a.eps);
            CHECK_NEAR(got + row * width, want, d, TOL_NORM(d));
            CHECK_SAME_BITS(got + row * width + d, x + row * width + d, (size_t)r * sizeof *got);
        }
        a.y = dx; /* in place */
        CHECK_OK(kernels->latent(stream, &a));
        CHECK_SAME_BITS(act_host(dx, n * width), got, (size_t)(n * width) * sizeof *got);
    }
}

/* To rows of one cache, and of one for each token: the bits that they have side by side, and
 * nothing else changes. */
static void test_latent_places(void)
{
    enum { N = 6, ROWS = 9, D = 64, ROPE = 16, WIDTH = D + ROPE };
    const int64_t place[N] = {3, 0, 8, 5, 7, 1};
    float *x = act_random(N * WIDTH, 1), *cache = act_random(ROWS * WIDTH, 1);
    void *side = act_device(x, N * WIDTH), *y = act_device(cache, ROWS * WIDTH), *caches[N];
    lh_latent_args a = {.y = side, .x = act_device(x, N * WIDTH), .n_rows = N, .eps = 1e-5f};
    a.w = data_device(bf16_random(D, 1), D, 2), a.d_latent = D, a.d_rope = ROPE;

    CHECK_OK(kernels->latent(stream, &a));
    const float *want = act_host(side, N * WIDTH);
    a.y = y;
    a.row = data_device(place, N, sizeof *place);
    CHECK_OK(kernels->latent(stream, &a));
    for (int i = 0; i < N; i++)
        caches[i] = act_device(cache, ROWS * WIDTH);
    a.y = NULL;
    a.caches = data_device(caches, N, sizeof *caches);
    CHECK_OK(kernels->latent(stream, &a));
    for (int i = 0; i <= N; i++) { /* the last one is y */
        float *all = data_host(ROWS * WIDTH, sizeof *all);
        memcpy(all, cache, ROWS * WIDTH * sizeof *all);
        for (int j = 0; j < N; j++)
            if (i == j || i == N)
                memcpy(all + place[j] * WIDTH, want + j * WIDTH, WIDTH * sizeof *all);
        CHECK_SAME_BITS(act_host(i < N ? caches[i] : y, ROWS * WIDTH), all,
                        ROWS * WIDTH * sizeof *all);
    }
    data_free();
}

static void test_gather_combine(void)
{
    FOR_SHAPES(n, d)
    {
        int top_k = 1 + (int)(n % 9);
        int64_t n_from = n * top_k + 5;
        float *x = act_random(n * d, 1), *rows = act_random(n_from * d, 1);
        float *shared = act_random(n * d, 1), *weight = data_host(n * top_k, sizeof *weight);
        int32_t *source = data_host(n * top_k, sizeof *source);
        double *want = data_host(n * d, sizeof *want);
        for (int64_t i = 0; i < n * top_k; i++) {
            source[i] = (int32_t)(check_random() % (uint64_t)n_from);
            weight[i] = (float)check_uniform();
        }
        void *dx = act_device(x, n * d), *gathered = act_device(x, n * d);
        lh_combine_args a = {.x = dx, .rows = act_device(rows, n_from * d), .n_rows = n, .d = d};
        a.source = data_device(source, n * top_k, sizeof *source);
        a.weight = data_device(weight, n * top_k, sizeof *weight);
        a.shared = n % 2 ? act_device(shared, n * d) : NULL;
        a.top_k = top_k;

        ref_combine(want, x, rows, source, weight, n % 2 ? shared : NULL, n, d, top_k);
        CHECK_OK(kernels->combine(stream, &a));
        CHECK_ACT(dx, want, n * d, tol_typical(TOL_SUM(top_k), want, n * d, 1));

        CHECK_OK(kernels->gather(
            stream, &(lh_gather_args){
                        .y = gathered, .x = a.rows, .index = a.source, .n_rows = n, .width = d}));
        float *got = act_host(gathered, n * d);
        for (int64_t i = 0; i < n; i++)
            CHECK_SAME_BITS(got + i * d, rows + source[i] * d, (size_t)d * sizeof *got);
    }
}

/* A NaN reaches its own row, and only that. */
static void test_nan(void)
{
    enum { N = 3, D = 40 };
    float *x = act_random(N * D, 1);
    lh_bf16 *w = data_device(bf16_random(D, 1), D, 2);

    x[D + 4] = NAN;
    void *dx = act_device(x, N * D), *y = act_device(x, N * D);
    CHECK_OK(kernels->rmsnorm(
        stream, &(lh_rmsnorm_args){.y = y, .x = dx, .w = w, .n_rows = N, .d = D, .eps = 1e-5f}));
    float *got = act_host(y, N * D);
    int n_nan = 0;
    for (int i = 0; i < N * D; i++)
        n_nan += isnan(got[i]) && i / D == 1;
    CHECK_EQ(n_nan, D);
    CHECK(!isnan(got[D - 1]) && !isnan(got[2 * D]));

    void *z = act_device(x, N * D), *o = act_device(act_random(N * D, 1), N * D);
    CHECK_OK(kernels->gated_norm(
        stream,
        &(lh_gated_norm_args){
            .y = y, .o = o, .z = z, .w = w, .n_rows = N, .n_heads = 1, .d = D, .eps = 1e-5f}));
    got = act_host(y, N * D);
    for (int i = 0; i < N * D; i++)
        CHECK(isnan(got[i]) == (i == D + 4));
    data_free();
}

/* Sizes that CUDA lacks are refused, with the reason. */
static void test_unsupported(void)
{
    _Alignas(16) char p[32] = {0};
    lh_rmsnorm_args a = {.y = p, .x = p, .w = (const void *)p, .n_rows = 1, .d = 33};

    if (kernels->act_bytes == 4)
        return;
    CHECK_STATUS(kernels->rmsnorm(stream, &a), LH_ERR_UNSUPPORTED);
    CHECK_STR(lh_last_error(), "rmsnorm: d is 33, the CUDA backend needs a multiple of 8");
    a.d = 1 << 20;
    CHECK_STATUS(kernels->rmsnorm(stream, &a), LH_ERR_UNSUPPORTED);
    CHECK_STATUS(kernels->rmsnorm(stream, &(lh_rmsnorm_args){.n_rows = -1, .d = 8}),
                 LH_ERR_INVALID);
    a.d = 8;
    a.x = p + 2;
    CHECK_STATUS(kernels->rmsnorm(stream, &a), LH_ERR_INVALID);
}

int main(int argc, char **argv)
{
    const char *missing = choose_backend(&argc, argv);
    if (missing)
        SKIP(missing);
    check_init(argc, argv);
    reopen(2);
    RUN(test_embed);
    RUN(test_rmsnorm);
    RUN(test_short_conv);
    RUN(test_conv_step);
    RUN(test_kda_gate);
    RUN(test_gated_norm);
    RUN(test_latent);
    RUN(test_latent_places);
    RUN(test_gather_combine);
    RUN(test_nan);
    RUN(test_unsupported);
    kernels->device->close(stream);
    return check_done();
}
