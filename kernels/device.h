/*
 * Memory and queues of a backend: the only place from which a device's memory comes.
 *
 * A stream is a queue of work on one device with its threads or its GPU. Operations and copies
 * queued on it run in order. On the CPU backend they have run when the call returns; on a GPU they
 * may still be running until sync. A stream belongs to one thread.
 */
#ifndef LH_KERNELS_DEVICE_H
#define LH_KERNELS_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lh_stream lh_stream;

#define LH_MARKS 1025 /* of a stream */

typedef struct lh_device_ops {
    const char *name; /* "cpu", "cuda" */
    int reads_host;   /* 1: operations read host memory, maps of files too, like their own */

    /* Devices that this process sees, and where one is plugged in ("0000:17:00.0"; "" for the CPU).
     */
    int (*count)(void);
    lh_status (*bus)(int index, char out[16]);

    /* Opens device `index` (a GPU's number; 0 on the CPU) with `n_threads` >= 1 threads of the host
     * for its work. `deterministic` 1: a row's bits depend on its tile alone, as kernels.h says; 0:
     * they may depend on the rest of the call where that is faster. The CPU is always
     * deterministic. LH_ERR_UNAVAILABLE: no such device. */
    lh_status (*open)(lh_stream **out, int index, int n_threads, int deterministic);
    void (*close)(lh_stream *s); /* accepts NULL */

    /* `bytes` of zeroed device memory, aligned to 256 bytes; LH_ERR_NOMEM names `what`. release
     * accepts NULL. */
    lh_status (*alloc)(lh_stream *s, void **out, size_t bytes, const char *what);
    void (*release)(lh_stream *s, void *p);

    /* Zeroed host memory of which copies to and from the device run beside the host; like alloc
     * and release. */
    lh_status (*alloc_host)(lh_stream *s, void **out, size_t bytes, const char *what);
    void (*release_host)(lh_stream *s, void *p);

    /* Memory of the device that is free now, as its driver says. NULL where the device has none of
     * its own. */
    lh_status (*available)(lh_stream *s, size_t *bytes);

    /* Copies, queued in order; host memory must stay as it is until sync. Zero bytes are fine.
     * Those of host memory that is not of alloc_host may wait for what is queued before. */
    lh_status (*upload)(lh_stream *s, void *device, const void *host, size_t bytes);
    lh_status (*download)(lh_stream *s, void *host, const void *device, size_t bytes);
    lh_status (*copy)(lh_stream *s, void *to, const void *from,
                      size_t bytes); /* device to device, no overlap */
    /* n_rows times `bytes`, from addresses from_step apart to addresses to_step apart. */
    lh_status (*copy_rows)(lh_stream *s, void *to, size_t to_step, const void *from,
                           size_t from_step, size_t bytes, int64_t n_rows);
    lh_status (*zero)(lh_stream *s, void *p, size_t bytes);

    /* An upload of many bytes that the host need not keep: `host` may be a map and is read on
     * return. */
    lh_status (*load)(lh_stream *s, void *device, const void *host, size_t bytes);

    /* Waits until everything queued has run; returns the first failure among it. */
    lh_status (*sync)(lh_stream *s);

    /*
     * Marks, where not NULL (a device whose queue is the host's own time has none): mark i, below
     * LH_MARKS, is set where the queue is now; it has passed when all before it has run. It may be
     * set again once it has passed. between waits for the second of two marks, and gives the
     * seconds from one to the other. Not while recording.
     */
    lh_status (*mark)(lh_stream *s, int i);
    lh_status (*passed)(lh_stream *s, int i, int *yes);
    lh_status (*between)(lh_stream *s, int i, int j, double *seconds);

    /*
     * Work that is queued once and run many times, where record_begin is not NULL: everything
     * queued between begin and end is kept instead of run, with its arguments and pointers as they
     * are. After a failure in between, end must still be called. forget accepts NULL.
     */
    lh_status (*record_begin)(lh_stream *s);
    lh_status (*record_end)(lh_stream *s, void **recording);
    lh_status (*replay)(lh_stream *s, void *recording);
    void (*forget)(lh_stream *s, void *recording);
} lh_device_ops;

/* A stream begins with its device's operations. */
static inline const lh_device_ops *lh_stream_device(const lh_stream *s)
{
    return *(const lh_device_ops *const *)(const void *)s;
}

extern const lh_device_ops lh_device_cpu;

#ifdef __cplusplus
}
#endif
#endif
