/*
 * The loop-back link: a stage's messages to itself. A send is copied into the receive that waits for its channel and
 * lane, oldest first.
 */
#include "link_class.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { TRANSFERS = 64 };

typedef enum state { FREE, RECEIVING, SENDING, DONE } state;

typedef struct transfer {
    state state;
    uint64_t order; /* of starting */
    pen_channel channel;
    int lane;
    void *target;
    const void *source;
    const pen_event *after;
    size_t bytes; /* of the memory, then of what arrived */
} transfer;

typedef struct local_link {
    pen_link base;
    uint64_t order;
    transfer transfers[TRANSFERS];
} local_link;

static pen_status start(pen_link *base, const transfer *t, pen_transfer *number) {
    local_link *link = (local_link *)base;
    for (int i = 0; i < TRANSFERS; i++) {
        if (link->transfers[i].state != FREE) continue;
        link->transfers[i] = *t;
        link->transfers[i].order = link->order++;
        *number = i + 1;
        return PEN_OK;
    }
    return pen_fail(PEN_INTERNAL, "more than %d transfers on a local link", TRANSFERS);
}

static pen_status local_receive(pen_link *base, pen_channel channel, int stage, int lane, void *data, size_t bytes,
                                pen_transfer *number) {
    (void)stage; /* there is only this one */
    transfer t = {.state = RECEIVING, .channel = channel, .lane = lane, .target = data, .bytes = bytes};
    return start(base, &t, number);
}

static pen_status local_send(pen_link *base, pen_channel channel, int stage, int lane, const void *data, size_t bytes,
                             const pen_event *after, pen_transfer *number) {
    (void)stage; /* there is only this one */
    transfer t = {.state = SENDING, .channel = channel, .lane = lane, .source = data, .after = after, .bytes = bytes};
    return start(base, &t, number);
}

/* The oldest transfer in `wanted` state on a channel and lane; NULL: none. */
static transfer *oldest(local_link *link, state wanted, pen_channel channel, int lane) {
    transfer *found = NULL;
    for (transfer *t = link->transfers; t < link->transfers + TRANSFERS; t++)
        if (t->state == wanted && t->channel == channel && t->lane == lane && (!found || t->order < found->order))
            found = t;
    return found;
}

static pen_status local_progress(pen_link *base, bool *moved) {
    local_link *link = (local_link *)base;
    for (transfer *receive = link->transfers; receive < link->transfers + TRANSFERS; receive++) {
        if (receive->state != RECEIVING || receive != oldest(link, RECEIVING, receive->channel, receive->lane))
            continue;
        transfer *send = oldest(link, SENDING, receive->channel, receive->lane);
        if (!send || (send->after && !pen_event_done(send->after))) continue;
        if (send->bytes > receive->bytes)
            return pen_fail(PEN_INTERNAL, "%s message of %zu bytes where %zu were expected",
                            pen_channel_name(send->channel), send->bytes, receive->bytes);
        if (send->bytes > 0) memcpy(receive->target, send->source, send->bytes);
        receive->bytes = send->bytes;
        receive->state = send->state = DONE;
        *moved = true;
    }
    return PEN_OK;
}

static bool local_done(pen_link *base, pen_transfer number, size_t *bytes) {
    transfer *t = &((local_link *)base)->transfers[number - 1];
    if (t->state != DONE) return false;
    if (bytes) *bytes = t->bytes;
    t->state = FREE;
    return true;
}

static void local_destroy(pen_link *base) {
    free(base);
}

pen_status pen_link_create_local(pen_link **out) {
    static const pen_link_class class = {.name = "local",
                                         .receive = local_receive,
                                         .send = local_send,
                                         .progress = local_progress,
                                         .done = local_done,
                                         .destroy = local_destroy};
    local_link *link = calloc(1, sizeof *link);
    if (!link) return pen_fail(PEN_NO_MEMORY, "no memory for a link");
    link->base.class = &class;
    *out = &link->base;
    return PEN_OK;
}
