/*
 * What the reader and the writer of safetensors files agree on.
 */
#ifndef LH_RUNTIME_SAFETENSORS_TYPES_H
#define LH_RUNTIME_SAFETENSORS_TYPES_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The literal for a dtype's name and its size; NULL: unknown. */
const char *lh_st_dtype(const char *name, size_t *bytes);

/* At most 1,024 bytes, no control characters. */
int lh_st_name_ok(const char *name);

/* Product of the shape times the size of an element. -1: it does not fit. */
int lh_st_bytes(size_t *out, const int64_t *dims, int n_dims, size_t elem_bytes);

#ifdef __cplusplus
}
#endif
#endif
