#include "runtime/longhaul.h"
#include "tests/check.h"

#define N_SMALL 40
#define N_LARGE 163840
#define N_DRAWS 20000

static const lh_sampling plain = {.temperature = 1, .top_p = 1};

static void test_check(void)
{
    const lh_sampling bad[] = {{.temperature = -1, .top_p = 1},
                               {.temperature = NAN, .top_p = 1},
                               {.temperature = INFINITY, .top_p = 1},
                               {.temperature = 1, .top_p = 1, .top_k = -1},
                               {.temperature = 1, .top_p = 0},
                               {.temperature = 1, .top_p = 1.5f},
                               {.temperature = 1, .top_p = NAN},
                               {.temperature = 1, .top_p = 1, .min_p = -0.1f},
                               {.temperature = 1, .top_p = 1, .min_p = 2}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK_STATUS(lh_sampling_check(&bad[i]), LH_ERR_USAGE);
    CHECK(strstr(lh_last_error(), "min_p 2"));
    CHECK_OK(lh_sampling_check(&plain));
    CHECK_OK(lh_sampling_check(
        &(lh_sampling){.temperature = 0, .top_k = 5, .top_p = 0.5f, .min_p = 0.1f}));
}

/* What the filters leave, in the plainest way: by ranks, over f64 probabilities. */
static void reference(double *probability, const float *logits, int n, const lh_sampling *p)
{
    double mass = 0, before = 0, first = 0;
    int order[N_SMALL];
    for (int i = 0; i < n; i++) {
        int rank = 0;
        for (int k = 0; k < n; k++)
            rank += logits[k] > logits[i] || (logits[k] == logits[i] && k < i);
        order[rank] = i;
    }
    double top = (double)logits[order[0]];
    for (int r = 0; r < n; r++) {
        double w = exp(((double)logits[order[r]] - top) / (double)p->temperature);
        probability[order[r]] = p->top_k > 0 && r >= p->top_k ? 0 : w;
        mass += probability[order[r]];
    }
    for (int r = 0; r < n; r++) {
        double w = probability[order[r]] / mass;
        if (before >= (double)p->top_p)
            probability[order[r]] = 0;
        before += w;
    }
    first = probability[order[0]];
    mass = 0;
    for (int i = 0; i < n; i++) {
        if (probability[i] < (double)p->min_p * first)
            probability[i] = 0;
        mass += probability[i];
    }
    for (int i = 0; i < n; i++)
        probability[i] /= mass;
}

/* Frequencies of many draws lie within 5 standard deviations of the reference; what it excludes
 * never comes. */
static void check_distribution(const float *logits, int n, const lh_sampling *p)
{
    double probability[N_SMALL];
    int count[N_SMALL] = {0};
    static char scratch[N_SMALL * 16];
    CHECK(lh_sample_scratch_bytes(n) <= sizeof scratch);
    reference(probability, logits, n, p);
    for (uint64_t draw = 0; draw < N_DRAWS; draw++) {
        int32_t id = lh_sample(logits, n, p, draw, scratch);
        CHECK_MSG(id >= 0 && id < n, "id %d", id);
        count[id]++;
    }
    for (int i = 0; i < n; i++) {
        double mean = N_DRAWS * probability[i];
        double bound = 5 * sqrt(mean * (1 - probability[i])) + (probability[i] > 0 ? 2 : 0);
        CHECK_MSG(fabs(count[i] - mean) <= bound + 1e-6,
                  "T %g top_k %d top_p %g min_p %g: id %d drawn %d times, expected %.1f +- %.1f",
                  (double)p->temperature, p->top_k, (double)p->top_p, (double)p->min_p, i, count[i],
                  mean, bound);
    }
}

static void test_distribution(void)
{
    static const lh_sampling settings[] = {
        {1, 0, 1, 0, 1},           {0.5f, 0, 1, 0, 2},      {3, 0, 1, 0, 3},
        {1, 1, 1, 0, 4},           {1, 5, 1, 0, 5},         {1, 1000, 1, 0, 6},
        {1, 0, 0.5f, 0, 7},        {1, 0, 0.9f, 0, 8},      {2, 0, 0.01f, 0, 9},
        {1, 0, 1, 0.1f, 10},       {1, 0, 1, 1, 11},        {1, 7, 0.8f, 0.05f, 12},
        {0.7f, 3, 0.9f, 0.3f, 13}, {5, 20, 0.95f, 0.2f, 14}};
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        float logits[N_SMALL];
        for (int k = 0; k < N_SMALL; k++)
            logits[k] = (float)(2 * check_normal());
        /* Equals at the borders of the filters: the lower id stays. */
        for (int k = 0; k < 12; k++)
            logits[3 * k + 2] = logits[3 * k];
        check_distribution(logits, N_SMALL, &settings[i]);
    }
}

static void test_greedy_and_not_finite(void)
{
    char scratch[64 * 16];
    const lh_sampling greedy = {.temperature = 0, .top_p = 1}, k2 = {1, 2, 1, 0, 3};
    const float ties[] = {1, 3, 2, 3, NAN};
    const float only_nan[] = {NAN, NAN, NAN};
    const float first_nan[] = {NAN, -5, NAN, -INFINITY};
    const float infinite[] = {0, INFINITY, NAN, INFINITY};
    const float lowest[] = {NAN, -INFINITY, -INFINITY};
    CHECK_EQ(lh_sample(ties, 5, &greedy, 0, scratch), 1);
    CHECK_EQ(lh_sample(first_nan, 4, &greedy, 0, scratch), 1);
    for (uint64_t draw = 0; draw < 200; draw++) {
        CHECK_EQ(lh_sample(only_nan, 3, &plain, draw, scratch), 0);
        CHECK_EQ(lh_sample(first_nan, 4, &plain, draw, scratch), 1);
        CHECK_EQ(lh_sample(first_nan, 4, &k2, draw, scratch), 1);
        CHECK(lh_sample(infinite, 4, &plain, draw, scratch) % 2 == 1);
        CHECK(lh_sample(infinite, 4, &k2, draw, scratch) % 2 == 1);
        CHECK(lh_sample(lowest, 3, &plain, draw, scratch) > 0);
        CHECK(lh_sample(ties, 5, &(lh_sampling){1e-40f, 0, 1, 0, 1}, draw, scratch) % 2 == 1);
    }
}

/* Draws depend on seed and number alone. The first tokens are written down: they must not change
 * with the compiler, the C library or the machine. */
static void test_reproducible(void)
{
    static const int32_t by_id[] = {28, 14, 39, 20, 3, 28, 3, 6, 28, 3, 28, 25, 6, 9, 10, 36};
    static const int32_t in_order[] = {1, 6, 29, 39, 3, 1, 3, 25, 12, 14, 12, 31, 25, 25, 36, 37};
    float logits[N_SMALL];
    char scratch[N_SMALL * 16];
    const lh_sampling all = {0.8f, 0, 1, 0, 42}, some = {1.3f, 30, 0.95f, 0.01f, 42};
    for (int k = 0; k < N_SMALL; k++)
        logits[k] = (float)(k * 7 % 11) * 0.37f;
    int differ = 0;
    for (int i = 0; i < 16; i++) {
        CHECK_EQ(lh_sample(logits, N_SMALL, &all, (uint64_t)i, scratch), by_id[i]);
        CHECK_EQ(lh_sample(logits, N_SMALL, &some, (uint64_t)i, scratch), in_order[i]);
        lh_sampling other = all;
        other.seed = 43;
        differ += lh_sample(logits, N_SMALL, &other, (uint64_t)i, scratch) != by_id[i];
    }
    CHECK(differ > 8);
}

static void test_large(void)
{
    float *logits = malloc(N_LARGE * sizeof *logits);
    void *scratch = malloc(lh_sample_scratch_bytes(N_LARGE));
    const lh_sampling settings[] = {{1, 0, 1, 0, 1},
                                    {1, 50, 1, 0, 1},
                                    {1, 0, 0.95f, 0, 1},
                                    {1, 40, 0.9f, 0.02f, 1},
                                    {1e6f, 0, 0.999f, 0, 1}};
    double top = -INFINITY;
    for (int i = 0; i < N_LARGE; i++) {
        logits[i] = (float)(3 * check_normal());
        top = fmax(top, (double)logits[i]);
    }
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        clock_t begin = clock();
        for (uint64_t draw = 0; draw < 5; draw++) {
            int32_t id = lh_sample(logits, N_LARGE, &settings[i], draw, scratch);
            CHECK(id >= 0 && id < N_LARGE);
        }
        printf("     T %g top_k %d top_p %g: %.2f ms\n", (double)settings[i].temperature,
               settings[i].top_k, (double)settings[i].top_p,
               (double)(clock() - begin) * 200 / CLOCKS_PER_SEC);
    }

    double sum = 0;
    for (int i = 0; i < N_LARGE; i++)
        sum += exp((double)logits[i] - top);
    for (int i = 0; i < 100; i++) {
        int32_t id = (int32_t)(check_random() % N_LARGE);
        double want = (double)logits[id] - top - log(sum), got = lh_logprob(logits, N_LARGE, id);
        CHECK_NEAR(&got, &want, 1, 1e-13);
    }
    for (int i = 0; i < 3000; i++) { /* our exp, to the last places */
        const float two[] = {0, (float)i * -0.01f};
        double want = -log1p(exp((double)two[1])), got = lh_logprob(two, 2, 0);
        CHECK_MSG(fabs(got - want) < 5e-16, "exp(%g): off by %g", (double)two[1], got - want);
    }
    const float few[] = {0, 0, NAN, -INFINITY};
    CHECK(fabs(lh_logprob(few, 4, 1) + log(2)) < 1e-15);
    CHECK(lh_logprob(few, 4, 2) == -INFINITY && lh_logprob(few, 4, 3) == -INFINITY);
    free(logits);
    free(scratch);
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    RUN(test_check);
    RUN(test_distribution);
    RUN(test_greedy_and_not_finite);
    RUN(test_reproducible);
    RUN(test_large);
    return check_done();
}
