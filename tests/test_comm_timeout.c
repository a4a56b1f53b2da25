/*
 * Faults of a peer, each in an own run of the program because a communicator is lost after one:
 *
 *   hang N    rank N leaves out a collective; the others give up after a second and name it
 *   slow      rank 1 comes late, but in time
 *   less, more, much-more    rank 1 names another size than rank 0
 *   piece     rank 1 names a size that ends where a piece does, rank 0 expects another
 *   step      rank 1 is in another operation
 *   abort     rank 1 ends the job with code 75
 *   first     the same over a communicator of ranks 0 and 1, while rank 2 waits in the job's
 *
 * What counts is what the ranks print and the exit code; test_faults.sh looks at both.
 */
#include "parallel/comm.h"
#include "tests/check.h"

#define TIMEOUT_S 1.0
#define CODE 42 /* of runs that had to end by an abort, and went as expected */

static lh_comm *comm;
static char buffer[8 * 100000];

static void sleep_s(double s)
{
    struct timespec t = {.tv_sec = (time_t)s, .tv_nsec = (long)((s - (double)(time_t)s) * 1e9)};
    (void)nanosleep(&t, NULL);
}

static void check_error(const char *part)
{
    CHECK_MSG(strstr(lh_last_error(), part), "'%s', expected '%s' in it", lh_last_error(), part);
}

/* The one who hangs stays until the others have given up. */
static void hang(int who)
{
    struct timespec a, b;
    char expected[64];

    CHECK_OK(lh_comm_allgather(comm, buffer, 8, buffer + 1000, NULL));
    if (comm->rank == who) {
        sleep_s(TIMEOUT_S + 0.2);
        return;
    }
    (void)clock_gettime(CLOCK_MONOTONIC, &a);
    CHECK_STATUS(lh_comm_allgather(comm, buffer, 8, buffer + 1000, NULL), LH_ERR_TIMEOUT);
    (void)clock_gettime(CLOCK_MONOTONIC, &b);
    double waited = (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
    CHECK_MSG(waited >= TIMEOUT_S && waited < TIMEOUT_S + 0.5, "waited %g s", waited);
    (void)snprintf(expected, sizeof expected, "s for rank %d in dispatch of layer 3 (allgather)",
                   who);
    check_error(expected);
    CHECK_EQ(lh_exit_code(LH_ERR_TIMEOUT), 75);
    CHECK_STATUS(lh_comm_bcast(comm, buffer, 8, 0, NULL), LH_ERR_MPI);
}

static void slow(void)
{
    for (int i = 0; i < 2; i++) {
        if (comm->rank == 1)
            sleep_s(TIMEOUT_S * 0.6);
        CHECK_OK(lh_comm_allgather(comm, buffer, 8, buffer + 1000, NULL));
    }
}

/* Rank 1 sends `theirs` bytes to rank 0, which expects `ours`. */
static void sizes(size_t ours, size_t theirs, const char *message)
{
    if (comm->rank == 0) {
        CHECK_STATUS(lh_comm_sendrecv(comm, NULL, 0, -1, buffer, ours, 1, NULL), LH_ERR_DISAGREE);
        check_error(message);
    } else if (comm->rank == 1) {
        (void)lh_comm_sendrecv(comm, buffer, theirs, 0, NULL, 0, -1, NULL);
    }
}

static void out_of_step(void)
{
    size_t bytes[8] = {4, 4, 4, 4, 4, 4, 4, 4};

    if (comm->rank == 1) {
        (void)lh_comm_alltoallv(comm, buffer, bytes, buffer + 1000, bytes, NULL);
    } else {
        CHECK_STATUS(lh_comm_allgather(comm, buffer, 4, buffer + 1000, NULL), LH_ERR_DISAGREE);
        check_error("rank 1 is out of step: it sent alltoallv of call 1, expected call 1, dispatch "
                    "of layer 3 (allgather)");
    }
}

static void abort_first(void)
{
    lh_comm *first = comm;

    if (comm->rank < 2)
        CHECK_OK(lh_comm_mpi_create_first(&first, 2, TIMEOUT_S));
    if (comm->rank == 1)
        lh_comm_abort(first, 75);
    (void)lh_comm_bcast(first, buffer, 8, 1, NULL);
}

int main(int argc, char **argv)
{
    const char *fault = argc > 1 ? argv[1] : "";

    CHECK_OK(lh_comm_mpi_create(&comm, TIMEOUT_S));
    if (!comm)
        return 1;
    lh_comm_at(comm, "dispatch", 3);
    if (strcmp(fault, "hang") == 0 && argc > 2)
        hang(atoi(argv[2]));
    else if (strcmp(fault, "slow") == 0)
        slow();
    else if (strcmp(fault, "less") == 0)
        sizes(100, 99, "rank 1 sent less than the 100 bytes expected");
    else if (strcmp(fault, "more") == 0)
        sizes(100, 101, "rank 1 sent more than the 100 bytes expected");
    else if (strcmp(fault, "much-more") == 0)
        sizes(100, LH_MPI_PIECE - 1, "rank 1 sent more than the 100 bytes expected");
    else if (strcmp(fault, "piece") == 0)
        sizes(LH_MPI_PIECE + 1, LH_MPI_PIECE, "rank 1 sent less than the 100001 bytes expected");
    else if (strcmp(fault, "step") == 0)
        out_of_step();
    else if (strcmp(fault, "abort") == 0 && comm->rank == 1)
        lh_comm_abort(comm, 75);
    else if (strcmp(fault, "abort") == 0)
        (void)lh_comm_bcast(comm, buffer, 8, 1, NULL);
    else if (strcmp(fault, "first") == 0)
        abort_first();
    else
        CHECK_MSG(0, "unknown fault '%s'", fault);
    check_ran++;
    int failed = check_done();
    (void)fflush(stdout);
    if (strcmp(fault, "slow") != 0) {
        sleep_s(0.5); /* the others print too */
        lh_comm_abort(comm, failed ? 1 : CODE);
    }
    lh_comm_destroy(comm);
    lh_comm_mpi_finalize();
    return failed;
}
