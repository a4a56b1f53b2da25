/*
 * Attention of MLA over a prompt, expanded: some heads at a time, block by block of keys, the keys
 * and values of one block and those heads are all that is ever kept of them.
 *
 * The kernels here run on any GPU with bf16 tensor cores; Hopper has its own
 * (mla_prefill_sm90.cu). In both a row of queries is one row of every product and takes the keys in
 * tiles at fixed positions, in rising order, so its bits do not depend on the rows beside it: there
 * is one path, deterministic or not.
 */
#include "base/mem.h"
#include "kernels/cuda/mla.cuh"

#define BLOCK_KEYS LH_CUDA_MLA_KEYS
#define BLOCK_HEADS LH_CUDA_MLA_HEADS
#define MOST_HEADS 32

#define TILE 64 /* keys of a tile, queries of a piece */
#define THREADS 128

#define EXPAND_OUT 128 /* outputs of a block of threads: the keys, or the values, of one head */
#define EXPAND_STEP 64 /* latents of a step */
#define EXPAND_STEPS (MLA_LATENT / EXPAND_STEP)
typedef struct expand_shared {
    bf16 latent[2][TILE * EXPAND_STEP];
    bf16 w[2][EXPAND_OUT * EXPAND_STEP];
} expand_shared;

typedef struct attend_shared {
    bf16 q[TILE * MLA_QK], k[TILE * MLA_QK], v[TILE * MLA_V];
} attend_shared;

typedef struct workspace {
    bf16 *kv[2]; /* one is expanded while the other is read */
    float *sum;  /* these two for BLOCK_HEADS: only they see more than one block */
    float2 *state;
} workspace;

/* Rows of `chunks` 16-byte chunks to shared memory; `present` of them are there, the others become
 * zeros. */
static __device__ __forceinline__ void load_rows(bf16 *to, const bf16 *from, int64_t ld, int n_rows,
                                                 int chunks, int present)
{
    uint32_t at = shared_at(to);

    for (int i = threadIdx.x; i < n_rows * chunks; i += THREADS) {
        int row = i / chunks, chunk = i % chunks;
        copy16(at + swizzled(row, chunk, chunks * 16),
               from + (row < present ? row : 0) * ld + chunk * 8, row < present);
    }
}

/* Where this lane's row of an operand lies: rows row .. row + 15, columns 16 k .. 16 k + 15. The
 * left one has rows 0-7 and 8-15 of the first eight columns, then of the others; the right one
 * both halves of the columns of eight rows first. */
static __device__ __forceinline__ uint32_t left_at(uint32_t base, int row, int k, int row_bytes)
{
    int lane = threadIdx.x % 32;
    return base + swizzled(row + lane % 16, 2 * k + lane / 16, row_bytes);
}

static __device__ __forceinline__ uint32_t right_at(uint32_t base, int row, int k, int row_bytes)
{
    int lane = threadIdx.x % 32;
    return base + swizzled(row + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2, row_bytes);
}

/* 64 keys of one head's keys, or values. Each warp: 32 keys, half of the outputs. */
static __global__ void __launch_bounds__(THREADS) expand_kernel(const __grid_constant__ mla_pass p)
{
    extern __shared__ __align__(1024) char memory[];
    expand_shared *sh = (expand_shared *)memory;
    int tile = blockIdx.y * TILE, head = blockIdx.x / 2, is_value = blockIdx.x % 2;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, m = warp / 2 * 32, n = warp % 2 * 64;
    const bf16 *latent = p.latent + (int64_t)(p.key + tile) * MLA_WIDTH;
    const bf16 *w =
        (const bf16 *)p.w_kvb + (int64_t)(head * MLA_KV + is_value * MLA_NOPE) * MLA_LATENT;
    float d[2][8][4] = {};

    load_rows(sh->latent[0], latent, MLA_WIDTH, TILE, EXPAND_STEP / 8, p.n_keys - tile);
    load_rows(sh->w[0], w, MLA_LATENT, EXPAND_OUT, EXPAND_STEP / 8, EXPAND_OUT);
    copy_commit();
    for (int step = 0; step < EXPAND_STEPS; step++) {
        int now = step % 2, next = step + 1;
        copy_wait<0>();
        __syncthreads(); /* this step's tiles are there, the other ones have been read */
        if (next < EXPAND_STEPS) {
            load_rows(sh->latent[!now], latent + next * EXPAND_STEP, MLA_WIDTH, TILE,
                      EXPAND_STEP / 8, p.n_keys - tile);
            load_rows(sh->w[!now], w + next * EXPAND_STEP, MLA_LATENT, EXPAND_OUT, EXPAND_STEP / 8,
                      EXPAND_OUT);
            copy_commit();
        }
#pragma unroll
        for (int k = 0; k < EXPAND_STEP / 16; k++) {
            uint32_t a[2][4], b[4];
            for (int i = 0; i < 2; i++)
                load_matrices(a[i], left_at(shared_at(sh->latent[now]), m + i * 16, k, 128));
#pragma unroll
            for (int j = 0; j < 4; j++) {
                load_matrices(b, right_at(shared_at(sh->w[now]), n + j * 16, k, 128));
                for (int i = 0; i < 2; i++) {
                    mma(d[i][2 * j], a[i], b[0], b[1]);
                    mma(d[i][2 * j + 1], a[i], b[2], b[3]);
                }
            }
        }
    }
    bf16 *to = p.kv + ((int64_t)head * p.kv_rows + tile) * MLA_KV + is_value * MLA_NOPE;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
            for (int r = 0; r < 2; r++) {
                int row = m + i * 16 + r * 8 + lane / 4, column = n + j * 8 + lane % 4 * 2;
                *(uint32_t *)(to + (int64_t)row * MLA_KV + column) =
                    pack2(d[i][j][2 * r], d[i][j][2 * r + 1]);
            }
}

/* s [16, 64] = q k^T of this warp's rows. */
static __device__ __forceinline__ void scores(float s[8][4], const attend_shared *sh)
{
    int row = threadIdx.x / 32 * 16;

#pragma unroll
    for (int j = 0; j < 8; j++)
        s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
#pragma unroll
    for (int k = 0; k < MLA_QK / 16; k++) {
        uint32_t a[4], b[4];
        load_matrices(a, left_at(shared_at(sh->q), row, k, MLA_QK * 2));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            load_matrices(b, right_at(shared_at(sh->k), j * 16, k, MLA_QK * 2));
            mma(s[2 * j], a, b[0], b[1]);
            mma(s[2 * j + 1], a, b[2], b[3]);
        }
    }
}

/* Scores become weights relative to the new maximum; the sums so far are scaled to it. `seen` is
 * the first row's position less the tile's first key. */
static __device__ __forceinline__ void softmax(float s[8][4], float o[16][4], float max[2],
                                               float sum[2], int seen)
{
    int column = threadIdx.x % 4 * 2;

#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = -INFINITY, add = 0;
#pragma unroll
        for (int j = 0; j < 8; j++)
            for (int i = 2 * r; i < 2 * r + 2; i++) {
                if (column + j * 8 + i % 2 > seen + r * 8)
                    s[j][i] = -INFINITY;
                top = fmaxf(top, s[j][i]);
            }
        top = fmaxf(max[r], quad_max(top) * MLA_SCALE_LOG2);
        float factor = exp2_f(max[r] - top);
        max[r] = top;
#pragma unroll
        for (int j = 0; j < 8; j++)
            for (int i = 2 * r; i < 2 * r + 2; i++)
                add += s[j][i] = exp2_f(fmaf(s[j][i], MLA_SCALE_LOG2, -top));
        sum[r] = fmaf(sum[r], factor, add);
#pragma unroll
        for (int j = 0; j < 16; j++) {
            o[j][2 * r] *= factor;
            o[j][2 * r + 1] *= factor;
        }
    }
}

/* o [16, 128] += s v */
static __device__ __forceinline__ void weigh(float o[16][4], const float s[8][4],
                                             const attend_shared *sh)
{
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) {
        const float *low = s[2 * k], *high = s[2 * k + 1];
        uint32_t a[4] = {pack2(low[0], low[1]), pack2(low[2], low[3]), pack2(high[0], high[1]),
                         pack2(high[2], high[3])},
                 b[4];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            load_matrices_t(b, left_at(shared_at(sh->v), k * 16, j, MLA_V * 2));
            mma(o[2 * j], a, b[0], b[1]);
            mma(o[2 * j + 1], a, b[2], b[3]);
        }
    }
}

/* One piece of queries of one head against the block's keys; each warp has 16 queries. */
static __global__ void __launch_bounds__(THREADS) attend_kernel(const __grid_constant__ mla_pass p)
{
    extern __shared__ __align__(1024) char memory[];
    attend_shared *sh = (attend_shared *)memory;
    int head = blockIdx.x % p.n_heads;
    const mla_piece piece = mla_piece_at(&p, p.run_piece[p.n_runs] - 1 - blockIdx.x / p.n_heads);
    int end = min(piece.position + piece.n_rows, p.key + p.n_keys);
    int in_piece = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
    int64_t row = piece.row + in_piece;
    const bf16 *kv = p.kv + (int64_t)head * p.kv_rows * MLA_KV;
    const bf16 *rope = p.latent + (int64_t)p.key * MLA_WIDTH + MLA_LATENT;
    float s[8][4], o[16][4], max[2], sum[2];

#pragma unroll
    for (int r = 0; r < 2; r++) {
        bool again = p.key > 0 && in_piece + 8 * r < piece.n_rows;
        int64_t at = (row + 8 * r) * p.n_heads + head;
        float2 state = again ? p.state[at] : make_float2(-INFINITY, 0);
        max[r] = state.x;
        sum[r] = pair == 0 ? state.y : 0;
#pragma unroll
        for (int j = 0; j < 16; j++) {
            float2 v =
                again ? *(const float2 *)(p.sum + at * MLA_V + 8 * j + pair) : make_float2(0, 0);
            o[j][2 * r] = v.x;
            o[j][2 * r + 1] = v.y;
        }
    }
    load_rows(sh->q, p.q + (int64_t)piece.row * p.n_all_heads * MLA_QK + (p.head + head) * MLA_QK,
              (int64_t)p.n_all_heads * MLA_QK, TILE, MLA_QK / 8, piece.n_rows);
    for (int tile = 0; tile < end - p.key; tile += TILE) {
        uint32_t k = shared_at(sh->k);
        __syncthreads(); /* the tile before has been read */
        for (int i = threadIdx.x; i < TILE * MLA_QK / 8; i += THREADS) {
            int key = i / (MLA_QK / 8), chunk = i % (MLA_QK / 8);
            bool is_rope = chunk >= MLA_NOPE / 8, present = !is_rope || tile + key < p.n_keys;
            const bf16 *from = is_rope ? rope + (int64_t)(present ? tile + key : 0) * MLA_WIDTH +
                                             (chunk - MLA_NOPE / 8) * 8
                                       : kv + (int64_t)(tile + key) * MLA_KV + chunk * 8;
            copy16(k + swizzled(key, chunk, MLA_QK * 2), from, present);
        }
        copy_commit();
        load_rows(sh->v, kv + (int64_t)tile * MLA_KV + MLA_NOPE, MLA_KV, TILE, MLA_V / 8, TILE);
        copy_commit();
        copy_wait<1>();
        __syncthreads(); /* the keys are there */
        scores(s, sh);
        softmax(s, o, max, sum, piece.position + in_piece - p.key - tile);
        copy_wait<0>();
        __syncthreads(); /* the values are there */
        weigh(o, s, sh);
    }

    bool last = piece.position + piece.n_rows <= p.key + p.n_keys;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int64_t at = (row + 8 * r) * p.n_heads + head;
        float total = quad_sum(sum[r]), factor = 1.0f / total;
        if (in_piece + 8 * r >= piece.n_rows)
            continue;
        bf16 *to = p.o + ((row + 8 * r) * p.n_all_heads + p.head + head) * MLA_V + pair;
#pragma unroll
        for (int j = 0; j < 16; j++) {
            float x = o[j][2 * r], y = o[j][2 * r + 1];
            if (last)
                *(uint32_t *)(to + 8 * j) = pack2(x * factor, y * factor);
            else
                *(float2 *)(p.sum + at * MLA_V + 8 * j + pair) = make_float2(x, y);
        }
        if (!last && pair == 0)
            p.state[at] = make_float2(max[r], total);
    }
}

static lh_status expand(lh_stream *s, const mla_pass *p)
{
    LH_TRY(lh_cuda_shared((const void *)expand_kernel, sizeof(expand_shared)));
    expand_kernel<<<dim3((unsigned)p->n_heads * 2, (unsigned)div_up(p->n_keys, TILE)), THREADS,
                    sizeof(expand_shared), s->stream>>>(*p);
    return lh_cuda_launched(s, "mla_prefill");
}

static lh_status attend(lh_stream *s, const mla_pass *p)
{
    LH_TRY(lh_cuda_shared((const void *)attend_kernel, sizeof(attend_shared)));
    attend_kernel<<<(unsigned)(mla_n_pieces(p) * p->n_heads), THREADS, sizeof(attend_shared),
                    s->stream>>>(*p);
    return lh_cuda_launched(s, "mla_prefill");
}

static void place_work(workspace *w, void *base, int64_t n_rows, int n_heads)
{
    lh_cuda_mla_prefill_work at;

    (void)lh_cuda_mla_prefill_layout(&at, base, n_rows, n_heads);
    for (int i = 0; i < 2; i++)
        w->kv[i] = (bf16 *)at.kv[i];
    w->sum = (float *)at.sum;
    w->state = (float2 *)at.state;
}

static void cut_runs(mla_pass *p, const lh_mla_prefill_args *a, int piece_rows)
{
    p->n_runs = a->n_runs;
    p->piece_rows = piece_rows;
    for (int r = 0; r <= a->n_runs; r++)
        p->run_row[r] = (int)a->run_start[r];
    for (int r = 0; r < a->n_runs; r++) {
        int n = p->run_row[r + 1] - p->run_row[r];
        p->run_position[r] = (int)a->run_position[r];
        p->run_piece[r + 1] = p->run_piece[r] + (int)div_up(n, piece_rows);
    }
}

static int context_of(const mla_pass *p)
{
    int last = p->n_runs - 1;

    return p->run_position[last] + p->run_row[last + 1] - p->run_row[last];
}

/* The heads p->head .. against all keys; n_done counts the passes. */
static lh_status heads_pass(lh_stream *s, mla_pass *p, const workspace *w, int hopper, int *n_done)
{
    int n_context = context_of(p);

    p->first_piece = 0;
    for (int64_t key = 0; key < n_context; key += BLOCK_KEYS, ++*n_done) {
        p->key = (int)key;
        p->n_keys = (int)lh_min64(BLOCK_KEYS, n_context - key);
        p->kv = w->kv[*n_done % 2];
        for (;; p->first_piece++) {
            mla_piece piece = mla_piece_at(p, p->first_piece);
            if (piece.position + piece.n_rows > key)
                break;
        }
        if (hopper) {
            LH_TRY(lh_cuda_mla_expand_sm90(s, p, *n_done == 0));
            LH_TRY(lh_cuda_mla_attend_sm90(s, p));
        } else {
            LH_TRY(expand(s, p));
            LH_TRY(attend(s, p));
        }
    }
    return LH_OK;
}

lh_status lh_cuda_mla_prefill(lh_stream *s, const lh_mla_prefill_args *a)
{
    workspace w;
    int hopper = s->arch == 90, most_heads, n_done = 0;

    LH_TRY(lh_check_mla_prefill(a));
    LH_REQUIRE(a->d_nope == MLA_NOPE && a->d_rope == MLA_ROPE && a->d_v == MLA_V &&
                   a->d_latent == MLA_LATENT,
               LH_ERR_UNSUPPORTED,
               "mla_prefill: heads of %d + %d, values of %d, latents of %d, the CUDA backend has "
               "128 + 64, 128, 512",
               a->d_nope, a->d_rope, a->d_v, a->d_latent);
    if (a->n_rows == 0)
        return LH_OK;
    LH_TRY(lh_cuda_most("mla_prefill", "n_runs", a->n_runs, MLA_MAX_RUNS));
    LH_TRY(lh_cuda_aligned("mla_prefill", "o", a->o));
    LH_TRY(lh_cuda_aligned("mla_prefill", "q", a->q));
    LH_TRY(lh_cuda_aligned("mla_prefill", "latent", a->latent));
    LH_TRY(lh_cuda_aligned("mla_prefill", "w_kvb", a->w_kvb));
    place_work(&w, a->work, a->n_rows, a->n_heads);
    mla_pass p = {.q = (const bf16 *)a->q,
                  .latent = (const bf16 *)a->latent,
                  .o = (bf16 *)a->o,
                  .n_rows = a->n_rows,
                  .n_all_heads = a->n_heads,
                  .sum = w.sum,
                  .state = w.state};
    cut_runs(&p, a, hopper ? MLA_PIECE_SM90 : TILE);
    p.kv_rows = (int)lh_min64(BLOCK_KEYS, lh_round_up(context_of(&p), MLA_PIECE_SM90));
    most_heads =
        (int)lh_min64(MOST_HEADS, lh_min64(a->n_heads, BLOCK_HEADS) * BLOCK_KEYS / p.kv_rows);
    for (p.head = 0; p.head < a->n_heads; p.head += p.n_heads) {
        p.n_heads = (int)lh_min64(most_heads, a->n_heads - p.head);
        p.w_kvb = a->w_kvb + (int64_t)p.head * MLA_KV * MLA_LATENT;
        LH_TRY(heads_pass(s, &p, &w, hopper, &n_done));
    }
    return LH_OK;
}
