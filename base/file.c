#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

int lh_file_exists(const char *path)
{
    return access(path, F_OK) == 0 || errno != ENOENT;
}

lh_status lh_file_open(int *fd, size_t *bytes, const char *path)
{
    lh_status st = LH_OK;
    struct stat info;
    /* Without O_NONBLOCK opening a FIFO waits for a writer, for ever. */
    int f = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);

    LH_REQUIRE(f >= 0, LH_ERR_OPEN, "%s: cannot open: %s", path, strerror(errno));
    LH_REQUIRE_OUT(fstat(f, &info) == 0, LH_ERR_IO, "%s: %s", path, strerror(errno));
    LH_REQUIRE_OUT(S_ISREG(info.st_mode), LH_ERR_DATA, "%s: not a regular file", path);
    *fd = f;
    *bytes = (size_t)info.st_size;
    f = -1;
out:
    if (f >= 0)
        (void)close(f);
    return st;
}

lh_status lh_file_read(int fd, void *out, size_t n, size_t offset, const char *path)
{
    char *p = out;

    while (n > 0) {
        ssize_t got = pread(fd, p, n, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        LH_REQUIRE(got >= 0, LH_ERR_IO, "%s: reading at byte %zu: %s", path, offset,
                   strerror(errno));
        LH_REQUIRE(got > 0, LH_ERR_DATA, "%s: ends at byte %zu, expected %zu more", path, offset,
                   n);
        p += got;
        offset += (size_t)got;
        n -= (size_t)got;
    }
    return LH_OK;
}
