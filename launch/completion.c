/* Completions; see completion.h. */
#include "completion.h"

#include "stopper.h"
#include "tokens.h"

#include <stdlib.h>
#include <string.h>

static pen_status fill(const pen_tokenizer *tokenizer, const pen_completion_options *options, pen_completion *c) {
    size_t tokens = (size_t)options->max_tokens + 1;
    PEN_TRY(pen_detokenizer_create(tokenizer, PEN_DECODE_CONTINUED, &c->detokenizer));
    PEN_TRY(pen_stopper_create(options->stop, options->stop_count, &c->stopper));
    c->min_tokens = options->min_tokens;
    c->output.ids = calloc(tokens, sizeof *c->output.ids);
    if (options->keeps_choices) c->choices = calloc(tokens, sizeof *c->choices);
    if (!c->output.ids || (options->keeps_choices && !c->choices))
        return pen_fail(PEN_NO_MEMORY, "no memory for %d tokens", options->max_tokens);
    return PEN_OK;
}

pen_status pen_completion_create(const pen_tokenizer *tokenizer, const pen_completion_options *options,
                                 pen_completion **out) {
    *out = NULL;
    pen_completion *completion = calloc(1, sizeof *completion);
    if (!completion) return pen_fail(PEN_NO_MEMORY, "no memory for a completion");
    pen_status status = fill(tokenizer, options, completion);
    if (status == PEN_OK)
        *out = completion;
    else
        pen_completion_destroy(completion);
    return status;
}

void pen_completion_destroy(pen_completion *completion) {
    if (!completion) return;
    pen_detokenizer_destroy(completion->detokenizer);
    pen_stopper_destroy(completion->stopper);
    pen_tokens_free(&completion->output);
    free(completion->choices);
    free(completion->text);
    free(completion);
}

static void append(pen_completion *c, pen_text text) {
    if (text.length == 0 || c->failed) return;
    if (c->capacity - c->length < text.length) {
        size_t capacity = 2 * c->capacity + text.length + 64;
        char *grown = realloc(c->text, capacity);
        c->failed = grown == NULL;
        if (c->failed) return;
        c->text = grown;
        c->capacity = capacity;
    }
    memcpy(c->text + c->length, text.data, text.length);
    c->length += text.length;
}

/* Shows the part of the text that no stop string can begin in. */
static void push_text(pen_completion *c, pen_text text) {
    bool armed = c->output.count > (size_t)c->min_tokens;
    pen_stopper_text shown = pen_stopper_push(c->stopper, text, armed);
    append(c, shown.held);
    append(c, shown.fresh);
    c->stopped = shown.stopped;
}

bool pen_completion_push(pen_completion *c, const pen_choice *choice) {
    if (c->choices) c->choices[c->output.count] = *choice;
    c->output.ids[c->output.count++] = choice->token; /* room for all was made */
    push_text(c, pen_detokenizer_push(c->detokenizer, choice->token));
    return !c->stopped && !c->failed;
}

void pen_completion_finish(pen_completion *c, pen_finish finish) {
    c->done = true;
    c->finish = finish;
    if (finish == PEN_FINISH_BAD_LOGITS) return;
    if (!c->stopped) push_text(c, pen_detokenizer_finish(c->detokenizer));
    if (c->stopped)
        c->finish = PEN_FINISH_STOP;
    else
        append(c, pen_stopper_finish(c->stopper));
}

const char *pen_completion_reason(const pen_completion *c) {
    return c->finish == PEN_FINISH_STOP ? "stop" : "length";
}

pen_status pen_completion_end_ids(const pen_tokenizer *tokenizer, pen_tokens *ids) {
    int vocab = pen_tokenizer_vocab_size(tokenizer);
    for (int32_t id = 0; id < vocab; id++)
        if (pen_tokenizer_is_end(tokenizer, id)) PEN_TRY(pen_tokens_append(ids, &id, 1));
    return PEN_OK;
}
