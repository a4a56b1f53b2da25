/*
 * What the kernels of MLA share: the one set of dimensions that the CUDA backend has, one pass of
 * prefill over a block of keys, and the instructions that C has no words for.
 */
#ifndef LH_KERNELS_CUDA_MLA_CUH
#define LH_KERNELS_CUDA_MLA_CUH

#include "kernels/cuda/cuda.cuh"

#define MLA_NOPE 128
#define MLA_ROPE 64
#define MLA_QK (MLA_NOPE + MLA_ROPE)
#define MLA_V 128
#define MLA_KV (MLA_NOPE + MLA_V)
#define MLA_LATENT 512
#define MLA_WIDTH (MLA_LATENT + MLA_ROPE)

static_assert(MLA_KV == LH_CUDA_MLA_KV && MLA_LATENT == LH_CUDA_MLA_LATENT &&
                  MLA_WIDTH == LH_CUDA_MLA_WIDTH,
              "the sizes that plans count with");

/* exp(score * 192^-1/2) = exp2(score * this) */
#define MLA_SCALE_LOG2 0.10411754627697f

#define MLA_MAX_RUNS 16

/* Queries at consecutive positions that a block of threads takes. */
typedef struct mla_piece {
    int row, n_rows;
    int position; /* of its first row */
} mla_piece;

/*
 * One block of keys for some heads. The keys and values are expanded into kv; a query's running
 * maximum, sum and weighted values stay in state and sum from one block to the next.
 */
typedef struct mla_pass {
    const bf16 *q, *latent;
    const lh_bf16 *w_kvb; /* of the first of these heads */
    bf16 *o;
    int64_t n_rows;
    int n_all_heads;
    int head, n_heads; /* these heads */
    int n_runs;
    int run_row[MLA_MAX_RUNS + 1], run_position[MLA_MAX_RUNS];
    int piece_rows;                  /* runs are cut every so many rows */
    int run_piece[MLA_MAX_RUNS + 1]; /* pieces of the runs before */
    int first_piece;                 /* the first that sees a key of this block */
    int key, n_keys;                 /* the block; keys behind the last query's are left out */
    int kv_rows;                     /* rows of kv per head */
    bf16 *kv;      /* [n_heads, kv_rows, MLA_KV]: zeros behind the last key of the context */
    float *sum;    /* [n_rows, n_heads, MLA_V], not divided by the sum of the weights */
    float2 *state; /* [n_rows, n_heads]: maximum of the scores * MLA_SCALE_LOG2, sum */
} mla_pass;

static __host__ __device__ __forceinline__ mla_piece mla_piece_at(const mla_pass *p, int i)
{
    int r = 0;

    while (i >= p->run_piece[r + 1])
        r++;
    int in_run = (i - p->run_piece[r]) * p->piece_rows,
        left = p->run_row[r + 1] - p->run_row[r] - in_run;
    mla_piece piece = {p->run_row[r] + in_run, left < p->piece_rows ? left : p->piece_rows,
                       p->run_position[r] + in_run};
    return piece;
}

/* Blocks of threads: heads of the block's pieces. The longest pieces come first. */
static __host__ __device__ __forceinline__ int mla_n_pieces(const mla_pass *p)
{
    return p->run_piece[p->n_runs] - p->first_piece;
}

/* The Hopper versions of the two steps of a pass; pieces of 128 rows. Each starts before the step
 * before it has run where it can: expanding writes the kv that the attention before does not read;
 * the first of a call waits for everything. */
#define MLA_PIECE_SM90 128
lh_status lh_cuda_mla_expand_sm90(lh_stream *s, const mla_pass *p, int first);
lh_status lh_cuda_mla_attend_sm90(lh_stream *s, const mla_pass *p);

/* Launches a kernel of an operation; with `early` it may start before the one before it has run,
 * and waits for its results itself. */
template <typename... P, typename... A>
static inline lh_status mla_launch(lh_stream *s, int early, void (*kernel)(P...), dim3 grid,
                                   unsigned n_threads, size_t shared, const A &...a)
{
    cudaLaunchAttribute serial = {.id = cudaLaunchAttributeProgrammaticStreamSerialization,
                                  .val = {.programmaticStreamSerializationAllowed = 1}};
    cudaLaunchConfig_t config = {.gridDim = grid,
                                 .blockDim = dim3(n_threads),
                                 .dynamicSmemBytes = shared,
                                 .stream = s->stream,
                                 .attrs = &serial,
                                 .numAttrs = early ? 1u : 0u};

    if (shared > 0)
        LH_TRY(lh_cuda_shared((const void *)kernel, shared));
    LH_CUDA_TRY(cudaLaunchKernelEx(&config, kernel, a...));
    return lh_cuda_launched(s, "mla");
}

static __device__ __forceinline__ uint32_t shared_at(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

static __device__ __forceinline__ float exp2_f(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Work queued behind this kernel may start; what came before it has run, its results are there. */
static __device__ __forceinline__ void let_next_start(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

static __device__ __forceinline__ void await_previous(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* 16 bytes from global to shared memory, or zeros. */
static __device__ __forceinline__ void copy16(uint32_t to, const void *from, bool present)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(present ? 16 : 0)
                 : "memory");
}

static __device__ __forceinline__ void copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most `n` of this thread's groups are under way. */
template <int n> static __device__ __forceinline__ void copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

/* Four 8 x 8 matrices; lane i gives the address of row i % 8 of matrix i / 8. */
static __device__ __forceinline__ void load_matrices(uint32_t r[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

static __device__ __forceinline__ void load_matrices_t(uint32_t r[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* d [16, 8] += a [16, 16] b [16, 8] */
static __device__ __forceinline__ void mma(float d[4], const uint32_t a[4], uint32_t b0,
                                           uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Byte offset of 16-byte chunk `chunk` of row `row`: the eight chunks of 128 bytes are exchanged so
 * that one column of eight rows lies in all banks. */
static __device__ __forceinline__ uint32_t swizzled(int row, int chunk, int row_bytes)
{
    return (uint32_t)(row * row_bytes + (chunk & ~7) * 16 + ((chunk ^ row) & 7) * 16);
}

/* Maximum, or sum, over the four lanes that hold one row of an accumulator. */
static __device__ __forceinline__ float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

static __device__ __forceinline__ float quad_sum(float x)
{
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

#endif
