/*
 * Inside the expert exchange: what plans made by the host (expert.c) and by the device
 * (expert_device.c) share.
 */
#ifndef LH_PARALLEL_EXPERT_INTERNAL_H
#define LH_PARALLEL_EXPERT_INTERNAL_H

#include "parallel/expert.h"
#include "parallel/shard.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Numbers that travel first, about what one rank sends to another. */
enum { ROWS, COPIES, PAIRS, GROUPS, N_COUNTS };
typedef int64_t counts[N_COUNTS];

/* A copy and a pair where they lie. */
typedef struct place {
    int32_t copy, pair;
} place;

/*
 * The copies of one segment that one rank sends to another: neighbours, because rows come in order;
 * and the pairs that belong to them. A rank sends a group for each of its segments to every rank,
 * even if it has no copies. `begin` is counted where the group lies.
 */
typedef struct group {
    int64_t segment;
    place begin;
    int32_t n_copies, n_pairs;
} group;

struct lh_expert {
    lh_comm *comm, *host; /* of rows, of plans */
    int64_t max_rows, max_block;
    int n_experts, top_k, planned;
    lh_range own; /* this rank's experts */
    lh_expert_plan plan;

    int32_t *first;                  /* [size + 1] each rank's first expert */
    counts *to, *from;               /* [size] what goes to and comes from each rank */
    size_t *send_bytes, *recv_bytes; /* [size] of the exchange under way */
    int32_t *net;                    /* the plan's arrays in host memory always */
    int64_t *tile_start;

    /* in memory of the device where it plans, else of the host */
    int32_t *send_row, *source, *pair_copy, *back_pair; /* the plan's arrays */
    /* Of each pair: twice the expert's number at the receiver, plus 1 if it begins a copy. */
    uint32_t *send_expert, *recv_expert;

    /* where the host plans */
    int32_t *owner;                 /* [n_experts] its rank */
    place *next;                    /* [size] cursors into what is sent */
    group *send_group;              /* [size, segments here] */
    group *groups, *spare;          /* [max_block] what arrives */
    int32_t *at, *tile_at, *before; /* [own experts] cursors of the grouping */

    /* where the device plans */
    const lh_kernels *k;
    int queued;      /* there is a plan to be finished */
    int32_t *totals; /* host [size, n_experts + size]: of each rank, pairs of each expert, then
                        copies to each rank */
    int32_t *device_totals;
    void *work;
};

/* Whether sizes are in range, so that their products are. */
int lh_expert_fits(int64_t max_rows, int64_t max_block, int n_experts, int top_k);

/* Places what the device plans in the caller's memory. */
void lh_expert_place_lists(lh_expert *e, const lh_expert_device *d);

/* Items of `bytes` each: out[r][what] of them to each rank, in[r][what] from it. */
lh_status lh_expert_exchange(lh_expert *e, lh_comm *c, const void *send, const counts *out,
                             void *recv, const counts *in, int what, size_t bytes, lh_stream *s);

#ifdef __cplusplus
}
#endif
#endif
