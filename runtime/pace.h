/*
 * The pace of a replica: how fast it is against what its profile says, however much or little it has to do. Pure.
 *
 * Beside the pipeline that there is runs one as planned, which is given the same microbatches: each is launched there
 * when the one came back behind which it was launched here, and takes on each stage what the table of costs says, one
 * microbatch at a time. While as many are in flight as there should be, the two clocks are compared: planned ÷ full is
 * 1 where all goes as planned, and 0.5 where everything takes twice as long. What lies between the last step of a burst
 * and the first ones of the next says nothing and is not counted.
 */
#ifndef PEN_PACE_H
#define PEN_PACE_H

#include "step_cost.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct pen_pace {
    double planned_ms;         /* what steps that came back while the pipeline was full should have taken … */
    double full_ms;            /* … and what they took */
    const pen_step_cost *cost; /* NULL: nothing is counted */
    double *free_ms;           /* [stages] when a stage is done with all that was launched, by the planned clock */
    double now_ms;             /* the planned clock: when the last step came back */
    int64_t since_ns;          /* it came back, and the pipeline has been full since; 0: not so */
    bool full;
} pen_pace;

/* `cost` outlives the pace; it may be NULL. */
pen_status pen_pace_create(const pen_step_cost *cost, pen_pace *pace);
void pen_pace_destroy(pen_pace *pace);

/* A microbatch is launched. Returns when it should come back, by the planned clock. */
double pen_pace_launch(pen_pace *pace, const pen_step_shape *shape);
/* `in_flight` microbatches are on their way now, of `wanted`. */
void pen_pace_fill(pen_pace *pace, int in_flight, int wanted);
/* The oldest came back. */
void pen_pace_land(pen_pace *pace, double planned_ms, int64_t now_ns);

#endif
