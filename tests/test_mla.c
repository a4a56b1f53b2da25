/* Attention of MLA, prefill and decode, against float64, and the same bits wherever they are
 * promised. */
#include "tests/mla_problem.h"

/* Queries of the runs at these positions; o has their rows one behind the other. */
static void prefill(float *o, const problem *p, int n_threads, int n_runs, const int64_t *start,
                    const int64_t *position, lh_tiles tiles)
{
    int64_t n_rows = start[n_runs], n_w = (int64_t)p->d.n_heads * (p->d.d_nope + p->d.d_v);
    const dims *d = &p->d;
    size_t bytes = kernels->mla_prefill_work_bytes(n_rows, d->n_heads, d->d_nope, d->d_rope, d->d_v,
                                                   d->d_latent);
    float *q = block(n_rows * q_row(d), sizeof *q);

    open_stream(n_threads);
    for (int r = 0; r < n_runs; r++)
        memcpy(q + start[r] * q_row(d), p->q + position[r] * q_row(d),
               (size_t)((start[r + 1] - start[r]) * q_row(d)) * sizeof *q);
    lh_mla_prefill_args a = {.o = fenced((size_t)(n_rows * o_row(d)) * kernels->act_bytes),
                             .q = act_device(q, n_rows * q_row(d)),
                             .latent = act_device(p->latent, cache_size(p)),
                             .w_kvb = data_device(p->w, n_w * d->d_latent, sizeof *p->w),
                             .n_rows = n_rows,
                             .n_runs = n_runs,
                             .run_start = start,
                             .run_position = position,
                             .tiles = tiles,
                             .n_heads = d->n_heads,
                             .d_nope = d->d_nope,
                             .d_rope = d->d_rope,
                             .d_v = d->d_v,
                             .d_latent = d->d_latent,
                             .work = fenced(bytes)};

    CHECK_OK(kernels->mla_prefill(stream, &a));
    take_result(o, a.o, n_rows * o_row(d));
    check_fence(a.work, bytes);
    free(q);
    data_free();
}

/* One run of n_rows queries from `position`, one tile. */
static void prefill_run(float *o, const problem *p, int n_threads, int64_t position, int64_t n_rows)
{
    int64_t start[] = {0, n_rows};
    prefill(o, p, n_threads, 1, start, &position, (lh_tiles){.n = 1, .start = start});
}

static void check_run(const problem *p, int64_t position, int64_t n_rows, double tolerance)
{
    int64_t n = n_rows * o_row(&p->d);
    float *o = block(n, sizeof *o);
    double *want = expect(p, position, n_rows);

    prefill_run(o, p, 2, position, n_rows);
    CHECK_NEAR(o, want, n, tolerance);
    free(want);
    free(o);
}

static void test_prefill_sizes(void)
{
    for (int i = 0; i < n_odd(); i++) {
        problem p = make(odd_dims(i), 530, 1);
        check_run(&p, 0, 1, tolerance());
        check_run(&p, 0, 131, tolerance());
        check_run(&p, 505, 25, tolerance());
        drop(&p);
    }
}

static void test_prefill_positions(void)
{
    static const int64_t position[] = {0,   1,   127, 128,  384,  385, 510,
                                       511, 512, 513, 1023, 1024, 1025};
    static const int64_t n_rows[] = {1, 2, 128, 150};
    problem p = make(dims_of(3), 1200, 1);

    for (size_t i = 0; i < sizeof position / sizeof position[0]; i++)
        for (size_t j = i % 2; j < sizeof n_rows / sizeof n_rows[0]; j += 2)
            check_run(&p, position[i], n_rows[j], tolerance());
    drop(&p);
}

/* Runs with a gap between them, tiles of all lengths, empty ones too. */
static void test_prefill_runs(void)
{
    problem p = make(dims_of(3), 1000, 1);
    int64_t start[] = {0, 40, 300}, position[] = {5, 600};
    int64_t tiles[] = {0, 0, 1, 40, 40, 200, 300, 300};
    int64_t row = o_row(&p.d);
    float *o = block(300 * row, sizeof *o);
    double *first = expect(&p, 5, 40), *second = expect(&p, 600, 260);

    prefill(o, &p, 2, 2, start, position, (lh_tiles){.n = 7, .start = tiles});
    CHECK_NEAR(o, first, 40 * row, tolerance());
    CHECK_NEAR(o + 40 * row, second, 260 * row, tolerance());
    prefill(o, &p, 2, 0, start, NULL, (lh_tiles){.n = 0, .start = start});
    free(second);
    free(first);
    free(o);
    drop(&p);
}

/* Scores that differ by 1,000 and more: an error of one part in 1e7 of a score is 1e-4 of its
 * weight. Where that is lost in the rounding of bf16 the results are still means of the values.
 * Equal scores: the mean of the values. */
static void test_extreme_scores(void)
{
    problem p = make(dims_of(3), 1100, 400);
    int exact = kernels->act_bytes == 4;
    double tol = exact ? 2e-3 : 2;

    check_run(&p, 0, 300, tol);
    check_run(&p, 1000, 100, tol);
    check_decode(&p, 2, (const int64_t[]){1100, 300}, tol);
    for (int64_t i = 0; i < p.n_keys * q_row(&p.d); i++)
        p.q[i] = act_round(p.q[i] / 50); /* scores of order 8 */
    tol = exact ? 1e-4 : 4e-2;
    check_run(&p, 1000, 100, tol);
    check_decode(&p, 2, (const int64_t[]){1100, 300}, tol);
    memset(p.q, 0, (size_t)(p.n_keys * q_row(&p.d)) * sizeof *p.q);
    check_run(&p, 450, 100, tolerance());
    check_decode(&p, 2, (const int64_t[]){1100, 300}, tolerance());
    drop(&p);
}

/* A prompt at once, in blocks, with any number of threads, and with another cache behind it. */
static void test_prefill_bits(void)
{
    problem p = make(kernels->act_bytes == 2 ? dims_of(2) : odd[1], 1300, 1);
    int64_t n = 1300, row = o_row(&p.d), ld = p.d.d_latent + p.d.d_rope;
    float *whole = block(n * row, sizeof *whole), *o = block(n * row, sizeof *o);

    prefill_run(whole, &p, 1, 0, n);
    for (int threads = 2; threads <= 3; threads++) {
        prefill_run(o, &p, threads, 0, n);
        CHECK_SAME_BITS(o, whole, (size_t)(n * row) * sizeof *o);
    }
    for (int64_t size = 128; size <= 1024; size *= 2) {
        for (int64_t at = 0; at < n; at += size)
            prefill_run(o + at * row, &p, 2, at, lh_min64(size, n - at));
        CHECK_SAME_BITS(o, whole, (size_t)(n * row) * sizeof *o);
    }
    for (int64_t i = 640 * ld; i < lh_round_up(n, LH_KEY_TILE) * ld; i++)
        p.latent[i] = 1e30f;
    prefill_run(o, &p, 2, 0, 640);
    CHECK_SAME_BITS(o, whole, (size_t)(640 * row) * sizeof *o);
    free(o);
    free(whole);
    drop(&p);
}

/* Other pieces in the call, before, behind and in other runs, do not show. */
static void test_prefill_pieces(void)
{
    problem p = make(kernels->act_bytes == 2 ? dims_of(2) : odd[1], 1300, 1);
    int64_t start[] = {0, 200, 505}, position[] = {30, 900};
    int64_t tiles[] = {0, 100, 200, 355, 505};
    int64_t row = o_row(&p.d);
    float *o = block(505 * row, sizeof *o), *alone = block(155 * row, sizeof *alone);

    prefill(o, &p, 2, 2, start, position, (lh_tiles){.n = 4, .start = tiles});
    prefill_run(alone, &p, 2, 130, 100);
    CHECK_SAME_BITS(o + 100 * row, alone, (size_t)(100 * row) * sizeof *o);
    prefill_run(alone, &p, 2, 900, 155);
    CHECK_SAME_BITS(o + 200 * row, alone, (size_t)(155 * row) * sizeof *o);
    free(alone);
    free(o);
    drop(&p);
}

/* Prefill and decode are computed in different ways, and agree over a context that is too long for
 * the reference, across the end of a block of expanded keys. */
static void test_long_context(void)
{
    const int64_t n = 66000, first = 65400;
    const int64_t n_keys[] = {first + 1, 65535, 65536, 65537, 65600, n};
    problem p = make(dims_of(2), n, 1);
    int64_t row = o_row(&p.d);
    float *o = block((n - first) * row, sizeof *o), *one = block(6 * row, sizeof *one);

    prefill_run(o, &p, 2, first, n - first);
    for (deterministic = 0; deterministic <= 1; deterministic++) {
        decode(one, &p, 2, 6, n_keys, 0, 2);
        for (int i = 0; i < 6; i++)
            CHECK_NEAR(one + i * row, o + (n_keys[i] - 1 - first) * row, row, 2 * tolerance());
    }
    deterministic = 1;
    free(one);
    free(o);
    drop(&p);
}

static void test_work_bytes(void)
{
    const lh_kernels *k = kernels;

    CHECK_EQ(k->mla_prefill_work_bytes(0, 4, 128, 64, 128, 512), 0);
    CHECK_EQ(k->mla_decode_work_bytes(0, 100, 4, 512, 64), 0);
    CHECK(k->mla_prefill_work_bytes(INT64_MAX, 4, 128, 64, 128, 512) == SIZE_MAX);
    if (k == &lh_kernels_cpu)
        CHECK(k->mla_decode_work_bytes(INT64_MAX, INT64_MAX / 2, 4, 512, 64) == SIZE_MAX);
}

int main(int argc, char **argv)
{
    const char *missing = choose_backend(&argc, argv);

    if (missing)
        SKIP(missing);
    check_init(argc, argv);
    RUN(test_prefill_sizes);
    RUN(test_prefill_positions);
    RUN(test_prefill_runs);
    RUN(test_extreme_scores);
    RUN(test_prefill_bits);
    RUN(test_prefill_pieces);
    if (kernels->act_bytes == 2)
        RUN(test_long_context);
    RUN(test_work_bytes);
    kernels->device->close(stream);
    return check_done();
}
