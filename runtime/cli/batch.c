#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "runtime/cli/request.h"

#define MAX_MESSAGES 4096

static lh_status number(const json_t *value, const char *key, const char *where, double min,
                        double max, double *out)
{
    double x = json_number_value(value);

    LH_REQUIRE(json_is_number(value) && x >= min && x <= max, LH_ERR_DATA,
               "%s: '%s': expected a number from %g to %g", where, key, min, max);
    *out = x;
    return LH_OK;
}

static lh_status whole(const json_t *value, const char *key, const char *where, int64_t min,
                       int64_t max, int64_t *out)
{
    LH_REQUIRE(json_is_integer(value) && json_integer_value(value) >= min &&
                   json_integer_value(value) <= max,
               LH_ERR_DATA, "%s: '%s': expected a whole number from %lld to %lld", where, key,
               (long long)min, (long long)max);
    *out = json_integer_value(value);
    return LH_OK;
}

static lh_status add_stop(lh_request *r, const json_t *value, const char *where)
{
    LH_REQUIRE(json_is_string(value) && r->n_stops < LH_MAX_STOPS &&
                   strlen(json_string_value(value)) == json_string_length(value),
               LH_ERR_DATA, "%s: 'stop': expected a string or at most %d strings", where,
               LH_MAX_STOPS);
    r->stops[r->n_stops++] = json_string_value(value);
    return LH_OK;
}

static lh_status set_stops(lh_request *r, const json_t *value, const char *where)
{
    r->n_stops = 0;
    if (!json_is_array(value))
        return add_stop(r, value, where);
    for (size_t i = 0; i < json_array_size(value); i++)
        LH_TRY(add_stop(r, json_array_get(value, i), where));
    return LH_OK;
}

static lh_status set_messages(lh_cli *c, lh_request *r, const json_t *value, const char *where)
{
    lh_status st = LH_OK;
    size_t n = json_array_size(value);
    lh_message *messages = NULL;

    LH_REQUIRE(n > 0 && n <= MAX_MESSAGES, LH_ERR_DATA,
               "%s: 'messages': expected an array of 1 to %d messages", where, MAX_MESSAGES);
    messages = calloc(n, sizeof *messages);
    LH_REQUIRE(messages, LH_ERR_NOMEM, "%s: out of memory", where);
    for (size_t i = 0; i < n; i++) {
        const json_t *m = json_array_get(value, i);
        const json_t *role = json_object_get(m, "role"), *content = json_object_get(m, "content");
        LH_REQUIRE_OUT(json_is_string(role) && json_is_string(content) && json_object_size(m) == 2,
                       LH_ERR_DATA, "%s: message %zu: expected \"role\" and \"content\", strings",
                       where, i);
        messages[i] = (lh_message){json_string_value(role), json_string_value(content),
                                   json_string_length(content)};
    }
    st = lh_tokenizer_chat(c->tokenizer, messages, (int)n, &r->ids, &r->n_ids);
out:
    free(messages);
    return st;
}

static lh_status set_member(lh_cli *c, lh_request *r, const char *key, const json_t *value,
                            const char *where)
{
    int64_t i = 0;
    double x = 0;

    if (strcmp(key, "prompt") == 0) {
        LH_REQUIRE(json_is_string(value), LH_ERR_DATA, "%s: 'prompt': expected a string", where);
        return lh_tokenizer_encode(c->tokenizer, json_string_value(value),
                                   json_string_length(value), 0, &r->ids, &r->n_ids);
    }
    if (strcmp(key, "messages") == 0)
        return set_messages(c, r, value, where);
    if (strcmp(key, "stop") == 0)
        return set_stops(r, value, where);
    if (strcmp(key, "max_tokens") == 0)
        return whole(value, key, where, 1, 1 << 30, &r->max_tokens);
    if (strcmp(key, "temperature") == 0) {
        LH_TRY(number(value, key, where, 0, 100, &x));
        r->draw.how.temperature = (float)x;
    } else if (strcmp(key, "top_p") == 0) {
        LH_TRY(number(value, key, where, 0, 1, &x));
        r->draw.how.top_p = (float)x;
    } else if (strcmp(key, "min_p") == 0) {
        LH_TRY(number(value, key, where, 0, 1, &x));
        r->draw.how.min_p = (float)x;
    } else if (strcmp(key, "top_k") == 0) {
        LH_TRY(whole(value, key, where, 0, 1 << 30, &i));
        r->draw.how.top_k = (int)i;
    } else if (strcmp(key, "seed") == 0) {
        LH_TRY(whole(value, key, where, 0, INT64_MAX, &i));
        r->draw.how.seed = (uint64_t)i;
    } else if (strcmp(key, "logprobs") == 0) {
        LH_TRY(whole(value, key, where, 0, 100, &i));
        r->n_logprobs = (int)i;
    } else {
        return LH_FAIL(LH_ERR_DATA,
                       "%s: unknown '%.64s', expected prompt, messages, max_tokens, temperature, "
                       "top_p, top_k, min_p, seed, stop or logprobs",
                       where, key);
    }
    return LH_OK;
}

static lh_status parse_line(lh_cli *c, const char *text, size_t n_bytes, int line, lh_request *r)
{
    char where[64];
    json_error_t error;
    json_t *value;
    const char *key;

    (void)snprintf(where, sizeof where, "--prompts, line %d", line);
    LH_TRY(lh_request_init(c, r));
    r->origin = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    LH_REQUIRE(json_is_object(r->origin), LH_ERR_DATA, "%s: expected one JSON object%s%s", where,
               r->origin ? "" : ": ", r->origin ? "" : error.text);
    LH_REQUIRE(!json_object_get(r->origin, "prompt") != !json_object_get(r->origin, "messages"),
               LH_ERR_DATA, "%s: expected either \"prompt\" or \"messages\"", where);
    json_object_foreach(r->origin, key, value) LH_TRY(set_member(c, r, key, value, where));
    LH_TRY(lh_sampling_check(&r->draw.how));
    return lh_request_check(c, r, where);
}

/* Length of the line at `text`, and 1 when it holds more than white space. */
static int take_line(const char *text, size_t n_bytes, size_t *len)
{
    const char *end = memchr(text, '\n', n_bytes);

    *len = end ? (size_t)(end - text) : n_bytes;
    for (size_t i = 0; i < *len; i++)
        if (!strchr(" \t\r", text[i]))
            return 1;
    return 0;
}

lh_status lh_batch_parse(lh_cli *c, const char *text, size_t n_bytes, lh_request **out, int *n_out)
{
    lh_status st = LH_OK;
    lh_request *list = NULL;
    size_t len;
    int n = 0, room = 0;

    for (int line = 1; n_bytes > 0; line++) {
        if (take_line(text, n_bytes, &len)) {
            if (n == room) {
                room = 2 * room + 16;
                lh_request *grown = realloc(list, (size_t)room * sizeof *list);
                LH_REQUIRE_OUT(grown, LH_ERR_NOMEM, "--prompts: out of memory at line %d", line);
                list = grown;
            }
            list[n] = (lh_request){0};
            LH_TRY_OUT(parse_line(c, text, len, line, &list[n++]));
        }
        len += len < n_bytes; /* the line's end */
        text += len;
        n_bytes -= len;
    }
    LH_REQUIRE_OUT(n > 0, LH_ERR_DATA, "--prompts: empty, expected one JSON object a line");
    *out = list;
    *n_out = n;
    return LH_OK;
out:
    for (int i = 0; i < n; i++)
        lh_request_free(&list[i]);
    free(list);
    return st;
}
