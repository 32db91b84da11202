/* The partition: the exact solver against brute force, the other methods, bounds, memory, adjusting. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "partition.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { UNITS = 12, STAGES = 6, DEVICES = 3 };

/* A problem with its arrays. */
typedef struct sample {
    pen_partition_problem problem;
    pen_partition_unit units[UNITS];
    pen_partition_stage stages[STAGES];
    double time_ms[DEVICES * UNITS];
    int custom[STAGES];
} sample;

static uint64_t random_state;

static int below(int limit) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (int)((random_state >> 33) % (uint64_t)limit);
}

/* ---- Brute force ---------------------------------------------------------------------------------------------------
 */

typedef struct search {
    const pen_partition_problem *problem;
    bool use_limits;
    bool found;
    double max, squares;   /* of the best so far */
    int first[STAGES + 1]; /* at hand */
    int best[STAGES + 1];
    int64_t least_excess; /* smallest largest excess over the limits of any split */
    int64_t most_tokens;  /* largest KV capacity of any split as fast as `speed` */
    double speed;
} search;

/* Capacity in tokens of one stage, worked out from its bytes without KV; −1 where not even those fit. */
static int64_t capacity(const pen_partition_problem *problem, const int *first, int s) {
    pen_partition_problem bare = *problem;
    bare.kv_tokens = 0;
    uint64_t fixed = pen_partition_stage_bytes(&bare, first, s), limit = problem->stages[s].memory_bytes, per_token = 0;
    for (int u = first[s]; u < first[s + 1]; u++) per_token += problem->units[u].kv_bytes_per_token;
    if (limit == 0) return INT64_MAX;
    if (fixed > limit) return -1;
    return per_token == 0 ? INT64_MAX : (int64_t)((limit - fixed) / per_token);
}

static void weigh(search *q) {
    const pen_partition_problem *problem = q->problem;
    double max = 0, squares = 0;
    int64_t excess = INT64_MIN, tokens = INT64_MAX;
    for (int s = 0; s < problem->stage_count; s++) {
        double ms = pen_partition_stage_ms(problem, q->first, s);
        uint64_t limit = problem->stages[s].memory_bytes;
        int64_t over = limit ? (int64_t)pen_partition_stage_bytes(problem, q->first, s) - (int64_t)limit : INT64_MIN;
        int64_t held = capacity(problem, q->first, s);
        if (ms > max) max = ms;
        if (over > excess) excess = over;
        if (held < tokens) tokens = held;
        squares += ms * ms;
    }
    if (excess < q->least_excess) q->least_excess = excess;
    if (max <= q->speed && tokens > q->most_tokens) q->most_tokens = tokens;
    if (q->use_limits && excess > 0) return;
    /* Splits are tried from the earliest boundaries on, so only a better one replaces the best. */
    if (q->found && (max > q->max || (max == q->max && squares >= q->squares))) return;
    q->found = true;
    q->max = max;
    q->squares = squares;
    memcpy(q->best, q->first, sizeof q->best);
}

static void try_all(search *q, int stage) {
    int n = q->problem->unit_count, stages = q->problem->stage_count;
    if (stage == stages) {
        weigh(q);
        return;
    }
    for (int end = stage == stages - 1 ? n : q->first[stage] + 1; end <= n - (stages - 1 - stage); end++) {
        q->first[stage + 1] = end;
        try_all(q, stage + 1);
    }
}

static search brute_force(const pen_partition_problem *problem, double speed) {
    search q = {.problem = problem, .use_limits = true, .least_excess = INT64_MAX, .most_tokens = -1, .speed = speed};
    try_all(&q, 0);
    return q;
}

/* ---- Samples -------------------------------------------------------------------------------------------------------
 */

/* Whole milliseconds, so that equal sums are equal; few values, so that ties are common. */
static void make_sample(sample *x) {
    memset(x, 0, sizeof *x);
    int n = 1 + below(UNITS), stages = 1 + below(n < STAGES ? n : STAGES), devices = 1 + below(DEVICES);
    int values = below(2) ? 3 : 50, links = below(2), memory = below(3);
    x->problem = (pen_partition_problem){.unit_count = n,
                                         .stage_count = stages,
                                         .device_count = devices,
                                         .units = x->units,
                                         .stages = x->stages,
                                         .time_ms = x->time_ms,
                                         .kv_tokens = below(8)};
    bool related = below(2); /* devices that differ by a factor, or in each unit */
    for (int u = 0; u < n; u++) {
        x->units[u] = (pen_partition_unit){.name = "unit",
                                           .weight_bytes = (uint64_t)below(20),
                                           .kv_bytes_per_token = (uint64_t)below(4),
                                           .workspace_bytes = (uint64_t)below(10)};
        int time = below(values);
        for (int d = 0; d < devices; d++) x->time_ms[d * n + u] = related ? time * (d + 1) : below(values);
    }
    uint64_t head = x->units[0].weight_bytes, tail = x->units[n - 1].weight_bytes;
    if (below(2)) x->problem.tied_bytes = head < tail ? head : tail;
    for (int s = 0; s < stages; s++) {
        x->stages[s].device = below(devices);
        if (links && s + 1 < stages) {
            x->stages[s].send_ms = below(4);
            x->stages[s].wire_ms = below(values);
        }
        /* None, the same for all, or each its own (now and then none). */
        uint64_t limit = 20 + (uint64_t)below(60 * n / stages);
        if (memory == 1) x->stages[s].memory_bytes = s ? x->stages[0].memory_bytes : limit;
        if (memory == 2 && below(4)) x->stages[s].memory_bytes = limit;
    }
}

static void test_solver_equals_brute_force(void **state) {
    (void)state;
    random_state = 1;
    int solved = 0, infeasible = 0, refused = 0;
    for (int round = 0; round < 20000; round++) {
        sample x;
        make_sample(&x);
        int first[STAGES + 1];
        search q = brute_force(&x.problem, 0);
        uint64_t lacking;
        if (pen_partition_check(&x.problem) != PEN_OK) {
            assert_false(q.found); /* a unit that fits nowhere */
            refused++;
            continue;
        }
        pen_status status = pen_partition_solve(&x.problem, first);
        assert_int_equal(pen_partition_shortfall(&x.problem, &lacking), PEN_OK);
        if (!q.found) {
            assert_int_equal(status, PEN_NO_MEMORY);
            assert_int_equal(lacking, q.least_excess);
            infeasible++;
            continue;
        }
        assert_int_equal(status, PEN_OK);
        assert_int_equal(lacking, 0);
        assert_memory_equal(first, q.best, ((size_t)x.problem.stage_count + 1) * sizeof *first);
        pen_partition_score score = pen_partition_evaluate(&x.problem, first);
        assert_true(score.fits);
        assert_true(score.max_ms == q.max);
        assert_true(pen_partition_lower_bound(&x.problem) <= q.max * (1 + 1e-12));
        solved++;
    }
    assert_in_range(solved, 8000, 20000); /* the samples are what they are meant to be */
    assert_in_range(infeasible, 500, 20000);
    assert_in_range(refused, 100, 20000);
}

/* Times that are no round numbers: the largest stage time is the optimum's to within the grid. */
static void test_solver_is_exact_for_any_times(void **state) {
    (void)state;
    random_state = 2;
    for (int round = 0; round < 3000; round++) {
        sample x;
        make_sample(&x);
        for (int i = 0; i < x.problem.device_count * x.problem.unit_count; i++)
            x.time_ms[i] = 1e-3 * below(1 << 20) * (1 + below(7) / 13.0);
        if (pen_partition_check(&x.problem) != PEN_OK) continue;
        search q = brute_force(&x.problem, 0);
        int first[STAGES + 1];
        if (!q.found) continue;
        assert_int_equal(pen_partition_solve(&x.problem, first), PEN_OK);
        double total = 0;
        for (int i = 0; i < x.problem.device_count * x.problem.unit_count; i++) total += x.time_ms[i];
        assert_true(fabs(pen_partition_evaluate(&x.problem, first).max_ms - q.max) <= 1e-8 * total);
    }
}

static void test_raising_limits_by_the_shortfall_is_just_enough(void **state) {
    (void)state;
    random_state = 3;
    int seen = 0;
    for (int round = 0; round < 5000; round++) {
        sample x;
        make_sample(&x);
        uint64_t lacking;
        int first[STAGES + 1];
        if (pen_partition_check(&x.problem) != PEN_OK) continue;
        assert_int_equal(pen_partition_shortfall(&x.problem, &lacking), PEN_OK);
        if (lacking == 0) continue;
        for (int s = 0; s < x.problem.stage_count; s++)
            if (x.stages[s].memory_bytes) x.stages[s].memory_bytes += lacking;
        assert_int_equal(pen_partition_solve(&x.problem, first), PEN_OK);
        for (int s = 0; s < x.problem.stage_count; s++)
            if (x.stages[s].memory_bytes) x.stages[s].memory_bytes--;
        assert_int_equal(pen_partition_solve(&x.problem, first), PEN_NO_MEMORY);
        seen++;
    }
    assert_in_range(seen, 100, 5000);
}

/* Stages like the given ones in turn: a brute force over all counts finds the same smallest one. */
static void test_stages_needed_is_the_smallest_number_that_fits(void **state) {
    (void)state;
    random_state = 4;
    int more = 0, none = 0;
    for (int round = 0; round < 4000; round++) {
        sample x;
        make_sample(&x);
        if (x.problem.unit_count > STAGES + 2) continue;
        int asked = x.problem.stage_count, needed, expected = 0;
        assert_int_equal(pen_partition_stages_needed(&x.problem, &needed), PEN_OK);
        int most = x.problem.unit_count < STAGES ? x.problem.unit_count : STAGES;
        for (int stages = asked; stages <= most && !expected; stages++) {
            for (int s = asked; s < stages; s++) x.stages[s] = x.stages[s % asked];
            x.problem.stage_count = stages;
            if (brute_force(&x.problem, 0).found) expected = stages;
        }
        if (needed > STAGES) continue; /* beyond what is tried here */
        assert_int_equal(needed, expected);
        more += needed > asked;
        none += needed == 0;
    }
    assert_in_range(more, 50, 4000);
    assert_in_range(none, 50, 4000);
}

static void test_kv_front_is_optimal_in_both_directions(void **state) {
    (void)state;
    random_state = 5;
    int several = 0;
    for (int round = 0; round < 3000; round++) {
        sample x;
        make_sample(&x);
        pen_partition_point points[64];
        int count, first[STAGES + 1];
        x.problem.kv_tokens = 0;
        assert_int_equal(pen_partition_kv_front(&x.problem, points, 64, &count), PEN_OK);
        several += count > 1;
        for (int p = 0; p < count; p++) {
            x.problem.kv_tokens = points[p].kv_tokens;
            if (points[p].kv_tokens < 1 << 20) {
                assert_int_equal(pen_partition_solve(&x.problem, first), PEN_OK);
                assert_true(pen_partition_evaluate(&x.problem, first).max_ms == points[p].max_ms);
            }
            assert_int_equal(brute_force(&x.problem, points[p].max_ms).most_tokens, points[p].kv_tokens);
            if (p == 0) continue;
            assert_true(points[p].kv_tokens > points[p - 1].kv_tokens);
            assert_true(points[p].max_ms > points[p - 1].max_ms);
        }
    }
    assert_in_range(several, 100, 3000);
}

/* Found by fuzz_plan: bytes that only a stage without a limit can hold were counted modulo 2^64 on one with a limit. */
static void test_kv_front_beyond_64_bits(void **state) {
    (void)state;
    const pen_partition_unit units[] = {
        {.name = "a", .kv_bytes_per_token = 1}, {.name = "b", .kv_bytes_per_token = UINT64_C(1) << 52}, {.name = "c"}};
    const pen_partition_stage stages[] = {{.memory_bytes = 8192}, {0}};
    const double time_ms[] = {1, 1, 5};
    const pen_partition_problem problem = {
        .unit_count = 3, .stage_count = 2, .device_count = 1, .units = units, .stages = stages, .time_ms = time_ms};
    pen_partition_point points[3];
    int count;
    assert_int_equal(pen_partition_kv_front(&problem, points, 3, &count), PEN_OK);
    assert_int_equal(count, 2);
    assert_true(points[0].kv_tokens == 0 && points[0].max_ms == 5);    /* a b | c */
    assert_true(points[1].kv_tokens == 8192 && points[1].max_ms == 6); /* a | b c */
}

/* ---- Given examples
 * -------------------------------------------------------------------------------------------------- */

enum { LONG = 128 };
static double long_ms[LONG];
static pen_partition_unit long_units[LONG];
static pen_partition_stage long_stages[LONG];

static pen_partition_problem long_problem(int units, int stages) {
    memset(long_ms, 0, sizeof long_ms);
    memset(long_units, 0, sizeof long_units);
    memset(long_stages, 0, sizeof long_stages);
    for (int u = 0; u < LONG; u++) long_units[u].name = "unit";
    return (pen_partition_problem){.unit_count = units,
                                   .stage_count = stages,
                                   .device_count = 1,
                                   .units = long_units,
                                   .stages = long_stages,
                                   .time_ms = long_ms};
}

static pen_partition_problem gpt3(int stages) {
    pen_partition_problem problem = long_problem(97, stages);
    for (int u = 1; u < 95; u++) long_ms[u] = 18.2;
    long_ms[0] = 4.5;
    long_ms[95] = 18.8;
    long_ms[96] = 20.1;
    problem.leading = problem.trailing = 1;
    return problem;
}

static void test_gpt3_on_8_stages(void **state) {
    (void)state;
    pen_partition_problem problem = gpt3(8);
    int first[9];
    assert_int_equal(pen_partition_solve(&problem, first), PEN_OK);
    pen_partition_score score = pen_partition_evaluate(&problem, first);
    assert_float_equal(score.max_ms, 222.9, 1e-9);
    assert_float_equal(score.imbalance, 222.9 / 218.4, 0.005);
    assert_int_equal(first[1], 13); /* the embedding and 12 blocks */
    assert_float_equal(pen_partition_lower_bound(&problem), (4.5 + 94 * 18.2 + 18.8 + 20.1) / 8, 1e-9);
}

static void test_equal_layers_are_split_equally(void **state) {
    (void)state;
    pen_partition_problem problem = long_problem(80, 4);
    for (int u = 0; u < 80; u++) long_ms[u] = 1.0 / 3; /* no sum of these is exact */
    for (int m = 0; m < pen_partition_method_count; m++) {
        int first[5], custom[] = {20, 20, 20, 20};
        for (int u = 0; u < 80; u++) long_units[u].weight_bytes = 700;
        problem.custom = custom;
        problem.custom_count = 4;
        assert_int_equal(pen_partition_methods[m].split(&problem, first), PEN_OK);
        for (int s = 0; s <= 4; s++) assert_int_equal(first[s], 20 * s);
    }
}

static void test_large_ends_take_few_layers(void **state) {
    (void)state;
    pen_partition_problem problem = long_problem(26, 5);
    for (int u = 1; u < 25; u++) long_ms[u] = 1;
    long_ms[0] = 8.5;  /* more than its share */
    long_ms[25] = 4.0; /* four layers */
    int first[6];
    assert_int_equal(pen_partition_solve(&problem, first), PEN_OK);
    assert_int_equal(first[1], 1);            /* a stage of its own */
    assert_true(first[4] - first[3] >= 7);    /* a stage of layers has 7 … */
    assert_true(first[5] - first[4] - 1 < 7); /* … and the head's has fewer */
    assert_float_equal(pen_partition_evaluate(&problem, first).max_ms, 8.5, 0);
}

static void test_worked_examples_of_balance(void **state) {
    (void)state;
    const double uneven[] = {10, 15, 8, 12}, even[] = {11, 12, 11, 11}, none[] = {0, 0}, half[] = {0, 3};
    pen_partition_score score = pen_partition_rate(uneven, 4);
    assert_float_equal(score.efficiency, 0.75, 1e-12);
    assert_float_equal(score.imbalance, 15.0 / 8, 1e-12);
    assert_float_equal(score.mean_ms, 11.25, 1e-12);
    assert_float_equal(pen_partition_rate(even, 4).efficiency, 0.9375, 1e-12);
    assert_float_equal(pen_partition_rate(none, 2).efficiency, 1, 0);
    assert_float_equal(pen_partition_rate(none, 2).imbalance, 1, 0);
    assert_true(isinf(pen_partition_rate(half, 2).imbalance));
}

static void test_uniform_counts_layers_only(void **state) {
    (void)state;
    pen_partition_problem problem = gpt3(8);
    int first[98];
    assert_int_equal(pen_partition_method_find("uniform")->split(&problem, first), PEN_OK);
    const int expected[] = {0, 13, 25, 37, 49, 61, 73, 85, 97}; /* 12 × 7 + 11 blocks, the ends beside them */
    assert_memory_equal(first, expected, sizeof expected);
    problem = gpt3(97); /* fewer layers than stages */
    assert_int_equal(pen_partition_method_find("uniform")->split(&problem, first), PEN_OK);
    for (int s = 0; s <= 97; s++) assert_int_equal(first[s], s);
}

static void test_parameters_balances_bytes(void **state) {
    (void)state;
    pen_partition_problem problem = long_problem(5, 2);
    const uint64_t bytes[] = {100, 10, 10, 10, 70};
    for (int u = 0; u < 5; u++) long_units[u].weight_bytes = bytes[u], long_ms[u] = 1;
    int first[3];
    assert_int_equal(pen_partition_method_find("parameters")->split(&problem, first), PEN_OK);
    assert_int_equal(first[1], 1);
}

static void test_walking_methods(void **state) {
    (void)state;
    pen_partition_problem problem = long_problem(6, 3);
    const double times[] = {4, 4, 4, 1, 1, 10};
    memcpy(long_ms, times, sizeof times);
    int greedy[4], equal[4];
    assert_int_equal(pen_partition_method_find("greedy")->split(&problem, greedy), PEN_OK);
    assert_int_equal(pen_partition_method_find("equal-time")->split(&problem, equal), PEN_OK);
    const int by_mean[] = {0, 2, 5, 6};  /* mean 8: 8; then of the rest, 8: 6, as 16 would be further from it; 10 */
    const int by_total[] = {0, 2, 5, 6}; /* 8 is a third; 14 is not yet two thirds, but the last stage needs a unit */
    assert_memory_equal(greedy, by_mean, sizeof greedy);
    assert_memory_equal(equal, by_total, sizeof equal);
}

/* Whatever the sample: a valid split, never better than the optimum without limits. */
static void test_every_method_splits_validly_and_none_beats_the_optimum(void **state) {
    (void)state;
    random_state = 6;
    for (int round = 0; round < 5000; round++) {
        sample x;
        make_sample(&x);
        for (int s = 0; s < x.problem.stage_count; s++) x.stages[s].memory_bytes = 0;
        if (x.problem.unit_count > 2) x.problem.leading = below(2), x.problem.trailing = below(2);
        int n = x.problem.unit_count, first[STAGES + 1];
        for (int s = 0; s < x.problem.stage_count; s++) x.custom[s] = 1;
        x.custom[0] += n - x.problem.stage_count;
        x.problem.custom = x.custom;
        x.problem.custom_count = x.problem.stage_count;
        assert_int_equal(pen_partition_solve(&x.problem, first), PEN_OK);
        double best = pen_partition_evaluate(&x.problem, first).max_ms;
        for (int m = 0; m < pen_partition_method_count; m++) {
            assert_int_equal(pen_partition_methods[m].split(&x.problem, first), PEN_OK);
            assert_int_equal(first[0], 0);
            assert_int_equal(first[x.problem.stage_count], n);
            for (int s = 0; s < x.problem.stage_count; s++) assert_true(first[s] < first[s + 1]);
            assert_true(pen_partition_evaluate(&x.problem, first).max_ms >= best);
        }
    }
}

static void test_custom_takes_layers_or_units_and_refuses_the_rest(void **state) {
    (void)state;
    pen_partition_problem problem = gpt3(2);
    int first[3], layers[] = {40, 55}, units[] = {40, 57}, wrong[] = {40, 56}, empty[] = {97, 0};
    const pen_partition_method *custom = pen_partition_method_find("custom");
    assert_int_equal(custom->split(&problem, first), PEN_USAGE);
    problem.custom_count = 2;
    problem.custom = layers;
    assert_int_equal(custom->split(&problem, first), PEN_OK);
    assert_int_equal(first[1], 41);
    problem.custom = units;
    assert_int_equal(custom->split(&problem, first), PEN_OK);
    assert_int_equal(first[1], 40);
    problem.custom = wrong;
    assert_int_equal(custom->split(&problem, first), PEN_USAGE);
    assert_non_null(strstr(pen_last_error(), "96"));
    assert_non_null(strstr(pen_last_error(), "95"));
    problem.custom = empty;
    assert_int_equal(custom->split(&problem, first), PEN_USAGE);
    problem.custom_count = 1;
    assert_int_equal(custom->split(&problem, first), PEN_USAGE);
    assert_null(pen_partition_method_find("nonsense"));
}

static void test_mixed_speeds_follow_the_devices(void **state) {
    (void)state;
    pen_partition_problem problem = long_problem(40, 2);
    for (int u = 0; u < 40; u++) long_ms[u] = 1, long_ms[40 + u] = 3; /* the second device is three times slower */
    problem.device_count = 2;
    long_stages[1].device = 1;
    int first[3];
    assert_int_equal(pen_partition_solve(&problem, first), PEN_OK);
    assert_int_equal(first[1], 30);
    assert_float_equal(pen_partition_lower_bound(&problem), 30, 1e-9); /* 40 ÷ (1 + 1/3) */
}

static void test_sending_and_wires_count(void **state) {
    (void)state;
    pen_partition_problem problem = long_problem(10, 2);
    for (int u = 0; u < 10; u++) long_ms[u] = 1;
    int first[3];
    long_stages[0].send_ms = 2;
    assert_int_equal(pen_partition_solve(&problem, first), PEN_OK);
    assert_int_equal(first[1], 4); /* 4 + 2 against 6 */
    long_stages[0].wire_ms = 9;    /* nothing can be faster */
    assert_int_equal(pen_partition_solve(&problem, first), PEN_OK);
    assert_float_equal(pen_partition_evaluate(&problem, first).max_ms, 9, 0);
    assert_float_equal(pen_partition_lower_bound(&problem), 9, 0);
}

/* ---- Refusals
 * ---------------------------------------------------------------------------------------------------------- */

static void test_refusals_name_what_is_wrong(void **state) {
    (void)state;
    pen_partition_problem problem = long_problem(3, 4);
    assert_int_equal(pen_partition_check(&problem), PEN_USAGE);
    assert_string_equal(pen_last_error(), "4 stages are more than the 3 units there are");
    problem = long_problem(4, 2);
    for (int u = 0; u < 4; u++) long_units[u].weight_bytes = 1000;
    long_units[2].name = "block 2";
    long_units[2].weight_bytes = 5000;
    long_stages[0].memory_bytes = 4000;
    long_stages[1].memory_bytes = 3000;
    assert_int_equal(pen_partition_check(&problem), PEN_NO_MEMORY);
    assert_non_null(strstr(pen_last_error(), "block 2 alone needs 4.88 KiB (5000 bytes"));
    assert_non_null(strstr(pen_last_error(), "(4000 bytes)"));
    long_units[2].weight_bytes = 1000;
    long_ms[1] = NAN;
    assert_int_equal(pen_partition_check(&problem), PEN_BAD_INPUT);
    long_ms[1] = -1;
    assert_int_equal(pen_partition_check(&problem), PEN_BAD_INPUT);
    long_ms[1] = 1;
    problem.tied_bytes = 1001;
    assert_int_equal(pen_partition_check(&problem), PEN_BAD_INPUT);
    problem.tied_bytes = 1000;
    assert_int_equal(pen_partition_check(&problem), PEN_OK);
    long_units[0].kv_bytes_per_token = UINT64_MAX / 2;
    problem.kv_tokens = 1 << 20;
    assert_int_equal(pen_partition_check(&problem), PEN_BAD_INPUT);
}

static void test_no_split_fits_says_by_how_much_and_what_would(void **state) {
    (void)state;
    pen_partition_problem problem = long_problem(12, 2);
    for (int u = 0; u < 12; u++) long_units[u].weight_bytes = 1000, long_ms[u] = 1;
    for (int s = 0; s < 2; s++) long_stages[s].memory_bytes = 4000;
    int first[3];
    assert_int_equal(pen_partition_check(&problem), PEN_OK);
    assert_int_equal(pen_partition_solve(&problem, first), PEN_NO_MEMORY);
    assert_non_null(strstr(pen_last_error(), "short by 1.95 KiB"));
    assert_non_null(strstr(pen_last_error(), "(6000 bytes) per stage would do"));
    assert_non_null(strstr(pen_last_error(), "or 3 stages"));
}

/* ---- Adjusting
 * ----------------------------------------------------------------------------------------------------------- */

static void test_adjusting_moves_layers_until_the_stages_are_close(void **state) {
    (void)state;
    pen_partition_problem problem = long_problem(40, 4);
    for (int u = 0; u < 40; u++) long_ms[u] = 1;
    int first[] = {0, 10, 20, 30, 40}, moves;
    const double measured[] = {10, 15, 8, 12}; /* stage 1 has a slow machine */
    assert_int_equal(pen_partition_adjust(&problem, measured, 1.15, first, &moves), PEN_OK);
    assert_true(moves > 0);
    /* Units 10 … 19 took 1.5 ms, 20 … 29 0.8 ms, 30 … 39 1.2 ms: what the new split would have taken. */
    const double per_unit[] = {1.0, 1.5, 0.8, 1.2};
    double stage_ms[4] = {0};
    for (int s = 0; s < 4; s++)
        for (int u = first[s]; u < first[s + 1]; u++) stage_ms[s] += per_unit[u / 10];
    pen_partition_score score = pen_partition_rate(stage_ms, 4);
    assert_true(score.imbalance <= 1.15);
    assert_true(score.max_ms < 15);
}

static void test_adjusting_leaves_what_is_good_or_cannot_move(void **state) {
    (void)state;
    pen_partition_problem problem = long_problem(4, 4);
    for (int u = 0; u < 4; u++) long_ms[u] = 10;
    int first[] = {0, 1, 2, 3, 4}, moves;
    const double measured[] = {10, 15, 8, 12};
    assert_int_equal(pen_partition_adjust(&problem, measured, 1.15, first, &moves), PEN_OK);
    assert_int_equal(moves, 0); /* one unit each */
    problem = long_problem(40, 4);
    for (int u = 0; u < 40; u++) long_ms[u] = 1, long_units[u].weight_bytes = 10;
    int tens[] = {0, 10, 20, 30, 40};
    const double close[] = {11, 12, 11, 11}, uneven[] = {10, 15, 8, 12};
    assert_int_equal(pen_partition_adjust(&problem, close, 1.15, tens, &moves), PEN_OK);
    assert_int_equal(moves, 0);
    for (int s = 0; s < 4; s++) long_stages[s].memory_bytes = 100; /* all are full */
    assert_int_equal(pen_partition_adjust(&problem, uneven, 1.15, tens, &moves), PEN_OK);
    assert_int_equal(moves, 0);
    const int kept[] = {0, 10, 20, 30, 40};
    assert_memory_equal(tens, kept, sizeof kept);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_solver_equals_brute_force),
        cmocka_unit_test(test_solver_is_exact_for_any_times),
        cmocka_unit_test(test_raising_limits_by_the_shortfall_is_just_enough),
        cmocka_unit_test(test_stages_needed_is_the_smallest_number_that_fits),
        cmocka_unit_test(test_kv_front_is_optimal_in_both_directions),
        cmocka_unit_test(test_kv_front_beyond_64_bits),
        cmocka_unit_test(test_gpt3_on_8_stages),
        cmocka_unit_test(test_equal_layers_are_split_equally),
        cmocka_unit_test(test_large_ends_take_few_layers),
        cmocka_unit_test(test_worked_examples_of_balance),
        cmocka_unit_test(test_uniform_counts_layers_only),
        cmocka_unit_test(test_parameters_balances_bytes),
        cmocka_unit_test(test_walking_methods),
        cmocka_unit_test(test_every_method_splits_validly_and_none_beats_the_optimum),
        cmocka_unit_test(test_custom_takes_layers_or_units_and_refuses_the_rest),
        cmocka_unit_test(test_mixed_speeds_follow_the_devices),
        cmocka_unit_test(test_sending_and_wires_count),
        cmocka_unit_test(test_refusals_name_what_is_wrong),
        cmocka_unit_test(test_no_split_fits_says_by_how_much_and_what_would),
        cmocka_unit_test(test_adjusting_moves_layers_until_the_stages_are_close),
        cmocka_unit_test(test_adjusting_leaves_what_is_good_or_cannot_move),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
