/* The forecast, by hand: two stages of 9 and 6 ms, a link of 1 ms that the sender pays for. */
#include "forecast.h"

#include "plan_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static pen_plan *plan_of_two_stages(void) {
    pen_plan *plan;
    assert_int_equal(pen_plan_create(4, 2, &plan), PEN_OK);
    static const double ms[] = {4, 5, 3, 3};
    for (int u = 0; u < 4; u++) plan->units[u].time_ms = ms[u];
    plan->devices[0].send_ms = plan->devices[0].wire_ms = 1;
    assert_int_equal(pen_plan_apply(plan, "custom", 2, (int[]){0, 2, 4}, 1000), PEN_OK);
    return plan;
}

/* Without a profile a unit's time has a fixed part as large as 16 rows'. */
static double scaled(double rows, double planned) {
    return (16 + rows) / (16 + planned);
}

static void expect(const pen_plan *plan, pen_forecast_options options, double prompt, double decode) {
    pen_steady planned = pen_plan_steady(&plan->workload, plan->stage_count, options.rows);
    pen_step_shape shape = pen_profile_shape(&planned);
    pen_step_cost *cost;
    assert_int_equal(pen_step_cost_create(plan, NULL, NULL, &shape, &cost), PEN_OK);
    pen_forecast got = pen_forecast_of(&plan->workload, cost, &options);
    pen_step_cost_destroy(cost);
    if (fabs(got.prompt_tokens_per_s - prompt) > 1e-6 * prompt ||
        fabs(got.decode_tokens_per_s - decode) > 1e-6 * decode)
        fail_msg("%d sequences: %.3f and %.3f tokens/s, not %.3f and %.3f", options.sequences, got.prompt_tokens_per_s,
                 got.decode_tokens_per_s, prompt, decode);
}

static void test_mixed(void **state) {
    (void)state;
    pen_plan *plan = plan_of_two_stages();
    plan->workload = (pen_plan_workload){.prompt_tokens = 60, .output_tokens = 20, .max_num_seqs = 12};
    /* The plan is for 4 decodes and 12 rows of prompt. Two microbatches of 6 and 18 are better than three of those: the
     * slower stage takes 9 + 1·24/16 ms for each, all of it 9 + 2·1.5 + 6. One alone would take longer. */
    double share = scaled(24, 16), two = fmax(2 * (9 * share + 1.5), 15 * share + 3);
    expect(plan, (pen_forecast_options){.sequences = 12, .rows = 512}, 36 / two * 1e3, 12 / two * 1e3);
    /* One of a row and 3 rows of prompt. */
    double one = 15 * scaled(4, 16) + 2 * 0.25;
    expect(plan, (pen_forecast_options){.sequences = 1, .rows = 512}, 3 / one * 1e3, 1 / one * 1e3);
    pen_plan_destroy(plan);
}

static void test_apart(void **state) {
    (void)state;
    pen_plan *plan = plan_of_two_stages();
    plan->workload = (pen_plan_workload){.prompt_tokens = 64, .output_tokens = 64, .max_num_seqs = 12};
    /* A prompt of 64 rows in 1 … 4 chunks: the way of one and, for the others, the slower stage's time. */
    double prompt = INFINITY;
    for (int chunks = 1; chunks <= 4; chunks++) {
        double rows = 64.0 / chunks, share = scaled(rows, 8), wire = rows / 8;
        prompt = fmin(prompt, 15 * share + 2 * wire + (chunks - 1) * (9 * share + wire));
    }
    expect(plan, (pen_forecast_options){.sequences = 1, .rows = 512, .apart = true}, 64 / prompt * 1e3,
           1e3 / (15 * scaled(1, 8) + 2 / 8.0));
    pen_plan_destroy(plan);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mixed), cmocka_unit_test(test_apart)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
