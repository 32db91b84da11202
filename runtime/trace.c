/* Traces; see trace.h. */
#include "trace.h"

#include <stdlib.h>
#include <string.h>

/* Record n lies in n mod capacity. */
typedef struct ring {
    unsigned char *records;
    size_t record_bytes, capacity;
    uint64_t count; /* ever added */
} ring;

struct pen_trace {
    ring slices, samples;
};

/* Before the records. */
typedef struct trace_header {
    uint64_t slices, samples, forgotten;
} trace_header;

static bool make_ring(ring *r, int capacity, size_t record_bytes) {
    *r = (ring){
        .records = malloc((size_t)capacity * record_bytes), .record_bytes = record_bytes, .capacity = (size_t)capacity};
    /* So that no page is touched for the first time when it is needed. */
    if (r->records) memset(r->records, 0xff, (size_t)capacity * record_bytes);
    return r->records != NULL;
}

pen_status pen_trace_create(int capacity, bool leader, pen_trace **out) {
    pen_trace *trace = calloc(1, sizeof *trace);
    if (!trace || !make_ring(&trace->slices, capacity, sizeof(pen_trace_slice)) ||
        (leader && !make_ring(&trace->samples, capacity, sizeof(pen_trace_sample)))) {
        pen_trace_destroy(trace);
        return pen_fail(PEN_NO_MEMORY, "no memory for a trace of %d steps", capacity);
    }
    *out = trace;
    return PEN_OK;
}

void pen_trace_destroy(pen_trace *trace) {
    if (!trace) return;
    free(trace->slices.records);
    free(trace->samples.records);
    free(trace);
}

static void add(ring *r, const void *record) {
    memcpy(r->records + r->count++ % r->capacity * r->record_bytes, record, r->record_bytes);
}

void pen_trace_add_slice(pen_trace *trace, const pen_trace_slice *slice) {
    add(&trace->slices, slice);
}

void pen_trace_add_sample(pen_trace *trace, const pen_trace_sample *sample) {
    add(&trace->samples, sample);
}

static size_t kept(const ring *r) {
    return r->count < r->capacity ? (size_t)r->count : r->capacity;
}

/* Copies the records, oldest first; returns where the next ones go. */
static unsigned char *unroll(const ring *r, unsigned char *to) {
    for (uint64_t i = r->count - kept(r); i < r->count; i++, to += r->record_bytes)
        memcpy(to, r->records + i % r->capacity * r->record_bytes, r->record_bytes);
    return to;
}

pen_status pen_trace_encode(const pen_trace *trace, void **data, size_t *bytes) {
    const ring *slices = &trace->slices, *samples = &trace->samples;
    trace_header header = {.slices = kept(slices), .samples = kept(samples)};
    header.forgotten = slices->count - header.slices + samples->count - header.samples;
    *bytes = sizeof header + header.slices * sizeof(pen_trace_slice) + header.samples * sizeof(pen_trace_sample);
    unsigned char *to = *data = malloc(*bytes);
    if (!to) return pen_fail(PEN_NO_MEMORY, "no memory for a trace of %zu bytes", *bytes);
    memcpy(to, &header, sizeof header);
    to = unroll(slices, to + sizeof header);
    unroll(samples, to);
    return PEN_OK;
}

pen_status pen_trace_decode(const void *data, size_t bytes, pen_trace_records *records) {
    trace_header header = {0};
    size_t most = bytes / sizeof(pen_trace_sample);
    if (bytes >= sizeof header) memcpy(&header, data, sizeof header);
    if (bytes < sizeof header || header.slices > most || header.samples > most ||
        bytes != sizeof header + header.slices * sizeof(pen_trace_slice) + header.samples * sizeof(pen_trace_sample))
        return pen_fail(PEN_INTERNAL, "bad trace of %zu bytes", bytes);
    const unsigned char *slices = (const unsigned char *)data + sizeof header;
    *records = (pen_trace_records){.slices = (const void *)slices,
                                   .samples = (const void *)(slices + header.slices * sizeof(pen_trace_slice)),
                                   .slice_count = (size_t)header.slices,
                                   .sample_count = (size_t)header.samples,
                                   .forgotten = header.forgotten};
    return PEN_OK;
}
