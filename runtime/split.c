/*
 * The split pattern of the model's tokenizer, by hand. Alternatives in order, the first that
 * matches wins, each as a backtracking engine would match it:
 *
 *   1  [\p{Han}]+
 *   2  PREFIX? UPPER* LOWER+ (?i:'s|'t|'re|'ve|'m|'ll|'d)?
 *   3  PREFIX? UPPER+ LOWER* (?i:'s|'t|'re|'ve|'m|'ll|'d)?
 *   4  \p{N}{1,3}
 *   5  " "? OTHER+ [\r\n]*
 *   6  \s*[\r\n]+
 *   7  \s+(?!\S)
 *   8  \s+
 *
 * The classes are those of unicode_class.h. They overlap: Lm, Lo and M are UPPER and LOWER, and M
 * is PREFIX and OTHER as well. Every character is in one of them, so the pieces cover the text.
 *
 * We match the pattern itself. The published Python wrapper also cuts inputs at 400,000 characters
 * and runs at 25,000; those cuts are its own and are not made here.
 */
#include "runtime/tokenizer_internal.h"
#include "runtime/unicode_class.h"

typedef struct splitter {
    const char *text;
    size_t n_bytes;
} splitter;

/* The class of the character at `at` and where the next one starts; 0 at the end of the text. */
static unsigned class_at(const splitter *s, size_t at, size_t *next)
{
    *next = at;
    if (at >= s->n_bytes)
        return 0;
    const unsigned char *p = (const unsigned char *)s->text + at;
    uint32_t code = p[0];
    int more = code < 0x80 ? 0 : code < 0xe0 ? 1 : code < 0xf0 ? 2 : 3;
    if (more > 0)
        code &= 0x3fu >> more;
    for (int i = 1; i <= more; i++)
        code = code << 6 | (p[i] & 0x3fu);
    *next = at + (size_t)more + 1;
    return lh_unicode_class(code);
}

static size_t run_end(const splitter *s, size_t at, unsigned class)
{
    size_t next;
    while (class_at(s, at, &next) & class)
        at = next;
    return at;
}

/* UPPER* LOWER+; returns `at` without a match. Where no LOWER follows the UPPERs, they are given
 * back down to the last that is both. */
static size_t lower_word(const splitter *s, size_t at)
{
    size_t last_both = at, next;
    unsigned class;
    while ((class = class_at(s, at, &next)) & LH_UC_UPPER) {
        at = next;
        if (class & LH_UC_LOWER)
            last_both = at;
    }
    return class & LH_UC_LOWER ? run_end(s, next, LH_UC_LOWER) : last_both;
}

/* UPPER+ LOWER*; returns `at` without a match. */
static size_t upper_word(const splitter *s, size_t at)
{
    size_t end = run_end(s, at, LH_UC_UPPER);
    return end == at ? at : run_end(s, end, LH_UC_LOWER);
}

/* The end of an English contraction at `at`, or `at`. Without regard to case, s is also U+017F. */
static size_t contraction(const splitter *s, size_t at)
{
    size_t left = s->n_bytes - at;
    const char *p = s->text + at;
    if (left < 2 || p[0] != '\'')
        return at;
    int a = p[1] | 0x20, b = left > 2 ? p[2] | 0x20 : 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return at + 2;
    if (((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l'))
        return at + 3;
    return left > 2 && p[1] == '\xc5' && p[2] == '\xbf' ? at + 3 : at;
}

/*
 * Alternatives 2 and 3. A prefix is taken where the rest then matches; one that is itself a letter
 * of the word (M) is otherwise given back.
 */
static size_t word(const splitter *s, size_t at)
{
    size_t next, end;
    int may_prefix = (class_at(s, at, &next) & LH_UC_PREFIX) != 0;
    if (may_prefix && (end = lower_word(s, next)) > next)
        return contraction(s, end);
    if ((end = lower_word(s, at)) > at)
        return contraction(s, end);
    if (may_prefix && (end = upper_word(s, next)) > next)
        return contraction(s, end);
    if ((end = upper_word(s, at)) > at)
        return contraction(s, end);
    return at;
}

/* Alternatives 6, 7 and 8: up to the last line break, else all but one before a word, else all. */
static size_t space(const splitter *s, size_t at)
{
    size_t next, end = at, before_last = at, after_newline = at;
    unsigned class;
    while ((class = class_at(s, end, &next)) & LH_UC_SPACE) {
        before_last = end;
        end = next;
        if (class & LH_UC_NEWLINE)
            after_newline = end;
    }
    if (after_newline > at)
        return after_newline;
    return end < s->n_bytes && before_last > at ? before_last : end;
}

size_t lh_split_next(const char *text, size_t n_bytes, size_t at)
{
    const splitter s = {text, n_bytes};
    size_t next, end = run_end(&s, at, LH_UC_HAN);
    if (end > at)
        return end;
    if ((end = word(&s, at)) > at)
        return end;
    unsigned class = class_at(&s, at, &next);
    if (class & LH_UC_NUMBER) {
        for (int i = 0; i < 3 && class_at(&s, at, &next) & LH_UC_NUMBER; i++)
            at = next;
        return at;
    }
    size_t other = text[at] == ' ' ? next : at;
    if ((end = run_end(&s, other, LH_UC_OTHER)) > other)
        return run_end(&s, end, LH_UC_NEWLINE);
    return space(&s, at);
}
