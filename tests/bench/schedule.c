/*
 * What the schedule makes of a load, in the simulator (runtime/simulate.h): efficiencies, speed and latencies of ours
 * and of the plain one (fixed chunks, undivided decode) beside each other, for several numbers of stages.
 *
 *     bench_schedule [--json] [--stages 2,4,8,…] PROFILE…      (profiles as --device sim: has them; sim_profile.h)
 *
 * Loads, all of them seeded and none with a clock:
 * - steady: closed, STREAMS_EACH sequences for each microbatch in flight, the next when one ends; counted between the
 *   first end and the last beginning.
 * - poisson: log-normal lengths at random times, 80 % of what the plan can do; between the same two moments.
 * - decode: as many streams, short prompts; between the last first token and the first end.
 * - long: one prompt of 4,000 tokens amid 16 decodes: its time to the first token, and what the others notice between
 *   its arrival and then.
 */
#include "load.h"
#include "plan_json.h"
#include "sim_profile.h"
#include "simulate.h"
#include "statistics.h"
#include "step_cost.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    STREAMS_EACH = 8,
    ROWS = 512,
    CONTEXT = 8192,
    SLOTS = 4,
    STAGES_MOST = 128,
    LISTED_MOST = 16,
    LONG_PROMPT = 4000,
    LONG_AMID = 16,
    OVERHEAD_LEAST = 4,
};
#define SPREAD 0.8 /* of the lengths' logarithms */

typedef enum load_kind { STEADY, POISSON, DECODE, LONG, LOADS } load_kind;
static const char *const load_names[] = {
    [STEADY] = "steady", [POISSON] = "poisson", [DECODE] = "decode", [LONG] = "long"};

/* A profile split for some number of stages. */
typedef struct machine {
    pen_plan *plan;
    const pen_model *model;
    const pen_profile *times;
    pen_step_cost *cost; /* of the split */
    pen_sim_link link;
    int hidden;
} machine;

/* What a simulation tells of its tokens. */
typedef struct run {
    const machine *machine;
    pen_simulated_request *requests;
    int count, waiting; /* requests, and the first that waits for another's end */
    double *last_ms;    /* [count] when it had its last token */
    int *outputs;       /* [count] */
    double *gaps;       /* [gap_count] between tokens, as far as they end in what is counted */
    double from_ms, to_ms;
    size_t gap_count;
    uint64_t tokens; /* in what is counted */
} run;

typedef struct result {
    double seconds; /* counted */
    double tokens_per_s;
    double rows; /* of a step, on average */
    uint64_t steps;
    pen_efficiency efficiency;
    pen_statistics ttft, itl;
    double itl_most;
} result;

static void check(pen_status status) {
    if (status == PEN_OK) return;
    fprintf(stderr, "bench_schedule: %s\n", pen_last_error());
    exit((int)status);
}

static void *claim(size_t count, size_t size) {
    void *memory = calloc(count + 1, size);
    if (!memory) check(pen_fail(PEN_NO_MEMORY, "no memory for %zu numbers", count));
    return memory;
}

/* ---- The pipeline ------------------------------------------------------------------------------------------------ */

static double stage_ms(void *context, int stage, const pen_simulated_step *step) {
    const machine *m = context;
    double sum = 0;
    for (int u = m->plan->stages[stage].first; u <= m->plan->stages[stage].last; u++)
        sum += pen_profile_unit_ms(m->times, m->model, u, &step->shape);
    return sum;
}

static double slowest_ms(const machine *m, const pen_step_shape *shape) {
    double most = 0;
    for (int s = 0; s < m->plan->stage_count; s++) {
        double sum = 0;
        for (int u = m->plan->stages[s].first; u <= m->plan->stages[s].last; u++)
            sum += pen_profile_unit_ms(m->times, m->model, u, shape);
        most = fmax(most, sum);
    }
    return most;
}

static void on_token(void *context, int request, double at_ms) {
    run *r = context;
    if (at_ms > r->from_ms && at_ms <= r->to_ms) {
        r->tokens++;
        if (r->last_ms[request] > 0) r->gaps[r->gap_count++] = at_ms - r->last_ms[request];
    }
    r->last_ms[request] = at_ms;
    if (++r->outputs[request] == r->requests[request].output && r->waiting < r->count)
        r->requests[r->waiting++].arrival_ms = at_ms;
}

/* ---- Loads ------------------------------------------------------------------------------------------------------- */

/* What a load's requests are like: what the split is for. */
static pen_plan_workload workload_of(load_kind kind, int streams) {
    static const pen_plan_workload each[] = {[STEADY] = {.prompt_tokens = 128, .output_tokens = 64},
                                             [POISSON] = {.prompt_tokens = 256, .output_tokens = 64},
                                             [DECODE] = {.prompt_tokens = 16, .output_tokens = 128},
                                             [LONG] = {.prompt_tokens = 16, .output_tokens = 400}};
    pen_plan_workload workload = each[kind];
    workload.max_num_seqs = streams;
    return workload;
}

/* Requests a second that the plan can do: all sequences a token a period. */
static double capacity(const machine *m, int sequences) {
    double prompt = m->plan->workload.prompt_tokens, output = m->plan->workload.output_tokens;
    int in_flight = m->plan->stage_count + 1;
    double decodes = (double)sequences / in_flight;
    pen_step_shape shape = {.rows = decodes * (1 + prompt / output),
                            .logit_rows = decodes * (1 + 1 / output),
                            .decodes = decodes,
                            .decode_context = prompt + output / 2,
                            .prompt_context = prompt / 2};
    double ms = slowest_ms(m, &shape);
    return 1000 * sequences / (in_flight * ms * output);
}

/* The requests of a load for so many streams. */
static void make_load(load_kind kind, int streams, run *r) {
    const pen_plan *plan = r->machine->plan;
    pen_load load = {.prompt_tokens = plan->workload.prompt_tokens,
                     .output_tokens = plan->workload.output_tokens,
                     .length_spread = kind == POISSON ? SPREAD : 0,
                     .requests = kind == LONG || kind == DECODE ? streams : 4 * streams,
                     .request_rate = 0.8 * capacity(r->machine, streams),
                     .burstiness = 1,
                     .seed = 1};
    int count = r->count = load.requests;
    int64_t *arrivals = claim((size_t)count, sizeof *arrivals);
    pen_step_shape shape = {STREAMS_EACH, STREAMS_EACH, STREAMS_EACH, 100, 0};
    double token_ms = slowest_ms(r->machine, &shape) * plan->stage_count;
    r->requests = claim((size_t)count, sizeof *r->requests);
    r->waiting = kind == STEADY ? streams : count;
    if (kind == POISSON) pen_load_arrivals(&load, arrivals);
    for (int i = 0; i < count; i++) {
        pen_simulated_request *request = &r->requests[i];
        pen_load_lengths(&load, i, &request->prompt, &request->output);
        request->arrival_ms = (double)arrivals[i] * 1e-6;
        if (kind == STEADY) /* the first wave along one output, so that phases mix */
            request->arrival_ms = i < streams ? token_ms * request->output * i / streams : INFINITY;
    }
    if (kind == LONG)
        r->requests[LONG_AMID] =
            (pen_simulated_request){.arrival_ms = 20 * token_ms, .prompt = LONG_PROMPT, .output = 4};
    free(arrivals);
}

/* What is counted of a load that ran. */
static void choose_window(load_kind kind, run *r) {
    const pen_simulated_request *requests = r->requests;
    double first_end = INFINITY, last_begin = 0, last_first = 0;
    for (int i = 0; i < r->count; i++) {
        first_end = fmin(first_end, requests[i].end_ms);
        last_begin = fmax(last_begin, requests[i].arrival_ms);
        last_first = fmax(last_first, requests[i].first_ms);
    }
    r->from_ms = kind == DECODE ? last_first : kind == LONG ? last_begin : first_end;
    r->to_ms = kind == DECODE ? first_end : kind == LONG ? last_first : last_begin;
}

/* ---- A run ------------------------------------------------------------------------------------------------------- */

/* Splits for a load, as a session does. */
static int split(machine *m, load_kind kind, int stages) {
    int streams = kind == LONG ? LONG_AMID + 1 : (stages + 1) * STREAMS_EACH;
    pen_plan_workload workload = m->plan->workload = workload_of(kind, streams);
    pen_steady steady = pen_profile_steady(workload.prompt_tokens, workload.output_tokens, streams, stages + 1);
    pen_step_shape planned = pen_profile_shape(&steady);
    for (int u = 0; u < m->plan->unit_count; u++)
        m->plan->units[u].time_ms = pen_profile_unit_ms(m->times, m->model, u, &planned);
    check(pen_plan_solve(m->plan, &(pen_plan_options){.stages = stages, .memory = UINT64_C(1) << 50}));
    pen_step_cost_destroy(m->cost);
    check(pen_step_cost_create(m->plan, m->model, m->times, &planned, &m->cost));
    return streams;
}

/* The same twice, because what is counted follows from what happens. */
static result simulate(const machine *m, load_kind kind, int streams, bool plain) {
    int stages = m->plan->stage_count;
    pen_metrics metrics[STAGES_MOST];
    pen_simulation simulation = {.stages = metrics};
    run r = {.machine = m, .to_ms = INFINITY};
    make_load(kind, streams, &r);
    size_t tokens = 0, count = (size_t)r.count;
    for (size_t i = 0; i < count; i++) tokens += (size_t)r.requests[i].output;
    r.last_ms = claim(count, sizeof *r.last_ms);
    r.outputs = claim(count, sizeof *r.outputs);
    r.gaps = claim(tokens, sizeof *r.gaps);
    pen_simulate_options options = {
        .schedule = {.stages = stages,
                     .sequences = streams,
                     .rows = ROWS,
                     .logit_rows = streams,
                     .context = CONTEXT,
                     .cost = plain ? NULL : m->cost},
        .kv = {.count = 1, .blocks = {streams * CONTEXT / PEN_KV_BLOCK}},
        .slots = SLOTS,
        .latency_ms = m->link.latency_ms,
        .ms_per_row = m->link.ms_per_byte * m->hidden * (double)sizeof(float),
        .stage_ms = stage_ms,
        .context = (void *)m,
        .watch = {.on_token = on_token, .context = &r},
    };
    check(pen_simulate(&options, r.requests, r.count, &simulation));
    choose_window(kind, &r);
    options.watch.from_ms = r.from_ms;
    options.watch.to_ms = r.to_ms;
    r.gap_count = r.tokens = 0;
    memset(r.last_ms, 0, count * sizeof *r.last_ms);
    check(pen_simulate(&options, r.requests, r.count, &simulation));

    result got = {.seconds = (r.to_ms - r.from_ms) * 1e-3, .efficiency = pen_metrics_efficiency(metrics, stages)};
    double *first = claim(count, sizeof *first);
    size_t firsts = 0;
    for (size_t i = kind == LONG ? LONG_AMID : 0; i < count; i++) {
        const pen_simulated_request *request = &r.requests[i];
        if (kind == DECODE || (request->first_ms > r.from_ms && request->first_ms <= r.to_ms))
            first[firsts++] = request->first_ms - request->arrival_ms;
    }
    got.ttft = pen_statistics_of(first, firsts);
    for (size_t i = 0; i < r.gap_count; i++) got.itl_most = fmax(got.itl_most, r.gaps[i]);
    got.itl = pen_statistics_of(r.gaps, r.gap_count);
    got.tokens_per_s = (double)r.tokens / got.seconds;
    got.steps = metrics[0].steps;
    got.rows = (double)metrics[0].rows / fmax((double)got.steps, 1);
    free(first);
    free(r.requests);
    free(r.last_ms);
    free(r.outputs);
    free(r.gaps);
    return got;
}

/* ---- Tables ------------------------------------------------------------------------------------------------------ */

static void print(const char *profile, int stages, load_kind kind, bool plain, const result *r, bool json) {
    const char *schedule = plain ? "plain" : "ours";
    if (json)
        printf("{\"profile\": \"%s\", \"stages\": %d, \"load\": \"%s\", \"schedule\": \"%s\", \"schedule_efficiency\": "
               "%.4f, \"split_efficiency\": %.4f, \"pipeline_efficiency\": %.4f, \"tokens_per_s\": %.3f, \"ttft_ms\": "
               "{\"p50\": %.3f, \"p99\": %.3f}, \"itl_ms\": {\"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f}, \"steps\": "
               "%llu, \"rows\": %.2f, \"seconds\": %.3f}\n",
               profile, stages, load_names[kind], schedule, r->efficiency.schedule, r->efficiency.split,
               r->efficiency.pipeline, r->tokens_per_s, r->ttft.p50, r->ttft.p99, r->itl.p50, r->itl.p99, r->itl_most,
               (unsigned long long)r->steps, r->rows, r->seconds);
    else
        printf("| %6d | %-7s | %-5s | %8.3f | %8.3f | %8.3f | %9.2f | %9.0f / %-9.0f | %8.1f / %-8.1f / %-8.1f | %6llu "
               "| %6.1f |\n",
               stages, load_names[kind], schedule, r->efficiency.schedule, r->efficiency.split, r->efficiency.pipeline,
               r->tokens_per_s, r->ttft.p50, r->ttft.p99, r->itl.p50, r->itl.p99, r->itl_most,
               (unsigned long long)r->steps, r->rows);
}

static void bench(const char *path, int stages, bool json) {
    pen_sim_profile *sim;
    pen_profile *times;
    machine m = {0};
    check(pen_sim_profile_read(path, &(pen_place){0}, &sim));
    check(pen_sim_profile_times(sim, &times));
    check(pen_plan_read(path, &m.plan));
    m.model = pen_sim_profile_model(sim);
    m.times = times;
    m.link = pen_sim_profile_link(sim);
    m.hidden = pen_model_hparams(m.model)->hidden;
    if (stages <= m.plan->unit_count && stages <= STAGES_MOST) {
        for (load_kind kind = 0; kind < LOADS; kind++) {
            int streams = split(&m, kind, stages);
            for (int plain = 0; plain <= 1; plain++) {
                result r = simulate(&m, kind, streams, plain);
                print(m.plan->source, stages, kind, plain, &r, json);
            }
        }
    }
    pen_step_cost_destroy(m.cost);
    pen_plan_destroy(m.plan);
    pen_profile_destroy(times);
    pen_sim_profile_destroy(sim);
}

int main(int argc, char **argv) {
    int stages[LISTED_MOST] = {2, 4, 8, 16, 32, 64}, listed = 6, i = 1;
    bool json = false;
    for (; i < argc && argv[i][0] == '-'; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            json = true;
        } else if (strcmp(argv[i], "--stages") == 0 && i + 1 < argc) {
            listed = 0;
            for (char *word = strtok(argv[++i], ","); word && listed < LISTED_MOST; word = strtok(NULL, ","))
                stages[listed++] = atoi(word);
        } else {
            i = argc;
        }
    }
    if (i >= argc) {
        fprintf(stderr, "usage: bench_schedule [--json] [--stages N,N,…] PROFILE…\n");
        return 2;
    }
    for (; i < argc; i++) {
        if (!json)
            printf(
                "\n%s\n\n| stages | load    | by    | schedule |    split | pipeline |  tokens/s |   TTFT ms p50 / p99 "
                "  |     ITL ms p50 / p99 / max     |  steps | rows/s |\n|-------:|---------|-------|---------:|-----"
                "----:|---------:|----------:|----------------------:|-------------------------------:|-------:|----"
                "---:|\n",
                argv[i]);
        for (int s = 0; s < listed; s++) bench(argv[i], stages[s], json);
    }
    return 0;
}
