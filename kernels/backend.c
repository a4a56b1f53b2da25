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
