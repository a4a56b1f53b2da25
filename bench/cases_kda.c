/*
 * KDA: gates, prefill as a layer does it with one chain over a whole run, the step.
 *
 * q, k, g and beta come from kda_gate of random projections, as in the model. Bytes are inputs and
 * outputs, each once; work areas are not counted.
 */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "bench/cases.h"
#include "tests/reference/reference.h"
#include "tests/reference/reference_kda.h"

#define STATE (D_HEAD * D_HEAD) /* of a head */
#define PREFIX 2048             /* tokens of the reference, at the start and before the end */
#define LAST 256                /* compared at the end: what was before PREFIX has decayed */

/* ------------------------------------------------------------------ gates */

typedef struct gate_data {
    rig_buf q, k, f, b, g, beta, a_log, dt_bias;
    rig_buf raw_q, raw_k; /* before the operation */
    int64_t n;
} gate_data;

static gate_data make_gate(rig *r, int64_t n)
{
    int64_t size = n * WIDTH;
    gate_data c = {.n = n};

    c.raw_q = rig_random(r, RIG_ACT, size, 1);
    c.raw_k = rig_random(r, RIG_ACT, size, 1);
    c.q = rig_zeros(r, RIG_ACT, size);
    c.k = rig_zeros(r, RIG_ACT, size);
    c.f = rig_random(r, RIG_ACT, size, 1);
    c.b = rig_random(r, RIG_ACT, n * HEADS, 1);
    c.g = rig_zeros(r, RIG_F32, size);
    c.beta = rig_zeros(r, RIG_F32, n * HEADS);
    /* g is about -0.009 to -0.13 a token: a chunk's state reaches the next ones, and of the state
     * before the last PREFIX tokens less than 1e-6 reaches the last LAST */
    float bias[WIDTH], a_log[HEADS];
    for (int i = 0; i < WIDTH; i++)
        bias[i] = (float)(-5.2 + 1.7 * rig_uniform(r));
    for (int i = 0; i < HEADS; i++)
        a_log[i] = (float)rig_uniform(r);
    c.a_log = rig_zeros(r, RIG_F32, HEADS);
    c.dt_bias = rig_zeros(r, RIG_F32, WIDTH);
    rig_upload(r, c.a_log.p, a_log, sizeof a_log);
    rig_upload(r, c.dt_bias.p, bias, sizeof bias);
    return c;
}

static lh_status restore_gate(rig *r, void *data, int copy)
{
    gate_data *c = data;
    LH_TRY(r->dev->copy(r->s, rig_at(c->q, copy), rig_at(c->raw_q, copy), c->q.bytes));
    return r->dev->copy(r->s, rig_at(c->k, copy), rig_at(c->raw_k, copy), c->k.bytes);
}

static lh_status run_gate(rig *r, void *data, int copy)
{
    gate_data *c = data;
    return r->k->kda_gate(r->s, &(lh_kda_gate_args){.q = rig_at(c->q, copy),
                                                    .k = rig_at(c->k, copy),
                                                    .f = rig_at(c->f, copy),
                                                    .b = rig_at(c->b, copy),
                                                    .a_log = rig_at(c->a_log, 0),
                                                    .dt_bias = rig_at(c->dt_bias, 0),
                                                    .g = rig_at(c->g, copy),
                                                    .beta = rig_at(c->beta, copy),
                                                    .n_rows = c->n,
                                                    .n_heads = HEADS,
                                                    .d_k = D_HEAD});
}

static int check_gate_row(rig *r, const gate_data *c, int64_t row)
{
    int64_t at = row * WIDTH;
    const rig_buf *in[2] = {&c->raw_q, &c->raw_k}, *out[2] = {&c->q, &c->k};
    float *f = rig_acts(r, c->f.p, at, WIDTH), *b = rig_acts(r, c->b.p, row * HEADS, HEADS);
    double want[WIDTH];

    for (int i = 0; i < 2; i++) {
        float *x = rig_acts(r, in[i]->p, at, WIDTH);
        for (int h = 0; h < HEADS; h++)
            ref_l2norm(want + h * D_HEAD, x + h * D_HEAD, D_HEAD, i == 0 ? 1 / sqrt(D_HEAD) : 1);
        if (!rig_near(r, i == 0 ? "q" : "k", rig_acts(r, out[i]->p, at, WIDTH), want, WIDTH))
            return 0;
    }
    ref_kda_decay(want, f, rig_fetch(r, c->a_log.p, 0, HEADS, 4),
                  rig_fetch(r, c->dt_bias.p, 0, WIDTH, 4), 1, HEADS, D_HEAD);
    if (!rig_near(r, "g", rig_fetch(r, c->g.p, at, WIDTH, 4), want, WIDTH))
        return 0;
    for (int h = 0; h < HEADS; h++)
        want[h] = ref_sigmoid((double)b[h]);
    return rig_near(r, "beta", rig_fetch(r, c->beta.p, row * HEADS, HEADS, 4), want, HEADS);
}

static int check_gate(rig *r, void *data)
{
    gate_data *c = data;
    int64_t rows[3];

    for (int i = 0, n = rig_samples(c->n, rows); i < n; i++)
        if (!check_gate_row(r, c, rows[i]))
            return 0;
    return 1;
}

static void bench_gate(rig *r)
{
    int64_t n = r->gpu ? 32768 : 2048;
    double act = (double)r->k->act_bytes;

    /* q and k in and out, f, g (f32); b, beta */
    if (!rig_begin(r, "kda_gate", (double)n * (WIDTH * (5 * act + 4) + HEADS * (act + 4)), 0,
                   "%lld rows of %d x %d", (long long)n, HEADS, D_HEAD))
        return;
    gate_data c = make_gate(r, n);
    rig_measure(r, &c, run_gate, restore_gate, check_gate);
}

/* ---------------------------------------------------------------- prefill */

typedef struct prefill_data {
    gate_data in; /* q, k, g: as kda_prepare takes them */
    rig_buf v;
    rig_buf use[4]; /* copies of q, k, v, g, which are consumed */
    rig_buf state, state_out, map, add, o;
    void *work;
    lh_tiles tiles;
    int with_map;
} prefill_data;

static lh_status restore_prefill(rig *r, void *data, int copy)
{
    prefill_data *c = data;
    const rig_buf *from[4] = {&c->in.q, &c->in.k, &c->v, &c->in.g};
    (void)copy;
    for (int i = 0; i < 4; i++)
        LH_TRY(r->dev->copy(r->s, c->use[i].p, from[i]->p, from[i]->bytes));
    return LH_OK;
}

static float *f32_at(rig_buf b)
{
    return rig_at(b, 0);
}

/* A run whose state is known, or one whose state comes later: then its map and addend are made
 * first, and the state after it comes from their fold. */
static lh_status run_prefill(rig *r, void *data, int copy)
{
    prefill_data *c = data;
    (void)copy;
    LH_TRY(
        r->k->kda_prepare(r->s, &(lh_kda_prepare_args){.q = c->use[0].p,
                                                       .k = c->use[1].p,
                                                       .v = c->use[2].p,
                                                       .g = f32_at(c->use[3]),
                                                       .beta = f32_at(c->in.beta),
                                                       .map = c->with_map ? f32_at(c->map) : NULL,
                                                       .add = c->with_map ? f32_at(c->add) : NULL,
                                                       .work = c->work,
                                                       .n_rows = c->in.n,
                                                       .n_heads = HEADS,
                                                       .d_k = D_HEAD,
                                                       .d_v = D_HEAD,
                                                       .tiles = c->tiles}));
    if (c->with_map)
        LH_TRY(r->k->kda_fold(r->s, &(lh_kda_fold_args){.state_out = f32_at(c->state_out),
                                                        .state_in = f32_at(c->state),
                                                        .map = f32_at(c->map),
                                                        .add = f32_at(c->add),
                                                        .n_heads = HEADS,
                                                        .d_k = D_HEAD,
                                                        .d_v = D_HEAD}));
    return r->k->kda_finish(
        r->s, &(lh_kda_finish_args){.o = c->o.p,
                                    .state_in = f32_at(c->state),
                                    .state_out = c->with_map ? NULL : f32_at(c->state_out),
                                    .q = c->use[0].p,
                                    .k = c->use[1].p,
                                    .v = c->use[2].p,
                                    .g = f32_at(c->use[3]),
                                    .work = c->work,
                                    .n_rows = c->in.n,
                                    .n_heads = HEADS,
                                    .d_k = D_HEAD,
                                    .d_v = D_HEAD,
                                    .tiles = c->tiles});
}

/* Columns [head * width, +width) of n rows of HEADS * width. */
static float *head_of(rig *r, const float *rows, int64_t n, int head, int width)
{
    float *x = rig_host(r, n * width, sizeof *x);
    for (int64_t i = 0; i < n; i++)
        memcpy(x + i * width, rows + (i * HEADS + head) * width, (size_t)width * sizeof *x);
    return x;
}

/* The reference over n tokens from `begin` on, of the first and the last head; its last `compared`
 * outputs, and at the end the state. */
static int check_part(rig *r, const prefill_data *c, int64_t begin, int64_t n, int64_t compared)
{
    int64_t at = begin * WIDTH, size = n * WIDTH, skip = n - compared;
    float *q = rig_acts(r, c->in.q.p, at, size), *k = rig_acts(r, c->in.k.p, at, size);
    float *v = rig_acts(r, c->v.p, at, size), *g = rig_fetch(r, c->in.g.p, at, size, 4);
    float *beta = rig_fetch(r, c->in.beta.p, begin * HEADS, n * HEADS, 4);
    float *o = rig_acts(r, c->o.p, at, size);

    for (int head = 0; head < HEADS; head += HEADS - 1) {
        double *want = rig_host(r, n * D_HEAD, sizeof *want);
        double *state = rig_host(r, STATE, sizeof *state);
        float *before = rig_fetch(r, c->state.p, (int64_t)head * STATE, STATE, 4);
        for (int i = 0; i < STATE; i++)
            state[i] = begin == 0 ? (double)before[i] : 0;
        ref_kda(want, state, head_of(r, q, n, head, D_HEAD), head_of(r, k, n, head, D_HEAD),
                head_of(r, v, n, head, D_HEAD), head_of(r, g, n, head, D_HEAD),
                head_of(r, beta, n, head, 1), n, 1, D_HEAD, D_HEAD);
        if (!rig_near(r, begin == 0 ? "o at the start" : "o at the end",
                      head_of(r, o + skip * WIDTH, compared, head, D_HEAD), want + skip * D_HEAD,
                      compared * D_HEAD))
            return 0;
        if (begin + n == c->in.n &&
            !rig_near(r, "state", rig_fetch(r, c->state_out.p, (int64_t)head * STATE, STATE, 4),
                      state, STATE))
            return 0;
    }
    return 1;
}

static int check_prefill(rig *r, void *data)
{
    prefill_data *c = data;

    if (!check_part(r, c, 0, lh_min64(PREFIX, c->in.n), lh_min64(PREFIX, c->in.n)))
        return 0;
    return c->in.n <= PREFIX || check_part(r, c, c->in.n - PREFIX, PREFIX, LAST);
}

/*
 * Operations of a chunk of C tokens and a head of d channels, triangles counted as halves:
 * scores of keys and of queries 2 C^2 d; w and u by the inverse 2 C^2 d; scores times u C^2 d; the
 * inverse C^3 / 3; the chain's w S, q S and k^T u 6 C d^2. A map and its addend are two more
 * chains without outputs, 8 C d^2.
 */
static double chunk_flops(int with_map)
{
    double c = LH_CHUNK, d = D_HEAD;
    return 5 * c * c * d + c * c * c / 3 + (with_map ? 14 : 6) * c * d * d;
}

static void bench_prefill(rig *r, int64_t n, int with_map)
{
    prefill_data c = {.with_map = with_map};
    double rows = (double)n * HEADS, act = (double)r->k->act_bytes;
    int64_t size = n * WIDTH;

    /* q, k, v, o; g and beta (f32); the state in and out */
    if (!rig_begin(r, "kda_prefill", rows * (D_HEAD * (4 * act + 4) + 4) + 8.0 * HEADS * STATE,
                   rows / LH_CHUNK * chunk_flops(with_map), "%lld tokens, %d heads%s", (long long)n,
                   HEADS, with_map ? ", with map" : ""))
        return;
    c.in = make_gate(r, n);
    rig_must(restore_gate(r, &c.in, 0));
    rig_must(run_gate(r, &c.in, 0));
    c.v = rig_random(r, RIG_ACT, size, 1);
    for (int i = 0; i < 4; i++)
        c.use[i] = rig_zeros(r, i < 3 ? RIG_ACT : RIG_F32, size);
    c.state = rig_random(r, RIG_F32, HEADS * STATE, 0.1);
    c.state_out = rig_zeros(r, RIG_F32, HEADS * STATE);
    c.map = rig_zeros(r, RIG_F32, HEADS * STATE);
    c.add = rig_zeros(r, RIG_F32, HEADS * STATE);
    c.o = rig_zeros(r, RIG_ACT, size);
    c.work = rig_work(r, r->k->kda_work_bytes(n, 1, HEADS, D_HEAD, D_HEAD));
    c.tiles = rig_tiles(r, n, n);
    rig_measure(r, &c, run_prefill, restore_prefill, check_prefill);
}

/* ------------------------------------------------------------------- step */

typedef struct step_data {
    gate_data in;
    rig_buf v, state, at, o;
    float *before; /* the first copy's states, on the host */
} step_data;

static lh_status run_step(rig *r, void *data, int copy)
{
    step_data *c = data;
    return r->k->kda_step(r->s, &(lh_kda_step_args){.o = rig_at(c->o, copy),
                                                    .state = rig_at(c->at, copy),
                                                    .q = rig_at(c->in.q, copy),
                                                    .k = rig_at(c->in.k, copy),
                                                    .v = rig_at(c->v, copy),
                                                    .g = rig_at(c->in.g, copy),
                                                    .beta = rig_at(c->in.beta, copy),
                                                    .n_seq = c->in.n,
                                                    .n_heads = HEADS,
                                                    .d_k = D_HEAD,
                                                    .d_v = D_HEAD});
}

static int check_step_row(rig *r, const step_data *c, int64_t row)
{
    int64_t at = row * WIDTH, states = row * HEADS * STATE;
    double *o = rig_host(r, WIDTH, sizeof *o);
    double *state = rig_host(r, HEADS * STATE, sizeof *state);

    for (int64_t i = 0; i < HEADS * STATE; i++)
        state[i] = (double)c->before[states + i];
    ref_kda(o, state, rig_acts(r, c->in.q.p, at, WIDTH), rig_acts(r, c->in.k.p, at, WIDTH),
            rig_acts(r, c->v.p, at, WIDTH), rig_fetch(r, c->in.g.p, at, WIDTH, 4),
            rig_fetch(r, c->in.beta.p, row * HEADS, HEADS, 4), 1, HEADS, D_HEAD, D_HEAD);
    return rig_near(r, "o", rig_acts(r, c->o.p, at, WIDTH), o, WIDTH) &&
           rig_near(r, "state", rig_fetch(r, c->state.p, states, HEADS * STATE, 4), state,
                    HEADS * STATE);
}

static int check_step(rig *r, void *data)
{
    step_data *c = data;
    int64_t rows[3];

    for (int i = 0, n = rig_samples(c->in.n, rows); i < n; i++)
        if (!check_step_row(r, c, rows[i]))
            return 0;
    return 1;
}

static void bench_step(rig *r, int64_t n)
{
    step_data c = {0};
    double act = (double)r->k->act_bytes, heads = (double)n * HEADS;

    /* the state in and out; q, k, v, o; g and beta. 7 operations an element of the state: decay,
     * k^T S, the update, q^T S */
    if (!rig_begin(r, "kda_step", heads * (8.0 * STATE + D_HEAD * (4 * act + 4) + 4),
                   heads * 7.0 * STATE, "%lld sequence%s, %d heads", (long long)n,
                   n == 1 ? "" : "s", HEADS))
        return;
    c.in = make_gate(r, n);
    for (int copy = 0; copy < r->n_copies; copy++) {
        rig_must(restore_gate(r, &c.in, copy));
        rig_must(run_gate(r, &c.in, copy));
    }
    c.v = rig_random(r, RIG_ACT, n * WIDTH, 1);
    c.state = rig_random(r, RIG_F32, n * HEADS * STATE, 0.1);
    c.before = rig_fetch(r, c.state.p, 0, n * HEADS * STATE, 4);
    c.at = rig_pointers(r, c.state, n, HEADS * STATE * sizeof(float));
    c.o = rig_zeros(r, RIG_ACT, n * WIDTH);
    rig_measure(r, &c, run_step, NULL, check_step);
}

void cases_kda(rig *r)
{
    static const int64_t gpu[2] = {8192, 65536}, cpu[2] = {1024, 4096};

    bench_gate(r);
    for (int i = 0; i < 2; i++)
        for (int with_map = 0; with_map < 2; with_map++)
            bench_prefill(r, r->gpu ? gpu[i] : cpu[i], with_map);
    bench_step(r, 1);
    bench_step(r, 256);
}
