/*
 * Data for tests of a backend: random inputs on the host and on the device, activations converted
 * to the backend's type. Everything lives until data_free.
 */
#ifndef LH_TESTS_KERNEL_DATA_H
#define LH_TESTS_KERNEL_DATA_H

#include "kernels/kernels.h"
#include "tests/check.h"

static const lh_kernels *kernels = &lh_kernels_cpu;
static lh_stream *stream;
static struct {
    void *host[512], *device[256];
    int n_host, n_device;
} data;

static inline void *data_host(int64_t n, size_t bytes)
{
    CHECK(data.n_host < 512);
    return data.host[data.n_host++] = calloc((size_t)n + 1, bytes);
}

/* A copy on the device, with a spare element so that an empty one has an address. */
static inline void *data_device(const void *host, int64_t n, size_t bytes)
{
    void *p = NULL;
    CHECK(data.n_device < 256);
    CHECK_OK(kernels->device->alloc(stream, &p, ((size_t)n + 1) * bytes, "test data"));
    CHECK_OK(kernels->device->upload(stream, p, host, (size_t)n * bytes));
    CHECK_OK(kernels->device->sync(stream));
    return data.device[data.n_device++] = p;
}

static inline void data_free(void)
{
    while (data.n_host > 0)
        free(data.host[--data.n_host]);
    while (data.n_device > 0)
        kernels->device->release(stream, data.device[--data.n_device]);
}

/*
 * Takes "--backend NAME" out of the arguments and chooses it: cpu without. Returns NULL, or why the
 * tests cannot run here.
 */
static inline const char *choose_backend(int *argc, char **argv)
{
    for (int i = 1; i + 1 < *argc; i++)
        if (strcmp(argv[i], "--backend") == 0) {
            const char *name = argv[i + 1];
            for (int j = i + 2; j <= *argc; j++)
                argv[j - 2] = argv[j];
            *argc -= 2;
            kernels = strcmp(name, "cuda") == 0  ? lh_kernels_cuda()
                      : strcmp(name, "cpu") == 0 ? &lh_kernels_cpu
                                                 : NULL;
            return kernels ? NULL : "no such backend in this build, or no GPU that it can use";
        }
    return NULL;
}

/*
 * Tolerances of a backend. `rounding`: of a result as an activation, relative to it: f32 has it
 * among the roundings that a test counts, bf16 has 8 bits. `f32`: how many times the error that
 * exact operations of f32 would have: the GPU's exponential, quotient and root are approximate (2
 * to 4 roundings), its tensor cores cut instead of rounding when they add.
 */
typedef struct tolerances {
    double rounding, f32;
} tolerances;

static inline tolerances backend_tolerances(void)
{
    return kernels->act_bytes == 2 ? (tolerances){0x1p-8, 4} : (tolerances){0, 1};
}

/* The tolerance of an activation whose sums in f32 are off by `tol`. */
static inline double act_tol(double tol)
{
    return backend_tolerances().rounding + tol * backend_tolerances().f32;
}

/* The same of a result in f32. */
static inline double f32_tol(double tol)
{
    return tol * backend_tolerances().f32;
}

/* The backend's nearest size: CUDA takes rows in pieces of 8. */
static inline int64_t act_width(int64_t n)
{
    return kernels->act_bytes == 2 ? (n + 7) / 8 * 8 : n;
}

static inline float act_round(float x)
{
    return kernels->act_bytes == 2 ? lh_bf16_to_f32(lh_f32_to_bf16(x)) : x;
}

/* About N(0, scale^2), already rounded to the backend's type. */
static inline float *act_random(int64_t n, double scale)
{
    float *x = data_host(n, sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = act_round((float)(scale * check_normal()));
    return x;
}

static inline lh_bf16 *bf16_random(int64_t n, double scale)
{
    lh_bf16 *x = data_host(n, sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = lh_f32_to_bf16((float)(scale * check_normal()));
    return x;
}

static inline void *act_device(const float *host, int64_t n)
{
    if (kernels->act_bytes == 4)
        return data_device(host, n, 4);
    lh_bf16 *half = data_host(n, sizeof *half);
    for (int64_t i = 0; i < n; i++)
        half[i] = lh_f32_to_bf16(host[i]);
    return data_device(half, n, 2);
}

static inline void act_upload(void *device, const float *host, int64_t n)
{
    const void *from = host;
    if (kernels->act_bytes == 2) {
        lh_bf16 *half = data_host(n, sizeof *half);
        for (int64_t i = 0; i < n; i++)
            half[i] = lh_f32_to_bf16(host[i]);
        from = half;
    }
    CHECK_OK(kernels->device->upload(stream, device, from, (size_t)n * kernels->act_bytes));
    CHECK_OK(kernels->device->sync(stream));
}

/* What an operation left on the device, as f32. */
static inline float *f32_host(const void *device, int64_t n)
{
    float *x = data_host(n, sizeof *x);
    CHECK_OK(kernels->device->download(stream, x, device, (size_t)n * sizeof *x));
    CHECK_OK(kernels->device->sync(stream));
    return x;
}

static inline float *act_host(const void *device, int64_t n)
{
    if (kernels->act_bytes == 4)
        return f32_host(device, n);
    lh_bf16 *half = data_host(n, sizeof *half);
    float *x = data_host(n, sizeof *x);
    CHECK_OK(kernels->device->download(stream, half, device, (size_t)n * 2));
    CHECK_OK(kernels->device->sync(stream));
    for (int64_t i = 0; i < n; i++)
        x[i] = lh_bf16_to_f32(half[i]);
    return x;
}

/* CHECK_NEAR of what an operation left on the device. */
#define CHECK_ACT(device, want, n, tol)                                                            \
    do {                                                                                           \
        const float *act_ = act_host((device), (n));                                               \
        double tol_ = (tol);                                                                       \
        CHECK_NEAR(act_, want, n, tol_);                                                           \
    } while (0)
#define CHECK_F32(device, want, n, tol)                                                            \
    do {                                                                                           \
        const float *f32_ = f32_host((device), (n));                                               \
        double tol_ = (tol);                                                                       \
        CHECK_NEAR(f32_, want, n, tol_);                                                           \
    } while (0)

/* A tolerance for CHECK_NEAR where few sums may all cancel: relative to `typical`, the usual size
 * of one, when the largest is smaller. */
static inline double tol_typical(double tol, const double *want, int64_t n, double typical)
{
    double top = 0;
    for (int64_t i = 0; i < n; i++)
        top = fmax(top, fabs(want[i]));
    return top > 0 && top < typical ? tol * typical / top : tol;
}

/* The same backend with so many threads; what is on the device stays. */
static inline void reopen_as(int n_threads, int deterministic)
{
    kernels->device->close(stream);
    stream = NULL;
    CHECK_OK(kernels->device->open(&stream, 0, n_threads, deterministic));
}

static inline void reopen(int n_threads)
{
    reopen_as(n_threads, 1);
}

#endif
