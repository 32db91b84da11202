/*
 * A session: start-up from the options to running stages, the same steps on every rank:
 *
 *     open   rank 0's options for all; the ranks as replicas of stages; the model's metadata, which must be the same
 *            everywhere; the device
 *     plan   profile on every rank (or from the cache, or a file) → rank 0 solves, for each replica → everyone has its
 *            replica's plan
 *     load   each rank loads its own units and makes its engine
 *
 * Every step ends in agreement: it fails on all ranks or on none, with one status and one text. Only PEN_PEER_LOST is
 * known to fewer.
 *
 * Owner: the session owns model, device, plan, stage and engine; the world belongs to the caller.
 */
#ifndef PEN_SESSION_H
#define PEN_SESSION_H

#include "config.h"
#include "distributor.h"
#include "engine.h"
#include "forecast.h"
#include "model.h"
#include "plan.h"
#include "simulate.h"
#include "world.h"

typedef struct pen_session pen_session;

/* What a rank is busy with; `done` of `total` steps or bytes. For progress displays. */
typedef enum pen_phase { PEN_PHASE_PROFILE, PEN_PHASE_LOAD } pen_phase;
typedef void pen_session_progress(void *context, pen_phase phase, uint64_t done, uint64_t total);

/* `config` counts on rank 0 only. */
pen_status pen_session_open(pen_world *world, const pen_config *config, pen_session_progress *progress, void *context,
                            pen_session **session);
void pen_session_close(pen_session *session);

const pen_model *pen_session_model(const pen_session *session);
pen_world *pen_session_world(const pen_session *session); /* for pen_world_beat in what takes long */
int pen_session_max_len(const pen_session *session);      /* longest sequence allowed */

/* What the requests of this run need; counts on rank 0 only. */
typedef struct pen_session_need {
    int context;    /* positions of the longest sequence */
    int logit_rows; /* of a microbatch, at most */
    int sequences;  /* at the same time in a replica, as far as --max-num-seqs lets them */
    bool typical;   /* most are as long as the workload's: KV for as many of those, and at least one of the longest */
} pen_session_need;

/* `request` is the caller's own outcome on rank 0 so far (a prompt that is too long ends all ranks here). */
pen_status pen_session_plan(pen_session *session, pen_status request, const pen_session_need *need);
/* The plan of this rank's replica; rank 0's has the rivals and warnings. */
const pen_plan *pen_session_solved(const pen_session *session);

int pen_session_replicas(const pen_session *session);
int pen_session_slots(const pen_session *session); /* requests that run at a time in a replica */

const pen_config *pen_session_config(const pen_session *session); /* rank 0's, on every rank */
double pen_session_step_timeout_s(const pen_session *session);    /* after which a silent peer is lost */

/* Rank 0: the plan of a replica. Replicas that are alike have the very same one. */
const pen_plan *pen_session_solved_of(const pen_session *session, int replica);
/* What a token costs there; of another replica than its own only rank 0 knows. */
pen_token_cost pen_session_token_cost(const pen_session *session, int replica);

/* Rank 0: what the plans promise for so many sequences at a time, dealt to the replicas by their speed; `apart` as in
 * forecast.h. */
pen_forecast pen_session_forecast(const pen_session *session, int sequences, bool apart);

pen_status pen_session_load(pen_session *session);
pen_engine *pen_session_engine(pen_session *session);

/* A leader, after load: times the plan's microbatch on all stages of its replica at once, ten times, or once where
 * there is nothing to compare; ms[stages] are the medians. Unless it is to be exact it keeps nobody waiting: then only
 * as many times as are done at once. */
pen_status pen_session_measure(pen_session *session, bool exactly, double *ms);

/* Rank 0, after load: what the profile says of these requests on its own replica, beside which a run's measurements can
 * be put. simulation->stages: [stages of the plan]; `watch` may be NULL. Times are before --time-scale. */
pen_status pen_session_simulate(const pen_session *session, const pen_simulated_watch *watch,
                                pen_simulated_request *requests, int count, pen_simulation *simulation);

#endif
