/*
 * `penstock run`: completions of a prompt, one or several (--choices). The text is streamed to stdout, one completion
 * after the other: those behind the one being shown keep what they have said. With --json all of them do, for one
 * object.
 */
#include "clock.h"
#include "command.h"
#include "completion.h"
#include "job.h"

#include <jansson.h>

#include <stdlib.h>

/* Rows of logits at a time: 128 × vocabulary floats. */
enum { LOGIT_ROWS_MOST = 128 };

typedef struct run_state {
    const pen_options *options;
    pen_tokenizer *tokenizer;
    pen_tokens prompt;
    pen_completion **completions; /* [options->choices] */
    int shown;                    /* the one whose text is streamed … */
    size_t said;                  /* … of which so many bytes are out */
    pen_tokens end_ids;
    json_t *prompt_logprobs; /* where wanted */
    int64_t start_ns, first_ns, last_ns;
    bool broken; /* stdout cannot be written */
} run_state;

static pen_status check_biases(const run_state *run, int vocab) {
    const pen_option_biases *biases = &run->options->logit_bias;
    for (int i = 0; i < biases->count; i++)
        if (biases->list[i].token >= vocab)
            return pen_fail(PEN_USAGE, "--logit-bias: token %d does not exist, the vocabulary has %d",
                            biases->list[i].token, vocab);
    return PEN_OK;
}

static pen_status make_completions(run_state *run) {
    const pen_options *options = run->options;
    pen_completion_options wanted = {.stop = options->stop.list,
                                     .stop_count = options->stop.count,
                                     .max_tokens = options->max_tokens,
                                     .min_tokens = options->min_tokens,
                                     .keeps_choices = options->logprobs > 0};
    run->completions = calloc((size_t)options->choices, sizeof *run->completions);
    if (!run->completions) return pen_fail(PEN_NO_MEMORY, "no memory for %d completions", options->choices);
    for (int i = 0; i < options->choices; i++)
        PEN_TRY(pen_completion_create(run->tokenizer, &wanted, &run->completions[i]));
    if (options->prompt_logprobs) run->prompt_logprobs = json_pack("[n]"); /* the first token has none */
    return PEN_OK;
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
    PEN_TRY(pen_completion_end_ids(tokenizer, &run->end_ids));
    PEN_TRY(check_biases(run, pen_model_hparams(pen_session_model(session))->vocab));
    int rows = run->options->prompt_logprobs ? LOGIT_ROWS_MOST : least(run->options->choices, LOGIT_ROWS_MOST);
    *need = (pen_session_need){
        .context = (int)run->prompt.count + room, .logit_rows = rows, .sequences = run->options->choices};
    return make_completions(run);
}

/* ---- Text -------------------------------------------------------------------------------------------------------- */

/* Shows what the shown one has said since. */
static void show(run_state *run) {
    const pen_completion *c = run->completions[run->shown];
    size_t fresh = c->length - run->said;
    if (run->options->json || fresh == 0) return;
    if (fwrite(c->text + run->said, 1, fresh, stdout) < fresh || fflush(stdout) != 0) run->broken = true;
    run->said = c->length;
}

/* Whoever reads several is told which. */
static void show_heading(const run_state *run) {
    int count = run->options->choices;
    if (count > 1 && !run->options->json)
        printf("%s[choice %d of %d]\n", run->shown > 0 ? "\n" : "", run->shown + 1, count);
}

/* Goes on from what has been said to the end to what is still being said. */
static void show_next(run_state *run) {
    show(run);
    while (run->completions[run->shown]->done) {
        if (fputc('\n', stdout) == EOF || fflush(stdout) != 0) run->broken = true;
        if (run->shown + 1 == run->options->choices) return;
        run->shown++;
        run->said = 0;
        show_heading(run);
        show(run);
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
    if ((size_t)position < run->prompt.count) {
        json_array_append_new(run->prompt_logprobs, prompt_token_logprobs(choice, run->options->prompt_logprobs));
        return true;
    }
    run->last_ns = pen_clock_ns();
    if (!run->first_ns) run->first_ns = run->last_ns;
    bool goes_on = pen_completion_push(run->completions[index], choice);
    if (index == run->shown) show(run);
    return goes_on && !run->broken;
}

static void on_done(void *context, int index, pen_finish finish) {
    run_state *run = context;
    pen_completion_finish(run->completions[index], finish);
    if (finish != PEN_FINISH_BAD_LOGITS && !run->broken && !run->options->json) show_next(run);
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

static json_t *describe(const run_state *run, int index) {
    const pen_completion *c = run->completions[index];
    json_t *object =
        json_pack("{s:i, s:o, s:o, s:s}", "index", index, "output_ids", id_list(&c->output), "text",
                  json_stringn(c->text ? c->text : "", c->length), "finish_reason", pen_completion_reason(c));
    if (!c->choices) return object;
    json_t *logprobs = json_array();
    for (size_t i = 0; i < c->output.count; i++)
        json_array_append_new(logprobs, best_logprobs(&c->choices[i], run->options->logprobs));
    json_object_set_new(object, "logprobs", logprobs);
    return object;
}

static json_t *describe_all(const run_state *run) {
    json_t *list = json_array();
    for (int i = 0; i < run->options->choices; i++) {
        if (json_array_append_new(list, describe(run, i)) == 0) continue;
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
        const pen_completion *c = run->completions[i];
        tokens += c->output.count;
        if (c->failed) return pen_fail(PEN_NO_MEMORY, "no memory for the text of %zu tokens", c->output.count);
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
    int best = larger(options->logprobs, options->prompt_logprobs);
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
                 .top_logprobs = best > 0 ? best : -1},
        .choices = options->choices,
        .stop_ids = options->config.ignore_eos ? NULL : run->end_ids.ids,
        .stop_count = options->config.ignore_eos ? 0 : (int)run->end_ids.count,
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
    for (int i = 0; run.completions && i < options->choices; i++) pen_completion_destroy(run.completions[i]);
    free(run.completions);
    json_decref(run.prompt_logprobs);
    pen_tokens_free(&run.prompt);
    pen_tokens_free(&run.end_ids);
    return status;
}
