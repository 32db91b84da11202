/*
 * The link of a simulated pipeline: hands everything to a real link, and makes it take as long as the simulated network
 * would. A message is on the wire for its bytes' time, one after the other of a channel towards a stage, and then for
 * the latency.
 *
 * Rows of a simulated device mean nothing: instead of them goes, at once, a notice of when they would have arrived, and
 * both ends hold the transfer back until then. So the receiver knows its deadline long before, and can sleep where it
 * would otherwise have to poll; and 64 ranks of one machine do not spend it on copying. Other messages mean something:
 * the sender holds them back.
 */
#include "link_class.h"

#include "clock.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

typedef enum state { FREE, HELD, HANDED_ON } state;

typedef struct transfer {
    state state;
    pen_channel channel;
    int stage, lane;
    const void *data;
    size_t bytes;
    int64_t arrival_ns; /* not done before; what the notice says. 0: unknown yet */
    pen_transfer inner; /* of the message or the notice; 0: none yet, or done */
} transfer;

typedef struct sim_link {
    pen_link base;
    pen_link *inner;
    double latency_ns, ns_per_byte;
    int capacity, used, held; /* transfers beyond `used` are free */
    transfer *transfers;      /* [capacity] */
    int64_t *wire_free_ns;    /* [stages][PEN_CHANNEL_COUNT] */
} sim_link;

static pen_status claim(sim_link *link, const transfer *t, pen_transfer *number) {
    int i = 0;
    while (i < link->used && link->transfers[i].state != FREE) i++;
    if (i == link->capacity) return pen_fail(PEN_INTERNAL, "more than %d transfers on a link", link->capacity);
    if (i == link->used) link->used++;
    link->transfers[i] = *t;
    *number = i + 1;
    return PEN_OK;
}

static pen_status sim_receive(pen_link *base, pen_channel channel, int stage, int lane, void *data, size_t bytes,
                              pen_transfer *number) {
    sim_link *link = (sim_link *)base;
    transfer made = {.state = HANDED_ON, .channel = channel, .bytes = bytes};
    PEN_TRY(claim(link, &made, number));
    transfer *t = &link->transfers[*number - 1];
    if (channel == PEN_CHANNEL_ACTIVATION)
        return pen_link_receive(link->inner, channel, stage, lane, &t->arrival_ns, sizeof t->arrival_ns, &t->inner);
    return pen_link_receive(link->inner, channel, stage, lane, data, bytes, &t->inner);
}

static pen_status sim_receive_rows(pen_link *base, int stage, int lane, pen_buffer *rows, size_t bytes,
                                   pen_transfer *number) {
    (void)rows;
    return sim_receive(base, PEN_CHANNEL_ACTIVATION, stage, lane, NULL, bytes, number);
}

static int64_t arrival(sim_link *link, const transfer *t, int64_t ready_ns) {
    int64_t *wire = &link->wire_free_ns[t->stage * PEN_CHANNEL_COUNT + (int)t->channel];
    if (*wire < ready_ns) *wire = ready_ns;
    *wire += llround((double)t->bytes * link->ns_per_byte);
    return *wire + llround(link->latency_ns);
}

static pen_status hand_on(sim_link *link, transfer *t) {
    bool notice = t->channel == PEN_CHANNEL_ACTIVATION;
    t->state = HANDED_ON;
    return pen_link_send(link->inner, t->channel, t->stage, t->lane, notice ? &t->arrival_ns : t->data,
                         notice ? sizeof t->arrival_ns : t->bytes, NULL, &t->inner);
}

static pen_status sim_send(pen_link *base, pen_channel channel, int stage, int lane, const void *data, size_t bytes,
                           const pen_event *after, pen_transfer *number) {
    sim_link *link = (sim_link *)base;
    transfer made = {.channel = channel, .stage = stage, .lane = lane, .data = data, .bytes = bytes};
    int64_t due = after ? pen_event_due_ns(after) : 0, now = pen_clock_ns();
    assert(!after || due > 0);
    made.arrival_ns = arrival(link, &made, due > 0 ? due : now);
    made.state = made.arrival_ns <= now || channel == PEN_CHANNEL_ACTIVATION ? HANDED_ON : HELD;
    PEN_TRY(claim(link, &made, number));
    transfer *t = &link->transfers[*number - 1];
    if (t->state == HANDED_ON) return hand_on(link, t);
    link->held++;
    return PEN_OK;
}

static pen_status sim_send_rows(pen_link *base, int stage, int lane, pen_buffer *rows, size_t bytes,
                                const pen_event *after, pen_transfer *number) {
    (void)rows;
    return sim_send(base, PEN_CHANNEL_ACTIVATION, stage, lane, NULL, bytes, after, number);
}

static pen_status sim_progress(pen_link *base, bool *moved) {
    sim_link *link = (sim_link *)base;
    int64_t now = pen_clock_ns();
    while (link->held > 0) { /* in the order of arrival: messages of a channel must not overtake each other */
        transfer *next = NULL;
        for (transfer *t = link->transfers; t < link->transfers + link->used; t++)
            if (t->state == HELD && t->arrival_ns <= now && (!next || t->arrival_ns < next->arrival_ns)) next = t;
        if (!next) break;
        link->held--;
        PEN_TRY(hand_on(link, next));
        *moved = true;
    }
    return pen_link_progress(link->inner, moved);
}

static bool sim_done(pen_link *base, pen_transfer number, size_t *bytes) {
    sim_link *link = (sim_link *)base;
    transfer *t = &link->transfers[number - 1];
    if (t->state != HANDED_ON) return false;
    size_t *whole = t->channel == PEN_CHANNEL_ACTIVATION ? NULL : &t->bytes; /* a notice has other bytes */
    if (t->inner && pen_link_done(link->inner, t->inner, whole)) t->inner = 0;
    if (t->inner || (t->arrival_ns > 0 && pen_clock_ns() < t->arrival_ns)) return false;
    if (bytes) *bytes = t->bytes;
    t->state = FREE;
    while (link->used > 0 && link->transfers[link->used - 1].state == FREE) link->used--;
    return true;
}

static int64_t sim_due_ns(const pen_link *base) {
    const sim_link *link = (const sim_link *)base;
    int64_t due = 0, now = pen_clock_ns();
    for (const transfer *t = link->transfers; t < link->transfers + link->used; t++) {
        if (t->state == FREE || t->arrival_ns <= now) continue;
        if (due == 0 || t->arrival_ns < due) due = t->arrival_ns;
    }
    return due;
}

static void sim_destroy(pen_link *base) {
    sim_link *link = (sim_link *)base;
    pen_link_destroy(link->inner);
    free(link->transfers);
    free(link->wire_free_ns);
    free(link);
}

pen_status pen_link_create_sim(pen_link *inner, int stages, double latency_ms, double ms_per_byte, pen_link **out) {
    static const pen_link_class class = {.name = "sim",
                                         .receive = sim_receive,
                                         .send = sim_send,
                                         .receive_rows = sim_receive_rows,
                                         .send_rows = sim_send_rows,
                                         .progress = sim_progress,
                                         .done = sim_done,
                                         .due_ns = sim_due_ns,
                                         .destroy = sim_destroy};
    enum { TRANSFERS = 64, TRANSFERS_PER_STAGE = 16 };
    sim_link *link = calloc(1, sizeof *link);
    if (link) {
        link->base.class = &class;
        link->inner = inner;
        link->capacity = TRANSFERS + TRANSFERS_PER_STAGE * stages;
        link->latency_ns = latency_ms * 1e6;
        link->ns_per_byte = ms_per_byte * 1e6;
        link->transfers = calloc((size_t)link->capacity, sizeof *link->transfers);
        link->wire_free_ns = calloc((size_t)stages * PEN_CHANNEL_COUNT, sizeof *link->wire_free_ns);
    }
    if (!link || !link->transfers || !link->wire_free_ns) {
        if (link)
            sim_destroy(&link->base);
        else
            pen_link_destroy(inner);
        return pen_fail(PEN_NO_MEMORY, "no memory for a link");
    }
    *out = &link->base;
    return PEN_OK;
}
