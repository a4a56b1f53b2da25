#include "kernels/cuda/rows.cuh"

#define WARPS 4 /* rows of a block */

static __global__ void __launch_bounds__(WARPS * 32)
    gather_kernel(uint4 *y, const uint4 *x, const int32_t *index, int n_rows, int n)
{
    int row = (int)(blockIdx.x * WARPS + threadIdx.x / 32);

    if (row < n_rows)
        warp_copy_row(y + (int64_t)row * n, x + (int64_t)index[row] * n, n);
}

lh_status lh_cuda_gather(lh_stream *s, const lh_gather_args *a)
{
    LH_TRY(lh_check_gather(a));
    LH_TRY(lh_cuda_multiple("gather", "width", a->width, 8));
    if (a->n_rows == 0)
        return LH_OK;
    LH_TRY(lh_cuda_aligned("gather", "y", a->y));
    LH_TRY(lh_cuda_aligned("gather", "x", a->x));
    gather_kernel<<<(unsigned)div_up(a->n_rows, WARPS), WARPS * 32, 0, s->stream>>>(
        (uint4 *)a->y, (const uint4 *)a->x, a->index, (int)a->n_rows, (int)(a->width / 8));
    return lh_cuda_launched(s, "gather");
}
