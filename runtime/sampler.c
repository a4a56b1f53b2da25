/*
 * The sampler of the public interface. How a token is drawn is in kernels/sample.h.
 */
#include <math.h>

#include "kernels/sample.h"
#include "runtime/longhaul.h"

lh_status lh_sampling_check(const lh_sampling *p)
{
    LH_REQUIRE(p->temperature >= 0 && isfinite(p->temperature), LH_ERR_USAGE,
               "temperature %g: expected a finite number of at least 0", (double)p->temperature);
    LH_REQUIRE(p->top_k >= 0, LH_ERR_USAGE, "top_k %d: expected at least 0", p->top_k);
    LH_REQUIRE(p->top_p > 0 && p->top_p <= 1, LH_ERR_USAGE,
               "top_p %g: expected more than 0, up to 1", (double)p->top_p);
    LH_REQUIRE(p->min_p >= 0 && p->min_p <= 1, LH_ERR_USAGE, "min_p %g: expected 0 to 1",
               (double)p->min_p);
    return LH_OK;
}

size_t lh_sample_scratch_bytes(int64_t n_vocab)
{
    return lh_sample_row_bytes(n_vocab);
}

int32_t lh_sample(const float *logits, int64_t n_vocab, const lh_sampling *p, uint64_t draw,
                  void *scratch)
{
    LH_ASSERT(n_vocab > 0 && n_vocab <= INT32_MAX);
    return lh_sample_row(logits, n_vocab, &(lh_draw){*p, draw}, scratch);
}

double lh_logprob(const float *logits, int64_t n_vocab, int32_t token)
{
    LH_ASSERT(token >= 0 && token < n_vocab);
    const lh_draw greedy = LH_DRAW_GREEDY;
    double top = (double)logits[lh_sample_row(logits, n_vocab, &greedy, NULL)];
    double sum = 0, x = (double)logits[token];
    for (int64_t i = 0; i < n_vocab; i++)
        sum += lh_sample_weight(top, 1, logits[i]);
    if (isnan(x))
        return -INFINITY;
    return (x == top ? 0 : x - top) - log(sum);
}
