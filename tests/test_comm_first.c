/* Communicators over the first ranks of a job, while the others wait for them without deadline. */
#include "tests/comm_cases.h"

#define WAIT_S 3.0 /* long beside the yields that a wait begins with */

/* Every size of group, growing and shrinking; in the end all ranks are still in step. */
static void groups(lh_comm *job)
{
    lh_comm *c = NULL;

    for (int i = 0; i < 2 * job->size; i++) {
        int n = i < job->size ? i + 1 : 2 * job->size - i;
        if (job->rank < n) {
            CHECK_OK(lh_comm_mpi_create_first(&c, n, 30));
            CHECK_EQ(c->size, n);
            CHECK_EQ(c->rank, job->rank);
            run_cases(c, NULL, NULL);
            lh_comm_destroy(c);
        }
        CHECK_OK(lh_comm_agree(job, LH_OK));
    }
    CHECK_STATUS(lh_comm_mpi_create_first(&c, job->size + 1, 30), LH_ERR_INVALID);
    CHECK_STATUS(lh_comm_mpi_create_first(&c, 0, 30), LH_ERR_INVALID);
    if (job->rank > 0)
        CHECK_STATUS(lh_comm_mpi_create_first(&c, job->rank, 30), LH_ERR_INVALID);
}

/* Who waits for rank 0 leaves the cores to others. */
static void idle(lh_comm *job)
{
    const struct timespec pause = {.tv_sec = (time_t)WAIT_S};
    clock_t begin;

    CHECK_OK(lh_comm_agree(job, LH_OK));
    begin = clock();
    if (job->rank == 0)
        (void)nanosleep(&pause, NULL);
    CHECK_OK(lh_comm_agree(job, LH_OK));
    double used = (double)(clock() - begin) / CLOCKS_PER_SEC;
    CHECK_MSG(used < 0.05 * WAIT_S, "%.4f s of a core in a wait of %g s", used, WAIT_S);
}

int main(int argc, char **argv)
{
    lh_comm *job = NULL;

    check_init(argc, argv);
    CHECK_OK(lh_comm_mpi_create(&job, INFINITY));
    if (!job)
        return 1;
    groups(job);
    idle(job);
    lh_comm_destroy(job);
    lh_comm_mpi_finalize();
    return check_done();
}
