/*
 * The tests' own small harness: checks record and go on (a rank that leaves early would leave the
 * others waiting), every failure says where and what, a random test prints its seed and takes one
 * back with --seed.
 *
 *     int main(int argc, char **argv) { check_init(argc, argv); RUN(test_this); RUN(test_that);
 * return check_done(); }
 */
#ifndef LH_TESTS_CHECK_H
#define LH_TESTS_CHECK_H

#include <inttypes.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/status.h"

static int check_failures, check_count, check_ran;
static const char *check_filter;
static uint64_t check_seed;

#define CHECK_AT_(ok, ...)                                                                         \
    do {                                                                                           \
        check_count++;                                                                             \
        if (!(ok)) {                                                                               \
            check_failures++;                                                                      \
            printf("%s:%d: ", __FILE__, __LINE__);                                                 \
            printf(__VA_ARGS__);                                                                   \
            printf("\n");                                                                          \
            fflush(stdout);                                                                        \
        }                                                                                          \
    } while (0)
#define CHECK(cond) CHECK_AT_(cond, "failed: %s", #cond)
#define CHECK_MSG(cond, ...) CHECK_AT_(cond, __VA_ARGS__)
#define CHECK_EQ(got, want)                                                                        \
    do {                                                                                           \
        long long g_ = (long long)(got), w_ = (long long)(want);                                   \
        CHECK_AT_(g_ == w_, "%s is %lld, expected %lld", #got, g_, w_);                            \
    } while (0)
#define CHECK_STR(got, want)                                                                       \
    do {                                                                                           \
        const char *g_ = (got), *w_ = (want);                                                      \
        CHECK_AT_(strcmp(g_, w_) == 0, "%s is '%s', expected '%s'", #got, g_, w_);                 \
    } while (0)
#define CHECK_OK(call) CHECK_STATUS(call, LH_OK)
#define CHECK_STATUS(call, want)                                                                   \
    do {                                                                                           \
        lh_status s_ = (call);                                                                     \
        CHECK_AT_(s_ == (want), "%s: %s, expected %s: %s", #call, lh_status_name(s_),              \
                  lh_status_name(want), lh_last_error());                                          \
    } while (0)
/* got against want [n]: |got - want| <= tol * the largest |want|, or tol where all want is 0; NaN
 * fails. Types may differ. */
#define CHECK_NEAR(got, want, n, tol)                                                              \
    do {                                                                                           \
        double worst_ = 0, top_ = 0;                                                               \
        long long at_ = -1, bad_ = 0, n_ = (long long)(n);                                         \
        for (long long i_ = 0; i_ < n_; i_++)                                                      \
            top_ = fmax(top_, fabs((double)(want)[i_]));                                           \
        for (long long i_ = 0; i_ < n_; i_++) {                                                    \
            double e_ = fabs((double)(got)[i_] - (double)(want)[i_]) / (top_ > 0 ? top_ : 1);      \
            if (!(e_ <= (tol)) && bad_++ == 0)                                                     \
                at_ = i_;                                                                          \
            worst_ = e_ > worst_ || isnan(e_) ? e_ : worst_;                                       \
        }                                                                                          \
        CHECK_AT_(bad_ == 0,                                                                       \
                  "%s: %lld of %lld off by more than %g, worst %g, first [%lld]: %g, expected %g", \
                  #got, bad_, n_, (double)(tol), worst_, at_, (double)(got)[at_ < 0 ? 0 : at_],    \
                  (double)(want)[at_ < 0 ? 0 : at_]);                                              \
    } while (0)
#define CHECK_SAME_BITS(got, want, bytes)                                                          \
    CHECK_AT_(memcmp((got), (want), (bytes)) == 0, "%s and %s differ in bits", #got, #want)
#define RUN(test)                                                                                  \
    do {                                                                                           \
        if (!check_filter || strstr(#test, check_filter)) {                                        \
            int before_ = check_failures;                                                          \
            check_ran++;                                                                           \
            test();                                                                                \
            printf("%s %s\n", check_failures == before_ ? "ok  " : "FAIL", #test);                 \
            fflush(stdout);                                                                        \
        }                                                                                          \
    } while (0)
/* Only from main, before anything collective: ctest shows the test as skipped. */
#define SKIP(reason)                                                                               \
    do {                                                                                           \
        printf("skipped: %s\n", (reason));                                                         \
        return 77;                                                                                 \
    } while (0)

/* Arguments: --seed N, and a part of the names of the tests to run. */
static inline void check_init(int argc, char **argv)
{
    check_seed = 20251030;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc)
            check_seed = strcmp(argv[i + 1], "time") == 0 ? (uint64_t)time(NULL)
                                                          : strtoull(argv[i + 1], NULL, 0),
            i++;
        else
            check_filter = argv[i];
    }
    printf("seed %" PRIu64 "\n", check_seed);
}

static inline int check_done(void)
{
    printf("%d tests, %d checks, %d failed\n", check_ran, check_count, check_failures);
    return check_failures > 0 || check_ran == 0;
}

/* splitmix64: the same numbers everywhere. check_uniform in [0, 1), check_normal about N(0, 1). */
static inline uint64_t check_random(void)
{
    uint64_t z = (check_seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline double check_uniform(void)
{
    return (double)(check_random() >> 11) * 0x1p-53;
}

static inline double check_normal(void)
{
    double u = 1 - check_uniform(), v = check_uniform();
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

#endif
