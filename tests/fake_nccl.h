/*
 * NCCL and the few calls of CUDA beside it, over MPI and host memory: the communicator over NCCL
 * runs on machines without a GPU, with as many ranks as wanted, and meets faults that no GPU gives
 * on request. Transfers end when the stream is asked, calls are in progress for some polls first.
 */
#ifndef LH_TESTS_FAKE_NCCL_H
#define LH_TESTS_FAKE_NCCL_H

typedef struct fake_nccl {
    int calls;      /* of NCCL and CUDA so far, polls aside */
    int fail_at;    /* the call with this number fails; 0: none */
    int hang_at;    /* the call with this number stays in progress for ever; 0: none */
    int hang_abort; /* ncclCommAbort does not return */
    int version;    /* what ncclGetVersion says; 0: the header's */
    int aborted;    /* communicators that were aborted */
} fake_nccl;

extern fake_nccl fake;

#endif
