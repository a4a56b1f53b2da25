#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vmath.h"

static void gated_norm_rows(const void *args, int64_t begin, int64_t end)
{
    const lh_gated_norm_args *a = args;

    for (int64_t i = begin * a->n_heads; i < end * a->n_heads; i++) {
        float *restrict y = (float *)a->y + i * a->d;
        const float *restrict z = (const float *)a->z + i * a->d;
        lh_cpu_rmsnorm_row(y, (const float *)a->o + i * a->d, a->w, a->d, a->eps);
        for (int j = 0; j < a->d; j++)
            y[j] *= lh_sigmoid(z[j]);
    }
}

lh_status lh_cpu_gated_norm(lh_stream *s, const lh_gated_norm_args *a)
{
    LH_TRY(lh_check_gated_norm(a));
    lh_cpu_rows(s, a->n_rows, (int64_t)a->n_heads * a->d, gated_norm_rows, a);
    return LH_OK;
}
