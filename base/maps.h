/*
 * Which file is mapped where. A file that another program cuts short while it is mapped raises
 * SIGBUS at the next touch; the program's handler asks here which file it was.
 *
 * A small fixed table of atomics: adding and removing from any thread, finding from a signal
 * handler.
 */
#ifndef LH_BASE_MAPS_H
#define LH_BASE_MAPS_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Notes a mapping. The name is copied (of a long one the end). When the table is full (1,024) the
 * mapping stays unknown. */
void lh_map_add(const void *begin, size_t bytes, const char *name);

/* Forgets the mapping that begins here, before it is unmapped. Unknown ones are ignored. */
void lh_map_remove(const void *begin);

/* The name of the file mapped at this address, NULL where none is known. Safe in a signal handler;
 * valid until the mapping is removed. */
const char *lh_map_find(const void *address);

#ifdef __cplusplus
}
#endif
#endif
