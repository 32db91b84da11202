/*
 * What a plan promises: the speed of its pipeline under its workload, for some number of sequences at a time. So that a
 * measurement has something to be measured against.
 */
#ifndef PEN_FORECAST_H
#define PEN_FORECAST_H

#include "model.h"
#include "plan.h"
#include "profile.h"

typedef struct pen_forecast {
    double prompt_tokens_per_s, decode_tokens_per_s;
} pen_forecast;

typedef struct pen_forecast_options {
    int sequences; /* at a time */
    int rows;      /* of a microbatch at most */
    bool apart;    /* first all prompts, then all outputs, each speed in its own time; else mixed, the steady state */
} pen_forecast_options;

/* With m microbatches in flight every stage computes each of them once in a period of max(m · slowest stage, all stages
 * and links). `plan` is solved; `profile` covers the model and says how times depend on the microbatch, NULL: they do
 * not. */
pen_forecast pen_forecast_of(const pen_plan *plan, const pen_model *model, const pen_profile *profile,
                             const pen_forecast_options *options);

#endif
