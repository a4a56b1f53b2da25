#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#define MAX_COMPONENTS 16

static const char *const level_names[] = {"error", "warn", "info", "debug", "trace"};
static lh_log_level default_level = LH_LOG_WARN;
static struct {
    char name[24];
    lh_log_level level;
} components[MAX_COMPONENTS];
static int n_components;
static int log_rank = -1, log_size;

static int parse_level(const char *text, size_t len, lh_log_level *out)
{
    for (int i = 0; i <= LH_LOG_TRACE; i++) {
        if (strlen(level_names[i]) == len && strncasecmp(text, level_names[i], len) == 0) {
            *out = (lh_log_level)i;
            return 0;
        }
    }
    return -1;
}

lh_status lh_log_configure(const char *spec)
{
    n_components = 0;
    for (const char *p = spec; *p;) {
        size_t len = strcspn(p, ",");
        const char *eq = memchr(p, '=', len);
        size_t name_len = eq ? (size_t)(eq - p) : 0;
        const char *word = eq ? eq + 1 : p;
        lh_log_level level;

        LH_REQUIRE(
            parse_level(word, len - (size_t)(word - p), &level) == 0, LH_ERR_USAGE,
            "log level '%.*s': expected error, warn, info, debug or trace, or component=level",
            (int)len, p);
        if (!eq) {
            default_level = level;
        } else {
            LH_REQUIRE(n_components < MAX_COMPONENTS && name_len > 0 &&
                           name_len < sizeof components[0].name,
                       LH_ERR_USAGE, "log component '%.*s': empty, too long or too many",
                       (int)name_len, p);
            memcpy(components[n_components].name, p, name_len);
            components[n_components].name[name_len] = '\0';
            components[n_components++].level = level;
        }
        p += len + (p[len] == ',');
    }
    return LH_OK;
}

void lh_log_set_rank(int rank, int size)
{
    log_rank = rank;
    log_size = size;
}

double lh_log_seconds(void)
{
    static struct timespec first;
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    if (first.tv_sec == 0 && first.tv_nsec == 0)
        first = t;
    return (double)(t.tv_sec - first.tv_sec) + 1e-9 * (double)(t.tv_nsec - first.tv_nsec);
}

int lh_log_enabled(lh_log_level level, const char *component)
{
    for (int i = 0; i < n_components; i++)
        if (strcmp(components[i].name, component) == 0)
            return level <= components[i].level;
    return level <= default_level;
}

void lh_log_write(lh_log_level level, const char *component, const char *fmt, ...)
{
    char line[1024];
    int len = snprintf(line, sizeof line, "%c %.3f ", "EWIDT"[level], lh_log_seconds());

    if (log_rank >= 0)
        len += snprintf(line + len, sizeof line - (size_t)len, "r%d/%d ", log_rank, log_size);
    len += snprintf(line + len, sizeof line - (size_t)len, "%.32s: ", component);
    va_list ap;
    va_start(ap, fmt);
    int more = vsnprintf(line + len, sizeof line - (size_t)len, fmt, ap);
    va_end(ap);
    len += more < 0 ? 0 : more;
    if (len > (int)sizeof line - 2)
        len = (int)sizeof line - 2;
    line[len++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, (size_t)len);
    (void)written; /* nowhere to report a closed standard error to */
}
