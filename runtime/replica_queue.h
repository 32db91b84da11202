/*
 * A leader's queue: the requests that were given to its replica and have not started. From here they start, the most
 * urgent first (urgency.h has the order), or are cancelled, or expire, or another leader steals them. Pure: no
 * messages and no clock.
 *
 * Stealing. A leader that would otherwise run dry, or sees a queue much longer than its own, asks one other leader at a
 * time (`ask`). That one gives what the thief would finish sooner, up to half of its queue, perhaps nothing (`give`),
 * and raises the requests' hop; it tells rank 0. It keeps a tombstone of each, by which it forwards a cancel that still
 * came to it, until rank 0 says that it knows (`adopted`). The thief queues what it got (`take`) and tells rank 0.
 *
 * When the run drains, nobody asks any more and whoever is asked gives nothing; the counters of all leaders then say
 * whether anything is under way: what was received, and taken, has ended or was given.
 */
#ifndef PEN_REPLICA_QUEUE_H
#define PEN_REPLICA_QUEUE_H

#include "distributor.h"

#include <stddef.h>

typedef struct pen_replica_queue pen_replica_queue;

typedef struct pen_queued {
    pen_stamp stamp;
    int priority;
    int64_t arrived_ns;  /* at rank 0, by this leader's clock */
    int64_t deadline_ns; /* to start; 0: none */
    double cost_ms;      /* here */
    double prompt_ms;    /* … of which its prompt */
    void *payload;       /* malloc'ed bytes, owned by whoever has the entry */
    size_t bytes;
} pen_queued;

/* `cost`: this replica's, by which a thief and its victim compare their milliseconds. */
pen_status pen_replica_queue_create(int self, int replicas, bool steals, pen_token_cost cost,
                                    pen_replica_queue **queue);
void pen_replica_queue_destroy(pen_replica_queue *queue);

/* Takes the entry and its payload over. On failure they stay the caller's. */
pen_status pen_replica_queue_push(pen_replica_queue *queue, const pen_queued *entry);
/* The most urgent one; its payload is the caller's. */
bool pen_replica_queue_pop(pen_replica_queue *queue, int64_t now_ns, pen_queued *entry);
/* Its priority, without taking it. */
bool pen_replica_queue_peek(const pen_replica_queue *queue, int64_t now_ns, int *priority);
/* One that has waited for too long; as pop. */
bool pen_replica_queue_expire(pen_replica_queue *queue, int64_t now_ns, pen_queued *entry);

typedef enum pen_cancelled {
    PEN_CANCEL_QUEUED,   /* it was here, and is the caller's now */
    PEN_CANCEL_GIVEN,    /* it was given to another leader, to whom the cancel is to be forwarded */
    PEN_CANCEL_ELSEWHERE /* it is not here: it runs, or has ended */
} pen_cancelled;
/* `stamp`: as rank 0 knew it. *thief: whom to forward to, with *entry's stamp. */
pen_cancelled pen_replica_queue_cancel(pen_replica_queue *queue, pen_stamp stamp, pen_queued *entry, int *thief);

/* ---- Stealing ---------------------------------------------------------------------------------------------------- */

/* What a leader knows of another one: its last report. */
void pen_replica_queue_hear(pen_replica_queue *queue, int replica, const pen_replica_load *load);
void pen_replica_queue_lost(pen_replica_queue *queue, int replica);

enum { PEN_STEAL_MOST = 64 }; /* requests at a time */

/* Plain data: what a thief says of itself. */
typedef struct pen_steal_ask {
    double backlog_ms; /* what it has yet to do */
    double speed;      /* how fast it is: a cost of 1 ms takes it so much less than a millisecond */
    pen_token_cost cost;
    int running;    /* requests */
    int free_slots; /* … that it could start at once */
    int most;       /* … that it wants at most */
} pen_steal_ask;

/* Whether to ask now, and whom. `load` is this leader's own. */
bool pen_replica_queue_ask(pen_replica_queue *queue, const pen_replica_load *load, double speed, int free_slots,
                           int64_t now_ns, int *victim, pen_steal_ask *ask);
/* The answer to `ask`: entries for the thief, whose payloads are the caller's, at most `capacity`. Their stamps are
 * those of their life with the thief. Tombstones are left. */
int pen_replica_queue_give(pen_replica_queue *queue, int thief, const pen_steal_ask *ask, const pen_replica_load *load,
                           double speed, int64_t now_ns, pen_queued *entries, int capacity);
/* What `victim` answered is here: `count` entries were pushed. */
void pen_replica_queue_took(pen_replica_queue *queue, int victim, int count, int64_t now_ns);
/* Rank 0 knows that this one was given away. */
void pen_replica_queue_adopted(pen_replica_queue *queue, pen_stamp stamp);

/* ---- Draining and counting --------------------------------------------------------------------------------------- */

/* From now on nobody is asked, and nothing given. */
void pen_replica_queue_drain(pen_replica_queue *queue);
/* Nothing is queued, asked for or remembered. */
bool pen_replica_queue_is_still(const pen_replica_queue *queue);

int pen_replica_queue_length(const pen_replica_queue *queue);
double pen_replica_queue_cost_ms(const pen_replica_queue *queue);

/* Plain data. received + taken = left the queue for the engine + given + cancelled or expired here + length. */
typedef struct pen_queue_counts {
    uint64_t received, taken, given, started, removed;
    uint64_t asks; /* sent */
} pen_queue_counts;
pen_queue_counts pen_replica_queue_counts(const pen_replica_queue *queue);

#endif
