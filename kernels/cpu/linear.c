#include "kernels/cpu/cpu.h"

lh_status lh_cpu_linear(lh_stream *s, const lh_linear_args *a)
{
    (void)s;
    (void)a;
    return LH_FAIL(LH_ERR_UNSUPPORTED, "linear");
}
