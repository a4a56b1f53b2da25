/*
 * A synthetic checkpoint on disk: shards piece by piece, index, config, in a directory that gets
 * its name when it is whole.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "runtime/checkpoint_internal.h"
#include "runtime/json_file.h"
#include "runtime/safetensors.h"
#include "runtime/synth.h"

#define SHARD_BYTES 5000000000u
#define MAX_SIDE_BYTES ((size_t)256 << 20)

typedef struct writer {
    const lh_dims *d;
    const lh_synth_opts *o;
    char dir[4096]; /* temporary */
    int64_t n;
    lh_expected *expected;  /* [n] */
    lh_st_tensor *tensors;  /* [n] */
    lh_synth_piece *pieces; /* [n], offsets within their shards */
    int64_t *shard_start;   /* [n_shards + 1] tensors */
    int n_shards;
    size_t bytes; /* of all tensors */
    lh_meter meter;

    int64_t first; /* of the shard that is being written */
    int64_t n_first;
} writer;

static void make_tensor(writer *w, int64_t i)
{
    lh_expected *e = &w->expected[i];
    lh_st_tensor *t = &w->tensors[i];
    lh_synth_piece *p = &w->pieces[i];

    lh_expected_tensor(e, w->d, i);
    *t = (lh_st_tensor){
        .name = e->name, .dtype = e->allow_bf16 ? "BF16" : "F32", .n_dims = e->n_dims};
    memcpy(t->dims, e->dims, sizeof e->dims);
    *p = (lh_synth_piece){.form = e->allow_bf16 ? LH_SYNTH_AS_BF16 : LH_SYNTH_AS_F32,
                          .n = lh_expected_elements(e),
                          .n_bytes = lh_expected_bytes(e)};
    t->bytes = p->n_bytes;
    lh_synth_law_make(&p->law, w->d, e, w->o);
    w->bytes += t->bytes;
}

/* Consecutive tensors of about equal bytes; no shard is empty. */
static void cut_shards(writer *w)
{
    size_t before = 0;
    int shard = -1;

    for (int64_t i = 0; i < w->n; i++) {
        int64_t due = (int64_t)((double)before / (double)w->bytes * w->n_shards);
        int must = w->n - i == w->n_shards - 1 - shard;
        if (shard < 0 || must || (due > shard && shard + 1 < w->n_shards)) {
            w->shard_start[++shard] = i;
            w->pieces[i].offset = 0;
        } else {
            w->pieces[i].offset = w->pieces[i - 1].offset + w->pieces[i - 1].n_bytes;
        }
        before += w->pieces[i].n_bytes;
    }
    w->shard_start[w->n_shards] = w->n;
}

static lh_status make_list(writer *w)
{
    void *p;

    w->n = lh_expected_count(w->d);
    LH_TRY(lh_alloc(&p, (size_t)w->n * sizeof *w->expected, "list of tensors"));
    w->expected = p;
    LH_TRY(lh_alloc(&p, (size_t)w->n * sizeof *w->tensors, "list of tensors"));
    w->tensors = p;
    LH_TRY(lh_alloc(&p, (size_t)w->n * sizeof *w->pieces, "list of tensors"));
    w->pieces = p;
    for (int64_t i = 0; i < w->n; i++)
        make_tensor(w, i);
    w->n_shards = w->o->n_shards > 0 ? w->o->n_shards : (int)(w->bytes / SHARD_BYTES) + 1;
    LH_REQUIRE(w->n_shards <= w->n, LH_ERR_USAGE, "%d shards for %lld tensors", w->n_shards,
               (long long)w->n);
    LH_TRY(lh_alloc(&p, ((size_t)w->n_shards + 1) * sizeof *w->shard_start, "list of shards"));
    w->shard_start = p;
    cut_shards(w);
    return LH_OK;
}

/* ------------------------------------------------------------------- files */

static lh_status path_in(char out[4096], const char *dir, const char *name)
{
    int n = snprintf(out, 4096, "%s/%s", dir, name);

    LH_REQUIRE(n > 0 && n < 4096, LH_ERR_USAGE, "%.64s..: a path longer than 4095 bytes", dir);
    return LH_OK;
}

static lh_status write_text(const char *dir, const char *name, const char *text, size_t n)
{
    char path[4096];

    LH_TRY(path_in(path, dir, name));
    FILE *f = fopen(path, "wb");
    LH_REQUIRE(f, LH_ERR_OPEN, "%s: cannot be created: %s", path, strerror(errno));
    int ok = fwrite(text, 1, n, f) == n && fflush(f) == 0 && fsync(fileno(f)) == 0;
    ok = fclose(f) == 0 && ok;
    LH_REQUIRE(ok, LH_ERR_IO, "%s: writing: %s", path, strerror(errno));
    return LH_OK;
}

static lh_status copy_file(const char *from, const char *dir, const char *name)
{
    lh_status st = LH_OK;
    void *bytes = NULL;
    size_t n = 0;
    int fd = -1;

    LH_TRY(lh_file_open(&fd, &n, from));
    LH_REQUIRE_OUT(n <= MAX_SIDE_BYTES, LH_ERR_DATA, "%s: %zu bytes, expected at most %zu", from, n,
                   MAX_SIDE_BYTES);
    LH_TRY_OUT(lh_alloc(&bytes, n, from));
    LH_TRY_OUT(lh_file_read(fd, bytes, n, 0, from));
    LH_TRY_OUT(write_text(dir, name, bytes, n));
out:
    (void)close(fd);
    free(bytes);
    return st;
}

static lh_status copy_config(const writer *w, const char *config_path)
{
    static const char *const beside[] = {"generation_config.json", "tiktoken.model",
                                         "tokenizer_config.json"};
    const char *slash = strrchr(config_path, '/');
    char from_dir[4096], from[4096];

    LH_TRY(copy_file(config_path, w->dir, "config.json"));
    (void)snprintf(from_dir, sizeof from_dir, "%.*s", slash ? (int)(slash - config_path) + 1 : 1,
                   slash ? config_path : ".");
    for (size_t i = 0; i < sizeof beside / sizeof *beside; i++) {
        LH_TRY(path_in(from, from_dir, beside[i]));
        if (lh_file_exists(from))
            LH_TRY(copy_file(from, w->dir, beside[i]));
    }
    return LH_OK;
}

static void shard_name(const writer *w, int shard, char out[64])
{
    (void)snprintf(out, 64, "model-%05d-of-%05d.safetensors", shard + 1, w->n_shards);
}

static lh_status shard_bytes(void *user, void *out, size_t begin, size_t n)
{
    writer *w = user;

    lh_synth_fill(w->pieces + w->first, (size_t)w->n_first, out, begin, begin + n, w->o->n_threads);
    lh_meter_add(&w->meter, n);
    return LH_OK;
}

static lh_status write_shards(writer *w)
{
    char name[64], path[4096];

    lh_meter_start(&w->meter, "write", w->bytes, w->o->progress, w->o->user);
    for (int i = 0; i < w->n_shards; i++) {
        shard_name(w, i, name);
        LH_TRY(path_in(path, w->dir, name));
        w->first = w->shard_start[i];
        w->n_first = w->shard_start[i + 1] - w->first;
        LH_TRY(lh_safetensors_stream(path, w->tensors + w->first, (int)w->n_first, shard_bytes, w));
    }
    lh_meter_end(&w->meter);
    return LH_OK;
}

static lh_status write_index(const writer *w)
{
    lh_status st = LH_OK;
    json_t *map = json_object(), *index = NULL;
    char *text = NULL, name[64];
    int bad = 0;

    for (int s = 0; s < w->n_shards; s++) {
        shard_name(w, s, name);
        for (int64_t i = w->shard_start[s]; i < w->shard_start[s + 1]; i++)
            bad |= json_object_set_new(map, w->tensors[i].name, json_string(name));
    }
    index = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)w->bytes,
                      "weight_map", map);
    text = index && !bad ? json_dumps(index, JSON_INDENT(2)) : NULL;
    LH_REQUIRE_OUT(text, LH_ERR_NOMEM, "index of %lld tensors", (long long)w->n);
    st = write_text(w->dir, "model.safetensors.index.json", text, strlen(text));
out:
    free(text);
    json_decref(index);
    return st;
}

/* ----------------------------------------------------------- the directory */

/* Nothing there, or a directory without entries. */
static lh_status check_free(const char *dir)
{
    int n = 0;
    DIR *d = opendir(dir);

    LH_REQUIRE(d || errno == ENOENT, LH_ERR_USAGE,
               "%s: exists and is not an empty directory; nothing is overwritten", dir);
    if (!d)
        return LH_OK;
    while (readdir(d))
        n++;
    (void)closedir(d);
    LH_REQUIRE(n <= 2, LH_ERR_USAGE,
               "%s: exists and is not an empty directory; nothing is overwritten", dir);
    return LH_OK;
}

static void remove_dir(const char *dir)
{
    char path[4096];
    DIR *d = opendir(dir);

    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.' && snprintf(path, sizeof path, "%s/%s", dir, e->d_name) < 4096)
            (void)unlink(path);
    if (d)
        (void)closedir(d);
    (void)rmdir(dir);
}

static lh_status check_space(const writer *w)
{
    struct statvfs fs;

    if (statvfs(w->dir, &fs) != 0 || fs.f_frsize == 0)
        return LH_OK; /* writing will tell */
    LH_REQUIRE(w->bytes / fs.f_frsize < fs.f_bavail, LH_ERR_IO,
               "%s: %zu bytes of weights, %zu bytes free", w->dir, w->bytes,
               (size_t)fs.f_bavail * fs.f_frsize);
    return LH_OK;
}

/* The names of the files are on the disk before the directory's is. */
static lh_status sync_dir(const char *dir)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int bad = fd < 0 || fsync(fd) != 0;

    if (fd >= 0)
        (void)close(fd);
    LH_REQUIRE(!bad, LH_ERR_IO, "%s: writing: %s", dir, strerror(errno));
    return LH_OK;
}

static lh_status write_all(writer *w, const char *config_path)
{
    LH_TRY(check_space(w));
    LH_TRY(copy_config(w, config_path));
    LH_TRY(write_shards(w));
    LH_TRY(write_index(w));
    return sync_dir(w->dir);
}

lh_status lh_synth_write(const char *config_path, const char *out_dir, const lh_synth_opts *o)
{
    lh_status st = LH_OK;
    size_t length = strlen(out_dir);
    char out[4096];
    int made = 0;
    lh_dims *d = calloc(1, sizeof *d);
    writer *w = calloc(1, sizeof *w);

    LH_REQUIRE_OUT(d && w, LH_ERR_NOMEM, "writer of a checkpoint");
    while (length > 1 && out_dir[length - 1] == '/')
        length--;
    LH_REQUIRE_OUT(length > 0 && length < sizeof out - 64, LH_ERR_USAGE,
                   "the checkpoint's directory: a name of %zu bytes", length);
    (void)snprintf(out, sizeof out, "%.*s", (int)length, out_dir);
    (void)snprintf(w->dir, sizeof w->dir, "%.*s.%ld.tmp", (int)length, out_dir, (long)getpid());
    w->d = d;
    w->o = o;
    LH_TRY_OUT(lh_config_read_file(d, config_path));
    LH_TRY_OUT(make_list(w));
    LH_TRY_OUT(check_free(out));
    LH_REQUIRE_OUT(mkdir(w->dir, 0777) == 0, LH_ERR_OPEN, "%s: cannot be created: %s", w->dir,
                   strerror(errno));
    made = 1;
    LH_TRY_OUT(write_all(w, config_path));
    LH_REQUIRE_OUT(rename(w->dir, out) == 0, LH_ERR_IO, "%s: renaming to %s: %s", w->dir, out,
                   strerror(errno));
out:
    if (st != LH_OK && made)
        remove_dir(w->dir);
    if (w) {
        free(w->expected);
        free(w->tensors);
        free(w->pieces);
        free(w->shard_start);
    }
    free(w);
    free(d);
    return st;
}
