/*
 * The simulator; see simulate.h. Two kinds of events drive it, both at the leader: a request arrives, a microbatch
 * comes back. Between them nothing has to be queued, because stages run steps strictly in order: a later step never
 * holds up an earlier one, so that the whole way of a step through the pipeline is known when it is formed.
 */
#include "simulate.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct stage {
    double end_ms;       /* of the step that it ran last */
    double wire_free_ms; /* behind it */
    double *sent_ms;     /* [slots] when the step that had the slot last was sent on */
} stage;

typedef struct flight {
    pen_microbatch microbatch;
    double start_ms, end_ms; /* at the leader's stage */
    double back_ms;
} flight;

/* What a request says: its own number all the time, so that it has nothing in common with the others. */
typedef struct text {
    int32_t *tokens; /* [prompt + output]; NULL before it arrives and when it has ended */
    int output;      /* tokens of it that there are */
} text;

typedef struct simulator {
    const pen_simulate_options *options;
    pen_kvcache *cache;
    pen_schedule *schedule;
    int stage_count, limit;
    stage *stages;   /* [stage_count] */
    flight *flights; /* [limit], step n in n mod limit */
    uint64_t launched, landed;
    double now_ms, work_since_ms;
    double from_ms, to_ms; /* what is counted */
    pen_simulated_request *requests;
    text *texts; /* [request_count] */
    int request_count, arrived, live;
    pen_metrics *metrics;
} simulator;

/* ---- Making ------------------------------------------------------------------------------------------------------ */

static pen_status make(simulator *s) {
    const pen_simulate_options *o = s->options;
    PEN_TRY(pen_kvcache_create(&o->kv, o->schedule.sequences, o->schedule.context, &s->cache));
    pen_schedule_options schedule = o->schedule;
    schedule.kv = o->kv;
    PEN_TRY(pen_schedule_create(&schedule, s->cache, &s->schedule));
    s->limit = pen_schedule_limit(s->schedule);
    s->stages = calloc((size_t)s->stage_count, sizeof *s->stages);
    s->flights = calloc((size_t)s->limit, sizeof *s->flights);
    s->texts = calloc((size_t)s->request_count + 1, sizeof *s->texts);
    bool made = s->stages && s->flights && s->texts;
    for (int i = 0; made && i < s->stage_count; i++)
        made = (s->stages[i].sent_ms = calloc((size_t)o->slots, sizeof(double))) != NULL;
    for (int i = 0; made && i < s->limit; i++)
        made = (s->flights[i].microbatch.runs = calloc((size_t)o->schedule.rows, sizeof(pen_scheduled_run))) != NULL;
    return made ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory to simulate %d stages", s->stage_count);
}

static void unmake(simulator *s) {
    for (int i = 0; s->stages && i < s->stage_count; i++) free(s->stages[i].sent_ms);
    for (int i = 0; s->flights && i < s->limit; i++) free(s->flights[i].microbatch.runs);
    free(s->stages);
    free(s->flights);
    for (int i = 0; s->texts && i < s->request_count; i++) free(s->texts[i].tokens);
    free(s->texts);
    pen_schedule_destroy(s->schedule);
    pen_kvcache_destroy(s->cache);
}

/* ---- The way of a step ------------------------------------------------------------------------------------------- */

/* Seconds of what is counted, as far as it lies between two times. */
static double counted_s(const simulator *s, double begin_ms, double end_ms) {
    return fmax(fmin(end_ms, s->to_ms) - fmax(begin_ms, s->from_ms), 0) * 1e-3;
}

/* Where the time of a stage went between its last step and the one that begins at `start_ms`. */
static void account(simulator *s, int index, double known_ms, double arrived_ms, double start_ms, double ms, int rows) {
    pen_metrics *metrics = &s->metrics[index];
    double from = s->stages[index].end_ms, known = fmax(from, known_ms), arrived = fmax(known, arrived_ms);
    metrics->seconds[PEN_IDLE] += counted_s(s, from, known);
    metrics->seconds[PEN_WAIT_RECEIVE] += counted_s(s, known, fmin(arrived, start_ms));
    metrics->seconds[PEN_WAIT_SEND] += counted_s(s, arrived, start_ms);
    metrics->seconds[PEN_BUSY] += counted_s(s, start_ms, start_ms + ms);
    if (start_ms < s->from_ms || start_ms >= s->to_ms) return;
    metrics->steps++;
    metrics->rows += (uint64_t)rows;
}

/* Sends a step on its way. */
static void launch(simulator *s, flight *f) {
    const pen_simulate_options *o = s->options;
    const pen_microbatch *microbatch = &f->microbatch;
    int slot = (int)(microbatch->number % (uint64_t)o->slots);
    int copies; /* what the leader would tell the stages of */
    pen_kvcache_take_copies(s->cache, &copies);
    for (int i = 0; i < microbatch->run_count; i++) pen_kvcache_tell(s->cache, microbatch->runs[i].slot);
    pen_simulated_step step = {.shape = pen_microbatch_shape(microbatch)};
    double arrived = s->now_ms; /* of the rows at the stage */
    for (int i = 0; i < s->stage_count; i++) {
        stage *own = &s->stages[i];
        if (i > 0) {
            stage *before = &s->stages[i - 1];
            before->wire_free_ms = fmax(before->wire_free_ms, before->end_ms) + step.shape.rows * o->ms_per_row;
            arrived = before->wire_free_ms + o->latency_ms;
            before->sent_ms[slot] = fmax(arrived, own->sent_ms[slot]); /* it is received where there is a slot */
        }
        step.at_ms = fmax(fmax(arrived, own->sent_ms[slot]), own->end_ms);
        double ms = o->stage_ms(o->context, i, &step);
        account(s, i, s->now_ms + (i > 0 ? o->latency_ms : 0), arrived, step.at_ms, ms, microbatch->rows);
        own->end_ms = step.at_ms + ms;
        if (i == 0) {
            f->start_ms = step.at_ms;
            f->end_ms = own->end_ms;
        }
    }
    stage *last = &s->stages[s->stage_count - 1];
    f->back_ms = last->end_ms + (s->stage_count > 1 ? o->latency_ms : 0);
    last->sent_ms[slot] = f->back_ms;
}

/* ---- The leader -------------------------------------------------------------------------------------------------- */

static void take_token(simulator *s, int64_t number) {
    pen_simulated_request *request = &s->requests[number];
    const pen_simulated_watch *watch = &s->options->watch;
    text *said = &s->texts[number];
    if (said->output++ == 0) request->first_ms = s->now_ms;
    request->end_ms = s->now_ms;
    if (watch->on_token) watch->on_token(watch->context, (int)number, s->now_ms);
    if (said->output < request->output) {
        pen_schedule_continue(s->schedule, number);
        return;
    }
    pen_schedule_finish(s->schedule, number);
    free(said->tokens);
    said->tokens = NULL;
    if (--s->live == 0) s->metrics[0].work_s += counted_s(s, s->work_since_ms, s->now_ms);
}

static void take_back(simulator *s) {
    for (; s->landed < s->launched; s->landed++) {
        const flight *f = &s->flights[s->landed % (uint64_t)s->limit];
        if (f->back_ms > s->now_ms) return;
        for (int i = 0; i < f->microbatch.run_count; i++)
            if (f->microbatch.runs[i].logit_rows > 0) take_token(s, f->microbatch.runs[i].sequence);
        pen_schedule_complete(s->schedule);
    }
}

/* The schedule counts on it that nothing too large is queued. */
static pen_status check_size(const simulator *s, const pen_simulated_request *request) {
    const pen_kv_pools *kv = &s->options->kv;
    int positions = request->prompt + request->output - 1;
    if (positions < s->options->schedule.context && pen_kv_short_group(kv, s->options->schedule.rows, positions) < 0)
        return PEN_OK;
    return pen_fail(PEN_NO_MEMORY, "a request of %d and %d tokens can never run with the KV that there is",
                    request->prompt, request->output);
}

static pen_status take_arrivals(simulator *s) {
    for (; s->arrived < s->request_count; s->arrived++) {
        const pen_simulated_request *request = &s->requests[s->arrived];
        if (request->arrival_ms > s->now_ms) break;
        PEN_TRY(check_size(s, request));
        size_t tokens = (size_t)request->prompt + (size_t)request->output;
        int32_t *said = s->texts[s->arrived].tokens = malloc(tokens * sizeof *said);
        if (!said) return pen_fail(PEN_NO_MEMORY, "no memory to simulate %d requests", s->request_count);
        for (size_t i = 0; i < tokens; i++) said[i] = s->arrived;
        pen_sequence_spec spec = {.tokens = said, .prompt = request->prompt, .output = request->output, .parent = -1};
        int64_t number;
        PEN_TRY(pen_schedule_add(s->schedule, &spec, &number));
        assert(number == s->arrived);
        if (s->live++ == 0) s->work_since_ms = s->now_ms;
    }
    return PEN_OK;
}

/* The time of the next event; false: there is none. */
static bool next_event(const simulator *s, double *ms) {
    double next = INFINITY;
    if (s->arrived < s->request_count) next = s->requests[s->arrived].arrival_ms;
    if (s->landed < s->launched) next = fmin(next, s->flights[s->landed % (uint64_t)s->limit].back_ms);
    if (isinf(next)) return false;
    /* A leader that computes looks up when its step is through. */
    for (uint64_t n = s->landed; s->options->leader_computes && n < s->launched; n++) {
        const flight *f = &s->flights[n % (uint64_t)s->limit];
        if (f->start_ms < next && next < f->end_ms) next = f->end_ms;
    }
    *ms = fmax(s->now_ms, next);
    return true;
}

static pen_status run(simulator *s) {
    while (next_event(s, &s->now_ms)) {
        take_back(s);
        PEN_TRY(take_arrivals(s));
        for (;;) {
            flight *f = &s->flights[s->launched % (uint64_t)s->limit];
            if (!pen_schedule_next(s->schedule, &f->microbatch)) break;
            s->launched++;
            launch(s, f);
        }
    }
    assert(s->live == 0);
    return PEN_OK;
}

pen_status pen_simulate(const pen_simulate_options *options, pen_simulated_request *requests, int count,
                        pen_simulation *simulation) {
    simulator s = {.options = options,
                   .stage_count = options->schedule.stages,
                   .from_ms = options->watch.from_ms,
                   .to_ms = options->watch.to_ms > 0 ? options->watch.to_ms : INFINITY,
                   .requests = requests,
                   .request_count = count,
                   .metrics = simulation->stages};
    memset(simulation->stages, 0, (size_t)s.stage_count * sizeof *simulation->stages);
    pen_status status = make(&s);
    if (status == PEN_OK) status = run(&s);
    simulation->makespan_ms = s.now_ms;
    simulation->steps = s.launched;
    simulation->pauses = s.schedule ? pen_schedule_pauses(s.schedule) : 0;
    for (int i = 0; s.stages && i < s.stage_count; i++)
        simulation->stages[i].seconds[PEN_IDLE] += counted_s(&s, s.stages[i].end_ms, s.now_ms);
    unmake(&s);
    return status;
}
