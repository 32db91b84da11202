/* The pace: a pipeline as planned and one that is slower, with what is counted of them and what is not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "pace.h"

enum { MS = 1000000, STAGES = 3, FLIGHTS = 8 };

/* A pipeline of three stages of 10 ms for each microbatch, as planned. */
typedef struct pipe_line {
    pen_step_cost *cost;
    pen_pace pace;
    double free_ms[STAGES], now_ms;
    double planned_ms[FLIGHTS], due_ms[FLIGHTS]; /* of those in flight: step n in n mod FLIGHTS */
    int launched, landed;
} pipe_line;

static pipe_line make_pipe(void) {
    pipe_line made = {.now_ms = 1};
    assert_int_equal(pen_step_cost_create_even(STAGES, 10, 0, &made.cost), PEN_OK);
    assert_int_equal(pen_pace_create(made.cost, &made.pace), PEN_OK);
    return made;
}

static void free_pipe(pipe_line *made) {
    pen_pace_destroy(&made->pace);
    pen_step_cost_destroy(made->cost);
}

static void fill(pipe_line *pipe, int depth, int wanted, double slowness) {
    const pen_step_shape shape = {.rows = 1, .logit_rows = 1, .decodes = 1};
    for (; pipe->launched - pipe->landed < depth; pipe->launched++) {
        double ms = pipe->now_ms;
        for (int s = 0; s < STAGES; s++)
            ms = pipe->free_ms[s] = (ms > pipe->free_ms[s] ? ms : pipe->free_ms[s]) + 10 * slowness;
        pipe->due_ms[pipe->launched % FLIGHTS] = ms;
        pipe->planned_ms[pipe->launched % FLIGHTS] = pen_pace_launch(&pipe->pace, &shape);
    }
    pen_pace_fill(&pipe->pace, pipe->launched - pipe->landed, wanted);
}

static void land(pipe_line *pipe) {
    int i = pipe->landed++ % FLIGHTS;
    pipe->now_ms = pipe->due_ms[i];
    pen_pace_land(&pipe->pace, pipe->planned_ms[i], (int64_t)(pipe->now_ms * MS));
}

static void assert_about(double value, double expected) {
    assert_true(value > expected - 0.001 && value < expected + 0.001);
}

static void test_the_pace_is_the_same_at_any_depth(void **state) {
    (void)state;
    for (int depth = 1; depth <= STAGES + 1; depth++)
        for (int slowness = 1; slowness <= 2; slowness++) {
            pipe_line pipe = make_pipe();
            fill(&pipe, depth, depth, slowness);
            for (int i = 0; i <= 50 * depth; i++) {
                land(&pipe);
                fill(&pipe, depth, depth, slowness);
            }
            /* A round takes as long as its steps on one stage, or as one step on all. */
            double round_ms = 10 * (depth > STAGES ? depth : STAGES);
            assert_about(pipe.pace.planned_ms, 50 * round_ms);
            assert_about(pipe.pace.full_ms, 50 * round_ms * slowness);
            free_pipe(&pipe);
        }
}

static void test_gaps_do_not_count(void **state) {
    (void)state;
    pipe_line pipe = make_pipe();
    for (int burst = 0; burst < 5; burst++) {
        fill(&pipe, 3, 3, 1);
        for (int i = 0; i < 6; i++) {
            land(&pipe);
            fill(&pipe, 3, 3, 1);
        }
        while (pipe.landed < pipe.launched) { /* it drains: the first of these comes back while it is full */
            land(&pipe);
            fill(&pipe, 0, 3, 1);
        }
        pipe.now_ms += 1000;
    }
    /* Of seven steps from the first, two rounds of three. */
    assert_about(pipe.pace.planned_ms, 5 * 2 * 30);
    assert_about(pipe.pace.full_ms, 5 * 2 * 30);
    free_pipe(&pipe);
}

static void test_without_costs_there_is_no_pace(void **state) {
    (void)state;
    pen_pace pace;
    const pen_step_shape shape = {.rows = 1, .logit_rows = 1, .decodes = 1};
    assert_int_equal(pen_pace_create(NULL, &pace), PEN_OK);
    for (int i = 1; i < 5; i++) {
        double planned_ms = pen_pace_launch(&pace, &shape);
        pen_pace_fill(&pace, 1, 1);
        pen_pace_land(&pace, planned_ms, (int64_t)i * MS);
    }
    assert_true(pace.planned_ms == 0 && pace.full_ms == 0);
    pen_pace_destroy(&pace);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_pace_is_the_same_at_any_depth),
        cmocka_unit_test(test_gaps_do_not_count),
        cmocka_unit_test(test_without_costs_there_is_no_pace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
