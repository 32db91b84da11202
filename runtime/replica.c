/* A leader's loop; see replica.h. */
#include "replica.h"

#include "clock.h"
#include "front_wire.h"
#include "replica_weight.h"

#include <stdlib.h>

/* A load is reported when it changed and the last report is so old, and anyway from time to time. */
static const int64_t LOAD_NS = 50 * 1000 * 1000, BEAT_NS = 500 * 1000 * 1000;
static const int64_t LOOK_NS = 100 * 1000 * 1000;     /* for dead ranks, so often */
static const int64_t GIVE_UP_NS = 1000 * 1000 * 1000; /* for the last message, at most */

/* A request in the engine. */
typedef struct running running;
struct running {
    running *next;
    pen_replica *replica;
    pen_queued entry;         /* with its payload, into which the engine's request points */
    int64_t number;           /* the engine's */
    int first, choices, open; /* completions: their indices begin at `first`; how many have not ended */
    int top;
    int64_t tokens, expected; /* of output, of all completions: that came, and at most */
    bool *stopped;            /* [choices] that are to end at their next token */
};

struct pen_replica {
    pen_world *world;
    pen_mail *mail;
    pen_engine *engine;
    pen_replica_options options;
    pen_replica_queue *queue;
    running *running;
    int running_count;
    pen_notices notices;
    pen_status failure;    /* of a callback, kept for the turn that it happened in */
    pen_queued *given;     /* [PEN_STEAL_MOST] scratch */
    pen_replica_load told; /* the last load that was reported, and when */
    int64_t told_ns, looked_ns;
    pen_replica_weight weight; /* how fast it has been lately */
    double steal_s;
    bool asked_for_metrics, drains, drained, stopped;
};

pen_status pen_replica_create(pen_world *world, pen_mail *mail, pen_engine *engine, const pen_replica_options *options,
                              pen_replica **out) {
    pen_replica *replica = calloc(1, sizeof *replica);
    if (!replica) return pen_fail(PEN_NO_MEMORY, "no memory for a replica");
    replica->world = world;
    replica->mail = mail;
    replica->engine = engine;
    replica->options = *options;
    replica->options.measured_ms = NULL;
    replica->options.steals = options->steals && options->replicas > 1; /* alone it need not look for others */
    replica->weight = pen_replica_weight_at_first();
    replica->given = calloc(PEN_STEAL_MOST, sizeof *replica->given);
    pen_status status = replica->given ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory for a replica");
    if (status == PEN_OK)
        status = pen_replica_queue_create(options->self, options->replicas, replica->options.steals, options->cost,
                                          &replica->queue);
    pen_blob ready = {0};
    if (status == PEN_OK)
        status = pen_letter_encode(PEN_LETTER_READY, options->measured_ms,
                                   (size_t)options->stages * sizeof *options->measured_ms, &ready);
    if (status == PEN_OK) status = pen_mail_send(mail, options->self, PEN_MAIL_FRONT, ready.data, ready.bytes);
    free(ready.data);
    if (status != PEN_OK) {
        pen_replica_destroy(replica);
        return status;
    }
    *out = replica;
    return PEN_OK;
}

static void free_running(running *r) {
    free(r->entry.payload);
    free(r->stopped);
    free(r);
}

void pen_replica_destroy(pen_replica *replica) {
    if (!replica) return;
    while (replica->running) {
        running *r = replica->running;
        replica->running = r->next;
        free_running(r);
    }
    pen_replica_queue_destroy(replica->queue);
    pen_notices_free(&replica->notices);
    free(replica->given);
    free(replica);
}

pen_engine *pen_replica_engine(pen_replica *replica) {
    return replica->engine;
}

bool pen_replica_is_stopped(const pen_replica *replica) {
    return replica->stopped;
}

/* ---- Out --------------------------------------------------------------------------------------------------------- */

static pen_status send(pen_replica *replica, int to, pen_letter_kind kind, const void *body, size_t bytes) {
    pen_blob letter;
    PEN_TRY(pen_letter_encode(kind, body, bytes, &letter));
    pen_status status = pen_mail_send(replica->mail, replica->options.self, to, letter.data, letter.bytes);
    free(letter.data);
    return status;
}

static pen_status note(pen_replica *replica, pen_stamp stamp, pen_notice_kind kind, int index, pen_finish finish) {
    pen_notice notice = {.stamp = stamp, .kind = kind, .index = index, .finish = finish};
    return pen_notices_add(&replica->notices, &notice);
}

static pen_status send_notices(pen_replica *replica) {
    if (replica->notices.count == 0) return PEN_OK;
    pen_blob letter = pen_notices_letter(&replica->notices);
    return pen_mail_send(replica->mail, replica->options.self, PEN_MAIL_FRONT, letter.data, letter.bytes);
}

/* What the requests in the engine still cost. */
static double running_ms(const pen_replica *replica) {
    double ms = 0;
    for (const running *r = replica->running; r; r = r->next) {
        double output_ms = r->entry.cost_ms - r->entry.prompt_ms;
        ms += output_ms * (1 - (double)r->tokens / (double)r->expected) + (r->tokens > 0 ? 0 : r->entry.prompt_ms);
    }
    return ms;
}

static pen_replica_load load_of(const pen_replica *replica) {
    pen_engine_counts counts = pen_engine_count(replica->engine);
    return (pen_replica_load){.queued = pen_replica_queue_length(replica->queue),
                              .running = replica->running_count,
                              .queued_ms = pen_replica_queue_cost_ms(replica->queue),
                              .running_ms = running_ms(replica),
                              .busy_s = counts.busy_s * replica->options.busy_share,
                              .planned_ms = counts.planned_ms,
                              .full_ms = counts.full_ms,
                              .steal_s = replica->steal_s};
}

static pen_status report_load(pen_replica *replica, int64_t now_ns) {
    if (now_ns - replica->told_ns < LOAD_NS) return PEN_OK;
    bool changed = pen_replica_queue_length(replica->queue) != replica->told.queued ||
                   replica->running_count != replica->told.running;
    if (!changed && now_ns - replica->told_ns < BEAT_NS) return PEN_OK;
    replica->told = load_of(replica);
    replica->told_ns = now_ns;
    pen_replica_weight_learn(&replica->weight, &replica->told, now_ns);
    int peers = replica->options.steals ? replica->options.replicas : 0;
    for (int to = PEN_MAIL_FRONT; to < peers; to++) {
        /* One report under way to each; who has not got the last one gets the next one. */
        if (to == replica->options.self || pen_mail_unsent(replica->mail, replica->options.self, to) > 0) continue;
        PEN_TRY(send(replica, to, PEN_LETTER_LOAD, &replica->told, sizeof replica->told));
    }
    return PEN_OK;
}

/* ---- The engine's callbacks -------------------------------------------------------------------------------------- */

static void keep(pen_replica *replica, pen_status status) {
    if (replica->failure == PEN_OK) replica->failure = status;
}

static bool on_token(void *context, int index, int position, const pen_choice *choice) {
    running *r = context;
    pen_replica *replica = r->replica;
    if (r->stopped[index - r->first]) return false;
    pen_notice notice = {.stamp = r->entry.stamp,
                         .kind = PEN_NOTICE_TOKEN,
                         .index = index,
                         .position = position,
                         .top = r->top,
                         .choice = *choice};
    r->tokens++;
    keep(replica, pen_notices_add(&replica->notices, &notice));
    return true;
}

static void on_done(void *context, int index, pen_finish finish) {
    running *r = context;
    pen_replica *replica = r->replica;
    keep(replica, note(replica, r->entry.stamp, PEN_NOTICE_DONE, index, finish));
    if (--r->open > 0) return;
    running **link = &replica->running;
    while (*link != r) link = &(*link)->next;
    *link = r->next;
    replica->running_count--;
    free_running(r);
}

/* ---- Starting ---------------------------------------------------------------------------------------------------- */

/* Takes the entry over. */
static pen_status start(pen_replica *replica, const pen_queued *entry) {
    running *r = calloc(1, sizeof *r);
    pen_request request = {.on_token = on_token, .on_done = on_done, .context = r};
    pen_status status = r ? pen_payload_decode(entry->payload, entry->bytes, &request)
                          : pen_fail(PEN_NO_MEMORY, "no memory for a request");
    int choices = request.choices > 1 ? request.choices : 1;
    bool *stopped = status == PEN_OK ? calloc((size_t)choices, sizeof *stopped) : NULL;
    if (status == PEN_OK && !stopped) status = pen_fail(PEN_NO_MEMORY, "no memory for a request");
    if (status != PEN_OK) {
        free(entry->payload);
        free(r);
        return status;
    }
    *r = (running){.next = replica->running,
                   .replica = replica,
                   .entry = *entry,
                   .first = request.pick.choice,
                   .choices = choices,
                   .open = choices,
                   .top = request.pick.top_logprobs > 0 ? request.pick.top_logprobs : 0,
                   .expected = (int64_t)choices * request.max_tokens + (request.score ? request.prompt_count : 0) + 1,
                   .stopped = stopped};
    replica->running = r;
    replica->running_count++;
    PEN_TRY(note(replica, entry->stamp, PEN_NOTICE_STARTED, -1, PEN_FINISH_STOP));
    return pen_engine_submit(replica->engine, &request, &r->number);
}

/* Whether the engine should have another request: there is a slot, or one could be made. */
static bool wants_request(const pen_replica *replica, int64_t now_ns) {
    int priority;
    if (!pen_replica_queue_peek(replica->queue, now_ns, &priority)) return false;
    if (pen_engine_open_slots(replica->engine) > 0) return true;
    if (!replica->options.preempts) return false;
    int less_urgent = 0;
    for (const running *r = replica->running; r; r = r->next) less_urgent += r->entry.priority > priority;
    return less_urgent > pen_engine_count(replica->engine).waiting;
}

static pen_status start_requests(pen_replica *replica, int64_t now_ns) {
    pen_queued entry;
    while (pen_replica_queue_expire(replica->queue, now_ns, &entry)) {
        free(entry.payload);
        PEN_TRY(note(replica, entry.stamp, PEN_NOTICE_DONE, -1, PEN_FINISH_EXPIRED));
    }
    while (wants_request(replica, now_ns) && pen_replica_queue_pop(replica->queue, now_ns, &entry))
        PEN_TRY(start(replica, &entry));
    return PEN_OK;
}

/* ---- In ---------------------------------------------------------------------------------------------------------- */

static pen_status take_requests(pen_replica *replica, int from, pen_letter_kind kind, const pen_blob *letter) {
    int count;
    PEN_TRY(pen_letter_decode_requests(letter->data, letter->bytes, kind, pen_clock_ns(), replica->given,
                                       PEN_STEAL_MOST, &count));
    for (int i = 0; i < count; i++) {
        pen_status status = pen_replica_queue_push(replica->queue, &replica->given[i]);
        int queued = status == PEN_OK ? i + 1 : i; /* whose payloads are the queue's */
        if (status == PEN_OK && kind == PEN_LETTER_GIVE)
            status = send(replica, PEN_MAIL_FRONT, PEN_LETTER_TAKEN, &replica->given[i].stamp, sizeof(pen_stamp));
        if (status == PEN_OK) continue;
        for (int k = queued; k < count; k++) free(replica->given[k].payload);
        return status;
    }
    if (kind == PEN_LETTER_GIVE) pen_replica_queue_took(replica->queue, from, count, pen_clock_ns());
    return PEN_OK;
}

static pen_status give(pen_replica *replica, int thief, const pen_steal_ask *ask) {
    pen_replica_load load = load_of(replica);
    int count = pen_replica_queue_give(replica->queue, thief, ask, &load, replica->weight.speed, pen_clock_ns(),
                                       replica->given, PEN_STEAL_MOST);
    pen_blob letter;
    pen_status status = pen_letter_encode_requests(PEN_LETTER_GIVE, replica->given, count, pen_clock_ns(), &letter);
    for (int i = 0; i < count; i++) free(replica->given[i].payload);
    PEN_TRY(status);
    status = pen_mail_send(replica->mail, replica->options.self, thief, letter.data, letter.bytes);
    free(letter.data);
    for (int i = 0; i < count && status == PEN_OK; i++) {
        pen_move move = {.stamp = replica->given[i].stamp, .thief = thief};
        status = send(replica, PEN_MAIL_FRONT, PEN_LETTER_MOVED, &move, sizeof move);
    }
    return status;
}

static pen_status cancel(pen_replica *replica, const pen_cancel *wish) {
    running *r = replica->running;
    while (r && (r->entry.stamp.id != wish->stamp.id || r->entry.stamp.attempt != wish->stamp.attempt)) r = r->next;
    if (r && (wish->index < 0 || r->choices == 1)) {
        pen_engine_cancel(replica->engine, r->number);
        return PEN_OK;
    }
    if (r) {
        int choice = wish->index - r->first;
        if (choice >= 0 && choice < r->choices) r->stopped[choice] = true;
        return PEN_OK;
    }
    pen_queued entry;
    int thief;
    switch (pen_replica_queue_cancel(replica->queue, wish->stamp, &entry, &thief)) {
    case PEN_CANCEL_QUEUED:
        free(entry.payload);
        return note(replica, entry.stamp, PEN_NOTICE_DONE, -1, PEN_FINISH_CANCELLED);
    case PEN_CANCEL_GIVEN: {
        pen_cancel forwarded = {.stamp = entry.stamp, .index = wish->index};
        return send(replica, thief, PEN_LETTER_CANCEL, &forwarded, sizeof forwarded);
    }
    case PEN_CANCEL_ELSEWHERE: break; /* it has ended */
    }
    return PEN_OK;
}

/* Another replica is gone. */
static void bury(pen_replica *replica, int other) {
    pen_mail_bury(replica->mail, other);
    pen_replica_queue_lost(replica->queue, other);
}

static pen_status handle(pen_replica *replica, int from, const pen_blob *letter) {
    pen_letter_kind kind;
    PEN_TRY(pen_letter_kind_of(letter->data, letter->bytes, &kind));
    union {
        pen_cancel cancel;
        pen_stamp stamp;
        pen_replica_load load;
        pen_steal_ask ask;
        int32_t number;
    } body;
    static const size_t sizes[PEN_LETTER_KINDS] = {
        [PEN_LETTER_CANCEL] = sizeof body.cancel, [PEN_LETTER_ADOPTED] = sizeof body.stamp,
        [PEN_LETTER_LOAD] = sizeof body.load,     [PEN_LETTER_ASK] = sizeof body.ask,
        [PEN_LETTER_HOLD] = sizeof body.number,   [PEN_LETTER_LOST] = sizeof body.number,
    };
    if (kind == PEN_LETTER_SUBMIT || kind == PEN_LETTER_GIVE) return take_requests(replica, from, kind, letter);
    PEN_TRY(pen_letter_decode(letter->data, letter->bytes, kind, &body, sizes[kind]));
    switch (kind) {
    case PEN_LETTER_CANCEL: return cancel(replica, &body.cancel);
    case PEN_LETTER_ADOPTED: pen_replica_queue_adopted(replica->queue, body.stamp); return PEN_OK;
    case PEN_LETTER_LOAD: pen_replica_queue_hear(replica->queue, from, &body.load); return PEN_OK;
    case PEN_LETTER_ASK: return give(replica, from, &body.ask);
    case PEN_LETTER_HOLD: pen_engine_hold(replica->engine, body.number != 0); return PEN_OK;
    case PEN_LETTER_LAP: return pen_engine_lap(replica->engine);
    case PEN_LETTER_REPORT: replica->asked_for_metrics = true; return pen_engine_ask_metrics(replica->engine);
    case PEN_LETTER_LOST:
        if (body.number <= 0 || body.number >= replica->options.replicas)
            return pen_fail(PEN_INTERNAL, "bad letter: replica %d", body.number);
        bury(replica, body.number);
        return PEN_OK;
    case PEN_LETTER_DRAIN:
        replica->drains = true;
        pen_replica_queue_drain(replica->queue);
        return PEN_OK;
    case PEN_LETTER_STOP: replica->stopped = true; return pen_engine_stop(replica->engine);
    default: return pen_fail(PEN_INTERNAL, "bad letter: kind %u for a leader", (unsigned)kind);
    }
}

static pen_status read_mail(pen_replica *replica, bool *moved) {
    int from = 0;
    pen_blob letter;
    pen_status status = pen_mail_progress(replica->mail, moved, &from);
    if (status == PEN_PEER_LOST && from > 0 && pen_world_recovers(replica->world)) {
        int32_t rank = from * replica->options.stages;
        bury(replica, from);
        status = send(replica, PEN_MAIL_FRONT, PEN_LETTER_DEAD, &rank, sizeof rank);
    }
    PEN_TRY(status);
    while (!replica->stopped && pen_mail_receive(replica->mail, replica->options.self, &from, &letter)) {
        int64_t began_ns = pen_clock_ns();
        status = handle(replica, from, &letter);
        if (from != PEN_MAIL_FRONT) replica->steal_s += (double)(pen_clock_ns() - began_ns) * 1e-9;
        free(letter.data);
        PEN_TRY(status);
        *moved = true;
    }
    return PEN_OK;
}

/* ---- The loop ---------------------------------------------------------------------------------------------------- */

static pen_status send_metrics(pen_replica *replica) {
    if (!replica->asked_for_metrics) return PEN_OK;
    size_t bytes = (size_t)replica->options.stages * sizeof(pen_metrics);
    pen_metrics *stages = malloc(bytes);
    if (!stages) return pen_fail(PEN_NO_MEMORY, "no memory for the metrics of %d stages", replica->options.stages);
    bool ready;
    pen_status status = pen_engine_metrics_ready(replica->engine, stages, &ready);
    if (status == PEN_OK && ready) {
        replica->asked_for_metrics = false;
        status = send(replica, PEN_MAIL_FRONT, PEN_LETTER_METRICS, stages, bytes);
    }
    free(stages);
    return status;
}

static pen_status steal(pen_replica *replica, int64_t now_ns) {
    if (!replica->options.steals) return PEN_OK;
    int victim;
    pen_steal_ask ask;
    pen_replica_load load = load_of(replica);
    int slots = pen_engine_open_slots(replica->engine);
    if (!pen_replica_queue_ask(replica->queue, &load, replica->weight.speed, slots, now_ns, &victim, &ask))
        return PEN_OK;
    PEN_TRY(send(replica, victim, PEN_LETTER_ASK, &ask, sizeof ask));
    replica->steal_s += (double)(pen_clock_ns() - now_ns) * 1e-9;
    return PEN_OK;
}

/* A rank of this machine is gone: a stage of this replica, which cannot go on without it, or rank 0, without which
 * nobody can; or of another replica. */
static pen_status look_for_dead(pen_replica *replica, int64_t now_ns) {
    if (now_ns - replica->looked_ns < LOOK_NS || !pen_world_recovers(replica->world)) return PEN_OK;
    replica->looked_ns = now_ns;
    for (int32_t rank; (rank = pen_world_find_dead(replica->world)) >= 0;) {
        const pen_place *place = pen_world_place(replica->world, rank);
        if (place->replica == replica->options.self || rank == 0)
            return pen_fail(PEN_PEER_LOST, "%s has ended", place->name);
        PEN_TRY(send(replica, PEN_MAIL_FRONT, PEN_LETTER_DEAD, &rank, sizeof rank));
    }
    return PEN_OK;
}

void pen_replica_give_up(pen_replica *replica) {
    if (!pen_world_recovers(replica->world)) return; /* all end now, and one of them says why */
    int32_t rank = pen_world_rank(replica->world);
    int64_t deadline_ns = pen_clock_ns() + GIVE_UP_NS;
    pen_status status = send(replica, PEN_MAIL_FRONT, PEN_LETTER_DEAD, &rank, sizeof rank);
    bool moved;
    int peer;
    while (status == PEN_OK && pen_clock_ns() < deadline_ns &&
           pen_mail_unsent(replica->mail, replica->options.self, PEN_MAIL_FRONT) > 0)
        status = pen_mail_progress(replica->mail, &moved, &peer);
}

static pen_status tell_drained(pen_replica *replica) {
    if (!replica->drains || replica->drained) return PEN_OK;
    if (replica->running_count > 0 || !pen_replica_queue_is_still(replica->queue)) return PEN_OK;
    replica->drained = true;
    pen_queue_counts counts = pen_replica_queue_counts(replica->queue);
    return send(replica, PEN_MAIL_FRONT, PEN_LETTER_DRAINED, &counts, sizeof counts);
}

pen_status pen_replica_turn(pen_replica *replica, bool *moved) {
    bool mail = false;
    PEN_TRY(read_mail(replica, &mail));
    if (replica->stopped) return PEN_OK;
    if (mail) {
        pen_engine_stir(replica->engine);
        *moved = true;
    }
    PEN_TRY(start_requests(replica, pen_clock_ns()));
    PEN_TRY(pen_engine_turn(replica->engine, moved));
    PEN_TRY(replica->failure);
    /* The load goes first: notices that have just been sent would count as mail that is still under way. */
    int64_t now_ns = pen_clock_ns();
    PEN_TRY(report_load(replica, now_ns));
    PEN_TRY(send_notices(replica));
    PEN_TRY(steal(replica, now_ns));
    PEN_TRY(send_metrics(replica));
    PEN_TRY(look_for_dead(replica, now_ns));
    return tell_drained(replica);
}

pen_status pen_replica_rest(pen_replica *replica, bool expects) {
    return pen_engine_rest(replica->engine, expects);
}

pen_status pen_replica_serve(pen_replica *replica) {
    while (!replica->stopped) {
        bool moved = false;
        PEN_TRY(pen_replica_turn(replica, &moved));
        if (!moved && !replica->stopped) PEN_TRY(pen_replica_rest(replica, false));
    }
    return PEN_OK;
}
