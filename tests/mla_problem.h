/*
 * Problems of MLA and how the backend solves them, for its tests: a cache of latents with a query
 * at every position.
 */
#ifndef LH_TESTS_MLA_PROBLEM_H
#define LH_TESTS_MLA_PROBLEM_H

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
static inline double tolerance(void)
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
static inline dims dims_of(int n_heads)
{
    return kernels->act_bytes == 2 ? (dims){n_heads, 128, 64, 128, 512}
                                   : (dims){n_heads, 24, 8, 16, 32};
}

static inline int n_odd(void)
{
    return kernels->act_bytes == 2 ? (int)(heads_end - cuda_heads)
                                   : (int)(sizeof odd / sizeof odd[0]);
}

static inline dims odd_dims(int i)
{
    return kernels->act_bytes == 2 ? dims_of(cuda_heads[i]) : odd[i];
}

typedef struct problem {
    dims d;
    int64_t n_keys; /* rows of q, too: row i is the query at position i */
    float *q, *latent;
    lh_bf16 *w;
} problem;

static inline int64_t q_row(const dims *d)
{
    return (int64_t)d->n_heads * (d->d_nope + d->d_rope);
}

static inline int64_t o_row(const dims *d)
{
    return (int64_t)d->n_heads * d->d_v;
}

static inline void *block(int64_t n, size_t bytes)
{
    void *p = NULL;
    CHECK_OK(lh_alloc(&p, (size_t)n * bytes, "test"));
    if (!p)
        abort();
    return p;
}

static inline int64_t cache_size(const problem *p)
{
    return lh_round_up(p->n_keys, LH_KEY_TILE) * (p->d.d_latent + p->d.d_rope);
}

/* Memory of the cache behind the last row is filled, too: the contract says that it is there. */
static inline problem make(dims d, int64_t n_keys, double q_scale)
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

static inline void drop(problem *p)
{
    free(p->q);
    free(p->latent);
    free(p->w);
}

static int deterministic = 1;

static inline void open_stream(int n_threads)
{
    kernels->device->close(stream);
    stream = NULL;
    CHECK_OK(kernels->device->open(&stream, 0, n_threads, deterministic));
    if (!stream)
        abort();
}

/* Memory of the backend of exactly this size, full of NaN, with a fence behind it. */
#define FENCE 256
static inline void *fenced(size_t bytes)
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

static inline void check_fence(const void *device, size_t bytes)
{
    unsigned char fence[FENCE];
    int bad = 0;

    CHECK_OK(kernels->device->download(stream, fence, (const char *)device + bytes, FENCE));
    CHECK_OK(kernels->device->sync(stream));
    for (size_t i = 0; i < FENCE; i++)
        bad += fence[i] != 0xff;
    CHECK_EQ(bad, 0);
}

static inline void take_result(float *o, const void *device, int64_t n)
{
    if (n > 0)
        memcpy(o, act_host(device, n), (size_t)n * sizeof *o);
    check_fence(device, (size_t)n * kernels->act_bytes);
}

/* The expected rows of queries at consecutive positions. */
static inline double *expect(const problem *p, int64_t position, int64_t n_rows)
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

/* Rows of partial sums of some sequences, and how many are counted together. */
static inline int64_t shared_ranges(int n_seq, const int64_t *n_keys)
{
    int64_t n = kernels->mla_sections;

    for (int i = 0; i < n_seq && !kernels->mla_sections; i++)
        n += lh_mla_ranges(n_keys[i]);
    return n;
}

/* The keys shared out: `ranks` callers fill their ranges, in falling order, and any of them merges.
 */
static inline void attend_in_parts(lh_mla_decode_args *a, const int64_t *n_keys, int ranks)
{
    int64_t n = shared_ranges((int)a->n_seq, n_keys);
    size_t rows = (size_t)(n * (kernels->mla_sections ? a->n_seq : 1));
    size_t bytes = rows * (size_t)lh_mla_partial_size(a->n_heads, a->d_latent) * sizeof(float);

    a->partial = fenced(bytes);
    for (int i = ranks - 1; i >= 0; i--) {
        a->first_range = (int)(n * i / ranks);
        a->n_ranges = (int)(n * (i + 1) / ranks) - a->first_range;
        CHECK_OK(kernels->mla_attend(stream, a));
    }
    a->first_range = 0;
    a->n_ranges = (int)n;
    CHECK_OK(kernels->mla_merge(stream, a));
    check_fence(a->partial, bytes);
}

/* Decode of the sequences' last positions, of heads head .. head + n_heads - 1 of the problems; the
 * backend knows that there are at most max_keys. By so many ranks that share the keys, or (0) in
 * one step. */
static inline void decode_on(float *o, const problem *p, int ranks, int n_threads, int n_seq,
                             const int64_t *n_keys, int head, int n_heads, int64_t max_keys)
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

    if (ranks > 0)
        attend_in_parts(&a, n_keys, ranks);
    else
        CHECK_OK(kernels->mla_decode(stream, &a));
    take_result(o, a.o, n_seq * n_heads * d->d_v);
    check_fence(a.work, bytes);
    free(q);
    free(latent);
    data_free();
}

static inline int64_t longest(int n_seq, const int64_t *n_keys)
{
    int64_t most = 1;

    for (int i = 0; i < n_seq; i++)
        most = lh_max64(most, n_keys[i]);
    return most;
}

static inline void decode(float *o, const problem *p, int n_threads, int n_seq,
                          const int64_t *n_keys, int head, int n_heads)
{
    decode_on(o, p, 0, n_threads, n_seq, n_keys, head, n_heads, longest(n_seq, n_keys));
}

static inline void check_decode(const problem *p, int n_seq, const int64_t *n_keys,
                                double tolerance)
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

#endif
