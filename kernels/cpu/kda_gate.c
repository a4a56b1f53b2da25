#include "kernels/cpu/cpu.h"

lh_status lh_cpu_kda_gate(lh_stream *s, const lh_kda_gate_args *a)
{
    (void)s;
    (void)a;
    return LH_FAIL(LH_ERR_UNSUPPORTED, "kda_gate");
}
