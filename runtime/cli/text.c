#include "runtime/cli/text.h"

#include <stdlib.h>
#include <string.h>

static lh_status append(lh_text *t, const void *bytes, size_t n)
{
    if (t->room - t->n <= n) {
        size_t room = 2 * (t->n + n) + 64;
        char *grown = realloc(t->bytes, room);
        LH_REQUIRE(grown, LH_ERR_NOMEM, "text of %zu bytes: out of memory", room);
        t->bytes = grown;
        t->room = room;
    }
    memcpy(t->bytes + t->n, bytes, n);
    t->n += n;
    t->bytes[t->n] = '\0';
    return LH_OK;
}

/* Bytes of the character that begins with `b`; 0: none does. */
static int char_bytes(unsigned char b)
{
    return b < 0x80 ? 1 : b < 0xc2 ? 0 : b < 0xe0 ? 2 : b < 0xf0 ? 3 : b < 0xf5 ? 4 : 0;
}

/* 1: `b` may be byte number `i` >= 1 of a character that begins with `first`. */
static int continues(unsigned char first, int i, unsigned char b)
{
    unsigned char low = 0x80, high = 0xbf;

    if (i == 1) {
        low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
        high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    }
    return b >= low && b <= high;
}

static lh_status replace_part(lh_text *t)
{
    if (t->n_part == 0)
        return LH_OK;
    t->n_part = 0;
    return append(t, "\xef\xbf\xbd", 3);
}

static lh_status add_byte(lh_text *t, unsigned char b)
{
    if (t->n_part > 0 && !continues(t->part[0], t->n_part, b))
        LH_TRY(replace_part(t));
    t->part[t->n_part++] = b;
    if (char_bytes(t->part[0]) == 0)
        return replace_part(t);
    if (t->n_part < char_bytes(t->part[0]))
        return LH_OK;
    int n = t->n_part;
    t->n_part = 0;
    return append(t, t->part, (size_t)n);
}

/* The first stop string that ends after byte `from`, else how much of the end may become one. */
static void find_stop(lh_text *t, size_t from)
{
    size_t held = 0;

    for (int i = 0; i < t->n_stops; i++) {
        size_t len = strlen(t->stops[i]);
        size_t begin = from + 1 > len ? from + 1 - len : 0;
        for (; len > 0 && begin < t->n; begin++) {
            size_t left = t->n - begin;
            if (memcmp(t->bytes + begin, t->stops[i], left < len ? left : len) != 0)
                continue;
            if (left >= len) {
                t->n = begin; /* a stop string that began earlier still wins the next rounds */
                t->stopped = 1;
            } else if (left > held) {
                held = left;
            }
            break;
        }
    }
    if (t->stopped)
        t->bytes[t->n] = '\0';
    t->n_safe = t->stopped ? t->n : t->n - held;
}

lh_status lh_text_add(lh_text *t, const char *bytes, size_t n)
{
    size_t from = t->n;

    if (t->stopped)
        return LH_OK;
    for (size_t i = 0; i < n; i++)
        LH_TRY(add_byte(t, (unsigned char)bytes[i]));
    find_stop(t, from);
    return LH_OK;
}

lh_status lh_text_end(lh_text *t)
{
    size_t from = t->n;

    if (!t->stopped) {
        LH_TRY(replace_part(t));
        find_stop(t, from);
        t->n_safe = t->n;
    }
    return LH_OK;
}

void lh_text_free(lh_text *t)
{
    free(t->bytes);
    *t = (lh_text){0};
}

lh_status lh_text_clean(const char *bytes, size_t n, char **out, size_t *n_out)
{
    lh_text t = {0};
    lh_status st = LH_OK;

    LH_TRY_OUT(lh_text_add(&t, bytes, n));
    LH_TRY_OUT(lh_text_end(&t));
    LH_TRY_OUT(append(&t, "", 0));
    *out = t.bytes;
    *n_out = t.n;
    t.bytes = NULL;
out:
    lh_text_free(&t);
    return st;
}
