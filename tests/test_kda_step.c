/* The step of KDA against the recurrence in float64, alone and beside other sequences. */
#include "tests/kda_problem.h"

/* Token t, or tokens t .. t + n_seq - 1 as sequences; their states are `one` apart on the device.
 */
static void run_step(lh_stream *s, const problem *p, int64_t t, int64_t n_seq, float *states,
                     float *o)
{
    int64_t row = t * p->n_heads, n_k = n_seq * p->n_heads * p->d_k;
    int64_t n_v = n_seq * p->n_heads * p->d_v;
    int before_host = data.n_host, before_device = data.n_device;
    float **at = data_host(n_seq, sizeof *at);

    stream = s;
    for (int64_t i = 0; i < n_seq; i++)
        at[i] = states + i * size_state(p);
    void *out = poisoned(n_v, kernels->act_bytes);
    CHECK_OK(kernels->kda_step(
        s, &(lh_kda_step_args){.o = out,
                               .state = data_device(at, n_seq, sizeof *at),
                               .q = act_device(p->q + row * p->d_k, n_k),
                               .k = act_device(p->k + row * p->d_k, n_k),
                               .v = act_device(p->v + row * p->d_v, n_v),
                               .g = data_device(p->g + row * p->d_k, n_k, 4),
                               .beta = data_device(p->beta + row, n_seq * p->n_heads, 4),
                               .n_seq = n_seq,
                               .n_heads = p->n_heads,
                               .d_k = p->d_k,
                               .d_v = p->d_v}));
    memcpy(o, act_host(out, n_v), (size_t)n_v * sizeof *o);
    while (data.n_host > before_host)
        free(data.host[--data.n_host]);
    while (data.n_device > before_device)
        kernels->device->release(s, data.device[--data.n_device]);
}

static void test_steps(void)
{
    static const int d[] = {1, 8, 33, 64, 128, 200};
    for (int i = 0; i < cases(6); i++) {
        problem p = make(100, 2, d[i], d[5 - i]);
        float *o = floats(size_v(&p)), *state = data_device(p.state, size_state(&p), 4);
        solve(&p);
        for (int64_t t = 0; t < p.n; t++)
            run_step(streams[0], &p, t, 1, state, o + t * p.n_heads * p.d_v);
        note_errors(&p, o, f32_host(state, size_state(&p)));
        CHECK_NEAR(o, p.ref_o, size_v(&p), tol_o());
        CHECK_F32(state, p.ref_state, size_state(&p), 1e-5);
        free(o);
        data_free();
        drop(&p);
    }
}

/* Tokens as sequences: in one call by 1, 2, 3 threads, and each alone. */
static void test_step_batch(void)
{
    int64_t n = on_gpu() ? 300 : 5; /* enough that a block has a whole head */
    problem p = make(n, 3, 128, 128);
    int64_t one = size_state(&p), row = (int64_t)p.n_heads * p.d_v;
    float *o = floats(n * row), *alone = floats(row), *states = floats(n * one);

    for (int64_t i = 0; i < n; i++)
        memcpy(states + i * one, p.state, (size_t)one * sizeof *states);
    for (int i = 0; i < 3; i++) {
        stream = streams[i];
        float *together = data_device(states, n * one, 4);
        run_step(streams[i], &p, 0, n, together, o);
        const float *after = f32_host(together, n * one);
        for (int64_t j = 0; j < n; j += on_gpu() ? 37 : 1) {
            stream = streams[0];
            float *own = data_device(p.state, one, 4);
            run_step(streams[0], &p, j, 1, own, alone);
            CHECK_SAME_BITS(o + j * row, alone, (size_t)row * sizeof *o);
            CHECK_SAME_BITS(after + j * one, f32_host(own, one), (size_t)one * sizeof *own);
        }
        data_free();
    }
    free(o), free(alone), free(states);
    drop(&p);
}

int main(int argc, char **argv)
{
    const char *missing = choose_backend(&argc, argv);

    if (missing)
        SKIP(missing);
    check_init(argc, argv);
    open_streams();
    RUN_NEAR(test_steps);
    RUN(test_step_batch);
    close_streams();
    return check_done();
}
