/*
 * Sampling that gives the same token on every machine: random numbers are a function of (seed,
 * draw), sums have one order, and exp is our own, since libraries' differ in the last bit. Products
 * and sums are apart or an explicit fma(), so that compilers have nothing to contract.
 *
 * The order. Candidates stand by logit, the highest first, the lower id first among equals. top_k
 * keeps the first k. top_p keeps the shortest front part with at least top_p of the mass that is
 * left; min_p those with at least min_p times the first one's probability. The draw walks the
 * survivors in that order; without top_k and top_p nothing needs sorting, and it walks by id.
 *
 * A NaN logit is never chosen unless all are NaN: then the token is 0.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "runtime/longhaul.h"

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

typedef struct distribution {
    const float *logits;
    int64_t n_vocab;
    double top; /* the largest logit */
    double inverse_temperature;
} distribution;

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
    static_assert(sizeof(candidate) == sizeof(double), "either lies in the scratch memory");
    return (size_t)n_vocab * sizeof(candidate);
}

/* exp(x) for x <= 0 to within 2 units in the last place; 0 where it is below the normal numbers. */
static double exp_negative(double x)
{
    static const double inverse_factorial[] = {1,
                                               1,
                                               1.0 / 2,
                                               1.0 / 6,
                                               1.0 / 24,
                                               1.0 / 120,
                                               1.0 / 720,
                                               1.0 / 5040,
                                               1.0 / 40320,
                                               1.0 / 362880,
                                               1.0 / 3628800,
                                               1.0 / 39916800,
                                               1.0 / 479001600,
                                               1.0 / 6227020800.0};
    if (!(x >= -708))
        return 0;
    double k = nearbyint(x * 0x1.71547652b82fep+0);
    double r = fma(k, -0x1.62e42fefa39efp-1, x);
    r = fma(k, -0x1.abc9e3b39803fp-56, r);
    double y = inverse_factorial[13];
    for (int i = 12; i >= 0; i--)
        y = fma(y, r, inverse_factorial[i]);
    uint64_t bits = (uint64_t)((int64_t)k + 1023) << 52;
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return y * scale;
}

/* The probability of a logit, relative to the largest one's; NaN has none. */
static double weight(const distribution *d, float logit)
{
    double x = (double)logit;
    if (x == d->top)
        return 1;
    return x < d->top ? exp_negative((x - d->top) * d->inverse_temperature) : 0;
}

/* The lowest id of the largest logit; 0 if all are NaN. */
static int32_t argmax(const float *logits, int64_t n_vocab)
{
    int32_t best = 0;
    for (int64_t i = 1; i < n_vocab; i++)
        if (logits[i] > logits[best] || (isnan(logits[best]) && !isnan(logits[i])))
            best = (int32_t)i;
    return best;
}

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Uniform in [0, 1), a function of its arguments alone. */
static double uniform(uint64_t seed, uint64_t draw)
{
    const uint64_t step = 0x9e3779b97f4a7c15u;
    return (double)(mix(mix(seed + step) + draw * step) >> 11) * 0x1p-53;
}

/* By id: no filter but min_p. weights: [n_vocab] */
static int32_t draw_by_id(const distribution *d, double least, double u, double *weights)
{
    double mass = 0, sum = 0;
    for (int64_t i = 0; i < d->n_vocab; i++) {
        double w = weight(d, d->logits[i]);
        weights[i] = w >= least ? w : 0;
        mass += weights[i];
    }
    /* The same sum reaches mass, which is more than the target: the walk ends. */
    double target = u * mass;
    int64_t i = 0;
    while ((sum += weights[i]) <= target)
        i++;
    return (int32_t)i;
}

static int comes_before(candidate a, candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static void sift_down(candidate *heap, int64_t n, int64_t i)
{
    candidate moved = heap[i];
    int64_t child;
    while ((child = 2 * i + 1) < n) {
        if (child + 1 < n && comes_before(heap[child + 1], heap[child]))
            child++;
        if (!comes_before(heap[child], moved))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moved;
}

/* Moves the first of the heap's n candidates to heap[n - 1]: what was popped stands at the end, in
 * reverse. */
static candidate pop(candidate *heap, int64_t n)
{
    candidate first = heap[0];
    heap[0] = heap[n - 1];
    heap[n - 1] = first;
    sift_down(heap, n - 1, 0);
    return first;
}

/* In order, as far as the filters reach: nothing behind the last survivor is sorted. */
static int32_t draw_in_order(const distribution *d, const lh_sampling *p, double u, candidate *heap)
{
    int64_t n = 0, n_kept = 0;
    double mass = 0, kept = 0, sum = 0;
    for (int64_t i = 0; i < d->n_vocab; i++)
        if (!isnan(d->logits[i]))
            heap[n++] = (candidate){d->logits[i], (int32_t)i};
    for (int64_t i = n / 2 - 1; i >= 0; i--)
        sift_down(heap, n, i);

    int64_t n_k = p->top_k > 0 && p->top_k < n ? p->top_k : n;
    if (n_k < n) {
        for (int64_t i = 0; i < n_k; i++)
            mass += weight(d, pop(heap, n - i).logit);
    } else {
        for (int64_t i = 0; i < d->n_vocab; i++)
            mass += weight(d, d->logits[i]);
    }
    double enough = p->top_p < 1 ? (double)p->top_p * mass : INFINITY;
    while (n_kept < n_k && kept < enough) {
        candidate c = n_k < n ? heap[n - 1 - n_kept] : pop(heap, n - n_kept);
        double w = weight(d, c.logit);
        if (w < (double)p->min_p)
            break;
        kept += w;
        n_kept++;
    }

    double target = u * kept;
    int64_t i = 0;
    for (; i < n_kept - 1; i++) {
        sum += weight(d, heap[n - 1 - i].logit);
        if (sum > target)
            break;
    }
    return heap[n - 1 - i].id;
}

int32_t lh_sample(const float *logits, int64_t n_vocab, const lh_sampling *p, uint64_t draw,
                  void *scratch)
{
    LH_ASSERT(n_vocab > 0 && n_vocab <= INT32_MAX);
    int32_t best = argmax(logits, n_vocab);
    if (p->temperature == 0 || isnan(logits[best]))
        return best;
    distribution d = {logits, n_vocab, (double)logits[best], 1 / (double)p->temperature};
    double u = uniform(p->seed, draw);
    return p->top_k > 0 || p->top_p < 1 ? draw_in_order(&d, p, u, scratch)
                                        : draw_by_id(&d, (double)p->min_p, u, scratch);
}

double lh_logprob(const float *logits, int64_t n_vocab, int32_t token)
{
    LH_ASSERT(token >= 0 && token < n_vocab);
    double top = (double)logits[argmax(logits, n_vocab)], sum = 0, x = (double)logits[token];
    distribution d = {logits, n_vocab, top, 1};
    for (int64_t i = 0; i < n_vocab; i++)
        sum += weight(&d, logits[i]);
    if (isnan(x))
        return -INFINITY;
    return (x == top ? 0 : x - top) - log(sum);
}
