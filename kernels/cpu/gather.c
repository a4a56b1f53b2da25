#include "kernels/cpu/cpu.h"

lh_status lh_cpu_gather(lh_stream *s, const lh_gather_args *a)
{
    (void)s;
    (void)a;
    return LH_FAIL(LH_ERR_UNSUPPORTED, "gather");
}
