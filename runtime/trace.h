/*
 * A trace: what a stage did when, step by step, and on the leader how long the queue was and how much KV was free.
 *
 * Recording is a clock read and a few stores into rings that were made and touched beforehand: no I/O, no memory, no
 * lock on the hot path. A full ring forgets its oldest records. After the run the traces travel as bytes to rank 0,
 * which knows how the clocks relate (clock_map.h) and writes the file.
 */
#ifndef PEN_TRACE_H
#define PEN_TRACE_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A microbatch on a stage. */
typedef struct pen_trace_slice {
    uint64_t step;
    int64_t begin_ns, end_ns;
    int32_t rows, decode_rows; /* all of them, and those of runs of a single row that wants logits */
    int32_t context;           /* largest position + 1 */
} pen_trace_slice;

/* On the leader, whenever a step leaves. */
typedef struct pen_trace_sample {
    int64_t time_ns;
    int32_t waiting, running; /* requests */
    int32_t free_blocks;      /* of KV, in the first group of layers */
} pen_trace_sample;

typedef struct pen_trace pen_trace;

/* Rings of `capacity` records; the samples' only on the leader. */
pen_status pen_trace_create(int capacity, bool leader, pen_trace **trace);
void pen_trace_destroy(pen_trace *trace);

void pen_trace_add_slice(pen_trace *trace, const pen_trace_slice *slice);
void pen_trace_add_sample(pen_trace *trace, const pen_trace_sample *sample);

/* What was recorded, oldest first. */
typedef struct pen_trace_records {
    const pen_trace_slice *slices;
    const pen_trace_sample *samples;
    size_t slice_count, sample_count;
    uint64_t forgotten; /* slices and samples that did not fit */
} pen_trace_records;

/* As bytes; malloc'ed. Decoding checks the counts against the length; the records point into `data`. */
pen_status pen_trace_encode(const pen_trace *trace, void **data, size_t *bytes);
pen_status pen_trace_decode(const void *data, size_t bytes, pen_trace_records *records);

#endif
