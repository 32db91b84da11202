/* The pace of a replica; see pace.h. */
#include "pace.h"

#include <math.h>
#include <stdlib.h>

pen_status pen_pace_create(const pen_step_cost *cost, pen_pace *pace) {
    *pace = (pen_pace){.cost = cost};
    if (!cost) return PEN_OK;
    int stages = pen_step_cost_stages(cost);
    pace->free_ms = calloc((size_t)stages, sizeof *pace->free_ms);
    return pace->free_ms ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory for the pace of %d stages", stages);
}

void pen_pace_destroy(pen_pace *pace) {
    free(pace->free_ms);
}

double pen_pace_launch(pen_pace *pace, const pen_step_shape *shape) {
    if (!pace->cost) return 0;
    double ms = pace->now_ms, computing_ms = 0;
    for (int s = 0; s < pen_step_cost_stages(pace->cost); s++) {
        double stage_ms = pen_step_cost_stage_ms(pace->cost, s, shape);
        ms = pace->free_ms[s] = fmax(ms, pace->free_ms[s]) + stage_ms;
        computing_ms += stage_ms;
    }
    return ms + pen_step_cost_passage(pace->cost, shape).sum_ms - computing_ms; /* the rest is sending */
}

void pen_pace_fill(pen_pace *pace, int in_flight, int wanted) {
    pace->full = in_flight >= wanted;
    if (!pace->full) pace->since_ns = 0;
}

void pen_pace_land(pen_pace *pace, double planned_ms, int64_t now_ns) {
    if (!pace->cost) return;
    double step_ms = fmax(planned_ms - pace->now_ms, 0);
    pace->now_ms += step_ms;
    if (!pace->full) return;
    if (pace->since_ns > 0) {
        pace->planned_ms += step_ms;
        pace->full_ms += (double)(now_ns - pace->since_ns) * 1e-6;
    }
    pace->since_ns = now_ns;
}
