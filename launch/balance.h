/*
 * How evenly a load was spread over the replicas: what each did, and the load-balance factor. Pure: from a load's log.
 *
 * The factor is the largest busy time of a replica ÷ the smallest one. Over a time without enough work for all it says
 * nothing; so besides that of the whole span there is the worst of its windows of 5 s in which requests were waiting
 * all the time, as far as the replicas' reports enclose them: a leader reports between two steps, which may be long.
 */
#ifndef PEN_BALANCE_H
#define PEN_BALANCE_H

#include "load.h"
#include "statistics.h"

typedef struct pen_replica_summary {
    double busy_s;      /* of its slowest stage, in the span */
    double utilisation; /* … ÷ its time */
    double queue_mean;  /* requests that waited at its leader, over time */
    int queue_most;
    double tokens;       /* of prompts and outputs that it did in the span, for requests that ended there at last */
    int requests;        /* that it ended in the span … */
    pen_statistics e2el; /* … and how long they took, ms */
    uint64_t stolen;     /* that it took from others, in the whole run */
    double steal_share;  /* of a core, for stealing */
} pen_replica_summary;

typedef struct pen_balance {
    pen_replica_summary *replicas; /* [log->replicas] */
    double factor;                 /* of the span; INFINITY where a replica did nothing */
    double worst_factor;           /* of its windows; 0 where there is none */
    int windows;
} pen_balance;

/* Free it in any case. */
pen_status pen_balance_of(const pen_load_log *log, pen_balance *balance);
void pen_balance_free(pen_balance *balance);

#endif
