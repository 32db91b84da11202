/*
 * A line of a batch's output, as OpenAI's batch output files have them: a completion object, or an error.
 *
 *     {"id": "batch_req_…", "custom_id": "a", "response": {"status_code": 200, "request_id": "req_…", "body": {…}},
 *      "error": null}
 *     {"id": "batch_req_…", "custom_id": "a", "response": null,
 *      "error": {"code": "invalid_request", "message": "…", "line": 7}}
 */
#ifndef PEN_BATCH_ANSWER_H
#define PEN_BATCH_ANSWER_H

#include "batch_line.h"
#include "completion.h"

/* A prompt of a line, and what became of it. */
typedef struct pen_batch_part {
    pen_tokens prompt;
    pen_choice *scored;           /* [prompt.count] from the second token on, where the prompt is scored */
    pen_completion **completions; /* [choices of the line] */
    int64_t request;              /* the front end's number of it */
    void *owner;                  /* the caller's own */
} pen_batch_part;

/* What answers say besides. */
typedef struct pen_batch_origin {
    uint64_t batch; /* any number that another batch has not */
    int64_t line;   /* of the input */
} pen_batch_origin;

typedef struct pen_batch_usage {
    int64_t prompt_tokens, completion_tokens;
} pen_batch_usage;

/* The output line with its "\n", which the caller frees. `model` is named where the request names none; parts[]: one
 * for each of the line's prompts, whose completions are done. */
pen_status pen_batch_answer(const pen_batch_line *line, const pen_batch_part *parts, const pen_tokenizer *tokenizer,
                            const char *model, pen_batch_origin origin, char **text, size_t *length);
pen_batch_usage pen_batch_count(const pen_batch_line *line, const pen_batch_part *parts);

/* The same for a line that failed; message: the last error's, of which `status` is the kind. */
pen_status pen_batch_error(pen_text custom_id, pen_status status, const char *message, pen_batch_origin origin,
                           char **text, size_t *length);

#endif
