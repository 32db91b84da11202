/*
 * Edges: rows from this GPU straight to the one of another process, or from there, over NCCL.
 *
 * An edge has one direction, a communicator of its two processes and a stream of its own, so that what waits for the
 * other side holds nothing else up. Transfers are done in the order in which both sides have pushed them. No call here
 * waits, neither for the other process nor for a GPU: pen_cuda_edge_progress moves everything on and tells how far it
 * is.
 *
 * Once issued, a receive spins on the GPU until its rows come: push it when the other side says that it has issued the
 * send. Nothing of CUDA or NCCL shows here; in a build without one of them, PEN_UNSUPPORTED says so (edge_absent.c).
 */
#ifndef PEN_CUDA_EDGE_H
#define PEN_CUDA_EDGE_H

#include "kernels.h"

typedef struct pen_cuda_edge pen_cuda_edge;

enum { PEN_CUDA_EDGE_DEPTH = 16 }; /* transfers of an edge that may be under way */

/* What the two sides of an edge find each other by. Plain data. */
typedef struct pen_cuda_edge_id {
    char bytes[128];
} pen_cuda_edge_id;

/* The version of the NCCL library, as 22809 for 2.28.9; PEN_UNSUPPORTED says why there is none to use. */
pen_status pen_cuda_edge_version(int *version);

/* For one of the two sides, which tells the other. */
pen_status pen_cuda_edge_make_id(pen_cuda_edge_id *id);
/* Begins to connect. The device is of pen_cuda_device_create, and outlives the edge. */
pen_status pen_cuda_edge_create(pen_device *device, const pen_cuda_edge_id *id, bool sends, pen_cuda_edge **edge);
/* Where a transfer is under way it is broken off, on the other side too. NULL is allowed. */
void pen_cuda_edge_destroy(pen_cuda_edge *edge);

/* The next transfer: the first `bytes` bytes of the rows, which must stay as they are until it is done. A send leaves
 * behind what is enqueued on the device so far. */
void pen_cuda_edge_push(pen_cuda_edge *edge, pen_buffer *rows, size_t bytes);

typedef struct pen_cuda_edge_state {
    bool connected;
    uint64_t issued, done; /* transfers */
} pen_cuda_edge_state;
/* A failure of the other side shows here, too. */
pen_status pen_cuda_edge_progress(pen_cuda_edge *edge, pen_cuda_edge_state *state);

#endif
