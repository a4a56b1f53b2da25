#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "runtime/cli/cli.h"

typedef struct buffer {
    char *bytes;
    size_t n, room;
} buffer;

/* ------------------------------------------------------------------- input */

/* Appends all of f; a 0 byte always fits behind. */
static lh_status append_file(buffer *b, FILE *f, const char *name)
{
    for (;;) {
        if (b->room - b->n < 2) {
            size_t room;
            LH_REQUIRE(lh_mul_size(&room, b->room + 32768, 2) == 0, LH_ERR_NOMEM, "%s: too long",
                       name);
            char *grown = realloc(b->bytes, room);
            LH_REQUIRE(grown, LH_ERR_NOMEM, "%s: out of memory after %zu bytes", name, b->n);
            b->bytes = grown;
            b->room = room;
        }
        size_t got = fread(b->bytes + b->n, 1, b->room - b->n - 1, f);
        b->n += got;
        b->bytes[b->n] = '\0';
        LH_REQUIRE(!ferror(f), LH_ERR_IO, "%s: reading failed: %s", name, strerror(errno));
        if (feof(f))
            return LH_OK;
    }
}

static lh_status read_all(const char *const *paths, int n_paths, buffer *b)
{
    static const char *const standard_input[] = {"-"};

    if (n_paths == 0) {
        paths = standard_input;
        n_paths = 1;
    }
    for (int i = 0; i < n_paths; i++) {
        if (strcmp(paths[i], "-") == 0) {
            LH_TRY(append_file(b, stdin, "standard input"));
            continue;
        }
        FILE *f = fopen(paths[i], "rb");
        LH_REQUIRE(f, LH_ERR_OPEN, "%s: cannot be opened: %s", paths[i], strerror(errno));
        lh_status st = append_file(b, f, paths[i]);
        (void)fclose(f);
        LH_TRY(st);
    }
    return LH_OK;
}

lh_status lh_cli_share(lh_cli *c, lh_status mine, char **text, size_t *n_bytes)
{
    lh_status st = LH_OK;
    uint64_t n = *n_bytes;
    char *bytes = c->rank.rank == 0 ? *text : NULL;

    if (!c->job)
        return mine;
    LH_TRY_OUT(lh_job_agree(c->job, mine));
    LH_TRY_OUT(lh_job_bcast(c->job, &n, sizeof n));
    if (c->rank.rank > 0)
        bytes = malloc((size_t)n + 1);
    mine = bytes
               ? LH_OK
               : LH_FAIL(LH_ERR_NOMEM, "input of %llu bytes: out of memory", (unsigned long long)n);
    LH_TRY_OUT(lh_job_agree(c->job, mine));
    LH_TRY_OUT(lh_job_bcast(c->job, bytes, (size_t)n));
    bytes[n] = '\0';
    *text = bytes;
    *n_bytes = (size_t)n;
    return LH_OK;
out:
    if (c->rank.rank > 0)
        free(bytes);
    return st;
}

lh_status lh_cli_read(lh_cli *c, const char *const *paths, int n_paths, char **text,
                      size_t *n_bytes)
{
    buffer b = {0};
    lh_status st = c->rank.rank == 0 ? read_all(paths, n_paths, &b) : LH_OK;

    st = lh_cli_share(c, st, &b.bytes, &b.n);
    if (st != LH_OK) {
        free(b.bytes);
        return st;
    }
    *text = b.bytes;
    *n_bytes = b.n;
    return LH_OK;
}

lh_status lh_cli_parse_ids(const char *text, size_t n_bytes, int64_t n_vocab, const char *where,
                           int32_t **ids, int64_t *n_ids)
{
    lh_status st = LH_OK;
    json_error_t error;
    void *list = NULL;
    json_t *root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);

    LH_REQUIRE_OUT(root, LH_ERR_DATA, "%s: line %d: %s, expected a JSON array of token ids", where,
                   error.line, error.text);
    LH_REQUIRE_OUT(json_is_array(root), LH_ERR_DATA, "%s: expected a JSON array of token ids",
                   where);
    size_t n = json_array_size(root), bytes;
    LH_REQUIRE_OUT(lh_mul_size(&bytes, n, sizeof **ids) == 0, LH_ERR_DATA, "%s: too many ids",
                   where);
    LH_TRY_OUT(lh_alloc(&list, bytes, where));
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_array_get(root, i);
        json_int_t id = json_is_integer(item) ? json_integer_value(item) : -1;
        LH_REQUIRE_OUT(id >= 0 && id < n_vocab, LH_ERR_DATA,
                       "%s: item %zu is no token id, expected a whole number from 0 to %lld", where,
                       i, (long long)n_vocab - 1);
        ((int32_t *)list)[i] = (int32_t)id;
    }
    *ids = list;
    *n_ids = (int64_t)n;
    list = NULL;
out:
    free(list);
    json_decref(root);
    return st;
}

/* ------------------------------------------------------------------ output */

static lh_status check_output(const lh_cli *c, lh_opt_id id)
{
    const char *path = lh_opt_text(c->opts, id);
    char dir[4096];

    if (!path || strcmp(path, "-") == 0)
        return LH_OK;
    LH_REQUIRE(*path && strlen(path) < sizeof dir, LH_ERR_USAGE,
               "--%s: an empty or too long file name", lh_opt_flag(id));
    int length = snprintf(dir, sizeof dir, "%s", path);
    while (length > 1 && dir[length - 1] == '/')
        dir[--length] = '\0'; /* a directory's name may end so */
    char *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir] = '\0';
    int ok =
        access(path, F_OK) == 0 ? access(path, W_OK) == 0 : access(slash ? dir : ".", W_OK) == 0;
    LH_REQUIRE(ok, LH_ERR_OPEN, "%s: cannot be written: %s", path, strerror(errno));
    return LH_OK;
}

lh_status lh_cli_check_outputs(lh_cli *c)
{
    static const lh_opt_id ids[] = {LH_OPT_JSON, LH_OPT_SVG, LH_OPT_OUT, LH_OPT_CSV,
                                    LH_OPT_PROFILE};
    lh_status st = LH_OK;

    for (size_t i = 0; i < sizeof ids / sizeof *ids && c->rank.rank == 0 && st == LH_OK; i++)
        st = check_output(c, ids[i]);
    return c->job ? lh_job_agree(c->job, st) : st;
}

lh_status lh_cli_print(const lh_cli *c, const char *bytes, size_t n)
{
    if (c->rank.rank > 0 || n == 0)
        return LH_OK;
    LH_REQUIRE(fwrite(bytes, 1, n, stdout) == n && fflush(stdout) == 0, LH_ERR_IO,
               "standard output: writing failed: %s", strerror(errno));
    return LH_OK;
}

lh_status lh_cli_printf(const lh_cli *c, const char *fmt, ...)
{
    va_list ap;

    if (c->rank.rank > 0)
        return LH_OK;
    va_start(ap, fmt);
    int n = vfprintf(stdout, fmt, ap);
    va_end(ap);
    LH_REQUIRE(n >= 0 && fflush(stdout) == 0, LH_ERR_IO, "standard output: writing failed: %s",
               strerror(errno));
    return LH_OK;
}

int lh_cli_json_only(const lh_cli *c)
{
    const char *path = lh_opt_text(c->opts, LH_OPT_JSON);

    return path && strcmp(path, "-") == 0;
}

int lh_cli_talks(const lh_cli *c)
{
    return c->rank.rank == 0 && !lh_opt_number(c->opts, LH_OPT_QUIET);
}

lh_status lh_cli_write_file(const char *path, const char *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");

    LH_REQUIRE(f, LH_ERR_OPEN, "%s: cannot be written: %s", path, strerror(errno));
    int ok = fwrite(bytes, 1, n, f) == n;
    ok = fclose(f) == 0 && ok;
    LH_REQUIRE(ok, LH_ERR_IO, "%s: writing failed: %s", path, strerror(errno));
    return LH_OK;
}

lh_status lh_cli_print_file(const char *path, void (*print)(FILE *f, const void *what),
                            const void *what)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);

    LH_REQUIRE(f, LH_ERR_NOMEM, "%s: out of memory", path);
    print(f, what);
    lh_status st = fclose(f) == 0 ? lh_cli_write_file(path, text, n)
                                  : LH_FAIL(LH_ERR_NOMEM, "%s: out of memory", path);
    free(text);
    return st;
}

lh_status lh_cli_write_json(const lh_cli *c, json_t *value)
{
    const char *path = lh_opt_text(c->opts, LH_OPT_JSON);
    lh_status st = LH_OK;
    char *text = NULL;

    if (!path || c->rank.rank > 0)
        goto out;
    text = value ? json_dumps(value, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) : NULL;
    LH_REQUIRE_OUT(text, LH_ERR_NOMEM, "the JSON result: out of memory");
    size_t n = strlen(text);
    text[n++] = '\n'; /* in the place of the 0 byte */
    st = lh_cli_json_only(c) ? lh_cli_print(c, text, n) : lh_cli_write_file(path, text, n);
out:
    free(text);
    json_decref(value);
    return st;
}

/* ----------------------------------------------------------------- numbers */

static char *next_text(void)
{
    static char ring[16][32];
    static unsigned at;

    return ring[at++ % 16];
}

const char *lh_cli_number(int64_t x)
{
    char digits[24], *out = next_text(), *p = out;
    int n = snprintf(digits, sizeof digits, "%lld", (long long)x);

    for (int i = 0; i < n; i++) {
        *p++ = digits[i];
        if ((n - 1 - i) % 3 == 0 && i < n - 1 && digits[i] != '-')
            *p++ = ',';
    }
    *p = '\0';
    return out;
}

const char *lh_cli_bytes(size_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double x = (double)bytes;
    int unit = 0;
    char *out = next_text();

    for (; x >= 1023.5 && unit < 5; unit++)
        x /= 1024;
    (void)snprintf(out, 32, unit > 0 && x < 99.95 ? "%.1f %s" : "%.0f %s", x, units[unit]);
    return out;
}

const char *lh_cli_length(int64_t tokens)
{
    char *out = next_text();

    (void)snprintf(out, 32, tokens % 1024 == 0 ? "%lldk" : "%lld",
                   (long long)(tokens % 1024 == 0 ? tokens / 1024 : tokens));
    return out;
}
