/*
 * Waiting without burning a core: what a rank does between two looks at its links when nothing has moved.
 *
 * Where the rank has a core of its own and work is in flight, it looks again and again for 10 ms, and then sleeps in
 * slices of a few µs: an answer is seen within 50 µs. (A sleep that short costs as much as looking, on a virtual
 * machine nearly a whole core, but leaves others some.) Without a core of its own, slices are 100 µs. With no work in
 * flight slices grow to 1 ms and, after a second, to 5.5 ms: an idle rank costs little more than sleeping does, and
 * answers within 6 ms. Where it is known when the device will be done, the rank wakes for that and else only now and
 * then, to keep the links moving.
 *
 * Whoever waits knows for whom and for what, and says so at log level debug when it takes long.
 */
#ifndef PEN_WAIT_H
#define PEN_WAIT_H

#include <stdbool.h>
#include <stdint.h>

typedef struct pen_wait {
    bool may_spin;
    bool patient;     /* sleeps in long slices also while work is in flight; false by default */
    int64_t since_ns; /* when something last moved */
    int64_t told_ns;  /* when a wait was last told of; 0: none was */
} pen_wait;

void pen_wait_init(pen_wait *wait, bool may_spin); /* on the thread that will wait */
void pen_wait_reset(pen_wait *wait);               /* something moved */
/* due_ns: when something is sure to have moved, so that it can sleep until then; 0: nobody knows. */
void pen_wait_pause(pen_wait *wait, bool work_in_flight, int64_t due_ns);

double pen_wait_seconds(const pen_wait *wait); /* since something moved */
/* Whether the log should tell of this wait: once, when it has taken more than 0.1 s and the last line of this kind is a
 * second old. Then the caller writes the line. */
bool pen_wait_tells(pen_wait *wait);

#endif
