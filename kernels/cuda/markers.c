/*
 * Units' times: a pair of events around each unit's operations, from a ring of pairs. A pair is read when its place is
 * needed again, long after the stream passed it, or when somebody asks.
 */
#include "cuda_device.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { PAIRS = 1024 };

typedef struct pair {
    cudaEvent_t begin, end;
    int unit;
} pair;

struct pen_cuda_markers {
    pen_cuda_device *device;
    bool open;
    uint64_t begun, read; /* pairs */
    pair pairs[PAIRS];
    double ms[PEN_UNITS_MAX];
};

pen_status pen_cuda_markers_create(pen_cuda_device *device, pen_cuda_markers **out) {
    pen_cuda_markers *markers = calloc(1, sizeof *markers);
    if (!markers) return pen_fail(PEN_NO_MEMORY, "no memory for markers");
    markers->device = device;
    *out = markers;
    for (int i = 0; i < PAIRS; i++)
        if (cudaEventCreateWithFlags(&markers->pairs[i].begin, cudaEventDefault) != cudaSuccess ||
            cudaEventCreateWithFlags(&markers->pairs[i].end, cudaEventDefault) != cudaSuccess)
            return pen_fail(PEN_NO_MEMORY, "cannot create the events of the markers");
    return PEN_OK;
}

void pen_cuda_markers_destroy(pen_cuda_markers *markers) {
    if (!markers) return;
    for (int i = 0; i < PAIRS; i++) {
        if (markers->pairs[i].begin) cudaEventDestroy(markers->pairs[i].begin);
        if (markers->pairs[i].end) cudaEventDestroy(markers->pairs[i].end);
    }
    free(markers);
}

static void read_pair(pen_cuda_markers *markers) {
    pair *oldest = &markers->pairs[markers->read++ % PAIRS];
    float ms = 0;
    pen_cuda_wait(markers->device, oldest->end);
    if (pen_cuda_check(markers->device, cudaEventElapsedTime(&ms, oldest->begin, oldest->end), "reading an event"))
        markers->ms[oldest->unit] += (double)ms;
}

static void record(pen_cuda_device *device, cudaEvent_t event) {
    pen_cuda_check(device, cudaEventRecord(event, device->stream), "recording an event");
}

void pen_cuda_unit_begin(pen_device *device, int unit) {
    pen_cuda_markers *markers = pen_cuda(device)->markers;
    if (pen_cuda_graph_takes(pen_cuda(device), unit)) return;
    assert(!markers->open);
    if (markers->begun - markers->read == PAIRS) read_pair(markers);
    pair *begun = &markers->pairs[markers->begun % PAIRS];
    markers->open = true;
    begun->unit = unit;
    record(pen_cuda(device), begun->begin);
}

void pen_cuda_unit_end(pen_device *device) {
    pen_cuda_markers *markers = pen_cuda(device)->markers;
    if (!markers->open) return; /* nor was it begun */
    markers->open = false;
    record(pen_cuda(device), markers->pairs[markers->begun++ % PAIRS].end);
}

void pen_cuda_unit_reset(pen_device *device) {
    pen_cuda_markers *markers = pen_cuda(device)->markers;
    while (markers->read < markers->begun) read_pair(markers);
    memset(markers->ms, 0, sizeof markers->ms);
}

double pen_cuda_unit_ms(pen_device *device, int unit) {
    pen_cuda_markers *markers = pen_cuda(device)->markers;
    while (markers->read < markers->begun) read_pair(markers);
    return markers->ms[unit];
}
