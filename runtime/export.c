#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "runtime/longhaul.h"
#include "runtime/safetensors.h"

static lh_status tensor_bytes(const lh_tensor *t, size_t *bytes)
{
    int is_f32 = strcmp(t->dtype, "F32") == 0;

    LH_REQUIRE(is_f32 || strcmp(t->dtype, "I64") == 0, LH_ERR_INVALID,
               "tensor '%s': dtype %s, expected F32 or I64", t->name, t->dtype);
    LH_REQUIRE(t->n_dims >= 0 && t->n_dims <= 8, LH_ERR_INVALID,
               "tensor '%s': %d dimensions, expected at most 8", t->name, t->n_dims);
    *bytes = is_f32 ? 4 : 8;
    for (int i = 0; i < t->n_dims; i++)
        LH_REQUIRE(t->dims[i] >= 0 && lh_mul_size(bytes, *bytes, (size_t)t->dims[i]) == 0,
                   LH_ERR_INVALID, "tensor '%s': dimension %d is %lld", t->name, i,
                   (long long)t->dims[i]);
    return LH_OK;
}

lh_status lh_write_tensors(const char *path, const lh_tensor *tensors, int n)
{
    lh_status st = LH_OK;
    lh_st_tensor *list = calloc(n > 0 ? (size_t)n : 1, sizeof *list);

    LH_REQUIRE(list, LH_ERR_NOMEM, "%s: out of memory for %d tensors", path, n);
    for (int i = 0; i < n; i++) {
        const lh_tensor *t = &tensors[i];
        list[i] = (lh_st_tensor){
            .name = t->name, .dtype = t->dtype, .n_dims = t->n_dims, .data = t->data};
        memcpy(list[i].dims, t->dims, sizeof list[i].dims);
        LH_TRY_OUT(tensor_bytes(t, &list[i].bytes));
    }
    LH_TRY_OUT(lh_safetensors_write(path, list, n));
out:
    free(list);
    return st;
}
