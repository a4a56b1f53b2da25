/* Chunked KDA against the recurrence in float64, in any cut, and the same bits wherever they are
 * promised. */
#include "tests/kda_problem.h"

/* The operands of a call on the device; the rows of o are poisoned. */
typedef struct operands {
    void *q, *k, *v, *o, *work;
    float *g, *beta;
} operands;

static operands upload(lh_stream *s, const problem *p, int n_tiles)
{
    stream = s;
    return (operands){
        .q = act_device(p->q, size_k(p)),
        .k = act_device(p->k, size_k(p)),
        .v = act_device(p->v, size_v(p)),
        .o = poisoned(size_v(p), kernels->act_bytes),
        .work = poisoned(
            (int64_t)kernels->kda_work_bytes(p->n, n_tiles, p->n_heads, p->d_k, p->d_v), 1),
        .g = data_device(p->g, size_k(p), 4),
        .beta = data_device(p->beta, p->n * p->n_heads, 4),
    };
}

static void prepare(const problem *p, const operands *x, lh_tiles tiles, float *map, float *add)
{
    CHECK_OK(kernels->kda_prepare(stream, &(lh_kda_prepare_args){.q = x->q,
                                                                 .k = x->k,
                                                                 .v = x->v,
                                                                 .g = x->g,
                                                                 .beta = x->beta,
                                                                 .map = map,
                                                                 .add = add,
                                                                 .work = x->work,
                                                                 .n_rows = p->n,
                                                                 .n_heads = p->n_heads,
                                                                 .d_k = p->d_k,
                                                                 .d_v = p->d_v,
                                                                 .tiles = tiles}));
}

static void finish(const problem *p, const operands *x, lh_tiles tiles, const float *state_in,
                   float *state_out)
{
    CHECK_OK(kernels->kda_finish(stream, &(lh_kda_finish_args){.o = x->o,
                                                               .state_in = state_in,
                                                               .state_out = state_out,
                                                               .q = x->q,
                                                               .k = x->k,
                                                               .v = x->v,
                                                               .g = x->g,
                                                               .work = x->work,
                                                               .n_rows = p->n,
                                                               .n_heads = p->n_heads,
                                                               .d_k = p->d_k,
                                                               .d_v = p->d_v,
                                                               .tiles = tiles}));
}

/* One call over all tiles of the problem: o, and in `state` the state after it. */
static void prefill(lh_stream *s, const problem *p, lh_tiles tiles, float *o, float *state)
{
    int64_t one = size_state(p), map_size = (int64_t)p->n_heads * p->d_k * p->d_k;
    operands x = upload(s, p, tiles.n);
    float *map = poisoned(tiles.n * map_size, 4), *add = poisoned(tiles.n * one, 4);
    float *states = poisoned((tiles.n + 1) * one, 4);

    prepare(p, &x, tiles, map, add);
    CHECK_OK(kernels->device->upload(s, states, p->state, (size_t)one * sizeof *states));
    for (int64_t i = 0; i < tiles.n; i++)
        CHECK_OK(kernels->kda_fold(s, &(lh_kda_fold_args){.state_out = states + (i + 1) * one,
                                                          .state_in = states + i * one,
                                                          .map = map + i * map_size,
                                                          .add = add + i * one,
                                                          .n_heads = p->n_heads,
                                                          .d_k = p->d_k,
                                                          .d_v = p->d_v}));
    finish(p, &x, tiles, states, NULL);
    memcpy(o, act_host(x.o, size_v(p)), (size_t)size_v(p) * sizeof *o);
    memcpy(state, f32_host(states + tiles.n * one, one), (size_t)one * sizeof *state);
    data_free();
}

/* The same of one tile without maps: the state after it from the chain, in place. */
static void prefill_chain(lh_stream *s, const problem *p, float *o, float *state)
{
    lh_tiles tiles = {.n = 1, .start = (int64_t[]){0, p->n}};
    operands x = upload(s, p, 1);
    float *states = data_device(p->state, size_state(p), 4);

    prepare(p, &x, tiles, NULL, NULL);
    finish(p, &x, tiles, states, states);
    memcpy(o, act_host(x.o, size_v(p)), (size_t)size_v(p) * sizeof *o);
    memcpy(state, f32_host(states, size_state(p)), (size_t)size_state(p) * sizeof *state);
    data_free();
}

static void prefill_whole(lh_stream *s, const problem *p, float *o, float *state)
{
    prefill(s, p, (lh_tiles){.n = 1, .start = (int64_t[]){0, p->n}}, o, state);
}

/* Each tile by a call of its own, the state handed on from turn to turn. */
static void prefill_turns(lh_stream *s, const problem *p, lh_tiles tiles, float *o, float *state)
{
    float *carried = copy_of(p->state, size_state(p));

    for (int i = 0; i < tiles.n; i++) {
        int64_t row = tiles.start[i] * p->n_heads;
        problem turn = *p;
        turn.n = tiles.start[i + 1] - tiles.start[i];
        if (turn.n == 0)
            continue;
        turn.q += row * p->d_k, turn.k += row * p->d_k, turn.g += row * p->d_k;
        turn.v += row * p->d_v, turn.beta += row, turn.state = carried;
        prefill_whole(s, &turn, o + row * p->d_v, state);
        memcpy(carried, state, (size_t)size_state(p) * sizeof *state);
    }
    free(carried);
}

/* Against the reference; `tiles` NULL: whole. With `turns`, one call for each tile. */
static void check_against_reference(const problem *p, const lh_tiles *tiles, int turns)
{
    float *o = floats(size_v(p)), *state = floats(size_state(p));
    lh_tiles whole = {.n = 1, .start = (int64_t[]){0, p->n}};

    (turns ? prefill_turns : prefill)(streams[0], p, tiles ? *tiles : whole, o, state);
    note_errors(p, o, state);
    CHECK_NEAR(o, p->ref_o, size_v(p), tol_o());
    CHECK_NEAR(state, p->ref_state, size_state(p), tol_state());
    if (!tiles) {
        prefill_chain(streams[0], p, o, state);
        note_errors(p, o, state);
        CHECK_NEAR(o, p->ref_o, size_v(p), tol_o());
        CHECK_NEAR(state, p->ref_state, size_state(p), tol_state());
    }
    free(o), free(state);
}

static void check_problem(problem *p)
{
    int before = check_failures;
    solve(p);
    check_against_reference(p, NULL, 0);
    if (check_failures > before)
        printf("  ... with %lld tokens, %d heads, d_k %d, d_v %d\n", (long long)p->n, p->n_heads,
               p->d_k, p->d_v);
}

static void test_every_length(void)
{
    for (int64_t n = 1; n <= 257; n++) {
        problem p = make(n, 2, 16, 24);
        check_problem(&p);
        drop(&p);
    }
}

static void test_sizes(void)
{
    static const int d[] = {1, 8, 32, 33, 64, 128, 256};
    for (int i = 0; i < cases(7); i++) {
        problem same = make(150, 2, d[i], d[i]), other = make(150, 1, d[i], d[6 - i]);
        check_problem(&same);
        check_problem(&other);
        drop(&same), drop(&other);
    }
}

/* One gate everywhere: long runs without decay, with little, and with all of it. */
static void test_constant_gates(void)
{
    static const float gate[] = {0.0f, -1e-8f, -1e-3f, -1.0f, -5.0f, -80.0f, -87.0f, -1000.0f};
    for (int i = 0; i < 8; i++) {
        problem p = make(1000, 1, 64, 32);
        for (int64_t j = 0; j < size_k(&p); j++)
            p.g[j] = gate[i];
        check_problem(&p);
        drop(&p);
    }
}

/* Many chunks of usual gates, of slow ones, and of each channel's own. */
static void test_long(void)
{
    for (int kind = 0; kind < 3; kind++) {
        problem p = make(on_gpu() ? 4096 : 600, on_gpu() ? 4 : 1, 64, 64);
        double *channel = block((size_t)p.d_k * sizeof *channel);
        for (int i = 0; i < p.d_k; i++)
            channel[i] = kind == 0 ? 5 : kind == 1 ? 0.01 : exp(-8 + 9 * check_uniform());
        for (int64_t j = 0; j < size_k(&p); j++)
            p.g[j] = (float)(-channel[j % p.d_k] * (0.02 + 0.98 * check_uniform()));
        check_problem(&p);
        free(channel);
        drop(&p);
    }
}

/* A long tile whose maps are soon forgotten, kept, and forgotten late, by head. */
static void test_forgotten(void)
{
    problem p = make(on_gpu() ? 17000 : 600, 3, 64, 64);
    for (int64_t i = 0; i < p.n * p.n_heads; i++) {
        int head = (int)(i % p.n_heads);
        p.beta[i] = head == 0 ? p.beta[i] : 0;
        for (int j = 0; j < p.d_k; j++)
            p.g[i * p.d_k + j] = head == 0 ? p.g[i * p.d_k + j] : head == 1 ? -1e-5f : -1.6e-3f;
    }
    check_problem(&p);
    drop(&p);
}

/* No size of values is too large or too small, nor both in one run. */
static void test_large_and_small_values(void)
{
    static const float size[] = {1e20f, 1e5f, 1e-5f, 1e-20f};
    for (int i = 0; i < 5; i++) {
        problem p = make(200, 1, 32, 32);
        for (int64_t j = 0; j < size_v(&p); j++)
            p.v[j] = act_round(p.v[j] * size[i < 4 ? i : j / p.d_v % 2 + 1]);
        for (int64_t j = 0; j < size_state(&p); j++)
            p.state[j] *= size[i < 4 ? i : 1];
        check_problem(&p);
        drop(&p);
    }
}

/* A channel that forgets beside one that keeps: a running sum of both sizes would lose the small
 * decays. */
static void test_decays_after_total_one(void)
{
    problem p = make(256, 1, 128, 128);
    for (int64_t j = 0; j < size_k(&p); j++)
        p.g[j] = j / p.d_k % 64 == 3 ? -1000.0f : (float)(-1e-3 * check_uniform());
    check_problem(&p);
    drop(&p);
}

/* The system of the UT transform at its worst: every key the same (or alternating), all written. */
static void test_same_keys(void)
{
    for (int kind = 0; kind < 4; kind++) {
        problem p = make(320, 1, 128, 128);
        for (int64_t i = 0; i < p.n; i++)
            for (int64_t j = 0; j < p.d_k; j++) {
                p.k[i * p.d_k + j] = kind & 2 && i & 1 ? -p.k[j] : p.k[j];
                p.g[i * p.d_k + j] = kind & 1 ? 0.0f : (float)(-1e-4 * check_uniform());
                p.beta[i] = kind & 1 ? 1.0f : (float)(1 - 1e-3 * check_uniform());
            }
        check_problem(&p);
        drop(&p);
    }
}

static void test_zero_keys_and_beta(void)
{
    problem p = make(130, 1, 32, 32);
    memset(p.k, 0, (size_t)size_k(&p) * sizeof *p.k);
    check_problem(&p);
    drop(&p);
    p = make(130, 1, 32, 32);
    memset(p.beta, 0, (size_t)p.n * sizeof *p.beta);
    check_problem(&p);
    drop(&p);
}

static void test_two_turns(void)
{
    static const int64_t lengths[] = {65, 128, 257};
    for (int i = 0; i < 3; i++) {
        problem p = make(lengths[i], 2, 16, 32);
        solve(&p);
        for (int64_t cut = 1; cut < p.n; cut += on_gpu() ? 7 : 1) {
            lh_tiles tiles = {.n = 2, .start = (int64_t[]){0, cut, p.n}};
            check_against_reference(&p, &tiles, 1);
        }
        drop(&p);
    }
}

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Cuts anywhere, empty pieces among them. */
static lh_tiles random_tiles(int64_t *start, int n_tiles, int64_t n)
{
    start[0] = 0;
    for (int i = 1; i < n_tiles; i++)
        start[i] = (int64_t)(check_random() % (uint64_t)(n + 1));
    start[n_tiles] = n;
    qsort(start, (size_t)n_tiles, sizeof *start, compare);
    return (lh_tiles){.n = n_tiles, .start = start};
}

static void test_random_splits(void)
{
    int64_t start[16];
    problem p = make(200, 1, 16, 16);

    solve(&p);
    for (int i = 0; i < cases(1000); i++) {
        lh_tiles tiles = random_tiles(start, 3 + (int)(check_random() % 12), p.n);
        check_against_reference(&p, &tiles, 0);
    }
    drop(&p);
}

/* Neither the company of other tiles nor the number of threads shows in the bits. */
static void test_same_bits(void)
{
    int64_t start[16];
    problem p = make(700, 3, 128, 128);
    float *o = floats(size_v(&p)), *state = floats(size_state(&p));
    float *other_o = floats(size_v(&p)), *other_state = floats(size_state(&p));

    for (int round = 0; round < 3; round++) {
        lh_tiles tiles = random_tiles(start, 5, p.n);
        prefill_turns(streams[0], &p, tiles, o, state);
        for (int i = 0; i < 3; i++) {
            prefill(streams[i], &p, tiles, other_o, other_state);
            CHECK_SAME_BITS(other_o, o, (size_t)size_v(&p) * sizeof *o);
            CHECK_SAME_BITS(other_state, state, (size_t)size_state(&p) * sizeof *state);
        }
    }
    free(o), free(state), free(other_o), free(other_state);
    drop(&p);
}

static void test_causal(void)
{
    problem p = make(192, 1, 64, 64);
    float *o = floats(size_v(&p)), *state = floats(size_state(&p)), *other = floats(size_v(&p));

    prefill_whole(streams[0], &p, o, state);
    for (int64_t t = p.n - 1; t > 0; t -= 5) {
        unit_row(p.q + t * p.d_k, p.d_k, 1);
        unit_row(p.k + t * p.d_k, p.d_k, 1);
        unit_row(p.g + t * p.d_k, p.d_k, 100);
        for (int64_t i = t * p.d_k; i < (t + 1) * p.d_k; i++)
            p.v[i] = 7, p.g[i] = -fabsf(p.g[i]);
        p.beta[t] = 0.5f;
        prefill_whole(streams[0], &p, other, state);
        if (on_gpu()) /* the scale of f16 operands comes from the tile's largest value */
            CHECK_NEAR(other, o, t * p.d_v, 4e-3);
        else
            CHECK_SAME_BITS(other, o, (size_t)(t * p.d_v) * sizeof *o);
        CHECK(memcmp(other + t * p.d_v, o + t * p.d_v, (size_t)p.d_v * sizeof *o) != 0);
    }
    free(o), free(state), free(other);
    drop(&p);
}

static void test_nan_stays_in_its_head(void)
{
    problem p = make(100, 3, 32, 32);
    float *o = floats(size_v(&p)), *state = floats(size_state(&p));
    float *other = floats(size_v(&p)), *other_state = floats(size_state(&p));
    int64_t d = p.d_v, one = (int64_t)p.d_k * d;

    prefill_whole(streams[0], &p, o, state);
    p.k[(10 * 3 + 1) * p.d_k] = NAN; /* token 10 of head 1 */
    prefill_whole(streams[0], &p, other, other_state);
    CHECK(isnan(other_state[one]));
    for (int head = 0; head < 3; head += 2) {
        for (int64_t t = 0; t < p.n; t++)
            CHECK_SAME_BITS(other + (t * 3 + head) * d, o + (t * 3 + head) * d,
                            (size_t)d * sizeof *o);
        CHECK_SAME_BITS(other_state + head * one, state + head * one, (size_t)one * sizeof *o);
    }
    free(o), free(state), free(other), free(other_state);
    drop(&p);
}

static void test_limits(void)
{
    float x = 0;
    void *work = NULL;

    CHECK_OK(kernels->device->alloc(streams[0], &work, kernels->kda_work_bytes(1, 1, 1, 257, 1),
                                    "work"));
    CHECK_EQ(kernels->kda_work_bytes(0, 0, 32, 128, 128), 0);
    CHECK(kernels->kda_work_bytes(INT64_MAX / 2, 1, 1 << 20, 128, 128) == SIZE_MAX);
    CHECK_STATUS(
        kernels->kda_prepare(streams[0], &(lh_kda_prepare_args){.q = &x,
                                                                .k = &x,
                                                                .v = &x,
                                                                .g = &x,
                                                                .beta = &x,
                                                                .map = &x,
                                                                .add = &x,
                                                                .work = work,
                                                                .n_rows = 1,
                                                                .n_heads = 1,
                                                                .d_k = 257,
                                                                .d_v = 1,
                                                                .tiles = {1, (int64_t[]){0, 1}}}),
        LH_ERR_UNSUPPORTED);
    kernels->device->release(streams[0], work);
}

int main(int argc, char **argv)
{
    const char *missing = choose_backend(&argc, argv);

    if (missing)
        SKIP(missing);
    check_init(argc, argv);
    open_streams();
    RUN_NEAR(test_every_length);
    RUN_NEAR(test_sizes);
    RUN_NEAR(test_long);
    RUN_NEAR(test_forgotten);
    RUN_NEAR(test_constant_gates);
    RUN_NEAR(test_decays_after_total_one);
    RUN_NEAR(test_same_keys);
    RUN_NEAR(test_zero_keys_and_beta);
    RUN_NEAR(test_large_and_small_values);
    RUN_NEAR(test_two_turns);
    RUN_NEAR(test_random_splits);
    RUN(test_same_bits);
    RUN(test_causal);
    RUN(test_nan_stays_in_its_head);
    RUN(test_limits);
    close_streams();
    return check_done();
}
