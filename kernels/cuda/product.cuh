/*
 * Inside the CUDA backend: products of rows with the weights of one or several networks, under
 * linear and ffn.
 *
 *     one part:  y = x w0^T, or y += x w0^T           two parts:  y = silu(x w0^T) * (x w1^T)
 *
 * Two kernels, each with one fixed order of sums for an output, whatever the rows beside it and the
 * outputs beside it: the bits of a row depend on the kernel alone, and a slice of the outputs has
 * the bits of the whole. product_rows.cu streams the weights past few rows; product_sm90.cu is the
 * product of matrices (Hopper only; elsewhere the first does all). Which one a row goes to depends
 * on its tile when the stream is deterministic, and on the rows of its network otherwise; rows of a
 * decoding step, tiles of one row, always go to the first.
 */
#ifndef LH_KERNELS_CUDA_PRODUCT_CUH
#define LH_KERNELS_CUDA_PRODUCT_CUH

#include "kernels/cuda/cuda.cuh"

#define LH_CUDA_FEW_ROWS 16 /* rows of a network that go to product_rows.cu */

typedef struct lh_cuda_product {
    const char *op; /* for messages */
    void *y;        /* [n_rows, n_out] bf16, or f32 with f32_out */
    int64_t ldy;
    const void *x; /* [n_rows, n_in] bf16 */
    int64_t ldx;
    const lh_bf16 *const *w[2]; /* host [n_nets] pointers to [n_out, n_in], of each part */
    int n_parts;
    int64_t n_rows, n_in, n_out;
    int accumulate, f32_out; /* with one part */
    const lh_tiles *tiles;
    const int32_t *net; /* host [n_tiles], or NULL: all of network 0 */
} lh_cuda_product;

/* Neighbouring rows of one network that go to the same kernel; the walk starts after {0}. */
typedef struct lh_cuda_range {
    int tile; /* the first tile after the range */
    int64_t row, n_rows;
    int net, few;
} lh_cuda_range;

/* Moves to the next range that is not empty; 0 when there is none. */
int lh_cuda_next_range(const lh_stream *s, const lh_cuda_product *p, lh_cuda_range *r);

lh_status lh_cuda_run_product(lh_stream *s, const lh_cuda_product *p);

/* The ranges of few rows, and the others. */
lh_status lh_cuda_product_rows(lh_stream *s, const lh_cuda_product *p);
lh_status lh_cuda_product_sm90(lh_stream *s, const lh_cuda_product *p);

/* Of the two parts of an output. */
static __device__ __forceinline__ float swiglu(float gate, float up)
{
    return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

#endif
