/*
 * How a token is drawn from the logits of its position. The token is a function of (logits, these
 * settings, number of the draw) alone, the same on every rank, machine and backend.
 *
 * Filters come in the order top_k, top_p, min_p on the softmax at the given temperature; the
 * survivors are renormalized. A NaN logit is never drawn unless all are NaN: then the token is 0.
 */
#ifndef LH_BASE_SAMPLING_H
#define LH_BASE_SAMPLING_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lh_sampling {
    float temperature; /* finite, >= 0; 0: greedy, the lowest id among equals */
    int top_k;         /* >= 0; 0: all */
    float top_p;       /* > 0, up to 1; 1: all */
    float min_p;       /* 0 to 1; 0: all */
    uint64_t seed;
} lh_sampling;

typedef struct lh_draw {
    lh_sampling how;
    uint64_t number; /* 0, 1, ..: of the tokens drawn with this seed */
} lh_draw;

/* The token of the largest logit. */
#define LH_DRAW_GREEDY ((lh_draw){.how = {.top_p = 1}})

#ifdef __cplusplus
}
#endif
#endif
