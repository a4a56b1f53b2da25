/* The median of measured times, and their standard deviation. */
#ifndef LH_BENCH_MEDIAN_H
#define LH_BENCH_MEDIAN_H

#include <math.h>
#include <stdlib.h>

static inline int median_by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts x [n], n >= 1; between the two in the middle when n is even. */
static inline double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, median_by_value);
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

/* Of x [n], n >= 2. */
static inline double deviation(const double *x, int n)
{
    double sum = 0, squares = 0;

    for (int i = 0; i < n; i++)
        sum += x[i];
    for (int i = 0; i < n; i++)
        squares += (x[i] - sum / n) * (x[i] - sum / n);
    return sqrt(squares / (n - 1));
}

#endif
