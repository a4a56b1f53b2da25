/* What the backends of communicators share. */
#ifndef LH_PARALLEL_COMM_INTERNAL_H
#define LH_PARALLEL_COMM_INTERNAL_H

#include "parallel/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where the program is, written to `text`: "dispatch of layer 3 (alltoallv)". */
const char *lh_comm_place(const lh_comm *c, const char *op, char *text, size_t size);

/*
 * Between two polls that brought nothing, n_polls of them since second `since`: gives the core
 * away, later sleeps a little. Returns 0, or the seconds waited once they exceed the deadline.
 */
double lh_comm_idle(const lh_comm *c, unsigned n_polls, double since);

/* How long a rank may take to answer a roll call. */
#define LH_ROLL_CALL_S 2.0

/* A wait for what no peer can hold up: the device's own. */
lh_status lh_comm_sync(lh_comm *c, lh_stream *s, int mark);

#ifdef __cplusplus
}
#endif
#endif
