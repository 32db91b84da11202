/*
 * The schedule: which rows of which sequences make the next microbatch. Pure: it knows no ranks and no clock, so that
 * the engine, the simulator and the tests run the same one. Owned by a replica's leader.
 *
 * A sequence prefills its prompt in chunks, any number of which may be in flight, and then decodes a row at a time:
 * the next row needs the token that the last one chose. Running decodes are spread evenly over the microbatches in
 * flight and prompt chunks fill the rest.
 *
 * The more *urgent* of two sequences is the one of lower priority number, or the older one. A waiting sequence starts
 * when a slot and KV for what it has are free, the most urgent first. Where KV runs out the least urgent that runs is
 * *paused*: it gives its blocks up, waits before all less urgent ones and computes again what is not found in the
 * cache. Nothing that it has chosen is lost or chosen twice. With `preempts`, one that waits *preempts* those of higher
 * priority numbers, the least urgent first, where that lets it start: they are put aside in the same way. Once one of
 * them runs again, it has the priority of whom it had made way for: so it is not put aside again and again.
 *
 * Several sequences of one prompt compute it once: all but the first name it as their parent. A child starts when the
 * parent's prompt has been scheduled but for its last row, shares the parent's blocks, and computes that row itself.
 * Those behind it in the queue do not wait with it.
 */
#ifndef PEN_SCHEDULE_H
#define PEN_SCHEDULE_H

#include "kvcache.h"
#include "profile.h"
#include "status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct pen_schedule pen_schedule;
typedef struct pen_step_cost pen_step_cost; /* step_cost.h */

typedef struct pen_schedule_options {
    int stages;
    int in_flight;  /* microbatches at most; 0: stages + 1, and 1 where there is one stage */
    int sequences;  /* running at most; slots are numbered below this */
    int rows;       /* of a microbatch at most */
    int logit_rows; /* of a microbatch at most */
    int context;
    pen_kv_pools kv;
    /* By which microbatches are sized; outlives the schedule. NULL: a microbatch takes what there is up to `rows`, as
     * most engines do. */
    const pen_step_cost *cost;
    bool preempts;
} pen_schedule_options;

/* A run of a microbatch: rows [position, position + rows) of a sequence. */
typedef struct pen_scheduled_run {
    int slot;
    int64_t sequence; /* as pen_schedule_add numbered it */
    int position, rows;
    int logit_first, logit_rows; /* which of its rows want logits */
} pen_scheduled_run;

typedef struct pen_microbatch {
    uint64_t number; /* 0, 1, … */
    int rows, run_count, logit_count;
    int old_blocks;          /* that it tells the stages of, in tables of which they have never heard */
    pen_scheduled_run *runs; /* [options.rows] */
} pen_microbatch;

/* What it costs by. */
pen_step_shape pen_microbatch_shape(const pen_microbatch *microbatch);

/* `cache` gives the sequences their blocks and outlives the schedule. */
pen_status pen_schedule_create(const pen_schedule_options *options, pen_kvcache *cache, pen_schedule **schedule);
void pen_schedule_destroy(pen_schedule *schedule);

typedef struct pen_sequence_spec {
    const int32_t *tokens; /* [prompt + output], kept alive by the caller, who appends to it */
    int prompt, output;    /* tokens it begins with, and at most adds */
    int given;             /* of the output, that are there already */
    bool score;            /* logits at every prompt position, but at the last only where output follows */
    int64_t parent;        /* an earlier sequence with the same prompt, whose KV of it can be shared; −1: none */
    int priority;          /* lower is earlier */
} pen_sequence_spec;

/* Queues a sequence. Returns its number. */
pen_status pen_schedule_add(pen_schedule *schedule, const pen_sequence_spec *spec, int64_t *sequence);

/* Forms the next microbatch, whose rows then count as in flight; false where there is nothing to run now. The blocks
 * of its rows are in the cache's tables when it returns. */
bool pen_schedule_next(pen_schedule *schedule, pen_microbatch *microbatch);

/* The oldest microbatch in flight has come back. */
void pen_schedule_complete(pen_schedule *schedule);
/* A row of `sequence` with logits came back, its token is appended, and it goes on: the token's row may run. Called
 * before pen_schedule_complete. */
void pen_schedule_continue(pen_schedule *schedule, int64_t sequence);
/* The sequence ends, queued or running: its slot and blocks are free. */
void pen_schedule_finish(pen_schedule *schedule, int64_t sequence);

int pen_schedule_waiting(const pen_schedule *schedule); /* sequences that have not started, or are paused */
int pen_schedule_in_flight(const pen_schedule *schedule);
uint64_t pen_schedule_pauses(const pen_schedule *schedule); /* so far, for memory */
uint64_t pen_schedule_preemptions(const pen_schedule *schedule);
int pen_schedule_limit(const pen_schedule *schedule); /* of microbatches in flight */
int pen_schedule_depth(const pen_schedule *schedule); /* how many should be in flight for what runs now */

#endif
