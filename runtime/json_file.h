/*
 * JSON files of a checkpoint: strict (no key twice, valid UTF-8, nothing after the value).
 */
#ifndef LH_RUNTIME_JSON_FILE_H
#define LH_RUNTIME_JSON_FILE_H

#include <jansson.h>
#include <stddef.h>

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A file of at most max_bytes that holds one JSON object; the caller json_decref()s it.
 * LH_ERR_OPEN; LH_ERR_DATA with file and line. */
lh_status lh_json_read(json_t **out, const char *path, size_t max_bytes);

/* The same from memory; `what` names it in messages. */
lh_status lh_json_parse(json_t **out, const char *text, size_t bytes, const char *what);

/* A value as one line of text for a message, at most 63 bytes of it; "absent" for NULL. Returns
 * buf. */
const char *lh_json_show(const json_t *value, char buf[64]);

#ifdef __cplusplus
}
#endif
#endif
