/* Edges of a build without CUDA, or without NCCL's header: there are none; see cuda_edge.h. */
#include "cuda_edge.h"

#include <assert.h>

static pen_status absent(void) {
    return pen_fail(PEN_UNSUPPORTED, "this program was built without NCCL (its nccl.h was not found)");
}

pen_status pen_cuda_edge_version(int *version) {
    *version = 0;
    return absent();
}

pen_status pen_cuda_edge_make_id(pen_cuda_edge_id *id) {
    (void)id;
    return absent();
}

pen_status pen_cuda_edge_create(pen_device *device, const pen_cuda_edge_id *id, bool sends, pen_cuda_edge **edge) {
    (void)device, (void)id, (void)sends, (void)edge;
    return absent();
}

void pen_cuda_edge_destroy(pen_cuda_edge *edge) {
    assert(!edge);
    (void)edge;
}

void pen_cuda_edge_push(pen_cuda_edge *edge, pen_buffer *rows, size_t bytes) {
    assert(!edge);
    (void)edge, (void)rows, (void)bytes;
}

pen_status pen_cuda_edge_progress(pen_cuda_edge *edge, pen_cuda_edge_state *state) {
    (void)edge, (void)state;
    return absent();
}
