/*
 * The leader of a replica: it holds the requests and their tokens, forms steps by the schedule, tells the other stages
 * of them, runs its own stage like anybody else, and takes the choices of the last stage.
 *
 * Steps come back in the order in which they left; `flights` remembers what each was. The number of a live sequence
 * finds its request in `live`, a table in which no two numbers meet (it grows until that is so).
 */
#include "engine_internal.h"

#include "clock.h"
#include "kvcache.h"
#include "schedule.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { HEADERS = 8, TOKEN_BUFFERS = 2 };

typedef struct live {
    int64_t sequence;
    pen_request request;
    int output; /* tokens generated */
    bool held;  /* its next token waits until the hold ends */
    pen_history_rules rules;
    bool has_rules;   /* that change anything */
    int32_t tokens[]; /* prompt, then output */
} live;

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
} flight;

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
    live **live;         /* [live_capacity], sequence n in n mod live_capacity */
    int live_capacity, live_count;
    int64_t work_since_ns; /* while there are live requests */
    bool hold;
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
    leader->live_capacity = 64;
    leader->live = calloc((size_t)leader->live_capacity, sizeof *leader->live);
    for (int i = 0; i < TOKEN_BUFFERS; i++) {
        leader->incoming[i] = malloc(pen_wire_choices_bytes(limits));
        made = made && leader->incoming[i];
    }
    if (!made || !leader->choices || !leader->row_tokens || !leader->slots || !leader->told || !leader->live)
        return pen_fail(PEN_NO_MEMORY, "no memory for the leader's steps");
    for (int i = 0; i < TOKEN_BUFFERS; i++) PEN_TRY(post(engine, i));
    return PEN_OK;
}

pen_status pen_leader_create(pen_engine *engine) {
    const pen_engine_options *options = &engine->options;
    pen_leader *leader = engine->leader = calloc(1, sizeof *leader);
    if (!leader) return pen_fail(PEN_NO_MEMORY, "no memory for the leader");
    PEN_TRY(pen_kvcache_create(&options->kv, options->sequences, options->context, &leader->cache));
    pen_schedule_options schedule = {.stages = engine->stages,
                                     .in_flight = options->in_flight,
                                     .sequences = options->sequences,
                                     .rows = options->rows,
                                     .logit_rows = options->logit_rows,
                                     .context = options->context,
                                     .kv = options->kv,
                                     .cost = options->cost};
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
    for (int i = 0; i < leader->live_capacity; i++) free(leader->live[i]);
    free(leader->flights);
    free(leader->choices);
    free(leader->row_tokens);
    free(leader->slots);
    free(leader->told);
    free(leader->live);
    pen_schedule_destroy(leader->schedule);
    pen_kvcache_destroy(leader->cache);
    free(leader);
}

/* ---- Requests --------------------------------------------------------------------------------------------------- */

static live **place_of(live **table, int capacity, int64_t sequence) {
    return &table[sequence & (capacity - 1)];
}

static live *find(const pen_leader *leader, int64_t sequence) {
    live *found = *place_of(leader->live, leader->live_capacity, sequence);
    return found && found->sequence == sequence ? found : NULL;
}

static pen_status insert(pen_leader *leader, live *added) {
    while (*place_of(leader->live, leader->live_capacity, added->sequence)) {
        int capacity = 2 * leader->live_capacity;
        live **grown = calloc((size_t)capacity, sizeof *grown);
        if (!grown) return pen_fail(PEN_NO_MEMORY, "no memory for %d requests", leader->live_count + 1);
        for (int i = 0; i < leader->live_capacity; i++)
            if (leader->live[i]) *place_of(grown, capacity, leader->live[i]->sequence) = leader->live[i];
        free(leader->live);
        leader->live = grown;
        leader->live_capacity = capacity;
    }
    *place_of(leader->live, leader->live_capacity, added->sequence) = added;
    if (leader->live_count++ == 0) leader->work_since_ns = pen_clock_ns();
    return PEN_OK;
}

static pen_status check_request(const pen_engine *engine, const pen_request *request) {
    const pen_engine_options *options = &engine->options;
    if (request->prompt_count < 1) return pen_fail(PEN_USAGE, "the prompt is empty");
    if (request->max_tokens < (request->score ? 0 : 1))
        return pen_fail(PEN_USAGE, "%d tokens cannot be generated", request->max_tokens);
    if (request->choices > 1 && request->max_tokens == 0)
        return pen_fail(PEN_USAGE, "%d completions of no tokens cannot be told apart", request->choices);
    if ((int64_t)request->prompt_count + request->max_tokens > options->context)
        return pen_fail(PEN_USAGE, "a prompt of %d tokens and %d new ones exceed the context of %d",
                        request->prompt_count, request->max_tokens, options->context);
    int positions = request->prompt_count + (request->max_tokens ? request->max_tokens - 1 : 0);
    int g = pen_kv_short_group(&options->kv, options->rows, positions);
    if (g >= 0)
        return pen_fail(PEN_NO_MEMORY, "a request of %d tokens holds %d blocks of KV at a time, and there are %d",
                        positions, pen_kv_blocks_held(options->kv.windows[g], options->rows, positions),
                        options->kv.blocks[g]);
    for (int i = 0; i < request->prompt_count; i++)
        if (request->prompt[i] < 0 || request->prompt[i] >= options->vocab)
            return pen_fail(PEN_USAGE, "token %d of the prompt is %d, and the vocabulary has %d", i, request->prompt[i],
                            options->vocab);
    for (int i = 0; i < request->bias_count; i++)
        if (request->biases[i].token < 0 || request->biases[i].token >= options->vocab)
            return pen_fail(PEN_USAGE, "a logit bias for token %d, and the vocabulary has %d", request->biases[i].token,
                            options->vocab);
    return PEN_OK;
}

static pen_history_rules rules_of(const pen_request *request) {
    return (pen_history_rules){
        .repetition = request->repetition_penalty == 0 ? 1 : request->repetition_penalty,
        .presence = request->presence_penalty,
        .frequency = request->frequency_penalty,
        .prompt_count = request->prompt_count,
        .ban_end = request->prompt_count + request->min_tokens,
        .bias_count = request->bias_count,
        .ban_count = request->min_tokens > 0 ? request->stop_count : 0,
    };
}

/* One completion; the first one's sequence is the parent of the others. */
static pen_status submit_one(pen_leader *leader, const pen_request *request, int64_t parent, int64_t *sequence) {
    size_t tokens = (size_t)request->prompt_count + (size_t)request->max_tokens;
    live *added = malloc(sizeof *added + tokens * sizeof added->tokens[0]);
    if (!added) return pen_fail(PEN_NO_MEMORY, "no memory for a request of %zu tokens", tokens);
    *added = (live){.request = *request, .rules = rules_of(request)};
    added->has_rules =
        pen_history_wants_tokens(&added->rules) || added->rules.bias_count > 0 || added->rules.ban_count > 0;
    memcpy(added->tokens, request->prompt, (size_t)request->prompt_count * sizeof added->tokens[0]);
    added->request.prompt = added->tokens;
    const pen_sequence_spec spec = {.tokens = added->tokens,
                                    .prompt = request->prompt_count,
                                    .output = request->max_tokens,
                                    .score = request->score,
                                    .parent = parent};
    pen_status status = pen_schedule_add(leader->schedule, &spec, &added->sequence);
    if (status == PEN_OK) {
        *sequence = added->sequence;
        status = insert(leader, added);
        if (status == PEN_OK) return PEN_OK;
        pen_schedule_finish(leader->schedule, added->sequence);
    }
    free(added);
    return status;
}

static void drop(pen_engine *engine, live *l) {
    pen_leader *leader = engine->leader;
    pen_schedule_finish(leader->schedule, l->sequence);
    *place_of(leader->live, leader->live_capacity, l->sequence) = NULL;
    if (--leader->live_count == 0)
        engine->meter.total.work_s += (double)(pen_clock_ns() - leader->work_since_ns) * 1e-9;
    free(l);
}

static void end_request(pen_engine *engine, live *l, pen_finish finish) {
    pen_request request = l->request;
    drop(engine, l);
    if (request.on_done) request.on_done(request.context, request.pick.choice, finish);
}

pen_status pen_engine_submit(pen_engine *engine, const pen_request *request) {
    pen_leader *leader = engine->leader;
    PEN_TRY(check_request(engine, request));
    pen_request one = *request;
    int64_t first, other;
    PEN_TRY(submit_one(leader, &one, -1, &first));
    one.score = false; /* the prompt is scored once */
    for (int made = 1; made < request->choices; made++) {
        one.pick.choice++;
        pen_status status = submit_one(leader, &one, first, &other);
        if (status == PEN_OK) continue;
        while (made-- > 0) drop(engine, find(leader, first + made)); /* sequences are numbered without holes */
        return status;
    }
    return PEN_OK;
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
static int make_picks(const live *l, const pen_scheduled_run *run, pen_pick *picks) {
    for (int i = 0; i < run->logit_rows; i++) {
        int position = run->position + run->logit_first + i + 1;
        picks[i] = l->request.pick;
        picks[i].position = position;
        picks[i].target = position < l->request.prompt_count ? l->tokens[position] : -1;
    }
    return run->logit_rows;
}

/* What the last stage must yet hear of a sequence whose next token is chosen in this run; false: nothing. */
static bool find_news(pen_leader *leader, const live *l, const pen_step_run *run, pen_told *told) {
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
        count += find_news(leader, find(leader, f->microbatch.runs[i].sequence), &step->runs[i], &leader->told[count]);
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
        const live *l = find(leader, run->sequence);
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
    pen_trace_sample sample = {pen_clock_ns(), waiting, leader->live_count - waiting,
                               pen_kvcache_free_blocks(leader->cache, 0)};
    pen_trace_add_sample(engine->trace, &sample);
}

/* Forms and sends as many steps as may be in flight. */
static pen_status launch_steps(pen_engine *engine, bool *moved) {
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
        leader->launched++;
        trace_sample(engine);
        if (engine->stages > 1)
            PEN_TRY(send_to_all(engine, out, pen_wire_encode_step(step, engine->limits.plan_epoch, out->message)));
        PEN_TRY(pen_worker_push(engine->worker, leader->row_tokens));
        PEN_TRY(send_history(engine, f, history_bytes));
        *moved = true;
    }
}

/* ---- In: choices ------------------------------------------------------------------------------------------------ */

static bool is_stop(const pen_request *request, int32_t token) {
    for (int i = 0; i < request->stop_count; i++)
        if (request->stop_ids[i] == token) return true;
    return false;
}

static void take_token(pen_engine *engine, live *l, int position, const pen_choice *choice) {
    const pen_request *request = &l->request;
    if (is_stop(request, choice->token)) {
        end_request(engine, l, PEN_FINISH_STOP);
        return;
    }
    l->tokens[position] = choice->token;
    l->output++;
    if (request->on_token && !request->on_token(request->context, request->pick.choice, position, choice))
        end_request(engine, l, PEN_FINISH_STOP);
    else if (l->output == request->max_tokens)
        end_request(engine, l, PEN_FINISH_LENGTH);
    else if (engine->leader->hold)
        l->held = true;
    else
        pen_schedule_continue(engine->leader->schedule, l->sequence);
}

void pen_engine_hold(pen_engine *engine, bool hold) {
    pen_leader *leader = engine->leader;
    leader->hold = hold;
    for (int i = 0; !hold && i < leader->live_capacity; i++) {
        live *l = leader->live[i];
        if (!l || !l->held) continue;
        l->held = false;
        pen_schedule_continue(leader->schedule, l->sequence);
    }
}

/* The choices of one run. The request may have ended while the run was in flight, or end here. */
static void take_run(pen_engine *engine, const pen_scheduled_run *run, const pen_choice *choices) {
    live *l = find(engine->leader, run->sequence);
    for (int i = 0; l && i < run->logit_rows; i++) {
        int position = run->position + run->logit_first + i + 1;
        const pen_request *request = &l->request;
        if (choices[i].bad_logits) {
            end_request(engine, l, PEN_FINISH_BAD_LOGITS);
            return;
        }
        if (position >= request->prompt_count) {
            take_token(engine, l, position, &choices[i]);
            return;
        }
        if (request->on_token && !request->on_token(request->context, request->pick.choice, position, &choices[i])) {
            end_request(engine, l, PEN_FINISH_STOP);
            return;
        }
    }
    if (l && l->request.max_tokens == 0 && run->position + run->rows == l->request.prompt_count)
        end_request(engine, l, PEN_FINISH_SCORED);
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
        leader->landed++;
        const pen_choice *choices = leader->choices;
        for (int i = 0; i < f->microbatch.run_count; i++) {
            take_run(engine, &f->microbatch.runs[i], choices);
            choices += f->microbatch.runs[i].logit_rows;
        }
        pen_schedule_complete(leader->schedule);
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

pen_status pen_engine_run(pen_engine *engine) {
    return pen_engine_run_until(engine, INT64_MAX);
}

pen_status pen_engine_run_until(pen_engine *engine, int64_t deadline_ns) {
    pen_leader *leader = engine->leader;
    if (leader->live_count == 0 && leader->launched == leader->landed) return PEN_OK;
    pen_engine_moved(engine);
    while (leader->live_count > 0 || leader->launched > leader->landed) {
        if (pen_clock_ns() >= deadline_ns) return PEN_OK;
        bool moved = false;
        PEN_TRY(pen_engine_progress(engine, &moved));
        PEN_TRY(take_choices(engine, &moved));
        PEN_TRY(launch_steps(engine, &moved));
        PEN_TRY(pen_worker_advance(engine->worker, &moved));
        if (moved) {
            pen_engine_moved(engine);
            continue;
        }
        pen_engine_wait wait = what_for(engine);
        PEN_TRY(pen_engine_pause(engine, &wait));
    }
    pen_meter_set(&engine->meter, PEN_IDLE);
    trace_sample(engine);
    return command(engine, PEN_MESSAGE_REST, NULL, 0);
}

/* ---- Commands with answers -------------------------------------------------------------------------------------- */

/* Receives an answer of `body_bytes` from every other stage into bodies[stage]. */
static pen_status take_answers(pen_engine *engine, pen_message_type type, void *bodies, size_t body_bytes) {
    unsigned char message[sizeof(pen_header) + sizeof(pen_metrics)];
    for (int s = 1; s < engine->stages; s++) {
        pen_transfer receive;
        size_t bytes;
        PEN_TRY(pen_link_receive(engine->link, PEN_CHANNEL_EVENT, s, 0, message, sizeof message, &receive));
        while (!pen_link_done(engine->link, receive, &bytes)) {
            bool moved = false;
            PEN_TRY(pen_engine_progress(engine, &moved));
            pen_engine_wait wait = {PEN_IDLE, true, s, PEN_CHANNEL_EVENT, engine->leader->landed, 0};
            if (!moved) PEN_TRY(pen_engine_pause(engine, &wait));
        }
        pen_engine_moved(engine);
        PEN_TRY(pen_wire_decode_plain(message, bytes, type, engine->limits.plan_epoch,
                                      (unsigned char *)bodies + (size_t)s * body_bytes, body_bytes));
    }
    return PEN_OK;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

pen_status pen_engine_measure(pen_engine *engine, const pen_engine_shape *shape, int repeats, double *ms) {
    size_t stages = (size_t)engine->stages;
    double *rounds = calloc((size_t)repeats * stages, sizeof *rounds); /* [stage][repeats] */
    if (!rounds) return pen_fail(PEN_NO_MEMORY, "no memory for %d measurements", repeats);
    pen_status status = PEN_OK;
    pen_kvcache_forget(engine->leader->cache);
    /* A command for each round, so that nobody is silent for longer than a step takes. The first one warms up. */
    for (int round = -1; round < repeats && status == PEN_OK; round++) {
        status = command(engine, PEN_MESSAGE_MEASURE, shape, sizeof *shape);
        if (status == PEN_OK) status = pen_engine_time_stage(engine, shape, &ms[0]);
        if (status == PEN_OK) status = take_answers(engine, PEN_MESSAGE_MEASURED, ms, sizeof *ms);
        for (size_t s = 0; s < stages && round >= 0; s++) rounds[s * (size_t)repeats + (size_t)round] = ms[s];
    }
    for (size_t s = 0; s < stages; s++) {
        double *own = rounds + s * (size_t)repeats;
        qsort(own, (size_t)repeats, sizeof *own, compare_doubles);
        ms[s] = own[repeats / 2];
    }
    free(rounds);
    return status;
}

pen_status pen_engine_lap(pen_engine *engine) {
    pen_leader *leader = engine->leader;
    if (leader->live_count > 0) {
        int64_t now = pen_clock_ns();
        engine->meter.total.work_s += (double)(now - leader->work_since_ns) * 1e-9;
        leader->work_since_ns = now;
    }
    pen_meter_lap(&engine->meter);
    return command(engine, PEN_MESSAGE_LAP, NULL, 0);
}

pen_engine_counts pen_engine_count(const pen_engine *engine) {
    const pen_leader *leader = engine->leader;
    pen_engine_counts counts = {.kv = pen_kvcache_counts(leader->cache),
                                .pauses = pen_schedule_pauses(leader->schedule)};
    for (int g = 0; g < engine->options.kv.count; g++)
        counts.blocks_held += engine->options.kv.blocks[g] - pen_kvcache_free_blocks(leader->cache, g);
    return counts;
}

pen_status pen_engine_metrics(pen_engine *engine, pen_metrics *stages) {
    PEN_TRY(command(engine, PEN_MESSAGE_REPORT, NULL, 0));
    stages[0] = engine->meter.lap;
    return take_answers(engine, PEN_MESSAGE_METRICS, stages, sizeof *stages);
}

pen_status pen_engine_stop(pen_engine *engine) {
    PEN_TRY(command(engine, PEN_MESSAGE_STOP, NULL, 0));
    for (int i = 0; i < HEADERS; i++) PEN_TRY(await_gone(engine, &engine->leader->outgoing[i]));
    return PEN_OK;
}
