#include "kernels/cuda/stream.h"

#include <ctype.h>

#include "kernels/cuda/cuda.cuh"

void *lh_cuda_stream_handle(lh_stream *s)
{
    return s->stream;
}

int lh_cuda_stream_device(const lh_stream *s)
{
    return s->device;
}

int lh_cuda_gpu_count(void)
{
    int n = 0;

    return cudaGetDeviceCount(&n) == cudaSuccess ? n : 0;
}

lh_status lh_cuda_gpu_bus(int index, char out[16])
{
    LH_CUDA_TRY(cudaDeviceGetPCIBusId(out, 16, index));
    for (char *p = out; *p; p++)
        *p = (char)tolower((unsigned char)*p);
    return LH_OK;
}
