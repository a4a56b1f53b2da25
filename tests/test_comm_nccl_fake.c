/* The communicator over NCCL on machines without a GPU: every operation, and every fault. */
#include <nccl.h>

#include "base/log.h"
#include "tests/comm_cases.h"
#include "tests/fake_nccl.h"

#define TIMEOUT_S 0.2

static lh_comm *boot;
static lh_stream *host_stream;
static char a[4096], b[4096];

/* What a rank gets when all fail alike to create: the lowest says why. */
static lh_status shared(lh_status st)
{
    return boot->rank == 0 ? st : LH_ERR_PEER;
}

static void test_operations(void)
{
    lh_comm *c = NULL;

    CHECK_OK(lh_comm_nccl_create(&c, boot, host_stream, 30));
    if (c)
        run_cases(c, &lh_device_cpu, host_stream);
    lh_comm_destroy(c);
    CHECK_EQ(fake.aborted, 0);
}

/* What all ranks do the same, to the first failure. */
static lh_status some_work(lh_comm *c)
{
    size_t bytes[MAX_SIZE], offset[MAX_SIZE];

    for (int r = 0; r < c->size; r++) {
        bytes[r] = 100;
        offset[r] = (size_t)r * 100;
    }
    LH_TRY(lh_comm_bcast(c, a, 100, 0, host_stream));
    LH_TRY(lh_comm_wait(c, host_stream));
    LH_TRY(lh_comm_allgather(c, a, 100, b, host_stream));
    LH_TRY(lh_comm_wait(c, host_stream));
    LH_TRY(lh_comm_allgatherv(c, a, b, bytes, offset, host_stream));
    LH_TRY(lh_comm_wait(c, host_stream));
    LH_TRY(lh_comm_alltoallv(c, a, bytes, b, bytes, host_stream));
    return lh_comm_wait(c, host_stream);
}

/* Call after call fails, or hangs, on all ranks alike: the right status, no crash, no leak, and
 * nothing but abort and destroy works afterwards. */
static void check_faults(int hang)
{
    int at = 0, ended = 0;

    while (!ended && ++at < 200) {
        lh_comm *c = NULL;
        int before_create = fake.aborted;
        fake.calls = 0;
        *(hang ? &fake.hang_at : &fake.fail_at) = at;
        double since = lh_log_seconds();
        lh_status st = lh_comm_nccl_create(&c, boot, host_stream, TIMEOUT_S);
        CHECK((st == LH_OK) == (c != NULL));
        if (st == LH_OK)
            st = some_work(c);
        double waited = lh_log_seconds() - since;
        ended = fake.calls < at;
        if (hang && !ended && st != LH_OK) {
            CHECK_EQ(st, c ? LH_ERR_TIMEOUT : shared(LH_ERR_TIMEOUT));
            CHECK_MSG(waited >= TIMEOUT_S && waited < TIMEOUT_S + 2, "call %d: waited %g s", at,
                      waited);
            if (c)
                CHECK(strstr(lh_last_error(), "all ranks wait like this one"));
        } else if (!hang && !ended) {
            CHECK_MSG(st == LH_ERR_NCCL || st == LH_ERR_CUDA || st == LH_ERR_PEER, "call %d: %s",
                      at, lh_status_name(st));
        } else if (ended) {
            CHECK_OK(st);
        }
        if (c && st != LH_OK) {
            CHECK_STATUS(lh_comm_bcast(c, a, 1, 0, host_stream), LH_ERR_NCCL);
            CHECK_STATUS(lh_comm_wait(c, host_stream), LH_ERR_NCCL);
        }
        lh_comm_destroy(c);
        if (c && st != LH_OK)
            CHECK_EQ(fake.aborted, before_create + 1);
        fake.hang_at = fake.fail_at = 0;
    }
    CHECK(at > 10 && at < 200);
}

static void test_failures(void)
{
    check_faults(0);
}

static void test_hangs(void)
{
    check_faults(1);
}

/* A rank that does not come: the others' streams do not end, and they say where. */
static void test_missing_rank(void)
{
    lh_comm *c = NULL;
    size_t bytes[MAX_SIZE] = {8, 8, 8, 8, 8, 8, 8, 8};

    if (boot->size < 2)
        return;
    CHECK_OK(lh_comm_nccl_create(&c, boot, host_stream, TIMEOUT_S));
    if (!c)
        return;
    lh_comm_at(c, "dispatch", 3);
    if (c->rank > 0) {
        CHECK_OK(lh_comm_alltoallv(c, a, bytes, b, bytes, host_stream));
        CHECK_STATUS(lh_comm_wait(c, host_stream), LH_ERR_TIMEOUT);
        CHECK(
            strstr(lh_last_error(), "in dispatch of layer 3 (alltoallv): rank 0 does not answer"));
        CHECK_EQ(lh_exit_code(LH_ERR_TIMEOUT), 75);
    }
    CHECK_OK(lh_comm_agree(c, LH_OK)); /* over MPI, which is as good as before */
    if (c->rank == 0)
        CHECK_OK(lh_comm_alltoallv(c, a, bytes, b, bytes, host_stream));
    lh_comm_destroy(c);
}

static void test_versions(void)
{
    lh_comm *c = NULL;

    fake.version = NCCL_VERSION_CODE - 1;
    CHECK_STATUS(lh_comm_nccl_create(&c, boot, host_stream, 1), shared(LH_ERR_UNAVAILABLE));
    fake.version = NCCL_VERSION_CODE + 100 + boot->rank;
    CHECK_STATUS(lh_comm_nccl_create(&c, boot, host_stream, 1),
                 boot->size > 1 ? LH_ERR_DISAGREE : LH_OK);
    lh_comm_destroy(c);
    fake.version = 0;
    CHECK_STATUS(lh_comm_nccl_create(&c, boot, host_stream, 0), shared(LH_ERR_INVALID));
}

/* With "abort": rank 0 ends the job though ncclCommAbort hangs; ends with 75, or 1 alone. */
static int end_by_abort(void)
{
    lh_comm *c = NULL;

    CHECK_OK(lh_comm_nccl_create(&c, boot, host_stream, 30));
    fake.hang_abort = 1;
    double since = lh_log_seconds();
    if (c && c->rank == 0)
        lh_comm_abort(c, 75);
    else if (c)
        (void)lh_comm_bcast(boot, a, 1, 0, NULL);
    CHECK(lh_log_seconds() - since < 4);
    return 1;
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    CHECK_OK(lh_comm_mpi_create(&boot, 20));
    CHECK_OK(lh_device_cpu.open(&host_stream, 0, 1, 1));
    if (!boot || !host_stream)
        return 1;
    if (check_filter && strcmp(check_filter, "abort") == 0)
        return end_by_abort();
    RUN(test_operations);
    RUN(test_failures);
    RUN(test_hangs);
    RUN(test_versions);
    RUN(test_missing_rank); /* last: transfers stay open */
    fflush(stdout);
    int failed = check_done();
    lh_device_cpu.close(host_stream);
    lh_comm_destroy(boot);
    lh_comm_mpi_finalize();
    return failed;
}
