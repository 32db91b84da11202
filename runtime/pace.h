/*
 * The pace of a replica: how fast it is against what its profile says, however much or little it has to do. Pure.
 *
 * While as many microbatches are in flight as there should be, they come back every slot = max(most, sum / depth)
 * milliseconds (budget.h). So planned ÷ full is 1 where all goes as planned, and 0.5 where everything takes twice as
 * long. What lies between the last step of a burst and the first ones of the next says nothing and is not counted.
 */
#ifndef PEN_PACE_H
#define PEN_PACE_H

#include "step_cost.h"

#include <stdint.h>

typedef struct pen_pace {
    double planned_ms; /* the slots of steps that came back while the pipeline was full … */
    double full_ms;    /* … and how long that was */
    int depth;         /* microbatches in flight while the pipeline is full, else 0 */
    int64_t since_ns;  /* the last one came back, and it has been full since; 0: not yet */
} pen_pace;

/* `in_flight` microbatches are on their way now, of `wanted`. */
void pen_pace_launched(pen_pace *pace, int in_flight, int wanted);
/* One came back, whose way was planned to be this. */
void pen_pace_landed(pen_pace *pace, const pen_passage *planned, int64_t now_ns);

#endif
