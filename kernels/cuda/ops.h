/*
 * Names of the CUDA backend's operations, for its table. Contracts are in kernels/kernels.h.
 */
#ifndef LH_KERNELS_CUDA_OPS_H
#define LH_KERNELS_CUDA_OPS_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const lh_device_ops lh_device_cuda;
extern const lh_kernels lh_cuda_table;

/* 1 when there is a driver and a GPU that the backend can use. */
int lh_cuda_usable(void);

lh_status lh_cuda_embed(lh_stream *s, const lh_embed_args *a);
lh_status lh_cuda_rmsnorm(lh_stream *s, const lh_rmsnorm_args *a);
lh_status lh_cuda_linear(lh_stream *s, const lh_linear_args *a);
lh_status lh_cuda_short_conv(lh_stream *s, const lh_short_conv_args *a);
lh_status lh_cuda_conv_step(lh_stream *s, const lh_conv_step_args *a);
lh_status lh_cuda_kda_gate(lh_stream *s, const lh_kda_gate_args *a);
lh_status lh_cuda_kda_prepare(lh_stream *s, const lh_kda_prepare_args *a);
lh_status lh_cuda_kda_fold(lh_stream *s, const lh_kda_fold_args *a);
lh_status lh_cuda_kda_finish(lh_stream *s, const lh_kda_finish_args *a);
lh_status lh_cuda_kda_step(lh_stream *s, const lh_kda_step_args *a);
lh_status lh_cuda_gated_norm(lh_stream *s, const lh_gated_norm_args *a);
lh_status lh_cuda_latent(lh_stream *s, const lh_latent_args *a);
lh_status lh_cuda_mla_prefill(lh_stream *s, const lh_mla_prefill_args *a);
lh_status lh_cuda_mla_decode(lh_stream *s, const lh_mla_decode_args *a);
lh_status lh_cuda_mla_attend(lh_stream *s, const lh_mla_decode_args *a);
lh_status lh_cuda_mla_merge(lh_stream *s, const lh_mla_decode_args *a);
lh_status lh_cuda_router(lh_stream *s, const lh_router_args *a);
lh_status lh_cuda_ffn(lh_stream *s, const lh_ffn_args *a);
lh_status lh_cuda_moe_step(lh_stream *s, const lh_moe_step_args *a);
lh_status lh_cuda_gather(lh_stream *s, const lh_gather_args *a);
lh_status lh_cuda_combine(lh_stream *s, const lh_combine_args *a);
lh_status lh_cuda_sample(lh_stream *s, const lh_sample_args *a);
lh_status lh_cuda_plan_send(lh_stream *s, const lh_plan_send_args *a);
lh_status lh_cuda_plan_receive(lh_stream *s, const lh_plan_receive_args *a);
lh_status lh_cuda_synth_fill(lh_stream *s, const lh_synth_fill_args *a);

size_t lh_cuda_kda_work_bytes(int64_t n_rows, int n_tiles, int n_heads, int d_k, int d_v);
size_t lh_cuda_mla_prefill_work_bytes(int64_t n_rows, int n_heads, int d_nope, int d_rope, int d_v,
                                      int d_latent);
size_t lh_cuda_mla_decode_work_bytes(int64_t n_seq, int64_t n_keys, int n_heads, int d_latent,
                                     int d_rope);
size_t lh_cuda_sample_work_bytes(int64_t n_rows, int64_t n_vocab);
size_t lh_cuda_plan_send_work_bytes(int64_t n_rows, int size);
size_t lh_cuda_plan_receive_work_bytes(int64_t n_pairs, int n_nets);
size_t lh_cuda_stream_bytes(int n_threads);

#ifdef __cplusplus
}
#endif
#endif
