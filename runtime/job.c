#include <math.h>
#include <stdlib.h>

#include "parallel/comm.h"
#include "runtime/longhaul.h"

struct lh_job {
    lh_comm *comm;
};

lh_status lh_job_open(lh_job **out, int use_mpi)
{
    lh_status st = LH_OK;
    lh_job *j = calloc(1, sizeof *j);

    LH_REQUIRE(j, LH_ERR_NOMEM, "the job's record: out of memory");
    LH_TRY_OUT(use_mpi ? lh_comm_mpi_create(&j->comm, INFINITY) : lh_comm_self_create(&j->comm));
    *out = j;
    j = NULL;
out:
    free(j);
    return st;
}

void lh_job_close(lh_job *j)
{
    if (!j)
        return;
    lh_comm_destroy(j->comm);
    free(j);
}

void lh_job_abort(lh_job *j, lh_status why)
{
    lh_comm_abort(j->comm, lh_exit_code(why));
}

lh_status lh_job_agree(lh_job *j, lh_status mine)
{
    return lh_comm_agree(j->comm, mine);
}

lh_status lh_job_bcast(lh_job *j, void *buf, size_t bytes)
{
    return lh_comm_bcast(j->comm, buf, bytes, 0, NULL);
}

lh_status lh_job_gather(lh_job *j, const void *mine, size_t bytes, void *all)
{
    return lh_comm_allgather(j->comm, mine, bytes, all, NULL);
}
