/*
 * The engine: what leader and other stages have in common. See engine.h.
 */
#include "engine_internal.h"

#include "clock.h"
#include "log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* While the device computes: keep the links moving and the next rows' receives posted. */
static void poke(void *context) {
    pen_engine *engine = context;
    bool moved = false;
    pen_status status = pen_link_progress(engine->link, &moved);
    if (status == PEN_OK && moved && engine->follower) status = pen_follower_take_steps(engine);
    if (status != PEN_OK && engine->failure == PEN_OK) engine->failure = status;
}

static pen_status fill(pen_engine *engine) {
    const pen_engine_options *options = &engine->options;
    if (options->trace) PEN_TRY(pen_trace_create(options->trace, engine->index == 0, &engine->trace));
    if (options->simulated) {
        pen_link *real = engine->link;
        engine->link = NULL;
        PEN_TRY(pen_link_create_sim(real, engine->stages, options->link_latency_ms, options->link_ms_per_byte,
                                    &engine->link));
    }
    int in_flight = options->in_flight > 0 ? options->in_flight : engine->stages + 1;
    pen_worker_options worker = {.device = engine->device,
                                 .stage = engine->stage,
                                 .link = engine->link,
                                 .meter = &engine->meter,
                                 .trace = engine->trace,
                                 .index = engine->index,
                                 .stages = engine->stages,
                                 .hidden = options->hidden,
                                 /* The leader can be two steps ahead of what a stage has noticed to be sent. */
                                 .steps = in_flight + 2,
                                 .slots = PEN_ENGINE_SLOTS,
                                 .limits = engine->limits};
    PEN_TRY(pen_worker_create(&worker, &engine->worker));
    return engine->index == 0 ? pen_leader_create(engine) : pen_follower_create(engine);
}

/* A CPU device's first thread is ours; with others beside it that may not spin, it sleeps when it waits for them. */
static bool computes_itself(const pen_engine *engine) {
    const pen_share *share = pen_world_share(engine->world);
    return strncmp(pen_device_name(engine->device), "cpu", 3) == 0 && (share->threads == 1 || share->may_spin);
}

pen_status pen_engine_create(pen_world *world, pen_device *device, pen_stage *stage, pen_link *link,
                             const pen_engine_options *options, pen_engine **out) {
    pen_engine *engine = calloc(1, sizeof *engine);
    if (!engine) {
        pen_link_destroy(link);
        return pen_fail(PEN_NO_MEMORY, "no memory for the engine");
    }
    *engine = (pen_engine){.world = world,
                           .device = device,
                           .stage = stage,
                           .link = link,
                           .options = *options,
                           .limits = {.rows = options->rows,
                                      .logit_rows = options->logit_rows,
                                      .sequences = options->sequences,
                                      .context = options->context,
                                      .kv = options->kv,
                                      .vocab = options->vocab,
                                      .plan_epoch = options->plan_epoch},
                           .index = pen_world_stage(world),
                           .stages = pen_world_stages(world)};
    if (engine->options.step_timeout_s <= 0) engine->options.step_timeout_s = 30;
    pen_meter_start(&engine->meter, computes_itself(engine));
    pen_wait_init(&engine->wait, pen_world_share(world)->may_spin && !options->simulated);
    /* Simulated stages learn ahead of time when their rows come; only the leader waits for the unforeseen. */
    engine->wait.patient = options->simulated && engine->index > 0;
    pen_status status = fill(engine);
    if (status != PEN_OK) {
        pen_engine_destroy(engine);
        return status;
    }
    pen_device_set_poke(device, poke, engine);
    pen_engine_moved(engine);
    *out = engine;
    return PEN_OK;
}

void pen_engine_destroy(pen_engine *engine) {
    if (!engine) return;
    pen_device_set_poke(engine->device, NULL, NULL);
    /* First the link: it takes back what is still posted on the others' memory. */
    pen_link_destroy(engine->link);
    pen_leader_destroy(engine->leader);
    pen_follower_destroy(engine->follower);
    pen_worker_destroy(engine->worker);
    pen_trace_destroy(engine->trace);
    free(engine);
}

const pen_trace *pen_engine_trace(const pen_engine *engine) {
    return engine->trace;
}

/* ---- Turns of the loop ------------------------------------------------------------------------------------------ */

/* This rank's device may have failed behind our back; its events are not done then, and nothing goes on. */
static pen_status check_device(const pen_engine *engine) {
    if (pen_device_status(engine->device) == PEN_OK) return PEN_OK;
    return pen_fail(PEN_INTERNAL, "%s: %s", pen_world_place(engine->world, pen_world_rank(engine->world))->name,
                    pen_last_error());
}

pen_status pen_engine_progress(pen_engine *engine, bool *moved) {
    PEN_TRY(check_device(engine));
    PEN_TRY(engine->failure);
    pen_status status = pen_link_progress(engine->link, moved);
    PEN_TRY(check_device(engine)); /* which says it better than the link, where both know */
    return status;
}

void pen_engine_moved(pen_engine *engine) {
    pen_wait_reset(&engine->wait);
}

/* Whom a wait is for, and what. */
typedef struct wait_name {
    const char *peer;
    char what[64];
} wait_name;

static wait_name name_of(const pen_engine *engine, const pen_engine_wait *wait) {
    int rank = pen_world_rank(engine->world) - engine->index + wait->peer;
    wait_name name = {.peer = pen_world_place(engine->world, rank)->name};
    snprintf(name.what, sizeof name.what, "%s link %s, step %" PRIu64, pen_channel_name(wait->channel),
             pen_link_name(engine->link), wait->step);
    return name;
}

static pen_status lost(const pen_engine *engine, const pen_engine_wait *wait, double seconds) {
    wait_name name = name_of(engine, wait);
    return pen_fail(PEN_PEER_LOST, "%s did not answer for %.1f s: %s", name.peer, seconds, name.what);
}

static void tell(const pen_engine *engine, const pen_engine_wait *wait, double seconds) {
    wait_name name = name_of(engine, wait);
    if (wait->activity == PEN_BUSY)
        PEN_DEBUG("has waited %.1f s for its own device: step %" PRIu64, seconds, wait->step);
    else
        PEN_DEBUG("has waited %.1f s %s %s: %s", seconds, wait->outstanding ? "for" : "without work for", name.peer,
                  name.what);
}

static int64_t next_due(const pen_engine *engine) {
    int64_t device = pen_worker_due_ns(engine->worker), link = pen_link_due_ns(engine->link);
    return link > 0 && (device == 0 || link < device) ? link : device;
}

pen_status pen_engine_pause(pen_engine *engine, const pen_engine_wait *wait) {
    pen_meter_set(&engine->meter, wait->activity);
    double waited = pen_wait_seconds(&engine->wait), timeout = engine->options.step_timeout_s;
    double stagger = timeout / 10 < 0.25 ? timeout / 10 : 0.25;
    if (pen_wait_tells(&engine->wait)) tell(engine, wait, waited);
    if (wait->outstanding && wait->activity != PEN_BUSY && waited > timeout + stagger * wait->order)
        return lost(engine, wait, waited);
    pen_wait_pause(&engine->wait, wait->outstanding, next_due(engine));
    return PEN_OK;
}

/* ---- Measuring -------------------------------------------------------------------------------------------------- */

static pen_status check_shape(const pen_engine *engine, const pen_engine_shape *shape) {
    const pen_wire_limits *limits = &engine->limits;
    int64_t rows = (int64_t)shape->decode_rows + shape->prompt_rows;
    int64_t end = (int64_t)shape->position + (shape->prompt_rows > 1 ? shape->prompt_rows : 1);
    if (shape->decode_rows < 0 || shape->prompt_rows < 0 || rows < 1 || rows > limits->rows || shape->position < 0 ||
        end > limits->context || shape->logit_rows < 0 || shape->logit_rows > rows ||
        shape->logit_rows > limits->logit_rows)
        return pen_fail(PEN_USAGE, "cannot measure %d + %d rows at position %d with %d logit rows", shape->decode_rows,
                        shape->prompt_rows, shape->position, shape->logit_rows);
    return PEN_OK;
}

/* The arrays of a batch that is made up for measuring. */
typedef struct made_batch {
    pen_run *runs;
    int32_t *blocks; /* [runs][groups][blocks of a table] */
    int32_t *tokens, *logit_rows;
    pen_pick *picks;
} made_batch;

static void free_batch(made_batch *made) {
    free(made->runs);
    free(made->blocks);
    free(made->tokens);
    free(made->logit_rows);
    free(made->picks);
}

static bool make_batch(const pen_engine *engine, const pen_engine_shape *shape, made_batch *made, pen_batch *batch) {
    int runs = shape->decode_rows + (shape->prompt_rows > 0), rows = shape->decode_rows + shape->prompt_rows;
    int groups = engine->limits.kv.count;
    int table = pen_kv_blocks_for(shape->position + (shape->prompt_rows > 1 ? shape->prompt_rows : 1));
    *made = (made_batch){.runs = calloc((size_t)runs, sizeof *made->runs),
                         .blocks = calloc((size_t)(runs * groups) * (size_t)table, sizeof *made->blocks),
                         .tokens = calloc((size_t)rows, sizeof *made->tokens),
                         .logit_rows = calloc((size_t)shape->logit_rows + 1, sizeof *made->logit_rows),
                         .picks = calloc((size_t)shape->logit_rows + 1, sizeof *made->picks)};
    if (!made->runs || !made->blocks || !made->tokens || !made->logit_rows || !made->picks) return false;
    for (int i = 0; i < runs; i++) {
        made->runs[i] = (pen_run){i, i < shape->decode_rows ? 1 : shape->prompt_rows, shape->position, {NULL, NULL}};
        for (int g = 0; g < groups; g++) {
            int32_t *blocks = made->blocks + (size_t)(i * groups + g) * (size_t)table;
            /* Blocks of their own as far as the pool goes; then they share, which costs the same. */
            for (int b = 0; b < table; b++)
                blocks[b] = (int32_t)(((int64_t)i * table + b) % engine->limits.kv.blocks[g]);
            made->runs[i].tables[g] = blocks;
        }
    }
    for (int i = 0; i < shape->logit_rows; i++) {
        made->logit_rows[i] = i;
        made->picks[i] = (pen_pick){.position = shape->position + 1, .target = -1, .top_logprobs = -1};
    }
    *batch = (pen_batch){.rows = rows,
                         .run_count = runs,
                         .runs = made->runs,
                         .tokens = made->tokens,
                         .logit_count = shape->logit_rows,
                         .logit_rows = made->logit_rows};
    return true;
}

/* Input rows of some size or other: what the buffers hold by chance might be slow to compute with. */
static pen_status write_rows(pen_engine *engine, int rows) {
    size_t values = (size_t)rows * (size_t)engine->options.hidden;
    float *made = malloc(values * sizeof *made);
    if (!made) return pen_fail(PEN_NO_MEMORY, "no memory to measure %d rows", rows);
    for (size_t i = 0; i < values; i++) made[i] = (float)((int)(i % 17) - 8) * 0.0625f;
    pen_buffer_write(pen_stage_rows(engine->stage, 0), 0, made, values * sizeof *made);
    free(made);
    return PEN_OK;
}

pen_status pen_engine_time_stage(pen_engine *engine, const pen_engine_shape *shape, double *ms) {
    PEN_TRY(check_shape(engine, shape));
    made_batch made;
    pen_batch batch;
    pen_status status = PEN_OK;
    if (!make_batch(engine, shape, &made, &batch))
        status = pen_fail(PEN_NO_MEMORY, "no memory to measure %d rows", shape->decode_rows + shape->prompt_rows);
    if (status == PEN_OK && engine->index > 0) status = write_rows(engine, batch.rows);
    if (status == PEN_OK) status = pen_worker_time(engine->worker, &batch, made.picks, ms);
    free_batch(&made);
    PEN_TRY(check_device(engine));
    return status;
}
