#include "kernels/cuda/work.h"

#include "base/mem.h"
#include "kernels/cuda/ops.h"
#include "kernels/kernels.h"
#include "kernels/sample.h"

#define ALIGN 256
#define BF16_BYTES sizeof(lh_bf16)
#define D_V 128

int64_t lh_cuda_kda_slots(int64_t n_rows, int n_tiles)
{
    return n_rows / LH_CHUNK + n_tiles;
}

size_t lh_cuda_kda_layout(lh_cuda_kda_work *w, void *base, int64_t n_rows, int n_tiles, int n_heads)
{
    lh_carve c = {.base = base};
    size_t images = 0, groups = 0;

    if (n_rows == 0)
        return 0;
    /* an overflow leaves SIZE_MAX, which the carve refuses */
    lh_mul_size(&images, (size_t)lh_cuda_kda_slots(n_rows, n_tiles), (size_t)n_heads);
    lh_mul_size(&groups, (size_t)n_tiles, (size_t)n_heads);
    w->image = lh_carve_take(&c, images, LH_CUDA_KDA_IMAGE_BYTES, ALIGN);
    w->v_largest = lh_carve_take(&c, groups, LH_CUDA_KDA_GROUPS * sizeof(uint32_t), ALIGN);
    return c.used;
}

size_t lh_cuda_mla_prefill_layout(lh_cuda_mla_prefill_work *w, void *base, int64_t n_rows,
                                  int n_heads)
{
    lh_carve c = {.base = base};
    size_t heads = (size_t)lh_min64(n_heads, LH_CUDA_MLA_HEADS), rows = (size_t)n_rows;

    for (int i = 0; i < 2; i++)
        w->kv[i] = lh_carve_take(&c, heads * LH_CUDA_MLA_KEYS, LH_CUDA_MLA_KV * BF16_BYTES, ALIGN);
    w->sum = lh_carve_take(&c, rows, heads * D_V * sizeof(float), ALIGN);
    w->state = lh_carve_take(&c, rows, heads * 2 * sizeof(float), ALIGN);
    return c.used;
}

static int64_t div_up(int64_t x, int64_t m)
{
    return x / m + (x % m != 0);
}

/* Ranges of the sequences of one launch, at most: the larger of the two ways to cut. */
static size_t most_ranges(int64_t n, int64_t max_keys)
{
    int64_t units = div_up(max_keys, LH_CUDA_MLA_UNIT), shares = LH_CUDA_MLA_SHARES;

    return (size_t)lh_max64(n * lh_min64(shares, div_up(units, LH_CUDA_MLA_FIXED_UNITS)),
                            lh_min64(shares, n * lh_min64(shares, units)) + n - 1);
}

size_t lh_cuda_mla_decode_layout(lh_cuda_mla_decode_work *w, void *base, int64_t n_seq,
                                 int64_t max_keys, int n_heads)
{
    lh_carve c = {.base = base};
    int64_t n = lh_min64(n_seq, LH_CUDA_MLA_SEQUENCES);
    size_t heads = (size_t)n_heads, seqs = (size_t)n, ranges = most_ranges(n, max_keys);

    w->query = lh_carve_take(&c, seqs, heads * LH_CUDA_MLA_WIDTH * BF16_BYTES, ALIGN);
    w->merged = lh_carve_take(&c, seqs, heads * LH_CUDA_MLA_LATENT * sizeof(float), ALIGN);
    w->sum = lh_carve_take(&c, ranges, heads * LH_CUDA_MLA_LATENT * sizeof(float), ALIGN);
    w->state = lh_carve_take(&c, ranges, heads * 2 * sizeof(float), ALIGN);
    return c.used;
}

size_t lh_cuda_plan_layout(lh_cuda_plan_work *w, void *base, int64_t n_columns, int64_t n_blocks)
{
    lh_carve c = {.base = base};

    w->count = lh_carve_take(&c, (size_t)n_columns, (size_t)n_blocks * sizeof *w->count, ALIGN);
    w->total = lh_carve_take(&c, (size_t)n_columns, sizeof *w->total, ALIGN);
    return c.used;
}

/* For the table; dimensions that are not arguments of a layout are those that there are. */

size_t lh_cuda_kda_work_bytes(int64_t n_rows, int n_tiles, int n_heads, int d_k, int d_v)
{
    lh_cuda_kda_work w;

    (void)d_k, (void)d_v;
    return lh_cuda_kda_layout(&w, NULL, n_rows, n_tiles, n_heads);
}

size_t lh_cuda_mla_prefill_work_bytes(int64_t n_rows, int n_heads, int d_nope, int d_rope, int d_v,
                                      int d_latent)
{
    lh_cuda_mla_prefill_work w;

    (void)d_nope, (void)d_rope, (void)d_v, (void)d_latent;
    return n_rows == 0 ? 0 : lh_cuda_mla_prefill_layout(&w, NULL, n_rows, n_heads);
}

size_t lh_cuda_mla_decode_work_bytes(int64_t n_seq, int64_t n_keys, int n_heads, int d_latent,
                                     int d_rope)
{
    lh_cuda_mla_decode_work w;

    (void)d_latent, (void)d_rope;
    return n_seq == 0 ? 0 : lh_cuda_mla_decode_layout(&w, NULL, n_seq, n_keys, n_heads);
}

size_t lh_cuda_sample_work_bytes(int64_t n_rows, int64_t n_vocab)
{
    lh_carve c = {0};

    lh_carve_take(&c, (size_t)n_rows, (size_t)lh_sample_groups(n_vocab) * sizeof(double), ALIGN);
    return c.used;
}

size_t lh_cuda_plan_send_work_bytes(int64_t n_rows, int size)
{
    lh_cuda_plan_work w;
    int64_t n_blocks = div_up(n_rows, LH_CUDA_PLAN_ROWS);

    return n_rows == 0 ? 0 : lh_cuda_plan_layout(&w, NULL, 2 * (int64_t)size, n_blocks);
}

size_t lh_cuda_plan_receive_work_bytes(int64_t n_pairs, int n_nets)
{
    lh_cuda_plan_work w;
    int64_t n_blocks = div_up(n_pairs, LH_CUDA_PLAN_PAIRS);

    return n_pairs == 0 ? 0 : lh_cuda_plan_layout(&w, NULL, (int64_t)n_nets + 1, n_blocks);
}

size_t lh_cuda_stream_bytes(int n_threads)
{
    (void)n_threads;
    return LH_CUDA_BLAS_BYTES + LH_CUDA_STAGE_BYTES;
}
