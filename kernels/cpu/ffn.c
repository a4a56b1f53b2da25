#include "kernels/cpu/cpu.h"

lh_status lh_cpu_ffn(lh_stream *s, const lh_ffn_args *a)
{
    (void)s;
    (void)a;
    return LH_FAIL(LH_ERR_UNSUPPORTED, "ffn");
}
