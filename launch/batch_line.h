/*
 * A line of a batch's input: a request as OpenAI's batch files have them, checked and taken apart.
 *
 *     {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "…", "max_tokens": 16, …}}
 *
 * Lines come from outside. Whatever is wrong with one is said of that line, with the field that it concerns; fields
 * that we do not know are wrong. What the model's vocabulary or context would not allow is not known here.
 */
#ifndef PEN_BATCH_LINE_H
#define PEN_BATCH_LINE_H

#include "history.h"
#include "tokenizer.h"

#include <jansson.h>

enum {
    PEN_BATCH_LINE_MOST = 16 << 20,    /* bytes */
    PEN_BATCH_COMPLETIONS_MOST = 2048, /* prompts · n */
    PEN_BATCH_STOPS_MOST = 16,
    PEN_BATCH_BIASES_MOST = 1024,
};

/* A text, or ids. */
typedef struct pen_batch_prompt {
    pen_text text;
    int32_t *ids; /* [count], or NULL */
    int count;
} pen_batch_prompt;

typedef struct pen_batch_line {
    json_t *json;       /* the whole line, to which the texts below belong */
    pen_text custom_id; /* data NULL: it has none */
    pen_text model;     /* data NULL: none is named */
    pen_batch_prompt *prompts;
    int prompt_count;
    int max_tokens, min_tokens, top_k;
    int priority;         /* lower is earlier */
    int choices, best_of; /* of every prompt */
    int logprobs;         /* best K to report per token besides its own; −1: none at all */
    float temperature, top_p, min_p;
    float repetition_penalty, presence_penalty, frequency_penalty;
    bool echo, ignore_eos, stream;
    bool seeded;
    int64_t seed;
    const char *stop[PEN_BATCH_STOPS_MOST];
    int stop_count;
    pen_logit_bias *biases; /* [bias_count] */
    int bias_count;
} pen_batch_line;

/* PEN_BAD_INPUT: the line is not JSON; PEN_USAGE: it is no such request; PEN_UNSUPPORTED: it is a request that we do
 * not serve. What could be read, at least custom_id, is in *line all the same, and is freed in every case. */
pen_status pen_batch_line_parse(const char *text, size_t length, pen_batch_line *line);
void pen_batch_line_free(pen_batch_line *line);

/* Whether the prompt's own tokens are scored. */
static inline bool pen_batch_line_scores(const pen_batch_line *line) {
    return line->echo && (line->logprobs >= 0 || line->max_tokens == 0);
}

#endif
