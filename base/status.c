#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local char last_text[1024];
static _Thread_local char last_where[256];
static _Thread_local lh_status peer_status = LH_OK;

const char *lh_status_name(lh_status s)
{
    switch (s) {
#define LH_X(name, value, exit_code, text)                                                         \
    case LH_##name:                                                                                \
        return #name;
        LH_STATUS_LIST(LH_X)
#undef LH_X
    }
    return "unknown status";
}

const char *lh_status_text(lh_status s)
{
    switch (s) {
#define LH_X(name, value, exit_code, text)                                                         \
    case LH_##name:                                                                                \
        return text;
        LH_STATUS_LIST(LH_X)
#undef LH_X
    }
    return "unknown status";
}

int lh_exit_code(lh_status s)
{
    if (s == LH_ERR_PEER && peer_status != LH_OK && peer_status != LH_ERR_PEER)
        return lh_exit_code(peer_status);
    switch (s) {
#define LH_X(name, value, exit_code, text)                                                         \
    case LH_##name:                                                                                \
        return exit_code;
        LH_STATUS_LIST(LH_X)
#undef LH_X
    }
    return 70;
}

void lh_set_peer_status(lh_status s)
{
    peer_status = s;
}

const char *lh_last_error(void)
{
    return last_text;
}

const char *lh_last_error_where(void)
{
    return last_where;
}

lh_status lh_fail_(lh_status s, const char *file, int line, const char *func, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int len = vsnprintf(last_text, sizeof last_text, fmt, ap);
    va_end(ap);
    if (len < 0)
        last_text[0] = '\0';
    /* One line, whatever a file or a user put into a name. */
    for (char *p = last_text; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
    (void)snprintf(last_where, sizeof last_where, "%s:%d %s", file, line, func);
    return s;
}

void lh_assert_fail_(const char *cond, const char *file, int line)
{
    (void)fprintf(stderr, "longhaul: assertion '%s' failed at %s:%d\n", cond, file, line);
    abort();
}
