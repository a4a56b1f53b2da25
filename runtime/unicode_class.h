/*
 * The classes of code points that the tokenizer's split pattern tells apart, one bit for each
 * bracket of the pattern (runtime/split.c). The tables are generated.
 */
#ifndef LH_RUNTIME_UNICODE_CLASS_H
#define LH_RUNTIME_UNICODE_CLASS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LH_UC_HAN 0x01     /* \p{Han} */
#define LH_UC_UPPER 0x02   /* [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]] */
#define LH_UC_LOWER 0x04   /* [\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]] */
#define LH_UC_OTHER 0x08   /* [^\s\p{L}\p{N}] */
#define LH_UC_NUMBER 0x10  /* \p{N} */
#define LH_UC_SPACE 0x20   /* \s */
#define LH_UC_NEWLINE 0x40 /* [\r\n] */
#define LH_UC_PREFIX 0x80  /* [^\r\n\p{L}\p{N}] */

extern const uint8_t lh_unicode_ascii[128];
extern const uint32_t lh_unicode_runs[];
extern const size_t lh_unicode_n_runs;

/* The bits of a code point below 0x110000. */
static inline unsigned lh_unicode_class(uint32_t code_point)
{
    if (code_point < 128)
        return lh_unicode_ascii[code_point];
    size_t low = 0, high = lh_unicode_n_runs;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (lh_unicode_runs[middle] >> 8 <= code_point)
            low = middle;
        else
            high = middle;
    }
    return lh_unicode_runs[low] & 0xff;
}

#ifdef __cplusplus
}
#endif
#endif
