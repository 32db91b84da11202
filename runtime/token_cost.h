/*
 * What a token costs a replica while it does what its plan is for: milliseconds of its slowest stage or wire, apart for
 * tokens of prompts and of outputs. So the distributor compares requests, and replicas.
 *
 * The steady microbatch has n decode rows and x prompt rows. A prompt's token costs what its row adds to the decodes,
 * which are there anyway; the decodes share the rest:
 *
 *     prompt_ms = (t(n + x) − t(n)) ÷ x        output_ms = (t(n + x) − x · prompt_ms) ÷ n
 */
#ifndef PEN_TOKEN_COST_H
#define PEN_TOKEN_COST_H

#include "distributor.h"
#include "profile.h"
#include "step_cost.h"

/* `steady` is the plan's; neither cost is negative. */
pen_token_cost pen_token_cost_of(const pen_step_cost *cost, const pen_steady *steady);

#endif
