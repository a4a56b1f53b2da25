/*
 * KDA inside a chunk: decayed scores and the UT transform (Kimi Linear report, section 3.1).
 *
 * The decay has no lower bound, so exp(-G) must never be formed, and differences of a long running
 * sum would lose the small decays next to a large one. Here every exponent is a sum of g over just
 * the tokens it spans: it is <= 0 and exact to a few ulp.
 */
#include "kernels/cpu/kda_chunk.h"

#include <string.h>

#include "base/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vmath.h"

#define LANES 16  /* rows in scratch are padded with zeros to a multiple of this */
#define PANEL 64  /* columns that the substitution takes at a time */
#define CORNER 16 /* rows of the diagonal blocks of the scores */

typedef struct space {
    float *q, *k, *g;       /* [LH_CHUNK, dk] */
    float *left_q, *left_k; /* [LH_CHUNK / 2, dk] */
    float *right;           /* the same */
    float *sum;             /* [dk] */
    float *akk;             /* [LH_CHUNK, LH_CHUNK] */
    float *x;               /* [LH_CHUNK, ldx]: d_v columns that become u, then d_k that become w */
    int64_t dk;             /* d_k, padded */
    int64_t width;          /* d_v + d_k, padded to whole panels */
    int64_t ldx;
} space;

static void gather(float *to, int64_t ld_to, const float *from, int64_t ld, int64_t n, int64_t d)
{
    for (int64_t i = 0; i < n; i++) {
        memcpy(to + i * ld_to, from + i * ld, (size_t)d * sizeof *to);
        memset(to + i * ld_to + d, 0, (size_t)(ld_to - d) * sizeof *to);
    }
}

static void space_init(space *p, const lh_kda_chunk *c, float *scratch)
{
    lh_carve at = {.base = scratch};

    p->dk = lh_round_up(c->d_k, LANES);
    p->width = lh_round_up(c->d_v + c->d_k, PANEL);
    p->ldx = p->width + LANES; /* not a power of two: the rows of a panel share the L1 cache */
    size_t whole = (size_t)(LH_CHUNK * p->dk);
    p->q = lh_carve_take(&at, whole, sizeof(float), 64);
    p->k = lh_carve_take(&at, whole, sizeof(float), 64);
    p->g = lh_carve_take(&at, whole, sizeof(float), 64);
    p->left_q = lh_carve_take(&at, whole / 2, sizeof(float), 64);
    p->left_k = lh_carve_take(&at, whole / 2, sizeof(float), 64);
    p->right = lh_carve_take(&at, whole / 2, sizeof(float), 64);
    p->sum = lh_carve_take(&at, (size_t)p->dk, sizeof(float), 64);
    p->akk = lh_carve_take(&at, LH_CHUNK * LH_CHUNK, sizeof(float), 64);
    p->x = lh_carve_take(&at, (size_t)(LH_CHUNK * p->ldx), sizeof(float), 64);
    LH_ASSERT(at.used <= LH_CPU_SCRATCH * sizeof(float));
    gather(p->q, p->dk, c->q, c->ldk, c->n, c->d_k);
    gather(p->k, p->dk, c->k, c->ldk, c->n, c->d_k);
    gather(p->g, p->dk, c->g, c->ldk, c->n, c->d_k);
}

static void add_row(float *restrict sum, const float *restrict g, int64_t d)
{
    for (int64_t j = 0; j < d; j++)
        sum[j] += g[j];
}

/* out = x exp(sum). */
static void decay_row(float *restrict out, const float *restrict x, const float *restrict sum,
                      int64_t d)
{
    for (int64_t j = 0; j < d; j++)
        out[j] = x[j] * lh_exp(sum[j]);
}

/* Both rows of a query: out_q = q exp(sum), out_k = beta k exp(sum). */
static void decay_pair(float *restrict out_q, float *restrict out_k, const float *restrict q,
                       const float *restrict k, float beta, const float *restrict sum, int64_t d)
{
    for (int64_t j = 0; j < d; j++) {
        float e = lh_exp(sum[j]);
        out_q[j] = q[j] * e;
        out_k[j] = beta * k[j] * e;
    }
}

/*
 * The scores of rows [middle, end) with keys [begin, middle). The decay from key j to row i is that
 * from j to the middle times that from the middle to i: both factors are <= 1, and where one
 * underflows so does the product.
 */
static void score_block(const lh_kda_chunk *c, const space *p, int64_t begin, int64_t middle,
                        int64_t end)
{
    int64_t d = p->dk, corner = middle * LH_CHUNK + begin;

    memset(p->sum, 0, (size_t)d * sizeof *p->sum);
    for (int64_t i = middle; i < end; i++) {
        if (i > middle)
            add_row(p->sum, p->g + i * d, d);
        decay_pair(p->left_q + (i - middle) * d, p->left_k + (i - middle) * d, p->q + i * d,
                   p->k + i * d, c->beta[i * c->ldb], p->sum, d);
    }
    memset(p->sum, 0, (size_t)d * sizeof *p->sum);
    for (int64_t j = middle - 1; j >= begin; j--) {
        add_row(p->sum, p->g + (j + 1) * d, d);
        decay_row(p->right + (j - begin) * d, p->k + j * d, p->sum, d);
    }
    lh_cpu_gemm(end - middle, middle - begin, d, 1.0f, p->left_k, d, p->right, d, 1, 0.0f,
                p->akk + corner, LH_CHUNK);
    lh_cpu_gemm(end - middle, middle - begin, d, 1.0f, p->left_q, d, p->right, d, 1, 0.0f,
                c->aqk + corner, LH_CHUNK);
}

static float merge(float *sum)
{
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            sum[j] += sum[j + half];
    return sum[0];
}

/* t *= alpha, then its products with k and q. */
static void decayed_dots(float *restrict t, const float *restrict alpha, const float *restrict k,
                         const float *restrict q, int64_t d, float *dot_k, float *dot_q)
{
    float sum_k[LANES] = {0}, sum_q[LANES] = {0};

    for (int64_t i = 0; i < d; i += LANES)
        for (int64_t j = 0; j < LANES; j++) {
            t[i + j] *= alpha[i + j];
            sum_k[j] += k[i + j] * t[i + j];
            sum_q[j] += q[i + j] * t[i + j];
        }
    *dot_k = merge(sum_k);
    *dot_q = merge(sum_q);
}

/* The scores of rows [begin, end) with each other: each key goes down the rows, decaying on its
 * way. */
static void score_corner(const lh_kda_chunk *c, const space *p, int64_t begin, int64_t end)
{
    float *alpha = p->left_k, *t = p->right;
    int64_t d = p->dk;

    for (int64_t i = 0; i < (end - begin) * d; i++)
        alpha[i] = lh_exp(p->g[begin * d + i]);
    for (int64_t j = begin; j < end; j++) {
        memcpy(t, p->k + j * d, (size_t)d * sizeof *t);
        c->aqk[j * LH_CHUNK + j] = lh_cpu_dot(p->q + j * d, t, d);
        for (int64_t i = j + 1; i < end; i++) {
            float *akk = p->akk + i * LH_CHUNK + j;
            decayed_dots(t, alpha + (i - begin) * d, p->k + i * d, p->q + i * d, d, akk,
                         c->aqk + i * LH_CHUNK + j);
            *akk *= c->beta[i * c->ldb];
        }
    }
}

/* Lower triangles of akk (its rows times beta, without the diagonal) and aqk, by halving. */
static void scores(const lh_kda_chunk *c, const space *p)
{
    memset(c->aqk, 0, (size_t)(c->n * LH_CHUNK) * sizeof *c->aqk);
    for (int64_t half = LH_CHUNK / 2; half >= CORNER; half /= 2)
        for (int64_t begin = 0; begin + half < c->n; begin += 2 * half)
            score_block(c, p, begin, begin + half, lh_min64(begin + 2 * half, c->n));
    for (int64_t begin = 0; begin < c->n; begin += CORNER)
        score_corner(c, p, begin, lh_min64(begin + CORNER, c->n));
}

/* What depends on the decay from the chunk's start or to its end; x gets the right-hand sides of u
 * and w. */
static void decay_rows(const lh_kda_chunk *c, const space *p)
{
    memset(p->sum, 0, (size_t)p->dk * sizeof *p->sum);
    for (int64_t i = 0; i < c->n; i++) {
        float *x = p->x + i * p->ldx, beta = c->beta[i * c->ldb];
        for (int64_t j = 0; j < c->d_v; j++)
            x[j] = beta * c->v[i * c->ldv + j];
        add_row(p->sum, p->g + i * p->dk, p->dk);
        decay_pair(c->q + i * c->ldk, x + c->d_v, p->q + i * p->dk, p->k + i * p->dk, beta, p->sum,
                   c->d_k);
        memset(x + c->d_v + c->d_k, 0, (size_t)(p->width - c->d_v - c->d_k) * sizeof *x);
    }
    for (int64_t j = 0; j < c->d_k; j++)
        c->decay[j] = lh_exp(p->sum[j]);
    memset(p->sum, 0, (size_t)p->dk * sizeof *p->sum);
    for (int64_t i = c->n - 1; i >= 0; i--) {
        decay_row(c->k + i * c->ldk, p->k + i * p->dk, p->sum, c->d_k);
        add_row(p->sum, p->g + i * p->dk, p->dk);
    }
}

/* x <- (I + akk)^-1 x by forward substitution. The inverse itself is never formed: its powers
 * cancel badly for keys that resemble each other. */
static void substitute(const space *p, int64_t n)
{
    for (int64_t panel = 0; panel < p->width; panel += PANEL)
        for (int64_t i = 1; i < n; i++) {
            float sum[PANEL] = {0};
            for (int64_t j = 0; j < i; j++) {
                float a = p->akk[i * LH_CHUNK + j];
                const float *x = p->x + j * p->ldx + panel;
                for (int64_t m = 0; m < PANEL; m++)
                    sum[m] += a * x[m];
            }
            float *x = p->x + i * p->ldx + panel;
            for (int64_t m = 0; m < PANEL; m++)
                x[m] -= sum[m];
        }
}

void lh_cpu_kda_chunk(const lh_kda_chunk *c, float *scratch)
{
    space p;

    space_init(&p, c, scratch);
    scores(c, &p);
    decay_rows(c, &p);
    substitute(&p, c->n);
    for (int64_t i = 0; i < c->n; i++) {
        memcpy(c->v + i * c->ldv, p.x + i * p.ldx, (size_t)c->d_v * sizeof(float));
        memcpy(c->g + i * c->ldk, p.x + i * p.ldx + c->d_v, (size_t)c->d_k * sizeof(float));
    }
}
