/*
 * The link with a delay: hands everything to another link, but each message later, as a slower network would. A message
 * is on the wire for its bytes' time, one after the other of a channel towards a stage, and then for the latency.
 */
#include "link_class.h"

#include "clock.h"

#include <math.h>
#include <stdlib.h>

typedef enum state { FREE, HELD, HANDED_ON } state;

typedef struct transfer {
    state state;
    pen_channel channel;
    int stage, lane;
    const void *data;
    size_t bytes;
    const pen_event *after; /* until it is done, and the time of release known */
    int64_t release_ns;     /* 0: waits for `after` */
    pen_transfer inner;
} transfer;

typedef struct delay_link {
    pen_link base;
    pen_link *inner;
    double latency_ns, ns_per_byte;
    int capacity, used, held; /* transfers beyond `used` are free */
    transfer *transfers;      /* [capacity] */
    int64_t *wire_free_ns;    /* [stages][PEN_CHANNEL_COUNT] */
} delay_link;

static pen_status claim(delay_link *link, const transfer *t, pen_transfer *number) {
    int i = 0;
    while (i < link->used && link->transfers[i].state != FREE) i++;
    if (i == link->capacity) return pen_fail(PEN_INTERNAL, "more than %d transfers on a link", link->capacity);
    if (i == link->used) link->used++;
    link->transfers[i] = *t;
    *number = i + 1;
    return PEN_OK;
}

static pen_status delay_receive(pen_link *base, pen_channel channel, int stage, int lane, void *data, size_t bytes,
                                pen_transfer *number) {
    delay_link *link = (delay_link *)base;
    transfer t = {.state = HANDED_ON};
    PEN_TRY(pen_link_receive(link->inner, channel, stage, lane, data, bytes, &t.inner));
    return claim(link, &t, number);
}

/* The message is ready: from now on it is known when it will have arrived. */
static void enter_wire(delay_link *link, transfer *t, int64_t ready_ns) {
    int64_t *wire = &link->wire_free_ns[t->stage * PEN_CHANNEL_COUNT + (int)t->channel];
    if (*wire < ready_ns) *wire = ready_ns;
    *wire += llround((double)t->bytes * link->ns_per_byte);
    t->release_ns = *wire + llround(link->latency_ns);
}

static pen_status delay_send(pen_link *base, pen_channel channel, int stage, int lane, const void *data, size_t bytes,
                             const pen_event *after, pen_transfer *number) {
    delay_link *link = (delay_link *)base;
    transfer t = {
        .state = HELD, .channel = channel, .stage = stage, .lane = lane, .data = data, .bytes = bytes, .after = after};
    /* What the device will have done by a known time enters the wire at that time, whenever somebody looks. */
    int64_t due = after ? pen_event_due_ns(after) : 0, now = pen_clock_ns();
    if (due > 0)
        enter_wire(link, &t, due);
    else if (!after || pen_event_done(after))
        enter_wire(link, &t, now);
    link->held++;
    return claim(link, &t, number);
}

static pen_status delay_progress(pen_link *base, bool *moved) {
    delay_link *link = (delay_link *)base;
    int64_t now = pen_clock_ns();
    for (int i = 0; link->held > 0 && i < link->used; i++) {
        transfer *t = &link->transfers[i];
        if (t->state == HELD && t->release_ns == 0 && pen_event_done(t->after)) enter_wire(link, t, now);
    }
    for (;;) { /* in the order of release: messages of a channel must not overtake each other */
        transfer *next = NULL;
        for (int i = 0; link->held > 0 && i < link->used; i++) {
            transfer *t = &link->transfers[i];
            if (t->state != HELD || t->release_ns == 0 || t->release_ns > now) continue;
            if (!next || t->release_ns < next->release_ns) next = t;
        }
        if (!next) break;
        PEN_TRY(pen_link_send(link->inner, next->channel, next->stage, next->lane, next->data, next->bytes, NULL,
                              &next->inner));
        next->state = HANDED_ON;
        link->held--;
        *moved = true;
    }
    return pen_link_progress(link->inner, moved);
}

static bool delay_done(pen_link *base, pen_transfer number, size_t *bytes) {
    delay_link *link = (delay_link *)base;
    transfer *t = &link->transfers[number - 1];
    if (t->state != HANDED_ON || !pen_link_done(link->inner, t->inner, bytes)) return false;
    t->state = FREE;
    while (link->used > 0 && link->transfers[link->used - 1].state == FREE) link->used--;
    return true;
}

static int64_t delay_due_ns(const pen_link *base) {
    const delay_link *link = (const delay_link *)base;
    int64_t due = 0;
    for (int i = 0; link->held > 0 && i < link->used; i++) {
        const transfer *t = &link->transfers[i];
        if (t->state == HELD && t->release_ns > 0 && (due == 0 || t->release_ns < due)) due = t->release_ns;
    }
    return due;
}

static void delay_destroy(pen_link *base) {
    delay_link *link = (delay_link *)base;
    pen_link_destroy(link->inner);
    free(link->transfers);
    free(link->wire_free_ns);
    free(link);
}

pen_status pen_link_create_delay(pen_link *inner, int stages, double latency_ms, double ms_per_byte, pen_link **out) {
    static const pen_link_class class = {.name = "delayed",
                                         .receive = delay_receive,
                                         .send = delay_send,
                                         .progress = delay_progress,
                                         .done = delay_done,
                                         .due_ns = delay_due_ns,
                                         .destroy = delay_destroy};
    enum { TRANSFERS = 64, TRANSFERS_PER_STAGE = 16 };
    delay_link *link = calloc(1, sizeof *link);
    if (link) {
        link->base.class = &class;
        link->capacity = TRANSFERS + TRANSFERS_PER_STAGE * stages;
        link->latency_ns = latency_ms * 1e6;
        link->ns_per_byte = ms_per_byte * 1e6;
        link->transfers = calloc((size_t)link->capacity, sizeof *link->transfers);
        link->wire_free_ns = calloc((size_t)stages * PEN_CHANNEL_COUNT, sizeof *link->wire_free_ns);
        link->inner = inner;
    }
    if (!link || !link->transfers || !link->wire_free_ns) {
        if (link)
            delay_destroy(&link->base);
        else
            pen_link_destroy(inner);
        return pen_fail(PEN_NO_MEMORY, "no memory for a link");
    }
    *out = &link->base;
    return PEN_OK;
}
