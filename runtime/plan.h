/*
 * The plan: which units a stage gets, and the measurements from which that follows.
 *
 * One object for all of it, because it is also one JSON object: what `plan --json` prints, what `--profile FILE` reads
 * and what rank 0 broadcasts. Whoever has measurements (a profile, a file, an estimate from shapes) fills the first
 * half; pen_plan_solve fills the second. Plain data: read any field, let only the functions here change the second
 * half.
 */
#ifndef PEN_PLAN_H
#define PEN_PLAN_H

#include "partition.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    PEN_PLAN_VERSION = 1,
    PEN_PLAN_PROMPT = 512, /* the default workload */
    PEN_PLAN_OUTPUT = 128,
    PEN_PLAN_NAME = 64,
    PEN_PLAN_METHODS = 8, /* at most */
    PEN_PLAN_POINTS = 16, /* of the trade of KV capacity for speed */
    PEN_PLAN_REMARKS = 8, /* at most */
    PEN_PLAN_TEXT = 256,
};

/* What the plan is for: prompts of P tokens, answers of G tokens, N sequences at once. */
typedef struct pen_plan_workload {
    int prompt_tokens, output_tokens;
    int max_num_seqs; /* 0: 16 per stage */
    int microbatches; /* that they are spread over; 0: one more than there are stages */
} pen_plan_workload;

typedef struct pen_plan_unit {
    char name[PEN_PLAN_NAME]; /* a first one that says "embed" and a last one that says "head" are no layers */
    double time_ms;           /* in the workload's microbatch, on a device of speed 1 */
    uint64_t weight_bytes;
    uint64_t kv_bytes_per_token;
    uint64_t kv_window_bytes; /* of a layer that sees a window: what all sequences hold there, however long they get */
    uint64_t workspace_bytes;
} pen_plan_unit;

/* One for each stage in rank order, or one for all of them. */
typedef struct pen_plan_device {
    char name[PEN_PLAN_NAME];
    uint64_t memory_bytes; /* 0: no limit */
    double speed;          /* a unit takes time_ms ÷ speed here */
    int numa_nodes;        /* that its cores lie on, where that is known: on more than one, memory is partly far away */
    double *unit_ms;       /* [unit_count] measured here, instead of time_ms ÷ speed; or NULL */
    double send_ms;        /* to hand a microbatch on: the stage's own time (nothing for the last stage) … */
    double wire_ms;        /* … and the time on the wire */
} pen_plan_device;

typedef struct pen_plan_stage {
    int first, last; /* units */
    int device;
    double time_ms;
    uint64_t memory_bytes;
    uint64_t memory_limit; /* 0: none */
} pen_plan_stage;

typedef struct pen_plan_rival {
    const char *method;
    pen_partition_score score;
} pen_plan_rival;

/* What a person should know about the plan. */
typedef struct pen_plan_remark {
    bool warning; /* else a note */
    char text[PEN_PLAN_TEXT];
} pen_plan_remark;

typedef struct pen_plan {
    /* What is known. */
    char source[PEN_PLAN_TEXT]; /* where the times come from, for people: "measured", "estimated: …", a path */
    pen_plan_workload workload;
    int unit_count, device_count;
    pen_plan_unit *units;
    pen_plan_device *devices;
    uint64_t tied_bytes; /* of weights that the first and the last unit share */

    /* What follows. stage_count is 0 until it is solved. */
    int stage_count;
    pen_plan_stage *stages;
    char method[16];
    int64_t kv_tokens;
    pen_partition_score score;
    double lower_bound_ms;
    double solve_ms;                         /* of the chosen method alone */
    pen_plan_rival rivals[PEN_PLAN_METHODS]; /* all methods that can split this, the chosen one included */
    int rival_count;
    pen_partition_point points[PEN_PLAN_POINTS];
    int point_count;
    pen_plan_remark remarks[PEN_PLAN_REMARKS];
    int remark_count;
} pen_plan;

/* Zeroed units and devices of speed 1, the default workload, nothing solved. */
pen_status pen_plan_create(int unit_count, int device_count, pen_plan **plan);
void pen_plan_destroy(pen_plan *plan);

/* Replaces the devices by `count` copies of an empty one of speed 1. */
pen_status pen_plan_set_devices(pen_plan *plan, int count);

typedef struct pen_plan_options {
    int stages;         /* 0: as many as devices, or more where the memory limits force it (with a warning) */
    const char *method; /* NULL: dp, or custom where there are layers */
    const char *layers; /* custom split, "10,10,12": units per stage, or layers per stage */
    uint64_t memory;    /* limit of every stage, replaces the devices'; 0: theirs */
    int64_t kv_tokens;  /* 0: what the workload's sequences need, or as many of them as fit (with a warning) */
} pen_plan_options;

/* Fills the second half. The errors of pen_partition_*; PEN_USAGE for unknown methods and wrong layers. */
pen_status pen_plan_solve(pen_plan *plan, const pen_plan_options *options);

/* Takes over a split that was made elsewhere, first[stages + 1], with the KV capacity it is for. Nothing is solved or
 * compared; the memory limits are not looked at. */
pen_status pen_plan_apply(pen_plan *plan, const char *method, int stages, const int *first, int64_t kv_tokens);

/* Sequences at once, N; tokens of KV that they need when all are at their longest. */
int pen_plan_sequences(const pen_plan_workload *workload, int stages);
int64_t pen_plan_kv_tokens_needed(const pen_plan_workload *workload, int stages);

/* Time of a unit on a device. */
double pen_plan_unit_ms(const pen_plan *plan, int unit, int device);

/* "Adjust": the split that measured stage times [stage_count] suggest, as first[stage_count + 1], and the number of
 * moves from the plan's; 0 where the stages are within `threshold` or no move helps. */
pen_status pen_plan_adjust(const pen_plan *plan, const double *measured_ms, double threshold, int *first, int *moves);

/* Layers lie in [leading, unit_count − trailing). */
int pen_plan_leading(const pen_plan *plan);
int pen_plan_trailing(const pen_plan *plan);

/* ---- Estimates where there is nothing but the hidden size: 16-bit weights and activations ------------------------ */
uint64_t pen_plan_block_bytes(int hidden);                   /* 12·H²·2 */
uint64_t pen_plan_activation_bytes(int hidden, double rows); /* (3·rows·H + 4·rows·H)·2 */

#endif
