#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"

lh_status lh_cpu_linear(lh_stream *s, const lh_linear_args *a)
{
    LH_TRY(lh_check_linear(a));
    return lh_cpu_run_product(s, &(lh_cpu_product){
                                     .y = a->y,
                                     .ldy = a->ldy,
                                     .x = a->x,
                                     .ldx = a->ldx,
                                     .w = {&a->w},
                                     .n_parts = 1,
                                     .n_in = a->n_in,
                                     .n_out = a->n_out,
                                     .accumulate = a->accumulate,
                                     .tiles = &a->tiles,
                                 });
}
