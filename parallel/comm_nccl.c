#include "parallel/comm_internal.h"

#ifdef LH_WITH_NCCL

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "base/log.h"
#include "base/mem.h"
#include "kernels/cuda/stream.h"

/*
 * The communicator of NCCL does not block: every call may still be in progress when it returns, and
 * is polled until it is not or the deadline has passed. After that its work is queued on the
 * stream, and lh_comm_wait polls the stream in the same way. So no wait is left to NCCL or CUDA.
 */
#define OLDEST NCCL_VERSION(2, 28, 3)
#define ABORT_S 2.0 /* ncclCommAbort may hang: then the process ends without it */
#define ABORT_POLL_NS 1000000
#define PROGRESS_EVERY 256 /* polls of the stream between two looks at the host's messages */

typedef struct nccl_comm {
    lh_comm base;
    ncclComm_t comm; /* NULL: not started, or aborted */
    int broken;      /* only abort and destroy are left */
    const char *op;  /* the last one */
} nccl_comm;

static lh_status nccl_failed(nccl_comm *n, const char *call, ncclResult_t rc)
{
    char where[96];
    lh_status code = rc == ncclRemoteError          ? LH_ERR_TIMEOUT /* a peer is gone */
                     : rc == ncclUnhandledCudaError ? LH_ERR_CUDA
                                                    : LH_ERR_NCCL;

    n->broken = 1;
    return LH_FAIL(code, "%s in %s: %s: %.200s", call,
                   lh_comm_place(&n->base, n->op, where, sizeof where), ncclGetErrorString(rc),
                   n->comm ? ncclGetLastError(n->comm) : "");
}

static lh_status cuda_failed(nccl_comm *n, const char *call, cudaError_t e)
{
    char where[96];

    n->broken = 1;
    return LH_FAIL(LH_ERR_CUDA, "%s in %s: %s", call,
                   lh_comm_place(&n->base, n->op, where, sizeof where), cudaGetErrorString(e));
}

static lh_status timed_out(nccl_comm *n, double waited, const char *what)
{
    lh_comm *host = n->base.host;
    char where[96], who[128] = "";

    n->broken = 1;
    if (host->ops->roll_call)
        host->ops->roll_call(host, who, sizeof who);
    return LH_FAIL(LH_ERR_TIMEOUT, "waited %.1f s for %s in %s: %s%s", waited, what,
                   lh_comm_place(&n->base, n->op, where, sizeof where), who,
                   who[0] ? " does not answer" : "all ranks wait like this one");
}

/* `rc` is what a call returned: polls until it is in progress no more. */
static lh_status settle(nccl_comm *n, const char *call, ncclResult_t rc)
{
    double since = lh_log_seconds(), waited;

    for (unsigned n_polls = 1; rc == ncclInProgress; n_polls++) {
        ncclResult_t asked = ncclCommGetAsyncError(n->comm, &rc);
        if (asked != ncclSuccess)
            rc = asked;
        if (rc == ncclInProgress && (waited = lh_comm_idle(&n->base, n_polls, since)) > 0)
            return timed_out(n, waited, call);
    }
    return rc == ncclSuccess ? LH_OK : nccl_failed(n, call, rc);
}

static lh_status start(nccl_comm *n, const char *op)
{
    LH_REQUIRE(!n->broken, LH_ERR_NCCL, "%s on a communicator that has failed before", op);
    n->op = op;
    return LH_OK;
}

static lh_status copy_own(nccl_comm *n, void *to, const void *from, size_t bytes, cudaStream_t on)
{
    if (bytes == 0 || to == from)
        return LH_OK;
    cudaError_t e = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, on);
    return e == cudaSuccess ? LH_OK : cuda_failed(n, "cudaMemcpyAsync", e);
}

/* ------------------------------------------------------- groups of transfers */

/* Transfers of a group run together. The first call that fails is remembered, and the group is
 * ended whatever happened. Both sides leave out what is empty. */
typedef struct group {
    nccl_comm *n;
    cudaStream_t stream;
    ncclResult_t rc;
    const char *call;
} group;

static void note(group *g, const char *call, ncclResult_t rc)
{
    if (g->rc == ncclSuccess && rc != ncclSuccess && rc != ncclInProgress) {
        g->rc = rc;
        g->call = call;
    }
}

static group open_group(nccl_comm *n, lh_stream *s)
{
    group g = {.n = n, .stream = lh_cuda_stream_handle(s), .rc = ncclSuccess};

    note(&g, "ncclGroupStart", ncclGroupStart());
    return g;
}

static void add_send(group *g, const void *from, size_t bytes, int peer)
{
    if (bytes > 0)
        note(g, "ncclSend", ncclSend(from, bytes, ncclUint8, peer, g->n->comm, g->stream));
}

static void add_recv(group *g, void *to, size_t bytes, int peer)
{
    if (bytes > 0)
        note(g, "ncclRecv", ncclRecv(to, bytes, ncclUint8, peer, g->n->comm, g->stream));
}

static lh_status close_group(group *g)
{
    ncclResult_t rc = ncclGroupEnd();

    return g->rc == ncclSuccess ? settle(g->n, "ncclGroupEnd", rc)
                                : nccl_failed(g->n, g->call, g->rc);
}

/* -------------------------------------------------------------- operations */

static lh_status nccl_bcast(lh_comm *c, void *buf, size_t bytes, int root, lh_stream *s)
{
    nccl_comm *n = (nccl_comm *)c;

    LH_TRY(start(n, "bcast"));
    if (bytes == 0)
        return LH_OK;
    return settle(
        n, "ncclBroadcast",
        ncclBroadcast(buf, buf, bytes, ncclUint8, root, n->comm, lh_cuda_stream_handle(s)));
}

static lh_status nccl_allgather(lh_comm *c, const void *send, size_t bytes, void *recv,
                                lh_stream *s)
{
    nccl_comm *n = (nccl_comm *)c;

    LH_TRY(start(n, "allgather"));
    if (bytes == 0)
        return LH_OK;
    return settle(n, "ncclAllGather",
                  ncclAllGather(send, recv, bytes, ncclUint8, n->comm, lh_cuda_stream_handle(s)));
}

/* Words that are 0 on all ranks but one: their integer sum moves the bits as they are. */
static lh_status nccl_merge(lh_comm *c, void *buf, size_t bytes, void *scratch, lh_stream *s)
{
    nccl_comm *n = (nccl_comm *)c;

    (void)scratch;
    LH_TRY(start(n, "merge"));
    if (bytes == 0)
        return LH_OK;
    return settle(n, "ncclAllReduce",
                  ncclAllReduce(buf, buf, bytes / sizeof(uint32_t), ncclUint32, ncclSum, n->comm,
                                lh_cuda_stream_handle(s)));
}

static lh_status nccl_allgatherv(lh_comm *c, const void *send, void *recv, const size_t *recv_bytes,
                                 const size_t *recv_offset, lh_stream *s)
{
    nccl_comm *n = (nccl_comm *)c;
    char *to = recv;

    LH_TRY(start(n, "allgatherv"));
    if (recv_bytes[c->rank] > 0)
        LH_TRY(copy_own(n, to + recv_offset[c->rank], send, recv_bytes[c->rank],
                        lh_cuda_stream_handle(s)));
    group g = open_group(n, s);
    for (int r = 0; r < c->size; r++)
        if (r != c->rank) {
            add_send(&g, send, recv_bytes[c->rank], r);
            if (recv_bytes[r] > 0)
                add_recv(&g, to + recv_offset[r], recv_bytes[r], r);
        }
    return close_group(&g);
}

static lh_status nccl_alltoallv(lh_comm *c, const void *send, const size_t *send_bytes, void *recv,
                                const size_t *recv_bytes, lh_stream *s)
{
    nccl_comm *n = (nccl_comm *)c;
    const char *from = send;
    char *to = recv;

    LH_TRY(start(n, "alltoallv"));
    for (int r = 0; r < c->rank; r++) {
        from = send_bytes[r] > 0 ? from + send_bytes[r] : from;
        to = recv_bytes[r] > 0 ? to + recv_bytes[r] : to;
    }
    LH_TRY(copy_own(n, to, from, send_bytes[c->rank], lh_cuda_stream_handle(s)));
    group g = open_group(n, s);
    from = send;
    to = recv;
    for (int r = 0; r < c->size; r++) {
        if (send_bytes[r] > 0) {
            if (r != c->rank)
                add_send(&g, from, send_bytes[r], r);
            from += send_bytes[r];
        }
        if (recv_bytes[r] > 0) {
            if (r != c->rank)
                add_recv(&g, to, recv_bytes[r], r);
            to += recv_bytes[r];
        }
    }
    return close_group(&g);
}

static lh_status nccl_sendrecv(lh_comm *c, const void *send, size_t send_bytes, int to, void *recv,
                               size_t recv_bytes, int from, lh_stream *s)
{
    nccl_comm *n = (nccl_comm *)c;

    LH_TRY(start(n, "sendrecv"));
    if (from == c->rank)
        return copy_own(n, recv, send, recv_bytes, lh_cuda_stream_handle(s));
    group g = open_group(n, s);
    if (to >= 0)
        add_send(&g, send, send_bytes, to);
    if (from >= 0)
        add_recv(&g, recv, recv_bytes, from);
    return close_group(&g);
}

/* Whether the stream's work, or that up to its mark, has run. */
static lh_status ask(nccl_comm *n, lh_stream *s, int mark, int *done)
{
    if (mark != LH_ALL) {
        lh_status st = lh_stream_device(s)->passed(s, mark, done);
        n->broken |= st != LH_OK;
        return st;
    }
    cudaError_t e = cudaStreamQuery(lh_cuda_stream_handle(s));
    *done = e == cudaSuccess;
    return e == cudaSuccess || e == cudaErrorNotReady
               ? LH_OK
               : cuda_failed(n, "the GPU's work up to here", e);
}

static lh_status nccl_wait(lh_comm *c, lh_stream *s, int mark)
{
    nccl_comm *n = (nccl_comm *)c;
    double since = lh_log_seconds(), waited;

    LH_REQUIRE(!n->broken, LH_ERR_NCCL, "a wait on a communicator that has failed before");
    for (unsigned n_polls = 1;; n_polls++) {
        int done = 0;
        ncclResult_t rc = ncclSuccess;
        LH_TRY(ask(n, s, mark, &done));
        ncclResult_t asked = ncclCommGetAsyncError(n->comm, &rc);
        if (asked != ncclSuccess || (rc != ncclSuccess && rc != ncclInProgress))
            return nccl_failed(n, "NCCL's work up to here", asked != ncclSuccess ? asked : rc);
        if (done)
            return LH_OK;
        if (n_polls % PROGRESS_EVERY == 0)
            c->host->ops->progress(c->host);
        if ((waited = lh_comm_idle(c, n_polls, since)) > 0)
            return timed_out(n, waited, "the GPU's work");
    }
}

static void nccl_progress(lh_comm *c)
{
    c->host->ops->progress(c->host);
}

/* ------------------------------------------------------------- beginning, end */

typedef struct aborting {
    ncclComm_t comm;
    atomic_int done;
} aborting;

static void *abort_comm(void *arg)
{
    aborting *a = arg;

    (void)ncclCommAbort(a->comm);
    atomic_store(&a->done, 1);
    return NULL;
}

/* Takes the device's work off; a thread that hangs in it is left behind with what it holds. */
static void abort_in_time(nccl_comm *n)
{
    const struct timespec poll = {.tv_nsec = ABORT_POLL_NS};
    aborting *a = n->comm ? malloc(sizeof *a) : NULL;
    double since = lh_log_seconds();
    pthread_t thread;

    if (a) {
        a->comm = n->comm;
        atomic_init(&a->done, 0);
        if (pthread_create(&thread, NULL, abort_comm, a) == 0) {
            while (!atomic_load(&a->done) && lh_log_seconds() - since < ABORT_S)
                (void)nanosleep(&poll, NULL);
            if (atomic_load(&a->done)) {
                (void)pthread_join(thread, NULL);
                free(a);
            } else {
                (void)pthread_detach(thread);
            }
        } else {
            free(a);
        }
    }
    n->comm = NULL;
    n->broken = 1;
}

static void nccl_abort(lh_comm *c, int exit_code)
{
    abort_in_time((nccl_comm *)c);
    lh_comm_abort(c->host, exit_code);
}

static void nccl_destroy(lh_comm *c)
{
    nccl_comm *n = (nccl_comm *)c;

    n->op = "destroy";
    if (n->comm && !n->broken &&
        settle(n, "ncclCommFinalize", ncclCommFinalize(n->comm)) == LH_OK) {
        (void)ncclCommDestroy(n->comm);
        n->comm = NULL;
    }
    abort_in_time(n);
    free(n);
}

static const lh_comm_ops nccl_ops = {
    .name = "nccl",
    .bcast = nccl_bcast,
    .allgather = nccl_allgather,
    .allgatherv = nccl_allgatherv,
    .alltoallv = nccl_alltoallv,
    .sendrecv = nccl_sendrecv,
    .merge = nccl_merge,
    .wait = nccl_wait,
    .progress = nccl_progress,
    .abort = nccl_abort,
    .destroy = nccl_destroy,
};

static lh_status check_version(nccl_comm *n, int *version)
{
    ncclResult_t rc = ncclGetVersion(version);
    int least = NCCL_VERSION_CODE > OLDEST ? NCCL_VERSION_CODE : OLDEST;

    if (rc != ncclSuccess)
        return nccl_failed(n, "ncclGetVersion", rc);
    LH_REQUIRE(*version >= least, LH_ERR_UNAVAILABLE, "NCCL %d.%d.%d, expected at least %d.%d.%d",
               *version / 10000, *version / 100 % 100, *version % 100, least / 10000,
               least / 100 % 100, least % 100);
    return LH_OK;
}

/* What a rank can do alone. */
static lh_status prepare(nccl_comm **out, lh_comm *boot, lh_stream *s, double timeout_s,
                         int *version, ncclUniqueId *id)
{
    void *block;

    LH_REQUIRE(timeout_s > 0, LH_ERR_INVALID, "a timeout of %g s, expected more than 0", timeout_s);
    LH_TRY(lh_alloc(&block, sizeof **out, "communicator"));
    nccl_comm *n = *out = block;
    n->base = (lh_comm){.ops = &nccl_ops,
                        .host = boot,
                        .rank = boot->rank,
                        .size = boot->size,
                        .timeout_s = timeout_s,
                        .what = boot->what,
                        .layer = boot->layer};
    n->op = "start of NCCL";
    LH_TRY(check_version(n, version));
    cudaError_t e = cudaSetDevice(lh_cuda_stream_device(s));
    if (e != cudaSuccess)
        return cuda_failed(n, "cudaSetDevice", e);
    ncclResult_t rc = boot->rank == 0 ? ncclGetUniqueId(id) : ncclSuccess;
    return rc == ncclSuccess ? LH_OK : nccl_failed(n, "ncclGetUniqueId", rc);
}

static lh_status connect_ranks(nccl_comm *n, ncclUniqueId id)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;

    config.blocking = 0;
    ncclResult_t rc = ncclCommInitRankConfig(&n->comm, n->base.size, id, n->base.rank, &config);
    return settle(n, "ncclCommInitRankConfig", rc);
}

lh_status lh_comm_nccl_create(lh_comm **out, lh_comm *boot, lh_stream *s, double timeout_s)
{
    lh_status st = LH_OK;
    nccl_comm *n = NULL;
    ncclUniqueId id = {{0}};
    int version = 0;

    LH_TRY_OUT(lh_comm_agree(boot, prepare(&n, boot, s, timeout_s, &version, &id)));
    LH_TRY_OUT(lh_comm_same(boot, &version, sizeof version, "version of NCCL"));
    LH_TRY_OUT(lh_comm_bcast(boot, &id, sizeof id, 0, NULL));
    LH_TRY_OUT(lh_comm_agree(boot, connect_ranks(n, id)));
    if (boot->rank == 0)
        LH_LOG_I("comm", "nccl %d.%d.%d, %d ranks, waits of at most %g s", version / 10000,
                 version / 100 % 100, version % 100, boot->size, timeout_s);
    *out = &n->base;
    n = NULL;
out:
    if (n)
        abort_in_time(n);
    free(n);
    return st;
}

#else

lh_status lh_comm_nccl_create(lh_comm **out, lh_comm *boot, lh_stream *s, double timeout_s)
{
    (void)out, (void)boot, (void)s, (void)timeout_s;
    return LH_FAIL(LH_ERR_UNAVAILABLE, "this build has no NCCL");
}

#endif
