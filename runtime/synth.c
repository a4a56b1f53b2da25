#include "runtime/synth.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "runtime/checkpoint_internal.h"

#define WINDOW_BYTES ((size_t)64 << 20)
#define MAX_THREADS 256
#define THREAD_BYTES ((size_t)256 << 10) /* less is not worth a thread */
#define ALIGN 256

/* -------------------------------------------------------------------- laws */

#define NORM_SD 0.0625
#define SCORE_SD 0.208      /* of the sigmoid of a standard normal */
#define DT_LOW (-6.907255)  /* softplus of it is 0.001 */
#define DT_HIGH (-2.252168) /* 0.1 */
#define LN_16 2.772588722

/* Division and square root are rounded exactly, so these factors are the same everywhere. */
static void bell(lh_synth_law *law, double mean, double sd)
{
    law->flat = 0;
    law->scale = (float)(sd / LH_SYNTH_BELL_SD);
    law->offset = mean > 0 ? (int32_t)(mean / (double)law->scale + 0.5) : 0;
}

static void flat(lh_synth_law *law, double low, double high)
{
    law->flat = 1;
    law->scale = (float)((high - low) / LH_SYNTH_FLAT_N);
    law->offset = (int32_t)(low / (double)law->scale);
}

static void top_law(lh_synth_law *law, const lh_expected *t)
{
    switch (t->slot) {
    case offsetof(lh_weights, embed):
        bell(law, 0, 1);
        break;
    case offsetof(lh_weights, final_norm):
        bell(law, 1, NORM_SD);
        break;
    default:
        bell(law, 0, 1 / sqrt((double)t->dims[1]));
    }
}

static void layer_law(lh_synth_law *law, const lh_dims *d, const lh_expected *t, double skew)
{
    double n_in = (double)t->dims[t->n_dims - 1]; /* of a convolution: its taps */

    switch (t->slot) {
    case offsetof(lh_layer_weights, attn_norm):
    case offsetof(lh_layer_weights, ffn_norm):
    case offsetof(lh_layer_weights, o_norm):
    case offsetof(lh_layer_weights, kv_norm):
        bell(law, 1, NORM_SD);
        break;
    case offsetof(lh_layer_weights, a_log):
        flat(law, 0, LN_16);
        break;
    case offsetof(lh_layer_weights, dt_bias):
        flat(law, DT_LOW, DT_HIGH);
        break;
    case offsetof(lh_layer_weights, router_bias):
        bell(law, 0, skew * SCORE_SD);
        break;
    case offsetof(lh_layer_weights, o):
    case offsetof(lh_layer_weights, down):
    case offsetof(lh_layer_weights, w_down):
        bell(law, 0, 1 / sqrt(n_in * 2 * d->n_layers));
        break;
    default:
        bell(law, 0, 1 / sqrt(n_in));
    }
}

void lh_synth_law_make(lh_synth_law *out, const lh_dims *d, const lh_expected *t,
                       const lh_synth_opts *o)
{
    *out = (lh_synth_law){.key = lh_synth_key(o->seed, t->name)};
    if (t->layer < 0)
        top_law(out, t);
    else
        layer_law(out, d, t, o->router_skew);
}

/* ------------------------------------------------------------------ values */

/* Bytes [from, to) of a piece; the ends may cut an element. */
static void fill_piece(const lh_synth_piece *p, char *out, size_t from, size_t to)
{
    size_t size = lh_synth_form_bytes(p->form);
    char element[sizeof(float)];

    while (from < to) {
        size_t inside = from % size, n = (to - from) / size * size;
        if (inside == 0 && n > 0) {
            lh_synth_elements(out, &p->law, p->form, from / size, n / size);
        } else {
            n = to - from < size - inside ? to - from : size - inside;
            lh_synth_elements(element, &p->law, p->form, from / size, 1);
            memcpy(out, element + inside, n);
        }
        out += n;
        from += n;
    }
}

typedef struct slice {
    const lh_synth_piece *pieces;
    size_t n_pieces, begin, end;
    char *out;
} slice;

static void *fill_slice(void *arg)
{
    const slice *s = arg;
    size_t low = 0, high = s->n_pieces, at = s->begin;

    while (low < high) { /* the first piece that ends behind `begin` */
        size_t mid = (low + high) / 2;
        if (s->pieces[mid].offset + s->pieces[mid].n_bytes > s->begin)
            high = mid;
        else
            low = mid + 1;
    }
    for (; low < s->n_pieces && s->pieces[low].offset < s->end; low++) {
        const lh_synth_piece *p = &s->pieces[low];
        size_t from = p->offset > at ? p->offset : at, to = p->offset + p->n_bytes;
        to = to < s->end ? to : s->end;
        memset(s->out + (at - s->begin), 0, from - at);
        fill_piece(p, s->out + (from - s->begin), from - p->offset, to - p->offset);
        at = to;
    }
    memset(s->out + (at - s->begin), 0, s->end - at);
    return NULL;
}

void lh_synth_fill(const lh_synth_piece *pieces, size_t n_pieces, void *out, size_t begin,
                   size_t end, int n_threads)
{
    pthread_t threads[MAX_THREADS];
    slice slices[MAX_THREADS];
    size_t bytes = end - begin, useful = bytes / THREAD_BYTES + 1, n = (size_t)n_threads;
    int started[MAX_THREADS];

    n = n > MAX_THREADS ? MAX_THREADS : n;
    n = n > useful ? useful : n;
    for (size_t i = 0; i < n; i++) {
        size_t from = begin + bytes / n * i, to = i + 1 < n ? begin + bytes / n * (i + 1) : end;
        slices[i] = (slice){pieces, n_pieces, from, to, (char *)out + (from - begin)};
        /* The last one is the caller's; one that cannot be started is, too. */
        started[i] = i + 1 < n && pthread_create(&threads[i], NULL, fill_slice, &slices[i]) == 0;
    }
    for (size_t i = n; i-- > 0;)
        if (!started[i])
            (void)fill_slice(&slices[i]);
    for (size_t i = 0; i < n; i++)
        if (started[i])
            (void)pthread_join(threads[i], NULL);
}

/* -------------------------------------------------------------------- bind */

struct lh_synth {
    const lh_device_ops *device;
    lh_stream *s;
    void *host;  /* weights, pieces */
    char *arena; /* of the device */
};

typedef struct placed {
    lh_weights *w;
    lh_synth_piece *pieces;
    size_t n_pieces, host_bytes, arena_bytes;
    size_t dense_bytes, expert_bytes; /* as in files */
} placed;

/* Measures with both bases NULL, places with blocks of those sizes. */
static void layout(placed *x, const lh_dims *d, const lh_synth_opts *o, int expert_begin,
                   int expert_end, void *host, char *arena)
{
    lh_carve h = {.base = host}, a = {.base = arena};

    *x = (placed){0};
    x->w = lh_weights_carve(&h, d);
    x->pieces = lh_carve_take(&h, (size_t)lh_expected_count(d), sizeof *x->pieces, 64);
    for (int64_t i = 0; i < lh_expected_count(d); i++) {
        lh_expected t;
        lh_expected_tensor(&t, d, i);
        if (!lh_holds_expert(t.expert, expert_begin, expert_end))
            continue;
        size_t n = lh_expected_elements(&t);
        size_t size = t.allow_f32 ? sizeof(float) : sizeof(lh_bf16);
        char *data = lh_carve_take(&a, n, size, ALIGN);
        *(t.expert < 0 ? &x->dense_bytes : &x->expert_bytes) += lh_expected_bytes(&t);
        if (data && x->pieces) {
            lh_synth_piece *p = &x->pieces[x->n_pieces];
            *p = (lh_synth_piece){.form = !t.allow_f32   ? LH_SYNTH_AS_BF16
                                          : t.allow_bf16 ? LH_SYNTH_AS_WIDENED
                                                         : LH_SYNTH_AS_F32,
                                  .offset = (size_t)(data - arena),
                                  .n = n,
                                  .n_bytes = n * size};
            lh_synth_law_make(&p->law, d, &t, o);
            lh_weights_set(x->w, t.layer, t.expert, t.slot, data);
        }
        x->n_pieces++;
    }
    x->host_bytes = h.used;
    x->arena_bytes = a.used;
}

/* By threads of the host, window after window. */
static void fill_windows(const lh_synth *y, const placed *x, const lh_synth_opts *o,
                         lh_meter *meter)
{
    for (size_t at = 0, n; at < x->arena_bytes; at += n) {
        n = x->arena_bytes - at < WINDOW_BYTES ? x->arena_bytes - at : WINDOW_BYTES;
        lh_synth_fill(x->pieces, x->n_pieces, y->arena + at, at, at + n, o->n_threads);
        lh_meter_add(meter, n);
    }
}

/* By the device, tensor after tensor; what lies between them is zero already. */
static lh_status fill_tensors(const lh_synth *y, const placed *x, const lh_kernels *k,
                              lh_meter *meter)
{
    for (size_t i = 0; i < x->n_pieces; i++) {
        const lh_synth_piece *p = &x->pieces[i];
        LH_TRY(k->synth_fill(y->s, &(lh_synth_fill_args){.out = y->arena + p->offset,
                                                         .law = p->law,
                                                         .form = p->form,
                                                         .n = (int64_t)p->n}));
        lh_meter_add(meter, p->n_bytes);
    }
    return y->device->sync(y->s);
}

static lh_status fill_arena(const lh_synth *y, const placed *x, const lh_kernels *k,
                            const lh_synth_opts *o)
{
    lh_meter meter;

    lh_meter_start(&meter, "load", x->arena_bytes, o->progress, o->user);
    if (k->device->reads_host)
        fill_windows(y, x, o, &meter);
    else
        LH_TRY(fill_tensors(y, x, k, &meter));
    lh_meter_end(&meter);
    LH_LOG_I("load", "%.1f GB of synthetic weights in %.1f s", (double)x->arena_bytes * 1e-9,
             meter.state.seconds);
    return LH_OK;
}

lh_status lh_synth_bind(lh_synth **out, const lh_dims *d, const lh_synth_opts *o,
                        const lh_kernels *k, lh_stream *s, int expert_begin, int expert_end,
                        const lh_weights **weights, size_t *dense_bytes, size_t *expert_bytes)
{
    lh_status st = LH_OK;
    placed x;
    void *p = NULL;
    lh_synth *y = calloc(1, sizeof *y);

    LH_REQUIRE(y, LH_ERR_NOMEM, "synthetic weights");
    y->device = k->device;
    y->s = s;
    LH_REQUIRE_OUT(0 <= expert_begin && expert_begin <= expert_end && expert_end <= d->n_experts,
                   LH_ERR_INVALID, "experts %d to %d of %d", expert_begin, expert_end,
                   d->n_experts);
    layout(&x, d, o, expert_begin, expert_end, NULL, NULL);
    LH_TRY_OUT(lh_alloc(&y->host, x.host_bytes, "table of weights"));
    LH_TRY_OUT(y->device->alloc(s, &p, x.arena_bytes, "weights"));
    y->arena = p;
    layout(&x, d, o, expert_begin, expert_end, y->host, y->arena);
    LH_TRY_OUT(fill_arena(y, &x, k, o));
    *weights = x.w;
    *dense_bytes = x.dense_bytes;
    *expert_bytes = x.expert_bytes;
    *out = y;
    y = NULL;
out:
    lh_synth_close(y);
    return st;
}

void lh_synth_close(lh_synth *y)
{
    if (!y)
        return;
    if (y->arena)
        y->device->release(y->s, y->arena);
    free(y->host);
    free(y);
}
