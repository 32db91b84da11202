/* Time: one monotonic clock for everything. */
#ifndef PEN_CLOCK_H
#define PEN_CLOCK_H

#include <stdint.h>

/* Monotonic nanoseconds since an arbitrary start, the same for all processes of a machine. */
int64_t pen_clock_ns(void);

/* CPU time of the calling thread, in nanoseconds. */
int64_t pen_clock_thread_cpu_ns(void);

/* Sleeps until the absolute pen_clock_ns() time `deadline`. */
void pen_clock_sleep_until(int64_t deadline_ns);

#endif
