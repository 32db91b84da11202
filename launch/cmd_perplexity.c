/* `penstock perplexity`: how well a model predicts a text, token by token, each given the true ones before it. */
#include "clock.h"
#include "command.h"
#include "job.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>

/* Rows of logits at a time: 128 × vocabulary floats. */
enum { LOGIT_ROWS = 128 };

typedef struct score_state {
    const pen_options *options;
    pen_tokens tokens;
    float *logprobs; /* [count − 1] of tokens 2 … N */
    size_t scored;
    pen_finish finish;
} score_state;

static pen_status prepare(void *context, const pen_session *session, pen_tokenizer *tokenizer, pen_session_need *need) {
    score_state *score = context;
    char *text;
    size_t length;
    PEN_TRY(pen_job_text(score->options, &text, &length));
    pen_status status = pen_tokenizer_encode(tokenizer, text, length, PEN_ENCODE_BOS, &score->tokens);
    free(text);
    PEN_TRY(status);
    size_t wanted = (size_t)score->options->tokens;
    if (wanted > score->tokens.count)
        return pen_fail(PEN_USAGE, "the text has %zu tokens, fewer than the %zu of --tokens", score->tokens.count,
                        wanted);
    if (wanted) score->tokens.count = wanted;
    int max_len = pen_session_max_len(session);
    if (score->tokens.count < 2) return pen_fail(PEN_USAGE, "a text of at least 2 tokens is needed to score it");
    if (score->tokens.count > (size_t)max_len)
        return pen_fail(PEN_USAGE,
                        "the text has %zu tokens; the longest sequence allowed is %d: score a part with"
                        " --tokens %d",
                        score->tokens.count, max_len, max_len);
    score->logprobs = calloc(score->tokens.count, sizeof *score->logprobs);
    if (!score->logprobs) return pen_fail(PEN_NO_MEMORY, "no memory for %zu tokens", score->tokens.count);
    *need = (pen_session_need){.context = (int)score->tokens.count, .logit_rows = LOGIT_ROWS, .sequences = 1};
    return PEN_OK;
}

static bool on_token(void *context, int index, int position, const pen_choice *choice) {
    (void)index;
    score_state *score = context;
    score->logprobs[position - 1] = choice->logprob;
    score->scored++;
    return true;
}

static void on_done(void *context, int index, pen_finish finish) {
    (void)index;
    ((score_state *)context)->finish = finish;
}

static pen_status write_result(const score_state *score) {
    double sum = 0;
    for (size_t i = 0; i < score->scored; i++) sum -= score->logprobs[i];
    double mean = sum / (double)score->scored;
    bool written;
    if (score->options->json) {
        json_t *object = json_pack("{s:I, s:f, s:f}", "tokens", (json_int_t)score->tokens.count, "mean_nll", mean,
                                   "perplexity", exp(mean));
        if (object && score->options->token_logprobs) {
            json_t *list = json_array();
            for (size_t i = 0; i < score->scored; i++) json_array_append_new(list, json_real(score->logprobs[i]));
            json_object_set_new(object, "token_logprobs", list);
        }
        written = object && json_dumpf(object, stdout, JSON_COMPACT) == 0 && putchar('\n') != EOF;
        json_decref(object);
    } else {
        written = printf("tokens %zu, mean negative log-likelihood %.6f, perplexity %.4f\n", score->tokens.count, mean,
                         exp(mean)) > 0;
        if (score->options->token_logprobs)
            for (size_t i = 0; i < score->scored; i++) written &= printf("%.6f\n", (double)score->logprobs[i]) > 0;
    }
    return written && fflush(stdout) == 0 ? PEN_OK : pen_fail(PEN_IO, "standard output cannot be written");
}

static pen_status work(void *context, pen_front *front) {
    score_state *score = context;
    pen_request request = {
        .prompt = score->tokens.ids,
        .prompt_count = (int)score->tokens.count,
        .score = true,
        .on_token = on_token,
        .on_done = on_done,
        .context = score,
    };
    PEN_TRY(pen_front_submit(front, &request, NULL));
    int64_t start = pen_clock_ns();
    PEN_TRY(pen_front_run(front));
    double seconds = (double)(pen_clock_ns() - start) / 1e9;
    if (score->finish == PEN_FINISH_BAD_LOGITS)
        return pen_fail(PEN_BAD_INPUT, "%s: the model's output is not a number", score->options->config.model);
    PEN_TRY(write_result(score));
    fprintf(stderr, "\nscored %zu tokens in %.2f s (%.1f tokens/s)\n", score->tokens.count, seconds,
            (double)score->tokens.count / seconds);
    return PEN_OK;
}

pen_status pen_cmd_perplexity(const pen_options *options) {
    score_state score = {.options = options};
    pen_job job = {.prepare = prepare, .work = work, .context = &score};
    pen_status status = pen_job_run(options, &job);
    pen_tokens_free(&score.tokens);
    free(score.logprobs);
    return status;
}
