#include "base/opts.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

#define MAX_NAME 32

typedef struct opt_def {
    const char *flag;
    lh_opt_type type;
    int64_t min, max;
    const char *def;
    unsigned commands;
    const char *arg;
    const char *help;
} opt_def;

static const opt_def defs[LH_N_OPTS] = {
#define LH_X(id, flag, type, min, max, def, commands, arg, help)                                   \
    [LH_OPT_##id] = {flag, LH_OPT_##type, min, max, def, commands, arg, help},
    LH_OPT_LIST(LH_X)
#undef LH_X
};

static const struct {
    const char *name, *help;
} commands[LH_N_COMMANDS] = {
#define LH_X(id, name, help) [LH_CMD_##id] = {name, help},
    LH_COMMAND_LIST(LH_X)
#undef LH_X
};

const char *lh_command_name(lh_command c)
{
    return c < LH_N_COMMANDS ? commands[c].name : "";
}

const char *lh_opt_flag(lh_opt_id id)
{
    return defs[id].flag;
}

const char *lh_opt_origin_name(lh_opt_origin origin)
{
    static const char *const names[] = {"default", "environment", "command line"};

    return names[origin];
}

static int has_variable(lh_opt_id id)
{
    return id != LH_OPT_HELP && id != LH_OPT_VERSION;
}

static void variable_name(lh_opt_id id, char out[MAX_NAME])
{
    int n = snprintf(out, MAX_NAME, "LH_%s", defs[id].flag);

    for (int i = 3; i < n && i < MAX_NAME; i++)
        out[i] = out[i] == '-' ? '_' : (char)toupper((unsigned char)out[i]);
}

static int takes(lh_command c, lh_opt_id id)
{
    return c == LH_CMD_NONE ? id == LH_OPT_HELP || id == LH_OPT_VERSION
                            : (defs[id].commands >> c & 1u) != 0;
}

int lh_opt_applies(const lh_opts *o, lh_opt_id id)
{
    return takes(o->command, id);
}

/* Levenshtein's distance of a to b, both cut to MAX_NAME. */
static int distance(const char *a, size_t len, const char *b)
{
    int row[MAX_NAME + 1];
    size_t n = strlen(b);

    n = n < MAX_NAME ? n : MAX_NAME;
    len = len < MAX_NAME ? len : MAX_NAME;
    for (size_t j = 0; j <= n; j++)
        row[j] = (int)j;
    for (size_t i = 1; i <= len; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= n; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            best = best < row[j] + 1 ? best : row[j] + 1;
            row[j] = best < row[j - 1] + 1 ? best : row[j - 1] + 1;
        }
    }
    return row[n];
}

/* Keeps the nearest name seen so far. */
typedef struct nearest {
    int distance;
    char name[MAX_NAME];
} nearest;

static void nearest_offer(nearest *best, const char *seen, size_t len, const char *name)
{
    int d = distance(seen, len, name);

    if (best->name[0] == '\0' || d < best->distance) {
        best->distance = d;
        (void)snprintf(best->name, sizeof best->name, "%s", name);
    }
}

/* ------------------------------------------------------------------ values */

static int parse_whole(const char *text, const char *end, int with_unit, int64_t *out)
{
    char *stop;
    int shift = 0;

    if (!isdigit((unsigned char)text[text[0] == '-']))
        return -1;
    errno = 0;
    long long x = strtoll(text, &stop, 10);
    if (errno)
        return -1;
    if (with_unit && stop < end) {
        int unit = tolower((unsigned char)*stop);
        shift = unit == 'k' ? 10 : unit == 'm' ? 20 : unit == 'g' ? 30 : 0;
        stop += shift > 0;
    }
    if (stop != end || x > INT64_MAX >> shift || x < INT64_MIN >> shift)
        return -1;
    *out = (int64_t)x * (INT64_C(1) << shift);
    return 0;
}

static void expected(const opt_def *d, char *out, size_t size)
{
    static const char *const kinds[] = {
        [LH_OPT_FLAG] = "0 or 1",
        [LH_OPT_INT] = "a whole number",
        [LH_OPT_SIZE] = "a size, as 512, 4k, 1m or 2g,",
        [LH_OPT_REAL] = "a number",
        [LH_OPT_TEXT] = "a text",
        [LH_OPT_TEXTS] = "a text, at most 64 times",
        [LH_OPT_SIZES] = "up to 64 sizes, as 512,4k,1m, each",
    };

    if (d->type == LH_OPT_CHOICE)
        (void)snprintf(out, size, "one of %s", d->arg);
    else if (d->type == LH_OPT_FLAG || d->min == d->max)
        (void)snprintf(out, size, "%s", kinds[d->type]);
    else if (d->max == INT64_MAX)
        (void)snprintf(out, size, "%s of %lld or more", kinds[d->type], (long long)d->min);
    else
        (void)snprintf(out, size, "%s from %lld to %lld", kinds[d->type], (long long)d->min,
                       (long long)d->max);
}

static int parse_number(const opt_def *d, const char *text, const char *end, int64_t *out)
{
    return parse_whole(text, end, d->type != LH_OPT_INT && d->type != LH_OPT_FLAG, out) == 0 &&
                   *out >= d->min && *out <= d->max
               ? 0
               : -1;
}

static int parse_real(const opt_def *d, const char *text, double *out)
{
    char *stop;
    double x = strtod(text, &stop);

    if (stop == text || *stop || isspace((unsigned char)*text) || !isfinite(x) ||
        x < (double)d->min || x > (double)d->max)
        return -1;
    *out = x;
    return 0;
}

static int parse_choice(const opt_def *d, const char *text, int64_t *out)
{
    size_t len = strlen(text);
    int64_t index = 0;

    for (const char *p = d->arg; *p; index++) {
        size_t word = strcspn(p, "|");
        if (word == len && memcmp(p, text, len) == 0) {
            *out = index;
            return 0;
        }
        p += word + (p[word] == '|');
    }
    return -1;
}

static int parse_sizes(const opt_def *d, const char *text, lh_opt_value *v)
{
    v->n_items = 0;
    for (const char *p = text;; p++) {
        const char *end = p + strcspn(p, ",");
        if (v->n_items == LH_OPT_MAX_ITEMS ||
            parse_number(d, p, end, &v->items.sizes[v->n_items]) != 0)
            return -1;
        v->n_items++;
        p = end;
        if (!*p)
            return 0;
    }
}

static int parse_value(const opt_def *d, const char *text, lh_opt_value *v)
{
    switch (d->type) {
    case LH_OPT_FLAG:
    case LH_OPT_INT:
    case LH_OPT_SIZE:
        return parse_number(d, text, text + strlen(text), &v->number);
    case LH_OPT_REAL:
        return parse_real(d, text, &v->real);
    case LH_OPT_TEXT:
        v->text = text;
        return 0;
    case LH_OPT_CHOICE:
        v->text = text;
        return parse_choice(d, text, &v->number);
    case LH_OPT_TEXTS:
        if (v->n_items == LH_OPT_MAX_ITEMS)
            return -1;
        v->items.texts[v->n_items++] = text;
        return 0;
    case LH_OPT_SIZES:
        return parse_sizes(d, text, v);
    }
    return -1;
}

/* `name` is how the user wrote it, for the message. */
static lh_status set_value(lh_opts *o, lh_opt_id id, lh_opt_origin origin, const char *name,
                           const char *text)
{
    lh_opt_value *v = &o->values[id];
    char want[96];

    if (v->origin != origin)
        v->n_items = 0; /* the command line's list replaces the environment's */
    v->origin = origin;
    if (parse_value(&defs[id], text, v) == 0)
        return LH_OK;
    expected(&defs[id], want, sizeof want);
    return LH_FAIL(LH_ERR_USAGE, "%s: '%s', expected %s", name, text, want);
}

static lh_status set_defaults(lh_opts *o)
{
    memset(o, 0, sizeof *o);
    o->command = LH_CMD_NONE;
    for (int i = 0; i < LH_N_OPTS; i++)
        if (defs[i].def[0] != '(')
            LH_TRY(set_value(o, (lh_opt_id)i, LH_FROM_DEFAULT, defs[i].flag, defs[i].def));
    return LH_OK;
}

/* ----------------------------------------------------------------- parsing */

static lh_status read_variable(lh_opts *o, const char *entry)
{
    const char *eq = strchr(entry, '=');
    size_t len = eq ? (size_t)(eq - entry) : strlen(entry);
    int n_found = 0, found = 0;
    char name[MAX_NAME];
    nearest best = {0};

    for (int i = 0; i < LH_N_OPTS; i++) {
        if (!has_variable((lh_opt_id)i))
            continue;
        variable_name((lh_opt_id)i, name);
        nearest_offer(&best, entry, len, name);
        if (!eq || strlen(name) != len || memcmp(name, entry, len) != 0)
            continue;
        if (n_found == 0 || takes(o->command, (lh_opt_id)i))
            found = i;
        n_found++;
    }
    if (n_found > 1 && !takes(o->command, (lh_opt_id)found))
        return LH_OK; /* which option of another command is meant does not matter */
    if (n_found > 0) {
        variable_name((lh_opt_id)found, name);
        return set_value(o, (lh_opt_id)found, LH_FROM_ENVIRONMENT, name, eq + 1);
    }
    return LH_FAIL(LH_ERR_USAGE, "unknown variable %.*s, nearest is %s", (int)len, entry,
                   best.name);
}

static lh_status find_command(lh_opts *o, const char *word)
{
    nearest best = {0};

    for (int i = 0; i < LH_N_COMMANDS; i++) {
        if (strcmp(word, commands[i].name) == 0) {
            o->command = (lh_command)i;
            return LH_OK;
        }
        nearest_offer(&best, word, strlen(word), commands[i].name);
    }
    return LH_FAIL(LH_ERR_USAGE, "unknown command '%s', nearest is '%s'", word, best.name);
}

static lh_status find_option(const lh_opts *o, const char *flag, size_t len, lh_opt_id *out)
{
    const char *other = NULL; /* a command's that has it */
    nearest best = {0};

    for (int i = 0; i < LH_N_OPTS; i++) {
        int same = strlen(defs[i].flag) == len && memcmp(defs[i].flag, flag, len) == 0;
        if (!takes(o->command, (lh_opt_id)i)) {
            other = same ? defs[i].flag : other;
            continue;
        }
        *out = (lh_opt_id)i;
        if (same)
            return LH_OK;
        nearest_offer(&best, flag, len, defs[i].flag);
    }
    LH_REQUIRE(!other, LH_ERR_USAGE, "--%s is not an option of %s", other,
               o->command == LH_CMD_NONE ? "the program: a command comes first"
                                         : commands[o->command].name);
    return LH_FAIL(LH_ERR_USAGE, "unknown option --%.*s, nearest is --%s", (int)len, flag,
                   best.name);
}

/* One option at argv[*at]; moves *at past it. */
static lh_status read_option(lh_opts *o, int argc, char *const *argv, int *at)
{
    const char *word = argv[(*at)++];
    size_t len;
    lh_opt_id id = LH_N_OPTS;
    char name[MAX_NAME + 2];

    LH_REQUIRE(word[0] == '-' && word[1] == '-' && word[2], LH_ERR_USAGE,
               "unexpected argument '%s', expected an option that begins with --", word);
    len = strcspn(word + 2, "=");
    LH_TRY(find_option(o, word + 2, len, &id));
    (void)snprintf(name, sizeof name, "--%s", defs[id].flag);
    if (defs[id].type == LH_OPT_FLAG) {
        LH_REQUIRE(word[2 + len] == '\0', LH_ERR_USAGE, "%s takes no value, got '%s'", name, word);
        return set_value(o, id, LH_FROM_COMMAND, name, "1");
    }
    if (word[2 + len] == '=')
        return set_value(o, id, LH_FROM_COMMAND, name, word + 3 + len);
    LH_REQUIRE(*at < argc, LH_ERR_USAGE, "%s needs a value: %s", name, defs[id].arg);
    return set_value(o, id, LH_FROM_COMMAND, name, argv[(*at)++]);
}

lh_status lh_opts_parse_env(lh_opts *out, int argc, char *const *argv, char *const *env)
{
    int at = 1;

    LH_TRY(set_defaults(out));
    if (argc > 1 && argv[1][0] != '-') {
        LH_TRY(find_command(out, argv[1]));
        at = 2;
    }
    for (; env && *env; env++)
        if (strncmp(*env, "LH_", 3) == 0)
            LH_TRY(read_variable(out, *env));
    while (at < argc)
        LH_TRY(read_option(out, argc, argv, &at));
    if (lh_opt_number(out, LH_OPT_HELP) || lh_opt_number(out, LH_OPT_VERSION))
        return LH_OK;
    LH_REQUIRE(out->command != LH_CMD_NONE, LH_ERR_USAGE, "no command; longhaul --help lists them");
    return LH_OK;
}

lh_status lh_opts_parse(lh_opts *out, int argc, char *const *argv)
{
    return lh_opts_parse_env(out, argc, argv, environ);
}

/* ----------------------------------------------------------- show and help */

void lh_opt_show(const lh_opts *o, lh_opt_id id, char *out, size_t size)
{
    const lh_opt_value *v = &o->values[id];
    const opt_def *d = &defs[id];
    size_t used = 0;

    if (v->origin == LH_FROM_DEFAULT) {
        (void)snprintf(out, size, "%s", d->def);
    } else if (d->type == LH_OPT_TEXT || d->type == LH_OPT_CHOICE) {
        (void)snprintf(out, size, "%s", v->text);
    } else if (d->type == LH_OPT_REAL) {
        (void)snprintf(out, size, "%g", v->real);
    } else if (d->type == LH_OPT_TEXTS || d->type == LH_OPT_SIZES) {
        for (int i = 0; i < v->n_items && used < size; i++) {
            int n = d->type == LH_OPT_TEXTS
                        ? snprintf(out + used, size - used, "%s%s", i ? "," : "", v->items.texts[i])
                        : snprintf(out + used, size - used, "%s%lld", i ? "," : "",
                                   (long long)v->items.sizes[i]);
            used += n > 0 ? (size_t)n : 0;
        }
    } else {
        (void)snprintf(out, size, "%lld", (long long)v->number);
    }
}

static void help_option(FILE *f, lh_opt_id id)
{
    const opt_def *d = &defs[id];
    char left[64];

    (void)snprintf(left, sizeof left, "--%s %s", d->flag, d->arg);
    (void)fprintf(f, "  %-30s %s", left, d->help);
    if (d->type != LH_OPT_FLAG && strcmp(d->def, "(none)") != 0)
        (void)fprintf(f, d->def[0] == '(' ? " %s" : " (%s)", d->def);
    (void)fputc('\n', f);
}

void lh_opts_help(FILE *f, lh_command c)
{
    if (c == LH_CMD_NONE) {
        (void)fprintf(f, "longhaul COMMAND [OPTIONS]\nmpirun -n N longhaul COMMAND [OPTIONS]\n\n");
        for (int i = 0; i < LH_N_COMMANDS; i++)
            (void)fprintf(f, "  %-10s %s\n", commands[i].name, commands[i].help);
        (void)fprintf(f, "\nlonghaul COMMAND --help: the options of a command\n");
        return;
    }
    (void)fprintf(f, "longhaul %s: %s\n\n", commands[c].name, commands[c].help);
    for (int common = 0; common < 2; common++) {
        for (int i = 0; i < LH_N_OPTS; i++)
            if (takes(c, (lh_opt_id)i) && (defs[i].commands == LH_C_ALL) == common)
                help_option(f, (lh_opt_id)i);
        if (!common)
            (void)fputc('\n', f);
    }
    (void)fprintf(f, "\nSizes take k, m, g (1,024-based). Every option but the last two has a "
                     "variable: --max-tokens is LH_MAX_TOKENS.\n");
}
