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

static pen_activation_factors round_block(const float *x, int most, int *q) {
    pen_activation_factors factors = {0};
    float largest = 0;
    for (int i = 0; i < BLOCK; i++)
        if (!(fabsf(x[i]) <= largest)) largest = isnan(x[i]) ? INFINITY : fabsf(x[i]);
    bool finite = largest <= FLT_MAX, zero = largest < 0x1p-100F;
    for (int i = 0; i < BLOCK; i++) {
        q[i] = zero || !finite ? 0 : (int)lrintf(x[i] * ((float)most / largest));
        factors.minus[i / (BLOCK / 2)] -= q[i];
    }
    factors.scale = !finite ? NAN : zero ? 0 : largest / (float)most;
    factors.scaled_sum = factors.scale * (float)-(factors.minus[0] + factors.minus[1]);
    return factors;
}

void pen_reference_activation_store(pen_row_form form, const float *x, int cols, void *row) {
    pen_activation_block *block = row;
    pen_fine_block *fine = row;
    int q[BLOCK];
    for (const float *end = x + cols; x < end; x += BLOCK)
        if (form == PEN_ROW_INT8) {
            block->factors = round_block(x, PEN_INT8_MOST, q);
            for (int i = 0; i < BLOCK; i++) block->q[i] = (int8_t)q[i];
            block++;
        } else {
            fine->factors = round_block(x, PEN_FINE_MOST, q);
            for (int i = 0; i < BLOCK; i++) {
                fine->parts[0][i] = (int8_t)floorf((float)(q[i] + 64) / 128);
                fine->parts[1][i] = (int8_t)(q[i] - 128 * fine->parts[0][i]);
            }
            fine++;
        }
}

/* The 32 values that block b of an activation row stands for. */
static void read_block(pen_row_form form, const unsigned char *row, int b, float *out) {
    if (form == PEN_ROW_F32) {
        memcpy(out, row + sizeof(float[BLOCK]) * (size_t)b, sizeof(float[BLOCK]));
    } else if (form == PEN_ROW_INT8) {
        const pen_activation_block *block = (const pen_activation_block *)(const void *)row + b;
        for (int i = 0; i < BLOCK; i++) out[i] = block->factors.scale * (float)block->q[i];
    } else {
        const pen_fine_block *block = (const pen_fine_block *)(const void *)row + b;
        for (int i = 0; i < BLOCK; i++)
            out[i] = block->factors.scale * (float)(128 * block->parts[0][i] + block->parts[1][i]);
    }
}

/* sums[t] = Σ_k w[row][k]·x[t][k] */
static void multiply_row(const pen_weight *w, int row, const unsigned char *x, pen_row_form form, int tokens,
                         double *sums) {
    size_t stride = pen_activation_row_bytes(form, w->cols);
    for (int t = 0; t < tokens; t++) sums[t] = 0;
    for (int b = 0; b < w->cols / BLOCK; b++) {
        float weights[BLOCK], values[BLOCK];
        pen_pack_read_block(w->type, ((const pen_cpu_weight *)w)->data, w->cols, row, b, weights);
        for (int t = 0; t < tokens; t++) {
            read_block(form, x + stride * (size_t)t, b, values);
            for (int i = 0; i < BLOCK; i++) sums[t] += (double)weights[i] * (double)values[i];
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
    const pen_product *p = job->product;
    size_t stride = pen_activation_row_bytes(p->form, m->cols);
    for (int first = 0; first < m->tokens; first += CHUNK) {
        double sums[CHUNK];
        int tokens = m->tokens - first < CHUNK ? m->tokens - first : CHUNK;
        multiply_row(&p->weight->base, row, p->x + stride * (size_t)first, p->form, tokens, sums);
        for (int t = 0; t < tokens; t++) {
            double y = sums[t] + (p->bias ? (double)p->bias[row] : 0);
            if (m->softcap > 0) y = (double)m->softcap * tanh(y / (double)m->softcap);
            float *out = p->out + m->out_stride * (size_t)(first + t) + row;
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
    pen_row_form form = pen_row_form_of(device->base.activations, false);
    size_t stride = pen_activation_row_bytes(form, op->up->cols);
    size_t out_stride = pen_activation_row_bytes(form, op->up->rows);
    const float *bias = op->bias ? pen_cpu_data(op->bias) : NULL;
    for (int t = 0; t < device->batch.rows; t++) {
        const unsigned char *x = (unsigned char *)pen_cpu_data(op->x) + stride * (size_t)t;
        unsigned char *row = (unsigned char *)pen_cpu_data(op->out) + out_stride * (size_t)t;
        float out[BLOCK];
        for (int i = 0; i < BLOCK; i++) {
            double up, gate;
            multiply_row(op->up, BLOCK * b + i, x, form, 1, &up);
            if (bias) up += (double)bias[BLOCK * b + i];
            if (op->gate) multiply_row(op->gate, BLOCK * b + i, x, form, 1, &gate);
            out[i] = (float)(op->gate ? activate(gate, op->act) * up : activate(up, op->act));
        }
        if (form == PEN_ROW_F32)
            memcpy(row + sizeof out * (size_t)b, out, sizeof out);
        else
            pen_reference_activation_store(form, out, BLOCK, row + sizeof(pen_activation_block) * (size_t)b);
    }
}

void pen_reference_gate_up(const pen_cpu_device *device, const pen_gate_up_op *op) {
    pen_pool_run(device->pool, gate_up_task, (void *)(uintptr_t)op, op->up->rows / BLOCK);
}
