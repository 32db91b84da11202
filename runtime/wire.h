/*
 * The wire: what the messages between the stages of a replica look like. Every message begins with a header, and every
 * number in it is checked against the limits that both sides know before it is used.
 *
 * The ranks of a run are machines of one kind (little-endian, IEEE floats); the magic number tells another byte order.
 * Table deltas: stages keep each sequence's block table; a step brings only the blocks that are new.
 */
#ifndef PEN_WIRE_H
#define PEN_WIRE_H

#include "kvcache.h"
#include "status.h"

typedef enum pen_message_type {
    PEN_MESSAGE_STEP = 1, /* leader → all: a microbatch to run */
    PEN_MESSAGE_CHOICES,  /* last stage → leader: the outcome of a step, choices or none */
    PEN_MESSAGE_REST,     /* leader → all: nothing is outstanding; stop the clocks */
    PEN_MESSAGE_MEASURE,  /* leader → all: time a step of this shape */
    PEN_MESSAGE_MEASURED, /* stage → leader */
    PEN_MESSAGE_REPORT,   /* leader → all: send your metrics */
    PEN_MESSAGE_METRICS,  /* stage → leader */
    PEN_MESSAGE_STOP,     /* leader → all */
    PEN_MESSAGE_TYPES
} pen_message_type;

/* First bytes of every message. */
typedef struct pen_header {
    uint32_t magic;
    uint16_t version, type;
    uint32_t length;     /* of the whole message */
    uint32_t plan_epoch; /* of the split that the message is for */
    uint64_t sequence;   /* of a step: its number */
} pen_header;

/* What both sides know; anything beyond it is a bad message. */
typedef struct pen_wire_limits {
    int rows, logit_rows; /* of a microbatch */
    int sequences;        /* numbers below this */
    int context, vocab;
    pen_kv_pools kv;
    uint32_t plan_epoch;
} pen_wire_limits;

/* A run of a step. */
typedef struct pen_step_run {
    int32_t sequence; /* slot of the sequence */
    uint32_t epoch;   /* of the slot: another number is another sequence, whose table starts empty */
    int32_t position, rows;
    int32_t logit_first; /* of the run's rows, [logit_first, logit_first + logit_rows) want logits */
    int32_t logit_rows;
    int32_t table_first; /* the sequence's tables from here on … */
    int32_t table_count; /* … get this many blocks, next in `blocks`: the first group's, then the second's */
} pen_step_run;

/* A step as all stages know it; arrays are sized by pen_step_create. */
typedef struct pen_step {
    uint64_t number;
    uint64_t completed;  /* steps below this number have come back to the leader */
    uint64_t table_hash; /* of what its runs see of their tables: stages that have others would compute nonsense */
    int rows, run_count, logit_count, block_count, copy_count;
    pen_step_run *runs;  /* [≤ limits.rows] */
    int32_t *blocks;     /* [block_count] */
    pen_kv_copy *copies; /* [copy_count] blocks to copy before it runs */
    pen_pick *picks;     /* [logit_count], in row order */
} pen_step;

pen_status pen_step_create(const pen_wire_limits *limits, pen_step *step);
void pen_step_destroy(pen_step *step);

/* Adds what a run sees of one of its tables to the hash of a step's. */
uint64_t pen_wire_hash_table(uint64_t hash, const pen_step_run *run, int window, const int32_t *table);

/* Largest messages, for buffers. */
size_t pen_wire_step_bytes(const pen_wire_limits *limits);
size_t pen_wire_choices_bytes(const pen_wire_limits *limits);

/* Checks the header of `bytes` received bytes. */
pen_status pen_wire_header(const void *message, size_t bytes, uint32_t plan_epoch, pen_header *header);

/* Each returns the message's length; `message` has room for the largest. */
size_t pen_wire_encode_step(const pen_step *step, uint32_t plan_epoch, void *message);
pen_status pen_wire_decode_step(const void *message, size_t bytes, const pen_wire_limits *limits, pen_step *step);

size_t pen_wire_encode_choices(uint64_t number, const pen_choice *choices, const pen_pick *picks, int count,
                               uint32_t plan_epoch, void *message);
/* `picks` are the ones that the step was sent with: they say how many choices there are, and how many
 * log-probabilities in each. */
pen_status pen_wire_decode_choices(const void *message, size_t bytes, const pen_wire_limits *limits, uint64_t number,
                                   const pen_pick *picks, int count, pen_choice *choices);

/* Messages of a header and a fixed body (which may be empty). */
size_t pen_wire_encode_plain(pen_message_type type, uint64_t sequence, uint32_t plan_epoch, const void *body,
                             size_t body_bytes, void *message);
pen_status pen_wire_decode_plain(const void *message, size_t bytes, pen_message_type type, uint32_t plan_epoch,
                                 void *body, size_t body_bytes);

#endif
