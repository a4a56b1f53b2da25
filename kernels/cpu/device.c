/*
 * The CPU's stream: a pool of threads. The caller's thread is one of them; the others sleep between
 * calls.
 */
#include <cblas.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/cpu/cpu.h"

/* How often a waiting worker looks before it sleeps: a step of decoding has many short calls. */
#define SPIN 2000

/*
 * One word says what goes on: the number of the round (a call of lh_cpu_parallel), whether workers
 * may still join it, and how many are in it. The caller waits only for workers that joined, so a
 * short round does not wait for one that sleeps or has lost its core.
 */
#define IN_ROUND UINT64_C(0xffff) /* workers inside */
#define OPEN UINT64_C(0x10000)
#define ONE_ROUND UINT64_C(0x20000)

typedef struct worker {
    struct lh_stream *stream;
    pthread_t thread;
    float *scratch;
} worker;

struct lh_stream {
    const lh_device_ops *ops; /* first: lh_stream_device */
    int n_threads;
    int n_started;   /* workers that run: 1 .. n_threads - 1 of `workers` */
    worker *workers; /* [n_threads]; 0 is the caller */
    void *scratch;

    atomic_ullong state;
    pthread_mutex_t lock;
    pthread_cond_t wake, idle;
    atomic_int n_asleep; /* workers that wait for `wake`, or are about to */

    /* The round's work: written before the round opens, read by workers that joined it. */
    int quit;
    lh_cpu_item fn;
    void *ctx;
    int64_t n_items;
    atomic_llong next;
};

static void take_items(struct lh_stream *s, float *scratch)
{
    for (;;) {
        long long i = atomic_fetch_add_explicit(&s->next, 1, memory_order_relaxed);
        if (i >= s->n_items)
            return;
        s->fn(s->ctx, i, scratch);
    }
}

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* A round is open that is not `seen`. */
static int is_new(unsigned long long state, unsigned long long seen)
{
    return (state & OPEN) && state / ONE_ROUND != seen;
}

/* Joins the first open round that is not `seen`; returns its number. */
static unsigned long long join_round(struct lh_stream *s, unsigned long long seen)
{
    for (;;) {
        unsigned long long state = atomic_load(&s->state);
        for (int i = 0; i < SPIN && !is_new(state, seen); i++) {
            relax();
            state = atomic_load(&s->state);
        }
        if (!is_new(state, seen)) {
            /* Counted as asleep before the last look, while start_round opens before it looks at
             * the count: one of the two sees the other (both are sequentially consistent). */
            pthread_mutex_lock(&s->lock);
            atomic_fetch_add(&s->n_asleep, 1);
            while (!is_new(state = atomic_load(&s->state), seen))
                pthread_cond_wait(&s->wake, &s->lock);
            atomic_fetch_sub(&s->n_asleep, 1);
            pthread_mutex_unlock(&s->lock);
        }
        while (is_new(state, seen))
            if (atomic_compare_exchange_weak(&s->state, &state, state + 1))
                return state / ONE_ROUND;
    }
}

static void *work(void *arg)
{
    worker *w = arg;
    struct lh_stream *s = w->stream;
    unsigned long long seen = 0;

    for (;;) {
        seen = join_round(s, seen);
        if (s->quit)
            return NULL;
        take_items(s, w->scratch);
        if ((atomic_fetch_sub(&s->state, 1) & (OPEN | IN_ROUND)) == 1) { /* closed, the last one */
            pthread_mutex_lock(&s->lock);
            pthread_cond_signal(&s->idle);
            pthread_mutex_unlock(&s->lock);
        }
    }
}

/* Opens the round that the fields describe; no worker is in the one before. */
static void start_round(struct lh_stream *s)
{
    atomic_fetch_add(&s->state, ONE_ROUND | OPEN);
    if (atomic_load(&s->n_asleep) > 0) {
        pthread_mutex_lock(&s->lock);
        pthread_cond_broadcast(&s->wake);
        pthread_mutex_unlock(&s->lock);
    }
}

static void end_round(struct lh_stream *s)
{
    unsigned long long state = atomic_fetch_and(&s->state, ~OPEN);

    for (int i = 0; i < SPIN && (state & IN_ROUND); i++) {
        relax();
        state = atomic_load(&s->state);
    }
    if (!(state & IN_ROUND))
        return;
    pthread_mutex_lock(&s->lock);
    while (atomic_load(&s->state) & IN_ROUND)
        pthread_cond_wait(&s->idle, &s->lock);
    pthread_mutex_unlock(&s->lock);
}

void lh_cpu_parallel(lh_stream *s, int64_t n_items, lh_cpu_item fn, void *ctx)
{
    if (n_items <= 0)
        return;
    if (n_items == 1 || s->n_started == 0) {
        for (int64_t i = 0; i < n_items; i++)
            fn(ctx, i, s->workers[0].scratch);
        return;
    }
    s->fn = fn;
    s->ctx = ctx;
    s->n_items = n_items;
    atomic_store_explicit(&s->next, 0, memory_order_relaxed); /* the opening publishes it */
    start_round(s);
    take_items(s, s->workers[0].scratch);
    end_round(s);
}

/* About what one thread does in the time that it takes to wake another. */
#define ROWS_ELEMENTS 16384

typedef struct rows_call {
    lh_cpu_rows_fn fn;
    const void *args;
    int64_t n_rows, rows_per_item;
} rows_call;

static void rows_item(void *ctx, int64_t item, float *scratch)
{
    const rows_call *c = ctx;
    (void)scratch;
    c->fn(c->args, item * c->rows_per_item, lh_min64((item + 1) * c->rows_per_item, c->n_rows));
}

void lh_cpu_rows(lh_stream *s, int64_t n_rows, int64_t width, lh_cpu_rows_fn fn, const void *args)
{
    rows_call c = {fn, args, n_rows, lh_max64(1, ROWS_ELEMENTS / width)};
    lh_cpu_parallel(s, (n_rows + c.rows_per_item - 1) / c.rows_per_item, rows_item, &c);
}

int lh_cpu_threads(const lh_stream *s)
{
    return s->n_threads;
}

size_t lh_cpu_stream_bytes(int n_threads)
{
    return (size_t)n_threads * LH_CPU_SCRATCH * sizeof(float);
}

static void cpu_close(lh_stream *s)
{
    if (!s)
        return;
    if (s->n_started > 0) {
        s->quit = 1;
        start_round(s); /* never ended: every worker joins it and leaves */
        for (int i = 1; i <= s->n_started; i++)
            pthread_join(s->workers[i].thread, NULL);
    }
    pthread_cond_destroy(&s->idle);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    free(s->scratch);
    free(s->workers);
    free(s);
}

static lh_status cpu_open(lh_stream **out, int index, int n_threads, int deterministic)
{
    lh_status st = LH_OK;
    lh_stream *s = NULL;

    (void)deterministic;
    LH_REQUIRE(index == 0, LH_ERR_INVALID, "cpu device %d: there is only 0", index);
    LH_REQUIRE(n_threads >= 1 && n_threads <= 4096, LH_ERR_INVALID,
               "%d threads: expected 1 to 4096", n_threads);
    s = calloc(1, sizeof *s);
    LH_REQUIRE(s, LH_ERR_NOMEM, "cpu stream");
    openblas_set_num_threads(1); /* it is called from the stream's threads, and has none itself */
    s->ops = &lh_device_cpu;
    s->n_threads = n_threads;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, NULL);
    pthread_cond_init(&s->idle, NULL);
    s->workers = calloc((size_t)n_threads, sizeof *s->workers);
    LH_REQUIRE_OUT(s->workers, LH_ERR_NOMEM, "%d threads", n_threads);
    LH_TRY_OUT(lh_alloc(&s->scratch, lh_cpu_stream_bytes(n_threads), "scratch of the threads"));
    for (int i = 0; i < n_threads; i++) {
        s->workers[i].stream = s;
        s->workers[i].scratch = (float *)s->scratch + (size_t)i * LH_CPU_SCRATCH;
    }
    for (int i = 1; i < n_threads; i++) {
        LH_REQUIRE_OUT(pthread_create(&s->workers[i].thread, NULL, work, &s->workers[i]) == 0,
                       LH_ERR_NOMEM, "thread %d of %d did not start", i, n_threads);
        s->n_started = i;
    }
    *out = s;
    s = NULL;
out:
    cpu_close(s);
    return st;
}

static lh_status cpu_alloc(lh_stream *s, void **out, size_t bytes, const char *what)
{
    (void)s;
    size_t padded = 0;

    *out = NULL;
    LH_REQUIRE(lh_add_size(&padded, bytes, 511) == 0, LH_ERR_NOMEM, "%s: %zu bytes", what, bytes);
    void *p = aligned_alloc(256, padded / 256 * 256);
    LH_REQUIRE(p, LH_ERR_NOMEM, "%s: %zu bytes not available", what, bytes);
    memset(p, 0, bytes);
    *out = p;
    return LH_OK;
}

static void cpu_release(lh_stream *s, void *p)
{
    (void)s;
    free(p);
}

static lh_status cpu_copy(lh_stream *s, void *to, const void *from, size_t bytes)
{
    (void)s;
    if (bytes > 0)
        memcpy(to, from, bytes);
    return LH_OK;
}

static lh_status cpu_copy_rows(lh_stream *s, void *to, size_t to_step, const void *from,
                               size_t from_step, size_t bytes, int64_t n_rows)
{
    for (int64_t i = 0; i < n_rows; i++)
        LH_TRY(cpu_copy(s, (char *)to + (size_t)i * to_step,
                        (const char *)from + (size_t)i * from_step, bytes));
    return LH_OK;
}

static lh_status cpu_zero(lh_stream *s, void *p, size_t bytes)
{
    (void)s;
    if (bytes > 0)
        memset(p, 0, bytes);
    return LH_OK;
}

static lh_status cpu_sync(lh_stream *s)
{
    (void)s;
    return LH_OK;
}

static int cpu_count(void)
{
    return 1;
}

static lh_status cpu_bus(int index, char out[16])
{
    (void)index;
    out[0] = '\0';
    return LH_OK;
}

const lh_device_ops lh_device_cpu = {
    .name = "cpu",
    .reads_host = 1,
    .count = cpu_count,
    .bus = cpu_bus,
    .open = cpu_open,
    .close = cpu_close,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .alloc_host = cpu_alloc,
    .release_host = cpu_release,
    .upload = cpu_copy,
    .download = cpu_copy,
    .copy = cpu_copy,
    .copy_rows = cpu_copy_rows,
    .zero = cpu_zero,
    .load = cpu_copy,
    .sync = cpu_sync,
};
