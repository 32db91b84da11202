/* How much goes into a microbatch; see budget.h. */
#include "budget.h"

#include "kvcache.h"

#include <math.h>

/* Less than this is noise. */
#define MATTERS 0.04
/* Of an output: in the time that it takes prompts should be through. */
#define PATIENCE 0.25

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

static double slot_of(const pen_step_cost *cost, const pen_step_shape *shape, int k) {
    pen_passage way = pen_step_cost_passage(cost, shape);
    return fmax(way.most_ms, way.sum_ms / k);
}

static double slot_ms(const pen_step_cost *cost, const pen_budget_demand *demand, int k, double decodes,
                      double prompt) {
    pen_step_shape shape = shape_of(demand, decodes, prompt);
    return slot_of(cost, &shape, k);
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

/* Rows of the least chunk, and by how many it may be larger. */
static int grain_of(const pen_budget_demand *demand) {
    return demand->decodes > 0 ? 1 : PEN_KV_BLOCK;
}

static int chunk_of(const pen_step_cost *cost, const pen_budget_demand *demand, int depth, int rows) {
    double decodes = (double)demand->decodes / depth, best_ms = INFINITY;
    double without_ms = slot_ms(cost, demand, depth, decodes, 0);
    int best = 0, limit = demand->prompt_rows < rows ? demand->prompt_rows : rows;
    int grain = grain_of(demand);
    if (pen_step_cost_stages(cost) == 1 && demand->decodes == 0) return limit;
    for (int x = grain;; x += x < 16 * grain ? grain : x / 8 / grain * grain) {
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
        double lasting = (demand->decodes + demand->prompts) * demand->prompt_rate;
        double waiting = demand->prompt_rows / (PATIENCE * demand->output);
        double least = fmin(ceil(fmax(lasting, waiting) / budget.depth), demand->prompts * PEN_KV_BLOCK);
        budget.chunk = (int)fmin(fmax(budget.chunk, least), rows);
    }
    budget.ms = slot_ms(cost, demand, budget.depth, (double)demand->decodes / budget.depth, budget.chunk);
    return budget;
}

int pen_budget_fill(const pen_step_cost *cost, const pen_budget_demand *demand, const pen_budget *budget, int decodes,
                    int most) {
    int least = grain_of(demand), fits = least < most ? least : most, over = most + 1;
    pen_budget_demand next = *demand;
    next.prompt_context = demand->chunk_context;
    while (over - fits > 1) {
        int middle = fits + (over - fits) / 2;
        pen_step_shape shape = shape_of(&next, decodes, middle);
        shape.logit_rows = (double)demand->decodes / budget->depth; /* the head has no part in prompts */
        if (slot_of(cost, &shape, budget->depth) <= budget->ms)
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
