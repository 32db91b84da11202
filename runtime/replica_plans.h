/*
 * The plans of all replicas: from what every rank measured to a solved plan for each replica, on rank 0. Pure: no
 * messages.
 *
 * Replicas on the same devices whose times differ by noise only are of one kind and have one plan, for the average of
 * their times: so what is equal is split equally. What differs (a slower device, less memory, a slower wire) has a
 * plan of its own. Sizes of a stage (rows, sequences, KV) are the same for all.
 *
 * Owner: the object owns plans and costs; nothing of what it was made from is kept.
 */
#ifndef PEN_REPLICA_PLANS_H
#define PEN_REPLICA_PLANS_H

#include "config.h"
#include "model.h"
#include "plan.h"
#include "profile.h"
#include "step_cost.h"

typedef struct pen_replica_plans pen_replica_plans;

/* What is known of a rank. */
typedef struct pen_rank_report {
    int node;
    char device[PEN_PLAN_NAME];
    uint64_t memory;            /* bytes; 0: no limit */
    int numa_nodes;             /* as in pen_plan_device */
    double send_ms, wire_ms;    /* to the next stage, as in pen_plan_device, for the steady microbatch of the config */
    const pen_profile *profile; /* NULL, for all ranks: the times are the config's file's */
    const pen_plan_unit *sizes; /* [units] what they take on its device */
} pen_rank_report;

typedef struct pen_replica_plans_options {
    const pen_model *model;
    const pen_config *config;
    int replicas, stages;
    const pen_rank_report *ranks; /* [replicas · stages] */
    int rows;                     /* of a microbatch at most */
    int64_t kv_tokens;            /* of a replica */
} pen_replica_plans_options;

pen_status pen_replica_plans_solve(const pen_replica_plans_options *options, pen_replica_plans **plans);
void pen_replica_plans_destroy(pen_replica_plans *plans);

/* Replicas of one kind have the very same plan. */
const pen_plan *pen_replica_plans_plan(const pen_replica_plans *plans, int replica);
const pen_step_cost *pen_replica_plans_cost(const pen_replica_plans *plans, int replica);

/* The workload of a config, as a plan has it. */
pen_plan_workload pen_replica_plans_workload(const pen_config *config);
/* What a step costs on the stages of a solved plan with microbatches of at most `rows` rows; `profile`: see
 * step_cost.h. */
pen_status pen_replica_plans_make_cost(const pen_plan *plan, const pen_model *model, const pen_profile *profile,
                                       int rows, pen_step_cost **cost);

#endif
