/*
 * The engine's interface: what it refuses, what it plans and allocates, sessions beside each other,
 * turns.
 */
#include "tests/model_util.h"

static lh_status try_open(const char *model, const char *backend, int64_t segment, int64_t context)
{
    lh_engine *e = NULL;
    lh_status st = lh_engine_open(&e, &(lh_engine_opts){.model_dir = source_path(model),
                                                        .backend = backend,
                                                        .use_mpi = under_mpi(),
                                                        .n_threads = 1,
                                                        .segment_tokens = segment,
                                                        .context_tokens = context,
                                                        .max_sessions = 1});
    CHECK((st == LH_OK) == (e != NULL));
    lh_engine_close(e);
    return st;
}

/* The rank at fault says why, the others that a peer failed; all end with the same exit code. */
static void check_refused(lh_status st, int exit_code)
{
    CHECK(st != LH_OK);
    CHECK_EQ(lh_exit_code(st), exit_code);
}

/* A step that is wrong on all ranks alike: rank 0 says why, the others that a peer failed. */
static void check_step_refused(lh_engine *e, const lh_step_item *items, int n, lh_status why)
{
    lh_status st = lh_step(e, items, n);
    CHECK_EQ(st, lh_engine_rank(e) == 0 ? why : LH_ERR_PEER);
    CHECK_EQ(lh_exit_code(st), lh_exit_code(why));
}

static void test_refusals(void)
{
    check_refused(try_open("models/absent", "cpu", 0, 100), 66);
    check_refused(try_open("models/needle", "cuda", 0, 100), 69);
    check_refused(try_open("models/needle", "abacus", 0, 100), 64);
    check_refused(try_open("models/needle", "cpu", 65, 100), 64);
    check_refused(try_open("models/needle", "cpu", 0, 2000000), 64);
    CHECK_OK(try_open("models/needle", "auto", 0, 100));
}

static void test_plan_is_what_is_used(void)
{
    lh_engine *e = open_engine("models/needle", 1, 2, 0, 0, 5000);
    const lh_rank_plan *p = lh_engine_plan(e), *u = lh_engine_used(e);
    CHECK(memcmp(p, u, sizeof *p) == 0);

    lh_plan *plan = NULL;
    CHECK_OK(lh_plan_make(&plan, &(lh_plan_opts){.model_dir = source_path("models/needle"),
                                                 .backend = "cpu",
                                                 .n_ranks = lh_engine_size(e),
                                                 .n_threads = 2,
                                                 .context_tokens = 5000,
                                                 .batch = 2}));
    CHECK(plan && memcmp(&plan->ranks[lh_engine_rank(e)], u, sizeof *u) == 0);
    lh_plan_free(plan);
    lh_engine_close(e);
}

static void test_published_plan(void)
{
    lh_plan *p = NULL;
    lh_plan_opts o = {.model_dir = source_path("tests/golden/kimi-linear-48b"),
                      .backend = "cuda",
                      .n_ranks = 1,
                      .n_threads = 1};

    CHECK_OK(lh_plan_make(&p, &o));
    CHECK_EQ(p->ranks[0].weights_dense + p->ranks[0].weights_experts, 98245528576);
    CHECK_EQ(p->ranks[0].latent_cache, 8064LL * 1048576);
    CHECK_EQ(p->ranks[0].kda_state, 41943040);
    CHECK_EQ(p->ranks[0].conv_state, 1474560);
    size_t experts = p->ranks[0].weights_experts;
    lh_plan_free(p);
    for (o.n_ranks = 2; o.n_ranks <= 9; o.n_ranks++) {
        size_t sum = 0;
        CHECK_OK(lh_plan_make(&p, &o));
        for (int r = 0; r < o.n_ranks; r++)
            sum += p->ranks[r].weights_experts;
        CHECK_EQ(sum, experts);
        lh_plan_free(p);
    }
    o.n_ranks = 1;
    o.backend = "cpu";
    CHECK_OK(lh_plan_make(&p, &o));
    CHECK_EQ(p->ranks[0].latent_cache, 2 * 8064LL * 1048576);
    lh_plan_free(p);
}

static void test_bad_steps(void)
{
    lh_engine *e = open_engine("tests/golden/alpha", 1, 1, 0, 0, 10);
    lh_session *s = open_session(e), *more = NULL;
    int32_t tokens[11] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, bad[2] = {1, 320};
    float logits[320];

    check_step_refused(e, (lh_step_item[]){turn(s, tokens, 11, 1, logits)}, 1, LH_ERR_DATA);
    check_step_refused(e, (lh_step_item[]){turn(s, tokens, 0, 0, logits)}, 1, LH_ERR_DATA);
    check_step_refused(e, (lh_step_item[]){turn(s, bad, 2, 1, logits)}, 1, LH_ERR_DATA);
    CHECK_EQ(lh_session_position(s), 0);
    CHECK_OK(feed(e, s, tokens, 10, 1, logits));
    check_step_refused(e, (lh_step_item[]){turn(s, tokens, 1, 1, logits)}, 1, LH_ERR_DATA);
    check_refused(lh_session_create(&more, e, 11), 65);
    lh_session_destroy(s);
    lh_engine_close(e);
}

/* Sessions do not see each other, and a step over several equals steps over each. */
static void test_sessions_apart(void)
{
    lh_engine *e = open_engine("tests/golden/beta", 1, 1, 64, 128, 300);
    lh_session *a = open_session(e), *b = open_session(e);
    int32_t tokens[200], one = 7;
    float alone_a[515], alone_b[515], both_a[515], both_b[515];

    for (int i = 0; i < 200; i++)
        tokens[i] = (i * 37 + 11) % 515;
    CHECK_OK(feed(e, a, tokens, 200, 1, alone_a));
    CHECK_OK(feed(e, b, tokens + 50, 100, 1, alone_b));
    CHECK_OK(feed(e, b, &one, 1, 1, alone_b));
    CHECK_OK(lh_session_reset(a));
    CHECK_OK(lh_session_reset(b));
    CHECK_OK(feed(e, b, tokens + 50, 100, 0, NULL));
    const lh_step_item both[2] = {turn(a, tokens, 200, 1, both_a), turn(b, &one, 1, 1, both_b)};
    CHECK_OK(lh_step(e, both, 2));
    CHECK_SAME_BITS(both_a, alone_a, sizeof both_a);
    CHECK_SAME_BITS(both_b, alone_b, sizeof both_b);
    check_step_refused(e, (lh_step_item[]){both[1], both[1]}, 2, LH_ERR_INVALID);
    lh_session_destroy(a);
    lh_session_destroy(b);
    lh_engine_close(e);
}

/* Tokens drawn by a step, after a prompt and one by one, alone and beside others, with logits and
 * without: those that lh_sample draws from its logits. */
static void test_draws(void)
{
    enum { VOCAB = 515, N = 2, HOW = 3, STEPS = 20 };
    static const lh_sampling how[HOW] = {
        {.top_p = 1},
        {.temperature = 2, .top_p = 1, .min_p = 0.01f, .seed = 5},
        {.temperature = 1.5f, .top_k = 40, .top_p = 0.9f, .seed = 6}};
    lh_engine *e = open_engine("tests/golden/beta", 1, 1, 64, 128, 300);
    lh_session *s[N];
    lh_draw draw[N];
    lh_step_item items[N];
    int32_t tokens[200], drawn[N];
    float logits[N][VOCAB];
    char scratch[VOCAB * 16];

    for (int i = 0; i < 200; i++)
        tokens[i] = (i * 37 + 11) % VOCAB;
    for (int i = 0; i < N; i++)
        s[i] = open_session(e);
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < N; i++) {
            draw[i] = (lh_draw){how[(step + i) % HOW], (uint64_t)step};
            items[i] = turn(s[i], step == 0 ? tokens : &tokens[drawn[i] % 200],
                            step == 0 ? 100 + 50 * i : 1, step % 5 != i, logits[i]);
            items[i].draw = &draw[i];
            items[i].token = &drawn[i];
        }
        CHECK_OK(lh_step(e, items, N));
        for (int i = 0; i < N; i++) {
            CHECK(drawn[i] >= 0 && drawn[i] < VOCAB);
            if (items[i].n_logits)
                CHECK_EQ(drawn[i],
                         lh_sample(logits[i], VOCAB, &draw[i].how, draw[i].number, scratch));
        }
    }
    items[0].token = NULL;
    check_step_refused(e, items, 1, LH_ERR_INVALID);
    items[0].token = &drawn[0];
    draw[0].how.top_p = 0;
    check_step_refused(e, items, 1, LH_ERR_USAGE);

    draw[0].how.top_p = 1;
    items[0].n_logits = 0;
    s[0]->at.kda[0] = INFINITY; /* on every rank, so that no logit is finite */
    check_step_refused(e, items, 1, LH_ERR_DATA);
    e->allow_nonfinite = 1;
    CHECK_OK(lh_step(e, items, 1));
    CHECK_EQ(drawn[0], 0);
    for (int i = 0; i < N; i++)
        lh_session_destroy(s[i]);
    lh_engine_close(e);
}

/* Many sessions of all lengths in one step, more than are computed together, some of which want no
 * logits: to each the step is the one that it would be alone. */
static void test_batch(const char *model)
{
    enum { N = 67, STEPS = 3, LONGEST = 40 };
    lh_engine *e = NULL;
    lh_session *s[N];
    lh_step_item items[N];
    int32_t tokens[N][LONGEST + STEPS];

    CHECK_OK(lh_engine_open(&e, &(lh_engine_opts){.model_dir = source_path(model),
                                                  .use_mpi = under_mpi(),
                                                  .n_threads = 1,
                                                  .segment_tokens = 64,
                                                  .context_tokens = LONGEST + STEPS,
                                                  .max_sessions = N}));
    if (!e)
        return;
    size_t vocab = (size_t)e->d.n_vocab, step = N * vocab;
    float *alone = malloc(STEPS * step * sizeof *alone), *both = malloc(step * sizeof *both);
    CHECK_EQ(e->g.batch, LH_MAX_BATCH);
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < LONGEST + STEPS; j++)
            tokens[i][j] = (int32_t)((size_t)(i * 71 + j * 37 + 11) % vocab);
        CHECK_OK(lh_session_create(&s[i], e, LONGEST + STEPS));
    }
    for (int together = 0; together <= 1; together++) {
        for (int i = 0; i < N; i++) {
            CHECK_OK(lh_session_reset(s[i]));
            CHECK_OK(feed(e, s[i], tokens[i], 1 + i % LONGEST, 0, NULL));
        }
        for (int n = 0; n < STEPS; n++) {
            float *to = together ? both : alone + (size_t)n * step;
            for (int i = 0; i < N; i++) {
                int j = (i * 29 + n) % N; /* in another order every time */
                items[i] =
                    turn(s[j], &tokens[j][LONGEST + n], 1, (n + j) % 5 > 0, to + (size_t)j * vocab);
                if (!together)
                    CHECK_OK(lh_step(e, &items[i], 1));
            }
            for (int i = 0; together && i < N; i++)
                memset(items[i].logits, 0, items[i].n_logits ? 0 : vocab * sizeof *both);
            if (together)
                CHECK_OK(lh_step(e, items, N));
            for (int j = 0; together && j < N; j++)
                if ((n + j) % 5 > 0)
                    CHECK_SAME_BITS(both + (size_t)j * vocab,
                                    alone + (size_t)n * step + (size_t)j * vocab,
                                    vocab * sizeof *both);
                else
                    CHECK_EQ(both[(size_t)j * vocab], 0); /* nothing was written */
        }
    }
    for (int i = 0; i < N; i++) {
        CHECK_EQ(lh_session_position(s[i]), 1 + i % LONGEST + STEPS);
        lh_session_destroy(s[i]);
    }
    free(alone);
    free(both);
    lh_engine_close(e);
}

static void test_batches(void)
{
    test_batch("tests/golden/alpha");
    test_batch("tests/golden/beta");
}

/* Any cut of a text into turns gives the same logits within rounding. */
static void test_turns(void)
{
    lh_engine *e = open_engine("tests/golden/alpha", 1, 1, 64, 0, 300);
    lh_session *s = open_session(e);
    int32_t tokens[150];
    float whole[320], pieces[320];

    for (int i = 0; i < 150; i++)
        tokens[i] = (i * 31 + 5) % 320;
    CHECK_OK(feed(e, s, tokens, 150, 1, whole));
    for (int cut = 1; cut < 150; cut += 7) {
        CHECK_OK(lh_session_reset(s));
        CHECK_OK(feed(e, s, tokens, cut, 0, NULL));
        CHECK_OK(feed(e, s, tokens + cut, 150 - cut, 1, pieces));
        CHECK_NEAR(pieces, whole, 320, 1e-4);
    }
    lh_session_destroy(s);
    lh_engine_close(e);
}

static double root_mean_square(const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sqrt(sum / (double)n);
}

/* What a session is filled with: values of a prefill's size, another model for another seed, layers
 * apart, latents that repeat up to the position and no further. */
static void test_fill(void)
{
    enum { N = 5000, PERIOD = 4096 };
    lh_engine *e = open_engine("tests/golden/alpha", 1, 1, 0, 0, N + 1);
    lh_session *s = open_session(e), *other = open_session(e);
    int64_t width = e->d.d_latent + e->d.d_rope, layer = e->g.latent_rows * width;
    int64_t own = lh_range_size(e->g.kda_heads), state = own * e->d.kda_dim * e->d.kda_dim;
    int64_t conv = own * e->d.kda_dim * 3 * (e->d.taps - 1) * e->d.n_kda_layers;
    const float *latent = s->at.latent;

    check_refused(lh_session_fill(s, 0, 1), 65);
    check_refused(lh_session_fill(s, N + 2, 1), 65);
    CHECK_EQ(lh_session_position(s), 0);
    CHECK_OK(lh_session_fill(s, N, 1));
    CHECK_OK(lh_session_fill(other, N, 2));
    CHECK_EQ(lh_session_position(s), N);
    for (int l = 0; own > 0 && l < e->d.n_kda_layers; l++) {
        const float *this = s->at.kda + l * state, *next = this + state;
        CHECK(fabs(root_mean_square(this, state) / 0.1 - 1) < 0.1);
        CHECK(memcmp(this, other->at.kda + l * state, (size_t)state * sizeof(float)) != 0);
        CHECK(l + 1 == e->d.n_kda_layers || memcmp(this, next, (size_t)state * sizeof(float)) != 0);
    }
    CHECK(own == 0 || fabs(root_mean_square(s->at.conv, conv) - 1) < 0.1);
    for (int l = 0; l < e->d.n_mla_layers; l++, latent += layer) {
        CHECK(fabs(root_mean_square(latent, N * width) - 1) < 0.1);
        CHECK(memcmp(latent, latent + width, (size_t)width * sizeof(float)) != 0);
        CHECK_SAME_BITS(latent + PERIOD * width, latent,
                        (size_t)((N - PERIOD) * width) * sizeof(float));
        CHECK(root_mean_square(latent + N * width, width) == 0);
    }
    lh_session_destroy(s);
    lh_session_destroy(other);
    lh_engine_close(e);
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    RUN(test_refusals);
    RUN(test_plan_is_what_is_used);
    RUN(test_published_plan);
    RUN(test_bad_steps);
    RUN(test_sessions_apart);
    RUN(test_draws);
    RUN(test_batches);
    RUN(test_turns);
    RUN(test_fill);
    lh_runtime_finalize();
    return check_done();
}
