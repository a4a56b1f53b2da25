/*
 * moe_step: right against the float64 reference, every row written, and the same bits for a token
 * alone and among others, however they share experts.
 */
#include "tests/kernel_data.h"
#include "tests/product_tolerance.h"
#include "tests/reference/reference.h"

enum routing {
    UNIFORM,
    HOT,  /* one expert of this rank for all tokens, the others drawn */
    ALIKE /* the same experts for all tokens, from this rank's first on */
};

typedef struct shape {
    int64_t n_seq, d, d_hidden;
    int top_k, n_experts, first, n_own;
    enum routing routing;
} shape;

/* CUDA takes up to three tokens in one way and more in another. */
static const shape shapes[] = {
    {1, 256, 96, 4, 12, 5, 3, UNIFORM},
    {2, 33, 17, 4, 12, 5, 3, UNIFORM},
    {3, 2304, 1024, 4, 12, 5, 3, UNIFORM},
    {4, 1, 1, 2, 5, 0, 5, UNIFORM},
    {7, 40, 24, 4, 12, 5, 3, UNIFORM},
    {17, 2304, 1024, 2, 16, 3, 4, UNIFORM},
    {17, 700, 300, 3, 5, 0, 5, HOT},
    {64, 72, 40, 8, 256, 0, 256, UNIFORM},
    {64, 72, 40, 8, 256, 96, 32, UNIFORM},
    {64, 264, 136, 8, 32, 7, 9, HOT},
    {64, 40, 8, 8, 16, 4, 8, ALIKE},
    {64, 40, 8, 4, 16, 4, 1, ALIKE},
    {33, 40, 24, 1, 2, 1, 1, HOT},
    {9, 24, 16, LH_MAX_TOP_K, LH_MAX_TOP_K, 10, 20, UNIFORM},
    {513, 8, 8, 8, 64, 16, 16, UNIFORM},
    /* nine pairs here and nine elsewhere: a group of eight and a rest, twice */
    {9, 16, 8, 2, 2, 1, 1, UNIFORM},
};
#define N_SHAPES (int)(sizeof shapes / sizeof shapes[0])

typedef struct problem {
    lh_moe_step_args a;
    float *x;
    int32_t *expert;
    lh_bf16 *w[3]; /* [n_own] matrices */
} problem;

static int is_own(const shape *s, int e)
{
    return e >= s->first && e < s->first + s->n_own;
}

/* top_k different experts, rising: each is taken with the right chance. */
static void draw_experts(int32_t *out, const shape *s)
{
    int left = s->top_k, hot = s->routing == HOT ? s->first : -1;

    for (int e = 0; e < s->n_experts && left > 0; e++) {
        int ahead = hot > e; /* a place is kept for it */
        int n = s->n_experts - e - ahead;
        if (s->routing == ALIKE ? e >= s->first
            : e == hot          ? 1
                                : (int)(check_random() % (uint64_t)n) < left - ahead) {
            *out++ = e;
            left--;
        }
    }
}

/* Matrices of n_own networks on the device, and there pointers to them. */
static const lh_bf16 *const *place_weights(lh_bf16 **host, const shape *s, int64_t size,
                                           int64_t n_in)
{
    const lh_bf16 **at = data_host(s->n_own, sizeof *at);
    const lh_bf16 *device;

    *host = bf16_random(s->n_own * size, 1 / sqrt((double)n_in));
    device = data_device(*host, s->n_own * size, sizeof **host);
    for (int i = 0; i < s->n_own; i++)
        at[i] = device + i * size;
    return data_device(at, s->n_own, sizeof *at);
}

static void make_problem(problem *p, const shape *s)
{
    int64_t d = act_width(s->d), h = act_width(s->d_hidden), n_pairs = s->n_seq * s->top_k;
    float *nan = data_host(n_pairs * d, sizeof *nan);

    p->x = act_random(s->n_seq * d, 2);
    p->expert = data_host(n_pairs, sizeof *p->expert);
    for (int64_t t = 0; t < s->n_seq; t++)
        draw_experts(p->expert + t * s->top_k, s);
    for (int64_t i = 0; i < n_pairs * d; i++)
        nan[i] = NAN;
    p->a = (lh_moe_step_args){.y = act_device(nan, n_pairs * d),
                              .x = act_device(p->x, s->n_seq * d),
                              .expert = data_device(p->expert, n_pairs, sizeof *p->expert),
                              .w_gate = place_weights(&p->w[0], s, h * d, d),
                              .w_up = place_weights(&p->w[1], s, h * d, d),
                              .w_down = place_weights(&p->w[2], s, d * h, h),
                              .first_expert = s->first,
                              .n_nets = s->n_own,
                              .n_seq = s->n_seq,
                              .d = d,
                              .d_hidden = h,
                              .top_k = s->top_k};
    p->a.work = act_device(data_host(n_pairs * 2 * h, sizeof *nan), n_pairs * 2 * h);
}

static void check_values(const problem *p, const shape *s)
{
    const lh_moe_step_args *a = &p->a;
    int64_t d = a->d, size = a->d_hidden * d, n_pairs = a->n_seq * a->top_k;
    double *want = data_host(n_pairs * d, sizeof *want);

    for (int64_t i = 0; i < n_pairs; i++) {
        int64_t net = (p->expert[i] - s->first) * size;
        if (is_own(s, p->expert[i]))
            ref_ffn(want + i * d, p->x + i / a->top_k * d, p->w[0] + net, p->w[1] + net,
                    p->w[2] + net, 1, d, a->d_hidden);
    }
    CHECK_OK(kernels->moe_step(stream, a));
    CHECK_ACT(a->y, want, n_pairs * d, TOL_FFN(d, a->d_hidden));
}

/* Tokens `first` on in a call of their own. */
static void check_part(const problem *p, const float *all, int64_t first, int64_t n)
{
    lh_moe_step_args a = p->a;
    int64_t row = a.top_k * a.d;

    a.n_seq = n;
    a.x = (const char *)a.x + (size_t)(first * a.d) * kernels->act_bytes;
    a.expert += first * a.top_k;
    CHECK_OK(kernels->moe_step(stream, &a));
    CHECK_SAME_BITS(act_host(a.y, n * row), all + first * row, (size_t)(n * row) * sizeof *all);
}

static void check_bits(const problem *p)
{
    int64_t n = p->a.n_seq, step = n / 64 + 1;
    const float *all = act_host(p->a.y, n * p->a.top_k * p->a.d);

    check_part(p, all, 0, n); /* the order of threads does not show */
    check_part(p, all, n / 2, n - n / 2);
    for (int64_t t = 0; t < n; t += step)
        check_part(p, all, t, 1);
}

static void check_no_experts(problem *p)
{
    int64_t size = p->a.n_seq * p->a.top_k * p->a.d;
    double *zero = data_host(size, sizeof *zero);

    p->a.n_nets = 0;
    CHECK_OK(kernels->moe_step(stream, &p->a));
    CHECK_ACT(p->a.y, zero, size, 0);
}

static void test_moe_step(void)
{
    for (int i = 0; i < N_SHAPES; i++, data_free()) {
        problem p;
        make_problem(&p, &shapes[i]);
        check_values(&p, &shapes[i]);
        check_bits(&p);
        check_no_experts(&p);
    }
}

int main(int argc, char **argv)
{
    const char *missing = choose_backend(&argc, argv);
    if (missing)
        SKIP(missing);
    check_init(argc, argv);
    reopen(2);
    RUN(test_moe_step);
    kernels->device->close(stream);
    return check_done();
}
