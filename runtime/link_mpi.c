/*
 * The link between processes: non-blocking MPI point-to-point messages on the world's communicator for links, which
 * returns its errors. Only the engine's thread calls it. Requests lie side by side so that one MPI_Testsome moves all.
 *
 * MPI takes rows where they are if the host may, as on a CPU. Otherwise they pass through pinned memory, a piece for
 * each lane: the device's stream copies them there before the send, and from there once the receive is done. What the
 * stream has still to copy is behind the lane's event.
 */
#include "link_class.h"

#include <mpi.h>
#include <stdlib.h>

typedef enum state { FREE, WAITING /* for an event */, STARTED, DONE } state;

typedef struct transfer {
    state state;
    pen_channel channel;
    int rank, tag;
    const void *source; /* of a send, else NULL, */
    void *target;       /* and of a receive */
    const pen_event *after;
    size_t bytes;
    pen_buffer *landing; /* where the rows go that a receive brings into pinned memory, or NULL */
} transfer;

typedef struct lane {
    pen_device *device;
    void *pinned; /* NULL where MPI takes rows as they lie */
    pen_event *copied;
} lane;

typedef struct mpi_link {
    pen_link base;
    const pen_world *world;
    MPI_Comm comm;
    int first_rank;        /* of the replica: stage s is rank first_rank + s */
    int capacity, used;    /* transfers beyond `used` are free */
    int waiting;           /* in state WAITING */
    transfer *transfers;   /* [capacity] */
    MPI_Request *requests; /* [capacity] */
    int *indices;          /* [capacity] scratch of MPI_Testsome */
    MPI_Status *statuses;  /* [capacity] */
    lane lanes[PEN_LANES];
} mpi_link;

static pen_status failed(const mpi_link *link, const transfer *t, int code) {
    char text[MPI_MAX_ERROR_STRING];
    int length;
    MPI_Error_string(code, text, &length);
    return pen_fail(PEN_PEER_LOST, "lost %s: %s link mpi: %s", pen_world_place(link->world, t->rank)->name,
                    pen_channel_name(t->channel), text);
}

static pen_status claim(mpi_link *link, const transfer *t, pen_transfer *number) {
    int i = 0;
    while (i < link->used && link->transfers[i].state != FREE) i++;
    if (i == link->capacity) return pen_fail(PEN_INTERNAL, "more than %d transfers on a link", link->capacity);
    if (i == link->used) link->used++;
    link->transfers[i] = *t;
    *number = i + 1;
    return PEN_OK;
}

static pen_status begin(mpi_link *link, int i) {
    transfer *t = &link->transfers[i];
    MPI_Request *request = &link->requests[i];
    int code = t->source ? MPI_Isend(t->source, (int)t->bytes, MPI_BYTE, t->rank, t->tag, link->comm, request)
                         : MPI_Irecv(t->target, (int)t->bytes, MPI_BYTE, t->rank, t->tag, link->comm, request);
    t->state = STARTED;
    return code == MPI_SUCCESS ? PEN_OK : failed(link, t, code);
}

static pen_status start(mpi_link *link, int stage, int lane_number, transfer t, pen_transfer *number) {
    t.state = WAITING;
    t.rank = link->first_rank + stage;
    t.tag = (int)t.channel * PEN_LANES + lane_number;
    PEN_TRY(claim(link, &t, number));
    if (!t.after || pen_event_done(t.after)) return begin(link, *number - 1);
    link->waiting++;
    return PEN_OK;
}

static pen_status mpi_receive(pen_link *base, pen_channel channel, int stage, int lane_number, void *data, size_t bytes,
                              pen_transfer *number) {
    transfer t = {.channel = channel, .target = data, .bytes = bytes};
    return start((mpi_link *)base, stage, lane_number, t, number);
}

static pen_status mpi_send(pen_link *base, pen_channel channel, int stage, int lane_number, const void *data,
                           size_t bytes, const pen_event *after, pen_transfer *number) {
    transfer t = {.channel = channel, .source = data, .after = after, .bytes = bytes};
    return start((mpi_link *)base, stage, lane_number, t, number);
}

static pen_status mpi_prepare_rows(pen_link *base, int lane_number, pen_device *device, pen_buffer *rows,
                                   size_t bytes) {
    lane *own = &((mpi_link *)base)->lanes[lane_number];
    if (pen_buffer_host(rows)) return PEN_OK;
    own->device = device;
    PEN_TRY(pen_host_create(device, bytes, &own->pinned));
    return pen_event_create(device, &own->copied);
}

static pen_status mpi_receive_rows(pen_link *base, int stage, int lane_number, pen_buffer *rows, size_t bytes,
                                   pen_transfer *number) {
    const lane *own = &((mpi_link *)base)->lanes[lane_number];
    transfer t = {.channel = PEN_CHANNEL_ACTIVATION, .target = own->pinned, .bytes = bytes};
    if (own->pinned) {
        t.after = own->copied;
        t.landing = rows;
    } else {
        t.target = pen_buffer_host(rows);
    }
    return start((mpi_link *)base, stage, lane_number, t, number);
}

static pen_status mpi_send_rows(pen_link *base, int stage, int lane_number, pen_buffer *rows, size_t bytes,
                                const pen_event *after, pen_transfer *number) {
    const lane *own = &((mpi_link *)base)->lanes[lane_number];
    transfer t = {.channel = PEN_CHANNEL_ACTIVATION, .source = own->pinned, .after = after, .bytes = bytes};
    if (own->pinned) {
        pen_buffer_read(rows, 0, own->pinned, bytes);
        pen_event_record(own->copied);
        t.after = own->copied;
    } else {
        t.source = pen_buffer_host(rows);
    }
    return start((mpi_link *)base, stage, lane_number, t, number);
}

static int test(mpi_link *link, int *completed) {
    return MPI_Testsome(link->used, link->requests, completed, link->indices, link->statuses);
}

static pen_status mpi_progress(pen_link *base, bool *moved) {
    mpi_link *link = (mpi_link *)base;
    for (int i = 0; link->waiting > 0 && i < link->used; i++) {
        if (link->transfers[i].state != WAITING || !pen_event_done(link->transfers[i].after)) continue;
        link->waiting--;
        PEN_TRY(begin(link, i));
    }
    int completed, code = test(link, &completed);
    /* Open MPI looks at the requests first and moves messages then: what has just arrived only a second look shows. */
    if (code == MPI_SUCCESS && completed == 0) code = test(link, &completed);
    if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS)
        return pen_fail(PEN_PEER_LOST, "MPI_Testsome failed with code %d", code);
    for (int c = 0; completed != MPI_UNDEFINED && c < completed; c++) {
        transfer *t = &link->transfers[link->indices[c]];
        if (code == MPI_ERR_IN_STATUS && link->statuses[c].MPI_ERROR != MPI_SUCCESS)
            return failed(link, t, link->statuses[c].MPI_ERROR);
        int bytes;
        MPI_Get_count(&link->statuses[c], MPI_BYTE, &bytes);
        if (!t->source) t->bytes = (size_t)bytes;
        t->state = DONE;
        *moved = true;
    }
    return PEN_OK;
}

static bool mpi_done(pen_link *base, pen_transfer number, size_t *bytes) {
    mpi_link *link = (mpi_link *)base;
    transfer *t = &link->transfers[number - 1];
    if (t->state != DONE) return false;
    if (bytes) *bytes = t->bytes;
    if (t->landing) { /* here, and not where it completed: that may be in the middle of an operation */
        const lane *own = &link->lanes[t->tag % PEN_LANES];
        pen_buffer_write(t->landing, 0, own->pinned, t->bytes);
        pen_event_record(own->copied);
    }
    t->state = FREE;
    while (link->used > 0 && link->transfers[link->used - 1].state == FREE) link->used--;
    return true;
}

/* Receives that nobody will serve any more are taken back; what was sent has arrived, for the run is over. */
static void mpi_destroy(pen_link *base) {
    mpi_link *link = (mpi_link *)base;
    for (int i = 0; i < link->used; i++) {
        if (link->transfers[i].state != STARTED) continue;
        if (!link->transfers[i].source) MPI_Cancel(&link->requests[i]);
        MPI_Request_free(&link->requests[i]);
    }
    for (lane *own = link->lanes; own < link->lanes + PEN_LANES; own++) {
        if (!own->pinned) continue;
        pen_host_destroy(own->device, own->pinned); /* waits for what is behind the event */
        if (own->copied) pen_event_destroy(own->copied);
    }
    free(link->transfers);
    free(link->requests);
    free(link->indices);
    free(link->statuses);
    free(link);
}

pen_status pen_link_create_mpi(pen_world *world, pen_link **out) {
    static const pen_link_class class = {.name = "mpi",
                                         .receive = mpi_receive,
                                         .send = mpi_send,
                                         .prepare_rows = mpi_prepare_rows,
                                         .receive_rows = mpi_receive_rows,
                                         .send_rows = mpi_send_rows,
                                         .progress = mpi_progress,
                                         .done = mpi_done,
                                         .destroy = mpi_destroy};
    mpi_link *link = calloc(1, sizeof *link);
    if (!link) return pen_fail(PEN_NO_MEMORY, "no memory for a link");
    /* The leader is the busiest: per other stage, its outstanding headers; and everybody has a few receives. */
    size_t capacity = 16 * (size_t)pen_world_stages(world) + 64;
    link->base.class = &class;
    link->world = world;
    link->comm = MPI_Comm_f2c(pen_world_links_handle(world));
    link->first_rank = pen_world_rank(world) - pen_world_stage(world);
    link->capacity = (int)capacity;
    link->transfers = calloc(capacity, sizeof *link->transfers);
    link->requests = malloc(capacity * sizeof *link->requests);
    link->indices = malloc(capacity * sizeof *link->indices);
    link->statuses = malloc(capacity * sizeof *link->statuses);
    if (!link->transfers || !link->requests || !link->indices || !link->statuses) {
        mpi_destroy(&link->base);
        return pen_fail(PEN_NO_MEMORY, "no memory for a link");
    }
    for (size_t i = 0; i < capacity; i++) link->requests[i] = MPI_REQUEST_NULL;
    *out = &link->base;
    return PEN_OK;
}
