/* The file of --trace; see trace_file.h. */
#include "trace_file.h"

#include "log.h"

#include <inttypes.h>
#include <stdlib.h>

enum { PROBES = 64 };

/* ---- Writing ----------------------------------------------------------------------------------------------------- */

typedef struct writer {
    FILE *out;
    const pen_trace_track *tracks;
    int replicas, stages;
    int64_t zero_ns; /* the first record: times count from there */
} writer;

static int64_t ours(const pen_trace_track *track, int64_t time_ns) {
    return pen_clock_map_ours(&track->clock, time_ns);
}

/* Times are microseconds, exact to the nanosecond. */
static void put_time(const writer *w, const char *name, int64_t ns) {
    fprintf(w->out, ",\"%s\":%" PRId64 ".%03d", name, ns / 1000, (int)(ns % 1000));
}

/* Opens an event of track t at `time_ns`, our clock. */
static void put_event(const writer *w, const char *kind, int t, int64_t time_ns) {
    fprintf(w->out, ",\n{\"ph\":\"%s\",\"pid\":%d,\"tid\":%d", kind, t / w->stages, t % w->stages);
    put_time(w, "ts", time_ns - w->zero_ns);
}

static void put_names(const writer *w) {
    for (int r = 0; r < w->replicas; r++) {
        fprintf(w->out, "%s{\"ph\":\"M\",\"pid\":%d,\"name\":\"process_name\",\"args\":{\"name\":\"replica %d\"}}",
                r > 0 ? ",\n" : "", r, r);
        for (int s = 0; s < w->stages; s++) {
            fprintf(w->out,
                    ",\n{\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"name\":\"thread_name\",\"args\":{\"name\":\"stage %d\"}}",
                    r, s, s);
            fprintf(
                w->out,
                ",\n{\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"name\":\"thread_sort_index\",\"args\":{\"sort_index\":%d}}",
                r, s, s);
        }
    }
}

static const pen_trace_slice *find(const pen_trace_records *records, uint64_t step) {
    if (records->slice_count == 0 || step < records->slices[0].step) return NULL;
    uint64_t i = step - records->slices[0].step; /* no step is missing in between */
    return i < records->slice_count ? &records->slices[i] : NULL;
}

static void put_slice(const writer *w, int t, const pen_trace_slice *slice) {
    const pen_trace_track *track = &w->tracks[t];
    int s = t % w->stages;
    int64_t begin = ours(track, slice->begin_ns), end = ours(track, slice->end_ns);
    const char *kind = slice->decode_rows == 0 ? "prompt" : slice->decode_rows == slice->rows ? "decode" : "mixed";
    put_event(w, "X", t, begin);
    put_time(w, "dur", end - begin);
    fprintf(w->out,
            ",\"name\":\"%s\",\"args\":{\"step\":%" PRIu64
            ",\"rows\":%d,\"prompt_rows\":%d,\"decode_rows\":%d,\"context\":%d}}",
            kind, slice->step, slice->rows, slice->rows - slice->decode_rows, slice->decode_rows, slice->context);

    /* An arrow ends at the slice that begins at that very time, and begins inside the one that sent it. */
    uint64_t flow = slice->step * (uint64_t)w->replicas * (uint64_t)w->stages + (uint64_t)t;
    if (s + 1 < w->stages && find(&w->tracks[t + 1].records, slice->step)) {
        put_event(w, "s", t, end > begin ? end - 1 : begin);
        fprintf(w->out, ",\"cat\":\"link\",\"name\":\"activations\",\"id\":%" PRIu64 "}", flow);
    }
    if (s > 0 && find(&w->tracks[t - 1].records, slice->step)) {
        put_event(w, "f", t, begin);
        fprintf(w->out, ",\"bp\":\"e\",\"cat\":\"link\",\"name\":\"activations\",\"id\":%" PRIu64 "}", flow - 1);
    }
}

static void put_sample(const writer *w, int t, const pen_trace_sample *sample) {
    int64_t time_ns = ours(&w->tracks[t], sample->time_ns);
    put_event(w, "C", t, time_ns);
    fprintf(w->out, ",\"name\":\"requests\",\"args\":{\"waiting\":%d,\"running\":%d}}", sample->waiting,
            sample->running);
    put_event(w, "C", t, time_ns);
    fprintf(w->out, ",\"name\":\"free KV\",\"args\":{\"blocks\":%d}}", sample->free_blocks);
}

/* Counts come first in a microbatch's life, and clocks of several machines err: nothing may lie before zero. */
static int64_t earliest(const pen_trace_track *tracks, int count) {
    int64_t first = INT64_MAX;
    for (int t = 0; t < count; t++) {
        const pen_trace_records *records = &tracks[t].records;
        if (records->slice_count > 0 && ours(&tracks[t], records->slices[0].begin_ns) < first)
            first = ours(&tracks[t], records->slices[0].begin_ns);
        if (records->sample_count > 0 && ours(&tracks[t], records->samples[0].time_ns) < first)
            first = ours(&tracks[t], records->samples[0].time_ns);
    }
    return first;
}

pen_status pen_trace_write(FILE *out, const pen_trace_track *tracks, int replicas, int stages) {
    const writer w = {out, tracks, replicas, stages, earliest(tracks, replicas * stages)};
    uint64_t forgotten = 0;
    fputs("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n", out);
    put_names(&w);
    for (int t = 0; t < replicas * stages; t++) {
        const pen_trace_records *records = &tracks[t].records;
        for (size_t i = 0; i < records->slice_count; i++) put_slice(&w, t, &records->slices[i]);
        for (size_t i = 0; i < records->sample_count; i++) put_sample(&w, t, &records->samples[i]);
        forgotten += records->forgotten;
    }
    fprintf(out, "\n],\"otherData\":{\"program\":\"penstock\",\"forgotten\":%" PRIu64 "}}\n", forgotten);
    return fflush(out) == 0 && !ferror(out) ? PEN_OK : pen_fail(PEN_IO, "the trace cannot be written");
}

/* ---- On a world -------------------------------------------------------------------------------------------------- */

struct pen_tracer {
    pen_world *world;
    pen_clock_probe *before, *after; /* [size][PROBES] on rank 0, else NULL */
};

void pen_tracer_destroy(pen_tracer *tracer) {
    if (!tracer) return;
    free(tracer->before);
    free(tracer->after);
    free(tracer);
}

pen_status pen_tracer_begin(pen_world *world, pen_tracer **out) {
    pen_tracer *tracer = *out = calloc(1, sizeof *tracer);
    if (!tracer) return pen_fail(PEN_NO_MEMORY, "no memory for a trace");
    tracer->world = world;
    if (pen_world_rank(world) == 0) {
        size_t probes = (size_t)pen_world_size(world) * PROBES;
        tracer->before = calloc(probes, sizeof *tracer->before);
        tracer->after = calloc(probes, sizeof *tracer->after);
        if (!tracer->before || !tracer->after) return pen_fail(PEN_NO_MEMORY, "no memory for a trace");
    }
    return pen_world_probe_clocks(world, PROBES, tracer->before);
}

/* Ranks of rank 0's machine have its clock: no estimate is as good. */
static pen_clock_map clock_of(const pen_tracer *tracer, int rank) {
    if (rank == 0) return pen_clock_map_same();
    pen_clock_map map = pen_clock_map_fit(tracer->before + (size_t)rank * PROBES, PROBES,
                                          tracer->after + (size_t)rank * PROBES, PROBES);
    bool same = pen_world_place(tracer->world, rank)->node == pen_world_place(tracer->world, 0)->node;
    PEN_DEBUG("clock of rank %d: %+.1f us from rank 0's, %+.2f ppm, to %.1f us%s", rank,
              (double)(map.other_ns - map.ours_ns) * 1e-3, (1 / map.rate - 1) * 1e6, map.error_ns * 1e-3,
              same ? "; not used: they are on one machine" : "");
    return same ? pen_clock_map_same() : map;
}

/* Rank 0. */
static pen_status write_all(const pen_tracer *tracer, const pen_blob *blobs, FILE *out) {
    int size = pen_world_size(tracer->world);
    pen_trace_track *tracks = calloc((size_t)size, sizeof *tracks);
    if (!tracks) return pen_fail(PEN_NO_MEMORY, "no memory for a trace");
    pen_status status = PEN_OK;
    uint64_t forgotten = 0;
    for (int r = 0; r < size && status == PEN_OK; r++) {
        tracks[r].clock = clock_of(tracer, r);
        status = pen_trace_decode(blobs[r].data, blobs[r].bytes, &tracks[r].records);
        forgotten += tracks[r].records.forgotten;
    }
    if (forgotten > 0) PEN_WARN("the trace has no room for the first %" PRIu64 " records of the run", forgotten);
    if (status == PEN_OK)
        status = pen_trace_write(out, tracks, pen_world_replicas(tracer->world), pen_world_stages(tracer->world));
    free(tracks);
    return status;
}

pen_status pen_tracer_end(pen_tracer *tracer, const pen_trace *trace, FILE *out) {
    pen_world *world = tracer->world;
    PEN_TRY(pen_world_probe_clocks(world, PROBES, tracer->after));
    void *data;
    size_t bytes;
    PEN_TRY(pen_trace_encode(trace, &data, &bytes));
    size_t size = (size_t)pen_world_size(world);
    pen_blob *blobs = pen_world_rank(world) == 0 ? calloc(size, sizeof *blobs) : NULL;
    pen_status status = pen_world_rank(world) == 0 && !blobs
                            ? pen_fail(PEN_NO_MEMORY, "no memory for a trace")
                            : pen_world_gather(world, "collecting the trace", data, bytes, blobs);
    if (blobs && status == PEN_OK) {
        status = write_all(tracer, blobs, out);
        for (size_t r = 0; r < size; r++) free(blobs[r].data);
    }
    free(blobs);
    free(data);
    return status;
}
