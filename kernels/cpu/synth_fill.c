#include "kernels/check_args.h"
#include "kernels/cpu/cpu.h"

static void fill(const void *args, int64_t begin, int64_t end)
{
    const lh_synth_fill_args *a = args;

    lh_synth_elements((char *)a->out + (size_t)begin * lh_synth_form_bytes(a->form), &a->law,
                      a->form, (uint64_t)(a->first + begin), (size_t)(end - begin));
}

lh_status lh_cpu_synth_fill(lh_stream *s, const lh_synth_fill_args *a)
{
    LH_TRY(lh_check_synth_fill(a));
    lh_cpu_rows(s, a->n, 1, fill, a);
    return LH_OK;
}
