#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "runtime/tokenizer_internal.h"

struct lh_tokenizer {
    lh_vocab vocab;
    lh_control control;
};

/* An encoding under way. */
typedef struct encoder {
    const lh_tokenizer *t;
    lh_id_list list;
    lh_bpe_scratch scratch;
} encoder;

lh_status lh_tokenizer_open(lh_tokenizer **out, const char *model_dir)
{
    lh_status st = LH_OK;
    lh_tokenizer *t = NULL;
    char *path = NULL;
    size_t room = strlen(model_dir) + sizeof "/tokenizer_config.json";

    t = calloc(1, sizeof *t);
    path = malloc(room);
    LH_REQUIRE_OUT(t && path, LH_ERR_NOMEM, "tokenizer");
    (void)snprintf(path, room, "%s/tiktoken.model", model_dir);
    LH_TRY_OUT(lh_vocab_read(&t->vocab, path));
    (void)snprintf(path, room, "%s/tokenizer_config.json", model_dir);
    LH_TRY_OUT(lh_control_read(&t->control, t->vocab.n_tokens, path));
    *out = t;
    t = NULL;
out:
    lh_tokenizer_close(t);
    free(path);
    return st;
}

void lh_tokenizer_close(lh_tokenizer *t)
{
    if (!t)
        return;
    lh_vocab_free(&t->vocab);
    lh_control_free(&t->control);
    free(t);
}

int64_t lh_tokenizer_size(const lh_tokenizer *t)
{
    return (int64_t)t->vocab.n_tokens + LH_N_CONTROL;
}

int32_t lh_tokenizer_special(const lh_tokenizer *t, lh_special which)
{
    return t->vocab.n_tokens + lh_control_role(&t->control, which);
}

/* How many bytes the character at p has; 0 where it is not valid UTF-8 (overlong forms,
 * surrogates, beyond U+10FFFF, cut off). */
static size_t utf8_length(const unsigned char *p, size_t left)
{
    unsigned char low = 0x80, high = 0xbf;
    size_t n = p[0] < 0x80 ? 1 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if (n == 1)
        return 1;
    if (p[0] < 0xc2 || p[0] > 0xf4 || left < n)
        return 0;
    /* Only the second byte has narrower bounds, after these first ones. */
    if (p[0] == 0xe0)
        low = 0xa0;
    else if (p[0] == 0xed)
        high = 0x9f;
    else if (p[0] == 0xf0)
        low = 0x90;
    else if (p[0] == 0xf4)
        high = 0x8f;
    if (p[1] < low || p[1] > high)
        return 0;
    for (size_t i = 2; i < n; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    return n;
}

static lh_status check_text(const char *text, size_t n_bytes)
{
    LH_REQUIRE(n_bytes <= INT32_MAX, LH_ERR_DATA, "text of %zu bytes, expected at most %d", n_bytes,
               INT32_MAX);
    for (size_t at = 0; at < n_bytes;) {
        size_t n = utf8_length((const unsigned char *)text + at, n_bytes - at);
        LH_REQUIRE(n > 0, LH_ERR_DATA, "invalid UTF-8 at byte %zu of the text", at);
        at += n;
    }
    return LH_OK;
}

/* Text without control tokens. */
static lh_status encode_plain(encoder *e, const char *text, size_t n_bytes)
{
    for (size_t at = 0, end; at < n_bytes; at = end) {
        end = lh_split_next(text, n_bytes, at);
        LH_TRY(lh_bpe_encode(&e->t->vocab, &e->scratch, text + at, end - at, &e->list));
    }
    return LH_OK;
}

/* Text in which names of control tokens are these; what is between two of them is split alone. */
static lh_status encode_special(encoder *e, const char *text, size_t n_bytes)
{
    size_t begin = 0;
    for (size_t at = 0; at < n_bytes; at++) {
        int offset = lh_control_match(&e->t->control, text + at, n_bytes - at);
        if (offset < 0)
            continue;
        LH_TRY(encode_plain(e, text + begin, at - begin));
        LH_TRY(lh_id_list_add(&e->list, e->t->vocab.n_tokens + offset));
        begin = at + e->t->control.name_bytes[offset];
        at = begin - 1;
    }
    return n_bytes > begin ? encode_plain(e, text + begin, n_bytes - begin) : LH_OK;
}

/* Ends an encoding: hands its ids over, or frees them where st is a failure. */
static lh_status finish(encoder *e, lh_status st, int32_t **ids, int64_t *n_ids)
{
    lh_bpe_scratch_free(&e->scratch);
    if (st == LH_OK && !e->list.ids) {
        e->list.ids = malloc(sizeof *e->list.ids);
        if (!e->list.ids)
            st = LH_FAIL(LH_ERR_NOMEM, "a list of token ids");
    }
    if (st != LH_OK) {
        free(e->list.ids);
        return st;
    }
    *ids = e->list.ids;
    *n_ids = (int64_t)e->list.count;
    return LH_OK;
}

lh_status lh_tokenizer_encode(const lh_tokenizer *t, const char *text, size_t n_bytes, int special,
                              int32_t **ids, int64_t *n_ids)
{
    encoder e = {.t = t};
    LH_TRY(check_text(text, n_bytes));
    lh_status st = special ? encode_special(&e, text, n_bytes) : encode_plain(&e, text, n_bytes);
    return finish(&e, st, ids, n_ids);
}

/* The bytes of an id; NULL where it is out of range. */
static const char *id_bytes(const lh_tokenizer *t, int32_t id, int special, size_t *n_bytes)
{
    if (id < 0 || id >= lh_tokenizer_size(t))
        return NULL;
    if (id < t->vocab.n_tokens) {
        *n_bytes = t->vocab.tokens[id].n_bytes;
        return t->vocab.bytes + t->vocab.tokens[id].at;
    }
    int offset = id - t->vocab.n_tokens;
    *n_bytes = special ? t->control.name_bytes[offset] : 0;
    return t->control.names[offset];
}

lh_status lh_tokenizer_decode(const lh_tokenizer *t, const int32_t *ids, int64_t n_ids, int special,
                              char **text, size_t *n_bytes)
{
    size_t n, total = 1;
    for (int64_t i = 0; i < n_ids; i++) {
        LH_REQUIRE(id_bytes(t, ids[i], special, &n), LH_ERR_DATA,
                   "token %d at index %lld, expected 0 to %lld", ids[i], (long long)i,
                   (long long)lh_tokenizer_size(t) - 1);
        LH_REQUIRE(lh_add_size(&total, total, n) == 0, LH_ERR_NOMEM, "text of the tokens");
    }
    char *out = malloc(total), *p = out;
    LH_REQUIRE(out, LH_ERR_NOMEM, "text of %zu bytes", total);
    for (int64_t i = 0; i < n_ids; i++) {
        const char *bytes = id_bytes(t, ids[i], special, &n);
        memcpy(p, bytes, n);
        p += n;
    }
    *p = '\0';
    *text = out;
    *n_bytes = total - 1;
    return LH_OK;
}

/* ROLE TOKEN role MIDDLE: how every turn begins. */
static lh_status add_turn(encoder *e, const char *role, int index)
{
    static const struct {
        const char *name;
        lh_special token;
    } roles[] = {{"system", LH_IM_SYSTEM}, {"user", LH_IM_USER}, {"assistant", LH_IM_ASSISTANT}};
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
        if (strcmp(role, roles[i].name) != 0)
            continue;
        LH_TRY(lh_id_list_add(&e->list, lh_tokenizer_special(e->t, roles[i].token)));
        LH_TRY(encode_plain(e, role, strlen(role)));
        return lh_id_list_add(&e->list, lh_tokenizer_special(e->t, LH_IM_MIDDLE));
    }
    return LH_FAIL(LH_ERR_DATA, "message %d: role '%.40s', expected system, user or assistant",
                   index, role);
}

static lh_status add_conversation(encoder *e, const lh_message *messages, int n_messages)
{
    for (int i = 0; i < n_messages; i++) {
        LH_REQUIRE(messages[i].role, LH_ERR_DATA, "message %d has no role", i);
        LH_TRY(check_text(messages[i].text, messages[i].n_bytes));
        LH_TRY(add_turn(e, messages[i].role, i));
        LH_TRY(encode_plain(e, messages[i].text, messages[i].n_bytes));
        LH_TRY(lh_id_list_add(&e->list, lh_tokenizer_special(e->t, LH_IM_END)));
    }
    return add_turn(e, "assistant", n_messages);
}

lh_status lh_tokenizer_chat(const lh_tokenizer *t, const lh_message *messages, int n_messages,
                            int32_t **ids, int64_t *n_ids)
{
    encoder e = {.t = t};
    return finish(&e, add_conversation(&e, messages, n_messages), ids, n_ids);
}
