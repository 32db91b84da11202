/* How much goes into a microbatch; see budget.h. */
#include "budget.h"

#include "kvcache.h"

#include <math.h>

/* What is gained by less than this is noise, and the more even choice is the better one. */
#define MATTERS 0.01

static pen_step_shape decodes_only(double decodes, double context) {
    return (pen_step_shape){decodes, decodes, context};
}

int pen_budget_groups(const pen_step_cost *cost, int decodes, double context, int most) {
    int best = 1;
    double best_ms = INFINITY;
    for (int k = 1; k <= most && k <= decodes; k++) {
        pen_step_shape share = decodes_only((double)decodes / k, context);
        pen_passage way = pen_step_cost_passage(cost, &share);
        double period_ms = fmax(k * way.most_ms, way.sum_ms);
        if (period_ms > (1 + MATTERS) * best_ms) continue;
        best = k;
        best_ms = fmin(best_ms, period_ms);
    }
    return best;
}

int pen_budget_depth(const pen_step_cost *cost, const pen_step_shape *shape, int most) {
    pen_passage way = pen_step_cost_passage(cost, shape);
    if (way.most_ms <= 0) return most;
    double depth = ceil(way.sum_ms / way.most_ms * (1 - MATTERS));
    return depth < most ? (int)fmax(depth, 1) : most;
}

int pen_budget_chunk(const pen_step_cost *cost, int decodes, double context, int waiting, int most) {
    pen_step_shape bare = decodes_only(decodes, context);
    double without_ms = pen_step_cost_passage(cost, &bare).most_ms, best_ms = INFINITY;
    int best = 0, limit = waiting < most ? waiting : most;
    for (int x = PEN_KV_BLOCK;; x += x < 128 ? PEN_KV_BLOCK : x / 8 / PEN_KV_BLOCK * PEN_KV_BLOCK) {
        if (x > limit) x = limit;
        pen_step_shape with = {decodes + x, decodes, context};
        double longer_ms = fmax(pen_step_cost_passage(cost, &with).most_ms - without_ms, 0);
        double ms = ((double)waiting / x + pen_step_cost_stages(cost) - 1) * longer_ms;
        if (ms <= (1 + MATTERS) * best_ms) best = x;
        best_ms = fmin(best_ms, ms);
        if (x == limit) return best;
    }
}
