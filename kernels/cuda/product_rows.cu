/*
 * Few rows: the weights are streamed once, from memory straight into the fragments of mma.sync.
 *
 * A warp takes 8 * GROUPS outputs and a part of the inner dimension; its lanes read 16 bytes of a
 * weight row each (8 consecutive k), and the same k of the rows of x. Which k of a block of 32 is
 * "first" in a fragment does not matter as long as both operands agree. The warps of an output add
 * up in shared memory in a fixed order; how many they are depends on n_in alone.
 *
 * Memory: n_out * n_in * 2 bytes a part and network. Arithmetic is never the limit up to 32 rows.
 */
#include "kernels/cuda/product.cuh"

#define WARPS 8
#define THREADS (32 * WARPS)
#define BLOCK_K 32        /* k of a warp's step: two mma */
#define LOCAL_ITEMS 16    /* items that travel as kernel arguments */
#define STAGED_ITEMS 1024 /* items of a launch */

#define ITEM_ROWS 32 /* rows of an item at most */

/* Rows of x that share a network. */
typedef struct item {
    const bf16 *w[2];
    int row, n_rows;
} item;

typedef struct params {
    void *y;
    const bf16 *x;
    int64_t ldy, ldx;
    int n_in, n_out;
    int k_warps, k_blocks; /* warps that share an output, blocks of k of each */
    int accumulate, f32_out;
    const item *staged; /* or NULL: local */
    item local[LOCAL_ITEMS];
} params;

static __device__ __forceinline__ uint4 load_weights(const bf16 *p)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

/* Not by the read-only path: the kernel before may still be writing when this one starts. */
static __device__ __forceinline__ uint4 load_x(const bf16 *p)
{
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

/*
 * Programmatic launch: what the kernel before wrote is there after the wait (weights are no
 * kernel's output, and are asked for earlier); then the blocks of the next kernel may take free
 * places. Not before: it would start while the kernel before this one still runs, and find that
 * one's lines in its cache.
 */
static __device__ __forceinline__ void let_next_start(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

static __device__ __forceinline__ void wait_for_last(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

static __device__ __forceinline__ void mma(float d[4], unsigned a0, unsigned a1, unsigned a2,
                                           unsigned a3, unsigned b0, unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void store(const params *p, int64_t at, float v)
{
    if (p->f32_out) {
        ((float *)p->y)[at] = v;
        return;
    }
    bf16 *y = (bf16 *)p->y + at;
    *y = __float2bfloat16(p->accumulate ? __bfloat162float(*y) + v : v);
}

/* Fragments of x from k on: of each tile of 16 rows the rows below 8 and the others. */
template <int ROW_TILES, int STEPS>
static __device__ __forceinline__ void load_rows(uint4 a[STEPS][ROW_TILES][2],
                                                 const bf16 *const x[ROW_TILES][2], int k, int end,
                                                 int n_rows)
{
    wait_for_last(); /* after the weights are on their way, where they come first */
    let_next_start();
#pragma unroll
    for (int s = 0; s < STEPS; s++)
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int at = k + s * BLOCK_K;
                a[s][r][i] = at + 8 * (int)(threadIdx.x % 4) < end && 16 * r + 8 * i < n_rows
                                 ? load_x(x[r][i] + at)
                                 : make_uint4(0, 0, 0, 0);
            }
}

/* GROUPS of 8 outputs; with two parts the second half of them is the second part's. STEPS blocks of
 * k are asked for at once, of x before or after the weights. */
template <int PARTS, int GROUPS, int ROW_TILES, int STEPS, int BLOCKS, int X_FIRST>
__global__ void __launch_bounds__(THREADS, BLOCKS) rows_kernel(const __grid_constant__ params p)
{
    enum { OUTS = 8 * GROUPS / PARTS };
    __shared__ float part[WARPS][GROUPS][ROW_TILES][128];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int slot = warp / p.k_warps, n_slots = WARPS / p.k_warps;
    int first = blockIdx.x * OUTS * n_slots;
    item it;
    const bf16 *w[GROUPS], *x[ROW_TILES][2];
    float acc[GROUPS][ROW_TILES][4] = {};

    if (p.staged)
        it = p.staged[blockIdx.y];
    else
        it = p.local[blockIdx.y];
#pragma unroll
    for (int j = 0; j < GROUPS; j++) {
        int out = first + slot * OUTS + j % (GROUPS / PARTS) * 8 + g;
        out = out < p.n_out ? out : p.n_out - 1; /* not written then */
        w[j] = it.w[j / (GROUPS / PARTS)] + (int64_t)out * p.n_in + 8 * t;
    }
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++)
        for (int i = 0; i < 2; i++) {
            int row = 16 * r + 8 * i + g;
            row = row < it.n_rows ? row : it.n_rows - 1;
            x[r][i] = p.x + (it.row + row) * p.ldx + 8 * t;
        }
    int begin = warp % p.k_warps * p.k_blocks * BLOCK_K;
    int end = min(p.n_in, begin + p.k_blocks * BLOCK_K);
    for (int k = begin; k < end; k += STEPS * BLOCK_K) {
        uint4 a[STEPS][ROW_TILES][2], b[STEPS][GROUPS];
        if (X_FIRST)
            load_rows<ROW_TILES, STEPS>(a, x, k, end, it.n_rows);
#pragma unroll
        for (int s = 0; s < STEPS; s++)
#pragma unroll
            for (int j = 0; j < GROUPS; j++) {
                int at = k + s * BLOCK_K;
                b[s][j] = at + 8 * t < end ? load_weights(w[j] + at) : make_uint4(0, 0, 0, 0);
            }
        if (!X_FIRST)
            load_rows<ROW_TILES, STEPS>(a, x, k, end, it.n_rows);
#pragma unroll
        for (int s = 0; s < STEPS; s++)
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
                for (int j = 0; j < GROUPS; j++) {
                    const uint4 low = a[s][r][0], high = a[s][r][1], v = b[s][j];
                    mma(acc[j][r], low.x, high.x, low.y, high.y, v.x, v.y);
                    mma(acc[j][r], low.z, high.z, low.w, high.w, v.z, v.w);
                }
    }
    wait_for_last(); /* a warp without a part of k writes y too */
#pragma unroll
    for (int j = 0; j < GROUPS; j++)
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++)
            *(float4 *)&part[warp][j][r][4 * lane] =
                make_float4(acc[j][r][0], acc[j][r][1], acc[j][r][2], acc[j][r][3]);
    __syncthreads();
    for (int e = threadIdx.x; e < it.n_rows * OUTS * n_slots; e += THREADS) {
        int row = e / (OUTS * n_slots), o = e % (OUTS * n_slots), in = o % OUTS;
        int at = row % 8 * 16 + in % 8 / 2 * 4 + row % 16 / 8 * 2 + in % 2;
        float sum[PARTS] = {};
        for (int i = 0; i < p.k_warps; i++)
#pragma unroll
            for (int j = 0; j < PARTS; j++)
                sum[j] +=
                    part[o / OUTS * p.k_warps + i][in / 8 + j * (GROUPS / PARTS)][row / 16][at];
        float v = PARTS == 1 ? sum[0] : swiglu(sum[0], sum[PARTS - 1]);
        if (first + o < p.n_out)
            store(&p, (it.row + row) * p.ldy + first + o, v);
    }
}

/* Warps that share the inner dimension: all of them unless it is so short that their parts would be
 * no more than a step. */
static void split_k(params *a)
{
    int blocks = (int)div_up(a->n_in, BLOCK_K);

    a->k_warps = blocks >= 16 ? 8 : blocks >= 8 ? 4 : blocks >= 4 ? 2 : 1;
    a->k_blocks = (int)div_up(blocks, a->k_warps);
}

template <int PARTS, int GROUPS, int ROW_TILES, int STEPS, int BLOCKS, int X_FIRST>
static lh_status launch_as(lh_stream *s, const params *a, int n_items)
{
    int outs = 8 * GROUPS / PARTS * (WARPS / a->k_warps);
    cudaLaunchAttribute attribute = {};
    cudaLaunchConfig_t config = {};

    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3((unsigned)div_up(a->n_out, outs), (unsigned)n_items);
    config.blockDim = dim3(THREADS);
    config.stream = s->stream;
    config.attrs = &attribute;
    config.numAttrs = s->arch >= 90;
    return lh_cuda_status(
        cudaLaunchKernelEx(&config, rows_kernel<PARTS, GROUPS, ROW_TILES, STEPS, BLOCKS, X_FIRST>,
                           *a),
        "launch of rows_kernel");
}

/* The shapes that were fastest: where a warp's part of k fits one step, many outputs a warp; else
 * few, the fewest where more would leave SMs without work. */
static lh_status launch(lh_stream *s, const lh_cuda_product *p, params *a, const item *items,
                        int n_items, int most)
{
    int64_t blocks = div_up(a->n_out, 16) * a->k_warps * n_items / WARPS; /* of 16 outputs */
    int large = blocks >= s->n_sms * 6, tall = most > 16, two = p->n_parts == 2;

    if (n_items > LOCAL_ITEMS) {
        const void *staged;
        LH_TRY(lh_cuda_stage(s, &staged, items, (size_t)n_items * sizeof *items));
        a->staged = (const item *)staged;
    } else {
        a->staged = NULL;
        for (int i = 0; i < n_items; i++)
            a->local[i] = items[i];
    }
    lh_status st = two && tall        ? launch_as<2, 4, 2, 2, 2, 0>(s, a, n_items)
                   : two              ? launch_as<2, 2, 1, 3, 3, 0>(s, a, n_items)
                   : tall             ? launch_as<1, 4, 2, 2, 2, 0>(s, a, n_items)
                   : a->k_blocks <= 5 ? launch_as<1, 4, 1, 5, 2, 1>(s, a, n_items)
                   : large            ? launch_as<1, 2, 1, 3, 3, 0>(s, a, n_items)
                                      : launch_as<1, 1, 1, 3, 4, 0>(s, a, n_items);
    LH_TRY(st);
    return lh_cuda_launched(s, p->op);
}

lh_status lh_cuda_product_rows(lh_stream *s, const lh_cuda_product *p)
{
    params a = {};
    item items[STAGED_ITEMS];
    int n_items = 0, most = 0;

    a.y = p->y;
    a.x = (const bf16 *)p->x;
    a.ldy = p->ldy;
    a.ldx = p->ldx;
    a.n_in = (int)p->n_in;
    a.n_out = (int)p->n_out;
    a.accumulate = p->accumulate;
    a.f32_out = p->f32_out;
    split_k(&a);
    for (lh_cuda_range r = {}; lh_cuda_next_range(s, p, &r);) {
        for (int64_t row = 0; r.few && row < r.n_rows; row += ITEM_ROWS) {
            item *it = &items[n_items++];
            it->row = (int)(r.row + row);
            it->n_rows = r.n_rows - row < ITEM_ROWS ? (int)(r.n_rows - row) : ITEM_ROWS;
            for (int i = 0; i < p->n_parts; i++)
                it->w[i] = (const bf16 *)p->w[i][r.net];
            most = it->n_rows > most ? it->n_rows : most;
            if (n_items == STAGED_ITEMS) {
                LH_TRY(launch(s, p, &a, items, n_items, most));
                n_items = most = 0;
            }
        }
    }
    return n_items > 0 ? launch(s, p, &a, items, n_items, most) : LH_OK;
}
