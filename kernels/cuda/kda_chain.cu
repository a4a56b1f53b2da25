/*
 * KDA's chain over the chunks of a tile, per chunk, with S the state before it:
 *     fresh = u - w S,   o = q S + scores fresh,   S <- diag(decay) S + k^T fresh.
 *
 * Four blocks have the columns of one tile and head. A warp of the chain has 16 columns, as
 * S^T in f32 accumulators. For the outputs, other warps get the rounded S and fresh through shared
 * memory, so that they are off the chain. One more warp brings in the images, stages ahead (by
 * clusters of two blocks that multicast their halves it went no faster on an H200, by clusters of
 * four at half the speed). Blocks go on from item to item in a fixed order; a column's result does
 * not depend on which block has it.
 */
#include "kernels/cuda/kda.cuh"

#define BLOCKS 4 /* of a tile and head: an item */
#define CHAIN_THREADS 160
#define LOADER 4              /* the warp that loads */
#define READERS (32 * LOADER) /* each frees a stage itself, when it has read its part */
#define STAGES 3              /* on Hopper */
#define LEAST_STAGES 2        /* where shared memory has no room for more */
#define HAND 2                /* buffers from a warp of the chain to its warp of outputs */

/* What comes in for a chunk: the image up to its end for this kernel, and columns of u. */
#define MAPS_BYTES offsetof(kda_image, q)
#define FINISH_BYTES offsetof(kda_image, u)
#define GROUP_BYTES sizeof(((kda_image *)0)->u[0])

typedef struct hand {
    uint4 state[8][32]; /* S^T as a left operand: steps over d_k */
    uint4 fresh[4][32]; /* the same, over tokens */
    float down;         /* what undoes the scale of the state */
} hand;

template <int N_STAGES> struct finish_shared {
    struct {
        uint4 image[FINISH_BYTES / 16];
        uint4 u[2][4][32];
    } stage[N_STAGES];
    hand hands[2][HAND];
    uint64_t full[N_STAGES], empty[N_STAGES], hand_full[2][HAND], hand_empty[2][HAND];
};

template <int N_STAGES> struct maps_shared {
    struct {
        uint4 image[MAPS_BYTES / 16];
        uint4 u[4][4][32];
    } stage[N_STAGES];
    uint64_t full[N_STAGES], empty[N_STAGES];
};

typedef struct chain_args {
    const int64_t *start;
    kda_work work;
    int n_tiles, n_heads;
    bf16 *o;               /* finish */
    const float *state_in; /* finish */
    float *state_out;      /* finish, or NULL */
    float *map, *add;      /* maps */
} chain_args;

static __device__ __forceinline__ void barrier_init(uint64_t *b, int count)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count)
                 : "memory");
}

static __device__ __forceinline__ void barrier_arrive(uint64_t *b)
{
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}

static __device__ __forceinline__ void barrier_wait(uint64_t *b, unsigned parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
#if __CUDA_ARCH__ >= 900
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
#else
                 "mbarrier.test_wait.parity.shared::cta.b64 done, [%0], %1;\n"
#endif
                 "@!done bra again;\n"
                 "}" ::"r"(shared_address(b)),
                 "r"(parity)
                 : "memory");
}

/*
 * Loading: announces so many bytes at a barrier, then copies them, then ends. From Hopper on one
 * lane gives them to the copy engine, which counts them at the barrier. Before, every lane of the
 * warp copies its share, 16 bytes at a time, and arrives at the barrier when that is there.
 */
#if __CUDA_ARCH__ >= 900
#define LOADER_LANES 1

static __device__ __forceinline__ void load_begin(uint64_t *b, unsigned bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(b)),
                 "r"(bytes)
                 : "memory");
}

static __device__ __forceinline__ void load(void *to, const void *from, unsigned bytes, uint64_t *b)
{
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
        "[%3];" ::"r"(shared_address(to)),
        "l"(from), "r"(bytes), "r"(shared_address(b))
        : "memory");
}

static __device__ __forceinline__ void load_end(uint64_t *)
{
}

/* For the copy engine. */
static __device__ __forceinline__ void fence_barriers(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
#else
#define LOADER_LANES 32

static __device__ __forceinline__ void load_begin(uint64_t *, unsigned)
{
}

static __device__ __forceinline__ void load(void *to, const void *from, unsigned bytes, uint64_t *)
{
    for (unsigned i = threadIdx.x % 32 * 16; i < bytes; i += 32 * 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to) + i),
                     "l"((const char *)from + i)
                     : "memory");
}

static __device__ __forceinline__ void load_end(uint64_t *b)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(b))
                 : "memory");
}

static __device__ __forceinline__ void fence_barriers(void)
{
}
#endif

static __device__ __forceinline__ int n_chunks(const chain_args *a, int tile)
{
    return (int)((a->start[tile + 1] - a->start[tile] + LH_CHUNK - 1) / LH_CHUNK);
}

/* Stages go round; the parity of a stage's barrier changes with each round. */
typedef struct ring {
    int at;
    unsigned parity;
} ring;

static __device__ __forceinline__ void ring_next(ring *r, int n)
{
    if (++r->at == n) {
        r->at = 0;
        r->parity ^= 1;
    }
}

/* S^T of 16 columns: register c[n][e] is column lane / 4 + 8 (e / 2) of the group and row n * 8 +
 * lane % 4 * 2 + e % 2 of the state. */
typedef struct columns {
    float c[16][4];
} columns;

static __device__ __forceinline__ int state_at(int n, int e)
{
    int lane = threadIdx.x % 32;
    return (n * 8 + lane % 4 * 2 + e % 2) * KDA_D + lane / 4 + e / 2 * 8;
}

static __device__ __forceinline__ float largest_of(const columns *s)
{
    float top = 0;

#pragma unroll
    for (int n = 0; n < 16; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            top = fmaxf(top, fabsf(s->c[n][e]));
    return warp_max(top);
}

static __device__ __forceinline__ void scale(columns *s, float factor)
{
#pragma unroll
    for (int n = 0; n < 16; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            s->c[n][e] *= factor;
}

static __device__ __forceinline__ void store_columns(float *to, const columns *s, float factor)
{
#pragma unroll
    for (int n = 0; n < 16; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            to[state_at(n, e)] = s->c[n][e] * factor;
}

/* Steps 0 .. 7 of a chunk's products are those over d_k, four right operands each; then 16 tokens
 * in two steps. */
static __device__ __forceinline__ void load_step(uint4 (&b)[4], const kda_image *image, int step)
{
    int lane = threadIdx.x % 32;

#pragma unroll
    for (int j = 0; j < 4; j++)
        b[j] = step < 8 ? image->w[step][j][lane]
                        : image->k[(step - 8) / 2][(step - 8) % 2 * 4 + j][lane];
}

static __device__ __forceinline__ uint4 as_left(const float (&low)[4], const float (&high)[4])
{
    return make_uint4(pack_half(low[0], low[1]), pack_half(low[2], low[3]),
                      pack_half(high[0], high[1]), pack_half(high[2], high[3]));
}

/* A chunk of the chain. `u` NULL: 0. `to` NULL: no outputs are made. */
static __device__ __forceinline__ void advance(columns *s, const kda_image *image,
                                               const uint4 (*u)[32], float u_factor, hand *to,
                                               float down, uint64_t *to_empty, unsigned to_parity,
                                               uint64_t *to_full)
{
    int lane = threadIdx.x % 32;
    float fresh[8][4] = {};
    uint4 b[2][4];

    load_step(b[0], image, 0);
    if (u)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint4 x = u[i][lane];
            float2 x0 = unpack_half(x.x), x1 = unpack_half(x.y);
            float2 x2 = unpack_half(x.z), x3 = unpack_half(x.w);
            fresh[2 * i][0] = x0.x * u_factor, fresh[2 * i][1] = x0.y * u_factor;
            fresh[2 * i][2] = x1.x * u_factor, fresh[2 * i][3] = x1.y * u_factor;
            fresh[2 * i + 1][0] = x2.x * u_factor, fresh[2 * i + 1][1] = x2.y * u_factor;
            fresh[2 * i + 1][2] = x3.x * u_factor, fresh[2 * i + 1][3] = x3.y * u_factor;
        }
    if (to)
        barrier_wait(to_empty, to_parity);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        uint4 left = as_left(s->c[2 * i], s->c[2 * i + 1]);
        load_step(b[(i + 1) & 1], image, i + 1);
        if (to)
            to->state[i][lane] = left;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            mma_half(fresh[2 * j], left, b[i & 1][j].x, b[i & 1][j].y);
            mma_half(fresh[2 * j + 1], left, b[i & 1][j].z, b[i & 1][j].w);
        }
#pragma unroll
        for (int n = 2 * i; n < 2 * i + 2; n++) {
            float2 d = *(const float2 *)&image->decay[n * 8 + lane % 4 * 2];
            s->c[n][0] *= d.x, s->c[n][1] *= d.y;
            s->c[n][2] *= d.x, s->c[n][3] *= d.y;
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        uint4 left = as_left(fresh[i / 2 * 2], fresh[i / 2 * 2 + 1]);
        if (i < 7)
            load_step(b[(i + 1) & 1], image, i + 9);
        if (to && i % 2 == 0)
            to->fresh[i / 2][lane] = left;
        if (to && i == 6) {
            if (lane == 0)
                to->down = down;
            barrier_arrive(to_full); /* each lane what it has written */
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int n = (i % 2 * 4 + j) * 2;
            mma_half(s->c[n], left, b[i & 1][j].x, b[i & 1][j].y);
            mma_half(s->c[n + 1], left, b[i & 1][j].z, b[i & 1][j].w);
        }
    }
}

/*
 * The loader brings in chunks [begin, end) of an item, on LOADER_LANES of its lanes. `u_bytes` per
 * chunk are this block's own, from column group `group` on.
 */
template <int N_STAGES>
static __device__ void load_chunks(const chain_args *a, int item, int begin, int end, ring *r,
                                   char *stages, size_t stage_bytes, unsigned image_bytes,
                                   uint64_t (&full)[N_STAGES], uint64_t (&empty)[N_STAGES],
                                   int group, unsigned u_bytes)
{
    const kda_image *image = a->work.image +
                             (kda_first_slot(a->start, item / a->n_heads) + begin) * a->n_heads +
                             item % a->n_heads;

    if (threadIdx.x % 32 < LOADER_LANES)
        for (int i = begin; i < end; i++, image += a->n_heads) {
            char *to = stages + r->at * stage_bytes;
            barrier_wait(&empty[r->at], r->parity);
            load_begin(&full[r->at], image_bytes + u_bytes);
            load(to, image, image_bytes, &full[r->at]);
            if (u_bytes)
                load(to + image_bytes, image->u[group], u_bytes, &full[r->at]);
            load_end(&full[r->at]);
            ring_next(r, N_STAGES);
        }
    __syncwarp();
}

template <int N_STAGES>
static __device__ void init_barriers(uint64_t (&full)[N_STAGES], uint64_t (&empty)[N_STAGES])
{
    for (int i = 0; i < N_STAGES; i++) {
        barrier_init(&full[i], LOADER_LANES);
        barrier_init(&empty[i], READERS);
    }
}

/* A warp of the chain with outputs: column group `group`. */
template <int N_STAGES>
static __device__ void run_finish(finish_shared<N_STAGES> *s, const chain_args *a, int warp,
                                  int group)
{
    int n_items = a->n_tiles * a->n_heads;
    ring r = {0, 0}, h = {0, 1};

    for (int item = blockIdx.x / BLOCKS; item < n_items; item += gridDim.x / BLOCKS) {
        int tile = item / a->n_heads, n = n_chunks(a, tile);
        int64_t at = (int64_t)item * KDA_D * KDA_D + group * KDA_GROUP;
        columns c;
#pragma unroll
        for (int i = 0; i < 16; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                c.c[i][e] = a->state_in[at + state_at(i, e)];
        float largest =
            fmaxf(largest_of(&c), __uint_as_float(a->work.v_largest[item * KDA_GROUPS + group]));
        int e = kda_scale_exponent(largest);
        float up = power_of_two(e);
        scale(&c, up);
        for (int i = 0; i < n; i++) {
            const kda_image *image = (const kda_image *)s->stage[r.at].image;
            barrier_wait(&s->full[r.at], r.parity);
            advance(&c, image, s->stage[r.at].u[warp], up * image->v_scale[group],
                    &s->hands[warp][h.at], power_of_two(-e), &s->hand_empty[warp][h.at], h.parity,
                    &s->hand_full[warp][h.at]);
            barrier_arrive(&s->empty[r.at]);
            ring_next(&r, N_STAGES);
            ring_next(&h, HAND);
        }
        if (a->state_out)
            store_columns(a->state_out + at, &c, power_of_two(-e));
    }
}

static __device__ __forceinline__ void swap_quads(unsigned &x, unsigned &y, int other)
{
    int upper = (threadIdx.x & other) != 0;
    unsigned give = upper ? x : y, got = __shfl_xor_sync(0xffffffffu, give, other);
    if (upper)
        x = got;
    else
        y = got;
}

/* A warp of outputs: those of the columns of `group`, whose chain is in warp `warp`. */
template <int N_STAGES>
static __device__ void run_outputs(finish_shared<N_STAGES> *s, const chain_args *a, int warp,
                                   int group)
{
    int lane = threadIdx.x % 32, n_items = a->n_tiles * a->n_heads;
    int64_t ld = (int64_t)a->n_heads * KDA_D;
    ring r = {0, 0}, h = {0, 0};

    for (int item = blockIdx.x / BLOCKS; item < n_items; item += gridDim.x / BLOCKS) {
        int tile = item / a->n_heads, n = n_chunks(a, tile);
        int64_t n_rows = a->start[tile + 1] - a->start[tile];
        bf16 *o = a->o + a->start[tile] * ld + item % a->n_heads * KDA_D + group * KDA_GROUP;
        for (int i = 0; i < n; i++) {
            const kda_image *image = (const kda_image *)s->stage[r.at].image;
            const hand *from = &s->hands[warp][h.at];
            float out[4][2][4] = {};
            barrier_wait(&s->full[r.at], r.parity);
            barrier_wait(&s->hand_full[warp][h.at], h.parity);
            float down = from->down;
#pragma unroll
            for (int step = 0; step < 8; step++) {
                uint4 state = from->state[step][lane];
#pragma unroll
                for (int m = 0; m < 4; m++) {
                    uint4 q = image->q[step][m][lane];
                    mma_half(out[m][0], q, state.x, state.z);
                    mma_half(out[m][1], q, state.y, state.w);
                }
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                uint4 fresh = from->fresh[j][lane];
#pragma unroll
                for (int m = j; m < 4; m++) {
                    uint4 scores = image->scores[m * (m + 1) / 2 + j][lane];
                    mma_half(out[m][0], scores, fresh.x, fresh.z);
                    mma_half(out[m][1], scores, fresh.y, fresh.w);
                }
            }
            barrier_arrive(&s->hand_empty[warp][h.at]);
            barrier_arrive(&s->empty[r.at]);
            ring_next(&r, N_STAGES);
            ring_next(&h, HAND);
            /* A lane has two columns each of (rows lane / 4, + 8) x (columns 0 .. 7, 8 .. 15);
             * among four lanes they are turned into one piece of eight columns each. */
#pragma unroll
            for (int m = 0; m < 4; m++) {
                unsigned x0 = pack_bf16(out[m][0][0] * down, out[m][0][1] * down);
                unsigned x1 = pack_bf16(out[m][1][0] * down, out[m][1][1] * down);
                unsigned x2 = pack_bf16(out[m][0][2] * down, out[m][0][3] * down);
                unsigned x3 = pack_bf16(out[m][1][2] * down, out[m][1][3] * down);
                swap_quads(x0, x1, 1);
                swap_quads(x2, x3, 1);
                swap_quads(x0, x2, 2);
                swap_quads(x1, x3, 2);
                int64_t row = (int64_t)i * LH_CHUNK + m * 16 + lane / 4 + (lane & 2) * 4;
                if (row < n_rows)
                    *(uint4 *)(o + row * ld + (lane & 1) * 8) = make_uint4(x0, x1, x2, x3);
            }
        }
    }
}

template <int N_STAGES>
static __device__ void load_finish(finish_shared<N_STAGES> *s, const chain_args *a, int part)
{
    ring r = {0, 1};

    for (int item = blockIdx.x / BLOCKS; item < a->n_tiles * a->n_heads; item += gridDim.x / BLOCKS)
        load_chunks(a, item, 0, n_chunks(a, item / a->n_heads), &r, (char *)s->stage,
                    sizeof(s->stage[0]), FINISH_BYTES, s->full, s->empty, part * 2,
                    2 * GROUP_BYTES);
}

template <int N_STAGES>
static __global__ void __launch_bounds__(CHAIN_THREADS, 1) finish_kernel(const chain_args a)
{
    extern __shared__ __align__(128) char raw[];
    finish_shared<N_STAGES> *s = (finish_shared<N_STAGES> *)raw;
    int warp = threadIdx.x / 32, part = blockIdx.x % BLOCKS;

    if (threadIdx.x == 0) {
        init_barriers(s->full, s->empty);
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < HAND; j++) {
                barrier_init(&s->hand_full[i][j], 32);
                barrier_init(&s->hand_empty[i][j], 32);
            }
        fence_barriers();
    }
    __syncthreads(); /* the barriers */
    if (warp == LOADER)
        load_finish(s, &a, part);
    else if (warp < 2)
        run_finish(s, &a, warp, part * 2 + warp);
    else
        run_outputs(s, &a, warp - 2, part * 2 + warp - 2);
}

/*
 * Pieces of the work on maps: half the columns of an item's map or of its addend, those of all maps
 * first. A map forgets: its entries shrink with every token, and where all of a piece's have become
 * nothing as operands (they began at 4, f16 ends at 2^-25) the rest of the chain would leave
 * nothing of them. It ends there, and its block goes on to another piece; the blocks look every
 * LOOK chunks, because all warps of one must wait for each other to agree.
 */
#define LOOK 128
#define LEAST_OPERAND 0x1p-25f

typedef struct piece {
    int item, half, of_map;
} piece;

static __host__ __device__ __forceinline__ int n_pieces(const chain_args *a)
{
    return a->n_tiles * a->n_heads * BLOCKS;
}

static __device__ __forceinline__ piece piece_at(const chain_args *a, int i)
{
    int n = n_pieces(a) / 2;
    return {i % n / 2, i % 2, i < n};
}

static __device__ __forceinline__ int is_left(const columns *s)
{
    int left = 0;

#pragma unroll
    for (int n = 0; n < 16; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            left |= !(fabsf(s->c[n][e]) <= LEAST_OPERAND);
    return left;
}

template <int N_STAGES>
static __device__ void load_maps(maps_shared<N_STAGES> *s, const chain_args *a)
{
    ring r = {0, 1};

    for (int at = blockIdx.x; at < n_pieces(a); at += gridDim.x) {
        piece p = piece_at(a, at);
        int n = n_chunks(a, p.item / a->n_heads);
        for (int i = 0; i < n; i += LOOK) {
            load_chunks(a, p.item, i, min(n, i + LOOK), &r, (char *)s->stage, sizeof(s->stage[0]),
                        MAPS_BYTES, s->full, s->empty, p.half * 4, p.of_map ? 0 : 4 * GROUP_BYTES);
            if (p.of_map && i + LOOK < n && !__syncthreads_or(0))
                break;
        }
    }
}

template <int N_STAGES>
static __device__ void run_maps(maps_shared<N_STAGES> *s, const chain_args *a, int warp)
{
    ring r = {0, 0};

    for (int next = blockIdx.x; next < n_pieces(a); next += gridDim.x) {
        piece p = piece_at(a, next);
        int n = n_chunks(a, p.item / a->n_heads), group = p.half * 4 + warp;
        int64_t at = (int64_t)p.item * KDA_D * KDA_D + group * KDA_GROUP;
        int e = kda_scale_exponent(
            p.of_map ? 1.0f : __uint_as_float(a->work.v_largest[p.item * KDA_GROUPS + group]));
        float up = power_of_two(e);
        columns c;
#pragma unroll
        for (int i = 0; i < 16; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int to = state_at(i, j) + group * KDA_GROUP;
                c.c[i][j] = p.of_map && to / KDA_D == to % KDA_D ? up : 0.0f;
            }
        for (int i = 0; i < n; i++) {
            const kda_image *image = (const kda_image *)s->stage[r.at].image;
            barrier_wait(&s->full[r.at], r.parity);
            if (p.of_map)
                advance(&c, image, NULL, 0, NULL, 0, NULL, 0, NULL);
            else
                advance(&c, image, s->stage[r.at].u[warp], up * image->v_scale[group], NULL, 0,
                        NULL, 0, NULL);
            barrier_arrive(&s->empty[r.at]);
            ring_next(&r, N_STAGES);
            if (p.of_map && (i + 1) % LOOK == 0 && i + 1 < n && !__syncthreads_or(is_left(&c))) {
                scale(&c, 0.0f);
                break;
            }
        }
        store_columns((p.of_map ? a->map : a->add) + at, &c, power_of_two(-e));
    }
}

template <int N_STAGES>
static __global__ void __launch_bounds__(CHAIN_THREADS, 1) maps_kernel(const chain_args a)
{
    extern __shared__ __align__(128) char raw[];
    maps_shared<N_STAGES> *s = (maps_shared<N_STAGES> *)raw;
    int warp = threadIdx.x / 32;

    if (threadIdx.x == 0) {
        init_barriers(s->full, s->empty);
        fence_barriers();
    }
    __syncthreads(); /* the barriers */
    if (warp == LOADER)
        load_maps(s, &a);
    else
        run_maps(s, &a, warp);
}

/* Four blocks for each tile and head, but no more than fit at once. */
static unsigned n_blocks(const lh_stream *s, const chain_args *a)
{
    int64_t items = (int64_t)a->n_tiles * a->n_heads;
    return (unsigned)(lh_min64(items, lh_max64(1, s->n_sms / BLOCKS)) * BLOCKS);
}

template <int N_STAGES> static lh_status launch_maps(lh_stream *s, const chain_args *c)
{
    const size_t bytes = sizeof(maps_shared<N_STAGES>);

    if constexpr (N_STAGES > LEAST_STAGES)
        if (bytes > (size_t)s->most_shared_bytes)
            return launch_maps<N_STAGES - 1>(s, c);
    LH_TRY(kda_check_shared(s, "kda_prepare", bytes));
    LH_TRY(lh_cuda_shared((const void *)maps_kernel<N_STAGES>, bytes));
    maps_kernel<N_STAGES>
        <<<(unsigned)min(n_pieces(c), s->n_sms), CHAIN_THREADS, bytes, s->stream>>>(*c);
    return lh_cuda_launched(s, "kda_prepare");
}

lh_status kda_maps(lh_stream *s, const lh_kda_prepare_args *a, const int64_t *start)
{
    chain_args c = {
        .start = start, .n_tiles = a->tiles.n, .n_heads = a->n_heads, .map = a->map, .add = a->add};

    kda_place_work(&c.work, a->work, a->n_rows, a->tiles.n, a->n_heads);
    return launch_maps<STAGES>(s, &c);
}

template <int N_STAGES> static lh_status launch_finish(lh_stream *s, const chain_args *c)
{
    const size_t bytes = sizeof(finish_shared<N_STAGES>);

    if constexpr (N_STAGES > LEAST_STAGES)
        if (bytes > (size_t)s->most_shared_bytes)
            return launch_finish<N_STAGES - 1>(s, c);
    LH_TRY(kda_check_shared(s, "kda_finish", bytes));
    LH_TRY(lh_cuda_shared((const void *)finish_kernel<N_STAGES>, bytes));
    finish_kernel<N_STAGES><<<n_blocks(s, c), CHAIN_THREADS, bytes, s->stream>>>(*c);
    return lh_cuda_launched(s, "kda_finish");
}

/* Reads 1,114 bytes of each row and head, and writes 256. */
lh_status lh_cuda_kda_finish(lh_stream *s, const lh_kda_finish_args *a)
{
    chain_args c = {.n_tiles = a->tiles.n,
                    .n_heads = a->n_heads,
                    .o = (bf16 *)a->o,
                    .state_in = a->state_in,
                    .state_out = a->state_out};
    const void *start = NULL;

    LH_TRY(lh_check_kda_finish(a));
    LH_TRY(kda_check_size("kda_finish", a->d_k, a->d_v));
    if (a->n_rows == 0)
        return LH_OK;
    LH_REQUIRE((int64_t)a->tiles.n * a->n_heads * KDA_GROUPS <= INT32_MAX, LH_ERR_UNSUPPORTED,
               "kda_finish: %d tiles of %d heads", a->tiles.n, a->n_heads);
    kda_place_work(&c.work, a->work, a->n_rows, a->tiles.n, a->n_heads);
    LH_TRY(lh_cuda_stage(s, &start, a->tiles.start, ((size_t)a->tiles.n + 1) * sizeof(int64_t)));
    c.start = (const int64_t *)start;
    return launch_finish<STAGES>(s, &c);
}
