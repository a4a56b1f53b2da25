/* Attention of MLA, prefill and decode, against float64, and the same bits wherever they are
 * promised. */
#include "base/mem.h"
#include "tests/kernel_data.h"
#include "tests/reference/reference_mla.h"

/*
 * Sums of up to 576 and 1,300 terms in f32: the scores, of order 1, are off by a few 1e-7, and so
 * are the outputs relative to the largest. Measured: 1.2e-6.
 *
 * CUDA rounds the expanded keys and values (or the queries in latent space), the weights and the
 * result to bf16, 2^-9 each: a score of order 1 is off by 2e-3, and a sum of one or two values has
 * all of the roundings.
 */
static double tolerance(void)
{
    return kernels->act_bytes == 2 ? 1e-2 : 1e-5;
}

typedef struct dims {
    int n_heads, d_nope, d_rope, d_v, d_latent;
} dims;

static const dims odd[] = {
    {1, 16, 8, 16, 32},  {2, 24, 16, 32, 48}, {4, 32, 8, 24, 16},     {5, 7, 3, 9, 11},
    {6, 48, 16, 16, 24}, {3, 70, 2, 65, 67},  {2, 128, 64, 128, 512},
};
static const int cuda_heads[] = {1, 3, 4, 9, 17, 33};
static const int *heads_end = cuda_heads + sizeof cuda_heads / sizeof cuda_heads[0];

/* CUDA has one set of dimensions, and any number of heads. */
static dims dims_of(int n_heads)
{
    return kernels->act_bytes == 2 ? (dims){n_heads, 128, 64, 128, 512}
                                   : (dims){n_heads, 24, 8, 16, 32};
}

static int n_odd(void)
{
    return kernels->act_bytes == 2 ? (int)(heads_end - cuda_heads)
                                   : (int)(sizeof odd / sizeof odd[0]);
}

static dims odd_dims(int i)
{
    return kernels->act_bytes == 2 ? dims_of(cuda_heads[i]) : odd[i];
}

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

static int64_t cache_size(const problem *p)
{
    return lh_round_up(p->n_keys, LH_KEY_TILE) * (p->d.d_latent + p->d.d_rope);
}

/* Memory of the cache behind the last row is filled, too: the contract says that it is there. */
static problem make(dims d, int64_t n_keys, double q_scale)
{
    problem p = {.d = d, .n_keys = n_keys};
    int64_t n_q = n_keys * q_row(&d), n_latent = cache_size(&p);
    int64_t n_w = (int64_t)d.n_heads * (d.d_nope + d.d_v) * d.d_latent;

    p.q = block(n_q, sizeof *p.q);
    p.latent = block(n_latent, sizeof *p.latent);
    p.w = block(n_w, sizeof *p.w);
    for (int64_t i = 0; i < n_q; i++)
        p.q[i] = act_round((float)(check_normal() * q_scale));
    for (int64_t i = 0; i < n_latent; i++)
        p.latent[i] = act_round((float)check_normal());
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

static int deterministic = 1;

static void open_stream(int n_threads)
{
    kernels->device->close(stream);
    stream = NULL;
    CHECK_OK(kernels->device->open(&stream, 0, n_threads, deterministic));
    if (!stream)
        abort();
}

/* Memory of the backend of exactly this size, full of NaN, with a fence behind it. */
#define FENCE 256
static void *fenced(size_t bytes)
{
    static unsigned char nan[1 << 16];
    const lh_device_ops *d = kernels->device;
    size_t all = bytes + FENCE, filled = all < sizeof nan ? all : sizeof nan;
    char *p = NULL;

    CHECK_OK(d->alloc(stream, (void **)&p, all, "test"));
    data.device[data.n_device++] = p;
    memset(nan, 0xff, sizeof nan);
    CHECK_OK(d->upload(stream, p, nan, filled));
    for (; filled < all; filled *= 2)
        CHECK_OK(d->copy(stream, p + filled, p, filled < all - filled ? filled : all - filled));
    CHECK_OK(d->sync(stream));
    return p;
}

static void check_fence(const void *device, size_t bytes)
{
    unsigned char fence[FENCE];
    int bad = 0;

    CHECK_OK(kernels->device->download(stream, fence, (const char *)device + bytes, FENCE));
    CHECK_OK(kernels->device->sync(stream));
    for (size_t i = 0; i < FENCE; i++)
        bad += fence[i] != 0xff;
    CHECK_EQ(bad, 0);
}

static void take_result(float *o, const void *device, int64_t n)
{
    if (n > 0)
        memcpy(o, act_host(device, n), (size_t)n * sizeof *o);
    check_fence(device, (size_t)n * kernels->act_bytes);
}

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

/* Decode of the sequences' last positions, of heads head .. head + n_heads - 1 of the problems; the
 * backend knows that there are at most max_keys. */
static void decode_most(float *o, const problem *p, int n_threads, int n_seq, const int64_t *n_keys,
                        int head, int n_heads, int64_t max_keys)
{
    const dims *d = &p->d;
    int64_t d_qk = d->d_nope + d->d_rope, d_kv = d->d_nope + d->d_v;
    const void **latent = block(n_seq, sizeof *latent);
    float *q = block(n_seq * n_heads * d_qk, sizeof *q);
    size_t bytes = kernels->mla_decode_work_bytes(n_seq, max_keys, n_heads, d->d_latent, d->d_rope);

    open_stream(n_threads);
    const void *rows = act_device(p->latent, cache_size(p));
    for (int i = 0; i < n_seq; i++) {
        latent[i] = rows;
        memcpy(q + i * n_heads * d_qk, p->q + (n_keys[i] - 1) * q_row(d) + head * d_qk,
               (size_t)(n_heads * d_qk) * sizeof *q);
    }
    lh_mla_decode_args a = {.o = fenced((size_t)(n_seq * n_heads * d->d_v) * kernels->act_bytes),
                            .q = act_device(q, n_seq * n_heads * d_qk),
                            .latent = data_device(latent, n_seq, sizeof *latent),
                            .n_keys = data_device(n_keys, n_seq, sizeof *n_keys),
                            .max_keys = max_keys,
                            .w_kvb = data_device(p->w + head * d_kv * d->d_latent,
                                                 n_heads * d_kv * d->d_latent, sizeof *p->w),
                            .n_seq = n_seq,
                            .n_heads = n_heads,
                            .d_nope = d->d_nope,
                            .d_rope = d->d_rope,
                            .d_v = d->d_v,
                            .d_latent = d->d_latent,
                            .work = fenced(bytes)};

    CHECK_OK(kernels->mla_decode(stream, &a));
    take_result(o, a.o, n_seq * n_heads * d->d_v);
    check_fence(a.work, bytes);
    free(q);
    free(latent);
    data_free();
}

static void decode(float *o, const problem *p, int n_threads, int n_seq, const int64_t *n_keys,
                   int head, int n_heads)
{
    int64_t longest = 1;

    for (int i = 0; i < n_seq; i++)
        longest = lh_max64(longest, n_keys[i]);
    decode_most(o, p, n_threads, n_seq, n_keys, head, n_heads, longest);
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

    for (int i = 0; i < n_odd(); i++) {
        problem p = make(odd_dims(i), 513, 1);
        check_decode(&p, 3, n_keys, tolerance());
        drop(&p);
    }
}

static const int64_t decode_keys[] = {1200, 1, 2, 63, 64, 65, 511, 512, 513, 1023, 1024, 1025};
#define N_DECODE (int)(sizeof decode_keys / sizeof decode_keys[0])

static void test_decode_positions(void)
{
    problem p = make(dims_of(3), 1200, 1);
    float o = 0;

    check_decode(&p, N_DECODE, decode_keys, tolerance());
    decode(&o, &p, 2, 0, decode_keys, 0, p.d.n_heads);
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

/* Sequences of a call, heads beside them, a larger bound of the keys and what lies behind them do
 * not show. */
static void test_decode_bits(void)
{
    static const int few[] = {1, 2, 3, 4, 5}, many[] = {1, 4, 17, 32, 33};
    int cpu = kernels->act_bytes == 4;
    problem p = make(cpu ? odd[4] : dims_of(40), 1200, 1);
    int n_heads = p.d.n_heads, d_v = p.d.d_v;
    int64_t n = N_DECODE * o_row(&p.d), ld = p.d.d_latent + p.d.d_rope;
    float *whole = block(n, sizeof *whole), *o = block(n, sizeof *o);

    decode(whole, &p, 1, N_DECODE, decode_keys, 0, n_heads);
    for (int threads = 2; threads <= 3; threads++) {
        decode_most(o, &p, threads, N_DECODE, decode_keys, 0, n_heads, 1200 + threads * 5000);
        CHECK_SAME_BITS(o, whole, (size_t)n * sizeof *o);
    }
    for (int c = 0; c < 5; c++) {
        int count = cpu ? few[c] : many[c];
        for (int head = 0; head + count <= n_heads; head += cpu ? 2 : 7) {
            decode(o, &p, 2, N_DECODE, decode_keys, head, count);
            for (int i = 0; i < N_DECODE; i++)
                CHECK_SAME_BITS(o + i * count * d_v, whole + (i * n_heads + head) * d_v,
                                (size_t)(count * d_v) * sizeof *o);
        }
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

/* More sequences than one launch of a GPU takes, cut alone and together. */
static void test_decode_many(void)
{
    enum { N = 300 };
    int64_t n_keys[N];
    problem p = make(dims_of(3), 700, 1);
    int64_t row = o_row(&p.d);
    float *o = block(N * row, sizeof *o), *alone = block(20 * row, sizeof *alone);

    for (int i = 0; i < N; i++)
        n_keys[i] = i * 7919 % 700 + 1;
    decode(o, &p, 2, N, n_keys, 0, 3);
    for (int i = 0; i < N; i += 20) {
        decode(alone, &p, 2, 20, n_keys + i, 0, 3);
        CHECK_SAME_BITS(o + i * row, alone, (size_t)(20 * row) * sizeof *o);
    }
    deterministic = 0;
    for (int i = 0; i < N; i += 60) {
        decode(alone, &p, 2, 20, n_keys + i, 0, 3);
        for (int j = 0; j < 20; j++)
            CHECK_NEAR(alone + j * row, o + (i + j) * row, row, tolerance());
    }
    decode(o, &p, 2, N, n_keys, 0, 3);
    for (int j = 0; j < 20; j++)
        CHECK_NEAR(o + (240 + j) * row, alone + j * row, row, tolerance());
    deterministic = 1;
    free(alone);
    free(o);
    drop(&p);
}

/* One sequence whose keys are shared out: `parts` callers fill their ranges, in falling order, and
 * any of them merges. */
static void decode_shared(float *o, const problem *p, int n_threads, int64_t n_keys, int parts)
{
    const dims *d = &p->d;
    int n_ranges = (int)lh_mla_ranges(n_keys);
    size_t bytes = kernels->mla_decode_work_bytes(1, n_keys, d->n_heads, d->d_latent, d->d_rope);
    size_t size = (size_t)lh_mla_partial_size(d->n_heads, d->d_latent) * sizeof(float);
    const void *rows = p->latent;

    open_stream(n_threads);
    lh_mla_decode_args a = {.o = o,
                            .q = p->q + (n_keys - 1) * q_row(d),
                            .latent = &rows,
                            .n_keys = &n_keys,
                            .max_keys = n_keys,
                            .w_kvb = p->w,
                            .n_seq = 1,
                            .n_heads = d->n_heads,
                            .d_nope = d->d_nope,
                            .d_rope = d->d_rope,
                            .d_v = d->d_v,
                            .d_latent = d->d_latent,
                            .work = fenced(bytes),
                            .partial = fenced((size_t)n_ranges * size)};
    for (int i = parts - 1; i >= 0; i--) {
        a.first_range = n_ranges * i / parts;
        a.n_ranges = n_ranges * (i + 1) / parts - a.first_range;
        CHECK_OK(kernels->mla_attend(stream, &a));
    }
    a.first_range = 0;
    a.n_ranges = n_ranges;
    CHECK_OK(kernels->mla_merge(stream, &a));
    check_fence(a.work, bytes);
    check_fence(a.partial, (size_t)n_ranges * size);
    data_free();
}

static void test_decode_shared(void)
{
    problem p = make(odd[4], 1200, 1);
    int64_t row = o_row(&p.d);
    float *whole = block(row, sizeof *whole), *o = block(row, sizeof *o);

    for (int i = 0; i < N_DECODE; i++) {
        decode(whole, &p, 2, 1, &decode_keys[i], 0, p.d.n_heads);
        for (int parts = 1; parts <= 7; parts += 2) { /* of at most 5 ranges: some are empty */
            decode_shared(o, &p, 1 + parts % 3, decode_keys[i], parts);
            CHECK_SAME_BITS(o, whole, (size_t)row * sizeof *o);
        }
    }
    free(o);
    free(whole);
    drop(&p);
}

/* Ranges cover the keys, are whole blocks, and never more than the most. */
static void test_ranges(void)
{
    for (int64_t n = 1; n <= 70000; n += n < 700 ? 1 : 61) {
        int64_t keys = lh_mla_range_keys(n), ranges = lh_mla_ranges(n);
        CHECK(keys >= LH_MLA_RANGE_KEYS && keys % 64 == 0);
        CHECK((ranges - 1) * keys < n && n <= ranges * keys);
        CHECK(ranges <= lh_mla_most_ranges(n) && ranges <= lh_mla_most_ranges(n + 12345));
    }
    CHECK_EQ(lh_mla_ranges(INT32_MAX), LH_MLA_RANGES);
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
    RUN(test_decode_sizes);
    RUN(test_decode_positions);
    RUN(test_extreme_scores);
    RUN(test_prefill_bits);
    RUN(test_prefill_pieces);
    RUN(test_decode_bits);
    RUN(test_decode_many);
    RUN(test_ranges);
    if (kernels->mla_attend)
        RUN(test_decode_shared);
    if (kernels->act_bytes == 2)
        RUN(test_long_context);
    RUN(test_work_bytes);
    kernels->device->close(stream);
    return check_done();
}
