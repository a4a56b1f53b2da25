#include "kernels/cuda/rows.cuh"

#define WARPS 4 /* rows of a block */

static __global__ void __launch_bounds__(WARPS * 32)
    embed_kernel(uint4 *out, const int32_t *ids, const uint4 *table, int n_rows, int n)
{
    int row = (int)(blockIdx.x * WARPS + threadIdx.x / 32);

    if (row < n_rows)
        warp_copy_row(out + (int64_t)row * n, table + (int64_t)ids[row] * n, n);
}

lh_status lh_cuda_embed(lh_stream *s, const lh_embed_args *a)
{
    LH_TRY(lh_check_embed(a));
    LH_TRY(lh_cuda_multiple("embed", "d", a->d, 8));
    if (a->n_rows == 0)
        return LH_OK;
    LH_TRY(lh_cuda_aligned("embed", "out", a->out));
    LH_TRY(lh_cuda_aligned("embed", "table", a->table));
    embed_kernel<<<(unsigned)div_up(a->n_rows, WARPS), WARPS * 32, 0, s->stream>>>(
        (uint4 *)a->out, a->ids, (const uint4 *)a->table, (int)a->n_rows, (int)(a->d / 8));
    return lh_cuda_launched(s, "embed");
}
