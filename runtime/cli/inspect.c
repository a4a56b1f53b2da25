#include <stdio.h>
#include <string.h>

#include "runtime/cli/cli.h"

static lh_status print_model(const lh_cli *c, const lh_inspection *i)
{
    const lh_model_info *m = &i->model;

    LH_TRY(lh_cli_printf(c, "checkpoint   %s\n", c->model_dir));
    LH_TRY(lh_cli_printf(c, "layers       %d: %d KDA, %d MLA; the first %d dense, the others MoE\n",
                         m->n_layers, m->n_kda_layers, m->n_mla_layers, m->n_dense_layers));
    LH_TRY(lh_cli_printf(c, "experts      %d, %d chosen, %d shared\n", m->n_experts, m->top_k,
                         m->n_shared_experts));
    LH_TRY(lh_cli_printf(c, "width        %s; KDA %d heads of %d; MLA %d heads, latent %d + %d\n",
                         lh_cli_number(m->d_model), m->kda_heads, m->kda_head_dim, m->mla_heads,
                         m->latent_dim, m->rope_dim));
    LH_TRY(lh_cli_printf(c, "vocabulary   %s tokens; begins with %d; ends with",
                         lh_cli_number(m->n_vocab), (int)m->bos_token));
    for (int k = 0; k < m->n_eos; k++)
        LH_TRY(lh_cli_printf(c, " %d", (int)m->eos_tokens[k]));
    LH_TRY(lh_cli_printf(c, "\ncontext      at most %s tokens\n", lh_cli_number(m->max_context)));
    LH_TRY(lh_cli_printf(c, "parameters   %s in %s tensors of %d %s: %s, %s with headers\n",
                         lh_cli_number(m->n_parameters), lh_cli_number(i->n_tensors), i->n_files,
                         i->n_files == 1 ? "file" : "files", lh_cli_bytes(m->weight_bytes),
                         lh_cli_bytes(i->file_bytes)));
    for (int k = 0; k < i->n_ignored_keys; k++)
        LH_TRY(lh_cli_printf(c, "ignored key  %s\n", i->ignored_keys[k]));
    return LH_OK;
}

static lh_status print_tensors(const lh_cli *c, const lh_inspection *i)
{
    for (int64_t k = 0; k < i->n_tensors; k++) {
        const lh_tensor_info *t = &i->tensors[k];
        LH_TRY(lh_cli_printf(c, "%s %s [", t->name, t->dtype));
        for (int d = 0; d < t->n_dims; d++)
            LH_TRY(lh_cli_printf(c, d ? ", %lld" : "%lld", (long long)t->dims[d]));
        LH_TRY(lh_cli_printf(c, "] %s+%zu %zu bytes\n", t->file, t->offset, t->bytes));
    }
    return LH_OK;
}

static lh_status print_verdict(const lh_cli *c, const lh_inspection *i)
{
    if (!i->verified)
        return lh_cli_printf(c, "names, shapes and dtypes are as config.json asks; --verify reads "
                                "the values\n");
    if (i->n_nonfinite == 0)
        return lh_cli_printf(c, "verified: every value was read and is finite\n");
    return lh_cli_printf(c, "verified: %s values are not finite, the first in %s\n",
                         lh_cli_number(i->n_nonfinite), i->first_nonfinite);
}

static json_t *tensor_json(const lh_tensor_info *t)
{
    json_t *dims = json_array();

    for (int d = 0; d < t->n_dims; d++)
        (void)json_array_append_new(dims, json_integer(t->dims[d]));
    return json_pack("{s:s,s:s,s:o,s:s,s:I,s:I}", "name", t->name, "dtype", t->dtype, "shape", dims,
                     "file", t->file, "offset", (json_int_t)t->offset, "bytes",
                     (json_int_t)t->bytes);
}

static json_t *make_json(const lh_cli *c, const lh_inspection *i)
{
    const lh_model_info *m = &i->model;
    json_t *tensors = json_array();

    for (int64_t k = 0; lh_opt_number(c->opts, LH_OPT_TENSORS) && k < i->n_tensors; k++)
        if (json_array_append_new(tensors, tensor_json(&i->tensors[k])) != 0) {
            json_decref(tensors);
            return NULL;
        }
    return json_pack("{s:s,s:i,s:i,s:i,s:I,s:I,s:I,s:I,s:I,s:i,s:b,s:I,s:o}", "model", c->model_dir,
                     "layers", m->n_layers, "kda_layers", m->n_kda_layers, "mla_layers",
                     m->n_mla_layers, "vocab", (json_int_t)m->n_vocab, "max_context",
                     (json_int_t)m->max_context, "parameters", (json_int_t)m->n_parameters,
                     "weight_bytes", (json_int_t)m->weight_bytes, "n_tensors",
                     (json_int_t)i->n_tensors, "n_files", i->n_files, "verified", i->verified,
                     "nonfinite", (json_int_t)i->n_nonfinite, "tensors", tensors);
}

lh_status lh_cli_inspect(lh_cli *c)
{
    lh_status st = LH_OK;
    lh_inspection *i = NULL;
    int json = lh_opt_given(c->opts, LH_OPT_JSON);

    LH_TRY(lh_cli_check_outputs(c));
    LH_TRY(lh_cli_find_model(c));
    LH_TRY_OUT(lh_inspect(&i, c->model_dir, (int)lh_opt_number(c->opts, LH_OPT_VERIFY),
                          lh_cli_progress, c));
    if (!lh_cli_json_only(c)) {
        LH_TRY_OUT(print_model(c, i));
        if (lh_opt_number(c->opts, LH_OPT_TENSORS))
            LH_TRY_OUT(print_tensors(c, i));
        LH_TRY_OUT(print_verdict(c, i));
    }
    if (json)
        LH_TRY_OUT(lh_cli_write_json(c, make_json(c, i)));
    LH_REQUIRE_OUT(!i->n_nonfinite || lh_opt_number(c->opts, LH_OPT_ALLOW_NONFINITE), LH_ERR_DATA,
                   "%s: %lld values are not finite, the first in tensor '%s', expected none",
                   c->model_dir, (long long)i->n_nonfinite, i->first_nonfinite);
out:
    lh_inspection_free(i);
    return st;
}
