#include "base/file.h"
#include "base/maps.h"
#include "tests/check.h"
#include "tests/temp_dir.h"

static void test_find(void)
{
    static char a[100], b[100];

    CHECK(!lh_map_find(a));
    CHECK(!lh_map_find(NULL));
    lh_map_add(a, 60, "first");
    lh_map_add(b, 100, "second");
    CHECK_STR(lh_map_find(a), "first");
    CHECK_STR(lh_map_find(a + 59), "first");
    CHECK(!lh_map_find(a + 60));
    CHECK_STR(lh_map_find(b + 99), "second");
    lh_map_remove(a);
    CHECK(!lh_map_find(a));
    CHECK_STR(lh_map_find(b), "second");
    lh_map_remove(b);
    lh_map_remove(b); /* unknown by now */
    CHECK(!lh_map_find(b));
}

static void test_full_and_long(void)
{
    static char block[1100];
    char name[1000];

    memset(name, 'x', sizeof name);
    strcpy(name + sizeof name - 5, ".end");
    for (int i = 0; i < 1100; i++)
        lh_map_add(block + i, 1, name);
    CHECK(lh_map_find(block + 1023));
    CHECK(!lh_map_find(block + 1024)); /* no room: unknown */
    CHECK_EQ(strlen(lh_map_find(block)), 239);
    CHECK_STR(lh_map_find(block) + 235, ".end");
    for (int i = 0; i < 1100; i++)
        lh_map_remove(block + i);
    lh_map_add(block, 1, "again");
    CHECK_STR(lh_map_find(block), "again");
    lh_map_remove(block);
}

static void test_file(void)
{
    int fd = -1;
    size_t bytes = 0;
    char got[4] = "";

    temp_dir_create();
    temp_write_text("five", "abcde");
    CHECK_OK(lh_file_open(&fd, &bytes, temp_path("five")));
    CHECK_EQ(bytes, 5);
    CHECK_OK(lh_file_read(fd, got, 3, 2, "five"));
    CHECK_STR(got, "cde");
    CHECK_STATUS(lh_file_read(fd, got, 3, 3, "five"), LH_ERR_DATA);
    (void)close(fd);
    CHECK_STATUS(lh_file_open(&fd, &bytes, temp_path("none")), LH_ERR_OPEN);
    CHECK_STATUS(lh_file_open(&fd, &bytes, temp_dir), LH_ERR_DATA);
    CHECK_STATUS(lh_file_open(&fd, &bytes, "/dev/null"), LH_ERR_DATA);
    CHECK(lh_file_exists(temp_path("five")) && !lh_file_exists(temp_path("none")));
    temp_dir_remove();
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    RUN(test_find);
    RUN(test_full_and_long);
    RUN(test_file);
    return check_done();
}
