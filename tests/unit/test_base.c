/* Status codes and their texts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "clock.h"
#include "status.h"

static pen_status fails(void) {
    return pen_fail(PEN_BAD_INPUT, "file %s:\nkey %d", "x", 7);
}

static pen_status passes_up(void) {
    PEN_TRY(fails());
    return PEN_OK;
}

static void test_failure_keeps_code_and_text_on_one_line(void **state) {
    (void)state;
    assert_int_equal(passes_up(), PEN_BAD_INPUT);
    assert_string_equal(pen_last_error(), "file x: key 7");
    assert_int_equal(pen_fail(PEN_IO, "again: %s", pen_last_error()), PEN_IO);
    assert_string_equal(pen_last_error(), "again: file x: key 7");
}

static void test_sleep_ends_at_its_deadline(void **state) {
    (void)state;
    int64_t deadline = pen_clock_ns() + 2000000;
    pen_clock_sleep_until(deadline);
    assert_true(pen_clock_ns() >= deadline);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_failure_keeps_code_and_text_on_one_line),
        cmocka_unit_test(test_sleep_ends_at_its_deadline),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
