/* Checks, scores, the lower bound, and the correction by measured times; see partition.h. */
#include "partition.h"
#include "size.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BYTES_MAX 0x1p62 /* of a whole problem, so that sums fit a signed 64-bit integer */
#define MS_MAX    1e15

static double unit_ms(const pen_partition_problem *problem, int stage, int unit) {
    return problem->time_ms[(size_t)problem->stages[stage].device * (size_t)problem->unit_count + (size_t)unit];
}

static uint64_t range_bytes(const pen_partition_problem *problem, int begin, int end) {
    uint64_t bytes = 0, workspace = 0;
    for (int u = begin; u < end; u++) {
        const pen_partition_unit *unit = &problem->units[u];
        bytes += unit->weight_bytes + unit->kv_bytes_per_token * (uint64_t)problem->kv_tokens;
        if (unit->workspace_bytes > workspace) workspace = unit->workspace_bytes;
    }
    bytes += workspace;
    return begin == 0 && end == problem->unit_count ? bytes - problem->tied_bytes : bytes;
}

static double range_ms(const pen_partition_problem *problem, int stage, int begin, int end) {
    double busy = problem->stages[stage].send_ms;
    for (int u = begin; u < end; u++) busy += unit_ms(problem, stage, u);
    return fmax(busy, problem->stages[stage].wire_ms);
}

/* ---- Checks ------------------------------------------------------------------------------------------------------ */

static bool is_time(double ms) {
    return ms >= 0 && ms <= MS_MAX; /* and no NaN */
}

static pen_status check_bytes(const pen_partition_problem *problem) {
    double total = 0;
    for (int u = 0; u < problem->unit_count; u++) {
        const pen_partition_unit *unit = &problem->units[u];
        total += (double)unit->weight_bytes + (double)unit->workspace_bytes +
                 (double)unit->kv_bytes_per_token * (double)problem->kv_tokens;
    }
    if (!(total < BYTES_MAX)) return pen_fail(PEN_BAD_INPUT, "the units need %g bytes, which is beyond reason", total);
    uint64_t head = problem->units[0].weight_bytes, tail = problem->units[problem->unit_count - 1].weight_bytes;
    if (problem->tied_bytes > (head < tail ? head : tail))
        return pen_fail(PEN_BAD_INPUT, "%" PRIu64 " tied bytes are more than the first or the last unit has",
                        problem->tied_bytes);
    for (int s = 0; s < problem->stage_count; s++)
        if ((double)problem->stages[s].memory_bytes > BYTES_MAX)
            return pen_fail(PEN_BAD_INPUT, "the memory limit of stage %d, %" PRIu64 " bytes, is beyond reason", s,
                            problem->stages[s].memory_bytes);
    return PEN_OK;
}

/* Every unit has a stage that could hold it alone. */
static pen_status check_units_fit(const pen_partition_problem *problem) {
    uint64_t largest = 0;
    for (int s = 0; s < problem->stage_count; s++) {
        uint64_t limit = problem->stages[s].memory_bytes;
        if (limit == 0) return PEN_OK;
        if (limit > largest) largest = limit;
    }
    for (int u = 0; u < problem->unit_count; u++) {
        uint64_t bytes = range_bytes(problem, u, u + 1);
        char need[PEN_SIZE_TEXT], have[PEN_SIZE_TEXT];
        if (bytes > largest)
            return pen_fail(PEN_NO_MEMORY,
                            "%s alone needs %s (%" PRIu64 " bytes, %" PRId64
                            " tokens of KV included), more than any stage's limit of %s (%" PRIu64 " bytes)",
                            problem->units[u].name, pen_size_text(bytes, need), bytes, problem->kv_tokens,
                            pen_size_text(largest, have), largest);
    }
    return PEN_OK;
}

pen_status pen_partition_check(const pen_partition_problem *problem) {
    int n = problem->unit_count, stages = problem->stage_count;
    if (n < 1 || n > PEN_PARTITION_UNITS_MAX)
        return pen_fail(PEN_BAD_INPUT, "%d units, expected 1 … %d", n, PEN_PARTITION_UNITS_MAX);
    if (stages < 1) return pen_fail(PEN_USAGE, "%d stages, expected at least 1", stages);
    if (stages > n) return pen_fail(PEN_USAGE, "%d stages are more than the %d units there are", stages, n);
    if (problem->kv_tokens < 0) return pen_fail(PEN_USAGE, "%" PRId64 " tokens of KV", problem->kv_tokens);
    if (problem->leading < 0 || problem->trailing < 0 || problem->leading + problem->trailing > n)
        return pen_fail(PEN_BAD_INPUT, "%d leading and %d trailing of %d units", problem->leading, problem->trailing,
                        n);
    for (int s = 0; s < stages; s++) {
        const pen_partition_stage *stage = &problem->stages[s];
        if (stage->device < 0 || stage->device >= problem->device_count)
            return pen_fail(PEN_BAD_INPUT, "stage %d is on device %d of %d", s, stage->device, problem->device_count);
        if (!is_time(stage->send_ms) || !is_time(stage->wire_ms))
            return pen_fail(PEN_BAD_INPUT, "the link behind stage %d takes %g + %g ms", s, stage->send_ms,
                            stage->wire_ms);
    }
    for (int d = 0; d < problem->device_count; d++)
        for (int u = 0; u < n; u++)
            if (!is_time(problem->time_ms[d * n + u]))
                return pen_fail(PEN_BAD_INPUT, "%s takes %g ms on device %d", problem->units[u].name,
                                problem->time_ms[d * n + u], d);
    PEN_TRY(check_bytes(problem));
    return check_units_fit(problem);
}

/* ---- What a split is worth --------------------------------------------------------------------------------------- */

double pen_partition_stage_ms(const pen_partition_problem *problem, const int *first, int stage) {
    return range_ms(problem, stage, first[stage], first[stage + 1]);
}

uint64_t pen_partition_stage_bytes(const pen_partition_problem *problem, const int *first, int stage) {
    return range_bytes(problem, first[stage], first[stage + 1]);
}

pen_partition_score pen_partition_rate(const double *stage_ms, int stage_count) {
    double max = 0, min = INFINITY, sum = 0;
    for (int s = 0; s < stage_count; s++) {
        max = fmax(max, stage_ms[s]);
        min = fmin(min, stage_ms[s]);
        sum += stage_ms[s];
    }
    double mean = sum / stage_count;
    return (pen_partition_score){.max_ms = max,
                                 .min_ms = min,
                                 .mean_ms = mean,
                                 .imbalance = min > 0   ? max / min
                                              : max > 0 ? INFINITY
                                                        : 1,
                                 .efficiency = max > 0 ? mean / max : 1,
                                 .fits = true};
}

pen_partition_score pen_partition_evaluate(const pen_partition_problem *problem, const int *first) {
    double stage_ms[PEN_PARTITION_UNITS_MAX];
    bool fits = true;
    for (int s = 0; s < problem->stage_count; s++) {
        uint64_t limit = problem->stages[s].memory_bytes;
        stage_ms[s] = pen_partition_stage_ms(problem, first, s);
        fits = fits && (limit == 0 || pen_partition_stage_bytes(problem, first, s) <= limit);
    }
    pen_partition_score score = pen_partition_rate(stage_ms, problem->stage_count);
    score.fits = fits;
    return score;
}

/* A bound B on all stages means that stage s computes for at most B − send(s). Count work in the time that it takes on
 * a reference device r, and let v(s) be the most work per time that any unit can have on stage s. Then
 * Σ_u time[r][u] ≤ Σ_s v(s)·(B − send(s)), whatever goes where, which bounds B from below. On one kind of device that
 * is Σ/S, on devices that differ by a factor Σ/(sum of speeds); for others every device gives a bound as reference. */
static double shared_work_bound(const pen_partition_problem *problem, int reference) {
    int n = problem->unit_count;
    const double *work = problem->time_ms + (size_t)reference * (size_t)n;
    double total = 0, speed = 0, sending = 0;
    for (int u = 0; u < n; u++) total += work[u];
    for (int s = 0; s < problem->stage_count; s++) {
        double most = 0;
        for (int u = 0; u < n; u++)
            if (work[u] > 0) most = fmax(most, work[u] / unit_ms(problem, s, u));
        speed += most;
        sending += most * problem->stages[s].send_ms;
    }
    return total > 0 && speed < INFINITY ? (total + sending) / speed : 0;
}

double pen_partition_lower_bound(const pen_partition_problem *problem) {
    double bound = 0;
    for (int s = 0; s < problem->stage_count; s++)
        bound = fmax(bound, fmax(problem->stages[s].wire_ms, problem->stages[s].send_ms));
    for (int u = 0; u < problem->unit_count; u++) {
        double best = INFINITY;
        for (int s = 0; s < problem->stage_count; s++)
            best = fmin(best, unit_ms(problem, s, u) + problem->stages[s].send_ms);
        bound = fmax(bound, best);
    }
    for (int d = 0; d < problem->device_count; d++) bound = fmax(bound, shared_work_bound(problem, d));
    return bound;
}

/* ---- After the run ----------------------------------------------------------------------------------------------- */

/* A stage's time as measurement corrects it: `factor`[u] scales the planned time of unit u. */
static double corrected_ms(const pen_partition_problem *problem, const double *factor, const int *first, int stage) {
    double busy = problem->stages[stage].send_ms;
    for (int u = first[stage]; u < first[stage + 1]; u++) busy += unit_ms(problem, stage, u) * factor[u];
    return fmax(busy, problem->stages[stage].wire_ms);
}

/* One step: from the slowest towards the fastest. Returns whether it helped; else `first` is as it was. */
static bool move_one(const pen_partition_problem *problem, const double *factor, double threshold, int *first,
                     double *stage_ms) {
    int stages = problem->stage_count, slowest = 0, fastest = 0;
    for (int s = 0; s < stages; s++) {
        stage_ms[s] = corrected_ms(problem, factor, first, s);
        if (stage_ms[s] > stage_ms[slowest]) slowest = s;
        if (stage_ms[s] < stage_ms[fastest]) fastest = s;
    }
    if (stage_ms[slowest] <= threshold * stage_ms[fastest] || first[slowest + 1] - first[slowest] < 2) return false;
    /* All boundaries between the two shift by one. */
    int shift = slowest < fastest ? -1 : 1;
    int low = slowest < fastest ? slowest : fastest, high = slowest < fastest ? fastest : slowest;
    for (int s = low + 1; s <= high; s++) first[s] += shift;
    bool better = true;
    for (int s = low; s <= high; s++) {
        uint64_t limit = problem->stages[s].memory_bytes;
        better = better && corrected_ms(problem, factor, first, s) < stage_ms[slowest] &&
                 (limit == 0 || pen_partition_stage_bytes(problem, first, s) <= limit);
    }
    if (!better)
        for (int s = low + 1; s <= high; s++) first[s] -= shift;
    return better;
}

pen_status pen_partition_adjust(const pen_partition_problem *problem, const double *measured_ms, double threshold,
                                int *first, int *moves) {
    double factor[PEN_PARTITION_UNITS_MAX], stage_ms[PEN_PARTITION_UNITS_MAX];
    *moves = 0;
    for (int s = 0; s < problem->stage_count; s++) {
        if (!is_time(measured_ms[s])) return pen_fail(PEN_BAD_INPUT, "stage %d took %g ms", s, measured_ms[s]);
        double planned = pen_partition_stage_ms(problem, first, s);
        for (int u = first[s]; u < first[s + 1]; u++) factor[u] = planned > 0 ? measured_ms[s] / planned : 1;
    }
    /* Each step lowers the list of stage times, sorted from the slowest, so no split comes twice. */
    while (move_one(problem, factor, threshold, first, stage_ms)) ++*moves;
    return PEN_OK;
}
