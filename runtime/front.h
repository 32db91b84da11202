/*
 * The front end: what commands on rank 0 talk to. It takes requests, has the distributor choose a replica for each,
 * sends them there, and calls back with what comes of them. To a command, R replicas look like one engine.
 *
 * It keeps every request's payload until its end, so that another replica can go on where a lost one was: behind the
 * prompt and the tokens that had come. A replica is lost when one of its ranks is seen to have ended, or its leader has
 * been silent for too long; where the launcher does not let the others live that is the end of the run.
 *
 * At log level info it says once a second, while there is work, what each of several replicas is doing.
 *
 * Owner: the caller keeps world, mail and rank 0's replica alive. Callbacks come from within pen_front_run*.
 */
#ifndef PEN_FRONT_H
#define PEN_FRONT_H

#include "distributor.h"
#include "engine.h"
#include "mail.h"
#include "replica.h"

typedef struct pen_front pen_front;

typedef struct pen_front_options {
    int replicas, stages;
    const char *policy;
    int max_queue;
    double queue_timeout_s;      /* of every request; 0: none */
    double patience_s;           /* silence after which a replica counts as lost */
    const pen_token_cost *costs; /* [replicas] */
    const int *slots;            /* [replicas] */
} pen_front_options;

/* `local` is rank 0's own replica. Waits until every leader is ready. */
pen_status pen_front_create(pen_world *world, pen_mail *mail, pen_replica *local, const pen_front_options *options,
                            pen_front **front);
void pen_front_destroy(pen_front *front);
int pen_front_replicas(const pen_front *front);
int pen_front_stages(const pen_front *front); /* of a replica */

/* As pen_engine_submit, which see; nothing is given. PEN_QUEUE_FULL where as many wait as may: try again after a
 * callback. *id (or NULL) is for pen_front_cancel. */
pen_status pen_front_submit(pen_front *front, const pen_request *request, int64_t *id);
bool pen_front_has_room(const pen_front *front);
/* Its completions end with PEN_FINISH_CANCELLED, soon, unless they ended otherwise before that. No more tokens come. */
void pen_front_cancel(pen_front *front, int64_t id);
/* The replica that last had to do with it. */
int pen_front_replica_of(const pen_front *front, int64_t id);
/* What was predicted when it was admitted: milliseconds to its first token. */
double pen_front_predicted_ttft_ms(const pen_front *front, int64_t id);

/* Runs until all requests are done; or until the clock says `deadline_ns`, or a callback has said wake. */
pen_status pen_front_run(pen_front *front);
pen_status pen_front_run_until(pen_front *front, int64_t deadline_ns);
void pen_front_wake(pen_front *front);      /* pen_front_run_until returns after this turn */
int pen_front_open(const pen_front *front); /* requests that are not done */

/* As pen_engine_hold, _lap and _metrics, of all replicas: stages[replicas · stages]. */
pen_status pen_front_hold(pen_front *front, bool hold);
pen_status pen_front_lap(pen_front *front);
pen_status pen_front_metrics(pen_front *front, pen_metrics *stages);

/* What each stage took for the plan's microbatch when it started: ms[replicas · stages]. */
void pen_front_measured(const pen_front *front, double *ms);

/* What is known of a replica; of lost ones, too. */
typedef struct pen_replica_state {
    bool alive;
    pen_replica_account account;
    pen_replica_load load; /* its last report */
} pen_replica_state;
int pen_front_lost(const pen_front *front); /* replicas; where the launcher recovers, the run goes on without them */
pen_replica_state pen_front_replica(const pen_front *front, int replica);

int pen_front_waiting(const pen_front *front); /* requests that are not given to a replica yet */

/* Called with every report of a load, and whenever a replica was lost. */
typedef void pen_front_watch(void *context, int replica);
void pen_front_set_watch(pen_front *front, pen_front_watch *watch, void *context);

/* Ends all leaders' pen_replica_serve, after it has made sure that every request is accounted for. */
pen_status pen_front_stop(pen_front *front);

#endif
