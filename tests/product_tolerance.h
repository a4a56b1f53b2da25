/*
 * Tolerances of products, relative to the largest result. A sum of n products of random sign is off
 * by about sqrt(n) / 2 roundings (2^-24 each, more on a GPU: tests/kernel_data.h); the largest of
 * many results is some times the typical one.
 */
#ifndef LH_TESTS_PRODUCT_TOLERANCE_H
#define LH_TESTS_PRODUCT_TOLERANCE_H

#include "tests/kernel_data.h"

#define EPS 0x1p-24
/* Over a million sums and ten seeds the worst was 1.04 of (4 + sqrt n) EPS: half as much again. */
#define SUM(n_in) (1.5 * (4 + sqrt((double)(n_in))) * EPS)
#define TOL_PRODUCT(n_in) act_tol(SUM(n_in))
/* two products in a row, with the sigmoid's 4 roundings between them; what is between them may be
 * rounded to activations */
#define TOL_FFN(d, d_hidden)                                                                       \
    (act_tol(SUM(d) + SUM(d_hidden) + 8 * EPS) + 3 * backend_tolerances().rounding)

#endif
