/*
 * SHA-256, FIPS 180-4.
 */
#ifndef LH_BASE_SHA256_H
#define LH_BASE_SHA256_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lh_sha256 {
    uint32_t h[8];
    uint64_t n_bytes; /* so far */
    unsigned char block[64];
} lh_sha256;

/* init, any number of updates, final once. The pieces' sizes do not matter to the result. */
void lh_sha256_init(lh_sha256 *s);
void lh_sha256_update(lh_sha256 *s, const void *bytes, size_t n);
void lh_sha256_final(lh_sha256 *s, unsigned char out[32]);

#ifdef __cplusplus
}
#endif
#endif
