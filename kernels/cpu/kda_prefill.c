#include "kernels/cpu/cpu.h"

lh_status lh_cpu_kda_prepare(lh_stream *s, const lh_kda_prepare_args *a)
{
    (void)s;
    (void)a;
    return LH_FAIL(LH_ERR_UNSUPPORTED, "kda_prepare");
}

lh_status lh_cpu_kda_fold(lh_stream *s, const lh_kda_fold_args *a)
{
    (void)s;
    (void)a;
    return LH_FAIL(LH_ERR_UNSUPPORTED, "kda_fold");
}

lh_status lh_cpu_kda_finish(lh_stream *s, const lh_kda_finish_args *a)
{
    (void)s;
    (void)a;
    return LH_FAIL(LH_ERR_UNSUPPORTED, "kda_finish");
}

size_t lh_cpu_kda_work_bytes(int64_t n_rows, int n_tiles, int n_heads, int d_k, int d_v)
{
    (void)n_rows, (void)n_tiles, (void)n_heads, (void)d_k, (void)d_v;
    return 0;
}
