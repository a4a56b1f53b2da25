#include "bench/ranks.h"

#include <math.h>
#include <stdio.h>

#include "base/log.h"
#include "launch/launch.h"

#define TIMEOUT_S 60

lh_status ranks_open(ranks *r, const lh_kernels *k, int n_threads)
{
    lh_rank_info info = {0};
    int index = 0;
    lh_status st = lh_rank_info_read(&info);

    *r = (ranks){.k = k, .rank = info.rank};
    LH_TRY(st);
    LH_REQUIRE(k && info.size <= RANKS_MAX, LH_ERR_UNAVAILABLE,
               "no such backend here, or too many ranks");
    LH_TRY(info.size > 1 ? lh_comm_mpi_create(&r->boot, TIMEOUT_S) : lh_comm_self_create(&r->boot));
    r->comm = r->boot;
    if (!k->device->reads_host)
        LH_TRY(lh_choose_gpu(&index, &info, k->device->count()));
    LH_TRY(k->device->open(&r->s, index, n_threads, k->device->reads_host));
    if (info.size == 1 || k->device->reads_host)
        return LH_OK;
    return lh_comm_nccl_create(&r->comm, r->boot, r->s, TIMEOUT_S);
}

lh_status ranks_time(ranks *r, lh_status (*work)(void *data), void *data, double *seconds)
{
    double mine, all[RANKS_MAX];
    char begin = 0, began[RANKS_MAX];

    LH_TRY(lh_comm_wait(r->comm, r->s));
    LH_TRY(lh_comm_allgather(r->boot, &begin, 1, began, NULL));
    double since = lh_log_seconds();
    LH_TRY(work(data));
    LH_TRY(lh_comm_wait(r->comm, r->s));
    mine = lh_log_seconds() - since;
    LH_TRY(lh_comm_allgather(r->boot, &mine, sizeof mine, all, NULL));
    *seconds = 0;
    for (int i = 0; i < r->comm->size; i++)
        *seconds = fmax(*seconds, all[i]);
    return LH_OK;
}

int ranks_close(ranks *r, const char *program, lh_status st)
{
    if (st != LH_OK)
        (void)fprintf(stderr, "%s: rank %d: %s\n", program, r->rank, lh_last_error());
    if (st != LH_OK && r->comm)
        lh_comm_abort(r->comm, lh_exit_code(st));
    if (r->comm != r->boot)
        lh_comm_destroy(r->comm);
    lh_comm_destroy(r->boot);
    if (r->s)
        r->k->device->close(r->s);
    lh_comm_mpi_finalize();
    return lh_exit_code(st);
}
