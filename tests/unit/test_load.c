/* The load of bench and what is said of it: arrivals, prompts, percentiles, speeds in the steady state. */
#include "load_simulate.h"
#include "load_summary.h"
#include "step_cost.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void near(double got, double wanted, double tolerance) {
    if (!(fabs(got - wanted) <= tolerance)) fail_msg("%g is not %g", got, wanted);
}

/* numpy.percentile of the same numbers. */
static void test_percentiles_are_numpys(void **state) {
    (void)state;
    double values[] = {9, 1, 8, 2, 7, 3, 6, 4, 5, 100};
    pen_statistics s = pen_statistics_of(values, 10);
    near(s.mean, 14.5, 1e-12);
    near(s.p50, 5.5, 1e-12);
    near(s.p90, 18.1, 1e-12);
    near(s.p99, 91.81, 1e-12);
    double one[] = {3.5};
    s = pen_statistics_of(one, 1);
    assert_true(s.mean == 3.5 && s.p50 == 3.5 && s.p90 == 3.5 && s.p99 == 3.5);
    s = pen_statistics_of(one, 0);
    assert_true(s.mean == 0 && s.p50 == 0 && s.p90 == 0 && s.p99 == 0);
}

static void test_arrivals_are_a_poisson_process(void **state) {
    (void)state;
    enum { N = 20000 };
    int64_t *arrivals = calloc(2 * N, sizeof *arrivals);
    pen_load load = {.request_rate = 50, .burstiness = 1, .requests = N, .seed = 7};
    pen_load_arrivals(&load, arrivals);
    double mean = (double)arrivals[N - 1] / N, squares = 0;
    for (int i = 1; i < N; i++) {
        assert_true(arrivals[i] >= arrivals[i - 1]);
        double gap = (double)(arrivals[i] - arrivals[i - 1]);
        squares += (gap - mean) * (gap - mean);
    }
    near(mean, 20e6, 0.6e6);                 /* 4 standard errors */
    near(sqrt(squares / N) / mean, 1, 0.05); /* exponential: the deviation is the mean */
    pen_load_arrivals(&load, arrivals + N);
    assert_memory_equal(arrivals, arrivals + N, N * sizeof *arrivals);
    load.seed = 8;
    pen_load_arrivals(&load, arrivals + N);
    assert_memory_not_equal(arrivals, arrivals + N, N * sizeof *arrivals);
    free(arrivals);
}

/* Gamma: the mean is the rate's, the deviation 1 ÷ √shape of it, the third moment 2 ÷ √shape of the deviation's. */
static void test_arrivals_come_in_bursts(void **state) {
    (void)state;
    enum { N = 40000 };
    int64_t *arrivals = calloc(N, sizeof *arrivals);
    static const double shapes[] = {0.25, 0.5, 2, 9};
    for (int s = 0; s < 4; s++) {
        double shape = shapes[s], squares = 0, cubes = 0;
        pen_load load = {.request_rate = 50, .burstiness = shape, .requests = N, .seed = 7};
        pen_load_arrivals(&load, arrivals);
        double mean = (double)arrivals[N - 1] / N;
        for (int i = 1; i < N; i++) {
            double gap = (double)(arrivals[i] - arrivals[i - 1]) / mean - 1;
            assert_true(gap >= -1);
            squares += gap * gap / N;
            cubes += gap * gap * gap / N;
        }
        near(mean, 20e6, 20e6 * 4 / sqrt(shape * N));
        near(sqrt(squares) * sqrt(shape), 1, 0.03);
        near(cubes / pow(squares, 1.5) * sqrt(shape) / 2, 1, 0.2);
    }
    free(arrivals);
}

static void test_outputs_have_lengths_in_turn(void **state) {
    (void)state;
    static const int cycle[] = {10, 100, 50};
    pen_load load = {.prompt_tokens = 7, .output_cycle = cycle, .output_cycle_count = 3, .seed = 3};
    int prompt, output;
    for (int i = 0; i < 30; i++) {
        pen_load_lengths(&load, i, &prompt, &output);
        assert_int_equal(prompt, 7);
        assert_int_equal(output, cycle[i % 3]);
    }
    load.length_spread = 0.3;
    double sums[3] = {0};
    for (int i = 0; i < 9000; i++) {
        pen_load_lengths(&load, i, &prompt, &output);
        sums[i % 3] += output;
    }
    for (int k = 0; k < 3; k++) near(sums[k] / 3000, cycle[k], 0.03 * cycle[k]);
}

static void test_prompts_follow_from_seed_and_number(void **state) {
    (void)state;
    int32_t a[64], b[64];
    pen_load_prompt(1, 5, 300, a, 64);
    pen_load_prompt(1, 5, 300, b, 64);
    assert_memory_equal(a, b, sizeof a);
    for (int i = 0; i < 64; i++) assert_in_range(a[i], 0, 299);
    int equal = 0;
    for (int number = 0; number < 100; number++) {
        pen_load_prompt(number < 50 ? 1 : 2, number == 5 ? 6 : number, 300, b, 64);
        equal += memcmp(a, b, 8 * sizeof *a) == 0;
    }
    assert_int_equal(equal, 0);
}

static void test_lengths_are_log_normal(void **state) {
    (void)state;
    enum { N = 20000 };
    pen_load load = {.prompt_tokens = 1000, .output_tokens = 300, .length_spread = 0.5, .seed = 3};
    double sum[2] = {0}, logs[2] = {0}, squares[2] = {0}, product = 0;
    for (int i = 0; i < N; i++) {
        int length[2], again[2];
        pen_load_lengths(&load, i, &length[0], &length[1]);
        pen_load_lengths(&load, i, &again[0], &again[1]);
        assert_memory_equal(length, again, sizeof length);
        for (int k = 0; k < 2; k++) {
            assert_in_range(length[k], 1, k ? 1200 : 4000);
            sum[k] += length[k];
            logs[k] += log(length[k]) / N;
            squares[k] += log(length[k]) * log(length[k]) / N;
        }
        product += log(length[0]) * log(length[1]) / N;
    }
    /* 4 standard errors: the deviation is 0.53 of the mean */
    near(sum[0] / N, 1000, 1000 * 4 * 0.53 / sqrt(N));
    near(sum[1] / N, 300, 300 * 4 * 0.53 / sqrt(N));
    for (int k = 0; k < 2; k++) near(sqrt(squares[k] - logs[k] * logs[k]), 0.5, 0.01);
    near(product - logs[0] * logs[1], 0, 4 * 0.25 / sqrt(N)); /* independent */
}

static void test_lengths_are_alike_without_a_spread(void **state) {
    (void)state;
    pen_load load = {.prompt_tokens = 7, .output_tokens = 1, .seed = 3};
    for (int i = 0; i < 100; i++) {
        int prompt, output;
        pen_load_lengths(&load, i, &prompt, &output);
        assert_int_equal(prompt, 7);
        assert_int_equal(output, 1);
    }
}

/* ---- Summaries of logs that are written by hand; times in milliseconds ------------------------------------------- */

enum { OUTPUTS = 3, REQUESTS_MAX = 4 };

typedef struct hand_log {
    pen_load_log log;
    pen_load_request requests[REQUESTS_MAX];
    int64_t times[REQUESTS_MAX][OUTPUTS];
    pen_metrics stages[PEN_LOAD_SPANS][2];
} hand_log;

static void write_log(hand_log *hand, int requests, const int arrived[], const int times[][OUTPUTS]) {
    *hand = (hand_log){.log = {.replicas = 1, .stages = 2, .span_count = 1, .requests = hand->requests}};
    hand->log.load = (pen_load){.prompt_tokens = 10, .output_tokens = OUTPUTS, .concurrency = 2, .requests = requests};
    for (int i = 0; i < requests; i++) {
        hand->requests[i] = (pen_load_request){.arrived_ns = (int64_t)arrived[i] * 1000000,
                                               .token_ns = hand->times[i],
                                               .prompt_tokens = 10,
                                               .output_tokens = OUTPUTS,
                                               .tokens = OUTPUTS};
        for (int t = 0; t < OUTPUTS; t++) hand->times[i][t] = (int64_t)times[i][t] * 1000000;
    }
    for (int i = 0; i < PEN_LOAD_SPANS; i++) hand->log.spans[i].stages = hand->stages[i];
}

static void span(hand_log *hand, int i, int begin, int end, double busy_0, double busy_1) {
    hand->log.spans[i].begin_ns = (int64_t)begin * 1000000;
    hand->log.spans[i].end_ns = (int64_t)end * 1000000;
    hand->stages[i][0].work_s = (end - begin) * 1e-3;
    hand->stages[i][0].seconds[PEN_BUSY] = busy_0;
    hand->stages[i][1].seconds[PEN_BUSY] = busy_1;
}

static void test_steady_state_counts_what_ends_in_it(void **state) {
    (void)state;
    hand_log hand;
    pen_load_summary s;
    /* From the first completion, at 100, to 300: the tokens at 100 and at 310 do not count. */
    write_log(&hand, 4, (int[]){0, 50, 100, 200},
              (const int[][OUTPUTS]){{60, 80, 100}, {110, 150, 200}, {150, 220, 300}, {250, 310, 400}});
    span(&hand, 0, 100, 300, 0.15, 0.05);
    assert_int_equal(pen_load_summarise(&hand.log, &s), PEN_OK);
    near(s.seconds, 0.2, 1e-12);
    near(s.prompt_tokens_per_s, 3 * 10 / 0.2, 1e-9);
    near(s.decode_tokens_per_s, 7 / 0.2, 1e-9);
    near(s.total_tokens_per_s, 37 / 0.2, 1e-9);
    assert_int_equal(s.requests, 2); /* the second and the third */
    near(s.ttft.mean, (60 + 50) / 2.0, 1e-9);
    near(s.e2el.mean, (150 + 200) / 2.0, 1e-9);
    near(s.tpot.p50, (45 + 75) / 2.0, 1e-9);
    near(s.itl.mean, (40 + 50 + 70 + 80) / 4.0, 1e-9);
    near(s.efficiency.split, 0.1 / 0.15, 1e-12);
    near(s.efficiency.schedule, 0.75, 1e-12);
    near(s.efficiency.pipeline, 0.5, 1e-12);
    near(s.whole.seconds, 0.4, 1e-12);
    near(s.whole.total_tokens_per_s, (4 * 10 + 4 * 3) / 0.4, 1e-9);
    near(s.whole.ttft.mean, (60 + 60 + 50 + 50) / 4.0, 1e-9);
    near(s.whole.e2el.mean, (100 + 150 + 200 + 200) / 4.0, 1e-9);
}

static void test_predictions_are_compared_one_by_one(void **state) {
    (void)state;
    hand_log hand;
    pen_load_summary s;
    write_log(&hand, 3, (int[]){0, 50, 60}, (const int[][OUTPUTS]){{60, 80, 100}, {110, 150, 200}, {150, 220, 300}});
    span(&hand, 0, 0, 300, 0.15, 0.05);
    hand.requests[0].predicted_ttft_ms = 50; /* measured: 60 */
    hand.requests[1].predicted_ttft_ms = 80; /* 60 */
    hand.requests[2].predicted_ttft_ms = 1000;
    hand.requests[2].expired = true;
    hand.requests[2].token_ns[OUTPUTS - 1] = 0;
    assert_int_equal(pen_load_summarise(&hand.log, &s), PEN_OK);
    near(s.whole.predicted_ttft.mean, 65, 1e-9);
    near(s.whole.prediction_error.mean, 15, 1e-9);
    near(s.whole.total_tokens_per_s, 2 * 13 / 0.2, 1e-9);
    assert_int_equal(s.expired, 1);
}

static void test_requests_one_by_one_have_speeds_of_their_own(void **state) {
    (void)state;
    hand_log hand;
    pen_load_summary s;
    write_log(&hand, 2, (int[]){0, 1000}, (const int[][OUTPUTS]){{20, 30, 60}, {1030, 1050, 1060}});
    hand.log.load.concurrency = 1;
    span(&hand, 0, 0, 1060, 0.1, 0);
    assert_int_equal(pen_load_summarise(&hand.log, &s), PEN_OK);
    near(s.prompt_tokens_per_s, 20 / 0.05, 1e-9); /* the pause between them is nobody's */
    near(s.decode_tokens_per_s, 4 / 0.07, 1e-9);
    near(s.total_tokens_per_s, 26 / 0.12, 1e-9);
    assert_int_equal(s.requests, 2);
}

static void test_phases_are_timed_apart(void **state) {
    (void)state;
    hand_log hand;
    pen_load_summary s;
    write_log(&hand, 2, (int[]){0, 0}, (const int[][OUTPUTS]){{30, 60, 80}, {50, 60, 80}});
    hand.log.load.phases = true;
    hand.log.span_count = 2;
    span(&hand, 0, 0, 50, 0.05, 0.05);
    span(&hand, 1, 55, 80, 0.01, 0.02);
    assert_int_equal(pen_load_summarise(&hand.log, &s), PEN_OK);
    near(s.seconds, 0.075, 1e-12);
    near(s.prompt_tokens_per_s, 20 / 0.05, 1e-9);
    near(s.decode_tokens_per_s, 4 / 0.025, 1e-9);
    near(s.total_tokens_per_s, 26 / 0.075, 1e-9);
    near(s.efficiency.schedule, 0.07 / 0.075, 1e-12);
}

/* ---- Loads in the simulator: two stages of 1 ms, whatever is in a microbatch ----------------------------------- */

static double one_ms(void *context, int stage, const pen_simulated_step *step) {
    (void)context, (void)stage, (void)step;
    return 1;
}

static pen_status simulate_two_stages(const void *sequences, const pen_simulated_watch *watch,
                                      pen_simulated_request *requests, int count, pen_simulation *simulation) {
    int slots = *(const int *)sequences;
    pen_step_cost *cost;
    PEN_TRY(pen_step_cost_create_even(2, 1, 0, &cost));
    const pen_simulate_options options = {
        .schedule = {.stages = 2, .sequences = slots, .rows = 64, .logit_rows = slots, .context = 128, .cost = cost},
        .kv = {.count = 1, .blocks = {slots * 8}},
        .slots = 4,
        .stage_ms = one_ms,
        .watch = *watch};
    pen_status status = pen_simulate(&options, requests, count, simulation);
    pen_step_cost_destroy(cost);
    return status;
}

static void test_simulated_one_by_one(void **state) {
    (void)state;
    pen_load load = {.prompt_tokens = 10, .output_tokens = 5, .concurrency = 1, .requests = 3, .time_scale = 1};
    pen_load_log log;
    pen_load_summary s;
    assert_int_equal(pen_load_simulate(&load, simulate_two_stages, &(int){1}, 2, &log), PEN_OK);
    assert_int_equal(pen_load_summarise(&log, &s), PEN_OK);
    assert_false(log.steady);
    assert_int_equal(s.requests, 3);
    near(s.seconds, 3 * 5 * 2e-3, 1e-9); /* a token crosses two stages */
    near(s.ttft.mean, 2, 1e-9);
    near(s.itl.p99, 2, 1e-9);
    near(s.prompt_tokens_per_s, 10 / 2e-3, 1e-6);
    near(s.decode_tokens_per_s, 1 / 2e-3, 1e-6);
    near(s.efficiency.schedule, 0.5, 1e-9);
    pen_load_log_free(&log);
}

static void test_simulated_closed_load(void **state) {
    (void)state;
    pen_load load = {.prompt_tokens = 10, .output_tokens = 20, .concurrency = 6, .requests = 60, .time_scale = 1};
    pen_load_log log;
    pen_load_summary s;
    assert_int_equal(pen_load_simulate(&load, simulate_two_stages, &(int){6}, 2, &log), PEN_OK);
    assert_int_equal(pen_load_summarise(&log, &s), PEN_OK);
    assert_true(log.steady);
    for (int i = 0; i < 60; i++) { /* never more than six at a time, and a new one when one ends */
        int64_t now = log.requests[i].arrived_ns;
        int running = 0;
        assert_int_equal(log.requests[i].tokens, 20);
        for (int k = 0; k < 60; k++) running += log.requests[k].arrived_ns <= now && log.requests[k].token_ns[19] > now;
        assert_in_range(running, 1, 6);
        if (i >= 6) assert_int_equal(running, 6);
    }
    near(s.efficiency.schedule, 1, 1e-9);
    near(s.efficiency.split, 1, 0.01);
    /* Two microbatches in flight, which take their time whatever is in them: a token every 2 ms, of each of six. */
    near(s.decode_tokens_per_s, 6 / 2e-3, 0.01 * 6 / 2e-3);
    near(s.itl.p50, 2, 1e-9);
    pen_load_log_free(&log);
}

static void test_simulated_arrivals(void **state) {
    (void)state;
    enum { N = 40 };
    pen_load load = {.prompt_tokens = 10,
                     .output_tokens = 20,
                     .length_spread = 0.5,
                     .concurrency = 6,
                     .requests = N,
                     .request_rate = 50,
                     .burstiness = 1,
                     .seed = 9,
                     .time_scale = 1};
    pen_load_log log;
    pen_load_summary s;
    int64_t arrivals[N];
    pen_load_arrivals(&load, arrivals);
    assert_int_equal(pen_load_simulate(&load, simulate_two_stages, &(int){6}, 2, &log), PEN_OK);
    assert_int_equal(pen_load_summarise(&log, &s), PEN_OK);
    int64_t first_end = INT64_MAX;
    for (int i = 0; i < N; i++) {
        const pen_load_request *request = &log.requests[i];
        int prompt, output;
        pen_load_lengths(&load, i, &prompt, &output);
        assert_int_equal(request->tokens, output);
        near((double)request->arrived_ns, (double)arrivals[i], 1);
        for (int t = 0; t < output; t++)
            assert_true(request->token_ns[t] >= (t ? request->token_ns[t - 1] : request->arrived_ns) + 2000000);
        if (request->token_ns[output - 1] < first_end) first_end = request->token_ns[output - 1];
    }
    assert_true(log.steady);
    assert_true(log.spans[0].begin_ns == first_end);
    near((double)log.spans[0].end_ns, (double)arrivals[N - 1], 1);
    assert_true(s.efficiency.schedule > 0.5 && s.efficiency.schedule <= 1);
    pen_load_log_free(&log);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_percentiles_are_numpys),
        cmocka_unit_test(test_arrivals_are_a_poisson_process),
        cmocka_unit_test(test_arrivals_come_in_bursts),
        cmocka_unit_test(test_outputs_have_lengths_in_turn),
        cmocka_unit_test(test_prompts_follow_from_seed_and_number),
        cmocka_unit_test(test_lengths_are_log_normal),
        cmocka_unit_test(test_lengths_are_alike_without_a_spread),
        cmocka_unit_test(test_steady_state_counts_what_ends_in_it),
        cmocka_unit_test(test_predictions_are_compared_one_by_one),
        cmocka_unit_test(test_requests_one_by_one_have_speeds_of_their_own),
        cmocka_unit_test(test_phases_are_timed_apart),
        cmocka_unit_test(test_simulated_one_by_one),
        cmocka_unit_test(test_simulated_closed_load),
        cmocka_unit_test(test_simulated_arrivals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
