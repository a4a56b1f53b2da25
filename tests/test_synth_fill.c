/*
 * Synthetic weights as a backend makes them, bit by bit against single elements: every kind of
 * tensor of the published model, any range, and all of a small model's weights.
 */
#include "runtime/synth.h"
#include "tests/kernel_data.h"

#define SPARE 64 /* bytes behind a range, which must stay */

/* Rounded by the rule for all of Longhaul, not by the one that is tested. */
static void make_plainly(void *out, const lh_synth_law *law, lh_synth_form form, int64_t first,
                         int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float x = lh_synth_f32(law, (uint64_t)(first + i));
        if (form == LH_SYNTH_AS_BF16)
            ((lh_bf16 *)out)[i] = lh_f32_to_bf16(x);
        else
            ((float *)out)[i] = form == LH_SYNTH_AS_F32 ? x : lh_bf16_to_f32(lh_f32_to_bf16(x));
    }
}

static void check_range(const char *name, const lh_synth_law *law, lh_synth_form form,
                        int64_t first, int64_t n)
{
    size_t bytes = (size_t)n * lh_synth_form_bytes(form) + SPARE;
    char *want = data_host((int64_t)bytes, 1), *got = data_host((int64_t)bytes, 1);

    memset(want, 0xa5, bytes);
    void *out = data_device(want, (int64_t)bytes, 1);
    make_plainly(want, law, form, first, n);
    CHECK_OK(kernels->synth_fill(
        stream,
        &(lh_synth_fill_args){.out = out, .law = *law, .form = form, .first = first, .n = n}));
    CHECK_OK(kernels->device->download(stream, got, out, bytes));
    CHECK_OK(kernels->device->sync(stream));
    CHECK_MSG(memcmp(got, want, bytes) == 0, "%s, form %d: %lld elements from %lld differ", name,
              (int)form, (long long)n, (long long)first);
    data_free();
}

static lh_synth_form form_of(const lh_expected *t)
{
    return !t->allow_f32 ? LH_SYNTH_AS_BF16 : t->allow_bf16 ? LH_SYNTH_AS_WIDENED : LH_SYNTH_AS_F32;
}

static int64_t size_of(const lh_expected *t)
{
    int64_t n = 1;

    for (int i = 0; i < t->n_dims; i++)
        n *= t->dims[i];
    return n;
}

/* Start, middle and end of the tensors of the first layers, which are of every kind. */
static void test_kinds(void)
{
    const lh_synth_opts opts[] = {{.seed = 0}, {.seed = UINT64_MAX, .router_skew = 4}};
    lh_dims d;

    CHECK_OK(lh_config_read(&d, LH_SOURCE_DIR "/tests/golden/kimi-linear-48b", NULL));
    for (int64_t i = 0; i < lh_expected_count(&d); i++) {
        lh_expected t;
        lh_expected_tensor(&t, &d, i);
        if (t.layer > 4 || (t.expert > 0 && t.expert < d.n_experts - 1))
            continue;
        int64_t n = size_of(&t), middle = n / 2 | 1;
        for (int o = 0; o < 2; o++) {
            lh_synth_law law;
            lh_synth_law_make(&law, &d, &t, &opts[o]);
            check_range(t.name, &law, form_of(&t), 0, n < 1000 ? n : 1000);
            check_range(t.name, &law, form_of(&t), middle, n - middle < 4099 ? n - middle : 4099);
            check_range(t.name, &law, form_of(&t), n < 77 ? 0 : n - 77, n < 77 ? n : 77);
        }
    }
}

static void test_ranges(void)
{
    const lh_synth_law laws[] = {{lh_synth_key(1, "bell"), 0, 605396, 1.65e-6f},
                                 {lh_synth_key(1, "flat"), 1, -1555895, 4.43944e-6f}};
    const lh_synth_form forms[] = {LH_SYNTH_AS_BF16, LH_SYNTH_AS_F32, LH_SYNTH_AS_WIDENED};
    const int64_t far = (INT64_C(1) << 40) - 3;

    for (int l = 0; l < 2; l++)
        for (int f = 0; f < 3; f++) {
            for (int64_t n = 0; n <= 33; n++)
                check_range("short", &laws[l], forms[f], (int64_t)(check_random() >> 24), n);
            check_range("far", &laws[l], forms[f], far, 5000);
            check_range("long", &laws[l], forms[f], (INT64_C(1) << 33) + 5, 1000003);
        }
}

/* Where the pointer to tensor t lies in `w`. */
static const void *pointer_of(const lh_weights *w, const lh_expected *t)
{
    const char *slot =
        (t->layer < 0 ? (const char *)w : (const char *)&w->layers[t->layer]) + t->slot;
    const void *p;

    memcpy(&p, slot, sizeof p);
    if (t->expert >= 0)
        memcpy(&p, (const char *)p + (size_t)t->expert * sizeof p, sizeof p);
    return p;
}

/* A model's weights as the engine binds them, with some of the experts. The CPU's are made by its
 * operation too: as if it could not read the host's memory. */
static void test_bind(void)
{
    enum { FIRST = 1, END = 3 };
    const lh_synth_opts o = {.seed = 9, .router_skew = 1, .n_threads = 2};
    lh_device_ops device = *kernels->device;
    lh_kernels k = *kernels;
    const lh_weights *w = NULL;
    size_t dense = 0, experts = 0, bytes = 0;
    lh_synth *y = NULL;
    lh_dims d;

    device.reads_host = 0;
    k.device = &device;
    CHECK_OK(lh_config_read(&d, LH_SOURCE_DIR "/tests/golden/alpha", NULL));
    CHECK_OK(lh_synth_bind(&y, &d, &o, &k, stream, FIRST, END, &w, &dense, &experts));
    for (int64_t i = 0; y && i < lh_expected_count(&d); i++) {
        lh_expected t;
        lh_synth_law law;
        lh_expected_tensor(&t, &d, i);
        const void *p = pointer_of(w, &t);
        int own = t.expert < 0 || (t.expert >= FIRST && t.expert < END);
        CHECK_EQ(p != NULL, own);
        if (!own || !p)
            continue;
        int64_t n = size_of(&t);
        size_t size = lh_synth_form_bytes(form_of(&t));
        void *want = data_host(n, size), *got = data_host(n, size);
        lh_synth_law_make(&law, &d, &t, &o);
        make_plainly(want, &law, form_of(&t), 0, n);
        CHECK_OK(kernels->device->download(stream, got, p, (size_t)n * size));
        CHECK_OK(kernels->device->sync(stream));
        CHECK_MSG(memcmp(got, want, (size_t)n * size) == 0, "%s differs", t.name);
        bytes += (size_t)n * (t.allow_bf16 ? 2 : 4);
        data_free();
    }
    CHECK_EQ(dense + experts, bytes);
    lh_synth_close(y);
}

int main(int argc, char **argv)
{
    const char *why = choose_backend(&argc, argv);

    check_init(argc, argv);
    if (why)
        SKIP(why);
    CHECK_OK(kernels->device->open(&stream, 0, 3, 1));
    if (!stream)
        return check_done();
    RUN(test_kinds);
    RUN(test_ranges);
    RUN(test_bind);
    kernels->device->close(stream);
    return check_done();
}
