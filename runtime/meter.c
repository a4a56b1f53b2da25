#include "base/log.h"
#include "runtime/checkpoint_internal.h"

#define STEP_BYTES ((int64_t)64 << 20)

static void report(lh_meter *m)
{
    m->reported = m->state.done;
    m->state.seconds = lh_log_seconds() - m->start;
    if (m->progress)
        m->progress(m->user, &m->state);
}

void lh_meter_start(lh_meter *m, const char *phase, size_t total,
                    void (*progress)(void *user, const lh_progress *p), void *user)
{
    *m = (lh_meter){.progress = progress,
                    .user = user,
                    .state = {.phase = phase, .total = (int64_t)total},
                    .start = lh_log_seconds()};
}

void lh_meter_add(lh_meter *m, size_t bytes)
{
    m->state.done += (int64_t)bytes;
    if (m->state.done - m->reported >= STEP_BYTES && m->state.done < m->state.total)
        report(m);
}

void lh_meter_end(lh_meter *m)
{
    report(m);
}
