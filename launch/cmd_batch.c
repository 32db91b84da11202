/*
 * `penstock batch`: many requests, from a file of OpenAI's batch lines to a file of answers, which are written as they
 * are done. See batch_line.h and batch_answer.h for the lines, journal.h for how an interrupted batch goes on.
 *
 * The input is read as far as there is room for requests; an order, which is a line that is being answered, is in
 * memory from then until its answer is written.
 */
#include "batch_answer.h"
#include "batch_input.h"
#include "batch_progress.h"
#include "clock.h"
#include "command.h"
#include "id_set.h"
#include "job.h"
#include "journal.h"
#include "tokens.h"

#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

enum {
    LOGIT_ROWS_LEAST = 128, /* of a microbatch at most: prompts that are scored want many */
    LINES_AT_ONCE = 16,     /* taken before the replicas go on */
    SLICE_NS = 100 * 1000000,
    SHORT_SLICE_NS = 1000000,
    LOCK_PATIENCE_S = 10, /* the ranks of a killed job may live for a moment */
};

typedef struct order order;

typedef struct batch {
    const pen_options *options;
    pen_tokenizer *tokenizer;
    const pen_session *session;
    pen_front *front;
    pen_batch_input *input;
    pen_journal *journal;
    pen_id_set *ids; /* custom_ids so far */
    pen_tokens end_ids;
    uint64_t name;      /* of this batch, in its answers */
    order *next;        /* read, and not yet wholly submitted */
    order *orders;      /* all, linked */
    bool ended;         /* the input */
    bool drains;        /* told to stop: nothing new is begun */
    pen_status outcome; /* of what callbacks did */
    pen_batch_state state;
    pen_batch_progress progress;
    int64_t begin_ns;
} batch;

struct order {
    batch *batch;
    int64_t number; /* of the line */
    pen_batch_line line;
    pen_batch_part *parts; /* [line.prompt_count] */
    int submitted;         /* parts */
    int open;              /* completions that were submitted and are not done */
    bool put_off;          /* until the batch goes on another time */
    pen_status status;     /* why there is no answer … */
    char *message;         /* … in words; or NULL */
    order *before, *behind;
};

/* ---- Orders ------------------------------------------------------------------------------------------------------ */

static order *make_order(batch *b, int64_t number) {
    order *o = calloc(1, sizeof *o);
    if (!o) return NULL;
    *o = (order){.batch = b, .number = number, .behind = b->orders};
    if (b->orders) b->orders->before = o;
    b->orders = o;
    return o;
}

static void free_order(order *o) {
    for (int p = 0; o->parts && p < o->line.prompt_count; p++) {
        pen_batch_part *part = &o->parts[p];
        for (int i = 0; part->completions && i < o->line.choices; i++) pen_completion_destroy(part->completions[i]);
        free(part->completions);
        free(part->scored);
        pen_tokens_free(&part->prompt);
    }
    free(o->parts);
    free(o->message);
    pen_batch_line_free(&o->line);
    if (o->before) o->before->behind = o->behind;
    if (o->behind) o->behind->before = o->before;
    if (o->batch->orders == o) o->batch->orders = o->behind;
    free(o);
}

/* The order has no answer, but an error: the last one. */
static void fail_order(order *o, pen_status status) {
    o->status = status;
    free(o->message);
    o->message = strdup(pen_last_error());
}

/* Writes what became of the order, which then is no more. */
static pen_status finish_order(order *o) {
    batch *b = o->batch;
    const pen_config *config = &b->options->config;
    const char *path = config->model[0] ? config->model : config->device, *slash = strrchr(path, '/');
    pen_batch_origin origin = {b->name, o->number};
    char *text = NULL;
    size_t length;
    pen_status status;
    if (o->status == PEN_OK) {
        pen_batch_usage usage = pen_batch_count(&o->line, o->parts);
        b->state.prompt_tokens += usage.prompt_tokens;
        b->state.output_tokens += usage.completion_tokens;
        status = pen_batch_answer(&o->line, o->parts, b->tokenizer, slash ? slash + 1 : path, origin, &text, &length);
    } else {
        b->state.failed++;
        status = pen_batch_error(o->line.custom_id, o->status, o->message ? o->message : "", origin, &text, &length);
    }
    if (status == PEN_OK) status = pen_journal_write(b->journal, o->number, text, length);
    b->state.done++;
    free(text);
    free_order(o);
    return status;
}

/* ---- From a line to an order ------------------------------------------------------------------------------------- */

static pen_status encode(order *o, const pen_batch_prompt *prompt, pen_batch_part *part) {
    const batch *b = o->batch;
    int longest = pen_session_max_len(b->session);
    part->owner = o;
    if (prompt->ids)
        PEN_TRY(pen_tokens_append(&part->prompt, prompt->ids, (size_t)prompt->count));
    else
        PEN_TRY(pen_tokenizer_encode(b->tokenizer, prompt->text.data, prompt->text.length,
                                     PEN_ENCODE_BOS | PEN_ENCODE_SPECIAL, &part->prompt));
    if (part->prompt.count == 0) return pen_fail(PEN_USAGE, "the prompt is empty: there is nothing to continue");
    if (part->prompt.count <= (size_t)longest && o->line.max_tokens <= longest - (int)part->prompt.count) return PEN_OK;
    return pen_fail(PEN_USAGE,
                    "the prompt has %zu tokens and max_tokens is %d, but the longest sequence allowed is %d tokens",
                    part->prompt.count, o->line.max_tokens, longest);
}

/* Checks and encodes; of a line that was answered before only its custom_id is wanted. */
static pen_status read_order(order *o, pen_text text, bool answered) {
    batch *b = o->batch;
    bool is_new = true;
    if (!text.data) return pen_fail(PEN_USAGE, "the line is longer than %d bytes", PEN_BATCH_LINE_MOST);
    pen_status status = pen_batch_line_parse(text.data, text.length, &o->line);
    if (o->line.custom_id.data) PEN_TRY(pen_id_set_add(b->ids, o->line.custom_id, &is_new));
    PEN_TRY(status);
    if (!is_new) return pen_fail(PEN_USAGE, "custom_id: an earlier line has the same");
    if (answered) return PEN_OK;
    o->parts = calloc((size_t)o->line.prompt_count, sizeof *o->parts);
    if (!o->parts) return pen_fail(PEN_NO_MEMORY, "no memory for %d prompts", o->line.prompt_count);
    for (int p = 0; p < o->line.prompt_count; p++) PEN_TRY(encode(o, &o->line.prompts[p], &o->parts[p]));
    return PEN_OK;
}

/* Takes the input's next line. */
static pen_status take_line(batch *b) {
    pen_batch_input_line in;
    PEN_TRY(pen_batch_input_next(b->input, &in));
    b->ended = in.number == 0;
    if (b->ended) return PEN_OK;
    order *o = make_order(b, in.number);
    if (!o) return pen_fail(PEN_NO_MEMORY, "no memory for a request");
    bool answered = pen_journal_has(b->journal, in.number);
    pen_status status = read_order(o, in.text, answered);
    if (status == PEN_NO_MEMORY) return status;
    if (answered) {
        free_order(o);
    } else if (status == PEN_OK) {
        b->next = o;
    } else {
        fail_order(o, status);
        return finish_order(o);
    }
    return PEN_OK;
}

/* ---- From an order to the front end ------------------------------------------------------------------------------ */

static bool on_token(void *context, int index, int position, const pen_choice *choice) {
    pen_batch_part *part = context;
    const order *o = part->owner;
    if ((size_t)position < part->prompt.count) {
        part->scored[position] = *choice;
        return true;
    }
    return pen_completion_push(part->completions[index], choice) && o->batch->outcome == PEN_OK;
}

static void on_done(void *context, int index, pen_finish finish);

static pen_status make_completions(const order *o, pen_batch_part *part) {
    const pen_batch_line *line = &o->line;
    pen_completion_options wanted = {.stop = line->stop,
                                     .stop_count = line->stop_count,
                                     .max_tokens = line->max_tokens,
                                     .min_tokens = line->min_tokens,
                                     .keeps_choices = line->logprobs >= 0};
    part->completions = calloc((size_t)line->choices, sizeof(pen_completion *));
    if (pen_batch_line_scores(line)) part->scored = calloc(part->prompt.count, sizeof *part->scored);
    if (!part->completions || (pen_batch_line_scores(line) && !part->scored))
        return pen_fail(PEN_NO_MEMORY, "no memory for %d completions", line->choices);
    for (int i = 0; i < line->choices; i++)
        PEN_TRY(pen_completion_create(o->batch->tokenizer, &wanted, &part->completions[i]));
    return PEN_OK;
}

/* Without a seed of its own a request has one that follows from its custom_id: its draws differ from its neighbours',
 * and are the same when it is computed again. */
static uint64_t seed_of(const pen_batch_line *line, int part) {
    if (line->seeded) return (uint64_t)line->seed;
    return XXH3_64bits(line->custom_id.data, line->custom_id.length) + (uint64_t)part;
}

static pen_request request_of(const order *o, int p) {
    const pen_batch_line *line = &o->line;
    pen_batch_part *part = &o->parts[p];
    bool ignores_end = line->ignore_eos || o->batch->options->config.ignore_eos;
    return (pen_request){
        .prompt = part->prompt.ids,
        .prompt_count = (int)part->prompt.count,
        .max_tokens = line->max_tokens,
        .score = pen_batch_line_scores(line),
        .pick = {.temperature = line->temperature,
                 .top_p = line->top_p,
                 .min_p = line->min_p,
                 .top_k = line->top_k > 0 ? line->top_k : 0,
                 .seed = seed_of(line, p),
                 .target = -1,
                 .top_logprobs = line->logprobs},
        .choices = line->choices,
        .stop_ids = ignores_end ? NULL : o->batch->end_ids.ids,
        .stop_count = ignores_end ? 0 : (int)o->batch->end_ids.count,
        .priority = line->priority,
        .min_tokens = line->min_tokens,
        .repetition_penalty = line->repetition_penalty,
        .presence_penalty = line->presence_penalty,
        .frequency_penalty = line->frequency_penalty,
        .biases = line->biases,
        .bias_count = line->bias_count,
        .on_token = on_token,
        .on_done = on_done,
        .context = part,
    };
}

/* One more part of the order. */
static pen_status submit_part(order *o) {
    pen_batch_part *part = &o->parts[o->submitted];
    PEN_TRY(make_completions(o, part));
    pen_request request = request_of(o, o->submitted);
    PEN_TRY(pen_front_submit(o->batch->front, &request, &part->request));
    o->submitted++;
    o->open += o->line.choices;
    return PEN_OK;
}

/* As much of the next order as there is room for. What is refused is the order's error, once nothing of it runs any
 * more. */
static pen_status submit_next(batch *b) {
    order *o = b->next;
    while (o->submitted < o->line.prompt_count && o->status == PEN_OK) {
        if (!pen_front_has_room(b->front)) return PEN_OK;
        pen_status status = submit_part(o);
        if (status != PEN_OK) fail_order(o, status);
    }
    b->next = NULL;
    return o->open == 0 ? finish_order(o) : PEN_OK;
}

/* Takes lines as long as there is room. */
static pen_status take_lines(batch *b) {
    for (int taken = 0; taken < LINES_AT_ONCE && !b->ended && pen_front_has_room(b->front); taken++) {
        if (!b->next) PEN_TRY(take_line(b));
        if (b->next) PEN_TRY(submit_next(b));
    }
    return PEN_OK;
}

static void on_done(void *context, int index, pen_finish finish) {
    pen_batch_part *part = context;
    order *o = part->owner;
    batch *b = o->batch;
    pen_completion *c = part->completions[index];
    pen_completion_finish(c, finish);
    if (finish == PEN_FINISH_BAD_LOGITS)
        fail_order(o, pen_fail(PEN_INTERNAL, "the model's output is not a number after %zu tokens", c->output.count));
    else if (c->finish > PEN_FINISH_BAD_LOGITS)
        fail_order(o, pen_fail(PEN_INTERNAL, "the request was given up after %zu tokens", c->output.count));
    else if (c->failed)
        fail_order(o, pen_fail(PEN_NO_MEMORY, "no memory for the text of %zu tokens", c->output.count));
    if (--o->open == 0 && o->put_off)
        free_order(o);
    else if (o->open == 0 && o != b->next && b->outcome == PEN_OK)
        b->outcome = finish_order(o);
    pen_front_wake(b->front); /* there may be room */
}

static bool has_begun(const order *o) {
    for (int p = 0; p < o->submitted; p++)
        for (int i = 0; i < o->line.choices; i++)
            if (o->parts[p].completions[i]->output.count > 0) return true;
    return false;
}

/* Leaves to another time what has not begun, and what has not been read to its end. */
static void drain(batch *b) {
    b->drains = true;
    for (order *o = b->orders; o; o = o->behind) {
        if (o != b->next && has_begun(o)) continue;
        o->put_off = true;
        for (int p = 0; p < o->submitted; p++) pen_front_cancel(b->front, o->parts[p].request);
    }
    b->next = NULL;
}

/* ---- The batch --------------------------------------------------------------------------------------------------- */

/* The options by which answers differ. */
static uint64_t hash_settings(const pen_options *options, int max_len) {
    char text[128];
    int length =
        snprintf(text, sizeof text, "exact %d, KV in q8_0 %d, deterministic %d, ignores the end %d, longest %d",
                 options->config.exact, options->config.kv_q8_0, options->config.deterministic,
                 options->config.ignore_eos, max_len);
    return XXH3_64bits(text, (size_t)length);
}

static pen_status open_files(batch *b) {
    const pen_options *options = b->options;
    pen_world *world = pen_session_world(b->session);
    PEN_TRY(pen_batch_input_open(options->input, PEN_BATCH_LINE_MOST, pen_world_beat, world, &b->input));
    if (pen_batch_input_is(b->input, options->output))
        return pen_fail(PEN_USAGE, "%s: is both input and output", options->output);
    pen_batch_input_facts facts = pen_batch_input_about(b->input);
    pen_journal_key key = {.input_bytes = facts.bytes,
                           .input_hash = facts.hash,
                           .model = pen_model_hash(pen_session_model(b->session)),
                           .settings = hash_settings(options, pen_session_max_len(b->session))};
    pen_journal_options journal = {
        .lines = facts.lines, .patience_s = LOCK_PATIENCE_S, .beat = pen_world_beat, .beat_context = world};
    PEN_TRY(pen_journal_open(options->output, &key, &journal, &b->journal));
    b->name = XXH3_64bits(&key, sizeof key);
    b->state.requests = facts.requests;
    b->state.done = b->state.earlier = pen_journal_count(b->journal);
    return PEN_OK;
}

static pen_status prepare(void *context, const pen_session *session, pen_tokenizer *tokenizer, pen_session_need *need) {
    batch *b = context;
    b->session = session;
    b->tokenizer = tokenizer;
    int sequences = b->options->config.max_num_seqs;
    *need = (pen_session_need){.context = pen_session_max_len(session),
                               .logit_rows = sequences > LOGIT_ROWS_LEAST ? sequences : LOGIT_ROWS_LEAST,
                               .sequences = INT_MAX,
                               .typical = true};
    PEN_TRY(pen_completion_end_ids(tokenizer, &b->end_ids));
    PEN_TRY(pen_id_set_create(&b->ids));
    return open_files(b);
}

/* A lost replica is noted once. */
static void watch(void *context, int replica) {
    batch *b = context;
    if (pen_front_replica(b->front, replica).alive || b->outcome != PEN_OK) return;
    b->outcome = pen_journal_note_loss(b->journal, replica);
}

static void show_progress(batch *b) {
    pen_batch_state *state = &b->state;
    state->seconds = (double)(pen_clock_ns() - b->begin_ns) * 1e-9;
    state->replicas = pen_front_replicas(b->front);
    for (int r = 0; r < state->replicas && r < PEN_BATCH_BARS_MOST; r++)
        state->busy[r] = pen_front_replica(b->front, r).account.utilisation;
    pen_batch_progress_show(&b->progress, state, stderr);
}

static pen_status answer_all(batch *b) {
    const pen_world *world = pen_session_world(b->session);
    while ((!b->ended && !b->drains) || pen_front_open(b->front) > 0) {
        if (pen_world_draining(world) && !b->drains) drain(b);
        if (!b->drains) PEN_TRY(take_lines(b));
        bool waits = b->drains || b->ended || !pen_front_has_room(b->front);
        PEN_TRY(pen_front_run_until(b->front, pen_clock_ns() + (waits ? SLICE_NS : SHORT_SLICE_NS)));
        PEN_TRY(b->outcome);
        show_progress(b);
    }
    if (b->drains && pen_journal_count(b->journal) < b->state.requests)
        return pen_fail(PEN_INTERRUPTED, "told to stop: %s has %lld of %lld answers; the same command goes on",
                        b->options->output, (long long)pen_journal_count(b->journal), (long long)b->state.requests);
    if (pen_journal_count(b->journal) != b->state.requests)
        return pen_fail(PEN_INTERNAL, "%s has %lld lines for %lld requests", b->options->output,
                        (long long)pen_journal_count(b->journal), (long long)b->state.requests);
    return pen_journal_finish(b->journal);
}

static pen_status summarise(const batch *b) {
    const pen_batch_state *s = &b->state;
    double tokens = (double)(s->prompt_tokens + s->output_tokens);
    fprintf(stderr, "%s: %lld requests, %lld failed; %lld prompt and %lld output tokens in %.1f s (%.1f tokens/s)\n",
            b->options->output, (long long)(s->done - s->earlier), (long long)s->failed, (long long)s->prompt_tokens,
            (long long)s->output_tokens, s->seconds, s->seconds > 0 ? tokens / s->seconds : 0);
    int64_t lost = pen_journal_losses(b->journal);
    if (lost > 0)
        fprintf(stderr, "%s: %lld replica%s lost on the way\n", b->options->output, (long long)lost,
                lost == 1 ? "" : "s");
    if (!b->options->json) return PEN_OK;
    json_t *object = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:f}", "requests", (json_int_t)s->requests, "earlier",
                               (json_int_t)s->earlier, "failed", (json_int_t)s->failed, "lost_replicas",
                               (json_int_t)lost, "prompt_tokens", (json_int_t)s->prompt_tokens, "output_tokens",
                               (json_int_t)s->output_tokens, "seconds", s->seconds);
    bool written =
        object && json_dumpf(object, stdout, JSON_COMPACT) == 0 && fputc('\n', stdout) != EOF && fflush(stdout) == 0;
    json_decref(object);
    return written ? PEN_OK : pen_fail(PEN_IO, "standard output cannot be written");
}

static pen_status work(void *context, pen_front *front) {
    batch *b = context;
    b->front = front;
    pen_front_set_watch(front, watch, b);
    b->begin_ns = pen_clock_ns();
    b->progress.terminal = isatty(STDERR_FILENO);
    if (b->state.earlier > 0)
        fprintf(stderr, "%s: %lld of %lld requests are there, going on\n", b->options->output,
                (long long)b->state.earlier, (long long)b->state.requests);
    pen_status status = answer_all(b);
    pen_front_set_watch(front, NULL, NULL);
    pen_batch_progress_end(&b->progress, stderr);
    PEN_TRY(status);
    return summarise(b);
}

pen_status pen_cmd_batch(const pen_options *options) {
    batch b = {.options = options};
    pen_job job = {.prepare = prepare, .work = work, .context = &b};
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is an error like any other */
    pen_status status = pen_job_run(options, &job);
    while (b.orders) free_order(b.orders);
    pen_journal_close(b.journal);
    pen_batch_input_close(b.input);
    pen_id_set_destroy(b.ids);
    pen_tokens_free(&b.end_ids);
    return status;
}
