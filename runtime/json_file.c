#include "runtime/json_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"

lh_status lh_json_parse(json_t **out, const char *text, size_t bytes, const char *what)
{
    json_error_t error;
    json_t *v = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);

    LH_REQUIRE(v, json_error_code(&error) == json_error_out_of_memory ? LH_ERR_NOMEM : LH_ERR_DATA,
               "%s: line %d: %s", what, error.line, error.text);
    if (!json_is_object(v)) {
        json_decref(v);
        return LH_FAIL(LH_ERR_DATA, "%s: not a JSON object", what);
    }
    *out = v;
    return LH_OK;
}

lh_status lh_json_read(json_t **out, const char *path, size_t max_bytes)
{
    lh_status st = LH_OK;
    int fd = -1;
    size_t bytes = 0;
    void *text = NULL;

    LH_TRY(lh_file_open(&fd, &bytes, path));
    LH_REQUIRE_OUT(bytes <= max_bytes, LH_ERR_DATA, "%s: %zu bytes, expected at most %zu", path,
                   bytes, max_bytes);
    LH_TRY_OUT(lh_alloc(&text, bytes, path));
    LH_TRY_OUT(lh_file_read(fd, text, bytes, 0, path));
    LH_TRY_OUT(lh_json_parse(out, text, bytes, path));
out:
    free(text);
    (void)close(fd);
    return st;
}

const char *lh_json_show(const json_t *value, char buf[64])
{
    char *text = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;

    (void)snprintf(buf, 64, "%s", value ? (text ? text : "?") : "absent");
    free(text);
    return buf;
}
