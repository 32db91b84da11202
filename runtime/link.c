/* Hands the calls of link.h to the link's class. */
#include "link_class.h"

#include <assert.h>

const char *pen_channel_name(pen_channel channel) {
    static const char *const names[PEN_CHANNEL_COUNT] = {"control", "activation", "token", "event", "history"};
    return names[channel];
}

const char *pen_link_name(const pen_link *link) {
    return link->class->name;
}

void pen_link_destroy(pen_link *link) {
    if (link) link->class->destroy(link);
}

pen_status pen_link_receive(pen_link *link, pen_channel channel, int stage, int lane, void *data, size_t bytes,
                            pen_transfer *transfer) {
    assert(lane >= 0 && lane < PEN_LANES);
    return link->class->receive(link, channel, stage, lane, data, bytes, transfer);
}

pen_status pen_link_send(pen_link *link, pen_channel channel, int stage, int lane, const void *data, size_t bytes,
                         const pen_event *after, pen_transfer *transfer) {
    assert(lane >= 0 && lane < PEN_LANES);
    return link->class->send(link, channel, stage, lane, data, bytes, after, transfer);
}

pen_status pen_link_prepare_rows(pen_link *link, int lane, pen_device *device, pen_buffer *rows, size_t bytes) {
    assert(lane >= 0 && lane < PEN_LANES);
    return link->class->prepare_rows ? link->class->prepare_rows(link, lane, device, rows, bytes) : PEN_OK;
}

pen_status pen_link_receive_rows(pen_link *link, int stage, int lane, pen_buffer *rows, size_t bytes,
                                 pen_transfer *transfer) {
    assert(lane >= 0 && lane < PEN_LANES);
    return link->class->receive_rows(link, stage, lane, rows, bytes, transfer);
}

pen_status pen_link_send_rows(pen_link *link, int stage, int lane, pen_buffer *rows, size_t bytes,
                              const pen_event *after, pen_transfer *transfer) {
    assert(lane >= 0 && lane < PEN_LANES);
    return link->class->send_rows(link, stage, lane, rows, bytes, after, transfer);
}

pen_status pen_link_progress(pen_link *link, bool *moved) {
    return link->class->progress(link, moved);
}

int64_t pen_link_due_ns(const pen_link *link) {
    return link->class->due_ns ? link->class->due_ns(link) : 0;
}

bool pen_link_done(pen_link *link, pen_transfer transfer, size_t *bytes) {
    return link->class->done(link, transfer, bytes);
}
