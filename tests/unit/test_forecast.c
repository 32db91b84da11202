/* The forecast, by hand: two stages of 10 and 6 ms (one time per microbatch), a link of 1 ms that the sender pays for.
 */
#include "forecast.h"

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

static void expect(const pen_plan *plan, pen_forecast_options options, double prompt, double decode) {
    pen_forecast got = pen_forecast_of(plan, NULL, NULL, &options);
    if (fabs(got.prompt_tokens_per_s - prompt) > 1e-6 * prompt ||
        fabs(got.decode_tokens_per_s - decode) > 1e-6 * decode)
        fail_msg("%d sequences: %.3f and %.3f tokens/s, not %.3f and %.3f", options.sequences, got.prompt_tokens_per_s,
                 got.decode_tokens_per_s, prompt, decode);
}

static void test_mixed(void **state) {
    (void)state;
    pen_plan *plan = plan_of_two_stages();
    plan->workload = (pen_plan_workload){.prompt_tokens = 60, .output_tokens = 20, .max_num_seqs = 12};
    /* Three microbatches of 4 decodes and 12 prompt rows in a period of 3 · 10 ms. */
    expect(plan, (pen_forecast_options){.sequences = 12, .rows = 512}, 36 / 0.030, 12 / 0.030);
    /* Two of a row and 3 prompt rows each: a quarter of what the link was timed with. The slower stage takes 9.25 ms,
     * the way through 9.25 + 0.25 + 6. */
    expect(plan, (pen_forecast_options){.sequences = 2, .rows = 512}, 6 / 0.0185, 2 / 0.0185);
    pen_plan_destroy(plan);
}

static void test_apart(void **state) {
    (void)state;
    pen_plan *plan = plan_of_two_stages();
    plan->workload = (pen_plan_workload){.prompt_tokens = 64, .output_tokens = 64, .max_num_seqs = 12};
    /* A prompt of 64 rows in one chunk, for which the link takes 8 times as long as for the planned 8 rows: the way
     * through is 9 + 8 + 8 + 6 ms. More chunks only add. A row: 9 + 1/8 + 1/8 + 6. */
    expect(plan, (pen_forecast_options){.sequences = 1, .rows = 512, .apart = true}, 64 / 0.031, 1 / 0.01525);
    pen_plan_destroy(plan);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mixed), cmocka_unit_test(test_apart)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
