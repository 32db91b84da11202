/*
 * Unit tests of runtime/wait: how long a pause is at least, and which waits the log tells of. Instead of waiting for
 * long, they move the time at which a wait began.
 */
#include "wait.h"

#include "clock.h"
#include "log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static const int64_t ms = 1000 * 1000;

static int64_t pause_ns(pen_wait *wait, bool work_in_flight, int64_t due_ns) {
    int64_t begin = pen_clock_ns();
    pen_wait_pause(wait, work_in_flight, due_ns);
    return pen_clock_ns() - begin;
}

static void begin_ago(pen_wait *wait, int64_t ns) {
    wait->since_ns = pen_clock_ns() - ns;
}

static void test_pauses_without_a_core(void **state) {
    (void)state;
    pen_wait wait;
    pen_wait_init(&wait, false);
    assert_true(pause_ns(&wait, true, 0) >= ms / 10);
    assert_true(pause_ns(&wait, false, 0) >= ms / 10);
    begin_ago(&wait, 20 * ms);
    assert_true(pause_ns(&wait, false, 0) >= ms);
    begin_ago(&wait, 2000 * ms);
    assert_true(pause_ns(&wait, false, 0) >= 5 * ms);
    wait.patient = true;
    assert_true(pause_ns(&wait, true, 0) >= ms);
}

/* The best of many: somebody else may want the core. */
static void test_pauses_with_a_core(void **state) {
    (void)state;
    pen_wait wait;
    pen_wait_init(&wait, true);
    int64_t best = INT64_MAX;
    for (int i = 0; i < 1000; i++) {
        pen_wait_reset(&wait);
        int64_t pause = pause_ns(&wait, true, 0);
        best = pause < best ? pause : best;
    }
    assert_true(best < ms / 10);
    begin_ago(&wait, 2000 * ms);
    assert_true(pause_ns(&wait, false, 0) >= 5 * ms); /* idle is idle */
}

static void test_pauses_until_something_is_due(void **state) {
    (void)state;
    pen_wait wait;
    pen_wait_init(&wait, true);
    assert_true(pause_ns(&wait, true, pen_clock_ns() + ms / 2) >= ms / 2 - ms / 100);
    assert_true(pause_ns(&wait, true, pen_clock_ns() + 1000 * ms) < 1000 * ms); /* the links want to be moved */
}

static void test_long_waits_are_told_of_once(void **state) {
    (void)state;
    pen_wait wait;
    pen_wait_init(&wait, false);
    begin_ago(&wait, 150 * ms);
    assert_false(pen_wait_tells(&wait)); /* at the level of warnings */
    pen_log_init(PEN_LOG_DEBUG, -1);
    pen_wait_reset(&wait);
    assert_false(pen_wait_tells(&wait));
    begin_ago(&wait, 150 * ms);
    assert_true(pen_wait_seconds(&wait) >= 0.15);
    assert_true(pen_wait_tells(&wait));
    assert_false(pen_wait_tells(&wait));
    begin_ago(&wait, 150 * ms); /* the next long one, half a second behind that line */
    wait.told_ns -= 500 * ms;
    assert_false(pen_wait_tells(&wait));
    wait.told_ns -= 1000 * ms;
    assert_true(pen_wait_tells(&wait));
    pen_log_init(PEN_LOG_WARN, -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pauses_without_a_core),
        cmocka_unit_test(test_pauses_with_a_core),
        cmocka_unit_test(test_pauses_until_something_is_due),
        cmocka_unit_test(test_long_waits_are_told_of_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
