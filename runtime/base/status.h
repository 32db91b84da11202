/*
 * Status codes: what every fallible function returns, and what the process exits with.
 *
 * The code says which kind of failure it was; the text (one per thread, the latest failure) says what exactly: file,
 * key, tensor, rank, expected and actual. Functions return pen_fail(...) where the failure is found and PEN_TRY passes
 * it up unchanged; only launch/ prints it and ends the process.
 */
#ifndef PEN_STATUS_H
#define PEN_STATUS_H

/*        name          exit  meaning */
#define PEN_STATUS_CODES(X)                                                                                            \
    X(PEN_OK, 0, "success")                                                                                            \
    X(PEN_INTERNAL, 1, "internal error")                                                                               \
    X(PEN_USAGE, 2, "wrong usage")                                                                                     \
    X(PEN_BAD_INPUT, 3, "bad input file")                                                                              \
    X(PEN_UNSUPPORTED, 4, "not supported")                                                                             \
    X(PEN_NO_MEMORY, 5, "not enough memory")                                                                           \
    X(PEN_IO, 6, "input or output failed")                                                                             \
    X(PEN_PEER_LOST, 7, "a peer was lost or did not answer in time")                                                   \
    X(PEN_INTERRUPTED, 8, "interrupted")                                                                               \
    X(PEN_QUEUE_FULL, 9, "a queue is full")

typedef enum pen_status {
#define X(name, code, text) name = code,
    PEN_STATUS_CODES(X)
#undef X
} pen_status;

/* The fixed text of a code. */
const char *pen_status_text(pen_status status);

/* Records the formatted text as this thread's last error and returns `status`. One line, no trailing full stop. */
pen_status pen_fail(pen_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* This thread's last error text; never NULL. Valid until this thread's next pen_fail. */
const char *pen_last_error(void);

#define PEN_TRY(expression)                                                                                            \
    do {                                                                                                               \
        pen_status pen_try_status_ = (expression);                                                                     \
        if (pen_try_status_ != PEN_OK) return pen_try_status_;                                                         \
    } while (0)

#endif
