#include <string.h>

#include "base/mem.h"
#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vmath.h"

/* An item: some rows of a block of channels, whose weights it turns to one row for each tap. */
#define CHANNELS 512
#define ROWS 64

/* Row t of the input, which starts taps - 1 rows earlier in `halo`. */
static const float *input_row(const lh_short_conv_args *a, int64_t t)
{
    return t < 0 ? (const float *)a->halo + (t + a->taps - 1) * a->ldx
                 : (const float *)a->x + t * a->ldx;
}

static void conv_item(void *ctx, int64_t item, float *scratch)
{
    const lh_short_conv_args *a = ctx;
    int64_t n_blocks = (a->n_channels + CHANNELS - 1) / CHANNELS;
    int64_t channel = item % n_blocks * CHANNELS;
    int n = (int)lh_min64(CHANNELS, a->n_channels - channel);
    int64_t begin = item / n_blocks * ROWS, end = lh_min64(begin + ROWS, a->n_rows);
    float *w = scratch; /* [taps, CHANNELS] */

    for (int c = 0; c < n; c++)
        for (int j = 0; j < a->taps; j++)
            w[j * CHANNELS + c] = lh_bf16_to_f32(a->w[(channel + c) * a->taps + j]);
    for (int64_t t = begin; t < end; t++) {
        float sum[CHANNELS] = {0};
        float *y = (float *)a->y + t * a->ldy + channel;
        for (int j = 0; j < a->taps; j++) {
            const float *x = input_row(a, t + j - (a->taps - 1)) + channel;
            for (int c = 0; c < n; c++)
                sum[c] += w[j * CHANNELS + c] * x[c];
        }
        for (int c = 0; c < n; c++)
            y[c] = lh_silu(sum[c]);
    }
}

lh_status lh_cpu_short_conv(lh_stream *s, const lh_short_conv_args *a)
{
    LH_TRY(lh_check_short_conv(a));
    int64_t n_blocks = (a->n_channels + CHANNELS - 1) / CHANNELS;
    lh_short_conv_args args = *a;
    lh_cpu_parallel(s, (a->n_rows + ROWS - 1) / ROWS * n_blocks, conv_item, &args);
    return LH_OK;
}

/* A block of channels of q, k or v of a sequence: a run of one row, then the rows move on. */
static void step_item(void *ctx, int64_t item, float *scratch)
{
    const lh_conv_step_args *a = ctx;
    int64_t n_blocks = (a->n_channels + CHANNELS - 1) / CHANNELS, block = item % n_blocks;
    int64_t part = item / n_blocks % 3, seq = item / n_blocks / 3;
    int64_t ld = 3 * a->n_channels, column = part * a->n_channels, channel = block * CHANNELS;
    size_t bytes = (size_t)lh_min64(CHANNELS, a->n_channels - channel) * sizeof(float);
    float *rows = (float *)a->rows[seq] + column;
    const float *x = (const float *)a->x + seq * ld + column;
    lh_short_conv_args run = {.y = (float *)a->y[part] + seq * a->n_channels,
                              .x = x,
                              .ldx = ld,
                              .halo = rows,
                              .w = a->w[part],
                              .n_rows = 1,
                              .n_channels = a->n_channels,
                              .taps = a->taps};

    conv_item(&run, block, scratch);
    for (int j = 0; j + 2 < a->taps; j++)
        memcpy(rows + j * ld + channel, rows + (j + 1) * ld + channel, bytes);
    memcpy(rows + (a->taps - 2) * ld + channel, x + channel, bytes);
}

lh_status lh_cpu_conv_step(lh_stream *s, const lh_conv_step_args *a)
{
    LH_TRY(lh_check_conv_step(a));
    int64_t n_blocks = (a->n_channels + CHANNELS - 1) / CHANNELS;
    lh_conv_step_args args = *a;
    lh_cpu_parallel(s, a->n_seq * 3 * n_blocks, step_item, &args);
    return LH_OK;
}
