#include "runtime/safetensors.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/file.h"
#include "base/maps.h"
#include "base/mem.h"
#include "runtime/json_file.h"
#include "runtime/safetensors_types.h"

#define LENGTH_BYTES 8
#define MAX_HEADER_BYTES 100000000u
#define MAX_NAME_BYTES 1024
#define MAX_INTEGER (INT64_C(1) << 53) /* that every JSON reader represents */

struct lh_safetensors {
    char *path;
    void *map;
    size_t bytes;
    int64_t n;
    lh_st_tensor *tensors;        /* [n], by offset */
    const lh_st_tensor **by_name; /* [n] */
    char *names;                  /* one after the other */
};

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {
    {"BF16", 2},    {"F32", 4},     {"F16", 2}, {"F64", 8}, {"I64", 8},
    {"I32", 4},     {"I16", 2},     {"I8", 1},  {"U8", 1},  {"BOOL", 1},
    {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U16", 2}, {"U32", 4}, {"U64", 8},
};

const char *lh_st_dtype(const char *name, size_t *bytes)
{
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (strcmp(dtypes[i].name, name) == 0) {
            *bytes = dtypes[i].bytes;
            return dtypes[i].name;
        }
    return NULL;
}

int lh_st_name_ok(const char *name)
{
    for (const char *p = name; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f || p - name >= MAX_NAME_BYTES)
            return 0;
    return 1;
}

int lh_st_bytes(size_t *out, const int64_t *dims, int n_dims, size_t elem_bytes)
{
    *out = elem_bytes;
    for (int i = 0; i < n_dims; i++)
        if (dims[i] < 0 || lh_mul_size(out, *out, (size_t)dims[i]) != 0)
            return -1;
    return 0;
}

static int get_integer(int64_t *out, const json_t *v)
{
    *out = json_integer_value(v);
    return json_is_integer(v) && *out >= 0 && *out < MAX_INTEGER ? 0 : -1;
}

/* One entry of the header. Offsets are checked against the shape here, against each other later. */
static lh_status read_entry(lh_st_tensor *t, const json_t *entry, const lh_safetensors *f,
                            size_t data_begin)
{
    const json_t *dtype = json_object_get(entry, "dtype");
    const json_t *shape = json_object_get(entry, "shape");
    const json_t *offsets = json_object_get(entry, "data_offsets");
    int64_t begin = 0, end = 0;
    size_t elem_bytes = 0;
    char seen[64];

#define BAD(...) LH_FAIL(LH_ERR_DATA, "%s: tensor %.100s: " __VA_ARGS__)
    if (!json_is_object(entry) || json_object_size(entry) != 3 || !json_is_string(dtype) ||
        !json_is_array(shape) || json_array_size(offsets) != 2)
        return BAD("expected dtype, shape and two data_offsets, and nothing else", f->path,
                   t->name);
    t->dtype = lh_st_dtype(json_string_value(dtype), &elem_bytes);
    if (!t->dtype)
        return BAD("unknown dtype %s", f->path, t->name, lh_json_show(dtype, seen));
    if (json_array_size(shape) > 8)
        return BAD("%zu dimensions, expected at most 8", f->path, t->name, json_array_size(shape));
    t->n_dims = (int)json_array_size(shape);
    for (int i = 0; i < t->n_dims; i++)
        if (get_integer(&t->dims[i], json_array_get(shape, (size_t)i)) != 0)
            return BAD("shape %s, expected integers from 0 to 2^53 - 1", f->path, t->name,
                       lh_json_show(shape, seen));
    if (lh_st_bytes(&t->bytes, t->dims, t->n_dims, elem_bytes) != 0)
        return BAD("shape %s is larger than memory", f->path, t->name, lh_json_show(shape, seen));
    if (get_integer(&begin, json_array_get(offsets, 0)) != 0 ||
        get_integer(&end, json_array_get(offsets, 1)) != 0 || begin > end)
        return BAD("data_offsets %s, expected two integers in order", f->path, t->name,
                   lh_json_show(offsets, seen));
    if ((size_t)(end - begin) != t->bytes)
        return BAD("data_offsets %s, but shape and dtype are %zu bytes", f->path, t->name,
                   lh_json_show(offsets, seen), t->bytes);
    if ((size_t)end > f->bytes - data_begin)
        return BAD("data_offsets %s, but the file has %zu bytes of data", f->path, t->name,
                   lh_json_show(offsets, seen), f->bytes - data_begin);
#undef BAD
    t->offset = data_begin + (size_t)begin;
    return LH_OK;
}

static int compare_offsets(const void *a, const void *b)
{
    const lh_st_tensor *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    if (x->bytes != y->bytes) /* an empty one lies before what begins at the same byte */
        return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(const lh_st_tensor *const *)a)->name, (*(const lh_st_tensor *const *)b)->name);
}

/* The data is covered from the first byte to the last, each byte once. */
static lh_status check_cover(const lh_safetensors *f, size_t data_begin)
{
    size_t at = data_begin;

    for (int64_t i = 0; i < f->n; i++) {
        const lh_st_tensor *t = &f->tensors[i];
        LH_REQUIRE(t->offset == at, LH_ERR_DATA,
                   "%s: tensor %.100s begins at byte %zu of the data, expected %zu: %s", f->path,
                   t->name, t->offset - data_begin, at - data_begin,
                   t->offset < at ? "two tensors overlap" : "there is a hole");
        at += t->bytes;
    }
    LH_REQUIRE(at == f->bytes, LH_ERR_DATA, "%s: %zu bytes, but the tensors end at byte %zu",
               f->path, f->bytes, at);
    return LH_OK;
}

static lh_status check_metadata(const char *path, json_t *metadata)
{
    const char *key;
    json_t *v;

    LH_REQUIRE(json_is_object(metadata), LH_ERR_DATA, "%s: __metadata__ is not an object", path);
    json_object_foreach(metadata, key, v)
    {
        LH_REQUIRE(json_is_string(v), LH_ERR_DATA, "%s: __metadata__: %.100s is not a string", path,
                   key);
    }
    return LH_OK;
}

static lh_status read_header(lh_safetensors *f, json_t *header, size_t data_begin)
{
    size_t n = json_object_size(header), name_bytes = 0, at = 0;
    void *p;
    const char *key;
    json_t *entry;

    json_object_foreach(header, key, entry)
    {
        LH_REQUIRE(lh_st_name_ok(key), LH_ERR_DATA,
                   "%s: tensor name %.100s: longer than %d bytes, or with control characters",
                   f->path, key, MAX_NAME_BYTES);
        name_bytes += strlen(key) + 1;
    }
    LH_TRY(lh_alloc(&p, n * sizeof *f->tensors, f->path));
    f->tensors = p;
    LH_TRY(lh_alloc(&p, n * sizeof(lh_st_tensor *), f->path));
    f->by_name = p;
    LH_TRY(lh_alloc(&p, name_bytes, f->path));
    f->names = p;
    json_object_foreach(header, key, entry)
    {
        if (strcmp(key, "__metadata__") == 0) {
            LH_TRY(check_metadata(f->path, entry));
            continue;
        }
        lh_st_tensor *t = &f->tensors[f->n];
        t->name = strcpy(f->names + at, key);
        at += strlen(key) + 1;
        LH_TRY(read_entry(t, entry, f, data_begin));
        f->n++;
    }
    if (f->n > 0)
        qsort(f->tensors, (size_t)f->n, sizeof *f->tensors, compare_offsets);
    LH_TRY(check_cover(f, data_begin));
    for (int64_t i = 0; i < f->n; i++)
        f->by_name[i] = &f->tensors[i];
    if (f->n > 0)
        qsort(f->by_name, (size_t)f->n, sizeof *f->by_name, compare_names);
    return LH_OK;
}

/* Reads by pread: a file that shrinks meanwhile is an error, not a signal. */
static lh_status parse(lh_safetensors *f, int fd)
{
    lh_status st = LH_OK;
    unsigned char length_bytes[LENGTH_BYTES];
    uint64_t length = 0;
    void *text = NULL;
    json_t *header = NULL;

    LH_REQUIRE(f->bytes >= LENGTH_BYTES, LH_ERR_DATA, "%s: %zu bytes, too short for safetensors",
               f->path, f->bytes);
    LH_TRY(lh_file_read(fd, length_bytes, sizeof length_bytes, 0, f->path));
    for (int i = LENGTH_BYTES - 1; i >= 0; i--)
        length = length << 8 | length_bytes[i];
    LH_REQUIRE(length <= MAX_HEADER_BYTES && length <= f->bytes - LENGTH_BYTES, LH_ERR_DATA,
               "%s: header of %llu bytes, expected at most %u and at most the file's %zu", f->path,
               (unsigned long long)length, MAX_HEADER_BYTES, f->bytes - LENGTH_BYTES);
    LH_TRY(lh_alloc(&text, (size_t)length, f->path));
    LH_TRY_OUT(lh_file_read(fd, text, (size_t)length, LENGTH_BYTES, f->path));
    LH_REQUIRE_OUT(length > 0 && *(char *)text == '{', LH_ERR_DATA,
                   "%s: the header does not begin with {", f->path);
    LH_TRY_OUT(lh_json_parse(&header, text, (size_t)length, f->path));
    free(text); /* up to 100 MB, before the tables are made */
    text = NULL;
    LH_TRY_OUT(read_header(f, header, LENGTH_BYTES + (size_t)length));
out:
    json_decref(header);
    free(text);
    return st;
}

lh_status lh_safetensors_open(lh_safetensors **out, const char *path)
{
    lh_status st = LH_OK;
    int fd = -1;
    lh_safetensors *f = calloc(1, sizeof *f);

    LH_REQUIRE_OUT(f && (f->path = strdup(path)), LH_ERR_NOMEM, "%s: out of memory", path);
    LH_TRY_OUT(lh_file_open(&fd, &f->bytes, path));
    LH_TRY_OUT(parse(f, fd));
    void *map = mmap(NULL, f->bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    LH_REQUIRE_OUT(map != MAP_FAILED, LH_ERR_IO, "%s: cannot map: %s", path, strerror(errno));
    f->map = map;
    lh_map_add(map, f->bytes, path);
    for (int64_t i = 0; i < f->n; i++)
        if (f->tensors[i].bytes > 0)
            f->tensors[i].data = (char *)map + f->tensors[i].offset;
    *out = f;
    f = NULL;
out:
    if (fd >= 0)
        (void)close(fd);
    lh_safetensors_close(f);
    return st;
}

void lh_safetensors_close(lh_safetensors *f)
{
    if (!f)
        return;
    if (f->map) {
        lh_map_remove(f->map);
        (void)munmap(f->map, f->bytes);
    }
    free(f->tensors);
    free(f->by_name);
    free(f->names);
    free(f->path);
    free(f);
}

int64_t lh_safetensors_count(const lh_safetensors *f)
{
    return f->n;
}

const lh_st_tensor *lh_safetensors_at(const lh_safetensors *f, int64_t i)
{
    return &f->tensors[i];
}

const lh_st_tensor *lh_safetensors_find(const lh_safetensors *f, const char *name)
{
    lh_st_tensor key = {.name = name};
    const lh_st_tensor *k = &key, **found = NULL;

    if (f->n > 0)
        found = bsearch(&k, f->by_name, (size_t)f->n, sizeof *f->by_name, compare_names);
    return found ? *found : NULL;
}

size_t lh_safetensors_file_bytes(const lh_safetensors *f)
{
    return f->bytes;
}
