/*
 * Fuzzes the lines of a batch's input. A mutation changes the line as JSON.
 *
 * A line that is taken is within all limits. One that is refused is refused for a reason that is its own, and the
 * answer that says so is a line of JSON.
 */
#include "batch_answer.h"
#include "json_mutator.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool truth) {
    if (!truth) abort();
}

static void check_taken(const pen_batch_line *line) {
    require(line->custom_id.data && line->prompt_count >= 1 && line->choices >= 1);
    require((int64_t)line->prompt_count * line->choices <= PEN_BATCH_COMPLETIONS_MOST);
    require(line->max_tokens >= line->min_tokens && line->min_tokens >= 0);
    require(line->max_tokens > 0 || pen_batch_line_scores(line));
    require(line->logprobs >= -1 && line->logprobs <= PEN_TOP_LOGPROBS && line->top_k >= -1);
    require(line->temperature >= 0 && line->temperature <= 100 && line->top_p >= 0 && line->top_p <= 1);
    require(line->repetition_penalty > 0 && isfinite(line->presence_penalty) && isfinite(line->frequency_penalty));
    for (int p = 0; p < line->prompt_count; p++) {
        const pen_batch_prompt *prompt = &line->prompts[p];
        require(prompt->ids ? prompt->count > 0 : prompt->text.data != NULL);
        for (int i = 0; i < prompt->count; i++) require(prompt->ids[i] >= 0);
    }
    require(line->stop_count <= PEN_BATCH_STOPS_MOST && line->bias_count <= PEN_BATCH_BIASES_MOST);
    for (int i = 0; i < line->stop_count; i++) require(line->stop[i][0] != '\0');
    for (int i = 0; i < line->bias_count; i++) require(line->biases[i].token >= 0 && isfinite(line->biases[i].value));
}

static void check_refused(const pen_batch_line *line, pen_status status) {
    char *text;
    size_t length;
    pen_batch_origin origin = {1, 2};
    require(status == PEN_BAD_INPUT || status == PEN_USAGE || status == PEN_UNSUPPORTED);
    require(pen_batch_error(line->custom_id, status, pen_last_error(), origin, &text, &length) == PEN_OK);
    require(memchr(text, '\n', length) == text + length - 1);
    json_t *answer = json_loadb(text, length, JSON_ALLOW_NUL, NULL);
    require(json_is_object(answer));
    json_decref(answer);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = malloc(size ? size : 1); /* of its own, so that a read past its end is seen */
    require(text != NULL);
    memcpy(text, data, size);
    pen_batch_line line;
    pen_status status = pen_batch_line_parse(text, size, &line);
    free(text); /* what the line points to is its own */
    if (status == PEN_OK)
        check_taken(&line);
    else
        check_refused(&line, status);
    pen_batch_line_free(&line);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    srand(seed);
    return rand() % 6 == 0 ? LLVMFuzzerMutate(data, size, max_size) : json_mutate(data, size, max_size);
}
