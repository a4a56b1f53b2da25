#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "parallel/comm_internal.h"

/* One rank: what it sends to itself is copied, on the stream's device or, without a stream, here.
 */

static lh_status copy(lh_stream *s, void *to, const void *from, size_t bytes)
{
    if (bytes == 0 || to == from)
        return LH_OK;
    if (s)
        return lh_stream_device(s)->copy(s, to, from, bytes);
    memcpy(to, from, bytes);
    return LH_OK;
}

static lh_status self_bcast(lh_comm *c, void *buf, size_t bytes, int root, lh_stream *s)
{
    (void)c, (void)buf, (void)bytes, (void)root, (void)s;
    return LH_OK;
}

static lh_status self_allgather(lh_comm *c, const void *send, size_t bytes, void *recv,
                                lh_stream *s)
{
    (void)c;
    return copy(s, recv, send, bytes);
}

static lh_status self_allgatherv(lh_comm *c, const void *send, void *recv, const size_t *recv_bytes,
                                 const size_t *recv_offset, lh_stream *s)
{
    (void)c;
    return recv_bytes[0] > 0 ? copy(s, (char *)recv + recv_offset[0], send, recv_bytes[0]) : LH_OK;
}

static lh_status self_alltoallv(lh_comm *c, const void *send, const size_t *send_bytes, void *recv,
                                const size_t *recv_bytes, lh_stream *s)
{
    (void)c, (void)send_bytes;
    return copy(s, recv, send, recv_bytes[0]);
}

static lh_status self_sendrecv(lh_comm *c, const void *send, size_t send_bytes, int to, void *recv,
                               size_t recv_bytes, int from, lh_stream *s)
{
    (void)c, (void)send_bytes, (void)to;
    return from == 0 ? copy(s, recv, send, recv_bytes) : LH_OK;
}

static lh_status self_merge(lh_comm *c, void *buf, size_t bytes, void *scratch, lh_stream *s)
{
    (void)c, (void)buf, (void)bytes, (void)scratch, (void)s;
    return LH_OK;
}

static void self_progress(lh_comm *c)
{
    (void)c;
}

/* There is no job beyond this process: the caller leaves by itself. */
static void self_abort(lh_comm *c, int exit_code)
{
    (void)c, (void)exit_code;
}

static void self_destroy(lh_comm *c)
{
    free(c);
}

static const lh_comm_ops self_ops = {
    .name = "self",
    .bcast = self_bcast,
    .allgather = self_allgather,
    .allgatherv = self_allgatherv,
    .alltoallv = self_alltoallv,
    .sendrecv = self_sendrecv,
    .merge = self_merge,
    .wait = lh_comm_sync,
    .progress = self_progress,
    .abort = self_abort,
    .destroy = self_destroy,
};

lh_status lh_comm_self_create(lh_comm **out)
{
    void *p;

    LH_TRY(lh_alloc(&p, sizeof(lh_comm), "communicator"));
    *out = p;
    **out = (lh_comm){.ops = &self_ops, .rank = 0, .size = 1, .layer = -1};
    return LH_OK;
}
