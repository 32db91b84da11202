/*
 * The simulator: what a pipeline will do with a load, predicted without processes, devices or a clock.
 *
 * It runs the real schedule over the real block tables. What is simulated is only what happens to a microbatch between
 * being formed and coming back: stages that take their time in order, buffers, wires. Time starts at 0 and is in
 * milliseconds.
 */
#ifndef PEN_SIMULATE_H
#define PEN_SIMULATE_H

#include "metrics.h"
#include "profile.h"
#include "schedule.h"

/* A microbatch at a stage. */
typedef struct pen_simulated_step {
    pen_step_shape shape;
    double at_ms; /* when it begins */
} pen_simulated_step;

/* Milliseconds that a stage takes. */
typedef double pen_simulated_stage_ms(void *context, int stage, const pen_simulated_step *step);

/* A token of a request is there. What has not arrived yet may be made to arrive now. */
typedef void pen_simulated_token(void *context, int request, double at_ms);

/* What is watched of a simulation; zeros: all of it, silently. */
typedef struct pen_simulated_watch {
    double from_ms, to_ms; /* what stages do outside is not counted; to_ms 0: to the end */
    pen_simulated_token *on_token;
    void *context;
} pen_simulated_watch;

typedef struct pen_simulate_options {
    pen_schedule_options schedule;
    pen_kv_pools kv;
    int slots;            /* residual buffers of a stage */
    bool leader_computes; /* the leader's stage and the schedule share a thread, as on a CPU: steps are formed and
                           * come back between its stage's steps only */
    double latency_ms;    /* of a message */
    double ms_per_row;    /* of activations, on the wire */
    pen_simulated_stage_ms *stage_ms;
    void *context;
    pen_simulated_watch watch;
} pen_simulate_options;

typedef struct pen_simulated_request {
    double arrival_ms;       /* INFINITY: not before on_token says so */
    int prompt, output;      /* tokens, ≥ 1 */
    double first_ms, end_ms; /* filled in: when its first and its last token were there */
} pen_simulated_request;

typedef struct pen_simulation {
    double makespan_ms; /* until the last request was through */
    uint64_t steps;
    uint64_t pauses;
    pen_metrics *stages; /* [stages] given by the caller; work_s of the first is the leader's */
} pen_simulation;

/* `requests` are in order of arrival. PEN_NO_MEMORY where one of them can never run. */
pen_status pen_simulate(const pen_simulate_options *options, pen_simulated_request *requests, int count,
                        pen_simulation *simulation);

#endif
