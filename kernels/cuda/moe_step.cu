/*
 * The experts of single tokens, chosen on the device. The bits of a row depend on nothing else in
 * the call: an output is one sum, in one order, in both ways to share the work out.
 *
 * Few tokens: a warp takes an output of a pair (token, slot), so that one token's few experts fill
 * the GPU.
 *
 * More: their pairs are grouped by expert into tiles of up to 8, and a warp reads two rows of
 * weights once for all rows of a tile. Tiles of one expert follow each other, so that all but the
 * first find the weights in the L2 cache. 64 tokens, 8 of 256 experts, d 2304 and d_hidden
 * 1024: 3.1 GB for about 222 experts instead of 7.2 GB for 512 pairs, and about 0.35e9 instructions
 * of warps, half of what an H200 issues while it reads these bytes.
 */
#include "kernels/cuda/cuda.cuh"

#define WARPS 8
#define FEW_TOKENS 3   /* have hardly an expert in common: grouping would cost more than it saves */
#define MOST_NETS 4096 /* counters of the grouping, in shared memory */
#define GROUP_THREADS 1024
#define TILE 8
#define ROUNDS 2 /* pairs of weight rows that a warp takes one after the other */

/* Pairs of one expert, NONE behind the last. */
typedef struct tile {
    uint16_t pair[TILE];
} tile;
#define NONE 0xffffu

static_assert(sizeof(tile) <= 8 * sizeof(bf16), "fits the second half of any row of hidden");

typedef struct step {
    bf16 *y, *hidden; /* [n_pairs, d], [n_pairs, 2, d_hidden]: first halves of rows; tile i lies in
                         the second half of row i */
    const bf16 *x;
    const int32_t *expert;
    const bf16 *const *w_gate, *const *w_up, *const *w_down;
    int first_expert, n_nets, n_pairs, top_k, d, d_hidden;
} step;

/* Sum over the warp of 8-element pieces lane, lane + 32, .. of a . b; n pieces. */
static __device__ __forceinline__ float dot(const uint4 *a, const uint4 *b, int n)
{
    float sum = 0;

#pragma unroll 4
    for (int i = (int)threadIdx.x % 32; i < n; i += 32) {
        float f[8], g[8];
        unpack8(f, __ldg(a + i));
        unpack8(g, b[i]);
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum = fmaf(f[j], g[j], sum);
    }
    return warp_sum(sum);
}

/* The pair's expert among this rank's, or -1. */
static __device__ __forceinline__ int own_expert(const step *s, int pair)
{
    int e = s->expert[pair] - s->first_expert;
    return e >= 0 && e < s->n_nets ? e : -1;
}

static __device__ __forceinline__ bf16 activated(float gate, float up)
{
    return __float2bfloat16_rn(gate * sigmoid_f(gate) * up);
}

static __global__ void __launch_bounds__(WARPS * 32) up_kernel(step s)
{
    int i = (int)blockIdx.x * WARPS + (int)threadIdx.x / 32, pair = (int)blockIdx.y;
    int e = own_expert(&s, pair);

    if (e < 0 || i >= s.d_hidden)
        return;
    const uint4 *x = (const uint4 *)(s.x + (int64_t)(pair / s.top_k) * s.d);
    float gate = dot((const uint4 *)(s.w_gate[e] + (int64_t)i * s.d), x, s.d / 8);
    float up = dot((const uint4 *)(s.w_up[e] + (int64_t)i * s.d), x, s.d / 8);
    if (threadIdx.x % 32 == 0)
        s.hidden[(int64_t)pair * 2 * s.d_hidden + i] = activated(gate, up);
}

static __global__ void __launch_bounds__(WARPS * 32) down_kernel(step s)
{
    int i = (int)blockIdx.x * WARPS + (int)threadIdx.x / 32, pair = (int)blockIdx.y;
    int e = own_expert(&s, pair);
    float y = 0;

    if (i >= s.d)
        return;
    if (e >= 0)
        y = dot((const uint4 *)(s.w_down[e] + (int64_t)i * s.d_hidden),
                (const uint4 *)(s.hidden + (int64_t)pair * 2 * s.d_hidden), s.d_hidden / 8);
    if (threadIdx.x % 32 == 0)
        s.y[(int64_t)pair * s.d + i] = __float2bfloat16_rn(y);
}

static __device__ __forceinline__ tile *tile_at(const step *s, int i)
{
    return (tile *)(s->hidden + ((int64_t)i * 2 + 1) * s->d_hidden);
}

/* The experts' places, TILE to a tile, from their counts; by one warp. */
static __device__ __forceinline__ void counts_to_places(int *count, int n)
{
    int lane = (int)threadIdx.x % 32, total = 0;

    for (int first = 0; first < n; first += 32) {
        int e = first + lane, places = e < n ? (int)div_up(count[e], TILE) * TILE : 0, end = places;
        for (int m = 1; m < 32; m *= 2) {
            int before = __shfl_up_sync(0xffffffffu, end, m);
            end += lane >= m ? before : 0;
        }
        if (e < n)
            count[e] = total + end - places;
        total += __shfl_sync(0xffffffffu, end, 31);
    }
    __syncwarp();
}

/* One block. Tiles rise by expert and pairs within them; those of other ranks' experts come last,
 * as if they were of expert n_nets. place [n_nets + 1] counts the pairs of an expert, then says
 * where its next one goes. */
static __global__ void __launch_bounds__(GROUP_THREADS) group_kernel(step s, int n_tiles)
{
    extern __shared__ int place[];
    int id = (int)threadIdx.x, lane = id % 32;

    for (int e = id; e <= s.n_nets; e += GROUP_THREADS)
        place[e] = 0;
    for (int i = id; i < n_tiles; i += GROUP_THREADS)
        *(uint4 *)tile_at(&s, i) = make_uint4(~0u, ~0u, ~0u, ~0u);
    __syncthreads(); /* the zeros, before they are counted up; NONE, before pairs overwrite it */
    for (int pair = id; pair < s.n_pairs; pair += GROUP_THREADS) {
        int e = own_expert(&s, pair);
        if (e >= 0) /* how many the last are does not matter */
            atomicAdd(&place[e], 1);
    }
    __syncthreads();
    if (id >= 32) /* one warp goes on: the order of pairs is theirs in the call */
        return;
    counts_to_places(place, s.n_nets + 1);
    for (int first = 0; first < s.n_pairs; first += 32) {
        int pair = first + lane, e = pair < s.n_pairs ? own_expert(&s, pair) : s.n_nets + 1;
        e = e < 0 ? s.n_nets : e;
        unsigned same = __match_any_sync(0xffffffffu, e);
        int before = __popc(same & ((1u << lane) - 1));
        if (pair < s.n_pairs) {
            int to = place[e] + before;
            tile_at(&s, to / TILE)->pair[to % TILE] = (uint16_t)pair;
        }
        __syncwarp(); /* all have read place */
        if (pair < s.n_pairs && before == 0)
            place[e] += __popc(same);
        __syncwarp();
    }
}

/*
 * For lane t < N: its row x times w0 and times w1, each sum in the order of `dot`. n pieces of 8
 * elements; STEPS pieces of each weight row are asked for at once, as many as registers allow.
 */
template <int N>
static __device__ __forceinline__ float2 two_dots(const uint4 *w0, const uint4 *w1, const uint4 *x,
                                                  int n)
{
    enum { STEPS = N <= 4 ? 4 : 2 };
    int lane = (int)threadIdx.x % 32;
    const uint4 *row[N];
    float sum[2][N] = {};
    float2 own = {};

#pragma unroll
    for (int t = 0; t < N; t++)
        row[t] = (const uint4 *)__shfl_sync(0xffffffffu, (unsigned long long)x, t);
    for (int i = lane; i < n; i += 32 * STEPS) {
        uint4 w[STEPS][2];
#pragma unroll
        for (int k = 0; k < STEPS; k++)
            if (i + 32 * k < n) {
                w[k][0] = __ldcg(w0 + i + 32 * k);
                w[k][1] = __ldcg(w1 + i + 32 * k);
            }
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            if (i + 32 * k >= n)
                break;
            float f[2][8], g[8];
            unpack8(f[0], w[k][0]);
            unpack8(f[1], w[k][1]);
#pragma unroll
            for (int t = 0; t < N; t++) {
                unpack8(g, __ldg(row[t] + i + 32 * k));
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    sum[0][t] = fmaf(f[0][j], g[j], sum[0][t]);
                    sum[1][t] = fmaf(f[1][j], g[j], sum[1][t]);
                }
            }
        }
    }
#pragma unroll
    for (int t = 0; t < N; t++) {
        float a = warp_sum(sum[0][t]), b = warp_sum(sum[1][t]);
        if (lane == t)
            own = make_float2(a, b);
    }
    return own;
}

/* Of a tile as a warp has it: its lane t has pair t, those behind the last have the last. */
typedef struct part {
    int n_rows, pair, expert; /* -1: of another rank */
} part;

static __device__ __forceinline__ part load_part(const step *s)
{
    unsigned pair = tile_at(s, (int)blockIdx.y)->pair[threadIdx.x % TILE];
    int n = __popc(__ballot_sync(0xffffffffu, pair != NONE)) / (32 / TILE);
    part p = {n, 0, -1};

    if (n > 0) {
        p.pair = (int)__shfl_sync(0xffffffffu, pair, min((int)threadIdx.x % 32, n - 1));
        p.expert = own_expert(s, p.pair);
    }
    return p;
}

/* What this warp computes in round r: an output of up, two of down. */
static __device__ __forceinline__ int place_of(int r)
{
    return ((int)blockIdx.x * ROUNDS + r) * WARPS + (int)threadIdx.x / 32;
}

template <int N> static __device__ __forceinline__ void up_rows(const step *s, const part *p)
{
    const bf16 *gate = s->w_gate[p->expert], *up = s->w_up[p->expert];
    const uint4 *x = (const uint4 *)(s->x + (int64_t)(p->pair / s->top_k) * s->d);

#pragma unroll 1
    for (int r = 0, i; r < ROUNDS && (i = place_of(r)) < s->d_hidden; r++) {
        float2 v = two_dots<N>((const uint4 *)(gate + (int64_t)i * s->d),
                               (const uint4 *)(up + (int64_t)i * s->d), x, s->d / 8);
        if ((int)threadIdx.x % 32 < p->n_rows)
            s->hidden[(int64_t)p->pair * 2 * s->d_hidden + i] = activated(v.x, v.y);
    }
}

/* N 0: zeros, for experts of other ranks. */
template <int N> static __device__ __forceinline__ void down_rows(const step *s, const part *p)
{
    const uint4 *x = (const uint4 *)(s->hidden + (int64_t)p->pair * 2 * s->d_hidden);
    int n = s->d_hidden / 8;

#pragma unroll 1
    for (int r = 0, i; r < ROUNDS && (i = 2 * place_of(r)) < s->d; r++) {
        float2 v = {};
        if constexpr (N > 0) {
            const uint4 *w = (const uint4 *)(s->w_down[p->expert] + (int64_t)i * s->d_hidden);
            v = two_dots<N>(w, w + n, x, n);
        }
        if ((int)threadIdx.x % 32 < p->n_rows) {
            bf16 *y = s->y + (int64_t)p->pair * s->d + i;
            y[0] = __float2bfloat16_rn(v.x);
            y[1] = __float2bfloat16_rn(v.y);
        }
    }
}

/* Calls `rows<N>` for the tile's rows. */
#define RUN_ROWS(rows, s, p)                                                                       \
    do {                                                                                           \
        if ((p)->n_rows == 1)                                                                      \
            rows<1>(s, p);                                                                         \
        else if ((p)->n_rows == 2)                                                                 \
            rows<2>(s, p);                                                                         \
        else if ((p)->n_rows <= 4)                                                                 \
            rows<4>(s, p);                                                                         \
        else                                                                                       \
            rows<TILE>(s, p);                                                                      \
    } while (0)

static __global__ void __launch_bounds__(WARPS * 32, 2) up_tiles_kernel(step s)
{
    part p = load_part(&s);

    if (p.expert >= 0)
        RUN_ROWS(up_rows, &s, &p);
}

static __global__ void __launch_bounds__(WARPS * 32, 2) down_tiles_kernel(step s)
{
    part p = load_part(&s);

    if (p.expert >= 0)
        RUN_ROWS(down_rows, &s, &p);
    else
        down_rows<0>(&s, &p);
}

static void run_pairs(lh_stream *s, const step *k)
{
    unsigned n = (unsigned)k->n_pairs;

    if (k->n_nets > 0)
        up_kernel<<<dim3((unsigned)div_up(k->d_hidden, WARPS), n), WARPS * 32, 0, s->stream>>>(*k);
    down_kernel<<<dim3((unsigned)div_up(k->d, WARPS), n), WARPS * 32, 0, s->stream>>>(*k);
}

static void run_tiles(lh_stream *s, const step *k)
{
    /* each expert, and the others' pairs, may have a tile that is not full */
    int n = min(k->n_pairs, k->n_pairs / TILE + k->n_nets + 1);
    unsigned outputs = WARPS * ROUNDS;
    dim3 up((unsigned)div_up(k->d_hidden, outputs), (unsigned)n);
    dim3 down((unsigned)div_up(k->d / 2, outputs), (unsigned)n);

    group_kernel<<<1, GROUP_THREADS, (size_t)(k->n_nets + 1) * sizeof(int), s->stream>>>(*k, n);
    up_tiles_kernel<<<up, WARPS * 32, 0, s->stream>>>(*k);
    down_tiles_kernel<<<down, WARPS * 32, 0, s->stream>>>(*k);
}

lh_status lh_cuda_moe_step(lh_stream *s, const lh_moe_step_args *a)
{
    LH_TRY(lh_check_moe_step(a));
    LH_TRY(lh_cuda_multiple("moe_step", "d", a->d, 8));
    LH_TRY(lh_cuda_multiple("moe_step", "d_hidden", a->d_hidden, 8));
    LH_TRY(lh_cuda_most("moe_step", "n_seq * top_k", a->n_seq * a->top_k, 65535));
    LH_TRY(lh_cuda_most("moe_step", "n_nets", a->n_nets, MOST_NETS));
    if (a->n_seq == 0)
        return LH_OK;
    step k = {(bf16 *)a->y,
              (bf16 *)a->work,
              (const bf16 *)a->x,
              a->expert,
              (const bf16 *const *)a->w_gate,
              (const bf16 *const *)a->w_up,
              (const bf16 *const *)a->w_down,
              a->first_expert,
              a->n_nets,
              (int)a->n_seq * a->top_k,
              a->top_k,
              (int)a->d,
              (int)a->d_hidden};
    if (a->n_seq <= FEW_TOKENS || a->n_nets == 0)
        run_pairs(s, &k);
    else
        run_tiles(s, &k);
    return lh_cuda_launched(s, "moe_step");
}
