/*
 * A session's memory filled with random values in place of a prefill, for measurements of decoding
 * after contexts that would take long to compute.
 *
 * Values are functions of (seed, kind of memory, layer, index in the whole model's tensor): a rank
 * writes its own heads of it. Latents are made for one block of rows and copied from there, because
 * those of a million tokens would take a processor minutes.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "runtime/engine_internal.h"

#define BLOCK_ROWS 4096
/* Root mean squares after prefills with synthetic weights: of states 0.09 to 0.13 over the layers,
 * of convolution rows and latents 0.98 to 1.02. */
#define STATE_SD 0.1
#define ROW_SD 1.0

typedef struct filler {
    lh_engine *e;
    uint64_t seed;
    void *host; /* room for what one call of put makes */
} filler;

/* Elements first .. first + n - 1 of the tensor `name` of a layer to `to`. In f32 activations are
 * rounded to bf16 before, so that both backends have the same values. */
static lh_status put(const filler *f, void *to, const char *name, int at, double sd, int is_act,
                     int64_t first, int64_t n)
{
    size_t size = is_act ? f->e->g.act_bytes : sizeof(float), end = (size_t)(first + n) * size;
    char full[32];

    (void)snprintf(full, sizeof full, "fill %s %d", name, at);
    lh_synth_piece piece = {
        .law = {.key = lh_synth_key(f->seed, full), .scale = (float)(sd / LH_SYNTH_BELL_SD)},
        .form = !is_act                   ? LH_SYNTH_AS_F32
                : size == sizeof(lh_bf16) ? LH_SYNTH_AS_BF16
                                          : LH_SYNTH_AS_WIDENED,
        .n = (size_t)(first + n),
        .n_bytes = end};
    lh_synth_fill(&piece, 1, f->host, (size_t)first * size, end, f->e->g.n_threads);
    return f->e->k->device->load(f->e->s, to, f->host, (size_t)n * size);
}

/* Layer `at` of the KDA layers: this rank's heads of the state and of the rows before the
 * convolution. */
static lh_status fill_kda(const filler *f, const lh_session *s, int at)
{
    const lh_dims *d = &f->e->d;
    lh_range heads = f->e->g.kda_heads;
    int64_t dim = d->kda_dim, own = lh_range_size(heads), n_rows = 3 * ((int64_t)d->taps - 1);

    LH_TRY(put(f, lh_state_at(s, at), "state", at, STATE_SD, 0, heads.begin * dim * dim,
               own * dim * dim));
    for (int64_t row = 0; row < n_rows; row++)
        LH_TRY(put(f, lh_act(f->e, lh_conv_at(s, at), row * own * dim), "convolution", at, ROW_SD,
                   1, (row * d->kda_heads + heads.begin) * dim, own * dim));
    return LH_OK;
}

/* Layer `at` of the MLA layers: one block of rows, then what is there as often as it takes. */
static lh_status fill_mla(const filler *f, const lh_session *s, int at, int64_t n_tokens)
{
    const lh_engine *e = f->e;
    int64_t width = e->d.d_latent + e->d.d_rope, done = lh_min64(n_tokens, BLOCK_ROWS);
    void *rows = lh_latent_at(s, at);

    LH_TRY(put(f, rows, "latent", at, ROW_SD, 1, 0, done * width));
    for (int64_t more; done < n_tokens; done += more) {
        more = lh_min64(done, n_tokens - done);
        LH_TRY(e->k->device->copy(e->s, lh_act(e, rows, done * width), rows,
                                  (size_t)(more * width) * e->g.act_bytes));
    }
    return LH_OK;
}

static lh_status fill(filler *f, const lh_session *s, int64_t n_tokens)
{
    const lh_dims *d = &f->e->d;
    int64_t state = lh_range_size(f->e->g.kda_heads) * d->kda_dim * d->kda_dim;
    int64_t block = lh_min64(n_tokens, BLOCK_ROWS) * (d->d_latent + d->d_rope);

    LH_REQUIRE(n_tokens >= 1 && n_tokens <= s->context, LH_ERR_DATA,
               "a context of %lld tokens to fill: expected 1 to %lld", (long long)n_tokens,
               (long long)s->context);
    LH_TRY(lh_alloc(&f->host, (size_t)lh_max64(state, block) * sizeof(float), "filled caches"));
    for (int at = 0; at < d->n_kda_layers; at++)
        LH_TRY(fill_kda(f, s, at));
    for (int at = 0; at < d->n_mla_layers; at++)
        LH_TRY(fill_mla(f, s, at, n_tokens));
    return f->e->k->device->sync(f->e->s);
}

lh_status lh_session_fill(lh_session *s, int64_t n_tokens, uint64_t seed)
{
    filler f = {.e = s->engine, .seed = seed};
    lh_status st = fill(&f, s, n_tokens);

    free(f.host);
    LH_TRY(lh_engine_agree(f.e, st));
    s->position = n_tokens;
    return LH_OK;
}
