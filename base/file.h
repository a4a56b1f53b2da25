/*
 * Reading files that somebody else wrote: never blocks on a FIFO, never reads a device.
 */
#ifndef LH_BASE_FILE_H
#define LH_BASE_FILE_H

#include <stddef.h>

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whether there is something under this name, openable or not. */
int lh_file_exists(const char *path);

/* Opens a regular file (symbolic links are followed) for reading. The caller closes *fd.
 * LH_ERR_OPEN: it cannot be opened. LH_ERR_DATA: it is something other than a file. */
lh_status lh_file_open(int *fd, size_t *bytes, const char *path);

/* Reads exactly n bytes from an offset. LH_ERR_IO; LH_ERR_DATA: the file ends before. `path` is for
 * messages. */
lh_status lh_file_read(int fd, void *out, size_t n, size_t offset, const char *path);

#ifdef __cplusplus
}
#endif
#endif
