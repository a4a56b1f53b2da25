/*
 * Log lines on standard error, one write each: "I 12.345 r3/8 comm: 8 ranks". The library never
 * writes to standard output.
 *
 *   E  the operation failed      W  something is off, we go on      I  a page per run at most
 *   D  per object or request     T  per step
 */
#ifndef LH_BASE_LOG_H
#define LH_BASE_LOG_H

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum lh_log_level {
    LH_LOG_ERROR,
    LH_LOG_WARN,
    LH_LOG_INFO,
    LH_LOG_DEBUG,
    LH_LOG_TRACE
} lh_log_level;

/* Levels from text: "warn" or "info,comm=debug,load=trace". LH_ERR_USAGE: an unknown level or a
 * malformed list. Not thread-safe. */
lh_status lh_log_configure(const char *spec);

/* The prefix r<rank>/<size> of every line; without it lines carry none. Not thread-safe. */
void lh_log_set_rank(int rank, int size);

/* Seconds of a monotonic clock since the program's first call of it. */
double lh_log_seconds(void);

int lh_log_enabled(lh_log_level level, const char *component);
void lh_log_write(lh_log_level level, const char *component, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define LH_LOG(level, component, ...)                                                              \
    do {                                                                                           \
        if (lh_log_enabled((level), (component)))                                                  \
            lh_log_write((level), (component), __VA_ARGS__);                                       \
    } while (0)
#define LH_LOG_W(component, ...) LH_LOG(LH_LOG_WARN, component, __VA_ARGS__)
#define LH_LOG_I(component, ...) LH_LOG(LH_LOG_INFO, component, __VA_ARGS__)
#define LH_LOG_D(component, ...) LH_LOG(LH_LOG_DEBUG, component, __VA_ARGS__)
#define LH_LOG_T(component, ...) LH_LOG(LH_LOG_TRACE, component, __VA_ARGS__)

#ifdef __cplusplus
}
#endif
#endif
