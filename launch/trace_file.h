/*
 * The file of `--trace`: what all stages did when, on rank 0's clock, in the JSON that chrome://tracing and
 * ui.perfetto.dev open. A process per replica, a track per stage, a slice per microbatch, an arrow where its rows went
 * on, counters for waiting and running requests and for free KV.
 */
#ifndef PEN_TRACE_FILE_H
#define PEN_TRACE_FILE_H

#include "trace.h"
#include "world.h"

#include <stdio.h>

/* A stage's records, and its clock. */
typedef struct pen_trace_track {
    pen_trace_records records;
    pen_clock_map clock;
} pen_trace_track;

/* Pure. tracks[replicas · stages]; the first of each replica is its leader's. PEN_IO where `out` cannot be written. */
pen_status pen_trace_write(FILE *out, const pen_trace_track *tracks, int replicas, int stages);

/* What it takes on a running world: clocks compared at both ends of the run, the traces of all ranks brought together.
 * Every rank calls the same, with its own trace; the file counts on rank 0 only and stays open. */
typedef struct pen_tracer pen_tracer;
pen_status pen_tracer_begin(pen_world *world, pen_tracer **tracer);
pen_status pen_tracer_end(pen_tracer *tracer, const pen_trace *trace, FILE *out);
void pen_tracer_destroy(pen_tracer *tracer);

#endif
