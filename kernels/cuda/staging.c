/*
 * A ring of pinned memory between the host and the device, in pieces.
 *
 * A piece is used by one copy and is free again when the stream has done it (its event). For a read it is free when
 * the bytes have landed in their target, too. Pieces are taken and freed in order. Why not copy from the caller's
 * memory: for memory that is not pinned the runtime waits for the stream, and meanwhile nobody would poke MPI.
 */
#include "cuda_device.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { PIECES = 256, ALIGNMENT = 64 };

typedef struct piece {
    size_t end; /* of its bytes in the ring */
    cudaEvent_t event;
    void *target; /* of a read, until it has landed */
    size_t bytes;
    unsigned char *from;
} piece;

struct pen_cuda_staging {
    pen_cuda_device *device;
    unsigned char *memory;
    size_t bytes;
    size_t at;   /* where the next piece begins, at the earliest */
    size_t free; /* where the oldest piece in use begins: the ring is full when `at` gets there */
    uint64_t taken, freed, landed;
    piece pieces[PIECES];
};

pen_status pen_cuda_staging_create(pen_cuda_device *device, size_t bytes, pen_cuda_staging **out) {
    pen_cuda_staging *staging = calloc(1, sizeof *staging);
    if (!staging) return pen_fail(PEN_NO_MEMORY, "no memory for a pinned ring");
    staging->device = device;
    staging->bytes = bytes;
    *out = staging;
    if (cudaMallocHost((void **)&staging->memory, bytes) != cudaSuccess)
        return pen_fail(PEN_NO_MEMORY, "cannot pin %zu bytes of host memory", bytes);
    for (int i = 0; i < PIECES; i++)
        if (cudaEventCreateWithFlags(&staging->pieces[i].event, cudaEventDisableTiming) != cudaSuccess)
            return pen_fail(PEN_NO_MEMORY, "cannot create the events of a pinned ring");
    return PEN_OK;
}

void pen_cuda_staging_destroy(pen_cuda_staging *staging) {
    if (!staging) return;
    for (int i = 0; i < PIECES; i++)
        if (staging->pieces[i].event) cudaEventDestroy(staging->pieces[i].event);
    if (staging->memory) cudaFreeHost(staging->memory);
    free(staging);
}

size_t pen_cuda_staging_bytes(const pen_cuda_staging *staging) {
    return staging->bytes;
}

static piece *piece_at(pen_cuda_staging *staging, uint64_t i) {
    return &staging->pieces[i % PIECES];
}

/* Waits for the oldest piece and frees it. */
static void free_oldest(pen_cuda_staging *staging) {
    piece *oldest = piece_at(staging, staging->freed);
    assert(staging->freed < staging->taken);
    pen_cuda_wait(staging->device, oldest->event);
    pen_cuda_staging_land(staging, staging->freed + 1);
    staging->free = oldest->end;
    staging->freed++;
}

/* Bytes are free from `at` on, up to the end of the ring or to the oldest piece in use. */
static bool fits(const pen_cuda_staging *staging, size_t bytes) {
    if (staging->freed == staging->taken) return true;
    size_t end = staging->free > staging->at ? staging->free : staging->bytes;
    return staging->at != staging->free && bytes <= end - staging->at;
}

void *pen_cuda_staging_room(pen_cuda_staging *staging, size_t bytes) {
    assert(bytes <= staging->bytes / 2);
    bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (staging->taken - staging->freed == PIECES) free_oldest(staging);
    if (bytes > staging->bytes - staging->at) { /* back to the beginning, which may be in use */
        while (staging->freed < staging->taken && staging->free >= staging->at) free_oldest(staging);
        staging->at = 0;
    }
    while (!fits(staging, bytes)) free_oldest(staging);
    if (staging->freed == staging->taken) staging->free = staging->at;
    piece *made = piece_at(staging, staging->taken);
    *made = (piece){.end = staging->at + bytes, .event = made->event, .from = staging->memory + staging->at};
    return made->from;
}

void pen_cuda_staging_sent(pen_cuda_staging *staging) {
    piece *sent = piece_at(staging, staging->taken++);
    staging->at = sent->end;
    pen_cuda_check(staging->device, cudaEventRecord(sent->event, staging->device->stream), "recording an event");
}

void pen_cuda_staging_drain(pen_cuda_staging *staging) {
    while (staging->freed < staging->taken) free_oldest(staging);
}

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

void pen_cuda_staging_write(pen_cuda_staging *staging, void *device_target, const void *source, size_t bytes) {
    for (size_t done = 0, some; done < bytes; done += some) {
        some = smaller(bytes - done, staging->bytes / 4);
        void *room = pen_cuda_staging_room(staging, some);
        memcpy(room, (const unsigned char *)source + done, some);
        cudaError_t error = cudaMemcpyAsync((unsigned char *)device_target + done, room, some, cudaMemcpyHostToDevice,
                                            staging->device->stream);
        pen_cuda_check(staging->device, error, "copying to the GPU");
        pen_cuda_staging_sent(staging);
    }
}

void pen_cuda_staging_read(pen_cuda_staging *staging, void *target, const void *device_source, size_t bytes) {
    for (size_t done = 0, some; done < bytes; done += some) {
        some = smaller(bytes - done, staging->bytes / 4);
        void *room = pen_cuda_staging_room(staging, some);
        cudaError_t error = cudaMemcpyAsync(room, (const unsigned char *)device_source + done, some,
                                            cudaMemcpyDeviceToHost, staging->device->stream);
        pen_cuda_check(staging->device, error, "copying from the GPU");
        piece *read = piece_at(staging, staging->taken);
        read->target = (unsigned char *)target + done;
        read->bytes = some;
        pen_cuda_staging_sent(staging);
    }
}

uint64_t pen_cuda_staging_reads(const pen_cuda_staging *staging) {
    return staging->taken;
}

void pen_cuda_staging_land(pen_cuda_staging *staging, uint64_t reads) {
    for (; staging->landed < reads; staging->landed++) {
        piece *read = piece_at(staging, staging->landed);
        if (read->target) memcpy(read->target, read->from, read->bytes);
    }
}
