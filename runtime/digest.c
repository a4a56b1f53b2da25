#include "base/sha256.h"
#include "runtime/longhaul.h"

void lh_digest(const void *bytes, size_t n, char out[65])
{
    static const char digits[] = "0123456789abcdef";
    unsigned char sum[32];
    lh_sha256 s;

    lh_sha256_init(&s);
    lh_sha256_update(&s, bytes, n);
    lh_sha256_final(&s, sum);
    for (int i = 0; i < 32; i++) {
        out[2 * i] = digits[sum[i] >> 4];
        out[2 * i + 1] = digits[sum[i] & 15];
    }
    out[64] = '\0';
}
