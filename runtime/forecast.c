/* The forecast; see forecast.h. */
#include "forecast.h"

#include "kvcache.h"
#include "plan_model.h"

#include <math.h>

/* The shortest time in which rows of all sequences go through the stages once, in as many microbatches as is best. */
static double period_ms(const pen_step_cost *cost, const pen_step_shape *all, int sequences) {
    double best_ms = INFINITY;
    for (int m = 1; m <= pen_step_cost_stages(cost) + 1 && m <= sequences; m++) {
        pen_step_shape share = *all;
        share.rows /= m;
        share.logit_rows /= m;
        share.decodes /= m;
        pen_passage way = pen_step_cost_passage(cost, &share);
        best_ms = fmin(best_ms, fmax(m * way.most_ms, way.sum_ms));
    }
    return best_ms;
}

/* All prompts in the chunks that take them through soonest, then all decodes. */
static pen_forecast apart(const pen_plan_workload *workload, const pen_step_cost *cost,
                          const pen_forecast_options *options) {
    int length = workload->prompt_tokens, most_chunks = length / PEN_KV_BLOCK, sequences = options->sequences;
    double prompts = (double)length * sequences, prompts_ms = INFINITY;
    for (int chunks = (int)ceil(prompts / options->rows); isinf(prompts_ms) || chunks <= most_chunks; chunks++) {
        pen_step_shape chunk = {
            .rows = prompts / chunks, .logit_rows = (double)sequences / chunks, .prompt_context = length / 2.0};
        pen_passage way = pen_step_cost_passage(cost, &chunk);
        prompts_ms = fmin(prompts_ms, way.sum_ms + (chunks - 1) * way.most_ms);
    }
    pen_step_shape decodes = {.rows = sequences,
                              .logit_rows = sequences,
                              .decodes = sequences,
                              .decode_context = length + workload->output_tokens / 2.0};
    return (pen_forecast){1000 * prompts / prompts_ms, 1000 * sequences / period_ms(cost, &decodes, sequences)};
}

pen_forecast pen_forecast_of(const pen_plan_workload *workload, const pen_step_cost *cost,
                             const pen_forecast_options *options) {
    if (options->apart) return apart(workload, cost, options);
    pen_plan_workload load = *workload;
    load.max_num_seqs = options->sequences;
    pen_steady steady = pen_plan_steady(&load, pen_step_cost_stages(cost), options->rows);
    double decodes = steady.microbatches * steady.decode_rows, rows = steady.microbatches * steady.rows;
    pen_step_shape all = pen_profile_shape(&steady);
    all.rows = rows;
    all.logit_rows *= steady.microbatches;
    all.decodes = decodes;
    double ms = period_ms(cost, &all, options->sequences);
    return (pen_forecast){1000 * (rows - decodes) / ms, 1000 * decodes / ms};
}
