/* The pace: what is counted while the pipeline is full, and what is not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "pace.h"

enum { MS = 1000000 };

/* `count` steps come back, `ms` milliseconds apart, and another is launched for each. */
static int64_t land(pen_pace *pace, int64_t now_ns, int count, double ms, pen_passage planned, int depth, int wanted) {
    for (int i = 0; i < count; i++) {
        now_ns += (int64_t)(ms * MS);
        pen_pace_landed(pace, &planned, now_ns);
        pen_pace_launched(pace, depth, wanted);
    }
    return now_ns;
}

static void test_a_full_pipeline_is_as_fast_as_its_slowest_stage(void **state) {
    (void)state;
    pen_pace pace = {0};
    const pen_passage planned = {.most_ms = 10, .sum_ms = 30};
    pen_pace_launched(&pace, 4, 4);
    int64_t now = land(&pace, 1000, 1, 30, planned, 4, 4); /* the first one's way says nothing */
    assert_true(pace.planned_ms == 0 && pace.full_ms == 0);
    now = land(&pace, now, 50, 10, planned, 4, 4);
    assert_true(pace.planned_ms > 499 && pace.planned_ms < 501 && pace.full_ms > 499 && pace.full_ms < 501);
    land(&pace, now, 50, 20, planned, 4, 4); /* half as fast */
    assert_true(pace.planned_ms > 999 && pace.planned_ms < 1001 && pace.full_ms > 1499 && pace.full_ms < 1501);
}

static void test_fewer_microbatches_than_stages_take_their_way(void **state) {
    (void)state;
    pen_pace pace = {0};
    const pen_passage planned = {.most_ms = 10, .sum_ms = 30};
    pen_pace_launched(&pace, 1, 1);
    land(&pace, 1000, 11, 30, planned, 1, 1);
    assert_true(pace.planned_ms == 300 && pace.full_ms > 299.9 && pace.full_ms < 300.1);
}

static void test_gaps_do_not_count(void **state) {
    (void)state;
    pen_pace pace = {0};
    const pen_passage planned = {.most_ms = 10, .sum_ms = 30};
    int64_t now = 1000;
    for (int burst = 0; burst < 5; burst++) {
        pen_pace_launched(&pace, 3, 3);
        now = land(&pace, now, 3, 10, planned, 3, 3);
        now = land(&pace, now, 2, 10, planned, 2, 3); /* it drains: the first of these came back while it was full */
        now += (int64_t)1000 * MS;
    }
    assert_true(pace.planned_ms == 5 * 3 * 10);
    assert_true(pace.full_ms > 149.9 && pace.full_ms < 150.1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_full_pipeline_is_as_fast_as_its_slowest_stage),
        cmocka_unit_test(test_fewer_microbatches_than_stages_take_their_way),
        cmocka_unit_test(test_gaps_do_not_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
