/* Attention of MLA, prefill and decode, against float64, and the same bits wherever they are
 * promised. */
#include "base/mem.h"
#include "kernels/kernels.h"
#include "tests/check.h"
#include "tests/reference/reference_mla.h"

/*
 * Sums of up to 576 and 1,300 terms in f32: the scores, of order 1, are off by a few 1e-7, and so
 * are the outputs relative to the largest. Measured: 1.2e-6.
 */
#define TOLERANCE 1e-5

typedef struct dims {
    int n_heads, d_nope, d_rope, d_v, d_latent;
} dims;

static const dims small = {3, 24, 8, 16, 32};
static const dims odd[] = {
    {1, 16, 8, 16, 32},  {2, 24, 16, 32, 48}, {4, 32, 8, 24, 16},     {5, 7, 3, 9, 11},
    {6, 48, 16, 16, 24}, {3, 70, 2, 65, 67},  {2, 128, 64, 128, 512},
};
#define N_ODD (int)(sizeof odd / sizeof odd[0])

typedef struct problem {
    dims d;
    int64_t n_keys; /* rows of q, too: row i is the query at position i */
    float *q, *latent;
    lh_bf16 *w;
} problem;

static int64_t q_row(const dims *d)
{
    return (int64_t)d->n_heads * (d->d_nope + d->d_rope);
}

static int64_t o_row(const dims *d)
{
    return (int64_t)d->n_heads * d->d_v;
}

static void *block(int64_t n, size_t bytes)
{
    void *p = NULL;
    CHECK_OK(lh_alloc(&p, (size_t)n * bytes, "test"));
    if (!p)
        abort();
    return p;
}

/* Memory of the cache behind the last row is filled, too: the contract says that it is there. */
static problem make(dims d, int64_t n_keys, double q_scale)
{
    problem p = {.d = d, .n_keys = n_keys};
    int64_t n_q = n_keys * q_row(&d), n_latent = (int64_t)d.d_latent + d.d_rope;
    int64_t n_w = (int64_t)d.n_heads * (d.d_nope + d.d_v) * d.d_latent;

    n_latent *= lh_round_up(n_keys, LH_KEY_TILE);
    p.q = block(n_q, sizeof *p.q);
    p.latent = block(n_latent, sizeof *p.latent);
    p.w = block(n_w, sizeof *p.w);
    for (int64_t i = 0; i < n_q; i++)
        p.q[i] = (float)(check_normal() * q_scale);
    for (int64_t i = 0; i < n_latent; i++)
        p.latent[i] = (float)check_normal();
    for (int64_t i = 0; i < n_w; i++)
        p.w[i] = lh_f32_to_bf16((float)(check_normal() / sqrt(d.d_latent)));
    return p;
}

static void drop(problem *p)
{
    free(p->q);
    free(p->latent);
    free(p->w);
}

static lh_stream *open_stream(int n_threads)
{
    lh_stream *s = NULL;
    CHECK_OK(lh_kernels_cpu.device->open(&s, 0, n_threads, 1));
    if (!s)
        abort();
    return s;
}

/* Work of exactly this size, full of NaN, with a fence behind it. */
#define FENCE 256
static void *work_open(size_t bytes)
{
    void *work = NULL;
    lh_stream *s = open_stream(1);
    CHECK_OK(lh_kernels_cpu.device->alloc(s, &work, bytes + FENCE, "work"));
    lh_kernels_cpu.device->close(s);
    memset(work, 0xff, bytes + FENCE);
    return work;
}

static void work_close(void *work, size_t bytes)
{
    int bad = 0;
    for (size_t i = 0; i < FENCE; i++)
        bad += ((unsigned char *)work)[bytes + i] != 0xff;
    CHECK_EQ(bad, 0);
    free(work);
}

/* Queries of the runs at these positions; o has their rows one behind the other. */
static void prefill(float *o, const problem *p, int n_threads, int n_runs, const int64_t *start,
                    const int64_t *position, lh_tiles tiles)
{
    int64_t n_rows = start[n_runs];
    const dims *d = &p->d;
    size_t bytes = lh_kernels_cpu.mla_prefill_work_bytes(n_rows, d->n_heads, d->d_nope, d->d_rope,
                                                         d->d_v, d->d_latent);
    void *work = work_open(bytes);
    float *q = block(n_rows * q_row(d), sizeof *q);
    lh_stream *s = open_stream(n_threads);
    lh_mla_prefill_args a = {.o = o,
                             .q = q,
                             .latent = p->latent,
                             .w_kvb = p->w,
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
                             .work = work};

    for (int r = 0; r < n_runs; r++)
        memcpy(q + start[r] * q_row(d), p->q + position[r] * q_row(d),
               (size_t)((start[r + 1] - start[r]) * q_row(d)) * sizeof *q);
    memset(o, 0xff, (size_t)(n_rows * o_row(d)) * sizeof *o);
    CHECK_OK(lh_kernels_cpu.mla_prefill(s, &a));
    lh_kernels_cpu.device->close(s);
    free(q);
    work_close(work, bytes);
}

/* One run of n_rows queries from `position`, one tile. */
static void prefill_run(float *o, const problem *p, int n_threads, int64_t position, int64_t n_rows)
{
    int64_t start[] = {0, n_rows};
    prefill(o, p, n_threads, 1, start, &position, (lh_tiles){.n = 1, .start = start});
}

/* The expected rows of queries at consecutive positions. */
static double *expect(const problem *p, int64_t position, int64_t n_rows)
{
    const dims *d = &p->d;
    reference_mla r = {.q = p->q + position * q_row(d),
                       .latent = p->latent,
                       .w_kvb = p->w,
                       .n_heads = d->n_heads,
                       .d_nope = d->d_nope,
                       .d_rope = d->d_rope,
                       .d_v = d->d_v,
                       .d_latent = d->d_latent};
    double *o = block(n_rows * o_row(d), sizeof *o);
    int64_t *at = block(n_rows, sizeof *at);

    for (int64_t i = 0; i < n_rows; i++)
        at[i] = position + i;
    reference_mla_attend(o, &r, n_rows, at);
    free(at);
    return o;
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
    for (int i = 0; i < N_ODD; i++) {
        problem p = make(odd[i], 530, 1);
        check_run(&p, 0, 1, TOLERANCE);
        check_run(&p, 0, 131, TOLERANCE);
        check_run(&p, 505, 25, TOLERANCE);
        drop(&p);
    }
}

static void test_prefill_positions(void)
{
    static const int64_t position[] = {0,   1,   127, 128,  384,  385, 510,
                                       511, 512, 513, 1023, 1024, 1025};
    static const int64_t n_rows[] = {1, 2, 128, 150};
    problem p = make(small, 1200, 1);

    for (size_t i = 0; i < sizeof position / sizeof position[0]; i++)
        for (size_t j = 0; j < sizeof n_rows / sizeof n_rows[0]; j++)
            check_run(&p, position[i], n_rows[j], TOLERANCE);
    drop(&p);
}

/* Runs with a gap between them, tiles of all lengths, empty ones too. */
static void test_prefill_runs(void)
{
    problem p = make(small, 1000, 1);
    int64_t start[] = {0, 40, 300}, position[] = {5, 600};
    int64_t tiles[] = {0, 0, 1, 40, 40, 200, 300, 300};
    int64_t row = o_row(&p.d);
    float *o = block(300 * row, sizeof *o);
    double *first = expect(&p, 5, 40), *second = expect(&p, 600, 260);

    prefill(o, &p, 2, 2, start, position, (lh_tiles){.n = 7, .start = tiles});
    CHECK_NEAR(o, first, 40 * row, TOLERANCE);
    CHECK_NEAR(o + 40 * row, second, 260 * row, TOLERANCE);
    prefill(o, &p, 2, 0, start, NULL, (lh_tiles){.n = 0, .start = start});
    free(second);
    free(first);
    free(o);
    drop(&p);
}

/* Decode of the sequences' last positions, of heads head .. head + n_heads - 1 of the problems. */
static void decode(float *o, const problem *p, int n_threads, int n_seq, const int64_t *n_keys,
                   int head, int n_heads)
{
    const dims *d = &p->d;
    int64_t d_qk = d->d_nope + d->d_rope, longest = 0;
    const void **latent = block(n_seq, sizeof *latent);
    float *q = block(n_seq * n_heads * d_qk, sizeof *q);

    for (int i = 0; i < n_seq; i++) {
        latent[i] = p->latent;
        memcpy(q + i * n_heads * d_qk, p->q + (n_keys[i] - 1) * q_row(d) + head * d_qk,
               (size_t)(n_heads * d_qk) * sizeof *q);
        longest = lh_max64(longest, n_keys[i]);
    }
    size_t bytes =
        lh_kernels_cpu.mla_decode_work_bytes(n_seq, longest, n_heads, d->d_latent, d->d_rope);
    void *work = work_open(bytes);
    lh_stream *s = open_stream(n_threads);
    lh_mla_decode_args a = {.o = o,
                            .q = q,
                            .latent = latent,
                            .n_keys = n_keys,
                            .max_keys = longest,
                            .w_kvb = p->w + (int64_t)head * (d->d_nope + d->d_v) * d->d_latent,
                            .n_seq = n_seq,
                            .n_heads = n_heads,
                            .d_nope = d->d_nope,
                            .d_rope = d->d_rope,
                            .d_v = d->d_v,
                            .d_latent = d->d_latent,
                            .work = work};

    memset(o, 0xff, (size_t)(n_seq * n_heads * d->d_v) * sizeof *o);
    CHECK_OK(lh_kernels_cpu.mla_decode(s, &a));
    lh_kernels_cpu.device->close(s);
    work_close(work, bytes);
    free(q);
    free(latent);
}

static void check_decode(const problem *p, int n_seq, const int64_t *n_keys, double tolerance)
{
    int64_t row = o_row(&p->d);
    float *o = block(n_seq * row, sizeof *o);

    decode(o, p, 2, n_seq, n_keys, 0, p->d.n_heads);
    for (int i = 0; i < n_seq; i++) {
        double *want = expect(p, n_keys[i] - 1, 1);
        CHECK_NEAR(o + i * row, want, row, tolerance);
        free(want);
    }
    free(o);
}

static void test_decode_sizes(void)
{
    static const int64_t n_keys[] = {1, 513, 70};

    for (int i = 0; i < N_ODD; i++) {
        problem p = make(odd[i], 513, 1);
        check_decode(&p, 3, n_keys, TOLERANCE);
        drop(&p);
    }
}

static const int64_t decode_keys[] = {1200, 1, 2, 63, 64, 65, 511, 512, 513, 1023, 1024, 1025};
#define N_DECODE (int)(sizeof decode_keys / sizeof decode_keys[0])

static void test_decode_positions(void)
{
    problem p = make(small, 1200, 1);
    float o = 0;

    check_decode(&p, N_DECODE, decode_keys, TOLERANCE);
    decode(&o, &p, 2, 0, decode_keys, 0, p.d.n_heads);
    drop(&p);
}

/* Scores that differ by 1,000 and more: an error of one part in 1e7 of a score is 1e-4 of its
 * weight. Equal scores: the mean of the values. */
static void test_extreme_scores(void)
{
    problem p = make(small, 1100, 400);

    check_run(&p, 0, 300, 2e-3);
    check_run(&p, 1000, 100, 2e-3);
    check_decode(&p, 2, (const int64_t[]){1100, 300}, 2e-3);
    memset(p.q, 0, (size_t)(p.n_keys * q_row(&p.d)) * sizeof *p.q);
    check_run(&p, 450, 100, TOLERANCE);
    check_decode(&p, 2, (const int64_t[]){1100, 300}, TOLERANCE);
    drop(&p);
}

/* A prompt at once, in blocks, with any number of threads, and with another cache behind it. */
static void test_prefill_bits(void)
{
    problem p = make(odd[1], 1300, 1);
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
    problem p = make(odd[1], 1300, 1);
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

static void test_decode_bits(void)
{
    problem p = make(odd[4], 1200, 1); /* 6 heads */
    int n_heads = p.d.n_heads, d_v = p.d.d_v;
    int64_t n = N_DECODE * o_row(&p.d), ld = p.d.d_latent + p.d.d_rope;
    float *whole = block(n, sizeof *whole), *o = block(n, sizeof *o);

    decode(whole, &p, 1, N_DECODE, decode_keys, 0, n_heads);
    for (int threads = 2; threads <= 3; threads++) {
        decode(o, &p, threads, N_DECODE, decode_keys, 0, n_heads);
        CHECK_SAME_BITS(o, whole, (size_t)n * sizeof *o);
    }
    for (int count = 1; count <= 5; count++)
        for (int head = 0; head + count <= n_heads; head += 2) {
            decode(o, &p, 2, N_DECODE, decode_keys, head, count);
            for (int i = 0; i < N_DECODE; i++)
                CHECK_SAME_BITS(o + i * count * d_v, whole + (i * n_heads + head) * d_v,
                                (size_t)(count * d_v) * sizeof *o);
        }
    for (int64_t i = 1025 * ld; i < lh_round_up(1200, LH_KEY_TILE) * ld; i++)
        p.latent[i] = 1e30f; /* behind the keys of all sequences but the first */
    for (int i = 1; i < N_DECODE; i++) {
        decode(o, &p, 2, 1, &decode_keys[i], 0, n_heads);
        CHECK_SAME_BITS(o, whole + i * o_row(&p.d), (size_t)o_row(&p.d) * sizeof *o);
    }
    free(o);
    free(whole);
    drop(&p);
}

static void test_work_bytes(void)
{
    const lh_kernels *k = &lh_kernels_cpu;

    CHECK_EQ(k->mla_prefill_work_bytes(0, 4, 128, 64, 128, 512), 0);
    CHECK_EQ(k->mla_decode_work_bytes(0, 100, 4, 512, 64), 0);
    CHECK(k->mla_prefill_work_bytes(INT64_MAX, 4, 128, 64, 128, 512) == SIZE_MAX);
    CHECK(k->mla_decode_work_bytes(INT64_MAX, INT64_MAX / 2, 4, 512, 64) == SIZE_MAX);
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    RUN(test_prefill_sizes);
    RUN(test_prefill_positions);
    RUN(test_prefill_runs);
    RUN(test_decode_sizes);
    RUN(test_decode_positions);
    RUN(test_extreme_scores);
    RUN(test_prefill_bits);
    RUN(test_prefill_pieces);
    RUN(test_decode_bits);
    RUN(test_work_bytes);
    return check_done();
}
