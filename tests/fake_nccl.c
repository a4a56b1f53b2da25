#include "tests/fake_nccl.h"

#include <cuda_runtime_api.h>
#include <mpi.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/stream.h"

#define MAX_REQUESTS 256
#define POLLS 3 /* for which a call is in progress */

struct ncclComm {
    MPI_Comm comm;
    int rank, size, polls, stuck;
    ncclResult_t state;
};

fake_nccl fake;
static MPI_Request requests[MAX_REQUESTS];
static int n_requests, depth;
static ncclComm_t in_group;

static int stream_done(void)
{
    int done = 1;

    (void)MPI_Testall(n_requests, requests, &done, MPI_STATUSES_IGNORE);
    n_requests = done ? 0 : n_requests;
    return done;
}

/* What was queued before has run before anything that comes after it. */
static void finish_stream(void)
{
    (void)MPI_Waitall(n_requests, requests, MPI_STATUSES_IGNORE);
    n_requests = 0;
}

static MPI_Request *next_request(void)
{
    if (n_requests == MAX_REQUESTS)
        abort();
    return &requests[n_requests++];
}

/* Counts a call: it goes on, fails, or begins to hang. */
static ncclResult_t called(ncclComm_t c)
{
    fake.calls++;
    if (fake.calls == fake.fail_at) {
        if (c)
            c->state = ncclInternalError;
        return ncclInternalError;
    }
    if (c && fake.calls == fake.hang_at)
        c->stuck = 1;
    return ncclSuccess;
}

static ncclResult_t in_progress(ncclComm_t c)
{
    c->polls = POLLS;
    c->state = ncclInProgress;
    return ncclInProgress;
}

ncclResult_t ncclGetVersion(int *version)
{
    *version = fake.version ? fake.version : NCCL_VERSION_CODE;
    return called(NULL);
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    memset(id, 0x5a, sizeof *id);
    return ncclSuccess; /* not counted: only rank 0 calls it, and numbers are to be alike */
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    ncclResult_t rc = called(NULL);
    ncclComm_t c = calloc(1, sizeof *c);

    *out = NULL;
    if (!c || config->blocking != 0 || id.internal[0] != 0x5a) {
        free(c);
        return ncclInvalidArgument;
    }
    (void)MPI_Comm_dup(MPI_COMM_WORLD, &c->comm); /* on every rank, whatever happens */
    c->rank = rank;
    c->size = size;
    c->stuck = fake.calls == fake.hang_at;
    *out = c;
    if (rc != ncclSuccess)
        return c->state = rc;
    return in_progress(c);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *state)
{
    if (c->state == ncclInProgress && !c->stuck && c->polls-- == 0)
        c->state = ncclSuccess;
    *state = c->state;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t rc)
{
    return rc == ncclInternalError ? "internal error" : "another error";
}

const char *ncclGetLastError(ncclComm_t c)
{
    (void)c;
    return "on request";
}

/* nccl.h declares these two without (void), which is no prototype. */
ncclResult_t ncclGroupStart(void);
ncclResult_t ncclGroupEnd(void);

ncclResult_t ncclGroupStart(void)
{
    if (depth++ == 0) {
        finish_stream();
        in_group = NULL;
    }
    return called(NULL);
}

ncclResult_t ncclGroupEnd(void)
{
    ncclResult_t rc = called(in_group);

    depth--;
    return rc != ncclSuccess ? rc : in_group ? in_progress(in_group) : ncclSuccess;
}

ncclResult_t ncclSend(const void *from, size_t bytes, ncclDataType_t type, int peer, ncclComm_t c,
                      cudaStream_t s)
{
    ncclResult_t rc = called(c);

    (void)s, (void)type;
    if (depth == 0 || peer == c->rank || bytes == 0)
        return ncclInvalidUsage;
    in_group = c;
    if (rc == ncclSuccess)
        (void)MPI_Isend(from, (int)bytes, MPI_BYTE, peer, 0, c->comm, next_request());
    return rc;
}

ncclResult_t ncclRecv(void *to, size_t bytes, ncclDataType_t type, int peer, ncclComm_t c,
                      cudaStream_t s)
{
    ncclResult_t rc = called(c);

    (void)s, (void)type;
    if (depth == 0 || peer == c->rank || bytes == 0)
        return ncclInvalidUsage;
    in_group = c;
    if (rc == ncclSuccess)
        (void)MPI_Irecv(to, (int)bytes, MPI_BYTE, peer, 0, c->comm, next_request());
    return rc;
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t bytes, ncclDataType_t type, int root,
                           ncclComm_t c, cudaStream_t s)
{
    ncclResult_t rc = called(c);

    (void)s, (void)type;
    finish_stream();
    if (from != to)
        return ncclInvalidUsage;
    if (rc == ncclSuccess)
        (void)MPI_Ibcast(to, (int)bytes, MPI_BYTE, root, c->comm, next_request());
    return rc == ncclSuccess ? in_progress(c) : rc;
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t n, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t c, cudaStream_t s)
{
    ncclResult_t rc = called(c);

    (void)s;
    finish_stream();
    if (from != to || type != ncclUint32 || op != ncclSum)
        return ncclInvalidUsage;
    if (rc == ncclSuccess)
        (void)MPI_Iallreduce(MPI_IN_PLACE, to, (int)n, MPI_UINT32_T, MPI_SUM, c->comm,
                             next_request());
    return rc == ncclSuccess ? in_progress(c) : rc;
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t bytes, ncclDataType_t type,
                           ncclComm_t c, cudaStream_t s)
{
    ncclResult_t rc = called(c);
    int in_place = from == (char *)to + (size_t)c->rank * bytes;

    (void)s, (void)type;
    finish_stream();
    if (rc == ncclSuccess)
        (void)MPI_Iallgather(in_place ? MPI_IN_PLACE : from, (int)bytes, MPI_BYTE, to, (int)bytes,
                             MPI_BYTE, c->comm, next_request());
    return rc == ncclSuccess ? in_progress(c) : rc;
}

ncclResult_t ncclCommFinalize(ncclComm_t c)
{
    ncclResult_t rc = called(c);

    return rc == ncclSuccess ? in_progress(c) : rc;
}

ncclResult_t ncclCommDestroy(ncclComm_t c)
{
    finish_stream();
    (void)MPI_Comm_free(&c->comm);
    free(c);
    return ncclInProgress; /* which nobody may poll */
}

ncclResult_t ncclCommAbort(ncclComm_t c)
{
    while (fake.hang_abort)
        (void)pause();
    n_requests = 0; /* left behind on a communicator of their own */
    fake.aborted++;
    free(c);
    return ncclSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    return device == 0 && called(NULL) == ncclSuccess ? cudaSuccess : cudaErrorInvalidDevice;
}

const char *cudaGetErrorString(cudaError_t e)
{
    return e == cudaErrorInvalidDevice ? "invalid device" : "another error";
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t s)
{
    (void)s;
    if (kind != cudaMemcpyDeviceToDevice || called(NULL) != ncclSuccess)
        return cudaErrorInvalidValue;
    finish_stream();
    memcpy(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t s)
{
    (void)s;
    return stream_done() ? cudaSuccess : cudaErrorNotReady;
}

void *lh_cuda_stream_handle(lh_stream *s)
{
    return s;
}

int lh_cuda_stream_device(const lh_stream *s)
{
    (void)s;
    return 0;
}
