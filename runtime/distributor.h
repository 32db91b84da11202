/*
 * The distributor: rank 0's book of requests. It admits them, decides which replica gets which, and knows at any time
 * who has what, so that every request ends exactly once, whatever is moved, cancelled or lost meanwhile. Pure: what
 * happened comes in with its time, what is to be done comes out; no messages, no clock, no payloads.
 *
 * Life of a request. It waits in the admission buffer, which is bounded, until the policy has a replica for it with
 * room in its queue. There it waits until it starts; or it is stolen by another leader. The ledger says for each who
 * owns it, in which attempt (raised only here, when its replica is lost) and after how many steals (hop, raised only by
 * them). A leader speaks of a request by this stamp, and what speaks of a former life is ignored. The request ends when
 * its owner says so; or here, where nobody else can.
 *
 * Cost. What a replica has yet to do is the sum of its requests' costs, which the ledger knows at any time: what was
 * sent counts from that moment, and no report can erase it. A request costs its prompt, as far as the replica has not
 * computed the same beginning lately, and its output, each token so many milliseconds of the slowest stage; what came
 * back costs no more, and what has ended costs nothing. All of this is counted in whole nanoseconds, so that what goes
 * to an account leaves it to the last one.
 *
 * Weight. How much work a replica deserves: how fast it is against its profile, as it reports, and how busy it has
 * been: above 0.9 of its time 0.5, below 0.5 of it 1.5, else 1; looked at once a second, smoothed.
 *
 * Steals and losses. Messages of different leaders overtake each other, so a move may be heard of from the victim or
 * from the thief first, or of a later move before an earlier one: the highest (attempt, hop) is believed. What only the
 * victim has said is lost with the victim, too, for what it gave may never have left it. A life that turns up after its
 * request went on elsewhere, or has ended, is cancelled where it turns up. The wish to cancel belongs to the request:
 * it goes to every owner who has said that he has it.
 */
#ifndef PEN_DISTRIBUTOR_H
#define PEN_DISTRIBUTOR_H

#include "status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct pen_distributor pen_distributor;

/* Which life of a request is spoken of. */
typedef struct pen_stamp {
    int64_t id;
    int32_t attempt, hop;
} pen_stamp;

/* What a replica's time per token is on its slowest stage, while it does what its plan is for. */
typedef struct pen_token_cost {
    double prompt_ms, output_ms;
} pen_token_cost;

typedef struct pen_distributor_options {
    int replicas;
    const char *policy;          /* one of policy.h */
    int max_queue;               /* requests that wait here at most */
    int depth;                   /* … and at a leader, for all that is known here */
    const pen_token_cost *costs; /* [replicas]; copied */
    const int *slots;            /* [replicas] requests that run at a time; copied */
} pen_distributor_options;

pen_status pen_distributor_create(const pen_distributor_options *options, pen_distributor **distributor);
void pen_distributor_destroy(pen_distributor *distributor);

typedef struct pen_admission {
    int prompt, output;     /* tokens to compute, and to make at most */
    int choices;            /* outputs of this length; ≥ 1 */
    int priority;           /* lower is earlier; a wait of 5 s outranks all that came later */
    int64_t timeout_ns;     /* ends when it has not started after so long; 0: waits for ever */
    const uint64_t *prefix; /* [prefix_count] chained hashes of the prompt's blocks of PEN_KV_BLOCK; copied */
    int prefix_count;
} pen_admission;

/* PEN_QUEUE_FULL where the buffer is full. */
pen_status pen_distributor_admit(pen_distributor *distributor, const pen_admission *admission, int64_t now_ns,
                                 int64_t *id);
bool pen_distributor_has_room(const pen_distributor *distributor);
/* Milliseconds from now to its first token, for a request that was just admitted, as far as is known: on the replica
 * where that is soonest, (n − slots + 1) ÷ n of what the n requests before it cost must be gone, then comes its prompt.
 */
double pen_distributor_predict_ttft(const pen_distributor *distributor, int64_t id);

/* Ends a request as soon as it can be; the owner, or an action, says when. Also of one that is unknown (any more). */
void pen_distributor_cancel(pen_distributor *distributor, int64_t id);

/* ---- What is to be done ------------------------------------------------------------------------------------------ */

typedef enum pen_action_kind {
    PEN_ACTION_DISPATCH, /* send the request to the replica */
    PEN_ACTION_CANCEL,   /* tell the replica to cancel this life of it */
    PEN_ACTION_ADOPTED,  /* tell the replica, which gave it away, that this is known: no cancel of it will come there */
    PEN_ACTION_EXPIRED,  /* it has ended: it waited for too long */
    PEN_ACTION_CANCELLED /* it has ended, as was wished */
} pen_action_kind;

typedef struct pen_action {
    pen_action_kind kind;
    pen_stamp stamp;
    int replica;
    int64_t waited_ns; /* dispatch: since it was admitted */
    double cost_ms;    /* dispatch: there */
    double prompt_ms;  /* … of which its prompt */
} pen_action;

/* The next thing to do; false: nothing now. */
bool pen_distributor_next(pen_distributor *distributor, int64_t now_ns, pen_action *action);

/* ---- What leaders say. What returns whether it counts: a former life's does not. --------------------------------- */

bool pen_distributor_started(pen_distributor *distributor, int replica, pen_stamp stamp);
bool pen_distributor_progressed(pen_distributor *distributor, int replica, pen_stamp stamp, int tokens);
/* It has ended there, and so altogether. */
bool pen_distributor_ended(pen_distributor *distributor, int replica, pen_stamp stamp);
/* `replica` gave it to `thief`: `stamp` is that of its life there. The thief says so, too; either may come first. */
pen_status pen_distributor_moved(pen_distributor *distributor, int replica, pen_stamp stamp, int thief);
pen_status pen_distributor_taken(pen_distributor *distributor, int thief, pen_stamp stamp);

/* What a leader reports of itself now and then; since it was made, unless said otherwise. */
typedef struct pen_replica_load {
    int queued, running;          /* requests, now */
    double queued_ms, running_ms; /* what they still cost there */
    double busy_s;                /* of its slowest stage */
    double planned_ms, full_ms;   /* what the profile says of steps while the pipeline was full, and what they took */
    double steal_s;               /* that its leader spent on stealing, and on being stolen from */
} pen_replica_load;
void pen_distributor_report(pen_distributor *distributor, int replica, const pen_replica_load *load, int64_t now_ns);

/* The replica is gone: what it had goes to others, as a new attempt, behind the tokens that counted. */
void pen_distributor_lost(pen_distributor *distributor, int replica);
bool pen_distributor_alive(const pen_distributor *distributor, int replica);

/* ---- What is known ----------------------------------------------------------------------------------------------- */

typedef struct pen_replica_account {
    int requests; /* that it owns now */
    int waiting;  /* … and that have not started */
    double outstanding_ms;
    double weight, speed, utilisation;  /* of the last seconds; speed 1: as its profile says */
    uint64_t dispatched, stolen, ended; /* so far: sent there; taken from others; ended there */
} pen_replica_account;
pen_replica_account pen_distributor_account(const pen_distributor *distributor, int replica);
int pen_distributor_waiting(const pen_distributor *distributor); /* in the buffer */
int pen_distributor_open(const pen_distributor *distributor);    /* requests that have not ended */

#endif
