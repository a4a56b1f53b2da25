/*
 * The communicator over NCCL: every operation in device memory, one rank to a GPU. Skipped with
 * fewer GPUs than ranks of this node; one rank on one GPU is fine.
 */
#include "kernels/cuda/ops.h"
#include "kernels/cuda/stream.h"
#include "launch/launch.h"
#include "tests/comm_cases.h"

static void check_twice(lh_comm *boot, lh_stream *s)
{
    for (int turn = 0; turn < 2; turn++) {
        lh_comm *c = NULL;
        CHECK_OK(lh_comm_nccl_create(&c, boot, s, 30));
        if (!c)
            return;
        CHECK_STR(c->ops->name, "nccl");
        lh_comm_at(c, "dispatch", 3);
        run_cases(c, &lh_device_cuda, s);
        lh_comm_destroy(c);
    }
}

/* One rank over `self`, without MPI's. */
static void check_self(lh_stream *s)
{
    lh_comm *boot = NULL;

    CHECK_OK(lh_comm_self_create(&boot));
    check_twice(boot, s);
    lh_comm_destroy(boot);
}

int main(int argc, char **argv)
{
    lh_comm *boot = NULL;
    lh_stream *s = NULL;
    lh_rank_info rank;

    check_init(argc, argv);
    CHECK_OK(lh_rank_info_read(&rank));
    if (lh_cuda_gpu_count() < rank.local_size)
        SKIP("fewer GPUs than ranks");
    CHECK_OK(lh_comm_mpi_create(&boot, 60));
    if (!boot)
        return 1;
    lh_status st = lh_device_cuda.open(&s, rank.local_rank, 1, 1);
    CHECK_OK(lh_comm_agree(boot, st));
    if (s && check_failures == 0) {
        check_twice(boot, s);
        if (boot->size == 1)
            check_self(s);
    }
    lh_device_cuda.close(s);
    lh_comm_destroy(boot);
    lh_comm_mpi_finalize();
    return check_done();
}
