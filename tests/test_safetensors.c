#include "base/maps.h"
#include "runtime/safetensors.h"
#include "tests/check.h"
#include "tests/temp_dir.h"

#define NAME "t.safetensors"

/* A file: length of the header, header, n bytes of data. */
static void write_raw(uint64_t length, const char *header, size_t header_bytes, size_t n_data)
{
    size_t n = 8 + header_bytes + n_data;
    unsigned char *file = calloc(1, n);

    for (int i = 0; i < 8; i++)
        file[i] = (unsigned char)(length >> 8 * i);
    memcpy(file + 8, header, header_bytes);
    for (size_t i = 0; i < n_data; i++)
        file[8 + header_bytes + i] = (unsigned char)i;
    temp_write(NAME, file, n);
    free(file);
}

static lh_status open_and_close(void)
{
    lh_safetensors *f = NULL;
    lh_status st = lh_safetensors_open(&f, temp_path(NAME));
    volatile unsigned char sum = 0;

    for (int64_t i = 0; st == LH_OK && i < lh_safetensors_count(f); i++) {
        const lh_st_tensor *t = lh_safetensors_at(f, i);
        CHECK(lh_safetensors_find(f, t->name) == t);
        for (size_t k = 0; k < t->bytes; k++)
            sum = (unsigned char)(sum + ((const unsigned char *)t->data)[k]);
    }
    lh_safetensors_close(f);
    return st;
}

#define T(offsets, shape, dtype)                                                                   \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define A(offsets) "{\"a\":" T(offsets, "[4]", "U8") "}"
#define AB(a, b) "{\"a\":" T(a, "[4]", "U8") ",\"b\":" T(b, "[4]", "U8") "}"
#define ONE(shape, dtype, offsets) "{\"a\":" T(offsets, shape, dtype) "}"

/* Headers and verdicts. `reason`: part of the message; NULL: the file is good. */
static const struct {
    const char *header;
    size_t n_data;
    const char *reason;
} headers[] = {
    {A("[0,4]"), 4, NULL},
    {A("[0,4]") "    ", 4, NULL},
    {AB("[0,4]", "[4,8]"), 8, NULL},
    {AB("[4,8]", "[0,4]"), 8, NULL},
    {"{}", 0, NULL},
    {"{\"__metadata__\":{}}", 0, NULL},
    {"{\"__metadata__\":{\"format\":\"pt\"},\"a\":" T("[0,4]", "[4]", "U8") "}", 4, NULL},
    {ONE("[]", "F32", "[0,4]"), 4, NULL},
    {ONE("[0]", "F32", "[0,0]"), 0, NULL},
    {ONE("[0,9007199254740991]", "F32", "[0,0]"), 0, NULL},
    {"{\"a\":" T("[0,0]", "[0]", "F32") ",\"b\":" T("[0,4]", "[1]", "F32") "}", 4, NULL},
    {"{\"b\":" T("[1,5]", "[1]", "F32") ",\"a\":" T("[0,1]", "[1]", "U8") "}", 5, NULL},
    {ONE("[1,1,1,1,1,1,1,2]", "BF16", "[0,4]"), 4, NULL},
    {ONE("[1]", "F64", "[0,8]"), 8, NULL},
    {ONE("[1]", "I64", "[0,8]"), 8, NULL},
    {ONE("[2]", "BOOL", "[0,2]"), 2, NULL},
    {"{\"\":" T("[0,4]", "[4]", "U8") "}", 4, NULL},
    {"{\"\xc3\xa9\":" T("[0,4]", "[4]", "U8") "}", 4, NULL},
    /* offsets */
    {A("[0,4]"), 3, "3 bytes of data"},
    {A("[0,4]"), 5, "end at byte"},
    {A("[1,5]"), 5, "hole"},
    {A("[0,5]"), 5, "4 bytes"},
    {A("[0,3]"), 4, "4 bytes"},
    {A("[4,0]"), 4, "in order"},
    {A("[-4,0]"), 4, "in order"},
    {A("[0,4.0]"), 4, "in order"},
    {A("[0,4e0]"), 4, "in order"},
    {A("[0,\"4\"]"), 4, "in order"},
    {A("[0,null]"), 4, "in order"},
    {A("[0,true]"), 4, "in order"},
    {A("[0]"), 4, "two data_offsets"},
    {A("[0,4,8]"), 4, "two data_offsets"},
    {A("[]"), 4, "two data_offsets"},
    {A("4"), 4, "two data_offsets"},
    {A("{}"), 4, "two data_offsets"},
    {A("[9007199254740988,9007199254740992]"), 4, "in order"},
    {A("[9223372036854775803,9223372036854775807]"), 4, "in order"},
    {A("[0,18446744073709551620]"), 4, "line 1"},
    {A("[18446744073709551612,0]"), 4, "line 1"},
    {A("[1000000000000,1000000000004]"), 4, "4 bytes of data"},
    {AB("[0,4]", "[0,4]"), 4, "overlap"},
    {AB("[0,4]", "[2,6]"), 6, "overlap"},
    {AB("[0,4]", "[5,9]"), 9, "hole"},
    {AB("[1,5]", "[5,9]"), 9, "hole"},
    {AB("[0,4]", "[4,8]"), 9, "end at byte"},
    {AB("[0,4]", "[4,8]"), 7, "7 bytes of data"},
    {"{\"a\":" T("[2,2]", "[0]", "U8") ",\"b\":" T("[0,4]", "[4]", "U8") "}", 4, "begins at"},
    {"{}", 1, "end at byte"},
    {"{\"__metadata__\":{}}", 4, "end at byte"},
    /* shapes */
    {ONE("[-4]", "U8", "[0,4]"), 4, "shape"},
    {ONE("[-2,-2]", "U8", "[0,4]"), 4, "shape"},
    {ONE("[4.0]", "U8", "[0,4]"), 4, "shape"},
    {ONE("[\"4\"]", "U8", "[0,4]"), 4, "shape"},
    {ONE("[[4]]", "U8", "[0,4]"), 4, "shape"},
    {ONE("4", "U8", "[0,4]"), 4, "shape"},
    {ONE("null", "U8", "[0,4]"), 4, "shape"},
    {ONE("[5]", "U8", "[0,4]"), 4, "5 bytes"},
    {ONE("[4]", "F32", "[0,4]"), 4, "16 bytes"},
    {ONE("[9007199254740992]", "U8", "[0,4]"), 4, "2^53"},
    {ONE("[4294967296,4294967296]", "U8", "[0,0]"), 0, "larger than memory"},
    {ONE("[4294967296,4294967297]", "U8", "[0,4]"), 4, "larger than memory"},
    {ONE("[2305843009213693952,8]", "U8", "[0,0]"), 0, "2^53"},
    {ONE("[4503599627370496,1024]", "F32", "[0,0]"), 0, "larger than memory"},
    {ONE("[4503599627370496,4096,0]", "F32", "[0,0]"), 0, "larger than memory"},
    {ONE("[1,1,1,1,1,1,1,1,4]", "U8", "[0,4]"), 4, "at most 8"},
    /* dtypes */
    {ONE("[4]", "u8", "[0,4]"), 4, "dtype"},
    {ONE("[4]", "", "[0,4]"), 4, "dtype"},
    {ONE("[4]", "U8 ", "[0,4]"), 4, "dtype"},
    {ONE("[4]", "U128", "[0,4]"), 4, "dtype"},
    {ONE("[8]", "F4", "[0,4]"), 4, "dtype"},
    {"{\"a\":{\"dtype\":8,\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "dtype"},
    {"{\"a\":{\"dtype\":\"U8\\u0000\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "line 1"},
    /* entries */
    {"{\"a\":{\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "expected dtype"},
    {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,4]}}", 4, "expected dtype"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4]}}", 4, "expected dtype"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4],\"x\":1}}", 4, "nothing else"},
    {"{\"a\":{}}", 0, "expected dtype"},
    {"{\"a\":null}", 0, "expected dtype"},
    {"{\"a\":[0,4]}", 4, "expected dtype"},
    {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4,
     "duplicate"},
    {"{\"a\":" T("[0,4]", "[4]", "U8") ",\"a\":" T("[4,8]", "[4]", "U8") "}", 8, "duplicate"},
    {"{\"a\":" T("[0,4]", "[4]", "U8") ",\"\\u0061\":" T("[4,8]", "[4]", "U8") "}", 8, "duplicate"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "duplicate"},
    {"{\"__metadata__\":[]}", 0, "__metadata__"},
    {"{\"__metadata__\":null}", 0, "__metadata__"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__"},
    {"{\"__metadata__\":{\"a\":{\"b\":\"c\"}}}", 0, "__metadata__"},
    {"{\"a\\nb\":" T("[0,4]", "[4]", "U8") "}", 4, "control"},
    {"{\"a\\u0000b\":" T("[0,4]", "[4]", "U8") "}", 4, "NUL"},
    {"{\"a\\u007f\":" T("[0,4]", "[4]", "U8") "}", 4, "control"},
    {"{\"\xff\":" T("[0,4]", "[4]", "U8") "}", 4, "unable to decode"},
    {"{\"\xc0\xaf\":" T("[0,4]", "[4]", "U8") "}", 4, "unable to decode"},
    {"{\"\\ud800\":" T("[0,4]", "[4]", "U8") "}", 4, "line 1"},
    /* the JSON itself */
    {"", 0, "begin with {"},
    {" {}", 0, "begin with {"},
    {"\n{}", 0, "begin with {"},
    {"[]", 0, "begin with {"},
    {"null", 0, "begin with {"},
    {"{", 0, "line 1"},
    {"{}{}", 0, "line 1"},
    {"{} x", 0, "line 1"},
    {"{\"a\":}", 0, "line 1"},
    {"{\"a\":1,}", 0, "line 1"},
    {"{\"a\":NaN}", 0, "line 1"},
    {"{'a':1}", 0, "line 1"},
    {"{\"a\":1e999}", 0, "line 1"},
    {"{\"a\":01}", 0, "line 1"},
};

static void test_headers(void)
{
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        const char *h = headers[i].header, *reason = headers[i].reason;
        write_raw(strlen(h), h, strlen(h), headers[i].n_data);
        lh_status st = open_and_close();
        CHECK_MSG(st == (reason ? LH_ERR_DATA : LH_OK), "%s, %zu bytes: %s, %s", h,
                  headers[i].n_data, lh_status_name(st), lh_last_error());
        CHECK_MSG(st == LH_OK || !reason || strstr(lh_last_error(), reason), "%s: '%s' lacks '%s'",
                  h, lh_last_error(), reason);
        CHECK(st == LH_OK || strstr(lh_last_error(), NAME));
    }
}

static void test_lengths(void)
{
    static const uint64_t bad[] = {0,
                                   1,
                                   23,
                                   1u << 31,
                                   UINT64_C(1) << 32,
                                   100000001,
                                   UINT64_MAX,
                                   INT64_MAX,
                                   UINT64_C(1) << 63,
                                   UINT64_MAX - 7,
                                   UINT64_C(1) << 56,
                                   99999999};
    char *deep = malloc(2000000);

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_raw(bad[i], "{}                    ", 22, 0);
        CHECK_STATUS(open_and_close(), LH_ERR_DATA);
    }
    for (size_t n = 0; n < 10; n++) { /* too short for a header */
        temp_write(NAME, "\2\0\0\0\0\0\0\0{", n < 9 ? n : 9);
        CHECK_STATUS(open_and_close(), LH_ERR_DATA);
    }
    memset(deep, '[', 2000000);
    memcpy(deep, "{\"a\":", 5);
    write_raw(2000000, deep, 2000000, 0);
    CHECK_STATUS(open_and_close(), LH_ERR_DATA);
    CHECK_STATUS(open_and_close(), LH_ERR_DATA);
    write_raw(3, "{}\0", 3, 0); /* padded with something other than spaces */
    CHECK_STATUS(open_and_close(), LH_ERR_DATA);
    free(deep);
}

static void test_long_names(void)
{
    char header[2000], name[1100];

    for (int n = 1024; n <= 1025; n++) {
        memset(name, 'n', sizeof name);
        name[n] = '\0';
        int length = snprintf(header, sizeof header, "{\"%s\":" T("[0,4]", "[4]", "U8") "}", name);
        write_raw((uint64_t)length, header, (size_t)length, 4);
        CHECK_STATUS(open_and_close(), n == 1024 ? LH_OK : LH_ERR_DATA);
    }
}

static void test_other_files(void)
{
    CHECK_STATUS(open_and_close(), LH_ERR_DATA); /* left from before */
    temp_dir_clear();
    CHECK_STATUS(open_and_close(), LH_ERR_OPEN);
    CHECK_EQ(mkfifo(temp_path(NAME), 0600), 0);
    CHECK_STATUS(open_and_close(), LH_ERR_DATA);
    temp_dir_clear();
    CHECK_EQ(mkdir(temp_path(NAME), 0700), 0);
    CHECK_STATUS(open_and_close(), LH_ERR_DATA);
    temp_dir_clear();
    CHECK_EQ(symlink("/dev/zero", temp_path(NAME)), 0);
    CHECK_STATUS(open_and_close(), LH_ERR_DATA);
    temp_dir_clear();
    CHECK_EQ(symlink(NAME, temp_path(NAME)), 0);
    CHECK_STATUS(open_and_close(), LH_ERR_OPEN);
    temp_dir_clear();
}

static const float floats[3] = {1.5f, -2, 1e30f};
static const uint16_t halves[6] = {1, 2, 3, 4, 5, 6};
static const unsigned char byte = 7;
static const lh_st_tensor written[] = {
    {.name = "byte", .dtype = "U8", .bytes = 1, .data = &byte},
    {.name = "a \"quoted\" \\ name",
     .dtype = "F32",
     .n_dims = 1,
     .dims = {3},
     .bytes = 12,
     .data = floats},
    {.name = "empty", .dtype = "I64", .n_dims = 2, .dims = {0, 5}},
    {.name = "halves", .dtype = "BF16", .n_dims = 2, .dims = {2, 3}, .bytes = 12, .data = halves},
};

static void test_round_trip(void)
{
    const char *path = temp_path(NAME);
    lh_safetensors *f = NULL;
    const void *gone;

    CHECK_OK(lh_safetensors_write(path, written, 4));
    CHECK_OK(lh_safetensors_open(&f, path));
    CHECK_EQ(lh_safetensors_count(f), 4);
    CHECK(!lh_safetensors_find(f, "half"));
    for (int i = 0; i < 4; i++) {
        const lh_st_tensor *t = lh_safetensors_find(f, written[i].name);
        CHECK_MSG(t, "%s not found", written[i].name);
        if (!t)
            continue;
        CHECK_STR(t->dtype, written[i].dtype);
        CHECK_EQ(t->n_dims, written[i].n_dims);
        CHECK_SAME_BITS(t->dims, written[i].dims, sizeof t->dims);
        CHECK_EQ(t->bytes, written[i].bytes);
        CHECK(t->bytes > 0 ? memcmp(t->data, written[i].data, t->bytes) == 0 : !t->data);
        if (t->data)
            CHECK_STR(lh_map_find(t->data), path);
    }
    CHECK_STR(lh_safetensors_at(f, 0)->name, "byte");
    CHECK_EQ(lh_safetensors_at(f, 0)->offset % 8, 0); /* the writer aligns its data */
    CHECK_EQ(lh_safetensors_at(f, 3)->offset + 12, lh_safetensors_file_bytes(f));
    gone = lh_safetensors_at(f, 0)->data;
    lh_safetensors_close(f);
    CHECK(!lh_map_find(gone));
    CHECK_OK(lh_safetensors_write(path, NULL, 0));
    CHECK_OK(open_and_close());
}

static void test_write_refuses(void)
{
    const lh_st_tensor twice[] = {written[0], written[0]};
    lh_st_tensor t = written[3];

    CHECK_STATUS(lh_safetensors_write(temp_path("no/such"), written, 4), LH_ERR_OPEN);
    CHECK_STATUS(lh_safetensors_write(temp_path("x"), twice, 2), LH_ERR_INVALID);
    t.bytes = 11;
    CHECK_STATUS(lh_safetensors_write(temp_path("x"), &t, 1), LH_ERR_INVALID);
    t.bytes = 12;
    t.dtype = "BF17";
    CHECK_STATUS(lh_safetensors_write(temp_path("x"), &t, 1), LH_ERR_INVALID);
    t.dtype = "BF16";
    t.name = "__metadata__";
    CHECK_STATUS(lh_safetensors_write(temp_path("x"), &t, 1), LH_ERR_INVALID);
    CHECK(access(temp_path("x"), F_OK) != 0);
}

/* Every shorter file is refused; a header with any byte changed is judged without a crash. */
static void test_truncated_and_flipped(void)
{
    size_t n = 0, header;
    unsigned char *file;
    int refused = 0;

    CHECK_OK(lh_safetensors_write(temp_path(NAME), written, 4));
    file = read_whole(temp_path(NAME), &n);
    header = 8 + (size_t)file[0] + ((size_t)file[1] << 8);
    for (size_t k = 0; k < n; k++) {
        temp_write(NAME, file, k);
        CHECK_STATUS(open_and_close(), LH_ERR_DATA);
    }
    for (size_t i = 0; i < header; i++) {
        unsigned char flip = (unsigned char)(1u << check_random() % 8);
        file[i] ^= flip;
        temp_write(NAME, file, n);
        refused += open_and_close() != LH_OK;
        file[i] ^= flip;
    }
    CHECK(refused > 0 && refused < (int)header); /* a name may change */
    free(file);
}

/* The reference data, which another program wrote. */
static void test_golden(void)
{
    lh_safetensors *f = NULL;

    CHECK_OK(lh_safetensors_open(&f, LH_SOURCE_DIR "/tests/golden/alpha/expected.safetensors"));
    const lh_st_tensor *t = f ? lh_safetensors_find(f, "logits") : NULL;
    CHECK(t && t->n_dims == 2 && t->dims[0] == 200 && t->dims[1] == 320);
    t = f ? lh_safetensors_find(f, "greedy") : NULL;
    CHECK(t && strcmp(t->dtype, "I64") == 0 && t->bytes == 128);
    lh_safetensors_close(f);
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    temp_dir_create();
    RUN(test_headers);
    RUN(test_lengths);
    RUN(test_long_names);
    RUN(test_other_files);
    RUN(test_round_trip);
    RUN(test_write_refuses);
    RUN(test_truncated_and_flipped);
    RUN(test_golden);
    temp_dir_remove();
    return check_done();
}
