/*
 * What recording a step for --trace costs, without a run's noise, as JSON: bench_trace
 *
 * A stage adds a slice for each step and reads the clock twice for it; the leader adds a sample and reads it once. Both
 * together here, all through rings as large as a run's, which no cache of a core holds.
 */
#include "trace.h"
#include "clock.h"

#include <stdio.h>

enum { CAPACITY = 1 << 17, RECORDS = 1 << 21 };

static void record(pen_trace *trace, uint64_t step) {
    pen_trace_slice slice = {.step = step, .begin_ns = pen_clock_ns(), .rows = 24, .decode_rows = 8, .context = 160};
    slice.end_ns = pen_clock_ns();
    pen_trace_add_slice(trace, &slice);
    pen_trace_add_sample(trace, &(pen_trace_sample){.time_ns = pen_clock_ns(), .running = 16, .free_blocks = 100});
}

int main(void) {
    pen_trace *trace;
    if (pen_trace_create(CAPACITY, true, &trace) != PEN_OK) {
        fprintf(stderr, "bench_trace: %s\n", pen_last_error());
        return 1;
    }
    int64_t begin = pen_clock_ns();
    for (uint64_t i = 0; i < RECORDS; i++) record(trace, i);
    printf("{\"record_ns\": %.1f}\n", (double)(pen_clock_ns() - begin) / RECORDS);
    pen_trace_destroy(trace);
    return 0;
}
