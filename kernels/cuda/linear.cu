/*
 * y = x W^T. Few rows and deterministic streams: the products of product.cuh, whose rows have the
 * same bits in any call. Otherwise cuBLAS, all rows at once.
 */
#include "kernels/cuda/product.cuh"

static lh_status by_cublas(lh_stream *s, const lh_linear_args *a)
{
    const float one = 1, zero = 0;

    /* its matrices are columns: y^T = W x^T */
    LH_BLAS_TRY(cublasGemmEx(s->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int)a->n_out, (int)a->n_rows,
                             (int)a->n_in, &one, a->w, CUDA_R_16BF, (int)a->n_in, a->x, CUDA_R_16BF,
                             (int)a->ldx, a->accumulate ? &one : &zero, a->y,
                             a->f32_out ? CUDA_R_32F : CUDA_R_16BF, (int)a->ldy, CUBLAS_COMPUTE_32F,
                             CUBLAS_GEMM_DEFAULT));
    return lh_cuda_launched(s, "linear");
}

lh_status lh_cuda_linear(lh_stream *s, const lh_linear_args *a)
{
    LH_TRY(lh_check_linear(a));
    LH_TRY(lh_cuda_multiple("linear", "n_in", a->n_in, 8));
    LH_TRY(lh_cuda_multiple("linear", "ldx", a->ldx, 8));
    if (a->n_rows == 0)
        return LH_OK;
    LH_TRY(lh_cuda_aligned("linear", "x", a->x));
    LH_TRY(lh_cuda_aligned("linear", "w", a->w));
    if (!s->deterministic && a->n_rows > LH_CUDA_FEW_ROWS)
        return by_cublas(s, a);
    lh_cuda_product p = {
        .op = "linear",
        .y = a->y,
        .ldy = a->ldy,
        .x = a->x,
        .ldx = a->ldx,
        .w = {&a->w},
        .n_parts = 1,
        .n_rows = a->n_rows,
        .n_in = a->n_in,
        .n_out = a->n_out,
        .accumulate = a->accumulate,
        .f32_out = a->f32_out,
        .tiles = &a->tiles,
        .net = NULL,
    };
    return lh_cuda_run_product(s, &p);
}
