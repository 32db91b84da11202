/*
 * For tests: a pipeline of stages in one process, each on a device of its own, a CPU where nothing else is said; rows
 * go from one to the next by way of the host, as they do over a link. Include it after cmocka.h.
 */
#ifndef PEN_TESTS_PIPELINE_H
#define PEN_TESTS_PIPELINE_H

#include "cpu.h"
#include "stage.h"

#include <stdlib.h>

enum { STAGES_MOST = 4 };

typedef struct pipeline_options {
    const char *model;
    int stages;
    int first[STAGES_MOST]; /* first unit of each stage: 0, … */
    pen_cpu_options cpu;
    pen_status (*open)(pen_activations activations, pen_device **device); /* or NULL: the CPU with these options */
    pen_stage_options stage;                                              /* but for first and last */
} pipeline_options;

typedef struct pipeline {
    pen_model *model;
    pen_device *devices[STAGES_MOST];
    pen_stage *stages[STAGES_MOST];
    int count, hidden;
} pipeline;

/* Makes the stages, and checks that each takes the memory that was predicted. */
static void open_pipeline(pipeline *p, const pipeline_options *o) {
    *p = (pipeline){.count = o->stages};
    if (pen_model_open(o->model, &p->model) != PEN_OK) fail_msg("%s", pen_last_error());
    p->hidden = pen_model_hparams(p->model)->hidden;
    for (int i = 0; i < p->count; i++) {
        pen_status opened =
            o->open ? o->open(o->cpu.activations, &p->devices[i]) : pen_cpu_device_create(&o->cpu, &p->devices[i]);
        if (opened != PEN_OK) fail_msg("%s", pen_last_error());
        pen_stage_options stage = o->stage;
        stage.first = o->first[i];
        stage.last = (i + 1 < p->count ? o->first[i + 1] : pen_model_unit_count(p->model)) - 1;
        size_t before = pen_device_bytes_used(p->devices[i]);
        if (pen_stage_create(p->model, p->devices[i], &stage, &p->stages[i]) != PEN_OK)
            fail_msg("%s", pen_last_error());
        assert_int_equal(pen_device_bytes_used(p->devices[i]) - before,
                         pen_stage_bytes(p->model, p->devices[i], &stage));
        assert_int_equal(pen_stage_has_head(p->stages[i]), i + 1 == p->count);
    }
}

static void close_pipeline(pipeline *p) {
    for (int i = 0; i < p->count; i++) {
        pen_stage_destroy(p->stages[i]);
        pen_device_destroy(p->devices[i]);
    }
    pen_model_close(p->model);
}

/* One microbatch through all stages; the choices are valid until the slot's next run. */
static const pen_choice *run_pipeline(pipeline *p, int slot, const pen_batch *batch, const pen_pick *picks) {
    size_t bytes = (size_t)batch->rows * (size_t)p->hidden * sizeof(float);
    float *rows = malloc(bytes);
    for (int i = 0; i < p->count; i++) {
        if (i > 0) pen_buffer_write(pen_stage_rows(p->stages[i], slot), 0, rows, bytes);
        pen_stage_run(p->stages[i], slot, batch, i + 1 == p->count ? picks : NULL);
        if (i + 1 < p->count) pen_buffer_read(pen_stage_rows(p->stages[i], slot), 0, rows, bytes);
        assert_int_equal(pen_device_sync(p->devices[i]), PEN_OK);
    }
    free(rows);
    return pen_stage_choices(p->stages[p->count - 1], slot);
}

#endif
