/*
 * The input of a batch: a file of lines, read twice. Opening it reads it once, for its size, its hash and the number of
 * its lines; then its lines come one by one, so that memory holds one of them. It must not change between the two.
 */
#ifndef PEN_BATCH_INPUT_H
#define PEN_BATCH_INPUT_H

#include "tokenizer.h"

typedef struct pen_batch_input pen_batch_input;

/* What the first reading found. */
typedef struct pen_batch_input_facts {
    uint64_t bytes, hash;
    int64_t lines, requests; /* all lines; those that are not blank */
} pen_batch_input_facts;

/* Lines longer than `line_most` bytes are passed over. PEN_USAGE for what is no regular file: it could not be read
 * again after an interruption. `beat` (or NULL) is called now and then during the first reading. */
pen_status pen_batch_input_open(const char *path, size_t line_most, void (*beat)(void *), void *beat_context,
                                pen_batch_input **input);
void pen_batch_input_close(pen_batch_input *input);
pen_batch_input_facts pen_batch_input_about(const pen_batch_input *input);
bool pen_batch_input_is(const pen_batch_input *input, const char *path); /* the same file */

typedef struct pen_batch_input_line {
    int64_t number; /* from 1; 0: there are no more */
    pen_text text;  /* without its end; data NULL: too long. Valid until the next call */
} pen_batch_input_line;

/* The next line that is not blank. A line ends with "\n", the last one perhaps without; a mark of UTF-8 at the file's
 * beginning does not count. PEN_BAD_INPUT at the end of a file that has changed. */
pen_status pen_batch_input_next(pen_batch_input *input, pen_batch_input_line *line);

#endif
