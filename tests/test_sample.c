/*
 * sample: the token of every row is that of lh_sample_row on the same logits, whatever else is in
 * the call; OPEN comes exactly where the contract says, and a row that is not finite is named.
 */
#include "kernels/sample.h"
#include "tests/kernel_data.h"

static const lh_sampling settings[] = {
    {0, 0, 1, 0, 0},           {1, 0, 1, 0, 1},           {0.5f, 0, 1, 0, 2},
    {3, 0, 1, 0, 3},           {1, 1, 1, 0, 4},           {1, 5, 1, 0, 5},
    {1, 1000, 1, 0, 6},        {1, 0, 0.5f, 0, 7},        {1, 0, 0.9f, 0, 8},
    {2, 0, 0.01f, 0, 9},       {1, 0, 1, 0.1f, 10},       {1, 0, 1, 1, 11},
    {1, 7, 0.8f, 0.05f, 12},   {0.7f, 3, 0.9f, 0.3f, 13}, {5, 20, 0.95f, 0.2f, 14},
    {1, 50, 0.95f, 0, 15},     {1e6f, 0, 0.999f, 0, 16},  {1e-40f, 0, 1, 0, 17},
    {4, 1023, 1, 0, 18},       {4, 1024, 1, 0, 19},       {4, 1025, 1, 0, 20},
    {4, 1024, 0.99f, 0, 21},   {4, 1025, 0.5f, 0, 22},    {4, 1025, 1, 0.05f, 23},
    {2, 4000, 0.5f, 0.3f, 24}, {1, 200000, 0.7f, 0, 25},  {8, 0, 0.99f, 0.1f, 26},
    {1e-40f, 9, 0.5f, 0, 27},  {0, 3, 0.5f, 0.5f, 28},
};
#define N_SETTINGS (int)(sizeof settings / sizeof settings[0])

/* How logits are drawn. */
enum kind {
    SPREAD,
    FEW,   /* eleven values: equals at every border */
    ALIKE, /* all equal */
    ZEROS, /* zeros of both signs, and less */
    TINY,  /* below the normal numbers of f32 */
    FALLING,
    STEPS, /* the first 1,024 are every fourth: on CUDA one of each thread */
    N_KINDS
};

static float logit_of(enum kind kind, int64_t id)
{
    switch (kind) {
    case FEW:
        return (float)(check_random() % 11) * 0.37f;
    case ALIKE:
        return -1.25f;
    case ZEROS:
        return check_random() % 3 == 0 ? -0.5f : check_random() % 2 ? -0.0f : 0.0f;
    case TINY:
        return (float)(int)(check_random() % 9 - 4) * 0x1p-149f;
    case FALLING:
        return (float)id * -0.001f;
    case STEPS:
        return (float)check_uniform() + (float)(id % 4 == 0 && id < 4 * LH_SAMPLE_SORTED);
    default:
        return (float)(3 * check_normal());
    }
}

static int falling(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* Whether a backend that puts LH_SAMPLE_SORTED in order must leave the row open. */
static int is_open(const float *logits, int64_t n, const lh_sampling *how)
{
    int cut = how->top_k > 0 && how->top_k < n, open = 1;
    float *x = malloc((size_t)n * sizeof *x);
    double mass = 0, kept = 0;

    memcpy(x, logits, (size_t)n * sizeof *x);
    qsort(x, (size_t)n, sizeof *x, falling);
    for (int64_t i = 0; i < n; i++)
        mass += lh_sample_weight((double)x[0], 1 / (double)how->temperature, x[i]);
    for (int64_t i = 0; i < LH_SAMPLE_SORTED && open; i++) {
        double w = lh_sample_weight((double)x[0], 1 / (double)how->temperature, x[i]);
        kept += w;
        open = w >= (double)how->min_p && (how->top_p == 1 || kept < (double)how->top_p * mass);
    }
    free(x);
    return open || (cut && how->top_p < 1);
}

static int may_be_open(const float *logits, int64_t n, const lh_sampling *how)
{
    int64_t left = how->top_k > 0 && how->top_k < n ? how->top_k : n;

    return kernels != &lh_kernels_cpu && how->temperature > 0 && !lh_sample_is_by_id(how) &&
           left > LH_SAMPLE_SORTED && is_open(logits, n, how);
}

/* Calls sample on rows [n_rows, n] of logits; the tokens are the test's until data_free. */
static const int32_t *sample(const float *logits, const lh_draw *draw, int64_t n_rows, int64_t n)
{
    int64_t work = (int64_t)kernels->sample_work_bytes(n_rows, n);
    int32_t *token = data_host(n_rows, sizeof *token);

    for (int64_t i = 0; i < n_rows; i++)
        token[i] = -3; /* what no row leaves */
    lh_sample_args a = {.token = data_device(token, n_rows, sizeof *token),
                        .logits = data_device(logits, n_rows * n, sizeof *logits),
                        .draw = data_device(draw, n_rows, sizeof *draw),
                        .n_rows = n_rows,
                        .n_vocab = n,
                        .work = data_device(data_host(work, 1), work, 1)};
    CHECK_OK(kernels->sample(stream, &a));
    CHECK_OK(kernels->device->download(stream, token, a.token, (size_t)n_rows * sizeof *token));
    CHECK_OK(kernels->device->sync(stream));
    return token;
}

typedef struct tally {
    int open, drawn; /* rows in order of more candidates than are sorted */
} tally;

/* Row i has setting first + i; its draw is number i, or the last that there is. */
static void check_rows(enum kind kind, int64_t n, int64_t n_rows, int first, tally *t)
{
    float *logits = data_host(n_rows * n, sizeof *logits);
    lh_draw *draw = data_host(n_rows, sizeof *draw);
    void *scratch = data_host((int64_t)lh_sample_row_bytes(n), 1);

    for (int64_t i = 0; i < n_rows * n; i++)
        logits[i] = logit_of(kind, i % n);
    for (int64_t i = 0; i < n_rows; i++)
        draw[i] =
            (lh_draw){settings[(first + i) % N_SETTINGS], i % 7 == 6 ? UINT64_MAX : (uint64_t)i};
    const int32_t *token = sample(logits, draw, n_rows, n);
    for (int64_t i = 0; i < n_rows; i++) {
        const lh_sampling *how = &draw[i].how;
        int open = may_be_open(logits + i * n, n, how);
        int32_t want = open ? LH_SAMPLE_OPEN : lh_sample_row(logits + i * n, n, draw + i, scratch);
        CHECK_MSG(token[i] == want,
                  "kind %d, %lld logits, T %g top_k %d top_p %g min_p %g: row %lld is %d, not %d",
                  (int)kind, (long long)n, (double)how->temperature, how->top_k, (double)how->top_p,
                  (double)how->min_p, (long long)i, token[i], want);
        t->open += open;
        t->drawn += !open && !lh_sample_is_by_id(how) && how->temperature > 0 && how->top_k == 0 &&
                    n > LH_SAMPLE_SORTED;
    }
    data_free();
}

static void test_tokens(void)
{
    static const int64_t sizes[] = {1,    2,    40,   255,  256,  257,  1023,
                                    1024, 1025, 4093, 4096, 5000, 16382};
    tally t = {0};

    for (enum kind kind = SPREAD; kind < N_KINDS; kind++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            check_rows(kind, sizes[i], 64, (int)kind, &t);
    CHECK(t.drawn > 0 && (t.open > 0 || kernels == &lh_kernels_cpu));
}

static void test_large(void)
{
    tally t = {0};

    check_rows(SPREAD, 163840, N_SETTINGS, 0, &t);
    check_rows(ALIKE, 163840, 8, 0, &t);
    check_rows(SPREAD, 300001, 6, 0, &t); /* more groups than threads; rows at any address */
}

static const lh_sampling greedy = {.top_p = 1};

/* What needs no reference. */
static void test_ties(void)
{
    enum { N = 3000 };
    const lh_sampling some[] = {{1, 5, 1, 0, 1}, {1, 1023, 1, 0, 2}, {1, 1024, 0.9f, 0, 3}};
    float *logits = data_host(4 * N, sizeof *logits);
    lh_draw *draw = data_host(64, sizeof *draw);

    for (int i = 0; i < 4 * N; i++)
        logits[i] = -1;
    logits[N + 2999] = logits[N + 1234] = 7;
    logits[2 * N + 17] = -0.0f;
    logits[2 * N + 18] = 0.0f;
    logits[3 * N + 17] = 0.0f;
    logits[3 * N + 18] = -0.0f;
    for (int i = 0; i < 4; i++)
        draw[i].how = greedy;
    const int32_t *token = sample(logits, draw, 4, N);
    CHECK(token[0] == 0 && token[1] == 1234 && token[2] == 17 && token[3] == 17);
    data_free();

    /* equal throughout: the lowest ids are the first, and each of them comes */
    for (int k = 0; k < 3; k++, data_free()) {
        int seen[5] = {0};
        draw = data_host(64, sizeof *draw);
        for (int i = 0; i < 64; i++)
            draw[i] = (lh_draw){some[k], (uint64_t)i};
        token = sample(data_host(64 * N, sizeof *logits), draw, 64, N);
        for (int i = 0; i < 64; i++) {
            CHECK(token[i] >= 0 && token[i] < some[k].top_k);
            seen[token[i] * 5 / some[k].top_k]++;
        }
        CHECK(seen[0] && seen[1] && seen[2] && seen[3] && seen[4]);
    }
}

static void test_not_finite(void)
{
    enum { N = 4099 };
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    static const int places[] = {0, 1, 2048, N - 1}, kinds[] = {0, 1, 5};
    float *logits = data_host(12 * N, sizeof *logits);
    lh_draw *draw = data_host(12, sizeof *draw);

    for (int i = 0; i < 12; i++) {
        draw[i].how = settings[kinds[i % 3]];
        if (i % 4 != 3)
            logits[i * N + places[i / 3]] = bad[i % 3];
    }
    const int32_t *token = sample(logits, draw, 12, N);
    for (int i = 0; i < 12; i++)
        CHECK(i % 4 == 3 ? token[i] >= 0 : token[i] == LH_SAMPLE_NOT_FINITE);
    data_free();
}

static void test_no_rows(void)
{
    lh_sample_args a = {.n_vocab = 5};

    CHECK_OK(kernels->sample(stream, &a));
    CHECK_EQ(kernels->sample_work_bytes(0, 5), 0);
    CHECK(kernels->sample_work_bytes(INT64_C(1) << 40, INT64_C(1) << 31) == SIZE_MAX);
}

int main(int argc, char **argv)
{
    const char *missing = choose_backend(&argc, argv);
    if (missing)
        SKIP(missing);
    check_init(argc, argv);
    reopen(2);
    RUN(test_tokens);
    RUN(test_large);
    RUN(test_ties);
    RUN(test_not_finite);
    RUN(test_no_rows);
    kernels->device->close(stream);
    return check_done();
}
