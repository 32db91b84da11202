/* What every command that runs a model has in common; see job.h. */
#include "job.h"

#include "clock.h"
#include "help.h"
#include "log.h"
#include "report.h"
#include "trace_file.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A leader answers within a step; a stage of its replica that does not is for the leader to miss first. */
#define PATIENCE 1.5

/* ---- The text ---------------------------------------------------------------------------------------------------- */

static pen_status read_all(FILE *file, const char *name, char **text, size_t *length) {
    size_t capacity = 1 << 16, used = 0;
    char *data = NULL;
    for (;;) {
        char *larger = realloc(data, capacity);
        if (!larger) {
            free(data);
            return pen_fail(PEN_NO_MEMORY, "%s: no memory for more than %zu bytes of text", name, used);
        }
        data = larger;
        used += fread(data + used, 1, capacity - used, file);
        if (used < capacity) break;
        capacity *= 2;
    }
    if (ferror(file)) {
        free(data);
        return pen_fail(PEN_IO, "%s: %s", name, strerror(errno));
    }
    *text = data;
    *length = used;
    return PEN_OK;
}

pen_status pen_job_text(const pen_options *options, char **text, size_t *length) {
    if (options->prompt) {
        *text = strdup(options->prompt);
        *length = strlen(options->prompt);
        return *text ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory for the prompt");
    }
    if (!options->file) return pen_fail(PEN_USAGE, "no text given: use -p TEXT or -f FILE");
    if (strcmp(options->file, "-") == 0) return read_all(stdin, "standard input", text, length);
    FILE *file = fopen(options->file, "rb");
    if (!file) return pen_fail(PEN_IO, "%s: %s", options->file, strerror(errno));
    pen_status status = read_all(file, options->file, text, length);
    fclose(file);
    return status;
}

/* ---- Progress ---------------------------------------------------------------------------------------------------- */

/* One line that is rewritten on a terminal; elsewhere one plain line when a phase is through. */
typedef struct progress_line {
    bool terminal;
    int64_t next_ns, since_ns;
    pen_phase phase;
    bool open; /* a line on the terminal is not ended */
} progress_line;

static void progress(void *context, pen_phase phase, uint64_t done, uint64_t total) {
    progress_line *display = context;
    int64_t now = pen_clock_ns();
    if (phase != display->phase || !display->since_ns) {
        display->phase = phase;
        display->since_ns = now;
    }
    bool complete = done >= total;
    if (!complete && (!display->terminal || now < display->next_ns)) return;
    display->next_ns = now + 100 * 1000000;
    double seconds = (double)(now - display->since_ns) / 1e9;
    const char *begin = display->terminal ? "\r\033[K" : "", *end = display->terminal && !complete ? "" : "\n";
    if (phase == PEN_PHASE_PROFILE)
        fprintf(stderr, "%sprofiling the layers: %d of %d kinds, %.1f s%s", begin, (int)done, (int)total, seconds, end);
    else
        fprintf(stderr, "%sloading: %.0f of %.0f MB, %.1f s, %.1f GB/s%s", begin, (double)done / 1e6,
                (double)total / 1e6, seconds, (double)done / 1e9 / fmax(seconds, 1e-3), end);
    display->open = display->terminal && !complete;
}

static void end_line(progress_line *display) {
    if (display->open) fputc('\n', stderr);
    display->open = false;
}

/* ---- The run ----------------------------------------------------------------------------------------------------- */

/* Models may have more rows than tokens, which pads them; a token without a row is another model's. */
static pen_status open_tokenizer(const pen_model *model, pen_tokenizer **tokenizer) {
    const pen_gguf *gguf = pen_model_gguf(model);
    int rows = pen_model_hparams(model)->vocab;
    if (!gguf) return pen_tokenizer_create_ids(rows, tokenizer);
    PEN_TRY(pen_tokenizer_open(gguf, tokenizer));
    int tokens = pen_tokenizer_vocab_size(*tokenizer);
    if (tokens <= rows) return PEN_OK;
    return pen_fail(PEN_BAD_INPUT, "%s: the vocabulary has %d tokens, token_embd.weight has %d rows",
                    pen_gguf_path(gguf), tokens, rows);
}

/* What the stages took for the plan's microbatch. */
static pen_status show_stages(const pen_session *session, const pen_front *front) {
    int replicas = pen_front_replicas(front), stages = pen_front_stages(front);
    double *ms = calloc((size_t)(replicas * stages), sizeof *ms);
    if (!ms) return pen_fail(PEN_NO_MEMORY, "no memory for %d stages", replicas * stages);
    pen_front_measured(front, ms);
    pen_status status = PEN_OK;
    for (int r = 0; r < replicas && status == PEN_OK; r++) {
        if (replicas > 1) fprintf(stderr, "\nreplica %d", r);
        status = pen_report_measured(stderr, pen_session_solved_of(session, r), ms + r * stages);
    }
    free(ms);
    return status;
}

static void print_metrics(const pen_metrics *metrics, int replicas, int stages) {
    fprintf(stderr, "\n  %sstage     busy s   wait receive   wait send    idle s    steps     rows\n",
            replicas > 1 ? "replica " : "");
    for (int i = 0; i < replicas * stages; i++) {
        const pen_metrics *m = &metrics[i];
        if (replicas > 1) fprintf(stderr, "  %7d", i / stages);
        fprintf(stderr, "  %5d %10.3f %14.3f %11.3f %9.3f %8llu %8llu\n", i % stages, m->seconds[PEN_BUSY],
                m->seconds[PEN_WAIT_RECEIVE], m->seconds[PEN_WAIT_SEND], m->seconds[PEN_IDLE],
                (unsigned long long)m->steps, (unsigned long long)m->rows);
    }
    for (int r = 0; r < replicas; r++) {
        pen_efficiency e = pen_metrics_efficiency(metrics + r * stages, stages);
        if (replicas > 1) fprintf(stderr, "  replica %d:", r);
        fprintf(stderr, "  split efficiency %.1f %%, schedule efficiency %.1f %%, pipeline efficiency %.1f %%\n",
                100 * e.split, 100 * e.schedule, 100 * e.pipeline);
    }
}

static pen_status show_metrics(pen_front *front) {
    int replicas = pen_front_replicas(front), stages = pen_front_stages(front);
    pen_metrics *metrics = calloc((size_t)(replicas * stages), sizeof *metrics);
    if (!metrics) return pen_fail(PEN_NO_MEMORY, "no memory for %d stages", replicas * stages);
    pen_status status = pen_front_lap(front);
    if (status == PEN_OK) status = pen_front_metrics(front, metrics);
    if (status == PEN_OK) print_metrics(metrics, replicas, stages);
    free(metrics);
    return status;
}

/* Rank 0, with everything loaded. */
static pen_status lead(const pen_session *session, const pen_job *job, pen_front *front) {
    PEN_TRY(show_stages(session, front));
    PEN_TRY(pen_front_lap(front)); /* what came before does not count */
    PEN_TRY(job->work(job->context, front));
    if (!job->measures) PEN_TRY(show_metrics(front));
    return pen_front_stop(front);
}

static pen_status make_front(pen_world *world, const pen_session *session, pen_mail *mail, pen_replica *local,
                             pen_front **front) {
    int replicas = pen_session_replicas(session);
    const pen_config *config = pen_session_config(session);
    pen_token_cost *costs = calloc((size_t)replicas, sizeof *costs);
    int *slots = calloc((size_t)replicas, sizeof *slots);
    pen_status status = costs && slots ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory for %d replicas", replicas);
    for (int r = 0; r < replicas && status == PEN_OK; r++) {
        costs[r] = pen_session_token_cost(session, r);
        slots[r] = pen_session_slots(session);
    }
    pen_front_options options = {.replicas = replicas,
                                 .stages = pen_session_solved(session)->stage_count,
                                 .policy = config->policy,
                                 .max_queue = config->max_queue,
                                 .queue_timeout_s = config->queue_timeout_s,
                                 .patience_s = PATIENCE * pen_session_step_timeout_s(session),
                                 .costs = costs,
                                 .slots = slots};
    if (status == PEN_OK) status = pen_front_create(world, mail, local, &options, front);
    free(costs);
    free(slots);
    return status;
}

/* A leader: measures its stages, makes its replica. */
static pen_status make_replica(pen_world *world, pen_session *session, const pen_job *job, pen_mail *mail,
                               pen_replica **replica) {
    const pen_plan *plan = pen_session_solved(session);
    const pen_config *config = pen_session_config(session);
    double *ms = calloc((size_t)plan->stage_count, sizeof *ms);
    if (!ms) return pen_fail(PEN_NO_MEMORY, "no memory for %d stages", plan->stage_count);
    pen_status status = pen_session_measure(session, job->measures, ms);
    double first_ms = plan->stages[0].time_ms;
    pen_replica_options options = {.self = pen_world_replica(world),
                                   .replicas = pen_world_replicas(world),
                                   .stages = plan->stage_count,
                                   .steals = config->steals,
                                   .preempts = config->preempts,
                                   .cost = pen_session_token_cost(session, pen_world_replica(world)),
                                   .busy_share = first_ms > 0 ? plan->score.max_ms / first_ms : 1,
                                   .measured_ms = ms};
    if (status == PEN_OK) status = pen_replica_create(world, mail, pen_session_engine(session), &options, replica);
    free(ms);
    return status;
}

static pen_status take_part_as_leader(pen_world *world, pen_session *session, const pen_job *job, int *lost) {
    pen_mail *mail = NULL;
    pen_replica *replica = NULL;
    pen_front *front = NULL;
    pen_status status = pen_mail_create(world, &mail);
    if (status == PEN_OK) status = make_replica(world, session, job, mail, &replica);
    if (status == PEN_OK && pen_world_rank(world) > 0) {
        status = pen_replica_serve(replica);
        if (status != PEN_OK) pen_replica_give_up(replica);
    }
    if (status == PEN_OK && pen_world_rank(world) == 0) {
        status = make_front(world, session, mail, replica, &front);
        if (status == PEN_OK) status = lead(session, job, front);
        if (status == PEN_OK) *lost = pen_front_lost(front);
    }
    pen_front_destroy(front);
    pen_replica_destroy(replica);
    pen_mail_destroy(mail);
    return status;
}

/* *lost: replicas that did not live to see the end, which the others have done without. Rank 0 knows. */
static pen_status take_part(pen_world *world, pen_session *session, const pen_job *job, int *lost) {
    if (pen_world_stage(world) > 0) return pen_engine_serve(pen_session_engine(session));
    return take_part_as_leader(world, session, job, lost);
}

/* The run, with a trace of it where one is wanted. */
static pen_status run_stages(pen_world *world, pen_session *session, const pen_job *job, FILE *trace_file) {
    const pen_trace *trace = pen_engine_trace(pen_session_engine(session));
    pen_tracer *tracer = NULL;
    pen_status status = trace ? pen_tracer_begin(world, &tracer) : PEN_OK;
    int lost = 0;
    if (status == PEN_OK) status = take_part(world, session, job, &lost);
    if (status == PEN_OK && lost > 0) {
        if (trace) PEN_WARN("no trace is written: lost ranks took theirs with them");
        pen_world_finish(world);
    }
    if (status == PEN_OK && trace) status = pen_tracer_end(tracer, trace, trace_file);
    pen_tracer_destroy(tracer);
    return status;
}

/* Now, since after the run it would be late to hear that it cannot be written. */
static pen_status open_trace(const char *path, FILE **file) {
    if (path[0] == '\0') return PEN_OK;
    *file = fopen(path, "w");
    return *file ? PEN_OK : pen_fail(PEN_IO, "%s: %s", path, strerror(errno));
}

/* Each plan once, with the replicas that have it. */
static void show_plans(const pen_session *session) {
    int replicas = pen_session_replicas(session), width = pen_help_width();
    for (int r = 0; r < replicas; r++) {
        const pen_plan *plan = pen_session_solved_of(session, r);
        int first = 0, count = 0;
        while (pen_session_solved_of(session, first) != plan) first++;
        if (first < r) continue;
        for (int q = r; q < replicas; q++) count += pen_session_solved_of(session, q) == plan;
        if (count == replicas && count > 1) fprintf(stderr, "%d replicas of this plan:\n", replicas);
        if (count < replicas) {
            fprintf(stderr, "%sreplica%s", r > 0 ? "\n" : "", count > 1 ? "s" : "");
            for (int q = r, said = 0; q < replicas; q++)
                if (pen_session_solved_of(session, q) == plan) fprintf(stderr, "%s %d", said++ > 0 ? "," : "", q);
            fprintf(stderr, " of %d:\n", replicas);
        }
        pen_report_plan(stderr, plan, width);
    }
}

/* Everything up to the point where all ranks can still agree. */
static pen_status start(pen_world *world, const pen_options *options, const pen_job *job, progress_line *display,
                        pen_session **session, pen_tokenizer **tokenizer, FILE **trace_file) {
    bool first = pen_world_rank(world) == 0;
    PEN_TRY(pen_session_open(world, &options->config, first ? progress : NULL, display, session));
    pen_session_need need = {0};
    pen_status status = PEN_OK;
    if (first) {
        status = open_trace(options->config.trace, trace_file);
        if (status == PEN_OK) status = open_tokenizer(pen_session_model(*session), tokenizer);
        if (status == PEN_OK) status = job->prepare(job->context, *session, *tokenizer, &need);
    }
    PEN_TRY(pen_session_plan(*session, status, &need));
    end_line(display);
    if (first) show_plans(*session);
    return pen_session_load(*session);
}

pen_status pen_job_run(const pen_options *options, const pen_job *job) {
    pen_world *world = NULL;
    pen_session *session = NULL;
    pen_tokenizer *tokenizer = NULL;
    FILE *trace_file = NULL; /* rank 0's */
    progress_line display = {.terminal = isatty(STDERR_FILENO)};
    bool together = true;     /* a failure now is every rank's */
    signal(SIGPIPE, SIG_IGN); /* a reader that went away is an error like any other: the ranks must end together */

    pen_log_level level = (pen_log_level)options->config.log_level;
    pen_log_init(level, -1); /* whoever waits for the others' arrival can say so */
    pen_status status = pen_world_create(&world);
    if (status == PEN_OK) {
        pen_log_init(level, pen_world_size(world) > 1 ? pen_world_rank(world) : -1);
        status = start(world, options, job, &display, &session, &tokenizer, &trace_file);
    }
    end_line(&display);
    if (status == PEN_OK) {
        together = false;
        status = run_stages(world, session, job, trace_file);
    }
    if (status != PEN_OK && world && !together && pen_world_replica(world) > 0)
        pen_world_drop_out(world, status); /* the other replicas may go on */
    if (status != PEN_OK && world && (!together || status == PEN_PEER_LOST))
        pen_world_abort(world, status); /* the others do not know */
    if (trace_file) fclose(trace_file); /* what is in it was flushed */
    pen_session_close(session);
    pen_tokenizer_close(tokenizer);
    pen_world_destroy(world);
    return status;
}
