#include "tests/model_util.h"

#include <stdarg.h>

#include "base/mem.h"

int under_mpi(void)
{
    extern char **environ;
    for (char **v = environ; *v; v++)
        if (strncmp(*v, "OMPI_COMM_WORLD_SIZE=", 21) == 0)
            return 1;
    return 0;
}

const char *source_path(const char *relative)
{
    static char ring[8][1024];
    static int next;
    char *path = ring[next++ % 8];
    (void)snprintf(path, sizeof ring[0], "%s/%s", LH_SOURCE_DIR, relative);
    return path;
}

static void need(lh_status s, const char *what)
{
    if (s == LH_OK)
        return;
    printf("%s: %s: %s\n", what, lh_status_name(s), lh_last_error());
    exit(1);
}

static int by_runs;

void carry_by_runs(int yes)
{
    by_runs = yes;
}

lh_engine *open_engine(const char *model, int over_ranks, int n_threads, int64_t segment,
                       int64_t block, int64_t context)
{
    lh_engine *e = NULL;
    need(lh_engine_open(&e, &(lh_engine_opts){.model_dir = source_path(model),
                                              .backend = "cpu",
                                              .use_mpi = over_ranks && under_mpi(),
                                              .n_threads = n_threads,
                                              .segment_tokens = segment,
                                              .block_tokens = block,
                                              .context_tokens = context,
                                              .max_sessions = 2,
                                              .debug_by_runs = by_runs,
                                              .peer_timeout_s = 60}),
         model);
    return e;
}

lh_session *open_session(lh_engine *e)
{
    lh_session *s = NULL;
    need(lh_session_create(&s, e, e->g.context), "session");
    return s;
}

const void *golden(const lh_safetensors *f, const char *name, int64_t *n_values)
{
    const lh_st_tensor *t = lh_safetensors_find(f, name);
    if (!t) {
        printf("reference data: no tensor '%s'\n", name);
        exit(1);
    }
    *n_values = 1;
    for (int i = 0; i < t->n_dims; i++)
        *n_values *= t->dims[i];
    return t->data;
}

const float *golden_f32(const lh_safetensors *f, int64_t *n_values, const char *format, ...)
{
    char name[64];
    va_list ap;
    va_start(ap, format);
    (void)vsnprintf(name, sizeof name, format, ap);
    va_end(ap);
    return golden(f, name, n_values);
}

int32_t *golden_ids(const lh_safetensors *f, const char *name, int64_t *n)
{
    const char *data = golden(f, name, n);
    int32_t *ids = malloc((size_t)*n * sizeof *ids);
    for (int64_t i = 0; ids && i < *n; i++) {
        int64_t id;
        memcpy(&id, data + i * 8, 8);
        ids[i] = (int32_t)id;
    }
    return ids;
}

static int32_t argmax(const float *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return (int32_t)best;
}

lh_step_item turn(lh_session *s, const int32_t *tokens, int64_t n_tokens, int64_t n_logits,
                  float *logits)
{
    return (lh_step_item){.session = s,
                          .tokens = tokens,
                          .n_tokens = n_tokens,
                          .n_logits = n_logits,
                          .logits = logits};
}

lh_status feed(lh_engine *e, lh_session *s, const int32_t *tokens, int64_t n_tokens,
               int64_t n_logits, float *logits)
{
    lh_step_item item = turn(s, tokens, n_tokens, n_logits, logits);

    return lh_step(e, &item, 1);
}

void greedy(lh_engine *e, lh_session *s, const int32_t *tokens, int64_t n_tokens, int32_t *out,
            int n, float *last)
{
    int64_t vocab = e->d.n_vocab;
    float *row = malloc((size_t)vocab * sizeof *row);

    CHECK_OK(feed(e, s, tokens, n_tokens, 1, row));
    if (last)
        memcpy(last, row, (size_t)vocab * sizeof *row);
    for (int i = 0; i < n; i++) {
        out[i] = argmax(row, vocab);
        if (i + 1 < n)
            CHECK_OK(feed(e, s, &out[i], 1, 1, row));
    }
    free(row);
}
