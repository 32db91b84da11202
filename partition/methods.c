/*
 * The ways to split, behind one table: the exact one, and those that others use, for comparison.
 *
 * The simple methods know one time per unit; on mixed devices it is the mean over the stages. They see no memory limits
 * and no links. All leave at least one unit for every stage.
 */
#include "partition.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double mean_ms(const pen_partition_problem *problem, int unit) {
    double sum = 0;
    for (int s = 0; s < problem->stage_count; s++)
        sum += problem->time_ms[(size_t)problem->stages[s].device * (size_t)problem->unit_count + (size_t)unit];
    return sum / problem->stage_count;
}

static double mean_total(const pen_partition_problem *problem) {
    double total = 0;
    for (int u = 0; u < problem->unit_count; u++) total += mean_ms(problem, u);
    return total;
}

/* The last unit that stage s may end before, when every later stage gets one. */
static int last_end(const pen_partition_problem *problem, int stage) {
    return problem->unit_count - (problem->stage_count - 1 - stage);
}

/* `counts` of layers, the leading units with the first stage, the trailing ones with the last. */
static void place_layers(const pen_partition_problem *problem, const int *counts, int *first) {
    first[0] = 0;
    for (int s = 0; s < problem->stage_count; s++) first[s + 1] = first[s] + counts[s] + (s ? 0 : problem->leading);
    first[problem->stage_count] = problem->unit_count;
}

/* Megatron's: the same number of layers for every stage, whatever they cost; the first stages get one more where they
 * do not divide (Megatron itself refuses then; DeepSpeed's "uniform" does this). Fewer layers than stages: units. */
static pen_status split_uniform(const pen_partition_problem *problem, int *first) {
    int stages = problem->stage_count, layers = problem->unit_count - problem->leading - problem->trailing;
    int counted = layers >= stages ? layers : problem->unit_count;
    int leading = layers >= stages ? problem->leading : 0;
    first[0] = 0;
    for (int s = 1; s < stages; s++) {
        int extra = counted % stages < s ? counted % stages : s;
        first[s] = leading + counted / stages * s + extra;
    }
    first[stages] = problem->unit_count;
    return PEN_OK;
}

/* DeepSpeed's "parameters": the smallest largest number of weight bytes, exactly. */
static pen_status split_parameters(const pen_partition_problem *problem, int *first) {
    size_t n = (size_t)problem->unit_count, stages = (size_t)problem->stage_count;
    double *bytes = malloc(n * sizeof *bytes);
    pen_partition_stage *equal = calloc(stages, sizeof *equal);
    pen_status status = PEN_NO_MEMORY;
    if (bytes && equal) {
        for (size_t u = 0; u < n; u++) bytes[u] = (double)problem->units[u].weight_bytes;
        pen_partition_problem weights = *problem;
        weights.time_ms = bytes;
        weights.device_count = 1;
        weights.stages = equal;
        status = pen_partition_solve(&weights, first);
    } else {
        pen_fail(PEN_NO_MEMORY, "no memory to split by parameters");
    }
    free(bytes);
    free(equal);
    return status;
}

/* Greedy, as a pipeline can have it: "the next layer to the cheapest stage" scatters layers, so ours walks along the
 * units and closes a stage when one unit more would take it further from the mean of what is left than stopping does.
 */
static pen_status split_greedy(const pen_partition_problem *problem, int *first) {
    double left = mean_total(problem);
    int unit = 0;
    for (int s = 0; s < problem->stage_count; s++) {
        double mean = left / (problem->stage_count - s), sum = 0;
        first[s] = unit;
        do {
            sum += mean_ms(problem, unit++);
        } while (unit < last_end(problem, s) && fabs(sum + mean_ms(problem, unit) - mean) <= fabs(sum - mean));
        left -= sum;
    }
    first[problem->stage_count] = problem->unit_count;
    return PEN_OK;
}

/* Stage s ends where the running total reaches (s + 1)·Σ/S. */
static pen_status split_equal_time(const pen_partition_problem *problem, int *first) {
    double share = mean_total(problem) / problem->stage_count, sum = 0;
    int unit = 0;
    for (int s = 0; s < problem->stage_count; s++) {
        first[s] = unit;
        do {
            sum += mean_ms(problem, unit++);
        } while (unit < last_end(problem, s) && sum < share * (s + 1) * (1 - 1e-12));
    }
    first[problem->stage_count] = problem->unit_count;
    return PEN_OK;
}

/* The caller's list: units per stage, or layers per stage where that is what adds up. */
static pen_status split_custom(const pen_partition_problem *problem, int *first) {
    int stages = problem->stage_count, units = problem->unit_count, sum = 0;
    int layers = units - problem->leading - problem->trailing;
    if (!problem->custom) return pen_fail(PEN_USAGE, "a custom split wants the layers of each stage");
    if (problem->custom_count != stages)
        return pen_fail(PEN_USAGE, "the layers of %d stages are given, but there are %d", problem->custom_count,
                        stages);
    for (int s = 0; s < stages; s++) {
        int count = problem->custom[s];
        if (count < 0 || count > units) return pen_fail(PEN_USAGE, "%d layers for stage %d", count, s);
        sum += count;
    }
    if (sum != units && sum != layers)
        return pen_fail(PEN_USAGE, "the layers given are %d together, expected %d (or %d, all units counted)", sum,
                        layers, units);
    pen_partition_problem counted = *problem;
    if (sum == units) counted.leading = counted.trailing = 0;
    place_layers(&counted, problem->custom, first);
    for (int s = 0; s < stages; s++)
        if (first[s + 1] <= first[s]) return pen_fail(PEN_USAGE, "stage %d is given no unit", s);
    return PEN_OK;
}

const pen_partition_method pen_partition_methods[] = {
    {"dp", "exact: the fastest slowest stage, within the memory limits", pen_partition_solve},
    {"uniform", "as many layers for every stage (Megatron, vLLM)", split_uniform},
    {"parameters", "as many weight bytes for every stage (DeepSpeed)", split_parameters},
    {"greedy", "walk, and close a stage where it is nearest to the mean of the rest", split_greedy},
    {"equal-time", "stage s ends where the running total reaches s·total/S", split_equal_time},
    {"custom", "as listed with --layers", split_custom},
};
const int pen_partition_method_count = sizeof pen_partition_methods / sizeof *pen_partition_methods;

const pen_partition_method *pen_partition_method_find(const char *name) {
    for (int m = 0; m < pen_partition_method_count; m++)
        if (strcmp(pen_partition_methods[m].name, name) == 0) return &pen_partition_methods[m];
    return NULL;
}
