/*
 * `penstock bench`: speed, latencies and how busy the stages are under a load that is made up, for one or several
 * numbers of requests at a time. See load.h for the load and load_summary.h for what is measured.
 */
#include "balance.h"
#include "command.h"
#include "job.h"
#include "load_simulate.h"
#include "load_summary.h"
#include "plan_json.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A stage that had its core for less of its busy time than this was waiting for it. */
#define CPU_SHARE_LEAST 0.95
enum { REQUESTS_PER_STREAM = 8 };

typedef struct bench_state {
    const pen_options *options;
    const pen_session *session;
    json_t *runs;           /* --json */
    FILE *stages, *balance; /* else: lines of the tables of stages and replicas, for later */
} bench_state;

static int largest(const pen_int_list *list) {
    int most = 0;
    for (int i = 0; i < list->count; i++) most = list->values[i] > most ? list->values[i] : most;
    return most;
}

static int least(int a, int b) {
    return a < b ? a : b;
}

/* The load of a run. */
static pen_load load_of(const pen_options *options, int run) {
    int concurrency = options->concurrency.values[run], requests = options->num_prompts;
    if (options->phases)
        requests = concurrency;
    else if (requests == 0)
        requests = REQUESTS_PER_STREAM * concurrency;
    return (pen_load){.prompt_tokens = options->prompt_tokens,
                      .output_cycle = options->output_tokens.values,
                      .output_cycle_count = options->output_tokens.count,
                      .length_spread = options->length_spread,
                      .concurrency = concurrency,
                      .requests = requests,
                      .request_rate = options->request_rate,
                      .burstiness = options->burstiness,
                      .phases = options->phases,
                      .seed = options->seed + (uint64_t)run,
                      .time_scale = options->config.time_scale};
}

/* Prompt and output of the longest request of all runs. */
static void find_longest(const pen_options *options, int *prompt_tokens, int *output_tokens) {
    *prompt_tokens = *output_tokens = 0;
    for (int run = 0; run < options->concurrency.count; run++) {
        pen_load load = load_of(options, run);
        for (int i = 0; i < load.requests; i++) {
            int prompt, output;
            pen_load_lengths(&load, i, &prompt, &output);
            if (prompt - *prompt_tokens <= *output_tokens - output) continue;
            *prompt_tokens = prompt;
            *output_tokens = output;
        }
    }
}

static pen_status prepare(void *context, const pen_session *session, pen_tokenizer *tokenizer, pen_session_need *need) {
    (void)tokenizer;
    bench_state *bench = context;
    const pen_options *options = bench->options;
    bench->session = session;
    int max_len = pen_session_max_len(session), prompt_tokens, output_tokens;
    find_longest(options, &prompt_tokens, &output_tokens);
    if (output_tokens > max_len - prompt_tokens)
        return pen_fail(PEN_USAGE,
                        "prompts of %d tokens and outputs of %d are wanted, but the longest sequence allowed is %d"
                        " tokens (the model's context is %d)",
                        prompt_tokens, output_tokens, max_len, pen_model_hparams(pen_session_model(session))->context);
    int sequences = least(largest(&options->concurrency), options->config.max_num_seqs); /* the rest waits */
    *need =
        (pen_session_need){.context = prompt_tokens + output_tokens, .logit_rows = sequences, .sequences = sequences};
    return PEN_OK;
}

/* ---- As JSON ----------------------------------------------------------------------------------------------------- */

static json_t *json_statistics(const pen_statistics *s) {
    return json_pack("{s:f, s:f, s:f, s:f}", "mean", s->mean, "p50", s->p50, "p90", s->p90, "p99", s->p99);
}

static json_t *json_stages(const pen_metrics *stages, int count) {
    json_t *list = json_array();
    for (int s = 0; s < count; s++) {
        const pen_metrics *m = &stages[s];
        json_array_append_new(list,
                              json_pack("{s:f, s:f, s:f, s:f, s:f, s:I, s:I}", "busy_s", m->seconds[PEN_BUSY],
                                        "wait_recv_s", m->seconds[PEN_WAIT_RECEIVE], "wait_send_s",
                                        m->seconds[PEN_WAIT_SEND], "idle_s", m->seconds[PEN_IDLE], "busy_cpu_s",
                                        m->busy_cpu_s, "steps", (json_int_t)m->steps, "rows", (json_int_t)m->rows));
    }
    return list;
}

static json_t *json_replicas(const pen_balance *balance, int replicas) {
    json_t *list = json_array();
    for (int r = 0; r < replicas; r++) {
        const pen_replica_summary *s = &balance->replicas[r];
        json_array_append_new(list,
                              json_pack("{s:f, s:f, s:i, s:I, s:f, s:f, s:i, s:o, s:f}", "utilisation", s->utilisation,
                                        "tokens", s->tokens, "requests", s->requests, "stolen", (json_int_t)s->stolen,
                                        "busy_s", s->busy_s, "queue_mean", s->queue_mean, "queue_most", s->queue_most,
                                        "e2el_ms", json_statistics(&s->e2el), "steal_core_share", s->steal_share));
    }
    return list;
}

/* One number, or a list of several. */
static json_t *json_output_tokens(const pen_int_list *lengths) {
    if (lengths->count == 1) return json_integer(lengths->values[0]);
    json_t *list = json_array();
    for (int i = 0; i < lengths->count; i++) json_array_append_new(list, json_integer(lengths->values[i]));
    return list;
}

/* JSON knows no infinity. */
static json_t *json_factor(double factor) {
    return isfinite(factor) ? json_real(factor) : json_null();
}

static json_t *json_phases(const pen_load_log *log) {
    static const char *const names[] = {[PEN_LOAD_PROMPTS] = "prompts", [PEN_LOAD_OUTPUTS] = "outputs"};
    json_t *phases = json_object();
    for (int i = 0; i < log->span_count; i++) {
        const pen_load_span *span = &log->spans[i];
        pen_efficiency e = pen_metrics_efficiency(span->stages, log->stages);
        json_object_set_new(phases, names[i],
                            json_pack("{s:f, s:f, s:f, s:f, s:o}", "seconds",
                                      (double)(span->end_ns - span->begin_ns) * 1e-9, "split_efficiency", e.split,
                                      "schedule_efficiency", e.schedule, "pipeline_efficiency", e.pipeline, "stages",
                                      json_stages(span->stages, log->stages)));
    }
    return phases;
}

static json_t *json_whole(const pen_load_whole *w) {
    return json_pack("{s:f, s:f, s:o, s:o, s:o, s:o}", "seconds", w->seconds, "total_tokens_per_s",
                     w->total_tokens_per_s, "ttft_ms", json_statistics(&w->ttft), "e2el_ms", json_statistics(&w->e2el),
                     "predicted_ttft_ms", json_statistics(&w->predicted_ttft), "prediction_error_ms",
                     json_statistics(&w->prediction_error));
}

static void add_speeds(json_t *object, const pen_load_summary *s) {
    json_object_set_new(object, "prompt_tokens_per_s", json_real(s->prompt_tokens_per_s));
    json_object_set_new(object, "decode_tokens_per_s", json_real(s->decode_tokens_per_s));
    json_object_set_new(object, "total_tokens_per_s", json_real(s->total_tokens_per_s));
    json_object_set_new(object, "ttft_ms", json_statistics(&s->ttft));
    json_object_set_new(object, "tpot_ms", json_statistics(&s->tpot));
    json_object_set_new(object, "itl_ms", json_statistics(&s->itl));
    json_object_set_new(object, "e2el_ms", json_statistics(&s->e2el));
    json_object_set_new(object, "split_efficiency", json_real(s->efficiency.split));
    json_object_set_new(object, "schedule_efficiency", json_real(s->efficiency.schedule));
    json_object_set_new(object, "pipeline_efficiency", json_real(s->efficiency.pipeline));
}

static json_t *json_run(const pen_load_log *log, const pen_load_summary *s, const pen_balance *balance,
                        const pen_forecast *forecast, json_t *simulated, const pen_metrics *stages) {
    json_t *run = json_pack("{s:i, s:i, s:f, s:b}", "concurrency", log->load.concurrency, "requests",
                            log->load.requests, "seconds", s->seconds, "steady", log->steady);
    if (!run) return NULL;
    json_object_set_new(run, "predicted",
                        json_pack("{s:f, s:f}", "prompt_tokens_per_s", forecast->prompt_tokens_per_s,
                                  "decode_tokens_per_s", forecast->decode_tokens_per_s));
    add_speeds(run, s);
    json_object_set_new(run, "whole", json_whole(&s->whole));
    json_object_set_new(run, "stages", json_stages(stages, log->replicas * log->stages));
    json_object_set_new(run, "replicas", json_replicas(balance, log->replicas));
    json_object_set_new(run, "load_balance_factor", json_factor(balance->factor));
    json_object_set_new(run, "worst_window_factor",
                        balance->windows ? json_factor(balance->worst_factor) : json_null());
    json_object_set_new(run, "windows", json_integer(balance->windows));
    json_object_set_new(run, "expired", json_integer(s->expired));
    if (log->load.phases) json_object_set_new(run, "phases", json_phases(log));
    if (simulated) json_object_set_new(run, "simulated", simulated);
    return run;
}

/* ---- As a table -------------------------------------------------------------------------------------------------- */

/* In the manner of llama-bench. Speeds are measured, and in brackets what the plan promises. */
static void print_title(const bench_state *bench, int stages) {
    const pen_options *options = bench->options;
    const pen_config *config = &options->config;
    int replicas = pen_session_replicas(bench->session);
    if (replicas > 1) printf("%d replicas of ", replicas);
    printf("%s, %d stage%s, prompts of %d tokens, outputs of ", config->model[0] ? config->model : config->device,
           stages, stages == 1 ? "" : "s", options->prompt_tokens);
    for (int i = 0; i < options->output_tokens.count; i++)
        printf("%s%d", i ? "/" : "", options->output_tokens.values[i]);
    printf("%s%s%s\n\n", options->output_tokens.count > 1 ? " in turn" : "",
           options->length_spread > 0 ? " on average" : "", options->phases ? ", one after the other" : "");
    puts("| streams | requests |  prompt t/s (plan) |  decode t/s (plan) | TTFT ms p50/p99 |  ITL ms p50/p99 | split | "
         "schedule | pipeline |\n"
         "|--------:|---------:|-------------------:|-------------------:|----------------:|----------------:|------:|"
         "---------:|---------:|");
}

static void print_run(const pen_load_log *log, const pen_load_summary *s, const pen_forecast *forecast) {
    printf("| %7d | %8d | %8.1f (%7.0f) | %8.1f (%7.0f) | %7.1f/%7.1f | %7.2f/%7.2f | %5.3f | %8.3f | %8.3f |\n",
           log->load.concurrency, log->load.requests, s->prompt_tokens_per_s, forecast->prompt_tokens_per_s,
           s->decode_tokens_per_s, forecast->decode_tokens_per_s, s->ttft.p50, s->ttft.p99, s->itl.p50, s->itl.p99,
           s->efficiency.split, s->efficiency.schedule, s->efficiency.pipeline);
    fflush(stdout);
}

/* Where the stages' time went; below all runs, so it is kept until then. */
static void keep_stages(bench_state *bench, const pen_load_log *log, const pen_metrics *stages) {
    for (int s = 0; s < log->replicas * log->stages; s++) {
        const pen_metrics *m = &stages[s];
        fprintf(bench->stages, "| %7d | %5d | %8.3f | %8.3f | %12.3f | %9.3f | %8.3f | %8llu | %8llu |\n",
                log->load.concurrency, s, m->seconds[PEN_BUSY], m->busy_cpu_s, m->seconds[PEN_WAIT_RECEIVE],
                m->seconds[PEN_WAIT_SEND], m->seconds[PEN_IDLE], (unsigned long long)m->steps,
                (unsigned long long)m->rows);
    }
}

/* What each replica did, and how even that was. */
static void keep_replicas(bench_state *bench, const pen_load_log *log, const pen_balance *balance) {
    for (int r = 0; r < log->replicas; r++) {
        const pen_replica_summary *s = &balance->replicas[r];
        fprintf(bench->balance, "| %7d | %7d | %8d | %6llu | %11.3f | %10.2f/%4d | %8.0f/%8.0f |\n",
                log->load.concurrency, r, s->requests, (unsigned long long)s->stolen, s->utilisation, s->queue_mean,
                s->queue_most, s->e2el.mean, s->e2el.p99);
    }
    fprintf(bench->balance, "%d streams: load-balance factor %.3f", log->load.concurrency, balance->factor);
    if (balance->windows)
        fprintf(bench->balance, ", at most %.3f in the %d windows of 5 s with requests waiting", balance->worst_factor,
                balance->windows);
    fputc('\n', bench->balance);
}

static void print_replicas(const char *kept) {
    printf("\n| streams | replica | requests | stolen | utilisation | queue mean/max | latency ms mean/p99 |\n"
           "|--------:|--------:|---------:|-------:|------------:|---------------:|--------------------:|\n%s",
           kept);
}

static void print_stages(const char *kept) {
    printf("\n| streams | stage |   busy s | of a CPU | wait receive | wait send |   idle s |    steps |     rows |\n"
           "|--------:|------:|---------:|---------:|-------------:|----------:|---------:|---------:|---------:|\n%s",
           kept);
}

/* ---- The runs ---------------------------------------------------------------------------------------------------- */

/* Busy time is wall time; on a core that others use too it says less about us. */
static void check_busy(const pen_metrics *stages, int count) {
    for (int s = 0; s < count; s++) {
        double busy = stages[s].seconds[PEN_BUSY], cpu = stages[s].busy_cpu_s;
        if (stages[s].cpu_tells && cpu < CPU_SHARE_LEAST * busy)
            PEN_WARN("stage %d was busy for %.2f s and had a core for %.2f s of them: others use its core, and what is "
                     "measured is theirs as well",
                     s, busy, cpu);
    }
}

static pen_status simulate_session(const void *session, const pen_simulated_watch *watch,
                                   pen_simulated_request *requests, int count, pen_simulation *simulation) {
    return pen_session_simulate(session, watch, requests, count, simulation);
}

/* The same load in the simulator; NULL where nothing is known of other microbatches than the plan's. */
static json_t *json_simulated(const bench_state *bench, const pen_load_log *log) {
    pen_load_log simulated;
    pen_load_summary summary;
    json_t *object = NULL;
    if (log->load.phases) return NULL;
    pen_status status = pen_load_simulate(&log->load, simulate_session, bench->session, log->stages, &simulated);
    if (status == PEN_OK) status = pen_load_summarise(&simulated, &summary);
    if (status == PEN_OK) {
        object = json_pack("{s:f, s:o}", "seconds", summary.seconds, "stages",
                           json_stages(simulated.spans[0].stages, log->stages));
        add_speeds(object, &summary);
    }
    pen_load_log_free(&simulated);
    return object;
}

/* `summary` and `balance` are the log's. */
static void report_log(bench_state *bench, const pen_load_log *log, const pen_load_summary *summary,
                       const pen_balance *balance, const pen_metrics *stages) {
    bool apart = log->load.phases || pen_load_is_serial(&log->load);
    pen_forecast forecast = pen_session_forecast(bench->session, log->load.concurrency, apart);
    if (bench->runs) {
        json_t *simulated = log->replicas == 1 ? json_simulated(bench, log) : NULL;
        json_array_append_new(bench->runs, json_run(log, summary, balance, &forecast, simulated, stages));
    } else {
        print_run(log, summary, &forecast);
        keep_stages(bench, log, stages);
        if (log->replicas > 1) keep_replicas(bench, log, balance);
    }
}

static pen_status report(bench_state *bench, const pen_load_log *log) {
    int count = log->replicas * log->stages;
    pen_load_summary summary;
    pen_balance balance = {0};
    pen_metrics *stages = calloc((size_t)count, sizeof *stages);
    pen_status status = stages ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory for %d stages", count);
    if (status == PEN_OK) status = pen_load_summarise(log, &summary);
    if (status == PEN_OK) status = pen_balance_of(log, &balance);
    if (status == PEN_OK) {
        pen_load_total(log, stages);
        check_busy(stages, count);
        report_log(bench, log, &summary, &balance, stages);
    }
    pen_balance_free(&balance);
    free(stages);
    return status;
}

static pen_status run_once(bench_state *bench, pen_front *front, int run) {
    pen_load load = load_of(bench->options, run);
    pen_load_log log;
    pen_status status = pen_load_run(&load, front, pen_model_hparams(pen_session_model(bench->session))->vocab, &log);
    if (status == PEN_OK) status = report(bench, &log);
    pen_load_log_free(&log);
    return status;
}

static pen_status run_all(bench_state *bench, pen_front *front) {
    for (int run = 0; run < bench->options->concurrency.count; run++) PEN_TRY(run_once(bench, front, run));
    return PEN_OK;
}

static pen_status work_as_json(bench_state *bench, pen_front *front) {
    const pen_options *options = bench->options;
    char *plan;
    bench->runs = json_array();
    PEN_TRY(run_all(bench, front));
    PEN_TRY(pen_plan_to_json(pen_session_solved(bench->session), &plan));
    json_t *object = json_pack("{s:i, s:o, s:f, s:o, s:O}", "prompt_tokens", options->prompt_tokens, "output_tokens",
                               json_output_tokens(&options->output_tokens), "length_spread", options->length_spread,
                               "plan", json_loads(plan, 0, NULL), "runs", bench->runs);
    free(plan);
    bool written =
        object && json_dumpf(object, stdout, JSON_COMPACT) == 0 && fputc('\n', stdout) != EOF && fflush(stdout) == 0;
    json_decref(object);
    return written ? PEN_OK : pen_fail(PEN_IO, "standard output cannot be written");
}

static pen_status work(void *context, pen_front *front) {
    bench_state *bench = context;
    if (bench->options->json) return work_as_json(bench, front);
    char *stages = NULL, *balance = NULL;
    size_t length;
    pen_status status = PEN_OK;
    bench->stages = open_memstream(&stages, &length);
    bench->balance = open_memstream(&balance, &length);
    if (!bench->stages || !bench->balance) status = pen_fail(PEN_NO_MEMORY, "no memory for a table");
    if (status == PEN_OK) {
        print_title(bench, pen_session_solved(bench->session)->stage_count);
        status = run_all(bench, front);
    }
    if (bench->stages) fclose(bench->stages);
    if (bench->balance) fclose(bench->balance);
    if (status == PEN_OK) print_stages(stages);
    if (status == PEN_OK && balance[0]) print_replicas(balance);
    free(stages);
    free(balance);
    PEN_TRY(status);
    return fflush(stdout) == 0 && !ferror(stdout) ? PEN_OK : pen_fail(PEN_IO, "standard output cannot be written");
}

pen_status pen_cmd_bench(const pen_options *options) {
    bench_state bench = {.options = options};
    pen_job job = {.prepare = prepare, .work = work, .context = &bench, .measures = true};
    pen_status status = pen_job_run(options, &job);
    json_decref(bench.runs);
    return status;
}
