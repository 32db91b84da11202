/*
 * A stage that is no leader: it takes steps and commands from the leader and runs its worker until it is told to stop.
 *
 * It knows when the leader owes it something: from the first step that it hears of until the leader has said that all
 * steps it heard of have come back. In that time, and only then, somebody's silence is a failure.
 */
#include "engine_internal.h"

#include "clock.h"

#include <inttypes.h>
#include <stdlib.h>

enum { BUFFERS = 2 };

static const int64_t LOOK_NS = 100 * 1000 * 1000; /* for dead ranks, so often */

struct pen_follower {
    /* Receives of messages from the leader, posted in turn; they arrive in turn too. */
    void *buffers[BUFFERS];
    pen_transfer receives[BUFFERS];
    size_t arrived[BUFFERS]; /* bytes of a message that was not dealt with yet, or 0 */
    int turn;
    size_t buffer_bytes;
    uint64_t known;     /* steps heard of */
    uint64_t completed; /* steps that came back to the leader, as it said last */
    int64_t looked_ns;  /* for dead ranks */
    unsigned char answer[sizeof(pen_header) + sizeof(pen_metrics)];
    bool stopped;
};

static pen_status post(pen_engine *engine, int i) {
    pen_follower *follower = engine->follower;
    return pen_link_receive(engine->link, PEN_CHANNEL_CONTROL, 0, 0, follower->buffers[i], follower->buffer_bytes,
                            &follower->receives[i]);
}

pen_status pen_follower_create(pen_engine *engine) {
    pen_follower *follower = engine->follower = calloc(1, sizeof *follower);
    if (!follower) return pen_fail(PEN_NO_MEMORY, "no memory for a stage");
    follower->buffer_bytes = pen_wire_step_bytes(&engine->limits);
    for (int i = 0; i < BUFFERS; i++) {
        follower->buffers[i] = malloc(follower->buffer_bytes);
        if (!follower->buffers[i]) return pen_fail(PEN_NO_MEMORY, "no memory for messages");
        PEN_TRY(post(engine, i));
    }
    return PEN_OK;
}

void pen_follower_destroy(pen_follower *follower) {
    if (!follower) return;
    for (int i = 0; i < BUFFERS; i++) free(follower->buffers[i]);
    free(follower);
}

/* Sends an answer and waits until it is gone: the stage has nothing else to do then. */
static pen_status answer(pen_engine *engine, pen_message_type type, const void *body, size_t bytes) {
    pen_follower *follower = engine->follower;
    size_t length = pen_wire_encode_plain(type, 0, engine->limits.plan_epoch, body, bytes, follower->answer);
    pen_transfer send;
    PEN_TRY(pen_link_send(engine->link, PEN_CHANNEL_EVENT, 0, 0, follower->answer, length, NULL, &send));
    pen_engine_moved(engine);
    while (!pen_link_done(engine->link, send, NULL)) {
        bool moved = false;
        PEN_TRY(pen_engine_progress(engine, &moved));
        if (moved) continue;
        pen_engine_wait wait = {PEN_IDLE, true, 0, PEN_CHANNEL_EVENT, follower->known, engine->index};
        PEN_TRY(pen_engine_pause(engine, &wait));
    }
    return PEN_OK;
}

static pen_status obey(pen_engine *engine, const pen_header *header, const void *message, size_t bytes) {
    pen_follower *follower = engine->follower;
    uint32_t epoch = engine->limits.plan_epoch;
    switch (header->type) {
    case PEN_MESSAGE_REST: follower->completed = follower->known; return PEN_OK;
    case PEN_MESSAGE_MEASURE: {
        pen_engine_shape shape;
        double ms;
        PEN_TRY(pen_wire_decode_plain(message, bytes, PEN_MESSAGE_MEASURE, epoch, &shape, sizeof shape));
        PEN_TRY(pen_engine_time_stage(engine, &shape, &ms));
        return answer(engine, PEN_MESSAGE_MEASURED, &ms, sizeof ms);
    }
    case PEN_MESSAGE_LAP: pen_meter_lap(&engine->meter); return PEN_OK;
    case PEN_MESSAGE_REPORT: return answer(engine, PEN_MESSAGE_METRICS, &engine->meter.lap, sizeof engine->meter.lap);
    case PEN_MESSAGE_STOP: follower->stopped = true; return PEN_OK;
    default: return pen_fail(PEN_INTERNAL, "bad message: type %u from the leader", header->type);
    }
}

static pen_status take_step(pen_engine *engine, const void *message, size_t bytes, pen_step *step) {
    PEN_TRY(pen_wire_decode_step(message, bytes, &engine->limits, step));
    engine->follower->known = step->number + 1;
    engine->follower->completed = step->completed;
    return pen_worker_push(engine->worker, NULL);
}

/* Deals with the messages that have arrived, in order. A step for which there is no room waits where it is, and so
 * does, while the stage computes, a command; only laps end when the leader says so. */
static pen_status take_messages(pen_engine *engine, bool computing, bool *moved) {
    pen_follower *follower = engine->follower;
    while (!follower->stopped) {
        int i = follower->turn;
        size_t *bytes = &follower->arrived[i];
        pen_header header;
        if (*bytes == 0 && !pen_link_done(engine->link, follower->receives[i], bytes)) break;
        PEN_TRY(pen_wire_header(follower->buffers[i], *bytes, engine->limits.plan_epoch, &header));
        if (header.type == PEN_MESSAGE_STEP) {
            pen_step *step = pen_worker_claim(engine->worker);
            if (!step) break;
            PEN_TRY(take_step(engine, follower->buffers[i], *bytes, step));
        } else {
            if (computing && header.type != PEN_MESSAGE_LAP) break;
            PEN_TRY(obey(engine, &header, follower->buffers[i], *bytes));
        }
        *bytes = 0;
        PEN_TRY(post(engine, i));
        follower->turn = (i + 1) % BUFFERS;
        *moved = true;
    }
    return PEN_OK;
}

pen_status pen_follower_take_steps(pen_engine *engine) {
    bool moved = false;
    return take_messages(engine, true, &moved);
}

/* What this stage waits for; see pen_engine_wait for the orders. */
static pen_engine_wait what_for(const pen_engine *engine) {
    const pen_follower *follower = engine->follower;
    int stages = engine->stages, index = engine->index;
    pen_worker_state state = pen_worker_about(engine->worker);
    pen_engine_wait wait = {.activity = state.activity,
                            .outstanding = follower->known > follower->completed,
                            .channel = state.channel,
                            .step = state.step};
    if (wait.activity == PEN_WAIT_RECEIVE) {
        wait.peer = wait.channel == PEN_CHANNEL_HISTORY ? 0 : index - 1;
        wait.order = index;
    } else if (wait.activity == PEN_WAIT_SEND) {
        wait.peer = wait.channel == PEN_CHANNEL_TOKEN ? 0 : index + 1;
        wait.order = 2 * stages + index;
    } else { /* all its own work is done, but the leader has not said so of the pipeline's */
        wait.order = stages + index;
    }
    return wait;
}

/* Without another stage of this replica this one is of no use, and waiting for its silence to become long would only
 * keep the requests from other replicas; without rank 0 nobody is. Where the launcher lets a rank live then, it must
 * look. */
static pen_status look_for_dead(pen_engine *engine) {
    int64_t now_ns = pen_clock_ns();
    if (now_ns - engine->follower->looked_ns < LOOK_NS || !pen_world_recovers(engine->world)) return PEN_OK;
    engine->follower->looked_ns = now_ns;
    for (int rank; (rank = pen_world_find_dead(engine->world)) >= 0;) {
        const pen_place *place = pen_world_place(engine->world, rank);
        if (rank == 0 || place->replica == pen_world_replica(engine->world))
            return pen_fail(PEN_PEER_LOST, "%s has ended", place->name);
    }
    return PEN_OK;
}

pen_status pen_engine_serve(pen_engine *engine) {
    while (!engine->follower->stopped) {
        bool moved = false;
        PEN_TRY(pen_engine_progress(engine, &moved));
        PEN_TRY(take_messages(engine, false, &moved));
        PEN_TRY(pen_worker_advance(engine->worker, &moved));
        if (moved) {
            pen_engine_moved(engine);
            continue;
        }
        PEN_TRY(look_for_dead(engine));
        pen_engine_wait wait = what_for(engine);
        PEN_TRY(pen_engine_pause(engine, &wait));
    }
    return PEN_OK;
}
