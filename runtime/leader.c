/*
 * The leader of a replica: it holds the requests and their tokens, forms steps by the schedule, tells the other stages
 * of them, runs its own stage like anybody else, and takes the choices of the last stage.
 *
 * Steps come back in the order in which they left; `flights` remembers what each was. Callbacks may submit and cancel:
 * behind each, what it was about is looked up anew.
 */
#include "engine_internal.h"

#include "clock.h"
#include "kvcache.h"
#include "live.h"
#include "pace.h"
#include "schedule.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { HEADERS = 8, TOKEN_BUFFERS = 2 };

/* Rests of a leader without work that hears from others. Simulated ones share their cores with many. */
static const int64_t SLICE_NS = 100 * 1000, SLICE_SIMULATED_NS = 1000 * 1000;

/* A message on its way to the other stages. */
typedef struct outgoing {
    void *message;
    pen_transfer *sends; /* [stages]; 0: done */
} outgoing;

typedef struct flight {
    pen_microbatch microbatch;
    pen_pick *picks; /* [logit_rows] */
    void *history;   /* [history_capacity] the message of histories */
    size_t history_capacity;
    pen_transfer history_send; /* 0: done */
    double planned_ms;         /* when it should come back (pace.h) */
} flight;

/* What another stage answers. */
typedef struct answer {
    unsigned char message[sizeof(pen_header) + sizeof(pen_metrics)];
    size_t bytes;
    pen_transfer receive; /* 0: it is here */
} answer;

/* How far the last stage knows the history of the sequence in a slot. */
typedef struct slot_told {
    bool begun;
    uint32_t epoch;
    int count; /* tokens */
} slot_told;

struct pen_leader {
    pen_kvcache *cache;
    pen_schedule *schedule;
    int flight_limit;
    uint64_t launched, landed;
    flight *flights; /* [flight_limit], step n in n mod flight_limit */
    outgoing outgoing[HEADERS];
    int next_outgoing;
    void *incoming[TOKEN_BUFFERS]; /* receives from the last stage, posted in turn */
    pen_transfer receives[TOKEN_BUFFERS];
    int turn;
    pen_choice *choices; /* [logit_rows] of the step that came back */
    int32_t *row_tokens; /* [rows] of the step being launched */
    slot_told *slots;    /* [sequences] */
    pen_told *told;      /* [rows] of the step being launched */
    pen_live_table live;
    int64_t work_since_ns; /* while there are live requests */
    bool hold;
    bool stirred; /* the stages have heard of steps, and not yet that there are no more */
    pen_pace pace;
    answer *answers; /* [stages] to the last question */
};

/* ---- Making ----------------------------------------------------------------------------------------------------- */

static pen_status post(pen_engine *engine, int i) {
    pen_leader *leader = engine->leader;
    return pen_link_receive(engine->link, PEN_CHANNEL_TOKEN, engine->stages - 1, 0, leader->incoming[i],
                            pen_wire_choices_bytes(&engine->limits), &leader->receives[i]);
}

static pen_status make_buffers(pen_engine *engine) {
    pen_leader *leader = engine->leader;
    const pen_wire_limits *limits = &engine->limits;
    size_t rows = (size_t)limits->rows, logit_rows = (size_t)limits->logit_rows + 1;
    bool made = true;
    for (int i = 0; i < leader->flight_limit; i++) {
        flight *f = &leader->flights[i];
        f->microbatch.runs = calloc(rows, sizeof *f->microbatch.runs);
        f->picks = calloc(logit_rows, sizeof *f->picks);
        made = made && f->microbatch.runs && f->picks;
    }
    for (int i = 0; i < HEADERS; i++) {
        leader->outgoing[i].message = malloc(pen_wire_step_bytes(limits));
        leader->outgoing[i].sends = calloc((size_t)engine->stages, sizeof(pen_transfer));
        made = made && leader->outgoing[i].message && leader->outgoing[i].sends;
    }
    leader->choices = calloc(logit_rows, sizeof *leader->choices);
    leader->row_tokens = calloc(rows, sizeof *leader->row_tokens);
    leader->slots = calloc((size_t)limits->sequences, sizeof *leader->slots);
    leader->told = calloc(rows, sizeof *leader->told);
    leader->answers = calloc((size_t)engine->stages, sizeof *leader->answers);
    for (int i = 0; i < TOKEN_BUFFERS; i++) {
        leader->incoming[i] = malloc(pen_wire_choices_bytes(limits));
        made = made && leader->incoming[i];
    }
    if (!made || !leader->choices || !leader->row_tokens || !leader->slots || !leader->told || !leader->answers)
        return pen_fail(PEN_NO_MEMORY, "no memory for the leader's steps");
    for (int i = 0; i < TOKEN_BUFFERS; i++) PEN_TRY(post(engine, i));
    return PEN_OK;
}

pen_status pen_leader_create(pen_engine *engine) {
    const pen_engine_options *options = &engine->options;
    pen_leader *leader = engine->leader = calloc(1, sizeof *leader);
    if (!leader) return pen_fail(PEN_NO_MEMORY, "no memory for the leader");
    PEN_TRY(pen_live_table_create(&leader->live));
    PEN_TRY(pen_pace_create(options->cost, &leader->pace));
    PEN_TRY(pen_kvcache_create(&options->kv, options->sequences, options->context, &leader->cache));
    pen_schedule_options schedule = {.stages = engine->stages,
                                     .in_flight = options->in_flight,
                                     .sequences = options->sequences,
                                     .rows = options->rows,
                                     .logit_rows = options->logit_rows,
                                     .context = options->context,
                                     .kv = options->kv,
                                     .cost = options->cost,
                                     .preempts = options->preempts};
    PEN_TRY(pen_schedule_create(&schedule, leader->cache, &leader->schedule));
    leader->flight_limit = pen_schedule_limit(leader->schedule);
    leader->flights = calloc((size_t)leader->flight_limit, sizeof *leader->flights);
    if (!leader->flights) return pen_fail(PEN_NO_MEMORY, "no memory for the leader's steps");
    return make_buffers(engine);
}

void pen_leader_destroy(pen_leader *leader) {
    if (!leader) return;
    for (int i = 0; leader->flights && i < leader->flight_limit; i++) {
        free(leader->flights[i].microbatch.runs);
        free(leader->flights[i].picks);
        free(leader->flights[i].history);
    }
    for (int i = 0; i < HEADERS; i++) {
        free(leader->outgoing[i].message);
        free(leader->outgoing[i].sends);
    }
    for (int i = 0; i < TOKEN_BUFFERS; i++) free(leader->incoming[i]);
    pen_live_table_destroy(&leader->live);
    pen_pace_destroy(&leader->pace);
    free(leader->flights);
    free(leader->choices);
    free(leader->row_tokens);
    free(leader->slots);
    free(leader->told);
    free(leader->answers);
    pen_schedule_destroy(leader->schedule);
    pen_kvcache_destroy(leader->cache);
    free(leader);
}

/* ---- Requests --------------------------------------------------------------------------------------------------- */

/* One completion; the first one's sequence is the parent of the others. */
static pen_status submit_one(pen_leader *leader, const pen_request *request, int64_t parent, int64_t *sequence) {
    pen_live *added;
    PEN_TRY(pen_live_create(request, &added));
    const pen_sequence_spec spec = {.tokens = added->tokens,
                                    .prompt = request->prompt_count,
                                    .output = request->max_tokens,
                                    .given = request->given,
                                    .score = request->score,
                                    .parent = parent,
                                    .priority = request->priority};
    pen_status status = pen_schedule_add(leader->schedule, &spec, &added->sequence);
    if (status == PEN_OK) {
        *sequence = added->sequence;
        added->number = parent < 0 ? added->sequence : parent;
        status = pen_live_insert(&leader->live, added);
        if (status == PEN_OK && leader->live.count == 1) leader->work_since_ns = pen_clock_ns();
        if (status == PEN_OK) return PEN_OK;
        pen_schedule_finish(leader->schedule, added->sequence);
    }
    free(added);
    return status;
}

static void drop(pen_engine *engine, pen_live *l) {
    pen_leader *leader = engine->leader;
    pen_schedule_finish(leader->schedule, l->sequence);
    pen_live_remove(&leader->live, l);
    if (leader->live.count == 0) engine->meter.total.work_s += (double)(pen_clock_ns() - leader->work_since_ns) * 1e-9;
    free(l);
}

static void end_request(pen_engine *engine, pen_live *l, pen_finish finish) {
    pen_request request = l->request;
    drop(engine, l);
    if (request.on_done) request.on_done(request.context, request.pick.choice, finish);
}

pen_status pen_engine_check(const pen_engine *engine, const pen_request *request) {
    return pen_live_check(&engine->options, request);
}

pen_status pen_engine_submit(pen_engine *engine, const pen_request *request, int64_t *number) {
    pen_leader *leader = engine->leader;
    PEN_TRY(pen_engine_check(engine, request));
    pen_request one = *request;
    int64_t first, other;
    PEN_TRY(submit_one(leader, &one, -1, &first));
    one.score = false; /* the prompt is scored once */
    for (int made = 1; made < request->choices; made++) {
        one.pick.choice++;
        pen_status status = submit_one(leader, &one, first, &other);
        if (status == PEN_OK) continue;
        while (made-- > 0) drop(engine, pen_live_find(&leader->live, first + made)); /* numbered without holes */
        return status;
    }
    if (number) *number = first;
    return PEN_OK;
}

/* What callbacks submit meanwhile is another request's, and moves entries to higher indices at most. */
void pen_engine_cancel(pen_engine *engine, int64_t number) {
    const pen_live_table *live = &engine->leader->live;
    for (int i = 0; i < live->capacity; i++)
        if (live->entries[i] && live->entries[i]->number == number)
            end_request(engine, live->entries[i], PEN_FINISH_CANCELLED);
}

int pen_engine_open_slots(const pen_engine *engine) {
    int open = engine->options.sequences - engine->leader->live.count;
    return open > 0 ? open : 0;
}

/* ---- Out: messages and steps ------------------------------------------------------------------------------------ */

/* The first stage for which the message has not left yet, or 0. */
static int not_gone(pen_engine *engine, outgoing *out) {
    for (int s = 1; s < engine->stages; s++) {
        if (out->sends[s] != 0 && !pen_link_done(engine->link, out->sends[s], NULL)) return s;
        out->sends[s] = 0;
    }
    return 0;
}

/* The next message buffer, or NULL while its last message is still on its way. */
static outgoing *claim_outgoing(pen_engine *engine) {
    outgoing *out = &engine->leader->outgoing[engine->leader->next_outgoing];
    return not_gone(engine, out) == 0 ? out : NULL;
}

static pen_status send_to_all(pen_engine *engine, outgoing *out, size_t bytes) {
    for (int s = 1; s < engine->stages; s++)
        PEN_TRY(pen_link_send(engine->link, PEN_CHANNEL_CONTROL, s, 0, out->message, bytes, NULL, &out->sends[s]));
    engine->leader->next_outgoing = (engine->leader->next_outgoing + 1) % HEADERS;
    return PEN_OK;
}

/* The picks of a run's logit rows: each concerns the position behind its row. */
static int make_picks(const pen_live *l, const pen_scheduled_run *run, pen_pick *picks) {
    for (int i = 0; i < run->logit_rows; i++) {
        int position = run->position + run->logit_first + i + 1;
        picks[i] = l->request.pick;
        picks[i].position = position;
        picks[i].target = position < l->request.prompt_count + l->request.given ? l->tokens[position] : -1;
    }
    return run->logit_rows;
}

/* What the last stage must yet hear of a sequence whose next token is chosen in this run; false: nothing. */
static bool find_news(pen_leader *leader, const pen_live *l, const pen_step_run *run, pen_told *told) {
    slot_told *slot = &leader->slots[run->sequence];
    int known = run->position + run->rows;
    if (!l->has_rules || run->logit_rows == 0 || known < l->request.prompt_count || l->request.max_tokens == 0)
        return false;
    bool begins = !slot->begun || slot->epoch != run->epoch;
    if (begins) *slot = (slot_told){.begun = true, .epoch = run->epoch};
    int count = pen_history_wants_tokens(&l->rules) ? known - slot->count : 0;
    if (!begins && count <= 0) return false;
    *told = (pen_told){.sequence = run->sequence,
                       .epoch = run->epoch,
                       .first = slot->count,
                       .count = count,
                       .rules = l->rules,
                       .biases = l->request.biases,
                       .bans = l->request.stop_ids,
                       .tokens = l->tokens + slot->count};
    if (!begins) told->rules.bias_count = told->rules.ban_count = 0;
    slot->count += count;
    return true;
}

/* Writes what the last stage must hear of histories for this step. */
static pen_status make_history(pen_engine *engine, flight *f, pen_step *step) {
    pen_leader *leader = engine->leader;
    int count = 0;
    step->history_bytes = 0;
    for (int i = 0; i < step->run_count; i++)
        count += find_news(leader, pen_live_find(&leader->live, f->microbatch.runs[i].sequence), &step->runs[i],
                           &leader->told[count]);
    if (count == 0) return PEN_OK;
    size_t bytes = pen_wire_told_bytes(leader->told, count);
    if (bytes > f->history_capacity) {
        free(f->history);
        f->history = malloc(bytes);
        f->history_capacity = f->history ? bytes : 0;
    }
    if (!f->history || bytes > INT32_MAX) return pen_fail(PEN_NO_MEMORY, "no memory for %zu bytes of histories", bytes);
    step->history_bytes =
        (int)pen_wire_encode_history(step->number, leader->told, count, engine->limits.plan_epoch, f->history);
    return PEN_OK;
}

static pen_status send_history(pen_engine *engine, flight *f, int bytes) {
    if (bytes == 0) return PEN_OK;
    return pen_link_send(engine->link, PEN_CHANNEL_HISTORY, engine->stages - 1, 0, f->history, (size_t)bytes, NULL,
                         &f->history_send);
}

static bool history_is_gone(pen_engine *engine, flight *f) {
    if (f->history_send != 0 && pen_link_done(engine->link, f->history_send, NULL)) f->history_send = 0;
    return f->history_send == 0;
}

/* Writes the step that tells of a flight. */
static void make_step(pen_engine *engine, flight *f, pen_step *step) {
    pen_leader *leader = engine->leader;
    const pen_microbatch *microbatch = &f->microbatch;
    step->number = microbatch->number;
    step->completed = leader->landed;
    step->rows = microbatch->rows;
    step->run_count = microbatch->run_count;
    step->logit_count = microbatch->logit_count;
    step->block_count = 0;
    step->table_hash = 0;
    const pen_kv_copy *copies = pen_kvcache_take_copies(leader->cache, &step->copy_count);
    memcpy(step->copies, copies, (size_t)step->copy_count * sizeof *copies);
    int rows = 0, picks = 0;
    for (int i = 0; i < microbatch->run_count; i++) {
        const pen_scheduled_run *run = &microbatch->runs[i];
        const pen_live *l = pen_live_find(&leader->live, run->sequence);
        int first = pen_kvcache_told(leader->cache, run->slot);
        int count = pen_kvcache_end(leader->cache, run->slot) - first;
        step->runs[i] = (pen_step_run){.sequence = run->slot,
                                       .epoch = (uint32_t)run->sequence,
                                       .position = run->position,
                                       .rows = run->rows,
                                       .logit_first = run->logit_first,
                                       .logit_rows = run->logit_rows,
                                       .table_first = first,
                                       .table_count = count};
        for (int g = 0; g < engine->options.kv.count; g++, step->block_count += count) {
            const int32_t *table = pen_kvcache_table(leader->cache, g, run->slot);
            memcpy(step->blocks + step->block_count, table + first, (size_t)count * sizeof *table);
            step->table_hash =
                pen_wire_hash_table(step->table_hash, &step->runs[i], engine->options.kv.windows[g], table);
        }
        pen_kvcache_tell(leader->cache, run->slot);
        memcpy(leader->row_tokens + rows, l->tokens + run->position, (size_t)run->rows * sizeof(int32_t));
        rows += run->rows;
        picks += make_picks(l, run, f->picks + picks);
    }
    memcpy(step->picks, f->picks, (size_t)picks * sizeof *step->picks);
}

static void trace_sample(const pen_engine *engine) {
    const pen_leader *leader = engine->leader;
    if (!engine->trace) return;
    int waiting = pen_schedule_waiting(leader->schedule);
    pen_trace_sample sample = {pen_clock_ns(), waiting, leader->live.count - waiting,
                               pen_kvcache_free_blocks(leader->cache, 0)};
    pen_trace_add_sample(engine->trace, &sample);
}

/* Forms and sends steps while that can be done. */
static pen_status launch_some(pen_engine *engine, bool *moved) {
    pen_leader *leader = engine->leader;
    for (;;) {
        outgoing *out = claim_outgoing(engine);
        pen_step *step = pen_worker_claim(engine->worker);
        flight *f = &leader->flights[leader->launched % (uint64_t)leader->flight_limit];
        if (!out || !step || !history_is_gone(engine, f)) return PEN_OK;
        if (!pen_schedule_next(leader->schedule, &f->microbatch)) return PEN_OK;
        make_step(engine, f, step);
        PEN_TRY(make_history(engine, f, step));
        int history_bytes = step->history_bytes;
        pen_step_shape shape = pen_microbatch_shape(&f->microbatch);
        f->planned_ms = pen_pace_launch(&leader->pace, &shape);
        leader->launched++;
        leader->stirred = true;
        trace_sample(engine);
        if (engine->stages > 1)
            PEN_TRY(send_to_all(engine, out, pen_wire_encode_step(step, engine->limits.plan_epoch, out->message)));
        PEN_TRY(pen_worker_push(engine->worker, leader->row_tokens));
        PEN_TRY(send_history(engine, f, history_bytes));
        *moved = true;
    }
}

/* Forms and sends as many steps as may be in flight. */
static pen_status launch_steps(pen_engine *engine, bool *moved) {
    pen_leader *leader = engine->leader;
    PEN_TRY(launch_some(engine, moved));
    pen_pace_fill(&leader->pace, (int)(leader->launched - leader->landed), pen_schedule_depth(leader->schedule));
    return PEN_OK;
}

/* ---- In: choices ------------------------------------------------------------------------------------------------ */

static bool is_stop(const pen_request *request, int32_t token) {
    for (int i = 0; i < request->stop_count; i++)
        if (request->stop_ids[i] == token) return true;
    return false;
}

/* Tells of a token. Whether the completion is still there then: it may have been cancelled. */
static bool report(pen_engine *engine, pen_live *l, int position, const pen_choice *choice) {
    const pen_request *request = &l->request;
    int64_t sequence = l->sequence;
    bool goes_on = !request->on_token || request->on_token(request->context, request->pick.choice, position, choice);
    l = pen_live_find(&engine->leader->live, sequence);
    if (l && !goes_on) end_request(engine, l, PEN_FINISH_STOP);
    return l && goes_on;
}

static void take_token(pen_engine *engine, pen_live *l, int position, const pen_choice *choice) {
    if (is_stop(&l->request, choice->token)) {
        end_request(engine, l, PEN_FINISH_STOP);
        return;
    }
    l->tokens[position] = choice->token;
    l->output++;
    if (!report(engine, l, position, choice)) return;
    if (l->output == l->request.max_tokens)
        end_request(engine, l, PEN_FINISH_LENGTH);
    else if (engine->leader->hold)
        l->held = true;
    else
        pen_schedule_continue(engine->leader->schedule, l->sequence);
}

void pen_engine_hold(pen_engine *engine, bool hold) {
    pen_leader *leader = engine->leader;
    leader->hold = hold;
    for (int i = 0; !hold && i < leader->live.capacity; i++) {
        pen_live *l = leader->live.entries[i];
        if (!l || !l->held) continue;
        l->held = false;
        pen_schedule_continue(leader->schedule, l->sequence);
    }
}

/* The choices of one run. The request may have ended while the run was in flight, or end here. */
static void take_run(pen_engine *engine, const pen_scheduled_run *run, const pen_choice *choices) {
    pen_live *l = pen_live_find(&engine->leader->live, run->sequence);
    if (!l) return;
    int prompt = l->request.prompt_count, known = prompt + l->request.given;
    for (int i = 0; i < run->logit_rows; i++) {
        int position = run->position + run->logit_first + i + 1;
        if (choices[i].bad_logits) {
            end_request(engine, l, PEN_FINISH_BAD_LOGITS);
            return;
        }
        if (position >= known) {
            take_token(engine, l, position, &choices[i]);
            return;
        }
        /* Among the prompt's tokens that are scored there may be given ones behind it: somebody else told of those. */
        if (position < prompt && !report(engine, l, position, &choices[i])) return;
    }
    if (l->request.max_tokens == 0 && run->position + run->rows == prompt) end_request(engine, l, PEN_FINISH_SCORED);
}

/* The oldest step in flight came back. */
static void land(pen_engine *engine, const flight *f) {
    pen_leader *leader = engine->leader;
    leader->landed++;
    pen_pace_land(&leader->pace, f->planned_ms, pen_clock_ns());
    const pen_choice *choices = leader->choices;
    for (int i = 0; i < f->microbatch.run_count; i++) {
        take_run(engine, &f->microbatch.runs[i], choices);
        choices += f->microbatch.runs[i].logit_rows;
    }
    pen_schedule_complete(leader->schedule);
}

static pen_status take_choices(pen_engine *engine, bool *moved) {
    pen_leader *leader = engine->leader;
    size_t bytes;
    while (pen_link_done(engine->link, leader->receives[leader->turn], &bytes)) {
        if (leader->landed == leader->launched) return pen_fail(PEN_INTERNAL, "choices of no step arrived");
        const flight *f = &leader->flights[leader->landed % (uint64_t)leader->flight_limit];
        PEN_TRY(pen_wire_decode_choices(leader->incoming[leader->turn], bytes, &engine->limits, leader->landed,
                                        f->picks, f->microbatch.logit_count, leader->choices));
        PEN_TRY(post(engine, leader->turn));
        leader->turn = (leader->turn + 1) % TOKEN_BUFFERS;
        land(engine, f);
        *moved = true;
    }
    return PEN_OK;
}

/* ---- The loop --------------------------------------------------------------------------------------------------- */

static pen_engine_wait what_for(const pen_engine *engine) {
    const pen_leader *leader = engine->leader;
    pen_worker_state state = pen_worker_about(engine->worker);
    pen_engine_wait wait = {.activity = state.activity,
                            .outstanding = leader->launched > leader->landed,
                            .channel = state.channel,
                            .step = state.step};
    if (wait.activity == PEN_BUSY) {
        wait.peer = 0;
    } else if (wait.activity == PEN_WAIT_SEND) {
        wait.peer = 1;
        wait.order = 2 * engine->stages;
    } else {
        wait.peer = engine->stages - 1;
        wait.channel = PEN_CHANNEL_TOKEN;
        wait.step = leader->landed;
        wait.order = engine->stages;
        if (wait.outstanding) wait.activity = PEN_WAIT_RECEIVE;
    }
    return wait;
}

/* Waits until the message in `out` has left for every stage. */
static pen_status await_gone(pen_engine *engine, outgoing *out) {
    pen_engine_moved(engine);
    for (int stage; (stage = not_gone(engine, out)) != 0;) {
        bool moved = false;
        PEN_TRY(pen_engine_progress(engine, &moved));
        pen_engine_wait wait = {PEN_IDLE, true, stage, PEN_CHANNEL_CONTROL, engine->leader->landed, 0};
        if (!moved) PEN_TRY(pen_engine_pause(engine, &wait));
    }
    return PEN_OK;
}

/* Sends a message with a fixed body to all other stages. */
static pen_status command(pen_engine *engine, pen_message_type type, const void *body, size_t bytes) {
    pen_leader *leader = engine->leader;
    outgoing *out = &leader->outgoing[leader->next_outgoing];
    PEN_TRY(await_gone(engine, out));
    return send_to_all(
        engine, out,
        pen_wire_encode_plain(type, leader->launched, engine->limits.plan_epoch, body, bytes, out->message));
}

static bool is_idle(const pen_leader *leader) {
    return leader->live.count == 0 && leader->launched == leader->landed;
}

bool pen_engine_has_work(const pen_engine *engine) {
    return !is_idle(engine->leader) || engine->leader->stirred;
}

pen_status pen_engine_turn(pen_engine *engine, bool *moved) {
    pen_leader *leader = engine->leader;
    bool here = false;
    /* Last what has come: the caller can submit what follows from it before the next steps are formed. */
    PEN_TRY(launch_steps(engine, &here));
    PEN_TRY(pen_worker_advance(engine->worker, &here));
    PEN_TRY(pen_engine_progress(engine, &here));
    PEN_TRY(take_choices(engine, &here));
    if (here) {
        pen_engine_moved(engine);
        *moved = true;
    }
    if (!leader->stirred || !is_idle(leader)) return PEN_OK;
    leader->stirred = false;
    pen_meter_set(&engine->meter, PEN_IDLE);
    trace_sample(engine);
    return command(engine, PEN_MESSAGE_REST, NULL, 0);
}

pen_status pen_engine_rest(pen_engine *engine, bool expects) {
    if (expects && !pen_engine_has_work(engine)) {
        pen_clock_sleep_until(pen_clock_ns() + (engine->options.simulated ? SLICE_SIMULATED_NS : SLICE_NS));
        return PEN_OK;
    }
    pen_engine_wait wait = what_for(engine);
    return pen_engine_pause(engine, &wait);
}

void pen_engine_stir(pen_engine *engine) {
    if (!pen_engine_has_work(engine)) pen_engine_moved(engine);
}

pen_status pen_engine_run(pen_engine *engine) {
    return pen_engine_run_until(engine, INT64_MAX);
}

pen_status pen_engine_run_until(pen_engine *engine, int64_t deadline_ns) {
    pen_engine_moved(engine);
    while (pen_engine_has_work(engine) && pen_clock_ns() < deadline_ns) {
        bool moved = false;
        PEN_TRY(pen_engine_turn(engine, &moved));
        if (!moved && pen_engine_has_work(engine)) PEN_TRY(pen_engine_rest(engine, false));
    }
    return PEN_OK;
}

/* ---- Commands with answers -------------------------------------------------------------------------------------- */

/* Asks every other stage something. The last question has been answered. */
static pen_status ask(pen_engine *engine, pen_message_type type, const void *body, size_t bytes) {
    answer *answers = engine->leader->answers;
    for (int s = 1; s < engine->stages; s++)
        PEN_TRY(pen_link_receive(engine->link, PEN_CHANNEL_EVENT, s, 0, answers[s].message, sizeof answers[s].message,
                                 &answers[s].receive));
    return command(engine, type, body, bytes);
}

/* The first stage whose answer is not here, or 0. */
static int not_answered(pen_engine *engine) {
    for (int s = 1; s < engine->stages; s++) {
        answer *a = &engine->leader->answers[s];
        if (a->receive != 0 && !pen_link_done(engine->link, a->receive, &a->bytes)) return s;
        a->receive = 0;
    }
    return 0;
}

static pen_status await_answers(pen_engine *engine) {
    pen_engine_moved(engine);
    for (int s, last = 0; (s = not_answered(engine)) != 0; last = s) {
        bool moved = false;
        if (s != last) pen_engine_moved(engine);
        PEN_TRY(pen_engine_progress(engine, &moved));
        pen_engine_wait wait = {PEN_IDLE, true, s, PEN_CHANNEL_EVENT, engine->leader->landed, 0};
        if (!moved) PEN_TRY(pen_engine_pause(engine, &wait));
    }
    pen_engine_moved(engine);
    return PEN_OK;
}

/* Answers of `body_bytes`, which are here, into bodies[stage]. */
static pen_status take_answers(pen_engine *engine, pen_message_type type, void *bodies, size_t body_bytes) {
    for (int s = 1; s < engine->stages; s++) {
        const answer *a = &engine->leader->answers[s];
        PEN_TRY(pen_wire_decode_plain(a->message, a->bytes, type, engine->limits.plan_epoch,
                                      (unsigned char *)bodies + (size_t)s * body_bytes, body_bytes));
    }
    return PEN_OK;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

pen_status pen_engine_measure(pen_engine *engine, const pen_engine_shape *shape, int repeats, double patience_ms,
                              double *ms) {
    size_t stages = (size_t)engine->stages, done = 0;
    double *rounds = calloc((size_t)repeats * stages, sizeof *rounds); /* [stage][repeats] */
    if (!rounds) return pen_fail(PEN_NO_MEMORY, "no memory for %d measurements", repeats);
    pen_status status = PEN_OK;
    pen_kvcache_forget(engine->leader->cache);
    int64_t begin_ns = pen_clock_ns();
    /* A command for each round, so that nobody is silent for longer than a step takes. The first one warms up. */
    for (int round = -1; round < repeats && status == PEN_OK; round++) {
        if (round > 0 && (double)(pen_clock_ns() - begin_ns) > patience_ms * 1e6) break;
        status = ask(engine, PEN_MESSAGE_MEASURE, shape, sizeof *shape);
        if (status == PEN_OK) status = pen_engine_time_stage(engine, shape, &ms[0]);
        if (status == PEN_OK) status = await_answers(engine);
        if (status == PEN_OK) status = take_answers(engine, PEN_MESSAGE_MEASURED, ms, sizeof *ms);
        if (round < 0) continue;
        for (size_t s = 0; s < stages; s++) rounds[s * (size_t)repeats + done] = ms[s];
        done++;
    }
    for (size_t s = 0; s < stages; s++) {
        double *own = rounds + s * (size_t)repeats;
        qsort(own, done, sizeof *own, compare_doubles);
        ms[s] = own[done / 2];
    }
    free(rounds);
    return status;
}

pen_status pen_engine_lap(pen_engine *engine) {
    pen_leader *leader = engine->leader;
    if (leader->live.count > 0) {
        int64_t now = pen_clock_ns();
        engine->meter.total.work_s += (double)(now - leader->work_since_ns) * 1e-9;
        leader->work_since_ns = now;
    }
    pen_meter_lap(&engine->meter);
    return command(engine, PEN_MESSAGE_LAP, NULL, 0);
}

pen_engine_counts pen_engine_count(const pen_engine *engine) {
    const pen_leader *leader = engine->leader;
    double scale = engine->options.time_scale > 0 ? engine->options.time_scale : 1;
    pen_engine_counts counts = {.kv = pen_kvcache_counts(leader->cache),
                                .pauses = pen_schedule_pauses(leader->schedule),
                                .preemptions = pen_schedule_preemptions(leader->schedule),
                                .waiting = pen_schedule_waiting(leader->schedule),
                                .planned_ms = leader->pace.planned_ms,
                                .full_ms = leader->pace.full_ms / scale,
                                .busy_s = pen_meter_busy_s(&engine->meter)};
    counts.running = leader->live.count - counts.waiting;
    for (int g = 0; g < engine->options.kv.count; g++)
        counts.blocks_held += engine->options.kv.blocks[g] - pen_kvcache_free_blocks(leader->cache, g);
    return counts;
}

pen_status pen_engine_ask_metrics(pen_engine *engine) {
    return ask(engine, PEN_MESSAGE_REPORT, NULL, 0);
}

pen_status pen_engine_metrics_ready(pen_engine *engine, pen_metrics *stages, bool *ready) {
    *ready = not_answered(engine) == 0;
    if (!*ready) return PEN_OK;
    stages[0] = engine->meter.lap;
    return take_answers(engine, PEN_MESSAGE_METRICS, stages, sizeof *stages);
}

pen_status pen_engine_metrics(pen_engine *engine, pen_metrics *stages) {
    bool ready;
    PEN_TRY(pen_engine_ask_metrics(engine));
    PEN_TRY(await_answers(engine));
    return pen_engine_metrics_ready(engine, stages, &ready);
}

pen_status pen_engine_stop(pen_engine *engine) {
    PEN_TRY(command(engine, PEN_MESSAGE_STOP, NULL, 0));
    for (int i = 0; i < HEADERS; i++) PEN_TRY(await_gone(engine, &engine->leader->outgoing[i]));
    return PEN_OK;
}
