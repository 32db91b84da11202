/* Budgets, against the formulas of budget.h over all choices, and the table of costs behind them. */
#include "budget.h"
#include "kvcache.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static pen_step_cost *even(int stages, double fixed_ms, double row_ms) {
    pen_step_cost *cost;
    assert_int_equal(pen_step_cost_create_even(stages, fixed_ms, row_ms, &cost), PEN_OK);
    return cost;
}

static void assert_ms(double ms, double expected) {
    if (fabs(ms - expected) > 1e-9 * (1 + expected)) fail_msg("%.9f ms, expected %.9f", ms, expected);
}

static void test_costs_are_linear_between_points_and_proportional_beyond(void **state) {
    (void)state;
    pen_step_cost *cost = even(3, 5, 0.5);
    for (double rows = 1; rows <= 65536; rows *= 1.03) {
        pen_step_shape shape = {.rows = rows};
        assert_ms(pen_step_cost_stage_ms(cost, 1, &shape), 5 + 0.5 * rows);
        pen_passage way = pen_step_cost_passage(cost, &shape);
        assert_ms(way.most_ms, 5 + 0.5 * rows);
        assert_ms(way.sum_ms, 15 + 1.5 * rows);
    }
    assert_ms(pen_step_cost_stage_ms(cost, 0, &(pen_step_shape){.rows = 0.5}), 5.5);
    assert_ms(pen_step_cost_stage_ms(cost, 0, &(pen_step_shape){0}), 0);
    assert_ms(pen_step_cost_stage_ms(cost, 0, &(pen_step_shape){.rows = 131072}), 2 * (5 + 0.5 * 65536));
    pen_step_cost_destroy(cost);
}

/* Embedding, two blocks and a head on two stages of different speed: the plan says how fast, rows and logit rows are
 * counted apart, and the link takes what a row takes. */
static void test_the_plan_says_what_a_stage_takes(void **state) {
    (void)state;
    pen_plan *plan;
    assert_int_equal(pen_plan_create(4, 2, &plan), PEN_OK);
    static const double ms[] = {1, 4, 4, 6};
    static const char *const names[] = {"embedding", "block.0", "block.1", "head"};
    for (int u = 0; u < 4; u++) {
        plan->units[u].time_ms = ms[u];
        for (int c = 0; names[u][c]; c++) plan->units[u].name[c] = names[u][c];
    }
    plan->devices[1].speed = 2;
    plan->devices[0].send_ms = 0.5;
    plan->devices[0].wire_ms = 2;
    assert_int_equal(pen_plan_apply(plan, "custom", 2, (int[]){0, 2, 4}, 1000), PEN_OK);
    pen_step_shape planned = {.rows = 32, .logit_rows = 8, .decodes = 8, .decode_context = 100};
    pen_step_cost *cost;
    assert_int_equal(pen_step_cost_create(plan, NULL, NULL, &planned, &cost), PEN_OK);
    assert_ms(pen_step_cost_stage_ms(cost, 0, &planned), 5);
    assert_ms(pen_step_cost_stage_ms(cost, 1, &planned), 5);
    pen_passage way = pen_step_cost_passage(cost, &planned);
    assert_ms(way.most_ms, 5.5);
    assert_ms(way.sum_ms, 5 + 0.5 + 2 + 5);
    pen_step_shape prompt = {.rows = 32};
    assert_ms(pen_step_cost_stage_ms(cost, 1, &prompt), 2);
    pen_step_cost_destroy(cost);
    pen_plan_destroy(plan);
}

static void test_decodes_are_divided_while_that_fills_stages(void **state) {
    (void)state;
    for (int stages = 1; stages <= 6; stages++)
        for (int decodes = 1; decodes <= 40; decodes++)
            for (int kind = 0; kind < 3; kind++) {
                double fixed = kind == 0 ? 0 : kind == 1 ? 1 : 10, row = kind == 2 ? 0 : 1;
                pen_step_cost *cost = even(stages, fixed, row);
                pen_budget_demand demand = {.decodes = decodes};
                int k = pen_budget_of(cost, &demand, stages + 1, 512).depth;
                assert_in_range(k, 1, stages + 1);
                double best = INFINITY, chosen = 0;
                for (int i = 1; i <= stages + 1; i++) {
                    double ms = fmax(i, stages) * (fixed + row * fmax((double)decodes / i, 1));
                    best = fmin(best, ms);
                    if (i == k) chosen = ms;
                }
                assert_true(chosen > 0 && chosen <= 1.041 * best);
                /* As many as stages where a microbatch takes its time whatever is in it: a further one would cost. */
                if (kind == 2) assert_int_equal(k, stages);
                pen_step_cost_destroy(cost);
            }
}

static void test_chunks_are_as_good_as_any(void **state) {
    (void)state;
    srand(1);
    for (int i = 0; i < 500; i++) {
        int stages = 1 + rand() % 8, waiting = 1 + rand() % 4000, most = 1 + rand() % 512;
        double fixed = rand() % 40, row = rand() % 3;
        pen_step_cost *cost = even(stages, fixed, row);
        pen_budget_demand demand = {.prompts = 1, .prompt_rows = waiting, .prompt_rate = 4};
        pen_budget budget = pen_budget_of(cost, &demand, stages + 1, most);
        int limit = waiting < most ? waiting : most;
        assert_int_equal(budget.depth, stages + 1);
        assert_in_range(budget.chunk, 1, limit);
        if (stages == 1) assert_int_equal(budget.chunk, limit);
        if (budget.chunk < limit) assert_int_equal(budget.chunk % PEN_KV_BLOCK, 0);
        double best = INFINITY, ours = 0;
        for (int x = limit < PEN_KV_BLOCK ? limit : PEN_KV_BLOCK; x <= limit; x++) {
            double ms = ((double)waiting / x + stages - 1) * (fixed + row * x);
            best = fmin(best, ms);
            if (x == budget.chunk) ours = ms;
        }
        assert_true(ours <= 1.1 * best);
        assert_ms(budget.ms, fixed + row * budget.chunk);
        pen_step_cost_destroy(cost);
    }
}

/* No more than keeps up with decodes in the long run, unless much waits; a block for each prompt at most. */
static void test_chunks_keep_up_with_decodes(void **state) {
    (void)state;
    pen_step_cost *cost = even(2, 0, 1);
    bool kept_up = false, hurried = false, limited = false;
    for (int prompts = 1; prompts < 24; prompts++)
        for (int left = 8; left <= 1024; left *= 2) {
            pen_budget_demand demand = {.decodes = 24 - prompts,
                                        .prompts = prompts,
                                        .prompt_rows = left * prompts,
                                        .prompt_rate = 1.5,
                                        .output = 100};
            pen_budget budget = pen_budget_of(cost, &demand, 3, 512);
            double pace = 24 * 1.5, haste = left * prompts / 25.0;
            int rows = (int)ceil(fmax(pace, haste) / budget.depth), most = prompts * PEN_KV_BLOCK;
            assert_int_equal(budget.chunk, rows < most ? rows : most);
            limited = limited || rows > most;
            kept_up = kept_up || (rows <= most && haste < pace);
            hurried = hurried || (rows <= most && haste > pace);
        }
    assert_true(kept_up && hurried && limited);
    pen_step_cost_destroy(cost);
}

static void test_less_decodes_leave_more_to_prompts(void **state) {
    (void)state;
    pen_step_cost *cost = even(3, 7, 2);
    pen_budget_demand demand = {.decodes = 30, .prompts = 4, .prompt_rows = 1000, .prompt_rate = 6, .output = 100};
    pen_budget budget = pen_budget_of(cost, &demand, 4, 512);
    for (int decodes = 0; decodes <= 10; decodes++) {
        int rows = pen_budget_fill(cost, &demand, &budget, decodes, 512 - decodes);
        assert_true(7 + 2 * (decodes + rows) <= budget.ms + 1e-9);
        assert_true(7 + 2 * (decodes + rows + 1) > budget.ms);
    }
    assert_int_equal(pen_budget_fill(cost, &demand, &budget, 400, 112), 1);
    demand.decodes = 0;
    budget.ms = 0;
    assert_int_equal(pen_budget_fill(cost, &demand, &budget, 0, 112), PEN_KV_BLOCK);
    assert_int_equal(pen_budget_fill(cost, &demand, &budget, 0, 12), 12);
    pen_step_cost_destroy(cost);
}

/* Two stages, a block and the head: decodes beyond an even share cost the head more, which prompts cannot make up for;
 * they have what the block has left. */
static void test_prompts_do_not_pay_for_the_head(void **state) {
    (void)state;
    pen_plan *plan;
    assert_int_equal(pen_plan_create(3, 2, &plan), PEN_OK);
    static const double ms[] = {0, 32, 26};
    static const char *const names[] = {"embedding", "block.0", "head"};
    for (int u = 0; u < 3; u++) {
        plan->units[u].time_ms = ms[u];
        memcpy(plan->units[u].name, names[u], strlen(names[u]) + 1);
    }
    assert_int_equal(pen_plan_apply(plan, "custom", 2, (int[]){0, 2, 3}, 1000), PEN_OK);
    pen_step_shape planned = {.rows = 24, .logit_rows = 8, .decodes = 8};
    pen_step_cost *cost;
    assert_int_equal(pen_step_cost_create(plan, NULL, NULL, &planned, &cost), PEN_OK);
    pen_budget_demand demand = {.decodes = 13, .prompts = 3, .prompt_rows = 300, .prompt_rate = 2, .output = 64};
    pen_budget budget = pen_budget_of(cost, &demand, 3, 512);
    assert_int_equal(budget.depth, 2);
    int rows = pen_budget_fill(cost, &demand, &budget, 6, 500);
    assert_true(rows >= budget.chunk);
    assert_int_equal(pen_budget_fill(cost, &demand, &budget, 7, 500), rows - 1);
    pen_step_cost_destroy(cost);
    pen_plan_destroy(plan);
}

static void test_prompts_alone_take_idle_time_only(void **state) {
    (void)state;
    pen_step_cost *cost = even(8, 10, 0);
    /* Three decodes in three microbatches leave eight stages five microbatches' time. */
    pen_budget_demand demand = {.decodes = 3, .settled = 3, .prompts = 1, .prompt_rows = 2000, .prompt_rate = 1};
    pen_budget budget = pen_budget_of(cost, &demand, 9, 512);
    assert_int_equal(budget.depth, 8);
    for (int prompts = 0; prompts < 9; prompts++)
        assert_int_equal(pen_budget_has_time(cost, &demand, &budget, 3, prompts, 512), prompts < 5);
    demand.decodes = demand.settled = 80;
    budget = pen_budget_of(cost, &demand, 9, 512);
    assert_false(pen_budget_has_time(cost, &demand, &budget, 8, 0, 512));
    pen_step_cost_destroy(cost);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_costs_are_linear_between_points_and_proportional_beyond),
        cmocka_unit_test(test_the_plan_says_what_a_stage_takes),
        cmocka_unit_test(test_decodes_are_divided_while_that_fills_stages),
        cmocka_unit_test(test_chunks_are_as_good_as_any),
        cmocka_unit_test(test_chunks_keep_up_with_decodes),
        cmocka_unit_test(test_less_decodes_leave_more_to_prompts),
        cmocka_unit_test(test_prompts_do_not_pay_for_the_head),
        cmocka_unit_test(test_prompts_alone_take_idle_time_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
