/*
 * A completion as it grows: tokens go in, and its text comes out, which ends before a stop string. What all commands
 * have in common that generate text.
 */
#ifndef PEN_COMPLETION_H
#define PEN_COMPLETION_H

#include "engine.h"
#include "tokenizer.h"

typedef struct pen_completion_options {
    const char *const *stop; /* [stop_count] stop strings */
    int stop_count;
    int max_tokens;
    int min_tokens;     /* no stop string ends in the first min_tokens tokens */
    bool keeps_choices; /* for their log-probabilities; else only the ids */
} pen_completion_options;

/* Read any field, let only the functions here change them. */
typedef struct pen_completion {
    pen_tokens output;
    pen_choice *choices; /* [output.count], where they are kept */
    char *text;          /* [length] what may be shown so far; NULL: nothing */
    size_t length;
    pen_finish finish;
    bool done;
    bool stopped; /* at a stop string */
    bool failed;  /* there was no memory for the text */
    int min_tokens;
    size_t capacity; /* of `text` */
    struct pen_detokenizer *detokenizer;
    struct pen_stopper *stopper;
} pen_completion;

/* PEN_USAGE for stop strings that cannot be. The tokenizer outlives the completion. */
pen_status pen_completion_create(const pen_tokenizer *tokenizer, const pen_completion_options *options,
                                 pen_completion **completion);
void pen_completion_destroy(pen_completion *completion);

/* The next of at most max_tokens tokens. False: the text ends here, or `failed`. */
bool pen_completion_push(pen_completion *completion, const pen_choice *choice);
/* The end, as the engine reports it; at a stop string it is PEN_FINISH_STOP. */
void pen_completion_finish(pen_completion *completion, pen_finish finish);

/* "stop" or "length", of a completion that ended well. */
const char *pen_completion_reason(const pen_completion *completion);

/* Appends the tokens that end a completion. */
pen_status pen_completion_end_ids(const pen_tokenizer *tokenizer, pen_tokens *ids);

#endif
