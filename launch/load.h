/*
 * The load generator of `bench`: requests of exact lengths, made up by a seed, for the front end, and a log of when
 * their tokens came back. It lives on rank 0.
 *
 * All requests are equally long; or their outputs have a few lengths in turn; or lengths spread: log-normal around
 * these means, as those of people are.
 *
 * A load arrives in one of three ways. Closed: `concurrency` requests at a time, the next when one ends; the first ones
 * follow the first one's output at even distances, so that at any time some are at their prompt and others anywhere in
 * their output. Open: at random times, `request_rate` a second, with gamma distributed gaps, in bursts or evenly. In
 * phases: `concurrency` requests at once, whose outputs begin when all prompts are through.
 */
#ifndef PEN_LOAD_H
#define PEN_LOAD_H

#include "front.h"

typedef struct pen_load {
    int prompt_tokens, output_tokens; /* of every request, or on average */
    const int *output_cycle;          /* [output_cycle_count] in place of output_tokens, for the requests in turn */
    int output_cycle_count;
    double length_spread; /* standard deviation of the lengths' logarithms; 0: all are alike */
    int concurrency;
    int requests;
    double request_rate; /* 0: a closed load */
    double burstiness;   /* shape of the gaps between arrivals; 1: a Poisson process */
    bool phases;
    uint64_t seed;
    double time_scale; /* of a simulated device; the load's own times, too, take so many times as long */
} pen_load;

/* Whether its requests come one after the other. */
static inline bool pen_load_is_serial(const pen_load *load) {
    return load->concurrency == 1 && load->request_rate == 0;
}

typedef struct pen_load_request {
    int64_t arrived_ns; /* when it was due, also where the engine could only take it later */
    int64_t *token_ns;  /* [output_tokens] */
    int prompt_tokens, output_tokens;
    int tokens;   /* that came */
    bool expired; /* it waited for too long, and none came */
    int replica;  /* that has done it */
    double predicted_ttft_ms;
} pen_load_request;

/* What a replica reported of itself during the run. */
typedef struct pen_load_sample {
    int64_t time_ns;
    int replica;
    int queued;    /* requests that waited at its leader */
    int waiting;   /* … anywhere, as far as rank 0 knew */
    double busy_s; /* of its slowest stage, since the program's start */
} pen_load_sample;

/* A stretch of time, and what the stages did in it. */
typedef struct pen_load_span {
    int64_t begin_ns, end_ns;
    pen_metrics *stages; /* [replicas][stages] */
} pen_load_span;

enum { PEN_LOAD_PROMPTS, PEN_LOAD_OUTPUTS, PEN_LOAD_SPANS };

typedef struct pen_load_log {
    pen_load load;
    int replicas, stages;       /* stages of a replica */
    pen_load_request *requests; /* [load.requests] */
    int64_t *token_memory;
    pen_load_sample *samples; /* [sample_count], as they came */
    int sample_count, sample_capacity;
    uint64_t *stolen; /* [replicas] requests that it took from others */
    double *steal_s;  /* [replicas] time that it spent on that */
    /* With phases both; else one: the steady state, from the first completion to the last admission, or, where there
     * is none (too few requests) or need be none (they come one after the other), the whole run. */
    pen_load_span spans[PEN_LOAD_SPANS];
    int span_count;
    bool steady;
} pen_load_log;

/* Runs the load on a front end without other work. All times in the log are before --time-scale. Free it in any case.
 */
pen_status pen_load_run(const pen_load *load, pen_front *front, int vocab, pen_load_log *log);
void pen_load_log_free(pen_load_log *log);

/* For those who write a log: room for the load's requests, whose lengths are filled in. */
pen_status pen_load_log_create(const pen_load *load, int replicas, int stages, pen_load_log *log);
/* Whether the load has a steady state, now that its first request is done and `submitted` have been admitted. */
bool pen_load_is_steady(const pen_load *load, int submitted);
/* How many requests of a closed load should be admitted when so many are done. */
int pen_load_due(const pen_load_log *log, int finished);

/* When the requests of an open load arrive: arrivals[load->requests] in nanoseconds after its beginning. */
void pen_load_arrivals(const pen_load *load, int64_t *arrivals);
/* The lengths of a request of the load: at most LONGEST (load.c) times the mean. */
void pen_load_lengths(const pen_load *load, int number, int *prompt_tokens, int *output_tokens);
/* A prompt of the load. Prompts of different numbers share no beginning, but by chance. */
void pen_load_prompt(uint64_t seed, int number, int vocab, int32_t *prompt, int count);

#endif
