/* The summary of a load; see load_summary.h. */
#include "load_summary.h"

#include <math.h>
#include <stdlib.h>

static double seconds_of(const pen_load_span *span) {
    return (double)(span->end_ns - span->begin_ns) * 1e-9;
}

static double per_second(double tokens, double seconds) {
    return seconds > 0 ? tokens / seconds : 0;
}

static bool within(const pen_load_log *log, int64_t time_ns) {
    return time_ns > log->spans[0].begin_ns && time_ns <= log->spans[log->span_count - 1].end_ns;
}

void pen_load_total(const pen_load_log *log, pen_metrics *stages) {
    for (int s = 0; s < log->replicas * log->stages; s++) {
        stages[s] = log->spans[0].stages[s];
        for (int i = 1; i < log->span_count; i++) {
            const pen_metrics *more = &log->spans[i].stages[s];
            for (int a = 0; a < PEN_ACTIVITIES; a++) stages[s].seconds[a] += more->seconds[a];
            stages[s].busy_cpu_s += more->busy_cpu_s;
            stages[s].work_s += more->work_s;
            stages[s].steps += more->steps;
            stages[s].rows += more->rows;
        }
    }
}

/* ---- Speeds ------------------------------------------------------------------------------------------------------ */

static int64_t first_ns(const pen_load_request *request) {
    return request->token_ns[0];
}

static int64_t last_ns(const pen_load_request *request) {
    return request->token_ns[request->output_tokens - 1];
}

/* Requests that came one after the other: their own times, without what lies between them. */
static void one_by_one(const pen_load_log *log, pen_load_summary *summary) {
    double prompt_s = 0, output_s = 0, prompts = 0, outputs = 0;
    for (int i = 0; i < log->load.requests; i++) {
        const pen_load_request *request = &log->requests[i];
        prompt_s += (double)(first_ns(request) - request->arrived_ns) * 1e-9;
        output_s += (double)(last_ns(request) - first_ns(request)) * 1e-9;
        prompts += request->prompt_tokens;
        outputs += request->output_tokens;
    }
    summary->prompt_tokens_per_s = per_second(prompts, prompt_s);
    summary->decode_tokens_per_s = per_second(outputs - log->load.requests, output_s);
    summary->total_tokens_per_s = per_second(prompts + outputs, prompt_s + output_s);
}

static void phase_by_phase(const pen_load_log *log, pen_load_summary *summary) {
    double prompts = 0, outputs = 0;
    for (int i = 0; i < log->load.requests; i++) {
        prompts += log->requests[i].prompt_tokens;
        outputs += log->requests[i].output_tokens - 1; /* the first came with the prompt */
    }
    summary->prompt_tokens_per_s = per_second(prompts, seconds_of(&log->spans[PEN_LOAD_PROMPTS]));
    summary->decode_tokens_per_s = per_second(outputs, seconds_of(&log->spans[PEN_LOAD_OUTPUTS]));
    summary->total_tokens_per_s = per_second(prompts + outputs + log->load.requests, summary->seconds);
}

/* A prompt counts when its first token is there. */
static void all_together(const pen_load_log *log, pen_load_summary *summary) {
    double prompts = 0, outputs = 0;
    for (int i = 0; i < log->load.requests; i++) {
        const pen_load_request *request = &log->requests[i];
        if (within(log, first_ns(request))) prompts += request->prompt_tokens;
        for (int t = 0; t < request->tokens; t++) outputs += within(log, request->token_ns[t]);
    }
    summary->prompt_tokens_per_s = per_second(prompts, summary->seconds);
    summary->decode_tokens_per_s = per_second(outputs, summary->seconds);
    summary->total_tokens_per_s = per_second(prompts + outputs, summary->seconds);
}

/* ---- Latencies --------------------------------------------------------------------------------------------------- */

static double ms_between(int64_t from_ns, int64_t to_ns) {
    return (double)(to_ns - from_ns) * 1e-6;
}

/* Of the requests that ended in the spans: ended[summary->requests]. `values` has room for all their tokens. */
static void latencies(const pen_load_request *const *ended, double *values, pen_load_summary *summary) {
    size_t count = (size_t)summary->requests, longer = 0, gaps = 0;
    for (size_t i = 0; i < count; i++) values[i] = ms_between(ended[i]->arrived_ns, first_ns(ended[i]));
    summary->ttft = pen_statistics_of(values, count);
    for (size_t i = 0; i < count; i++) values[i] = ms_between(ended[i]->arrived_ns, last_ns(ended[i]));
    summary->e2el = pen_statistics_of(values, count);
    for (size_t i = 0; i < count; i++) {
        int later = ended[i]->output_tokens - 1;
        if (later > 0) values[longer++] = ms_between(first_ns(ended[i]), last_ns(ended[i])) / later;
    }
    summary->tpot = pen_statistics_of(values, longer);
    for (size_t i = 0; i < count; i++)
        for (int t = 1; t < ended[i]->output_tokens; t++)
            values[gaps++] = ms_between(ended[i]->token_ns[t - 1], ended[i]->token_ns[t]);
    summary->itl = pen_statistics_of(values, gaps);
}

/* ---- The whole run ----------------------------------------------------------------------------------------------- */

static double ttft_ms(const pen_load_request *request) {
    return ms_between(request->arrived_ns, first_ns(request));
}

static double e2el_ms(const pen_load_request *request) {
    return ms_between(request->arrived_ns, last_ns(request));
}

static double predicted_ttft_ms(const pen_load_request *request) {
    return request->predicted_ttft_ms;
}

static double prediction_error_ms(const pen_load_request *request) {
    return fabs(request->predicted_ttft_ms - ttft_ms(request));
}

/* Of all requests that did not wait for too long. */
static pen_statistics statistics_of(const pen_load_log *log, double (*value_of)(const pen_load_request *),
                                    double *values) {
    size_t count = 0;
    for (int i = 0; i < log->load.requests; i++)
        if (!log->requests[i].expired) values[count++] = value_of(&log->requests[i]);
    return pen_statistics_of(values, count);
}

static void look_at_whole(const pen_load_log *log, double *values, pen_load_whole *whole) {
    int64_t begin_ns = log->requests[0].arrived_ns, end_ns = begin_ns;
    double tokens = 0;
    for (int i = 0; i < log->load.requests; i++) {
        const pen_load_request *request = &log->requests[i];
        if (request->expired) continue;
        if (last_ns(request) > end_ns) end_ns = last_ns(request);
        tokens += request->prompt_tokens + request->output_tokens;
    }
    *whole = (pen_load_whole){.seconds = (double)(end_ns - begin_ns) * 1e-9,
                              .ttft = statistics_of(log, ttft_ms, values),
                              .e2el = statistics_of(log, e2el_ms, values),
                              .predicted_ttft = statistics_of(log, predicted_ttft_ms, values),
                              .prediction_error = statistics_of(log, prediction_error_ms, values)};
    whole->total_tokens_per_s = per_second(tokens, whole->seconds);
}

/* ---- All of it --------------------------------------------------------------------------------------------------- */

static void stages_of(const pen_load_log *log, pen_metrics *stages, pen_load_summary *summary) {
    pen_load_total(log, stages);
    pen_efficiency *mean = &summary->efficiency;
    for (int r = 0; r < log->replicas; r++) {
        pen_efficiency e = pen_metrics_efficiency(stages + r * log->stages, log->stages);
        mean->split += e.split / log->replicas;
        mean->schedule += e.schedule / log->replicas;
        mean->pipeline += e.pipeline / log->replicas;
    }
}

pen_status pen_load_summarise(const pen_load_log *log, pen_load_summary *summary) {
    const pen_load *load = &log->load;
    size_t requests = (size_t)load->requests, outputs = 0;
    for (size_t i = 0; i < requests; i++) outputs += (size_t)log->requests[i].output_tokens;
    const pen_load_request **ended = calloc(requests, sizeof *ended);
    double *values = calloc(outputs, sizeof *values);
    pen_metrics *stages = calloc((size_t)log->replicas * (size_t)log->stages, sizeof *stages);
    *summary = (pen_load_summary){0};
    pen_status status = PEN_OK;
    if (!ended || !values || !stages) {
        status = pen_fail(PEN_NO_MEMORY, "no memory for the summary of %d requests", load->requests);
    } else {
        for (int i = 0; i < log->span_count; i++) summary->seconds += seconds_of(&log->spans[i]);
        if (load->phases)
            phase_by_phase(log, summary);
        else if (pen_load_is_serial(load))
            one_by_one(log, summary);
        else
            all_together(log, summary);
        for (int i = 0; i < load->requests; i++)
            if (within(log, last_ns(&log->requests[i]))) ended[summary->requests++] = &log->requests[i];
        for (int i = 0; i < load->requests; i++) summary->expired += log->requests[i].expired;
        latencies(ended, values, summary);
        look_at_whole(log, values, &summary->whole);
        stages_of(log, stages, summary);
    }
    free(ended);
    free(values);
    free(stages);
    return status;
}
