/*
 * Runs requests of exact lengths through a session on any device and simulates the same ones: measurement and
 * prediction side by side as one JSON object on stdout. All requests are there from the start.
 *
 *   sim_run [--device DEVICE] [--model MODEL] [--requests N] [--prompt P] [--output G] [--sequences N] [--rows R]
 *           [--time-scale X] [--memory BYTES] [--method M]
 */
#include "clock.h"
#include "log.h"
#include "session.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct task {
    pen_config config;
    int requests, prompt, output, sequences;
} task;

typedef struct outcome {
    const task *task;
    int number, tokens;
    int64_t first_ns, end_ns;
    uint64_t hash; /* FNV over the tokens */
} outcome;

static task parse(int argc, char **argv) {
    task t = {.config = {.device = "auto",
                         .isa = "auto",
                         .link = "auto",
                         .method = "dp",
                         .cache = "",
                         .time_scale = 1,
                         .workload_prompt = 64,
                         .workload_output = 32,
                         .log_level = PEN_LOG_WARN},
              .requests = 8,
              .prompt = 64,
              .output = 32,
              .sequences = 8};
    static const struct option table[] = {{"device", 1, 0, 'd'}, {"model", 1, 0, 'm'},      {"requests", 1, 0, 'n'},
                                          {"prompt", 1, 0, 'p'}, {"output", 1, 0, 'g'},     {"sequences", 1, 0, 'q'},
                                          {"rows", 1, 0, 'r'},   {"time-scale", 1, 0, 'x'}, {"memory", 1, 0, 'M'},
                                          {"method", 1, 0, 'e'}, {"threads", 1, 0, 't'},    {0, 0, 0, 0}};
    for (int c; (c = getopt_long(argc, argv, "", table, NULL)) != -1;) switch (c) {
        case 'd': snprintf(t.config.device, sizeof t.config.device, "%s", optarg); break;
        case 'm': snprintf(t.config.model, sizeof t.config.model, "%s", optarg); break;
        case 'n': t.requests = atoi(optarg); break;
        case 'p': t.prompt = t.config.workload_prompt = atoi(optarg); break;
        case 'g': t.output = t.config.workload_output = atoi(optarg); break;
        case 'q': t.sequences = t.config.max_num_seqs = atoi(optarg); break;
        case 'r': t.config.max_num_batched_tokens = atoi(optarg); break;
        case 'x': t.config.time_scale = atof(optarg); break;
        case 'M': t.config.memory = strtoull(optarg, NULL, 10); break;
        case 'e': snprintf(t.config.method, sizeof t.config.method, "%s", optarg); break;
        case 't': t.config.threads = atoi(optarg); break;
        default: exit(PEN_USAGE);
        }
    return t;
}

/* Lengths differ a little, so that phases mix. */
static int prompt_of(const task *t, int request) {
    return t->prompt + 3 * (request % 5);
}

static bool on_token(void *context, int index, int position, const pen_choice *choice) {
    outcome *o = context;
    (void)index, (void)position;
    o->end_ns = pen_clock_ns();
    if (o->tokens++ == 0) o->first_ns = o->end_ns;
    o->hash = (o->hash ^ (uint64_t)choice->token) * 0x100000001b3u;
    return true;
}

static pen_status submit_all(pen_engine *engine, const task *t, outcome *outcomes) {
    for (int r = 0; r < t->requests; r++) {
        int32_t prompt[4096] = {0};
        for (int i = 0; i < prompt_of(t, r); i++) prompt[i] = (r + i) % 100;
        outcomes[r] = (outcome){.task = t, .number = r, .hash = 0xcbf29ce484222325u};
        pen_request request = {.prompt = prompt,
                               .prompt_count = prompt_of(t, r),
                               .max_tokens = t->output,
                               .pick = {.seed = 7 + (uint64_t)r},
                               .on_token = on_token,
                               .context = &outcomes[r]};
        PEN_TRY(pen_engine_submit(engine, &request, NULL));
    }
    return PEN_OK;
}

static void print(const char *name, double makespan_ms, double ttft_ms, double tpot_ms, pen_efficiency e) {
    printf("\"%s\": {\"makespan_ms\": %.3f, \"ttft_ms\": %.3f, \"tpot_ms\": %.3f, \"split\": %.4f, \"schedule\": %.4f, "
           "\"pipeline\": %.4f}",
           name, makespan_ms, ttft_ms, tpot_ms, e.split, e.schedule, e.pipeline);
}

static pen_status lead(pen_session *session, const task *t, outcome *outcomes, pen_simulated_request *predicted,
                       pen_metrics *metrics) {
    pen_engine *engine = pen_session_engine(session);
    int stages = pen_session_solved(session)->stage_count;
    double scale = t->config.time_scale, ttft = 0, tpot = 0, end = 0;
    PEN_TRY(pen_engine_lap(engine)); /* what came before does not count */
    int64_t begin = pen_clock_ns();
    PEN_TRY(submit_all(engine, t, outcomes));
    PEN_TRY(pen_engine_run(engine));
    PEN_TRY(pen_engine_lap(engine));
    PEN_TRY(pen_engine_metrics(engine, metrics));
    uint64_t hash = 0;
    for (int r = 0; r < t->requests; r++) {
        const outcome *o = &outcomes[r];
        hash = hash * 31 + o->hash;
        ttft += (double)(o->first_ns - begin) * 1e-6 / scale / t->requests;
        tpot += (double)(o->end_ns - o->first_ns) * 1e-6 / scale / (t->output > 1 ? t->output - 1 : 1) / t->requests;
        if ((double)(o->end_ns - begin) * 1e-6 / scale > end) end = (double)(o->end_ns - begin) * 1e-6 / scale;
    }
    pen_engine_counts counts = pen_engine_count(engine);
    printf("{\"stages\": %d, \"tokens_hash\": \"%016" PRIx64 "\", \"full_ms\": %.3f, \"speed\": %.4f, ", stages, hash,
           counts.full_ms, counts.full_ms > 0 ? counts.planned_ms / counts.full_ms : 0);
    print("measured", end, ttft, tpot, pen_metrics_efficiency(metrics, stages));

    for (int r = 0; r < t->requests; r++)
        predicted[r] = (pen_simulated_request){.prompt = prompt_of(t, r), .output = t->output};
    pen_simulation simulation = {.stages = metrics};
    int64_t since = pen_clock_ns();
    PEN_TRY(pen_session_simulate(session, NULL, predicted, t->requests, &simulation));
    double took_ms = (double)(pen_clock_ns() - since) * 1e-6;
    ttft = tpot = 0;
    for (int r = 0; r < t->requests; r++) {
        ttft += predicted[r].first_ms / t->requests;
        tpot += (predicted[r].end_ms - predicted[r].first_ms) / (t->output > 1 ? t->output - 1 : 1) / t->requests;
    }
    printf(", ");
    print("predicted", simulation.makespan_ms, ttft, tpot, pen_metrics_efficiency(metrics, stages));
    printf(", \"steps\": %" PRIu64 ", \"simulated_in_ms\": %.3f}\n", simulation.steps, took_ms);
    return pen_engine_stop(engine);
}

static pen_status start(pen_world *world, const task *t, pen_session **session) {
    pen_session_need need = {
        .context = prompt_of(t, 4) + t->output, .logit_rows = t->sequences, .sequences = t->sequences};
    PEN_TRY(pen_session_open(world, &t->config, NULL, NULL, session));
    PEN_TRY(pen_session_plan(*session, PEN_OK, &need));
    return pen_session_load(*session);
}

int main(int argc, char **argv) {
    task t = parse(argc, argv);
    pen_world *world = NULL;
    pen_session *session = NULL;
    pen_status status = pen_world_create(&world);
    if (status != PEN_OK) return (int)status;
    bool first = pen_world_rank(world) == 0, together = true;
    pen_log_init(PEN_LOG_WARN, pen_world_rank(world));
    outcome *outcomes = calloc((size_t)t.requests, sizeof *outcomes);
    pen_simulated_request *predicted = calloc((size_t)t.requests, sizeof *predicted);
    pen_metrics *metrics = calloc((size_t)pen_world_size(world), sizeof *metrics);
    status = start(world, &t, &session);
    if (status == PEN_OK) {
        together = false;
        status =
            first ? lead(session, &t, outcomes, predicted, metrics) : pen_engine_serve(pen_session_engine(session));
    }
    if (status != PEN_OK && first) fprintf(stderr, "penstock: %s\n", pen_last_error());
    if (status != PEN_OK && !together) pen_world_abort(world, status);
    pen_session_close(session);
    pen_world_destroy(world);
    free(outcomes);
    free(predicted);
    free(metrics);
    return (int)status;
}
