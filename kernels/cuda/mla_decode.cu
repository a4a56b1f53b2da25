/*
 * Attention of MLA for single tokens, absorbed, in four kernels: the queries into latent space;
 * ranges of keys, each for itself; the ranges merged; the result into the values' space. Where
 * ranks share the keys, a fifth adds a rank's ranges up to sections, and those of all ranks are
 * merged. The first and the fifth are used on Hopper, too, which has its own of the others
 * (mla_decode_sm90.cu).
 *
 * The rows of the cache are read once for up to 32 heads. The sums of a head do not depend on the
 * heads beside it. With a deterministic stream a sequence is cut into ranges by its own number of
 * keys, and merged by sections whoever adds these up; otherwise all keys of the launch are cut into
 * one share per block.
 */
#include "base/mem.h"
#include "kernels/cuda/mla_decode.cuh"

#define TILE 32 /* keys; two tiles and what belongs to them fit the shared memory of any GPU */
#define THREADS 256
#define GROUPS 4 /* of warps that share the 576 columns of a score */
#define GROUP_STEPS (MLA_WIDTH / 16 / GROUPS)
#define ROW_BYTES (MLA_WIDTH * 2)
#define CHUNKS (MLA_WIDTH / 8) /* 16-byte chunks of a row */
#define COLUMNS 128            /* latents of a block of absorb and merge */
#define FEW_SEQS 8             /* sequences of a block of absorb and project */
#define SEQS 16                /* the same where there are more */

static_assert(MLA_WIDTH % (16 * GROUPS) == 0 && MLA_LATENT == THREADS / 32 * 64, "even shares");
static_assert(MLA_SECTIONS == THREADS / 32, "a section for each warp");

/* heads: 16 or 32; the tile of a shared row of scores or weights is padded against bank conflicts.
 */
template <int heads, int keys, int stages> struct attend_shared {
    bf16 latent[stages][keys * MLA_WIDTH];
    float score[GROUPS][heads][keys + 8];
    bf16 weight[heads][keys + 8];
    float factor[heads];
    mla_plan cut;
};

/* One head's 128 columns of q_nope W_uk, for up to SEQS sequences; sums over four quarters of
 * q_nope are added in rising order. The rest of q is copied. */
template <int seqs>
static __global__ void __launch_bounds__(THREADS) absorb_kernel(const __grid_constant__ mla_batch b)
{
    __shared__ __align__(16) float q[seqs][MLA_NOPE];
    __shared__ float2 part[4][seqs][COLUMNS / 2];
    int head = blockIdx.y, first = blockIdx.z * seqs, pair = threadIdx.x % 64;
    int quarter = threadIdx.x / 64, column = blockIdx.x * COLUMNS + 2 * pair;
    const bf16 *from = b.w_kvb + ((int64_t)head * MLA_KV + quarter * 32) * MLA_LATENT + column;
    float2 sum[seqs] = {};
    uint32_t w[32];

#pragma unroll
    for (int i = 0; i < 32; i++)
        w[i] = *(const uint32_t *)(from + i * MLA_LATENT);
    await_previous(); /* w_kvb does not depend on it */
    let_next_start();
    for (int i = threadIdx.x; i < seqs * MLA_NOPE; i += THREADS) {
        int seq = first + i / MLA_NOPE;
        q[i / MLA_NOPE][i % MLA_NOPE] =
            seq < b.n_seq
                ? __bfloat162float(b.q[((int64_t)seq * b.n_heads + head) * MLA_QK + i % MLA_NOPE])
                : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 32; i += 4)
#pragma unroll
        for (int s = 0; s < seqs; s++) {
            float4 x = *(const float4 *)&q[s][quarter * 32 + i];
            const float y[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                sum[s].x = fmaf(y[j], __uint_as_float(w[i + j] << 16), sum[s].x);
                sum[s].y = fmaf(y[j], __uint_as_float(w[i + j] & 0xffff0000u), sum[s].y);
            }
        }
#pragma unroll
    for (int s = 0; s < seqs; s++)
        part[quarter][s][pair] = sum[s];
    __syncthreads();
    for (int i = threadIdx.x; i < seqs * 64; i += THREADS) {
        int s = i / 64;
        float2 v = part[0][s][i % 64];
        for (int p = 1; p < 4; p++) {
            v.x += part[p][s][i % 64].x;
            v.y += part[p][s][i % 64].y;
        }
        if (first + s < b.n_seq)
            *(uint32_t *)(b.query + ((int64_t)(first + s) * b.n_heads + head) * MLA_WIDTH +
                          blockIdx.x * COLUMNS + i % 64 * 2) = pack2(v.x, v.y);
    }
    for (int i = threadIdx.x; blockIdx.x == 0 && i < seqs * MLA_ROPE; i += THREADS) {
        int64_t row = (int64_t)(first + i / MLA_ROPE) * b.n_heads + head;
        if (first + i / MLA_ROPE < b.n_seq)
            b.query[row * MLA_WIDTH + MLA_LATENT + i % MLA_ROPE] =
                b.q[row * MLA_QK + MLA_NOPE + i % MLA_ROPE];
    }
}

/* Keys key .. of the cache; those from `end` on become zeros. */
template <int keys>
static __device__ __forceinline__ void load_tile(uint32_t to, const bf16 *latent, int key, int end)
{
    for (int i = threadIdx.x; i < keys * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, chunk = i % CHUNKS;
        bool present = key + row < end;
        copy16(to + swizzled(row, chunk, ROW_BYTES),
               latent + (int64_t)(present ? key + row : key) * MLA_WIDTH + chunk * 8, present);
    }
}

/* This warp's share of the queries as left operands: its quarter of the columns, all heads. */
template <int tiles>
static __device__ __forceinline__ void load_query(uint32_t q[GROUP_STEPS][tiles][4],
                                                  const bf16 *query, int n_heads)
{
    int lane = threadIdx.x % 32,
        column = threadIdx.x / 32 % GROUPS * GROUP_STEPS * 16 + lane % 4 * 2;

#pragma unroll
    for (int k = 0; k < GROUP_STEPS; k++)
#pragma unroll
        for (int i = 0; i < tiles; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int head = i * 16 + j % 2 * 8 + lane / 4;
                q[k][i][j] = head < n_heads ? *(const uint32_t *)(query + head * MLA_WIDTH +
                                                                  column + k * 16 + j / 2 * 8)
                                            : 0;
            }
}

/* Scores over a quarter of the columns: each warp has one quarter and half of the tile's keys. */
template <int tiles, int keys, typename shared>
static __device__ __forceinline__ void score_tile(shared *sh, uint32_t latent,
                                                  const uint32_t q[GROUP_STEPS][tiles][4])
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp % GROUPS;
    int key = warp / GROUPS * (keys / 2);
    float s[tiles][keys / 16][4] = {};

#pragma unroll
    for (int k = 0; k < GROUP_STEPS; k++)
#pragma unroll
        for (int j = 0; j < keys / 32; j++) {
            uint32_t x[4];
            load_matrices(x, latent + swizzled(key + j * 16 + lane % 8 + lane / 16 * 8,
                                               (group * GROUP_STEPS + k) * 2 + lane / 8 % 2,
                                               ROW_BYTES));
#pragma unroll
            for (int i = 0; i < tiles; i++) {
                mma(s[i][2 * j], q[k][i], x[0], x[1]);
                mma(s[i][2 * j + 1], q[k][i], x[2], x[3]);
            }
        }
#pragma unroll
    for (int i = 0; i < tiles; i++)
#pragma unroll
        for (int j = 0; j < keys / 16; j++)
#pragma unroll
            for (int r = 0; r < 2; r++)
                *(float2 *)&sh
                     ->score[group][i * 16 + r * 8 + lane / 4][key + j * 8 + lane % 4 * 2] =
                    make_float2(s[i][j][2 * r], s[i][j][2 * r + 1]);
}

/* Scores to weights; each warp has its own heads. max and factor are the same on all lanes, sum is
 * of this lane's keys. */
template <int tiles, int keys, typename shared>
static __device__ __forceinline__ void weigh_tile(shared *sh, float max[2 * tiles],
                                                  float sum[2 * tiles], int present)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

#pragma unroll
    for (int h = 0; h < 2 * tiles; h++) {
        int head = warp * 2 * tiles + h;
        float s[keys / 32], top = -INFINITY, add = 0;
#pragma unroll
        for (int i = 0; i < keys / 32; i++) {
            int key = lane + i * 32;
            s[i] = sh->score[0][head][key];
#pragma unroll
            for (int g = 1; g < GROUPS; g++)
                s[i] += sh->score[g][head][key];
            s[i] = key < present ? s[i] * MLA_SCALE_LOG2 : -INFINITY;
            top = fmaxf(top, s[i]);
        }
        top = fmaxf(max[h], warp_max(top));
        float factor = exp2_f(max[h] - top);
        max[h] = top;
#pragma unroll
        for (int i = 0; i < keys / 32; i++) {
            float x = exp2_f(s[i] - top);
            add += x;
            sh->weight[head][lane + i * 32] = __float2bfloat16(x);
        }
        sum[h] = fmaf(sum[h], factor, add);
        if (lane == 0)
            sh->factor[head] = factor;
    }
}

/* o [heads, 64 columns of this warp] = o * factor + weights latents */
template <int tiles, int keys, typename shared>
static __device__ __forceinline__ void add_tile(float o[tiles][8][4], const shared *sh,
                                                uint32_t latent)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

#pragma unroll
    for (int i = 0; i < tiles; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float factor = sh->factor[i * 16 + r * 8 + lane / 4];
#pragma unroll
            for (int j = 0; j < 8; j++) {
                o[i][j][2 * r] *= factor;
                o[i][j][2 * r + 1] *= factor;
            }
        }
#pragma unroll
    for (int k = 0; k < keys / 16; k++) {
        uint32_t p[tiles][4], x[4];
#pragma unroll
        for (int i = 0; i < tiles; i++)
            load_matrices(p[i], shared_at(&sh->weight[i * 16 + lane % 16][k * 16 + lane / 16 * 8]));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            load_matrices_t(
                x, latent + swizzled(k * 16 + lane % 16, warp * 8 + j * 2 + lane / 16, ROW_BYTES));
#pragma unroll
            for (int i = 0; i < tiles; i++) {
                mma(o[i][2 * j], p[i], x[0], x[1]);
                mma(o[i][2 * j + 1], p[i], x[2], x[3]);
            }
        }
    }
}

/* Heads head .. head + n_heads - 1 of one part. The cache may be read before the queries are there.
 */
template <int tiles, int keys, int stages, typename shared>
static __device__ __forceinline__ void attend_part(shared *sh, const mla_batch *b,
                                                   const mla_part *p, int head, int n_heads)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int n_tiles = (p->end - p->begin + keys - 1) / keys;
    const bf16 *latent = b->latent[p->seq];
    uint32_t q[GROUP_STEPS][tiles][4];
    float o[tiles][8][4] = {}, max[2 * tiles], sum[2 * tiles];

    __syncthreads(); /* the last tile of the part before has been read */
    for (int t = 0; t < stages - 1; t++) {
        if (t < n_tiles)
            load_tile<keys>(shared_at(sh->latent[t]), latent, p->begin + t * keys, p->end);
        copy_commit();
    }
    load_query<tiles>(q, b->query + ((int64_t)p->seq * b->n_heads + head) * MLA_WIDTH, n_heads);
    for (int h = 0; h < 2 * tiles; h++) {
        max[h] = -INFINITY;
        sum[h] = 0;
    }
    for (int t = 0; t < n_tiles; t++) {
        uint32_t tile = shared_at(sh->latent[t % stages]);
        int next = t + stages - 1;

        copy_wait<stages - 2>();
        __syncthreads(); /* the tile is there; the one before has been read */
        if (next < n_tiles)
            load_tile<keys>(shared_at(sh->latent[next % stages]), latent, p->begin + next * keys,
                            p->end);
        copy_commit();
        score_tile<tiles, keys>(sh, tile, q);
        __syncthreads(); /* the scores are there */
        weigh_tile<tiles, keys>(sh, max, sum, p->end - p->begin - t * keys);
        __syncthreads(); /* the weights are there */
        add_tile<tiles, keys>(o, sh, tile);
    }
    int64_t row = (int64_t)p->range * b->n_heads + head;
    for (int h = 0; h < 2 * tiles; h++) {
        float total = warp_sum(sum[h]);
        if (lane == 0 && warp * 2 * tiles + h < n_heads)
            b->state[row + warp * 2 * tiles + h] = make_float2(max[h], total);
    }
#pragma unroll
    for (int i = 0; i < tiles; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int at = i * 16 + r * 8 + lane / 4;
            float *to = b->sum + (row + at) * MLA_LATENT + warp * 64 + lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < 8; j++)
                if (at < n_heads)
                    *(float2 *)(to + j * 8) = make_float2(o[i][j][2 * r], o[i][j][2 * r + 1]);
        }
}

/* One share of the keys after the other, 16 * tiles heads; where there are few shares two blocks
 * take half of the heads each: the cache is read twice, but sooner. */
template <int tiles, int keys, int stages>
static __global__ void __launch_bounds__(THREADS) attend_kernel(const __grid_constant__ mla_batch b)
{
    typedef attend_shared<tiles * 16, keys, stages> shared;
    extern __shared__ __align__(1024) char memory[];
    shared *sh = (shared *)memory;
    int head = blockIdx.y * tiles * 16, n_heads = min(tiles * 16, b.n_heads - head);
    int first = blockIdx.x, step = gridDim.x;
    mla_part p;

    make_plan(&sh->cut, &b);
    int n = sh->cut.n_shares, half = tiles == 2 && n_heads > 16 && 2 * n <= step;
    if (half) {
        if (first >= 2 * n)
            return;
        n_heads = first < n ? 16 : n_heads - 16;
        head += first < n ? 0 : 16;
        first %= n;
    }
    for (mla_walk w = walk_from(first, step); walk_next(&w, &sh->cut, &b, step, &p);) {
        if (half)
            attend_part<1, keys, stages>(sh, &b, &p, head, n_heads);
        else
            attend_part<tiles, keys, stages>(sh, &b, &p, head, n_heads);
    }
}

/* The ranges of this launch's sections, added up for the other ranks: 128 columns of one head. */
static __global__ void __launch_bounds__(THREADS) fold_kernel(const __grid_constant__ mla_batch b)
{
    __shared__ mla_plan cut;
    int head = blockIdx.y, seq = blockIdx.z, warp = threadIdx.x / 32;
    int column = blockIdx.x * COLUMNS + threadIdx.x % 32 * 4;

    make_plan(&cut, &b);
    await_previous();
    if (warp >= b.n_sections)
        return;
    mla_rows ranges = ranges_of(&cut, &b, seq, head);
    mla_added a = add_section(&ranges, warp, column);
    float *row = b.partial + (b.first_section + warp) * b.partial_stride + seq * b.partial_size;
    *(float4 *)(row + head * MLA_LATENT + column) = a.sum;
    if (column == 0)
        ((float2 *)(row + b.n_heads * MLA_LATENT))[head] = make_float2(a.max, a.total);
}

/* 128 columns of one head's ranges, or of the sections of all ranks. */
static __global__ void __launch_bounds__(THREADS) merge_kernel(const __grid_constant__ mla_batch b)
{
    __shared__ mla_plan cut;
    __shared__ mla_added section[MLA_SECTIONS][32];
    int head = blockIdx.y, seq = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int column = blockIdx.x * COLUMNS + lane * 4;

    if (!b.partial)
        make_plan(&cut, &b);
    mla_rows rows = b.partial ? sections_of(&b, seq, head) : ranges_of(&cut, &b, seq, head);
    section[warp][lane] = add_section(&rows, warp, column);
    __syncthreads();
    if (warp > 0)
        return;
    mla_added all = join_sections(section);
    *(float4 *)(b.merged + ((int64_t)seq * b.n_heads + head) * MLA_LATENT + column) =
        latents_of(&all);
}

/* 32 outputs of W_uv of one head, for up to SEQS sequences; a warp has four of them. */
template <int seqs>
static __global__ void __launch_bounds__(THREADS)
    project_kernel(const __grid_constant__ mla_batch b)
{
    __shared__ __align__(16) float x[seqs][MLA_LATENT];
    int head = blockIdx.y, first = blockIdx.z * seqs;
    int out = blockIdx.x * 32 + threadIdx.x / 32 * 4;
    mla_outputs w;

    load_outputs(&w, b.w_kvb + ((int64_t)head * MLA_KV + MLA_NOPE + out) * MLA_LATENT);
    for (int i = threadIdx.x; i < seqs * MLA_LATENT; i += THREADS) {
        int seq = first + i / MLA_LATENT;
        x[i / MLA_LATENT][i % MLA_LATENT] =
            seq < b.n_seq
                ? b.merged[((int64_t)seq * b.n_heads + head) * MLA_LATENT + i % MLA_LATENT]
                : 0.0f;
    }
    __syncthreads();
    unpack_outputs(&w);
    for (int s = 0; s < seqs && first + s < b.n_seq; s++)
        write_outputs(b.o + ((int64_t)(first + s) * b.n_heads + head) * MLA_V + out, &w, x[s]);
}

template <int tiles, int keys, int stages>
static lh_status attend_ranges(lh_stream *s, const mla_batch *b)
{
    size_t bytes = sizeof(attend_shared<tiles * 16, keys, stages>);
    dim3 grid(MLA_SHARES, (unsigned)div_up(b->n_heads, tiles * 16));

    return mla_launch(s, 0, attend_kernel<tiles, keys, stages>, grid, THREADS, bytes, *b);
}

/* Blocks of absorb and project for each head and the sequences of a launch. */
static dim3 by_heads(const mla_batch *b, unsigned blocks)
{
    return dim3(blocks, (unsigned)b->n_heads,
                b->n_seq <= FEW_SEQS ? 1 : (unsigned)div_up(b->n_seq, SEQS));
}

/* The sums of the ranges of some sections. */
static lh_status attend(lh_stream *s, const mla_batch *b)
{
    LH_TRY(mla_launch(s, s->arch == 90,
                      b->n_seq == 1          ? absorb_kernel<1>
                      : b->n_seq <= FEW_SEQS ? absorb_kernel<FEW_SEQS>
                                             : absorb_kernel<SEQS>,
                      by_heads(b, MLA_LATENT / COLUMNS), THREADS, 0, *b));
    if (s->arch == 90)
        return lh_cuda_mla_attend_ranges_sm90(s, b);
    return b->n_heads > 16 ? attend_ranges<2, TILE, 2>(s, b) : attend_ranges<1, TILE, 2>(s, b);
}

/* The result from the ranges, or from the sections of all ranks. */
static lh_status finish(lh_stream *s, const mla_batch *b)
{
    dim3 merge(MLA_LATENT / COLUMNS, (unsigned)b->n_heads, (unsigned)b->n_seq);

    if (s->arch == 90)
        return lh_cuda_mla_finish_sm90(s, b);
    LH_TRY(mla_launch(s, 0, merge_kernel, merge, THREADS, 0, *b));
    return mla_launch(s, 0,
                      b->n_seq == 1          ? project_kernel<1>
                      : b->n_seq <= FEW_SEQS ? project_kernel<FEW_SEQS>
                                             : project_kernel<SEQS>,
                      by_heads(b, MLA_V / 32), THREADS, 0, *b);
}

static lh_status decode(lh_stream *s, const mla_batch *b)
{
    LH_TRY(attend(s, b));
    return finish(s, b);
}

static lh_status attend_and_fold(lh_stream *s, const mla_batch *b)
{
    dim3 fold(MLA_LATENT / COLUMNS, (unsigned)b->n_heads, (unsigned)b->n_seq);

    LH_TRY(attend(s, b));
    return mla_launch(s, s->arch == 90, fold_kernel, fold, THREADS, 0, *b);
}

static lh_status check(const lh_mla_decode_args *a)
{
    LH_TRY(lh_check_mla_decode(a));
    LH_REQUIRE(a->d_nope == MLA_NOPE && a->d_rope == MLA_ROPE && a->d_v == MLA_V &&
                   a->d_latent == MLA_LATENT,
               LH_ERR_UNSUPPORTED,
               "mla_decode: heads of %d + %d, values of %d, latents of %d, the CUDA backend has "
               "128 + 64, 128, 512",
               a->d_nope, a->d_rope, a->d_v, a->d_latent);
    LH_TRY(lh_cuda_aligned("mla_decode", "o", a->o));
    LH_TRY(lh_cuda_aligned("mla_decode", "q", a->q));
    LH_TRY(lh_cuda_aligned("mla_decode", "w_kvb", a->w_kvb));
    return lh_cuda_aligned("mla_decode", "partial", a->partial);
}

static void place_work(mla_batch *b, void *base, int64_t n_seq, int64_t max_keys)
{
    lh_cuda_mla_decode_work at;

    (void)lh_cuda_mla_decode_layout(&at, base, n_seq, max_keys, b->n_heads);
    b->query = (bf16 *)at.query;
    b->merged = (float *)at.merged;
    b->sum = (float *)at.sum;
    b->state = (float2 *)at.state;
}

/* A step of so many sequences at a time as a launch takes. `partial`: with rows of sections. */
static lh_status each_batch(lh_stream *s, const lh_mla_decode_args *a, float *partial,
                            int first_section, int n_sections,
                            lh_status (*step)(lh_stream *s, const mla_batch *b))
{
    int64_t size = lh_mla_partial_size(a->n_heads, a->d_latent);

    for (int64_t first = 0; first < a->n_seq; first += MLA_MAX_SEQ) {
        mla_batch b = {.latent = (const bf16 *const *)a->latent + first,
                       .n_keys = a->n_keys + first,
                       .n_seq = (int)lh_min64(MLA_MAX_SEQ, a->n_seq - first),
                       .n_heads = a->n_heads,
                       .deterministic = s->deterministic,
                       .first_section = first_section,
                       .n_sections = n_sections,
                       .q = (const bf16 *)a->q + first * a->n_heads * MLA_QK,
                       .w_kvb = (const bf16 *)a->w_kvb,
                       .o = (bf16 *)a->o + first * a->n_heads * MLA_V,
                       .partial = partial ? partial + first * size : NULL,
                       .partial_size = size,
                       .partial_stride = a->n_seq * size};
        place_work(&b, a->work, a->n_seq, a->max_keys);
        LH_TRY(step(s, &b));
    }
    return LH_OK;
}

lh_status lh_cuda_mla_decode(lh_stream *s, const lh_mla_decode_args *a)
{
    LH_TRY(check(a));
    return each_batch(s, a, NULL, 0, MLA_SECTIONS, decode);
}

lh_status lh_cuda_mla_attend(lh_stream *s, const lh_mla_decode_args *a)
{
    LH_TRY(check(a));
    LH_TRY(lh_check_mla_ranges(a, MLA_SECTIONS));
    if (a->n_ranges == 0)
        return LH_OK;
    return each_batch(s, a, a->partial, a->first_range, a->n_ranges, attend_and_fold);
}

lh_status lh_cuda_mla_merge(lh_stream *s, const lh_mla_decode_args *a)
{
    LH_TRY(check(a));
    LH_TRY(lh_check_mla_ranges(a, MLA_SECTIONS));
    return each_batch(s, a, a->partial, 0, MLA_SECTIONS, finish);
}
