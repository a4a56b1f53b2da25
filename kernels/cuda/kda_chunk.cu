/*
 * KDA inside chunks (Kimi Linear report, section 3.1): decayed scores, the inverse of the unit
 * triangle, u and w, and the images of operands for the chain. One block per chunk and head.
 *
 * Exponents. With x the gates in units of log2, all that is needed are 2^(X_i - X_j), i >= j. For
 * each 16-row block and channel there are two whole numbers, A near X at its first row and E near X
 * at its last; q and k of row i are scaled by 2^(X_i - A), k of row j by 2^(E - X_j), both at most
 * 2^0.5, and the decay between the blocks, 2^(A - E), is a power of two, by which a bf16 operand is
 * multiplied without rounding. The same serves the blocks on the diagonal, where A - E >= 0, as
 * long as 2^(A - E) leaves room in f32; a block with a stronger decay in any channel is halved.
 * Gates below LOWEST are taken as it: whatever they decay is 0 either way.
 *
 * The inverse is made in f32 (16x16 blocks by substitution) and products of bf16 pairs (hi + lo).
 */
#include "kernels/cuda/kda.cuh"

#define THREADS 256
#define LOWEST -150.0f   /* log2: 2^-150 is 0 in f32 */
#define STRONGEST 100.0f /* log2: a block of 16 rows with more decay than this is halved */
#define LD 20            /* floats in a row of a 16x16 block */

/* Rows of tokens: 16-byte pieces are swapped by the row, so that 8 rows lie in different banks. */
typedef struct chunk_shared {
    union {
        bf16 lq[LH_CHUNK * KDA_D];      /* q 2^(X - A) */
        bf16 t[2][LH_CHUNK * LH_CHUNK]; /* then the inverse times beta, hi and lo */
    };
    bf16 lk[LH_CHUNK * KDA_D]; /* k 2^(X - A) */
    bf16 r[LH_CHUNK * KDA_D];  /* k 2^(E - X) */
    bf16 v[LH_CHUNK * KDA_D];
    union {
        struct {
            __half q[LH_CHUNK * KDA_D]; /* q exp(G) */
            __half k[LH_CHUNK * KDA_D]; /* k exp(G_last - G) */
        };
        struct {
            float a[KDA_PAIRS][16][LD]; /* scores of keys times beta; inverses on the diagonal */
            float strong_scores[2][4][16][LD]; /* of q and of k, on the diagonal */
            float x[16][KDA_D + 8];            /* of such a block: sums of gates, q, k */
            bf16 block_q[16 * KDA_D], block_k[16 * KDA_D];
        };
    };
    float total[4][KDA_D], first[4][KDA_D]; /* of x in each block: sum, and the first row's */
    bf16 between[KDA_PAIRS][KDA_D];         /* 2^(A - E) */
    bf16 from_start[4][KDA_D];              /* 2^A */
    float beta[LH_CHUNK];
    int strong[4];
} chunk_shared;

typedef struct chunk_args {
    const bf16 *q, *k, *v;
    const float *g, *beta;
    const int64_t *start;
    kda_work work;
    int n_tiles, n_heads;
} chunk_args;

static __device__ __forceinline__ int pair_of(int i, int j)
{
    return i * (i + 1) / 2 + j;
}

static __device__ __forceinline__ int at_token(int row, int column)
{
    return row * KDA_D + (((column >> 3) ^ (row & 7)) << 3) + (column & 7);
}

static __device__ __forceinline__ int at_inverse(int row, int column)
{
    return row * LH_CHUNK + (((column >> 3) ^ (row & 7)) << 3) + (column & 7);
}

/* The last tile whose first slot is not after `slot`: by 32 probes at a time. */
static __device__ int tile_of_slot(const int64_t *start, int n_tiles, int64_t slot)
{
    int low = 0, n = n_tiles, lane = threadIdx.x % 32;

    while (n > 1) {
        int step = (n + 31) / 32, at = low + lane * step;
        unsigned before =
            __ballot_sync(0xffffffffu, lane * step < n && kda_first_slot(start, at) <= slot);
        int last = 31 - __clz(before);
        n = min(step, n - last * step);
        low += last * step;
    }
    return low;
}

static __device__ void load_v(chunk_shared *s, const bf16 *v, int64_t ld, int n)
{
    for (int i = threadIdx.x; i < LH_CHUNK * KDA_D / 8; i += THREADS) {
        int row = i / (KDA_D / 8), column = i % (KDA_D / 8) * 8, bytes = row < n ? 16 : 0;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                         shared_address(s->v + at_token(row, column))),
                     "l"(v + (row < n ? row : 0) * ld + column), "r"(bytes)
                     : "memory");
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Everything that is done channel by channel: a thread has two channels of one block of rows. */
static __device__ void scale_rows(chunk_shared *s, const chunk_args *a, int64_t at, int64_t ld,
                                  int n, float *decay)
{
    int block = threadIdx.x / 64, channel = threadIdx.x % 64 * 2;
    float x[16][2], prefix = 0, last = 0, from = 0, to = 0, rest = 0;
    unsigned q[16], k[16];

    at += block * 16 * ld + channel;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        int there = block * 16 + i < n;
        float2 g = there ? __ldcs((const float2 *)(a->g + at + i * ld)) : make_float2(0, 0);
        q[i] = there ? __ldcs((const unsigned *)(a->q + at + i * ld)) : 0;
        k[i] = there ? __ldcs((const unsigned *)(a->k + at + i * ld)) : 0;
        x[i][0] = g.x;
        x[i][1] = g.y;
    }
    float sum[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 16; i++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            sum[c] += fmaxf(x[i][c] * 1.44269504f, LOWEST);
            x[i][c] = sum[c];
        }
    *(float2 *)&s->total[block][channel] = make_float2(sum[0], sum[1]);
    *(float2 *)&s->first[block][channel] = make_float2(x[0][0], x[0][1]);
    __syncthreads(); /* the totals of the other blocks */

    float to_q[2], to_k[2], base_l[2], base_r[2];
#pragma unroll
    for (int c = 0; c < 2; c++) {
        float anchor[4], end[4];
        prefix = rest = last = from = to = 0;
#pragma unroll
        for (int b = 0; b < 4; b++) {
            float total = s->total[b][channel + c];
            anchor[b] = rintf(last + s->first[b][channel + c]);
            end[b] = rintf(last + total);
            if (b == block) {
                prefix = last;
                from = anchor[b];
                to = end[b];
            }
            last += total;
        }
#pragma unroll
        for (int b = 3; b >= 0; b--)
            rest = b >= block ? rest + s->total[b][channel + c] : rest;
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j <= i; j++)
                if ((pair_of(i, j) & 3) == block) {
                    int e = (int)fminf(anchor[i] - end[j], 127.0f);
                    ((unsigned short *)s->between[pair_of(i, j)])[channel + c] =
                        (unsigned short)(e < -126 ? 0 : (e + 127) << 7);
                }
        ((unsigned short *)s->from_start[block])[channel + c] =
            (unsigned short)(from < -126 ? 0 : ((int)from + 127) << 7);
        if (from - to > STRONGEST)
            s->strong[block] = 1;
        base_l[c] = prefix - from;
        base_r[c] = to - prefix;
        to_q[c] = exp2_fast(prefix - base_l[c]);
        to_k[c] = exp2_fast(rest - base_r[c]);
        if (block == 0)
            decay[channel + c] = exp2_fast(last);
    }
#pragma unroll
    for (int i = 0; i < 16; i++) {
        float2 fq = unpack_bf16(q[i]), fk = unpack_bf16(k[i]);
        float l0 = exp2_fast(x[i][0] + base_l[0]), l1 = exp2_fast(x[i][1] + base_l[1]);
        float r0 = fk.x * exp2_fast(base_r[0] - x[i][0]);
        float r1 = fk.y * exp2_fast(base_r[1] - x[i][1]);
        int to_here = at_token(block * 16 + i, channel);
        fq.x *= l0, fq.y *= l1;
        *(unsigned *)(s->lq + to_here) = pack_bf16(fq.x, fq.y);
        *(unsigned *)(s->lk + to_here) = pack_bf16(fk.x * l0, fk.y * l1);
        *(unsigned *)(s->r + to_here) = pack_bf16(r0, r1);
        *(unsigned *)(s->q + to_here) = pack_half(fq.x * to_q[0], fq.y * to_q[1]);
        *(unsigned *)(s->k + to_here) = pack_half(r0 * to_k[0], r1 * to_k[1]);
    }
}

/* Row and 8-column piece that a lane names for load_matrices: the second matrix lies `right` or
 * below. */
static __device__ __forceinline__ int matrix_row(int lane, int right)
{
    return (right ? lane >> 4 : lane >> 3 & 1) * 8 + (lane & 7);
}

static __device__ __forceinline__ int matrix_column(int lane, int right)
{
    return (right ? lane >> 3 & 1 : lane >> 4) * 8;
}

static __device__ void write_scaled(const chunk_shared *s, kda_image *image)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        image->q[warp][i][lane] = load_matrices(shared_address(
            s->q + at_token(i * 16 + matrix_row(lane, 0), warp * 16 + matrix_column(lane, 0))));
        image->k[i][warp][lane] = load_matrices_transposed(shared_address(
            s->k + at_token(i * 16 + matrix_row(lane, 0), warp * 16 + matrix_column(lane, 0))));
    }
}

static __device__ __forceinline__ unsigned scaled_pair(unsigned x, float f0, float f1)
{
    float2 y = unpack_bf16(x);
    return pack_bf16(y.x * f0, y.y * f1);
}

/*
 * A diagonal block of scores whatever its decay, by halving: rows 8 .. 15 with keys 0 .. 7, in each
 * half the upper 4 rows with the lower 4 keys, and so on; each has its anchor between. A warp takes
 * all blocks of one size, the fifth the diagonal itself.
 */
static __device__ void score_strong(chunk_shared *s, const chunk_args *a, int64_t at, int64_t ld,
                                    int n, int block)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, half = 8 >> warp;
    int row = lane / 4, column = lane % 4 * 2;
    float cq[2][4] = {}, ck[2][4] = {};

    at += block * 16 * ld;
    n -= block * 16;
    if (threadIdx.x < KDA_D) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 16; i++) {
            float g = i < n ? a->g[at + i * ld + threadIdx.x] : 0.0f;
            sum += fmaxf(g * 1.44269504f, LOWEST);
            s->x[i][threadIdx.x] = sum;
        }
    } else {
#pragma unroll
        for (int i = threadIdx.x - KDA_D; i < 16 * KDA_D / 8; i += THREADS - KDA_D) {
            int r = i / 16, c = i % 16 * 8;
            uint4 zero = make_uint4(0, 0, 0, 0);
            *(uint4 *)(s->block_q + at_token(r, c)) =
                r < n ? *(const uint4 *)(a->q + at + r * ld + c) : zero;
            *(uint4 *)(s->block_k + at_token(r, c)) =
                r < n ? *(const uint4 *)(a->k + at + r * ld + c) : zero;
        }
    }
    __syncthreads(); /* s->x, s->block_q, s->block_k */
    if (warp < 5) {
#pragma unroll 2
        for (int step = 0; step < 8; step++) {
            unsigned q[2][2], left[2][2], right[2][2];
#pragma unroll
            for (int r = 0; r < 2; r++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    int i = row + r * 8, channel = step * 16 + column + c * 8, upper = i & half;
                    int anchor = (i & ~(2 * half - 1)) + half;
                    unsigned q_in = *(const unsigned *)(s->block_q + at_token(i, channel));
                    unsigned k_in = *(const unsigned *)(s->block_k + at_token(i, channel));
                    if (warp == 4) {
                        q[r][c] = q_in;
                        left[r][c] = right[r][c] = k_in;
                    } else {
                        float2 x = *(const float2 *)&s->x[i][channel];
                        float2 y = *(const float2 *)&s->x[anchor][channel];
                        float f0 = exp2_fast(-fabsf(x.x - y.x)), f1 = exp2_fast(-fabsf(x.y - y.y));
                        unsigned k = scaled_pair(k_in, f0, f1);
                        q[r][c] = upper ? scaled_pair(q_in, f0, f1) : 0;
                        left[r][c] = upper ? k : 0;
                        right[r][c] = upper ? 0 : k;
                    }
                }
            uint4 lq = make_uint4(q[0][0], q[1][0], q[0][1], q[1][1]);
            uint4 lk = make_uint4(left[0][0], left[1][0], left[0][1], left[1][1]);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                mma_bf16(cq[h], lq, right[h][0], right[h][1]);
                mma_bf16(ck[h], lk, right[h][0], right[h][1]);
            }
        }
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int to = row + e / 2 * 8, from = h * 8 + column + e % 2;
                int mine = warp == 4 ? to == from
                                     : (to ^ from) < 2 * half && (to & half) && !(from & half);
                if (mine) {
                    s->strong_scores[0][block][to][from] = cq[h][e];
                    s->strong_scores[1][block][to][from] = ck[h][e];
                }
            }
    }
    __syncthreads(); /* s->x is free, the scores are there */
}

static __device__ __forceinline__ unsigned times_bf16(unsigned x, unsigned y)
{
    __nv_bfloat162 z = __hmul2(*(__nv_bfloat162 *)&x, *(__nv_bfloat162 *)&y);
    return *(unsigned *)&z;
}

/* A 16x16 block of both scores, of query block i with key block j. */
typedef struct score_sums {
    int i, j;
    float q[2][4], k[2][4];
} score_sums;

static __device__ __forceinline__ score_sums score_begin(int p)
{
    int i = p < 1 ? 0 : p < 3 ? 1 : p < 6 ? 2 : 3;
    return score_sums{.i = i, .j = p - pair_of(i, 0), .q = {}, .k = {}};
}

static __device__ __forceinline__ void score_step(score_sums *c, const chunk_shared *s, int step)
{
    int lane = threadIdx.x % 32, p = pair_of(c->i, c->j), column = step * 16 + lane % 4 * 2;
    int left = at_token(c->i * 16 + matrix_row(lane, 0), step * 16 + matrix_column(lane, 0));
    int right = at_token(c->j * 16 + matrix_row(lane, 1), step * 16 + matrix_column(lane, 1));
    uint4 q = load_matrices(shared_address(s->lq + left));
    uint4 k = load_matrices(shared_address(s->lk + left));
    uint4 b = load_matrices(shared_address(s->r + right));
    unsigned d0 = *(const unsigned *)&s->between[p][column];
    unsigned d1 = *(const unsigned *)&s->between[p][column + 8];

    q.x = times_bf16(q.x, d0), q.y = times_bf16(q.y, d0);
    q.z = times_bf16(q.z, d1), q.w = times_bf16(q.w, d1);
    k.x = times_bf16(k.x, d0), k.y = times_bf16(k.y, d0);
    k.z = times_bf16(k.z, d1), k.w = times_bf16(k.w, d1);
    mma_bf16(c->q[0], q, b.x, b.y);
    mma_bf16(c->q[1], q, b.z, b.w);
    mma_bf16(c->k[0], k, b.x, b.y);
    mma_bf16(c->k[1], k, b.z, b.w);
}

static __device__ __forceinline__ void score_end(score_sums *c, chunk_shared *s, kda_image *image)
{
    int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
    int i = c->i, p = pair_of(i, c->j), diagonal = i == c->j, strong = diagonal && s->strong[i];

#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int to = row + e / 2 * 8, from = h * 8 + column + e % 2;
            float q = strong ? s->strong_scores[0][i][to][from] : c->q[h][e];
            float k = strong ? s->strong_scores[1][i][to][from] : c->k[h][e];
            c->q[h][e] = !diagonal || to >= from ? q : 0.0f;
            s->a[p][to][from] = !diagonal || to > from ? s->beta[i * 16 + to] * k : 0.0f;
        }
    image->scores[p][lane] =
        make_uint4(pack_half(c->q[0][0], c->q[0][1]), pack_half(c->q[0][2], c->q[0][3]),
                   pack_half(c->q[1][0], c->q[1][1]), pack_half(c->q[1][2], c->q[1][3]));
}

/* All of them: two warps have two, side by side. */
static __device__ void score(chunk_shared *s, kda_image *image)
{
    int warp = threadIdx.x / 32, two = warp + 8 < KDA_PAIRS;
    score_sums x = score_begin(warp), y = score_begin(two ? warp + 8 : warp);

#pragma unroll
    for (int step = 0; step < 8; step++) {
        score_step(&x, s, step);
        if (two)
            score_step(&y, s, step);
    }
    score_end(&x, s, image);
    if (two)
        score_end(&y, s, image);
}

/* The inverse of a diagonal block of I + a, in place: a lane has a column. */
static __device__ void invert_diagonal(float (*a)[LD])
{
    int column = threadIdx.x % 16;
    float x[16];

#pragma unroll
    for (int i = 0; i < 16; i++) {
        float sum[2] = {i == column ? 1.0f : 0.0f, 0};
#pragma unroll
        for (int j = 0; j < i; j++)
            sum[j & 1] -= a[i][j] * x[j];
        x[i] = sum[0] + sum[1];
    }
    __syncwarp(); /* all have read */
#pragma unroll
    for (int i = 0; i < 16; i++)
        a[i][column] = x[i];
}

/* A left operand in two parts: their sum is the f32 value but for 2^-17 of it. */
typedef struct split {
    uint4 hi, lo;
} split;

static __device__ __forceinline__ void split_two(unsigned *hi, unsigned *lo, float x, float y)
{
    *hi = pack_bf16(x, y);
    float2 r = unpack_bf16(*hi);
    *lo = pack_bf16(x - r.x, y - r.y);
}

/* c holds the two 8-column halves of a 16x16 block as accumulators. */
static __device__ __forceinline__ split split_left(const float (&c)[2][4])
{
    split s;
    split_two(&s.hi.x, &s.lo.x, c[0][0], c[0][1]);
    split_two(&s.hi.y, &s.lo.y, c[0][2], c[0][3]);
    split_two(&s.hi.z, &s.lo.z, c[1][0], c[1][1]);
    split_two(&s.hi.w, &s.lo.w, c[1][2], c[1][3]);
    return s;
}

/* Sums of the parts of a product, apart because each waits for its last. */
typedef struct sums {
    float c[3][2][4];
} sums;

/* s += left b^T */
static __device__ __forceinline__ void product(sums *s, split left, const float (*b)[LD])
{
    int lane = threadIdx.x % 32, column = lane % 4 * 2;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        float2 x = *(const float2 *)&b[h * 8 + lane / 4][column];
        float2 y = *(const float2 *)&b[h * 8 + lane / 4][column + 8];
        unsigned hi[2], lo[2];
        split_two(&hi[0], &lo[0], x.x, x.y);
        split_two(&hi[1], &lo[1], y.x, y.y);
        mma_bf16(s->c[0][h], left.hi, hi[0], hi[1]);
        mma_bf16(s->c[1][h], left.lo, hi[0], hi[1]);
        mma_bf16(s->c[2][h], left.hi, lo[0], lo[1]);
    }
}

static __device__ __forceinline__ void add_up(float (&c)[2][4], const sums *s, float sign)
{
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            c[h][e] = sign * (s->c[0][h][e] + (s->c[1][h][e] + s->c[2][h][e]));
}

/* Block (i, j) of the inverse, given transposed, into shared memory, times beta of its columns. */
static __device__ __forceinline__ void write_inverse(chunk_shared *s, const float (&c)[2][4], int i,
                                                     int j)
{
    int lane = threadIdx.x % 32;

#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int row = i * 16 + h * 8 + lane % 4 * 2 + e % 2, column = j * 16 + lane / 4 + e / 2 * 8;
            float x = c[h][e] * s->beta[column];
            bf16 hi = __float2bfloat16(x);
            s->t[0][at_inverse(row, column)] = hi;
            s->t[1][at_inverse(row, column)] = __float2bfloat16(x - __bfloat162float(hi));
        }
}

/*
 * Block column j of the inverse, from the top: T_ij = -T_ii sum over m of A_im T_mj, m = j .. i
 * - 1. Transposed throughout: a product's accumulators are the next product's left operand.
 */
static __device__ void invert_column(chunk_shared *s, int j)
{
    int lane = threadIdx.x % 32;
    split t[3];
    float c[2][4];

#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            c[h][e] = s->a[pair_of(j, j)][h * 8 + lane % 4 * 2 + e % 2][lane / 4 + e / 2 * 8];
    write_inverse(s, c, j, j);
    t[0] = split_left(c);
#pragma unroll
    for (int n = 1; n < 4; n++) {
        int i = j + n;
        if (i > 3)
            break;
        sums sum = {}, next = {};
#pragma unroll
        for (int m = 0; m < n; m++)
            product(&sum, t[m], s->a[pair_of(i, j + m)]);
        add_up(c, &sum, -1);
        product(&next, split_left(c), s->a[pair_of(i, i)]);
        add_up(c, &next, 1);
        write_inverse(s, c, i, j);
        if (n < 3)
            t[n] = split_left(c);
    }
}

static __device__ __forceinline__ unsigned largest_bf16(unsigned x, unsigned y)
{
    __nv_bfloat162 z = __hmax2(*(__nv_bfloat162 *)&x, __habs2(*(__nv_bfloat162 *)&y));
    return *(unsigned *)&z;
}

/* u = T v and w = T (k exp(G)), beta being in T. A warp has 16 columns of each. */
static __device__ void solve(const chunk_shared *s, kda_image *image, unsigned *v_largest)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint4 v[4], k[4];
    unsigned top = 0;

#pragma unroll
    for (int j = 0; j < 4; j++) {
        __nv_bfloat162 d0 = __bfloat162bfloat162(s->from_start[j][warp * 16 + lane / 4]);
        __nv_bfloat162 d1 = __bfloat162bfloat162(s->from_start[j][warp * 16 + lane / 4 + 8]);
        v[j] = load_matrices_transposed(shared_address(
            s->v + at_token(j * 16 + matrix_row(lane, 1), warp * 16 + matrix_column(lane, 1))));
        k[j] = load_matrices_transposed(shared_address(
            s->lk + at_token(j * 16 + matrix_row(lane, 0), warp * 16 + matrix_column(lane, 0))));
        k[j].x = times_bf16(k[j].x, *(unsigned *)&d0),
        k[j].y = times_bf16(k[j].y, *(unsigned *)&d0);
        k[j].z = times_bf16(k[j].z, *(unsigned *)&d1),
        k[j].w = times_bf16(k[j].w, *(unsigned *)&d1);
        top = largest_bf16(largest_bf16(top, v[j].x), v[j].y);
        top = largest_bf16(largest_bf16(top, v[j].z), v[j].w);
    }
    float2 both = unpack_bf16(top);
    float largest = warp_max(fmaxf(both.x, both.y));
    int scale = kda_scale_exponent(largest);
    float up = power_of_two(scale);
    if (lane == 0) {
        image->v_scale[warp] = power_of_two(-scale);
        atomicMax(v_largest + warp, __float_as_uint(largest)); /* the order does not matter */
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float u[2][4] = {}, w[2][4] = {};
#pragma unroll
        for (int j = 0; j <= i; j++) {
            int at = at_inverse(i * 16 + matrix_row(lane, 1), j * 16 + matrix_column(lane, 1));
            uint4 hi = load_matrices(shared_address(s->t[0] + at));
            uint4 lo = load_matrices(shared_address(s->t[1] + at));
            uint4 left_hi = make_uint4(hi.x, hi.z, hi.y, hi.w);
            uint4 left_lo = make_uint4(lo.x, lo.z, lo.y, lo.w);
            mma_bf16(u[0], v[j], lo.x, lo.y);
            mma_bf16(u[1], v[j], lo.z, lo.w);
            mma_bf16(w[0], left_lo, k[j].x, k[j].y);
            mma_bf16(w[1], left_lo, k[j].z, k[j].w);
            mma_bf16(u[0], v[j], hi.x, hi.y);
            mma_bf16(u[1], v[j], hi.z, hi.w);
            mma_bf16(w[0], left_hi, k[j].x, k[j].y);
            mma_bf16(w[1], left_hi, k[j].z, k[j].w);
        }
        image->u[warp][i][lane] = make_uint4(
            pack_half(u[0][0] * up, u[0][1] * up), pack_half(u[0][2] * up, u[0][3] * up),
            pack_half(u[1][0] * up, u[1][1] * up), pack_half(u[1][2] * up, u[1][3] * up));
        image->w[warp][i][lane] =
            make_uint4(pack_half(-w[0][0], -w[0][1]), pack_half(-w[1][0], -w[1][1]),
                       pack_half(-w[0][2], -w[0][3]), pack_half(-w[1][2], -w[1][3]));
    }
}

static __global__ void __launch_bounds__(THREADS, 2) chunk_kernel(const chunk_args a)
{
    extern __shared__ __align__(128) char raw[];
    chunk_shared *s = (chunk_shared *)raw;
    int warp = threadIdx.x / 32, head = blockIdx.x % a.n_heads;
    int64_t slot = blockIdx.x / a.n_heads;
    int tile = tile_of_slot(a.start, a.n_tiles, slot);
    int64_t row = a.start[tile] + (slot - kda_first_slot(a.start, tile)) * LH_CHUNK;
    int64_t left = a.start[tile + 1] - row;
    int n = left < LH_CHUNK ? (int)left : LH_CHUNK;
    int64_t ld = (int64_t)a.n_heads * KDA_D, at = row * ld + head * KDA_D;
    kda_image *image = a.work.image + slot * a.n_heads + head;

    if (n <= 0)
        return;
    load_v(s, a.v + at, ld, n);
    if (threadIdx.x < LH_CHUNK)
        s->beta[threadIdx.x] =
            threadIdx.x < n ? a.beta[(row + threadIdx.x) * a.n_heads + head] : 0.0f;
    if (threadIdx.x < 4)
        s->strong[threadIdx.x] = 0;
    scale_rows(s, &a, at, ld, n, image->decay);
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncthreads(); /* the scaled rows */
    write_scaled(s, image);
    __syncthreads(); /* s->q and s->k are free for what follows */
    for (int i = 0; i < 4; i++)
        if (s->strong[i])
            score_strong(s, &a, at, ld, n, i);
    score(s, image);
    __syncthreads(); /* the scores; s->lq is free for s->t */
    if (warp < 4)
        invert_diagonal(s->a[pair_of(warp, warp)]);
    __syncthreads(); /* the diagonal inverses */
    if (warp < 4)
        invert_column(s, warp);
    __syncthreads(); /* the inverse */
    solve(s, image, a.work.v_largest + ((int64_t)tile * a.n_heads + head) * KDA_GROUPS);
}

/* Reads 1,280 bytes of each row and head, and writes 1,114. */
lh_status lh_cuda_kda_prepare(lh_stream *s, const lh_kda_prepare_args *a)
{
    chunk_args k = {.q = (const bf16 *)a->q,
                    .k = (const bf16 *)a->k,
                    .v = (const bf16 *)a->v,
                    .g = a->g,
                    .beta = a->beta,
                    .n_tiles = a->tiles.n,
                    .n_heads = a->n_heads};
    const void *start = NULL;

    LH_TRY(lh_check_kda_prepare(a));
    LH_TRY(kda_check_size("kda_prepare", a->d_k, a->d_v));
    if (a->n_rows == 0)
        return LH_OK;
    LH_TRY(kda_check_shared(s, "kda_prepare", sizeof(chunk_shared)));
    int64_t n_blocks = lh_cuda_kda_slots(a->n_rows, a->tiles.n) * a->n_heads;
    LH_REQUIRE(n_blocks <= INT32_MAX, LH_ERR_UNSUPPORTED, "kda_prepare: %lld rows of %d heads",
               (long long)a->n_rows, a->n_heads);
    kda_place_work(&k.work, a->work, a->n_rows, a->tiles.n, a->n_heads);
    LH_TRY(lh_cuda_stage(s, &start, a->tiles.start, ((size_t)a->tiles.n + 1) * sizeof(int64_t)));
    k.start = (const int64_t *)start;
    LH_CUDA_TRY(cudaMemsetAsync(
        k.work.v_largest, 0,
        (size_t)a->tiles.n * (size_t)a->n_heads * KDA_GROUPS * sizeof(unsigned), s->stream));
    LH_TRY(lh_cuda_shared((const void *)chunk_kernel, sizeof(chunk_shared)));
    chunk_kernel<<<(unsigned)n_blocks, THREADS, sizeof(chunk_shared), s->stream>>>(k);
    LH_TRY(lh_cuda_launched(s, "kda_prepare"));
    return a->map ? kda_maps(s, a, k.start) : LH_OK;
}
