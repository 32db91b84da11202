/*
 * The device interface's one implementation: checks what a caller may get wrong and hands the call to the device's
 * class. Arguments come from our own code, never from a file or a message, so a wrong one is a bug and asserts.
 */
#include "device_class.h"

#include <assert.h>
#include <stdlib.h>

/* ---- The device ------------------------------------------------------------------------------------------------ */

size_t pen_device_scratch_bytes(const pen_device *device, const pen_limits *limits) {
    return device->class->scratch_bytes(device, limits);
}

pen_status pen_device_reserve(pen_device *device, const pen_limits *limits) {
    assert(limits->rows >= 1 && limits->logit_rows >= 0 && limits->heads % limits->kv_heads == 0);
    return device->class->reserve(device, limits);
}

const char *pen_device_name(const pen_device *device) {
    return device->class->name(device);
}

size_t pen_device_cache_bytes(const pen_device *device) {
    return device->class->cache_bytes ? device->class->cache_bytes(device) : 0;
}

pen_activations pen_device_activations(const pen_device *device) {
    return device->activations;
}

pen_type pen_device_kv_type(const pen_device *device) {
    return device->kv_type;
}

pen_status pen_device_own_memory(pen_device *device, pen_own_memory *memory) {
    *memory = (pen_own_memory){0};
    return device->class->own_memory ? device->class->own_memory(device, memory) : PEN_OK;
}

size_t pen_device_bytes_used(const pen_device *device) {
    return device->class->bytes_used(device);
}

void pen_device_destroy(pen_device *device) {
    if (device) device->class->destroy(device);
}

void pen_device_set_poke(pen_device *device, pen_poke *poke, void *context) {
    device->class->set_poke(device, poke, context);
}

/* ---- Memory ---------------------------------------------------------------------------------------------------- */

pen_status pen_buffer_create(pen_device *device, size_t bytes, pen_buffer **buffer) {
    return device->class->buffer_create(device, bytes, buffer);
}

void pen_buffer_destroy(pen_buffer *buffer) {
    if (buffer) buffer->device->class->buffer_destroy(buffer);
}

void *pen_buffer_host(pen_buffer *buffer) {
    return buffer->device->class->buffer_host(buffer);
}

static inline bool holds(const pen_buffer *buffer, size_t offset, size_t bytes) {
    return offset <= buffer->bytes && bytes <= buffer->bytes - offset;
}

void pen_buffer_write(pen_buffer *buffer, size_t offset, const void *source, size_t bytes) {
    assert(holds(buffer, offset, bytes));
    buffer->device->class->buffer_write(buffer, offset, source, bytes);
}

void pen_buffer_read(pen_buffer *buffer, size_t offset, void *target, size_t bytes) {
    assert(holds(buffer, offset, bytes));
    buffer->device->class->buffer_read(buffer, offset, target, bytes);
}

pen_status pen_host_create(pen_device *device, size_t bytes, void **memory) {
    if (device->class->host_create) return device->class->host_create(device, bytes, memory);
    *memory = malloc(bytes ? bytes : 1);
    return *memory ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory for %zu bytes", bytes);
}

void pen_host_destroy(pen_device *device, void *memory) {
    if (device->class->host_create)
        device->class->host_destroy(device, memory);
    else
        free(memory);
}

size_t pen_device_activation_bytes(const pen_device *device, int rows, int cols) {
    assert(rows >= 0 && cols > 0);
    return device->class->activation_bytes(device, rows, cols);
}

size_t pen_device_fine_bytes(const pen_device *device, int rows, int cols) {
    assert(rows >= 0 && cols > 0);
    return device->class->fine_bytes(device, rows, cols);
}

size_t pen_weight_bytes(const pen_device *device, pen_type type, int rows, int cols) {
    return device->class->weight_bytes(device, type, rows, cols);
}

pen_status pen_weight_create(pen_device *device, pen_type type, int rows, int cols, pen_weight **weight) {
    assert(rows > 0 && cols > 0);
    return device->class->weight_create(device, type, rows, cols, weight);
}

void pen_weight_destroy(pen_weight *weight) {
    if (weight) weight->device->class->weight_destroy(weight);
}

void pen_weight_write(pen_weight *weight, int first, int rows, const void *source) {
    assert(first >= 0 && first % 64 == 0 && rows > 0 && first + rows <= weight->rows);
    assert(rows % 64 == 0 || first + rows == weight->rows);
    weight->device->class->weight_write(weight, first, rows, source);
}

pen_status pen_kv_check(pen_type type, int head_size) {
    int block = pen_type_get(type)->block_values;
    if (head_size % block == 0) return PEN_OK;
    return pen_fail(PEN_UNSUPPORTED, "the model's heads have %d values: --kv-type q8_0 needs a multiple of %d",
                    head_size, block);
}

size_t pen_kv_bytes(const pen_device *device, int kv_heads, int head_size, int blocks) {
    assert(kv_heads > 0 && head_size > 0 && blocks >= 0);
    return device->class->kv_bytes(device, kv_heads, head_size, blocks);
}

pen_status pen_kv_create(pen_device *device, int kv_heads, int head_size, int blocks, pen_kv **kv) {
    assert(kv_heads > 0 && head_size > 0 && blocks > 0);
    return device->class->kv_create(device, kv_heads, head_size, blocks, kv);
}

void pen_kv_destroy(pen_kv *kv) {
    if (kv) kv->device->class->kv_destroy(kv);
}

size_t pen_rope_bytes(const pen_device *device, const pen_rope_options *options) {
    return device->class->rope_bytes(device, options);
}

pen_status pen_rope_create(pen_device *device, const pen_rope_options *options, pen_rope **rope) {
    assert(options->dims > 0 && options->dims % 2 == 0 && options->positions > 0 && options->base > 0);
    return device->class->rope_create(device, options, rope);
}

void pen_rope_destroy(pen_rope *rope) {
    if (rope) rope->device->class->rope_destroy(rope);
}

/* ---- Events and markers ---------------------------------------------------------------------------------------- */

pen_status pen_event_create(pen_device *device, pen_event **event) {
    return device->class->event_create(device, event);
}

void pen_event_destroy(pen_event *event) {
    if (event) event->device->class->event_destroy(event);
}

void pen_event_record(pen_event *event) {
    event->device->class->event_record(event);
}

bool pen_event_done(const pen_event *event) {
    return event->device->class->event_done(event);
}

int64_t pen_event_due_ns(const pen_event *event) {
    return event->device->class->event_due_ns ? event->device->class->event_due_ns(event) : 0;
}

pen_status pen_device_sync(pen_device *device) {
    return device->class->sync(device);
}

pen_status pen_device_status(pen_device *device) {
    return device->class->status ? device->class->status(device) : PEN_OK;
}

void pen_device_unit_begin(pen_device *device, int unit) {
    assert(unit >= 0 && unit < PEN_UNITS_MAX);
    device->class->unit_begin(device, unit);
}

void pen_device_unit_end(pen_device *device) {
    device->class->unit_end(device);
}

void pen_device_unit_reset(pen_device *device) {
    device->class->unit_reset(device);
}

double pen_device_unit_ms(pen_device *device, int unit) {
    assert(unit >= 0 && unit < PEN_UNITS_MAX);
    return device->class->unit_ms(device, unit);
}

bool pen_device_graph_begin(pen_device *device, const void *owner, int variant) {
    return !device->class->graph_begin || device->class->graph_begin(device, owner, variant);
}

bool pen_device_graph_end(pen_device *device) {
    return device->class->graph_end && device->class->graph_end(device);
}

bool pen_device_keeps_graphs(const pen_device *device) {
    return device->class->graph_begin;
}

/* ---- The batch and its operations ------------------------------------------------------------------------------ */

static inline bool batch_is_sound(const pen_batch *batch) {
    int rows = 0;
    for (int r = 0; r < batch->run_count; r++) {
        const pen_run *run = &batch->runs[r];
        if (run->row != rows || run->rows < 1 || run->position < 0) return false;
        rows += run->rows;
    }
    for (int l = 0; l < batch->logit_count; l++)
        if (batch->logit_rows[l] < (l ? batch->logit_rows[l - 1] + 1 : 0) || batch->logit_rows[l] >= rows) return false;
    return rows >= 1 && rows == batch->rows;
}

void pen_device_set_batch(pen_device *device, const pen_batch *batch) {
    assert(batch_is_sound(batch));
    device->class->set_batch(device, batch);
}

void pen_op_embed(pen_device *device, const pen_embed_op *op) {
    device->class->embed(device, op);
}

void pen_op_norm(pen_device *device, const pen_norm_op *op) {
    assert(op->cols > 0 && !op->out != !op->add_to);
    device->class->norm(device, op);
}

void pen_op_qkv(pen_device *device, const pen_qkv_op *op) {
    assert(op->q->cols == op->k->cols && op->k->cols == op->v->cols);
    device->class->qkv(device, op);
}

void pen_op_rope_kv(pen_device *device, const pen_rope_kv_op *op) {
    assert(op->heads % op->kv_heads == 0 && op->group >= 0 && op->group < PEN_KV_GROUPS);
    device->class->rope_kv(device, op);
}

void pen_op_kv_copy(pen_device *device, pen_kv *kv, int from, int to) {
    device->class->kv_copy(device, kv, from, to);
}
void pen_op_attention(pen_device *device, const pen_attention_op *op) {
    assert(op->heads % op->kv_heads == 0 && op->group >= 0 && op->group < PEN_KV_GROUPS && op->window >= 0);
    device->class->attention(device, op);
}

void pen_op_out_project(pen_device *device, const pen_project_op *op) {
    device->class->out_project(device, op);
}

void pen_op_gate_up(pen_device *device, const pen_gate_up_op *op) {
    assert(!op->gate || (op->gate->rows == op->up->rows && op->gate->cols == op->up->cols));
    device->class->gate_up(device, op);
}

void pen_op_down(pen_device *device, const pen_project_op *op) {
    device->class->down(device, op);
}

void pen_op_logits(pen_device *device, const pen_logits_op *op) {
    assert(!op->norm.out && !op->norm.add_to && op->norm.cols == op->w->cols);
    device->class->logits(device, op);
}

void pen_op_pick(pen_device *device, const pen_buffer *logits, int vocab, const pen_pick *picks, pen_buffer *choices) {
    assert(vocab > 0);
    device->class->pick(device, logits, vocab, picks, choices);
}
