/*
 * For the CUDA device's tests: devices, buffers, and what activation rows stand for. Include it after cmocka.h.
 *
 * The same tests run on a GPU and, with PEN_CUDA_EMULATED, without one (emulate/).
 */
#ifndef PEN_CUDA_TESTS_H
#define PEN_CUDA_TESTS_H

#include "cpu.h"
#include "cuda.h"
#include "cuda_device.h"
#include "device_class.h"
#include "matrix.h"
#include "one_run.h"

#if defined(PEN_CUDA_EMULATED)
#include "emulate.h"
#endif

enum { TYPES = PEN_TYPE_COUNT };

static inline pen_device *open_cuda(pen_activations activations, const pen_limits *limits) {
    pen_device *device;
    pen_cuda_options options = {.activations = activations};
    if (pen_cuda_device_create(&options, &device) != PEN_OK) fail_msg("%s", pen_last_error());
    if (limits) assert_int_equal(pen_device_reserve(device, limits), PEN_OK);
    return device;
}

/* The CPU's plain C oracle. */
static inline pen_device *open_oracle(pen_activations activations, const pen_limits *limits) {
    pen_device *device;
    pen_cpu_options options = {.isa = PEN_CPU_REFERENCE, .activations = activations, .threads = 1};
    assert_int_equal(pen_cpu_device_create(&options, &device), PEN_OK);
    if (limits) assert_int_equal(pen_device_reserve(device, limits), PEN_OK);
    return device;
}

/* Threads of a block in another order, where that can be told: a missing barrier shows. */
static inline void shuffle_threads(unsigned order) {
#if defined(PEN_CUDA_EMULATED)
    pen_emulate_order(order);
#else
    (void)order;
#endif
}

/* Whether devices find cuBLASLt, where that can be told. */
static inline void have_cublaslt(bool present) {
#if defined(PEN_CUDA_EMULATED)
    pen_emulate_cublaslt(present);
#else
    (void)present;
#endif
}

static inline pen_buffer *empty_buffer(pen_device *device, size_t bytes) {
    pen_buffer *buffer;
    assert_int_equal(pen_buffer_create(device, bytes, &buffer), PEN_OK);
    return buffer;
}

static inline pen_buffer *buffer_of(pen_device *device, const void *source, size_t bytes) {
    pen_buffer *buffer = empty_buffer(device, bytes);
    pen_buffer_write(buffer, 0, source, bytes);
    return buffer;
}

static inline void read_back(pen_buffer *buffer, void *target, size_t bytes) {
    pen_buffer_read(buffer, 0, target, bytes);
    if (pen_device_sync(buffer->device) != PEN_OK) fail_msg("%s", pen_last_error());
}

static inline pen_weight *weight_of(pen_device *device, matrix m) {
    pen_weight *weight;
    assert_int_equal(pen_weight_create(device, m.type, m.rows, m.cols, &weight), PEN_OK);
    int half = m.rows / 2 / 64 * 64; /* in two pieces, as a loader may */
    if (half > 0) pen_weight_write(weight, 0, half, m.bytes);
    pen_weight_write(weight, half, m.rows - half, m.bytes + pen_type_row_bytes(m.type, m.cols) * (size_t)half);
    return weight;
}

/* What `parts` activation rows of the CUDA device, side by side, stand for: cols values. */
static inline void activation_values(pen_activations activations, const unsigned char *row, int parts, int cols,
                                     float *values) {
    size_t stride = activations == PEN_ACTIVATIONS_F32 ? (size_t)cols * sizeof(float) : (size_t)(cols + cols / 4);
    stride = (stride + 15) / 16 * 16;
    for (int i = 0; i < cols; i++) {
        values[i] = 0;
        for (int p = 0; p < parts; p++) {
            const unsigned char *part = row + stride * (size_t)p;
            pen_cuda_factor factor;
            float value;
            if (activations == PEN_ACTIVATIONS_F32) {
                memcpy(&value, part + sizeof value * (size_t)i, sizeof value);
            } else {
                memcpy(&factor, part + cols + sizeof factor * (size_t)(i / PEN_CUDA_BLOCK), sizeof factor);
                value = factor.scale * (float)(int8_t)part[i];
            }
            values[i] += value;
        }
    }
}

static inline void assert_near(double value, double expected, double tolerance, const char *what) {
    if (!(fabs(value - expected) <= tolerance))
        fail_msg("%s: %.9g, expected %.9g ± %.2g", what, value, expected, tolerance);
}

#endif
