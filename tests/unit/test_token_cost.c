/* What a token costs, by hand: stages whose microbatches take a fixed time and more for each row. */
#include "token_cost.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static pen_token_cost cost_of(double fixed_ms, double row_ms, pen_steady steady) {
    pen_step_cost *cost;
    assert_int_equal(pen_step_cost_create_even(3, fixed_ms, row_ms, &cost), PEN_OK);
    pen_token_cost token = pen_token_cost_of(cost, &steady);
    pen_step_cost_destroy(cost);
    return token;
}

static void assert_ms(double got, double expected) {
    if (fabs(got - expected) > 1e-9 * fmax(1, expected)) fail_msg("%.12g ms, expected %.12g", got, expected);
}

/* 8 decodes and 32 rows of prompts, at 10 ms and 0.5 ms a row: each prompt row adds its own, the decodes pay the rest.
 */
static void test_prompts_cost_what_they_add(void **state) {
    (void)state;
    pen_token_cost token =
        cost_of(10, 0.5, (pen_steady){.decode_rows = 8, .rows = 40, .logit_rows = 9, .context = 100});
    assert_ms(token.prompt_ms, 0.5);
    assert_ms(token.output_ms, (10 + 8 * 0.5) / 8);
}

/* Whatever the cost is like, a microbatch costs what its tokens do. */
static void test_costs_sum_to_the_microbatch(void **state) {
    (void)state;
    for (int fixed = 0; fixed <= 20; fixed += 5) {
        for (int rows = 1; rows <= 512; rows = 3 * rows + 1) {
            pen_steady steady = {.decode_rows = 1 + rows / 5.0, .rows = 1 + rows, .logit_rows = 1 + rows / 4.0};
            pen_step_cost *cost;
            assert_int_equal(pen_step_cost_create_even(2, fixed, 0.1, &cost), PEN_OK);
            pen_token_cost token = pen_token_cost_of(cost, &steady);
            pen_step_shape all = pen_profile_shape(&steady);
            double prompts = steady.rows - steady.decode_rows;
            assert_ms(prompts * token.prompt_ms + steady.decode_rows * token.output_ms,
                      pen_step_cost_passage(cost, &all).most_ms);
            assert_true(token.prompt_ms >= 0 && token.output_ms > 0);
            pen_step_cost_destroy(cost);
        }
    }
}

/* Where rows cost nothing, or there are none of a prompt, its tokens are free and not worse. */
static void test_nothing_is_negative(void **state) {
    (void)state;
    pen_token_cost flat = cost_of(10, 0, (pen_steady){.decode_rows = 4, .rows = 20, .logit_rows = 5});
    assert_ms(flat.prompt_ms, 0);
    assert_ms(flat.output_ms, 2.5);
    pen_token_cost alone = cost_of(10, 1, (pen_steady){.decode_rows = 4, .rows = 4, .logit_rows = 4});
    assert_ms(alone.prompt_ms, 0);
    assert_ms(alone.output_ms, 14.0 / 4);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prompts_cost_what_they_add),
        cmocka_unit_test(test_costs_sum_to_the_microbatch),
        cmocka_unit_test(test_nothing_is_negative),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
