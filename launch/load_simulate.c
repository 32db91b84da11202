/* Loads in the simulator; see load_simulate.h. */
#include "load_simulate.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

typedef struct twin {
    pen_load_log *log;
    pen_simulated_request *requests; /* [load.requests] */
    int submitted, finished;         /* as the runner in load.c counts them */
} twin;

static int64_t ns_of(double ms) {
    return llround(ms * 1e6);
}

static void submit_due(twin *t, double now_ms) {
    const pen_load *load = &t->log->load;
    bool is_open = load->request_rate > 0;
    int wanted = is_open ? load->requests : pen_load_due(t->log, t->finished);
    for (; t->submitted < wanted; t->submitted++) {
        if (is_open && t->requests[t->submitted].arrival_ms > now_ms) return;
        if (!is_open) t->requests[t->submitted].arrival_ms = now_ms;
        t->log->requests[t->submitted].arrived_ns = ns_of(t->requests[t->submitted].arrival_ms);
        t->log->spans[0].end_ns = t->log->requests[t->submitted].arrived_ns;
    }
}

static void on_token(void *context, int number, double at_ms) {
    twin *t = context;
    pen_load_log *log = t->log;
    pen_load_request *request = &log->requests[number];
    if (request->tokens == request->output_tokens) return; /* the second time, for what the stages do */
    submit_due(t, at_ms);
    request->token_ns[request->tokens++] = ns_of(at_ms);
    if (request->tokens == request->output_tokens && t->finished++ == 0 &&
        pen_load_is_steady(&log->load, t->submitted)) {
        log->steady = true;
        log->spans[0].begin_ns = ns_of(at_ms);
    }
    submit_due(t, at_ms);
}

/* Twice: what is counted of the stages' time follows from what happens to the requests. */
static pen_status simulate(twin *t, pen_load_simulator *simulator, const void *context) {
    pen_load_log *log = t->log;
    pen_load_span *span = &log->spans[0];
    int count = log->load.requests;
    pen_simulation simulation = {.stages = span->stages};
    pen_simulated_watch watch = {.on_token = on_token, .context = t};
    PEN_TRY(simulator(context, &watch, t->requests, count, &simulation));
    submit_due(t, simulation.makespan_ms);
    if (!log->steady) span->end_ns = ns_of(simulation.makespan_ms);
    watch.from_ms = (double)span->begin_ns * 1e-6;
    watch.to_ms = (double)span->end_ns * 1e-6;
    return simulator(context, &watch, t->requests, count, &simulation);
}

pen_status pen_load_simulate(const pen_load *load, pen_load_simulator *simulator, const void *context, int stages,
                             pen_load_log *log) {
    assert(!load->phases);
    twin t = {.log = log};
    pen_status status = pen_load_log_create(load, 1, stages, log);
    size_t count = (size_t)load->requests;
    int64_t *arrivals = calloc(count, sizeof *arrivals);
    t.requests = calloc(count, sizeof *t.requests);
    if (status == PEN_OK && (!arrivals || !t.requests))
        status = pen_fail(PEN_NO_MEMORY, "no memory to simulate %d requests", load->requests);
    if (status == PEN_OK) {
        if (load->request_rate > 0) pen_load_arrivals(load, arrivals);
        for (size_t i = 0; i < count; i++)
            t.requests[i] =
                (pen_simulated_request){.arrival_ms = load->request_rate > 0 ? (double)arrivals[i] * 1e-6 : INFINITY,
                                        .prompt = log->requests[i].prompt_tokens,
                                        .output = log->requests[i].output_tokens};
        submit_due(&t, 0);
        status = simulate(&t, simulator, context);
    }
    free(arrivals);
    free(t.requests);
    return status;
}
