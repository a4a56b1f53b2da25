#include "kernels/cpu/cpu.h"

lh_status lh_cpu_gated_norm(lh_stream *s, const lh_gated_norm_args *a)
{
    (void)s;
    (void)a;
    return LH_FAIL(LH_ERR_UNSUPPORTED, "gated_norm");
}
