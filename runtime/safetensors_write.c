#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "runtime/json_file.h"
#include "runtime/safetensors.h"
#include "runtime/safetensors_types.h"

#define PIECE_BYTES ((size_t)64 << 20)

/* Adds a tensor to the header; *end is where the data of the ones before it ends. */
static lh_status add_entry(json_t *header, const lh_st_tensor *t, size_t *end)
{
    size_t elem_bytes = 0, bytes = 0, begin = *end;
    const char *dtype = lh_st_dtype(t->dtype, &elem_bytes);

    LH_REQUIRE(dtype && t->n_dims >= 0 && t->n_dims <= 8 && lh_st_name_ok(t->name) &&
                   lh_st_bytes(&bytes, t->dims, t->n_dims, elem_bytes) == 0 && bytes == t->bytes &&
                   lh_add_size(end, begin, bytes) == 0,
               LH_ERR_INVALID, "tensor %.100s of dtype %s and %zu bytes cannot be written", t->name,
               t->dtype, t->bytes);
    LH_REQUIRE(!json_object_get(header, t->name) && strcmp(t->name, "__metadata__") != 0,
               LH_ERR_INVALID, "tensor name %.100s is taken", t->name);
    json_t *shape = json_array();
    for (int i = 0; i < t->n_dims; i++)
        (void)json_array_append_new(shape, json_integer(t->dims[i])); /* counted below */
    json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype, "shape", shape,
                              "data_offsets", (json_int_t)begin, (json_int_t)*end);
    LH_REQUIRE(json_array_size(json_object_get(entry, "shape")) == (size_t)t->n_dims &&
                   json_object_set_new(header, t->name, entry) == 0,
               LH_ERR_NOMEM, "tensor %.100s: out of memory, or a name that is not UTF-8", t->name);
    return LH_OK;
}

static lh_status write_all(int fd, const void *bytes, size_t n, const char *path)
{
    const char *p = bytes;

    while (n > 0) {
        ssize_t wrote = write(fd, p, n);
        if (wrote < 0 && errno == EINTR)
            continue;
        LH_REQUIRE(wrote > 0, LH_ERR_IO, "%s: writing: %s", path, strerror(errno));
        p += wrote;
        n -= (size_t)wrote;
    }
    return LH_OK;
}

static lh_status write_header(int fd, const char *text, const char *path)
{
    size_t length = strlen(text), padded = (length + 7) / 8 * 8; /* data begins aligned */
    unsigned char length_bytes[8];

    for (int i = 0; i < 8; i++)
        length_bytes[i] = (unsigned char)(padded >> 8 * i);
    LH_TRY(write_all(fd, length_bytes, sizeof length_bytes, path));
    LH_TRY(write_all(fd, text, length, path));
    return write_all(fd, "       ", padded - length, path);
}

/* What the data come from: memory of each tensor, or a source. */
typedef struct origin {
    const lh_st_tensor *tensors; /* [n] */
    int n;
    lh_st_source source; /* or NULL */
    void *user;
    size_t bytes; /* of all tensors */
} origin;

static lh_status write_data(int fd, const origin *from, const char *path)
{
    lh_status st = LH_OK;
    size_t piece = from->bytes < PIECE_BYTES ? from->bytes : PIECE_BYTES;
    void *buffer = NULL;

    for (int i = 0; !from->source && i < from->n; i++)
        LH_TRY(write_all(fd, from->tensors[i].data, from->tensors[i].bytes, path));
    if (!from->source)
        return LH_OK;
    LH_TRY(lh_alloc(&buffer, piece, "a piece of a file"));
    for (size_t at = 0, n; at < from->bytes; at += n) {
        n = from->bytes - at < piece ? from->bytes - at : piece;
        LH_TRY_OUT(from->source(from->user, buffer, at, n));
        LH_TRY_OUT(write_all(fd, buffer, n, path));
    }
out:
    free(buffer);
    return st;
}

static lh_status write_file(int fd, const char *text, const origin *from, const char *path)
{
    LH_TRY(write_header(fd, text, path));
    LH_TRY(write_data(fd, from, path));
    LH_REQUIRE(fsync(fd) == 0, LH_ERR_IO, "%s: writing: %s", path, strerror(errno));
    return LH_OK;
}

static lh_status write_origin(const char *path, origin *from)
{
    lh_status st = LH_OK;
    json_t *header = json_object();
    char *text = NULL, *temporary = NULL;
    size_t room = strlen(path) + 32;
    int fd = -1;

    for (int i = 0; i < from->n; i++)
        LH_TRY_OUT(add_entry(header, &from->tensors[i], &from->bytes));
    text = json_dumps(header, JSON_COMPACT);
    temporary = malloc(room);
    LH_REQUIRE_OUT(text && temporary, LH_ERR_NOMEM, "%s: header of %d tensors", path, from->n);
    (void)snprintf(temporary, room, "%s.%ld.tmp", path, (long)getpid());
    fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    LH_REQUIRE_OUT(fd >= 0, LH_ERR_OPEN, "%s: cannot create: %s", temporary, strerror(errno));
    LH_TRY_OUT(write_file(fd, text, from, path));
    LH_REQUIRE_OUT(rename(temporary, path) == 0, LH_ERR_IO, "%s: renaming: %s", path,
                   strerror(errno));
out:
    if (fd >= 0) {
        (void)close(fd);
        if (st != LH_OK)
            (void)unlink(temporary);
    }
    free(temporary);
    free(text);
    json_decref(header);
    return st;
}

lh_status lh_safetensors_write(const char *path, const lh_st_tensor *tensors, int n)
{
    origin from = {.tensors = tensors, .n = n};

    for (int i = 0; i < n; i++)
        LH_REQUIRE(tensors[i].data || tensors[i].bytes == 0, LH_ERR_INVALID,
                   "tensor %.100s of dtype %s and %zu bytes cannot be written", tensors[i].name,
                   tensors[i].dtype, tensors[i].bytes);
    return write_origin(path, &from);
}

lh_status lh_safetensors_stream(const char *path, const lh_st_tensor *tensors, int n,
                                lh_st_source source, void *user)
{
    origin from = {.tensors = tensors, .n = n, .source = source, .user = user};

    return write_origin(path, &from);
}
