/*
 * A replica as its leader runs it: requests come by mail, wait in the leader's queue, run in the engine, and what comes
 * of them goes back by mail. The leader of rank 0 does the same, with the front end beside it in the same thread.
 *
 * Owner: the caller keeps mail and engine alive; the replica owns the queue.
 */
#ifndef PEN_REPLICA_H
#define PEN_REPLICA_H

#include "engine.h"
#include "mail.h"
#include "replica_queue.h"

typedef struct pen_replica pen_replica;

typedef struct pen_replica_options {
    int self, replicas, stages;
    int slots; /* requests that run at a time */
    bool steals;
    bool preempts;             /* a more urgent request may put a running one aside */
    pen_token_cost cost;       /* by the profile */
    double busy_share;         /* the slowest stage's time ÷ the leader's own, by the plan */
    const double *measured_ms; /* [stages] for the front end to know; only read while it is made */
} pen_replica_options;

/* `world`: ranks of this machine that die are told of, where the launcher lets the others live. */
pen_status pen_replica_create(pen_world *world, pen_mail *mail, pen_engine *engine, const pen_replica_options *options,
                              pen_replica **replica);
void pen_replica_destroy(pen_replica *replica);
pen_engine *pen_replica_engine(pen_replica *replica);

/* Does what can be done now: mail, at most one step. */
pen_status pen_replica_turn(pen_replica *replica, bool *moved);
/* Nothing moved: rests a little, and no longer than a short while where `expects` says that others are at work, too;
 * fails where something that it waits for does not come. */
pen_status pen_replica_rest(pen_replica *replica, bool expects);
bool pen_replica_is_stopped(const pen_replica *replica); /* the front end said so */

/* Serves until the front end says stop. */
pen_status pen_replica_serve(pen_replica *replica);
/* The replica has failed: tells the front end, so that others go on with its requests. */
void pen_replica_give_up(pen_replica *replica);

#endif
