/*
 * One round of the exchange with the experts, as runtime/layer_ffn.c makes it, without the experts:
 * every rank brings the same number of tokens in the published shape. Beside it the plain exchange
 * of as many bytes in equal pieces, by lh_comm_alltoallv: over NCCL that is one group of ncclSend
 * and ncclRecv, over MPI one MPI_Irecv and MPI_Isend for each peer.
 *
 * A token's row is a hash of its number, in numbers that bf16 holds exactly; rows that come from an
 * expert have its number in column 0. What arrives is compared bit by bit.
 */
#ifndef LH_BENCH_EXCHANGE_H
#define LH_BENCH_EXCHANGE_H

#include "bench/ranks.h"
#include "parallel/expert.h"

#define D_MODEL 2304
#define N_EXPERTS 256
#define TOP_K 8

typedef enum exchange_way { EXCHANGE_THERE, EXCHANGE_BACK, N_WAYS } exchange_way;

typedef struct exchange {
    ranks *r;
    uint64_t key;
    int64_t n_rows; /* tokens of a rank */
    size_t row_bytes;
    lh_expert *expert;
    lh_expert_device device; /* on GPUs, which plan by themselves */
    const lh_expert_plan *plan;
    int32_t *chosen;  /* host [size * n_rows, TOP_K], the tokens of all ranks */
    int64_t *segment; /* host [n_rows], where the host plans */
    /* on the device, as large as the plan needs them */
    void *x, *sent, *received, *pair_x, *pair_y, *back, *out;
    void *plain_sent, *plain_received;
    int32_t *own;   /* this rank's choices */
    int32_t *index; /* a list of a plan that the host has made */
    float *weight;
    size_t bytes[N_WAYS];       /* that this rank sends to others, counted from the choices */
    size_t mean_bytes[N_WAYS];  /* over the ranks */
    size_t piece_bytes[N_WAYS]; /* of the plain exchange: the mean to one peer, in whole rows */
} exchange;

/*
 * Draws the experts of every token, all different: uniformly, or with `hot` the same for all, on
 * the last rank. Plans once and makes the rows. Collective; destroy whatever came of it.
 */
lh_status exchange_create(exchange *x, ranks *r, int64_t n_rows, uint64_t seed, int hot);
void exchange_destroy(exchange *x);

/*
 * Goes there and back once: *wrong becomes NULL, or the first thing that was not right on any rank;
 * each rank says on standard error what it saw. Collective.
 */
lh_status exchange_check(exchange *x, const char **wrong);

/* What can be timed, of an exchange that has been checked. Collective but for combine. */
lh_status exchange_plan(void *x);
lh_status exchange_dispatch(void *x); /* packs and sends */
lh_status exchange_dispatch_wire(void *x);
lh_status exchange_dispatch_plain(void *x);
lh_status exchange_collect(void *x);
lh_status exchange_collect_wire(void *x);
lh_status exchange_collect_plain(void *x);
lh_status exchange_combine(void *x);

#endif
