/*
 * Rows of one head, 8 to 256 elements: a row belongs to a group of 1 to 32 neighbouring lanes of a
 * warp, the smallest power of two that takes 8 elements a lane. What lies past the row's end counts
 * as 0.
 */
#ifndef LH_KERNELS_CUDA_GROUP_CUH
#define LH_KERNELS_CUDA_GROUP_CUH

#include "kernels/cuda/cuda.cuh"

#define LH_GROUP_MOST 256 /* elements of a row */

template <int LANES> static __device__ __forceinline__ float group_sum(float x)
{
#pragma unroll
    for (int m = LANES / 2; m > 0; m >>= 1)
        x += __shfl_xor_sync(0xffffffffu, x, m);
    return x;
}

static __device__ __forceinline__ float sum_of_squares(const float x[8])
{
    float sum = 0;
#pragma unroll
    for (int j = 0; j < 8; j++)
        sum = fmaf(x[j], x[j], sum);
    return sum;
}

/* Calls `launch<LANES>(...)` with the lanes that rows of d elements take. */
#define LH_GROUP_LAUNCH(d, launch, ...)                                                            \
    do {                                                                                           \
        if ((d) <= 8)                                                                              \
            launch<1>(__VA_ARGS__);                                                                \
        else if ((d) <= 16)                                                                        \
            launch<2>(__VA_ARGS__);                                                                \
        else if ((d) <= 32)                                                                        \
            launch<4>(__VA_ARGS__);                                                                \
        else if ((d) <= 64)                                                                        \
            launch<8>(__VA_ARGS__);                                                                \
        else if ((d) <= 128)                                                                       \
            launch<16>(__VA_ARGS__);                                                               \
        else                                                                                       \
            launch<32>(__VA_ARGS__);                                                               \
    } while (0)

#endif
