/*
 * The CUDA backend's stream: one GPU's queue with its cuBLAS handle and its ring of staged arrays.
 */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/stream.h"

#define HALF (LH_CUDA_STAGE_BYTES / 2)
#define STAGE_MOST (LH_CUDA_STAGE_BYTES / 8)

/* Uploads of at most this go through the pinned ring: the caller does not wait for them. */
#define SMALL_UPLOAD ((size_t)256 << 10)

lh_status lh_cuda_status(cudaError_t e, const char *call)
{
    if (e == cudaSuccess)
        return LH_OK;
    (void)cudaGetLastError(); /* said here, not again after the next launch */
    return LH_FAIL(LH_ERR_CUDA, "%s: %s (%s)", call, cudaGetErrorString(e), cudaGetErrorName(e));
}

lh_status lh_cuda_blas_status(cublasStatus_t e, const char *call)
{
    if (e == CUBLAS_STATUS_SUCCESS)
        return LH_OK;
    return LH_FAIL(LH_ERR_CUDA, "%s: %s", call, cublasGetStatusString(e));
}

lh_status lh_cuda_launched(lh_stream *s, const char *op)
{
    cudaError_t e = cudaGetLastError();

    LH_REQUIRE(e == cudaSuccess, LH_ERR_CUDA, "%s on GPU %d: %s (%s)", op, s->device,
               cudaGetErrorString(e), cudaGetErrorName(e));
    return LH_OK;
}

lh_status lh_cuda_shared(const void *kernel, size_t bytes)
{
    return lh_cuda_status(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
        "shared memory of a kernel");
}

lh_status lh_cuda_multiple(const char *op, const char *field, int64_t value, int64_t of)
{
    LH_REQUIRE(value % of == 0, LH_ERR_UNSUPPORTED,
               "%s: %s is %lld, the CUDA backend needs a multiple of %lld", op, field,
               (long long)value, (long long)of);
    return LH_OK;
}

lh_status lh_cuda_most(const char *op, const char *field, int64_t value, int64_t most)
{
    LH_REQUIRE(value <= most, LH_ERR_UNSUPPORTED,
               "%s: %s is %lld, the CUDA backend has at most %lld", op, field, (long long)value,
               (long long)most);
    return LH_OK;
}

lh_status lh_cuda_aligned(const char *op, const char *field, const void *p)
{
    LH_REQUIRE((uintptr_t)p % 16 == 0, LH_ERR_INVALID, "%s: %s is %p, expected a multiple of 16",
               op, field, p);
    return LH_OK;
}

/*
 * `bytes` of the ring, at *at of both (host and device). A half is entered when its
 * last use has run: the GPU may still read the pinned memory. On the device the order of the stream
 * is enough.
 */
static lh_status stage_take(lh_stream *s, size_t *at, size_t bytes)
{
    size_t start = (s->stage_used + 255) / 256 * 256;
    int upper = s->stage_used > HALF; /* the half in use */

    if (start + bytes > (upper ? LH_CUDA_STAGE_BYTES : HALF)) {
        LH_CUDA_TRY(cudaEventRecord(s->stage_free[upper], s->stream));
        LH_CUDA_TRY(cudaEventSynchronize(s->stage_free[!upper]));
        start = upper ? 0 : HALF;
    }
    *at = start;
    s->stage_used = start + bytes;
    return LH_OK;
}

lh_status lh_cuda_stage(lh_stream *s, const void **out, const void *host, size_t bytes)
{
    size_t at = 0;

    LH_REQUIRE(!s->recording, LH_ERR_INTERNAL,
               "a host array in a recorded step: its place is used again");
    LH_REQUIRE(bytes <= STAGE_MOST, LH_ERR_UNSUPPORTED,
               "%zu bytes of host arrays in one call, the CUDA backend has at most %zu", bytes,
               STAGE_MOST);
    LH_TRY(stage_take(s, &at, bytes));
    *out = s->stage_device + at;
    if (bytes == 0)
        return LH_OK;
    memcpy(s->stage_host + at, host, bytes);
    return lh_cuda_status(cudaMemcpyAsync(s->stage_device + at, s->stage_host + at, bytes,
                                          cudaMemcpyHostToDevice, s->stream),
                          "copy of a host array");
}

/* 0 with no driver or no device. */
static int device_count(const char **why)
{
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);

    *why = e == cudaSuccess ? "no GPU" : cudaGetErrorString(e);
    (void)cudaGetLastError();
    return e == cudaSuccess ? n : 0;
}

static int arch_of(int index)
{
    int major = 0, minor = 0;

    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index) != cudaSuccess)
        (void)cudaGetLastError();
    return major * 10 + minor;
}

int lh_cuda_usable(void)
{
    const char *why;

    for (int i = device_count(&why) - 1; i >= 0; i--)
        if (arch_of(i) >= LH_CUDA_LEAST_ARCH)
            return 1;
    return 0;
}

static void cuda_close(lh_stream *s)
{
    if (!s)
        return;
    if (s->stream)
        (void)cudaStreamSynchronize(s->stream);
    if (s->blas)
        (void)cublasDestroy(s->blas);
    for (int i = 0; i < 2; i++)
        if (s->stage_free[i])
            (void)cudaEventDestroy(s->stage_free[i]);
    for (int i = 0; i < 2; i++) {
        if (s->load_free[i])
            (void)cudaEventDestroy(s->load_free[i]);
        (void)cudaFreeHost(s->load_host[i]);
    }
    for (int i = 0; i < LH_MARKS; i++)
        if (s->marks[i])
            (void)cudaEventDestroy(s->marks[i]);
    (void)cudaFree(s->blas_work);
    (void)cudaFree(s->stage_device);
    (void)cudaFreeHost(s->stage_host);
    if (s->stream)
        (void)cudaStreamDestroy(s->stream);
    (void)cudaGetLastError();
    free(s);
}

static lh_status cuda_alloc(lh_stream *s, void **out, size_t bytes, const char *what)
{
    size_t n_free = 0, total = 0;
    void *p = NULL;

    *out = NULL;
    cudaError_t e = cudaMalloc(&p, bytes > 0 ? bytes : 1);
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        (void)cudaMemGetInfo(&n_free, &total);
        return LH_FAIL(LH_ERR_NOMEM, "%s: %zu bytes asked, %zu of %zu bytes free on GPU %d", what,
                       bytes, n_free, total, s->device);
    }
    LH_TRY(lh_cuda_status(e, what));
    e = cudaMemsetAsync(p, 0, bytes, s->stream);
    if (e != cudaSuccess)
        (void)cudaFree(p);
    LH_TRY(lh_cuda_status(e, what));
    *out = p;
    return LH_OK;
}

static void cuda_release(lh_stream *s, void *p)
{
    (void)s;
    if (p && cudaFree(p) != cudaSuccess) /* waits for the work that may use it */
        (void)cudaGetLastError();
}

static lh_status cuda_alloc_host(lh_stream *s, void **out, size_t bytes, const char *what)
{
    void *p = NULL;

    (void)s;
    *out = NULL;
    cudaError_t e = cudaMallocHost(&p, bytes > 0 ? bytes : 1);
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return LH_FAIL(LH_ERR_NOMEM, "%s: %zu bytes of pinned host memory asked", what, bytes);
    }
    LH_TRY(lh_cuda_status(e, what));
    memset(p, 0, bytes);
    *out = p;
    return LH_OK;
}

static void cuda_release_host(lh_stream *s, void *p)
{
    (void)s;
    if (p && cudaFreeHost(p) != cudaSuccess)
        (void)cudaGetLastError();
}

static lh_status cuda_available(lh_stream *s, size_t *bytes)
{
    size_t total = 0;

    (void)s;
    LH_CUDA_TRY(cudaMemGetInfo(bytes, &total));
    return LH_OK;
}

static lh_status open_blas(lh_stream *s)
{
    LH_BLAS_TRY(cublasCreate(&s->blas));
    LH_BLAS_TRY(cublasSetStream(s->blas, s->stream)); /* before the workspace, which it resets */
    LH_BLAS_TRY(cublasSetWorkspace(s->blas, s->blas_work, LH_CUDA_BLAS_BYTES));
    LH_BLAS_TRY(cublasSetMathMode(
        s->blas,
        (cublasMath_t)(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
    return LH_OK;
}

static lh_status open_stage(lh_stream *s)
{
    void *p = NULL;

    LH_TRY(cuda_alloc(s, &s->blas_work, LH_CUDA_BLAS_BYTES, "workspace of cuBLAS"));
    LH_TRY(cuda_alloc(s, &p, LH_CUDA_STAGE_BYTES, "ring of host arrays"));
    s->stage_device = (char *)p;
    LH_CUDA_TRY(cudaMallocHost(&p, LH_CUDA_STAGE_BYTES));
    s->stage_host = (char *)p;
    for (int i = 0; i < 2; i++)
        LH_CUDA_TRY(cudaEventCreateWithFlags(&s->stage_free[i], cudaEventDisableTiming));
    return LH_OK;
}

/* Compiled as all kernels are. */
static __global__ void probe_kernel(void)
{
}

static lh_status cuda_open(lh_stream **out, int index, int n_threads, int deterministic)
{
    lh_status st = LH_OK;
    lh_stream *s = NULL;
    const char *why = NULL;
    cudaFuncAttributes code;
    int n = device_count(&why);

    LH_REQUIRE(n_threads >= 1 && n_threads <= 4096, LH_ERR_INVALID,
               "%d threads: expected 1 to 4096", n_threads);
    LH_REQUIRE(n > 0, LH_ERR_UNAVAILABLE, "GPU %d: %s", index, why);
    LH_REQUIRE(index >= 0 && index < n, LH_ERR_UNAVAILABLE, "GPU %d: there are 0 to %d", index,
               n - 1);
    LH_REQUIRE(arch_of(index) >= LH_CUDA_LEAST_ARCH, LH_ERR_UNAVAILABLE,
               "GPU %d has compute capability %d.%d, expected at least %d.%d", index,
               arch_of(index) / 10, arch_of(index) % 10, LH_CUDA_LEAST_ARCH / 10,
               LH_CUDA_LEAST_ARCH % 10);
    s = (lh_stream *)calloc(1, sizeof *s);
    LH_REQUIRE(s, LH_ERR_NOMEM, "cuda stream");
    s->ops = &lh_device_cuda;
    s->device = index;
    s->deterministic = deterministic;
    LH_CUDA_TRY_OUT(cudaSetDevice(index));
    LH_CUDA_TRY_OUT(cudaFuncGetAttributes(&code, probe_kernel));
    s->arch = code.ptxVersion;
    LH_CUDA_TRY_OUT(cudaDeviceGetAttribute(&s->n_sms, cudaDevAttrMultiProcessorCount, index));
    LH_CUDA_TRY_OUT(cudaDeviceGetAttribute(&s->most_shared_bytes,
                                           cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
    LH_CUDA_TRY_OUT(cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking));
    LH_TRY_OUT(open_stage(s));
    LH_TRY_OUT(open_blas(s));
    LH_CUDA_TRY_OUT(cudaStreamSynchronize(s->stream));
    *out = s;
    s = NULL;
out:
    cuda_close(s);
    return st;
}

static lh_status copy(lh_stream *s, void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                      const char *what)
{
    if (bytes == 0)
        return LH_OK;
    return lh_cuda_status(cudaMemcpyAsync(to, from, bytes, kind, s->stream), what);
}

static lh_status cuda_upload(lh_stream *s, void *device, const void *host, size_t bytes)
{
    size_t at = 0;

    if (bytes == 0 || bytes > SMALL_UPLOAD)
        return copy(s, device, host, bytes, cudaMemcpyHostToDevice, "upload");
    LH_TRY(stage_take(s, &at, bytes));
    memcpy(s->stage_host + at, host, bytes);
    return copy(s, device, s->stage_host + at, bytes, cudaMemcpyHostToDevice, "upload");
}

static lh_status cuda_download(lh_stream *s, void *host, const void *device, size_t bytes)
{
    return copy(s, host, device, bytes, cudaMemcpyDeviceToHost, "download");
}

static lh_status cuda_copy(lh_stream *s, void *to, const void *from, size_t bytes)
{
    return copy(s, to, from, bytes, cudaMemcpyDeviceToDevice, "copy");
}

static lh_status cuda_copy_rows(lh_stream *s, void *to, size_t to_step, const void *from,
                                size_t from_step, size_t bytes, int64_t n_rows)
{
    if (bytes == 0 || n_rows == 0)
        return LH_OK;
    return lh_cuda_status(cudaMemcpy2DAsync(to, to_step, from, from_step, bytes, (size_t)n_rows,
                                            cudaMemcpyDeviceToDevice, s->stream),
                          "copy of rows");
}

static lh_status cuda_zero(lh_stream *s, void *p, size_t bytes)
{
    if (bytes == 0)
        return LH_OK;
    return lh_cuda_status(cudaMemsetAsync(p, 0, bytes, s->stream), "zero");
}

static lh_status cuda_sync(lh_stream *s)
{
    return lh_cuda_status(cudaStreamSynchronize(s->stream), "work on the GPU");
}

/* The two pinned buffers of load, made at its first use: only an engine that loads needs them. */
static lh_status open_load(lh_stream *s)
{
    for (int i = 0; i < 2; i++) {
        void *p = NULL;
        if (s->load_host[i])
            continue;
        LH_CUDA_TRY(cudaMallocHost(&p, LH_CUDA_LOAD_BYTES));
        s->load_host[i] = (char *)p;
        LH_CUDA_TRY(cudaEventCreateWithFlags(&s->load_free[i], cudaEventDisableTiming));
    }
    return LH_OK;
}

static lh_status cuda_load(lh_stream *s, void *device, const void *host, size_t bytes)
{
    LH_TRY(open_load(s));
    for (size_t at = 0, i = 0; at < bytes; at += LH_CUDA_LOAD_BYTES, i ^= 1) {
        size_t n = bytes - at < LH_CUDA_LOAD_BYTES ? bytes - at : LH_CUDA_LOAD_BYTES;
        LH_CUDA_TRY(cudaEventSynchronize(s->load_free[i])); /* its last copy has left the buffer */
        memcpy(s->load_host[i], (const char *)host + at, n);
        LH_TRY(copy(s, (char *)device + at, s->load_host[i], n, cudaMemcpyHostToDevice, "load"));
        LH_CUDA_TRY(cudaEventRecord(s->load_free[i], s->stream));
    }
    return LH_OK;
}

static lh_status cuda_mark(lh_stream *s, int i)
{
    if (!s->marks[i])
        LH_CUDA_TRY(cudaEventCreate(&s->marks[i]));
    return lh_cuda_status(cudaEventRecord(s->marks[i], s->stream), "mark");
}

static lh_status cuda_passed(lh_stream *s, int i, int *yes)
{
    cudaError_t e = cudaEventQuery(s->marks[i]);

    *yes = e == cudaSuccess;
    return e == cudaErrorNotReady ? LH_OK : lh_cuda_status(e, "the GPU's work up to a mark");
}

static lh_status cuda_between(lh_stream *s, int i, int j, double *seconds)
{
    float ms = 0;

    LH_CUDA_TRY(cudaEventSynchronize(s->marks[j]));
    LH_CUDA_TRY(cudaEventElapsedTime(&ms, s->marks[i], s->marks[j]));
    *seconds = 1e-3 * (double)ms;
    return LH_OK;
}

static lh_status cuda_record_begin(lh_stream *s)
{
    LH_CUDA_TRY(cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeThreadLocal));
    s->recording = 1;
    return LH_OK;
}

static lh_status cuda_record_end(lh_stream *s, void **recording)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;

    s->recording = 0;
    LH_CUDA_TRY(cudaStreamEndCapture(s->stream, &graph));
    cudaError_t e = cudaGraphInstantiate(&exec, graph, 0);
    (void)cudaGraphDestroy(graph);
    LH_TRY(lh_cuda_status(e, "recording of a step"));
    *recording = exec;
    return LH_OK;
}

static lh_status cuda_replay(lh_stream *s, void *recording)
{
    return lh_cuda_status(cudaGraphLaunch((cudaGraphExec_t)recording, s->stream),
                          "a recorded step");
}

static void cuda_forget(lh_stream *s, void *recording)
{
    (void)cudaStreamSynchronize(s->stream);
    if (recording)
        (void)cudaGraphExecDestroy((cudaGraphExec_t)recording);
}

const lh_device_ops lh_device_cuda = {
    .name = "cuda",
    .count = lh_cuda_gpu_count,
    .bus = lh_cuda_gpu_bus,
    .open = cuda_open,
    .close = cuda_close,
    .alloc = cuda_alloc,
    .release = cuda_release,
    .alloc_host = cuda_alloc_host,
    .release_host = cuda_release_host,
    .available = cuda_available,
    .upload = cuda_upload,
    .download = cuda_download,
    .copy = cuda_copy,
    .copy_rows = cuda_copy_rows,
    .zero = cuda_zero,
    .load = cuda_load,
    .sync = cuda_sync,
    .mark = cuda_mark,
    .passed = cuda_passed,
    .between = cuda_between,
    .record_begin = cuda_record_begin,
    .record_end = cuda_record_end,
    .replay = cuda_replay,
    .forget = cuda_forget,
};
