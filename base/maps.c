#include "base/maps.h"

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#define MAX_MAPS 1024

/* begin is 0 in a free slot, 1 while a slot is being filled, which no mapping begins at. */
static struct {
    atomic_uintptr_t begin;
    atomic_size_t bytes;
    char name[240];
} maps[MAX_MAPS];

void lh_map_add(const void *begin, size_t bytes, const char *name)
{
    size_t length = strlen(name);

    for (int i = 0; i < MAX_MAPS; i++) {
        uintptr_t expected = 0;
        if (!atomic_compare_exchange_strong(&maps[i].begin, &expected, 1))
            continue;
        if (length >= sizeof maps[i].name) {
            name += length - (sizeof maps[i].name - 1);
            length = sizeof maps[i].name - 1;
        }
        memcpy(maps[i].name, name, length + 1);
        atomic_store(&maps[i].bytes, bytes);
        atomic_store(&maps[i].begin, (uintptr_t)begin); /* last: now it can be found */
        return;
    }
}

void lh_map_remove(const void *begin)
{
    for (int i = 0; i < MAX_MAPS; i++)
        if (atomic_load(&maps[i].begin) == (uintptr_t)begin) {
            atomic_store(&maps[i].begin, 0);
            return;
        }
}

const char *lh_map_find(const void *address)
{
    for (int i = 0; i < MAX_MAPS; i++) {
        uintptr_t begin = atomic_load(&maps[i].begin);
        if (begin > 1 && (uintptr_t)address >= begin &&
            (uintptr_t)address - begin < atomic_load(&maps[i].bytes))
            return maps[i].name;
    }
    return NULL;
}
