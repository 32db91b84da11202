/*
 * Links: how the stages of a replica exchange bytes while they run. Never blocking: a transfer is started, then
 * polled. `mpi` carries them between processes; `local` is the loop-back of a replica of one stage, whose last stage
 * is its own leader.
 *
 * Owner: the engine, one link per rank. Memory given to a transfer belongs to the link until the transfer is done.
 * Between two stages the messages of one channel and lane arrive in the order in which they were sent.
 */
#ifndef PEN_LINK_H
#define PEN_LINK_H

#include "kernels.h"
#include "status.h"
#include "world.h"

typedef struct pen_link pen_link;

typedef enum pen_channel {
    PEN_CHANNEL_CONTROL,    /* leader → stages: steps and commands */
    PEN_CHANNEL_ACTIVATION, /* stage → next stage: residual rows; lane = slot */
    PEN_CHANNEL_TOKEN,      /* last stage → leader: choices */
    PEN_CHANNEL_EVENT,      /* stages → leader: answers to commands */
    PEN_CHANNEL_HISTORY,    /* leader → last stage: what the choices of a step depend on */
    PEN_CHANNEL_COUNT
} pen_channel;

const char *pen_channel_name(pen_channel channel);

enum { PEN_LANES = 8 };

pen_status pen_link_create_local(pen_link **link);
/* For this rank's replica in `world`. */
pen_status pen_link_create_mpi(pen_world *world, pen_link **link);
/* The link of a simulated pipeline, over `inner`, which it takes over also where it fails: what it carries takes so
 * much longer. An event behind which it sends must be one that knows when it is due. */
pen_status pen_link_create_sim(pen_link *inner, int stages, double latency_ms, double ms_per_byte, pen_link **link);
void pen_link_destroy(pen_link *link);
const char *pen_link_name(const pen_link *link); /* "local", "mpi", "sim" */

/* A started transfer; 0 is none. */
typedef int pen_transfer;

/* Starts to receive up to `bytes` bytes. */
pen_status pen_link_receive(pen_link *link, pen_channel channel, int stage, int lane, void *data, size_t bytes,
                            pen_transfer *transfer);
/* Starts to send once `after` is done (NULL: at once). */
pen_status pen_link_send(pen_link *link, pen_channel channel, int stage, int lane, const void *data, size_t bytes,
                         const pen_event *after, pen_transfer *transfer);

/* Rows between devices, on PEN_CHANNEL_ACTIVATION: the first `bytes` bytes of a buffer, which belongs to the link until
 * the transfer is done. The rows of a lane are in one transfer at a time. A local link has none. */

/* Readies a lane for up to `bytes` bytes of `rows`, a buffer of `device`, which outlives the link. Once for each lane
 * that is used, before its first transfer. */
pen_status pen_link_prepare_rows(pen_link *link, int lane, pen_device *device, pen_buffer *rows, size_t bytes);
/* Starts to receive rows. When it is done, operations that are enqueued on the device from then on see them. */
pen_status pen_link_receive_rows(pen_link *link, int stage, int lane, pen_buffer *rows, size_t bytes,
                                 pen_transfer *transfer);
/* Starts to send rows as operations that are enqueued so far leave them; `after` (or NULL) was recorded behind those.
 */
pen_status pen_link_send_rows(pen_link *link, int stage, int lane, pen_buffer *rows, size_t bytes,
                              const pen_event *after, pen_transfer *transfer);

/* Moves all transfers on. Cheap; called from the loop and from the device's poke. *moved is set where any completed,
 * and otherwise left alone. */
pen_status pen_link_progress(pen_link *link, bool *moved);
/* When it will next have something to do by itself, by pen_clock_ns(), so that whoever waits can sleep until then; 0:
 * nobody knows. */
int64_t pen_link_due_ns(const pen_link *link);
/* True once: the transfer is complete, *bytes (or NULL) is what arrived, and the number is free again. */
bool pen_link_done(pen_link *link, pen_transfer transfer, size_t *bytes);

#endif
