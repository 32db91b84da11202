/*
 * How much work a replica deserves, learned from what it reports; see distributor.h for the rule. A look is taken once
 * a second, and what it shows is mixed with what was known.
 */
#ifndef PEN_REPLICA_WEIGHT_H
#define PEN_REPLICA_WEIGHT_H

#include "distributor.h"

typedef struct pen_replica_weight {
    double speed;       /* against its profile */
    double utilisation; /* of its slowest stage */
    double band;        /* what its utilisation makes of the weight */
    /* Private: */
    int looks;                  /* at its utilisation; the first only says where to count from */
    int64_t looked_ns;          /* the last one */
    double busy_s;              /* … as reported then */
    int speeds;                 /* looks at its speed */
    double planned_ms, full_ms; /* as reported at the last of those */
} pen_replica_weight;

pen_replica_weight pen_replica_weight_at_first(void);
void pen_replica_weight_learn(pen_replica_weight *weight, const pen_replica_load *load, int64_t now_ns);
double pen_replica_weight_value(const pen_replica_weight *weight);

#endif
