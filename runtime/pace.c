/* The pace of a replica; see pace.h. */
#include "pace.h"

#include <math.h>

void pen_pace_launched(pen_pace *pace, int in_flight, int wanted) {
    pace->depth = in_flight >= wanted ? in_flight : 0;
    if (pace->depth == 0) pace->since_ns = 0;
}

void pen_pace_landed(pen_pace *pace, const pen_passage *planned, int64_t now_ns) {
    if (pace->depth == 0) return;
    if (pace->since_ns > 0) {
        pace->planned_ms += fmax(planned->most_ms, planned->sum_ms / pace->depth);
        pace->full_ms += (double)(now_ns - pace->since_ns) * 1e-6;
    }
    pace->since_ns = now_ns;
}
