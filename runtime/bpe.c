#include <stdlib.h>

#include "runtime/tokenizer_internal.h"

lh_status lh_id_list_add(lh_id_list *l, int32_t id)
{
    if (l->count == l->room) {
        size_t room = l->room ? 2 * l->room : 256;
        int32_t *ids = realloc(l->ids, room * sizeof *ids);
        LH_REQUIRE(ids, LH_ERR_NOMEM, "a list of %zu token ids", room);
        l->ids = ids;
        l->room = room;
    }
    l->ids[l->count++] = id;
    return LH_OK;
}

void lh_bpe_scratch_free(lh_bpe_scratch *s)
{
    free(s->parts);
    free(s->heap);
    *s = (lh_bpe_scratch){0};
}

static lh_status reserve(lh_bpe_scratch *s, size_t n_bytes)
{
    if (n_bytes <= s->room)
        return LH_OK;
    size_t room = n_bytes < 256 ? 256 : n_bytes;
    lh_bpe_scratch_free(s);
    s->parts = malloc((room + 1) * sizeof *s->parts);
    s->heap = malloc(2 * room * sizeof *s->heap);
    LH_REQUIRE(s->parts && s->heap, LH_ERR_NOMEM, "merging a word of %zu bytes", n_bytes);
    s->room = room;
    return LH_OK;
}

/* Four children to a node: half the levels, and the four lie together. */
static void heap_push(lh_bpe_scratch *s, uint64_t entry)
{
    size_t i = s->n_heap++;
    while (i > 0 && s->heap[(i - 1) / 4] > entry) {
        s->heap[i] = s->heap[(i - 1) / 4];
        i = (i - 1) / 4;
    }
    s->heap[i] = entry;
}

static uint64_t heap_pop(lh_bpe_scratch *s)
{
    uint64_t least = s->heap[0], last = s->heap[--s->n_heap];
    size_t i = 0, first;
    while ((first = 4 * i + 1) < s->n_heap) {
        size_t end = first + 4 < s->n_heap ? first + 4 : s->n_heap, child = first;
        for (size_t k = first + 1; k < end; k++)
            if (s->heap[k] < s->heap[child])
                child = k;
        if (last <= s->heap[child])
            break;
        s->heap[i] = s->heap[child];
        i = child;
    }
    s->heap[i] = last;
    return least;
}

/* Ranks the pair that begins at `at` anew. Its older entries in the heap are void from here on:
 * they carry another rank. */
static void rank_pair(const lh_vocab *v, lh_bpe_scratch *s, const char *piece, size_t n_bytes,
                      uint32_t at)
{
    lh_bpe_part *part = &s->parts[at];
    part->rank = LH_BPE_NONE;
    if (part->next == n_bytes)
        return;
    int32_t id = lh_vocab_find(v, piece + at, s->parts[part->next].next - at);
    if (id >= 0) {
        part->rank = (uint32_t)id;
        heap_push(s, (uint64_t)part->rank << 32 | at);
    }
}

lh_status lh_bpe_encode(const lh_vocab *v, lh_bpe_scratch *s, const char *piece, size_t n_bytes,
                        lh_id_list *out)
{
    LH_ASSERT(n_bytes > 0 && n_bytes <= INT32_MAX);
    int32_t whole = lh_vocab_find(v, piece, n_bytes);
    if (whole >= 0)
        return lh_id_list_add(out, whole);
    LH_TRY(reserve(s, n_bytes));

    /* A part lives at the index of its first byte. Merges take one entry from the heap and add at
     * most two, so 2 n_bytes entries are enough. */
    lh_bpe_part *parts = s->parts;
    uint32_t n = (uint32_t)n_bytes;
    s->n_heap = 0;
    for (uint32_t i = 0; i <= n; i++)
        parts[i] = (lh_bpe_part){.prev = i - 1,
                                 .next = i + 1,
                                 .rank = LH_BPE_NONE,
                                 .id = i < n ? v->byte_ids[(unsigned char)piece[i]] : -1};
    for (uint32_t i = 0; i < n; i++)
        rank_pair(v, s, piece, n_bytes, i);

    while (s->n_heap > 0) {
        uint64_t entry = heap_pop(s);
        uint32_t at = (uint32_t)entry, rank = (uint32_t)(entry >> 32), gone = parts[at].next;
        if (parts[at].rank != rank)
            continue;
        parts[at].id = (int32_t)rank;
        parts[at].next = parts[gone].next;
        parts[parts[gone].next].prev = at;
        parts[gone].rank = LH_BPE_NONE;
        rank_pair(v, s, piece, n_bytes, at);
        if (at > 0)
            rank_pair(v, s, piece, n_bytes, parts[at].prev);
    }
    for (uint32_t i = 0; i < n; i = parts[i].next)
        LH_TRY(lh_id_list_add(out, parts[i].id));
    return LH_OK;
}
