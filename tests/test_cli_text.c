#include "runtime/cli/text.h"
#include "tests/check.h"

/* Adds `all` in pieces of `step` bytes; what was safe on the way must stay. */
static void add_in_pieces(lh_text *t, const char *all, size_t step)
{
    size_t n = strlen(all);
    char shown[256] = {0};

    for (size_t at = 0; at < n; at += step) {
        CHECK_OK(lh_text_add(t, all + at, n - at < step ? n - at : step));
        CHECK(t->n_safe >= strlen(shown) && t->n_safe <= t->n && t->n_safe < sizeof shown);
        if (t->n_safe > 0) {
            CHECK(memcmp(shown, t->bytes, strlen(shown)) == 0);
            memcpy(shown, t->bytes, t->n_safe);
        }
    }
    CHECK_OK(lh_text_end(t));
    CHECK_EQ(t->n_safe, t->n);
    CHECK(t->n == 0 || memcmp(shown, t->bytes, strlen(shown)) == 0);
}

static void expect(const char *in, const char *const *stops, int n_stops, const char *out,
                   int stopped)
{
    for (size_t step = 1; step <= strlen(in); step++) {
        lh_text t = {.stops = stops, .n_stops = n_stops};
        add_in_pieces(&t, in, step);
        CHECK_STR(t.n ? t.bytes : "", out);
        CHECK_EQ(t.stopped, stopped);
        lh_text_free(&t);
    }
}

static void test_utf8(void)
{
    expect("plain", NULL, 0, "plain", 0);
    expect("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", NULL, 0, "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80",
           0);
    expect("a\xff"
           "b",
           NULL, 0,
           "a\xef\xbf\xbd"
           "b",
           0);
    expect("a\xe2\x82", NULL, 0, "a\xef\xbf\xbd", 0);                           /* cut short */
    expect("\xe2\x82z", NULL, 0, "\xef\xbf\xbdz", 0);                           /* broken off */
    expect("\xed\xa0\x80", NULL, 0, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd", 0); /* a surrogate */
    expect("\xc0\xaf", NULL, 0, "\xef\xbf\xbd\xef\xbf\xbd", 0); /* an overlong slash */
}

static void test_stops(void)
{
    static const char *const stops[] = {"\n\n", "END", ""};

    expect("one\ntwo", stops, 3, "one\ntwo", 0);
    expect("one\n\ntwo", stops, 3, "one", 1);
    expect("EEND", stops, 3, "E", 1);
    expect("ENEND.", stops, 3, "EN", 1);
    expect("the EN", stops, 3, "the EN", 0); /* held back until the end */
    expect("END", stops, 3, "", 1);
}

/* What may become a stop string is not shown yet. */
static void test_held(void)
{
    static const char *const stops[] = {"stop here"};
    lh_text t = {.stops = stops, .n_stops = 1};

    CHECK_OK(lh_text_add(&t, "do not stop", 11));
    CHECK_EQ(t.n_safe, 7);
    CHECK_OK(lh_text_add(&t, " now\xe2\x82", 6));
    CHECK_EQ(t.n_safe, 15);
    CHECK_OK(lh_text_add(&t, "\xac", 1));
    CHECK_EQ(t.n_safe, 18);
    lh_text_free(&t);
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    RUN(test_utf8);
    RUN(test_stops);
    RUN(test_held);
    return check_done();
}
