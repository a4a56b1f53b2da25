/* The cases of bench_kernels, by kind, all in the published shape. */
#ifndef LH_BENCH_CASES_H
#define LH_BENCH_CASES_H

#include "bench/rig.h"

enum {
    D_MODEL = 2304,
    HEADS = 32, /* of KDA and of MLA */
    D_HEAD = 128,
    WIDTH = HEADS * D_HEAD,
    TAPS = 4,
    D_NOPE = 128,
    D_ROPE = 64,
    D_LATENT = 512,
    EXPERTS = 256,
    D_EXPERT = 1024,
    TOP_K = 8,
    SEGMENT = 512 /* rows of a tile in prefill */
};

void cases_rows(rig *r);    /* embed, norms, convolution, latent, gather, combine, sample */
void cases_plan(rig *r);    /* plan_send, plan_receive */
void cases_product(rig *r); /* linear, router, ffn, moe_step */
void cases_kda(rig *r);     /* gates, prefill, step */
void cases_mla(rig *r);     /* prefill, decode */

#endif
