#include "parallel/expert.h"

#include <stdlib.h>

#include "base/mem.h"
#include "parallel/shard.h"

/* What travels ahead of each copy of a row: its segment and how many of its experts live there. */
typedef struct head {
    int64_t segment, n_pairs;
} head;

/* Counts that travel first. */
typedef struct counts {
    int64_t n_copies, n_pairs, n_rows;
} counts;

/*
 * Received copies of one segment, neighbours in the order of arrival because a segment lives on one
 * rank and rows come in order; and the pairs that belong to them.
 */
typedef struct group {
    int64_t segment;
    int32_t copy, n_copies, pair, n_pairs;
} group;

struct lh_expert {
    lh_comm *comm, *host; /* of rows, of plans */
    int64_t max_rows, max_block;
    int n_experts, top_k, planned;
    lh_range own; /* this rank's experts */
    lh_expert_plan plan;

    int32_t *owner, *local;          /* [n_experts] its rank, and its number there */
    counts *to, *from;               /* [size] what goes to and comes from each rank */
    size_t *send_bytes, *recv_bytes; /* [size] of the exchange under way */
    int64_t *next_copy, *next_pair;  /* [size] cursors into what is sent */
    int32_t *send_row, *source;      /* the plan's arrays */
    head *send_head, *recv_head;     /* of each copy */
    int32_t *send_expert;  /* [max_rows * top_k] local to the receiver, in sending order */
    int32_t *recv_expert;  /* of each arriving pair */
    group *groups, *spare; /* [max_block] */
    int32_t *at, *tile_at, *in_group;     /* [own experts] cursors of the grouping */
    int32_t *pair_copy, *back_pair, *net; /* the plan's arrays */
    int64_t *tile_start;
};

/* Measures with base NULL; the struct itself comes first. */
static size_t layout(lh_expert **out, void *base, int64_t max_rows, int64_t max_block,
                     int n_experts, int top_k, int rank, int size)
{
    lh_carve c = {.base = base};
    lh_range own = lh_split(n_experts, rank, size);
    int64_t here = own.end - own.begin;
    size_t n_ranks = (size_t)size, n_here = (size_t)here, k = (size_t)top_k;
    size_t rows = (size_t)max_rows, block = (size_t)max_block;
    size_t sent = rows * (size_t)lh_min64(top_k, size);
    size_t pairs = block * (size_t)lh_min64(top_k, here);
    lh_expert measured, *e;

    *out = lh_carve_take(&c, 1, sizeof **out, 64);
    e = *out ? *out : &measured;
    e->own = own;
    e->owner = lh_carve_take(&c, (size_t)n_experts, sizeof *e->owner, 64);
    e->local = lh_carve_take(&c, (size_t)n_experts, sizeof *e->local, 64);
    e->to = lh_carve_take(&c, n_ranks, sizeof *e->to, 64);
    e->from = lh_carve_take(&c, n_ranks, sizeof *e->from, 64);
    e->send_bytes = lh_carve_take(&c, n_ranks, sizeof *e->send_bytes, 64);
    e->recv_bytes = lh_carve_take(&c, n_ranks, sizeof *e->recv_bytes, 64);
    e->next_copy = lh_carve_take(&c, n_ranks, sizeof *e->next_copy, 64);
    e->next_pair = lh_carve_take(&c, n_ranks, sizeof *e->next_pair, 64);
    e->send_row = lh_carve_take(&c, sent, sizeof *e->send_row, 64);
    e->send_head = lh_carve_take(&c, sent, sizeof *e->send_head, 64);
    e->send_expert = lh_carve_take(&c, rows * k, sizeof *e->send_expert, 64);
    e->source = lh_carve_take(&c, rows * k, sizeof *e->source, 64);
    e->recv_head = lh_carve_take(&c, block, sizeof *e->recv_head, 64);
    e->recv_expert = lh_carve_take(&c, pairs, sizeof *e->recv_expert, 64);
    e->groups = lh_carve_take(&c, block, sizeof *e->groups, 64);
    e->spare = lh_carve_take(&c, block, sizeof *e->spare, 64);
    e->at = lh_carve_take(&c, n_here, sizeof *e->at, 64);
    e->tile_at = lh_carve_take(&c, n_here, sizeof *e->tile_at, 64);
    e->in_group = lh_carve_take(&c, n_here, sizeof *e->in_group, 64);
    e->pair_copy = lh_carve_take(&c, pairs, sizeof *e->pair_copy, 64);
    e->back_pair = lh_carve_take(&c, pairs, sizeof *e->back_pair, 64);
    e->net = lh_carve_take(&c, pairs, sizeof *e->net, 64);
    e->tile_start = lh_carve_take(&c, pairs + 1, sizeof *e->tile_start, 64);
    return c.used;
}

static int fits(int64_t max_rows, int64_t max_block, int n_experts, int top_k)
{
    return top_k >= 1 && top_k <= n_experts && top_k <= LH_MAX_TOP_K && max_rows >= 0 &&
           max_rows <= max_block && max_block <= INT32_MAX / top_k;
}

size_t lh_expert_bytes(int64_t max_rows, int64_t max_block, int n_experts, int top_k, int rank,
                       int size)
{
    lh_expert *none;

    return fits(max_rows, max_block, n_experts, top_k)
               ? layout(&none, NULL, max_rows, max_block, n_experts, top_k, rank, size)
               : SIZE_MAX;
}

lh_status lh_expert_create(lh_expert **out, int64_t max_rows, int64_t max_block, int n_experts,
                           int top_k, lh_comm *c, lh_comm *host)
{
    lh_expert *e;
    void *block;

    LH_REQUIRE(host->rank == c->rank && host->size == c->size, LH_ERR_INVALID,
               "rank %d of %d for plans, %d of %d for rows", host->rank, host->size, c->rank,
               c->size);
    LH_REQUIRE(top_k >= 1 && top_k <= n_experts && top_k <= LH_MAX_TOP_K, LH_ERR_INVALID,
               "%d of %d experts per token, expected 1 to %d", top_k, n_experts, LH_MAX_TOP_K);
    LH_REQUIRE(max_rows >= 0 && max_rows <= max_block, LH_ERR_INVALID,
               "%lld rows of a block of %lld", (long long)max_rows, (long long)max_block);
    LH_REQUIRE(fits(max_rows, max_block, n_experts, top_k), LH_ERR_UNSUPPORTED,
               "a block of %lld rows with %d experts each, expected less than 2^31 pairs",
               (long long)max_block, top_k);
    LH_TRY(lh_alloc(&block,
                    lh_expert_bytes(max_rows, max_block, n_experts, top_k, c->rank, c->size),
                    "expert dispatch"));
    (void)layout(&e, block, max_rows, max_block, n_experts, top_k, c->rank, c->size);
    e->comm = c;
    e->host = host;
    e->max_rows = max_rows;
    e->max_block = max_block;
    e->n_experts = n_experts;
    e->top_k = top_k;
    for (int i = 0; i < n_experts; i++) {
        e->owner[i] = lh_split_owner(n_experts, i, c->size);
        e->local[i] = i - (int32_t)lh_split(n_experts, e->owner[i], c->size).begin;
    }
    *out = e;
    return LH_OK;
}

void lh_expert_destroy(lh_expert *e)
{
    free(e);
}

static lh_status check_routing(const lh_expert *e, const int32_t *expert, const int64_t *segment,
                               int64_t n_rows)
{
    LH_REQUIRE(n_rows >= 0 && n_rows <= e->max_rows, LH_ERR_INVALID,
               "%lld rows to dispatch, room for %lld", (long long)n_rows, (long long)e->max_rows);
    for (int64_t t = 0; t < n_rows; t++) {
        const int32_t *row = expert + t * e->top_k;
        LH_REQUIRE(t == 0 || segment[t] >= segment[t - 1], LH_ERR_INVALID,
                   "row %lld is of segment %lld after segment %lld", (long long)t,
                   (long long)segment[t], (long long)segment[t - 1]);
        for (int j = 0; j < e->top_k; j++)
            LH_REQUIRE(row[j] >= 0 && row[j] < e->n_experts && (j == 0 || row[j] > row[j - 1]),
                       LH_ERR_INVALID,
                       "row %lld: expert %d in slot %d, expected rising numbers below %d",
                       (long long)t, row[j], j, e->n_experts);
    }
    return LH_OK;
}

/* How many copies and pairs go to each rank. Experts rise in a row, so owners do not fall. */
static void count_sent(lh_expert *e, const int32_t *expert, int64_t n_rows)
{
    int64_t copy = 0, pair = 0;

    for (int r = 0; r < e->comm->size; r++)
        e->to[r] = (counts){.n_rows = n_rows};
    for (int64_t t = 0; t < n_rows; t++)
        for (int j = 0, last = -1; j < e->top_k; j++) {
            int r = e->owner[expert[t * e->top_k + j]];
            e->to[r].n_copies += r != last;
            e->to[r].n_pairs++;
            last = r;
        }
    for (int r = 0; r < e->comm->size; r++) {
        e->next_copy[r] = copy;
        e->next_pair[r] = pair;
        copy += e->to[r].n_copies;
        pair += e->to[r].n_pairs;
    }
    e->plan.n_rows = n_rows;
    e->plan.n_sent = copy;
}

/* Packs by destination what is said about each copy. Outputs come back in the order of
 * send_expert, so a pair's place in it is its source. */
static void pack_sent(lh_expert *e, const int32_t *expert, const int64_t *segment)
{
    for (int64_t t = 0; t < e->plan.n_rows; t++)
        for (int j = 0, last = -1; j < e->top_k; j++) {
            int64_t i = t * e->top_k + j;
            int r = e->owner[expert[i]];
            if (r != last) {
                int64_t copy = e->next_copy[r]++;
                e->send_row[copy] = (int32_t)t;
                e->send_head[copy] = (head){.segment = segment[t]};
                last = r;
            }
            e->send_head[e->next_copy[r] - 1].n_pairs++;
            e->source[i] = (int32_t)e->next_pair[r];
            e->send_expert[e->next_pair[r]++] = e->local[expert[i]];
        }
}

/* One item of `bytes` per copy, or per pair: out[r] of them to each rank, in[r] from it. */
static lh_status exchange(lh_expert *e, lh_comm *c, const void *send, const counts *out, void *recv,
                          const counts *in, int per_pair, size_t bytes, lh_stream *s)
{
    for (int r = 0; r < c->size; r++) {
        e->send_bytes[r] = (size_t)(per_pair ? out[r].n_pairs : out[r].n_copies) * bytes;
        e->recv_bytes[r] = (size_t)(per_pair ? in[r].n_pairs : in[r].n_copies) * bytes;
    }
    return lh_comm_alltoallv(c, send, e->send_bytes, recv, e->recv_bytes, s);
}

/* After this, what comes is known to fit. */
static lh_status exchange_counts(lh_expert *e)
{
    lh_expert_plan *p = &e->plan;
    int64_t block = 0, here = e->own.end - e->own.begin;

    for (int r = 0; r < e->comm->size; r++)
        e->send_bytes[r] = sizeof(counts);
    LH_TRY(lh_comm_alltoallv(e->host, e->to, e->send_bytes, e->from, e->send_bytes, NULL));
    p->n_received = 0;
    p->n_pairs = 0;
    for (int r = 0; r < e->comm->size; r++) {
        const counts *f = &e->from[r];
        LH_REQUIRE(f->n_rows >= 0 && f->n_rows <= e->max_block - block, LH_ERR_INVALID,
                   "a block of %lld rows or more, room for %lld", (long long)(block + f->n_rows),
                   (long long)e->max_block);
        LH_REQUIRE(f->n_copies >= 0 && f->n_copies <= f->n_rows && f->n_pairs >= f->n_copies &&
                       f->n_pairs <= f->n_copies * lh_min64(e->top_k, here),
                   LH_ERR_DISAGREE, "rank %d sends %lld rows for %lld pairs to %lld experts", r,
                   (long long)f->n_copies, (long long)f->n_pairs, (long long)here);
        block += f->n_rows;
        p->n_received += f->n_copies;
        p->n_pairs += f->n_pairs;
    }
    return LH_OK;
}

/* Cuts what has arrived into groups; returns how many, or -1 if it contradicts the counts. */
static int64_t find_groups(lh_expert *e)
{
    int64_t n = 0, copy = 0, pair = 0, end_of_rank = 0;

    for (int r = 0; r < e->comm->size; r++) {
        int64_t first = copy, end = copy + e->from[r].n_copies;
        for (; copy < end; copy++) {
            const head *h = &e->recv_head[copy];
            if (h->n_pairs < 1 || h->n_pairs > e->top_k)
                return -1;
            if (copy == first || h->segment != e->groups[n - 1].segment)
                e->groups[n++] =
                    (group){.segment = h->segment, .copy = (int32_t)copy, .pair = (int32_t)pair};
            e->groups[n - 1].n_copies++;
            e->groups[n - 1].n_pairs += (int32_t)h->n_pairs;
            pair += h->n_pairs;
        }
        end_of_rank += e->from[r].n_pairs;
        if (pair != end_of_rank)
            return -1;
    }
    for (int64_t i = 0; i < pair; i++)
        if (e->recv_expert[i] < 0 || e->recv_expert[i] >= e->own.end - e->own.begin)
            return -1;
    return n;
}

/* By segment, in linear time: a counting sort for each byte in which segments differ. */
static void sort_groups(lh_expert *e, int64_t n)
{
    int64_t low = INT64_MAX, high = INT64_MIN;

    for (int64_t i = 0; i < n; i++) {
        low = lh_min64(low, e->groups[i].segment);
        high = lh_max64(high, e->groups[i].segment);
    }
    uint64_t span = n > 0 ? (uint64_t)high - (uint64_t)low : 0;
    for (int shift = 0; shift < 64 && span >> shift; shift += 8) {
        int64_t at[257] = {0};
        for (int64_t i = 0; i < n; i++)
            at[(((uint64_t)e->groups[i].segment - (uint64_t)low) >> shift & 255) + 1]++;
        for (int i = 0; i < 256; i++)
            at[i + 1] += at[i];
        for (int64_t i = 0; i < n; i++)
            e->spare[at[((uint64_t)e->groups[i].segment - (uint64_t)low) >> shift & 255]++] =
                e->groups[i];
        group *sorted = e->spare;
        e->spare = e->groups;
        e->groups = sorted;
    }
}

/* Where each expert's pairs and tiles begin; its number of pairs and of groups that have any. */
static void count_tiles(lh_expert *e, int64_t n_groups)
{
    int64_t here = e->own.end - e->own.begin;
    int32_t pair = 0, tile = 0;

    for (int64_t x = 0; x < here; x++) {
        e->at[x] = e->tile_at[x] = 0;
        e->in_group[x] = -1;
    }
    for (int32_t g = 0; g < n_groups; g++)
        for (int32_t i = e->groups[g].pair; i < e->groups[g].pair + e->groups[g].n_pairs; i++) {
            int32_t x = e->recv_expert[i];
            e->at[x]++;
            e->tile_at[x] += e->in_group[x] != g;
            e->in_group[x] = g;
        }
    for (int64_t x = 0; x < here; x++) {
        int32_t n_pairs = e->at[x], n_tiles = e->tile_at[x];
        e->at[x] = pair;
        e->tile_at[x] = tile;
        e->in_group[x] = -1;
        pair += n_pairs;
        tile += n_tiles;
    }
    e->tile_start[tile] = pair;
    e->plan.tiles = (lh_tiles){.n = tile, .start = e->tile_start};
}

/* Gives every pair its place: groups rise by segment, so each expert's pairs do. */
static void place_pairs(lh_expert *e, int64_t n_groups)
{
    for (int32_t g = 0; g < n_groups; g++) {
        const group *from = &e->groups[g];
        int32_t pair = from->pair;
        for (int32_t copy = from->copy; copy < from->copy + from->n_copies; copy++)
            for (int64_t j = 0; j < e->recv_head[copy].n_pairs; j++, pair++) {
                int32_t x = e->recv_expert[pair], to = e->at[x]++;
                if (e->in_group[x] != g) {
                    e->tile_start[e->tile_at[x]] = to;
                    e->net[e->tile_at[x]++] = x;
                    e->in_group[x] = g;
                }
                e->pair_copy[to] = copy;
                e->back_pair[pair] = to;
            }
    }
}

lh_status lh_expert_make_plan(lh_expert *e, const int32_t *expert, const int64_t *segment,
                              int64_t n_rows, const lh_expert_plan **out)
{
    e->planned = 0;
    LH_TRY(check_routing(e, expert, segment, n_rows));
    count_sent(e, expert, n_rows);
    pack_sent(e, expert, segment);
    LH_TRY(exchange_counts(e));
    LH_TRY(exchange(e, e->host, e->send_head, e->to, e->recv_head, e->from, 0, sizeof(head), NULL));
    LH_TRY(exchange(e, e->host, e->send_expert, e->to, e->recv_expert, e->from, 1, sizeof(int32_t),
                    NULL));

    int64_t n_groups = find_groups(e);
    LH_REQUIRE(n_groups >= 0, LH_ERR_DISAGREE,
               "what ranks said about their rows is not consistent");
    sort_groups(e, n_groups);
    for (int64_t i = 1; i < n_groups; i++)
        LH_REQUIRE(e->groups[i].segment != e->groups[i - 1].segment, LH_ERR_INVALID,
                   "segment %lld has rows on more than one rank", (long long)e->groups[i].segment);
    count_tiles(e, n_groups);
    place_pairs(e, n_groups);

    e->plan.net = e->net;
    e->plan.send_row = e->send_row;
    e->plan.pair_copy = e->pair_copy;
    e->plan.back_pair = e->back_pair;
    e->plan.source = e->source;
    e->planned = 1;
    *out = &e->plan;
    return LH_OK;
}

static lh_status check_planned(const lh_expert *e, size_t row_bytes)
{
    LH_REQUIRE(e->planned, LH_ERR_INVALID, "rows to exchange before there is a plan");
    LH_REQUIRE(row_bytes > 0 && row_bytes <= UINT32_MAX, LH_ERR_INVALID, "rows of %zu bytes",
               row_bytes);
    return LH_OK;
}

lh_status lh_expert_dispatch(lh_expert *e, const void *send, void *recv, size_t row_bytes,
                             lh_stream *s)
{
    LH_TRY(check_planned(e, row_bytes));
    return exchange(e, e->comm, send, e->to, recv, e->from, 0, row_bytes, s);
}

lh_status lh_expert_collect(lh_expert *e, const void *send, void *recv, size_t row_bytes,
                            lh_stream *s)
{
    LH_TRY(check_planned(e, row_bytes));
    return exchange(e, e->comm, send, e->from, recv, e->to, 1, row_bytes, s);
}
