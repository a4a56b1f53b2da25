/*
 * The product of matrices on Hopper, for many rows of one or many networks in one launch.
 *
 * Persistent blocks of three warpgroups: one thread of the first brings tiles of 128 rows and 256
 * weight rows, 64 deep, into a ring of shared memory (tensor maps, 128-byte swizzle); the other two
 * take 64 rows each by wgmma over all of the inner dimension, in rising order of k, and write their
 * results while the next tile is being brought. With two parts the 256 weight rows are 128 of each,
 * so that a thread holds both factors of an output. The two blocks of a cluster take two tiles of
 * rows and bring half of their common weights each, to both; where there is one tile of rows left,
 * they take two tiles of outputs and share the rows: the L2 would be the limit otherwise.
 *
 * Floor: 2 * n_rows * n_in * n_out * n_parts operations; weights once a network from memory.
 */
#include <cuda.h>
#include <string.h>

#include "kernels/cuda/product.cuh"

#define TILE_ROWS 128
#define TILE_OUTS 256 /* weight rows of a tile, of both parts together */
#define TILE_K 64     /* 128 bytes: the width of the swizzle */
#define STAGES 4
#define CLUSTER 2
#define THREADS 384
#define CONSUMER_WARPS 8
#define BOX_BYTES (128 * TILE_K * 2)
#define STAGE_BYTES (3 * BOX_BYTES)
#define OUT_BYTES (16 * 128) /* of a warp: 16 rows of 64 outputs, as the copy engine swizzles */
#define GROUP_ROWS 2048      /* rows that take the same weights one after the other */
#define MAX_GROUPS 512       /* of a launch */
#define MAX_MAPS 256         /* networks of a launch */
#define SENTINELS 33         /* past the last group: a warp looks 32 ahead */

/* Rows of one network; units (two tiles, of a cluster) are numbered through, rows first. Tiles of a
 * unit: the same outputs and two tiles of rows, or two of outputs if there is one of rows. */
typedef struct group {
    int first_unit, map, row, n_rows;
} group;

typedef struct params {
    const group *groups;
    const CUtensorMap *w; /* [networks of the launch][n_parts] */
    void *y;
    int64_t ldy;
    int n_units, n_k, n_out;
    int accumulate;
    int wide_rows; /* 16-byte accesses fit the rows of y */
} params;

typedef struct shared {
    unsigned char w[STAGES][2 * BOX_BYTES];
    unsigned char x[STAGES][BOX_BYTES];
    unsigned char out[CONSUMER_WARPS][2][OUT_BYTES];
    uint64_t full[STAGES], empty[STAGES];
} shared;
#define SHARED_BYTES (sizeof(shared) + 1024) /* the ring starts at a multiple of 1024 */

typedef struct unit {
    int map, row, n_rows, out; /* n_rows: of this block's tile and after it, may be <= 0 */
    int one_row_tile;
} unit;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

static __device__ __forceinline__ unsigned shared_at(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

static __device__ __forceinline__ void barrier_init(uint64_t *b, unsigned count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_at(b)), "r"(count));
}

static __device__ __forceinline__ void barrier_expect(uint64_t *b, unsigned bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_at(b)),
                 "r"(bytes)
                 : "memory");
}

static __device__ __forceinline__ void barrier_wait(uint64_t *b, unsigned parity)
{
    asm volatile("{\n.reg .pred p;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again;\n}\n" ::"r"(shared_at(b)),
                 "r"(parity)
                 : "memory");
}

/* On the barrier at the same place of block `rank` of the cluster. Says only that this warp's
 * products have read their operands: a release to the cluster would be a fence of all memory. */
static __device__ __forceinline__ void barrier_arrive(uint64_t *b, unsigned rank)
{
    asm volatile("{\n.reg .b32 at;\n"
                 "mapa.shared::cluster.u32 at, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [at];\n}\n" ::"r"(shared_at(b)),
                 "r"(rank)
                 : "memory");
}

static __device__ __forceinline__ void cluster_sync(void)
{
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n" ::: "memory");
}

/* A box of 128 rows by TILE_K, from column k and row `row` on; zeros outside. */
static __device__ __forceinline__ void bring(void *to, const CUtensorMap *map, int k, int row,
                                             uint64_t *full)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_at(to)),
                 "l"(map), "r"(k), "r"(row), "r"(shared_at(full))
                 : "memory");
}

/* The same into both blocks of the cluster. */
static __device__ __forceinline__ void bring_both(void *to, const CUtensorMap *map, int k, int row,
                                                  uint64_t *full)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_at(to)),
                 "l"(map), "r"(k), "r"(row), "r"(shared_at(full)), "h"((unsigned short)3)
                 : "memory");
}

/* A box of 16 rows by 64 columns to global memory; nothing outside. */
static __device__ __forceinline__ void take(const CUtensorMap *map, const void *from, int column,
                                            int row)
{
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
        "r"(column), "r"(row), "r"(shared_at(from))
        : "memory");
}

/* Maps are written by a copy before the launch; the copy engine has its own cache of them. */
static __device__ __forceinline__ void map_acquire(const CUtensorMap *map)
{
    asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map) : "memory");
}

/* Operand of wgmma: rows of 128 bytes, swizzled, groups of 8 rows 1024 bytes apart. */
static __device__ __forceinline__ uint64_t operand(const void *p)
{
    return (uint64_t)(shared_at(p) >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)64 << 32 |
           (uint64_t)1 << 62;
}

#define ACC4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define ACC16(i) ACC4(i), ACC4((i) + 4), ACC4((i) + 8), ACC4((i) + 12)

/* d (+)= x w^T: 64 rows, 256 weight rows, 16 deep. */
static __device__ __forceinline__ void wgmma(float d[128], uint64_t x, uint64_t w, int more)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, "
                 "%8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, "
                 "%24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, "
                 "%40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, "
                 "%56, %57, %58, %59, %60, %61, %62, %63, "
                 "%64, %65, %66, %67, %68, %69, %70, %71, "
                 "%72, %73, %74, %75, %76, %77, %78, %79, "
                 "%80, %81, %82, %83, %84, %85, %86, %87, "
                 "%88, %89, %90, %91, %92, %93, %94, %95, "
                 "%96, %97, %98, %99, %100, %101, %102, %103, "
                 "%104, %105, %106, %107, %108, %109, %110, %111, "
                 "%112, %113, %114, %115, %116, %117, %118, %119, "
                 "%120, %121, %122, %123, %124, %125, %126, %127}, "
                 "%128, %129, p, 1, 1, 0, 0;\n}\n"
                 : ACC16(0), ACC16(16), ACC16(32), ACC16(48), ACC16(64), ACC16(80), ACC16(96),
                   ACC16(112)
                 : "l"(x), "l"(w), "r"(more));
}

static __device__ __forceinline__ void stmatrix(void *to, const unsigned v[4])
{
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_at(to)),
        "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
        : "memory");
}

/* The tile of this block in unit n; *at walks with it through the groups. OUTS: of a tile. */
template <int OUTS> static __device__ __forceinline__ unit unit_of(const params *p, int *at, int n)
{
    int lane = threadIdx.x % 32, rank = blockIdx.x % CLUSTER, ahead;

    do {
        ahead = __popc(__ballot_sync(0xffffffffu, p->groups[*at + 1 + lane].first_unit <= n));
        *at += ahead;
    } while (ahead == 32);
    const group g = p->groups[*at];
    int in = n - g.first_unit;
    if (g.n_rows <= TILE_ROWS)
        return (unit){.map = g.map,
                      .row = g.row,
                      .n_rows = g.n_rows,
                      .out = (in * CLUSTER + rank) * OUTS,
                      .one_row_tile = 1};
    int n_high = (g.n_rows + TILE_ROWS * CLUSTER - 1) / (TILE_ROWS * CLUSTER);
    int skip = (in % n_high * CLUSTER + rank) * TILE_ROWS;
    return (unit){
        .map = g.map, .row = g.row + skip, .n_rows = g.n_rows - skip, .out = in / n_high * OUTS};
}

/* 16 rows of 128 outputs of a warp, left in shared memory, to y: where not all are wanted. */
static __device__ __forceinline__ void write_some(const params *p, const unsigned char *from,
                                                  int row, int n_rows, int out)
{
    int lane = threadIdx.x % 32, piece = lane % 16, at = out + 8 * piece;

#pragma unroll 1
    for (int i = 0; i < 8; i++) {
        int r = 2 * i + lane / 16;
        if (r >= n_rows || at >= p->n_out)
            continue;
        uint4 v =
            *(const uint4 *)(from + piece / 8 * OUT_BYTES + r * 128 + (((piece ^ r) & 7) << 4));
        bf16 *y = (bf16 *)p->y + (row + r) * p->ldy + at;
        if (p->wide_rows) {
            *(uint4 *)y = v;
        } else {
            const bf16 *e = (const bf16 *)&v;
            for (int j = 0; j < 8 && at + j < p->n_out; j++)
                y[j] = e[j];
        }
    }
}

/* y += d in f32, before the one rounding: of the 128 outputs from `out` on. */
static __device__ __forceinline__ void add_old(const params *p, float *d, int row, int n_rows,
                                               int out)
{
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;

#pragma unroll
    for (int j = 0; j < 16; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int at = out + 8 * j + 2 * t, r = g + 8 * i;
            const bf16 *y = (const bf16 *)p->y + (row + r) * p->ldy + at;
            if (r >= n_rows || at >= p->n_out)
                continue;
            if (p->wide_rows) {
                float2 old = __bfloat1622float2(*(const __nv_bfloat162 *)y);
                d[4 * j + 2 * i] += old.x;
                d[4 * j + 2 * i + 1] += old.y;
            } else {
                d[4 * j + 2 * i] += __bfloat162float(y[0]);
                if (at + 1 < p->n_out)
                    d[4 * j + 2 * i + 1] += __bfloat162float(y[1]);
            }
        }
}

/* 16 rows of 128 outputs to shared memory as bf16, then to y: by the copy engine, which goes on
 * while the next products run, or by the warp at the end of a network's rows. */
static __device__ __forceinline__ void put_bf16(const params *p, const CUtensorMap *y,
                                                unsigned char *to, const float *d, int row,
                                                int n_rows, int out)
{
    int lane = threadIdx.x % 32, r = lane % 8 + (lane / 8 & 1) * 8;

    if (lane == 0)
        asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    __syncwarp(); /* what was put there before has been read */
#pragma unroll
    for (int j = 0; j < 16; j += 2) {
        unsigned v[4] = {pack2(d[4 * j], d[4 * j + 1]), pack2(d[4 * j + 2], d[4 * j + 3]),
                         pack2(d[4 * j + 4], d[4 * j + 5]), pack2(d[4 * j + 6], d[4 * j + 7])};
        int piece = j + lane / 16;
        stmatrix(to + j / 8 * OUT_BYTES + r * 128 + (((piece ^ r) & 7) << 4), v);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp(); /* written by all lanes, for the copy engine too */
    if (n_rows < 16 || !p->wide_rows) {
        write_some(p, to, row, n_rows, out);
    } else if (lane == 0) {
        take(y, to, out, row);
        if (out + 64 < p->n_out)
            take(y, to + OUT_BYTES, out + 64, row);
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    }
}

static __device__ __forceinline__ void put_f32(const params *p, const float *d, int row, int n_rows,
                                               int out)
{
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;

#pragma unroll
    for (int j = 0; j < 32; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int at = out + 8 * j + 2 * t, r = g + 8 * i;
            float *y = (float *)p->y + (row + r) * p->ldy + at;
            if (r >= n_rows || at >= p->n_out)
                continue;
            if (p->wide_rows) {
                *(float2 *)y = make_float2(d[4 * j + 2 * i], d[4 * j + 2 * i + 1]);
            } else {
                y[0] = d[4 * j + 2 * i];
                if (at + 1 < p->n_out)
                    y[1] = d[4 * j + 2 * i + 1];
            }
        }
}

/* One warp; its first lane issues. */
template <int PARTS>
static __device__ __forceinline__ void produce(const params *p, const CUtensorMap *x, shared *sh)
{
    int at = 0, stage = 0, map = -1, rank = blockIdx.x % CLUSTER;
    unsigned parity = 1;

    for (int n = blockIdx.x / CLUSTER; n < p->n_units; n += gridDim.x / CLUSTER) {
        unit u = unit_of<TILE_OUTS / PARTS>(p, &at, n);
        const CUtensorMap *low = p->w + u.map * PARTS, *high = low + PARTS - 1; /* the halves */
        int row_low = u.out, row_high = PARTS == 1 ? u.out + 128 : u.out;
        if (threadIdx.x % 32 == 0) {
            if (u.map != map) {
                map_acquire(low);
                map_acquire(high);
            }
            map = u.map;
            for (int i = 0; i < p->n_k; i++) {
                uint64_t *full = &sh->full[stage];
                barrier_wait(&sh->empty[stage], parity);
                barrier_expect(full, STAGE_BYTES);
                if (u.one_row_tile) {
                    if (rank == 0)
                        bring_both(sh->x[stage], x, i * TILE_K, u.row, full);
                    bring(sh->w[stage], low, i * TILE_K, row_low, full);
                    bring(sh->w[stage] + BOX_BYTES, high, i * TILE_K, row_high, full);
                } else {
                    bring(sh->x[stage], x, i * TILE_K, u.row, full);
                    if (rank == 0)
                        bring_both(sh->w[stage], low, i * TILE_K, row_low, full);
                    else
                        bring_both(sh->w[stage] + BOX_BYTES, high, i * TILE_K, row_high, full);
                }
                stage = stage + 1 == STAGES ? 0 : stage + 1;
                parity ^= stage == 0;
            }
        }
        __syncwarp();
    }
}

template <int PARTS, int F32>
static __device__ __forceinline__ void consume(const params *p, const CUtensorMap *y, shared *sh)
{
    int at = 0, stage = 0, warp = threadIdx.x / 32 - 4, lane = threadIdx.x % 32;
    unsigned parity = 0;
    float d[128];

    for (int n = blockIdx.x / CLUSTER; n < p->n_units; n += gridDim.x / CLUSTER) {
        unit u = unit_of<TILE_OUTS / PARTS>(p, &at, n);
        int row = u.row + 16 * warp, n_rows = u.n_rows - 16 * warp, before = -1;
        for (int i = 0; i < p->n_k; i++) {
            barrier_wait(&sh->full[stage], parity);
            uint64_t x = operand(sh->x[stage] + warp / 4 * (BOX_BYTES / 2));
            uint64_t w = operand(sh->w[stage]);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int k = 0; k < 4; k++) /* 32 bytes on, in units of 16 */
                wgmma(d, x + 2 * k, w + 2 * k, i + k > 0);
            asm volatile("wgmma.commit_group.sync.aligned;\n"
                         "wgmma.wait_group.sync.aligned 1;" ::
                             : "memory");
            if (before >= 0 && lane < CLUSTER) /* the products before these have been read */
                barrier_arrive(&sh->empty[before], lane);
            before = stage;
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            parity ^= stage == 0;
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
        for (int i = 0; i < 128; i++) /* no use of d moves above the wait */
            asm volatile("" : "+f"(d[i])::"memory");
        if (lane < CLUSTER)
            barrier_arrive(&sh->empty[before], lane);

        if (n_rows <= 0 || u.out >= p->n_out)
            continue;
        if (PARTS == 2) {
#pragma unroll
            for (int i = 0; i < 64; i++)
                d[i] = swiglu(d[i], d[i + 64]);
            put_bf16(p, y, sh->out[warp][0], d, row, n_rows, u.out);
        } else if (F32) {
            put_f32(p, d, row, n_rows, u.out);
        } else {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int out = u.out + 128 * half;
                if (out >= p->n_out)
                    continue;
                if (p->accumulate)
                    add_old(p, d + 64 * half, row, n_rows, out);
                put_bf16(p, y, sh->out[warp][0], d + 64 * half, row, n_rows, out);
            }
        }
    }
    if (lane == 0)
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

#endif

template <int PARTS, int F32>
__global__ void __launch_bounds__(THREADS, 1)
    product_kernel(const __grid_constant__ params p, const __grid_constant__ CUtensorMap x,
                   const __grid_constant__ CUtensorMap y)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ unsigned char memory[];
    shared *sh = (shared *)(memory + (1024 - shared_at(memory) % 1024) % 1024);

    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&sh->full[i], 1);
            barrier_init(&sh->empty[i], CONSUMER_WARPS * CLUSTER);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_sync(); /* the other block's barriers are ready too */
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x < 32)
            produce<PARTS>(&p, &x, sh);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        consume<PARTS, F32>(&p, &y, sh);
    }
    __syncwarp();
    cluster_sync(); /* the other block may still write into this one's shared memory */
#endif
}

/* The driver makes tensor maps; its function is found at run time, so that nothing links to it. */
typedef CUresult (*encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                              const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                              const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                              CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static lh_status find_encode(encode_fn *out)
{
    cudaDriverEntryPointQueryResult found;
    void *f = NULL;

    LH_CUDA_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000,
                                                 cudaEnableDefault, &found));
    LH_REQUIRE(f && found == cudaDriverEntryPointSuccess, LH_ERR_UNSUPPORTED,
               "the driver has no tensor maps");
    *out = (encode_fn)f;
    return LH_OK;
}

/* Boxes of box_rows by 64 of a matrix of bf16. */
static lh_status make_map(encode_fn encode, CUtensorMap *map, const void *p, int64_t n_rows,
                          int64_t n, int64_t ld, int box_rows)
{
    cuuint64_t size[2] = {(cuuint64_t)n, (cuuint64_t)n_rows}, stride[1] = {(cuuint64_t)ld * 2};
    cuuint32_t box[2] = {TILE_K, (cuuint32_t)box_rows}, step[2] = {1, 1};
    CUresult e = encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)p, size, stride, box,
                        step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

    LH_REQUIRE(e == CUDA_SUCCESS, LH_ERR_CUDA,
               "tensor map of %lld rows of %lld, distance %lld, at %p: error %d", (long long)n_rows,
               (long long)n, (long long)ld, p, (int)e);
    return LH_OK;
}

/*
 * Maps of the weights of one call: all alike but for the address. A map is opaque, and making
 * hundreds of them takes the host longer than small products take the GPU; so the second is made
 * both ways, and where putting the address into a copy gives the same bytes, so are the others.
 */
typedef struct maker {
    encode_fn encode;
    const lh_cuda_product *p;
    CUtensorMap model;
    const void *model_of;
    int state; /* 0: no model yet, 1: a model, 2: copies are right, 3: they are not */
} maker;

static lh_status make_weight_map(maker *m, CUtensorMap *map, const void *w)
{
    CUtensorMap made;

    *map = m->model;
    memcpy(map, &w, sizeof w);
    if (m->state == 2)
        return LH_OK;
    LH_TRY(make_map(m->encode, &made, w, m->p->n_out, m->p->n_in, m->p->n_in, 128));
    if (m->state == 0)
        m->state = 1;
    else if (m->state == 1 && w != m->model_of)
        m->state = memcmp(&made, map, sizeof made) == 0 ? 2 : 3;
    m->model = *map = made;
    m->model_of = w;
    return LH_OK;
}

/* One launch: groups of rows, and the maps of their networks. */
typedef struct batch {
    group groups[MAX_GROUPS + SENTINELS];
    CUtensorMap maps[MAX_MAPS * 2];
    int n_groups, n_maps, net; /* net: of the last map */
    int64_t n_units;
} batch;

typedef void (*kernel_fn)(params, CUtensorMap, CUtensorMap);

static int wide_rows(const lh_cuda_product *p)
{
    return p->n_out % 8 == 0 && p->ldy % 8 == 0 && (uintptr_t)p->y % 16 == 0;
}

/* Clusters that run at the same time: as many as fit, no more than there is work for. */
static lh_status launch(lh_stream *s, const lh_cuda_product *p, batch *b, const CUtensorMap *x,
                        const CUtensorMap *y)
{
    const void *groups, *maps;
    kernel_fn kernel = p->n_parts == 2 ? product_kernel<2, 0>
                       : p->f32_out    ? product_kernel<1, 1>
                                       : product_kernel<1, 0>;
    int n_clusters = s->n_sms / CLUSTER;
    cudaLaunchAttribute attribute = {};
    cudaLaunchConfig_t config = {};

    config.gridDim = dim3((unsigned)(n_clusters * CLUSTER));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = SHARED_BYTES;
    config.stream = s->stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = CLUSTER;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    for (int i = 0; i < SENTINELS; i++)
        b->groups[b->n_groups + i].first_unit = INT32_MAX;
    LH_TRY(lh_cuda_stage(s, &groups, b->groups,
                         (size_t)(b->n_groups + SENTINELS) * sizeof *b->groups));
    LH_TRY(lh_cuda_stage(s, &maps, b->maps, (size_t)(b->n_maps * p->n_parts) * sizeof *b->maps));
    LH_TRY(lh_cuda_shared((const void *)kernel, SHARED_BYTES));
    LH_CUDA_TRY(cudaOccupancyMaxActiveClusters(&n_clusters, (const void *)kernel, &config));
    if (n_clusters > b->n_units)
        n_clusters = (int)b->n_units;
    config.gridDim.x = (unsigned)(n_clusters * CLUSTER);
    params a = {.groups = (const group *)groups,
                .w = (const CUtensorMap *)maps,
                .y = p->y,
                .ldy = p->ldy,
                .n_units = (int)b->n_units,
                .n_k = (int)div_up(p->n_in, TILE_K),
                .n_out = (int)p->n_out,
                .accumulate = p->accumulate,
                .wide_rows = wide_rows(p)};
    LH_CUDA_TRY(cudaLaunchKernelEx(&config, kernel, a, *x, *y));
    b->n_groups = b->n_maps = 0;
    b->n_units = 0;
    return lh_cuda_launched(s, p->op);
}

static lh_status add_group(batch *b, maker *m, const lh_cuda_range *r, int64_t row, int64_t n)
{
    const lh_cuda_product *p = m->p;
    int64_t high = div_up(n, TILE_ROWS), wide = div_up(p->n_out, TILE_OUTS / p->n_parts);

    if (b->n_maps == 0 || b->net != r->net) {
        for (int i = 0; i < p->n_parts; i++)
            LH_TRY(make_weight_map(m, &b->maps[b->n_maps * p->n_parts + i], p->w[i][r->net]));
        b->net = r->net;
        b->n_maps++;
    }
    b->groups[b->n_groups++] = (group){.first_unit = (int)b->n_units,
                                       .map = b->n_maps - 1,
                                       .row = (int)(r->row + row),
                                       .n_rows = (int)n};
    b->n_units += high == 1 ? div_up(wide, CLUSTER) : div_up(high, CLUSTER) * wide;
    return LH_OK;
}

/* Rows of the next group of n that are left: whole pairs of tiles; one tile that is left over is a
 * group of its own. */
static int64_t group_rows(int64_t n)
{
    int64_t pair = CLUSTER * TILE_ROWS, over = n % pair;

    if (n > GROUP_ROWS)
        return GROUP_ROWS;
    return n > pair && over > 0 && over <= TILE_ROWS ? n - over : n;
}

lh_status lh_cuda_product_sm90(lh_stream *s, const lh_cuda_product *p)
{
    CUtensorMap x, y;
    maker m = {};
    batch b;

    m.p = p;
    b.n_groups = b.n_maps = 0;
    b.n_units = 0;
    for (lh_cuda_range r = {}; lh_cuda_next_range(s, p, &r);)
        for (int64_t row = 0, n; !r.few && row < r.n_rows; row += n) {
            n = group_rows(r.n_rows - row);
            if (!m.encode) {
                LH_TRY(find_encode(&m.encode));
                LH_TRY(make_map(m.encode, &x, p->x, p->n_rows, p->n_in, p->ldx, 128));
                y = x; /* any: not used unless rows are wide */
                if (wide_rows(p) && !p->f32_out)
                    LH_TRY(make_map(m.encode, &y, p->y, p->n_rows, p->n_out, p->ldy, 16));
            }
            LH_TRY(add_group(&b, &m, &r, row, n));
            if (b.n_groups == MAX_GROUPS || b.n_maps == MAX_MAPS)
                LH_TRY(launch(s, p, &b, &x, &y));
        }
    return b.n_groups > 0 ? launch(s, p, &b, &x, &y) : LH_OK;
}
