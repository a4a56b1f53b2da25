#include "kernels/cpu/cpu.h"

lh_status lh_cpu_mla_prefill(lh_stream *s, const lh_mla_prefill_args *a)
{
    (void)s;
    (void)a;
    return LH_FAIL(LH_ERR_UNSUPPORTED, "mla_prefill");
}

size_t lh_cpu_mla_prefill_work_bytes(int64_t n_rows, int n_heads, int d_nope, int d_rope, int d_v,
                                     int d_latent)
{
    (void)n_rows, (void)n_heads, (void)d_nope, (void)d_rope, (void)d_v, (void)d_latent;
    return 0;
}
