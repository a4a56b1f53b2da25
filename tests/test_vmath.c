#include "kernels/cpu/vmath.h"
#include "tests/check.h"

/* Every so many floats; a prime, so that mantissas of all kinds come. */
#define STEP 4099

typedef struct worst {
    double error;
    float at;
} worst;

static void note(worst *w, float x, double got, double want)
{
    double e = fabs(got - want) / want;
    if (!(e <= w->error)) {
        w->error = e;
        w->at = x;
    }
}

static void test_accuracy(void)
{
    worst e = {0}, sigmoid = {0}, softplus = {0};

    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += STEP) {
        uint32_t b = (uint32_t)bits;
        float x;
        memcpy(&x, &b, sizeof x);
        if (!(x >= -87.3f && x <= 88.7f))
            continue;
        double exact = exp((double)x), opposite = exp(-(double)x);
        note(&e, x, (double)lh_exp(x), exact);
        note(&sigmoid, x, (double)lh_sigmoid(x), 1 / (1 + opposite));
        note(&softplus, x, (double)lh_softplus(x), x > 0 ? x + log1p(opposite) : log1p(exact));
    }
    /* half a unit in the last place is 6e-8 at most */
    CHECK_MSG(e.error <= 1.0e-7, "exp: off by %g at %g", e.error, (double)e.at);
    CHECK_MSG(sigmoid.error <= 2.5e-7, "sigmoid: off by %g at %g", sigmoid.error,
              (double)sigmoid.at);
    CHECK_MSG(softplus.error <= 3e-7, "softplus: off by %g at %g", softplus.error,
              (double)softplus.at);
}

static void test_ends(void)
{
    CHECK(lh_exp(0.0f) == 1.0f && lh_exp(-0.0f) == 1.0f);
    CHECK(lh_exp(-88.0f) == 0.0f && lh_exp(-INFINITY) == 0.0f && lh_exp(-3e38f) == 0.0f);
    CHECK(lh_exp(89.0f) == INFINITY && lh_exp(INFINITY) == INFINITY);
    CHECK(isnan(lh_exp(NAN)) && isnan(lh_sigmoid(NAN)) && isnan(lh_silu(NAN)));
    CHECK(lh_sigmoid(0.0f) == 0.5f && lh_sigmoid(100.0f) == 1.0f && lh_sigmoid(INFINITY) == 1.0f);
    CHECK(lh_sigmoid(-100.0f) == 0.0f && lh_sigmoid(-INFINITY) == 0.0f);
    CHECK(lh_silu(0.0f) == 0.0f && lh_silu(1e30f) == 1e30f && lh_silu(-1e30f) == 0.0f);
    CHECK(isnan(lh_softplus(NAN)) && lh_softplus(INFINITY) == INFINITY);
    CHECK(lh_softplus(30.0f) == 30.0f && lh_softplus(3e38f) == 3e38f);
    CHECK(lh_softplus(-INFINITY) == 0.0f && lh_softplus(-80.0f) > 0.0f);
}

/* In a loop that the compiler vectorizes: the bits of one call alone. */
static void test_lanes(void)
{
    enum { N = 1003 };
    static float x[N], y[N];

    for (int i = 0; i < N; i++)
        x[i] = (float)(check_normal() * 30);
    for (int i = 0; i < N; i++)
        y[i] = lh_softplus(x[i]) * lh_sigmoid(x[i]);
    for (int i = 0; i < N; i++) {
        volatile float alone = x[i];
        float one = lh_softplus(alone) * lh_sigmoid(alone);
        if (one != y[i])
            CHECK_MSG(one == y[i], "at %g: %g alone, %g in a loop", (double)x[i], (double)one,
                      (double)y[i]);
    }
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    RUN(test_accuracy);
    RUN(test_ends);
    RUN(test_lanes);
    return check_done();
}
