/*
 * The parts of the tokenizer: vocabulary (vocab.c), control tokens (control.c), splitter
 * (split.c), byte pair encoding (bpe.c). The public functions are in tokenizer.c.
 */
#ifndef LH_RUNTIME_TOKENIZER_INTERNAL_H
#define LH_RUNTIME_TOKENIZER_INTERNAL_H

#include "runtime/longhaul.h"

#ifdef __cplusplus
extern "C" {
#endif

/* -------------------------------------------------------------- vocabulary */

typedef struct lh_vocab_token {
    uint32_t at, n_bytes; /* in lh_vocab.bytes */
} lh_vocab_token;

typedef struct lh_vocab_slot {
    uint32_t hash;
    int32_t id_plus_1; /* 0: empty */
} lh_vocab_slot;

typedef struct lh_vocab {
    int32_t n_tokens;
    uint32_t longest_bytes; /* of a token */
    char *bytes;
    lh_vocab_token *tokens; /* [n_tokens], by id */
    lh_vocab_slot *slots;   /* [slot_mask + 1], open addressing, at most half full */
    uint32_t slot_mask;
    int32_t byte_ids[256]; /* of the tokens of one byte */
} lh_vocab;

/*
 * Reads tiktoken.model: lines of base64, one space, rank. Ids are the ranks: 0 .. n_tokens - 1,
 * in any order, each once; all 256 single bytes are there. LH_ERR_OPEN, LH_ERR_DATA with the line.
 * After a failure *v is empty.
 */
lh_status lh_vocab_read(lh_vocab *v, const char *path);
void lh_vocab_free(lh_vocab *v);

/* The id of the token with these bytes, or -1. */
int32_t lh_vocab_find(const lh_vocab *v, const char *bytes, size_t n_bytes);

/* A whole file, with a 0 byte after it; for the caller to free(). LH_ERR_OPEN, LH_ERR_IO;
 * LH_ERR_DATA: more than max_bytes. */
lh_status lh_read_text_file(char **text, size_t *n_bytes, const char *path, size_t max_bytes);

/* ---------------------------------------------------------- control tokens */

#define LH_N_CONTROL 256

typedef struct lh_control {
    char *names[LH_N_CONTROL];
    size_t name_bytes[LH_N_CONTROL];
    uint8_t by_length[LH_N_CONTROL]; /* offsets, the longest name first */
    uint8_t starts[256];             /* 1: a name starts with this byte */
} lh_control;

/*
 * Names of the control tokens first_id .. first_id + 255: the defaults, and in their place what
 * added_tokens_decoder of the JSON file at config_path says, where there is such a file. A default
 * name that the file gives to another id is the reserved name. lh_control_free also after a
 * failure.
 */
lh_status lh_control_read(lh_control *c, int32_t first_id, const char *config_path);
void lh_control_free(lh_control *c);

/* The offset of the longest name at the start of the text, or -1. */
int lh_control_match(const lh_control *c, const char *text, size_t n_bytes);

/* The offset of the token that has the name of this role by default; `which` if none has. */
int lh_control_role(const lh_control *c, lh_special which);

/* ---------------------------------------------------------------- encoding */

/* The end of the piece of valid UTF-8 that begins at `at` < n_bytes; the pieces are encoded one by
 * one. */
size_t lh_split_next(const char *text, size_t n_bytes, size_t at);

/* A growing list of ids. Starts as {0}; free(ids). */
typedef struct lh_id_list {
    int32_t *ids;
    size_t count, room;
} lh_id_list;

lh_status lh_id_list_add(lh_id_list *l, int32_t id);

typedef struct lh_bpe_part {
    uint32_t prev, next; /* starts of the neighbours; next of the last is the piece's end */
    uint32_t rank;       /* of this part and the next merged; LH_BPE_NONE */
    int32_t id;
} lh_bpe_part;

#define LH_BPE_NONE UINT32_MAX

/* Memory for pieces up to the longest so far. Starts as {0}. */
typedef struct lh_bpe_scratch {
    lh_bpe_part *parts; /* [room + 1] */
    uint64_t *heap;     /* [2 * room] rank << 32 | start, least first */
    size_t n_heap, room;
} lh_bpe_scratch;

void lh_bpe_scratch_free(lh_bpe_scratch *s);

/*
 * Adds the ids of one piece: its token, where it is one; otherwise neighbours are merged, those
 * with the lowest rank first, the leftmost of equals. O(n log n). n_bytes is 1 .. INT32_MAX.
 */
lh_status lh_bpe_encode(const lh_vocab *v, lh_bpe_scratch *s, const char *piece, size_t n_bytes,
                        lh_id_list *out);

#ifdef __cplusplus
}
#endif
#endif
