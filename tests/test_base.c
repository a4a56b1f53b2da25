#include "base/dtype.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/status.h"
#include "tests/check.h"

static lh_status fails(int x)
{
    LH_REQUIRE(x > 0, LH_ERR_DATA, "x is %d, expected more than 0\nsecond line", x);
    return LH_OK;
}

static void test_status(void)
{
    CHECK_OK(fails(1));
    CHECK_STATUS(fails(-3), LH_ERR_DATA);
    CHECK_STR(lh_last_error(), "x is -3, expected more than 0?second line");
    CHECK(strstr(lh_last_error_where(), "test_base.c"));
    CHECK_EQ(lh_exit_code(LH_OK), 0);
    CHECK_EQ(lh_exit_code(LH_ERR_TIMEOUT), 75);
    lh_set_peer_status(LH_ERR_DATA);
    CHECK_EQ(lh_exit_code(LH_ERR_PEER), 65);
    CHECK_STR(lh_status_name(LH_ERR_NOMEM), "ERR_NOMEM");
}

static void test_sizes(void)
{
    size_t x;
    CHECK_EQ(lh_mul_size(&x, 3, 5), 0);
    CHECK_EQ(x, 15);
    CHECK_EQ(lh_mul_size(&x, SIZE_MAX / 2, 3), -1);
    CHECK(x == SIZE_MAX);
    CHECK_EQ(lh_add_size(&x, SIZE_MAX, 1), -1);
    CHECK_EQ(lh_round_up(65, 64), 128);
    CHECK_EQ(lh_round_up(64, 64), 64);
    CHECK_EQ(lh_round_up(0, 64), 0);
}

static void test_carve(void)
{
    lh_carve measure = {0};
    CHECK(!lh_carve_take(&measure, 3, 2, 64));
    CHECK(!lh_carve_take(&measure, 5, 4, 64));
    CHECK_EQ(measure.used, 84);
    void *block;
    CHECK_OK(lh_alloc(&block, measure.used, "test"));
    lh_carve place = {.base = block};
    CHECK(lh_carve_take(&place, 3, 2, 64) == block);
    CHECK((char *)lh_carve_take(&place, 5, 4, 64) == (char *)block + 64);
    CHECK_EQ(place.used, measure.used);
    CHECK(!lh_carve_take(&place, SIZE_MAX, 2, 64));
    CHECK(place.used == SIZE_MAX);
    CHECK(!lh_carve_take(&place, 1, 1, 1));
    free(block);
}

static void test_bf16(void)
{
    CHECK_EQ(lh_f32_to_bf16(1.0f), 0x3f80);
    CHECK(lh_bf16_to_f32(0xc040) == -3.0f);
    CHECK_EQ(lh_f32_to_bf16(1.0f + 1.0f / 256), 0x3f80); /* a tie goes to even */
    CHECK_EQ(lh_f32_to_bf16(1.0f + 3.0f / 256), 0x3f82);
    CHECK(isnan(lh_bf16_to_f32(lh_f32_to_bf16(NAN))));
    for (uint32_t x = 0; x < 0x10000; x++) {
        float f = lh_bf16_to_f32((lh_bf16)x);
        if (!isnan(f) && lh_f32_to_bf16(f) != x)
            CHECK_EQ(lh_f32_to_bf16(f), x);
    }
}

static void test_log_levels(void)
{
    CHECK_OK(lh_log_configure("info,comm=trace"));
    CHECK(lh_log_enabled(LH_LOG_INFO, "load") && !lh_log_enabled(LH_LOG_DEBUG, "load"));
    CHECK(lh_log_enabled(LH_LOG_TRACE, "comm"));
    CHECK_STATUS(lh_log_configure("loud"), LH_ERR_USAGE);
    CHECK_STATUS(lh_log_configure("info,=debug"), LH_ERR_USAGE);
    CHECK_OK(lh_log_configure("warn"));
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    RUN(test_status);
    RUN(test_sizes);
    RUN(test_carve);
    RUN(test_bf16);
    RUN(test_log_levels);
    return check_done();
}
