/*
 * The worker of a rank: it takes the steps that its stage is to run, in order, through the same life each: get a slot,
 * receive the rows, compute, send the rows on (or, on the last stage, the choices to the leader).
 *
 * Step n uses slot n mod slots; it may have it when step n − slots has been sent. The rows' receive is posted as soon
 * as the step is known and its slot is free. The last stage also keeps the histories that choices depend on; where a
 * step brings news of them, they come in a message of their own. Owner: the engine; device, stage and link outlive the
 * worker.
 */
#ifndef PEN_WORKER_H
#define PEN_WORKER_H

#include "link.h"
#include "metrics.h"
#include "stage.h"
#include "trace.h"
#include "wire.h"

#include <stdbool.h>

typedef struct pen_worker pen_worker;

typedef struct pen_worker_options {
    pen_device *device;
    pen_stage *stage;
    pen_link *link;
    pen_meter *meter;  /* told when computing begins and ends */
    pen_trace *trace;  /* of the steps; or NULL */
    int index, stages; /* this stage's number, and how many there are */
    int hidden;
    int steps; /* that can be known at a time */
    int slots;
    pen_wire_limits limits;
} pen_worker_options;

pen_status pen_worker_create(const pen_worker_options *options, pen_worker **worker);
void pen_worker_destroy(pen_worker *worker);

/* Where the next step is to be written; NULL while too many are known. */
pen_step *pen_worker_claim(pen_worker *worker);
/* The claimed step is complete. `tokens` [rows] on stage 0, else NULL; copied. */
pen_status pen_worker_push(pen_worker *worker, const int32_t *tokens);

/* Posts the receives that can be posted. Also for the device's poke. */
pen_status pen_worker_receive(pen_worker *worker);
/* Does what can be done now; runs one step at most. *moved is set where anything was done. */
pen_status pen_worker_advance(pen_worker *worker, bool *moved);

/* What it is about: idle where no step is known. In which step and, where it waits, for which channel. */
typedef struct pen_worker_state {
    pen_activity activity;
    uint64_t step;
    pen_channel channel;
} pen_worker_state;
pen_worker_state pen_worker_about(const pen_worker *worker);

/* When the device will be done with the step that it is at, by pen_clock_ns(); 0 where that is unknown, or nothing. */
int64_t pen_worker_due_ns(const pen_worker *worker);

/* Times a step that is not part of any sequence; the worker must be idle. */
pen_status pen_worker_time(pen_worker *worker, const pen_batch *batch, const pen_pick *picks, double *ms);

#endif
