/*
 * The link between processes: non-blocking MPI point-to-point messages on the world's communicator for links, which
 * returns its errors. Only the engine's thread calls it. Requests lie side by side so that one MPI_Testsome moves all.
 */
#include "link_class.h"

#include <mpi.h>
#include <stdlib.h>

typedef enum state { FREE, WAITING /* for an event */, STARTED, DONE } state;

typedef struct transfer {
    state state;
    pen_channel channel;
    int rank, tag;
    const void *source;
    const pen_event *after;
    size_t bytes;
} transfer;

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

static pen_status mpi_receive(pen_link *base, pen_channel channel, int stage, int lane, void *data, size_t bytes,
                              pen_transfer *number) {
    mpi_link *link = (mpi_link *)base;
    transfer t = {.state = STARTED,
                  .channel = channel,
                  .rank = link->first_rank + stage,
                  .tag = (int)channel * PEN_LANES + lane,
                  .bytes = bytes};
    PEN_TRY(claim(link, &t, number));
    int code = MPI_Irecv(data, (int)bytes, MPI_BYTE, t.rank, t.tag, link->comm, &link->requests[*number - 1]);
    return code == MPI_SUCCESS ? PEN_OK : failed(link, &t, code);
}

static pen_status begin_send(mpi_link *link, int i) {
    transfer *t = &link->transfers[i];
    t->state = STARTED;
    int code = MPI_Isend(t->source, (int)t->bytes, MPI_BYTE, t->rank, t->tag, link->comm, &link->requests[i]);
    return code == MPI_SUCCESS ? PEN_OK : failed(link, t, code);
}

static pen_status mpi_send(pen_link *base, pen_channel channel, int stage, int lane, const void *data, size_t bytes,
                           const pen_event *after, pen_transfer *number) {
    mpi_link *link = (mpi_link *)base;
    transfer t = {.state = WAITING,
                  .channel = channel,
                  .rank = link->first_rank + stage,
                  .tag = (int)channel * PEN_LANES + lane,
                  .source = data,
                  .after = after,
                  .bytes = bytes};
    PEN_TRY(claim(link, &t, number));
    if (!after || pen_event_done(after)) return begin_send(link, *number - 1);
    link->waiting++;
    return PEN_OK;
}

static int test(mpi_link *link, int *completed) {
    return MPI_Testsome(link->used, link->requests, completed, link->indices, link->statuses);
}

static pen_status mpi_progress(pen_link *base, bool *moved) {
    mpi_link *link = (mpi_link *)base;
    for (int i = 0; link->waiting > 0 && i < link->used; i++) {
        if (link->transfers[i].state != WAITING || !pen_event_done(link->transfers[i].after)) continue;
        link->waiting--;
        PEN_TRY(begin_send(link, i));
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
