#include "kernels/cuda/ops.h"
#include "kernels/cuda/work.h"
#include "kernels/kernels.h"

const lh_kernels *lh_kernels_cuda(void)
{
#ifdef LH_WITH_CUDA
    return lh_cuda_usable() ? &lh_cuda_table : NULL;
#else
    return NULL;
#endif
}

const lh_kernels *lh_kernels_cuda_sizes(void)
{
#ifdef LH_WITH_CUDA
    return &lh_cuda_table;
#else
    static const lh_device_ops device = {.name = "cuda"};
    static const lh_kernels sizes = {.name = "cuda",
                                     .act_bytes = sizeof(lh_bf16),
                                     .mla_sections = LH_CUDA_MLA_SECTIONS,
                                     .device = &device,
                                     .kda_work_bytes = lh_cuda_kda_work_bytes,
                                     .mla_prefill_work_bytes = lh_cuda_mla_prefill_work_bytes,
                                     .mla_decode_work_bytes = lh_cuda_mla_decode_work_bytes,
                                     .sample_work_bytes = lh_cuda_sample_work_bytes,
                                     .plan_send_work_bytes = lh_cuda_plan_send_work_bytes,
                                     .plan_receive_work_bytes = lh_cuda_plan_receive_work_bytes,
                                     .stream_bytes = lh_cuda_stream_bytes};
    return &sizes;
#endif
}
