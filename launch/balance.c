/* How evenly a load was spread; see balance.h. */
#include "balance.h"

#include <math.h>
#include <stdlib.h>

static const int64_t WINDOW_NS = INT64_C(5) * 1000 * 1000 * 1000;

/* A prompt counts when its first token is there. */
static double tokens_between(const pen_load_request *request, int64_t begin_ns, int64_t end_ns) {
    double tokens = 0;
    for (int t = 0; t < request->tokens; t++)
        if (request->token_ns[t] > begin_ns && request->token_ns[t] <= end_ns)
            tokens += t == 0 ? 1 + request->prompt_tokens : 1;
    return tokens;
}

/* A replica's busy time so far, which is taken to grow evenly between two reports; NAN outside of them. */
static double busy_at(const pen_load_log *log, int replica, int64_t time_ns) {
    const pen_load_sample *before = NULL;
    for (int i = 0; i < log->sample_count; i++) {
        const pen_load_sample *s = &log->samples[i];
        if (s->replica != replica) continue;
        if (s->time_ns < time_ns) {
            before = s;
            continue;
        }
        if (s->time_ns == time_ns) return s->busy_s;
        if (!before) return NAN;
        double share = (double)(time_ns - before->time_ns) / (double)(s->time_ns - before->time_ns);
        return before->busy_s + share * (s->busy_s - before->busy_s);
    }
    return NAN;
}

/* NAN where a replica's reports do not enclose the time. */
static double factor_between(const pen_load_log *log, int64_t from_ns, int64_t to_ns) {
    double most = 0, least = INFINITY;
    for (int r = 0; r < log->replicas; r++) {
        double busy = busy_at(log, r, to_ns) - busy_at(log, r, from_ns);
        if (isnan(busy)) return NAN;
        most = fmax(most, busy);
        least = fmin(least, busy);
    }
    return least > 0 ? most / least : INFINITY;
}

/* Whether requests waited at every moment that is known of. */
static bool is_waiting(const pen_load_log *log, int64_t from_ns, int64_t to_ns) {
    int seen = 0;
    for (int i = 0; i < log->sample_count; i++) {
        const pen_load_sample *s = &log->samples[i];
        if (s->time_ns < from_ns || s->time_ns > to_ns) continue;
        if (s->waiting == 0) return false;
        seen++;
    }
    return seen > 0;
}

static void look_at_windows(const pen_load_log *log, int64_t begin_ns, int64_t end_ns, pen_balance *balance) {
    for (int64_t from_ns = begin_ns; from_ns + WINDOW_NS <= end_ns; from_ns += WINDOW_NS) {
        double factor = factor_between(log, from_ns, from_ns + WINDOW_NS);
        if (isnan(factor) || !is_waiting(log, from_ns, from_ns + WINDOW_NS)) continue;
        balance->windows++;
        balance->worst_factor = fmax(balance->worst_factor, factor);
    }
}

static void look_at_queue(const pen_load_log *log, int replica, int64_t begin_ns, int64_t end_ns,
                          pen_replica_summary *summary) {
    int64_t since_ns = begin_ns;
    int queued = 0;
    double area = 0;
    for (int i = 0; i < log->sample_count; i++) {
        const pen_load_sample *s = &log->samples[i];
        if (s->replica != replica || s->time_ns > end_ns) continue;
        if (s->time_ns > since_ns) {
            area += (double)queued * (double)(s->time_ns - since_ns);
            since_ns = s->time_ns;
        }
        queued = s->queued;
        if (s->time_ns >= begin_ns && queued > summary->queue_most) summary->queue_most = queued;
    }
    area += (double)queued * (double)(end_ns - since_ns);
    summary->queue_mean = end_ns > begin_ns ? area / (double)(end_ns - begin_ns) : 0;
}

static void look_at_requests(const pen_load_log *log, int replica, int64_t begin_ns, int64_t end_ns, double *values,
                             pen_replica_summary *summary) {
    for (int i = 0; i < log->load.requests; i++) {
        const pen_load_request *request = &log->requests[i];
        if (request->replica != replica || request->expired) continue;
        summary->tokens += tokens_between(request, begin_ns, end_ns);
        int64_t ended_ns = request->token_ns[request->output_tokens - 1];
        if (ended_ns <= begin_ns || ended_ns > end_ns) continue;
        values[summary->requests++] = (double)(ended_ns - request->arrived_ns) * 1e-6;
    }
    summary->e2el = pen_statistics_of(values, (size_t)summary->requests);
}

pen_status pen_balance_of(const pen_load_log *log, pen_balance *balance) {
    *balance = (pen_balance){.replicas = calloc((size_t)log->replicas, sizeof *balance->replicas)};
    double *values = calloc((size_t)log->load.requests, sizeof *values);
    if (!balance->replicas || !values) {
        free(values);
        return pen_fail(PEN_NO_MEMORY, "no memory for the summary of %d replicas", log->replicas);
    }
    int64_t begin_ns = log->spans[0].begin_ns, end_ns = log->spans[log->span_count - 1].end_ns;
    double seconds = (double)(end_ns - begin_ns) * 1e-9;
    for (int r = 0; r < log->replicas; r++) {
        pen_replica_summary *summary = &balance->replicas[r];
        for (int i = 0; i < log->span_count; i++) {
            double most = 0;
            for (int s = 0; s < log->stages; s++)
                most = fmax(most, log->spans[i].stages[r * log->stages + s].seconds[PEN_BUSY]);
            summary->busy_s += most;
        }
        summary->utilisation = seconds > 0 ? summary->busy_s / seconds : 0;
        summary->stolen = log->stolen[r];
        summary->steal_share = seconds > 0 ? log->steal_s[r] / seconds : 0;
        look_at_queue(log, r, begin_ns, end_ns, summary);
        look_at_requests(log, r, begin_ns, end_ns, values, summary);
    }
    double most = 0, least = INFINITY;
    for (int r = 0; r < log->replicas; r++) {
        most = fmax(most, balance->replicas[r].busy_s);
        least = fmin(least, balance->replicas[r].busy_s);
    }
    balance->factor = least > 0 ? most / least : INFINITY;
    look_at_windows(log, begin_ns, end_ns, balance);
    free(values);
    return PEN_OK;
}

void pen_balance_free(pen_balance *balance) {
    free(balance->replicas);
    *balance = (pen_balance){0};
}
