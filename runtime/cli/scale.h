/* The results of `scale`, and how they are shown. */
#ifndef LH_RUNTIME_CLI_SCALE_H
#define LH_RUNTIME_CLI_SCALE_H

#include "runtime/cli/speed.h"

/* Prefill of `length` tokens; of as many for each rank; one sequence's decoding after as many. */
typedef enum lh_scale_kind {
    LH_SCALE_STRONG,
    LH_SCALE_WEAK,
    LH_SCALE_DECODE,
    LH_N_SCALE_KINDS
} lh_scale_kind;

/* Shares of a rank's time, in the mean over ranks. The first four add up to 1; imbalance is in
 * them: how much longer than the mean the slowest rank computes. */
typedef enum lh_share {
    LH_SHARE_COMPUTING,
    LH_SHARE_STATES,  /* state passing */
    LH_SHARE_EXPERTS, /* route, dispatch, combine */
    LH_SHARE_LATENTS, /* latent exchange */
    LH_SHARE_IMBALANCE,
    LH_N_SHARES
} lh_share;

typedef struct lh_scale_row {
    int ranks;
    int64_t tokens;       /* of the prompt, or before decoding */
    int prompt;           /* which of lh_scale.prompts it is */
    double mean_s, sd_s;  /* of a prefill, or of a token */
    double rate, rate_sd; /* tokens/s */
    double speedup;       /* against the smallest count */
    double efficiency;    /* speed-up / (ranks / those of the smallest count) */
    double shares[LH_N_SHARES];
    lh_phase phases[LH_CLI_PHASES]; /* of all repeats */
    int n_phases;
} lh_scale_row;

typedef struct lh_scale {
    lh_cli *c;
    lh_speed speed;
    int filled; /* --fill synthetic: decoding after contexts that are not computed */
    const int64_t *lengths;
    int n_lengths;
    int counts[LH_OPT_MAX_ITEMS], n_counts; /* rising */
    lh_scale_row *rows;                     /* [LH_N_SCALE_KINDS, n_lengths, n_counts] */
    lh_speed_row *prompts; /* different ones, with the logits that all counts must give */
    int n_prompts;
    const char *backend; /* of the engines */
    int64_t segment;
} lh_scale;

static inline lh_scale_row *lh_scale_row_at(const lh_scale *s, int kind, int length, int count)
{
    return &s->rows[(kind * s->n_lengths + length) * s->n_counts + count];
}

/* The last part of the model's path. */
const char *lh_scale_model(const lh_scale *s);

/* Tables on standard output, and the files that were asked for. On rank 0. */
lh_status lh_scale_report(const lh_scale *s);

/* Speed-up and efficiency over the ranks, a line for each length. */
lh_status lh_scale_svg(const char *path, const lh_scale *s);

#endif
