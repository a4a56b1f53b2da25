/*
 * plan_send and plan_receive: the same integers as plain loops make, for all sizes, nothing written
 * beside them, whatever a peer says.
 */
#include "tests/kernel_data.h"

#define GUARD 64 /* elements before and behind what may be written */
#define SIGN 0x5a5a5a5a

enum routing { UNIFORM, HOT, N_ROUTINGS };

typedef struct shape {
    int64_t n_rows;
    int top_k, n_experts, size;
} shape;

/* Elements of 4 bytes on the device between guards. */
typedef struct guarded {
    int32_t *p;
    int64_t n;
} guarded;

static guarded make_guarded(int64_t n)
{
    int64_t all = n + 2 * GUARD;
    int32_t *host = data_host(all, sizeof *host);

    for (int64_t i = 0; i < all; i++)
        host[i] = SIGN;
    return (guarded){(int32_t *)data_device(host, all, sizeof *host) + GUARD, n};
}

/* What is in it now; checks the guards. */
static int32_t *host_of(guarded g)
{
    int32_t *host = data_host(g.n + 2 * GUARD, sizeof *host);
    int whole = 1;

    CHECK_OK(kernels->device->download(stream, host, g.p - GUARD,
                                       (size_t)(g.n + 2 * GUARD) * sizeof *host));
    CHECK_OK(kernels->device->sync(stream));
    for (int i = 0; i < GUARD; i++)
        whole &= host[i] == SIGN && host[g.n + GUARD + i] == SIGN;
    CHECK(whole);
    return host + GUARD;
}

static guarded make_work(size_t bytes)
{
    return make_guarded((int64_t)(bytes + 3) / 4);
}

static int below(int64_t n)
{
    return (int)(check_random() % (uint64_t)n);
}

static int rising(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Different experts in rising order: drawn, or the last ones for all rows. */
static int32_t *draw_routing(const shape *s, enum routing routing)
{
    int32_t *expert = data_host(s->n_rows * s->top_k, sizeof *expert), *row = expert;

    for (int64_t t = 0; t < s->n_rows; t++, row += s->top_k)
        for (int e = routing == HOT ? s->n_experts - s->top_k : 0, n = 0; n < s->top_k; e++)
            if (below(s->n_experts - e) < s->top_k - n)
                row[n++] = e;
    return expert;
}

/* Parts of the experts: about alike, or of any size. */
static int32_t *draw_parts(const shape *s)
{
    int32_t *first = data_host(s->size + 1, sizeof *first);
    int64_t *cut = data_host(s->size + 1, sizeof *cut);
    int alike = below(2);

    for (int r = 0; r <= s->size; r++)
        cut[r] = alike ? (int64_t)s->n_experts * r / s->size : below(s->n_experts + 1);
    cut[0] = 0;
    cut[s->size] = s->n_experts;
    qsort(cut, (size_t)s->size + 1, sizeof *cut, rising);
    for (int r = 0; r <= s->size; r++)
        first[r] = (int32_t)cut[r];
    return first;
}

/* Lists of a plan on the host. */
typedef struct lists {
    int32_t *total, *send_row, *source, *pair_expert;
    int64_t n_copies;
} lists;

/* Rank by rank, row by row. */
static lists want_sent(const shape *s, const int32_t *expert, const int32_t *first)
{
    int64_t n_pairs = s->n_rows * s->top_k, pair = 0;
    lists w = {.total = data_host(s->n_experts + s->size, 4),
               .send_row = data_host(n_pairs, 4),
               .source = data_host(n_pairs, 4),
               .pair_expert = data_host(n_pairs, 4)};

    for (int r = 0; r < s->size; r++)
        for (int64_t t = 0; t < s->n_rows; t++)
            for (int64_t i = t * s->top_k, begins = 1; i < (t + 1) * s->top_k; i++) {
                if (expert[i] < first[r] || expert[i] >= first[r + 1])
                    continue;
                w.total[expert[i]]++;
                w.total[s->n_experts + r] += (int32_t)begins;
                if (begins)
                    w.send_row[w.n_copies++] = (int32_t)t;
                w.source[i] = (int32_t)pair;
                w.pair_expert[pair++] = 2 * (expert[i] - first[r]) + (int32_t)begins;
                begins = 0;
            }
    return w;
}

#define CHECK_LIST(got, want, n) CHECK_SAME_BITS(host_of(got), want, (size_t)(n)*4)

static void check_send(const shape *s, enum routing routing)
{
    int32_t *expert = draw_routing(s, routing), *first = draw_parts(s);
    int64_t n_pairs = s->n_rows * s->top_k, n_totals = s->n_experts + s->size;
    lists want = want_sent(s, expert, first);
    guarded total = make_guarded(n_totals), send_row = make_guarded(want.n_copies);
    guarded source = make_guarded(n_pairs), pair_expert = make_guarded(n_pairs);
    guarded work = make_work(kernels->plan_send_work_bytes(s->n_rows, s->size));

    CHECK_OK(kernels->plan_send(
        stream, &(lh_plan_send_args){.total = total.p,
                                     .send_row = send_row.p,
                                     .source = source.p,
                                     .pair_expert = (uint32_t *)pair_expert.p,
                                     .expert = data_device(expert, n_pairs, sizeof *expert),
                                     .first = first,
                                     .n_rows = s->n_rows,
                                     .n_experts = s->n_experts,
                                     .top_k = s->top_k,
                                     .size = s->size,
                                     .work = work.p}));
    CHECK_LIST(total, want.total, n_totals);
    CHECK_LIST(send_row, want.send_row, want.n_copies);
    CHECK_LIST(source, want.source, n_pairs);
    CHECK_LIST(pair_expert, want.pair_expert, n_pairs);
    (void)host_of(work);
    data_free();
}

static void test_send(void)
{
    static const int rows[] = {0, 1, 255, 256, 257, 4099}, experts[] = {1, 2, 7, 256, 1000};
    static const int top_k[] = {1, 2, 8, 64}, sizes[] = {1, 2, 3, 4, 7, 64};
    static const shape large[] = {{32768, 8, 256, 1},   {32768, 8, 256, 4}, {32768, 8, 256, 64},
                                  {32768, 64, 1000, 3}, {4099, 64, 64, 7},  {300, 1, 1024, 1500}};

    for (int i = 0; i < 6 * 5 * 4 * 6; i++) {
        shape s = {rows[i % 6], top_k[i / 6 % 4], experts[i / 24 % 5], sizes[i / 120]};
        if (s.top_k <= s.n_experts && s.n_rows * s.top_k <= 40000)
            check_send(&s, (enum routing)below(N_ROUTINGS));
    }
    for (int i = 0; i < (int)(sizeof large / sizeof *large) * N_ROUTINGS; i++)
        check_send(&large[i / N_ROUTINGS], (enum routing)(i % N_ROUTINGS));
}

static int64_t clamp(int64_t x, int64_t least, int64_t most)
{
    return x < least ? least : x > most ? most : x;
}

/* Sorts (expert, place) as they are. */
static void want_received(int32_t *pair_copy, int32_t *back_pair, const uint32_t *said, int64_t n,
                          int n_nets, int64_t n_copies)
{
    int64_t *key = data_host(n, sizeof *key), copy = -1;

    for (int64_t i = 0; i < n; i++)
        key[i] = clamp(said[i] >> 1, 0, n_nets - 1) << 32 | i;
    qsort(key, (size_t)n, sizeof *key, rising);
    for (int64_t i = 0; i < n; i++)
        back_pair[key[i] & UINT32_MAX] = (int32_t)i;
    for (int64_t i = 0; i < n; i++) {
        copy += said[i] & 1;
        pair_copy[back_pair[i]] = (int32_t)clamp(copy, 0, n_copies - 1);
    }
}

static void check_receive(const uint32_t *said, int64_t n, int n_nets, int64_t n_copies)
{
    guarded pair_copy = make_guarded(n), back_pair = make_guarded(n);
    guarded work = make_work(kernels->plan_receive_work_bytes(n, n_nets));
    int32_t *want_copy = data_host(n, 4), *want_back = data_host(n, 4);

    want_received(want_copy, want_back, said, n, n_nets, n_copies);
    CHECK_OK(kernels->plan_receive(
        stream, &(lh_plan_receive_args){.pair_copy = pair_copy.p,
                                        .back_pair = back_pair.p,
                                        .pair_expert = data_device(said, n, sizeof *said),
                                        .n_pairs = n,
                                        .n_copies = n_copies,
                                        .n_nets = n_nets,
                                        .work = work.p}));
    CHECK_LIST(pair_copy, want_copy, n);
    CHECK_LIST(back_pair, want_back, n);
    (void)host_of(work);
    data_free();
}

/* Copies of one to four pairs; `hot` in four of them are of one expert. */
static void draw_and_check(int64_t n, int n_nets, int hot)
{
    uint32_t *said = data_host(n, sizeof *said);
    int64_t n_copies = 0;

    for (int64_t i = 0; i < n; i++) {
        int begins = i == 0 || below(3) == 0;
        n_copies += begins;
        said[i] = 2 * (uint32_t)(below(4) < hot ? n_nets / 2 : below(n_nets)) + (uint32_t)begins;
    }
    check_receive(said, n, n_nets, n_copies);
}

static void test_receive(void)
{
    static const int64_t pairs[] = {0, 1, 31, 32, 33, 255, 256, 257, 2047, 2048, 2049, 32792};
    static const int nets[] = {1, 2, 3, 37, 64, 256, 1000};

    for (int i = 0; i < 12 * 7; i++)
        draw_and_check(pairs[i % 12], nets[i / 12], i % 5);
    draw_and_check(262144, 256, 0);
    draw_and_check(262144, 64, 4);
}

/* Numbers that no peer should send, and copies that are too few or too many. */
static void test_receive_nonsense(void)
{
    for (int round = 0; round < 60; round++) {
        int64_t n = 1 + below(below(2) ? 40 : 9000);
        int n_nets = 1 + below(below(2) ? 4 : 1000), bits = 1 + below(32);
        uint32_t *said = data_host(n, sizeof *said);
        for (int64_t i = 0; i < n; i++)
            said[i] = (uint32_t)(check_random() >> (64 - bits));
        check_receive(said, n, n_nets, 1 + below(n));
    }
}

int main(int argc, char **argv)
{
    const char *missing = choose_backend(&argc, argv);
    if (missing)
        SKIP(missing);
    check_init(argc, argv);
    reopen(2);
    RUN(test_send);
    RUN(test_receive);
    RUN(test_receive_nonsense);
    kernels->device->close(stream);
    return check_done();
}
