#include "kernels/cpu/cpu.h"

lh_status lh_cpu_kda_step(lh_stream *s, const lh_kda_step_args *a)
{
    (void)s;
    (void)a;
    return LH_FAIL(LH_ERR_UNSUPPORTED, "kda_step");
}
