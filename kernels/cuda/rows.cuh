/*
 * Rows of bf16 that one warp copies: embed and gather.
 */
#ifndef LH_KERNELS_CUDA_ROWS_CUH
#define LH_KERNELS_CUDA_ROWS_CUH

#include "kernels/cuda/cuda.cuh"

/* to[0 .. n) = from[0 .. n), by one warp, with up to 8 accesses of each lane in flight. */
static __device__ __forceinline__ void warp_copy_row(uint4 *to, const uint4 *from, int n)
{
    for (int begin = threadIdx.x % 32; begin < n; begin += 32 * 8) {
        uint4 v[8];
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (begin + 32 * i < n)
                v[i] = __ldg(from + begin + 32 * i);
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (begin + 32 * i < n)
                to[begin + 32 * i] = v[i];
    }
}

#endif
