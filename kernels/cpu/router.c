#include <math.h>
#include <string.h>

#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vmath.h"

/* The k ids of the largest keys, ties to the lower id, a NaN above all so that it shows; from the
 * largest. */
static void top_keys(int32_t *id, float *key, int k, const float *s, const float *bias, int n)
{
    int have = 0;

    for (int e = 0; e < n; e++) {
        float x = isnan(s[e] + bias[e]) ? INFINITY : s[e] + bias[e];
        if (have == k && !(x > key[k - 1]))
            continue;
        int at = have < k ? have++ : k - 1;
        for (; at > 0 && x > key[at - 1]; at--) {
            key[at] = key[at - 1];
            id[at] = id[at - 1];
        }
        key[at] = x;
        id[at] = e;
    }
}

static void sort_rising(int32_t *id, int n)
{
    for (int i = 1; i < n; i++) {
        int32_t x = id[i];
        int at = i;
        for (; at > 0 && id[at - 1] > x; at--)
            id[at] = id[at - 1];
        id[at] = x;
    }
}

static void route_rows(const void *args, int64_t begin, int64_t end)
{
    const lh_router_args *a = args;
    float key[LH_MAX_TOP_K];

    for (int64_t row = begin; row < end; row++) {
        float *s = a->scores + row * a->n_experts;
        int32_t *id = a->expert + row * a->top_k;
        float *weight = a->weight + row * a->top_k;
        float sum = 0;

        for (int e = 0; e < a->n_experts; e++)
            s[e] = lh_sigmoid(s[e]);
        top_keys(id, key, a->top_k, s, a->bias, a->n_experts);
        sort_rising(id, a->top_k);
        for (int j = 0; j < a->top_k; j++)
            sum += s[id[j]];
        for (int j = 0; j < a->top_k; j++)
            weight[j] = (a->renormalize ? s[id[j]] / (sum + 1e-20f) : s[id[j]]) * a->scale;
    }
}

lh_status lh_cpu_router(lh_stream *s, const lh_router_args *a)
{
    LH_TRY(lh_check_router(a));
    LH_TRY(lh_cpu_run_product(s, &(lh_cpu_product){
                                     .y = a->scores,
                                     .ldy = a->n_experts,
                                     .x = a->x,
                                     .ldx = a->d,
                                     .w = {&a->w},
                                     .n_parts = 1,
                                     .n_in = a->d,
                                     .n_out = a->n_experts,
                                     .tiles = &a->tiles,
                                 }));
    lh_cpu_rows(s, a->n_rows, (int64_t)a->n_experts * 4, route_rows, a);
    return LH_OK;
}
