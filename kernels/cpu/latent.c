#include "kernels/cpu/cpu.h"

lh_status lh_cpu_latent(lh_stream *s, const lh_latent_args *a)
{
    (void)s;
    (void)a;
    return LH_FAIL(LH_ERR_UNSUPPORTED, "latent");
}
