#include "base/mem.h"
#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"

/* Columns that are summed at a time: the sums stay in the first cache. */
#define BLOCK 512

static void combine_block(const lh_combine_args *a, int64_t row, int64_t begin, int n)
{
    float sum[BLOCK] = {0};
    float *restrict x = (float *)a->x + row * a->d + begin;

    for (int j = 0; j < a->top_k; j++) {
        float weight = a->weight[row * a->top_k + j];
        const float *y = (const float *)a->rows + a->source[row * a->top_k + j] * a->d + begin;
        for (int i = 0; i < n; i++)
            sum[i] += weight * y[i];
    }
    if (a->shared) {
        const float *shared = (const float *)a->shared + row * a->d + begin;
        for (int i = 0; i < n; i++)
            sum[i] += shared[i];
    }
    for (int i = 0; i < n; i++)
        x[i] += sum[i];
}

static void combine_rows(const void *args, int64_t begin, int64_t end)
{
    const lh_combine_args *a = args;

    for (int64_t row = begin; row < end; row++)
        for (int64_t i = 0; i < a->d; i += BLOCK)
            combine_block(a, row, i, (int)lh_min64(BLOCK, a->d - i));
}

lh_status lh_cpu_combine(lh_stream *s, const lh_combine_args *a)
{
    LH_TRY(lh_check_combine(a));
    lh_cpu_rows(s, a->n_rows, a->d * a->top_k, combine_rows, a);
    return LH_OK;
}
