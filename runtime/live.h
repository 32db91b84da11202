/*
 * A leader's requests that have not ended: an entry for each completion, with its tokens, found by the number of its
 * sequence. A table in which no two numbers meet: it grows until that is so.
 */
#ifndef PEN_LIVE_H
#define PEN_LIVE_H

#include "engine.h"

typedef struct pen_live {
    int64_t sequence;
    int64_t number; /* of the request: the sequence of its first completion */
    pen_request request;
    int output; /* tokens generated */
    bool held;  /* its next token waits until the hold ends */
    pen_history_rules rules;
    bool has_rules;   /* that change anything */
    int32_t tokens[]; /* prompt, then output */
} pen_live;

typedef struct pen_live_table {
    pen_live **entries; /* [capacity], sequence n in n mod capacity */
    int capacity, count;
} pen_live_table;

/* Whether a request can ever run; see pen_engine_submit. */
pen_status pen_live_check(const pen_engine_options *options, const pen_request *request);
/* The entry of one completion, but for its numbers; freed with free(). Copies the prompt. */
pen_status pen_live_create(const pen_request *request, pen_live **live);

pen_status pen_live_table_create(pen_live_table *table);
void pen_live_table_destroy(pen_live_table *table); /* with the entries */
pen_live *pen_live_find(const pen_live_table *table, int64_t sequence);
/* Takes the entry over. Growing never moves an entry to a lower index. */
pen_status pen_live_insert(pen_live_table *table, pen_live *live);
/* The entry is the caller's again. */
void pen_live_remove(pen_live_table *table, const pen_live *live);

#endif
