#include "kernels/cpu/cpu.h"

lh_status lh_cpu_rmsnorm(lh_stream *s, const lh_rmsnorm_args *a)
{
    (void)s;
    (void)a;
    return LH_FAIL(LH_ERR_UNSUPPORTED, "rmsnorm");
}
