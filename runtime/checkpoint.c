#include "runtime/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "runtime/checkpoint_internal.h"
#include "runtime/json_file.h"

#define MAX_INDEX_BYTES ((size_t)64 << 20)
#define MAX_FILES 4096
#define SINGLE "model.safetensors"
#define INDEX SINGLE ".index.json"

static int compare_strings(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A shard's name is one component of a path, and not a hidden one. */
static int shard_name_ok(const char *name)
{
    return name[0] != '\0' && name[0] != '.' && !strpbrk(name, "/\\") && strlen(name) <= 255;
}

/* The different shards that the index names, sorted; a free()able array of the index's strings. */
static lh_status list_shards(const char ***out, size_t *n_out, json_t *weight_map,
                             const char *index_path)
{
    lh_status st = LH_OK;
    size_t n = 0, unique = 0;
    const char *key;
    json_t *v;
    const char **names = malloc((json_object_size(weight_map) + 1) * sizeof *names);

    LH_REQUIRE(names, LH_ERR_NOMEM, "%s: list of shards", index_path);
    json_object_foreach(weight_map, key, v)
    {
        const char *name = json_string_value(v);
        LH_REQUIRE_OUT(name && shard_name_ok(name), LH_ERR_DATA,
                       "%s: tensor %.100s: shard %.100s is not a plain file name", index_path, key,
                       name ? name : "(not a string)");
        names[n++] = name;
    }
    qsort(names, n, sizeof *names, compare_strings);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || strcmp(names[i], names[unique - 1]) != 0)
            names[unique++] = names[i];
    LH_REQUIRE_OUT(unique > 0 && unique <= MAX_FILES, LH_ERR_DATA,
                   "%s: %zu shards, expected 1 to %d", index_path, unique, MAX_FILES);
    *out = names;
    *n_out = unique;
    names = NULL;
out:
    free(names);
    return st;
}

/* Opens files of the directory and lists their tensors in the order of the files. */
static lh_status open_files(lh_checkpoint *c, const char *dir, const char *const *names, size_t n)
{
    void *p;
    size_t at = 0;

    LH_TRY(lh_alloc(&p, n * sizeof *c->files, "checkpoint files"));
    c->files = p;
    for (size_t i = 0; i < n; i++) {
        checkpoint_file *f = &c->files[i];
        size_t room = strlen(dir) + strlen(names[i]) + 2;
        c->n_files++;
        LH_REQUIRE((f->path = malloc(room)), LH_ERR_NOMEM, "checkpoint files");
        (void)snprintf(f->path, room, "%s/%s", dir, names[i]);
        f->name = f->path + strlen(dir) + 1;
        LH_TRY(lh_safetensors_open(&f->file, f->path));
        c->n_entries += lh_safetensors_count(f->file);
        c->file_bytes += lh_safetensors_file_bytes(f->file);
    }
    LH_TRY(lh_alloc(&p, (size_t)c->n_entries * sizeof *c->entries, "checkpoint tensors"));
    c->entries = p;
    for (size_t i = 0; i < n; i++)
        for (int64_t k = 0; k < lh_safetensors_count(c->files[i].file); k++)
            c->entries[at++] = (checkpoint_entry){.tensor = lh_safetensors_at(c->files[i].file, k),
                                                  .file = (int)i};
    return LH_OK;
}

static int compare_file(const void *name, const void *file)
{
    return strcmp(name, ((const checkpoint_file *)file)->name);
}

/* The index and the shards say the same of every tensor. Then none is in two shards. */
static lh_status check_index(const lh_checkpoint *c, json_t *weight_map, const char *index_path)
{
    const char *key;
    json_t *v;

    for (int64_t i = 0; i < c->n_entries; i++) {
        const char *name = c->entries[i].tensor->name, *file = c->files[c->entries[i].file].name;
        const char *said = json_string_value(json_object_get(weight_map, name));
        LH_REQUIRE(said, LH_ERR_DATA, "%s: tensor %.100s of %s is not in the index", index_path,
                   name, file);
        LH_REQUIRE(strcmp(said, file) == 0, LH_ERR_DATA,
                   "%s: tensor %.100s should be in %s, but %s has it", index_path, name, said,
                   file);
    }
    json_object_foreach(weight_map, key, v)
    {
        const checkpoint_file *f = bsearch(json_string_value(v), c->files, (size_t)c->n_files,
                                           sizeof *c->files, compare_file);
        LH_REQUIRE(f && lh_safetensors_find(f->file, key), LH_ERR_DATA,
                   "%s: tensor %.100s is not in %s", index_path, key, json_string_value(v));
    }
    return LH_OK;
}

static lh_status open_indexed(lh_checkpoint *c, const char *dir, const char *index_path)
{
    lh_status st = LH_OK;
    json_t *index = NULL, *weight_map;
    const char **names = NULL;
    size_t n_names = 0;
    char seen[64];

    LH_TRY(lh_json_read(&index, index_path, MAX_INDEX_BYTES));
    weight_map = json_object_get(index, "weight_map");
    LH_REQUIRE_OUT(json_is_object(weight_map), LH_ERR_DATA,
                   "%s: weight_map is %s, expected an object", index_path,
                   lh_json_show(weight_map, seen));
    LH_TRY_OUT(list_shards(&names, &n_names, weight_map, index_path));
    LH_TRY_OUT(open_files(c, dir, names, n_names));
    LH_TRY_OUT(check_index(c, weight_map, index_path));
out:
    free(names);
    json_decref(index);
    return st;
}

static void show_shape(char out[160], const int64_t *dims, int n)
{
    int at = snprintf(out, 160, "[");

    for (int i = 0; i < n; i++)
        at += snprintf(out + at, 160 - (size_t)at, "%s%lld", i ? ", " : "", (long long)dims[i]);
    (void)snprintf(out + at, 160 - (size_t)at, "]");
}

static lh_status check_tensor(const lh_st_tensor *t, const lh_expected *want, const char *path)
{
    int is_bf16 = strcmp(t->dtype, "BF16") == 0, is_f32 = strcmp(t->dtype, "F32") == 0;
    char seen_shape[160], want_shape[160];

    show_shape(seen_shape, t->dims, t->n_dims);
    show_shape(want_shape, want->dims, want->n_dims);
    LH_REQUIRE(strcmp(seen_shape, want_shape) == 0, LH_ERR_DATA,
               "%s: tensor %s has shape %s, expected %s", path, t->name, seen_shape, want_shape);
    LH_REQUIRE((is_bf16 && want->allow_bf16) || (is_f32 && want->allow_f32), LH_ERR_DATA,
               "%s: tensor %s has dtype %s, expected %s", path, t->name, t->dtype,
               !want->allow_f32   ? "BF16"
               : want->allow_bf16 ? "BF16 or F32"
                                  : "F32");
    return LH_OK;
}

static int compare_entries(const void *a, const void *b)
{
    const checkpoint_entry *x = *(checkpoint_entry *const *)a, *y = *(checkpoint_entry *const *)b;
    return strcmp(x->tensor->name, y->tensor->name);
}

/* Exactly the expected tensors, each with its place in the weights. Names are unique by now. */
static lh_status check_expected(lh_checkpoint *c, const lh_dims *d, const char *dir)
{
    lh_status st = LH_OK;
    int64_t n = lh_expected_count(d), n_seen = 0;
    void *p = NULL;

    LH_TRY(lh_alloc(&p, (size_t)c->n_entries * sizeof(checkpoint_entry *), "checkpoint tensors"));
    checkpoint_entry **by_name = p;
    for (int64_t i = 0; i < c->n_entries; i++)
        by_name[i] = &c->entries[i];
    qsort(by_name, (size_t)c->n_entries, sizeof *by_name, compare_entries);
    for (; n_seen < n; n_seen++) {
        lh_expected want;
        lh_expected_tensor(&want, d, n_seen);
        lh_st_tensor tensor = {.name = want.name};
        checkpoint_entry key = {.tensor = &tensor}, *k = &key;
        checkpoint_entry **found =
            bsearch(&k, by_name, (size_t)c->n_entries, sizeof *by_name, compare_entries);
        LH_REQUIRE_OUT(found, LH_ERR_DATA, "%s: tensor %s is missing", dir, want.name);
        checkpoint_entry *e = *found;
        LH_TRY_OUT(check_tensor(e->tensor, &want, c->files[e->file].path));
        e->expected = 1;
        e->layer = want.layer;
        e->expert = want.expert;
        e->slot = want.slot;
        e->widen = want.allow_f32 && strcmp(e->tensor->dtype, "BF16") == 0;
    }
    for (int64_t i = 0; i < c->n_entries; i++)
        LH_REQUIRE_OUT(c->entries[i].expected, LH_ERR_DATA,
                       "%s: tensor %.100s is none of this model's",
                       c->files[c->entries[i].file].path, c->entries[i].tensor->name);
out:
    free(p);
    return st;
}

lh_status lh_checkpoint_open(lh_checkpoint **out, const char *model_dir, const lh_dims *d)
{
    static const char *const single = SINGLE;
    lh_status st = LH_OK;
    size_t room = strlen(model_dir) + sizeof INDEX + 1;
    char *index_path = malloc(room);
    lh_checkpoint *c = calloc(1, sizeof *c);

    LH_REQUIRE_OUT(c && index_path, LH_ERR_NOMEM, "checkpoint");
    c->dims = *d;
    (void)snprintf(index_path, room, "%s/" INDEX, model_dir);
    if (lh_file_exists(index_path))
        LH_TRY_OUT(open_indexed(c, model_dir, index_path));
    else
        LH_TRY_OUT(open_files(c, model_dir, &single, 1));
    LH_TRY_OUT(check_expected(c, d, model_dir));
    *out = c;
    c = NULL;
out:
    free(index_path);
    lh_checkpoint_close(c);
    return st;
}

void lh_checkpoint_close(lh_checkpoint *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->n_files; i++) {
        lh_safetensors_close(c->files[i].file);
        free(c->files[i].path);
    }
    free(c->files);
    free(c->entries);
    free(c->block);
    free(c);
}

int64_t lh_checkpoint_n_tensors(const lh_checkpoint *c)
{
    return c->n_entries;
}

void lh_checkpoint_tensor(const lh_checkpoint *c, int64_t i, lh_tensor_info *out)
{
    const lh_st_tensor *t = c->entries[i].tensor;

    *out = (lh_tensor_info){.name = t->name,
                            .dtype = t->dtype,
                            .n_dims = t->n_dims,
                            .file = c->files[c->entries[i].file].name,
                            .offset = t->offset,
                            .bytes = t->bytes};
    memcpy(out->dims, t->dims, sizeof out->dims);
}

const void *lh_checkpoint_data(const lh_checkpoint *c, int64_t i)
{
    return c->entries[i].tensor->data;
}

int lh_checkpoint_n_files(const lh_checkpoint *c)
{
    return c->n_files;
}

size_t lh_checkpoint_file_bytes(const lh_checkpoint *c)
{
    return c->file_bytes;
}
