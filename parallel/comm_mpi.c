#include <mpi.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "parallel/comm_internal.h"

/*
 * Every operation is a set of transfers, at most one in and one out per peer, polled until all are
 * done or the deadline has passed. Nothing blocks inside MPI, so a missing peer can be named.
 *
 * A transfer travels in pieces of LH_MPI_PIECE bytes and ends with a shorter one, which may be
 * empty. So a sender and a receiver that name different sizes always meet at a piece of a different
 * size, and the receiver notices.
 *
 * The tag says which operation and which step a message belongs to. Messages between two ranks keep
 * their order and a receive takes the next one whatever its tag, so a peer that is out of step is
 * noticed at once instead of being waited for.
 */
#ifndef LH_MPI_PIECE
#define LH_MPI_PIECE ((size_t)1 << 30)
#endif
#define STEPS 4096 /* of the counter in the tag, so that tags stay below 32767 */

enum op { OP_BCAST, OP_ALLGATHER, OP_ALLGATHERV, OP_ALLTOALLV, OP_SENDRECV, N_OPS };
static const char *const op_names[N_OPS] = {"bcast", "allgather", "allgatherv", "alltoallv",
                                            "sendrecv"};

typedef struct transfer {
    char *at; /* the next piece; only read when sending */
    size_t left, bytes;
    int peer, sending;
} transfer;

typedef struct mpi_comm {
    lh_comm base;
    MPI_Comm comm, roll; /* roll: of roll calls, whose messages must not meet others */
    int broken;          /* a wait failed: peers may be anywhere, only abort and destroy are left */
    unsigned step;
    enum op op;
    int n_transfers, n_open;
    transfer *transfers;   /* these four: [2 * size] */
    MPI_Request *requests; /* of the piece under way, or MPI_REQUEST_NULL */
    MPI_Status *statuses;
    int *ready;
} mpi_comm;

static int began_mpi, any_broken; /* of the process, as MPI itself */

static lh_status mpi_failed(const char *call, int rc)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int len = 0;

    (void)MPI_Error_string(rc, text, &len);
    return LH_FAIL(LH_ERR_MPI, "%s: %s", call, text);
}

#define MPI_TRY_OUT(call, expr)                                                                    \
    do {                                                                                           \
        int rc_ = (expr);                                                                          \
        if (rc_ != MPI_SUCCESS) {                                                                  \
            st = mpi_failed((call), rc_);                                                          \
            goto out;                                                                              \
        }                                                                                          \
    } while (0)

static const char *place(const mpi_comm *m, char *text, size_t len)
{
    return lh_comm_place(&m->base, op_names[m->op], text, len);
}

static int tag_of(const mpi_comm *m)
{
    return (int)(m->step % STEPS) * N_OPS + (int)m->op;
}

static size_t piece_bytes(const transfer *t)
{
    return t->left < LH_MPI_PIECE ? t->left : LH_MPI_PIECE;
}

static lh_status post_piece(mpi_comm *m, int i)
{
    transfer *t = &m->transfers[i];
    int bytes = (int)piece_bytes(t);
    int rc =
        t->sending
            ? MPI_Isend(t->at, bytes, MPI_BYTE, t->peer, tag_of(m), m->comm, &m->requests[i])
            : MPI_Irecv(t->at, bytes, MPI_BYTE, t->peer, MPI_ANY_TAG, m->comm, &m->requests[i]);
    return rc == MPI_SUCCESS ? LH_OK : mpi_failed(t->sending ? "MPI_Isend" : "MPI_Irecv", rc);
}

static lh_status add_transfer(mpi_comm *m, int peer, const void *at, size_t bytes, int sending)
{
    int i = m->n_transfers++;

    m->transfers[i] = (transfer){.at = (char *)(uintptr_t)at,
                                 .left = bytes,
                                 .bytes = bytes,
                                 .peer = peer,
                                 .sending = sending};
    m->requests[i] = MPI_REQUEST_NULL;
    m->n_open++;
    return post_piece(m, i);
}

static lh_status wrong_size(const mpi_comm *m, const transfer *t, const char *seen)
{
    char where[96];

    return LH_FAIL(LH_ERR_DISAGREE, "rank %d sent %s than the %zu bytes expected in %s", t->peer,
                   seen, t->bytes, place(m, where, sizeof where));
}

static lh_status check_received(const mpi_comm *m, const transfer *t, const MPI_Status *status)
{
    char where[96];
    int bytes = 0;
    int tag = status->MPI_TAG;

    LH_REQUIRE(tag == tag_of(m), LH_ERR_DISAGREE,
               "rank %d is out of step: it sent %s of call %d, expected call %d, %s", t->peer,
               op_names[tag % N_OPS], tag / N_OPS, (int)(m->step % STEPS),
               place(m, where, sizeof where));
    int rc = MPI_Get_count(status, MPI_BYTE, &bytes);
    if (rc != MPI_SUCCESS)
        return mpi_failed("MPI_Get_count", rc);
    return (size_t)bytes == piece_bytes(t) ? LH_OK : wrong_size(m, t, "less");
}

static lh_status finish_piece(mpi_comm *m, int i, const MPI_Status *status)
{
    transfer *t = &m->transfers[i];
    size_t bytes = piece_bytes(t);

    if (!t->sending)
        LH_TRY(check_received(m, t, status));
    t->left -= bytes;
    if (bytes < LH_MPI_PIECE) {
        m->n_open--;
        return LH_OK;
    }
    t->at += bytes;
    return post_piece(m, i);
}

/* MPI_Testsome returned `rc`: finds the transfer that it is about. */
static lh_status transfer_failed(const mpi_comm *m, int rc, int n_ready)
{
    for (int k = 0; k < n_ready; k++) {
        const transfer *t = &m->transfers[m->ready[k]];
        int error = m->statuses[k].MPI_ERROR, class = MPI_SUCCESS;

        (void)MPI_Error_class(error, &class);
        if (class == MPI_ERR_TRUNCATE && m->statuses[k].MPI_TAG != tag_of(m))
            return check_received(m, t, &m->statuses[k]);
        if (class == MPI_ERR_TRUNCATE)
            return wrong_size(m, t, "more");
        if (class != MPI_SUCCESS && class != MPI_ERR_PENDING)
            return mpi_failed(t->sending ? "sending" : "receiving", error);
    }
    return mpi_failed("MPI_Testsome", rc);
}

/* Names those whom we wait for: whoever still owes us something, otherwise who does not take. */
static lh_status timed_out(const mpi_comm *m, double waited)
{
    char where[96], who[128] = "";
    int len = 0, n = 0;

    for (int sending = 0; sending <= 1 && n == 0; sending++)
        for (int i = 0; i < m->n_transfers; i++)
            if (m->requests[i] != MPI_REQUEST_NULL && m->transfers[i].sending == sending &&
                len < (int)sizeof who - 12)
                len += snprintf(who + len, sizeof who - (size_t)len, n++ ? ", %d" : "%d",
                                m->transfers[i].peer);
    return LH_FAIL(LH_ERR_TIMEOUT, "waited %.1f s for rank%s %s in %s", waited, n > 1 ? "s" : "",
                   who, place(m, where, sizeof where));
}

static lh_status poll_all(mpi_comm *m)
{
    double since = lh_log_seconds(), waited;
    unsigned n_polls = 0;

    while (m->n_open > 0) {
        int n_ready = 0;
        int rc = MPI_Testsome(m->n_transfers, m->requests, &n_ready, m->ready, m->statuses);
        if (rc != MPI_SUCCESS)
            return transfer_failed(m, rc, n_ready);
        for (int k = 0; k < n_ready; k++)
            LH_TRY(finish_piece(m, m->ready[k], &m->statuses[k]));
        if (n_ready > 0) {
            since = lh_log_seconds();
            n_polls = 0;
        } else if ((waited = lh_comm_idle(&m->base, ++n_polls, since)) > 0) {
            return timed_out(m, waited);
        }
    }
    return LH_OK;
}

static lh_status start(mpi_comm *m, enum op op)
{
    LH_REQUIRE(!m->broken, LH_ERR_MPI, "%s on a communicator that has failed before", op_names[op]);
    m->op = op;
    m->step += op != OP_SENDRECV; /* not all ranks call that one */
    m->n_transfers = 0;
    m->n_open = 0;
    return LH_OK;
}

/* `st` is how posting went. After a failure nothing may arrive in the caller's buffers any more. */
static lh_status finish(mpi_comm *m, lh_status st)
{
    if (st == LH_OK)
        st = poll_all(m);
    if (st == LH_OK)
        return LH_OK;
    m->broken = any_broken = 1;
    for (int i = 0; i < m->n_transfers; i++)
        if (m->requests[i] != MPI_REQUEST_NULL && !m->transfers[i].sending)
            (void)MPI_Cancel(&m->requests[i]);
    return st;
}

static void copy_own(void *to, const void *from, size_t bytes)
{
    if (bytes > 0 && to != from)
        memcpy(to, from, bytes);
}

static lh_status mpi_bcast(lh_comm *c, void *buf, size_t bytes, int root, lh_stream *s)
{
    mpi_comm *m = (mpi_comm *)c;
    lh_status st = LH_OK;

    (void)s;
    LH_TRY(start(m, OP_BCAST));
    if (c->rank != root)
        st = add_transfer(m, root, buf, bytes, 0);
    else
        for (int r = 0; r < c->size && st == LH_OK; r++)
            if (r != root)
                st = add_transfer(m, r, buf, bytes, 1);
    return finish(m, st);
}

/* Below, receives are posted first, so that nothing arrives unexpected that need not. */

static lh_status mpi_allgather(lh_comm *c, const void *send, size_t bytes, void *recv, lh_stream *s)
{
    mpi_comm *m = (mpi_comm *)c;
    char *to = recv;
    lh_status st = LH_OK;

    (void)s;
    LH_TRY(start(m, OP_ALLGATHER));
    for (int r = 0; r < c->size && st == LH_OK; r++)
        if (r != c->rank)
            st = add_transfer(m, r, to + (size_t)r * bytes, bytes, 0);
    for (int r = 0; r < c->size && st == LH_OK; r++)
        if (r != c->rank)
            st = add_transfer(m, r, send, bytes, 1);
    copy_own(to + (size_t)c->rank * bytes, send, bytes);
    return finish(m, st);
}

static lh_status mpi_allgatherv(lh_comm *c, const void *send, void *recv, const size_t *recv_bytes,
                                const size_t *recv_offset, lh_stream *s)
{
    mpi_comm *m = (mpi_comm *)c;
    char *to = recv;
    lh_status st = LH_OK;

    (void)s;
    LH_TRY(start(m, OP_ALLGATHERV));
    for (int r = 0; r < c->size && st == LH_OK; r++)
        if (r != c->rank)
            st = add_transfer(m, r, to + recv_offset[r], recv_bytes[r], 0);
    for (int r = 0; r < c->size && st == LH_OK; r++)
        if (r != c->rank)
            st = add_transfer(m, r, send, recv_bytes[c->rank], 1);
    copy_own(to + recv_offset[c->rank], send, recv_bytes[c->rank]);
    return finish(m, st);
}

static lh_status mpi_alltoallv(lh_comm *c, const void *send, const size_t *send_bytes, void *recv,
                               const size_t *recv_bytes, lh_stream *s)
{
    mpi_comm *m = (mpi_comm *)c;
    const char *from = send;
    char *to = recv, *own = recv;
    lh_status st = LH_OK;

    (void)s;
    LH_TRY(start(m, OP_ALLTOALLV));
    for (int r = 0; r < c->size && st == LH_OK; to += recv_bytes[r++]) {
        if (r == c->rank)
            own = to;
        else
            st = add_transfer(m, r, to, recv_bytes[r], 0);
    }
    for (int r = 0; r < c->size && st == LH_OK; from += send_bytes[r++]) {
        if (r == c->rank)
            copy_own(own, from, send_bytes[r]);
        else
            st = add_transfer(m, r, from, send_bytes[r], 1);
    }
    return finish(m, st);
}

static lh_status mpi_sendrecv(lh_comm *c, const void *send, size_t send_bytes, int to, void *recv,
                              size_t recv_bytes, int from, lh_stream *s)
{
    mpi_comm *m = (mpi_comm *)c;
    lh_status st = LH_OK;

    (void)s;
    LH_TRY(start(m, OP_SENDRECV));
    if (from == c->rank)
        copy_own(recv, send, recv_bytes);
    else if (from >= 0)
        st = add_transfer(m, from, recv, recv_bytes, 0);
    if (to >= 0 && to != c->rank && st == LH_OK)
        st = add_transfer(m, to, send, send_bytes, 1);
    return finish(m, st);
}

static lh_status mpi_merge(lh_comm *c, void *buf, size_t bytes, void *scratch, lh_stream *s)
{
    uint32_t *to = buf;
    const uint32_t *from = scratch;
    size_t n = bytes / sizeof *to;

    LH_TRY(mpi_allgather(c, buf, bytes, scratch, s));
    for (int r = 0; r < c->size; r++, from += n)
        for (size_t i = 0; i < n && r != c->rank; i++)
            to[i] |= from[i];
    return LH_OK;
}

/* MPI sends on what it has buffered when it is called. */
static void mpi_progress(lh_comm *c)
{
    mpi_comm *m = (mpi_comm *)c;
    int found = 0;

    if (!m->broken)
        (void)MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, m->comm, &found, MPI_STATUS_IGNORE);
}

/* Every rank sends to every other; requests[r] stays open if rank r is not heard in time. */
static void call_roll(mpi_comm *m)
{
    static const int here = 1;
    int n = m->base.size, done = 0, ok = 1;
    double since = lh_log_seconds();

    for (int r = 0; r < n; r++)
        m->requests[r] = m->requests[n + r] = MPI_REQUEST_NULL;
    for (int r = 0; r < n && ok; r++)
        if (r != m->base.rank)
            ok = MPI_Irecv(&m->ready[r], 1, MPI_INT, r, 0, m->roll, &m->requests[r]) ==
                     MPI_SUCCESS &&
                 MPI_Isend(&here, 1, MPI_INT, r, 0, m->roll, &m->requests[n + r]) == MPI_SUCCESS;
    while (ok && !done && lh_log_seconds() - since < LH_ROLL_CALL_S) {
        ok = MPI_Testall(n, m->requests, &done, m->statuses) == MPI_SUCCESS;
        (void)nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}

static void mpi_roll_call(lh_comm *c, char *who, size_t size)
{
    mpi_comm *m = (mpi_comm *)c;
    size_t len = 0;

    who[0] = 0;
    if (m->broken)
        return;
    call_roll(m);
    for (int r = 0; r < c->size; r++) {
        MPI_Request *heard = &m->requests[r], *told = &m->requests[c->size + r];
        int done = 0;
        if (*heard != MPI_REQUEST_NULL &&
            !(MPI_Test(heard, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done)) {
            (void)MPI_Cancel(heard);
            (void)MPI_Request_free(heard);
            if (len + 16 < size)
                len += (size_t)snprintf(who + len, size - len, len ? ", %d" : "rank %d", r);
        }
        if (*told != MPI_REQUEST_NULL)
            (void)MPI_Request_free(told);
    }
}

static void mpi_abort(lh_comm *c, int exit_code)
{
    (void)c; /* perhaps of a few ranks only: the others would wait for ever */
    (void)MPI_Abort(MPI_COMM_WORLD, exit_code);
    _exit(exit_code);
}

static void mpi_destroy(lh_comm *c)
{
    mpi_comm *m = (mpi_comm *)c;

    if (!m->broken) { /* otherwise peers may not come along, and the process is about to end */
        (void)MPI_Comm_free(&m->roll);
        (void)MPI_Comm_free(&m->comm);
    }
    free(m);
}

static const lh_comm_ops mpi_ops = {
    .name = "mpi",
    .bcast = mpi_bcast,
    .allgather = mpi_allgather,
    .allgatherv = mpi_allgatherv,
    .alltoallv = mpi_alltoallv,
    .sendrecv = mpi_sendrecv,
    .merge = mpi_merge,
    .wait = lh_comm_sync,
    .progress = mpi_progress,
    .roll_call = mpi_roll_call,
    .abort = mpi_abort,
    .destroy = mpi_destroy,
};

/* The struct and its arrays for `size` ranks, in one block. */
static size_t layout(mpi_comm **m, void *base, int size)
{
    lh_carve c = {.base = base};
    size_t n = 2 * (size_t)size;
    mpi_comm measured;

    *m = lh_carve_take(&c, 1, sizeof **m, 64);
    mpi_comm *fields = *m ? *m : &measured;
    fields->transfers = lh_carve_take(&c, n, sizeof *fields->transfers, 64);
    fields->requests = lh_carve_take(&c, n, sizeof *fields->requests, 64);
    fields->statuses = lh_carve_take(&c, n, sizeof *fields->statuses, 64);
    fields->ready = lh_carve_take(&c, n, sizeof *fields->ready, 64);
    return c.used;
}

static lh_status begin_mpi(void)
{
    lh_status st = LH_OK;
    int running = 0, level = MPI_THREAD_SINGLE;

    MPI_TRY_OUT("MPI_Initialized", MPI_Initialized(&running));
    if (running) {
        MPI_TRY_OUT("MPI_Query_thread", MPI_Query_thread(&level));
    } else {
        MPI_TRY_OUT("MPI_Init_thread", MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level));
        began_mpi = 1;
    }
    LH_REQUIRE(level >= MPI_THREAD_FUNNELED, LH_ERR_UNAVAILABLE,
               "this MPI does not allow other threads in the program (level %d, expected %d)",
               level, MPI_THREAD_FUNNELED);
out:
    return st;
}

/* A communicator of its own over all ranks (n_ranks 0), or over the first n_ranks. */
static lh_status duplicate(MPI_Comm *out, int n_ranks)
{
    lh_status st = LH_OK;
    MPI_Group all = MPI_GROUP_NULL, first = MPI_GROUP_NULL;
    int range[1][3] = {{0, n_ranks - 1, 1}}, rank = 0, size = 0;

    if (n_ranks == 0) {
        MPI_TRY_OUT("MPI_Comm_dup", MPI_Comm_dup(MPI_COMM_WORLD, out));
        return LH_OK;
    }
    MPI_TRY_OUT("MPI_Comm_rank", MPI_Comm_rank(MPI_COMM_WORLD, &rank));
    MPI_TRY_OUT("MPI_Comm_size", MPI_Comm_size(MPI_COMM_WORLD, &size));
    LH_REQUIRE(rank < n_ranks && n_ranks <= size, LH_ERR_INVALID,
               "rank %d of %d in a communicator of the first %d", rank, size, n_ranks);
    MPI_TRY_OUT("MPI_Comm_group", MPI_Comm_group(MPI_COMM_WORLD, &all));
    MPI_TRY_OUT("MPI_Group_range_incl", MPI_Group_range_incl(all, 1, range, &first));
    MPI_TRY_OUT("MPI_Comm_create_group", MPI_Comm_create_group(MPI_COMM_WORLD, first, 0, out));
out:
    if (first != MPI_GROUP_NULL)
        (void)MPI_Group_free(&first);
    if (all != MPI_GROUP_NULL)
        (void)MPI_Group_free(&all);
    return st;
}

/* Only here MPI is left to wait by itself, as it is while it starts. */
static lh_status create(lh_comm **out, int n_ranks, double timeout_s)
{
    lh_status st = LH_OK;
    MPI_Comm dup = MPI_COMM_NULL, roll = MPI_COMM_NULL;
    mpi_comm *m = NULL;
    void *block = NULL;
    int rank = 0, size = 0, mine, all;

    LH_REQUIRE(timeout_s > 0, LH_ERR_INVALID, "a timeout of %g s, expected more than 0", timeout_s);
    LH_TRY(begin_mpi());
    LH_TRY(duplicate(&dup, n_ranks));
    MPI_TRY_OUT("MPI_Comm_set_errhandler", MPI_Comm_set_errhandler(dup, MPI_ERRORS_RETURN));
    MPI_TRY_OUT("MPI_Comm_dup", MPI_Comm_dup(dup, &roll)); /* with its way to handle errors */
    MPI_TRY_OUT("MPI_Comm_rank", MPI_Comm_rank(dup, &rank));
    MPI_TRY_OUT("MPI_Comm_size", MPI_Comm_size(dup, &size));

    /* Every rank gets one, or every rank leaves. */
    st = lh_alloc(&block, layout(&m, NULL, size), "communicator");
    mine = st;
    MPI_TRY_OUT("MPI_Allreduce", MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, dup));
    LH_TRY_OUT(st);
    LH_REQUIRE_OUT(all == LH_OK, LH_ERR_PEER, "another rank has no memory for a communicator");

    (void)layout(&m, block, size);
    m->base =
        (lh_comm){.ops = &mpi_ops, .rank = rank, .size = size, .timeout_s = timeout_s, .layer = -1};
    m->comm = dup;
    m->roll = roll;
    if (rank == 0)
        LH_LOG_I("comm", "mpi, %d ranks, waits of at most %g s", size, timeout_s);
    *out = &m->base;
    dup = roll = MPI_COMM_NULL;
    block = NULL;
out:
    free(block);
    if (roll != MPI_COMM_NULL)
        (void)MPI_Comm_free(&roll);
    if (dup != MPI_COMM_NULL)
        (void)MPI_Comm_free(&dup);
    return st;
}

lh_status lh_comm_mpi_create(lh_comm **out, double timeout_s)
{
    return create(out, 0, timeout_s);
}

lh_status lh_comm_mpi_create_first(lh_comm **out, int n_ranks, double timeout_s)
{
    LH_REQUIRE(n_ranks >= 1, LH_ERR_INVALID, "a communicator of %d ranks", n_ranks);
    return create(out, n_ranks, timeout_s);
}

void lh_comm_mpi_finalize(void)
{
    /* After a failed wait MPI_Finalize could wait for ever; without it the launcher ends the job.
     */
    if (began_mpi && !any_broken)
        (void)MPI_Finalize();
    began_mpi = 0;
}
