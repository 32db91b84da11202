/* How much goes into a microbatch; see budget.h. */
#include "budget.h"

#include "kvcache.h"

#include <math.h>

/* Less than this is noise. */
#define MATTERS 0.04

/* Of so many rows of decode and of prompt. Where there are less decodes than microbatches, some have one row of them.
 */
static pen_step_shape shape_of(const pen_budget_demand *demand, double decodes, double prompt) {
    if (decodes > 0) decodes = fmax(decodes, 1);
    return (pen_step_shape){.rows = decodes + prompt,
                            .logit_rows = decodes,
                            .decodes = decodes,
                            .decode_context = demand->decode_context,
                            .prompt_context = demand->prompt_context};
}

static double slot_ms(const pen_step_cost *cost, const pen_budget_demand *demand, int k, double decodes,
                      double prompt) {
    pen_step_shape shape = shape_of(demand, decodes, prompt);
    pen_passage way = pen_step_cost_passage(cost, &shape);
    return fmax(way.most_ms, way.sum_ms / k);
}

static int depth_of(const pen_step_cost *cost, const pen_budget_demand *demand, int most) {
    double prompt = demand->prompt_rows > 0 ? demand->decodes * demand->prompt_rate : 0, best_ms = INFINITY;
    int best = 1;
    for (int k = 1; k <= most; k++) {
        double round_ms = k * slot_ms(cost, demand, k, (double)demand->decodes / k, prompt / k);
        if (round_ms <= (1 + MATTERS) * best_ms) best = k;
        best_ms = fmin(best_ms, round_ms);
    }
    return best;
}

static int chunk_of(const pen_step_cost *cost, const pen_budget_demand *demand, int depth, int rows) {
    double decodes = (double)demand->decodes / depth, best_ms = INFINITY;
    double without_ms = slot_ms(cost, demand, depth, decodes, 0);
    int best = 0, limit = demand->prompt_rows < rows ? demand->prompt_rows : rows;
    for (int x = PEN_KV_BLOCK;; x += x < 128 ? PEN_KV_BLOCK : x / 8 / PEN_KV_BLOCK * PEN_KV_BLOCK) {
        if (x > limit) x = limit;
        double longer_ms = fmax(slot_ms(cost, demand, depth, decodes, x) - without_ms, 0);
        double ms = ((double)demand->prompt_rows / x + pen_step_cost_stages(cost) - 1) * longer_ms;
        if (ms <= best_ms) best = x;
        best_ms = fmin(best_ms, ms);
        if (x == limit) return best;
    }
}

pen_budget pen_budget_of(const pen_step_cost *cost, const pen_budget_demand *demand, int depth, int rows) {
    pen_budget budget = {.depth = depth}; /* prompts alone wait for nothing that comes back */
    if (demand->decodes > 0) budget.depth = depth_of(cost, demand, depth);
    if (demand->prompt_rows > 0) budget.chunk = chunk_of(cost, demand, budget.depth, rows);
    if (demand->prompt_rows > 0 && demand->decodes > 0) {
        double pace = (demand->decodes + demand->prompts) * demand->prompt_rate / budget.depth;
        double least = fmin(ceil(pace), demand->prompts * PEN_KV_BLOCK);
        budget.chunk = (int)fmin(fmax(budget.chunk, least), rows);
    }
    budget.ms = slot_ms(cost, demand, budget.depth, (double)demand->decodes / budget.depth, budget.chunk);
    return budget;
}

int pen_budget_fill(const pen_step_cost *cost, const pen_budget_demand *demand, const pen_budget *budget, int decodes,
                    int most) {
    int least = PEN_KV_BLOCK < most ? PEN_KV_BLOCK : most, fits = least, over = most + 1;
    pen_budget_demand next = *demand;
    next.prompt_context = demand->chunk_context;
    while (over - fits > 1) {
        int middle = fits + (over - fits) / 2;
        if (slot_ms(cost, &next, budget->depth, decodes, middle) <= budget->ms)
            fits = middle;
        else
            over = middle;
    }
    return fits;
}

bool pen_budget_has_time(const pen_step_cost *cost, const pen_budget_demand *demand, const pen_budget *budget,
                         int decodes, int prompts, int rows) {
    int groups = demand->settled < budget->depth ? demand->settled : budget->depth;
    if (groups < decodes) groups = decodes;
    pen_step_shape mixed = shape_of(demand, (double)demand->settled / fmax(groups, 1), budget->chunk);
    pen_step_shape alone = shape_of(demand, 0, rows);
    for (int s = 0; s < pen_step_cost_stages(cost); s++) {
        double ms =
            groups * pen_step_cost_stage_ms(cost, s, &mixed) + (prompts + 1) * pen_step_cost_stage_ms(cost, s, &alone);
        if (ms > (1 + MATTERS) * budget->depth * budget->ms) return false;
    }
    return true;
}
