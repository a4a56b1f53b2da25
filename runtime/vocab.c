#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "runtime/tokenizer_internal.h"

#define MAX_FILE_BYTES ((size_t)64 << 20)
#define MAX_LINE_BYTES 4096
#define MAX_TOKENS (1 << 20)

lh_status lh_read_text_file(char **text, size_t *n_bytes, const char *path, size_t max_bytes)
{
    lh_status st = LH_OK;
    char *buf = NULL;
    size_t size = 0;
    int fd = -1;

    LH_TRY(lh_file_open(&fd, &size, path));
    LH_REQUIRE_OUT(size <= max_bytes, LH_ERR_DATA, "%s: %zu bytes, expected at most %zu", path,
                   size, max_bytes);
    buf = malloc(size + 1);
    LH_REQUIRE_OUT(buf, LH_ERR_NOMEM, "%s: %zu bytes", path, size);
    LH_TRY_OUT(lh_file_read(fd, buf, size, 0, path));
    buf[size] = '\0';
    *text = buf;
    *n_bytes = size;
    buf = NULL;
out:
    free(buf);
    (void)close(fd);
    return st;
}

static uint32_t hash_bytes(const char *bytes, size_t n_bytes)
{
    const uint64_t factor = 0x9e3779b97f4a7c15u;
    uint64_t h = n_bytes * factor;
    while (n_bytes > 0) {
        uint64_t word = 0;
        size_t n = n_bytes < sizeof word ? n_bytes : sizeof word;
        memcpy(&word, bytes, n);
        h = (h ^ word) * factor;
        h ^= h >> 32;
        bytes += n;
        n_bytes -= n;
    }
    return (uint32_t)h;
}

/* The slot of the token with these bytes, or the empty one where it belongs. */
static lh_vocab_slot *find_slot(const lh_vocab *v, uint32_t hash, const char *bytes, size_t n_bytes)
{
    for (uint32_t i = hash;; i++) {
        lh_vocab_slot *slot = &v->slots[i & v->slot_mask];
        if (slot->id_plus_1 == 0)
            return slot;
        if (slot->hash != hash)
            continue;
        const lh_vocab_token *t = &v->tokens[slot->id_plus_1 - 1];
        if (t->n_bytes == n_bytes && memcmp(v->bytes + t->at, bytes, n_bytes) == 0)
            return slot;
    }
}

int32_t lh_vocab_find(const lh_vocab *v, const char *bytes, size_t n_bytes)
{
    if (n_bytes > v->longest_bytes)
        return -1;
    return find_slot(v, hash_bytes(bytes, n_bytes), bytes, n_bytes)->id_plus_1 - 1;
}

void lh_vocab_free(lh_vocab *v)
{
    free(v->bytes);
    free(v->tokens);
    free(v->slots);
    *v = (lh_vocab){0};
}

static int base64_digit(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* How many bytes were decoded to out; 0: empty, or not the one canonical form. out may be text. */
static size_t base64_decode(char *out, const char *text, size_t n_chars)
{
    size_t n = 0, n_pad = 0;
    if (n_chars == 0 || n_chars % 4 != 0)
        return 0;
    while (n_pad < 2 && text[n_chars - 1 - n_pad] == '=')
        n_pad++;
    uint32_t bits = 0;
    for (size_t i = 0; i < n_chars - n_pad; i++) {
        int digit = base64_digit(text[i]);
        if (digit < 0)
            return 0;
        bits = bits << 6 | (uint32_t)digit;
        if (i % 4 != 0)
            out[n++] = (char)(bits >> (6 - 2 * (i % 4)) & 0xff);
    }
    /* Bits that the padding cuts off must be 0. */
    return bits & ((1u << 2 * n_pad) - 1) ? 0 : n;
}

/* Decimal digits without leading zeros, at most `max`; -1 otherwise. */
static int32_t parse_rank(const char *text, size_t n_chars, int32_t max)
{
    int32_t x = 0;
    if (n_chars == 0 || (text[0] == '0' && n_chars > 1))
        return -1;
    for (size_t i = 0; i < n_chars; i++) {
        if (text[i] < '0' || text[i] > '9' || x > max / 10)
            return -1;
        x = 10 * x + (text[i] - '0');
    }
    return x <= max ? x : -1;
}

/* One line, already in v->bytes; its token is decoded in place. */
static lh_status read_line(lh_vocab *v, size_t at, size_t n_chars, const char *path, int line)
{
    char *text = v->bytes + at, *space = memchr(text, ' ', n_chars);
    LH_REQUIRE(space, LH_ERR_DATA, "%s line %d: expected base64, a space and a rank", path, line);
    size_t n_code = (size_t)(space - text);
    int32_t id = parse_rank(space + 1, n_chars - n_code - 1, v->n_tokens - 1);
    LH_REQUIRE(id >= 0, LH_ERR_DATA, "%s line %d: rank '%.*s', expected a number below %d", path,
               line, (int)lh_min64((int64_t)(n_chars - n_code - 1), 20), space + 1, v->n_tokens);
    LH_REQUIRE(v->tokens[id].n_bytes == 0, LH_ERR_DATA, "%s line %d: rank %d is there twice", path,
               line, id);
    size_t n = base64_decode(text, text, n_code);
    LH_REQUIRE(n > 0, LH_ERR_DATA, "%s line %d: the token is not canonical base64", path, line);

    uint32_t hash = hash_bytes(text, n);
    lh_vocab_slot *slot = find_slot(v, hash, text, n);
    LH_REQUIRE(slot->id_plus_1 == 0, LH_ERR_DATA, "%s line %d: the token of rank %d again", path,
               line, slot->id_plus_1 - 1);
    *slot = (lh_vocab_slot){hash, id + 1};
    v->tokens[id] = (lh_vocab_token){(uint32_t)at, (uint32_t)n};
    if (n > v->longest_bytes)
        v->longest_bytes = (uint32_t)n;
    if (n == 1)
        v->byte_ids[(unsigned char)text[0]] = id;
    return LH_OK;
}

static lh_status allocate(lh_vocab *v, int64_t n_lines, const char *path)
{
    LH_REQUIRE(n_lines >= 256 && n_lines <= MAX_TOKENS, LH_ERR_DATA,
               "%s: %lld lines, expected 256 to %d", path, (long long)n_lines, MAX_TOKENS);
    uint32_t n_slots = 512;
    void *tokens = NULL, *slots = NULL;
    while (n_slots < 2 * n_lines)
        n_slots *= 2;
    LH_TRY(lh_alloc(&tokens, (size_t)n_lines * sizeof *v->tokens, "tokens"));
    v->tokens = tokens;
    LH_TRY(lh_alloc(&slots, n_slots * sizeof *v->slots, "index of tokens"));
    v->slots = slots;
    v->slot_mask = n_slots - 1;
    v->n_tokens = (int32_t)n_lines;
    for (int b = 0; b < 256; b++)
        v->byte_ids[b] = -1;
    return LH_OK;
}

lh_status lh_vocab_read(lh_vocab *v, const char *path)
{
    lh_status st = LH_OK;
    size_t n_bytes = 0;
    int64_t n_lines = 0;

    *v = (lh_vocab){0};
    LH_TRY_OUT(lh_read_text_file(&v->bytes, &n_bytes, path, MAX_FILE_BYTES));
    for (size_t i = 0; i < n_bytes; i++)
        n_lines += v->bytes[i] == '\n' || i + 1 == n_bytes;
    LH_TRY_OUT(allocate(v, n_lines, path));

    size_t at = 0;
    for (int line = 1; line <= v->n_tokens; line++) {
        const char *end = memchr(v->bytes + at, '\n', n_bytes - at);
        size_t n_chars = end ? (size_t)(end - v->bytes) - at : n_bytes - at;
        LH_REQUIRE_OUT(n_chars <= MAX_LINE_BYTES, LH_ERR_DATA,
                       "%s line %d: %zu bytes, expected at most %d", path, line, n_chars,
                       MAX_LINE_BYTES);
        LH_TRY_OUT(read_line(v, at, n_chars, path, line));
        at += n_chars + 1;
    }
    for (int b = 0; b < 256; b++)
        LH_REQUIRE_OUT(v->byte_ids[b] >= 0, LH_ERR_DATA, "%s: no token for the single byte 0x%02x",
                       path, (unsigned)b);
out:
    if (st != LH_OK)
        lh_vocab_free(v);
    return st;
}
