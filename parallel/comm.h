/*
 * Communicators: how ranks talk. One interface; `self` for one rank, `mpi` for ranks with host
 * memory, `nccl` for ranks with a GPU each.
 *
 * Every function but abort and destroy is collective over the communicator or between the two ranks
 * named, and is called by all of them in the same order. Every wait has the communicator's
 * deadline: a peer that does not answer in time gives LH_ERR_TIMEOUT with the peer's rank, the
 * operation and the place set by lh_comm_at. A peer that names another size, or is in another
 * operation, gives LH_ERR_DISAGREE. After LH_ERR_TIMEOUT, LH_ERR_MPI, LH_ERR_NCCL or such a
 * disagreement only abort and destroy may be called.
 *
 * Buffers are memory of the stream's device and are read and written in order of the stream: self
 * and mpi have done it when they return, nccl has queued it. Without a stream (NULL) they are host
 * memory and free again on return; agree and same are of this kind. mpi knows host memory alone,
 * and nccl hands what is in it to the communicator that it was started over. Sizes are in bytes, 64
 * bits wide, zero allowed. A communicator belongs to one thread.
 *
 * On the device NCCL does not say which peer it waits for, nor does it compare sizes: a peer that
 * names another one, or is in another operation, is a wait until the deadline or wrong bytes. After
 * a wait too long the ranks therefore call the roll on the host, and name who does not answer; and
 * sizes must be known to agree before: exchanged through host memory, or by an all-gather of a
 * fixed size.
 */
#ifndef LH_PARALLEL_COMM_H
#define LH_PARALLEL_COMM_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lh_comm lh_comm;

#define LH_ALL (-1) /* no mark: all that is queued */

typedef struct lh_comm_ops {
    const char *name; /* "self", "mpi", "nccl" */
    lh_status (*bcast)(lh_comm *c, void *buf, size_t bytes, int root, lh_stream *s);
    lh_status (*allgather)(lh_comm *c, const void *send, size_t bytes, void *recv, lh_stream *s);
    lh_status (*allgatherv)(lh_comm *c, const void *send, void *recv, const size_t *recv_bytes,
                            const size_t *recv_offset, lh_stream *s);
    lh_status (*alltoallv)(lh_comm *c, const void *send, const size_t *send_bytes, void *recv,
                           const size_t *recv_bytes, lh_stream *s);
    lh_status (*sendrecv)(lh_comm *c, const void *send, size_t send_bytes, int to, void *recv,
                          size_t recv_bytes, int from, lh_stream *s);
    lh_status (*merge)(lh_comm *c, void *buf, size_t bytes, void *scratch, lh_stream *s);
    lh_status (*wait)(lh_comm *c, lh_stream *s, int mark);
    void (*progress)(lh_comm *c); /* lets messages of finished operations get on; does not wait */
    /* After a wait that another communicator gave up, which each rank does for itself: `who`
     * becomes the ranks that do not say within a second or two that they have given up, too ("rank
     * 1, 4"), or "". NULL where there are no others. */
    void (*roll_call)(lh_comm *c, char *who, size_t size);
    void (*abort)(lh_comm *c, int exit_code);
    void (*destroy)(lh_comm *c);
} lh_comm_ops;

/* First member of each backend's struct. */
struct lh_comm {
    const lh_comm_ops *ops;
    lh_comm *host; /* takes what comes without a stream; NULL: this one */
    int rank, size;
    double timeout_s;    /* limit of every wait; INFINITY: none */
    const char *what;    /* lh_comm_at: phase; a literal */
    int layer;           /* lh_comm_at: layer, or -1 */
    uint64_t bytes_sent; /* to other ranks, since creation; for the report */
    uint64_t bytes_received;
    uint64_t calls;
};

lh_status lh_comm_self_create(lh_comm **out);

/*
 * Over all ranks of the MPI job, on a duplicate of MPI_COMM_WORLD. Initializes MPI if it is not;
 * MPI is finalized by lh_comm_mpi_finalize. Waits poll, and yield the core when nothing comes, so
 * that more ranks than cores get on. With timeout_s INFINITY waits have no deadline, and long ones
 * sleep so much between polls that they take no time from other ranks. LH_ERR_UNAVAILABLE: built
 * without MPI.
 */
lh_status lh_comm_mpi_create(lh_comm **out, double timeout_s);

/* The same over the job's first n_ranks ranks, with the numbers that they have in the job. They
 * alone call it; abort still ends the whole job. */
lh_status lh_comm_mpi_create_first(lh_comm **out, int n_ranks, double timeout_s);

/*
 * Over the ranks of `boot` (mpi, or self for one rank), each with the GPU of its stream `s`, no two
 * with the same. boot stays the caller's, must outlive this one, and
 * carries what is in host memory. Collective. Peers are connected by the first use of an operation,
 * which must not be captured into a graph. Every rank gets one, or every rank leaves:
 * LH_ERR_UNAVAILABLE: built without NCCL, or NCCL is older than 2.28.3 or than what this was built
 * with; LH_ERR_PEER: another rank could not.
 */
lh_status lh_comm_nccl_create(lh_comm **out, lh_comm *boot, lh_stream *s, double timeout_s);

/* Ends MPI if this program began it; after the last communicator is destroyed, at the end of main.
 */
void lh_comm_mpi_finalize(void);

/* Accepts NULL. Not collective over self and mpi; over nccl all ranks call it, unless the
 * communicator has failed. The streams that were passed are still open. */
void lh_comm_destroy(lh_comm *c);

/* Ends the whole job at once with this exit code; does not return on more than one rank. */
void lh_comm_abort(lh_comm *c, int exit_code);

/* Says where the program is, for messages about waits: ("dispatch", 3). `what` is kept, not copied.
 */
void lh_comm_at(lh_comm *c, const char *what, int layer);

/*
 * The end of a set-up step: every rank brings its status. All LH_OK: LH_OK everywhere. Otherwise
 * the lowest failing rank gets its own status back (and will print why), every other rank
 * LH_ERR_PEER, and every rank's exit code is that rank's. A rank that itself only brings
 * LH_ERR_PEER counts as failing if no rank brings a reason.
 */
lh_status lh_comm_agree(lh_comm *c, lh_status mine);

/* All ranks must bring equal bytes. LH_ERR_DISAGREE names `what` and the lowest rank that differs
 * from rank 0, on all ranks alike. */
lh_status lh_comm_same(lh_comm *c, const void *bytes, size_t n, const char *what);

/*
 * Waits until all that is queued on `s` has run, on this rank, and returns the first failure among
 * it: at the end of a step, before the device's sync or a download, which wait without a deadline
 * for a stream that a missing peer holds up. nccl: LH_ERR_TIMEOUT after the deadline, counted from
 * the call, the stream's own work included. lh_comm_wait_for: until a mark of the stream has
 * passed, if its device has marks.
 */
lh_status lh_comm_wait(lh_comm *c, lh_stream *s);
lh_status lh_comm_wait_for(lh_comm *c, lh_stream *s, int mark);

/* buf of root to all. */
lh_status lh_comm_bcast(lh_comm *c, void *buf, size_t bytes, int root, lh_stream *s);

/* recv [size][bytes]: everyone's `send`, in rank order. recv may contain send at its own place. */
lh_status lh_comm_allgather(lh_comm *c, const void *send, size_t bytes, void *recv, lh_stream *s);

/*
 * recv_bytes[r] from each rank r to recv + recv_offset[r]; the own part is copied from `send`
 * unless it is there already (send == recv + recv_offset[rank]). recv_bytes must agree on all
 * ranks.
 */
lh_status lh_comm_allgatherv(lh_comm *c, const void *send, void *recv, const size_t *recv_bytes,
                             const size_t *recv_offset, lh_stream *s);

/* send_bytes[r] to each rank r, packed in rank order; recv packed alike. Both sides must name the
 * same size. */
lh_status lh_comm_alltoallv(lh_comm *c, const void *send, const size_t *send_bytes, void *recv,
                            const size_t *recv_bytes, lh_stream *s);

/*
 * Parts that lie among zeros to all: every 4-byte word of buf may be other than 0 on one rank at
 * most, and afterwards is that everywhere. Bits are moved, nothing is rounded. bytes is a multiple
 * of 4; scratch [size][bytes] may be used.
 */
lh_status lh_comm_merge(lh_comm *c, void *buf, size_t bytes, void *scratch, lh_stream *s);

/* Sends to `to` and receives from `from` at once; a rank of -1 leaves that half out; the own rank
 * copies. */
lh_status lh_comm_sendrecv(lh_comm *c, const void *send, size_t send_bytes, int to, void *recv,
                           size_t recv_bytes, int from, lh_stream *s);

#ifdef __cplusplus
}
#endif
#endif
