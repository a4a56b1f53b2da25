#include "parallel/shard.h"
#include "tests/check.h"

#define MAX_SIZE 64

static void check_split(int64_t n, int size)
{
    int64_t at = 0;

    for (int r = 0; r < size; r++) {
        lh_range part = lh_split(n, r, size);
        int64_t len = part.end - part.begin;
        CHECK_EQ(part.begin, at);
        CHECK(len == n / size || len == n / size + 1);
        CHECK(r == 0 || len <= lh_split(n, r - 1, size).end - lh_split(n, r - 1, size).begin);
        for (int64_t i = part.begin; i < part.end; i++)
            if (lh_split_owner(n, i, size) != r)
                CHECK_EQ(lh_split_owner(n, i, size), r);
        at = part.end;
    }
    CHECK_EQ(at, n);
}

static void test_split(void)
{
    for (int size = 1; size <= MAX_SIZE; size++)
        for (int64_t n = 0; n <= 130; n++)
            check_split(n, size);
}

static void test_split_large(void)
{
    const int64_t n = INT64_MAX;
    lh_range last = lh_split(n, 6, 7);

    CHECK(last.end == n && last.end - last.begin == n / 7);
    CHECK_EQ(lh_split_owner(n, last.begin, 7), 6);
    CHECK_EQ(lh_split_owner(n, last.begin - 1, 7), 5);
}

/* Everything is covered once, in order; whose run it is and how long follows from its place. */
static void check_runs(int64_t begin, int64_t end, int64_t segment, int size)
{
    lh_run runs[2 * MAX_SIZE];
    int64_t at = begin, n_segments = (end - begin + segment - 1) / segment;
    int n = lh_block_runs(runs, begin, end, segment, size);
    /* Ranks with one segment have a front run, ranks with two also a back run. */
    int n_fronts = n_segments < size ? (int)n_segments : size;
    int n_backs = n_segments < size || size == 1   ? 0
                  : n_segments < 2 * (int64_t)size ? (int)n_segments - size
                                                   : size;

    CHECK_EQ(n, n_fronts + n_backs);
    for (int i = 0; i < n; i++) {
        const lh_run *r = &runs[i];
        int rank = i < n_fronts ? i : n_backs - 1 - (i - n_fronts);
        int64_t share = n_segments / size + (rank < n_segments % size);
        int64_t back = size == 1 ? 0 : share / 2;
        CHECK_EQ(r->rank, rank);
        CHECK_EQ(r->n_segments, i < n_fronts ? share - back : back);
        CHECK_EQ(r->token, at);
        CHECK_EQ(r->segment * segment, at);
        at += r->n_segments * segment;
        at = at < end ? at : end;
        CHECK_EQ(r->token + r->n_tokens, at);
    }
    CHECK_EQ(at, end);
}

static void test_block_runs(void)
{
    for (int size = 1; size <= MAX_SIZE; size++)
        for (int64_t n = 0; n <= 200; n += 1 + n / 16) {
            check_runs(0, n, 1, size);
            check_runs(640, 640 + n * 64, 64, size);
            if (n > 0)
                check_runs(64 * 5, 64 * 5 + n * 64 - 63, 64, size);
        }
}

static void expect(const lh_run *r, int rank, int64_t token, int64_t n_tokens, int64_t segment,
                   int n_segments)
{
    CHECK_EQ(r->rank, rank);
    CHECK_EQ(r->token, token);
    CHECK_EQ(r->n_tokens, n_tokens);
    CHECK_EQ(r->segment, segment);
    CHECK_EQ(r->n_segments, n_segments);
}

/* 7 segments on 3 ranks, worked out by hand: shares 3, 2, 2. */
static void test_block_runs_by_hand(void)
{
    lh_run runs[6];

    CHECK_EQ(lh_block_runs(runs, 1000, 1650, 100, 3), 6);
    expect(&runs[0], 0, 1000, 200, 10, 2);
    expect(&runs[1], 1, 1200, 100, 12, 1);
    expect(&runs[2], 2, 1300, 100, 13, 1);
    expect(&runs[3], 2, 1400, 100, 14, 1);
    expect(&runs[4], 1, 1500, 100, 15, 1);
    expect(&runs[5], 0, 1600, 50, 16, 1);
    CHECK_EQ(lh_block_runs(runs, 0, 650, 100, 1), 1);
    expect(&runs[0], 0, 0, 650, 0, 7);
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    RUN(test_split);
    RUN(test_split_large);
    RUN(test_block_runs);
    RUN(test_block_runs_by_hand);
    return check_done();
}
