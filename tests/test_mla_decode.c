/* Decode of MLA against float64, and the same bits whatever is beside a sequence or shares it. */
#include "tests/mla_problem.h"

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
        decode_on(o, &p, 0, threads, N_DECODE, decode_keys, 0, n_heads, 1200 + threads * 5000);
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

static void decode_shared(float *o, const problem *p, int ranks, int n_seq, const int64_t *n_keys)
{
    decode_on(o, p, ranks, 1 + ranks % 3, n_seq, n_keys, 0, p->d.n_heads, longest(n_seq, n_keys));
}

/* Ranks that share the keys, some of them without any: the bits of one step. */
static void test_decode_shared(void)
{
    problem p = make(kernels->act_bytes == 4 ? odd[4] : dims_of(33), 9000, 1);
    int64_t row = o_row(&p.d), n_keys[] = {1, 64, 256, 257, 1025, 4097, 9000};
    int n = (int)(sizeof n_keys / sizeof n_keys[0]);
    float *whole = block(n * row, sizeof *whole), *o = block(n * row, sizeof *o);

    decode(whole, &p, 2, n, n_keys, 0, p.d.n_heads);
    for (int ranks = 1; ranks <= 9; ranks += ranks < 3 ? 1 : 2) {
        decode_shared(o, &p, ranks, n, n_keys);
        CHECK_SAME_BITS(o, whole, (size_t)(n * row) * sizeof *o);
        for (int i = 0; i < n; i++) {
            decode_shared(o, &p, ranks, 1, n_keys + i);
            CHECK_SAME_BITS(o, whole + i * row, (size_t)row * sizeof *o);
        }
    }
    deterministic = 0;
    for (int ranks = 1; ranks <= 9; ranks += 4) {
        decode_shared(o, &p, ranks, n, n_keys);
        for (int i = 0; i < n; i++)
            CHECK_NEAR(o + i * row, whole + i * row, row, tolerance());
    }
    deterministic = 1;
    free(o);
    free(whole);
    drop(&p);
}

/* More sequences than one launch of a GPU takes. */
static void test_decode_shared_many(void)
{
    enum { N = 130 };
    int64_t n_keys[N];
    problem p = make(dims_of(3), 700, 1);
    int64_t row = o_row(&p.d);
    float *whole = block(N * row, sizeof *whole), *o = block(N * row, sizeof *o);

    for (int i = 0; i < N; i++)
        n_keys[i] = i * 7919 % 700 + 1;
    decode(whole, &p, 2, N, n_keys, 0, 3);
    decode_shared(o, &p, 2, N, n_keys);
    CHECK_SAME_BITS(o, whole, (size_t)(N * row) * sizeof *o);
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

int main(int argc, char **argv)
{
    const char *missing = choose_backend(&argc, argv);

    if (missing)
        SKIP(missing);
    check_init(argc, argv);
    RUN(test_decode_sizes);
    RUN(test_decode_positions);
    RUN(test_decode_bits);
    RUN(test_decode_many);
    RUN(test_ranges);
    RUN(test_decode_shared);
    RUN(test_decode_shared_many);
    kernels->device->close(stream);
    return check_done();
}
