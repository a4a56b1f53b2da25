/*
 * Random blocks for tests of the expert exchange: every rank draws the same routing of the whole
 * block, so each knows what one process alone would compute. Rows say which token they are; numbers
 * are small integers, so sums are exact and compared with ==.
 */
#ifndef LH_TESTS_EXPERT_BLOCK_H
#define LH_TESTS_EXPERT_BLOCK_H

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

static inline int below(int n)
{
    return (int)(check_random() % (uint64_t)n);
}

/* top_k different experts of `n` from `first` on, rising: each is taken with the right chance. */
static inline void draw_experts(int32_t *out, int first, int n, int top_k)
{
    for (int i = 0; i < n && top_k > 0; i++)
        if (below(n - i) < top_k) {
            *out++ = first + i;
            top_k--;
        }
}

/* Segments of random lengths go to random ranks, not to `without`; their numbers have gaps. */
static inline void draw_block(block *b, int n_tokens, int n_experts, int top_k, enum mode mode,
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

static inline void take_part(part *p, const block *b)
{
    p->n = 0;
    for (int t = 0; t < b->n_tokens; t++)
        if (b->rank[t] == comm->rank) {
            memcpy(p->expert + p->n * b->top_k, b->expert[t], (size_t)b->top_k * sizeof(int32_t));
            p->segment[p->n] = b->segment[t];
            p->token[p->n++] = t;
        }
}

static inline void token_row(float *x, int t)
{
    x[0] = (float)t;
    x[1] = 0;
    x[2] = (float)(t % 13 - 6);
    x[3] = (float)(t % 7);
}

static inline void expert_row(float *y, const float *x, int expert)
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
static inline void run_experts(const block *b, const lh_expert_plan *p, row *in, row *out)
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

static inline void check_combined(const block *b, const part *mine, const lh_expert_plan *p,
                                  row *back)
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

/* A planned block to the experts and back. */
static inline void run_plan(lh_expert *e, const block *b, const part *mine, const lh_expert_plan *p)
{
    static row send[MAX_PAIRS], copies[MAX_PAIRS], out[MAX_PAIRS], back[MAX_PAIRS];

    CHECK_EQ(p->n_rows, mine->n);
    if (comm->size == 1) {
        CHECK_EQ(p->n_sent, mine->n);
        for (int64_t i = 0; i < mine->n; i++)
            CHECK_EQ(p->send_row[i], i);
        for (int64_t i = 0; i < mine->n * b->top_k; i++)
            CHECK_EQ(p->source[i], i);
    }
    for (int64_t i = 0; i < p->n_sent; i++)
        token_row(send[i], mine->token[p->send_row[i]]);
    CHECK_OK(lh_expert_dispatch(e, send, copies, sizeof(row), NULL));
    run_experts(b, p, copies, out);
    for (int64_t i = 0; i < p->n_pairs; i++)
        memcpy(send[i], out[p->back_pair[i]], sizeof(row));
    CHECK_OK(lh_expert_collect(e, send, back, sizeof(row), NULL));
    check_combined(b, mine, p, back);
}

#endif
