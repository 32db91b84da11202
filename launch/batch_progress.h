/* How far a batch is, on stderr: on a terminal one line that is rewritten, elsewhere a plain line now and then. */
#ifndef PEN_BATCH_PROGRESS_H
#define PEN_BATCH_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct pen_batch_state {
    int64_t requests, done, failed; /* of the whole input; failed ones are done, too */
    int64_t earlier;                /* done before this process began */
    int64_t prompt_tokens, output_tokens;
    double seconds; /* since this process began to compute */
} pen_batch_state;

/* Writes the line, without its end: "128/1000 requests (2 failed), 345.1 tokens/s, 1m 20s left". */
void pen_batch_progress_text(const pen_batch_state *state, char *text, size_t size);

typedef struct pen_batch_progress {
    bool terminal;
    double next_s; /* the next line is due */
    bool open;     /* a line on the terminal is not ended */
} pen_batch_progress;

/* Shows the state where it is time to. */
void pen_batch_progress_show(pen_batch_progress *progress, const pen_batch_state *state, FILE *out);
void pen_batch_progress_end(pen_batch_progress *progress, FILE *out);

#endif
