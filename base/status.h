/*
 * One status type for every function that can fail, and the one place where an error gets its text.
 *
 * The first function that knows what went wrong says it, once, with LH_FAIL: what was seen, what
 * was expected, where. Everyone above passes the status on with LH_TRY and stays silent; the
 * program prints the recorded line and turns the status into its exit code.
 */
#ifndef LH_BASE_STATUS_H
#define LH_BASE_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

/* name, value, exit code of the program, meaning */
#define LH_STATUS_LIST(X)                                                                          \
    X(OK, 0, 0, "done")                                                                            \
    X(ERR_USAGE, -1, 64, "wrong options or arguments")                                             \
    X(ERR_DATA, -2, 65, "bad model, config, tokenizer or input data")                              \
    X(ERR_OPEN, -3, 66, "a named file cannot be opened")                                           \
    X(ERR_UNAVAILABLE, -4, 69, "a device, port or number of ranks that is not available")          \
    X(ERR_INTERNAL, -5, 70, "a fault of the program")                                              \
    X(ERR_INVALID, -6, 70, "an argument out of range inside the program")                          \
    X(ERR_UNSUPPORTED, -7, 69, "an operation that this backend does not have")                     \
    X(ERR_NOMEM, -8, 71, "out of memory, or the plan does not fit")                                \
    X(ERR_IO, -9, 74, "reading or writing failed")                                                 \
    X(ERR_TIMEOUT, -10, 75, "a rank was lost or hung")                                             \
    X(ERR_DISAGREE, -11, 76, "ranks disagree on version, model or settings")                       \
    X(ERR_STOPPED, -12, 79, "stopped on request")                                                  \
    X(ERR_INTERRUPTED, -13, 130, "interrupted")                                                    \
    X(ERR_MPI, -14, 70, "a call of MPI failed")                                                    \
    X(ERR_CUDA, -15, 70, "a call of CUDA failed")                                                  \
    X(ERR_PEER, -16, 70, "another rank failed; that rank says why")                                \
    X(ERR_NCCL, -17, 70, "a call of NCCL failed")

typedef enum lh_status {
#define LH_X(name, value, exit_code, text) LH_##name = value,
    LH_STATUS_LIST(LH_X)
#undef LH_X
} lh_status;

/* The name of a status, as in the list ("ERR_DATA"); never NULL. */
const char *lh_status_name(lh_status s);

/* What the status means, in a few words; never NULL. */
const char *lh_status_text(lh_status s);

/*
 * The program's exit code for a status. For LH_ERR_PEER it is the code of the rank that failed, as
 * far as lh_set_peer_status told it to this thread, so that all ranks of a job end alike.
 */
int lh_exit_code(lh_status s);

/* Remembers, for this thread, why another rank failed. Called by the agreement of the communicator.
 */
void lh_set_peer_status(lh_status s);

/* The text of this thread's last failure, without file and line; "" before the first. Owned by the
 * thread. */
const char *lh_last_error(void);

/* Where in the sources this thread's last failure was said: "file:line function"; "" before the
 * first. */
const char *lh_last_error_where(void);

/* Records a failure and returns `s`. Not called directly: use LH_FAIL. A trailing newline is not
 * wanted. */
lh_status lh_fail_(lh_status s, const char *file, int line, const char *func, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));

/* Prints "longhaul: assertion ..." with the place and aborts. Not called directly: use LH_ASSERT.
 */
void lh_assert_fail_(const char *cond, const char *file, int line) __attribute__((noreturn));

/* For what a caller, a file or a peer may get wrong: always on. */
#define LH_FAIL(code, ...) lh_fail_((code), __FILE__, __LINE__, __func__, __VA_ARGS__)
#define LH_REQUIRE(cond, code, ...)                                                                \
    do {                                                                                           \
        if (!(cond))                                                                               \
            return LH_FAIL((code), __VA_ARGS__);                                                   \
    } while (0)
#define LH_REQUIRE_OUT(cond, code, ...)                                                            \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            st = LH_FAIL((code), __VA_ARGS__);                                                     \
            goto out;                                                                              \
        }                                                                                          \
    } while (0)
#define LH_TRY(expr)                                                                               \
    do {                                                                                           \
        lh_status t_ = (expr);                                                                     \
        if (t_ != LH_OK)                                                                           \
            return t_;                                                                             \
    } while (0)
#define LH_TRY_OUT(expr)                                                                           \
    do {                                                                                           \
        st = (expr);                                                                               \
        if (st != LH_OK)                                                                           \
            goto out;                                                                              \
    } while (0)

/* For our own faults only; cheap enough to stay on. No side effects inside. */
#define LH_ASSERT(cond) ((cond) ? (void)0 : lh_assert_fail_(#cond, __FILE__, __LINE__))

#ifdef __cplusplus
}
#endif
#endif
