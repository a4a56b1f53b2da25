/*
 * What the CUDA backend shows of its streams and GPUs to communicators and to whoever chooses a
 * rank's GPU. Only in builds with CUDA.
 */
#ifndef LH_KERNELS_CUDA_STREAM_H
#define LH_KERNELS_CUDA_STREAM_H

#include "kernels/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The cudaStream_t of a stream of lh_device_cuda, and the number of its GPU. */
void *lh_cuda_stream_handle(lh_stream *s);
int lh_cuda_stream_device(const lh_stream *s);

/* GPUs that this process sees (CUDA_VISIBLE_DEVICES counts); 0 if there is none or no driver. */
int lh_cuda_gpu_count(void);

/* Where GPU `index` is plugged in: "0000:17:00.0", as in lh_topo_device. */
lh_status lh_cuda_gpu_bus(int index, char out[16]);

#ifdef __cplusplus
}
#endif
#endif
