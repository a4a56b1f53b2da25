/*
 * Hopper's own instructions as MLA uses them: barriers in shared memory, warpgroup products. Only
 * in the code for sm_90a; elsewhere the kernels that need them are empty and never launched.
 */
#ifndef LH_KERNELS_CUDA_MLA_SM90_CUH
#define LH_KERNELS_CUDA_MLA_SM90_CUH

#include "kernels/cuda/mla.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAVE_SM90 1
#else
#define HAVE_SM90 0
#endif

#if HAVE_SM90

static __device__ __forceinline__ void barrier_init(uint64_t *b, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_at(b)), "r"(count)
                 : "memory");
}

static __device__ __forceinline__ void barrier_expect(uint64_t *b, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_at(b)),
                 "r"(bytes)
                 : "memory");
}

static __device__ __forceinline__ void barrier_arrive(uint64_t *b)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_at(b)) : "memory");
}

static __device__ __forceinline__ void barrier_wait(uint64_t *b, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra.uni end;\n"
                 "bra.uni again;\n"
                 "end:\n"
                 "}" ::"r"(shared_at(b)),
                 "r"(parity)
                 : "memory");
}

/* Where an operand of a product lies: rows of 128 bytes, eight of them 1,024 bytes, swizzled. For
 * an operand whose rows are the index of the sum, `next` is the distance of the next 64 columns. */
static __device__ __forceinline__ uint64_t operand(uint32_t at, uint32_t next)
{
    return (uint64_t)((at & 0x3ffff) >> 4) | (uint64_t)(next >> 4) << 16 |
           (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

static __device__ __forceinline__ void product_begin(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void product_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int n> static __device__ __forceinline__ void product_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
}

/* What this thread wrote to shared memory is seen by products and bulk copies after a barrier. */
static __device__ __forceinline__ void show_to_products(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* Barrier of some warps of the block, by number (1 to 15) and count of threads. */
static __device__ __forceinline__ void group_sync(int number, int n_threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(n_threads) : "memory");
}

#endif
#endif
