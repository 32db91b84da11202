/*
 * What front end and leaders write to each other: the letters that the mail carries. Numbers in them are checked before
 * they are used; a request's own numbers are checked by the engine that is to run it.
 *
 * Times are sent as spans, since machines have clocks of their own.
 */
#ifndef PEN_FRONT_WIRE_H
#define PEN_FRONT_WIRE_H

#include "engine.h"
#include "replica_queue.h"
#include "world.h"

typedef enum pen_letter_kind {
    PEN_LETTER_READY = 1, /* leader → front: double ms[stages], what its stages take */
    PEN_LETTER_SUBMIT,    /* front → leader: a request */
    PEN_LETTER_CANCEL,    /* front → leader, and victim → thief: pen_cancel */
    PEN_LETTER_ADOPTED,   /* front → victim: pen_stamp of the life with the thief */
    PEN_LETTER_NOTICES,   /* leader → front: what became of requests */
    PEN_LETTER_LOAD,      /* leader → all others and front: pen_replica_load */
    PEN_LETTER_ASK,       /* thief → victim: pen_steal_ask */
    PEN_LETTER_GIVE,      /* victim → thief: requests, or none */
    PEN_LETTER_MOVED,     /* victim → front: pen_move */
    PEN_LETTER_TAKEN,     /* thief → front: pen_stamp */
    PEN_LETTER_HOLD,      /* front → leader: int32_t */
    PEN_LETTER_LAP,       /* front → leader */
    PEN_LETTER_REPORT,    /* front → leader: send the metrics of your stages' last lap */
    PEN_LETTER_METRICS,   /* leader → front: pen_metrics[stages] */
    PEN_LETTER_DEAD,      /* leader → front: int32_t, a rank that is gone */
    PEN_LETTER_LOST,      /* front → leader: int32_t, a replica that is gone */
    PEN_LETTER_DRAIN,     /* front → leader: all requests have ended */
    PEN_LETTER_DRAINED,   /* leader → front: pen_queue_counts */
    PEN_LETTER_STOP,      /* front → leader */
    PEN_LETTER_KINDS
} pen_letter_kind;

typedef struct pen_cancel {
    pen_stamp stamp;
    int32_t index; /* of the completion that is to end; −1: all */
    int32_t unused;
} pen_cancel;

typedef struct pen_move {
    pen_stamp stamp; /* of the life with the thief */
    int32_t thief, unused;
} pen_move;

pen_status pen_letter_kind_of(const void *letter, size_t bytes, pen_letter_kind *kind);

/* ---- Letters of a fixed body, which may be empty ------------------------------------------------------------------
 */

/* The caller frees blob->data. */
pen_status pen_letter_encode(pen_letter_kind kind, const void *body, size_t bytes, pen_blob *letter);
pen_status pen_letter_decode(const void *letter, size_t bytes, pen_letter_kind kind, void *body, size_t body_bytes);

/* ---- Requests ---------------------------------------------------------------------------------------------------- */

/* A request as bytes, without callbacks: prompt and what is given, stop ids, biases. */
pen_status pen_payload_encode(const pen_request *request, pen_blob *payload);
/* The request points into the payload, which is aligned as malloc aligns; context and callbacks are left alone. */
pen_status pen_payload_decode(const void *payload, size_t bytes, pen_request *request);

/* SUBMIT (of one) and GIVE. Payloads are copied. */
pen_status pen_letter_encode_requests(pen_letter_kind kind, const pen_queued *entries, int count, int64_t now_ns,
                                      pen_blob *letter);
/* entries[capacity] get payloads of their own, which are the caller's. */
pen_status pen_letter_decode_requests(const void *letter, size_t bytes, pen_letter_kind kind, int64_t now_ns,
                                      pen_queued *entries, int capacity, int *count);

/* ---- Notices ----------------------------------------------------------------------------------------------------- */

typedef enum pen_notice_kind { PEN_NOTICE_STARTED, PEN_NOTICE_TOKEN, PEN_NOTICE_DONE } pen_notice_kind;

typedef struct pen_notice {
    pen_stamp stamp;
    pen_notice_kind kind;
    int32_t index;    /* of the completion */
    int32_t position; /* of a token */
    pen_finish finish;
    int32_t top; /* best log-probabilities in `choice` */
    pen_choice choice;
} pen_notice;

/* Notices that are gathered for a letter; zeros: none. It grows as it must. */
typedef struct pen_notices {
    unsigned char *data;
    size_t bytes, capacity;
    int count;
} pen_notices;

pen_status pen_notices_add(pen_notices *notices, const pen_notice *notice);
/* The letter, which stays the notices'; they are empty then, for the next. */
pen_blob pen_notices_letter(pen_notices *notices);
void pen_notices_free(pen_notices *notices);

/* Reads a letter's notices one by one: *offset is 0 at first; false at the end, or where the letter is bad, which
 * *status says. */
bool pen_notices_next(const void *letter, size_t bytes, size_t *offset, pen_notice *notice, pen_status *status);

#endif
