/*
 * The output of a batch and the journal beside it, OUTPUT.journal, by which a batch that was killed goes on: every line
 * of the input gets exactly one line in the output.
 *
 * The journal begins with what the batch is (of which input, model and options) and then has a record for each line of
 * the output, in its order: the input's line, the length of the output line, and a hash of it. The output line is
 * written first, its record after it. At a restart the output is read as far as the records prove it, by content; there
 * both files are cut, and what was behind is computed again, which is at most what was being written. So no state in
 * which a kill, a full disk or the loss of power leaves the two files is wrong, whatever of them reached the disk, and
 * nothing needs to be synchronised while the batch runs: the kernel writes back within its half a minute. At the end
 * the output is made safe, and the journal removed. An output without a journal is complete, and never touched.
 *
 * The journal is locked by the process that writes; a new one waits for it, since processes of a killed job may live
 * for a moment.
 */
#ifndef PEN_JOURNAL_H
#define PEN_JOURNAL_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct pen_journal pen_journal;

/* What a batch is. */
typedef struct pen_journal_key {
    uint64_t input_bytes, input_hash;
    uint64_t model, settings; /* hashes */
} pen_journal_key;

typedef struct pen_journal_options {
    int64_t lines;        /* of the input */
    double patience_s;    /* for the lock */
    void (*beat)(void *); /* called now and then while it opens; or NULL */
    void *beat_context;
} pen_journal_options;

/* Begins an output, or goes on with one that this key began. PEN_USAGE where the output is there and complete, or where
 * the journal tells of something else. */
pen_status pen_journal_open(const char *output, const pen_journal_key *key, const pen_journal_options *options,
                            pen_journal **journal);
void pen_journal_close(pen_journal *journal);

int64_t pen_journal_count(const pen_journal *journal);            /* lines of the output */
bool pen_journal_has(const pen_journal *journal, int64_t number); /* whether this line of the input, from 1, is there */

/* Appends the output line of the input's line `number`; `text` ends with "\n". After a failure the journal can only be
 * closed. */
pen_status pen_journal_write(pen_journal *journal, int64_t number, const char *text, size_t length);

/* Notes that a replica was lost: a record without a line. */
pen_status pen_journal_note_loss(pen_journal *journal, int replica);
int64_t pen_journal_losses(const pen_journal *journal); /* since the batch began */

/* The output is complete. */
pen_status pen_journal_finish(pen_journal *journal);

#endif
