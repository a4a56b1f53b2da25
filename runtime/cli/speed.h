/*
 * Measured prefill and decoding, for `bench` and `scale`. Tokens are random, from --seed. Before
 * the times of a row are believed, the logits of its runs must be those of a reference run: the
 * last sequence alone, its prompt in two turns that meet between two segments, which is the same
 * computation in other blocks. The reference run also warms up. With --fill synthetic decoding
 * starts from caches of random values that no blocks could give; its reference is a first run from
 * the same values.
 */
#ifndef LH_RUNTIME_CLI_SPEED_H
#define LH_RUNTIME_CLI_SPEED_H

#include "runtime/cli/cli.h"

/* What is measured: a prompt of `length` tokens, or decoding after so many. */
typedef struct lh_speed_row {
    int is_decode;
    int is_filled; /* decoding after a context that was not computed */
    int64_t length;
    float *want;         /* [n_vocab] logits that every run must give; the caller's memory */
    int known;           /* 0: the reference run makes `want`; 1: it is held against it, too */
    double mean_s, sd_s; /* out: of one prefill, or of one step of decoding */
    double tokens;       /* out: in that time, of all sequences */
} lh_speed_row;

typedef struct lh_speed {
    lh_cli *c;
    int batch, repeat;
    int64_t room;        /* tokens of the longest sequence of all rows */
    const char *flags;   /* the options that ask for it, for messages */
    const char *where;   /* what else the same prompts are, for messages */
    int phases_of_a_row; /* 1: the engine's phases are those of the last row's measured runs */

    int exact;             /* the same bits are expected */
    double worst;          /* relative difference from other blocks' logits that was seen */
    int64_t n_vocab;       /* the following is speed.c's */
    lh_session **sessions; /* [batch] */
    lh_step_item *items;   /* [batch] */
    int32_t *tokens;       /* [batch, room] */
    float *logits;         /* [n_vocab] of the last sequence */
    int32_t *drawn;        /* [batch] tokens, which nobody reads */
    double *seconds;       /* [repeat] */
} lh_speed;

/* Tokens of a sequence that a row needs. */
int64_t lh_speed_room(const lh_speed *s, int is_decode, int64_t length);

/* After the fields above are set, c's model among them: memory and tokens. LH_ERR_USAGE: room
 * exceeds the context. Not collective. */
lh_status lh_speed_allocate(lh_speed *s);

/* The engine and its sessions of `context` tokens, at most room; another one after a close.
 * Collective over the ranks of the engine, as measure. */
lh_status lh_speed_open(lh_speed *s, int64_t context);

/* LH_ERR_INTERNAL: the logits are not those of the reference. */
lh_status lh_speed_measure(lh_speed *s, lh_speed_row *r);

void lh_speed_close(lh_speed *s); /* sessions and engine */
void lh_speed_free(lh_speed *s);  /* sessions and memory; the engine stays, for an abort */

/* Logits of the last sequence's last run. */
const float *lh_speed_logits(const lh_speed *s);

/* "the same bits", or by how much they differ at most. */
const char *lh_speed_validity(const lh_speed *s);

#endif
