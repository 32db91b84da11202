/*
 * The simulator, where the answer can be worked out by hand: one sequence crosses the stages token by token, links add
 * their latency and rows their time on the wire, a full pipeline goes at the pace of its slowest stage.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "simulate.h"
#include "step_cost.h"

enum { STAGES_MOST = 8, REQUESTS_MOST = 64 };

typedef struct pace {
    double ms[STAGES_MOST];
    double ms_per_row;
} pace;

static double stage_ms(void *context, int stage, const pen_simulated_step *step) {
    const pace *p = context;
    return p->ms[stage] + step->rows * p->ms_per_row;
}

/* What the schedule thinks of it: all stages are as slow as the slowest. */
static pen_step_cost *cost;

static pen_simulate_options make_options(int stages, int sequences, pace *p) {
    double most = 0;
    for (int s = 0; s < stages; s++) most = fmax(most, p->ms[s]);
    pen_step_cost_destroy(cost);
    assert_int_equal(pen_step_cost_create_even(stages, most, p->ms_per_row, &cost), PEN_OK);
    return (pen_simulate_options){
        .schedule =
            {.stages = stages, .sequences = sequences, .rows = 256, .logit_rows = 64, .context = 512, .cost = cost},
        .kv = {.count = 1, .blocks = {sequences * 32}},
        .slots = 4,
        .stage_ms = stage_ms,
        .context = p,
    };
}

static void assert_ms(double ms, double expected) {
    if (fabs(ms - expected) > 1e-9 * (1 + expected)) fail_msg("%.9f ms, expected %.9f", ms, expected);
}

static void test_one_sequence_goes_through_the_stages_token_by_token(void **state) {
    (void)state;
    pace p = {.ms = {1, 2, 3}};
    pen_metrics stages[3];
    pen_simulation simulation = {.stages = stages};
    pen_simulated_request request = {.arrival_ms = 5, .prompt = 10, .output = 4};
    pen_simulate_options options = make_options(3, 1, &p);
    assert_int_equal(pen_simulate(&options, &request, 1, &simulation), PEN_OK);
    assert_ms(request.first_ms, 5 + 6);
    assert_ms(request.end_ms, 5 + 4 * 6);
    assert_ms(simulation.makespan_ms, request.end_ms);
    assert_int_equal(simulation.steps, 4);
    for (int s = 0; s < 3; s++) {
        double sum = 0;
        for (int a = 0; a < PEN_ACTIVITIES; a++) sum += stages[s].seconds[a];
        assert_ms(stages[s].seconds[PEN_BUSY] * 1e3, 4 * p.ms[s]);
        assert_ms(sum * 1e3, simulation.makespan_ms);
        assert_int_equal(stages[s].rows, 10 + 3);
    }
    pen_efficiency e = pen_metrics_efficiency(stages, 3);
    assert_ms(e.split, 2.0 / 3);
    assert_ms(e.schedule, 0.5);
    assert_ms(e.pipeline, 1.0 / 3);
}

static void test_links_and_rows_take_their_time(void **state) {
    (void)state;
    pace p = {.ms = {1, 1}, .ms_per_row = 0.5};
    pen_metrics stages[2];
    pen_simulation simulation = {.stages = stages};
    pen_simulated_request request = {.prompt = 10, .output = 3};
    pen_simulate_options options = make_options(2, 1, &p);
    options.latency_ms = 0.25;
    options.ms_per_row = 0.125;
    assert_int_equal(pen_simulate(&options, &request, 1, &simulation), PEN_OK);
    /* Two stages of 1 + rows/2, a message of rows/8 between them, and a latency each way. */
    assert_ms(request.first_ms, 2 * 6 + 1.25 + 0.5);
    assert_ms(request.end_ms, request.first_ms + 2 * (2 * 1.5 + 0.125 + 0.5));
}

static void test_a_full_pipeline_goes_at_the_pace_of_its_slowest_stage(void **state) {
    (void)state;
    pace p = {.ms = {3, 4, 3, 3}};
    pen_metrics stages[4];
    pen_simulation simulation = {.stages = stages};
    pen_simulated_request requests[REQUESTS_MOST];
    for (int r = 0; r < REQUESTS_MOST; r++) requests[r] = (pen_simulated_request){.prompt = 16, .output = 100};
    pen_simulate_options options = make_options(4, REQUESTS_MOST, &p);
    assert_int_equal(pen_simulate(&options, requests, REQUESTS_MOST, &simulation), PEN_OK);
    pen_efficiency e = pen_metrics_efficiency(stages, 4);
    assert_true(e.schedule > 0.97 && e.schedule <= 1);
    assert_ms(e.split, 13.0 / 16);
    assert_true(simulation.makespan_ms >= 4 * (double)simulation.steps);
    for (int r = 0; r < REQUESTS_MOST; r++) {
        assert_true(requests[r].first_ms > 0 && requests[r].first_ms < requests[r].end_ms);
        assert_true(requests[r].end_ms <= simulation.makespan_ms);
    }
}

/* One microbatch in flight keeps one stage of two busy, two of them keep both: what the schedule is for. */
static void test_microbatches_in_flight_overlap(void **state) {
    (void)state;
    pace p = {.ms_per_row = 1};
    pen_metrics stages[2];
    pen_simulation simulation = {.stages = stages};
    double makespan[3] = {0};
    for (int in_flight = 1; in_flight <= 2; in_flight++) {
        pen_simulated_request requests[2] = {{.prompt = 16, .output = 50}, {.prompt = 16, .output = 50}};
        pen_simulate_options options = make_options(2, 2, &p);
        options.schedule.in_flight = in_flight;
        assert_int_equal(pen_simulate(&options, requests, 2, &simulation), PEN_OK);
        makespan[in_flight] = simulation.makespan_ms;
    }
    assert_ms(makespan[1], 2 * 32 + 49 * 4);     /* two rows through both stages at a time */
    assert_ms(makespan[2], 3 * 16 + 49 * 2); /* the second prompt behind the first, then in turns */
}

/* A leader that computes hears of what came back when its own step is through. */
static void test_a_leader_that_computes_is_late(void **state) {
    (void)state;
    pace p = {.ms = {8, 1}};
    pen_metrics stages[2];
    pen_simulation simulation = {.stages = stages};
    double first[2];
    for (int computes = 0; computes < 2; computes++) {
        pen_simulated_request requests[2] = {{.prompt = 16, .output = 1}, {.arrival_ms = 4, .prompt = 16, .output = 1}};
        pen_simulate_options options = make_options(2, 2, &p);
        options.leader_computes = computes;
        assert_int_equal(pen_simulate(&options, requests, 2, &simulation), PEN_OK);
        first[computes] = requests[0].first_ms;
    }
    assert_ms(first[0], 9);
    assert_ms(first[1], 16);
}

static void test_what_can_never_run_is_said(void **state) {
    (void)state;
    pace p = {.ms = {1, 1}};
    pen_metrics stages[2];
    pen_simulation simulation = {.stages = stages};
    pen_simulated_request request = {.prompt = 100, .output = 100};
    pen_simulate_options options = make_options(2, 1, &p);
    options.kv.blocks[0] = 3;
    assert_int_equal(pen_simulate(&options, &request, 1, &simulation), PEN_NO_MEMORY);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_sequence_goes_through_the_stages_token_by_token),
        cmocka_unit_test(test_links_and_rows_take_their_time),
        cmocka_unit_test(test_a_full_pipeline_goes_at_the_pace_of_its_slowest_stage),
        cmocka_unit_test(test_microbatches_in_flight_overlap),
        cmocka_unit_test(test_a_leader_that_computes_is_late),
        cmocka_unit_test(test_what_can_never_run_is_said),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    pen_step_cost_destroy(cost);
    return failed;
}
