#include <assert.h>
#include <math.h>

#include "base/mem.h"
#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"
#include "kernels/sample.h"

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

/* S of kernels/sample.h, as far as position n - 1. */
typedef struct running_sum {
    double before, group; /* P of the last position's group; its own part */
    int64_t n;
} running_sum;

static double add(running_sum *s, double w)
{
    if (s->n++ % LH_SAMPLE_GROUP == 0) {
        s->before += s->group;
        s->group = 0;
    }
    s->group += w;
    return s->before + s->group;
}

static double weight(const distribution *d, float logit)
{
    return lh_sample_weight(d->top, d->inverse_temperature, logit);
}

/* The lowest id of the largest logit; 0 if all are NaN. */
static int32_t argmax(const float *logits, int64_t n_vocab)
{
    float top = logits[0];
    int32_t best = 0;

    for (int64_t i = 1; i < n_vocab; i++)
        if (!(logits[i] <= top) && !isnan(logits[i])) { /* more, or the first that is a number */
            top = logits[i];
            best = (int32_t)i;
        }
    return best;
}

/* By id: no filter but min_p. sums: [n_vocab] */
static int32_t draw_by_id(const distribution *d, double least, double u, double *sums)
{
    running_sum s = {0};
    int64_t i = 0;

    for (int64_t id = 0; id < d->n_vocab; id++) {
        double w = weight(d, d->logits[id]);
        sums[id] = add(&s, w >= least ? w : 0);
    }
    double target = u * sums[d->n_vocab - 1]; /* less than that: the walk ends */
    while (sums[i] <= target)
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
    running_sum all = {0}, front = {0}, walked = {0};
    double mass = 0, kept = 0;
    int64_t n = 0, n_kept = 0, i = 0;

    for (int64_t id = 0; id < d->n_vocab; id++)
        if (!isnan(d->logits[id]))
            heap[n++] = (candidate){d->logits[id], (int32_t)id};
    for (int64_t at = n / 2 - 1; at >= 0; at--)
        sift_down(heap, n, at);

    int64_t n_k = p->top_k > 0 && p->top_k < n ? p->top_k : n;
    if (n_k < n) {
        for (int64_t k = 0; k < n_k; k++)
            mass = add(&all, weight(d, pop(heap, n - k).logit));
    } else if (p->top_p < 1) {
        for (int64_t id = 0; id < d->n_vocab; id++)
            mass = add(&all, weight(d, d->logits[id]));
    }
    double enough = p->top_p < 1 ? (double)p->top_p * mass : INFINITY;
    while (n_kept < n_k && kept < enough) {
        candidate c = n_k < n ? heap[n - 1 - n_kept] : pop(heap, n - n_kept);
        double w = weight(d, c.logit);
        if (w < (double)p->min_p)
            break;
        kept = add(&front, w);
        n_kept++;
    }

    double target = u * kept;
    while (i < n_kept - 1 && add(&walked, weight(d, heap[n - 1 - i].logit)) <= target)
        i++;
    return heap[n - 1 - i].id;
}

size_t lh_sample_row_bytes(int64_t n_vocab)
{
    static_assert(sizeof(candidate) == sizeof(double), "either lies in the scratch memory");
    return (size_t)n_vocab * sizeof(candidate);
}

int32_t lh_sample_row(const float *logits, int64_t n_vocab, const lh_draw *draw, void *scratch)
{
    const lh_sampling *how = &draw->how;
    int32_t best = argmax(logits, n_vocab);

    if (how->temperature == 0 || isnan(logits[best]))
        return best;
    distribution d = {logits, n_vocab, (double)logits[best], 1 / (double)how->temperature};
    double u = lh_sample_uniform(draw);
    return lh_sample_is_by_id(how) ? draw_by_id(&d, (double)how->min_p, u, scratch)
                                   : draw_in_order(&d, how, u, scratch);
}

static int all_finite(const float *x, int64_t n)
{
    int finite = 1;

    for (int64_t i = 0; i < n; i++)
        finite &= isfinite(x[i]) != 0;
    return finite;
}

static void sample_rows(const void *args, int64_t begin, int64_t end)
{
    const lh_sample_args *a = args;

    for (int64_t row = begin; row < end; row++) {
        const float *logits = a->logits + row * a->n_vocab;
        void *scratch = (char *)a->work + (size_t)row * lh_sample_row_bytes(a->n_vocab);
        a->token[row] = all_finite(logits, a->n_vocab)
                            ? lh_sample_row(logits, a->n_vocab, a->draw + row, scratch)
                            : LH_SAMPLE_NOT_FINITE;
    }
}

size_t lh_cpu_sample_work_bytes(int64_t n_rows, int64_t n_vocab)
{
    size_t bytes;

    lh_mul_size(&bytes, (size_t)n_rows, lh_sample_row_bytes(n_vocab));
    return bytes;
}

lh_status lh_cpu_sample(lh_stream *s, const lh_sample_args *a)
{
    LH_TRY(lh_check_sample(a));
    lh_cpu_rows(s, a->n_rows, a->n_vocab * 8, sample_rows, a); /* an exp is about so much */
    return LH_OK;
}
