#include <string.h>

#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"

static void gather_rows(const void *args, int64_t begin, int64_t end)
{
    const lh_gather_args *a = args;

    for (int64_t row = begin; row < end; row++)
        memcpy((float *)a->y + row * a->width, (const float *)a->x + a->index[row] * a->width,
               (size_t)a->width * sizeof(float));
}

lh_status lh_cpu_gather(lh_stream *s, const lh_gather_args *a)
{
    LH_TRY(lh_check_gather(a));
    lh_cpu_rows(s, a->n_rows, a->width, gather_rows, a);
    return LH_OK;
}
