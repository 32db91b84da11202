/* What a token costs; see token_cost.h. */
#include "token_cost.h"

#include <math.h>

pen_token_cost pen_token_cost_of(const pen_step_cost *cost, const pen_steady *steady) {
    double n = steady->decode_rows, x = steady->rows - n;
    pen_step_shape all = pen_profile_shape(steady), decodes = all;
    decodes.rows = decodes.logit_rows = n;
    double all_ms = pen_step_cost_passage(cost, &all).most_ms;
    double prompts_ms = x > 0 ? fmax(0, all_ms - pen_step_cost_passage(cost, &decodes).most_ms) : 0;
    return (pen_token_cost){.prompt_ms = x > 0 ? prompts_ms / x : 0, .output_ms = (all_ms - prompts_ms) / n};
}
