/*
 * Pinned memory that callers of the device hold, which copies use in place. It is known by its address: there are a few
 * pieces, one for each lane of a link.
 */
#include "cuda_device.h"

#include <assert.h>
#include <stdlib.h>

struct pen_cuda_pinned {
    pen_cuda_pinned *next;
    unsigned char *memory;
    size_t bytes;
};

pen_status pen_cuda_host_create(pen_device *base, size_t bytes, void **memory) {
    pen_cuda_device *device = pen_cuda(base);
    pen_cuda_pinned *made = malloc(sizeof *made);
    if (!made) return pen_fail(PEN_NO_MEMORY, "no memory for pinned memory");
    *made = (pen_cuda_pinned){.next = device->pinned, .bytes = bytes};
    if (cudaMallocHost((void **)&made->memory, bytes ? bytes : 1) != cudaSuccess) {
        cudaGetLastError(); /* the runtime keeps it otherwise */
        free(made);
        return pen_fail(PEN_NO_MEMORY, "cannot pin %zu bytes of host memory", bytes);
    }
    device->pinned = made;
    *memory = made->memory;
    return PEN_OK;
}

void pen_cuda_host_destroy(pen_device *base, void *memory) {
    if (!memory) return;
    pen_cuda_pinned **at = &pen_cuda(base)->pinned;
    while (*at && (*at)->memory != memory) at = &(*at)->next;
    assert(*at);
    pen_cuda_pinned *found = *at;
    *at = found->next;
    cudaFreeHost(memory); /* waits for the stream, which may be at work there */
    free(found);
}

bool pen_cuda_is_pinned(const pen_cuda_device *device, const void *at, size_t bytes) {
    const pen_cuda_pinned *piece = device->pinned;
    for (; piece; piece = piece->next) {
        size_t offset = (uintptr_t)at - (uintptr_t)piece->memory; /* huge where it lies before */
        if (offset <= piece->bytes && bytes <= piece->bytes - offset) return true;
    }
    return false;
}
