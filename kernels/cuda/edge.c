/*
 * Edges over NCCL; see cuda_edge.h.
 *
 * The communicator is non-blocking: every call on it may answer ncclInProgress, and what it enqueues is in the stream
 * only when ncclCommGetAsyncError says so. Until then there is no further call, and no event is recorded behind it.
 * NCCL reads and writes device memory in the edge's stream: a send waits there for an event of the device's stream; a
 * receive is done when the host has seen the event behind it, so that what the host enqueues from then on sees the
 * rows. The device's stream never waits for another process.
 */
#include "cuda_edge.h"

#include "clock.h"
#include "cuda_device.h"
#include "nccl_library.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum {
    CTAS = 2, /* of a transfer at most: the GPU is there to compute */
    FINALIZE_MS = 2000,
    POLL_NS = 20000,
};

typedef struct transfer {
    void *data;
    size_t bytes;
    cudaEvent_t ready; /* of the device's stream: a send may begin */
    cudaEvent_t done;  /* of the edge's */
} transfer;

struct pen_cuda_edge {
    const pen_nccl *nccl;
    pen_cuda_device *device;
    cudaStream_t stream;
    ncclComm_t comm;
    bool sends, connected;
    bool calling; /* the last call on the communicator is in progress */
    uint64_t pushed, issued, done;
    transfer transfers[PEN_CUDA_EDGE_DEPTH];
};

pen_status pen_cuda_edge_version(int *version) {
    const pen_nccl *nccl;
    *version = 0;
    PEN_TRY(pen_nccl_load(&nccl));
    ncclResult_t result = nccl->GetVersion(version);
    if (result == ncclSuccess) return PEN_OK;
    return pen_fail(PEN_UNSUPPORTED, "NCCL does not say its version: %s", nccl->GetErrorString(result));
}

pen_status pen_cuda_edge_make_id(pen_cuda_edge_id *id) {
    const pen_nccl *nccl;
    ncclUniqueId made;
    PEN_TRY(pen_nccl_load(&nccl));
    ncclResult_t result = nccl->GetUniqueId(&made);
    if (result != ncclSuccess) return pen_fail(PEN_UNSUPPORTED, "NCCL: %s", nccl->GetErrorString(result));
    _Static_assert(sizeof made == sizeof *id, "an id is NCCL's");
    memcpy(id, &made, sizeof made);
    return PEN_OK;
}

static pen_status failed(const pen_cuda_edge *edge, ncclResult_t result) {
    const char *detail = edge->comm ? edge->nccl->GetLastError(edge->comm) : "";
    return pen_fail(PEN_UNSUPPORTED, "NCCL: %s%s%s", edge->nccl->GetErrorString(result), detail[0] ? ": " : "", detail);
}

static bool check(pen_cuda_edge *edge, cudaError_t error, const char *what) {
    return pen_cuda_check(edge->device, error, what);
}

static pen_status make_stream(pen_cuda_edge *edge) {
    /* The most urgent there is (the runtime cuts the number): rows need few CTAs, and somebody waits for them. */
    cudaError_t error = cudaStreamCreateWithPriority(&edge->stream, cudaStreamNonBlocking, INT_MIN);
    for (int i = 0; i < PEN_CUDA_EDGE_DEPTH && error == cudaSuccess; i++) {
        error = cudaEventCreateWithFlags(&edge->transfers[i].ready, cudaEventDisableTiming);
        if (error == cudaSuccess) error = cudaEventCreateWithFlags(&edge->transfers[i].done, cudaEventDisableTiming);
    }
    if (error == cudaSuccess) return PEN_OK;
    return pen_fail(PEN_UNSUPPORTED, "cannot create the stream of an edge: %s", cudaGetErrorString(error));
}

static pen_status connect_edge(pen_cuda_edge *edge, const pen_cuda_edge_id *id) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId unique;
    config.blocking = 0;
    config.minCTAs = 1;
    config.maxCTAs = CTAS;
    memcpy(&unique, id, sizeof unique);
    PEN_TRY(pen_nccl_load(&edge->nccl));
    PEN_TRY(make_stream(edge));
    ncclResult_t result = edge->nccl->CommInitRankConfig(&edge->comm, 2, unique, edge->sends ? 0 : 1, &config);
    if (result != ncclSuccess && result != ncclInProgress) return failed(edge, result);
    edge->calling = true; /* until the communicator says that it is not */
    return PEN_OK;
}

pen_status pen_cuda_edge_create(pen_device *device, const pen_cuda_edge_id *id, bool sends, pen_cuda_edge **out) {
    pen_cuda_edge *edge = calloc(1, sizeof *edge);
    if (!edge) return pen_fail(PEN_NO_MEMORY, "no memory for an edge");
    edge->device = pen_cuda(device);
    edge->sends = sends;
    pen_status status = connect_edge(edge, id);
    if (status != PEN_OK) {
        pen_cuda_edge_destroy(edge);
        return status;
    }
    *out = edge;
    return PEN_OK;
}

/* ---- Transfers ------------------------------------------------------------------------------------------------- */

static transfer *transfer_at(pen_cuda_edge *edge, uint64_t i) {
    return &edge->transfers[i % PEN_CUDA_EDGE_DEPTH];
}

void pen_cuda_edge_push(pen_cuda_edge *edge, pen_buffer *rows, size_t bytes) {
    assert(edge->pushed - edge->done < PEN_CUDA_EDGE_DEPTH && bytes <= rows->bytes);
    transfer *t = transfer_at(edge, edge->pushed++);
    t->data = pen_cuda_data(rows);
    t->bytes = bytes;
    if (edge->sends) check(edge, cudaEventRecord(t->ready, edge->device->stream), "recording an event");
}

/* Whether the last call on the communicator is over; what it enqueued is then in the stream. */
static pen_status finish_call(pen_cuda_edge *edge) {
    ncclResult_t result, asked = edge->nccl->CommGetAsyncError(edge->comm, &result);
    if (asked != ncclSuccess) return failed(edge, asked);
    if (result == ncclInProgress) return PEN_OK;
    if (result != ncclSuccess) return failed(edge, result);
    if (!edge->calling) return PEN_OK;
    edge->calling = false;
    if (edge->connected)
        check(edge, cudaEventRecord(transfer_at(edge, edge->issued++)->done, edge->stream), "recording an event");
    edge->connected = true;
    return PEN_OK;
}

static pen_status issue(pen_cuda_edge *edge) {
    const transfer *t = transfer_at(edge, edge->issued);
    if (edge->sends) check(edge, cudaStreamWaitEvent(edge->stream, t->ready, 0), "waiting for an event");
    ncclResult_t result = edge->sends ? edge->nccl->Send(t->data, t->bytes, ncclUint8, 1, edge->comm, edge->stream)
                                      : edge->nccl->Recv(t->data, t->bytes, ncclUint8, 0, edge->comm, edge->stream);
    if (result != ncclSuccess && result != ncclInProgress) return failed(edge, result);
    edge->calling = true;
    return finish_call(edge);
}

pen_status pen_cuda_edge_progress(pen_cuda_edge *edge, pen_cuda_edge_state *state) {
    PEN_TRY(finish_call(edge));
    while (edge->connected && !edge->calling && edge->issued < edge->pushed) PEN_TRY(issue(edge));
    while (edge->done < edge->issued) {
        cudaError_t error = pen_cuda_query(transfer_at(edge, edge->done)->done);
        if (error == cudaErrorNotReady || !check(edge, error, "waiting for rows")) break;
        edge->done++;
    }
    *state = (pen_cuda_edge_state){edge->connected, edge->issued, edge->done};
    return pen_device_status(&edge->device->base);
}

/* ---- The end --------------------------------------------------------------------------------------------------- */

/* Whether both sides left in an orderly way. */
static bool finalize(pen_cuda_edge *edge) {
    if (!edge->connected || edge->calling || edge->done < edge->pushed) return false;
    int64_t until = pen_clock_ns() + (int64_t)FINALIZE_MS * 1000000;
    ncclResult_t result = edge->nccl->CommFinalize(edge->comm);
    while (result == ncclInProgress && pen_clock_ns() < until) {
        if (edge->nccl->CommGetAsyncError(edge->comm, &result) != ncclSuccess) return false;
        pen_clock_sleep_until(pen_clock_ns() + POLL_NS);
    }
    return result == ncclSuccess;
}

void pen_cuda_edge_destroy(pen_cuda_edge *edge) {
    if (!edge) return;
    if (edge->comm && finalize(edge))
        edge->nccl->CommDestroy(edge->comm);
    else if (edge->comm)
        edge->nccl->CommAbort(edge->comm);
    /* What was aborted ends, too; and nothing is still to come behind the events. */
    cudaStreamSynchronize(edge->device->stream);
    if (edge->stream) cudaStreamSynchronize(edge->stream);
    for (int i = 0; i < PEN_CUDA_EDGE_DEPTH; i++) {
        if (edge->transfers[i].ready) cudaEventDestroy(edge->transfers[i].ready);
        if (edge->transfers[i].done) cudaEventDestroy(edge->transfers[i].done);
    }
    if (edge->stream) cudaStreamDestroy(edge->stream);
    free(edge);
}
