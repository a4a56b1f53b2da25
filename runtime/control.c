#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/tokenizer_internal.h"

#define MAX_CONFIG_BYTES ((size_t)16 << 20)
#define N_BEYOND                                                                                   \
    2 /* ids that the published tokenizer names past the model's vocabulary: never used */
#define MAX_NAME_BYTES 1024

static const struct {
    int offset;
    const char *name;
} defaults[] = {
    {LH_BOS, "[BOS]"},
    {LH_EOS, "[EOS]"},
    {LH_IM_END, "<|im_end|>"},
    {LH_IM_USER, "<|im_user|>"},
    {LH_IM_ASSISTANT, "<|im_assistant|>"},
    {6, "<|start_header_id|>"},
    {7, "<|end_header_id|>"},
    {LH_EOT, "[EOT]"},
    {LH_IM_SYSTEM, "<|im_system|>"},
    {11, "<|tool_calls_section_begin|>"},
    {12, "<|tool_calls_section_end|>"},
    {13, "<|tool_call_begin|>"},
    {14, "<|tool_call_argument_begin|>"},
    {15, "<|tool_call_end|>"},
    {LH_IM_MIDDLE, "<|im_middle|>"},
    {254, "[UNK]"},
    {LH_PAD, "[PAD]"},
};
#define N_DEFAULTS (sizeof defaults / sizeof *defaults)

void lh_control_free(lh_control *c)
{
    for (int i = 0; i < LH_N_CONTROL; i++)
        free(c->names[i]);
    *c = (lh_control){0};
}

static int find_name(const lh_control *c, const char *name)
{
    for (int i = 0; i < LH_N_CONTROL; i++)
        if (c->names[i] && strcmp(c->names[i], name) == 0)
            return i;
    return -1;
}

/* Two ids of one name could not be told apart in text. */
static lh_status set_name(lh_control *c, int offset, const char *name, int32_t first_id,
                          const char *path)
{
    int other = find_name(c, name);
    LH_REQUIRE(other < 0, LH_ERR_DATA, "%s: control token '%s' has two ids, %d and %d", path, name,
               first_id + other, first_id + offset);
    c->names[offset] = strdup(name);
    LH_REQUIRE(c->names[offset], LH_ERR_NOMEM, "name of a control token");
    c->name_bytes[offset] = strlen(name);
    return LH_OK;
}

static lh_status add_token(lh_control *c, const char *key, const json_t *token, int32_t first_id,
                           const char *path)
{
    char *end;
    errno = 0;
    long id = strtol(key, &end, 10);
    LH_REQUIRE(key[0] >= '0' && key[0] <= '9' && *end == '\0' && errno == 0 && id >= first_id &&
                   id < first_id + LH_N_CONTROL + N_BEYOND,
               LH_ERR_DATA, "%s: added_tokens_decoder: id '%.40s', expected %d to %d", path, key,
               first_id, first_id + LH_N_CONTROL + N_BEYOND - 1);
    if (id >= first_id + LH_N_CONTROL)
        return LH_OK;
    const char *name = json_string_value(json_object_get(token, "content"));
    LH_REQUIRE(name && name[0] && strlen(name) <= MAX_NAME_BYTES, LH_ERR_DATA,
               "%s: added_tokens_decoder: %ld: expected an object with a 'content' string of 1 to "
               "%d bytes",
               path, id, MAX_NAME_BYTES);
    int offset = (int)(id - first_id);
    LH_REQUIRE(!c->names[offset], LH_ERR_DATA, "%s: added_tokens_decoder: id %ld is there twice",
               path, id);
    return set_name(c, offset, name, first_id, path);
}

static lh_status read_config(lh_control *c, int32_t first_id, const char *path)
{
    lh_status st = LH_OK;
    char *text = NULL;
    size_t n_bytes = 0;
    json_t *root = NULL;
    json_error_t error;

    LH_TRY_OUT(lh_read_text_file(&text, &n_bytes, path, MAX_CONFIG_BYTES));
    root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &error);
    LH_REQUIRE_OUT(root, LH_ERR_DATA, "%s line %d: %s", path, error.line, error.text);
    LH_REQUIRE_OUT(json_is_object(root), LH_ERR_DATA, "%s: expected an object", path);
    json_t *added = json_object_get(root, "added_tokens_decoder");
    LH_REQUIRE_OUT(!added || json_is_object(added), LH_ERR_DATA,
                   "%s: added_tokens_decoder: expected an object", path);
    const char *key;
    json_t *token;
    json_object_foreach(added, key, token)
    {
        LH_TRY_OUT(add_token(c, key, token, first_id, path));
    }
out:
    json_decref(root);
    free(text);
    return st;
}

static void index_names(lh_control *c)
{
    for (int i = 0; i < LH_N_CONTROL; i++) {
        int at = i;
        for (; at > 0 && c->name_bytes[c->by_length[at - 1]] < c->name_bytes[i]; at--)
            c->by_length[at] = c->by_length[at - 1];
        c->by_length[at] = (uint8_t)i;
        c->starts[(unsigned char)c->names[i][0]] = 1;
    }
}

lh_status lh_control_read(lh_control *c, int32_t first_id, const char *config_path)
{
    *c = (lh_control){0};
    if (access(config_path, F_OK) == 0)
        LH_TRY(read_config(c, first_id, config_path));
    for (size_t i = 0; i < N_DEFAULTS; i++)
        if (!c->names[defaults[i].offset] && find_name(c, defaults[i].name) < 0)
            LH_TRY(set_name(c, defaults[i].offset, defaults[i].name, first_id, config_path));
    for (int i = 0; i < LH_N_CONTROL; i++) {
        if (c->names[i])
            continue;
        char name[48];
        (void)snprintf(name, sizeof name, "<|reserved_token_%d|>", first_id + i);
        LH_TRY(set_name(c, i, name, first_id, config_path));
    }
    index_names(c);
    return LH_OK;
}

int lh_control_match(const lh_control *c, const char *text, size_t n_bytes)
{
    if (n_bytes == 0 || !c->starts[(unsigned char)text[0]])
        return -1;
    for (int i = 0; i < LH_N_CONTROL; i++) {
        int offset = c->by_length[i];
        size_t n = c->name_bytes[offset];
        if (n <= n_bytes && memcmp(c->names[offset], text, n) == 0)
            return offset;
    }
    return -1;
}

int lh_control_role(const lh_control *c, lh_special which)
{
    for (size_t i = 0; i < N_DEFAULTS; i++) {
        if (defaults[i].offset != (int)which)
            continue;
        int offset = find_name(c, defaults[i].name);
        return offset >= 0 ? offset : (int)which;
    }
    return (int)which;
}
