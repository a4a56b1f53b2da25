/*
 * Random blocks: every rank draws the same routing of the whole block, so each knows what one
 * process alone would compute. Rows say which token they are; numbers are small integers, so sums
 * are exact and compared with ==.
 */
#include "base/mem.h"
#include "parallel/expert.h"
#include "parallel/shard.h"
#include "tests/check.h"

#define MAX_TOKENS 160
#define MAX_EXPERTS 40
#define MAX_TOP_K 8
#define WIDTH 4 /* of a row: token, segment or expert, two numbers */
#define MAX_PAIRS (MAX_TOKENS * MAX_TOP_K)

enum mode { UNIFORM, HOT, ONE_RANK, N_MODES };

/* A block as all ranks know it. */
typedef struct block {
    int n_tokens, n_experts, top_k;
    int rank[MAX_TOKENS]; /* whose token it is */
    int64_t segment[MAX_TOKENS];
    int32_t expert[MAX_TOKENS][MAX_TOP_K];
    float weight[MAX_TOKENS][MAX_TOP_K];
} block;

/* This rank's rows of it. */
typedef struct part {
    int64_t n;
    int32_t token[MAX_TOKENS];
    int32_t expert[MAX_PAIRS];
    int64_t segment[MAX_TOKENS];
} part;

typedef float row[WIDTH];

static lh_comm *comm;

static int below(int n)
{
    return (int)(check_random() % (uint64_t)n);
}

/* top_k different experts of `n` from `first` on, rising: each is taken with the right chance. */
static void draw_experts(int32_t *out, int first, int n, int top_k)
{
    for (int i = 0; i < n && top_k > 0; i++)
        if (below(n - i) < top_k) {
            *out++ = first + i;
            top_k--;
        }
}

/* Segments of random lengths go to random ranks, not to `without`; their numbers have gaps. */
static void draw_block(block *b, int n_tokens, int n_experts, int top_k, enum mode mode,
                       int without)
{
    lh_range hot = lh_split(n_experts, below(comm->size), comm->size);
    int64_t segment = (int64_t)(check_random() >> below(64)) - 1000;
    int rank = 0, longest = 1 + below(20);

    *b = (block){.n_tokens = n_tokens, .n_experts = n_experts, .top_k = top_k};
    for (int t = 0; t < n_tokens; t++) {
        if (t == 0 || below(longest) == 0) {
            rank = below(comm->size);
            if (rank == without)
                rank = (rank + 1) % comm->size;
            segment += 1 + below(below(2) ? 1 : 1000);
        }
        b->rank[t] = rank;
        b->segment[t] = segment;
        if (mode == ONE_RANK && hot.end - hot.begin >= top_k)
            draw_experts(b->expert[t], (int)hot.begin, (int)(hot.end - hot.begin), top_k);
        else
            draw_experts(b->expert[t], mode == HOT ? n_experts - top_k : 0,
                         mode == HOT ? top_k : n_experts, top_k);
        for (int j = 0; j < top_k; j++)
            b->weight[t][j] = (float)(1 + below(7));
    }
}

static void take_part(part *p, const block *b)
{
    p->n = 0;
    for (int t = 0; t < b->n_tokens; t++)
        if (b->rank[t] == comm->rank) {
            memcpy(p->expert + p->n * b->top_k, b->expert[t], (size_t)b->top_k * sizeof(int32_t));
            p->segment[p->n] = b->segment[t];
            p->token[p->n++] = t;
        }
}

static void token_row(float *x, int t)
{
    x[0] = (float)t;
    x[1] = 0;
    x[2] = (float)(t % 13 - 6);
    x[3] = (float)(t % 7);
}

static void expert_row(float *y, const float *x, int expert)
{
    y[0] = x[0];
    y[1] = (float)expert;
    y[2] = x[2] * (float)(expert + 1);
    y[3] = x[3] - (float)expert;
}

/*
 * Computes pair by pair, and checks that this rank has exactly its pairs in exactly the order that
 * any number of ranks has: by expert, segment, token, with a tile for each expert and segment.
 */
static void run_experts(const block *b, const lh_expert_plan *p, row *in, row *out)
{
    lh_range own = lh_split(b->n_experts, comm->rank, comm->size);
    int64_t pair = 0, tile = 0;

    for (int e = (int)own.begin; e < own.end; e++) {
        for (int t = 0, started = 0; t < b->n_tokens; t++) {
            started &= t > 0 && b->segment[t] == b->segment[t - 1];
            for (int j = 0; j < b->top_k; j++) {
                if (b->expert[t][j] != e)
                    continue;
                if (pair >= p->n_pairs || tile >= p->tiles.n + started) {
                    CHECK_MSG(0, "pairs or tiles are missing");
                    return;
                }
                if (!started) {
                    CHECK_EQ(p->tiles.start[tile], pair);
                    CHECK_EQ(p->net[tile], e - own.begin);
                    tile++;
                    started = 1;
                }
                CHECK(p->pair_copy[pair] >= 0 && p->pair_copy[pair] < p->n_received);
                CHECK_EQ(in[p->pair_copy[pair]][0], t);
                expert_row(out[pair], in[p->pair_copy[pair]], e);
                pair++;
            }
        }
    }
    CHECK_EQ(p->n_pairs, pair);
    CHECK_EQ(p->tiles.n, tile);
    CHECK_EQ(p->tiles.start[tile], pair);
}

static void check_combined(const block *b, const part *mine, const lh_expert_plan *p, row *back)
{
    char taken[MAX_PAIRS] = {0};

    for (int64_t i = 0; i < mine->n; i++) {
        int t = mine->token[i];
        row x, y, want = {0}, got = {0};
        token_row(x, t);
        for (int j = 0; j < b->top_k; j++) {
            int32_t from = p->source[i * b->top_k + j];
            if (from < 0 || from >= mine->n * b->top_k || taken[from]++) {
                CHECK_MSG(0, "row %d slot %d comes from %d", (int)i, j, from);
                return;
            }
            CHECK(back[from][0] == (float)t && back[from][1] == (float)b->expert[t][j]);
            expert_row(y, x, b->expert[t][j]);
            for (int d = 0; d < WIDTH; d++) {
                want[d] += b->weight[t][j] * y[d];
                got[d] += b->weight[t][j] * back[from][d];
            }
        }
        CHECK_SAME_BITS(got, want, sizeof want);
    }
}

static void run_block(lh_expert *e, const block *b)
{
    static row send[MAX_PAIRS], copies[MAX_PAIRS], out[MAX_PAIRS], back[MAX_PAIRS];
    static part mine;
    const lh_expert_plan *p = NULL;

    take_part(&mine, b);
    CHECK_OK(lh_expert_make_plan(e, mine.expert, mine.segment, mine.n, &p));
    if (!p)
        return;
    CHECK_EQ(p->n_rows, mine.n);
    if (comm->size == 1) {
        CHECK_EQ(p->n_sent, mine.n);
        for (int64_t i = 0; i < mine.n; i++)
            CHECK_EQ(p->send_row[i], i);
        for (int64_t i = 0; i < mine.n * b->top_k; i++)
            CHECK_EQ(p->source[i], i);
    }
    for (int64_t i = 0; i < p->n_sent; i++)
        token_row(send[i], mine.token[p->send_row[i]]);
    CHECK_OK(lh_expert_dispatch(e, send, copies, sizeof(row), NULL));
    run_experts(b, p, copies, out);
    for (int64_t i = 0; i < p->n_pairs; i++)
        memcpy(send[i], out[p->back_pair[i]], sizeof(row));
    CHECK_OK(lh_expert_collect(e, send, back, sizeof(row), NULL));
    check_combined(b, &mine, p, back);
}

/* One lh_expert serves several blocks, as in a prefill; its room is exactly what the worst needs.
 */
static void run_blocks(int n_experts, int top_k, int n_blocks, int without)
{
    static block b;
    lh_expert *e = NULL;

    CHECK_OK(lh_expert_create(&e, MAX_TOKENS, MAX_TOKENS, n_experts, top_k, comm, comm));
    if (!e)
        return;
    for (int i = 0; i < n_blocks; i++) {
        int n_tokens = below(8) == 0 ? MAX_TOKENS : below(below(2) ? 8 : MAX_TOKENS);
        draw_block(&b, n_tokens, n_experts, top_k, (enum mode)below(N_MODES), without);
        run_block(e, &b);
    }
    lh_expert_destroy(e);
}

static void test_random_routings(void)
{
    for (int i = 0; i < 170; i++) {
        int n_experts = 1 + below(below(2) ? 8 : MAX_EXPERTS);
        int top_k = 1 + below(n_experts < MAX_TOP_K ? n_experts : MAX_TOP_K);
        run_blocks(n_experts, top_k, 10, -1);
    }
}

static void test_a_rank_without_tokens(void)
{
    for (int r = 0; comm->size > 1 && r < comm->size; r++)
        run_blocks(8, 2, 3, r);
}

static void test_more_ranks_than_experts(void)
{
    run_blocks(1, 1, 5, -1);
    run_blocks(2, 2, 5, -1);
    run_blocks(3, 1, 5, -1);
}

static void test_top_k(void)
{
    run_blocks(MAX_EXPERTS, 1, 5, -1);
    run_blocks(MAX_EXPERTS, 8, 5, -1);
    run_blocks(8, 8, 5, -1); /* all tokens to all experts: every array is full */
}

static void test_no_tokens(void)
{
    static block b;
    lh_expert *e = NULL;

    CHECK_OK(lh_expert_create(&e, 0, 0, 8, 2, comm, comm));
    draw_block(&b, 0, 8, 2, UNIFORM, -1);
    run_block(e, &b);
    lh_expert_destroy(e);
}

/* Said before anything is sent: the next plan still works. */
static void test_bad_routings(void)
{
    static block b;
    const int64_t segment[2] = {4, 4}, falling[2] = {4, 3};
    const lh_expert_plan *p;
    lh_expert *e = NULL;
    char byte;

    CHECK_OK(lh_expert_create(&e, 2, 2 * comm->size, 8, 2, comm, comm));
    CHECK_STATUS(lh_expert_dispatch(e, &byte, &byte, 1, NULL), LH_ERR_INVALID);
    CHECK_STATUS(lh_expert_make_plan(e, (int32_t[]){0, 1, 2, 8}, segment, 2, &p), LH_ERR_INVALID);
    CHECK_STATUS(lh_expert_make_plan(e, (int32_t[]){0, 1, -1, 3}, segment, 2, &p), LH_ERR_INVALID);
    CHECK_STATUS(lh_expert_make_plan(e, (int32_t[]){0, 1, 3, 3}, segment, 2, &p), LH_ERR_INVALID);
    CHECK_STATUS(lh_expert_make_plan(e, (int32_t[]){0, 1, 2, 3}, falling, 2, &p), LH_ERR_INVALID);
    CHECK_STATUS(lh_expert_make_plan(e, NULL, NULL, 3, &p), LH_ERR_INVALID);
    draw_block(&b, 2, 8, 2, UNIFORM, -1);
    run_block(e, &b);
    lh_expert_destroy(e);

    /* More rows than the block has room for: all ranks see it alike. */
    if (comm->size > 1) {
        CHECK_OK(lh_expert_create(&e, 2, 2, 8, 2, comm, comm));
        CHECK_STATUS(lh_expert_make_plan(e, (int32_t[]){0, 1, 2, 3}, segment, 2, &p),
                     LH_ERR_INVALID);
        lh_expert_destroy(e);
    }
}

/*
 * What arrives while ranks plan, kept to be replayed to this rank alone: a lie of another rank is a
 * byte changed in what came from it.
 */
static struct {
    lh_comm comm;
    lh_comm_ops ops;
    size_t used, at, lie; /* places in bytes; lie: the one to change */
    int keeping;
    char bytes[1 << 16];
    char foreign[1 << 16]; /* which bytes came from other ranks */
} tape;

static lh_status tape_alltoallv(lh_comm *c, const void *send, const size_t *send_bytes, void *recv,
                                const size_t *recv_bytes, lh_stream *s)
{
    char *to = recv;

    if (tape.keeping)
        LH_TRY(lh_comm_alltoallv(comm, send, send_bytes, recv, recv_bytes, s));
    for (int r = 0; r < c->size; r++)
        for (size_t i = 0; i < recv_bytes[r]; i++, to++, tape.at++) {
            LH_REQUIRE(tape.at < (tape.keeping ? sizeof tape.bytes : tape.used), LH_ERR_DISAGREE,
                       "a rank sends less");
            if (tape.keeping) {
                tape.bytes[tape.at] = *to;
                tape.foreign[tape.at] = r != c->rank;
            } else {
                *to = (char)(tape.bytes[tape.at] ^ (tape.at == tape.lie ? 1 << below(8) : 0));
            }
        }
    return LH_OK;
}

static int all_within(const int32_t *x, int64_t n, int64_t end)
{
    for (int64_t i = 0; i < n; i++)
        if (x[i] < 0 || x[i] >= end)
            return 0;
    return 1;
}

/* A rank that is lied to refuses, or has a plan that reads and writes within its rows. */
static void test_lies(void)
{
    static block b;
    static part mine;
    const lh_expert_plan *p;
    lh_expert *e = NULL;
    int refused = 0;

    tape.ops = (lh_comm_ops){.name = "tape", .alltoallv = tape_alltoallv};
    tape.comm = (lh_comm){.ops = &tape.ops, .rank = comm->rank, .size = comm->size, .layer = -1};
    CHECK_OK(lh_expert_create(&e, 40, 40, 8, 3, comm, &tape.comm));
    draw_block(&b, 40, 8, 3, UNIFORM, -1);
    take_part(&mine, &b);
    tape.keeping = 1;
    CHECK_OK(lh_expert_make_plan(e, mine.expert, mine.segment, mine.n, &p));
    tape.keeping = 0;
    tape.used = tape.at;
    for (tape.lie = 0; tape.lie <= tape.used; tape.lie++) {
        if (tape.lie < tape.used && !tape.foreign[tape.lie])
            continue;
        tape.at = 0;
        lh_status st = lh_expert_make_plan(e, mine.expert, mine.segment, mine.n, &p);
        CHECK(st == LH_OK ||
              (tape.lie < tape.used && (st == LH_ERR_DISAGREE || st == LH_ERR_INVALID)));
        refused += st != LH_OK;
        if (st == LH_OK)
            CHECK(p->tiles.start[p->tiles.n] == p->n_pairs &&
                  all_within(p->pair_copy, p->n_pairs, p->n_received) &&
                  all_within(p->back_pair, p->n_pairs, p->n_pairs) &&
                  all_within(p->net, p->tiles.n, 8));
    }
    CHECK((refused > 0) == (comm->size > 1));
    lh_expert_destroy(e);
}

static void test_create(void)
{
    lh_expert *e = NULL;

    CHECK_STATUS(lh_expert_create(&e, 10, 10, 8, 9, comm, comm), LH_ERR_INVALID);
    CHECK_STATUS(lh_expert_create(&e, 10, 10, 8, 0, comm, comm), LH_ERR_INVALID);
    CHECK_STATUS(lh_expert_create(&e, 11, 10, 8, 2, comm, comm), LH_ERR_INVALID);
    CHECK_STATUS(lh_expert_create(&e, 10, (int64_t)1 << 28, 8, 8, comm, comm), LH_ERR_UNSUPPORTED);
    CHECK(!e);
    CHECK(lh_expert_bytes(10, (int64_t)1 << 28, 8, 8, 0, 1) == SIZE_MAX);
    CHECK(lh_expert_bytes(100, 400, 8, 8, 1, 4) < lh_expert_bytes(100, 800, 8, 8, 1, 4));
    lh_expert_destroy(NULL);
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    CHECK_OK(lh_comm_mpi_create(&comm, 30));
    if (!comm)
        return 1;
    RUN(test_random_routings);
    RUN(test_a_rank_without_tokens);
    RUN(test_more_ranks_than_experts);
    RUN(test_top_k);
    RUN(test_no_tokens);
    RUN(test_bad_routings);
    RUN(test_lies);
    RUN(test_create);
    lh_comm_destroy(comm);
    lh_comm_mpi_finalize();
    return check_done();
}
