/*
 * The engine: the loop of a rank that runs its stage. The leader (stage 0 of a replica) takes requests, schedules
 * steps, tells the other stages and hands out the results; the others serve until the leader stops them.
 *
 * One thread per rank does everything: it is the device's first worker, and it moves the links from the device's poke
 * while it computes. Nothing here blocks but the waits in the loop, and each of these has a deadline while a step is
 * outstanding: a stage that does not answer in time is named, and the call returns PEN_PEER_LOST.
 *
 * Owner: the caller keeps world, device and stage alive; the engine owns links, schedule, KV tables and buffers.
 */
#ifndef PEN_ENGINE_H
#define PEN_ENGINE_H

#include "history.h"
#include "link.h"
#include "metrics.h"
#include "stage.h"
#include "trace.h"
#include "world.h"

typedef struct pen_engine pen_engine;
typedef struct pen_step_cost pen_step_cost; /* step_cost.h */

/* The same on all ranks of a replica (the engine's own part of what rank 0 broadcast). */
typedef struct pen_engine_options {
    int hidden, vocab;
    int rows, logit_rows, context; /* as the stages were made with, like the pools */
    pen_kv_pools kv;
    int sequences;             /* running at a time at most */
    int in_flight;             /* 0: the schedule's choice */
    bool preempts;             /* a request may put running ones of higher priority numbers aside */
    const pen_step_cost *cost; /* the leader's, for the schedule; outlives the engine */
    double step_timeout_s;
    uint32_t plan_epoch;
    int trace; /* records kept of what the run did when; 0: no trace */
    /* Where the pipeline is simulated: computing takes no core, so that nobody spins; messages take so much longer. */
    bool simulated;
    double time_scale; /* what is planned to take a millisecond takes so many; 0: one */
    double link_latency_ms, link_ms_per_byte;
} pen_engine_options;

/* Residual buffers that the engine wants in a stage (pen_stage_options.slots). */
enum { PEN_ENGINE_SLOTS = 4 };

/* `stage` is this rank's; the link becomes the engine's, also where it fails. */
pen_status pen_engine_create(pen_world *world, pen_device *device, pen_stage *stage, pen_link *link,
                             const pen_engine_options *options, pen_engine **engine);
void pen_engine_destroy(pen_engine *engine);
const pen_trace *pen_engine_trace(const pen_engine *engine); /* this rank's, or NULL */

/* ---- Leader ----------------------------------------------------------------------------------------------------- */

typedef enum pen_finish {
    PEN_FINISH_STOP,   /* an end-of-sequence token, which is not reported, or the callback's wish */
    PEN_FINISH_LENGTH, /* as many tokens as asked for, or the end of the context */
    PEN_FINISH_SCORED,
    PEN_FINISH_BAD_LOGITS, /* the model produced a NaN */
    PEN_FINISH_CANCELLED,
    PEN_FINISH_EXPIRED, /* it had waited for too long: the front end's */
    PEN_FINISHES
} pen_finish;

/* A token of the completion `index`, at `position`; in scoring, which the first completion does, the prompt's token at
 * `position` ≥ 1. Returning false ends the completion. */
typedef bool pen_request_token(void *context, int index, int position, const pen_choice *choice);
typedef void pen_request_done(void *context, int index, pen_finish finish);

typedef struct pen_request {
    const int32_t *prompt;   /* [prompt_count + given], copied */
    int prompt_count;        /* ≥ 1; with max_tokens at most the context */
    int given;               /* tokens of the output that are there already: another engine had begun the request. They
                              * are not reported again, but count as output. Fewer than max_tokens; of one choice only */
    int max_tokens;          /* to generate; with `score` perhaps 0 */
    bool score;              /* also log-probabilities of the prompt's own tokens 1 … */
    pen_pick pick;           /* how to choose; position and target are set by the engine */
    int choices;             /* completions, each done by itself; 0 and 1: one. Their indices begin at pick.choice */
    const int32_t *stop_ids; /* end-of-sequence tokens; NULL: go on regardless. Kept alive by the caller */
    int stop_count;
    int priority;                              /* lower is earlier */
    int min_tokens;                            /* stop_ids are not chosen before as many tokens */
    float repetition_penalty;                  /* over prompt and output: > 0; 1 and 0: none */
    float presence_penalty, frequency_penalty; /* over the output */
    const pen_logit_bias *biases;              /* kept alive by the caller */
    int bias_count;
    pen_request_token *on_token; /* called from within turns of the loop */
    pen_request_done *on_done;   /* once for each completion */
    void *context;
} pen_request;

/* Queues a request. A completion is the same, bit for bit, as that of a request for its index alone; the prompt's KV is
 * computed once and shared, where they run at the same time. PEN_USAGE / PEN_NO_MEMORY where it can never run, with the
 * numbers. *number (or NULL) is for pen_engine_cancel. */
pen_status pen_engine_submit(pen_engine *engine, const pen_request *request, int64_t *number);
/* What submitting would refuse, without doing it. */
pen_status pen_engine_check(const pen_engine *engine, const pen_request *request);
/* Ends all completions of a request now, wherever they are: their on_done is called from here, and their KV is free for
 * the next step. One that has ended is ignored. Callbacks may do it, to their own request, too. */
void pen_engine_cancel(pen_engine *engine, int64_t number);
/* Sequences that could start at once, besides those that are there. */
int pen_engine_open_slots(const pen_engine *engine);

/* Runs until all requests are done. Callbacks may submit more. */
pen_status pen_engine_run(pen_engine *engine);
/* The same, but at most until the clock says `deadline_ns`; the next call goes on with what is left. */
pen_status pen_engine_run_until(pen_engine *engine, int64_t deadline_ns);

/* The pieces of that loop, for one who has other things to do besides. A turn does what can be done now; *moved becomes
 * true where that was anything. Turns are due as long as there is work: the last one lets the other stages rest. */
bool pen_engine_has_work(const pen_engine *engine);
pen_status pen_engine_turn(pen_engine *engine, bool *moved);
/* Nothing moved: rests a little, longer where there is no work; fails where a stage does not answer in time. With
 * `expects` the caller has others at work from whom he will hear, so that no rest is long. */
pen_status pen_engine_rest(pen_engine *engine, bool expects);
/* Something else moved: where there is no work, the next rests are short again. */
void pen_engine_stir(pen_engine *engine);

/* While held, no request gets a second token: so that prompts and outputs can be timed apart. Whoever holds lets go
 * from a callback at the latest, or the run does not end. */
void pen_engine_hold(pen_engine *engine, bool hold);

/* Times a step of this shape on every stage at once after a warm-up, `repeats` times or, from the second on, as long as
 * `patience_ms` are not over, while nothing else runs (the KV pool's contents are lost); ms[stages] are the medians. */
typedef struct pen_engine_shape {
    int32_t decode_rows; /* sequences of one row, at `position` */
    int32_t prompt_rows; /* rows of one more sequence, from `position` on; or 0 */
    int32_t position;
    int32_t logit_rows; /* of the first rows */
} pen_engine_shape;
pen_status pen_engine_measure(pen_engine *engine, const pen_engine_shape *shape, int repeats, double patience_ms,
                              double *ms);

/* What the leader has done since it was made. */
typedef struct pen_engine_counts {
    pen_kv_counts kv;
    uint64_t pauses, preemptions; /* of completions: for memory, and for more urgent ones */
    int blocks_held;              /* now, in all groups */
    /* Completions, now. One that is paused waits. */
    int running, waiting;
    /* What steps should have taken that came back while the pipeline was full, and what they took (pace.h): how fast
     * the replica is against its profile, whatever its load. Without a table of costs both are 0. */
    double planned_ms, full_ms;
    double busy_s; /* of the leader's stage, by the clock on the wall: --time-scale included */
} pen_engine_counts;
pen_engine_counts pen_engine_count(const pen_engine *engine);

/* Ends a lap of every stage's metrics; waits for nobody, so callbacks may do it. */
pen_status pen_engine_lap(pen_engine *engine);
/* Every stage's metrics of the last lap that ended: stages[stage count]. Waits for the answers. */
pen_status pen_engine_metrics(pen_engine *engine, pen_metrics *stages);
/* The same for one who cannot wait: asks; and looks, between turns, until all have answered. Nothing else with an
 * answer is asked meanwhile. */
pen_status pen_engine_ask_metrics(pen_engine *engine);
pen_status pen_engine_metrics_ready(pen_engine *engine, pen_metrics *stages, bool *ready);

/* Ends the other stages' pen_engine_serve. */
pen_status pen_engine_stop(pen_engine *engine);

/* ---- The other stages ------------------------------------------------------------------------------------------- */

pen_status pen_engine_serve(pen_engine *engine);

#endif
