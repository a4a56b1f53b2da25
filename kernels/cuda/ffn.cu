/*
 * Grouped feed-forward networks: two products, the first of both factors at once with SwiGLU where
 * the sums end. work holds the hidden rows [n_rows, d_hidden]; its other half stays unused.
 */
#include "kernels/cuda/product.cuh"

lh_status lh_cuda_ffn(lh_stream *s, const lh_ffn_args *a)
{
    LH_TRY(lh_check_ffn(a));
    LH_TRY(lh_cuda_multiple("ffn", "d", a->d, 8));
    LH_TRY(lh_cuda_multiple("ffn", "d_hidden", a->d_hidden, 8));
    if (a->n_rows == 0)
        return LH_OK;
    LH_TRY(lh_cuda_aligned("ffn", "x", a->x));
    LH_TRY(lh_cuda_aligned("ffn", "y", a->y));
    LH_TRY(lh_cuda_aligned("ffn", "work", a->work));
    for (int i = 0; i < a->tiles.n; i++) {
        LH_TRY(lh_cuda_aligned("ffn", "w_gate", a->w_gate[a->net[i]]));
        LH_TRY(lh_cuda_aligned("ffn", "w_up", a->w_up[a->net[i]]));
        LH_TRY(lh_cuda_aligned("ffn", "w_down", a->w_down[a->net[i]]));
    }
    lh_cuda_product up = {
        .op = "ffn",
        .y = a->work,
        .ldy = a->d_hidden,
        .x = a->x,
        .ldx = a->d,
        .w = {a->w_gate, a->w_up},
        .n_parts = 2,
        .n_rows = a->n_rows,
        .n_in = a->d,
        .n_out = a->d_hidden,
        .accumulate = 0,
        .f32_out = 0,
        .tiles = &a->tiles,
        .net = a->net,
    };
    lh_cuda_product down = {
        .op = "ffn",
        .y = a->y,
        .ldy = a->d,
        .x = a->work,
        .ldx = a->d_hidden,
        .w = {a->w_down},
        .n_parts = 1,
        .n_rows = a->n_rows,
        .n_in = a->d_hidden,
        .n_out = a->d,
        .accumulate = a->accumulate,
        .f32_out = 0,
        .tiles = &a->tiles,
        .net = a->net,
    };
    LH_TRY(lh_cuda_run_product(s, &up));
    return lh_cuda_run_product(s, &down);
}
