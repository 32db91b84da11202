/* What the files of engine_run share; see engine_run.c. */
#ifndef PEN_ENGINE_RUN_H
#define PEN_ENGINE_RUN_H

#include "engine.h"

#include <stdbool.h>

typedef struct options {
    const char *model;
    int requests, choices, prompt, output, rows, threads, sequences, blocks, in_flight, schedules, seed, pressure,
        queue;
    double overhead, timeout, temperature;
    bool exact, score, penalties, measure, announce, debug, times, apart, preempts;
} options;

/* Leader: `options->pressure` requests, `options->queue` of them at a time; pids[ranks] are the job's processes. */
pen_status run_pressure(pen_engine *engine, const options *options, int vocab, const int *pids, int ranks);

#endif
