/*
 * Inside the CUDA backend: its stream, launching, staging of small host arrays, reductions.
 *
 * .cu files are C with kernels. An operation's host wrapper checks its arguments (check_args.h),
 * returns early on empty work, chooses the launch shape in plain sight, launches on the stream and
 * returns lh_cuda_launched. Nothing allocates, nothing synchronizes.
 */
#ifndef LH_KERNELS_CUDA_CUDA_CUH
#define LH_KERNELS_CUDA_CUDA_CUH

#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/check_args.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/work.h"
#include "kernels/kernels.h"

typedef __nv_bfloat16 bf16;

#define LH_CUDA_LEAST_ARCH 80 /* bf16 on the tensor cores, cp.async */

/* A thread has streams of one GPU only: launches go to the device that open made current. */
#define LH_CUDA_LOAD_BYTES ((size_t)32 << 20)

struct lh_stream {
    const lh_device_ops *ops; /* first: lh_stream_device */
    int device, n_sms, deterministic, recording;
    int arch;              /* what the kernels that run here are compiled for: 80 (portable), 90
                              (Hopper) */
    int most_shared_bytes; /* of a block: 227 KiB on Hopper, 99 KiB on small GPUs */
    cudaStream_t stream;
    cublasHandle_t blas;
    void *blas_work;
    char *stage_host, *stage_device; /* rings of LH_CUDA_STAGE_BYTES */
    size_t stage_used;
    cudaEvent_t stage_free[2]; /* the halves of the ring: recorded when the last use was queued */
    char *load_host[2];        /* pinned, LH_CUDA_LOAD_BYTES each: what is under way from a map */
    cudaEvent_t load_free[2];
    cudaEvent_t marks[LH_MARKS]; /* made at first use */
};

/* LH_OK, or LH_ERR_CUDA with the call's name and CUDA's text. */
lh_status lh_cuda_status(cudaError_t e, const char *call);
#define LH_CUDA_TRY(call) LH_TRY(lh_cuda_status((call), #call))
#define LH_CUDA_TRY_OUT(call) LH_TRY_OUT(lh_cuda_status((call), #call))

/* The same for cuBLAS. */
lh_status lh_cuda_blas_status(cublasStatus_t e, const char *call);
#define LH_BLAS_TRY(call) LH_TRY(lh_cuda_blas_status((call), #call))

/* After a launch: turns its error into a status that names the operation. A fault while the kernel
 * runs shows at sync, or here with CUDA_LAUNCH_BLOCKING=1 in the environment. */
lh_status lh_cuda_launched(lh_stream *s, const char *op);

/*
 * A small host array on the device: copied into the stream's pinned ring and from there, in order
 * of the stream; *out (a multiple of 256) is valid for what is queued before the ring comes round
 * (8 MiB later at the least), host may change at once. Waits only when the GPU is a ring behind.
 * LH_ERR_UNSUPPORTED: more than an eighth of the ring.
 */
lh_status lh_cuda_stage(lh_stream *s, const void **out, const void *host, size_t bytes);

/* What this backend lacks: LH_ERR_UNSUPPORTED unless value is a multiple of `of`, or at most
 * `most`; LH_ERR_INVALID for a pointer that 16-byte accesses cannot take. */
lh_status lh_cuda_multiple(const char *op, const char *field, int64_t value, int64_t of);
lh_status lh_cuda_most(const char *op, const char *field, int64_t value, int64_t most);
lh_status lh_cuda_aligned(const char *op, const char *field, const void *p);

/* Lets a kernel use `bytes` of dynamic shared memory (more than 48 KiB must be asked for). */
lh_status lh_cuda_shared(const void *kernel, size_t bytes);

static __device__ __forceinline__ float warp_sum(float x)
{
    for (int m = 16; m > 0; m >>= 1)
        x += __shfl_xor_sync(0xffffffffu, x, m);
    return x;
}

static __device__ __forceinline__ float warp_max(float x)
{
    for (int m = 16; m > 0; m >>= 1)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, m));
    return x;
}

/* Sum over the block (a multiple of 32 threads, at most 1,024), the same on every thread. Two
 * barriers. */
static __device__ __forceinline__ float block_sum(float x)
{
    __shared__ float part[32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    x = warp_sum(x);
    __syncthreads(); /* part may still be read by the call before */
    if (lane == 0)
        part[warp] = x;
    __syncthreads();
    return warp_sum(lane < (int)(blockDim.x + 31) / 32 ? part[lane] : 0.0f);
}

static __device__ __forceinline__ float sigmoid_f(float x)
{
    return 1.0f / (1.0f + __expf(-x));
}

static __device__ __forceinline__ float silu_f(float x)
{
    return __fdividef(x, 1.0f + __expf(-x));
}

/* Eight bf16 in 16 bytes: what one access moves. */
static __device__ __forceinline__ void unpack8(float out[8], uint4 v)
{
    const unsigned w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = __uint_as_float(w[i] << 16);
        out[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
    }
}

static __device__ __forceinline__ unsigned pack2(float low, float high)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *(const unsigned *)&v;
}

static __device__ __forceinline__ uint4 pack8(const float x[8])
{
    return make_uint4(pack2(x[0], x[1]), pack2(x[2], x[3]), pack2(x[4], x[5]), pack2(x[6], x[7]));
}

/* As a number of the same order; 0 of no number but a NaN. */
static __device__ __forceinline__ unsigned ordered(float x)
{
    unsigned bits = __float_as_uint(x);

    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __host__ __device__ __forceinline__ int64_t div_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

#endif
