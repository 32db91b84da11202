/* The load generator; see load.h. */
#include "load.h"

#include "clock.h"

#include <math.h>
#include <stdlib.h>

enum { LONGEST = 4 }; /* times the mean: a tail without end would want KV without end */

typedef struct runner runner;

/* What the front end's callbacks get. */
typedef struct stream {
    runner *runner;
    pen_load_request *request;
    int64_t id; /* the front end's */
} stream;

struct runner {
    const pen_load *load;
    pen_front *front;
    pen_load_log *log;
    int vocab;
    stream *streams;   /* [load.requests] */
    int64_t *arrivals; /* [load.requests], of an open load */
    int32_t *prompt;   /* [of the longest prompt] */
    int64_t begin_ns;
    int submitted, started, finished; /* requests that were admitted, that have a token, that ended */
    bool open;                        /* the steady state has begun, and not ended */
    bool outputs;                     /* the second phase has begun */
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

/* In [0, 1). */
static double next_fraction(uint64_t *state) {
    return (double)(next_random(state) >> 11) * 0x1p-53;
}

/* Box and Muller's way. */
static double next_normal(uint64_t *state) {
    const double turn = 6.283185307179586;
    double radius = sqrt(-2 * log1p(-next_fraction(state)));
    return radius * cos(turn * next_fraction(state));
}

/* Marsaglia and Tsang's way, of mean `shape`; shapes below 1 from the next one above. */
static double next_gamma(uint64_t *state, double shape) {
    if (shape == 1) return -log1p(-next_fraction(state));
    if (shape < 1) return next_gamma(state, shape + 1) * pow(1 - next_fraction(state), 1 / shape);
    double d = shape - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (;;) {
        double normal = next_normal(state), root = 1 + c * normal, cube = root * root * root;
        if (root > 0 && log(1 - next_fraction(state)) < normal * normal / 2 + d - d * cube + d * log(cube))
            return d * cube;
    }
}

/* Log-normal. */
static int draw_length(uint64_t *state, int mean, double spread) {
    double length = mean * exp(spread * (next_normal(state) - spread / 2));
    return (int)fmax(1, fmin(round(length), (double)LONGEST * mean));
}

void pen_load_lengths(const pen_load *load, int number, int *prompt_tokens, int *output_tokens) {
    uint64_t state = load->seed ^ 0x5851f42d4c957f2d;
    state = next_random(&state) + (uint64_t)number;
    bool spreads = load->length_spread > 0;
    int output = load->output_cycle ? load->output_cycle[number % load->output_cycle_count] : load->output_tokens;
    *prompt_tokens = spreads ? draw_length(&state, load->prompt_tokens, load->length_spread) : load->prompt_tokens;
    *output_tokens = spreads ? draw_length(&state, output, load->length_spread) : output;
}

void pen_load_arrivals(const pen_load *load, int64_t *arrivals) {
    uint64_t state = ~load->seed;
    double seconds = 0;
    for (int i = 0; i < load->requests; i++) {
        seconds += next_gamma(&state, load->burstiness) / (load->burstiness * load->request_rate);
        arrivals[i] = (int64_t)(seconds * 1e9);
    }
}

/* ---- Spans ------------------------------------------------------------------------------------------------------- */

/* A span begins now, and what came before it does not count. */
static pen_status begin_span(runner *r, int span) {
    PEN_TRY(pen_front_lap(r->front));
    r->log->spans[span].begin_ns = pen_clock_ns();
    return PEN_OK;
}

static pen_status end_span(runner *r, int span) {
    r->log->spans[span].end_ns = pen_clock_ns();
    return pen_front_lap(r->front);
}

/* All prompts are through, and all requests held: nothing is under way. */
static pen_status turn_to_outputs(runner *r) {
    r->outputs = true;
    PEN_TRY(end_span(r, PEN_LOAD_PROMPTS));
    PEN_TRY(pen_front_metrics(r->front, r->log->spans[PEN_LOAD_PROMPTS].stages));
    PEN_TRY(begin_span(r, PEN_LOAD_OUTPUTS));
    return pen_front_hold(r->front, false);
}

/* ---- Requests ---------------------------------------------------------------------------------------------------- */

int pen_load_due(const pen_load_log *log, int finished) {
    const pen_load *load = &log->load;
    const pen_load_request *first = &log->requests[0];
    int64_t first_wave = load->concurrency;
    if (!load->phases) { /* evenly along the first output */
        int64_t follow = (int64_t)first->tokens * load->concurrency / first->output_tokens;
        if (1 + follow < first_wave) first_wave = 1 + follow;
    }
    int64_t wanted = first_wave + finished;
    return wanted < load->requests ? (int)wanted : load->requests;
}

/* How many requests should have been admitted by now. */
static int due(const runner *r) {
    if (r->load->request_rate == 0) return pen_load_due(r->log, r->finished);
    int64_t since = pen_clock_ns() - r->begin_ns;
    int arrived = r->submitted;
    while (arrived < r->load->requests && r->arrivals[arrived] <= since) arrived++;
    return arrived;
}

static pen_request_token on_token;
static pen_request_done on_done;

static pen_status submit_due(runner *r) {
    const pen_load *load = r->load;
    /* What finds no room is submitted when others have ended. */
    for (int wanted = due(r); r->submitted < wanted && pen_front_has_room(r->front); r->submitted++) {
        stream *s = &r->streams[r->submitted];
        bool is_open = load->request_rate > 0;
        s->request->arrived_ns = is_open ? r->begin_ns + r->arrivals[r->submitted] : pen_clock_ns();
        pen_load_prompt(load->seed, r->submitted, r->vocab, r->prompt, s->request->prompt_tokens);
        pen_request request = {.prompt = r->prompt,
                               .prompt_count = s->request->prompt_tokens,
                               .max_tokens = s->request->output_tokens,
                               .pick = {.target = -1, .top_logprobs = -1},
                               .on_token = on_token,
                               .on_done = on_done,
                               .context = s};
        PEN_TRY(pen_front_submit(r->front, &request, &s->id));
        s->request->predicted_ttft_ms = pen_front_predicted_ttft_ms(r->front, s->id);
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
    if (r->load->phases && r->started == r->load->requests) pen_front_wake(r->front);
    return submit_due(r);
}

static bool on_token(void *context, int index, int position, const pen_choice *choice) {
    (void)index, (void)position, (void)choice;
    stream *s = context;
    if (s->runner->status == PEN_OK) s->runner->status = take_token(s->runner, s->request);
    return s->runner->status == PEN_OK;
}

bool pen_load_is_steady(const pen_load *load, int submitted) {
    if (load->phases || pen_load_is_serial(load)) return false;
    return load->requests - submitted >= load->concurrency;
}

static pen_status take_end(runner *r, pen_finish finish, stream *s) {
    pen_load_request *request = s->request;
    request->replica = pen_front_replica_of(r->front, s->id);
    request->expired = finish == PEN_FINISH_EXPIRED;
    if (finish != PEN_FINISH_LENGTH && !request->expired)
        return pen_fail(PEN_BAD_INPUT, "the model's output is not a number after %d tokens", request->tokens);
    if (r->finished++ == 0 && pen_load_is_steady(r->load, r->submitted)) {
        r->open = r->log->steady = true;
        PEN_TRY(begin_span(r, 0));
    }
    return submit_due(r);
}

static void on_done(void *context, int index, pen_finish finish) {
    (void)index;
    stream *s = context;
    if (s->runner->status == PEN_OK) s->runner->status = take_end(s->runner, finish, s);
}

/* ---- Replicas ---------------------------------------------------------------------------------------------------- */

/* What all replicas have stolen so far, for the log to say what they stole in this run. */
static void note_steals(const runner *r, int sign) {
    pen_load_log *log = r->log;
    for (int i = 0; i < log->replicas; i++) {
        pen_replica_state state = pen_front_replica(r->front, i);
        log->stolen[i] += (uint64_t)sign * state.account.stolen;
        log->steal_s[i] += sign * state.load.steal_s;
    }
}

static void on_report(void *context, int replica) {
    runner *r = context;
    pen_load_log *log = r->log;
    if (log->sample_count == log->sample_capacity) {
        int capacity = log->sample_capacity ? 2 * log->sample_capacity : 1024;
        pen_load_sample *grown = realloc(log->samples, (size_t)capacity * sizeof *grown);
        if (!grown) return; /* the sample is lost, and no more than that */
        log->samples = grown;
        log->sample_capacity = capacity;
    }
    int waiting = pen_front_waiting(r->front);
    for (int i = 0; i < log->replicas; i++) waiting += pen_front_replica(r->front, i).account.waiting;
    pen_replica_load load = pen_front_replica(r->front, replica).load;
    log->samples[log->sample_count++] = (pen_load_sample){.time_ns = pen_clock_ns(),
                                                          .replica = replica,
                                                          .queued = load.queued,
                                                          .waiting = waiting,
                                                          .busy_s = load.busy_s};
}

/* ---- The run ----------------------------------------------------------------------------------------------------- */

static pen_status run(runner *r) {
    const pen_load *load = r->load;
    pen_load_log *log = r->log;
    PEN_TRY(pen_front_hold(r->front, load->phases));
    PEN_TRY(begin_span(r, 0));
    r->begin_ns = log->spans[0].begin_ns;
    note_steals(r, -1);
    while (r->finished < load->requests) {
        PEN_TRY(submit_due(r));
        bool more = load->request_rate > 0 && r->submitted < load->requests;
        int64_t next_ns = more ? r->begin_ns + r->arrivals[r->submitted] : INT64_MAX;
        if (r->submitted == r->finished)
            pen_clock_sleep_until(next_ns);
        else
            PEN_TRY(pen_front_run_until(r->front, next_ns));
        PEN_TRY(r->status);
        if (load->phases && r->started == load->requests && !r->outputs) PEN_TRY(turn_to_outputs(r));
    }
    if (!log->steady) PEN_TRY(end_span(r, log->span_count - 1));
    note_steals(r, 1);
    return pen_front_metrics(r->front, log->spans[log->span_count - 1].stages);
}

/* Times as they would be without --time-scale. */
static void unscale(pen_load_log *log) {
    double scale = log->load.time_scale;
    int64_t begin_ns = log->spans[0].begin_ns;
    if (scale == 1) return;
    for (int i = 0; i < log->load.requests; i++) {
        pen_load_request *request = &log->requests[i];
        request->arrived_ns = (int64_t)((double)(request->arrived_ns - begin_ns) / scale);
        for (int t = 0; t < request->tokens; t++)
            request->token_ns[t] = (int64_t)((double)(request->token_ns[t] - begin_ns) / scale);
    }
    for (int i = 0; i < log->sample_count; i++)
        log->samples[i].time_ns = (int64_t)((double)(log->samples[i].time_ns - begin_ns) / scale);
    for (int i = 0; i < log->span_count; i++) {
        pen_load_span *span = &log->spans[i];
        span->begin_ns = (int64_t)((double)(span->begin_ns - begin_ns) / scale);
        span->end_ns = (int64_t)((double)(span->end_ns - begin_ns) / scale);
        for (int s = 0; s < log->replicas * log->stages; s++) {
            for (int a = 0; a < PEN_ACTIVITIES; a++) span->stages[s].seconds[a] /= scale;
            span->stages[s].work_s /= scale;
        }
    }
}

pen_status pen_load_log_create(const pen_load *load, int replicas, int stages, pen_load_log *log) {
    size_t requests = (size_t)load->requests, outputs = 0;
    *log = (pen_load_log){
        .load = *load, .replicas = replicas, .stages = stages, .span_count = load->phases ? PEN_LOAD_SPANS : 1};
    log->requests = calloc(requests, sizeof *log->requests);
    for (size_t i = 0; log->requests && i < requests; i++) {
        pen_load_request *request = &log->requests[i];
        pen_load_lengths(load, (int)i, &request->prompt_tokens, &request->output_tokens);
        outputs += (size_t)request->output_tokens;
    }
    log->token_memory = calloc(outputs + 1, sizeof *log->token_memory);
    for (int i = 0; i < PEN_LOAD_SPANS; i++)
        log->spans[i].stages = calloc((size_t)replicas * (size_t)stages, sizeof *log->spans[i].stages);
    log->stolen = calloc((size_t)replicas, sizeof *log->stolen);
    log->steal_s = calloc((size_t)replicas, sizeof *log->steal_s);
    bool made = log->requests && log->token_memory && log->stolen && log->steal_s;
    if (!made || !log->spans[0].stages || !log->spans[1].stages)
        return pen_fail(PEN_NO_MEMORY, "no memory for a load of %d requests", load->requests);
    int64_t *token_ns = log->token_memory;
    for (size_t i = 0; i < requests; i++) {
        log->requests[i].token_ns = token_ns;
        token_ns += log->requests[i].output_tokens;
    }
    return PEN_OK;
}

static pen_status prepare(runner *r) {
    const pen_load *load = r->load;
    int longest = 1;
    for (int i = 0; i < load->requests; i++)
        if (r->log->requests[i].prompt_tokens > longest) longest = r->log->requests[i].prompt_tokens;
    r->streams = calloc((size_t)load->requests, sizeof *r->streams);
    r->arrivals = calloc((size_t)load->requests, sizeof *r->arrivals);
    r->prompt = calloc((size_t)longest, sizeof *r->prompt);
    if (!r->streams || !r->arrivals || !r->prompt)
        return pen_fail(PEN_NO_MEMORY, "no memory for a load of %d requests", load->requests);
    for (int i = 0; i < load->requests; i++) r->streams[i] = (stream){.runner = r, .request = &r->log->requests[i]};
    if (load->request_rate > 0) pen_load_arrivals(load, r->arrivals);
    for (int i = 0; i < load->requests; i++) r->arrivals[i] = (int64_t)((double)r->arrivals[i] * load->time_scale);
    return PEN_OK;
}

pen_status pen_load_run(const pen_load *load, pen_front *front, int vocab, pen_load_log *log) {
    runner r = {.load = load, .front = front, .log = log, .vocab = vocab, .status = PEN_OK};
    pen_status status = pen_load_log_create(load, pen_front_replicas(front), pen_front_stages(front), log);
    if (status == PEN_OK) status = prepare(&r);
    pen_front_set_watch(front, on_report, &r);
    if (status == PEN_OK) status = run(&r);
    pen_front_set_watch(front, NULL, NULL);
    if (status == PEN_OK) unscale(log);
    free(r.streams);
    free(r.arrivals);
    free(r.prompt);
    return status;
}

void pen_load_log_free(pen_load_log *log) {
    free(log->requests);
    free(log->token_memory);
    free(log->samples);
    free(log->stolen);
    free(log->steal_s);
    for (int i = 0; i < PEN_LOAD_SPANS; i++) free(log->spans[i].stages);
    *log = (pen_load_log){0};
}
