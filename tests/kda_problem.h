/*
 * Problems of KDA and their solution in float64, for its tests, on either backend (--backend cuda).
 *
 * Tolerances are relative to the largest value of the outputs, or of the state.
 *   cpu: f32 has 6e-8, a chunk sums over d_k + LH_CHUNK products. Measured: below 1e-6, and 4e-6
 * for heads of one channel. cuda: outputs are rounded to bf16, 2^-9 = 2e-3 of a value; the scores
 * are products of bf16, the chain's operands are f16. The step is f32 but for its output.
 */
#ifndef LH_TESTS_KDA_PROBLEM_H
#define LH_TESTS_KDA_PROBLEM_H

#include "base/mem.h"
#include "tests/kernel_data.h"
#include "tests/reference/reference_kda.h"

/* The reference counts as 0 below this: a state of nothing else would be less than f32 can say. */
#define TINY 1e-30

static lh_stream *streams[3]; /* with 1, 2, 3 threads */

static inline int on_gpu(void)
{
    return kernels->act_bytes == 2;
}

static inline double tol_o(void)
{
    return on_gpu() ? 4e-3 : 1e-5;
}

static inline double tol_state(void)
{
    return on_gpu() ? 2e-3 : 1e-5;
}

/* The backend's size of a head. */
static inline int head_size(int d)
{
    return on_gpu() ? 128 : d;
}

/* How many of so many cases: CUDA's heads are large for the reference. */
static inline int cases(int n)
{
    return on_gpu() ? (n + 9) / 10 : n;
}

typedef struct problem {
    int64_t n;
    int n_heads, d_k, d_v;
    float *q, *k, *v, *g, *beta, *state;
    double *ref_o, *ref_state; /* after solve() */
} problem;

static inline void *block(size_t bytes)
{
    void *p = NULL;
    CHECK_OK(lh_alloc(&p, bytes, "test"));
    if (!p)
        exit(1);
    return p;
}

static inline float *floats(int64_t n)
{
    return block((size_t)n * sizeof(float));
}

static inline float *copy_of(const float *x, int64_t n)
{
    float *y = floats(n);
    memcpy(y, x, (size_t)n * sizeof *y);
    return y;
}

static inline int64_t size_k(const problem *p)
{
    return p->n * p->n_heads * p->d_k;
}

static inline int64_t size_v(const problem *p)
{
    return p->n * p->n_heads * p->d_v;
}

static inline int64_t size_state(const problem *p)
{
    return (int64_t)p->n_heads * p->d_k * p->d_v;
}

static inline void unit_row(float *x, int d, double scale)
{
    double sum = 0;
    for (int i = 0; i < d; i++) {
        x[i] = (float)check_normal();
        sum += (double)x[i] * x[i];
    }
    for (int i = 0; i < d; i++)
        x[i] = act_round((float)(x[i] / sqrt(sum + 1e-6) * scale));
}

/* Gates: from none to total, mixed over tokens and channels, with moderate ones between. */
static inline float mixed_gate(void)
{
    static const float hard[] = {0.0f, -1e-8f, -5.0f, -80.0f, -1000.0f};
    double u = check_uniform();
    return u < 0.2 ? hard[check_random() % 5] : (float)(-0.3 * check_uniform());
}

static inline float mixed_beta(void)
{
    uint64_t r = check_random() % 8;
    return r == 0 ? 0.0f : r == 1 ? 1.0f : (float)check_uniform();
}

static inline problem make(int64_t n, int n_heads, int d_k, int d_v)
{
    problem p = {.n = n, .n_heads = n_heads, .d_k = head_size(d_k), .d_v = head_size(d_v)};

    d_k = p.d_k;
    p.q = floats(size_k(&p)), p.k = floats(size_k(&p)), p.g = floats(size_k(&p));
    p.v = floats(size_v(&p)), p.beta = floats(n * n_heads), p.state = floats(size_state(&p));
    p.ref_o = block((size_t)size_v(&p) * sizeof(double));
    p.ref_state = block((size_t)size_state(&p) * sizeof(double));
    for (int64_t i = 0; i < n * n_heads; i++) {
        unit_row(p.q + i * d_k, d_k, 1 / sqrt(d_k));
        unit_row(p.k + i * d_k, d_k, check_random() % 16 == 0 ? 0 : 1);
        p.beta[i] = mixed_beta();
    }
    for (int64_t i = 0; i < size_k(&p); i++)
        p.g[i] = mixed_gate();
    for (int64_t i = 0; i < size_v(&p); i++)
        p.v[i] = act_round((float)check_normal());
    for (int64_t i = 0; i < size_state(&p); i++)
        p.state[i] = (float)check_normal();
    return p;
}

static inline void flush(double *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = fabs(x[i]) < TINY ? 0 : x[i];
}

static inline void solve(problem *p)
{
    for (int64_t i = 0; i < size_state(p); i++)
        p->ref_state[i] = p->state[i];
    ref_kda(p->ref_o, p->ref_state, p->q, p->k, p->v, p->g, p->beta, p->n, p->n_heads, p->d_k,
            p->d_v);
    flush(p->ref_o, size_v(p));
    flush(p->ref_state, size_state(p));
}

static inline void drop(problem *p)
{
    free(p->q), free(p->k), free(p->v), free(p->g), free(p->beta), free(p->state);
    free(p->ref_o), free(p->ref_state);
}

static inline void *poisoned(int64_t n, size_t bytes)
{
    char *host = data_host(n, bytes);
    memset(host, 0xff, (size_t)n * bytes); /* NaN */
    return data_device(host, n, bytes);
}

static double worst_o, worst_state; /* of the running test */

static double worst_of(const float *got, const double *want, int64_t n)
{
    double top = 0, worst = 0;
    for (int64_t i = 0; i < n; i++)
        top = fmax(top, fabs(want[i]));
    for (int64_t i = 0; i < n; i++)
        worst = fmax(worst, fabs(got[i] - want[i]) / (top > 0 ? top : 1));
    return worst;
}

static inline void note_errors(const problem *p, const float *o, const float *state)
{
    worst_o = fmax(worst_o, worst_of(o, p->ref_o, size_v(p)));
    worst_state = fmax(worst_state, worst_of(state, p->ref_state, size_state(p)));
}

/* With what of the tolerance a test has used. */
#define RUN_NEAR(test)                                                                             \
    do {                                                                                           \
        worst_o = worst_state = 0;                                                                 \
        RUN(test);                                                                                 \
        if (on_gpu() && worst_o > 0)                                                               \
            printf("     worst o %.1e, state %.1e\n", worst_o, worst_state);                       \
    } while (0)

static inline void open_streams(void)
{
    for (int i = 0; i < 3; i++)
        CHECK_OK(kernels->device->open(&streams[i], 0, i + 1, 1));
    stream = streams[0];
}

static inline void close_streams(void)
{
    for (int i = 0; i < 3; i++)
        kernels->device->close(streams[i]);
}

#endif
