#include "kernels/cpu/cpu.h"

lh_status lh_cpu_short_conv(lh_stream *s, const lh_short_conv_args *a)
{
    (void)s;
    (void)a;
    return LH_FAIL(LH_ERR_UNSUPPORTED, "short_conv");
}
