/*
 * The link between GPUs: rows go from device to device over NCCL (kernels/cuda/cuda_edge.h), everything else over
 * `inner`, which is MPI.
 *
 * A rank has an edge to the next stage and one from the previous stage; transfer n of an edge is the n-th that either
 * side started. When a send is in its stream, a note of that goes over `inner`, on the lane of the rows; only then does
 * the other side enqueue its receive, which would otherwise spin on the GPU for as long as nobody sends. How long that
 * may take is the engine's to say, as for any message: when it gives up, destroying the link breaks off what is on the
 * GPU.
 *
 * Opening connects the edges and passes patterns over them: the first transfer of a pair of GPUs can take most of a
 * second, and what arrives otherwise than it was sent is noticed here.
 */
#include "link_class.h"

#include "cuda_edge.h"
#include "wait.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

enum {
    ROWS = 1 << 20, /* transfers of rows are numbered from here, those of `inner` below */
    INCOMING = 0,
    OUTGOING = 1,
    EDGES = 2,
    TRIALS = 2,
    TRIAL_VALUES = 1 << 16, /* long enough for every way that NCCL has */
};

_Static_assert((int)PEN_LANES <= (int)PEN_CUDA_EDGE_DEPTH, "all lanes of an edge may be under way");

/* Says that the send of a transfer is enqueued. */
typedef struct note {
    uint64_t number, bytes;
} note;

/* The transfer of a lane. */
typedef struct transfer {
    uint64_t number; /* on its edge */
    pen_buffer *rows;
    size_t bytes;
    note note;
    pen_transfer noting; /* inner's; 0: the note is not on its way, or has come */
    bool busy;
} transfer;

typedef struct edge {
    pen_cuda_edge *gpu; /* NULL: there is no stage on that side */
    int stage;          /* the other side's */
    uint64_t started, done;
    uint64_t noted;       /* transfers whose note was sent, or has come */
    int order[PEN_LANES]; /* the lane of transfer n at n mod PEN_LANES */
    transfer lanes[PEN_LANES];
} edge;

typedef struct nccl_link {
    pen_link base;
    pen_link *inner;
    pen_world *world;
    double patience_s; /* of opening */
    edge edges[EDGES];
} nccl_link;

static const char *peer_name(const nccl_link *link, const edge *e) {
    int rank = pen_world_rank(link->world) - pen_world_stage(link->world) + e->stage;
    return pen_world_place(link->world, rank)->name;
}

/* ---- Other messages -------------------------------------------------------------------------------------------- */

static pen_status nccl_receive(pen_link *base, pen_channel channel, int stage, int lane, void *data, size_t bytes,
                               pen_transfer *number) {
    return pen_link_receive(((nccl_link *)base)->inner, channel, stage, lane, data, bytes, number);
}

static pen_status nccl_send(pen_link *base, pen_channel channel, int stage, int lane, const void *data, size_t bytes,
                            const pen_event *after, pen_transfer *number) {
    return pen_link_send(((nccl_link *)base)->inner, channel, stage, lane, data, bytes, after, number);
}

/* ---- Rows ------------------------------------------------------------------------------------------------------ */

static pen_transfer number_of(int which, int lane) {
    return ROWS + which * PEN_LANES + lane;
}

static transfer *start(nccl_link *link, int which, int lane, pen_buffer *rows, size_t bytes, pen_transfer *number) {
    edge *e = &link->edges[which];
    transfer *t = &e->lanes[lane];
    assert(e->gpu && !t->busy);
    e->order[e->started % PEN_LANES] = lane;
    *t = (transfer){.number = e->started++, .rows = rows, .bytes = bytes, .busy = true};
    *number = number_of(which, lane);
    return t;
}

static pen_status nccl_receive_rows(pen_link *base, int stage, int lane, pen_buffer *rows, size_t bytes,
                                    pen_transfer *number) {
    nccl_link *link = (nccl_link *)base;
    assert(stage == link->edges[INCOMING].stage);
    transfer *t = start(link, INCOMING, lane, rows, bytes, number);
    return pen_link_receive(link->inner, PEN_CHANNEL_NOTE, stage, lane, &t->note, sizeof t->note, &t->noting);
}

static pen_status nccl_send_rows(pen_link *base, int stage, int lane, pen_buffer *rows, size_t bytes,
                                 const pen_event *after, pen_transfer *number) {
    nccl_link *link = (nccl_link *)base;
    assert(stage == link->edges[OUTGOING].stage);
    (void)stage, (void)after; /* the edge sends behind all that is enqueued on the device */
    start(link, OUTGOING, lane, rows, bytes, number);
    pen_cuda_edge_push(link->edges[OUTGOING].gpu, rows, bytes);
    return PEN_OK;
}

/* The oldest transfer whose note is still to be dealt with; NULL: none. */
static transfer *next_to_note(edge *e, uint64_t limit) {
    return e->noted < limit ? &e->lanes[e->order[e->noted % PEN_LANES]] : NULL;
}

/* Enqueues the receives of which notes have come, in the order of the sends. */
static pen_status read_notes(nccl_link *link, edge *e) {
    for (transfer *t; (t = next_to_note(e, e->started)); e->noted++) {
        if (!pen_link_done(link->inner, t->noting, NULL)) return PEN_OK;
        t->noting = 0;
        if (t->note.number != t->number || t->note.bytes != t->bytes)
            return pen_fail(PEN_INTERNAL,
                            "%s sends rows %" PRIu64 " of %" PRIu64 " bytes where rows %" PRIu64
                            " of %zu bytes are due",
                            peer_name(link, e), t->note.number, t->note.bytes, t->number, t->bytes);
        pen_cuda_edge_push(e->gpu, t->rows, t->bytes);
    }
    return PEN_OK;
}

static pen_status write_notes(nccl_link *link, edge *e, uint64_t issued) {
    for (transfer *t; (t = next_to_note(e, issued)); e->noted++) {
        t->note = (note){t->number, t->bytes};
        PEN_TRY(pen_link_send(link->inner, PEN_CHANNEL_NOTE, e->stage, e->order[e->noted % PEN_LANES], &t->note,
                              sizeof t->note, NULL, &t->noting));
    }
    return PEN_OK;
}

static pen_status move_edge(nccl_link *link, int which, bool *moved) {
    edge *e = &link->edges[which];
    pen_cuda_edge_state state;
    if (!e->gpu) return PEN_OK;
    if (which == INCOMING) PEN_TRY(read_notes(link, e));
    pen_status status = pen_cuda_edge_progress(e->gpu, &state);
    if (status == PEN_UNSUPPORTED)
        return pen_fail(PEN_PEER_LOST, "lost %s: activation link nccl: %s", peer_name(link, e), pen_last_error());
    PEN_TRY(status); /* the own device's */
    if (which == OUTGOING) PEN_TRY(write_notes(link, e, state.issued));
    *moved |= state.done > e->done;
    e->done = state.done;
    return PEN_OK;
}

static pen_status nccl_progress(pen_link *base, bool *moved) {
    nccl_link *link = (nccl_link *)base;
    PEN_TRY(pen_link_progress(link->inner, moved));
    for (int i = 0; i < EDGES; i++) PEN_TRY(move_edge(link, i, moved));
    return PEN_OK;
}

static bool nccl_done(pen_link *base, pen_transfer number, size_t *bytes) {
    nccl_link *link = (nccl_link *)base;
    if (number < ROWS) return pen_link_done(link->inner, number, bytes);
    edge *e = &link->edges[(number - ROWS) / PEN_LANES];
    transfer *t = &e->lanes[(number - ROWS) % PEN_LANES];
    if (t->number >= e->done) return false;
    if (t->noting && !pen_link_done(link->inner, t->noting, NULL)) return false;
    if (bytes) *bytes = t->bytes;
    t->busy = false;
    return true;
}

static void close_edges(nccl_link *link) {
    for (int i = 0; i < EDGES; i++) {
        pen_cuda_edge_destroy(link->edges[i].gpu);
        link->edges[i].gpu = NULL;
    }
}

/* ---- Opening --------------------------------------------------------------------------------------------------- */

/* Something that opening waits for: an edge that connects, or a transfer. */
typedef struct wanted {
    int edge;
    pen_transfer transfer; /* 0: the connection */
} wanted;

static pen_status is_there(nccl_link *link, const wanted *what, bool *there) {
    bool moved = false;
    if (what->transfer) {
        PEN_TRY(nccl_progress(&link->base, &moved));
        *there = nccl_done(&link->base, what->transfer, NULL);
        return PEN_OK;
    }
    pen_cuda_edge_state state = {0};
    PEN_TRY(pen_cuda_edge_progress(link->edges[what->edge].gpu, &state));
    *there = state.connected;
    return PEN_OK;
}

static pen_status wait_for(nccl_link *link, wanted what) {
    const edge *e = &link->edges[what.edge];
    pen_wait wait;
    pen_wait_init(&wait, pen_world_share(link->world)->may_spin);
    for (;;) {
        bool there;
        PEN_TRY(is_there(link, &what, &there));
        if (there) return PEN_OK;
        if (pen_wait_seconds(&wait) > link->patience_s)
            return pen_fail(PEN_UNSUPPORTED, "no connection to %s after %.0f s", peer_name(link, e), link->patience_s);
        pen_world_beat(link->world);
        pen_wait_pause(&wait, true, 0);
    }
}

/* The id comes from the stage that sends. */
static pen_status share_id(nccl_link *link, int which, pen_cuda_edge_id *id) {
    const edge *e = &link->edges[which];
    wanted what = {.edge = which};
    if (which == OUTGOING) {
        PEN_TRY(pen_cuda_edge_make_id(id));
        PEN_TRY(pen_link_send(link->inner, PEN_CHANNEL_NOTE, e->stage, 0, id, sizeof *id, NULL, &what.transfer));
    } else {
        PEN_TRY(pen_link_receive(link->inner, PEN_CHANNEL_NOTE, e->stage, 0, id, sizeof *id, &what.transfer));
    }
    return wait_for(link, what);
}

static int neighbour(const nccl_link *link, int which) {
    int stage = pen_world_stage(link->world) + (which == OUTGOING ? 1 : -1);
    return stage < pen_world_stages(link->world) ? stage : -1;
}

static float pattern(int trial, int i) {
    return (float)((i * 7 + trial * 3) % 251) - 125.0f;
}

/* Passes a pattern over an edge; *intact is cleared where another arrives. */
static pen_status try_edge(nccl_link *link, int which, int trial, pen_device *device, pen_buffer *rows, float *values,
                           bool *intact) {
    size_t bytes = TRIAL_VALUES * sizeof *values;
    wanted what = {.edge = which};
    if (which == OUTGOING) {
        for (int i = 0; i < TRIAL_VALUES; i++) values[i] = pattern(trial, i);
        pen_buffer_write(rows, 0, values, bytes);
        PEN_TRY(nccl_send_rows(&link->base, link->edges[which].stage, 0, rows, bytes, NULL, &what.transfer));
        return wait_for(link, what);
    }
    PEN_TRY(nccl_receive_rows(&link->base, link->edges[which].stage, 0, rows, bytes, &what.transfer));
    PEN_TRY(wait_for(link, what));
    pen_buffer_read(rows, 0, values, bytes);
    PEN_TRY(pen_device_sync(device));
    for (int i = 0; i < TRIAL_VALUES; i++) *intact &= values[i] == pattern(trial, i);
    return PEN_OK;
}

/* From stage to stage. Changed rows are told at the end, so that nobody waits for messages that do not come. */
static pen_status warm_up(nccl_link *link, pen_device *device) {
    float *values = malloc(TRIAL_VALUES * sizeof *values);
    pen_buffer *rows = NULL;
    pen_status status = values ? pen_buffer_create(device, TRIAL_VALUES * sizeof *values, &rows)
                               : pen_fail(PEN_NO_MEMORY, "no memory to try a link");
    bool intact = true;
    for (int i = 0; i < TRIALS * EDGES && status == PEN_OK; i++)
        if (link->edges[i % EDGES].gpu) status = try_edge(link, i % EDGES, i / EDGES, device, rows, values, &intact);
    if (status != PEN_OK) close_edges(link); /* what is under way would write to the rows */
    pen_buffer_destroy(rows);
    free(values);
    if (status == PEN_OK && !intact)
        return pen_fail(PEN_UNSUPPORTED, "rows from %s arrive changed", peer_name(link, &link->edges[INCOMING]));
    return status;
}

static pen_status open_edges(nccl_link *link, pen_device *device) {
    for (int i = EDGES - 1; i >= 0; i--) { /* the ids that others wait for first */
        pen_cuda_edge_id id;
        link->edges[i].stage = neighbour(link, i);
        if (link->edges[i].stage < 0) continue;
        PEN_TRY(share_id(link, i, &id));
        PEN_TRY(pen_cuda_edge_create(device, &id, i == OUTGOING, &link->edges[i].gpu));
    }
    for (int i = 0; i < EDGES; i++)
        if (link->edges[i].gpu) PEN_TRY(wait_for(link, (wanted){.edge = i}));
    return warm_up(link, device);
}

static void nccl_destroy(pen_link *base) {
    nccl_link *link = (nccl_link *)base;
    close_edges(link);
    pen_link_destroy(link->inner);
    free(link);
}

pen_status pen_link_create_nccl(pen_link *inner, pen_world *world, pen_device *device, double patience_s,
                                pen_link **out) {
    static const pen_link_class class = {.name = "nccl",
                                         .receive = nccl_receive,
                                         .send = nccl_send,
                                         .receive_rows = nccl_receive_rows,
                                         .send_rows = nccl_send_rows,
                                         .progress = nccl_progress,
                                         .done = nccl_done,
                                         .destroy = nccl_destroy};
    nccl_link *link = calloc(1, sizeof *link);
    if (!link) {
        pen_link_destroy(inner);
        return pen_fail(PEN_NO_MEMORY, "no memory for a link");
    }
    link->base.class = &class;
    link->inner = inner;
    link->world = world;
    link->patience_s = patience_s;
    pen_status status = open_edges(link, device);
    if (status == PEN_PEER_LOST) status = pen_fail(PEN_UNSUPPORTED, "%s", pen_last_error()); /* it may be there yet */
    if (status != PEN_OK) {
        nccl_destroy(&link->base);
        return status;
    }
    *out = &link->base;
    return PEN_OK;
}
