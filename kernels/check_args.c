#include "kernels/check_args.h"

#include <math.h>

/* Largest dimension, rows included: it fits an int, and a product of two fits an int64_t. */
#define DIM_MAX INT32_MAX

static lh_status check_range(const char *op, const char *field, int64_t value, int64_t least,
                             int64_t most)
{
    LH_REQUIRE(value >= least && value <= most, LH_ERR_INVALID,
               "%s: %s is %lld, expected %lld to %lld", op, field, (long long)value,
               (long long)least, (long long)most);
    return LH_OK;
}

static lh_status check_pointer(const char *op, const char *field, const void *p)
{
    LH_REQUIRE(p, LH_ERR_INVALID, "%s: %s is NULL", op, field);
    return LH_OK;
}

static lh_status check_work(const char *op, const void *work)
{
    LH_TRY(check_pointer(op, "work", work));
    LH_REQUIRE((uintptr_t)work % 256 == 0, LH_ERR_INVALID,
               "%s: work is %p, expected a multiple of 256", op, work);
    return LH_OK;
}

static lh_status check_eps(const char *op, float eps)
{
    LH_REQUIRE(isfinite(eps) && eps >= 0, LH_ERR_INVALID, "%s: eps is %g, expected finite and >= 0",
               op, (double)eps);
    return LH_OK;
}

/* a * b elements of a row, both already in range. */
static lh_status check_width(const char *op, const char *fields, int64_t a, int64_t b)
{
    return check_range(op, fields, a * b, 1, DIM_MAX);
}

static lh_status check_tiles(const char *op, const lh_tiles *tiles, int64_t n_rows)
{
    LH_TRY(check_range(op, "tiles.n", tiles->n, n_rows > 0, INT32_MAX - 1));
    if (tiles->n == 0)
        return LH_OK;
    LH_TRY(check_pointer(op, "tiles.start", tiles->start));
    LH_REQUIRE(tiles->start[0] == 0, LH_ERR_INVALID, "%s: tiles.start[0] is %lld, expected 0", op,
               (long long)tiles->start[0]);
    for (int i = 0; i < tiles->n; i++)
        LH_REQUIRE(tiles->start[i] <= tiles->start[i + 1], LH_ERR_INVALID,
                   "%s: tiles.start[%d] is %lld, less than %lld before it", op, i + 1,
                   (long long)tiles->start[i + 1], (long long)tiles->start[i]);
    LH_REQUIRE(tiles->start[tiles->n] == n_rows, LH_ERR_INVALID,
               "%s: the tiles end at row %lld, expected n_rows = %lld", op,
               (long long)tiles->start[tiles->n], (long long)n_rows);
    return LH_OK;
}

/* Of the argument struct `a` of the operation `op`, both in scope. */
#define RANGE(field, least, most) LH_TRY(check_range(op, #field, a->field, (least), (most)))
#define DIM(field) RANGE(field, 1, DIM_MAX)
#define ROWS(field) RANGE(field, 0, DIM_MAX)
#define WIDTH(f, g) LH_TRY(check_width(op, #f " * " #g, a->f, a->g))
#define POINTER(field) LH_TRY(check_pointer(op, #field, a->field))

lh_status lh_check_embed(const lh_embed_args *a)
{
    const char *op = "embed";

    ROWS(n_rows);
    DIM(d);
    DIM(n_vocab);
    if (a->n_rows == 0)
        return LH_OK;
    POINTER(out);
    POINTER(ids);
    POINTER(table);
    return LH_OK;
}

lh_status lh_check_rmsnorm(const lh_rmsnorm_args *a)
{
    const char *op = "rmsnorm";

    ROWS(n_rows);
    DIM(d);
    LH_TRY(check_eps(op, a->eps));
    if (a->n_rows == 0)
        return LH_OK;
    POINTER(y);
    POINTER(x);
    POINTER(w);
    return LH_OK;
}

lh_status lh_check_linear(const lh_linear_args *a)
{
    const char *op = "linear";

    ROWS(n_rows);
    DIM(n_in);
    DIM(n_out);
    RANGE(ldx, a->n_in, DIM_MAX);
    RANGE(ldy, a->n_out, DIM_MAX);
    LH_REQUIRE(!(a->accumulate && a->f32_out), LH_ERR_INVALID,
               "linear: accumulate and f32_out exclude each other");
    LH_TRY(check_tiles(op, &a->tiles, a->n_rows));
    if (a->n_rows == 0)
        return LH_OK;
    POINTER(y);
    POINTER(x);
    POINTER(w);
    return LH_OK;
}

lh_status lh_check_short_conv(const lh_short_conv_args *a)
{
    const char *op = "short_conv";

    ROWS(n_rows);
    DIM(n_channels);
    RANGE(taps, 2, LH_MAX_TAPS);
    RANGE(ldx, a->n_channels, DIM_MAX);
    RANGE(ldy, a->n_channels, DIM_MAX);
    if (a->n_rows == 0)
        return LH_OK;
    POINTER(y);
    POINTER(x);
    POINTER(halo);
    POINTER(w);
    return LH_OK;
}

lh_status lh_check_conv_step(const lh_conv_step_args *a)
{
    const char *op = "conv_step";

    ROWS(n_seq);
    RANGE(n_channels, 1, DIM_MAX / 3);
    RANGE(taps, 2, LH_MAX_TAPS);
    if (a->n_seq == 0)
        return LH_OK;
    for (int i = 0; i < 3; i++) {
        POINTER(y[i]);
        POINTER(w[i]);
    }
    POINTER(rows);
    POINTER(x);
    return LH_OK;
}

lh_status lh_check_kda_gate(const lh_kda_gate_args *a)
{
    const char *op = "kda_gate";

    ROWS(n_rows);
    DIM(n_heads);
    DIM(d_k);
    WIDTH(n_heads, d_k);
    if (a->n_rows == 0)
        return LH_OK;
    POINTER(q);
    POINTER(k);
    POINTER(f);
    POINTER(b);
    POINTER(a_log);
    POINTER(dt_bias);
    POINTER(g);
    POINTER(beta);
    return LH_OK;
}

lh_status lh_check_kda_prepare(const lh_kda_prepare_args *a)
{
    const char *op = "kda_prepare";

    ROWS(n_rows);
    DIM(n_heads);
    DIM(d_k);
    DIM(d_v);
    WIDTH(n_heads, d_k);
    WIDTH(n_heads, d_v);
    LH_TRY(check_tiles(op, &a->tiles, a->n_rows));
    if (a->n_rows == 0)
        return LH_OK;
    POINTER(q);
    POINTER(k);
    POINTER(v);
    POINTER(g);
    POINTER(beta);
    LH_REQUIRE(!a->map == !a->add, LH_ERR_INVALID, "%s: only one of map and add is NULL", op);
    return check_work(op, a->work);
}

lh_status lh_check_kda_fold(const lh_kda_fold_args *a)
{
    const char *op = "kda_fold";

    DIM(n_heads);
    DIM(d_k);
    DIM(d_v);
    WIDTH(n_heads, d_k);
    WIDTH(n_heads, d_v);
    POINTER(state_out);
    POINTER(state_in);
    POINTER(map);
    POINTER(add);
    return LH_OK;
}

lh_status lh_check_kda_finish(const lh_kda_finish_args *a)
{
    const char *op = "kda_finish";

    ROWS(n_rows);
    DIM(n_heads);
    DIM(d_k);
    DIM(d_v);
    WIDTH(n_heads, d_k);
    WIDTH(n_heads, d_v);
    LH_TRY(check_tiles(op, &a->tiles, a->n_rows));
    if (a->n_rows == 0)
        return LH_OK;
    POINTER(o);
    POINTER(state_in);
    POINTER(q);
    POINTER(k);
    POINTER(v);
    POINTER(g);
    return check_work(op, a->work);
}

lh_status lh_check_kda_step(const lh_kda_step_args *a)
{
    const char *op = "kda_step";

    ROWS(n_seq);
    DIM(n_heads);
    DIM(d_k);
    DIM(d_v);
    WIDTH(n_heads, d_k);
    WIDTH(n_heads, d_v);
    if (a->n_seq == 0)
        return LH_OK;
    POINTER(o);
    POINTER(state);
    POINTER(q);
    POINTER(k);
    POINTER(v);
    POINTER(g);
    POINTER(beta);
    return LH_OK;
}

lh_status lh_check_gated_norm(const lh_gated_norm_args *a)
{
    const char *op = "gated_norm";

    ROWS(n_rows);
    DIM(n_heads);
    DIM(d);
    WIDTH(n_heads, d);
    LH_TRY(check_eps(op, a->eps));
    if (a->n_rows == 0)
        return LH_OK;
    POINTER(y);
    POINTER(o);
    POINTER(z);
    POINTER(w);
    return LH_OK;
}

lh_status lh_check_latent(const lh_latent_args *a)
{
    const char *op = "latent";

    ROWS(n_rows);
    DIM(d_latent);
    RANGE(d_rope, 0, DIM_MAX - a->d_latent);
    LH_TRY(check_eps(op, a->eps));
    if (a->n_rows == 0)
        return LH_OK;
    if (a->caches)
        POINTER(row);
    else
        POINTER(y);
    POINTER(x);
    POINTER(w);
    return LH_OK;
}

static lh_status check_mla_dims(const char *op, int64_t n_heads, int64_t d_nope, int64_t d_rope,
                                int64_t d_v, int64_t d_latent)
{
    LH_TRY(check_range(op, "n_heads", n_heads, 1, DIM_MAX));
    LH_TRY(check_range(op, "d_nope", d_nope, 1, DIM_MAX));
    LH_TRY(check_range(op, "d_rope", d_rope, 0, DIM_MAX));
    LH_TRY(check_range(op, "d_v", d_v, 1, DIM_MAX));
    LH_TRY(check_range(op, "d_latent", d_latent, 1, DIM_MAX));
    LH_TRY(check_width(op, "n_heads * (d_nope + d_rope)", n_heads, d_nope + d_rope));
    LH_TRY(check_width(op, "n_heads * (d_nope + d_v)", n_heads, d_nope + d_v));
    return check_range(op, "d_latent + d_rope", d_latent + d_rope, 1, DIM_MAX);
}

/* Runs cover the rows, their positions rise, and each starts at a tile. */
static lh_status check_runs(const lh_mla_prefill_args *a)
{
    const char *op = "mla_prefill";
    int64_t next_position = 0;

    RANGE(n_runs, 1, a->n_rows);
    POINTER(run_start);
    POINTER(run_position);
    LH_REQUIRE(a->run_start[0] == 0 && a->run_start[a->n_runs] == a->n_rows, LH_ERR_INVALID,
               "mla_prefill: the runs are rows %lld to %lld, expected 0 to %lld",
               (long long)a->run_start[0], (long long)a->run_start[a->n_runs],
               (long long)a->n_rows);
    for (int r = 0, tile = 0; r < a->n_runs; r++) {
        int64_t n = a->run_start[r + 1] - a->run_start[r];
        LH_REQUIRE(n > 0 && a->run_start[r + 1] <= a->n_rows, LH_ERR_INVALID,
                   "mla_prefill: run %d is rows %lld to %lld, expected at least one of %lld rows",
                   r, (long long)a->run_start[r], (long long)a->run_start[r + 1],
                   (long long)a->n_rows);
        LH_TRY(check_range(op, "run_position", a->run_position[r], next_position, DIM_MAX - n));
        next_position = a->run_position[r] + n;
        while (a->tiles.start[tile] < a->run_start[r]) /* ends: the last one is n_rows */
            tile++;
        LH_REQUIRE(a->tiles.start[tile] == a->run_start[r], LH_ERR_INVALID,
                   "mla_prefill: no tile starts at row %lld, where run %d starts",
                   (long long)a->run_start[r], r);
    }
    return LH_OK;
}

lh_status lh_check_mla_prefill(const lh_mla_prefill_args *a)
{
    const char *op = "mla_prefill";

    ROWS(n_rows);
    LH_TRY(check_mla_dims(op, a->n_heads, a->d_nope, a->d_rope, a->d_v, a->d_latent));
    LH_TRY(check_tiles(op, &a->tiles, a->n_rows));
    if (a->n_rows == 0)
        return LH_OK;
    LH_TRY(check_runs(a));
    POINTER(o);
    POINTER(q);
    POINTER(latent);
    POINTER(w_kvb);
    return check_work(op, a->work);
}

lh_status lh_check_mla_decode(const lh_mla_decode_args *a)
{
    const char *op = "mla_decode";

    ROWS(n_seq);
    LH_TRY(check_mla_dims(op, a->n_heads, a->d_nope, a->d_rope, a->d_v, a->d_latent));
    if (a->n_seq == 0)
        return LH_OK;
    POINTER(o);
    POINTER(q);
    POINTER(latent);
    POINTER(n_keys);
    POINTER(w_kvb);
    RANGE(max_keys, 1, DIM_MAX);
    return check_work(op, a->work);
}

lh_status lh_check_mla_ranges(const lh_mla_decode_args *a, int64_t all)
{
    const char *op = "mla_ranges";

    if (a->n_seq == 0)
        return LH_OK;
    POINTER(partial);
    RANGE(first_range, 0, all);
    RANGE(n_ranges, 0, all - a->first_range);
    return LH_OK;
}

lh_status lh_check_router(const lh_router_args *a)
{
    const char *op = "router";

    ROWS(n_rows);
    DIM(d);
    DIM(n_experts);
    RANGE(top_k, 1, a->n_experts < LH_MAX_TOP_K ? a->n_experts : LH_MAX_TOP_K);
    LH_REQUIRE(isfinite(a->scale), LH_ERR_INVALID, "router: scale is %g, expected finite",
               (double)a->scale);
    LH_TRY(check_tiles(op, &a->tiles, a->n_rows));
    if (a->n_rows == 0)
        return LH_OK;
    POINTER(expert);
    POINTER(weight);
    POINTER(scores);
    POINTER(x);
    POINTER(w);
    POINTER(bias);
    return LH_OK;
}

lh_status lh_check_ffn(const lh_ffn_args *a)
{
    const char *op = "ffn";

    ROWS(n_rows);
    DIM(d);
    DIM(d_hidden);
    RANGE(n_nets, 0, INT32_MAX);
    LH_TRY(check_tiles(op, &a->tiles, a->n_rows));
    if (a->n_rows == 0)
        return LH_OK;
    POINTER(y);
    POINTER(x);
    POINTER(w_gate);
    POINTER(w_up);
    POINTER(w_down);
    POINTER(net);
    POINTER(work);
    for (int i = 0; i < a->tiles.n; i++) {
        RANGE(net[i], 0, a->n_nets - 1);
        POINTER(w_gate[a->net[i]]);
        POINTER(w_up[a->net[i]]);
        POINTER(w_down[a->net[i]]);
    }
    return LH_OK;
}

lh_status lh_check_moe_step(const lh_moe_step_args *a)
{
    const char *op = "moe_step";

    ROWS(n_seq);
    DIM(d);
    DIM(d_hidden);
    RANGE(top_k, 1, LH_MAX_TOP_K);
    RANGE(n_nets, 0, INT32_MAX);
    RANGE(first_expert, 0, INT32_MAX - a->n_nets);
    if (a->n_seq == 0)
        return LH_OK;
    POINTER(y);
    POINTER(x);
    POINTER(expert);
    if (a->n_nets == 0)
        return LH_OK;
    POINTER(w_gate);
    POINTER(w_up);
    POINTER(w_down);
    POINTER(work);
    return LH_OK;
}

lh_status lh_check_gather(const lh_gather_args *a)
{
    const char *op = "gather";

    ROWS(n_rows);
    DIM(width);
    if (a->n_rows == 0)
        return LH_OK;
    POINTER(y);
    POINTER(x);
    POINTER(index);
    return LH_OK;
}

lh_status lh_check_combine(const lh_combine_args *a)
{
    const char *op = "combine";

    ROWS(n_rows);
    DIM(d);
    RANGE(top_k, 1, LH_MAX_TOP_K);
    if (a->n_rows == 0)
        return LH_OK;
    POINTER(x);
    POINTER(rows);
    POINTER(source);
    POINTER(weight);
    return LH_OK;
}

lh_status lh_check_sample(const lh_sample_args *a)
{
    const char *op = "sample";

    ROWS(n_rows);
    DIM(n_vocab);
    if (a->n_rows == 0)
        return LH_OK;
    POINTER(token);
    POINTER(logits);
    POINTER(draw);
    return check_work(op, a->work);
}

lh_status lh_check_plan_send(const lh_plan_send_args *a)
{
    const char *op = "plan_send";

    ROWS(n_rows);
    DIM(n_experts);
    RANGE(top_k, 1, a->n_experts < LH_MAX_TOP_K ? a->n_experts : LH_MAX_TOP_K);
    RANGE(n_rows, 0, DIM_MAX / a->top_k);
    RANGE(size, 1, DIM_MAX - 1);
    POINTER(total);
    POINTER(first);
    RANGE(first[0], 0, 0);
    for (int r = 0; r < a->size; r++)
        RANGE(first[r + 1], a->first[r], a->n_experts);
    RANGE(first[a->size], a->n_experts, a->n_experts);
    if (a->n_rows == 0)
        return LH_OK;
    POINTER(send_row);
    POINTER(source);
    POINTER(pair_expert);
    POINTER(expert);
    return check_work(op, a->work);
}

lh_status lh_check_plan_receive(const lh_plan_receive_args *a)
{
    const char *op = "plan_receive";

    ROWS(n_pairs);
    if (a->n_pairs == 0)
        return LH_OK;
    DIM(n_nets);
    RANGE(n_copies, 1, a->n_pairs);
    POINTER(pair_copy);
    POINTER(back_pair);
    POINTER(pair_expert);
    return check_work(op, a->work);
}

lh_status lh_check_synth_fill(const lh_synth_fill_args *a)
{
    const char *op = "synth_fill";

    RANGE(form, LH_SYNTH_AS_BF16, LH_SYNTH_AS_WIDENED);
    RANGE(first, 0, INT64_C(1) << 40);
    RANGE(n, 0, INT64_C(1) << 38);
    if (a->n == 0)
        return LH_OK;
    POINTER(out);
    LH_REQUIRE((uintptr_t)a->out % 16 == 0, LH_ERR_INVALID,
               "%s: out is %p, expected a multiple of 16", op, a->out);
    return LH_OK;
}
