/*
 * Strong and weak scaling in one job: for each count an engine over the first so many ranks, while
 * the others wait. A rank computes with as many threads whatever the count.
 */
#include "runtime/cli/scale.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* ------------------------------------------------------------------- setup */

static lh_status add_count(lh_scale *s, int count)
{
    int at = s->n_counts;

    for (int i = 0; i < s->n_counts; i++)
        LH_REQUIRE(s->counts[i] != count, LH_ERR_USAGE, "--counts: %d is there twice", count);
    for (; at > 0 && s->counts[at - 1] > count; at--)
        s->counts[at] = s->counts[at - 1];
    s->counts[at] = count;
    s->n_counts++;
    return LH_OK;
}

static lh_status list_counts(lh_scale *s)
{
    const lh_opt_value *v = &s->c->opts->values[LH_OPT_COUNTS];
    int size = s->c->rank.size;

    for (int i = 0; i < v->n_items; i++) {
        int64_t count = v->items.sizes[i];
        LH_REQUIRE(count <= size, LH_ERR_USAGE, "--counts: %lld, expected 1 to the job's %d ranks",
                   (long long)count, size);
        LH_TRY(add_count(s, (int)count));
    }
    if (v->n_items > 0)
        return LH_OK;
    for (int count = 1; count < size; count *= 2)
        LH_TRY(add_count(s, count));
    return add_count(s, size);
}

/* The place of a prompt in the list, which has room for one of each row. */
static int find_prompt(lh_scale *s, int is_decode, int64_t tokens)
{
    int i = 0;

    while (i < s->n_prompts &&
           (s->prompts[i].is_decode != is_decode || s->prompts[i].length != tokens))
        i++;
    if (i == s->n_prompts)
        s->prompts[s->n_prompts++] = (lh_speed_row){
            .is_decode = is_decode, .is_filled = is_decode && s->filled, .length = tokens};
    return i;
}

/* Rows and prompts of kind by kind; and the longest sequence. */
static lh_status list_rows(lh_scale *s)
{
    size_t n = (size_t)LH_N_SCALE_KINDS * (size_t)s->n_lengths * (size_t)s->n_counts;

    LH_TRY(lh_alloc((void **)&s->rows, n * sizeof *s->rows, "rows of the tables"));
    LH_TRY(lh_alloc((void **)&s->prompts, n * sizeof *s->prompts, "list of prompts"));
    for (int kind = 0; kind < LH_N_SCALE_KINDS; kind++)
        for (int l = 0; l < s->n_lengths; l++)
            for (int k = 0; k < s->n_counts; k++) {
                int64_t tokens = s->lengths[l] * (kind == LH_SCALE_WEAK ? s->counts[k] : 1);
                *lh_scale_row_at(s, kind, l, k) =
                    (lh_scale_row){.ranks = s->counts[k],
                                   .tokens = tokens,
                                   .prompt = find_prompt(s, kind == LH_SCALE_DECODE, tokens)};
                s->speed.room = lh_max64(s->speed.room,
                                         lh_speed_room(&s->speed, kind == LH_SCALE_DECODE, tokens));
            }
    return LH_OK;
}

static lh_status prepare(lh_scale *s)
{
    LH_TRY(list_counts(s));
    LH_TRY(list_rows(s));
    LH_TRY(lh_speed_allocate(&s->speed));
    for (int i = 0; i < s->n_prompts; i++)
        LH_TRY(lh_alloc((void **)&s->prompts[i].want,
                        (size_t)s->speed.n_vocab * sizeof *s->prompts[i].want, "logits"));
    return LH_OK;
}

/* ------------------------------------------------------------ measurements */

static int share_of(const char *phase)
{
    static const struct {
        const char *phase;
        int share;
    } exchanges[] = {{"state passing", LH_SHARE_STATES},
                     {"latent exchange", LH_SHARE_LATENTS},
                     {"route", LH_SHARE_EXPERTS},
                     {"dispatch", LH_SHARE_EXPERTS},
                     {"combine", LH_SHARE_EXPERTS}};

    for (size_t i = 0; i < sizeof exchanges / sizeof *exchanges; i++)
        if (strcmp(phase, exchanges[i].phase) == 0)
            return exchanges[i].share;
    return LH_SHARE_COMPUTING;
}

static lh_status take_shares(const lh_scale *s, lh_scale_row *r)
{
    const lh_phase *phases = r->phases;
    double all = 0;

    LH_TRY(lh_engine_phases(s->c->engine, r->phases, LH_CLI_PHASES, &r->n_phases));
    for (int i = 0; i < r->n_phases; i++) {
        int share = share_of(phases[i].name);
        all += phases[i].mean_s;
        r->shares[share] += phases[i].mean_s;
        if (share == LH_SHARE_COMPUTING)
            r->shares[LH_SHARE_IMBALANCE] += phases[i].max_s - phases[i].mean_s;
    }
    for (int i = 0; i < LH_N_SHARES; i++)
        r->shares[i] = all > 0 ? r->shares[i] / all : 0;
    return LH_OK;
}

/* A row of the same prompt on as many ranks that has been measured before `r`. */
static const lh_scale_row *find_same(const lh_scale *s, const lh_scale_row *r)
{
    for (const lh_scale_row *other = s->rows; other < r; other++)
        if (other->prompt == r->prompt && other->ranks == r->ranks)
            return other;
    return NULL;
}

static lh_status measure_row(lh_scale *s, int kind, lh_scale_row *r)
{
    const lh_scale_row *same = find_same(s, r);
    lh_speed_row *prompt = &s->prompts[r->prompt];

    if (same) {
        *r = *same;
        return LH_OK;
    }
    LH_TRY(lh_speed_measure(&s->speed, prompt));
    r->mean_s = prompt->mean_s;
    r->sd_s = prompt->sd_s;
    r->rate = prompt->tokens / r->mean_s;
    r->rate_sd = r->rate * r->sd_s / r->mean_s;
    LH_TRY(take_shares(s, r));
    if (lh_cli_talks(s->c))
        (void)fprintf(stderr, "%d of %d ranks, %s %s tokens: %.1f tokens/s\n", r->ranks,
                      s->c->rank.size, kind == LH_SCALE_DECODE ? "decoding after" : "prefill of",
                      lh_cli_number(r->tokens), r->rate);
    return LH_OK;
}

/* On the ranks of this count. */
static lh_status measure_count(lh_scale *s, int k)
{
    int64_t context = 0;

    for (int kind = 0; kind < LH_N_SCALE_KINDS; kind++)
        for (int l = 0; l < s->n_lengths; l++)
            context = lh_max64(context, lh_speed_room(&s->speed, kind == LH_SCALE_DECODE,
                                                      lh_scale_row_at(s, kind, l, k)->tokens));
    LH_TRY(lh_speed_open(&s->speed, context));
    s->backend = lh_engine_backend(s->c->engine);
    s->segment = lh_engine_segment(s->c->engine);
    for (int kind = 0; kind < LH_N_SCALE_KINDS; kind++)
        for (int l = 0; l < s->n_lengths; l++)
            LH_TRY(measure_row(s, kind, lh_scale_row_at(s, kind, l, k)));
    lh_speed_close(&s->speed);
    return LH_OK;
}

/* On rank 0, which is among those of every count. */
static void compare_counts(lh_scale *s)
{
    for (int i = 0; i < LH_N_SCALE_KINDS * s->n_lengths; i++) {
        lh_scale_row *rows = &s->rows[i * s->n_counts];
        for (int k = 0; k < s->n_counts; k++) {
            rows[k].speedup = rows[k].rate / rows[0].rate;
            rows[k].efficiency = rows[k].speedup * rows[0].ranks / rows[k].ranks;
        }
    }
}

lh_status lh_cli_scale(lh_cli *c)
{
    lh_status st = LH_OK;
    const lh_opt_value *lengths = &c->opts->values[LH_OPT_SCALE_LENGTHS];
    lh_scale s = {.c = c,
                  .filled = strcmp(lh_opt_text(c->opts, LH_OPT_FILL), "synthetic") == 0,
                  .speed = {.c = c,
                            .batch = 1,
                            .repeat = (int)lh_opt_number(c->opts, LH_OPT_SCALE_REPEAT),
                            .flags = "--lengths, --counts",
                            .where = "the same prompt in other blocks or on fewer ranks",
                            .phases_of_a_row = 1},
                  .lengths = lengths->items.sizes,
                  .n_lengths = lengths->n_items};

    LH_TRY(lh_cli_check_outputs(c));
    LH_TRY(lh_cli_open_config(c));
    LH_TRY_OUT(lh_job_agree(c->job, prepare(&s)));
    for (int k = 0; k < s.n_counts; k++) {
        c->n_ranks = s.counts[k];
        if (c->rank.rank < c->n_ranks)
            LH_TRY_OUT(measure_count(&s, k));
        c->n_ranks = 0;
        LH_TRY_OUT(lh_job_agree(c->job, LH_OK)); /* here the others have waited */
    }
    if (c->rank.rank == 0) {
        compare_counts(&s);
        st = lh_scale_report(&s);
    }
out:
    lh_speed_free(&s.speed);
    for (int i = 0; i < s.n_prompts; i++)
        free(s.prompts[i].want);
    free(s.prompts);
    free(s.rows);
    return st;
}
