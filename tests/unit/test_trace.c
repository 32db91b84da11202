/* Traces: rings that forget their oldest, records as bytes; and clocks of other machines. */
#include "clock_map.h"
#include "trace.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_rings_keep_the_latest(void **state) {
    (void)state;
    pen_trace *trace;
    pen_trace_records records;
    void *data;
    size_t bytes;
    assert_int_equal(pen_trace_create(4, true, &trace), PEN_OK);
    for (int i = 0; i < 10; i++) pen_trace_add_slice(trace, &(pen_trace_slice){.step = (uint64_t)i, .rows = i});
    for (int i = 0; i < 3; i++) pen_trace_add_sample(trace, &(pen_trace_sample){.time_ns = i, .free_blocks = i});
    assert_int_equal(pen_trace_encode(trace, &data, &bytes), PEN_OK);
    assert_int_equal(pen_trace_decode(data, bytes, &records), PEN_OK);
    assert_int_equal(records.slice_count, 4);
    assert_int_equal(records.sample_count, 3);
    assert_int_equal(records.forgotten, 6);
    for (int i = 0; i < 4; i++) assert_int_equal(records.slices[i].step, 6 + i);
    for (int i = 0; i < 3; i++) assert_int_equal(records.samples[i].free_blocks, i);
    assert_int_equal(pen_trace_decode(data, bytes - 1, &records), PEN_INTERNAL);
    assert_int_equal(pen_trace_decode(data, 3, &records), PEN_INTERNAL);
    memset(data, 0xff, 8); /* a count that would overflow */
    assert_int_equal(pen_trace_decode(data, bytes, &records), PEN_INTERNAL);
    free(data);
    pen_trace_destroy(trace);
}

/* ---- Clocks ------------------------------------------------------------------------------------------------------ */

enum { PROBES = 64 };

static uint64_t random_state;

/* In [0, 1). */
static double draw(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(random_state >> 11) * 0x1p-53;
}

/* A way of 10 µs at least, mostly some tens more, and now and then a time slice of somebody else. */
static int64_t way(void) {
    double us = 10 - 30 * log1p(-draw());
    if (draw() < 0.1) us += 4000 * draw();
    return (int64_t)(us * 1000);
}

static int64_t other_clock(int64_t ours_ns, double offset_ns, double drift) {
    return ours_ns + llround(offset_ns + drift * (double)ours_ns);
}

static int64_t converse(pen_clock_probe *probes, int64_t now, double offset_ns, double drift) {
    for (int i = 0; i < PROBES; i++) {
        int64_t there = now + way(), back = there + way();
        probes[i] = (pen_clock_probe){now, back, other_clock(there, offset_ns, drift)};
        now = back;
    }
    return now;
}

/* ±50 ms and ±100 ppm come back within 50 µs, at any time of the run. */
static void test_offset_and_drift_are_found(void **state) {
    (void)state;
    static const double offsets_ns[] = {50e6, -50e6, 0}, drifts[] = {100e-6, -100e-6, 0}, run_s[] = {2, 60, 3600};
    random_state = 1;
    for (int i = 0; i < 3 * 3 * 3; i++) {
        double offset = offsets_ns[i % 3], drift = drifts[i / 3 % 3];
        int64_t length = (int64_t)(run_s[i / 9] * 1e9);
        pen_clock_probe before[PROBES], after[PROBES];
        int64_t begin = converse(before, INT64_C(777000000000), offset, drift);
        converse(after, begin + length, offset, drift);
        pen_clock_map map = pen_clock_map_fit(before, PROBES, after, PROBES);
        assert_true(map.error_ns > 0 && map.error_ns < 50e3);
        for (int t = 0; t <= 10; t++) {
            int64_t now = begin + length / 10 * t;
            double error = (double)(pen_clock_map_ours(&map, other_clock(now, offset, drift)) - now);
            if (fabs(error) > 50e3) fail_msg("case %d at %d/10: %.1f us off", i, t, error / 1000);
        }
    }
}

/* A run so short that noise would pass for drift: the offset alone, of the better probe. */
static void test_short_runs_have_no_drift(void **state) {
    (void)state;
    pen_clock_probe before = {1000000, 1400000, 6000000}, after = {2000000, 2020000, 7010000};
    pen_clock_map map = pen_clock_map_fit(&before, 1, &after, 1);
    assert_true(map.rate == 1);
    assert_int_equal(pen_clock_map_ours(&map, 7010000), 2010000);
    map = pen_clock_map_same();
    assert_int_equal(pen_clock_map_ours(&map, 123456789), 123456789);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rings_keep_the_latest),
        cmocka_unit_test(test_offset_and_drift_are_found),
        cmocka_unit_test(test_short_runs_have_no_drift),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
