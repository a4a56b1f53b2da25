/*
 * Expert dispatch and combine of prefill: tokens go to the ranks that own their experts, and the
 * experts' outputs come back.
 *
 * Expert e of n_experts belongs to rank lh_split_owner(n_experts, e, size). One copy of a row goes
 * to each rank that owns at least one of its experts; one row of output comes back per (token,
 * expert), and the token's own rank adds them in rising order of expert: the same sum on any number
 * of ranks. Counts travel first. Zero tokens, one hot expert and ragged sizes are normal cases.
 *
 *     plan: dispatch_plan(rows' experts) -> who gets which rows, exchanged             host
 * integers, collective rows: dispatch(x) -> rows at the owner, grouped by (expert, segment)
 * collective the owner runs its experts over them (lh_kernels.ffn with plan->tiles, plan->net)
 *     back: collect(y) -> rows at the token's rank, in an order that plan->source says  collective
 *           lh_kernels.combine
 */
#ifndef LH_PARALLEL_EXPERT_H
#define LH_PARALLEL_EXPERT_H

#include "kernels/kernels.h"
#include "parallel/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lh_expert lh_expert;

/*
 * Room for blocks of up to max_rows rows here and max_block rows on all ranks together, top_k
 * experts each. Rows travel over `c`, in memory of the stream's device; plans over `host`, a
 * communicator of the same ranks, in host memory. They may be the same, and stay the caller's.
 * Device buffers are not in it: the caller places them, by the sizes below. max_block * top_k must
 * fit 31 bits (LH_ERR_UNSUPPORTED).
 */
lh_status lh_expert_create(lh_expert **out, int64_t max_rows, int64_t max_block, int n_experts,
                           int top_k, lh_comm *c, lh_comm *host);
void lh_expert_destroy(lh_expert *e); /* accepts NULL */

/* Bytes that create takes from the host, by the function that lays them out. */
size_t lh_expert_bytes(int64_t max_rows, int64_t max_block, int n_experts, int top_k, int rank,
                       int size);

/*
 * What came of the last plan. Owned by the lh_expert, valid until its next plan; all host memory.
 * On one rank the copies are the rows in their order, and source counts up from 0: nothing need
 * travel.
 */
typedef struct lh_expert_plan {
    int64_t n_rows;     /* rows that this rank brought */
    int64_t n_sent;     /* copies that leave this rank (own experts included) */
    int64_t n_received; /* copies that arrive here */
    int64_t n_pairs;    /* (token, expert) pairs that this rank computes */
    lh_tiles
        tiles; /* of the pairs: one tile per (expert, segment), rising by expert, then by segment */
    const int32_t *net;      /* [tiles.n] the tile's expert, counted from this rank's first */
    const int32_t *send_row; /* [n_sent] which local row each copy is */
    const int32_t
        *pair_copy; /* [n_pairs] which received copy each pair reads, in the order of the tiles */
    const int32_t
        *back_pair;        /* [n_pairs] which pair each returned row is, in the order they travel */
    const int32_t *source; /* [n_rows, top_k] which collected row belongs to (row, slot) */
} lh_expert_plan;

/*
 * Plans a block. expert: host [n_rows, top_k], each row rising, all different; segment: host
 * [n_rows], the segment of each row, not falling; a segment's rows are all on one rank. Collective;
 * n_rows may differ between ranks and be 0. LH_ERR_INVALID: an expert out of range (said before
 * anything is sent).
 */
lh_status lh_expert_make_plan(lh_expert *e, const int32_t *expert, const int64_t *segment,
                              int64_t n_rows, const lh_expert_plan **out);

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
