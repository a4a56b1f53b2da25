#include "parallel/expert_internal.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* Measures with base NULL; the struct itself comes first. */
static size_t layout(lh_expert **out, void *base, int64_t max_rows, int64_t max_block,
                     int n_experts, int top_k, int rank, int size, int on_device)
{
    lh_carve c = {.base = base};
    lh_range own = lh_split(n_experts, rank, size);
    int64_t here = own.end - own.begin;
    size_t n_ranks = (size_t)size, n_here = (size_t)here, k = (size_t)top_k;
    size_t rows = (size_t)max_rows, block = (size_t)max_block;
    size_t sent = rows * (size_t)lh_min64(top_k, size);
    size_t pairs = block * (size_t)lh_min64(top_k, here);
    size_t tiles = on_device ? (size_t)lh_min64((int64_t)pairs, here * size) : pairs;
    lh_expert measured, *e;

    *out = lh_carve_take(&c, 1, sizeof **out, 64);
    e = *out ? *out : &measured;
    e->own = own;
    e->first = lh_carve_take(&c, n_ranks + 1, sizeof *e->first, 64);
    e->to = lh_carve_take(&c, n_ranks, sizeof *e->to, 64);
    e->from = lh_carve_take(&c, n_ranks, sizeof *e->from, 64);
    e->send_bytes = lh_carve_take(&c, n_ranks, sizeof *e->send_bytes, 64);
    e->recv_bytes = lh_carve_take(&c, n_ranks, sizeof *e->recv_bytes, 64);
    e->net = lh_carve_take(&c, tiles, sizeof *e->net, 64);
    e->tile_start = lh_carve_take(&c, tiles + 1, sizeof *e->tile_start, 64);
    if (on_device)
        return c.used;
    e->owner = lh_carve_take(&c, (size_t)n_experts, sizeof *e->owner, 64);
    e->next = lh_carve_take(&c, n_ranks, sizeof *e->next, 64);
    e->send_row = lh_carve_take(&c, sent, sizeof *e->send_row, 64);
    e->send_group = lh_carve_take(&c, rows, n_ranks * sizeof *e->send_group, 64);
    e->send_expert = lh_carve_take(&c, rows * k, sizeof *e->send_expert, 64);
    e->source = lh_carve_take(&c, rows * k, sizeof *e->source, 64);
    e->recv_expert = lh_carve_take(&c, pairs, sizeof *e->recv_expert, 64);
    e->groups = lh_carve_take(&c, block, sizeof *e->groups, 64);
    e->spare = lh_carve_take(&c, block, sizeof *e->spare, 64);
    e->at = lh_carve_take(&c, n_here, sizeof *e->at, 64);
    e->tile_at = lh_carve_take(&c, n_here, sizeof *e->tile_at, 64);
    e->before = lh_carve_take(&c, n_here, sizeof *e->before, 64);
    e->pair_copy = lh_carve_take(&c, pairs, sizeof *e->pair_copy, 64);
    e->back_pair = lh_carve_take(&c, pairs, sizeof *e->back_pair, 64);
    return c.used;
}

int lh_expert_fits(int64_t max_rows, int64_t max_block, int n_experts, int top_k)
{
    return top_k >= 1 && top_k <= n_experts && top_k <= LH_MAX_TOP_K && max_rows >= 0 &&
           max_rows <= max_block && max_block <= INT32_MAX / top_k;
}

size_t lh_expert_bytes(int64_t max_rows, int64_t max_block, int n_experts, int top_k, int rank,
                       int size, int on_device)
{
    lh_expert *none;

    return lh_expert_fits(max_rows, max_block, n_experts, top_k)
               ? layout(&none, NULL, max_rows, max_block, n_experts, top_k, rank, size, on_device)
               : SIZE_MAX;
}

lh_status lh_expert_create(lh_expert **out, int64_t max_rows, int64_t max_block, int n_experts,
                           int top_k, lh_comm *c, lh_comm *host, const lh_expert_device *device)
{
    int on_device = device != NULL;
    lh_expert *e;
    void *block;

    LH_REQUIRE(host->rank == c->rank && host->size == c->size, LH_ERR_INVALID,
               "rank %d of %d for plans, %d of %d for rows", host->rank, host->size, c->rank,
               c->size);
    LH_REQUIRE(top_k >= 1 && top_k <= n_experts && top_k <= LH_MAX_TOP_K, LH_ERR_INVALID,
               "%d of %d experts per token, expected 1 to %d", top_k, n_experts, LH_MAX_TOP_K);
    LH_REQUIRE(max_rows >= 0 && max_rows <= max_block, LH_ERR_INVALID,
               "%lld rows of a block of %lld", (long long)max_rows, (long long)max_block);
    LH_REQUIRE(lh_expert_fits(max_rows, max_block, n_experts, top_k), LH_ERR_UNSUPPORTED,
               "a block of %lld rows with %d experts each, expected less than 2^31 pairs",
               (long long)max_block, top_k);
    LH_TRY(lh_alloc(
        &block, lh_expert_bytes(max_rows, max_block, n_experts, top_k, c->rank, c->size, on_device),
        "expert dispatch"));
    (void)layout(&e, block, max_rows, max_block, n_experts, top_k, c->rank, c->size, on_device);
    e->comm = c;
    e->host = host;
    e->max_rows = max_rows;
    e->max_block = max_block;
    e->n_experts = n_experts;
    e->top_k = top_k;
    for (int r = 0; r <= c->size; r++)
        e->first[r] = r < c->size ? (int32_t)lh_split(n_experts, r, c->size).begin : n_experts;
    e->plan.net = e->net;
    e->plan.on_device = on_device;
    if (device)
        lh_expert_place_lists(e, device);
    e->plan.send_row = e->send_row;
    e->plan.pair_copy = e->pair_copy;
    e->plan.back_pair = e->back_pair;
    e->plan.source = e->source;
    for (int i = 0; !device && i < n_experts; i++)
        e->owner[i] = lh_split_owner(n_experts, i, c->size);
    *out = e;
    return LH_OK;
}

void lh_expert_destroy(lh_expert *e)
{
    free(e);
}

/* Where in a row of k rising experts, after slot j, those below `bound` end. */
static inline int end_below(const int32_t *row, int j, int k, int32_t bound)
{
    if (row[k - 1] < bound)
        return k;
    do
        j++;
    while (row[j] < bound);
    return j;
}

/* Checks a block, and counts what goes to each rank. */
static lh_status count_sent(lh_expert *e, const int32_t *expert, const int64_t *segment,
                            int64_t n_rows)
{
    int64_t n_segments = 0;
    int k = e->top_k, n_experts = e->n_experts;

    LH_REQUIRE(n_rows >= 0 && n_rows <= e->max_rows, LH_ERR_INVALID,
               "%lld rows to dispatch, room for %lld", (long long)n_rows, (long long)e->max_rows);
    memset(e->to, 0, (size_t)e->comm->size * sizeof *e->to);
    for (int64_t t = 0; t < n_rows; t++) {
        const int32_t *row = expert + t * k;
        LH_REQUIRE(t == 0 || segment[t] >= segment[t - 1], LH_ERR_INVALID,
                   "row %lld is of segment %lld after segment %lld", (long long)t,
                   (long long)segment[t], (long long)segment[t - 1]);
        n_segments += t == 0 || segment[t] != segment[t - 1];
        int j = 0, end;
        for (int32_t last = -1; j < k && row[j] > last && row[j] < n_experts; j++)
            last = row[j];
        LH_REQUIRE(j == k, LH_ERR_INVALID,
                   "row %lld: expert %d in slot %d, expected rising numbers below %d", (long long)t,
                   row[j], j, n_experts);
        for (j = 0; j < k; j = end) {
            int r = e->owner[row[j]];
            end = end_below(row, j, k, e->first[r + 1]);
            e->to[r][COPIES]++;
            e->to[r][PAIRS] += end - j;
        }
    }
    e->plan.n_rows = n_rows;
    e->plan.n_sent = 0;
    for (int r = 0; r < e->comm->size; r++) {
        e->to[r][ROWS] = n_rows;
        e->to[r][GROUPS] = n_segments;
        e->plan.n_sent += e->to[r][COPIES];
    }
    return LH_OK;
}

/* Outputs come back in the order of send_expert, so a pair's place in it is its source. */
static inline void pack_row(lh_expert *e, const int32_t *expert, int64_t t)
{
    int k = e->top_k;
    const int32_t *row = expert + t * k;
    int32_t *source = e->source + t * k;

    for (int j = 0, end; j < k; j = end) {
        int r = e->owner[row[j]];
        int32_t first = e->first[r], pair = e->next[r].pair;
        uint32_t *said = e->send_expert + pair;
        end = end_below(row, j, k, e->first[r + 1]);
        e->send_row[e->next[r].copy++] = (int32_t)t;
        e->next[r].pair += end - j;
        source[j] = pair++;
        *said++ = (uint32_t)(row[j] - first) << 1 | 1;
        for (int i = j + 1; i < end; i++) {
            source[i] = pair++;
            *said++ = (uint32_t)(row[i] - first) << 1;
        }
    }
}

/* Packs by destination what is said about each copy, segment by segment. */
static void pack_sent(lh_expert *e, const int32_t *expert, const int64_t *segment)
{
    int size = e->comm->size;
    int64_t n_segments = e->to[0][GROUPS], t = 0;

    e->next[0] = (place){0};
    for (int r = 1; r < size; r++) {
        e->next[r].copy = e->next[r - 1].copy + (int32_t)e->to[r - 1][COPIES];
        e->next[r].pair = e->next[r - 1].pair + (int32_t)e->to[r - 1][PAIRS];
    }
    for (int64_t i = 0; i < n_segments; i++) {
        group *groups = e->send_group + i; /* to each rank: every n_segments-th */
        int64_t of = segment[t];
        for (int r = 0; r < size; r++)
            groups[r * n_segments] = (group){.segment = of, .begin = e->next[r]};
        do
            pack_row(e, expert, t++);
        while (t < e->plan.n_rows && segment[t] == of);
        for (int r = 0; r < size; r++) {
            group *g = &groups[r * n_segments];
            g->n_copies = e->next[r].copy - g->begin.copy;
            g->n_pairs = e->next[r].pair - g->begin.pair;
        }
    }
}

lh_status lh_expert_exchange(lh_expert *e, lh_comm *c, const void *send, const counts *out,
                             void *recv, const counts *in, int what, size_t bytes, lh_stream *s)
{
    for (int r = 0; r < c->size; r++) {
        e->send_bytes[r] = (size_t)out[r][what] * bytes;
        e->recv_bytes[r] = (size_t)in[r][what] * bytes;
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
        const int64_t *f = e->from[r];
        LH_REQUIRE(f[ROWS] >= 0 && f[ROWS] <= e->max_block - block, LH_ERR_INVALID,
                   "a block of %lld rows or more, room for %lld", (long long)(block + f[ROWS]),
                   (long long)e->max_block);
        LH_REQUIRE(f[COPIES] >= 0 && f[COPIES] <= f[ROWS] && f[PAIRS] >= f[COPIES] &&
                       f[PAIRS] <= f[COPIES] * lh_min64(e->top_k, here) && f[GROUPS] >= 0 &&
                       f[GROUPS] <= f[ROWS],
                   LH_ERR_DISAGREE,
                   "rank %d sends %lld rows of %lld segments for %lld pairs to %lld experts", r,
                   (long long)f[COPIES], (long long)f[GROUPS], (long long)f[PAIRS],
                   (long long)here);
        block += f[ROWS];
        p->n_received += f[COPIES];
        p->n_pairs += f[PAIRS];
    }
    return LH_OK;
}

/* Whether a group's pairs name experts of this rank and begin as many copies as it says. */
static int pairs_agree(const lh_expert *e, const group *g)
{
    const uint32_t *said = e->recv_expert + g->begin.pair;
    uint32_t n_copies = 0, here = (uint32_t)(e->own.end - e->own.begin);
    int outside = 0;

    for (int32_t i = 0; i < g->n_pairs; i++) {
        n_copies += said[i] & 1;
        outside |= said[i] >> 1 >= here;
    }
    return !outside && n_copies == (uint32_t)g->n_copies && (g->n_pairs == 0 || said[0] & 1);
}

/* Places the groups that have arrived; returns how many, or -1 if they contradict the counts. */
static int64_t place_groups(lh_expert *e)
{
    int64_t copy = 0, pair = 0, copy_end = 0, pair_end = 0;
    group *g = e->groups;

    for (int r = 0; r < e->comm->size; r++) {
        copy_end += e->from[r][COPIES];
        pair_end += e->from[r][PAIRS];
        for (int64_t i = 0; i < e->from[r][GROUPS]; i++, g++) {
            if (g->n_copies < 0 || g->n_copies > copy_end - copy || g->n_pairs < g->n_copies ||
                g->n_pairs > pair_end - pair)
                return -1;
            g->begin = (place){.copy = (int32_t)copy, .pair = (int32_t)pair};
            if (r != e->comm->rank && !pairs_agree(e, g))
                return -1;
            copy += g->n_copies;
            pair += g->n_pairs;
        }
        if (copy != copy_end || pair != pair_end)
            return -1;
    }
    return g - e->groups;
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

/* Where each expert's pairs and tiles begin: counts them, a tile for each group with any pair. */
static void count_tiles(lh_expert *e, int64_t n_groups)
{
    int64_t here = e->own.end - e->own.begin;
    int32_t pair = 0, tile = 0;

    for (int64_t x = 0; x < here; x++)
        e->at[x] = e->tile_at[x] = e->before[x] = 0;
    for (const group *g = e->groups; g < e->groups + n_groups; g++) {
        const uint32_t *said = e->recv_expert + g->begin.pair;
        for (int32_t i = 0, n = g->n_pairs; i < n; i++)
            e->at[said[i] >> 1]++;
        for (int64_t x = 0; x < here; x++) {
            e->tile_at[x] += e->at[x] != e->before[x];
            e->before[x] = e->at[x];
        }
    }
    for (int64_t x = 0; x < here; x++) {
        int32_t n_pairs = e->at[x], n_tiles = e->tile_at[x];
        e->at[x] = e->before[x] = pair;
        e->tile_at[x] = tile;
        pair += n_pairs;
        tile += n_tiles;
    }
    e->tile_start[tile] = pair;
    e->plan.tiles = (lh_tiles){.n = tile, .start = e->tile_start};
}

/* Gives every pair its place: groups rise by segment, so each expert's pairs do. */
static void place_pairs(lh_expert *e, int64_t n_groups)
{
    int64_t here = e->own.end - e->own.begin;

    for (const group *g = e->groups; g < e->groups + n_groups; g++) {
        const uint32_t *said = e->recv_expert + g->begin.pair;
        int32_t *back_pair = e->back_pair + g->begin.pair;
        for (int32_t i = 0, n = g->n_pairs, copy = g->begin.copy - 1; i < n; i++) {
            int32_t to = e->at[said[i] >> 1]++;
            copy += (int32_t)(said[i] & 1);
            e->pair_copy[to] = copy;
            back_pair[i] = to;
        }
        for (int64_t x = 0; x < here; x++)
            if (e->at[x] != e->before[x]) {
                e->tile_start[e->tile_at[x]] = e->before[x];
                e->net[e->tile_at[x]++] = (int32_t)x;
                e->before[x] = e->at[x];
            }
    }
}

lh_status lh_expert_make_plan(lh_expert *e, const int32_t *expert, const int64_t *segment,
                              int64_t n_rows, const lh_expert_plan **out)
{
    LH_REQUIRE(!e->plan.on_device, LH_ERR_INVALID,
               "a plan by the host where the device makes them");
    e->planned = 0;
    LH_TRY(count_sent(e, expert, segment, n_rows));
    pack_sent(e, expert, segment);
    LH_TRY(exchange_counts(e));
    LH_TRY(lh_expert_exchange(e, e->host, e->send_group, e->to, e->groups, e->from, GROUPS,
                              sizeof(group), NULL));
    LH_TRY(lh_expert_exchange(e, e->host, e->send_expert, e->to, e->recv_expert, e->from, PAIRS,
                              sizeof(int32_t), NULL));

    int64_t n_groups = place_groups(e);
    LH_REQUIRE(n_groups >= 0, LH_ERR_DISAGREE,
               "what ranks said about their rows is not consistent");
    sort_groups(e, n_groups);
    for (int64_t i = 1; i < n_groups; i++)
        LH_REQUIRE(e->groups[i].segment != e->groups[i - 1].segment, LH_ERR_INVALID,
                   "segment %lld has rows on more than one rank", (long long)e->groups[i].segment);
    count_tiles(e, n_groups);
    place_pairs(e, n_groups);

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
    return lh_expert_exchange(e, e->comm, send, e->to, recv, e->from, COPIES, row_bytes, s);
}

lh_status lh_expert_collect(lh_expert *e, const void *send, void *recv, size_t row_bytes,
                            lh_stream *s)
{
    LH_TRY(check_planned(e, row_bytes));
    return lh_expert_exchange(e, e->comm, send, e->from, recv, e->to, PAIRS, row_bytes, s);
}
