#include <string.h>

#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vmath.h"

/* One call of a feed-forward: rows of x, ldx apart, through the networks of their tiles. */
typedef struct pass {
    float *y, *work; /* [n_rows, d], [n_rows, 2, d_hidden] */
    const float *x;
    int64_t ldx;
    const lh_bf16 *const *w_gate, *const *w_up, *const *w_down;
    int64_t n_rows, d, d_hidden;
    int accumulate;
    const lh_tiles *tiles;
    const int32_t *net;
} pass;

/* work[row] = [gate | up]: gate <- silu(gate) * up. */
static void activate(const void *args, int64_t begin, int64_t end)
{
    const pass *p = args;

    for (int64_t row = begin; row < end; row++) {
        float *restrict gate = p->work + row * 2 * p->d_hidden;
        const float *restrict up = gate + p->d_hidden;
        for (int64_t i = 0; i < p->d_hidden; i++)
            gate[i] = lh_silu(gate[i]) * up[i];
    }
}

static lh_status check_size(const char *op, int64_t d, int64_t d_hidden)
{
    LH_REQUIRE(d <= LH_CPU_MAX_IN && d_hidden <= LH_CPU_MAX_IN, LH_ERR_UNSUPPORTED,
               "%s of %lld by %lld: the cpu backend takes at most %d", op, (long long)d,
               (long long)d_hidden, LH_CPU_MAX_IN);
    return LH_OK;
}

static lh_status run(lh_stream *s, const pass *p)
{
    lh_cpu_product up = {
        .y = p->work,
        .ldy = 2 * p->d_hidden,
        .x = p->x,
        .ldx = p->ldx,
        .w = {p->w_gate, p->w_up},
        .n_parts = 2,
        .n_in = p->d,
        .n_out = p->d_hidden,
        .tiles = p->tiles,
        .net = p->net,
    };
    lh_cpu_product down = {
        .y = p->y,
        .ldy = p->d,
        .x = p->work,
        .ldx = 2 * p->d_hidden,
        .w = {p->w_down},
        .n_parts = 1,
        .n_in = p->d_hidden,
        .n_out = p->d,
        .accumulate = p->accumulate,
        .tiles = p->tiles,
        .net = p->net,
    };
    LH_TRY(lh_cpu_run_product(s, &up));
    lh_cpu_rows(s, p->n_rows, p->d_hidden, activate, p);
    return lh_cpu_run_product(s, &down);
}

lh_status lh_cpu_ffn(lh_stream *s, const lh_ffn_args *a)
{
    LH_TRY(lh_check_ffn(a));
    LH_TRY(check_size("ffn", a->d, a->d_hidden));
    return run(s, &(pass){.y = a->y,
                          .work = a->work,
                          .x = a->x,
                          .ldx = a->d,
                          .w_gate = a->w_gate,
                          .w_up = a->w_up,
                          .w_down = a->w_down,
                          .n_rows = a->n_rows,
                          .d = a->d,
                          .d_hidden = a->d_hidden,
                          .accumulate = a->accumulate,
                          .tiles = &a->tiles,
                          .net = a->net});
}

/* Experts rise in a token's row, so those of this rank are neighbours; all read the same row of x.
 */
lh_status lh_cpu_moe_step(lh_stream *s, const lh_moe_step_args *a)
{
    int64_t start[LH_MAX_TOP_K + 1];
    int32_t net[LH_MAX_TOP_K];

    LH_TRY(lh_check_moe_step(a));
    LH_TRY(check_size("moe_step", a->d, a->d_hidden));
    for (int64_t t = 0; t < a->n_seq; t++) {
        float *y = (float *)a->y + t * a->top_k * a->d;
        int first = 0, n = 0;
        memset(y, 0, (size_t)(a->top_k * a->d) * sizeof *y);
        for (int j = 0; j < a->top_k; j++) {
            int32_t local = a->expert[t * a->top_k + j] - a->first_expert;
            first += local < 0;
            if (local < 0 || local >= a->n_nets)
                continue;
            start[n] = n;
            net[n++] = local;
        }
        start[n] = n;
        if (n > 0)
            LH_TRY(run(s, &(pass){.y = y + first * a->d,
                                  .work = a->work,
                                  .x = (const float *)a->x + t * a->d,
                                  .w_gate = a->w_gate,
                                  .w_up = a->w_up,
                                  .w_down = a->w_down,
                                  .n_rows = n,
                                  .d = a->d,
                                  .d_hidden = a->d_hidden,
                                  .tiles = &(lh_tiles){n, start},
                                  .net = net}));
    }
    return LH_OK;
}
