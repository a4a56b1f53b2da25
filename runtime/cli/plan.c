#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "runtime/cli/cli.h"

/* Ranks that plan alike share a line. */
static lh_status print_ranks(const lh_cli *c, const lh_plan *p)
{
    LH_TRY(lh_cli_printf(c, "%-11s %10s %10s %10s %10s %10s %10s %10s %10s\n", "rank", "dense",
                         "experts", "KDA state", "conv rows", "latents", "workspace", "messages",
                         "total"));
    for (int r = 0, next; r < p->n_ranks; r = next) {
        const lh_rank_plan *x = &p->ranks[r];
        char name[32];
        for (next = r + 1; next < p->n_ranks && memcmp(x, &p->ranks[next], sizeof *x) == 0;)
            next++;
        if (next == r + 1)
            (void)snprintf(name, sizeof name, "%d", r);
        else
            (void)snprintf(name, sizeof name, "%d-%d", r, next - 1);
        LH_TRY(lh_cli_printf(c, "%-11s %10s %10s %10s %10s %10s %10s %10s %10s\n", name,
                             lh_cli_bytes(x->weights_dense), lh_cli_bytes(x->weights_experts),
                             lh_cli_bytes(x->kda_state), lh_cli_bytes(x->conv_state),
                             lh_cli_bytes(x->latent_cache), lh_cli_bytes(x->workspace),
                             lh_cli_bytes(x->communication), lh_cli_bytes(x->total)));
    }
    return LH_OK;
}

static lh_status print_nodes(const lh_cli *c, const lh_plan *p, int per_node)
{
    for (int first = 0; first < p->n_ranks; first += per_node) {
        int last = (int)lh_min64(first + per_node, p->n_ranks) - 1;
        size_t sum = 0;
        for (int r = first; r <= last; r++)
            (void)lh_add_size(&sum, sum, p->ranks[r].total);
        LH_TRY(lh_cli_printf(c, "node %d (ranks %d-%d): %s\n", first / per_node, first, last,
                             lh_cli_bytes(sum)));
    }
    return LH_OK;
}

static lh_status print_plan(const lh_cli *c, const lh_plan *p, const char *backend)
{
    int ranks_per_node = (int)lh_opt_number(c->opts, LH_OPT_RANKS_PER_NODE);

    LH_TRY(lh_cli_printf(
        c, "%s, %s, %d ranks, %d sequences of %s tokens, blocks of %s, segments of %s\n\n",
        c->model_dir, backend, p->n_ranks, p->batch, lh_cli_number(p->context_tokens),
        lh_cli_number(p->block_tokens), lh_cli_number(p->segment_tokens)));
    LH_TRY(print_ranks(c, p));
    if (ranks_per_node)
        LH_TRY(print_nodes(c, p, ranks_per_node));
    if (p->n_messages > 0)
        LH_TRY(lh_cli_printf(c, "\n%-20s %6s %22s\n", "messages", "layers", "per layer and block"));
    for (int i = 0; i < p->n_messages; i++)
        LH_TRY(lh_cli_printf(c, "%-20s %6d %22s\n", p->messages[i].name, p->messages[i].layers,
                             lh_cli_bytes(p->messages[i].bytes)));
    return LH_OK;
}

static json_t *make_json(const lh_plan *p, int has_memory)
{
    json_t *ranks = json_array(), *messages = json_array();
    int bad = 0;

    for (int r = 0; r < p->n_ranks; r++) {
        const lh_rank_plan *x = &p->ranks[r];
        bad |= json_array_append_new(
            ranks, json_pack("{s:i,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "rank", r, "weights_dense",
                             (json_int_t)x->weights_dense, "weights_experts",
                             (json_int_t)x->weights_experts, "kda_state", (json_int_t)x->kda_state,
                             "conv_state", (json_int_t)x->conv_state, "latent_cache",
                             (json_int_t)x->latent_cache, "workspace", (json_int_t)x->workspace,
                             "communication", (json_int_t)x->communication, "total",
                             (json_int_t)x->total));
    }
    for (int i = 0; i < p->n_messages; i++)
        bad |= json_array_append_new(
            messages, json_pack("{s:s,s:i,s:I}", "name", p->messages[i].name, "layers",
                                p->messages[i].layers, "bytes", (json_int_t)p->messages[i].bytes));
    json_t *fits = has_memory ? json_boolean(p->fits) : json_null();
    json_t *largest = has_memory ? json_integer(p->largest_context) : json_null();
    json_t *json = json_pack("{s:o,s:o,s:o,s:o}", "ranks", ranks, "messages", messages, "fits",
                             fits, "largest_context", largest);
    if (bad) {
        json_decref(json);
        json = NULL;
    }
    return json;
}

static size_t largest_total(const lh_plan *p)
{
    size_t most = 0;

    for (int r = 0; r < p->n_ranks; r++)
        most = p->ranks[r].total > most ? p->ranks[r].total : most;
    return most;
}

lh_status lh_cli_plan(lh_cli *c)
{
    lh_status st = LH_OK;
    lh_plan *p = NULL;
    const lh_opts *o = c->opts;
    const char *backend = lh_opt_text(o, LH_OPT_BACKEND);
    size_t memory = (size_t)lh_opt_number(o, LH_OPT_MEMORY);

    LH_TRY(lh_cli_check_outputs(c));
    LH_TRY(lh_cli_find_model(c));
    backend = strcmp(backend, "auto") == 0 ? "cuda" : backend;
    lh_plan_opts opts = {
        .model_dir = c->model_dir,
        .backend = backend,
        .n_ranks = lh_opt_given(o, LH_OPT_RANKS) ? (int)lh_opt_number(o, LH_OPT_RANKS) : 1,
        .n_threads = c->n_threads,
        .segment_tokens = lh_opt_number(o, LH_OPT_SEGMENT),
        .block_tokens = lh_opt_number(o, LH_OPT_BLOCK),
        .context_tokens = lh_opt_number(o, LH_OPT_CONTEXT),
        .batch = lh_opt_given(o, LH_OPT_BATCH) ? (int)lh_opt_number(o, LH_OPT_BATCH) : 1,
        .deterministic = (int)lh_opt_number(o, LH_OPT_DETERMINISTIC),
        .memory_bytes = memory};
    LH_TRY_OUT(lh_plan_make(&p, &opts));

    if (!lh_cli_json_only(c)) {
        LH_TRY_OUT(print_plan(c, p, backend));
        if (p->fits)
            LH_TRY_OUT(lh_cli_printf(
                c, "\nfits: at most %s of %s; the largest context that would fit is %s tokens\n",
                lh_cli_bytes(largest_total(p)), lh_cli_bytes(memory),
                lh_cli_number(p->largest_context)));
    }
    if (lh_opt_given(o, LH_OPT_JSON))
        LH_TRY_OUT(lh_cli_write_json(c, make_json(p, memory > 0)));
    LH_REQUIRE_OUT(!memory || p->fits, LH_ERR_NOMEM, "%s", p->shortage);
out:
    lh_plan_free(p);
    return st;
}
