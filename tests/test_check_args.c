/* Each operation's checks: good arguments pass, and each bad field is named. */
#include "kernels/check_args.h"
#include "tests/check.h"

static char memory[1024] __attribute__((aligned(256)));
static void *const p = memory;
static const int64_t starts[] = {0, 2, 2, 3}, falling[] = {0, 3, 2, 3}, late[] = {1, 2, 2, 3};
static const int64_t positions[] = {5, 7}, overlapping[] = {5, 6}, negative[] = {-1, 5};
static const int64_t runs[] = {0, 2, 3}, runs_off[] = {0, 1, 3}, runs_over[] = {0, 4, 3};
static const int64_t n_keys[] = {1, 2, 3};
static const lh_bf16 *const nets[] = {(void *)memory, (void *)memory}, *const no_net[2];
static const int32_t net[] = {0, 1, 1}, net_over[] = {0, 2, 1}, net_under[] = {-1, 0, 1},
                     net_falling[] = {0, 1, 0};
static const lh_tiles tiles = {3, starts};

#define GOOD(op, ...)                                                                              \
    lh_##op##_args good = {__VA_ARGS__};                                                           \
    CHECK_OK(lh_check_##op(&good))
#define BAD(op, field, value)                                                                      \
    do {                                                                                           \
        lh_##op##_args bad_ = good;                                                                \
        bad_.field = (value);                                                                      \
        CHECK_STATUS(lh_check_##op(&bad_), LH_ERR_INVALID);                                        \
        CHECK_MSG(strstr(lh_last_error(), #op ": "), "%s", lh_last_error());                       \
    } while (0)
/* Missing pointers are bad, but not without rows. */
#define NO_ROWS(op, rows)                                                                          \
    do {                                                                                           \
        lh_##op##_args none_ = good;                                                               \
        none_.rows = 0;                                                                            \
        CHECK_OK(lh_check_##op(&none_));                                                           \
        BAD(op, rows, -1);                                                                         \
        BAD(op, rows, INT64_C(1) << 31);                                                           \
    } while (0)
#define BAD_TILES(op)                                                                              \
    do {                                                                                           \
        BAD(op, tiles.n, 0);                                                                       \
        BAD(op, tiles.n, 2);                                                                       \
        BAD(op, tiles.start, NULL);                                                                \
        BAD(op, tiles.start, falling);                                                             \
        BAD(op, tiles.start, late);                                                                \
        BAD(op, n_rows, 4);                                                                        \
    } while (0)

static void test_rows(void)
{
    {
        GOOD(embed, .out = p, .ids = p, .table = p, .n_rows = 3, .d = 4, .n_vocab = 5);
        NO_ROWS(embed, n_rows);
        BAD(embed, ids, NULL);
        BAD(embed, n_vocab, 0);
    }
    {
        GOOD(rmsnorm, .y = p, .x = p, .w = p, .n_rows = 3, .d = 4, .eps = 1e-5f);
        NO_ROWS(rmsnorm, n_rows);
        BAD(rmsnorm, d, 0);
        BAD(rmsnorm, w, NULL);
        BAD(rmsnorm, eps, NAN);
        BAD(rmsnorm, eps, -1.0f);
    }
    {
        GOOD(short_conv, .y = p, .ldy = 4, .x = p, .ldx = 4, .halo = p, .w = p, .n_rows = 3,
             .n_channels = 4, .taps = 4);
        NO_ROWS(short_conv, n_rows);
        BAD(short_conv, taps, 1);
        BAD(short_conv, taps, LH_MAX_TAPS + 1);
        BAD(short_conv, ldx, 3);
        BAD(short_conv, ldy, 3);
        BAD(short_conv, halo, NULL);
    }
    {
        GOOD(conv_step, .y = {p, p, p}, .rows = &p, .x = p, .w = {p, p, p}, .n_seq = 3,
             .n_channels = 4, .taps = 4);
        NO_ROWS(conv_step, n_seq);
        BAD(conv_step, taps, 1);
        BAD(conv_step, taps, LH_MAX_TAPS + 1);
        BAD(conv_step, n_channels, INT32_MAX / 3 + 1);
        BAD(conv_step, rows, NULL);
        BAD(conv_step, y[2], NULL);
        BAD(conv_step, w[1], NULL);
    }
    {
        GOOD(gated_norm, .y = p, .o = p, .z = p, .w = p, .n_rows = 3, .n_heads = 2, .d = 4);
        NO_ROWS(gated_norm, n_rows);
        BAD(gated_norm, z, NULL);
        BAD(gated_norm, n_heads, INT32_MAX); /* the row does not fit */
    }
    {
        GOOD(latent, .y = p, .x = p, .w = p, .n_rows = 3, .d_latent = 4, .d_rope = 0);
        NO_ROWS(latent, n_rows);
        BAD(latent, d_rope, -1);
        BAD(latent, d_rope, INT32_MAX);
        BAD(latent, caches, &p); /* without rows */
        BAD(latent, y, NULL);
        good.caches = &p;
        good.row = p;
        good.y = NULL;
        CHECK_OK(lh_check_latent(&good));
    }
    {
        GOOD(moe_step, .y = p, .x = p, .expert = p, .w_gate = p, .w_up = p, .w_down = p,
             .n_nets = 2, .n_seq = 3, .d = 8, .d_hidden = 4, .top_k = 2, .work = p);
        NO_ROWS(moe_step, n_seq);
        BAD(moe_step, expert, NULL);
        BAD(moe_step, top_k, LH_MAX_TOP_K + 1);
        BAD(moe_step, first_expert, -1);
    }
    {
        GOOD(gather, .y = p, .x = p, .index = p, .n_rows = 3, .width = 4);
        NO_ROWS(gather, n_rows);
        BAD(gather, index, NULL);
    }
    {
        GOOD(sample, .token = p, .logits = p, .draw = p, .n_rows = 3, .n_vocab = 4, .work = p);
        NO_ROWS(sample, n_rows);
        BAD(sample, n_vocab, 0);
        BAD(sample, n_vocab, INT64_C(1) << 31);
        BAD(sample, token, NULL);
        BAD(sample, logits, NULL);
        BAD(sample, draw, NULL);
        BAD(sample, work, NULL);
        BAD(sample, work, memory + 8);
    }
    {
        GOOD(combine, .x = p, .rows = p, .source = p, .weight = p, .n_rows = 3, .d = 4, .top_k = 2);
        NO_ROWS(combine, n_rows);
        BAD(combine, top_k, 0);
        BAD(combine, weight, NULL);
    }
    {
        GOOD(plan_send, .total = p, .send_row = p, .source = p, .pair_expert = p, .expert = p,
             .first = net, .n_rows = 3, .n_experts = 1, .top_k = 1, .size = 2, .work = p);
        NO_ROWS(plan_send, n_rows);
        BAD(plan_send, first, net_over);
        BAD(plan_send, first, net_under);
        BAD(plan_send, first, net_falling);
        BAD(plan_send, first, NULL);
        BAD(plan_send, n_experts, 2);
        BAD(plan_send, top_k, 2);
        BAD(plan_send, size, 0);
        BAD(plan_send, total, NULL);
        BAD(plan_send, pair_expert, NULL);
        BAD(plan_send, work, memory + 64);
    }
    {
        GOOD(plan_receive, .pair_copy = p, .back_pair = p, .pair_expert = p, .n_pairs = 3,
             .n_copies = 2, .n_nets = 1, .work = p);
        NO_ROWS(plan_receive, n_pairs);
        BAD(plan_receive, n_copies, 0);
        BAD(plan_receive, n_copies, 4);
        BAD(plan_receive, n_nets, 0);
        BAD(plan_receive, back_pair, NULL);
        BAD(plan_receive, work, NULL);
    }
    {
        GOOD(synth_fill, .out = p, .form = LH_SYNTH_AS_F32, .first = 7, .n = 3);
        BAD(synth_fill, n, -1);
        BAD(synth_fill, n, (INT64_C(1) << 38) + 1);
        BAD(synth_fill, first, -1);
        BAD(synth_fill, first, (INT64_C(1) << 40) + 1);
        BAD(synth_fill, form, (lh_synth_form)3);
        BAD(synth_fill, out, NULL);
        BAD(synth_fill, out, memory + 8);
        good.n = 0;
        good.out = NULL;
        CHECK_OK(lh_check_synth_fill(&good));
    }
}

static void test_products(void)
{
    {
        GOOD(linear, .y = p, .ldy = 5, .x = p, .ldx = 4, .w = p, .n_rows = 3, .n_in = 4, .n_out = 5,
             .tiles = tiles);
        BAD_TILES(linear);
        BAD(linear, n_in, 0);
        BAD(linear, n_in, 5);
        BAD(linear, n_out, 6);
        BAD(linear, w, NULL);
        good.accumulate = 1;
        BAD(linear, f32_out, 1);
        good.n_rows = good.tiles.n = 0;
        good.x = good.y = NULL;
        CHECK_OK(lh_check_linear(&good));
    }
    {
        GOOD(router, .expert = p, .weight = p, .scores = p, .x = p, .w = p, .bias = p, .n_rows = 3,
             .d = 4, .n_experts = 5, .top_k = 5, .scale = 1, .tiles = tiles);
        BAD_TILES(router);
        BAD(router, top_k, 6);
        BAD(router, top_k, 0);
        BAD(router, scale, INFINITY);
        BAD(router, bias, NULL);
    }
    {
        GOOD(ffn, .y = p, .x = p, .w_gate = nets, .w_up = nets, .w_down = nets, .n_nets = 2,
             .n_rows = 3, .d = 4, .d_hidden = 5, .tiles = tiles, .net = net, .work = p);
        BAD_TILES(ffn);
        BAD(ffn, net, net_over);
        BAD(ffn, net, net_under);
        BAD(ffn, net, NULL);
        BAD(ffn, w_up, no_net);
        BAD(ffn, work, NULL);
    }
}

static void test_kda(void)
{
    {
        GOOD(kda_gate, .q = p, .k = p, .f = p, .b = p, .a_log = p, .dt_bias = p, .g = p, .beta = p,
             .n_rows = 3, .n_heads = 2, .d_k = 4);
        NO_ROWS(kda_gate, n_rows);
        BAD(kda_gate, d_k, 0);
        BAD(kda_gate, a_log, NULL);
    }
    {
        GOOD(kda_prepare, .q = p, .k = p, .v = p, .g = p, .beta = p, .map = p, .add = p, .work = p,
             .n_rows = 3, .n_heads = 2, .d_k = 4, .d_v = 4, .tiles = tiles);
        BAD_TILES(kda_prepare);
        BAD(kda_prepare, work, memory + 64);
        BAD(kda_prepare, map, NULL);
    }
    {
        GOOD(kda_fold, .state_out = p, .state_in = p, .map = p, .add = p, .n_heads = 2, .d_k = 4,
             .d_v = 4);
        BAD(kda_fold, d_v, 0);
        BAD(kda_fold, state_in, NULL);
    }
    {
        GOOD(kda_finish, .o = p, .state_in = p, .q = p, .k = p, .v = p, .g = p, .work = p,
             .n_rows = 3, .n_heads = 2, .d_k = 4, .d_v = 4, .tiles = tiles);
        BAD_TILES(kda_finish);
        BAD(kda_finish, work, NULL);
    }
    {
        GOOD(kda_step, .o = p, .state = p, .q = p, .k = p, .v = p, .g = p, .beta = p, .n_seq = 3,
             .n_heads = 2, .d_k = 4, .d_v = 4);
        NO_ROWS(kda_step, n_seq);
        BAD(kda_step, state, NULL);
    }
}

typedef lh_mla_decode_args lh_mla_ranges_args;
#define lh_check_mla_ranges(a) (lh_check_mla_ranges)(a, 3)

static void test_mla(void)
{
    {
        GOOD(mla_prefill, .o = p, .q = p, .latent = p, .w_kvb = p, .n_rows = 3, .n_runs = 2,
             .run_start = runs, .run_position = positions, .tiles = tiles, .n_heads = 2,
             .d_nope = 4, .d_rope = 2, .d_v = 4, .d_latent = 8, .work = p);
        BAD_TILES(mla_prefill);
        BAD(mla_prefill, n_runs, 0);
        BAD(mla_prefill, n_runs, 4);
        BAD(mla_prefill, run_start, runs_off);
        BAD(mla_prefill, run_start, runs_over);
        BAD(mla_prefill, run_position, overlapping);
        BAD(mla_prefill, run_position, negative);
        BAD(mla_prefill, d_nope, INT32_MAX);
        BAD(mla_prefill, work, memory + 1);
    }
    {
        GOOD(mla_decode, .o = p, .q = p, .latent = p, .n_keys = n_keys, .max_keys = 9, .w_kvb = p,
             .n_seq = 3, .n_heads = 2, .d_nope = 4, .d_rope = 2, .d_v = 4, .d_latent = 8,
             .work = p);
        NO_ROWS(mla_decode, n_seq);
        BAD(mla_decode, n_keys, NULL);
        BAD(mla_decode, max_keys, 0);
        BAD(mla_decode, d_rope, -1);
    }
    {
        GOOD(mla_ranges, .n_seq = 1, .partial = p, .first_range = 1, .n_ranges = 2);
        BAD(mla_ranges, partial, NULL);
        BAD(mla_ranges, first_range, -1);
        BAD(mla_ranges, first_range, 2);
        BAD(mla_ranges, n_ranges, 3);
    }
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    RUN(test_rows);
    RUN(test_products);
    RUN(test_kda);
    RUN(test_mla);
    return check_done();
}
