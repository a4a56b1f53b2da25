#include "kernels/cpu/cpu.h"

lh_status lh_cpu_combine(lh_stream *s, const lh_combine_args *a)
{
    (void)s;
    (void)a;
    return LH_FAIL(LH_ERR_UNSUPPORTED, "combine");
}
