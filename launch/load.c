/* The load generator; see load.h. */
#include "load.h"

#include "clock.h"

#include <math.h>
#include <stdlib.h>

typedef struct runner runner;

/* What the engine's callbacks get. */
typedef struct stream {
    runner *runner;
    pen_load_request *request;
} stream;

struct runner {
    const pen_load *load;
    pen_engine *engine;
    pen_load_log *log;
    int vocab;
    stream *streams;   /* [load.requests] */
    int64_t *arrivals; /* [load.requests], of an open load */
    int32_t *prompt;   /* [load.prompt_tokens] */
    int64_t begin_ns;
    int submitted, started, finished; /* requests that were admitted, that have a token, that ended */
    bool open;                        /* the steady state has begun, and not ended */
    pen_status status;                /* of what a callback did */
};

/* ---- Made-up numbers --------------------------------------------------------------------------------------------- */

/* SplitMix64. */
static uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

void pen_load_prompt(uint64_t seed, int number, int vocab, int32_t *prompt, int count) {
    uint64_t state = seed;
    state = next_random(&state) + (uint64_t)number;
    state = next_random(&state);
    for (int i = 0; i < count; i++) prompt[i] = (int32_t)(next_random(&state) % (uint64_t)vocab);
}

void pen_load_arrivals(double request_rate, uint64_t seed, int64_t *arrivals, int count) {
    uint64_t state = ~seed;
    double seconds = 0;
    for (int i = 0; i < count; i++) {
        double draw = (double)(next_random(&state) >> 11) * 0x1p-53; /* [0, 1) */
        seconds -= log1p(-draw) / request_rate;
        arrivals[i] = (int64_t)(seconds * 1e9);
    }
}

/* ---- Spans ------------------------------------------------------------------------------------------------------- */

/* A span begins now, and what came before it does not count. */
static pen_status begin_span(runner *r, int span) {
    PEN_TRY(pen_engine_lap(r->engine));
    r->log->spans[span].begin_ns = pen_clock_ns();
    return PEN_OK;
}

static pen_status end_span(runner *r, int span) {
    r->log->spans[span].end_ns = pen_clock_ns();
    return pen_engine_lap(r->engine);
}

/* All prompts are through, and all requests held: nothing is under way. */
static pen_status turn_to_outputs(runner *r) {
    PEN_TRY(end_span(r, PEN_LOAD_PROMPTS));
    PEN_TRY(pen_engine_metrics(r->engine, r->log->spans[PEN_LOAD_PROMPTS].stages));
    PEN_TRY(begin_span(r, PEN_LOAD_OUTPUTS));
    pen_engine_hold(r->engine, false);
    return PEN_OK;
}

/* ---- Requests ---------------------------------------------------------------------------------------------------- */

/* How many requests should have been admitted by now. */
static int due(const runner *r) {
    const pen_load *load = r->load;
    if (load->request_rate > 0) {
        int64_t since = pen_clock_ns() - r->begin_ns;
        int arrived = r->submitted;
        while (arrived < load->requests && r->arrivals[arrived] <= since) arrived++;
        return arrived;
    }
    int64_t first_wave = load->concurrency;
    if (!load->phases) { /* evenly along the first output */
        int64_t follow = (int64_t)r->log->requests[0].tokens * load->concurrency / load->output_tokens;
        if (1 + follow < first_wave) first_wave = 1 + follow;
    }
    int64_t wanted = first_wave + r->finished;
    return wanted < load->requests ? (int)wanted : load->requests;
}

static pen_request_token on_token;
static pen_request_done on_done;

static pen_status submit_due(runner *r) {
    const pen_load *load = r->load;
    for (int wanted = due(r); r->submitted < wanted; r->submitted++) {
        stream *s = &r->streams[r->submitted];
        bool is_open = load->request_rate > 0;
        s->request->arrived_ns = is_open ? r->begin_ns + r->arrivals[r->submitted] : pen_clock_ns();
        pen_load_prompt(load->seed, r->submitted, r->vocab, r->prompt, load->prompt_tokens);
        pen_request request = {.prompt = r->prompt,
                               .prompt_count = load->prompt_tokens,
                               .max_tokens = load->output_tokens,
                               .pick.target = -1,
                               .on_token = on_token,
                               .on_done = on_done,
                               .context = s};
        PEN_TRY(pen_engine_submit(r->engine, &request));
    }
    if (r->open && r->submitted == load->requests) {
        r->open = false;
        return end_span(r, 0);
    }
    return PEN_OK;
}

static pen_status take_token(runner *r, pen_load_request *request) {
    request->token_ns[request->tokens++] = pen_clock_ns();
    if (request->tokens > 1) return request == &r->log->requests[0] ? submit_due(r) : PEN_OK;
    r->started++;
    if (r->load->phases && r->started == r->load->requests) return turn_to_outputs(r);
    return submit_due(r);
}

static bool on_token(void *context, int index, int position, const pen_choice *choice) {
    (void)index, (void)position, (void)choice;
    stream *s = context;
    if (s->runner->status == PEN_OK) s->runner->status = take_token(s->runner, s->request);
    return s->runner->status == PEN_OK;
}

/* Whether the load has a steady state, now that its first request is done. */
static bool is_steady(const runner *r) {
    const pen_load *load = r->load;
    if (load->phases || pen_load_is_serial(load)) return false;
    return load->requests - r->submitted >= load->concurrency;
}

static pen_status take_end(runner *r, pen_finish finish, const pen_load_request *request) {
    if (finish != PEN_FINISH_LENGTH)
        return pen_fail(PEN_BAD_INPUT, "the model's output is not a number after %d tokens", request->tokens);
    if (r->finished++ == 0 && is_steady(r)) {
        r->open = r->log->steady = true;
        PEN_TRY(begin_span(r, 0));
    }
    return submit_due(r);
}

static void on_done(void *context, int index, pen_finish finish) {
    (void)index;
    stream *s = context;
    if (s->runner->status == PEN_OK) s->runner->status = take_end(s->runner, finish, s->request);
}

/* ---- The run ----------------------------------------------------------------------------------------------------- */

static pen_status run(runner *r) {
    const pen_load *load = r->load;
    pen_load_log *log = r->log;
    pen_engine_hold(r->engine, load->phases);
    PEN_TRY(begin_span(r, 0));
    r->begin_ns = log->spans[0].begin_ns;
    while (r->finished < load->requests) {
        PEN_TRY(submit_due(r));
        bool more = load->request_rate > 0 && r->submitted < load->requests;
        int64_t next_ns = more ? r->begin_ns + r->arrivals[r->submitted] : INT64_MAX;
        if (r->submitted == r->finished)
            pen_clock_sleep_until(next_ns);
        else
            PEN_TRY(pen_engine_run_until(r->engine, next_ns));
        PEN_TRY(r->status);
    }
    if (!log->steady) PEN_TRY(end_span(r, log->span_count - 1));
    return pen_engine_metrics(r->engine, log->spans[log->span_count - 1].stages);
}

pen_status pen_load_run(const pen_load *load, pen_engine *engine, int stages, int vocab, pen_load_log *log) {
    size_t requests = (size_t)load->requests, outputs = (size_t)load->output_tokens;
    *log = (pen_load_log){.load = *load, .stages = stages, .span_count = load->phases ? PEN_LOAD_SPANS : 1};
    runner r = {.load = load, .engine = engine, .log = log, .vocab = vocab, .status = PEN_OK};
    log->requests = calloc(requests, sizeof *log->requests);
    log->token_memory = calloc(requests * outputs, sizeof *log->token_memory);
    for (int i = 0; i < PEN_LOAD_SPANS; i++)
        log->spans[i].stages = calloc((size_t)stages, sizeof *log->spans[i].stages);
    r.streams = calloc(requests, sizeof *r.streams);
    r.arrivals = calloc(requests, sizeof *r.arrivals);
    r.prompt = calloc((size_t)load->prompt_tokens, sizeof *r.prompt);
    pen_status status = PEN_OK;
    if (!log->requests || !log->token_memory || !log->spans[0].stages || !log->spans[1].stages || !r.streams ||
        !r.arrivals || !r.prompt) {
        status = pen_fail(PEN_NO_MEMORY, "no memory for a load of %d requests", load->requests);
    } else {
        for (size_t i = 0; i < requests; i++) {
            log->requests[i].token_ns = log->token_memory + i * outputs;
            r.streams[i] = (stream){&r, &log->requests[i]};
        }
        if (load->request_rate > 0) pen_load_arrivals(load->request_rate, load->seed, r.arrivals, load->requests);
        status = run(&r);
    }
    free(r.streams);
    free(r.arrivals);
    free(r.prompt);
    return status;
}

void pen_load_log_free(pen_load_log *log) {
    free(log->requests);
    free(log->token_memory);
    for (int i = 0; i < PEN_LOAD_SPANS; i++) free(log->spans[i].stages);
    *log = (pen_load_log){0};
}
