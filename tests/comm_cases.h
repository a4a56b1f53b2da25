/*
 * Every operation of a communicator, for the programs that test one: contents are a hash of
 * (sender, receiver, place), so that nothing can arrive in the wrong place unnoticed.
 */
#ifndef LH_TESTS_COMM_CASES_H
#define LH_TESTS_COMM_CASES_H

#include "parallel/comm.h"
#include "tests/check.h"

#define MAX_SIZE 8
#define MAX_BYTES 300000

static lh_comm *comm;
static const lh_device_ops *device;
static lh_stream *stream; /* NULL: the buffers themselves are passed */
static unsigned char sent[MAX_SIZE * MAX_BYTES], received[MAX_SIZE * MAX_BYTES];
static unsigned char *device_sent, *device_received; /* their places on the device */
static const size_t sizes[] = {0, 1, 7, 1024, 4096, 4097, 65536, MAX_BYTES};
#define N_SIZES ((int)(sizeof sizes / sizeof sizes[0]))

/* Where an operation is to find what is at p. */
static void *at(const unsigned char *p)
{
    if (!stream || !p)
        return (void *)(uintptr_t)p;
    return p >= received && p < received + sizeof received ? device_received + (p - received)
                                                           : device_sent + (p - sent);
}

/* To the device before an operation, and back after it: all of both buffers. */
static void before(void)
{
    if (!stream)
        return;
    CHECK_OK(device->upload(stream, device_sent, sent, sizeof sent));
    CHECK_OK(device->upload(stream, device_received, received, sizeof received));
}

static lh_status after(lh_status st)
{
    if (!stream || st != LH_OK)
        return st;
    LH_TRY(lh_comm_wait(comm, stream));
    LH_TRY(device->download(stream, received, device_received, sizeof received));
    return device->sync(stream);
}

static lh_status do_bcast(unsigned char *buf, size_t bytes, int root)
{
    before();
    return after(lh_comm_bcast(comm, at(buf), bytes, root, stream));
}

static lh_status do_merge(unsigned char *buf, size_t bytes, unsigned char *scratch)
{
    before();
    return after(lh_comm_merge(comm, at(buf), bytes, at(scratch), stream));
}

static lh_status do_allgather(const unsigned char *send, size_t bytes, unsigned char *recv)
{
    before();
    return after(lh_comm_allgather(comm, at(send), bytes, at(recv), stream));
}

static lh_status do_allgatherv(const unsigned char *send, unsigned char *recv,
                               const size_t *recv_bytes, const size_t *recv_offset)
{
    before();
    return after(lh_comm_allgatherv(comm, at(send), at(recv), recv_bytes, recv_offset, stream));
}

static lh_status do_alltoallv(const unsigned char *send, const size_t *send_bytes,
                              unsigned char *recv, const size_t *recv_bytes)
{
    before();
    return after(lh_comm_alltoallv(comm, at(send), send_bytes, at(recv), recv_bytes, stream));
}

static lh_status do_sendrecv(const unsigned char *send, size_t send_bytes, int to,
                             unsigned char *recv, size_t recv_bytes, int from)
{
    before();
    return after(
        lh_comm_sendrecv(comm, at(send), send_bytes, to, at(recv), recv_bytes, from, stream));
}

static unsigned char content(int from, int to, size_t i)
{
    return (unsigned char)((i * 2654435761u >> 7) + (unsigned)from * 57u + (unsigned)to * 131u);
}

static void fill(unsigned char *p, int from, int to, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        p[i] = content(from, to, i);
}

static void check_content(const unsigned char *p, int from, int to, size_t bytes)
{
    size_t wrong = 0;

    for (size_t i = 0; i < bytes; i++)
        wrong += p[i] != content(from, to, i);
    CHECK_MSG(wrong == 0, "%zu of %zu bytes from rank %d to %d are wrong", wrong, bytes, from, to);
}

static void test_bcast(void)
{
    for (int k = 0; k < N_SIZES; k++)
        for (int root = 0; root < comm->size; root++) {
            memset(received, 0, sizes[k]);
            if (comm->rank == root)
                fill(received, root, 0, sizes[k]);
            CHECK_OK(do_bcast(received, sizes[k], root));
            check_content(received, root, 0, sizes[k]);
        }
    CHECK_STATUS(do_bcast(received, 1, comm->size), LH_ERR_INVALID);
    CHECK_STATUS(do_bcast(NULL, 1, 0), LH_ERR_INVALID);
}

/* Word i is rank i % size's; all its bits must arrive. */
static void test_merge(void)
{
    enum { WORDS = 1000 };
    uint32_t words[WORDS];

    for (int n = 0; n <= WORDS; n += n < 5 ? 1 : 331) {
        for (int i = 0; i < n; i++)
            words[i] = i % comm->size == comm->rank ? 0x80000000u + (uint32_t)i * 2654435761u : 0;
        memcpy(received, words, (size_t)n * sizeof *words);
        CHECK_OK(do_merge(received, (size_t)n * sizeof *words, sent));
        memcpy(words, received, (size_t)n * sizeof *words);
        for (int i = 0; i < n; i++)
            CHECK(words[i] == 0x80000000u + (uint32_t)i * 2654435761u);
    }
    CHECK_STATUS(lh_comm_merge(comm, at(received), 3, at(sent), stream), LH_ERR_INVALID);
}

static void test_allgather(void)
{
    for (int k = 0; k < N_SIZES; k++)
        for (int in_place = 0; in_place < 2; in_place++) {
            size_t n = sizes[k];
            unsigned char *mine = in_place ? received + (size_t)comm->rank * n : sent;
            memset(received, 0, (size_t)comm->size * n);
            fill(mine, comm->rank, 0, n);
            CHECK_OK(do_allgather(mine, n, received));
            for (int r = 0; r < comm->size; r++)
                check_content(received + (size_t)r * n, r, 0, n);
        }
}

/* Ragged parts, some empty, placed in reverse order with a gap between them. */
static void test_allgatherv(void)
{
    for (int turn = 0; turn < N_SIZES; turn++) {
        size_t bytes[MAX_SIZE], offset[MAX_SIZE], place = 0;
        for (int r = comm->size - 1; r >= 0; r--) {
            bytes[r] = sizes[(turn + r) % N_SIZES];
            offset[r] = place;
            place += bytes[r] + 1;
        }
        memset(received, 0xa5, place);
        fill(sent, comm->rank, 0, bytes[comm->rank]);
        CHECK_OK(do_allgatherv(sent, received, bytes, offset));
        for (int r = 0; r < comm->size; r++) {
            check_content(received + offset[r], r, 0, bytes[r]);
            CHECK_EQ(received[offset[r] + bytes[r]], 0xa5);
        }
        CHECK_OK(do_allgatherv(received + offset[comm->rank], received, bytes, offset));
        check_content(received + offset[comm->rank], comm->rank, 0, bytes[comm->rank]);
    }
}

static size_t ragged(int turn, int from, int to)
{
    return sizes[(turn + 3 * from + 5 * to) % N_SIZES];
}

static void test_alltoallv(void)
{
    for (int turn = 0; turn < N_SIZES; turn++) {
        size_t out[MAX_SIZE], in[MAX_SIZE], place = 0;
        for (int r = 0; r < comm->size; r++) {
            out[r] = ragged(turn, comm->rank, r);
            in[r] = ragged(turn, r, comm->rank);
            fill(sent + place, comm->rank, r, out[r]);
            place += out[r];
        }
        memset(received, 0, sizeof received);
        CHECK_OK(do_alltoallv(sent, out, received, in));
        place = 0;
        for (int r = 0; r < comm->size; r++) {
            check_content(received + place, r, comm->rank, in[r]);
            place += in[r];
        }
    }
    size_t none[MAX_SIZE] = {0};
    CHECK_OK(do_alltoallv(NULL, none, NULL, none));
}

static void test_sendrecv(void)
{
    int size = comm->size, next = (comm->rank + 1) % size, last = (comm->rank + size - 1) % size;

    for (int k = 0; k < N_SIZES; k++) {
        size_t n = sizes[k];
        memset(received, 0, n);
        fill(sent, comm->rank, next, n);
        CHECK_OK(do_sendrecv(sent, n, next, received, n, last));
        check_content(received, last, comm->rank, n);

        /* A chain with open ends: the first only sends, the last only receives. */
        memset(received, 0, n);
        CHECK_OK(
            do_sendrecv(sent, n, next == 0 ? -1 : next, received, n, comm->rank == 0 ? -1 : last));
        check_content(received, last, comm->rank, comm->rank == 0 ? 0 : n);
    }
    /* Only two ranks take part; the others are already in the next operation. */
    if (comm->rank == 0)
        CHECK_OK(do_sendrecv(sent, 5, size - 1, received, 5, size - 1));
    else if (comm->rank == size - 1)
        CHECK_OK(do_sendrecv(sent, 5, 0, received, 5, 0));
    CHECK_STATUS(do_sendrecv(sent, 5, size, received, 5, -1), LH_ERR_INVALID);
    CHECK_STATUS(do_sendrecv(sent, 5, comm->rank, received, 5, -1), LH_ERR_INVALID);
    CHECK_STATUS(do_sendrecv(sent, 5, comm->rank, received, 6, comm->rank), LH_ERR_DISAGREE);
}

/* Steps that need each other's results, one after the other, without a wait between them. */
static void test_queued(void)
{
    int size = comm->size, next = (comm->rank + 1) % size, last = (comm->rank + size - 1) % size;
    const size_t n = 5000;

    memset(received, 0, (size_t)(size + 1) * n);
    fill(received, comm->rank, 0, n);
    before();
    for (size_t step = 0; step < (size_t)size; step++)
        CHECK_OK(lh_comm_sendrecv(comm, at(received + step * n), n, next,
                                  at(received + (step + 1) * n), n, last, stream));
    CHECK_OK(after(LH_OK));
    for (int step = 0; step <= size; step++)
        check_content(received + (size_t)step * n, (comm->rank + size - step) % size, 0, n);
}

static void test_agree(void)
{
    CHECK_OK(lh_comm_agree(comm, LH_OK));
    for (int failing = 0; failing < comm->size; failing++) {
        lh_status mine = comm->rank == failing ? LH_ERR_DATA : LH_OK;
        lh_status st = lh_comm_agree(comm, mine);
        CHECK_EQ(st, comm->rank == failing ? LH_ERR_DATA : LH_ERR_PEER);
        CHECK_EQ(lh_exit_code(st), 65);
    }
    /* Two fail: the lower one keeps its own. */
    lh_status mine = comm->rank == 0 ? LH_OK : comm->rank == 1 ? LH_ERR_NOMEM : LH_ERR_DATA;
    lh_status st = lh_comm_agree(comm, mine);
    if (comm->size > 1) {
        CHECK_EQ(st, comm->rank == 1 ? LH_ERR_NOMEM : LH_ERR_PEER);
        CHECK_EQ(lh_exit_code(st), 71);
        /* Again, one step up: rank 0 brings what it heard, the one who knows keeps its own. */
        mine = st;
        st = lh_comm_agree(comm, mine);
        CHECK_EQ(st, comm->rank == 1 ? LH_ERR_NOMEM : LH_ERR_PEER);
        CHECK_EQ(lh_exit_code(st), 71);
    }
    st = lh_comm_agree(comm, comm->rank == 0 ? LH_ERR_PEER : LH_OK);
    CHECK_EQ(st, LH_ERR_PEER);
}

static void test_same(void)
{
    char bytes[10000];

    memset(bytes, 'x', sizeof bytes);
    CHECK_OK(lh_comm_same(comm, bytes, sizeof bytes, "the settings"));
    CHECK_OK(lh_comm_same(comm, NULL, 0, "nothing"));
    for (int r = 1; r < comm->size; r++) {
        char expected[64];
        (void)snprintf(expected, sizeof expected, "the settings of rank %d differs from rank 0's",
                       r);
        bytes[9999] = comm->rank >= r ? 'y' : 'x';
        CHECK_STATUS(lh_comm_same(comm, bytes, sizeof bytes, "the settings"), LH_ERR_DISAGREE);
        CHECK_STR(lh_last_error(), expected);
        bytes[9999] = 'x';
        size_t n = sizeof bytes - (comm->rank >= r ? 5000u : 0u);
        CHECK_STATUS(lh_comm_same(comm, bytes, n, "the settings"), LH_ERR_DISAGREE);
        CHECK_STR(lh_last_error(), expected);
    }
}

static void test_counts(void)
{
    uint64_t calls = comm->calls, out = comm->bytes_sent, in = comm->bytes_received;
    uint64_t others = (uint64_t)comm->size - 1;

    CHECK_OK(do_allgather(sent, 100, received));
    CHECK_OK(do_bcast(received, 10, 0));
    CHECK_EQ(comm->calls - calls, 2);
    CHECK_EQ(comm->bytes_sent - out, 100 * others + (comm->rank == 0 ? 10 * others : 0));
    CHECK_EQ(comm->bytes_received - in, 100 * others + (comm->rank == 0 ? 0 : 10));
}

/* Over host memory (d NULL), or over the memory of a stream of d. */
static void run_cases(lh_comm *c, const lh_device_ops *d, lh_stream *s)
{
    comm = c;
    device = d;
    stream = s;
    if (s) {
        void *p = NULL, *q = NULL;
        CHECK_OK(d->alloc(s, &p, sizeof sent, "sent"));
        CHECK_OK(d->alloc(s, &q, sizeof received, "received"));
        device_sent = p;
        device_received = q;
    }
    RUN(test_bcast);
    RUN(test_merge);
    RUN(test_allgather);
    RUN(test_allgatherv);
    RUN(test_alltoallv);
    RUN(test_sendrecv);
    RUN(test_queued);
    RUN(test_agree);
    RUN(test_same);
    RUN(test_counts);
    CHECK_OK(lh_comm_wait(c, s));
    if (s) {
        d->release(s, device_sent);
        d->release(s, device_received);
    }
}

#endif
