#include <string.h>

#include "base/mem.h"
#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"

/* Counting sorts on the calling thread. A row's experts rise, so the ranks of its pairs do: `rank`
 * moves along with them, and a copy begins at the first pair of each. */
static inline int rank_of(const lh_plan_send_args *a, int32_t expert, int rank)
{
    while (expert >= a->first[rank + 1])
        rank++;
    return rank;
}

static void count_pairs(const lh_plan_send_args *a)
{
    int32_t *copies = a->total + a->n_experts;

    memset(a->total, 0, (size_t)(a->n_experts + a->size) * sizeof *a->total);
    for (int64_t t = 0; t < a->n_rows; t++)
        for (int j = 0, rank = 0, last = -1; j < a->top_k; j++, last = rank) {
            int32_t expert = a->expert[t * a->top_k + j];
            rank = rank_of(a, expert, rank);
            a->total[expert]++;
            copies[rank] += rank != last;
        }
}

static void place_pairs(const lh_plan_send_args *a, int32_t *next_copy, int32_t *next_pair)
{
    int32_t copy = 0, pair = 0;

    for (int r = 0; r < a->size; r++) {
        next_copy[r] = copy;
        next_pair[r] = pair;
        copy += a->total[a->n_experts + r];
        for (int32_t e = a->first[r]; e < a->first[r + 1]; e++)
            pair += a->total[e];
    }
    for (int64_t t = 0; t < a->n_rows; t++)
        for (int j = 0, rank = 0, last = -1; j < a->top_k; j++, last = rank) {
            int32_t expert = a->expert[t * a->top_k + j];
            rank = rank_of(a, expert, rank);
            if (rank != last)
                a->send_row[next_copy[rank]++] = (int32_t)t;
            a->source[t * a->top_k + j] = next_pair[rank];
            a->pair_expert[next_pair[rank]++] =
                (uint32_t)(2 * (expert - a->first[rank]) + (rank != last));
        }
}

lh_status lh_cpu_plan_send(lh_stream *s, const lh_plan_send_args *a)
{
    (void)s;
    LH_TRY(lh_check_plan_send(a));
    count_pairs(a);
    if (a->n_rows > 0)
        place_pairs(a, a->work, (int32_t *)a->work + a->size);
    return LH_OK;
}

size_t lh_cpu_plan_send_work_bytes(int64_t n_rows, int size)
{
    return n_rows == 0 ? 0 : (size_t)size * 2 * sizeof(int32_t);
}

static inline int32_t net_of(const lh_plan_receive_args *a, uint32_t said)
{
    uint32_t net = said >> 1;

    return net < (uint32_t)a->n_nets ? (int32_t)net : a->n_nets - 1;
}

lh_status lh_cpu_plan_receive(lh_stream *s, const lh_plan_receive_args *a)
{
    int32_t *next = a->work, pair = 0, copy = -1;

    (void)s;
    LH_TRY(lh_check_plan_receive(a));
    if (a->n_pairs == 0)
        return LH_OK;
    memset(next, 0, (size_t)a->n_nets * sizeof *next);
    for (int64_t i = 0; i < a->n_pairs; i++)
        next[net_of(a, a->pair_expert[i])]++;
    for (int e = 0; e < a->n_nets; e++) {
        int32_t n = next[e];
        next[e] = pair;
        pair += n;
    }
    for (int64_t i = 0; i < a->n_pairs; i++) {
        int32_t to = next[net_of(a, a->pair_expert[i])]++;
        copy += (int32_t)(a->pair_expert[i] & 1);
        a->pair_copy[to] = (int32_t)lh_max64(0, lh_min64(copy, a->n_copies - 1));
        a->back_pair[i] = to;
    }
    return LH_OK;
}

size_t lh_cpu_plan_receive_work_bytes(int64_t n_pairs, int n_nets)
{
    return n_pairs == 0 ? 0 : (size_t)n_nets * sizeof(int32_t);
}
