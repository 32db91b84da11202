/*
 * What a step costs: milliseconds of a microbatch on each stage of a solved plan, by its shape. A table made once from
 * the plan, which knows what a unit takes on each stage's device, and a profile, which knows how that depends on the
 * microbatch. The schedule sizes its microbatches by it, the forecast and the simulator predict with it.
 */
#ifndef PEN_STEP_COST_H
#define PEN_STEP_COST_H

#include "plan.h"
#include "profile.h"

typedef struct pen_step_cost pen_step_cost;

/* `planned` is the microbatch that the plan's times are for. Without a profile (NULL; then `model` may be NULL, too)
 * all times are in proportion to a fixed part and the rows. */
pen_status pen_step_cost_create(const pen_plan *plan, const pen_model *model, const pen_profile *profile,
                                const pen_step_shape *planned, pen_step_cost **cost);
/* `stages` stages on each of which a microbatch takes fixed_ms + rows·row_ms; what is sent takes no time. */
pen_status pen_step_cost_create_even(int stages, double fixed_ms, double row_ms, pen_step_cost **cost);
void pen_step_cost_destroy(pen_step_cost *cost);

int pen_step_cost_stages(const pen_step_cost *cost);
/* Computing on a stage, without sending. */
double pen_step_cost_stage_ms(const pen_step_cost *cost, int stage, const pen_step_shape *shape);

/* A microbatch on its way through the pipeline. */
typedef struct pen_passage {
    double most_ms; /* on the slowest stage or wire */
    double sum_ms;  /* on all of them, one after the other */
} pen_passage;
pen_passage pen_step_cost_passage(const pen_step_cost *cost, const pen_step_shape *shape);

#endif
