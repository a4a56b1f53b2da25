/* Data of a case, on the device and on the host, and comparison with float64. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "bench/rig.h"

/* A prime, so that repeated values are out of step with rows of any length. */
#define DRAWN 4194301

static size_t type_bytes(const rig *r, rig_type t)
{
    switch (t) {
    case RIG_ACT:
        return r->k->act_bytes;
    case RIG_BF16:
        return 2;
    case RIG_I64:
    case RIG_POINTER:
        return 8;
    default:
        return 4;
    }
}

static void *take(rig *r, size_t bytes)
{
    LH_ASSERT(r->n_device < RIG_MOST_BLOCKS);
    rig_must(r->dev->alloc(r->s, &r->device[r->n_device], bytes, "benchmark data"));
    return r->device[r->n_device++];
}

void *rig_work(rig *r, size_t bytes)
{
    return take(r, bytes);
}

rig_buf rig_zeros(rig *r, rig_type t, int64_t n)
{
    size_t bytes = (size_t)lh_round_up(n * (int64_t)type_bytes(r, t), 256);
    return (rig_buf){take(r, bytes * (size_t)r->n_copies), bytes};
}

void *rig_host(rig *r, int64_t n, size_t elem_bytes)
{
    LH_ASSERT(r->n_host < RIG_MOST_BLOCKS);
    rig_must(lh_alloc(&r->host[r->n_host], (size_t)n * elem_bytes, "benchmark data"));
    return r->host[r->n_host++];
}

void rig_upload(rig *r, void *device, const void *host, size_t bytes)
{
    rig_must(r->dev->upload(r->s, device, host, bytes));
    rig_must(r->dev->sync(r->s));
}

/* splitmix64 */
static uint64_t random_bits(rig *r)
{
    uint64_t z = (r->random += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

double rig_uniform(rig *r)
{
    return (double)(random_bits(r) >> 11) * 0x1p-53;
}

rig_buf rig_random(rig *r, rig_type t, int64_t n, double sd)
{
    rig_buf b = rig_zeros(r, t, n);
    size_t elem = type_bytes(r, t), all = b.bytes * (size_t)r->n_copies;
    size_t drawn = all / elem < DRAWN ? all / elem : DRAWN, filled = drawn * elem;
    double width = 2 * sqrt(3) * sd; /* of a uniform distribution with this deviation */
    char *values = malloc(filled);

    LH_ASSERT(elem == 2 || elem == 4);
    if (!values)
        rig_must(LH_FAIL(LH_ERR_NOMEM, "%zu bytes of random values", filled));
    for (size_t i = 0; i < drawn; i++) {
        float x = (float)((rig_uniform(r) - 0.5) * width);
        lh_bf16 half = lh_f32_to_bf16(x);
        memcpy(values + i * elem, elem == 2 ? (void *)&half : (void *)&x, elem);
    }
    rig_upload(r, b.p, values, filled);
    free(values);
    for (; filled < all; filled *= 2)
        rig_must(
            r->dev->copy(r->s, b.p + filled, b.p, filled < all - filled ? filled : all - filled));
    rig_must(r->dev->sync(r->s));
    return b;
}

rig_buf rig_choice(rig *r, int64_t n, int64_t below)
{
    rig_buf b = rig_zeros(r, RIG_I32, n);
    int32_t *all = rig_host(r, below, sizeof *all);

    for (int64_t i = 0; i < below; i++)
        all[i] = (int32_t)i;
    for (int copy = 0; copy < r->n_copies; copy++) {
        for (int64_t i = 0; i < n; i++) {
            int64_t j = i + (int64_t)(random_bits(r) % (uint64_t)(below - i));
            int32_t x = all[i];
            all[i] = all[j];
            all[j] = x;
        }
        rig_upload(r, rig_at(b, copy), all, (size_t)n * sizeof *all);
    }
    return b;
}

rig_buf rig_pointers(rig *r, rig_buf p, int64_t n, size_t step)
{
    rig_buf b = rig_zeros(r, RIG_POINTER, n);
    char **at = rig_host(r, n, sizeof *at);

    for (int copy = 0; copy < r->n_copies; copy++) {
        for (int64_t i = 0; i < n; i++)
            at[i] = (char *)rig_at(p, copy) + (size_t)i * step;
        rig_upload(r, rig_at(b, copy), at, (size_t)n * sizeof *at);
    }
    return b;
}

void *rig_fetch(rig *r, const void *device, int64_t first, int64_t n, size_t elem_bytes)
{
    void *x = rig_host(r, n, elem_bytes);

    rig_must(r->dev->download(r->s, x, (const char *)device + first * (int64_t)elem_bytes,
                              (size_t)n * elem_bytes));
    rig_must(r->dev->sync(r->s));
    return x;
}

float *rig_acts(rig *r, const void *device, int64_t first, int64_t n)
{
    if (r->k->act_bytes == 4)
        return rig_fetch(r, device, first, n, 4);
    lh_bf16 *half = rig_fetch(r, device, first, n, 2);
    float *x = rig_host(r, n, sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = lh_bf16_to_f32(half[i]);
    return x;
}

lh_tiles rig_tiles(rig *r, int64_t n, int64_t tile_rows)
{
    int64_t n_tiles = (n + tile_rows - 1) / tile_rows;
    int64_t *start = rig_host(r, n_tiles + 1, sizeof *start);

    for (int64_t i = 0; i < n_tiles; i++)
        start[i + 1] = lh_min64(start[i] + tile_rows, n);
    return (lh_tiles){(int)n_tiles, start};
}

int rig_samples(int64_t n, int64_t out[3])
{
    int64_t wanted[3] = {0, n / 2, n - 1};
    int found = 0;

    for (int i = 0; i < 3; i++)
        if (found == 0 || wanted[i] > out[found - 1])
            out[found++] = wanted[i];
    return found;
}

int rig_near(rig *r, const char *what, const float *got, const double *want, int64_t n)
{
    double top = 0, tol = r->k->act_bytes == 2 ? 1e-2 : 1e-5;

    for (int64_t i = 0; i < n; i++)
        top = fmax(top, fabs(want[i]));
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= tol * top)) {
            printf("%-13s %-34s WRONG: %s: element %lld of %lld is %g, expected %g within %g\n",
                   r->op, r->size, what, (long long)i, (long long)n, (double)got[i], want[i],
                   tol * top);
            return 0;
        }
    return 1;
}

int rig_true(rig *r, const char *what, int right)
{
    if (!right)
        printf("%-13s %-34s WRONG: %s\n", r->op, r->size, what);
    return right;
}
