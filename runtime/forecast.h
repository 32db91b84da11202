/*
 * What a plan promises: the speed of its pipeline under its workload, for some number of sequences at a time. So that a
 * measurement has something to be measured against.
 */
#ifndef PEN_FORECAST_H
#define PEN_FORECAST_H

#include "plan.h"
#include "step_cost.h"

typedef struct pen_forecast {
    double prompt_tokens_per_s, decode_tokens_per_s;
} pen_forecast;

typedef struct pen_forecast_options {
    int sequences; /* at a time */
    int rows;      /* of a microbatch at most */
    bool apart;    /* first all prompts, then all outputs, each speed in its own time; else mixed, the steady state */
} pen_forecast_options;

/* With m microbatches in flight every stage computes each of them once in a period of max(m · slowest stage, all stages
 * and links); m is what gives the most, at most a microbatch more than there are stages. `cost` is of the plan's
 * stages. */
pen_forecast pen_forecast_of(const pen_plan_workload *workload, const pen_step_cost *cost,
                             const pen_forecast_options *options);

#endif
