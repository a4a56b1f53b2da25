#include <stdatomic.h>

#include "kernels/cpu/cpu.h"
#include "tests/kernel_data.h"

static const lh_device_ops *dev;

/* Each item is run once, and its plain writes are seen by the caller, and by the next round. */
typedef struct round_data {
    int64_t value[64];
    int64_t expected;
    atomic_int n_wrong;
} round_data;

static void count_item(void *ctx, int64_t item, float *scratch)
{
    round_data *d = ctx;

    scratch[LH_CPU_SCRATCH - 1] = (float)item;
    if (d->value[item] != d->expected || scratch[LH_CPU_SCRATCH - 1] != (float)item)
        atomic_fetch_add(&d->n_wrong, 1);
    d->value[item]++;
}

static void check_rounds(int n_threads, int n_rounds)
{
    lh_stream *s = NULL;
    round_data d = {.expected = 0};

    CHECK_OK(dev->open(&s, 0, n_threads, 1));
    CHECK_EQ(lh_cpu_threads(s), n_threads);
    for (int r = 0; r < n_rounds; r++) {
        int64_t wrong = 0;
        int n = 2 + r % 7;
        lh_cpu_parallel(s, n, count_item, &d);
        for (int i = 0; i < n; i++)
            wrong += d.value[i] != d.expected + 1;
        if (wrong)
            atomic_fetch_add(&d.n_wrong, 1);
        d.expected++;
        for (int i = 0; i < 8; i++)
            d.value[i] = d.expected;
        if (r % 20000 == 19999) { /* let the workers fall asleep */
            struct timespec pause = {.tv_nsec = 2000000};
            nanosleep(&pause, NULL);
        }
    }
    CHECK_EQ(d.n_wrong, 0);
    dev->close(s);
}

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define ROUNDS 5000
#else
#define ROUNDS 100000
#endif

static void test_rounds(void)
{
    for (int n_threads = 1; n_threads <= 4; n_threads++)
        check_rounds(n_threads, ROUNDS);
    check_rounds(17, 1000);
}

static void slow_item(void *ctx, int64_t item, float *scratch)
{
    struct timespec pause = {.tv_nsec = 1000000 * (long)item};
    int *done = ctx;

    (void)scratch;
    nanosleep(&pause, NULL);
    done[item] = 1;
}

/* The caller waits for a worker that takes longer than it looks on. */
static void test_slow_worker(void)
{
    lh_stream *s = NULL;

    CHECK_OK(dev->open(&s, 0, 4, 1));
    for (int r = 0; r < 20; r++) {
        int done[4] = {0};
        lh_cpu_parallel(s, 4, slow_item, done);
        CHECK_EQ(done[0] + done[1] + done[2] + done[3], 4);
    }
    dev->close(s);
}

static void test_open_close(void)
{
    lh_stream *s = NULL;

    for (int i = 0; i < (dev == &lh_device_cpu ? 200 : 10); i++) {
        CHECK_OK(dev->open(&s, 0, 1 + i % 5, 1));
        dev->close(s);
    }
    dev->close(NULL);
    CHECK_STATUS(dev->open(&s, 999, 1, 1),
                 dev == &lh_device_cpu ? LH_ERR_INVALID : LH_ERR_UNAVAILABLE);
    CHECK_STATUS(dev->open(&s, 0, 0, 1), LH_ERR_INVALID);
    CHECK_STATUS(dev->open(&s, 0, 5000, 1), LH_ERR_INVALID);
}

typedef struct cover {
    int *seen;
} cover;

static void cover_rows(const void *args, int64_t begin, int64_t end)
{
    const cover *c = args;
    for (int64_t i = begin; i < end; i++)
        c->seen[i]++;
}

static void test_rows(void)
{
    static const int64_t sizes[][2] = {{0, 5}, {1, 1}, {1000, 1}, {1000, 100}, {3, 100000}};
    int seen[1000];
    lh_stream *s = NULL;

    CHECK_OK(dev->open(&s, 0, 3, 1));
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        memset(seen, 0, sizeof seen);
        lh_cpu_rows(s, sizes[k][0], sizes[k][1], cover_rows, &(cover){.seen = seen});
        for (int64_t i = 0; i < 1000; i++)
            if (seen[i] != (i < sizes[k][0]))
                CHECK_EQ(seen[i], i < sizes[k][0]);
    }
    dev->close(s);
}

static void test_memory(void)
{
    static const size_t sizes[] = {0, 1, 255, 256, 257, 100000};
    lh_stream *s = NULL;
    char from[257], to[257];
    void *p = NULL, *q = NULL;

    CHECK_OK(dev->open(&s, 0, 1, 1));
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        size_t sum = 0;
        unsigned char *copy = calloc(sizes[k] + 1, 1);
        CHECK_OK(dev->alloc(s, &p, sizes[k], "test"));
        CHECK(p && (uintptr_t)p % 256 == 0);
        memset(copy, 1, sizes[k]);
        CHECK_OK(dev->download(s, copy, p, sizes[k]));
        CHECK_OK(dev->sync(s));
        for (size_t i = 0; i < sizes[k]; i++)
            sum += copy[i];
        free(copy);
        CHECK_EQ(sum, 0);
        dev->release(s, p);
    }
    CHECK_STATUS(dev->alloc(s, &p, SIZE_MAX - 3, "too much"), LH_ERR_NOMEM);
    CHECK_STATUS(dev->alloc_host(s, &p, SIZE_MAX - 3, "too much"), LH_ERR_NOMEM);
    CHECK(strstr(lh_last_error(), "too much"));
    dev->release(s, NULL);

    for (size_t i = 0; i < sizeof from; i++)
        from[i] = (char)i;
    CHECK_OK(dev->alloc(s, &p, sizeof from, "test"));
    CHECK_OK(dev->alloc(s, &q, sizeof from, "test"));
    CHECK_OK(dev->upload(s, p, from, sizeof from));
    CHECK_OK(dev->copy(s, q, p, sizeof from));
    CHECK_OK(dev->zero(s, p, sizeof from));
    CHECK_OK(dev->download(s, to, q, sizeof to));
    CHECK_OK(dev->upload(s, NULL, NULL, 0));
    CHECK_OK(dev->sync(s));
    CHECK_SAME_BITS(to, from, sizeof to);
    CHECK_OK(dev->download(s, to, p, sizeof to));
    CHECK_OK(dev->sync(s));
    CHECK_EQ(to[100], 0);
    CHECK_OK(dev->copy_rows(s, (char *)p + 1, 20, (char *)q + 3, 30, 7, 4));
    CHECK_OK(dev->copy_rows(s, p, 1, q, 1, 0, 4));
    CHECK_OK(dev->copy_rows(s, p, 1, q, 1, 1, 0));
    CHECK_OK(dev->download(s, to, p, sizeof to));
    CHECK_OK(dev->sync(s));
    for (int i = 0; i < 100; i++) {
        int row = (i - 1) / 20, in_row = (i - 1) % 20;
        CHECK_EQ(to[i], i > 0 && row < 4 && in_row < 7 ? from[row * 30 + 3 + in_row] : 0);
    }
    dev->release(s, p);
    dev->release(s, q);
    dev->close(s);
}

/* Many uploads without a wait between them arrive in order. */
static void test_many_copies(void)
{
    enum { N = 400, SIZE = 100003, WAIT = 50 };
    static unsigned char from[WAIT][SIZE], to[SIZE];
    lh_stream *s = NULL;
    void *p = NULL;
    int wrong = 0;

    CHECK_OK(dev->open(&s, 0, 1, 1));
    CHECK_OK(dev->alloc(s, &p, SIZE, "test"));
    for (int i = 0; i < N; i++) {
        memset(from[i % WAIT], i, SIZE);
        CHECK_OK(dev->upload(s, p, from[i % WAIT], SIZE - (size_t)i));
        if (i % WAIT == WAIT - 1) {
            CHECK_OK(dev->download(s, to, p, SIZE));
            CHECK_OK(dev->sync(s));
            for (int j = 0; j < SIZE; j++)
                wrong += to[j] != (unsigned char)(j < SIZE - i ? i : SIZE - 1 - j);
        }
    }
    CHECK_EQ(wrong, 0);
    dev->release(s, p);
    dev->close(s);
}

int main(int argc, char **argv)
{
    const char *missing = choose_backend(&argc, argv);
    if (missing)
        SKIP(missing);
    check_init(argc, argv);
    dev = kernels->device;
    if (kernels == &lh_kernels_cpu) {
        RUN(test_rounds);
        RUN(test_slow_worker);
        RUN(test_rows);
    }
    RUN(test_open_close);
    RUN(test_many_copies);
    RUN(test_memory);
    return check_done();
}
