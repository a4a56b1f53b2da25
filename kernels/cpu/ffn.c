#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vmath.h"

/* work[row] = [gate | up]: gate <- silu(gate) * up. */
static void activate(const void *args, int64_t begin, int64_t end)
{
    const lh_ffn_args *a = args;

    for (int64_t row = begin; row < end; row++) {
        float *restrict gate = (float *)a->work + row * 2 * a->d_hidden;
        const float *restrict up = gate + a->d_hidden;
        for (int64_t i = 0; i < a->d_hidden; i++)
            gate[i] = lh_silu(gate[i]) * up[i];
    }
}

lh_status lh_cpu_ffn(lh_stream *s, const lh_ffn_args *a)
{
    LH_TRY(lh_check_ffn(a));
    LH_REQUIRE(a->d <= LH_CPU_MAX_IN && a->d_hidden <= LH_CPU_MAX_IN, LH_ERR_UNSUPPORTED,
               "ffn of %lld by %lld: the cpu backend takes at most %d", (long long)a->d,
               (long long)a->d_hidden, LH_CPU_MAX_IN);
    lh_cpu_product up = {
        .y = a->work,
        .ldy = 2 * a->d_hidden,
        .x = a->x,
        .ldx = a->d,
        .w = {a->w_gate, a->w_up},
        .n_parts = 2,
        .n_in = a->d,
        .n_out = a->d_hidden,
        .tiles = &a->tiles,
        .net = a->net,
    };
    lh_cpu_product down = {
        .y = a->y,
        .ldy = a->d,
        .x = a->work,
        .ldx = 2 * a->d_hidden,
        .w = {a->w_down},
        .n_parts = 1,
        .n_in = a->d_hidden,
        .n_out = a->d,
        .accumulate = a->accumulate,
        .tiles = &a->tiles,
        .net = a->net,
    };
    LH_TRY(lh_cpu_run_product(s, &up));
    lh_cpu_rows(s, a->n_rows, a->d_hidden, activate, a);
    return lh_cpu_run_product(s, &down);
}
