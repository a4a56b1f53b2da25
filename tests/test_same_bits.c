/*
 * Logits, states and tokens have the same bits on any number of ranks, threads and any block. Every
 * rank computes the reference alone, on one rank with one thread in one block, and compares what
 * the whole job computes with it.
 */
#include "base/mem.h"
#include "tests/model_util.h"

static int rank_of_job, size_of_job = 1;

static int32_t *random_tokens(int64_t n, int64_t vocab)
{
    int32_t *t = malloc((size_t)n * sizeof *t);
    for (int64_t i = 0; t && i < n; i++)
        t[i] = (int32_t)(check_random() % (uint64_t)vocab);
    return t;
}

/* This job's part of the states against the same heads of the whole. */
static void compare_states(const lh_engine *e, const lh_session *s, const lh_session *whole)
{
    const lh_dims *d = &e->d;
    const lh_engine *one = whole->engine;
    size_t own = (size_t)lh_range_size(e->g.kda_heads), dim = (size_t)d->kda_dim;
    size_t first = (size_t)e->g.kda_heads.begin, heads = (size_t)d->kda_heads;

    for (size_t l = 0; l < (size_t)d->n_kda_layers; l++) {
        CHECK_SAME_BITS(s->at.kda + l * own * dim * dim,
                        whole->at.kda + (l * heads + first) * dim * dim,
                        own * dim * dim * sizeof(float));
        for (size_t row = 0; row < 3 * (size_t)(d->taps - 1); row++) {
            size_t at = l * 3 * (size_t)(d->taps - 1) + row;
            CHECK_SAME_BITS((const float *)s->at.conv + at * own * dim,
                            (const float *)whole->at.conv + (at * heads + first) * dim,
                            own * dim * sizeof(float));
        }
    }
    for (int l = 0; l < d->n_mla_layers; l++) {
        int64_t width = d->d_latent + d->d_rope;
        CHECK_SAME_BITS((const float *)s->at.latent + l * e->g.latent_rows * width,
                        (const float *)whole->at.latent + l * one->g.latent_rows * width,
                        (size_t)(s->position * width) * sizeof(float));
    }
}

/* Two turns and greedy tokens after each, by the job with these settings and by this rank alone. */
static void compare(const char *model, int64_t n_tokens, int64_t segment, int64_t block,
                    int n_threads)
{
    enum { DRAWN = 6, MORE = 70 };
    int64_t context = n_tokens + MORE + 2 * DRAWN;
    lh_engine *one = open_engine(model, 0, 1, segment, 0, context);
    lh_engine *e = open_engine(model, 1, n_threads, segment, block, context);
    lh_session *want = open_session(one), *got = open_session(e);
    int64_t vocab = e->d.n_vocab, turns[2] = {n_tokens, MORE};
    float *a = malloc((size_t)vocab * sizeof *a), *b = malloc((size_t)vocab * sizeof *b);

    rank_of_job = lh_engine_rank(e);
    size_of_job = lh_engine_size(e);
    for (int turn = 0; turn < 2; turn++) {
        int32_t *tokens = random_tokens(turns[turn], vocab), drawn_a[DRAWN], drawn_b[DRAWN];
        greedy(one, want, tokens, turns[turn], drawn_a, DRAWN, a);
        greedy(e, got, tokens, turns[turn], drawn_b, DRAWN, b);
        CHECK_SAME_BITS(b, a, (size_t)vocab * sizeof *a);
        CHECK_SAME_BITS(drawn_b, drawn_a, sizeof drawn_a);
        compare_states(e, got, want);
        free(tokens);
    }
    free(a);
    free(b);
    lh_session_destroy(want);
    lh_session_destroy(got);
    lh_engine_close(one);
    lh_engine_close(e);
}

static void test_alpha(void)
{
    compare("tests/golden/alpha", 700, 64, 128, 1);
    compare("tests/golden/alpha", 65, 64, 64, 2);
    compare("tests/golden/alpha", 2, 64, 64, 1);
}

static void test_beta_random_blocks(void)
{
    for (int i = 0; i < 4; i++) {
        int64_t n = 2 + (int64_t)(check_random() % 900),
                block = 1 + (int64_t)(check_random() % 1000);
        compare("tests/golden/beta", n, 64 * (1 + (int64_t)(check_random() % 4)), block, 1 + i % 2);
    }
}

static void test_needle(void)
{
    compare("models/needle", 1300, 0, 512, 2);
}

/* A filled session is the same model on any ranks and with any block, and so are the tokens after
 * it. */
static void compare_filled(const char *model, int64_t n_tokens)
{
    enum { MORE = 4 };
    lh_engine *one = open_engine(model, 0, 1, 0, 0, n_tokens + MORE);
    lh_engine *e = open_engine(model, 1, 2, 64, 128, n_tokens + MORE);
    lh_session *want = open_session(one), *got = open_session(e);
    size_t bytes = (size_t)e->d.n_vocab * sizeof(float);
    float *a = malloc(bytes), *b = malloc(bytes);
    int32_t *tokens = random_tokens(MORE, e->d.n_vocab);

    rank_of_job = lh_engine_rank(e);
    size_of_job = lh_engine_size(e);
    CHECK_OK(lh_session_fill(want, n_tokens, 7));
    CHECK_OK(lh_session_fill(got, n_tokens, 7));
    CHECK_EQ(lh_session_position(got), n_tokens);
    compare_states(e, got, want);
    for (int i = 0; i < MORE; i++) {
        CHECK_OK(feed(one, want, tokens + i, 1, 1, a));
        CHECK_OK(feed(e, got, tokens + i, 1, 1, b));
        CHECK_SAME_BITS(b, a, bytes);
    }
    compare_states(e, got, want);
    free(tokens);
    free(a);
    free(b);
    lh_session_destroy(want);
    lh_session_destroy(got);
    lh_engine_close(one);
    lh_engine_close(e);
}

static void test_filled(void)
{
    compare_filled("tests/golden/alpha", 9000); /* more than two blocks of latents */
    compare_filled("tests/golden/beta", 300);
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    RUN(test_alpha);
    RUN(test_beta_random_blocks);
    RUN(test_needle);
    RUN(test_filled);
    printf("rank %d of %d\n", rank_of_job, size_of_job);
    lh_runtime_finalize();
    return check_done();
}
