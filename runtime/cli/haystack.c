#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "runtime/cli/needle.h"

static const char built_in[] =
    "A river begins as many small streams. Each carries a little sand, and where the ground is "
    "level it lets the sand fall and turns aside. After some hundred years the plain has the "
    "shape that the river gave it, and the river the shape that the plain allows. People who live "
    "there build on the higher places, keep boats for the spring, and tell their children how far "
    "the water came in their own time. The marks are on the walls of the oldest house. Nobody "
    "paints over them, because the next flood will be measured against the last one.\n\n";

/* Files of a pattern in the order of their names, those of one name through a link only once. */
static void add_files(const char *pattern, char *paths[LH_OPT_MAX_ITEMS], int *n)
{
    glob_t found = {0};

    if (glob(pattern, 0, NULL, &found) == 0) {
        for (size_t i = 0; i < found.gl_pathc && *n < LH_OPT_MAX_ITEMS; i++) {
            char *real = realpath(found.gl_pathv[i], NULL);
            int seen = real == NULL;
            for (int k = 0; k < *n && !seen; k++)
                seen = strcmp(paths[k], real) == 0;
            if (seen)
                free(real);
            else
                paths[(*n)++] = real;
        }
    }
    globfree(&found);
}

static lh_status read_default(lh_cli *c, char **text, size_t *n_bytes)
{
    static const char *const patterns[] = {LH_SOURCE_DOCS "/README.md", LH_SOURCE_DOCS "/docs/*.md",
                                           "/usr/share/common-licenses/*"};
    char *paths[LH_OPT_MAX_ITEMS] = {0};
    int n = 0;
    lh_status st = LH_OK;

    for (size_t i = 0; i < sizeof patterns / sizeof *patterns && c->rank.rank == 0; i++)
        add_files(patterns[i], paths, &n);
    if (c->rank.rank > 0 || n > 0) {
        st = lh_cli_read(c, (const char *const *)paths, n, text, n_bytes);
    } else {
        *n_bytes = sizeof built_in - 1;
        *text = strdup(built_in);
        st = *text ? LH_OK : LH_FAIL(LH_ERR_NOMEM, "the built-in text: out of memory");
        st = lh_cli_share(c, st, text, n_bytes);
    }
    for (int i = 0; i < n; i++)
        free(paths[i]);
    return st;
}

lh_status lh_needle_haystack(lh_cli *c, int32_t **ids, int64_t *n_ids)
{
    const lh_opt_value *files = &c->opts->values[LH_OPT_HAYSTACK];
    char *text = NULL;
    size_t n_bytes = 0;

    lh_status st = files->n_items > 0
                       ? lh_cli_read(c, files->items.texts, files->n_items, &text, &n_bytes)
                       : read_default(c, &text, &n_bytes);
    LH_TRY_OUT(st);
    if (n_bytes == 0)
        st = LH_FAIL(LH_ERR_DATA, "--haystack: empty, expected a text");
    if (st == LH_OK)
        st = lh_tokenizer_encode(c->tokenizer, text, n_bytes, 0, ids, n_ids);
    st = lh_job_agree(c->job, st);
out:
    free(text);
    return st;
}
