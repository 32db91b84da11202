/* What runs an engine in the tests under mpirun: a model whose units are split evenly; no tokeniser, plan or profile.
 */
#ifndef PEN_MACHINERY_H
#define PEN_MACHINERY_H

#include "engine.h"
#include "model.h"
#include "step_cost.h"

typedef struct machinery_spec {
    const char *model;
    int rows, context, sequences;
    int blocks;    /* of KV; 0: enough for all sequences */
    int in_flight; /* 0: the schedule's choice */
    double overhead, timeout;
    bool exact, preempts;
} machinery_spec;

typedef struct machinery {
    pen_model *model;
    pen_device *device;
    pen_stage *stage;
    pen_step_cost *cost;
    pen_engine *engine;
} machinery;

/* This rank's, in an arranged world. What there is after a failure is to be unloaded, too. */
pen_status load_machinery(pen_world *world, const machinery_spec *spec, machinery *m);
void unload_machinery(machinery *m);

/* Rank 0 hears of everyone's process: pids[ranks], or NULL elsewhere. */
pen_status gather_pids(pen_world *world, int **pids);

/* Penalties, biases and bans for every request but each third, which is a neighbour without any. */
void add_rules(pen_request *request, int number);

#endif
