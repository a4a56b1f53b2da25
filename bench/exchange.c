#include "bench/exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/mem.h"
#include "base/synth.h"
#include "parallel/shard.h"

#define SEGMENT 512 /* the runtime's default, where the host plans */
#define SLICE 1024  /* rows that the host has at a time */

/* What a row should be: a token's, and which expert it comes from. */
typedef struct row_of {
    int32_t token, expert;
} row_of;

/* ------------------------------------------------------------------- rows */

static void put(const exchange *x, char *row, int column, float value)
{
    if (x->r->k->act_bytes == sizeof value) {
        memcpy(row + (size_t)column * sizeof value, &value, sizeof value);
    } else {
        lh_bf16 half = lh_f32_to_bf16(value);
        memcpy(row + (size_t)column * sizeof half, &half, sizeof half);
    }
}

/* Eight columns of each hash, in [-1, 1). Marked: as its expert returns it. */
static void make_row(const exchange *x, char *row, row_of of, int marked)
{
    for (int i = 0; i < D_MODEL / 8; i++) {
        uint64_t bits = lh_synth_bits(x->key, (uint64_t)of.token * (D_MODEL / 8) + (uint64_t)i);
        for (int j = 0; j < 8; j++, bits >>= 8)
            put(x, row, 8 * i + j, (float)((int)(bits & 255) - 128) / 128);
    }
    if (marked)
        put(x, row, 0, (float)of.expert);
}

/* Rows of the device from the host, or compared there: *first_bad becomes the first that is not as
 * it should be, n if all are. Column 0 counts only where it is marked. */
static lh_status each_row(exchange *x, void *device, const row_of *of, int64_t n, int marked,
                          int64_t *first_bad)
{
    const lh_device_ops *dev = x->r->k->device;
    lh_status st = LH_OK;
    size_t skip = marked ? 0 : x->r->k->act_bytes;
    char *slice = NULL, *row = NULL;

    LH_TRY_OUT(lh_alloc((void **)&slice, SLICE * x->row_bytes, "rows on the host"));
    LH_TRY_OUT(lh_alloc((void **)&row, x->row_bytes, "a row on the host"));
    if (first_bad)
        *first_bad = n;
    for (int64_t at = 0; at < n; at += SLICE) {
        int64_t some = lh_min64(SLICE, n - at);
        char *from = (char *)device + (size_t)at * x->row_bytes;
        if (first_bad) {
            LH_TRY_OUT(dev->download(x->r->s, slice, from, (size_t)some * x->row_bytes));
            LH_TRY_OUT(dev->sync(x->r->s));
        }
        for (int64_t i = 0; i < some; i++) {
            char *here = slice + (size_t)i * x->row_bytes;
            make_row(x, first_bad ? row : here, of[at + i], marked);
            if (first_bad && memcmp(here + skip, row + skip, x->row_bytes - skip) != 0) {
                *first_bad = at + i;
                goto out;
            }
        }
        if (!first_bad) {
            LH_TRY_OUT(dev->upload(x->r->s, from, slice, (size_t)some * x->row_bytes));
            LH_TRY_OUT(dev->sync(x->r->s));
        }
    }
out:
    free(row);
    free(slice);
    return st;
}

/* ---------------------------------------------------------------- choices */

/* TOP_K different experts, rising: each is taken with the right chance. */
static void draw(int32_t *out, uint64_t key, int64_t token)
{
    for (int i = 0, left = TOP_K; left > 0; i++) {
        uint64_t bits = lh_synth_bits(key, (uint64_t)token * N_EXPERTS + (uint64_t)i);
        if ((bits >> 32) * (uint64_t)(N_EXPERTS - i) >> 32 < (uint64_t)left) {
            *out++ = i;
            left--;
        }
    }
}

static void choose(exchange *x, int hot)
{
    int me = x->r->comm->rank, size = x->r->comm->size;
    uint64_t key = lh_synth_mix(x->key);
    size_t rows[N_WAYS] = {0};

    for (int64_t t = 0; t < size * x->n_rows; t++) {
        int32_t *chosen = x->chosen + t * TOP_K;
        int home = (int)(t / x->n_rows), last = -1;
        if (hot)
            for (int j = 0; j < TOP_K; j++)
                chosen[j] = N_EXPERTS - TOP_K + j;
        else
            draw(chosen, key, t);
        for (int j = 0; j < TOP_K; j++) {
            int owner = lh_split_owner(N_EXPERTS, chosen[j], size);
            rows[EXCHANGE_THERE] += home == me && owner != me && owner != last;
            rows[EXCHANGE_BACK] += home != me && owner == me;
            last = owner;
        }
    }
    for (int i = 0; i < N_WAYS; i++)
        x->bytes[i] = rows[i] * x->row_bytes;
}

/* ----------------------------------------------------------------- set-up */

/* What plans of the device need: their memory, and the choices there. */
static lh_status prepare_device(exchange *x)
{
    const lh_device_ops *dev = x->r->k->device;
    int rank = x->r->comm->rank, size = x->r->comm->size;
    size_t bytes = (size_t)x->n_rows * TOP_K * sizeof *x->own;
    size_t lists =
        lh_expert_device_bytes(x->r->k, x->n_rows, x->n_rows * size, N_EXPERTS, TOP_K, rank, size);
    size_t totals = (size_t)size * (size_t)(N_EXPERTS + size) * sizeof(int32_t);

    x->device.k = x->r->k;
    LH_TRY(dev->alloc(x->r->s, &x->device.lists, lists, "lists of plans"));
    LH_TRY(dev->alloc_host(x->r->s, (void **)&x->device.totals, totals, "numbers of plans"));
    LH_TRY(dev->alloc(x->r->s, (void **)&x->own, bytes, "choices"));
    LH_TRY(dev->upload(x->r->s, x->own, x->chosen + rank * x->n_rows * TOP_K, bytes));
    return dev->sync(x->r->s);
}

static lh_status number_segments(exchange *x)
{
    int64_t first = x->r->comm->rank * (x->n_rows / SEGMENT + 1);

    LH_TRY(lh_alloc((void **)&x->segment, (size_t)x->n_rows * sizeof *x->segment, "segments"));
    for (int64_t i = 0; i < x->n_rows; i++)
        x->segment[i] = first + i / SEGMENT;
    return LH_OK;
}

static lh_status prepare(exchange *x, int hot)
{
    size_t n = (size_t)x->n_rows, size = (size_t)x->r->comm->size;
    int by_host = x->r->k->device->reads_host; /* as runtime/engine.c chooses */

    LH_TRY(lh_alloc((void **)&x->chosen, n * size * TOP_K * sizeof *x->chosen, "choices"));
    choose(x, hot);
    LH_TRY(by_host ? number_segments(x) : prepare_device(x));
    return lh_expert_create(&x->expert, x->n_rows, x->n_rows * x->r->comm->size, N_EXPERTS, TOP_K,
                            x->r->comm, x->r->boot, by_host ? NULL : &x->device);
}

static lh_status plan_plain(exchange *x)
{
    size_t all[RANKS_MAX][N_WAYS], size = (size_t)x->r->comm->size, row = x->row_bytes;

    LH_TRY(lh_comm_allgather(x->r->boot, x->bytes, sizeof x->bytes, all, NULL));
    for (int i = 0; i < N_WAYS; i++) {
        size_t sum = 0, pieces = size * (size - 1) * row;
        for (size_t r = 0; r < size; r++)
            sum += all[r][i];
        x->mean_bytes[i] = sum / size;
        x->piece_bytes[i] = (sum + pieces - 1) / pieces * row;
    }
    return LH_OK;
}

static lh_status take(exchange *x, void *out, size_t rows, const char *what)
{
    /* at least one: ranks may receive nothing */
    return x->r->k->device->alloc(x->r->s, out, (rows + 1) * x->row_bytes, what);
}

/* Of the device, and filled: the rows, and equal weights whose sum is exactly 1. */
static lh_status allocate(exchange *x)
{
    const lh_device_ops *dev = x->r->k->device;
    const lh_expert_plan *p = x->plan;
    size_t n = (size_t)x->n_rows, pairs = (size_t)p->n_pairs, k = n * TOP_K;
    size_t piece = x->piece_bytes[EXCHANGE_THERE] > x->piece_bytes[EXCHANGE_BACK]
                       ? x->piece_bytes[EXCHANGE_THERE]
                       : x->piece_bytes[EXCHANGE_BACK];
    size_t plain = piece / x->row_bytes * (size_t)x->r->comm->size;
    size_t longest = k > pairs ? k : pairs;
    lh_status st = LH_OK;
    row_of *own = NULL;
    float *weight = NULL;

    LH_TRY(take(x, &x->x, n, "tokens"));
    LH_TRY(take(x, &x->sent, (size_t)p->n_sent, "copies to send"));
    LH_TRY(take(x, &x->received, (size_t)p->n_received, "copies received"));
    LH_TRY(take(x, &x->pair_x, pairs, "experts' inputs"));
    LH_TRY(take(x, &x->pair_y, pairs, "experts' outputs"));
    LH_TRY(take(x, &x->back, k, "rows returned"));
    LH_TRY(take(x, &x->out, n, "sums"));
    LH_TRY(take(x, &x->plain_sent, plain, "pieces to send"));
    LH_TRY(take(x, &x->plain_received, plain, "pieces received"));
    LH_TRY(dev->alloc(x->r->s, (void **)&x->index, longest * sizeof *x->index, "index"));
    LH_TRY(dev->alloc(x->r->s, (void **)&x->weight, k * sizeof *x->weight, "weights"));
    LH_TRY_OUT(lh_alloc((void **)&own, n * sizeof *own, "tokens' numbers"));
    LH_TRY_OUT(lh_alloc((void **)&weight, k * sizeof *weight, "weights"));
    for (size_t i = 0; i < n; i++)
        own[i].token = (int32_t)((size_t)x->r->comm->rank * n + i);
    for (size_t i = 0; i < k; i++)
        weight[i] = 1.0F / TOP_K;
    LH_TRY_OUT(each_row(x, x->x, own, x->n_rows, 0, NULL));
    LH_TRY_OUT(dev->upload(x->r->s, x->weight, weight, k * sizeof *weight));
    LH_TRY_OUT(dev->sync(x->r->s));
out:
    free(weight);
    free(own);
    return st;
}

lh_status exchange_create(exchange *x, ranks *r, int64_t n_rows, uint64_t seed, int hot)
{
    *x = (exchange){.r = r,
                    .key = lh_synth_key(seed, hot ? "hot" : "uniform"),
                    .n_rows = n_rows,
                    .row_bytes = D_MODEL * r->k->act_bytes};
    LH_TRY(lh_comm_agree(r->boot, prepare(x, hot)));
    LH_TRY(exchange_plan(x));
    LH_TRY(plan_plain(x));
    return lh_comm_agree(r->boot, allocate(x));
}

void exchange_destroy(exchange *x)
{
    void *device[] = {
        x->x,     x->sent, x->received, x->pair_x,     x->pair_y,         x->back,        x->out,
        x->index, x->own,  x->weight,   x->plain_sent, x->plain_received, x->device.lists};

    for (size_t i = 0; i < sizeof device / sizeof device[0]; i++)
        x->r->k->device->release(x->r->s, device[i]);
    x->r->k->device->release_host(x->r->s, x->device.totals);
    lh_expert_destroy(x->expert);
    free(x->chosen);
    free(x->segment);
}

/* ------------------------------------------------------------------ steps */

/* A list of the plan where the device can read it. */
static lh_status place_list(exchange *x, const int32_t **list, int64_t n)
{
    const int32_t *from = *list;

    if (x->plan->on_device)
        return LH_OK;
    *list = x->index;
    return x->r->k->device->upload(x->r->s, x->index, from, (size_t)n * sizeof *from);
}

/* to[i] = from[list[i]] with a list of the plan. */
static lh_status permute(exchange *x, void *to, const void *from, const int32_t *list, int64_t n)
{
    LH_TRY(place_list(x, &list, n));
    return x->r->k->gather(
        x->r->s,
        &(lh_gather_args){.y = to, .x = from, .index = list, .n_rows = n, .width = D_MODEL});
}

lh_status exchange_plan(void *data)
{
    exchange *x = data;
    const int32_t *own = x->chosen + x->r->comm->rank * x->n_rows * TOP_K;

    if (x->r->k->device->reads_host)
        return lh_expert_make_plan(x->expert, own, x->segment, x->n_rows, &x->plan);
    LH_TRY(lh_expert_queue_plan(x->expert, x->own, x->n_rows, x->r->s));
    LH_TRY(lh_comm_wait(x->r->comm, x->r->s));
    return lh_expert_finish_plan(x->expert, x->r->s, &x->plan);
}

lh_status exchange_dispatch_wire(void *data)
{
    exchange *x = data;

    return lh_expert_dispatch(x->expert, x->sent, x->received, x->row_bytes, x->r->s);
}

lh_status exchange_dispatch(void *data)
{
    exchange *x = data;

    LH_TRY(permute(x, x->sent, x->x, x->plan->send_row, x->plan->n_sent));
    return exchange_dispatch_wire(x);
}

lh_status exchange_collect_wire(void *data)
{
    exchange *x = data;

    return lh_expert_collect(x->expert, x->pair_x, x->back, x->row_bytes, x->r->s);
}

lh_status exchange_collect(void *data)
{
    exchange *x = data;

    LH_TRY(permute(x, x->pair_x, x->pair_y, x->plan->back_pair, x->plan->n_pairs));
    return exchange_collect_wire(x);
}

lh_status exchange_combine(void *data)
{
    exchange *x = data;
    const int32_t *source = x->plan->source;

    LH_TRY(place_list(x, &source, x->n_rows * TOP_K));
    return x->r->k->combine(x->r->s, &(lh_combine_args){.x = x->out,
                                                        .rows = x->back,
                                                        .source = source,
                                                        .weight = x->weight,
                                                        .n_rows = x->n_rows,
                                                        .d = D_MODEL,
                                                        .top_k = TOP_K});
}

static lh_status plain(exchange *x, exchange_way way)
{
    size_t bytes[RANKS_MAX];

    for (int r = 0; r < x->r->comm->size; r++)
        bytes[r] = x->piece_bytes[way];
    return lh_comm_alltoallv(x->r->comm, x->plain_sent, bytes, x->plain_received, bytes, x->r->s);
}

lh_status exchange_dispatch_plain(void *data)
{
    return plain(data, EXCHANGE_THERE);
}

lh_status exchange_collect_plain(void *data)
{
    return plain(data, EXCHANGE_BACK);
}

/* ------------------------------------------------------------------ check */

/* All pairs of this rank's experts, as every number of ranks has them: by expert, then by token. */
static lh_status list_pairs(const exchange *x, row_of **out, int64_t *n_out)
{
    lh_range here = lh_split(N_EXPERTS, x->r->comm->rank, x->r->comm->size);
    int64_t n_chosen = x->r->comm->size * x->n_rows * TOP_K, at[N_EXPERTS + 1] = {0};

    for (int64_t i = 0; i < n_chosen; i++)
        at[x->chosen[i] + 1] += x->chosen[i] >= here.begin && x->chosen[i] < here.end;
    for (int i = 0; i < N_EXPERTS; i++)
        at[i + 1] += at[i];
    *n_out = at[N_EXPERTS];
    LH_TRY(lh_alloc((void **)out, (size_t)*n_out * sizeof **out, "pairs"));
    for (int64_t i = 0; i < n_chosen; i++)
        if (x->chosen[i] >= here.begin && x->chosen[i] < here.end)
            (*out)[at[x->chosen[i]]++] = (row_of){(int32_t)(i / TOP_K), x->chosen[i]};
    return LH_OK;
}

/* Whether the tiles name the pairs' experts. */
static int tiles_right(const exchange *x, const row_of *pairs, int64_t n)
{
    int64_t first = lh_split(N_EXPERTS, x->r->comm->rank, x->r->comm->size).begin, pair = 0;
    lh_tiles tiles = x->plan->tiles;

    for (int i = 0; i < tiles.n; i++)
        for (; pair < tiles.start[i + 1]; pair++)
            if (pair >= n || pairs[pair].expert != first + x->plan->net[i])
                return 0;
    return pair == n;
}

/* The rows that come back, in their order; *right 0: `source` does not name each once. */
static lh_status list_back(const exchange *x, row_of *out, int *right)
{
    int64_t n = x->n_rows * TOP_K, first = x->r->comm->rank * x->n_rows;
    lh_status st = LH_OK;
    int32_t *source = NULL;

    LH_TRY(lh_alloc((void **)&source, (size_t)n * sizeof *source, "a list of the plan"));
    if (x->plan->on_device)
        LH_TRY_OUT(x->r->k->device->download(x->r->s, source, x->plan->source,
                                             (size_t)n * sizeof *source));
    else
        memcpy(source, x->plan->source, (size_t)n * sizeof *source);
    LH_TRY_OUT(x->r->k->device->sync(x->r->s));
    for (int64_t i = 0; i < n; i++)
        out[i].expert = -1;
    for (int64_t i = 0; i < n && *right; i++) {
        int32_t from = source[i];
        *right = from >= 0 && from < n && out[from].expert < 0;
        if (*right)
            out[from] = (row_of){(int32_t)(first + i / TOP_K), x->chosen[first * TOP_K + i]};
    }
out:
    free(source);
    return st;
}

/* Whether what has been queued leaves these rows at `device`; says which one is not right. */
static lh_status rows_right(exchange *x, void *device, const row_of *of, int64_t n, int marked,
                            const char *what, int *right)
{
    int64_t bad;

    LH_TRY(lh_comm_wait(x->r->comm, x->r->s));
    LH_TRY(each_row(x, device, of, n, marked, &bad));
    *right = bad == n;
    if (bad < n)
        (void)fprintf(stderr, "rank %d: %s, row %lld of %lld is not that of token %d, expert %d\n",
                      x->r->comm->rank, what, (long long)bad, (long long)n, of[bad].token,
                      of[bad].expert);
    return LH_OK;
}

enum { PLAN, BYTES, DISPATCH, COLLECT, COMBINE, N_CHECKS };

static lh_status go_there(exchange *x, int right[N_CHECKS])
{
    row_of *pairs = NULL;
    int64_t n = 0;
    lh_status st = LH_OK;
    uint64_t before = x->r->comm->bytes_sent;

    LH_TRY(exchange_dispatch(x));
    right[BYTES] = x->r->comm->bytes_sent - before == x->bytes[EXCHANGE_THERE];
    LH_TRY(permute(x, x->pair_x, x->received, x->plan->pair_copy, x->plan->n_pairs));
    LH_TRY_OUT(list_pairs(x, &pairs, &n));
    right[PLAN] = n == x->plan->n_pairs && tiles_right(x, pairs, n);
    if (right[PLAN]) {
        LH_TRY_OUT(rows_right(x, x->pair_x, pairs, n, 0, "dispatch", &right[DISPATCH]));
        LH_TRY_OUT(each_row(x, x->pair_y, pairs, n, 1, NULL)); /* what the experts would do */
    }
out:
    free(pairs);
    return st;
}

static lh_status come_back(exchange *x, int right[N_CHECKS])
{
    int64_t n = x->n_rows * TOP_K;
    row_of *rows = NULL;
    lh_status st = LH_OK;
    uint64_t before = x->r->comm->bytes_sent;

    LH_TRY(exchange_collect(x));
    right[BYTES] &= x->r->comm->bytes_sent - before == x->bytes[EXCHANGE_BACK];
    LH_TRY_OUT(lh_alloc((void **)&rows, (size_t)n * sizeof *rows, "rows returned"));
    if (right[PLAN])
        LH_TRY_OUT(list_back(x, rows, &right[PLAN]));
    if (!right[PLAN])
        goto out;
    LH_TRY_OUT(rows_right(x, x->back, rows, n, 1, "collect", &right[COLLECT]));
    LH_TRY_OUT(exchange_combine(x));
    for (int64_t i = 0; i < x->n_rows; i++)
        rows[i] = (row_of){(int32_t)(x->r->comm->rank * x->n_rows + i), 0};
    LH_TRY_OUT(rows_right(x, x->out, rows, x->n_rows, 0, "combine", &right[COMBINE]));
out:
    free(rows);
    return st;
}

lh_status exchange_check(exchange *x, const char **wrong)
{
    static const char *const names[N_CHECKS] = {"plan", "bytes sent", "dispatch", "collect",
                                                "combine"};
    int right[N_CHECKS] = {0}, all[RANKS_MAX][N_CHECKS];

    LH_TRY(go_there(x, right));
    LH_TRY(come_back(x, right));
    LH_TRY(lh_comm_allgather(x->r->boot, right, sizeof right, all, NULL));
    *wrong = NULL;
    for (int i = N_CHECKS; i-- > 0;)
        for (int r = 0; r < x->r->comm->size; r++)
            if (!all[r][i])
                *wrong = names[i];
    return LH_OK;
}
