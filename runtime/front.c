/* The front end; see front.h. */
#include "front.h"

#include "clock.h"
#include "front_wire.h"
#include "kvcache.h"
#include "log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static const int64_t LOG_NS = 1000 * 1000 * 1000;

enum { QUEUE_DEPTH = 16 }; /* requests that wait at a leader at most: enough for it to go on, and for others to steal */

static const int64_t LISTEN_NS = 100 * 1000 * 1000; /* so often it is looked who is silent */

typedef struct completion {
    int position;     /* tokens before this one were delivered */
    bool ended;       /* the command was told */
    bool ended_there; /* its replica said so, in the attempt that counts */
} completion;

/* A request that has not ended at its replica. */
typedef struct open_request {
    int64_t id;
    pen_request request; /* points into the payload */
    pen_blob payload;
    int32_t *output;               /* [max_tokens] of a single completion; else NULL */
    bool cancelled;                /* no more of its tokens are delivered */
    int choices, open, open_there; /* completions: all, and those that have not ended */
    int replica;                   /* that was last heard of */
    double predicted_ttft_ms;
    completion completions[];
} open_request;

typedef struct replica_record {
    bool ready, drained, has_metrics;
    int64_t heard_ns;
    pen_replica_load load;
    int64_t loaded_ns, logged_ns; /* when that came; … and what was logged last */
    double logged_busy_s;
    pen_queue_counts counts;
} replica_record;

struct pen_front {
    pen_world *world;
    pen_mail *mail;
    pen_replica *local;
    pen_front_options options;
    pen_distributor *distributor;
    replica_record *replicas; /* [replicas] */
    double *measured_ms;      /* [replicas][stages] */
    pen_metrics *metrics;     /* [replicas][stages] */
    /* [capacity], request id in id mod capacity: it grows until no two meet. */
    open_request **requests;
    int capacity, open;
    int64_t listened_ns; /* when silences were last looked at */
    bool woken;
    int64_t logged_ns;
    pen_front_watch *watch;
    void *watch_context;
};

int pen_front_replicas(const pen_front *front) {
    return front->options.replicas;
}
int pen_front_stages(const pen_front *front) {
    return front->options.stages;
}
int pen_front_open(const pen_front *front) {
    return front->open;
}
bool pen_front_has_room(const pen_front *front) {
    return pen_distributor_has_room(front->distributor);
}
int pen_front_waiting(const pen_front *front) {
    return pen_distributor_waiting(front->distributor);
}
void pen_front_wake(pen_front *front) {
    front->woken = true;
}
void pen_front_set_watch(pen_front *front, pen_front_watch *watch, void *context) {
    front->watch = watch;
    front->watch_context = context;
}
void pen_front_measured(const pen_front *front, double *ms) {
    memcpy(ms, front->measured_ms,
           (size_t)front->options.replicas * (size_t)front->options.stages * sizeof *front->measured_ms);
}

int pen_front_lost(const pen_front *front) {
    int lost = 0;
    for (int r = 0; r < front->options.replicas; r++) lost += !pen_distributor_alive(front->distributor, r);
    return lost;
}

pen_replica_state pen_front_replica(const pen_front *front, int replica) {
    return (pen_replica_state){.alive = pen_distributor_alive(front->distributor, replica),
                               .account = pen_distributor_account(front->distributor, replica),
                               .load = front->replicas[replica].load};
}

/* ---- Requests ---------------------------------------------------------------------------------------------------- */

static open_request **place_of(open_request **table, int capacity, int64_t id) {
    return &table[id & (capacity - 1)];
}

static open_request *find(const pen_front *front, int64_t id) {
    open_request *found = *place_of(front->requests, front->capacity, id);
    return found && found->id == id ? found : NULL;
}

static pen_status insert(pen_front *front, open_request *added) {
    while (*place_of(front->requests, front->capacity, added->id)) {
        int capacity = 2 * front->capacity;
        open_request **grown = calloc((size_t)capacity, sizeof *grown);
        if (!grown) return pen_fail(PEN_NO_MEMORY, "no memory for %d requests", front->open + 1);
        for (int i = 0; i < front->capacity; i++)
            if (front->requests[i]) *place_of(grown, capacity, front->requests[i]->id) = front->requests[i];
        free(front->requests);
        front->requests = grown;
        front->capacity = capacity;
    }
    *place_of(front->requests, front->capacity, added->id) = added;
    front->open++;
    return PEN_OK;
}

static void free_request(open_request *r) {
    if (!r) return;
    free(r->payload.data);
    free(r->output);
    free(r);
}

static void forget(pen_front *front, open_request *r) {
    *place_of(front->requests, front->capacity, r->id) = NULL;
    front->open--;
    free_request(r);
}

static pen_status make_request(const pen_request *request, open_request **made) {
    int choices = request->choices > 1 ? request->choices : 1;
    open_request *r = calloc(1, sizeof *r + (size_t)choices * sizeof r->completions[0]);
    if (!r) return pen_fail(PEN_NO_MEMORY, "no memory for a request");
    r->request = *request;
    r->choices = r->open = r->open_there = choices;
    pen_status status = pen_payload_encode(request, &r->payload);
    if (status == PEN_OK) status = pen_payload_decode(r->payload.data, r->payload.bytes, &r->request);
    if (status == PEN_OK && choices == 1 && request->max_tokens > 0) {
        r->output = malloc((size_t)request->max_tokens * sizeof *r->output);
        if (!r->output) status = pen_fail(PEN_NO_MEMORY, "no memory for %d tokens", request->max_tokens);
    }
    if (status == PEN_OK)
        *made = r;
    else
        free_request(r);
    return status;
}

/* The chained hashes of a prompt's full blocks, by which the distributor knows beginnings again. */
static uint64_t *hash_prefix(const pen_request *request, int *count) {
    *count = request->prompt_count / PEN_KV_BLOCK;
    uint64_t *hashes = malloc(((size_t)*count + 1) * sizeof *hashes), hash = 0;
    for (int i = 0; hashes && i < *count; i++)
        hashes[i] = hash = XXH3_64bits_withSeed(request->prompt + (size_t)i * PEN_KV_BLOCK,
                                                PEN_KV_BLOCK * sizeof *request->prompt, hash);
    return hashes;
}

static pen_status admit(pen_front *front, open_request *r) {
    int blocks;
    uint64_t *prefix = hash_prefix(&r->request, &blocks);
    if (!prefix) return pen_fail(PEN_NO_MEMORY, "no memory for a prompt's hashes");
    pen_admission admission = {.prompt = r->request.prompt_count,
                               .output = r->request.max_tokens,
                               .choices = r->choices,
                               .priority = r->request.priority,
                               .timeout_ns = (int64_t)(front->options.queue_timeout_s * 1e9),
                               .prefix = prefix,
                               .prefix_count = blocks};
    pen_status status = pen_distributor_admit(front->distributor, &admission, pen_clock_ns(), &r->id);
    free(prefix);
    return status;
}

pen_status pen_front_submit(pen_front *front, const pen_request *request, int64_t *id) {
    PEN_TRY(pen_engine_check(pen_replica_engine(front->local), request));
    if (request->given > 0) return pen_fail(PEN_USAGE, "what a replica is given is the front end's to say");
    open_request *r = NULL;
    PEN_TRY(make_request(request, &r));
    pen_status status = admit(front, r);
    if (status == PEN_OK) {
        r->predicted_ttft_ms = pen_distributor_predict_ttft(front->distributor, r->id);
        status = insert(front, r);
        if (status != PEN_OK) pen_distributor_cancel(front->distributor, r->id);
    }
    if (status != PEN_OK) {
        free_request(r);
        return status;
    }
    if (id) *id = r->id;
    return PEN_OK;
}

double pen_front_predicted_ttft_ms(const pen_front *front, int64_t id) {
    const open_request *r = find(front, id);
    return r ? r->predicted_ttft_ms : 0;
}

int pen_front_replica_of(const pen_front *front, int64_t id) {
    const open_request *r = find(front, id);
    return r ? r->replica : 0;
}

void pen_front_cancel(pen_front *front, int64_t id) {
    open_request *r = find(front, id);
    if (!r || r->cancelled) return;
    r->cancelled = true;
    pen_distributor_cancel(front->distributor, id);
}

/* Tells the command, once. */
static void end_completion(open_request *r, int choice, pen_finish finish) {
    completion *c = &r->completions[choice];
    if (c->ended) return;
    c->ended = true;
    r->open--;
    if (r->request.on_done) r->request.on_done(r->request.context, r->request.pick.choice + choice, finish);
}

static void end_all(open_request *r, pen_finish finish) {
    for (int i = 0; i < r->choices; i++) end_completion(r, i, finish);
}

/* ---- Out --------------------------------------------------------------------------------------------------------- */

static pen_status send(pen_front *front, int replica, pen_letter_kind kind, const void *body, size_t bytes) {
    pen_blob letter;
    PEN_TRY(pen_letter_encode(kind, body, bytes, &letter));
    pen_status status = pen_mail_send(front->mail, PEN_MAIL_FRONT, replica, letter.data, letter.bytes);
    free(letter.data);
    return status;
}

static bool is_alive(const pen_front *front, int replica) {
    return pen_distributor_alive(front->distributor, replica);
}

static pen_status send_to_all(pen_front *front, pen_letter_kind kind, const void *body, size_t bytes) {
    for (int r = 0; r < front->options.replicas; r++)
        if (is_alive(front, r)) PEN_TRY(send(front, r, kind, body, bytes));
    return PEN_OK;
}

/* The payload of another attempt: the prompt and what has come of a single completion. Several begin anew, and what was
 * delivered is not delivered again. */
static pen_status continue_payload(const open_request *r, pen_blob *payload) {
    pen_request request = r->request;
    request.given = r->output ? r->completions[0].position - request.prompt_count : 0;
    if (request.given <= 0) {
        request.given = 0;
        return pen_payload_encode(&request, payload);
    }
    size_t prompt = (size_t)request.prompt_count, given = (size_t)request.given;
    int32_t *tokens = malloc((prompt + given) * sizeof *tokens);
    if (!tokens) return pen_fail(PEN_NO_MEMORY, "no memory for %zu tokens", prompt + given);
    memcpy(tokens, request.prompt, prompt * sizeof *tokens);
    memcpy(tokens + prompt, r->output, given * sizeof *tokens);
    request.prompt = tokens;
    pen_status status = pen_payload_encode(&request, payload);
    free(tokens);
    return status;
}

static pen_status dispatch(pen_front *front, const pen_action *action) {
    open_request *r = find(front, action->stamp.id);
    bool again = action->stamp.attempt > 0;
    pen_blob payload = r->payload;
    if (again) {
        r->open_there = r->choices;
        for (int i = 0; i < r->choices; i++) r->completions[i].ended_there = false;
        bool complete = r->output && r->completions[0].position == r->request.prompt_count + r->request.max_tokens;
        if (complete || r->open == 0) { /* only the word that it has ended was lost */
            pen_distributor_ended(front->distributor, action->replica, action->stamp);
            end_all(r, PEN_FINISH_LENGTH);
            forget(front, r);
            return PEN_OK;
        }
        PEN_TRY(continue_payload(r, &payload));
    }
    int64_t now_ns = pen_clock_ns(), timeout_ns = (int64_t)(front->options.queue_timeout_s * 1e9);
    pen_queued entry = {.stamp = action->stamp,
                        .priority = r->request.priority,
                        .arrived_ns = now_ns - action->waited_ns,
                        .deadline_ns = timeout_ns && !again ? now_ns - action->waited_ns + timeout_ns : 0,
                        .cost_ms = action->cost_ms,
                        .prompt_ms = action->prompt_ms,
                        .payload = payload.data,
                        .bytes = payload.bytes};
    pen_blob letter;
    pen_status status = pen_letter_encode_requests(PEN_LETTER_SUBMIT, &entry, 1, now_ns, &letter);
    if (again) free(payload.data);
    PEN_TRY(status);
    status = pen_mail_send(front->mail, PEN_MAIL_FRONT, action->replica, letter.data, letter.bytes);
    free(letter.data);
    return status;
}

static pen_status act(pen_front *front, const pen_action *action) {
    open_request *r = find(front, action->stamp.id);
    switch (action->kind) {
    case PEN_ACTION_DISPATCH: return dispatch(front, action);
    case PEN_ACTION_CANCEL: {
        pen_cancel cancel = {.stamp = action->stamp, .index = -1};
        return send(front, action->replica, PEN_LETTER_CANCEL, &cancel, sizeof cancel);
    }
    case PEN_ACTION_ADOPTED:
        return send(front, action->replica, PEN_LETTER_ADOPTED, &action->stamp, sizeof action->stamp);
    case PEN_ACTION_EXPIRED:
    case PEN_ACTION_CANCELLED:
        if (!r) return PEN_OK; /* it was admitted, and then there was no memory for it */
        end_all(r, action->kind == PEN_ACTION_EXPIRED ? PEN_FINISH_EXPIRED : PEN_FINISH_CANCELLED);
        forget(front, r);
        return PEN_OK;
    }
    return PEN_OK;
}

/* ---- In ---------------------------------------------------------------------------------------------------------- */

static pen_status take_token(pen_front *front, int from, open_request *r, const pen_notice *notice) {
    int choice = notice->index - r->request.pick.choice;
    if (choice < 0 || choice >= r->choices) return pen_fail(PEN_INTERNAL, "bad letter: completion %d", notice->index);
    completion *c = &r->completions[choice];
    if (notice->position < c->position) return PEN_OK; /* delivered in a former life */
    c->position = notice->position + 1;
    int output = notice->position - r->request.prompt_count;
    if (output >= r->request.max_tokens) return pen_fail(PEN_INTERNAL, "bad letter: token %d", notice->position);
    if (output >= 0 && r->output) r->output[output] = notice->choice.token;
    if (c->ended || r->cancelled) return PEN_OK;
    const pen_request *request = &r->request;
    if (!request->on_token || request->on_token(request->context, notice->index, notice->position, &notice->choice))
        return PEN_OK;
    end_completion(r, choice, PEN_FINISH_STOP);
    pen_cancel cancel = {.stamp = notice->stamp, .index = notice->index};
    return send(front, from, PEN_LETTER_CANCEL, &cancel, sizeof cancel);
}

static pen_status take_end(pen_front *front, int from, open_request *r, const pen_notice *notice) {
    int first = notice->index < 0 ? 0 : notice->index - r->request.pick.choice;
    int end = notice->index < 0 ? r->choices : first + 1;
    if (first < 0 || end > r->choices) return pen_fail(PEN_INTERNAL, "bad letter: completion %d", notice->index);
    for (int i = first; i < end; i++) {
        if (r->completions[i].ended_there) continue;
        r->completions[i].ended_there = true;
        r->open_there--;
        end_completion(r, i, r->cancelled ? PEN_FINISH_CANCELLED : notice->finish);
    }
    if (r->open_there > 0) return PEN_OK;
    pen_distributor_ended(front->distributor, from, notice->stamp);
    forget(front, r);
    return PEN_OK;
}

/* Where it began anew, what had ended in its former life need not run again to its end. */
static pen_status take_start(pen_front *front, int from, const pen_notice *notice) {
    if (!pen_distributor_started(front->distributor, from, notice->stamp)) return PEN_OK;
    const open_request *r = find(front, notice->stamp.id);
    for (int i = 0; r && i < r->choices; i++) {
        pen_cancel cancel = {.stamp = notice->stamp, .index = r->request.pick.choice + i};
        if (r->completions[i].ended) PEN_TRY(send(front, from, PEN_LETTER_CANCEL, &cancel, sizeof cancel));
    }
    return PEN_OK;
}

static pen_status take_notice(pen_front *front, int from, const pen_notice *notice) {
    if (notice->kind == PEN_NOTICE_STARTED) return take_start(front, from, notice);
    bool is_token = notice->kind == PEN_NOTICE_TOKEN;
    /* What speaks of a former life does not count. */
    if (!pen_distributor_progressed(front->distributor, from, notice->stamp, is_token)) return PEN_OK;
    open_request *r = find(front, notice->stamp.id);
    if (!r) return PEN_OK;
    r->replica = from;
    return is_token ? take_token(front, from, r, notice) : take_end(front, from, r, notice);
}

static pen_status take_notices(pen_front *front, int from, const pen_blob *letter) {
    size_t offset = 0;
    pen_notice notice;
    pen_status status;
    while (pen_notices_next(letter->data, letter->bytes, &offset, &notice, &status))
        PEN_TRY(take_notice(front, from, &notice));
    return status;
}

/* A replica is gone, for a reason that pen_last_error says. */
static pen_status lose(pen_front *front, int replica) {
    if (!is_alive(front, replica)) return PEN_OK;
    if (!pen_world_recovers(front->world) || replica == 0) return PEN_PEER_LOST;
    pen_replica_account account = pen_distributor_account(front->distributor, replica);
    PEN_WARN("%s: replica %d is lost, and the %d requests that it had go to others", pen_last_error(), replica,
             account.requests);
    pen_mail_bury(front->mail, replica);
    pen_distributor_lost(front->distributor, replica);
    int32_t number = replica;
    PEN_TRY(send_to_all(front, PEN_LETTER_LOST, &number, sizeof number));
    if (front->watch) front->watch(front->watch_context, replica);
    return PEN_OK;
}

static pen_status take_load(pen_front *front, int from, const pen_blob *letter) {
    pen_replica_load *load = &front->replicas[from].load;
    PEN_TRY(pen_letter_decode(letter->data, letter->bytes, PEN_LETTER_LOAD, load, sizeof *load));
    front->replicas[from].loaded_ns = pen_clock_ns();
    pen_distributor_report(front->distributor, from, load, front->replicas[from].loaded_ns);
    if (front->watch) front->watch(front->watch_context, from);
    return PEN_OK;
}

static pen_status take_death(pen_front *front, int from, const pen_blob *letter) {
    int32_t rank;
    PEN_TRY(pen_letter_decode(letter->data, letter->bytes, PEN_LETTER_DEAD, &rank, sizeof rank));
    if (rank < 0 || rank >= pen_world_size(front->world)) return pen_fail(PEN_INTERNAL, "bad letter: rank %d", rank);
    const pen_place *place = pen_world_place(front->world, rank);
    pen_fail(PEN_PEER_LOST, "%s has %s", place->name, place->replica == from ? "given up" : "ended");
    return lose(front, place->replica);
}

static pen_status handle(pen_front *front, int from, const pen_blob *letter) {
    pen_letter_kind kind;
    const void *data = letter->data;
    size_t bytes = letter->bytes, stages = (size_t)front->options.stages;
    PEN_TRY(pen_letter_kind_of(data, bytes, &kind));
    replica_record *replica = &front->replicas[from];
    replica->heard_ns = pen_clock_ns();
    switch (kind) {
    case PEN_LETTER_READY:
        replica->ready = true;
        return pen_letter_decode(data, bytes, kind, front->measured_ms + (size_t)from * stages,
                                 stages * sizeof(double));
    case PEN_LETTER_NOTICES: return take_notices(front, from, letter);
    case PEN_LETTER_LOAD: return take_load(front, from, letter);
    case PEN_LETTER_DEAD: return take_death(front, from, letter);
    case PEN_LETTER_MOVED: {
        pen_move move;
        PEN_TRY(pen_letter_decode(data, bytes, kind, &move, sizeof move));
        if (move.thief < 0 || move.thief >= front->options.replicas)
            return pen_fail(PEN_INTERNAL, "bad letter: replica %d", move.thief);
        return pen_distributor_moved(front->distributor, from, move.stamp, move.thief);
    }
    case PEN_LETTER_TAKEN: {
        pen_stamp stamp;
        PEN_TRY(pen_letter_decode(data, bytes, kind, &stamp, sizeof stamp));
        return pen_distributor_taken(front->distributor, from, stamp);
    }
    case PEN_LETTER_METRICS:
        replica->has_metrics = true;
        return pen_letter_decode(data, bytes, kind, front->metrics + (size_t)from * stages,
                                 stages * sizeof(pen_metrics));
    case PEN_LETTER_DRAINED:
        replica->drained = true;
        return pen_letter_decode(data, bytes, kind, &replica->counts, sizeof replica->counts);
    default: return pen_fail(PEN_INTERNAL, "bad letter: kind %u for the front end", (unsigned)kind);
    }
}

static pen_status read_mail(pen_front *front, bool *moved) {
    int from = 0;
    pen_blob letter;
    pen_status status = pen_mail_progress(front->mail, moved, &from);
    if (status == PEN_PEER_LOST && from > 0) status = lose(front, from);
    PEN_TRY(status);
    while (pen_mail_receive(front->mail, PEN_MAIL_FRONT, &from, &letter)) {
        status = handle(front, from, &letter);
        free(letter.data);
        PEN_TRY(status);
        *moved = true;
    }
    return PEN_OK;
}

/* Replicas report every half second and between two steps at the latest. Where this rank itself was away for long, as
 * it was stopped or the command was busy, what they sent meanwhile may not be here yet: they begin anew. */
static pen_status check_silence(pen_front *front) {
    int64_t now_ns = pen_clock_ns(), since_ns = now_ns - front->listened_ns;
    if (since_ns < LISTEN_NS) return PEN_OK;
    front->listened_ns = now_ns;
    bool was_away = (double)since_ns * 1e-9 > front->options.patience_s / 2;
    for (int r = 1; r < front->options.replicas; r++) {
        if (was_away) front->replicas[r].heard_ns = now_ns;
        double silent_s = (double)(now_ns - front->replicas[r].heard_ns) * 1e-9;
        if (silent_s < front->options.patience_s || !is_alive(front, r)) continue;
        pen_fail(PEN_PEER_LOST, "%s has said nothing for %.1f s",
                 pen_world_place(front->world, r * front->options.stages)->name, silent_s);
        PEN_TRY(lose(front, r));
    }
    return PEN_OK;
}

/* ---- The log ----------------------------------------------------------------------------------------------------- */

/* The share of its time that a replica was busy since it was last asked for. */
static double utilisation_since(replica_record *record) {
    double seconds = (double)(record->loaded_ns - record->logged_ns) * 1e-9;
    double busy = seconds > 0 ? (record->load.busy_s - record->logged_busy_s) / seconds : 0;
    record->logged_ns = record->loaded_ns;
    record->logged_busy_s = record->load.busy_s;
    return busy < 1 ? busy : 1;
}

static void log_replicas(pen_front *front) {
    int64_t now_ns = pen_clock_ns();
    if (front->options.replicas == 1 || !pen_log_enabled(PEN_LOG_INFO) || now_ns - front->logged_ns < LOG_NS) return;
    front->logged_ns = now_ns;
    char *line = NULL;
    size_t length;
    FILE *out = open_memstream(&line, &length);
    if (!out) return;
    for (int r = 0; r < front->options.replicas; r++) {
        replica_record *record = &front->replicas[r];
        pen_replica_account account = pen_distributor_account(front->distributor, r);
        fprintf(out, "%d: utilisation %.2f, queue %d, running %d, weight %.2f, speed %.2f; ", r,
                utilisation_since(record), record->load.queued, record->load.running, account.weight, account.speed);
    }
    fprintf(out, "in the buffer: %d", pen_front_waiting(front));
    if (fclose(out) == 0) PEN_INFO("replica %s", line);
    free(line);
}

/* What front end and local replica can do now; rests where that is nothing. */
static pen_status turn(pen_front *front) {
    bool moved = false;
    pen_action action;
    PEN_TRY(read_mail(front, &moved));
    while (pen_distributor_next(front->distributor, pen_clock_ns(), &action)) {
        PEN_TRY(act(front, &action));
        moved = true;
    }
    PEN_TRY(check_silence(front));
    PEN_TRY(pen_replica_turn(front->local, &moved));
    if (moved) return PEN_OK;
    return pen_replica_rest(front->local, front->options.replicas > 1);
}

pen_status pen_front_run_until(pen_front *front, int64_t deadline_ns) {
    front->woken = false;
    while (front->open > 0 && !front->woken && pen_clock_ns() < deadline_ns) {
        PEN_TRY(turn(front));
        log_replicas(front);
    }
    return PEN_OK;
}

pen_status pen_front_run(pen_front *front) {
    do PEN_TRY(pen_front_run_until(front, INT64_MAX));
    while (front->open > 0);
    return PEN_OK;
}

/* ---- Commands ---------------------------------------------------------------------------------------------------- */

pen_status pen_front_hold(pen_front *front, bool hold) {
    int32_t value = hold;
    return send_to_all(front, PEN_LETTER_HOLD, &value, sizeof value);
}

pen_status pen_front_lap(pen_front *front) {
    return send_to_all(front, PEN_LETTER_LAP, NULL, 0);
}

/* Turns until every replica that is alive has set the flag at `offset` of its record. */
static pen_status await_all(pen_front *front, size_t offset) {
    for (int r = 0; r < front->options.replicas;) {
        const replica_record *record = &front->replicas[r];
        if (*(const bool *)((const char *)record + offset) || !is_alive(front, r))
            r++;
        else
            PEN_TRY(turn(front));
    }
    return PEN_OK;
}

pen_status pen_front_metrics(pen_front *front, pen_metrics *stages) {
    size_t count = (size_t)front->options.replicas * (size_t)front->options.stages;
    for (int r = 0; r < front->options.replicas; r++) front->replicas[r].has_metrics = false;
    memset(front->metrics, 0, count * sizeof *front->metrics);
    PEN_TRY(send_to_all(front, PEN_LETTER_REPORT, NULL, 0));
    PEN_TRY(await_all(front, offsetof(replica_record, has_metrics)));
    memcpy(stages, front->metrics, count * sizeof *stages);
    return PEN_OK;
}

/* What leaders received and passed on among themselves must add up. */
static pen_status check_counts(const pen_front *front) {
    uint64_t dispatched = 0, received = 0, taken = 0, given = 0, left = 0;
    for (int r = 0; r < front->options.replicas; r++) {
        const pen_queue_counts *counts = &front->replicas[r].counts;
        if (!is_alive(front, r)) return PEN_OK; /* what it did is not known */
        dispatched += pen_distributor_account(front->distributor, r).dispatched;
        received += counts->received;
        taken += counts->taken;
        given += counts->given;
        left += counts->started + counts->removed;
    }
    if (received == dispatched && taken == given && left == received) return PEN_OK;
    return pen_fail(PEN_INTERNAL,
                    "requests do not add up: %" PRIu64 " sent, %" PRIu64 " received, %" PRIu64 " given, %" PRIu64
                    " taken, %" PRIu64 " ended",
                    dispatched, received, given, taken, left);
}

pen_status pen_front_stop(pen_front *front) {
    PEN_TRY(send_to_all(front, PEN_LETTER_DRAIN, NULL, 0));
    PEN_TRY(await_all(front, offsetof(replica_record, drained)));
    PEN_TRY(check_counts(front));
    PEN_TRY(send_to_all(front, PEN_LETTER_STOP, NULL, 0));
    while (!pen_replica_is_stopped(front->local)) PEN_TRY(turn(front));
    return PEN_OK;
}

/* ---- Making ------------------------------------------------------------------------------------------------------ */

static pen_status make(pen_front *front) {
    const pen_front_options *options = &front->options;
    size_t replicas = (size_t)options->replicas, stages = replicas * (size_t)options->stages;
    front->capacity = 64;
    front->requests = calloc((size_t)front->capacity, sizeof *front->requests);
    front->replicas = calloc(replicas, sizeof *front->replicas);
    front->measured_ms = calloc(stages, sizeof *front->measured_ms);
    front->metrics = calloc(stages, sizeof *front->metrics);
    if (!front->requests || !front->replicas || !front->measured_ms || !front->metrics)
        return pen_fail(PEN_NO_MEMORY, "no memory for the front end");
    front->listened_ns = pen_clock_ns();
    for (size_t r = 0; r < replicas; r++) front->replicas[r].heard_ns = front->listened_ns;
    pen_distributor_options distributor = {.replicas = options->replicas,
                                           .policy = options->policy,
                                           .max_queue = options->max_queue,
                                           .depth = QUEUE_DEPTH,
                                           .costs = options->costs,
                                           .slots = options->slots};
    PEN_TRY(pen_distributor_create(&distributor, &front->distributor));
    return await_all(front, offsetof(replica_record, ready));
}

pen_status pen_front_create(pen_world *world, pen_mail *mail, pen_replica *local, const pen_front_options *options,
                            pen_front **out) {
    pen_front *front = calloc(1, sizeof *front);
    if (!front) return pen_fail(PEN_NO_MEMORY, "no memory for the front end");
    front->world = world;
    front->mail = mail;
    front->local = local;
    front->options = *options;
    pen_status status = make(front);
    if (status == PEN_OK)
        *out = front;
    else
        pen_front_destroy(front);
    return status;
}

void pen_front_destroy(pen_front *front) {
    if (!front) return;
    for (int i = 0; front->requests && i < front->capacity; i++) free_request(front->requests[i]);
    free(front->requests);
    pen_distributor_destroy(front->distributor);
    free(front->replicas);
    free(front->measured_ms);
    free(front->metrics);
    free(front);
}
