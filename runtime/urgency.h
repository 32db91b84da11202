/*
 * Urgency: which of two waiting requests goes first, the same at rank 0 and at the leaders. Who has waited for 5 s goes
 * before all who have not, the oldest first, so that nothing starves; otherwise the lower priority number goes first,
 * and of two equal ones the earlier.
 */
#ifndef PEN_URGENCY_H
#define PEN_URGENCY_H

#include <stdbool.h>
#include <stdint.h>

#define PEN_PATIENCE_NS INT64_C(5000000000)

typedef struct pen_urgency {
    int priority;
    int64_t arrived_ns, id;
} pen_urgency;

static inline bool pen_more_urgent(pen_urgency a, pen_urgency b, int64_t now_ns) {
    bool a_aged = now_ns - a.arrived_ns >= PEN_PATIENCE_NS, b_aged = now_ns - b.arrived_ns >= PEN_PATIENCE_NS;
    if (a_aged != b_aged) return a_aged;
    if (!a_aged && a.priority != b.priority) return a.priority < b.priority;
    if (a.arrived_ns != b.arrived_ns) return a.arrived_ns < b.arrived_ns;
    return a.id < b.id;
}

#endif
