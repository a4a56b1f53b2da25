#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "runtime/checkpoint_internal.h"

#define CHUNK_BYTES ((size_t)4 << 20)

/* The public part first; names in it live in the checkpoint. */
typedef struct inspection {
    lh_inspection seen;
    lh_checkpoint *checkpoint;
    char **ignored;
} inspection;

/* Infinite and NaN values among n bytes of bf16 or f32, of any alignment: all exponent bits set. */
static int64_t count_nonfinite(const unsigned char *p, size_t bytes, int is_bf16)
{
    int64_t count = 0;

    if (is_bf16) {
        for (size_t i = 0; i + 2 <= bytes; i += 2) {
            uint16_t x;
            memcpy(&x, p + i, sizeof x);
            count += (x & 0x7f80u) == 0x7f80u;
        }
        return count;
    }
    for (size_t i = 0; i + 4 <= bytes; i += 4) {
        uint32_t x;
        memcpy(&x, p + i, sizeof x);
        count += (x & 0x7f800000u) == 0x7f800000u;
    }
    return count;
}

static void verify(lh_inspection *out, const lh_checkpoint *c,
                   void (*progress)(void *user, const lh_progress *p), void *user)
{
    size_t total = 0;
    lh_meter meter;

    for (int64_t i = 0; i < out->n_tensors; i++)
        total += out->tensors[i].bytes;
    lh_meter_start(&meter, "verify", total, progress, user);
    for (int64_t i = 0; i < out->n_tensors; i++) {
        const lh_tensor_info *t = &out->tensors[i];
        const unsigned char *p = lh_checkpoint_data(c, i);
        int64_t before = out->n_nonfinite;
        for (size_t at = 0; at < t->bytes; at += CHUNK_BYTES) {
            size_t n = t->bytes - at < CHUNK_BYTES ? t->bytes - at : CHUNK_BYTES;
            out->n_nonfinite += count_nonfinite(p + at, n, strcmp(t->dtype, "BF16") == 0);
            lh_meter_add(&meter, n);
        }
        if (out->n_nonfinite > before && !out->first_nonfinite)
            out->first_nonfinite = t->name;
    }
    lh_meter_end(&meter);
    out->verified = 1;
}

lh_status lh_inspect(lh_inspection **out, const char *model_dir, int verify_all,
                     void (*progress)(void *user, const lh_progress *p), void *user)
{
    lh_status st = LH_OK;
    lh_dims d;
    void *p = NULL;
    inspection *i = calloc(1, sizeof *i);

    LH_REQUIRE_OUT(i, LH_ERR_NOMEM, "inspection");
    LH_TRY_OUT(lh_config_read(&d, model_dir, &i->ignored));
    LH_TRY_OUT(lh_checkpoint_open(&i->checkpoint, model_dir, &d));
    lh_model_info_fill(&i->seen.model, &d);
    i->seen.n_files = lh_checkpoint_n_files(i->checkpoint);
    i->seen.file_bytes = lh_checkpoint_file_bytes(i->checkpoint);
    i->seen.n_tensors = lh_checkpoint_n_tensors(i->checkpoint);
    LH_TRY_OUT(
        lh_alloc(&p, (size_t)i->seen.n_tensors * sizeof *i->seen.tensors, "list of tensors"));
    i->seen.tensors = p;
    for (int64_t k = 0; k < i->seen.n_tensors; k++)
        lh_checkpoint_tensor(i->checkpoint, k, &i->seen.tensors[k]);
    i->seen.ignored_keys = (const char **)i->ignored;
    while (i->ignored[i->seen.n_ignored_keys])
        i->seen.n_ignored_keys++;
    if (verify_all)
        verify(&i->seen, i->checkpoint, progress, user);
    *out = &i->seen;
    i = NULL;
out:
    if (i)
        lh_inspection_free(&i->seen);
    return st;
}

void lh_inspection_free(lh_inspection *seen)
{
    inspection *i = (inspection *)seen; /* its first member */

    if (!i)
        return;
    lh_checkpoint_close(i->checkpoint);
    free(i->seen.tensors);
    free(i->ignored);
    free(i);
}
