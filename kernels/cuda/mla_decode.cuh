/*
 * What the two versions of MLA decode share: the arguments of their kernels and the cut of all keys
 * into shares, which every block of threads makes for itself, because only the device knows how
 * many keys there are.
 */
#ifndef LH_KERNELS_CUDA_MLA_DECODE_CUH
#define LH_KERNELS_CUDA_MLA_DECODE_CUH

#include "kernels/cuda/mla.cuh"

#define MLA_MAX_SEQ LH_CUDA_MLA_SEQUENCES
#define MLA_SHARES LH_CUDA_MLA_SHARES
#define MLA_UNIT LH_CUDA_MLA_UNIT /* both sizes of tile divide it */
#define MLA_FIXED_UNITS LH_CUDA_MLA_FIXED_UNITS

typedef struct mla_batch {
    const bf16 *const *latent; /* [n_seq] */
    const int64_t *n_keys;     /* [n_seq] */
    int n_seq, n_heads, deterministic;
    const bf16 *q;
    const bf16 *w_kvb;
    bf16 *o;
    bf16 *query;   /* [n_seq, n_heads, MLA_WIDTH]: in latent space */
    float *sum;    /* [ranges, n_heads, MLA_LATENT], not divided by the sum of the weights */
    float2 *state; /* [ranges, n_heads]: maximum of the scores * MLA_SCALE_LOG2, sum */
    float *merged; /* [n_seq, n_heads, MLA_LATENT] */
} mla_batch;

/*
 * The cut of all keys. Deterministic: first[s] is the number of ranges of the sequences before s;
 * share i is range i. Otherwise: first[s] is the number of units of the sequences before s; share i
 * is `share` units from i * share on, and its part of sequence s is range i + s.
 */
typedef struct mla_plan {
    int first[MLA_MAX_SEQ + 1], n_keys[MLA_MAX_SEQ], warp_sum[MLA_MAX_SEQ / 32];
    int share, n_shares;
} mla_plan;

typedef struct mla_part {
    int seq, begin, end; /* keys */
    int range;           /* its place in sum and state */
} mla_part;

static __device__ __forceinline__ int range_units(int n_keys)
{
    return max(MLA_FIXED_UNITS, ((n_keys + MLA_UNIT - 1) / MLA_UNIT + MLA_SHARES - 1) / MLA_SHARES);
}

/* By all threads. */
static __device__ __forceinline__ void make_plan(mla_plan *c, const mla_batch *b)
{
    int i = threadIdx.x, lane = i % 32, n = 0;

    if (i < b->n_seq) {
        int keys = (int)b->n_keys[i], units = (keys + MLA_UNIT - 1) / MLA_UNIT,
            fixed = range_units(keys);
        n = b->deterministic ? (units + fixed - 1) / fixed : units;
        c->n_keys[i] = keys;
    }
    for (int m = 1; m < 32; m *= 2) {
        int before = __shfl_up_sync(0xffffffffu, n, m);
        n += lane >= m ? before : 0;
    }
    if (i < MLA_MAX_SEQ && lane == 31)
        c->warp_sum[i / 32] = n;
    __syncthreads();
    for (int w = 0; w < i / 32 && i < MLA_MAX_SEQ; w++)
        n += c->warp_sum[w];
    if (i < b->n_seq)
        c->first[i + 1] = n;
    if (i == 0)
        c->first[0] = 0;
    __syncthreads();
    n = c->first[b->n_seq];
    c->share = b->deterministic ? 1 : (n + MLA_SHARES - 1) / MLA_SHARES;
    c->n_shares = (n + c->share - 1) / c->share;
    __syncthreads();
}

static __device__ __forceinline__ int find_seq(const mla_plan *c, int n_seq, int at)
{
    int seq = 0;

    for (int step = MLA_MAX_SEQ / 2; step > 0; step /= 2)
        if (seq + step < n_seq && c->first[seq + step] <= at)
            seq += step;
    return seq;
}

/* The part of share i that begins with its unit (or range) `at`; *next is the one behind it. */
static __device__ __forceinline__ mla_part part_at(const mla_plan *c, const mla_batch *b, int i,
                                                   int at, int *next)
{
    int seq = find_seq(c, b->n_seq, at), n_keys = c->n_keys[seq], in_seq = at - c->first[seq];

    *next = b->deterministic ? at + 1 : min((i + 1) * c->share, c->first[seq + 1]);
    int units = b->deterministic ? range_units(n_keys) : 1;
    mla_part p = {seq, in_seq * units * MLA_UNIT,
                  min((in_seq + *next - at) * units * MLA_UNIT, n_keys),
                  b->deterministic ? at : i + seq};
    return p;
}

/* The parts of the shares of this block of threads, one after the other. */
typedef struct mla_walk {
    int share, at, end;
} mla_walk;

static __device__ __forceinline__ mla_walk walk_from(int share, int step)
{
    mla_walk w = {share - step, 0, 0};
    return w;
}

static __device__ __forceinline__ bool walk_next(mla_walk *w, const mla_plan *c, const mla_batch *b,
                                                 int step, mla_part *p)
{
    if (w->at >= w->end) {
        w->share += step;
        if (w->share >= c->n_shares)
            return false;
        w->at = w->share * c->share;
        w->end = min(w->at + c->share, c->first[b->n_seq]);
    }
    *p = part_at(c, b, w->share, w->at, &w->at);
    return true;
}

/* The ranges of a sequence: their number; *first is the first. */
static __device__ __forceinline__ int ranges_of(const mla_plan *c, const mla_batch *b, int seq,
                                                int *first)
{
    int begin = c->first[seq], end = c->first[seq + 1];

    *first = b->deterministic ? begin : begin / c->share + seq;
    return b->deterministic ? end - begin : (end - 1) / c->share - begin / c->share + 1;
}

/* Attention and what follows, for Hopper; the queries are being brought into latent space. */
lh_status lh_cuda_mla_step_sm90(lh_stream *s, const mla_batch *b);

#endif
