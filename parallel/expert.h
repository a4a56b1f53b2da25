/*
 * Expert dispatch and combine of prefill: tokens go to the ranks that own their experts, and the
 * experts' outputs come back.
 *
 * Expert e of n_experts belongs to rank lh_split_owner(n_experts, e, size). One copy of a row goes
 * to each rank that owns at least one of its experts; one row of output comes back per (token,
 * expert), and the token's own rank adds them in rising order of expert: the same sum on any number
 * of ranks. Counts travel first. Zero tokens, one hot expert and ragged sizes are normal cases.
 *
 *     plan      who gets which rows: numbers first, then lists                      collective
 *     dispatch  rows to the owners, there grouped by (expert, segment)              collective
 *               the owner runs its experts over them (lh_kernels.ffn, plan->tiles, plan->net)
 *     collect   rows to the token's rank, in an order that plan->source says        collective
 *               lh_kernels.combine
 *
 * Plans are made by the host (make_plan), for any segments; or on the device that has the routing,
 * where all rows of a rank are one segment, in the order of ranks (queue_plan, finish_plan): then
 * the host reads numbers only, and no list leaves the device. Both make the same plan.
 */
#ifndef LH_PARALLEL_EXPERT_H
#define LH_PARALLEL_EXPERT_H

#include "kernels/kernels.h"
#include "parallel/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lh_expert lh_expert;

/* What plans made on the device need of the caller, who keeps this memory as long as the lh_expert.
 */
typedef struct lh_expert_device {
    const lh_kernels *k;
    void *lists;     /* lh_expert_device_bytes(..) of its memory, 256-byte aligned */
    int32_t *totals; /* host [size, n_experts + size], best of the device's alloc_host */
} lh_expert_device;

/*
 * Room for blocks of up to max_rows rows here and max_block rows on all ranks together, top_k
 * experts each. Rows travel over `c`, in memory of the stream's device, with plans made there;
 * plans of the host over `host`, a communicator of the same ranks, in host memory. They may be the
 * same, and stay the caller's. device NULL: the host makes the plans. Buffers of rows are not in
 * it: the caller places them, by the sizes below. max_block * top_k must fit 31 bits
 * (LH_ERR_UNSUPPORTED).
 */
lh_status lh_expert_create(lh_expert **out, int64_t max_rows, int64_t max_block, int n_experts,
                           int top_k, lh_comm *c, lh_comm *host, const lh_expert_device *device);
void lh_expert_destroy(lh_expert *e); /* accepts NULL */

/* Bytes that create takes from the host, and those of lh_expert_device.lists, by the functions that
 * lay them out; SIZE_MAX: they cannot be. */
size_t lh_expert_bytes(int64_t max_rows, int64_t max_block, int n_experts, int top_k, int rank,
                       int size, int on_device);
size_t lh_expert_device_bytes(const lh_kernels *k, int64_t max_rows, int64_t max_block,
                              int n_experts, int top_k, int rank, int size);

/*
 * What came of the last plan. Owned by the lh_expert, valid until its next plan. Lists of what is
 * sent and received are memory of the device with on_device, else of the host, as all the rest is.
 * On one rank the copies are the rows in their order, and source counts up from 0: nothing need
 * travel.
 */
typedef struct lh_expert_plan {
    int on_device;
    int64_t n_rows;     /* rows that this rank brought */
    int64_t n_sent;     /* copies that leave this rank (own experts included) */
    int64_t n_received; /* copies that arrive here */
    int64_t n_pairs;    /* (token, expert) pairs that this rank computes */
    /* Of the pairs: one tile per (expert, segment), rising by expert, then by segment. Host. */
    lh_tiles tiles;
    const int32_t *net;       /* host [tiles.n] the tile's expert, counted from this rank's first */
    const int32_t *send_row;  /* [n_sent] which local row each copy is */
    const int32_t *pair_copy; /* [n_pairs] which received copy each pair reads, in the order of the
                                 tiles */
    const int32_t *back_pair; /* [n_pairs] which pair each returned row is, in the order they
                                 travel */
    const int32_t *source;    /* [n_rows, top_k] which collected row belongs to (row, slot) */
} lh_expert_plan;

/*
 * Plans a block, by the host. expert: host [n_rows, top_k], each row rising, all different;
 * segment: host [n_rows], the segment of each row, not falling; a segment's rows are all on one
 * rank. Collective; n_rows may differ between ranks and be 0. LH_ERR_INVALID: an expert out of
 * range (said before anything is sent).
 */
lh_status lh_expert_make_plan(lh_expert *e, const int32_t *expert, const int64_t *segment,
                              int64_t n_rows, const lh_expert_plan **out);

/*
 * Plans a block, on the device. expert: device [n_rows, top_k], as the router writes it. queue_plan
 * queues what needs no sizes, up to the download of the totals. Once that has run (a mark behind it
 * has passed, see lh_comm_wait_for) finish_plan makes numbers and tiles of them and queues the
 * rest; expert is not read any more. Collective, both; n_rows may differ between ranks and be 0.
 * LH_ERR_INVALID, LH_ERR_DISAGREE: what the ranks bring is more than there is room for, or cannot
 * be.
 */
lh_status lh_expert_queue_plan(lh_expert *e, const int32_t *expert, int64_t n_rows, lh_stream *s);
lh_status lh_expert_finish_plan(lh_expert *e, lh_stream *s, const lh_expert_plan **out);

/* Sends copies and receives them: send [n_sent, row_bytes] packed by send_row, recv [n_received,
 * row_bytes]. Collective. */
lh_status lh_expert_dispatch(lh_expert *e, const void *send, void *recv, size_t row_bytes,
                             lh_stream *s);

/* The way back: send [n_pairs, row_bytes] packed by back_pair, recv [n_rows * top_k, row_bytes].
 * Collective. */
lh_status lh_expert_collect(lh_expert *e, const void *send, void *recv, size_t row_bytes,
                            lh_stream *s);

#ifdef __cplusplus
}
#endif
#endif
