#include "kernels/cpu/cpu.h"

lh_status lh_cpu_mla_decode(lh_stream *s, const lh_mla_decode_args *a)
{
    (void)s;
    (void)a;
    return LH_FAIL(LH_ERR_UNSUPPORTED, "mla_decode");
}

size_t lh_cpu_mla_decode_work_bytes(int64_t n_seq, int64_t n_keys, int n_heads, int d_latent,
                                    int d_rope)
{
    (void)n_seq, (void)n_keys, (void)n_heads, (void)d_latent, (void)d_rope;
    return 0;
}
