/* What the files of the engine share: engine.c (common), leader.c and follower.c. */
#ifndef PEN_ENGINE_INTERNAL_H
#define PEN_ENGINE_INTERNAL_H

#include "engine.h"
#include "wait.h"
#include "worker.h"

typedef struct pen_leader pen_leader;
typedef struct pen_follower pen_follower;

struct pen_engine {
    pen_world *world;
    pen_device *device;
    pen_stage *stage;
    pen_engine_options options;
    pen_wire_limits limits;
    int index, stages;
    pen_link *link;
    pen_worker *worker;
    pen_meter meter;
    pen_trace *trace;   /* or NULL */
    pen_wait wait;      /* since anything last moved: deadlines run from there */
    pen_status failure; /* of a poke, kept until the computing that it interrupted is over */
    pen_leader *leader; /* on stage 0, else NULL */
    pen_follower *follower;
};

/* A wait: whom for, in what order among all waits. A stage that is stuck makes others wait, and of those only its
 * neighbours can name it; so that they speak first, a wait of a later order has a little more patience. */
typedef struct pen_engine_wait {
    pen_activity activity;
    bool outstanding; /* a step is: the clock runs */
    int peer;         /* stage */
    pen_channel channel;
    uint64_t step;
    int order;
} pen_engine_wait;

/* Nothing moved: rests a little, or fails with PEN_PEER_LOST when that has lasted too long. */
pen_status pen_engine_pause(pen_engine *engine, const pen_engine_wait *wait);
/* Something moved. */
void pen_engine_moved(pen_engine *engine);
/* Moves the links, and reports the failure of a poke. */
pen_status pen_engine_progress(pen_engine *engine, bool *moved);

/* Runs a made-up step of this shape on this rank's stage: how many ms it took. */
pen_status pen_engine_time_stage(pen_engine *engine, const pen_engine_shape *shape, double *ms);

pen_status pen_leader_create(pen_engine *engine);
void pen_leader_destroy(pen_leader *leader);

pen_status pen_follower_create(pen_engine *engine);
void pen_follower_destroy(pen_follower *follower);
/* Takes the steps that have arrived, and nothing else: for the poke. */
pen_status pen_follower_take_steps(pen_engine *engine);

#endif
