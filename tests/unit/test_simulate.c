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
#include <string.h>

#include "simulate.h"
#include "step_cost.h"

enum { STAGES_MOST = 8, REQUESTS_MOST = 64 };

typedef struct pace {
    double ms[STAGES_MOST];
    double ms_per_row;
} pace;

static double stage_ms(void *context, int stage, const pen_simulated_step *step) {
    const pace *p = context;
    return p->ms[stage] + step->shape.rows * p->ms_per_row;
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
        pen_simulated_request requests[2] = {{.prompt = 1, .output = 50}, {.prompt = 1, .output = 50}};
        pen_simulate_options options = make_options(2, 2, &p);
        options.schedule.in_flight = in_flight;
        assert_int_equal(pen_simulate(&options, requests, 2, &simulation), PEN_OK);
        makespan[in_flight] = simulation.makespan_ms;
    }
    assert_ms(makespan[1], 50 * 4);         /* two rows through both stages at a time */
    assert_ms(makespan[2], 4 + 49 * 2 + 1); /* once together, then in turns */
}

static double table_ms(void *context, int stage, const pen_simulated_step *step) {
    return pen_step_cost_stage_ms(context, stage, &step->shape);
}

/* Blocks on one stage and the head on the other, with just as much to do: prompts make work for the first only. Both
 * are busy if all microbatches are alike. */
static void test_prompts_keep_to_the_pace_of_decodes(void **state) {
    (void)state;
    enum { STREAMS = 16, OUTPUT = 64 };
    pen_plan *plan;
    assert_int_equal(pen_plan_create(3, 2, &plan), PEN_OK);
    static const char *const names[] = {"embedding", "block.0", "head"};
    for (int u = 0; u < 3; u++) {
        memcpy(plan->units[u].name, names[u], strlen(names[u]) + 1);
        plan->units[u].time_ms = u > 0 ? 20 : 0;
    }
    assert_int_equal(pen_plan_apply(plan, "custom", 2, (int[]){0, 2, 3}, 1000), PEN_OK);
    for (int prompt = 32; prompt <= 128; prompt += 32) {
        double decodes = STREAMS / 2.0;
        pen_step_shape planned = {
            .rows = decodes * (1 + (double)prompt / OUTPUT), .logit_rows = decodes, .decodes = decodes};
        pace none = {.ms_per_row = 0};
        pen_metrics stages[2];
        pen_simulation simulation = {.stages = stages};
        pen_simulate_options options = make_options(2, STREAMS, &none);
        pen_step_cost_destroy(cost);
        assert_int_equal(pen_step_cost_create(plan, NULL, NULL, &planned, &cost), PEN_OK);
        options.schedule.cost = options.context = cost;
        options.stage_ms = table_ms;
        /* As they would follow each other at a pace of one microbatch a stage's time. */
        pen_simulated_request requests[REQUESTS_MOST];
        for (int r = 0; r < REQUESTS_MOST; r++)
            requests[r] =
                (pen_simulated_request){.arrival_ms = 40.0 * OUTPUT * r / STREAMS, .prompt = prompt, .output = OUTPUT};
        options.watch.from_ms = requests[STREAMS].arrival_ms;
        options.watch.to_ms = requests[REQUESTS_MOST - 1].arrival_ms;
        assert_int_equal(pen_simulate(&options, requests, REQUESTS_MOST, &simulation), PEN_OK);
        pen_efficiency e = pen_metrics_efficiency(stages, 2);
        assert_true(e.schedule > 0.95);
    }
    pen_plan_destroy(plan);
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

/* Starts the second request when the first one has two tokens. */
static void follow(void *context, int request, double at_ms) {
    pen_simulated_request *requests = context;
    if (request == 0 && isinf(requests[1].arrival_ms) && at_ms > requests[0].first_ms) requests[1].arrival_ms = at_ms;
}

static void test_a_request_may_wait_for_another_ones_token(void **state) {
    (void)state;
    pace p = {.ms = {1, 2}};
    pen_metrics stages[2];
    pen_simulation simulation = {.stages = stages};
    pen_simulated_request requests[2] = {{.prompt = 4, .output = 2},
                                         {.arrival_ms = INFINITY, .prompt = 4, .output = 1}};
    pen_simulate_options options = make_options(2, 2, &p);
    options.watch = (pen_simulated_watch){.on_token = follow, .context = requests};
    assert_int_equal(pen_simulate(&options, requests, 2, &simulation), PEN_OK);
    assert_ms(requests[0].end_ms, 6);
    assert_ms(requests[1].arrival_ms, 6);
    assert_ms(requests[1].first_ms, 9);
    assert_ms(stages[0].work_s, 9e-3);
}

static void test_only_what_is_watched_is_counted(void **state) {
    (void)state;
    pace p = {.ms = {3, 4, 3}};
    pen_metrics all[3], parts[3], sum[3] = {0};
    pen_simulated_request requests[16];
    pen_simulate_options options = make_options(3, 8, &p);
    double cuts[] = {0, 31, 100.5, 222, 0}; /* the last part goes to the end */
    for (int part = -1; part < 4; part++) {
        pen_simulation simulation = {.stages = part < 0 ? all : parts};
        for (int r = 0; r < 16; r++) requests[r] = (pen_simulated_request){.prompt = 40, .output = 20};
        options.watch =
            (pen_simulated_watch){.from_ms = part < 0 ? 0 : cuts[part], .to_ms = part < 0 ? 0 : cuts[part + 1]};
        assert_int_equal(pen_simulate(&options, requests, 16, &simulation), PEN_OK);
        for (int s = 0; s < 3 && part >= 0; s++) {
            double counted = 0;
            for (int a = 0; a < PEN_ACTIVITIES; a++) counted += parts[s].seconds[a];
            assert_ms(counted * 1e3, (part < 3 ? cuts[part + 1] : simulation.makespan_ms) - cuts[part]);
            for (int a = 0; a < PEN_ACTIVITIES; a++) sum[s].seconds[a] += parts[s].seconds[a];
            sum[s].work_s += parts[s].work_s;
            sum[s].steps += parts[s].steps;
            sum[s].rows += parts[s].rows;
        }
    }
    for (int s = 0; s < 3; s++) {
        for (int a = 0; a < PEN_ACTIVITIES; a++) assert_ms(sum[s].seconds[a], all[s].seconds[a]);
        assert_ms(sum[s].work_s, all[s].work_s);
        assert_int_equal(sum[s].steps, all[s].steps);
        assert_int_equal(sum[s].rows, all[s].rows);
    }
}

/* Decodes that are ready together stay together and fill one stage at a time, where they are not divided. */
static void test_what_dividing_decodes_is_worth(void **state) {
    (void)state;
    pace p = {.ms_per_row = 1};
    pen_metrics stages[2];
    pen_simulation simulation = {.stages = stages};
    double makespan[2];
    for (int undivided = 0; undivided <= 1; undivided++) {
        pen_simulated_request requests[12];
        for (int r = 0; r < 12; r++) requests[r] = (pen_simulated_request){.prompt = 1, .output = 100};
        pen_simulate_options options = make_options(2, 12, &p);
        if (undivided) options.schedule.cost = NULL;
        assert_int_equal(pen_simulate(&options, requests, 12, &simulation), PEN_OK);
        makespan[undivided] = simulation.makespan_ms;
    }
    assert_ms(makespan[1], 100 * 24);
    assert_true(makespan[0] < 0.55 * makespan[1]);
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
        cmocka_unit_test(test_prompts_keep_to_the_pace_of_decodes),
        cmocka_unit_test(test_a_leader_that_computes_is_late),
        cmocka_unit_test(test_a_request_may_wait_for_another_ones_token),
        cmocka_unit_test(test_only_what_is_watched_is_counted),
        cmocka_unit_test(test_what_dividing_decodes_is_worth),
        cmocka_unit_test(test_what_can_never_run_is_said),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    pen_step_cost_destroy(cost);
    return failed;
}
