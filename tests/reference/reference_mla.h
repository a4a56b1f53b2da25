/*
 * Attention of MLA in float64, as the model's definition says it: every key and value expanded, one
 * softmax over all keys of a query. For tests only.
 */
#ifndef LH_TESTS_REFERENCE_MLA_H
#define LH_TESTS_REFERENCE_MLA_H

#include <stdint.h>

#include "base/dtype.h"

typedef struct reference_mla {
    const float *q;       /* [n_rows, n_heads, d_nope + d_rope] */
    const float *latent;  /* [last position + 1, d_latent + d_rope] */
    const lh_bf16 *w_kvb; /* [n_heads, d_nope + d_v, d_latent] */
    int n_heads, d_nope, d_rope, d_v, d_latent;
} reference_mla;

/* o [n_rows, n_heads, d_v]; row i stands at position[i] and sees the keys 0 .. position[i]. */
void reference_mla_attend(double *o, const reference_mla *r, int64_t n_rows,
                          const int64_t *position);

#endif
