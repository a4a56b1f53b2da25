/* Parts of the needle test: texts to hide the number in, and the picture of the result. */
#ifndef LH_RUNTIME_CLI_NEEDLE_H
#define LH_RUNTIME_CLI_NEEDLE_H

#include "runtime/cli/cli.h"

/* Tokens of --haystack, else of this project's documents and the system's licence texts, else of a
 * built-in text; the same on every rank. Collective. *ids is for free(). */
lh_status lh_needle_haystack(lh_cli *c, int32_t **ids, int64_t *n_ids);

/* found of trials, [n_lengths][n_depths]. */
typedef struct lh_needle_grid {
    const int64_t *lengths, *depths;
    int n_lengths, n_depths, trials;
    const int *found;
} lh_needle_grid;

/* A heat map: lengths from left to right, depths from top to bottom. */
lh_status lh_needle_svg(const char *path, const lh_needle_grid *g);
#endif
