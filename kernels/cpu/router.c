#include "kernels/cpu/cpu.h"

lh_status lh_cpu_router(lh_stream *s, const lh_router_args *a)
{
    (void)s;
    (void)a;
    return LH_FAIL(LH_ERR_UNSUPPORTED, "router");
}
