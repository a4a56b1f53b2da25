#include <math.h>
#include <string.h>

#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"

void lh_cpu_rmsnorm_row(float *y, const float *x, const lh_bf16 *w, int64_t n, float eps)
{
    float r = 1.0f / sqrtf(lh_cpu_dot(x, x, n) / (float)n + eps);

    /* in place: with y and x in one loop the compiler would have to ask whether they overlap */
    if (y != x)
        memcpy(y, x, (size_t)n * sizeof *y);
    for (int64_t i = 0; i < n; i++)
        y[i] = y[i] * r * lh_bf16_to_f32(w[i]);
}

static void rmsnorm_rows(const void *args, int64_t begin, int64_t end)
{
    const lh_rmsnorm_args *a = args;

    for (int64_t row = begin; row < end; row++)
        lh_cpu_rmsnorm_row((float *)a->y + row * a->d, (const float *)a->x + row * a->d, a->w, a->d,
                           a->eps);
}

lh_status lh_cpu_rmsnorm(lh_stream *s, const lh_rmsnorm_args *a)
{
    LH_TRY(lh_check_rmsnorm(a));
    lh_cpu_rows(s, a->n_rows, a->d, rmsnorm_rows, a);
    return LH_OK;
}
