#include "kernels/cpu/cpu.h"

lh_status lh_cpu_embed(lh_stream *s, const lh_embed_args *a)
{
    (void)s;
    (void)a;
    return LH_FAIL(LH_ERR_UNSUPPORTED, "embed");
}
