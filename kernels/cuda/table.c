#include "kernels/cuda/ops.h"

/* Beside the CPU's in kernels.h: NULL in a build without CUDA is decided at link time by LH_WITH_CUDA. */
const lh_kernels lh_kernels_cuda = {
    .name = "cuda",
    .act_bytes = 2,
    .device = &lh_device_cuda,
    .embed = lh_cuda_embed,
    .rmsnorm = lh_cuda_rmsnorm,
    .linear = lh_cuda_linear,
    .short_conv = lh_cuda_short_conv,
    .kda_gate = lh_cuda_kda_gate,
    .kda_prepare = lh_cuda_kda_prepare,
    .kda_fold = lh_cuda_kda_fold,
    .kda_finish = lh_cuda_kda_finish,
    .kda_step = lh_cuda_kda_step,
    .gated_norm = lh_cuda_gated_norm,
    .latent = lh_cuda_latent,
    .mla_prefill = lh_cuda_mla_prefill,
    .mla_decode = lh_cuda_mla_decode,
    .router = lh_cuda_router,
    .ffn = lh_cuda_ffn,
    .gather = lh_cuda_gather,
    .combine = lh_cuda_combine,
    .kda_work_bytes = lh_cuda_kda_work_bytes,
    .mla_prefill_work_bytes = lh_cuda_mla_prefill_work_bytes,
    .mla_decode_work_bytes = lh_cuda_mla_decode_work_bytes,
    .stream_bytes = lh_cuda_stream_bytes,
};
