/*
 * How much goes into a microbatch, by what it costs. Pure functions over the table of step costs; the schedule asks
 * them.
 *
 * Decodes. D running decodes in k microbatches give D tokens in a period of
 *
 *     period(k) = max( k · most(D/k), sum(D/k) )
 *
 * milliseconds, where `most` is the slowest stage's (or wire's) time and `sum` the whole way through. Dividing keeps
 * the stages busy until the first term is the larger one; after that it only costs what every microbatch costs anew.
 *
 * Prompts. A microbatch of n decodes takes Δ(x) = most(n + x) − most(n) longer for x rows of prompt. R rows that wait
 * go through S stages in R/x microbatches and the S − 1 that fill and empty the pipeline, so x is where
 *
 *     (R/x + S − 1) · Δ(x)
 *
 * is least: small where that costs nothing, large where there is much to do and the time per row still falls.
 */
#ifndef PEN_BUDGET_H
#define PEN_BUDGET_H

#include "step_cost.h"

/* Microbatches, at most `most`, over which so many decodes are spread. */
int pen_budget_groups(const pen_step_cost *cost, int decodes, double context, int most);

/* Microbatches in flight, at most `most`, that keep the slowest stage busy with microbatches of this shape. */
int pen_budget_depth(const pen_step_cost *cost, const pen_step_shape *shape, int most);

/* Rows of prompt, at most `most`, beside so many decodes while `waiting` rows wait. Whole KV blocks, unless it is all
 * that waits or all that may be. */
int pen_budget_chunk(const pen_step_cost *cost, int decodes, double context, int waiting, int most);

#endif
