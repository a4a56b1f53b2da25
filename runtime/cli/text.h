/*
 * Text that arrives in pieces of bytes: becomes valid UTF-8, is searched for stop strings, and says
 * how much of it may be shown already.
 */
#ifndef LH_RUNTIME_CLI_TEXT_H
#define LH_RUNTIME_CLI_TEXT_H

#include <stddef.h>

#include "base/status.h"

typedef struct lh_text {
    const char *const *stops; /* the caller's; empty ones never match */
    int n_stops;
    int stopped; /* a stop string came: the text ends before it */
    char *bytes; /* valid UTF-8, with a 0 byte after it; NULL while empty */
    size_t n;
    size_t n_safe; /* bytes that no later piece can take back */

    size_t room; /* below: for text.c only */
    unsigned char part[4];
    int n_part;
} lh_text;

/* Adds bytes. A byte that belongs to no character becomes U+FFFD as soon as that is certain. */
lh_status lh_text_add(lh_text *t, const char *bytes, size_t n);

/* No more comes: an incomplete character becomes U+FFFD, and all is safe. */
lh_status lh_text_end(lh_text *t);

void lh_text_free(lh_text *t);

/* Valid UTF-8 from any bytes, for free(). */
lh_status lh_text_clean(const char *bytes, size_t n, char **out, size_t *n_out);

#endif
