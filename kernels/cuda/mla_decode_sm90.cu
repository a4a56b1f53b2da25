/*
 * MLA decode for Hopper: the ranges of keys, then merging and W_uv in one kernel.
 *
 * Keys are the rows of the products, heads the columns: scores^T [64 keys, heads] = latents q^T,
 * sums^T [512, heads] += latents^T weights^T, both from the same tile in shared memory, so that a
 * row of the cache is read once and 32 heads fill the tensor cores. Four groups of warps: one
 * computes scores and weights, two the sums (256 latents each), one loads.
 */
#include "kernels/cuda/mla_decode.cuh"
#include "kernels/cuda/mla_sm90.cuh"

#define KEYS 64 /* of a tile */
#define STAGES 2
#define SLABS (MLA_WIDTH / 64) /* columns of a tile by 64: rows of 128 bytes */
#define SLAB (KEYS * 64)
#define THREADS 512
#define LOADERS 64 /* of a stage */

#define CLUSTER                                                                                    \
    4 /* blocks that merge one head's latents, 128 each, and then have 32 outputs each */
#define COLUMNS (MLA_LATENT / CLUSTER)
#define OUTPUTS (MLA_V / CLUSTER)
#define FINISH_THREADS (MLA_SECTIONS * 32)
#define WARPS (FINISH_THREADS / 32)

template <int heads> struct attend_shared {
    bf16 latent[STAGES][SLABS][SLAB];
    bf16 query[SLABS][heads * 64];
    bf16 weight[STAGES][heads * KEYS];
    float factor[STAGES][heads];       /* what the sums so far are worth */
    float top[STAGES][4][heads];       /* each warp's maximum */
    float total[4][heads], max[heads]; /* of a part, when it is done */
    uint64_t full[STAGES], empty[STAGES], query_empty;
    uint64_t weight_full[STAGES], weight_empty[STAGES];
    mla_plan cut;
};

#if HAVE_SM90

/* d [64, heads] = a b^T, or += with `add`. transposed: the index of the sum is the rows of a. */
template <int transposed>
static __device__ __forceinline__ void product(float (&d)[16], uint64_t a, uint64_t b, int add)
{
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, %18, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, "
                 "%6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17, add, 1, 1, %19, 0;\n"
                 "}"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                   "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                   "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
                 : "l"(a), "l"(b), "r"(add), "n"(transposed));
}

template <int transposed>
static __device__ __forceinline__ void product(float (&d)[8], uint64_t a, uint64_t b, int add)
{
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, %10, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, "
                 "%6, %7}, %8, %9, add, 1, 1, %11, 0;\n"
                 "}"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                   "+f"(d[6]), "+f"(d[7])
                 : "l"(a), "l"(b), "r"(add), "n"(transposed));
}

template <int transposed>
static __device__ __forceinline__ void product(float (&d)[4], uint64_t a, uint64_t b, int add)
{
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, %6, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, "
                 "add, 1, 1, %7, 0;\n"
                 "}"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "l"(a), "l"(b), "r"(add), "n"(transposed));
}

template <int n> static __device__ __forceinline__ void hold(float (&x)[n])
{
#pragma unroll
    for (int i = 0; i < n; i++)
        asm volatile("" : "+f"(x[i])::"memory");
}

/* Two, or four, 8 x 8 matrices, transposed on the way; lane i gives the address of row i % 8 of
 * matrix i / 8. */
static __device__ __forceinline__ void store_matrices_t(uint32_t at, uint32_t a, uint32_t b)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(at), "r"(a),
                 "r"(b)
                 : "memory");
}

/* 64 columns of a row, in 16-byte chunks, of rows of 128 bytes. */
static __device__ __forceinline__ uint32_t chunk_at(int row, int chunk)
{
    return (uint32_t)(row * 128 + (chunk ^ row % 8) * 16);
}

/* n_rows (a multiple of 8) rows of 576 columns as slabs of `rows` rows; those from `present` on
 * become zeros. By LOADERS threads: eight of them a slab's row. */
template <int rows>
static __device__ __forceinline__ void load_slabs(bf16 *to, const bf16 *from, int present)
{
    int thread = threadIdx.x % LOADERS, chunk = thread % 8;
    uint32_t at = shared_at(to);

#pragma unroll
    for (int i = 0; i < rows / (LOADERS / 8); i++) {
        int row = i * (LOADERS / 8) + thread / 8;
        const bf16 *x = from + (int64_t)min(row, present - 1) * MLA_WIDTH + chunk * 8;
#pragma unroll
        for (int slab = 0; slab < SLABS; slab++)
            copy16(at + slab * rows * 128 + chunk_at(row, chunk), x + slab * 64, row < present);
    }
}

/* The loading group: its two halves take the tiles in turn, each has one stage. The first tile is
 * on its way before the queries are there. */
template <int heads>
static __device__ __forceinline__ void load(attend_shared<heads> *sh, const mla_batch *b, int head,
                                            int n_heads)
{
    int mine = threadIdx.x / LOADERS % STAGES, count = 0, n_parts = 0;
    mla_walk w = walk_from(blockIdx.x, gridDim.x);
    mla_part p;

    for (; walk_next(&w, &sh->cut, b, gridDim.x, &p); n_parts++) {
        const bf16 *latent = b->latent[p.seq];
        for (int key = p.begin; key < p.end; key += KEYS, count++) {
            if (count % STAGES != mine)
                continue;
            barrier_wait(&sh->empty[mine], (count / STAGES & 1) ^ 1);
            load_slabs<KEYS>(sh->latent[mine][0], latent + (int64_t)key * MLA_WIDTH, p.end - key);
            if (key == p.begin) {
                await_previous();
                barrier_wait(&sh->query_empty, (n_parts & 1) ^ 1);
                load_slabs<heads>(sh->query[0],
                                  b->query + ((int64_t)p.seq * b->n_heads + head) * MLA_WIDTH,
                                  n_heads);
            }
            copy_commit();
            copy_wait<0>();
            show_to_products();
            barrier_arrive(&sh->full[mine]);
        }
    }
    await_previous(); /* without keys, too: what comes behind this kernel relies on it */
}

/* Over the rows of a warp's 16 keys, that is over lanes 4 apart. */
static __device__ __forceinline__ float rows_max(float x)
{
    for (int m = 4; m < 32; m *= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, m));
    return x;
}

static __device__ __forceinline__ float rows_sum(float x)
{
    for (int m = 4; m < 32; m *= 2)
        x += __shfl_xor_sync(0xffffffffu, x, m);
    return x;
}

/* Column of element i of a product's row: 8 (i / 2) + 2 (lane % 4) + i % 2. */
static __device__ __forceinline__ int column_of(int i)
{
    return i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
}

/* Weights of one tile from its scores; d has row lane / 4 of the warp's keys in elements 0, 1 of
 * every four, the row 8 below in 2, 3. */
template <int heads>
static __device__ __forceinline__ void weigh(attend_shared<heads> *sh, float (&d)[heads / 2],
                                             float (&max)[heads / 4], float (&sum)[heads / 4],
                                             int buffer, uint32_t parity, int present)
{
    int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, row = warp * 16 + lane / 4;
    float factor[heads / 4];

#pragma unroll
    for (int i = 0; i < heads / 4; i++) {
        float *x = d + i / 2 * 4 + i % 2; /* x[0], x[2]: the two rows of column i */
        x[0] = row < present ? x[0] : -INFINITY;
        x[2] = row + 8 < present ? x[2] : -INFINITY;
        float top = rows_max(fmaxf(x[0], x[2]));
        if (lane < 4)
            sh->top[buffer][warp][column_of(i)] = top;
    }
    group_sync(1, 128);
#pragma unroll
    for (int i = 0; i < heads / 4; i++) {
        float *x = d + i / 2 * 4 + i % 2, top = sh->top[buffer][0][column_of(i)];
#pragma unroll
        for (int j = 1; j < 4; j++)
            top = fmaxf(top, sh->top[buffer][j][column_of(i)]);
        top = fmaxf(max[i], top * MLA_SCALE_LOG2);
        factor[i] = exp2_f(max[i] - top);
        max[i] = top;
        x[0] = exp2_f(fmaf(x[0], MLA_SCALE_LOG2, -top));
        x[2] = exp2_f(fmaf(x[2], MLA_SCALE_LOG2, -top));
        sum[i] = fmaf(sum[i], factor[i], x[0] + x[2]);
    }
    barrier_wait(&sh->weight_empty[buffer], parity ^ 1);
    if (threadIdx.x % 128 < 4)
#pragma unroll
        for (int i = 0; i < heads / 4; i++)
            sh->factor[buffer][column_of(i)] = factor[i];
    uint32_t to = shared_at(sh->weight[buffer]);
#pragma unroll
    for (int i = 0; i < heads / 8; i++)
        store_matrices_t(to + chunk_at(i * 8 + lane % 8, warp * 2 + lane / 8 % 2),
                         pack2(d[4 * i], d[4 * i + 1]), pack2(d[4 * i + 2], d[4 * i + 3]));
    show_to_products();
    barrier_arrive(&sh->weight_full[buffer]);
}

/* The group of scores and weights. */
template <int heads>
static __device__ __forceinline__ void compare(attend_shared<heads> *sh, const mla_batch *b,
                                               int head, int n_heads)
{
    int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32, count = 0;
    mla_walk w = walk_from(blockIdx.x, gridDim.x);
    mla_part p;

    while (walk_next(&w, &sh->cut, b, gridDim.x, &p)) {
        float max[heads / 4], sum[heads / 4];
#pragma unroll
        for (int i = 0; i < heads / 4; i++) {
            max[i] = -INFINITY;
            sum[i] = 0;
        }
        for (int key = p.begin; key < p.end; key += KEYS, count++) {
            int stage = count % STAGES;
            uint32_t parity = count / STAGES & 1;
            uint32_t latent = shared_at(sh->latent[stage]), query = shared_at(sh->query);
            float d[heads / 2];

            barrier_wait(&sh->full[stage], parity);
            hold(d);
            product_begin();
#pragma unroll
            for (int i = 0; i < MLA_WIDTH / 16; i++)
                product<0>(d, operand(latent + i / 4 * SLAB * 2 + i % 4 * 32, 16),
                           operand(query + i / 4 * heads * 128 + i % 4 * 32, 16), i);
            product_commit();
            product_wait<0>();
            hold(d);
            if (key + KEYS >= p.end && lane == 0)
                barrier_arrive(&sh->query_empty);
            weigh<heads>(sh, d, max, sum, stage, parity, p.end - key);
        }
#pragma unroll
        for (int i = 0; i < heads / 4; i++) {
            float total = rows_sum(sum[i]);
            if (lane < 4) {
                sh->total[warp][column_of(i)] = total;
                if (warp == 0)
                    sh->max[column_of(i)] = max[i];
            }
        }
        group_sync(1, 128);
        if (thread < n_heads) {
            float total = sh->total[0][thread];
            for (int i = 1; i < 4; i++)
                total += sh->total[i][thread];
            b->state[(int64_t)p.range * b->n_heads + head + thread] =
                make_float2(sh->max[thread], total);
        }
        group_sync(1, 128); /* total and max may be written again */
    }
}

/* A group of sums: latents 256 half .. of the tile, 64 at a time as rows of a product. */
template <int heads>
static __device__ __forceinline__ void add(attend_shared<heads> *sh, const mla_batch *b, int half,
                                           int head, int n_heads)
{
    int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, count = 0;
    mla_walk w = walk_from(blockIdx.x, gridDim.x);
    mla_part p;

    while (walk_next(&w, &sh->cut, b, gridDim.x, &p)) {
        float d[4][heads / 2] = {};
        for (int key = p.begin; key < p.end; key += KEYS, count++) {
            int stage = count % STAGES;
            uint32_t parity = count / STAGES & 1;
            uint32_t latent = shared_at(sh->latent[stage][4 * half]);
            uint32_t weight = shared_at(sh->weight[stage]);

            barrier_wait(&sh->full[stage], parity);
            barrier_wait(&sh->weight_full[stage], parity);
#pragma unroll
            for (int i = 0; i < heads / 2; i++) {
                float factor = sh->factor[stage][column_of(i / 4 * 2 + i % 2)];
#pragma unroll
                for (int j = 0; j < 4; j++)
                    d[j][i] *= factor;
            }
#pragma unroll
            for (int j = 0; j < 4; j++)
                hold(d[j]);
            product_begin();
#pragma unroll
            for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    product<1>(d[j], operand(latent + j * SLAB * 2 + k * 16 * 128, 16),
                               operand(weight + k * 32, 16), 1);
            product_commit();
            product_wait<0>();
#pragma unroll
            for (int j = 0; j < 4; j++)
                hold(d[j]);
            if (lane == 0) {
                barrier_arrive(&sh->empty[stage]);
                barrier_arrive(&sh->weight_empty[stage]);
            }
        }
        let_next_start();
        float *to = b->sum + ((int64_t)p.range * b->n_heads + head) * MLA_LATENT + half * 256 +
                    warp * 16 + lane / 4;
#pragma unroll
        for (int i = 0; i < heads / 2; i++) {
            int column = column_of(i / 4 * 2 + i % 2);
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (column < n_heads)
                    to[column * MLA_LATENT + j * 64 + i / 2 % 2 * 8] = d[j][i];
        }
    }
}

#endif

/* The shares of the keys, for up to `heads` heads. */
template <int heads>
static __global__ void __launch_bounds__(THREADS) attend_kernel(const __grid_constant__ mla_batch b)
{
#if HAVE_SM90
    extern __shared__ __align__(1024) char memory[];
    attend_shared<heads> *sh = (attend_shared<heads> *)memory;
    int head = blockIdx.y * heads, n_heads = min(heads, b.n_heads - head);
    int group = threadIdx.x / 128;

    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&sh->full[i], LOADERS);
            barrier_init(&sh->empty[i], 8); /* warps that add */
            barrier_init(&sh->weight_full[i], 128);
            barrier_init(&sh->weight_empty[i], 8);
        }
        barrier_init(&sh->query_empty, 4);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    make_plan(&sh->cut, &b);
    if (group == 0)
        compare<heads>(sh, &b, head, n_heads);
    else if (group < 3)
        add<heads>(sh, &b, group - 1, head, n_heads);
    else
        load<heads>(sh, &b, head, n_heads);
#endif
}

#if HAVE_SM90

/* This lane's latents of one sequence, by a warp. */
static __device__ __forceinline__ mla_added add_sections(const mla_rows *r, int column)
{
    mla_added all = {make_float4(0, 0, 0, 0), -INFINITY, 0};

    for (int i = threadIdx.x % 32; i < r->n; i += 32)
        all.max = fmaxf(all.max, r->state[i * r->state_step].x);
    all.max = warp_max(all.max);
    if (r->section == 1) { /* a row each: none waits for another */
#pragma unroll 4
        for (int i = 0; i < r->n; i++) {
            mla_added row = row_of(r, i, column);
            join_section(&all, &row);
        }
        return all;
    }
    for (int i = 0; i < MLA_SECTIONS; i++) {
        mla_added section = add_section(r, i, column);
        join_section(&all, &section);
    }
    return all;
}

/* To the same place in the shared memory of all blocks of the cluster. */
static __device__ __forceinline__ void store_everywhere(float *to, float4 x)
{
    for (int rank = 0; rank < CLUSTER; rank++) {
        uint32_t at;
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                     : "=r"(at)
                     : "r"(shared_at(to)), "r"(rank));
        asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(x.x),
                     "f"(x.y), "f"(x.z), "f"(x.w)
                     : "memory");
    }
}

static __device__ __forceinline__ void cluster_sync(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

#endif

/* One head's ranges, or the sections of all ranks, merged and multiplied by W_uv, for `seqs`
 * sequences: with one, each warp adds a section; with more, each warp has every WARPS-th sequence
 * and adds its sections alike. */
template <int seqs>
static __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(FINISH_THREADS)
    finish_kernel(const __grid_constant__ mla_batch b)
{
#if HAVE_SM90
    __shared__ mla_plan cut;
    __shared__ __align__(16) float x[seqs][MLA_LATENT];
    __shared__ mla_added section[MLA_SECTIONS][32];
    int head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int first = blockIdx.z * seqs;
    int out = blockIdx.x * OUTPUTS + warp * 4, column = blockIdx.x * COLUMNS + lane * 4;
    mla_outputs w;

    load_outputs(&w, b.w_kvb + ((int64_t)head * MLA_KV + MLA_NOPE + out) * MLA_LATENT);
    if (!b.partial)
        make_plan(&cut, &b);
    cluster_sync(); /* all blocks are there: their memory may be written */
    await_previous();
    for (int i = seqs == 1 ? 0 : warp; i < seqs && first + i < b.n_seq; i += WARPS) {
        int seq = first + i;
        mla_rows rows = b.partial ? sections_of(&b, seq, head) : ranges_of(&cut, &b, seq, head);
        mla_added all;

        if (seqs == 1) {
            section[warp][lane] = add_section(&rows, warp, column);
            __syncthreads();
            all = join_sections(section);
        } else {
            all = add_sections(&rows, column);
        }
        if (seqs > 1 || warp == 0)
            store_everywhere(&x[i][column], latents_of(&all));
    }
    cluster_sync(); /* all latents are there */
    unpack_outputs(&w);
    for (int s = 0; s < seqs && first + s < b.n_seq; s++)
        write_outputs(b.o + ((int64_t)(first + s) * b.n_heads + head) * MLA_V + out, &w, x[s]);
#endif
}

template <int heads> static lh_status attend(lh_stream *s, const mla_batch *b)
{
    return mla_launch(s, 1, attend_kernel<heads>,
                      dim3(MLA_SHARES, (unsigned)div_up(b->n_heads, heads)), THREADS,
                      sizeof(attend_shared<heads>), *b);
}

lh_status lh_cuda_mla_attend_ranges_sm90(lh_stream *s, const mla_batch *b)
{
    return b->n_heads <= 8    ? attend<8>(s, b)
           : b->n_heads <= 16 ? attend<16>(s, b)
                              : attend<32>(s, b);
}

lh_status lh_cuda_mla_finish_sm90(lh_stream *s, const mla_batch *b)
{
    int n = b->n_seq, seqs = n == 1 ? 1 : n <= WARPS ? WARPS : 2 * WARPS;

    /* sections come from the communicator, whose kernels do not let others start early */
    return mla_launch(s, !b->partial,
                      n == 1       ? finish_kernel<1>
                      : n <= WARPS ? finish_kernel<WARPS>
                                   : finish_kernel<2 * WARPS>,
                      dim3(CLUSTER, (unsigned)b->n_heads, (unsigned)div_up(n, seqs)),
                      FINISH_THREADS, 0, *b);
}
