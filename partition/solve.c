/*
 * The exact solver, and the three other questions that the same dynamic programme answers.
 *
 * All of them ask for the split with the smallest largest *cost* of a stage, for a cost that never falls when a stage
 * grows at either end: its time, what it lacks in memory (tied bytes are never more than the unit that brings them), or
 * how few KV tokens it can hold (negated). Because of that monotony bottleneck() needs O(S·n) and no search: see there.
 * What a stage may cover at all is kept as `end`, the furthest end for each start; a second kind of cost (memory while
 * time is minimised) narrows it.
 *
 * The optimum is then made unique in a second pass over splits whose stages all stay within the best maximum: least sum
 * of squared costs. A stage's cost is a convex function of a difference of prefix sums, so its square obeys the
 * quadrangle inequality and the best ends are monotone in the start: divide and conquer, O(n·log n) a stage.
 *
 * Both passes go from the last stage to the first, so that the walk forwards can take the earliest of equal ends.
 * Times are integers ("ticks") here: sums are exact, and equal is equal.
 */
#include "partition.h"
#include "size.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TICKS_TOTAL 0x1p31 /* all times together, so that squares and their sum stay within 63 bits */

static const int64_t impossible = INT64_MAX;

/* The work area of one call. Stage s can start only in s … s + width − 1, as every stage has a unit or more; tables
 * over (stage, start) are [S][width] with the start counted from s. */
typedef struct programme {
    const pen_partition_problem *problem;
    int units, stages, width;
    int64_t *ticks;       /* [device_count][units + 1] prefix sums */
    int64_t *send, *wire; /* [stages] in ticks */
    uint64_t *weights;    /* [units + 1] prefix sums of bytes … */
    uint64_t *kv;         /* … and of bytes per token */
    uint64_t *peak;       /* [levels][units]: largest workspace of the 2^level units from here */
    int *end;             /* [S][width]: the furthest end of a stage, its start where it may have no unit */
    int64_t *best;        /* [S][width]: see bottleneck() */
    int *queue;           /* [width] */
} programme;

/* What stage s costs with the units [i, j), never less for more units. */
typedef int64_t cost_function(const programme *p, int s, int i, int j);

static inline int64_t *at(int64_t *table, const programme *p, int s, int i) {
    return &table[(size_t)s * (size_t)p->width + (size_t)(i - s)];
}
static inline int *end_of(const programme *p, int s, int i) {
    return &p->end[(size_t)s * (size_t)p->width + (size_t)(i - s)];
}

static int64_t time_cost(const programme *p, int s, int i, int j) {
    const int64_t *ticks = p->ticks + (size_t)p->problem->stages[s].device * (size_t)(p->units + 1);
    int64_t busy = ticks[j] - ticks[i] + p->send[s];
    return busy > p->wire[s] ? busy : p->wire[s];
}

static int log2_floor(int value) {
    return 31 - __builtin_clz((unsigned)value);
}

/* Bytes of [i, j) that do not depend on the KV capacity. */
static uint64_t fixed_bytes(const programme *p, int i, int j) {
    int level = log2_floor(j - i);
    const uint64_t *peak = p->peak + (size_t)level * (size_t)p->units;
    uint64_t left = peak[i], right = peak[j - (1 << level)];
    uint64_t bytes = p->weights[j] - p->weights[i] + (left > right ? left : right);
    return i == 0 && j == p->units ? bytes - p->problem->tied_bytes : bytes;
}

/* Bytes over the limit, negative where some are left. */
static int64_t excess_cost(const programme *p, int s, int i, int j) {
    uint64_t limit = p->problem->stages[s].memory_bytes;
    if (limit == 0) return -impossible;
    uint64_t kv, bytes = fixed_bytes(p, i, j);
    /* The front tries capacities that a stage without a limit can have and this one cannot. */
    if (__builtin_mul_overflow(p->kv[j] - p->kv[i], (uint64_t)p->problem->kv_tokens, &kv) ||
        __builtin_add_overflow(bytes, kv, &bytes) || bytes > INT64_MAX)
        return impossible;
    return (int64_t)bytes - (int64_t)limit;
}

/* Tokens of KV that fit, negated. */
static int64_t capacity_cost(const programme *p, int s, int i, int j) {
    uint64_t limit = p->problem->stages[s].memory_bytes, fixed = fixed_bytes(p, i, j), per_token = p->kv[j] - p->kv[i];
    if (limit != 0 && fixed > limit) return impossible;
    return limit == 0 || per_token == 0 ? -impossible : -(int64_t)((limit - fixed) / per_token);
}

/* ---- The work area ----------------------------------------------------------------------------------------------- */

static void programme_free(programme *p) {
    void *parts[] = {p->ticks, p->send, p->wire, p->weights, p->kv, p->peak, p->end, p->best, p->queue};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) free(parts[i]);
}

static void count_ticks(programme *p) {
    const pen_partition_problem *problem = p->problem;
    double total = 0;
    for (int u = 0; u < p->units; u++) {
        double slowest = 0;
        for (int d = 0; d < problem->device_count; d++) slowest = fmax(slowest, problem->time_ms[d * p->units + u]);
        total += slowest;
    }
    for (int s = 0; s < p->stages; s++) total += problem->stages[s].send_ms + problem->stages[s].wire_ms;
    /* A power of two, so that times in whole milliseconds (or quarters of one) stay exact. */
    double scale = total > 0 ? exp2(floor(log2(TICKS_TOTAL / total))) : 0;
    for (int d = 0; d < problem->device_count; d++) {
        int64_t *ticks = p->ticks + (size_t)d * (size_t)(p->units + 1);
        for (int u = 0; u < p->units; u++) ticks[u + 1] = ticks[u] + llrint(problem->time_ms[d * p->units + u] * scale);
    }
    for (int s = 0; s < p->stages; s++) {
        p->send[s] = llrint(problem->stages[s].send_ms * scale);
        p->wire[s] = llrint(problem->stages[s].wire_ms * scale);
    }
}

static void add_bytes(programme *p) {
    size_t n = (size_t)p->units;
    for (size_t u = 0; u < n; u++) {
        const pen_partition_unit *unit = &p->problem->units[u];
        p->weights[u + 1] = p->weights[u] + unit->weight_bytes;
        p->kv[u + 1] = p->kv[u] + unit->kv_bytes_per_token;
        p->peak[u] = unit->workspace_bytes;
    }
    for (size_t half = 1, level = 1; 2 * half <= n; half *= 2, level++) {
        const uint64_t *below = p->peak + (level - 1) * n;
        for (size_t u = 0; u + 2 * half <= n; u++)
            p->peak[level * n + u] = below[u] > below[u + half] ? below[u] : below[u + half];
    }
}

/* Back to no limits on what a stage covers, but that the later stages need a unit each. */
static void widen(programme *p) {
    for (int s = 0; s < p->stages; s++)
        for (int i = s; i < s + p->width; i++) *end_of(p, s, i) = s + p->width;
}

static pen_status programme_make(programme *p, const pen_partition_problem *problem) {
    *p = (programme){.problem = problem,
                     .units = problem->unit_count,
                     .stages = problem->stage_count,
                     .width = problem->unit_count - problem->stage_count + 1};
    size_t n = (size_t)p->units, stages = (size_t)p->stages, cells = stages * (size_t)p->width;
    p->ticks = calloc((size_t)problem->device_count * (n + 1), sizeof *p->ticks);
    p->send = calloc(stages, sizeof *p->send);
    p->wire = calloc(stages, sizeof *p->wire);
    p->weights = calloc(n + 1, sizeof *p->weights);
    p->kv = calloc(n + 1, sizeof *p->kv);
    p->peak = calloc((size_t)(log2_floor(p->units) + 1) * n, sizeof *p->peak);
    p->end = malloc(cells * sizeof *p->end);
    p->best = malloc(cells * sizeof *p->best);
    p->queue = malloc((size_t)p->width * sizeof *p->queue);
    if (!p->ticks || !p->send || !p->wire || !p->weights || !p->kv || !p->peak || !p->end || !p->best || !p->queue) {
        programme_free(p);
        return pen_fail(PEN_NO_MEMORY, "no memory to split %d units into %d stages", p->units, p->stages);
    }
    count_ticks(p);
    add_bytes(p);
    widen(p);
    return PEN_OK;
}

/* ---- The programme ----------------------------------------------------------------------------------------------- */

/* Takes away the ends with which a stage would cost more than `bound`. */
static inline __attribute__((always_inline)) void narrow(programme *p, cost_function *cost, int64_t bound) {
    for (int s = 0; s < p->stages; s++) {
        int furthest = s + p->width;
        for (int i = s + p->width - 1; i >= s; i--) {
            int *end = end_of(p, s, i);
            if (*end < furthest) furthest = *end;
            while (furthest > i && cost(p, s, i, furthest) > bound) furthest--;
            *end = furthest;
        }
    }
}

/*
 * best[s][i] = the smallest possible largest cost when stages s … S−1 share the units [i, n)
 *            = min over ends j of max( cost(s, i, j) , best[s + 1][j] ).
 *
 * For a fixed s, i runs downwards. Of two ends the nearer costs less, so a further end is worth keeping only if its
 * `best` is smaller: the queue holds ends whose `best` falls from tail (nearest) to head (furthest). And costs only
 * grow as i falls: once the head's cost has reached the next end's `best`, the head can never win again. So every end
 * enters and leaves the queue once, and the head is always the answer. Returns best[0][0].
 */
static inline __attribute__((always_inline)) int64_t bottleneck(programme *p, cost_function *cost) {
    int last = p->stages - 1;
    for (int i = last; i < p->units; i++)
        *at(p->best, p, last, i) = *end_of(p, last, i) == p->units ? cost(p, last, i, p->units) : impossible;
    for (int s = last - 1; s >= 0; s--) {
        int head = 0, tail = 0;
        for (int i = s + p->width - 1; i >= s; i--) {
            int64_t nearest = *at(p->best, p, s + 1, i + 1);
            if (nearest != impossible) {
                while (tail > head && *at(p->best, p, s + 1, p->queue[tail - 1]) >= nearest) tail--;
                p->queue[tail++] = i + 1;
            }
            int end = *end_of(p, s, i);
            while (head < tail && p->queue[head] > end) head++;
            int64_t result = impossible;
            while (head < tail) {
                int64_t own = cost(p, s, i, p->queue[head]), rest = *at(p->best, p, s + 1, p->queue[head]);
                if (head + 1 < tail && own >= *at(p->best, p, s + 1, p->queue[head + 1])) {
                    head++;
                    continue;
                }
                result = own > rest ? own : rest;
                break;
            }
            *at(p->best, p, s, i) = result;
        }
    }
    return *at(p->best, p, 0, 0);
}

/* Each cost has its own copy of the two loops, with the cost inlined. */
static void keep_memory(programme *p) {
    narrow(p, excess_cost, 0);
}
static void keep_time(programme *p, int64_t ticks) {
    narrow(p, time_cost, ticks);
}
static int64_t least_time(programme *p) {
    return bottleneck(p, time_cost);
}
static int64_t least_excess(programme *p) {
    return bottleneck(p, excess_cost);
}
static int64_t most_tokens(programme *p) {
    return -bottleneck(p, capacity_cost);
}

/* ---- Ties -------------------------------------------------------------------------------------------------------- */

typedef struct tie_break {
    programme *p;
    int64_t *squares, *next; /* [width]: least sum of squares from stage s on, and from s + 1 on; −1: impossible */
    int *choice;             /* [S][width]: the nearest best end */
    int *starts;             /* [width]: possible starts of the stage at hand */
} tie_break;

/* Stage s for the possible starts number low … high, whose best ends lie in [nearest, furthest]. */
static void divide(const tie_break *t, int s, int low, int high, int nearest, int furthest) {
    if (low > high) return;
    const programme *p = t->p;
    int middle = low + (high - low) / 2, i = t->starts[middle], best_end = 0;
    int64_t best = impossible;
    int end = *end_of(p, s, i) < furthest ? *end_of(p, s, i) : furthest;
    for (int j = nearest > i ? nearest : i + 1; j <= end; j++) {
        int64_t rest = t->next[j - (s + 1)];
        if (rest < 0) continue;
        int64_t own = time_cost(p, s, i, j), sum = own * own + rest;
        if (sum < best) best = sum, best_end = j;
    }
    t->squares[i - s] = best;
    t->choice[(size_t)s * (size_t)p->width + (size_t)(i - s)] = best_end;
    divide(t, s, low, middle - 1, nearest, best_end);
    divide(t, s, middle + 1, high, best_end, furthest);
}

/* The split, once `best` is filled and no end is left that costs more than `most`. */
static void break_ties(tie_break *t, int64_t most, int *first) {
    programme *p = t->p;
    int last = p->stages - 1;
    for (int s = last; s >= 0; s--) {
        int count = 0;
        for (int i = s; i < s + p->width; i++) {
            bool possible = *at(p->best, p, s, i) <= most;
            if (possible && s < last) t->starts[count++] = i;
            int64_t own = possible && s == last ? time_cost(p, s, i, p->units) : 0;
            t->squares[i - s] = possible ? own * own : -1;
        }
        divide(t, s, 0, count - 1, s + 1, s + p->width);
        int64_t *done = t->squares;
        t->squares = t->next;
        t->next = done;
    }
    first[0] = 0;
    for (int s = 0; s < last; s++) first[s + 1] = t->choice[(size_t)s * (size_t)p->width + (size_t)(first[s] - s)];
    first[p->stages] = p->units;
}

static pen_status earliest_best(programme *p, int64_t most, int *first) {
    size_t width = (size_t)p->width;
    tie_break t = {.p = p,
                   .squares = malloc(width * sizeof(int64_t)),
                   .next = malloc(width * sizeof(int64_t)),
                   .choice = malloc((size_t)p->stages * width * sizeof(int)),
                   .starts = malloc(width * sizeof(int))};
    pen_status status = PEN_OK;
    if (t.squares && t.next && t.choice && t.starts)
        break_ties(&t, most, first);
    else
        status = pen_fail(PEN_NO_MEMORY, "no memory to split %d units into %d stages", p->units, p->stages);
    free(t.squares);
    free(t.next);
    free(t.choice);
    free(t.starts);
    return status;
}

/* ---- The questions ----------------------------------------------------------------------------------------------- */

/* The optimum within the memory limits into first[]; *most is its largest cost, `impossible` where there is none. */
static pen_status fastest(programme *p, int64_t *most, int *first) {
    widen(p);
    keep_memory(p);
    *most = least_time(p);
    if (*most == impossible) return PEN_OK;
    keep_time(p, *most);
    return earliest_best(p, *most, first);
}

/* The smallest number of stages, at least S, that reaches the last unit; 0: none. `reached` and `next` are [units + 1]:
 * whether s stages can end before a unit. */
static int count_stages(const programme *p, int *reached, int *next) {
    int n = p->units;
    memset(reached, 0, (size_t)(n + 1) * sizeof *reached);
    reached[0] = 1;
    for (int s = 0; s < n; s++) {
        int limit = s % p->stages;
        memset(next, 0, (size_t)(n + 1) * sizeof *next);
        for (int i = n - 1, furthest = n; i >= s; i--) {
            while (furthest > i && excess_cost(p, limit, i, furthest) > 0) furthest--;
            if (!reached[i] || furthest == i) continue;
            next[i + 1]++; /* +1 where a run of possible ends begins, −1 behind it */
            if (furthest < n) next[furthest + 1]--;
        }
        for (int j = 1; j <= n; j++) next[j] += next[j - 1];
        if (next[n] > 0 && s + 1 >= p->stages) return s + 1;
        int *swap = reached;
        reached = next;
        next = swap;
    }
    return 0;
}

pen_status pen_partition_stages_needed(const pen_partition_problem *problem, int *stages) {
    programme p;
    PEN_TRY(programme_make(&p, problem));
    int *ends = malloc(2 * (size_t)(p.units + 1) * sizeof *ends);
    if (ends) *stages = count_stages(&p, ends, ends + p.units + 1);
    free(ends);
    programme_free(&p);
    return ends ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory to count stages");
}

pen_status pen_partition_shortfall(const pen_partition_problem *problem, uint64_t *bytes) {
    programme p;
    PEN_TRY(programme_make(&p, problem));
    int64_t lacking = least_excess(&p);
    *bytes = lacking > 0 ? (uint64_t)lacking : 0;
    programme_free(&p);
    return PEN_OK;
}

/* "no split fits", by how much, and what would. */
static pen_status fail_for_memory(const pen_partition_problem *problem) {
    uint64_t lacking, limit = problem->stages[0].memory_bytes;
    int stages = problem->stage_count, enough;
    PEN_TRY(pen_partition_shortfall(problem, &lacking));
    PEN_TRY(pen_partition_stages_needed(problem, &enough));
    bool equal = true;
    for (int s = 1; s < stages; s++) equal = equal && problem->stages[s].memory_bytes == limit;
    char a[PEN_SIZE_TEXT], b[PEN_SIZE_TEXT], need[160], instead[48] = "";
    if (equal)
        snprintf(need, sizeof need, "%s (%" PRIu64 " bytes) per stage would do, the limit is %s",
                 pen_size_text(limit + lacking, a), limit + lacking, pen_size_text(limit, b));
    else
        snprintf(need, sizeof need, "%s (%" PRIu64 " bytes) more per stage would do", pen_size_text(lacking, a),
                 lacking);
    if (enough > 0) snprintf(instead, sizeof instead, ", or %d stages", enough);
    return pen_fail(PEN_NO_MEMORY, "no split into %d stage%s fits with %" PRId64 " tokens of KV, short by %s: %s%s",
                    stages, stages == 1 ? "" : "s", problem->kv_tokens,
                    pen_size_text(lacking, (char[PEN_SIZE_TEXT]){0}), need, instead);
}

pen_status pen_partition_solve(const pen_partition_problem *problem, int *first) {
    programme p;
    int64_t most = 0;
    PEN_TRY(programme_make(&p, problem));
    pen_status status = fastest(&p, &most, first);
    programme_free(&p);
    if (status == PEN_OK && most == impossible) return fail_for_memory(problem);
    return status;
}

static pen_status walk_front(programme *p, pen_partition_problem *problem, int *first, pen_partition_point *points,
                             int size, int *count) {
    int64_t largest = most_tokens(p);
    if (largest == impossible) return PEN_OK; /* nothing is limited */
    /* From one point to the next: the fastest split for some more tokens, then the most tokens at that speed. `some` is
     * one where the points suffice, and what still leads to the largest capacity where they do not. */
    for (int64_t tokens = 0; tokens <= largest && *count < size;) {
        int64_t ticks;
        problem->kv_tokens = tokens;
        PEN_TRY(fastest(p, &ticks, first));
        if (ticks == impossible) break;
        double max_ms = pen_partition_evaluate(problem, first).max_ms;
        widen(p);
        keep_time(p, ticks);
        int64_t most = most_tokens(p);
        points[(*count)++] = (pen_partition_point){.kv_tokens = most, .max_ms = max_ms};
        int64_t step = *count < size ? (largest - most) / (size - *count) : 0;
        tokens = most + (step > 1 ? step : 1);
    }
    return PEN_OK;
}

pen_status pen_partition_kv_front(const pen_partition_problem *problem, pen_partition_point *points, int size,
                                  int *count) {
    *count = 0;
    pen_partition_problem trial = *problem;
    programme p;
    PEN_TRY(programme_make(&p, &trial));
    int *first = malloc(((size_t)problem->stage_count + 1) * sizeof *first);
    pen_status status = first ? walk_front(&p, &trial, first, points, size, count)
                              : pen_fail(PEN_NO_MEMORY, "no memory to weigh KV capacity against speed");
    free(first);
    programme_free(&p);
    return status;
}
