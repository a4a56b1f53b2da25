#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cli/cli.h"
#include "runtime/cli/text.h"

static lh_status print_ids(const lh_cli *c, const int32_t *ids, int64_t n)
{
    char line[8192];
    size_t used = 0;

    line[used++] = '[';
    for (int64_t i = 0; i < n; i++) {
        used += (size_t)snprintf(line + used, sizeof line - used, i ? ", %d" : "%d", (int)ids[i]);
        if (used > sizeof line - 32) {
            LH_TRY(lh_cli_print(c, line, used));
            used = 0;
        }
    }
    line[used++] = ']';
    line[used++] = '\n';
    return lh_cli_print(c, line, used);
}

static lh_status encode(const lh_cli *c, const char *text, size_t n_bytes)
{
    int32_t *ids;
    int64_t n;

    LH_TRY(lh_tokenizer_encode(c->tokenizer, text, n_bytes,
                               (int)lh_opt_number(c->opts, LH_OPT_SPECIAL), &ids, &n));
    lh_status st = print_ids(c, ids, n);
    free(ids);
    return st;
}

static lh_status decode(const lh_cli *c, const char *json, size_t n_bytes, const char *where,
                        char **text, size_t *n)
{
    int32_t *ids;
    int64_t n_ids;

    LH_TRY(lh_cli_parse_ids(json, n_bytes, lh_tokenizer_size(c->tokenizer), where, &ids, &n_ids));
    lh_status st = lh_tokenizer_decode(c->tokenizer, ids, n_ids,
                                       (int)lh_opt_number(c->opts, LH_OPT_SPECIAL), text, n);
    free(ids);
    return st;
}

/* One JSON string to a line with its ids. */
static lh_status encode_line(const lh_cli *c, const char *json, size_t n_bytes, const char *where)
{
    json_error_t error;
    json_t *value = json_loadb(json, n_bytes, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    lh_status st = json_is_string(value)
                       ? encode(c, json_string_value(value), json_string_length(value))
                       : LH_FAIL(LH_ERR_DATA, "%s: expected one JSON string%s%s", where,
                                 value ? "" : ": ", value ? "" : error.text);

    json_decref(value);
    return st;
}

/* One JSON array of ids to a line with its text as a JSON string. */
static lh_status decode_line(const lh_cli *c, const char *json, size_t n_bytes, const char *where)
{
    lh_status st = LH_OK;
    char *raw = NULL, *clean = NULL, *line = NULL;
    json_t *value = NULL;
    size_t n;

    LH_TRY_OUT(decode(c, json, n_bytes, where, &raw, &n));
    LH_TRY_OUT(lh_text_clean(raw, n, &clean, &n));
    value = json_stringn(clean, n);
    line = json_dumps(value, JSON_ENCODE_ANY);
    LH_REQUIRE_OUT(line, LH_ERR_NOMEM, "%s: out of memory", where);
    LH_TRY_OUT(lh_cli_printf(c, "%s\n", line));
out:
    free(raw);
    free(clean);
    free(line);
    json_decref(value);
    return st;
}

static lh_status each_line(const lh_cli *c, const char *text, size_t n_bytes, const char *name)
{
    int is_decode = (int)lh_opt_number(c->opts, LH_OPT_DECODE);
    char where[256];

    for (int line = 1; n_bytes > 0; line++) {
        const char *end = memchr(text, '\n', n_bytes);
        size_t len = end ? (size_t)(end - text) : n_bytes;
        (void)snprintf(where, sizeof where, "%.200s: line %d", name, line);
        LH_TRY(is_decode ? decode_line(c, text, len, where) : encode_line(c, text, len, where));
        len += end != NULL;
        text += len;
        n_bytes -= len;
    }
    return LH_OK;
}

static lh_status decode_all(const lh_cli *c, const char *json, size_t n_bytes, const char *name)
{
    char *text;
    size_t n;

    LH_TRY(decode(c, json, n_bytes, name, &text, &n));
    lh_status st = lh_cli_print(c, text, n);
    free(text);
    return st;
}

lh_status lh_cli_tokenize(lh_cli *c)
{
    const char *path = lh_opt_text(c->opts, LH_OPT_FILE);
    const char *name = path && strcmp(path, "-") != 0 ? path : "standard input";
    char *text;
    size_t n;
    lh_status st;

    LH_TRY(lh_cli_find_model(c));
    LH_TRY(lh_tokenizer_open(&c->tokenizer, c->model_dir));
    LH_TRY(lh_cli_read(c, &path, path ? 1 : 0, &text, &n));
    if (lh_opt_number(c->opts, LH_OPT_LINES))
        st = each_line(c, text, n, name);
    else if (lh_opt_number(c->opts, LH_OPT_DECODE))
        st = decode_all(c, text, n, name);
    else
        st = encode(c, text, n);
    free(text);
    return st;
}
