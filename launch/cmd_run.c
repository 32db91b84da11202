/*
 * `penstock run`: completions of a prompt, one or several (--choices). The text is streamed to stdout, one completion
 * after the other: those behind the one being shown keep what they have said. With --json all of them do, for one
 * object.
 */
#include "clock.h"
#include "command.h"
#include "job.h"
#include "stopper.h"

#include <jansson.h>

#include <stdlib.h>

/* Rows of logits at a time: 128 × vocabulary floats. */
enum { LOGIT_ROWS_MOST = 128 };

typedef struct completion {
    pen_tokens output;
    pen_detokenizer *detokenizer;
    pen_stopper *stopper;
    FILE *kept; /* writes `text`, what was said and not shown */
    char *text;
    size_t length;
    json_t *logprobs; /* a list per token, where wanted */
    pen_finish finish;
    bool stopped; /* at a stop string */
    bool done;
} completion;

typedef struct run_state {
    const pen_options *options;
    pen_tokenizer *tokenizer;
    pen_tokens prompt;
    completion *completions; /* [options->choices] */
    int shown;               /* the one whose text is streamed */
    int32_t *stop_ids;
    int stop_count;
    json_t *prompt_logprobs; /* where wanted */
    int64_t start_ns, first_ns, last_ns;
    bool broken; /* stdout cannot be written */
} run_state;

static pen_status find_stop_ids(run_state *run) {
    int vocab = pen_tokenizer_vocab_size(run->tokenizer);
    for (int32_t id = 0; id < vocab; id++) run->stop_count += pen_tokenizer_is_end(run->tokenizer, id);
    run->stop_ids = calloc((size_t)run->stop_count + 1, sizeof *run->stop_ids);
    if (!run->stop_ids) return pen_fail(PEN_NO_MEMORY, "no memory for the end tokens");
    for (int32_t id = 0, n = 0; id < vocab; id++)
        if (pen_tokenizer_is_end(run->tokenizer, id)) run->stop_ids[n++] = id;
    return PEN_OK;
}

static pen_status check_biases(const run_state *run, int vocab) {
    const pen_option_biases *biases = &run->options->logit_bias;
    for (int i = 0; i < biases->count; i++)
        if (biases->list[i].token >= vocab)
            return pen_fail(PEN_USAGE, "--logit-bias: token %d does not exist, the vocabulary has %d",
                            biases->list[i].token, vocab);
    return PEN_OK;
}

/* Flushed, `kept` has a text, though an empty one. */
static pen_status make_completion(const run_state *run, completion *c) {
    const pen_options *options = run->options;
    PEN_TRY(pen_detokenizer_create(run->tokenizer, PEN_DECODE_CONTINUED, &c->detokenizer));
    PEN_TRY(pen_stopper_create(options->stop.list, options->stop.count, &c->stopper));
    c->output.ids = calloc((size_t)options->max_tokens + 1, sizeof *c->output.ids);
    c->kept = open_memstream(&c->text, &c->length);
    if (!c->output.ids || !c->kept || fflush(c->kept) != 0)
        return pen_fail(PEN_NO_MEMORY, "no memory for %d tokens", options->max_tokens);
    if (options->logprobs) c->logprobs = json_array();
    return PEN_OK;
}

static pen_status make_completions(run_state *run) {
    run->completions = calloc((size_t)run->options->choices, sizeof *run->completions);
    if (!run->completions) return pen_fail(PEN_NO_MEMORY, "no memory for %d completions", run->options->choices);
    for (int i = 0; i < run->options->choices; i++) PEN_TRY(make_completion(run, &run->completions[i]));
    if (run->options->prompt_logprobs) run->prompt_logprobs = json_pack("[n]"); /* the first token has none */
    return PEN_OK;
}

static void free_completion(completion *c) {
    if (c->kept) fclose(c->kept);
    free(c->text);
    pen_detokenizer_destroy(c->detokenizer);
    pen_stopper_destroy(c->stopper);
    pen_tokens_free(&c->output);
    json_decref(c->logprobs);
}

static int least(int a, int b) {
    return a < b ? a : b;
}

static pen_status prepare(void *context, const pen_session *session, pen_tokenizer *tokenizer, pen_session_need *need) {
    run_state *run = context;
    run->tokenizer = tokenizer;
    char *text;
    size_t length;
    PEN_TRY(pen_job_text(run->options, &text, &length));
    pen_status status =
        pen_tokenizer_encode(tokenizer, text, length, PEN_ENCODE_BOS | PEN_ENCODE_SPECIAL, &run->prompt);
    free(text);
    PEN_TRY(status);
    int max_len = pen_session_max_len(session), room = run->options->max_tokens;
    if (run->prompt.count == 0) return pen_fail(PEN_USAGE, "the prompt is empty: there is nothing to continue");
    if (run->prompt.count > (size_t)max_len || room > max_len - (int)run->prompt.count)
        return pen_fail(PEN_USAGE,
                        "the prompt has %zu tokens and %d are to follow, but the longest sequence allowed is %d tokens"
                        " (the model's context is %d)",
                        run->prompt.count, room, max_len, pen_model_hparams(pen_session_model(session))->context);
    PEN_TRY(find_stop_ids(run));
    PEN_TRY(check_biases(run, pen_model_hparams(pen_session_model(session))->vocab));
    int rows = run->options->prompt_logprobs ? LOGIT_ROWS_MOST : least(run->options->choices, LOGIT_ROWS_MOST);
    *need = (pen_session_need){
        .context = (int)run->prompt.count + room, .logit_rows = rows, .sequences = run->options->choices};
    return make_completions(run);
}

/* ---- Text -------------------------------------------------------------------------------------------------------- */

static bool is_shown(const run_state *run, const completion *c) {
    return !run->options->json && c == &run->completions[run->shown];
}

static void emit(run_state *run, completion *c, const char *text, size_t length) {
    if (length == 0) return;
    FILE *out = is_shown(run, c) ? stdout : c->kept;
    if (fwrite(text, 1, length, out) < length || fflush(out) != 0) run->broken = true;
}

/* Shows the part of the text that no stop string can begin in; none ends in the first min_tokens tokens. */
static void push_text(run_state *run, completion *c, pen_text text) {
    bool armed = c->output.count > (size_t)run->options->min_tokens;
    pen_stopper_text shown = pen_stopper_push(c->stopper, text, armed);
    emit(run, c, shown.held.data, shown.held.length);
    emit(run, c, shown.fresh.data, shown.fresh.length);
    c->stopped = shown.stopped;
}

static void finish_text(run_state *run, completion *c) {
    if (!c->stopped) push_text(run, c, pen_detokenizer_finish(c->detokenizer));
    if (c->stopped) {
        c->finish = PEN_FINISH_STOP;
        return;
    }
    pen_text rest = pen_stopper_finish(c->stopper);
    emit(run, c, rest.data, rest.length);
}

/* Whoever reads several is told which. */
static void show_heading(const run_state *run) {
    int count = run->options->choices;
    if (count > 1 && !run->options->json)
        printf("%s[choice %d of %d]\n", run->shown > 0 ? "\n" : "", run->shown + 1, count);
}

/* Goes on from what has been said to the end to what is still being said. */
static void show_next(run_state *run) {
    while (run->completions[run->shown].done) {
        emit(run, &run->completions[run->shown], "\n", 1);
        if (run->shown + 1 == run->options->choices) return;
        completion *c = &run->completions[++run->shown];
        show_heading(run);
        emit(run, c, c->text, c->length);
    }
}

/* ---- Tokens ------------------------------------------------------------------------------------------------------ */

static json_t *best_logprobs(const pen_choice *choice, int count) {
    json_t *list = json_array();
    for (int i = 0; i < count; i++)
        json_array_append_new(list, json_pack("[i,f]", (int)choice->top_ids[i], (double)choice->top_logprobs[i]));
    return list;
}

/* The best ones at a prompt token's position, and its own where it is none of them. */
static json_t *prompt_token_logprobs(const pen_choice *choice, int count) {
    json_t *list = best_logprobs(choice, count);
    for (int i = 0; i < count; i++)
        if (choice->top_ids[i] == choice->token) return list;
    json_array_append_new(list, json_pack("[i,f]", (int)choice->token, (double)choice->logprob));
    return list;
}

static bool on_token(void *context, int index, int position, const pen_choice *choice) {
    run_state *run = context;
    completion *c = &run->completions[index];
    if ((size_t)position < run->prompt.count) {
        json_array_append_new(run->prompt_logprobs, prompt_token_logprobs(choice, run->options->prompt_logprobs));
        return true;
    }
    run->last_ns = pen_clock_ns();
    if (!run->first_ns) run->first_ns = run->last_ns;
    c->output.ids[c->output.count++] = choice->token; /* room for all was made */
    if (c->logprobs) json_array_append_new(c->logprobs, best_logprobs(choice, run->options->logprobs));
    push_text(run, c, pen_detokenizer_push(c->detokenizer, choice->token));
    return !run->broken && !c->stopped;
}

static void on_done(void *context, int index, pen_finish finish) {
    run_state *run = context;
    completion *c = &run->completions[index];
    c->finish = finish;
    c->done = true;
    if (finish == PEN_FINISH_BAD_LOGITS || run->broken) return;
    finish_text(run, c);
    if (!run->options->json) show_next(run);
}

/* ---- The result -------------------------------------------------------------------------------------------------- */

static double per_second(size_t tokens, int64_t ns) {
    return ns > 0 ? (double)tokens / ((double)ns / 1e9) : 0;
}

static json_t *id_list(const pen_tokens *tokens) {
    json_t *list = json_array();
    for (size_t i = 0; i < tokens->count; i++) json_array_append_new(list, json_integer(tokens->ids[i]));
    return list;
}

static json_t *describe(const completion *c, int index) {
    json_t *object =
        json_pack("{s:i, s:o, s:o, s:s}", "index", index, "output_ids", id_list(&c->output), "text",
                  json_stringn(c->text, c->length), "finish_reason", c->finish == PEN_FINISH_STOP ? "stop" : "length");
    if (object && c->logprobs) json_object_set(object, "logprobs", c->logprobs);
    return object;
}

static json_t *describe_all(const run_state *run) {
    json_t *list = json_array();
    for (int i = 0; i < run->options->choices; i++) {
        if (json_array_append_new(list, describe(&run->completions[i], i)) == 0) continue;
        json_decref(list);
        return NULL;
    }
    return list;
}

/* The first completion, and where there are several, the list of all. */
static pen_status write_json(run_state *run, double prompt_speed, double decode_speed) {
    json_t *choices = describe_all(run), *object = json_copy(json_array_get(choices, 0));
    json_object_del(object, "index");
    json_object_set_new(object, "prompt_ids", id_list(&run->prompt));
    json_object_set_new(
        object, "timings",
        json_pack("{s:f, s:f}", "prompt_tokens_per_s", prompt_speed, "decode_tokens_per_s", decode_speed));
    if (run->prompt_logprobs) json_object_set(object, "prompt_logprobs", run->prompt_logprobs);
    if (run->options->choices > 1) json_object_set(object, "choices", choices);
    bool written =
        object && json_dumpf(object, stdout, JSON_COMPACT) == 0 && fputc('\n', stdout) != EOF && fflush(stdout) == 0;
    json_decref(object);
    json_decref(choices);
    return written ? PEN_OK : pen_fail(PEN_IO, "standard output cannot be written");
}

static int larger(int a, int b) {
    return a > b ? a : b;
}

static pen_status write_result(run_state *run) {
    size_t tokens = 0;
    for (int i = 0; i < run->options->choices; i++) {
        const completion *c = &run->completions[i];
        tokens += c->output.count;
        if (c->finish == PEN_FINISH_BAD_LOGITS)
            return pen_fail(PEN_BAD_INPUT, "%s: the model's output is not a number after %zu tokens",
                            run->options->config.model, c->output.count);
    }
    if (run->broken) return pen_fail(PEN_IO, "standard output cannot be written");
    if (!run->first_ns) run->first_ns = run->last_ns = run->start_ns; /* nothing was said */
    double prompt_speed = per_second(run->prompt.count, run->first_ns - run->start_ns);
    double decode_speed = per_second(tokens ? tokens - 1 : 0, run->last_ns - run->first_ns);
    if (run->options->json) PEN_TRY(write_json(run, prompt_speed, decode_speed));
    fprintf(stderr,
            "\nprompt: %zu tokens in %.1f ms (%.1f tokens/s); output: %zu tokens, %.1f tokens/s after the first\n",
            run->prompt.count, (double)(run->first_ns - run->start_ns) / 1e6, prompt_speed, tokens, decode_speed);
    return PEN_OK;
}

static pen_status work(void *context, pen_front *front) {
    run_state *run = context;
    const pen_options *options = run->options;
    pen_request request = {
        .prompt = run->prompt.ids,
        .prompt_count = (int)run->prompt.count,
        .max_tokens = options->max_tokens,
        .score = options->prompt_logprobs > 0,
        .pick = {.temperature = options->temperature,
                 .top_p = options->top_p,
                 .min_p = options->min_p,
                 .top_k = options->top_k,
                 .seed = options->seed,
                 .target = -1,
                 .top_logprobs = larger(options->logprobs, options->prompt_logprobs)},
        .choices = options->choices,
        .stop_ids = options->config.ignore_eos ? NULL : run->stop_ids,
        .stop_count = options->config.ignore_eos ? 0 : run->stop_count,
        .min_tokens = options->min_tokens,
        .repetition_penalty = options->repetition_penalty,
        .presence_penalty = options->presence_penalty,
        .frequency_penalty = options->frequency_penalty,
        .biases = options->logit_bias.list,
        .bias_count = options->logit_bias.count,
        .on_token = on_token,
        .on_done = on_done,
        .context = run,
    };
    if (!options->json) fputs("\n", stderr);
    PEN_TRY(pen_front_submit(front, &request, NULL));
    show_heading(run);
    run->start_ns = pen_clock_ns();
    PEN_TRY(pen_front_run(front));
    return write_result(run);
}

pen_status pen_cmd_run(const pen_options *options) {
    run_state run = {.options = options};
    pen_job job = {.prepare = prepare, .work = work, .context = &run};
    pen_status status = pen_job_run(options, &job);
    for (int i = 0; run.completions && i < options->choices; i++) free_completion(&run.completions[i]);
    free(run.completions);
    json_decref(run.prompt_logprobs);
    pen_tokens_free(&run.prompt);
    free(run.stop_ids);
    return status;
}
