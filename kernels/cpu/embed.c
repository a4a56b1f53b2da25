#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"

static void embed_rows(const void *args, int64_t begin, int64_t end)
{
    const lh_embed_args *a = args;

    for (int64_t row = begin; row < end; row++)
        lh_cpu_widen((float *)a->out + row * a->d, a->table + a->ids[row] * a->d, a->d);
}

lh_status lh_cpu_embed(lh_stream *s, const lh_embed_args *a)
{
    LH_TRY(lh_check_embed(a));
    for (int64_t i = 0; i < a->n_rows; i++)
        LH_REQUIRE(a->ids[i] >= 0 && a->ids[i] < a->n_vocab, LH_ERR_INVALID,
                   "embed: ids[%lld] is %d, expected 0 to %lld", (long long)i, (int)a->ids[i],
                   (long long)a->n_vocab - 1);
    lh_cpu_rows(s, a->n_rows, a->d, embed_rows, a);
    return LH_OK;
}
