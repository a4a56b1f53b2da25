#include "kernels/kernels.h"

#ifdef LH_WITH_CUDA
#include "kernels/cuda/ops.h"
#endif

const lh_kernels *lh_kernels_cuda(void)
{
#ifdef LH_WITH_CUDA
    return lh_cuda_usable() ? &lh_cuda_table : NULL;
#else
    return NULL;
#endif
}

#ifndef LH_WITH_CUDA
static const lh_device_ops planned_device = {.name = "cuda"};
#endif

const lh_kernels *lh_kernels_cuda_sizes(void)
{
#ifdef LH_WITH_CUDA
    return &lh_cuda_table;
#else
    static lh_kernels planned;

    planned = lh_kernels_cpu;
    planned.name = "cuda";
    planned.act_bytes = sizeof(lh_bf16);
    planned.device = &planned_device;
    return &planned;
#endif
}
