/*
 * The CUDA backend's work areas, in C that every build has: a machine without CUDA plans with the
 * same bytes as the one that runs.
 *
 * Each function lays an area out from `base` (NULL: only measures) and returns its bytes; SIZE_MAX:
 * does not fit in memory at all. Pieces are at multiples of 256 bytes.
 */
#ifndef LH_KERNELS_CUDA_WORK_H
#define LH_KERNELS_CUDA_WORK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of a stream: workspace of cuBLAS; ring of staged host arrays, pinned and on the device. */
#define LH_CUDA_BLAS_BYTES ((size_t)32 << 20)
#define LH_CUDA_STAGE_BYTES ((size_t)16 << 20)

#define LH_CUDA_KDA_IMAGE_BYTES 71680 /* of a chunk and head: kda_image */
#define LH_CUDA_KDA_GROUPS 8          /* of state columns */

typedef struct lh_cuda_kda_work {
    void *image;     /* [slots, n_heads] LH_CUDA_KDA_IMAGE_BYTES */
    void *v_largest; /* [n_tiles, n_heads, LH_CUDA_KDA_GROUPS] u32 */
} lh_cuda_kda_work;

/* Chunks of so many rows in tiles: each tile may end with a part of one. */
int64_t lh_cuda_kda_slots(int64_t n_rows, int n_tiles);
size_t lh_cuda_kda_layout(lh_cuda_kda_work *w, void *base, int64_t n_rows, int n_tiles,
                          int n_heads);

#define LH_CUDA_MLA_KV 256        /* of an expanded key and value, together */
#define LH_CUDA_MLA_LATENT 512    /* of a row of the cache, without d_rope */
#define LH_CUDA_MLA_WIDTH 576     /* of a row of the cache */
#define LH_CUDA_MLA_KEYS 65536    /* of a block of prefill */
#define LH_CUDA_MLA_HEADS 4       /* of it, for a long context; more for a shorter one */
#define LH_CUDA_MLA_SEQUENCES 128 /* of a launch of decode */
#define LH_CUDA_MLA_SHARES 132    /* blocks of threads; a sequence has at most so many ranges */
#define LH_CUDA_MLA_UNIT 64       /* keys: ranges are cut at multiples of it */
#define LH_CUDA_MLA_FIXED_UNITS 4 /* of a range, at least, where others may not show */
#define LH_CUDA_MLA_SECTIONS 8    /* of a sequence's ranges: what ranks share */

typedef struct lh_cuda_mla_prefill_work {
    void *kv[2]; /* [LH_CUDA_MLA_HEADS, LH_CUDA_MLA_KEYS, LH_CUDA_MLA_KV] bf16 */
    void *sum;   /* [n_rows, LH_CUDA_MLA_HEADS, d_v] f32 */
    void *state; /* [n_rows, LH_CUDA_MLA_HEADS] two f32 */
} lh_cuda_mla_prefill_work;

size_t lh_cuda_mla_prefill_layout(lh_cuda_mla_prefill_work *w, void *base, int64_t n_rows,
                                  int n_heads);

typedef struct lh_cuda_mla_decode_work {
    void *query;  /* [n_seq, n_heads, LH_CUDA_MLA_WIDTH] bf16 */
    void *merged; /* [n_seq, n_heads, LH_CUDA_MLA_LATENT] f32 */
    void *sum;    /* [ranges, n_heads, LH_CUDA_MLA_LATENT] f32 */
    void *state;  /* [ranges, n_heads] two f32 */
} lh_cuda_mla_decode_work;

/* n_seq: those of a launch count. */
size_t lh_cuda_mla_decode_layout(lh_cuda_mla_decode_work *w, void *base, int64_t n_seq,
                                 int64_t max_keys, int n_heads);

#define LH_CUDA_PLAN_ROWS 256   /* of a block of threads in plan_send */
#define LH_CUDA_PLAN_PAIRS 2048 /* and in plan_receive */

typedef struct lh_cuda_plan_work {
    int32_t *count; /* [n_columns, blocks], see plan.cu */
    int32_t *total; /* [n_columns] */
} lh_cuda_plan_work;

size_t lh_cuda_plan_layout(lh_cuda_plan_work *w, void *base, int64_t n_columns, int64_t n_blocks);

#ifdef __cplusplus
}
#endif
#endif
