#include "parallel/comm.h"

#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/mem.h"
#include "parallel/comm_internal.h"

#define SPINS 100         /* polls before the core is given away */
#define NAP_AFTER_S 0.010 /* seconds without news before polls are spaced out */
#define NAP_S 0.000050
#define LONG_NAP_S 0.002

/* Arguments are checked and bytes counted here, once for all backends. */

static lh_status check_buffer(const lh_comm *c, const void *p, size_t bytes, const char *what)
{
    LH_REQUIRE(p || bytes == 0, LH_ERR_INVALID, "%s: the %s buffer of %zu bytes is NULL",
               c->what ? c->what : "communicator", what, bytes);
    return LH_OK;
}

/* The sum of bytes [size]; *others leaves out the own rank's. */
static lh_status add_up(const lh_comm *c, const size_t *bytes, size_t *all, size_t *others)
{
    *all = 0;
    for (int r = 0; r < c->size; r++)
        LH_REQUIRE(lh_add_size(all, *all, bytes[r]) == 0, LH_ERR_INVALID,
                   "sizes of the ranks' parts add up to more than 64 bits");
    *others = *all - bytes[c->rank];
    return LH_OK;
}

/* What is in host memory goes over the communicator for it. */
static lh_comm *over(lh_comm *c, const lh_stream *s)
{
    return s || !c->host ? c : c->host;
}

static void count(lh_comm *c, uint64_t sent, uint64_t received)
{
    c->bytes_sent += sent;
    c->bytes_received += received;
    c->calls++;
}

void lh_comm_destroy(lh_comm *c)
{
    if (c)
        c->ops->destroy(c);
}

void lh_comm_abort(lh_comm *c, int exit_code)
{
    c->ops->abort(c, exit_code);
}

void lh_comm_at(lh_comm *c, const char *what, int layer)
{
    c->what = what;
    c->layer = layer;
    if (c->host)
        lh_comm_at(c->host, what, layer);
}

const char *lh_comm_place(const lh_comm *c, const char *op, char *text, size_t size)
{
    if (!c->what)
        (void)snprintf(text, size, "%s", op);
    else if (c->layer < 0)
        (void)snprintf(text, size, "%s (%s)", c->what, op);
    else
        (void)snprintf(text, size, "%s of layer %d (%s)", c->what, c->layer, op);
    return text;
}

double lh_comm_idle(const lh_comm *c, unsigned n_polls, double since)
{
    if (n_polls < SPINS)
        return 0;
    double waited = lh_log_seconds() - since;
    if (waited > c->timeout_s)
        return waited;
    if (waited < NAP_AFTER_S) {
        (void)sched_yield();
        return 0;
    }
    /* Where there is no deadline a wait may be for minutes, beside ranks that compute: naps grow
     * with it. */
    double nap = isinf(c->timeout_s) ? fmin(fmax(waited / 100, NAP_S), LONG_NAP_S) : NAP_S;
    (void)nanosleep(&(struct timespec){.tv_nsec = (long)(1e9 * nap)}, NULL);
    return 0;
}

lh_status lh_comm_wait(lh_comm *c, lh_stream *s)
{
    return s ? c->ops->wait(c, s, LH_ALL) : LH_OK;
}

lh_status lh_comm_wait_for(lh_comm *c, lh_stream *s, int mark)
{
    return c->ops->wait(c, s, lh_stream_device(s)->mark ? mark : LH_ALL);
}

lh_status lh_comm_sync(lh_comm *c, lh_stream *s, int mark)
{
    const lh_device_ops *device = lh_stream_device(s);
    double none;

    (void)c;
    return mark == LH_ALL ? device->sync(s) : device->between(s, mark, mark, &none);
}

lh_status lh_comm_bcast(lh_comm *c, void *buf, size_t bytes, int root, lh_stream *s)
{
    uint64_t others = (uint64_t)c->size - 1;

    LH_REQUIRE(root >= 0 && root < c->size, LH_ERR_INVALID, "bcast from rank %d of %d", root,
               c->size);
    LH_TRY(check_buffer(c, buf, bytes, "bcast"));
    LH_TRY(over(c, s)->ops->bcast(over(c, s), buf, bytes, root, s));
    count(c, root == c->rank ? others * bytes : 0, root == c->rank ? 0 : bytes);
    return LH_OK;
}

lh_status lh_comm_allgather(lh_comm *c, const void *send, size_t bytes, void *recv, lh_stream *s)
{
    uint64_t others = (uint64_t)c->size - 1;

    LH_TRY(check_buffer(c, send, bytes, "send"));
    LH_TRY(check_buffer(c, recv, bytes, "receive"));
    LH_TRY(over(c, s)->ops->allgather(over(c, s), send, bytes, recv, s));
    count(c, others * bytes, others * bytes);
    return LH_OK;
}

lh_status lh_comm_allgatherv(lh_comm *c, const void *send, void *recv, const size_t *recv_bytes,
                             const size_t *recv_offset, lh_stream *s)
{
    size_t all = 0, received = 0;

    LH_TRY(add_up(c, recv_bytes, &all, &received));
    LH_TRY(check_buffer(c, send, recv_bytes[c->rank], "send"));
    LH_TRY(check_buffer(c, recv, all, "receive"));
    LH_TRY(over(c, s)->ops->allgatherv(over(c, s), send, recv, recv_bytes, recv_offset, s));
    count(c, ((uint64_t)c->size - 1) * recv_bytes[c->rank], received);
    return LH_OK;
}

lh_status lh_comm_alltoallv(lh_comm *c, const void *send, const size_t *send_bytes, void *recv,
                            const size_t *recv_bytes, lh_stream *s)
{
    size_t all_sent = 0, all_received = 0, sent = 0, received = 0;

    LH_TRY(add_up(c, send_bytes, &all_sent, &sent));
    LH_TRY(add_up(c, recv_bytes, &all_received, &received));
    LH_TRY(check_buffer(c, send, all_sent, "send"));
    LH_TRY(check_buffer(c, recv, all_received, "receive"));
    LH_REQUIRE(send_bytes[c->rank] == recv_bytes[c->rank], LH_ERR_DISAGREE,
               "alltoallv: %zu bytes for the own rank, expected %zu", send_bytes[c->rank],
               recv_bytes[c->rank]);
    LH_TRY(over(c, s)->ops->alltoallv(over(c, s), send, send_bytes, recv, recv_bytes, s));
    count(c, sent, received);
    return LH_OK;
}

lh_status lh_comm_merge(lh_comm *c, void *buf, size_t bytes, void *scratch, lh_stream *s)
{
    uint64_t others = (uint64_t)c->size - 1;

    LH_REQUIRE(bytes % sizeof(uint32_t) == 0, LH_ERR_INVALID, "merge of %zu bytes", bytes);
    LH_TRY(check_buffer(c, buf, bytes, "merge"));
    LH_TRY(check_buffer(c, scratch, bytes, "scratch"));
    LH_TRY(over(c, s)->ops->merge(over(c, s), buf, bytes, scratch, s));
    count(c, others * bytes, others * bytes);
    return LH_OK;
}

lh_status lh_comm_sendrecv(lh_comm *c, const void *send, size_t send_bytes, int to, void *recv,
                           size_t recv_bytes, int from, lh_stream *s)
{
    int to_other = to >= 0 && to != c->rank, from_other = from >= 0 && from != c->rank;

    LH_REQUIRE(to >= -1 && to < c->size && from >= -1 && from < c->size &&
                   (to == c->rank) == (from == c->rank),
               LH_ERR_INVALID, "sendrecv to rank %d and from rank %d, on rank %d of %d", to, from,
               c->rank, c->size);
    LH_REQUIRE(to != c->rank || send_bytes == recv_bytes, LH_ERR_DISAGREE,
               "sendrecv: %zu bytes for the own rank, expected %zu", send_bytes, recv_bytes);
    if (to >= 0)
        LH_TRY(check_buffer(c, send, send_bytes, "send"));
    if (from >= 0)
        LH_TRY(check_buffer(c, recv, recv_bytes, "receive"));
    LH_TRY(over(c, s)->ops->sendrecv(over(c, s), send, send_bytes, to, recv, recv_bytes, from, s));
    count(c, to_other ? send_bytes : 0, from_other ? recv_bytes : 0);
    return LH_OK;
}

/*
 * The lowest rank whose value is not 0, and its value; -1 and 0 if there is none. One broadcast per
 * rank, so that it needs no memory and works where an allocation has just failed. LH_ERR_PEER
 * counts only if nobody brings more than that: who knows the reason is to keep it.
 */
static lh_status lowest_failure(lh_comm *c, int32_t mine, int *rank, int32_t *value)
{
    *rank = -1;
    *value = 0;
    for (int r = 0; r < c->size; r++) {
        int32_t theirs = mine;
        LH_TRY(lh_comm_bcast(c, &theirs, sizeof theirs, r, NULL));
        if (theirs == 0 || (theirs == LH_ERR_PEER && *rank >= 0))
            continue;
        *rank = r;
        *value = theirs;
        if (theirs != LH_ERR_PEER)
            break;
    }
    return LH_OK;
}

lh_status lh_comm_agree(lh_comm *c, lh_status mine)
{
    int rank;
    int32_t status;

    LH_TRY(lowest_failure(c, (int32_t)mine, &rank, &status));
    if (rank < 0 || rank == c->rank)
        return mine;
    lh_set_peer_status((lh_status)status);
    return LH_FAIL(LH_ERR_PEER, "rank %d failed: %s", rank, lh_status_text((lh_status)status));
}

lh_status lh_comm_same(lh_comm *c, const void *bytes, size_t n, const char *what)
{
    char theirs[4096];
    const char *ours = bytes;
    uint64_t total = n;
    int32_t differs, value;
    int rank;

    LH_TRY(check_buffer(c, bytes, n, what));
    LH_TRY(lh_comm_bcast(c, &total, sizeof total, 0, NULL));
    differs = total != n;
    /* A rank that differs takes part to the end. */
    for (uint64_t at = 0; at < total;) {
        size_t len = total - at < sizeof theirs ? (size_t)(total - at) : sizeof theirs;
        if (c->rank == 0)
            memcpy(theirs, ours + at, len);
        LH_TRY(lh_comm_bcast(c, theirs, len, 0, NULL));
        if (!differs)
            differs = memcmp(theirs, ours + at, len) != 0;
        at += len;
    }
    LH_TRY(lowest_failure(c, differs, &rank, &value));
    LH_REQUIRE(rank < 0, LH_ERR_DISAGREE, "%s of rank %d differs from rank 0's", what, rank);
    return LH_OK;
}
