/*
 * One block draws the token of a row, with the bits of the CPU: the sums of kernels/sample.h are
 * serial within groups of positions, and the groups are summed at once.
 *
 * A row of 163,840 logits is read once for a greedy token. By id it is read twice and costs an exp
 * of f64 a logit, about 20 operations. In order the first LH_SAMPLE_SORTED candidates are found by
 * their leading bytes, with one reading for each byte until they stand apart (3 or 4), and then
 * sorted; top_p without top_k costs the exps as well.
 */
#include "kernels/cuda/cuda.cuh"
#include "kernels/sample.h"

#define THREADS 1024
#define GROUP LH_SAMPLE_GROUP
#define BYTES 256 /* values of a byte */
#define NONE 0xffffffffu

static_assert(THREADS == LH_SAMPLE_SORTED, "a thread has one candidate");
static_assert(THREADS == 32 * 32, "a lane has one warp's part");

typedef struct shared {
    uint64_t key[THREADS]; /* of candidates */
    double sum[THREADS];   /* of positions or groups */
    uint64_t part64[32];   /* of the warps, for block_max */
    unsigned part[32];     /* the same, for block_min */
    unsigned count[BYTES], n_taken;
} shared;

typedef struct row {
    const float *logits;
    double *sum; /* [groups of n_vocab]: P of the group after */
    int64_t n_vocab;
    lh_sampling how;
    double u, top, inverse_temperature;
} row;

/* The order of candidates as numbers: the larger comes first. Zeros are equal. Of no finite logit
 * 0. */
static __device__ __forceinline__ uint64_t key_of(float logit, int64_t id)
{
    return (uint64_t)ordered(logit == 0 ? 0.0f : logit) << 32 | (NONE - (unsigned)id);
}

static __device__ __forceinline__ int32_t id_of(uint64_t key)
{
    return (int32_t)(NONE - (unsigned)key);
}

/* Over the block, the same on every thread. Two barriers each. */

static __device__ __forceinline__ uint64_t block_max(shared *s, uint64_t x)
{
    for (int m = 16; m > 0; m >>= 1)
        x = max(x, __shfl_xor_sync(0xffffffffu, x, m));
    __syncthreads(); /* part64 may still be read by the call before */
    if (threadIdx.x % 32 == 0)
        s->part64[threadIdx.x / 32] = x;
    __syncthreads();
    x = s->part64[threadIdx.x % 32];
    for (int m = 16; m > 0; m >>= 1)
        x = max(x, __shfl_xor_sync(0xffffffffu, x, m));
    return x;
}

static __device__ __forceinline__ unsigned block_min(shared *s, unsigned x)
{
    x = __reduce_min_sync(0xffffffffu, x);
    __syncthreads(); /* part may still be read by the call before */
    if (threadIdx.x % 32 == 0)
        s->part[threadIdx.x / 32] = x;
    __syncthreads();
    return __reduce_min_sync(0xffffffffu, s->part[threadIdx.x % 32]);
}

static __device__ __forceinline__ bool has_pieces(const row *r)
{
    return (uintptr_t)r->logits % 16 == 0;
}

/* Calls f(id, logit) for the thread's share of the row, ids rising; the same share every time. */
template <typename F> static __device__ __forceinline__ void for_share(const row *r, F f)
{
    const int64_t step = THREADS * 4, n = r->n_vocab;
    int64_t i = (int64_t)threadIdx.x * 4;

    for (; has_pieces(r) && i + 3 * step + 3 < n; i += 4 * step) {
        float4 x[4];
#pragma unroll
        for (int j = 0; j < 4; j++)
            x[j] = __ldg((const float4 *)(r->logits + i + j * step));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            f(i + j * step, x[j].x);
            f(i + j * step + 1, x[j].y);
            f(i + j * step + 2, x[j].z);
            f(i + j * step + 3, x[j].w);
        }
    }
    for (; i < n; i += step)
        for (int j = 0; j < 4 && i + j < n; j++)
            f(i + j, __ldg(r->logits + i + j));
}

static __device__ __forceinline__ double weight(const row *r, float logit)
{
    return lh_sample_weight(r->top, r->inverse_temperature, logit);
}

/* The same, 0 if less than `least`. */
static __device__ __forceinline__ double weight_from(const row *r, float logit, double least)
{
    double w = weight(r, logit);

    return w >= least ? w : 0;
}

/* w[i] = before + w[0] + .. + w[i], in this order; by one thread. */
static __device__ __forceinline__ void sum_up(double *w, int n, double before)
{
#pragma unroll 8
    for (int i = 0; i < n; i++)
        before = w[i] += before;
}

/* The sum of one group's weights of at least `least`. */
static __device__ __forceinline__ double group_sum(const row *r, int64_t group, double least)
{
    int64_t i = group * GROUP, end = min(i + GROUP, r->n_vocab);
    double sum = 0;

    for (; has_pieces(r) && i + 4 <= end; i += 4) {
        float4 x = __ldg((const float4 *)(r->logits + i));
        double w[4] = {weight_from(r, x.x, least), weight_from(r, x.y, least),
                       weight_from(r, x.z, least), weight_from(r, x.w, least)};
#pragma unroll
        for (int j = 0; j < 4; j++)
            sum += w[j];
    }
    for (; i < end; i++)
        sum += weight_from(r, __ldg(r->logits + i), least);
    return sum;
}

/* Fills r->sum; returns the last of it, the mass of all weights of at least `least`. */
static __device__ double sum_groups(shared *s, const row *r, double least)
{
    int64_t n_groups = lh_sample_groups(r->n_vocab);
    double mass = 0;

    for (int64_t first = 0; first < n_groups; first += THREADS) {
        int n = (int)min(n_groups - first, (int64_t)THREADS), i = (int)threadIdx.x;
        if (i < n)
            s->sum[i] = group_sum(r, first + i, least);
        __syncthreads();
        if (i == 0)
            sum_up(s->sum, n, mass);
        __syncthreads();
        if (i < n)
            r->sum[first + i] = s->sum[i];
        mass = s->sum[n - 1];
        __syncthreads(); /* read by all, before the next ones come there */
    }
    return mass;
}

static __device__ int32_t draw_by_id(shared *s, const row *r)
{
    int64_t n_groups = lh_sample_groups(r->n_vocab);
    double least = (double)r->how.min_p, target = r->u * sum_groups(s, r, least);
    unsigned group = NONE;

    for (int64_t g = threadIdx.x; g < n_groups && group == NONE; g += THREADS)
        if (r->sum[g] > target)
            group = (unsigned)g;
    group = block_min(s, group); /* its barriers: others' r->sum may be read */
    double before = group > 0 ? r->sum[group - 1] : 0;
    int64_t id = (int64_t)group * GROUP + threadIdx.x;
    if (threadIdx.x < GROUP)
        s->sum[threadIdx.x] = id < r->n_vocab ? weight_from(r, r->logits[id], least) : 0;
    __syncthreads();
    if (threadIdx.x == 0)
        sum_up(s->sum, GROUP, 0);
    __syncthreads();
    bool passed = threadIdx.x < GROUP && before + s->sum[threadIdx.x] > target;
    return (int32_t)(group * GROUP + block_min(s, passed ? threadIdx.x : NONE));
}

/*
 * The value of the byte in which the want-th key from the largest lies, from the counts of all
 * values; *above: keys of larger values. Every warp finds it alike: lane l has the values 255 - 8 l
 * and the seven below.
 */
static __device__ __forceinline__ int find_byte(const unsigned *count, unsigned want,
                                                unsigned *above)
{
    int lane = (int)threadIdx.x % 32, value = BYTES - 1 - 8 * lane;
    unsigned own = 0;

#pragma unroll
    for (int j = 0; j < 8; j++)
        own += count[value - j];
    unsigned upto = own; /* over this lane and those before it */
    for (int m = 1; m < 32; m *= 2) {
        unsigned before = __shfl_up_sync(0xffffffffu, upto, m);
        upto += lane >= m ? before : 0;
    }
    int at = __ffs((int)__ballot_sync(0xffffffffu, upto >= want)) - 1;
    *above = __shfl_sync(0xffffffffu, upto - own, at);
    for (value = BYTES - 1 - 8 * at; *above + count[value] < want; value--)
        *above += count[value];
    return value;
}

/* A number that exactly `want` keys reach; `least` is one that they and perhaps more reach. */
static __device__ uint64_t find_border(shared *s, const row *r, unsigned want, uint64_t least)
{
    uint64_t border = 0, known = 0; /* the bytes found so far; a mask of them */
    bool apart = false;

    for (int shift = 56; !apart; shift -= 8) { /* keys differ: the last byte ends it */
        unsigned above;
        if (threadIdx.x < BYTES)
            s->count[threadIdx.x] = 0;
        __syncthreads();
        for_share(r, [&](int64_t id, float logit) {
            uint64_t key = key_of(logit, id);
            if (key >= least && (key & known) == border)
                atomicAdd(&s->count[key >> shift & 0xff], 1u);
        });
        __syncthreads();
        int value = find_byte(s->count, want, &above);
        want -= above;
        apart = s->count[value] == want;
        border |= (uint64_t)value << shift;
        known |= (uint64_t)0xff << shift;
        __syncthreads(); /* the counts have been read */
    }
    return max(border, least);
}

/* Sorts s->key, the largest first: a bitonic network. Begins and ends with a barrier. */
static __device__ void sort_keys(shared *s)
{
    int i = (int)threadIdx.x;

    for (int size = 2; size <= THREADS; size *= 2)
        for (int apart = size / 2; apart > 0; apart /= 2) {
            int other = i ^ apart;
            __syncthreads();
            if (other > i) {
                uint64_t a = s->key[i], b = s->key[other];
                if ((a < b) == ((i & size) == 0)) {
                    s->key[i] = b;
                    s->key[other] = a;
                }
            }
        }
    __syncthreads();
}

/* The first n candidates to s->key, in order; zeros behind them. */
static __device__ void take_first(shared *s, const row *r, int n, uint64_t least)
{
    uint64_t border = find_border(s, r, (unsigned)n, least);

    s->key[threadIdx.x] = 0;
    if (threadIdx.x == 0)
        s->n_taken = 0;
    __syncthreads();
    for_share(r, [&](int64_t id, float logit) {
        uint64_t key = key_of(logit, id);
        if (key >= border)
            s->key[atomicAdd(&s->n_taken, 1u)] = key;
    });
    sort_keys(s);
}

static __device__ int32_t draw_in_order(shared *s, const row *r, uint64_t least)
{
    const lh_sampling *how = &r->how;
    bool cut = how->top_k > 0 && how->top_k < r->n_vocab;
    int64_t n_k = cut ? how->top_k : r->n_vocab; /* what top_k leaves */
    int n = (int)min(r->n_vocab, (int64_t)THREADS), i = (int)threadIdx.x;
    double mass = 0, before = 0;

    if (how->top_p < 1 && cut && n_k > n)
        return LH_SAMPLE_OPEN; /* their mass is a sum in order */
    if (how->top_p < 1 && !cut)
        mass = sum_groups(s, r, 0);
    take_first(s, r, n, least);
    double w = i < n ? weight(r, r->logits[id_of(s->key[i])]) : 0;
    s->sum[i] = w;
    __syncthreads();
    if (i % GROUP == 0)
        sum_up(s->sum + i, GROUP, 0);
    __syncthreads();
    for (int last = GROUP - 1; last < i / GROUP * GROUP; last += GROUP)
        before += s->sum[last];
    double upto = before + s->sum[i];
    __syncthreads(); /* the groups' sums have been read */
    s->sum[i] = upto;
    __syncthreads();
    if (how->top_p < 1 && cut)
        mass = s->sum[n_k - 1];
    double enough = how->top_p < 1 ? (double)how->top_p * mass : INFINITY;
    unsigned end = n_k <= n ? (unsigned)n_k : NONE; /* of the survivors */
    if (i < n)
        end = w < (double)how->min_p ? min(end, i) : upto >= enough ? min(end, i + 1) : end;
    end = block_min(s, end);
    if (end == NONE)
        return LH_SAMPLE_OPEN;
    double target = r->u * s->sum[end - 1];
    return id_of(s->key[block_min(s, upto > target ? i : NONE)]);
}

static __global__ void __launch_bounds__(THREADS)
    sample_kernel(int32_t *token, const float *logits, const lh_draw *draw, double *sums,
                  int64_t n_vocab)
{
    __shared__ shared s;
    const lh_draw d = draw[blockIdx.x];
    row r = {logits + blockIdx.x * n_vocab,
             sums + blockIdx.x * lh_sample_groups(n_vocab),
             n_vocab,
             d.how,
             lh_sample_uniform(&d),
             0,
             1 / (double)d.how.temperature};
    float best = -INFINITY;
    int64_t at = -1;
    bool finite = true;
    int32_t drawn = LH_SAMPLE_NOT_FINITE;

    for_share(&r, [&](int64_t id, float logit) {
        finite &= isfinite(logit);
        if (logit > best) {
            best = logit;
            at = id;
        }
    });
    if (__syncthreads_and(finite)) {
        uint64_t own = at < 0 ? 0 : key_of(best, at), first = block_max(&s, own);
        drawn = id_of(first);
        r.top = (double)r.logits[drawn];
        if (d.how.temperature > 0 && lh_sample_is_by_id(&d.how))
            drawn = draw_by_id(&s, &r);
        else if (d.how.temperature > 0) /* THREADS keys reach the least of the threads' own */
            drawn = draw_in_order(&s, &r, ~block_max(&s, ~own));
    }
    if (threadIdx.x == 0)
        token[blockIdx.x] = drawn;
}

lh_status lh_cuda_sample(lh_stream *s, const lh_sample_args *a)
{
    LH_TRY(lh_check_sample(a));
    if (a->n_rows == 0)
        return LH_OK;
    sample_kernel<<<(unsigned)a->n_rows, THREADS, 0, s->stream>>>(a->token, a->logits, a->draw,
                                                                  (double *)a->work, a->n_vocab);
    return lh_cuda_launched(s, "sample");
}
