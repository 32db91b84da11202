/* How far a batch is, on stderr: on a terminal one line that is rewritten, elsewhere a plain line now and then. */
#ifndef PEN_BATCH_PROGRESS_H
#define PEN_BATCH_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { PEN_BATCH_BARS_MOST = 32, PEN_BATCH_PROGRESS_TEXT = 256 };

typedef struct pen_batch_state {
    int64_t requests, done, failed; /* of the whole input; failed ones are done, too */
    int64_t earlier;                /* done before this process began */
    int64_t prompt_tokens, output_tokens;
    double seconds; /* since this process began to compute */
    int replicas;
    double busy[PEN_BATCH_BARS_MOST]; /* of the first replicas: which part of their time */
} pen_batch_state;

/* Writes the line, without its end, with a bar for each of several replicas:
 * "128/1000 requests (2 failed), 345.1 tokens/s, 1m 20s left, replicas ▇█". */
void pen_batch_progress_text(const pen_batch_state *state, char text[PEN_BATCH_PROGRESS_TEXT]);

typedef struct pen_batch_progress {
    bool terminal;
    double next_s; /* the next line is due */
    bool open;     /* a line on the terminal is not ended */
} pen_batch_progress;

/* Shows the state where it is time to. */
void pen_batch_progress_show(pen_batch_progress *progress, const pen_batch_state *state, FILE *out);
void pen_batch_progress_end(pen_batch_progress *progress, FILE *out);

#endif
