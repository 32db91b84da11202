/*
 * Metrics: where a stage's time went, and what that says about the pipeline.
 *
 * A meter is a stopwatch with one hand per state; the engine moves it at each change of state. Busy time is checked
 * against the CPU time of the same thread: a stage that was "busy" without a core was waiting for one. What is counted
 * is cut into laps, so that start-up, and a run's beginning and end, can be kept out of what is reported.
 */
#ifndef PEN_METRICS_H
#define PEN_METRICS_H

#include <stdbool.h>
#include <stdint.h>

typedef enum pen_activity {
    PEN_IDLE,         /* nothing to do */
    PEN_BUSY,         /* computing */
    PEN_WAIT_RECEIVE, /* a step is known and its input is not here */
    PEN_WAIT_SEND,    /* the next step needs memory whose rows are still being sent */
    PEN_ACTIVITIES
} pen_activity;

/* Plain data: it travels as bytes. */
typedef struct pen_metrics {
    double seconds[PEN_ACTIVITIES];
    double busy_cpu_s; /* CPU time of the engine's thread while busy */
    bool cpu_tells;    /* both should be the same: that thread computes, and never sleeps meanwhile */
    double work_s;     /* leader: wall time while there were unfinished requests */
    uint64_t steps, rows;
} pen_metrics;

typedef struct pen_meter {
    pen_metrics total; /* of the lap that runs */
    pen_metrics lap;   /* the last one that ended */
    double busy_s;     /* in all laps that ended */
    pen_activity activity;
    int64_t since_ns, since_cpu_ns;
} pen_meter;

void pen_meter_start(pen_meter *meter, bool cpu_tells);      /* from zero, idle */
void pen_meter_set(pen_meter *meter, pen_activity activity); /* what happens from now on */
void pen_meter_lap(pen_meter *meter);                        /* a lap ends, the next begins from zero */
double pen_meter_busy_s(const pen_meter *meter);             /* since the start */

typedef struct pen_efficiency {
    double split;    /* mean ÷ max of the stages' busy times: what the plan can give */
    double schedule; /* the busiest stage's busy time ÷ wall time while there was work */
    double pipeline; /* Σ busy ÷ (stages × that wall time) */
} pen_efficiency;

/* All 0 where nothing was done. */
pen_efficiency pen_metrics_efficiency(const pen_metrics *stages, int count);

#endif
