#include <jansson.h>
#include <unistd.h>

#include "runtime/longhaul.h"
#include "runtime/unicode_class.h"
#include "tests/check.h"

#define NEEDLE LH_SOURCE_DIR "/models/needle"
#define N_BASE 3840

static lh_tokenizer *tok;
static char dir[256]; /* of our own files */

static void write_file(const char *name, const char *text, size_t n_bytes)
{
    char path[512];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(text, 1, n_bytes, f) == n_bytes);
    if (f)
        (void)fclose(f);
}

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* ids against want [n] of the text; reports once. */
static void check_ids(const char *text, size_t n_bytes, int special, const int32_t *want, int64_t n)
{
    int32_t *ids = NULL;
    int64_t n_ids = 0, same = 0;
    CHECK_OK(lh_tokenizer_encode(tok, text, n_bytes, special, &ids, &n_ids));
    while (same < n_ids && same < n && ids[same] == want[same])
        same++;
    CHECK_MSG(n_ids == n && same == n, "'%s': %lld ids, expected %lld, first difference at %lld",
              text, (long long)n_ids, (long long)n, (long long)same);
    free(ids);
}

static void check_round_trip(const char *text, size_t n_bytes, int special)
{
    int32_t *ids = NULL;
    int64_t n_ids = 0;
    char *back = NULL;
    size_t n_back = 0;
    CHECK_OK(lh_tokenizer_encode(tok, text, n_bytes, special, &ids, &n_ids));
    CHECK_OK(lh_tokenizer_decode(tok, ids, n_ids, special, &back, &n_back));
    CHECK_MSG(n_back == n_bytes && memcmp(back, text, n_bytes) == 0 && back[n_back] == '\0',
              "round trip of '%s' gives '%s'", text, back);
    for (int64_t i = 0; i < n_ids && !special; i++)
        CHECK_MSG(ids[i] >= 0 && ids[i] < N_BASE, "'%s' gives control token %d", text, ids[i]);
    free(ids);
    free(back);
}

static void check_cases(const char *path, size_t n_cases)
{
    int32_t want[2048];
    json_t *cases = json_load_file(path, JSON_ALLOW_NUL, NULL), *one;
    size_t i, k;
    CHECK_EQ(json_array_size(cases), n_cases);
    json_array_foreach(cases, i, one)
    {
        const json_t *text = json_object_get(one, "text"), *ids = json_object_get(one, "ids");
        json_t *id;
        CHECK(json_array_size(ids) <= 2048);
        json_array_foreach(ids, k, id)
        {
            want[k] = (int32_t)json_integer_value(id);
        }
        const char *s = json_string_value(text);
        check_ids(s, json_string_length(text), 0, want, (int64_t)json_array_size(ids));
    }
    json_decref(cases);
}

static void test_golden(void)
{
    check_cases(LH_SOURCE_DIR "/tests/golden/needle/tokenizer.json", 415);
}

/* Random strings under a vocabulary of all single bytes and all pairs, which shows every border
 * between pieces. The same as in make/tokenizer_cases.py. */
static void test_split(void)
{
    lh_tokenizer *needle = tok;
    char *text = malloc(2000000), *p = text;
    for (unsigned b = 0; b < 256; b++)
        p += sprintf(p, "%c%c== %u\n", digits[b >> 2], digits[(b & 3) << 4], b);
    for (unsigned pair = 0; pair < 65536; pair++)
        p += sprintf(p, "%c%c%c= %u\n", digits[pair >> 10], digits[pair >> 4 & 63],
                     digits[(pair & 15) << 2], 256 + pair * 40503 % 65536);
    write_file("tiktoken.model", text, (size_t)(p - text));
    CHECK_OK(lh_tokenizer_open(&tok, dir));
    check_cases(LH_SOURCE_DIR "/tests/golden/tokenizer/cases.json", 1500);
    lh_tokenizer_close(tok);
    tok = needle;
    free(text);
}

/* The class of every code point, by the digest of what tiktoken shows. */
static void test_classes(void)
{
    uint64_t digest = 0xcbf29ce484222325u;
    char hex[17];
    for (uint32_t c = 0; c < 0x110000; c++) {
        unsigned class = c >= 0xd800 && c < 0xe000 ? 0 : lh_unicode_class(c);
        digest = (digest ^ class) * 0x100000001b3u;
    }
    (void)snprintf(hex, sizeof hex, "%016" PRIx64, digest);
    json_t *golden = json_load_file(LH_SOURCE_DIR "/tests/golden/tokenizer/classes.json", 0, NULL);
    CHECK_STR(hex, json_string_value(json_object_get(golden, "fnv1a64")));
    json_decref(golden);
}

static size_t put_utf8(char *p, uint32_t c)
{
    if (c < 0x80) {
        p[0] = (char)c;
        return 1;
    }
    int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    p[0] = (char)((0xff00 >> (more + 1) & 0xff) | (int)(c >> 6 * more));
    for (int i = 1; i <= more; i++)
        p[i] = (char)(0x80 | (c >> 6 * (more - i) & 0x3f));
    return (size_t)more + 1;
}

static void test_round_trip(void)
{
    static const char *const pieces[] = {" ",  "\n",  "\r\n", "'s",    "'\xc5\xbf", "ab",
                                         "CD", "123", "!",    "[BOS]", "\xcc\x81",  "\xe4\xb8\xad"};
    for (int i = 0; i < 3000; i++) {
        char text[256];
        size_t n = 0;
        while (n < 200 && check_uniform() < 0.95) {
            uint32_t c = (uint32_t)(check_random() % 0x110000);
            const char *piece = pieces[check_random() % 12];
            if (check_uniform() < 0.7)
                n += strlen(memcpy(text + n, piece, strlen(piece) + 1));
            else if (c != 0 && (c < 0xd800 || c >= 0xe000))
                n += put_utf8(text + n, c);
        }
        text[n] = '\0';
        check_round_trip(text, n, 0);
        check_round_trip(text, n, 1);
    }
    check_round_trip("a\0b", 3, 0);
    check_round_trip("", 0, 1);
}

static void test_special(void)
{
    CHECK_EQ(lh_tokenizer_size(tok), N_BASE + 256);
    CHECK_EQ(lh_tokenizer_special(tok, LH_BOS), N_BASE);
    CHECK_EQ(lh_tokenizer_special(tok, LH_IM_MIDDLE), N_BASE + 17);
    CHECK_EQ(lh_tokenizer_special(tok, LH_PAD), N_BASE + 255);

    const char *text = "[BOS]<|im_end|><|reserved_token_3845|>[BO";
    int32_t want[16] = {N_BASE, N_BASE + 2, N_BASE + 5};
    int32_t *tail = NULL;
    int64_t n_tail = 0;
    CHECK_OK(lh_tokenizer_encode(tok, "[BO", 3, 0, &tail, &n_tail));
    memcpy(want + 3, tail, (size_t)n_tail * sizeof *tail);
    check_ids(text, strlen(text), 1, want, 3 + n_tail);
    free(tail);
    check_round_trip(text, strlen(text), 0);

    char *out = NULL;
    size_t n_out = 0;
    const int32_t ids[] = {N_BASE, 0, N_BASE + 11, N_BASE + 200};
    CHECK_OK(lh_tokenizer_decode(tok, ids, 4, 0, &out, &n_out));
    CHECK_STR(out, "!");
    free(out);
    CHECK_OK(lh_tokenizer_decode(tok, ids, 4, 1, &out, &n_out));
    CHECK_STR(out, "[BOS]!<|tool_calls_section_begin|><|reserved_token_4040|>");
    free(out);
    CHECK_STATUS(lh_tokenizer_decode(tok, (int32_t[]){N_BASE + 256}, 1, 0, &out, &n_out),
                 LH_ERR_DATA);
    CHECK_STATUS(lh_tokenizer_decode(tok, (int32_t[]){0, -1}, 2, 0, &out, &n_out), LH_ERR_DATA);
    CHECK(strstr(lh_last_error(), "index 1"));
}

/* Appends the plain encoding of the text. */
static int64_t append(int32_t *ids, int64_t n, const char *text)
{
    int32_t *more = NULL;
    int64_t n_more = 0;
    CHECK_OK(lh_tokenizer_encode(tok, text, strlen(text), 0, &more, &n_more));
    memcpy(ids + n, more, (size_t)n_more * sizeof *more);
    free(more);
    return n + n_more;
}

static void test_chat(void)
{
    lh_message m[] = {
        {"system", "Be brief.", 9}, {"user", "Hi<|im_end|>", 12}, {"assistant", "", 0}};
    int32_t want[128], *ids = NULL;
    int64_t n = 0, n_ids = 0;
    const int32_t role_token[] = {N_BASE + 10, N_BASE + 3, N_BASE + 4, N_BASE + 4};
    for (int i = 0; i < 4; i++) {
        want[n++] = role_token[i];
        n = append(want, n, i < 3 ? m[i].role : "assistant");
        want[n++] = N_BASE + 17;
        if (i == 3)
            break;
        n = append(want, n, m[i].text);
        want[n++] = N_BASE + 2;
    }
    CHECK_OK(lh_tokenizer_chat(tok, m, 3, &ids, &n_ids));
    CHECK_EQ(n_ids, n);
    if (n_ids == n)
        CHECK_SAME_BITS(ids, want, (size_t)n * sizeof *ids);
    free(ids);
    m[1].role = "tool";
    CHECK_STATUS(lh_tokenizer_chat(tok, m, 3, &ids, &n_ids), LH_ERR_DATA);
    CHECK(strstr(lh_last_error(), "message 1: role 'tool'"));
    m[1] = (lh_message){"user", "\xff", 1};
    CHECK_STATUS(lh_tokenizer_chat(tok, m, 3, &ids, &n_ids), LH_ERR_DATA);
}

static void test_invalid_utf8(void)
{
    static const char *const bad[] = {"\x80",
                                      "\xc0\x80",
                                      "\xc1\xbf",
                                      "\xc3",
                                      "\xe0\x9f\xbf",
                                      "\xe4\xb8",
                                      "\xed\xa0\x80",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xf0\x9f\x98",
                                      "\xff",
                                      "\xe4\xb8z"};
    int32_t *ids = NULL;
    int64_t n = 0;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[16];
        (void)snprintf(text, sizeof text, "ab\xc3\xa9%s", bad[i]);
        CHECK_STATUS(lh_tokenizer_encode(tok, text, strlen(text), (int)(i & 1), &ids, &n),
                     LH_ERR_DATA);
        CHECK_STR(lh_last_error(), "invalid UTF-8 at byte 4 of the text");
    }
    CHECK(!ids);
}

/* ------------------------------------------------------- malformed files */

/* The 256 single bytes and one more line, in a file of their own; line i + 1 is replaced. */
static size_t byte_lines(char *out, int replaced, const char *by, const char *last)
{
    char *p = out;
    for (int i = 0; i < 256; i++) {
        if (i == replaced)
            p += sprintf(p, "%s", by);
        else
            p += sprintf(p, "%c%c== %d\n", digits[i >> 2], digits[(i & 3) << 4], i);
    }
    return (size_t)(p - out) + (size_t)sprintf(p, "%s", last);
}

static void test_malformed_model(void)
{
    static const struct {
        int line;
        const char *by, *last, *message;
    } bad[] = {
        {-1, "", "YWI= 257\n", "line 257: rank '257'"},
        {-1, "", "YWI= 255\n", "line 257: rank 255 is there twice"},
        {-1, "", "YWI= -1\n", "line 257: rank '-1'"},
        {-1, "", "YWI= 0256\n", "line 257: rank '0256'"},
        {-1, "", "YWI= 99999999999999999999\n", "line 257: rank"},
        {-1, "", "YWI= 256 \n", "line 257: rank '256 '"},
        {-1, "", "YWI= \n", "line 257: rank ''"},
        {-1, "", "YWI=\n", "line 257: expected base64"},
        {-1, "", "\n", "line 257: expected base64"},
        {-1, "", "YWJ= 256\n", "line 257: the token is not canonical"},
        {-1, "", "YWI 256\n", "line 257: the token is not canonical"},
        {-1, "", "Y=I= 256\n", "line 257: the token is not canonical"},
        {-1, "", "==== 256\n", "line 257: the token is not canonical"},
        {-1, "", "Y-I= 256\n", "line 257: the token is not canonical"},
        {-1, "", " 256\n", "line 257: the token is not canonical"},
        {-1, "", "QQ== 256\n", "line 257: the token of rank 65 again"},
        {65, "YWI= 65\n", "YWJj 256\n", "no token for the single byte 0x41"},
        {65, "", "YWI= 256\n", "line 256: rank '256', expected a number below 256"},
        {65, "", "", "255 lines, expected 256"},
    };
    static char text[8192 + 5000];
    lh_tokenizer *t = NULL;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_file("tiktoken.model", text, byte_lines(text, bad[i].line, bad[i].by, bad[i].last));
        CHECK_STATUS(lh_tokenizer_open(&t, dir), LH_ERR_DATA);
        CHECK_MSG(strstr(lh_last_error(), bad[i].message), "'%s', expected '%s'", lh_last_error(),
                  bad[i].message);
    }
    size_t n = byte_lines(text, -1, "", "");
    memset(text + n, 'A', 4100);
    write_file("tiktoken.model", text, n + 4100);
    CHECK_STATUS(lh_tokenizer_open(&t, dir), LH_ERR_DATA);
    CHECK(strstr(lh_last_error(), "line 257: 4100 bytes"));
    write_file("tiktoken.model", "", 0);
    CHECK_STATUS(lh_tokenizer_open(&t, dir), LH_ERR_DATA);
    /* A last line without its end, and ranks in any order, are fine. */
    write_file("tiktoken.model", text, byte_lines(text, 0, "YWI= 256\n", "AA== 0"));
    CHECK_OK(lh_tokenizer_open(&t, dir));
    CHECK_EQ(lh_tokenizer_size(t), 257 + 256);
    lh_tokenizer_close(t);
    CHECK_STATUS(lh_tokenizer_open(&t, "/nonexistent"), LH_ERR_OPEN);
}

static void test_config(void)
{
    static const char *const bad[] = {
        "[]",
        "{",
        "{\"added_tokens_decoder\": []}",
        "{\"added_tokens_decoder\": {\"255\": {\"content\": \"x\"}}}",
        "{\"added_tokens_decoder\": {\"514\": {\"content\": \"x\"}}}",
        "{\"added_tokens_decoder\": {\"-1\": {\"content\": \"x\"}}}",
        "{\"added_tokens_decoder\": {\"256x\": {\"content\": \"x\"}}}",
        "{\"added_tokens_decoder\": {\"99999999999999999999\": {\"content\": \"x\"}}}",
        "{\"added_tokens_decoder\": {\"256\": \"x\"}}",
        "{\"added_tokens_decoder\": {\"256\": {}}}",
        "{\"added_tokens_decoder\": {\"256\": {\"content\": 5}}}",
        "{\"added_tokens_decoder\": {\"256\": {\"content\": \"\"}}}",
        "{\"added_tokens_decoder\": {\"256\": {\"content\": \"x\"}, \"256\": {\"content\": "
        "\"y\"}}}",
        "{\"added_tokens_decoder\": {\"256\": {\"content\": \"x\"}, \"0256\": {\"content\": "
        "\"y\"}}}",
        "{\"added_tokens_decoder\": {\"256\": {\"content\": \"x\"}, \"257\": {\"content\": "
        "\"x\"}}}",
        "{\"added_tokens_decoder\": {\"256\": {\"content\": \"<|reserved_token_300|>\"}}}",
    };
    static char text[8192];
    lh_tokenizer *t = NULL;
    write_file("tiktoken.model", text, byte_lines(text, -1, "", ""));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_file("tokenizer_config.json", bad[i], strlen(bad[i]));
        CHECK_MSG(lh_tokenizer_open(&t, dir) == LH_ERR_DATA, "accepted: %s", bad[i]);
    }

    /* [PAD] moves to another id, whose old name goes; names that begin alike: the longest wins. */
    const char *good = "{\"x\": 1, \"added_tokens_decoder\": {\"510\": {\"content\": \"[PAD]\"}, "
                       "\"300\": {\"content\": \"<|im_end|>!\"}}}";
    write_file("tokenizer_config.json", good, strlen(good));
    CHECK_OK(lh_tokenizer_open(&t, dir));
    CHECK_EQ(lh_tokenizer_special(t, LH_PAD), 510);
    CHECK_EQ(lh_tokenizer_special(t, LH_EOT), 256 + 9);
    int32_t *ids = NULL;
    int64_t n = 0;
    const char *line = "<|im_end|>!<|im_end|><|reserved_token_511|>";
    CHECK_OK(lh_tokenizer_encode(t, line, strlen(line), 1, &ids, &n));
    CHECK(n == 3 && ids[0] == 300 && ids[1] == 258 && ids[2] == 511);
    free(ids);
    lh_tokenizer_close(t);
}

/* Time without bounds on what the machine does beside us: a quadratic method needs minutes here. */
static void test_long_runs(void)
{
    static const char *const units[] = {"a",  " ",  "^",         "\xcc\x81",     "A", "7",
                                        "\n", " A", "\xca\xb0Z", "\xe4\xb8\xad", "[", "\xca\xb0"};
    const size_t n_bytes = 1000000;
    char *text = malloc(n_bytes + 8);
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        size_t unit = strlen(units[i]), n = n_bytes / unit * unit;
        for (size_t at = 0; at < n; at += unit)
            memcpy(text + at, units[i], unit);
        int32_t *ids = NULL;
        int64_t n_ids = 0;
        clock_t begin = clock();
        CHECK_OK(lh_tokenizer_encode(tok, text, n, 1, &ids, &n_ids));
        double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
        CHECK_MSG(seconds < 20, "1 MB of '%s': %.1f s of processor time", units[i], seconds);
        free(ids);
    }
    free(text);
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    (void)snprintf(dir, sizeof dir, "%s/tokenizer-XXXXXX", LH_BINARY_DIR);
    CHECK(mkdtemp(dir));
    CHECK_OK(lh_tokenizer_open(&tok, NEEDLE));
    RUN(test_golden);
    RUN(test_split);
    RUN(test_classes);
    RUN(test_round_trip);
    RUN(test_special);
    RUN(test_chat);
    RUN(test_invalid_utf8);
    RUN(test_malformed_model);
    RUN(test_config);
    RUN(test_long_runs);
    lh_tokenizer_close(tok);
    char path[512];
    (void)snprintf(path, sizeof path, "%s/tiktoken.model", dir);
    (void)unlink(path);
    (void)snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    (void)unlink(path);
    (void)rmdir(dir);
    return check_done();
}
