#include "kernels/cuda/cuda.cuh"

/*
 * Stable counting sorts in three launches: each block counts what it has for every column, a column
 * is summed up over the blocks, each block places what it has.
 *
 * Columns are kinds of things that are counted, in two groups: first copies (plan_send: to each
 * rank; plan_receive: one column of all), then pairs (plan_send: to each rank; plan_receive: of
 * each expert). Totals are of each expert's pairs, then of the copies' columns. Atomic additions
 * only count: what they leave does not depend on their order.
 */
#define THREADS LH_CUDA_PLAN_ROWS /* plan_send: a row each */
#define WARPS (THREADS / 32)
#define STEPS (LH_CUDA_PLAN_PAIRS / THREADS) /* plan_receive: a warp takes 32 pairs at a time */
#define MOST_EXPERTS 1024
#define MOST_RANKS 4096
#define ALL 0xffffffffu

/* Where things of the column begin that this block has. */
static __device__ __forceinline__ int32_t *of_block(int32_t *count, int64_t column)
{
    return count + column * gridDim.x + blockIdx.x;
}

/* The sum over the threads before this one, and over all of the block. One barrier: `turn` is one
 * more with each call, and a call writes where nobody reads the call before. */
static __device__ __forceinline__ int sum_before(int x, int *all, int turn)
{
    __shared__ int part[2][WARPS];
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, up_to = x, before = 0;

    for (int m = 1; m < 32; m *= 2) {
        int other = __shfl_up_sync(ALL, up_to, m);
        up_to += lane >= m ? other : 0;
    }
    if (lane == 31)
        part[turn & 1][warp] = up_to;
    __syncthreads();
    *all = 0;
    for (int w = 0; w < WARPS; w++) {
        before += w < warp ? part[turn & 1][w] : 0;
        *all += part[turn & 1][w];
    }
    return before + up_to - x;
}

/* A block for each column. Pairs of column c come after those of the experts before first[c], or
 * before c where first is NULL. */
static __global__ void __launch_bounds__(THREADS)
    sum_up_kernel(int32_t *count, const int32_t *total, const int32_t *first, int n_experts,
                  int n_copy_columns, int n_blocks)
{
    int column = (int)blockIdx.x, pairs = column - n_copy_columns;
    int begin = pairs < 0 ? n_experts : 0;
    int end = pairs < 0 ? n_experts + column : first ? first[pairs] : pairs;
    int mine = 0, base, all, turn = 0;

    count += (int64_t)column * n_blocks;
    for (int i = begin + (int)threadIdx.x; i < end; i += THREADS)
        mine += total[i];
    (void)sum_before(mine, &base, turn++);
    for (int64_t i = threadIdx.x; i - threadIdx.x < n_blocks; i += THREADS) {
        int before = sum_before(i < n_blocks ? count[i] : 0, &all, turn++);
        if (i < n_blocks)
            count[i] = base + before;
        base += all;
    }
}

/* ------------------------------------------------------------------- plan_send */

/* In shared memory: pairs of each expert, then copies to each rank, then pairs to each rank. */
static __global__ void __launch_bounds__(THREADS)
    count_sent_kernel(int32_t *count, int32_t *total, const int32_t *expert, const int32_t *first,
                      int n_rows, int n_experts, int top_k, int size)
{
    extern __shared__ int here[];
    int *copies = here + n_experts, *pairs = copies + size;
    int64_t row = (int64_t)blockIdx.x * THREADS + threadIdx.x;

    for (int i = (int)threadIdx.x; i < n_experts + 2 * size; i += THREADS)
        here[i] = 0;
    __syncthreads();
    expert += row * top_k;
    for (int j = 0, rank = 0, last = -1; row < n_rows && j < top_k; j++, last = rank) {
        int e = expert[j];
        while (e >= first[rank + 1])
            rank++;
        atomicAdd(here + e, 1);
        atomicAdd(pairs + rank, 1);
        if (rank != last)
            atomicAdd(copies + rank, 1);
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < n_experts + size; i += THREADS)
        if (here[i] > 0)
            atomicAdd(total + i, here[i]);
    for (int i = (int)threadIdx.x; i < 2 * size; i += THREADS)
        *of_block(count, i) = copies[i]; /* and pairs, which follow */
}

/* Rank by rank: each thread knows its row's copy and pairs to it, and what rows before it have. */
static __global__ void __launch_bounds__(THREADS)
    place_sent_kernel(int32_t *send_row, int32_t *source, uint32_t *pair_expert,
                      const int32_t *expert, const int32_t *first, int32_t *count, int n_rows,
                      int top_k, int size)
{
    enum { ONE_COPY = 1 << 16 }; /* a block has at most 2^14 pairs: LH_MAX_TOP_K of each row */
    int64_t row = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int n = row < n_rows ? top_k : 0, all;

    expert += row * top_k;
    source += row * top_k;
    for (int rank = 0, j = 0; rank < size; rank++) {
        int begin = j;
        while (j < n && expert[j] < first[rank + 1])
            j++;
        int before = sum_before(j > begin ? ONE_COPY + j - begin : 0, &all, rank);
        if (j == begin)
            continue;
        int pair = *of_block(count, size + rank) + before % ONE_COPY;
        send_row[*of_block(count, rank) + before / ONE_COPY] = (int32_t)row;
        for (int i = begin; i < j; i++, pair++) {
            source[i] = pair;
            pair_expert[pair] = (unsigned)(2 * (expert[i] - first[rank]) + (i == begin));
        }
    }
}

lh_status lh_cuda_plan_send(lh_stream *s, const lh_plan_send_args *a)
{
    lh_cuda_plan_work w;
    const void *first;

    LH_TRY(lh_check_plan_send(a));
    LH_TRY(lh_cuda_most("plan_send", "n_experts", a->n_experts, MOST_EXPERTS));
    LH_TRY(lh_cuda_most("plan_send", "size", a->size, MOST_RANKS));
    LH_CUDA_TRY(cudaMemsetAsync(a->total, 0, (size_t)(a->n_experts + a->size) * sizeof *a->total,
                                s->stream));
    if (a->n_rows == 0)
        return LH_OK;
    LH_TRY(lh_cuda_stage(s, &first, a->first, ((size_t)a->size + 1) * sizeof *a->first));
    unsigned n_blocks = (unsigned)div_up(a->n_rows, THREADS), n_columns = 2 * (unsigned)a->size;
    size_t shared = ((size_t)a->n_experts + n_columns) * sizeof(int);
    (void)lh_cuda_plan_layout(&w, a->work, n_columns, n_blocks);
    count_sent_kernel<<<n_blocks, THREADS, shared, s->stream>>>(
        w.count, a->total, a->expert, (const int32_t *)first, (int)a->n_rows, a->n_experts,
        a->top_k, a->size);
    sum_up_kernel<<<n_columns, THREADS, 0, s->stream>>>(w.count, a->total, (const int32_t *)first,
                                                        a->n_experts, a->size, (int)n_blocks);
    place_sent_kernel<<<n_blocks, THREADS, 0, s->stream>>>(
        a->send_row, a->source, a->pair_expert, a->expert, (const int32_t *)first, w.count,
        (int)a->n_rows, a->top_k, a->size);
    return lh_cuda_launched(s, "plan_send");
}

/* ---------------------------------------------------------------- plan_receive */

/* The pair that this lane has at a step: lanes of a warp have neighbours, and so do its steps. */
static __device__ __forceinline__ unsigned pair_at(int step)
{
    return blockIdx.x * LH_CUDA_PLAN_PAIRS + (threadIdx.x / 32 * STEPS + (unsigned)step) * 32 +
           threadIdx.x % 32;
}

typedef struct heard {
    int net; /* -1: past the end */
    int begins;
} heard;

static __device__ __forceinline__ heard hear(const uint32_t *pair_expert, int n_pairs, int n_nets,
                                             int step)
{
    unsigned at = pair_at(step);

    if (at >= (unsigned)n_pairs)
        return {.net = -1, .begins = 0};
    unsigned said = pair_expert[at];
    return {.net = (int)min(said >> 1, (unsigned)n_nets - 1), .begins = (int)(said & 1)};
}

/* In shared memory: pairs of each expert, then copies. */
static __global__ void __launch_bounds__(THREADS)
    count_received_kernel(int32_t *count, int32_t *total, const uint32_t *pair_expert, int n_pairs,
                          int n_nets)
{
    extern __shared__ int here[];

    for (int i = (int)threadIdx.x; i <= n_nets; i += THREADS)
        here[i] = 0;
    __syncthreads();
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        heard h = hear(pair_expert, n_pairs, n_nets, step);
        unsigned begins = __ballot_sync(ALL, h.begins);
        if (h.net >= 0)
            atomicAdd(here + h.net, 1);
        if (threadIdx.x % 32 == 0)
            atomicAdd(here + n_nets, __popc(begins));
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i <= n_nets; i += THREADS) {
        *of_block(count, i < n_nets ? 1 + i : 0) = here[i];
        if (here[i] > 0)
            atomicAdd(total + i, here[i]);
    }
}

/* Warps count once more for themselves, so that each knows where its pairs of an expert begin. */
static __global__ void __launch_bounds__(THREADS)
    place_received_kernel(int32_t *pair_copy, int32_t *back_pair, const uint32_t *pair_expert,
                          int32_t *count, int n_pairs, int n_copies, int n_nets)
{
    extern __shared__ int next[]; /* [WARPS, n_nets] */
    __shared__ int copies[WARPS];
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, n_begun = 0;
    int *mine = next + warp * n_nets;
    heard h[STEPS];

    for (int i = (int)threadIdx.x; i < WARPS * n_nets; i += THREADS)
        next[i] = 0;
    __syncthreads();
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        h[step] = hear(pair_expert, n_pairs, n_nets, step);
        n_begun += __popc(__ballot_sync(ALL, h[step].begins));
        if (h[step].net >= 0)
            atomicAdd(mine + h[step].net, 1);
    }
    if (lane == 0)
        copies[warp] = n_begun;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < n_nets; i += THREADS)
        for (int w = 0, at = *of_block(count, 1 + i); w < WARPS; w++) {
            int n = next[w * n_nets + i];
            next[w * n_nets + i] = at;
            at += n;
        }
    int copy = *of_block(count, 0) - 1; /* the last that began before */
    for (int w = 0; w < warp; w++)
        copy += copies[w];
    __syncthreads();
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        unsigned up_to = ALL >> (31 - lane), begins = __ballot_sync(ALL, h[step].begins);
        unsigned alike = __match_any_sync(ALL, h[step].net);
        int n_before = __popc(alike & (up_to >> 1)), own = copy + __popc(begins & up_to);
        int to = h[step].net >= 0 ? mine[h[step].net] + n_before : 0;
        copy += __popc(begins);
        __syncwarp(); /* all have read `mine`; the first of those alike moves it on for the next */
        if (h[step].net >= 0) {
            if (n_before == 0)
                mine[h[step].net] += __popc(alike);
            pair_copy[to] = max(0, min(own, n_copies - 1));
            back_pair[pair_at(step)] = to;
        }
        __syncwarp();
    }
}

lh_status lh_cuda_plan_receive(lh_stream *s, const lh_plan_receive_args *a)
{
    lh_cuda_plan_work w;

    LH_TRY(lh_check_plan_receive(a));
    if (a->n_pairs == 0)
        return LH_OK;
    LH_TRY(lh_cuda_most("plan_receive", "n_nets", a->n_nets, MOST_EXPERTS));
    unsigned n_blocks = (unsigned)div_up(a->n_pairs, LH_CUDA_PLAN_PAIRS);
    unsigned n_columns = (unsigned)a->n_nets + 1;
    (void)lh_cuda_plan_layout(&w, a->work, n_columns, n_blocks);
    LH_CUDA_TRY(cudaMemsetAsync(w.total, 0, n_columns * sizeof *w.total, s->stream));
    count_received_kernel<<<n_blocks, THREADS, n_columns * sizeof(int), s->stream>>>(
        w.count, w.total, a->pair_expert, (int)a->n_pairs, a->n_nets);
    sum_up_kernel<<<n_columns, THREADS, 0, s->stream>>>(w.count, w.total, NULL, a->n_nets, 1,
                                                        (int)n_blocks);
    place_received_kernel<<<n_blocks, THREADS, WARPS *(size_t)a->n_nets * sizeof(int), s->stream>>>(
        a->pair_copy, a->back_pair, a->pair_expert, w.count, (int)a->n_pairs, (int)a->n_copies,
        a->n_nets);
    return lh_cuda_launched(s, "plan_receive");
}
