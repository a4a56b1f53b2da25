#include "base/sha256.h"
#include "tests/check.h"

static const char *hex(const unsigned char sum[32])
{
    static char text[65];

    for (int i = 0; i < 32; i++)
        (void)snprintf(text + 2 * i, 3, "%02x", sum[i]);
    return text;
}

static const char *digest(const void *bytes, size_t n)
{
    unsigned char sum[32];
    lh_sha256 s;

    lh_sha256_init(&s);
    lh_sha256_update(&s, bytes, n);
    lh_sha256_final(&s, sum);
    return hex(sum);
}

/* The examples that NIST gives with FIPS 180. */
static void test_published(void)
{
    static const char two[] = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    static const char four[] = "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn"
                               "hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu";

    CHECK_STR(digest("", 0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK_STR(digest("abc", 3), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK_STR(digest(two, 56), "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK_STR(digest(four, 112),
              "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
}

static void test_million(void)
{
    unsigned char sum[32], piece[1000];
    lh_sha256 s;

    memset(piece, 'a', sizeof piece);
    lh_sha256_init(&s);
    for (int i = 0; i < 1000; i++)
        lh_sha256_update(&s, piece, sizeof piece);
    lh_sha256_final(&s, sum);
    CHECK_STR(hex(sum), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

/* The digest of the digests of byte i = 7 i + n of n bytes, n < 300; from Python's hashlib. */
static void test_every_length(void)
{
    unsigned char bytes[300], sum[32];
    lh_sha256 all, s;

    lh_sha256_init(&all);
    for (size_t n = 0; n < sizeof bytes; n++) {
        for (size_t i = 0; i < n; i++)
            bytes[i] = (unsigned char)(i * 7 + n);
        lh_sha256_init(&s);
        for (size_t at = 0, take; at < n; at += take) { /* in pieces of any size */
            take = 1 + check_random() % 130;
            take = take < n - at ? take : n - at;
            lh_sha256_update(&s, bytes + at, take);
        }
        lh_sha256_final(&s, sum);
        lh_sha256_update(&all, sum, sizeof sum);
    }
    lh_sha256_final(&all, sum);
    CHECK_STR(hex(sum), "d5238871a46ac4a1a75ac3fb19d645b0b3b9e5f35f5f720e2b240d605c6b694e");
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    RUN(test_published);
    RUN(test_million);
    RUN(test_every_length);
    return check_done();
}
