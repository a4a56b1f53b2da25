#include "kernels/cuda/product.cuh"

static int net_of(const lh_cuda_product *p, int tile)
{
    return p->net ? p->net[tile] : 0;
}

static int64_t tile_rows(const lh_cuda_product *p, int tile)
{
    return p->tiles->start[tile + 1] - p->tiles->start[tile];
}

/* Only a tile of one row can be told from its tile and be few in every call: tiles of an expert
 * have some rows each, and many of them make a product of matrices. All rows of a decoding step are
 * such tiles; its product must not need host arrays, because the step is recorded. */
static int tile_is_few(const lh_cuda_product *p, int tile)
{
    return tile_rows(p, tile) == 1;
}

int lh_cuda_next_range(const lh_stream *s, const lh_cuda_product *p, lh_cuda_range *r)
{
    int tile = r->tile, n_tiles = p->tiles->n;

    while (tile < n_tiles && tile_rows(p, tile) == 0)
        tile++;
    if (tile == n_tiles)
        return 0;
    int first = tile, all_few = 1;
    for (; tile < n_tiles && net_of(p, tile) == net_of(p, first); tile++) {
        if (s->deterministic && tile_rows(p, tile) > 0 &&
            tile_is_few(p, tile) != tile_is_few(p, first))
            break;
        all_few &= tile_rows(p, tile) <= 1;
    }
    *r = (lh_cuda_range){
        .tile = tile,
        .row = p->tiles->start[first],
        .n_rows = p->tiles->start[tile] - p->tiles->start[first],
        .net = net_of(p, first),
        .few = 0,
    };
    r->few = s->arch != 90 || all_few || (!s->deterministic && r->n_rows <= LH_CUDA_FEW_ROWS);
    return 1;
}

lh_status lh_cuda_run_product(lh_stream *s, const lh_cuda_product *p)
{
    LH_TRY(lh_cuda_product_rows(s, p));
    return lh_cuda_product_sm90(s, p);
}
