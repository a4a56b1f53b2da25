/*
 * The whole model against transformers' kimi_linear in float32: logits, residual stream, router,
 * states, greedy tokens, on any number of ranks. The issue of tolerance: both sides compute in f32
 * in different orders, so errors grow with depth to about 1e-5 of the largest value; 2e-4 is what
 * the project promises.
 */
#include "parallel/comm.h"
#include "tests/model_util.h"

#include <jansson.h>

#define TOLERANCE 2e-4

typedef struct seen {
    const lh_safetensors *reference;
    const lh_engine *e;
} seen;

/* Rows of this rank, at their positions, against the reference's. */
static void check_rows(void *user, const char *what, int layer, const void *rows, int64_t n_rows,
                       const int64_t *position)
{
    const seen *s = user;
    int64_t count, k = s->e->d.top_k, width = strcmp(what, "hidden") == 0 ? s->e->d.d_model : k;
    char name[64];

    if (strcmp(what, "expert") == 0) {
        (void)snprintf(name, sizeof name, "router.%d.indices", layer);
        int32_t *want = golden_ids(s->reference, name, &count);
        for (int64_t i = 0; i < n_rows * k; i++)
            CHECK_EQ(((const int32_t *)rows)[i], want[position[i / k] * k + i % k]);
        free(want);
        return;
    }
    const float *want = strcmp(what, "hidden") == 0
                            ? golden_f32(s->reference, &count, "hidden.%d", layer)
                            : golden_f32(s->reference, &count, "router.%d.weights", layer);
    double top = 0, worst = 0;
    for (int64_t i = 0; i < count; i++)
        top = fmax(top, fabs((double)want[i]));
    for (int64_t i = 0; i < n_rows * width; i++)
        worst = fmax(worst, fabs((double)((const float *)rows)[i] -
                                 (double)want[position[i / width] * width + i % width]));
    CHECK_MSG(worst <= TOLERANCE * top, "%s of layer %d: off by %g of %g", what, layer, worst, top);
}

static void check_states(const lh_engine *e, const lh_session *s, const lh_safetensors *f,
                         int64_t n_tokens)
{
    int64_t n, dim = e->d.kda_dim, own = lh_range_size(e->g.kda_heads),
               first = e->g.kda_heads.begin;
    int64_t taps = e->d.taps - 1, width = e->d.d_latent + e->d.d_rope;
    int kda = 0, mla = 0;

    for (int l = 0; l < e->d.n_layers; l++) {
        if (e->d.attn[l] == LH_ATTN_MLA) {
            const float *rows = (const float *)s->at.latent + mla++ * e->g.latent_rows * width;
            const float *want = golden_f32(f, &n, "state.%d.latent", l);
            CHECK_EQ(n, n_tokens * width);
            CHECK_NEAR(rows, want, n, TOLERANCE);
            continue;
        }
        const float *state = s->at.kda + kda * own * dim * dim;
        const float *want_state = golden_f32(f, &n, "state.%d.kda", l) + first * dim * dim;
        CHECK_NEAR(state, want_state, own * dim * dim, TOLERANCE);
        const float *conv = (const float *)s->at.conv + kda++ * taps * 3 * own * dim;
        const float *want_conv = golden_f32(f, &n, "state.%d.conv", l);
        float *ordered = calloc((size_t)(3 * own * dim * taps) + 1, sizeof *ordered);
        float *wanted = calloc((size_t)(3 * own * dim * taps) + 1, sizeof *wanted);
        for (int64_t t = 0, i = 0; t < taps; t++)
            for (int64_t c = 0; c < 3; c++)
                for (int64_t j = 0; j < own * dim; j++, i++) {
                    ordered[i] = conv[i];
                    wanted[i] = want_conv[((c * e->d.kda_heads + first) * dim + j) * taps + t];
                }
        CHECK_NEAR(ordered, wanted, 3 * own * dim * taps, TOLERANCE);
        free(ordered);
        free(wanted);
    }
}

static void check_random_model(const char *name, int64_t segment, int64_t block)
{
    char path[128];
    lh_safetensors *f = NULL;
    int64_t n_tokens, n_greedy, n;

    (void)snprintf(path, sizeof path, "tests/golden/%s/expected.safetensors", name);
    CHECK_OK(lh_safetensors_open(&f, source_path(path)));
    (void)snprintf(path, sizeof path, "tests/golden/%s", name);
    int32_t *ids = golden_ids(f, "input_ids", &n_tokens),
            *want = golden_ids(f, "greedy", &n_greedy);
    lh_engine *e = open_engine(path, 1, 1, segment, block, n_tokens + n_greedy);
    lh_session *s = open_session(e);
    float *logits = malloc((size_t)(n_tokens * e->d.n_vocab) * sizeof *logits);
    seen user = {f, e};

    e->observer = (lh_observer){check_rows, &user};
    CHECK_OK(feed(e, s, ids, n_tokens, n_tokens, logits));
    e->observer = (lh_observer){0};
    const float *want_logits = golden_f32(f, &n, "logits");
    CHECK_EQ(n, n_tokens * e->d.n_vocab);
    CHECK_NEAR(logits, want_logits, n, TOLERANCE);
    check_states(e, s, f, n_tokens);

    int32_t got[64];
    CHECK_OK(lh_session_reset(s));
    greedy(e, s, ids, n_tokens, got, (int)n_greedy, NULL);
    for (int64_t i = 0; i < n_greedy; i++)
        CHECK_EQ(got[i], want[i]);
    free(logits);
    free(ids);
    free(want);
    lh_session_destroy(s);
    lh_engine_close(e);
    lh_safetensors_close(f);
}

static void test_alpha(void)
{
    check_random_model("alpha", 64, 64);
    check_random_model("alpha", 512, 0);
}

static void test_beta(void)
{
    check_random_model("beta", 64, 192);
    check_random_model("beta", 512, 0);
}

static void test_by_runs(void)
{
    carry_by_runs(1);
    check_random_model("alpha", 64, 64);
    check_random_model("alpha", 64, 192);
    check_random_model("beta", 64, 256);
    check_random_model("beta", 512, 0);
    carry_by_runs(0);
}

static void check_needle_prompt(lh_engine *e, const lh_safetensors *f, const json_t *prompt,
                                int number)
{
    char name[32];
    const json_t *ids = json_object_get(prompt, "ids");
    int64_t n = (int64_t)json_array_size(ids), count, vocab = e->d.n_vocab;
    int32_t *tokens = malloc((size_t)n * sizeof *tokens), got[16];
    float *logits = malloc((size_t)(8 * vocab) * sizeof *logits);
    lh_session *s = open_session(e);

    for (int64_t i = 0; i < n; i++)
        tokens[i] = (int32_t)json_integer_value(json_array_get(ids, (size_t)i));
    CHECK_OK(feed(e, s, tokens, n, 8, logits));
    const float *want = golden_f32(f, &count, "%d.logits", number);
    CHECK_NEAR(logits, want, count, TOLERANCE);
    (void)snprintf(name, sizeof name, "%d.greedy", number);
    int32_t *want_greedy = golden_ids(f, name, &count);
    CHECK_OK(lh_session_reset(s));
    greedy(e, s, tokens, n, got, 16, NULL);
    for (int i = 0; i < 16; i++)
        CHECK_EQ(got[i], want_greedy[i]);
    free(want_greedy);
    free(logits);
    free(tokens);
    lh_session_destroy(s);
}

static void test_needle(void)
{
    lh_safetensors *f = NULL;
    json_t *prompts = json_load_file(source_path("tests/golden/needle/prompts.json"), 0, NULL);

    CHECK(prompts && json_array_size(prompts) == 4);
    CHECK_OK(lh_safetensors_open(&f, source_path("tests/golden/needle/expected.safetensors")));
    lh_engine *e = open_engine("models/needle", 1, 1, 0, 2048, 4096 + 16);
    for (int i = 0; i < 4; i++)
        check_needle_prompt(e, f, json_array_get(prompts, (size_t)i), i);
    lh_engine_close(e);
    lh_safetensors_close(f);
    json_decref(prompts);
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    RUN(test_alpha);
    RUN(test_beta);
    RUN(test_by_runs);
    RUN(test_needle);
    lh_runtime_finalize();
    return check_done();
}
