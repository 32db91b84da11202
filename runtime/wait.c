/* Waiting; see wait.h. */
#include "wait.h"

#include "clock.h"
#include "log.h"

#include <sched.h>
#include <sys/prctl.h>

enum {
    SPIN_NS = 10 * 1000 * 1000,
    SPIN_IDLE_NS = 50 * 1000,
    SLICE_OWN_CORE_NS = 5 * 1000, /* the kernel adds some 20 µs */
    SLICE_SHARED_NS = 100 * 1000,
    SLICE_DUE_NS = 1000 * 1000,
    SLICE_IDLE_NS = 1000 * 1000,
    SLICE_LONG_IDLE_NS = 5500 * 1000, /* an answer may take 6 ms */
    SETTLE_NS = 10 * 1000 * 1000,     /* without work: short slices for this long, the next request may be near */
    LONG_IDLE_NS = 1000 * 1000 * 1000,
    LONG_NS = 100 * 1000 * 1000,   /* a wait worth a line in the log, */
    QUIET_NS = 1000 * 1000 * 1000, /* of which there are no more than one in this time */
};

void pen_wait_init(pen_wait *wait, bool may_spin) {
    /* Linux rounds a thread's sleeps up by 50 µs unless told otherwise. */
    prctl(PR_SET_TIMERSLACK, 1000UL);
    *wait = (pen_wait){.may_spin = may_spin, .since_ns = pen_clock_ns()};
}

void pen_wait_reset(pen_wait *wait) {
    wait->since_ns = pen_clock_ns();
}

void pen_wait_pause(pen_wait *wait, bool work_in_flight, int64_t due_ns) {
    int64_t now = pen_clock_ns(), waited = now - wait->since_ns, slice;
    if (due_ns > 0) {
        if (due_ns > now) pen_clock_sleep_until(due_ns < now + SLICE_DUE_NS ? due_ns : now + SLICE_DUE_NS);
        return;
    }
    if (wait->may_spin && waited < (work_in_flight ? SPIN_NS : SPIN_IDLE_NS)) {
        sched_yield(); /* should somebody else be on this core after all */
        return;
    }
    if (work_in_flight)
        slice = wait->may_spin ? SLICE_OWN_CORE_NS : wait->patient ? SLICE_DUE_NS : SLICE_SHARED_NS;
    else if (waited < SETTLE_NS)
        slice = SLICE_SHARED_NS;
    else
        slice = waited < LONG_IDLE_NS ? SLICE_IDLE_NS : SLICE_LONG_IDLE_NS;
    pen_clock_sleep_until(now + slice);
}

double pen_wait_seconds(const pen_wait *wait) {
    return (double)(pen_clock_ns() - wait->since_ns) * 1e-9;
}

bool pen_wait_tells(pen_wait *wait) {
    if (!pen_log_enabled(PEN_LOG_DEBUG) || wait->told_ns > wait->since_ns) return false;
    int64_t now = pen_clock_ns();
    if (now - wait->since_ns < LONG_NS || (wait->told_ns > 0 && now - wait->told_ns < QUIET_NS)) return false;
    wait->told_ns = now;
    return true;
}
