/*
 * Partitioning: numbers in, layer ranges out.
 *
 * n units stand in a row; S stages take them in rank order, each a contiguous range of at least one unit. A stage costs
 * what the slowest of its two resources costs, the device or the wire behind it:
 *
 *     cost(s) = max( Σ_{u∈s} time[device(s)][u] + send(s) , wire(s) )
 *     memory(s) = Σ weights + K · Σ KV per token + max workspace − (tied bytes, where s has the first and the last
 * unit)
 *
 * A split is written as first[S + 1]: stage s has the units [first[s], first[s + 1]); first[0] = 0 and first[S] = n.
 *
 * Nothing here knows MPI, CUDA or transformers, keeps state, or holds memory past a call. The arrays of a problem
 * belong to the caller. Times are compared on a grid of 2^-31 of their sum, so that layers of equal times are equal
 * however they are added up; bytes are exact.
 */
#ifndef PEN_PARTITION_H
#define PEN_PARTITION_H

#include "status.h"

#include <stdbool.h>
#include <stdint.h>

enum { PEN_PARTITION_UNITS_MAX = 4096 };

typedef struct pen_partition_unit {
    const char *name; /* for messages */
    uint64_t weight_bytes;
    uint64_t kv_bytes_per_token;
    uint64_t workspace_bytes; /* scratch while it runs; the units of a stage share the largest */
} pen_partition_unit;

typedef struct pen_partition_stage {
    int device;            /* row of time_ms */
    uint64_t memory_bytes; /* its limit; 0: none. Stages that share a machine's memory get a share each */
    double send_ms;        /* the stage's own time for handing its result on */
    double wire_ms;        /* time on the wire behind it, which passes while the stage computes */
} pen_partition_stage;

typedef struct pen_partition_problem {
    int unit_count;  /* n, at most PEN_PARTITION_UNITS_MAX */
    int stage_count; /* S ≤ n */
    int device_count;
    const pen_partition_unit *units;   /* [n] */
    const pen_partition_stage *stages; /* [S] */
    const double *time_ms;             /* [device_count][n] */
    uint64_t tied_bytes;               /* of weights that the first and the last unit share */
    int64_t kv_tokens;                 /* K */
    int leading, trailing;             /* units that are no layers: an embedding before them, a head behind */
    const int *custom;                 /* [custom_count] units, or layers, per stage, for the method "custom" */
    int custom_count;
} pen_partition_problem;

/* Whether the numbers make sense; every function below wants a problem that passed. PEN_USAGE: more stages than units;
 * PEN_NO_MEMORY: a unit that fits no stage, named with its bytes and the limit; PEN_BAD_INPUT: the rest. */
pen_status pen_partition_check(const pen_partition_problem *problem);

/* ---- Methods ----------------------------------------------------------------------------------------------------- */

/* dp obeys the memory limits or fails with PEN_NO_MEMORY, saying by how much and what would fit; the others ignore them
 * (pen_partition_score tells). */
typedef struct pen_partition_method {
    const char *name;
    const char *what; /* one line for people */
    pen_status (*split)(const pen_partition_problem *problem, int *first);
} pen_partition_method;

extern const pen_partition_method pen_partition_methods[];
extern const int pen_partition_method_count;
const pen_partition_method *pen_partition_method_find(const char *name); /* NULL: no such method */

/* The exact optimum: the smallest largest cost; among those the smallest sum of squared costs; among those the earliest
 * boundaries. O(S·n·log n). */
pen_status pen_partition_solve(const pen_partition_problem *problem, int *first);

/* ---- What a split is worth --------------------------------------------------------------------------------------- */

typedef struct pen_partition_score {
    double max_ms, min_ms, mean_ms;
    double imbalance;  /* max/min; infinite where a stage costs nothing */
    double efficiency; /* mean/max */
    bool fits;         /* all memory limits are kept */
} pen_partition_score;

double pen_partition_stage_ms(const pen_partition_problem *problem, const int *first, int stage);
uint64_t pen_partition_stage_bytes(const pen_partition_problem *problem, const int *first, int stage);
pen_partition_score pen_partition_rate(const double *stage_ms, int stage_count); /* fits is true */
pen_partition_score pen_partition_evaluate(const pen_partition_problem *problem, const int *first);

/* No split is faster. On equal devices without links it is max(largest unit, Σ/S). */
double pen_partition_lower_bound(const pen_partition_problem *problem);

/* ---- Memory ------------------------------------------------------------------------------------------------------ */

/* Bytes that every limit would have to grow by for a split to exist; 0: one exists. */
pen_status pen_partition_shortfall(const pen_partition_problem *problem, uint64_t *bytes);

/* The smallest number of stages, at least S, with which a split fits, where further stages are like the given ones in
 * turn; 0: none. */
pen_status pen_partition_stages_needed(const pen_partition_problem *problem, int *stages);

/* The trade of KV capacity for speed: each point is the fastest split for its tokens, and holds as many tokens as any
 * split as fast. Ascending; at most `size` points, spread over the whole front. The problem's kv_tokens is not used.
 * Empty where nothing is limited, or nothing fits. */
typedef struct pen_partition_point {
    int64_t kv_tokens;
    double max_ms;
} pen_partition_point;
pen_status pen_partition_kv_front(const pen_partition_problem *problem, pen_partition_point *points, int size,
                                  int *count);

/* ---- After the run ----------------------------------------------------------------------------------------------- */

/* Corrects a split by measured stage times: while the slowest stage takes more than `threshold` times the fastest's,
 * one unit moves from the slowest towards the fastest, those between passing one on, as long as that makes the slowest
 * faster and memory allows it. A unit's time is its planned one scaled by its stage's measured ÷ planned.
 * `first` is changed in place; *moves says how often. */
pen_status pen_partition_adjust(const pen_partition_problem *problem, const double *measured_ms, double threshold,
                                int *first, int *moves);

#endif
