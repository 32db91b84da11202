/*
 * The oracle of linear.c: every operation as its definition reads, one output row at a time, from dequantised weights
 * and the values that the activation rows stand for.
 */
#include "linear.h"
#include "pack.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { BLOCK = PEN_QUANT_BLOCK, CHUNK = 64 };

void pen_reference_quantize_row(const float *x, int cols, pen_activation_block *row) {
    for (int b = 0; b < cols / BLOCK; b++, x += BLOCK) {
        pen_activation_block *block = &row[b];
        float largest = 0;
        for (int i = 0; i < BLOCK; i++)
            if (!(fabsf(x[i]) <= largest)) largest = isnan(x[i]) ? INFINITY : fabsf(x[i]);
        bool finite = largest <= FLT_MAX, zero = largest < 0x1p-100F;
        block->sums[0] = block->sums[1] = 0;
        for (int i = 0; i < BLOCK; i++) {
            block->q[i] = (int8_t)(zero || !finite ? 0 : lrintf(x[i] * (127.0F / largest)));
            block->sums[i / (BLOCK / 2)] += block->q[i];
        }
        block->scale = !finite ? NAN : zero ? 0 : largest / 127.0F;
        block->scaled_sum = block->scale * (float)(block->sums[0] + block->sums[1]);
    }
}

/* The 32 values that block b of an activation row stands for. */
static void read_block(pen_activations activations, const unsigned char *row, int b, float *out) {
    if (activations == PEN_ACTIVATIONS_F32) {
        memcpy(out, row + sizeof(float[BLOCK]) * (size_t)b, sizeof(float[BLOCK]));
        return;
    }
    pen_activation_block block;
    memcpy(&block, row + sizeof block * (size_t)b, sizeof block);
    for (int i = 0; i < BLOCK; i++) out[i] = block.scale * (float)block.q[i];
}

/* sums[t] = Σ_k w[row][k]·x[t][k], x[t] being the sum of `parts` activation rows */
static void multiply_row(const pen_weight *w, int row, const unsigned char *x, int parts, int tokens, double *sums) {
    pen_activations activations = w->device->activations;
    size_t stride = pen_activation_row_bytes(activations, w->cols);
    for (int t = 0; t < tokens; t++) sums[t] = 0;
    for (int b = 0; b < w->cols / BLOCK; b++) {
        float weights[BLOCK], values[BLOCK];
        pen_pack_read_block(w->type, ((const pen_cpu_weight *)w)->data, w->cols, row, b, weights);
        for (int p = 0; p < parts * tokens; p++) {
            read_block(activations, x + stride * (size_t)p, b, values);
            for (int i = 0; i < BLOCK; i++) sums[p / parts] += (double)weights[i] * (double)values[i];
        }
    }
}

typedef struct product_job {
    const pen_matmul *m;
    const pen_product *product;
} product_job;

static void product_task(void *context, int row, int thread) {
    (void)thread;
    const product_job *job = context;
    const pen_matmul *m = job->m;
    size_t stride = (size_t)m->parts * pen_activation_row_bytes(m->device->base.activations, m->cols);
    for (int first = 0; first < m->tokens; first += CHUNK) {
        double sums[CHUNK];
        int tokens = m->tokens - first < CHUNK ? m->tokens - first : CHUNK;
        multiply_row(&job->product->weight->base, row, m->x + stride * (size_t)first, m->parts, tokens, sums);
        for (int t = 0; t < tokens; t++) {
            double y = sums[t] + (job->product->bias ? (double)job->product->bias[row] : 0);
            if (m->softcap > 0) y = (double)m->softcap * tanh(y / (double)m->softcap);
            float *out = job->product->out + m->out_stride * (size_t)(first + t) + row;
            *out = m->add ? (float)((double)*out + y) : (float)y;
        }
    }
}

void pen_reference_matmul(const pen_matmul *m) {
    for (int i = 0; i < m->count; i++) {
        product_job job = {m, &m->products[i]};
        pen_pool_run(m->device->pool, product_task, &job, m->products[i].weight->base.rows);
    }
}

static double activate(double x, pen_gate act) {
    const double root = 0.79788456080286536; /* √(2/π) */
    return act == PEN_GATE_SILU ? x / (1 + exp(-x)) : 0.5 * x * (1 + tanh(root * (x + 0.044715 * x * x * x)));
}

/* One block of 32 outputs. */
static void gate_up_task(void *context, int b, int thread) {
    (void)thread;
    const pen_gate_up_op *op = context;
    const pen_cpu_device *device = (const pen_cpu_device *)op->up->device;
    size_t stride = pen_activation_row_bytes(device->base.activations, op->up->cols);
    size_t out_stride = pen_activation_row_bytes(device->base.activations, op->up->rows);
    const float *bias = op->bias ? pen_cpu_data(op->bias) : NULL;
    for (int t = 0; t < device->batch.rows; t++) {
        const unsigned char *x = (unsigned char *)pen_cpu_data(op->x) + stride * (size_t)t;
        unsigned char *row = (unsigned char *)pen_cpu_data(op->out) + out_stride * (size_t)t;
        float out[BLOCK];
        for (int i = 0; i < BLOCK; i++) {
            double up, gate;
            multiply_row(op->up, BLOCK * b + i, x, 1, 1, &up);
            if (bias) up += (double)bias[BLOCK * b + i];
            if (op->gate) multiply_row(op->gate, BLOCK * b + i, x, 1, 1, &gate);
            out[i] = (float)(op->gate ? activate(gate, op->act) * up : activate(up, op->act));
        }
        if (device->base.activations == PEN_ACTIVATIONS_F32)
            memcpy(row + sizeof out * (size_t)b, out, sizeof out);
        else
            pen_reference_quantize_row(out, BLOCK, (pen_activation_block *)(void *)row + b);
    }
}

void pen_reference_gate_up(const pen_cpu_device *device, const pen_gate_up_op *op) {
    pen_pool_run(device->pool, gate_up_task, (void *)(uintptr_t)op, op->up->rows / BLOCK);
}
