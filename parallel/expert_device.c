#include <string.h>

#include "base/mem.h"
#include "parallel/expert_internal.h"

/* Plans made on the device: the host learns numbers alone, from which sizes and tiles follow. */

static size_t n_totals(const lh_expert *e)
{
    return (size_t)e->n_experts + (size_t)e->comm->size;
}

/* Measures with base NULL. */
static size_t lists_layout(lh_expert *e, void *base, const lh_kernels *k, int64_t max_rows,
                           int64_t max_block, int n_experts, int top_k, int rank, int size)
{
    lh_carve c = {.base = base};
    lh_range own = lh_split(n_experts, rank, size);
    int64_t here = own.end - own.begin, pairs = max_block * lh_min64(top_k, here);
    size_t sent = (size_t)(max_rows * lh_min64(top_k, size)), brought = (size_t)(max_rows * top_k);
    size_t send_work = k->plan_send_work_bytes(max_rows, size);
    size_t receive_work = k->plan_receive_work_bytes(pairs, (int)here);
    size_t n_ranks = (size_t)size, received = (size_t)pairs;

    e->device_totals =
        lh_carve_take(&c, n_ranks, ((size_t)n_experts + n_ranks) * sizeof *e->totals, 256);
    e->send_row = lh_carve_take(&c, sent, sizeof *e->send_row, 256);
    e->source = lh_carve_take(&c, brought, sizeof *e->source, 256);
    e->send_expert = lh_carve_take(&c, brought, sizeof *e->send_expert, 256);
    e->recv_expert =
        size == 1 ? e->send_expert : lh_carve_take(&c, received, sizeof *e->recv_expert, 256);
    e->pair_copy = lh_carve_take(&c, received, sizeof *e->pair_copy, 256);
    e->back_pair = lh_carve_take(&c, received, sizeof *e->back_pair, 256);
    /* what is received is put in order after the last of what is sent has been */
    e->work = lh_carve_take(&c, send_work > receive_work ? send_work : receive_work, 1, 256);
    return c.used;
}

size_t lh_expert_device_bytes(const lh_kernels *k, int64_t max_rows, int64_t max_block,
                              int n_experts, int top_k, int rank, int size)
{
    lh_expert none;

    return lh_expert_fits(max_rows, max_block, n_experts, top_k)
               ? lists_layout(&none, NULL, k, max_rows, max_block, n_experts, top_k, rank, size)
               : SIZE_MAX;
}

void lh_expert_place_lists(lh_expert *e, const lh_expert_device *d)
{
    e->k = d->k;
    e->totals = d->totals;
    (void)lists_layout(e, d->lists, d->k, e->max_rows, e->max_block, e->n_experts, e->top_k,
                       e->comm->rank, e->comm->size);
}

lh_status lh_expert_queue_plan(lh_expert *e, const int32_t *expert, int64_t n_rows, lh_stream *s)
{
    size_t bytes = n_totals(e) * sizeof *e->totals;
    int32_t *mine = e->device_totals + (size_t)e->comm->rank * n_totals(e);

    LH_REQUIRE(e->plan.on_device, LH_ERR_INVALID, "a plan by the device where the host makes them");
    LH_REQUIRE(n_rows >= 0 && n_rows <= e->max_rows, LH_ERR_INVALID,
               "%lld rows to dispatch, room for %lld", (long long)n_rows, (long long)e->max_rows);
    e->planned = e->queued = 0;
    LH_TRY(e->k->plan_send(s, &(lh_plan_send_args){.total = mine,
                                                   .send_row = e->send_row,
                                                   .source = e->source,
                                                   .pair_expert = e->send_expert,
                                                   .expert = expert,
                                                   .first = e->first,
                                                   .n_rows = n_rows,
                                                   .n_experts = e->n_experts,
                                                   .top_k = e->top_k,
                                                   .size = e->comm->size,
                                                   .work = e->work}));
    if (e->comm->size > 1)
        LH_TRY(lh_comm_allgather(e->comm, mine, bytes, e->device_totals, s));
    LH_TRY(e->k->device->download(s, e->totals, e->device_totals, (size_t)e->comm->size * bytes));
    e->plan.n_rows = n_rows;
    e->queued = 1;
    return LH_OK;
}

/* What rank r sends to rank `to`, by its totals. */
static void count_pairs(const lh_expert *e, int r, int to, int64_t *out)
{
    const int32_t *total = e->totals + (size_t)r * n_totals(e);

    out[COPIES] = total[e->n_experts + to];
    out[PAIRS] = 0;
    for (int32_t i = e->first[to]; i < e->first[to + 1]; i++)
        out[PAIRS] += total[i];
}

/* The rows that rank r brings, or -1 if its totals cannot be. */
static int64_t count_rows(const lh_expert *e, int r)
{
    const int32_t *total = e->totals + (size_t)r * n_totals(e);
    int64_t n_pairs = 0;
    int negative = 0;

    for (int i = 0; i < e->n_experts; i++) {
        n_pairs += total[i];
        negative |= total[i] < 0;
    }
    return negative || n_pairs % e->top_k ? -1 : n_pairs / e->top_k;
}

/* Whether what rank r says that it sends to each rank can be. All ranks have the same totals and
 * come to the same end. */
static lh_status check_totals(const lh_expert *e, int r, int64_t rows)
{
    counts of_pair;

    for (int to = 0; to < e->comm->size; to++) {
        int64_t there = e->first[to + 1] - e->first[to];
        count_pairs(e, r, to, of_pair);
        LH_REQUIRE(rows >= 0 && of_pair[COPIES] >= 0 && of_pair[COPIES] <= rows &&
                       of_pair[PAIRS] >= of_pair[COPIES] &&
                       of_pair[PAIRS] <= of_pair[COPIES] * lh_min64(e->top_k, there),
                   LH_ERR_DISAGREE,
                   "rank %d sends %lld of %lld rows to rank %d, %lld pairs to %lld experts", r,
                   (long long)of_pair[COPIES], (long long)rows, to, (long long)of_pair[PAIRS],
                   (long long)there);
    }
    return LH_OK;
}

/* After this, what comes and goes is known to fit. */
static lh_status read_totals(lh_expert *e)
{
    lh_expert_plan *p = &e->plan;
    int64_t block = 0;

    p->n_sent = p->n_received = p->n_pairs = 0;
    for (int r = 0; r < e->comm->size; r++) {
        int64_t rows = count_rows(e, r);
        LH_REQUIRE(rows <= e->max_block - block, LH_ERR_INVALID,
                   "a block of %lld rows or more, room for %lld", (long long)(block + rows),
                   (long long)e->max_block);
        LH_TRY(check_totals(e, r, rows));
        count_pairs(e, r, e->comm->rank, e->from[r]);
        count_pairs(e, e->comm->rank, r, e->to[r]);
        block += rows;
        p->n_sent += e->to[r][COPIES];
        p->n_received += e->from[r][COPIES];
        p->n_pairs += e->from[r][PAIRS];
    }
    return LH_OK;
}

/* A tile for each own expert and rank with any pair of it. */
static void lay_tiles(lh_expert *e)
{
    int64_t pair = 0;
    int n = 0;

    for (int64_t x = e->own.begin; x < e->own.end; x++)
        for (int r = 0; r < e->comm->size; r++) {
            int32_t n_pairs = e->totals[(size_t)r * n_totals(e) + (size_t)x];
            if (n_pairs == 0)
                continue;
            e->tile_start[n] = pair;
            e->net[n++] = (int32_t)(x - e->own.begin);
            pair += n_pairs;
        }
    e->tile_start[n] = pair;
    e->plan.tiles = (lh_tiles){.n = n, .start = e->tile_start};
}

lh_status lh_expert_finish_plan(lh_expert *e, lh_stream *s, const lh_expert_plan **out)
{
    LH_REQUIRE(e->queued, LH_ERR_INVALID, "a plan to finish before it is queued");
    e->queued = 0;
    LH_TRY(read_totals(e));
    lay_tiles(e);
    if (e->comm->size > 1)
        LH_TRY(lh_expert_exchange(e, e->comm, e->send_expert, e->to, e->recv_expert, e->from, PAIRS,
                                  sizeof *e->recv_expert, s));
    LH_TRY(e->k->plan_receive(s, &(lh_plan_receive_args){.pair_copy = e->pair_copy,
                                                         .back_pair = e->back_pair,
                                                         .pair_expert = e->recv_expert,
                                                         .n_pairs = e->plan.n_pairs,
                                                         .n_copies = e->plan.n_received,
                                                         .n_nets = (int)(e->own.end - e->own.begin),
                                                         .work = e->work}));
    e->planned = 1;
    *out = &e->plan;
    return LH_OK;
}
