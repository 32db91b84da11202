/*
 * Norms and rotation: operations on single rows. This file divides rows into tasks; what a row becomes is up to the
 * instruction set's kernels, or to the reference.
 */
#include "ops.h"

#include <assert.h>
#include <string.h>

const pen_cpu_op_kernels *pen_cpu_op_kernels_get(pen_cpu_isa isa) {
    switch (isa) {
    case PEN_CPU_PORTABLE: return &pen_cpu_op_kernels_portable;
#if defined(PEN_CPU_X86)
    case PEN_CPU_AVX2:
    case PEN_CPU_AVXVNNI: return &pen_cpu_op_kernels_avx2;
    case PEN_CPU_AVX512: return &pen_cpu_op_kernels_avx512;
#endif
    default: return NULL; /* the reference has no inner kernels */
    }
}

/* ---- Tasks of several rows ------------------------------------------------------------------------------------- */

enum { TASK_VALUES = 1 << 14, LEAST_VALUES = 1 << 11 }; /* of a task: some microseconds, and what a meeting costs */

/* One thread's scratch row: the widest of norm and rotation. */
static int scratch_cols(const pen_limits *limits) {
    int kv = limits->kv_heads * limits->head_size;
    int widest = limits->hidden > limits->ffn ? limits->hidden : limits->ffn;
    return ((kv > widest ? kv : widest) + 15) / 16 * 16;
}

size_t pen_cpu_ops_scratch(const pen_cpu_device *device, const pen_limits *limits) {
    return (size_t)pen_pool_threads(device->pool) * (size_t)scratch_cols(limits) * sizeof(float);
}

static float *thread_row(const pen_cpu_device *device, int thread) {
    return (float *)device->op_scratch + (size_t)thread * (size_t)scratch_cols(&device->limits);
}

/* An operation on each row of the batch, several rows to a task. */
typedef struct row_job {
    pen_cpu_device *device;
    const void *op;
    void (*row)(pen_cpu_device *device, const void *op, int row, float *scratch);
    int task_rows;
} row_job;

static void row_task(void *context, int task, int thread) {
    const row_job *job = context;
    int first = task * job->task_rows, end = first + job->task_rows;
    if (end > job->device->batch.rows) end = job->device->batch.rows;
    for (int row = first; row < end; row++) job->row(job->device, job->op, row, thread_row(job->device, thread));
}

/* Every thread has a task where that is worth meeting for. */
static void for_rows(row_job job, int row_values) {
    int rows = job.device->batch.rows, threads = pen_pool_threads(job.device->pool);
    int most = TASK_VALUES / row_values + 1, least = LEAST_VALUES / row_values + 1;
    job.task_rows = (rows + threads - 1) / threads;
    if (job.task_rows > most) job.task_rows = most;
    if (job.task_rows < least) job.task_rows = least;
    pen_pool_run(job.device->pool, row_task, &job, (rows + job.task_rows - 1) / job.task_rows);
}

/* ---- Norm ------------------------------------------------------------------------------------------------------ */

/* The reference sums in another order than the kernels. The planted fault, which the property tests must find, is to
 * let the batch decide which order it is. */
static bool in_natural_order(const pen_cpu_device *device) {
#if defined(PEN_PLANT_ORDER_DEPENDENT)
    if (device->batch.rows > 1) return true;
#endif
    return device->isa == PEN_CPU_REFERENCE;
}

void pen_cpu_norm_row(const pen_cpu_device *device, const pen_norm_op *op, int row, float *out) {
    if (in_natural_order(device)) {
        pen_reference_norm_row(op, row, out);
        return;
    }
    const float *x = (const float *)pen_cpu_data(op->x) + (size_t)row * (size_t)op->cols;
    const float *bias = op->bias ? pen_cpu_data(op->bias) : NULL;
    device->ops->norm_row(x, pen_cpu_data(op->weight), bias, op->cols, op->eps, op->mean, out);
}

static void norm_row(pen_cpu_device *device, const void *context, int row, float *scratch) {
    const pen_norm_op *op = context;
    pen_cpu_norm_row(device, op, row, scratch);
    if (op->out) {
        pen_row_form form = pen_row_form_of(device->base.activations, op->fine);
        size_t bytes = pen_activation_row_bytes(form, op->cols);
        void *out = (unsigned char *)pen_cpu_data(op->out) + (size_t)row * bytes;
        pen_cpu_activation_store(device, form, scratch, op->cols, out);
        pen_row_form score = pen_cpu_score_form(&device->base);
        if (op->fine && score != form) {
            unsigned char *behind = (unsigned char *)pen_cpu_data(op->out) + (size_t)device->batch.rows * bytes;
            behind += (size_t)row * pen_activation_row_bytes(score, op->cols);
            pen_cpu_activation_store(device, score, scratch, op->cols, behind);
        }
        return;
    }
    float *to = (float *)pen_cpu_data(op->add_to) + (size_t)row * (size_t)op->cols;
    for (int i = 0; i < op->cols; i++) to[i] += scratch[i];
}

void pen_cpu_norm(pen_device *base, const pen_norm_op *op) {
    pen_cpu_device *device = (pen_cpu_device *)base;
    assert(op->cols <= scratch_cols(&device->limits));
    for_rows((row_job){.device = device, .op = op, .row = norm_row}, op->cols);
}

/* ---- Rotation and the KV cache --------------------------------------------------------------------------------- */

/* Norms and rotates `count` heads [count][head_size] of a row in place. */
static void turn_heads(const pen_cpu_device *device, const pen_rope_kv_op *op, const pen_buffer *norm, int count,
                       int position, float *heads) {
    const pen_cpu_rope *rope = (const pen_cpu_rope *)op->rope;
    const float *turns = rope ? rope->table + (size_t)position * (size_t)rope->dims : NULL;
    for (int h = 0; h < count; h++, heads += op->head_size) {
        if (norm) device->ops->norm_row(heads, pen_cpu_data(norm), NULL, op->head_size, op->eps, false, heads);
        if (rope) device->ops->rotate(turns, rope->dims / 2, rope->interleaved, heads);
    }
}

/* Each stores one position's K and V of a head in their pages; cpu_device.h has the layouts. */
static void store_f32(const pen_cpu_kv *kv, size_t page, int slot, const float *k, const float *v) {
    float *k_page = (float *)(kv->k + page), *v_page = (float *)(kv->v + page);
    for (int d = 0; d < kv->head_size; d++) k_page[d * PEN_KV_BLOCK + slot] = k[d];
    memcpy(v_page + slot * kv->head_size, v, (size_t)kv->head_size * sizeof *v);
}

static void store_f16(const pen_cpu_device *device, const pen_cpu_kv *kv, size_t page, int slot, const float *k,
                      const float *v, uint16_t *narrow) {
    uint16_t *k_page = (uint16_t *)(kv->k + page), *v_page = (uint16_t *)(kv->v + page);
    device->ops->narrow(k, kv->head_size, narrow);
    for (int d = 0; d < kv->head_size; d++) k_page[d * PEN_KV_BLOCK + slot] = narrow[d];
    device->ops->narrow(v, kv->head_size, v_page + slot * kv->head_size);
}

void pen_cpu_store_q8_0(const pen_cpu_device *device, const pen_cpu_kv *kv, size_t page, int slot, const float *k,
                        const float *v) {
    int size = kv->head_size;
    unsigned char *k_codes = kv->k + page + 4 * slot, *v_codes = kv->v + page + slot * size;
    uint16_t *k_scales = (uint16_t *)(kv->k + page + PEN_KV_BLOCK * size) + slot;
    uint16_t *v_scales = (uint16_t *)(kv->v + page + PEN_KV_BLOCK * size) + slot;
    pen_activation_block block;
    for (int d = 0; d < size; d += PEN_QUANT_BLOCK, k_scales += PEN_KV_BLOCK, v_scales += PEN_KV_BLOCK) {
        pen_cpu_activation_store(device, PEN_ROW_INT8, k + d, PEN_QUANT_BLOCK, &block);
        for (int i = 0; i < PEN_QUANT_BLOCK; i++)
            k_codes[PEN_KV_BLOCK * (d + i / 4 * 4) + i % 4] = (unsigned char)(block.q[i] + 128);
        *k_scales = pen_f32_to_f16(block.factors.scale);
        pen_cpu_activation_store(device, PEN_ROW_INT8, v + d, PEN_QUANT_BLOCK, &block);
        memcpy(v_codes + d, block.q, PEN_QUANT_BLOCK);
        *v_scales = pen_f32_to_f16(block.factors.scale);
    }
}

static void rope_kv_row(pen_cpu_device *device, const void *context, int row, float *scratch) {
    const pen_rope_kv_op *op = context;
    const pen_cpu_kv *kv = (const pen_cpu_kv *)op->kv;
    const pen_run *run = &device->runs[device->row_run[row]];
    int position = run->position + row - run->row;
    float *q = (float *)pen_cpu_data(op->qkv) + (size_t)row * (size_t)((op->heads + 2 * op->kv_heads) * op->head_size);
    float *k = q + op->heads * op->head_size, *v = k + op->kv_heads * op->head_size;
    turn_heads(device, op, op->q_norm, op->heads, position, q);
    turn_heads(device, op, op->k_norm, op->kv_heads, position, k);

    int32_t block = run->tables[op->group][position / PEN_KV_BLOCK];
    assert(block >= 0 && block < kv->blocks);
    int slot = position % PEN_KV_BLOCK;
    for (int h = 0; h < op->kv_heads; h++, k += op->head_size, v += op->head_size) {
        size_t page = pen_cpu_kv_page(kv, (size_t)block, h);
        switch (kv->type) {
        case PEN_TYPE_Q8_0: pen_cpu_store_q8_0(device, kv, page, slot, k, v); break;
        case PEN_TYPE_F16: store_f16(device, kv, page, slot, k, v, (uint16_t *)scratch); break;
        default: store_f32(kv, page, slot, k, v); break;
        }
    }
}

void pen_cpu_rope_kv(pen_device *base, const pen_rope_kv_op *op) {
    pen_cpu_device *device = (pen_cpu_device *)base;
    const pen_cpu_kv *kv = (const pen_cpu_kv *)op->kv;
    assert(kv->kv_heads == op->kv_heads && kv->head_size == op->head_size);
    assert(!op->rope || (((const pen_cpu_rope *)op->rope)->dims <= op->head_size &&
                         ((const pen_cpu_rope *)op->rope)->positions >= device->limits.context));
    (void)kv;
    if (device->isa == PEN_CPU_REFERENCE) {
        pen_reference_rope_kv(device, op);
        return;
    }
    for_rows((row_job){.device = device, .op = op, .row = rope_kv_row}, (op->heads + 2 * op->kv_heads) * op->head_size);
}
