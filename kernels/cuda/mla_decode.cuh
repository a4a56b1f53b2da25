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
#define MLA_SECTIONS LH_CUDA_MLA_SECTIONS

typedef struct mla_batch {
    const bf16 *const *latent; /* [n_seq] */
    const int64_t *n_keys;     /* [n_seq] */
    int n_seq, n_heads, deterministic;
    int first_section, n_sections; /* of MLA_SECTIONS: whose keys are attended to here */
    const bf16 *q;
    const bf16 *w_kvb;
    bf16 *o;
    bf16 *query;          /* [n_seq, n_heads, MLA_WIDTH]: in latent space */
    float *sum;           /* [ranges, n_heads, MLA_LATENT], not divided by the sum of the weights */
    float2 *state;        /* [ranges, n_heads]: maximum of the scores * MLA_SCALE_LOG2, sum */
    float *merged;        /* [n_seq, n_heads, MLA_LATENT] */
    float *partial;       /* the first sequence's rows of sections; or NULL */
    int64_t partial_size; /* from one sequence's row to the next */
    int64_t partial_stride; /* from one section's rows to the next */
} mla_batch;

/*
 * The cut of the keys. Deterministic: first[s] is the number of ranges of the sequences before s;
 * share i is range i. Otherwise: first[s] is the number of units of the sequences before s; share i
 * is `share` units from i * share on, and its part of sequence s is range i + s. Ranges and units
 * of sections that are not this launch's are not counted.
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

/* Deterministic: the ranges of a section; the last ones may have fewer or none. */
static __device__ __forceinline__ int section_ranges(int n_keys)
{
    int keys = range_units(n_keys) * MLA_UNIT, ranges = (n_keys + keys - 1) / keys;
    return (ranges + MLA_SECTIONS - 1) / MLA_SECTIONS;
}

/* The first range, or unit, of a section of a sequence; behind the last one: how many there are. */
static __device__ __forceinline__ int section_begin(const mla_batch *b, int n_keys, int section)
{
    int units = (n_keys + MLA_UNIT - 1) / MLA_UNIT, range = range_units(n_keys);

    return b->deterministic ? min((units + range - 1) / range, section * section_ranges(n_keys))
                            : (int)((int64_t)units * section / MLA_SECTIONS);
}

/* By all threads. */
static __device__ __forceinline__ void make_plan(mla_plan *c, const mla_batch *b)
{
    int i = threadIdx.x, lane = i % 32, n = 0;

    if (i < b->n_seq) {
        int keys = (int)b->n_keys[i];
        n = section_begin(b, keys, b->first_section + b->n_sections) -
            section_begin(b, keys, b->first_section);
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
    c->share = b->deterministic ? 1 : max(1, (n + MLA_SHARES - 1) / MLA_SHARES);
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
    int seq = find_seq(c, b->n_seq, at), n_keys = c->n_keys[seq];
    int in_seq = at - c->first[seq] + section_begin(b, n_keys, b->first_section);

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

/* Rows of one head of a sequence that are added up: ranges, or the sections that
 * all ranks made of them. */
typedef struct mla_rows {
    const float *sum;
    const float2 *state;
    int64_t sum_step, state_step; /* from one row to the next */
    int n, section;               /* rows; rows of a section */
} mla_rows;

/* The ranges that were attended to here. */
static __device__ __forceinline__ mla_rows ranges_of(const mla_plan *c, const mla_batch *b, int seq,
                                                     int head)
{
    int begin = c->first[seq], n = c->first[seq + 1] - begin;
    int section = section_ranges(c->n_keys[seq]);

    if (!b->deterministic) {
        int first = begin / c->share;
        n = n > 0 ? (begin + n - 1) / c->share - first + 1 : 0;
        section = (n + b->n_sections - 1) / b->n_sections;
        begin = first + seq;
    }
    int64_t row = (int64_t)begin * b->n_heads + head;
    mla_rows r = {b->sum + row * MLA_LATENT,
                  b->state + row,
                  (int64_t)b->n_heads * MLA_LATENT,
                  b->n_heads,
                  n,
                  section};
    return r;
}

static __device__ __forceinline__ mla_rows sections_of(const mla_batch *b, int seq, int head)
{
    const float *row = b->partial + seq * b->partial_size;
    mla_rows r = {row + head * MLA_LATENT,
                  (const float2 *)(row + b->n_heads * MLA_LATENT) + head,
                  b->partial_stride,
                  b->partial_stride / 2,
                  MLA_SECTIONS,
                  1};
    return r;
}

/* What sums against the maximum x are worth against `max`. Without keys x is -INFINITY. */
static __device__ __forceinline__ float worth(float x, float max)
{
    return x == max ? 1.0f : exp2_f(x - max);
}

/* Four latents of some rows, whose weights are against `max` and add up to `total`. */
typedef struct mla_added {
    float4 sum;
    float max, total;
} mla_added;

static __device__ __forceinline__ void add_scaled(float4 *sum, float4 x, float factor)
{
    sum->x = fmaf(x.x, factor, sum->x);
    sum->y = fmaf(x.y, factor, sum->y);
    sum->z = fmaf(x.z, factor, sum->z);
    sum->w = fmaf(x.w, factor, sum->w);
}

/* A row by itself. */
static __device__ __forceinline__ mla_added row_of(const mla_rows *r, int i, int column)
{
    float2 v = r->state[i * r->state_step];
    mla_added a = {*(const float4 *)(r->sum + i * r->sum_step + column), v.x, v.y};
    return a;
}

/* A section of the rows, in rising order, latents column .. column + 3. One that is a single row is
 * that row, bit by bit. */
static __device__ __forceinline__ mla_added add_section(const mla_rows *r, int section, int column)
{
    int begin = section * r->section, end = min(r->n, begin + r->section);
    mla_added a = {make_float4(0, 0, 0, 0), -INFINITY, 0};

#pragma unroll 8
    for (int i = begin; i < end; i++)
        a.max = fmaxf(a.max, r->state[i * r->state_step].x);
#pragma unroll 8
    for (int i = begin; i < end; i++) {
        float2 v = r->state[i * r->state_step];
        float factor = worth(v.x, a.max);
        a.total = fmaf(v.y, factor, a.total);
        add_scaled(&a.sum, *(const float4 *)(r->sum + i * r->sum_step + column), factor);
    }
    return a;
}

/* One more section, in rising order; all->max is that of all. */
static __device__ __forceinline__ void join_section(mla_added *all, const mla_added *a)
{
    float factor = worth(a->max, all->max);

    add_scaled(&all->sum, a->sum, factor);
    all->total = fmaf(a->total, factor, all->total);
}

/* This lane's latents of all sections, of which each warp of the block has added one. */
static __device__ __forceinline__ mla_added join_sections(const mla_added section[MLA_SECTIONS][32])
{
    int lane = threadIdx.x % 32;
    mla_added all = {make_float4(0, 0, 0, 0), -INFINITY, 0};

    for (int i = 0; i < MLA_SECTIONS; i++)
        all.max = fmaxf(all.max, section[i][lane].max);
    for (int i = 0; i < MLA_SECTIONS; i++)
        join_section(&all, &section[i][lane]);
    return all;
}

static __device__ __forceinline__ float4 latents_of(const mla_added *all)
{
    float scale = 1.0f / all->total;
    return make_float4(all->sum.x * scale, all->sum.y * scale, all->sum.z * scale,
                       all->sum.w * scale);
}

/* Rows of W_uv of four outputs: this lane's latents, j * 128 + lane * 4 .. + 3 of each. */
typedef struct mla_outputs {
    uint2 packed[4][4];
    float w[4][16];
} mla_outputs;

static __device__ __forceinline__ void load_outputs(mla_outputs *m, const bf16 *w)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            m->packed[i][j] = *(const uint2 *)(w + i * MLA_LATENT + j * 128 + threadIdx.x % 32 * 4);
}

/* Once they are there. */
static __device__ __forceinline__ void unpack_outputs(mla_outputs *m)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            m->w[i][4 * j] = __uint_as_float(m->packed[i][j].x << 16);
            m->w[i][4 * j + 1] = __uint_as_float(m->packed[i][j].x & 0xffff0000u);
            m->w[i][4 * j + 2] = __uint_as_float(m->packed[i][j].y << 16);
            m->w[i][4 * j + 3] = __uint_as_float(m->packed[i][j].y & 0xffff0000u);
        }
}

/* One step of two sums over the lanes: those with bit `m` go on with `high`, the others with
 * `low`. */
static __device__ __forceinline__ float halve(float low, float high, int m)
{
    int upper = threadIdx.x & m;
    float kept = upper ? high : low;
    return kept + __shfl_xor_sync(0xffffffffu, upper ? low : high, m);
}

/* Four outputs o of one head from its latents x, by a warp: sums in the order of warp_sum, but the
 * four of them share its steps. */
static __device__ __forceinline__ void write_outputs(bf16 *o, const mla_outputs *m, const float *x)
{
    int lane = threadIdx.x % 32;
    float sum[4] = {};

#pragma unroll
    for (int j = 0; j < 4; j++) {
        float4 v = *(const float4 *)&x[j * 128 + lane * 4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum[i] = fmaf(m->w[i][4 * j], v.x, sum[i]);
            sum[i] = fmaf(m->w[i][4 * j + 1], v.y, sum[i]);
            sum[i] = fmaf(m->w[i][4 * j + 2], v.z, sum[i]);
            sum[i] = fmaf(m->w[i][4 * j + 3], v.w, sum[i]);
        }
    }
    float own = halve(halve(sum[0], sum[2], 16), halve(sum[1], sum[3], 16), 8);
    for (int k = 4; k > 0; k /= 2)
        own += __shfl_xor_sync(0xffffffffu, own, k);
    if (lane % 8 == 0)
        o[lane / 16 * 2 + lane / 8 % 2] = __float2bfloat16_rn(own);
}

/* The same two steps for Hopper: the sums of ranges, while the queries are being brought into
 * latent space; the result from ranges or sections. */
lh_status lh_cuda_mla_attend_ranges_sm90(lh_stream *s, const mla_batch *b);
lh_status lh_cuda_mla_finish_sm90(lh_stream *s, const mla_batch *b);

#endif
