/*
 * Checks of arguments that all backends share: dimensions in range, pointers present, tiles that
 * cover the rows. Each returns LH_OK or LH_ERR_INVALID with the operation, the field and its value
 * in the text.
 */
#ifndef LH_KERNELS_CHECK_ARGS_H
#define LH_KERNELS_CHECK_ARGS_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

lh_status lh_check_embed(const lh_embed_args *a); /* not the ids: they are device memory */
lh_status lh_check_rmsnorm(const lh_rmsnorm_args *a);
lh_status lh_check_linear(const lh_linear_args *a);
lh_status lh_check_short_conv(const lh_short_conv_args *a);
lh_status lh_check_conv_step(const lh_conv_step_args *a);
lh_status lh_check_kda_gate(const lh_kda_gate_args *a);
lh_status lh_check_kda_prepare(const lh_kda_prepare_args *a);
lh_status lh_check_kda_fold(const lh_kda_fold_args *a);
lh_status lh_check_kda_finish(const lh_kda_finish_args *a);
lh_status lh_check_kda_step(const lh_kda_step_args *a);
lh_status lh_check_gated_norm(const lh_gated_norm_args *a);
lh_status lh_check_latent(const lh_latent_args *a);
lh_status lh_check_mla_prefill(const lh_mla_prefill_args *a);
lh_status lh_check_mla_decode(const lh_mla_decode_args *a);
/* What mla_attend and mla_merge ask beyond that, where there are `all` ranges or sections. */
lh_status lh_check_mla_ranges(const lh_mla_decode_args *a, int64_t all);
lh_status lh_check_router(const lh_router_args *a);
lh_status lh_check_ffn(const lh_ffn_args *a);
lh_status lh_check_moe_step(const lh_moe_step_args *a);
lh_status lh_check_gather(const lh_gather_args *a);
lh_status lh_check_combine(const lh_combine_args *a);
lh_status lh_check_sample(const lh_sample_args *a);
lh_status lh_check_plan_send(const lh_plan_send_args *a);
lh_status lh_check_plan_receive(const lh_plan_receive_args *a);
lh_status lh_check_synth_fill(const lh_synth_fill_args *a);

#ifdef __cplusplus
}
#endif
#endif
