/*
 * Who owns what: pure arithmetic of (rank, size), the same on every rank, with no communication.
 *
 * Work is cut at absolute positions first (segments of a prompt, experts, heads, rows of a weight);
 * ranks only decide who computes which pieces, so that no result depends on the number of ranks.
 */
#ifndef LH_PARALLEL_SHARD_H
#define LH_PARALLEL_SHARD_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lh_range {
    int64_t begin, end; /* [begin, end) */
} lh_range;

/* Rank r's part of n things: contiguous, sizes differ by at most one, the larger ones first; empty
 * parts when size > n. */
lh_range lh_split(int64_t n, int rank, int size);

/* Which rank's part contains thing i of n. */
int lh_split_owner(int64_t n, int64_t i, int size);

/*
 * A run: consecutive segments of a block that one rank computes. A block of prefill has at most 2 *
 * size runs, in the order of their positions: a front run of every rank (0, 1, ..), then a back run
 * of every rank (.., 1, 0), so that each rank has queries near the start and near the end and
 * causal attention is balanced. Empty runs are left out.
 */
typedef struct lh_run {
    int rank;
    int64_t token; /* first token of the run, from the start of the turn */
    int64_t n_tokens;
    int64_t segment; /* first segment, from the start of the turn */
    int n_segments;
} lh_run;

/*
 * The runs of the block of tokens [begin, end) of a turn. `begin` is a multiple of `segment`
 * tokens; `end` may be ragged only at the end of the turn. runs [2 * size]; returns how many.
 */
int lh_block_runs(lh_run *runs, int64_t begin, int64_t end, int64_t segment, int size);

#ifdef __cplusplus
}
#endif
#endif
