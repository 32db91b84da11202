/*
 * How much goes into a microbatch, by what it costs: pure functions over the table of step costs, which the schedule
 * asks. `most` is what a microbatch takes on the slowest stage or wire, `sum` all the way through.
 *
 * Depth. k microbatches in flight come round every k · slot milliseconds, where
 *
 *     slot = max( most, sum / k ).
 *
 * D decodes and the rows of prompt that keep up with them are divided among the k for which that is least: enough of
 * them keep the stages busy, and more would only cost what every microbatch costs anew.
 *
 * Prompts. A microbatch of n decodes takes Δ(x) = slot(n + x) − slot(n) longer for x rows of prompt. R rows that wait
 * go through S stages in R/x microbatches and the S − 1 that fill and empty the pipeline. So a chunk is the x for which
 *
 *     (R/x + S − 1) · Δ(x)
 *
 * is least: small where that costs nothing, large where there is much to do and the time per row still falls. On one
 * stage with prompts alone it is all that a microbatch holds: rows do not cost more together, whatever a disturbed
 * profile says.
 *
 * While others decode, prompts keep up with them: sequences that end make room for new ones. N sequences run; P of them
 * have R rows of their prompts to do. An output has G tokens, and r rows of prompt for each of them. Then a chunk is at
 * least
 *
 *     min( max( N·r, R / (G/4) ) / k, 16·P ).
 *
 * N·r rows in the time of k microbatches is what the load needs in the long run, and no more: so a prompt begins when
 * another is through, and all microbatches are alike. Were prompts through sooner, microbatches with and without them
 * would take turns, and so would the slowest stages, because all rows go through blocks and only decodes through the
 * head. Where much waits, it is through in a quarter of the time that an output takes.
 */
#ifndef PEN_BUDGET_H
#define PEN_BUDGET_H

#include "step_cost.h"

#include <stdbool.h>

/* What the running sequences ask for. Contexts are averages. */
typedef struct pen_budget_demand {
    int decodes; /* sequences that decode, a row at a time … */
    int settled; /* … of which the end of the prompt is in flight no more */
    double decode_context;
    int prompts, prompt_rows; /* sequences at their prompts, and rows of them to do */
    double prompt_context;    /* of the whole prompts */
    double chunk_context;     /* of the rows that come next */
    double prompt_rate;       /* rows of prompt for each row of decode, in the long run */
    double output;            /* tokens of an output, in the long run */
} pen_budget_demand;

typedef struct pen_budget {
    int depth; /* microbatches in flight */
    int chunk; /* rows of prompt beside an even share of the decodes */
    double ms; /* slot of such a microbatch */
} pen_budget;

/* At most `depth` microbatches of at most `rows` rows. */
pen_budget pen_budget_of(const pen_step_cost *cost, const pen_budget_demand *demand, int depth, int rows);

/* Rows of prompt, at most `most`, that fill the budget beside `decodes` rows of decode: more at the beginning of a
 * prompt, less at its end, where attention has more to see; more beside less decodes, as far as both go through the
 * same layers. At least one, and at least a block where nobody decodes, so that prompts always go on. */
int pen_budget_fill(const pen_step_cost *cost, const pen_budget_demand *demand, const pen_budget *budget, int decodes,
                    int most);

/* Whether another microbatch of prompts alone, beside `decodes` that have decodes and `prompts` of prompts alone in
 * flight, would find every stage idle for long enough in the time in which the decodes come round. */
bool pen_budget_has_time(const pen_step_cost *cost, const pen_budget_demand *demand, const pen_budget *budget,
                         int decodes, int prompts, int rows);

#endif
