/* `penstock run`: one completion, streamed to stdout; or with --json one object. */
#include "clock.h"
#include "command.h"
#include "job.h"
#include "stopper.h"

#include <jansson.h>

#include <stdlib.h>

/* Rows of logits of a prompt at a time: 128 × vocabulary floats. */
enum { PROMPT_LOGIT_ROWS = 128 };

typedef struct run_state {
    const pen_options *options;
    pen_tokenizer *tokenizer;
    pen_detokenizer *detokenizer;
    pen_stopper *stopper;
    pen_tokens prompt, output;
    int32_t *stop_ids;
    int stop_count;
    json_t *text, *logprobs, *prompt_logprobs; /* --json: pieces of text; lists per token */
    int64_t start_ns, first_ns, last_ns;
    pen_finish finish;
    bool stopped; /* at a stop string */
    bool broken;  /* stdout cannot be written */
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
    PEN_TRY(pen_detokenizer_create(tokenizer, PEN_DECODE_CONTINUED, &run->detokenizer));
    PEN_TRY(pen_stopper_create(run->options->stop.list, run->options->stop.count, &run->stopper));
    *need = (pen_session_need){.context = (int)run->prompt.count + room,
                               .logit_rows = run->options->prompt_logprobs ? PROMPT_LOGIT_ROWS : 1,
                               .sequences = 1};
    return PEN_OK;
}

static void emit(run_state *run, pen_text text) {
    if (text.length == 0) return;
    if (run->text)
        json_array_append_new(run->text, json_stringn(text.data, text.length));
    else if (fwrite(text.data, 1, text.length, stdout) < text.length || fflush(stdout) != 0)
        run->broken = true;
}

/* Shows the part of the text that no stop string can begin in; none ends in the first min_tokens tokens. */
static void push_text(run_state *run, pen_text text) {
    bool armed = run->output.count > (size_t)run->options->min_tokens;
    pen_stopper_text shown = pen_stopper_push(run->stopper, text, armed);
    emit(run, shown.held);
    emit(run, shown.fresh);
    run->stopped = shown.stopped;
}

static void finish_text(run_state *run) {
    if (!run->stopped) push_text(run, pen_detokenizer_finish(run->detokenizer));
    if (run->stopped)
        run->finish = PEN_FINISH_STOP;
    else
        emit(run, pen_stopper_finish(run->stopper));
}

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

static bool on_token(void *context, int position, const pen_choice *choice) {
    run_state *run = context;
    if ((size_t)position < run->prompt.count) {
        json_array_append_new(run->prompt_logprobs, prompt_token_logprobs(choice, run->options->prompt_logprobs));
        return true;
    }
    run->last_ns = pen_clock_ns();
    if (run->output.count == 0) run->first_ns = run->last_ns;
    run->output.ids[run->output.count++] = choice->token; /* room for all was made */
    if (run->logprobs) json_array_append_new(run->logprobs, best_logprobs(choice, run->options->logprobs));
    push_text(run, pen_detokenizer_push(run->detokenizer, choice->token));
    return !run->broken && !run->stopped;
}

static void on_done(void *context, pen_finish finish) {
    ((run_state *)context)->finish = finish;
}

static double per_second(size_t tokens, int64_t ns) {
    return ns > 0 ? (double)tokens / ((double)ns / 1e9) : 0;
}

static json_t *id_list(const pen_tokens *tokens) {
    json_t *list = json_array();
    for (size_t i = 0; i < tokens->count; i++) json_array_append_new(list, json_integer(tokens->ids[i]));
    return list;
}

/* The pieces are whole characters each, so the joined text is valid UTF-8. */
static json_t *joined(const json_t *pieces) {
    size_t length = 0, used = 0, i;
    const json_t *piece;
    json_array_foreach(pieces, i, piece) length += json_string_length(piece);
    char *text = malloc(length + 1);
    if (!text) return NULL;
    json_array_foreach(pieces, i, piece) {
        size_t n = json_string_length(piece);
        for (size_t j = 0; j < n; j++) text[used++] = json_string_value(piece)[j];
    }
    json_t *string = json_stringn(text, length);
    free(text);
    return string;
}

static pen_status write_json(run_state *run, double prompt_speed, double decode_speed) {
    json_t *object = json_pack("{s:o, s:o, s:o, s:s, s:{s:f, s:f}}", "prompt_ids", id_list(&run->prompt), "output_ids",
                               id_list(&run->output), "text", joined(run->text), "finish_reason",
                               run->finish == PEN_FINISH_STOP ? "stop" : "length", "timings", "prompt_tokens_per_s",
                               prompt_speed, "decode_tokens_per_s", decode_speed);
    if (object && run->logprobs) json_object_set(object, "logprobs", run->logprobs);
    if (object && run->prompt_logprobs) json_object_set(object, "prompt_logprobs", run->prompt_logprobs);
    bool written =
        object && json_dumpf(object, stdout, JSON_COMPACT) == 0 && fputc('\n', stdout) != EOF && fflush(stdout) == 0;
    json_decref(object);
    return written ? PEN_OK : pen_fail(PEN_IO, "standard output cannot be written");
}

static int larger(int a, int b) {
    return a > b ? a : b;
}

static pen_status work(void *context, pen_engine *engine) {
    run_state *run = context;
    const pen_options *options = run->options;
    run->output.ids = calloc((size_t)options->max_tokens + 1, sizeof *run->output.ids);
    if (options->json) run->text = json_array();
    if (options->json && options->logprobs) run->logprobs = json_array();
    if (options->json && options->prompt_logprobs) run->prompt_logprobs = json_pack("[n]"); /* the first has none */
    if (!run->output.ids) return pen_fail(PEN_NO_MEMORY, "no memory for %d tokens", options->max_tokens);
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
    PEN_TRY(pen_engine_submit(engine, &request));
    run->start_ns = run->first_ns = run->last_ns = pen_clock_ns();
    PEN_TRY(pen_engine_run(engine));
    if (run->finish == PEN_FINISH_BAD_LOGITS)
        return pen_fail(PEN_BAD_INPUT, "%s: the model's output is not a number after %zu tokens", options->config.model,
                        run->output.count);
    finish_text(run);
    if (run->broken) return pen_fail(PEN_IO, "standard output cannot be written");

    size_t later = run->output.count ? run->output.count - 1 : 0;
    double prompt_speed = per_second(run->prompt.count, run->first_ns - run->start_ns);
    double decode_speed = per_second(later, run->last_ns - run->first_ns);
    if (options->json) PEN_TRY(write_json(run, prompt_speed, decode_speed));
    if (!options->json) {
        fputs("\n", stdout);
        fflush(stdout);
    }
    fprintf(stderr,
            "\nprompt: %zu tokens in %.1f ms (%.1f tokens/s); output: %zu tokens, %.1f tokens/s after the first\n",
            run->prompt.count, (double)(run->first_ns - run->start_ns) / 1e6, prompt_speed, run->output.count,
            decode_speed);
    return PEN_OK;
}

pen_status pen_cmd_run(const pen_options *options) {
    run_state run = {.options = options};
    pen_job job = {.prepare = prepare, .work = work, .context = &run};
    pen_status status = pen_job_run(options, &job);
    json_decref(run.text);
    json_decref(run.logprobs);
    json_decref(run.prompt_logprobs);
    pen_detokenizer_destroy(run.detokenizer);
    pen_stopper_destroy(run.stopper);
    pen_tokens_free(&run.prompt);
    pen_tokens_free(&run.output);
    free(run.stop_ids);
    return status;
}
