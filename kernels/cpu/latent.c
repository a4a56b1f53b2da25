#include <string.h>

#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"

static void latent_rows(const void *args, int64_t begin, int64_t end)
{
    const lh_latent_args *a = args;
    int64_t width = (int64_t)a->d_latent + a->d_rope;

    for (int64_t row = begin; row < end; row++) {
        float *to = a->caches ? a->caches[row] : a->y;
        float *y = to + (a->row ? a->row[row] : row) * width;
        const float *x = (const float *)a->x + row * width;
        lh_cpu_rmsnorm_row(y, x, a->w, a->d_latent, a->eps);
        memmove(y + a->d_latent, x + a->d_latent, (size_t)a->d_rope * sizeof *y);
    }
}

lh_status lh_cpu_latent(lh_stream *s, const lh_latent_args *a)
{
    LH_TRY(lh_check_latent(a));
    lh_cpu_rows(s, a->n_rows, (int64_t)a->d_latent + a->d_rope, latent_rows, a);
    return LH_OK;
}
