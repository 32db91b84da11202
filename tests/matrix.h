/*
 * For tests: random numbers, and random matrices of every weight type in GGUF layout, with what they mean. Include it
 * after cmocka.h.
 */
#ifndef PEN_TESTS_MATRIX_H
#define PEN_TESTS_MATRIX_H

#include "types.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The next larger number of columns that each of the types can have. */
static inline int columns_for(int cols, pen_type type) {
    int values = pen_type_get(type)->block_values;
    return (cols + values - 1) / values * values;
}

static uint64_t random_state;

static inline uint32_t random_bits(void) {
    random_state = random_state * 6364136223846793005U + 1442695040888963407U;
    return (uint32_t)(random_state >> 32);
}

static inline float random_float(void) {
    return (float)random_bits() / 0x1p31F - 1;
}

static inline void *allocate(size_t bytes) {
    void *memory = calloc(bytes ? bytes : 1, 1);
    assert_non_null(memory);
    return memory;
}

static inline float *random_floats(size_t count) {
    float *values = allocate(count * sizeof *values);
    for (size_t i = 0; i < count; i++) values[i] = random_float();
    return values;
}

/* A matrix in GGUF layout: any bits, with scales of a sane size. */
typedef struct matrix {
    pen_type type;
    int rows, cols;
    unsigned char *bytes;
    float *values; /* [rows][cols] */
} matrix;

/* A factor whose products with the integers of a block are about 1 at most. */
static inline void put_factor(unsigned char *block, int at, float largest) {
    uint16_t half = pen_f32_to_f16(random_float() / largest);
    if (at >= 0) memcpy(block + at, &half, sizeof half);
}

static inline void random_block(pen_type type, unsigned char *block) {
    const pen_type_info *info = pen_type_get(type);
    const pen_quant *quant = &info->quant;
    float number = random_float(), largest_scale = info->block_values == 32 ? 1 : quant->zero == 32 ? 128 : 64;
    for (int i = 0; i < info->block_bytes; i++) block[i] = (unsigned char)random_bits();
    if (type == PEN_TYPE_F32) {
        memcpy(block, &number, sizeof number);
    } else if (type == PEN_TYPE_BF16) {
        memcpy(block, (unsigned char *)&number + 2, 2);
    } else if (type == PEN_TYPE_F16) {
        put_factor(block, 0, 1);
    } else if (type == PEN_TYPE_MXFP4) {
        block[0] = (unsigned char)(120 + block[0] % 8);
    } else {
        put_factor(block, quant->d, largest_scale * (float)(quant->zero ? quant->zero : 1 << quant->bits));
        put_factor(block, quant->m, largest_scale);
    }
}

static inline matrix random_matrix(pen_type type, int rows, int cols) {
    size_t row_bytes = pen_type_row_bytes(type, cols), size = row_bytes * (size_t)rows;
    matrix m = {type, rows, cols, allocate(size), allocate((size_t)rows * (size_t)cols * sizeof(float))};
    for (size_t at = 0; at < size; at += (size_t)pen_type_get(type)->block_bytes) random_block(type, m.bytes + at);
    for (int r = 0; r < rows; r++)
        pen_type_dequantize_row(type, m.bytes + row_bytes * (size_t)r, cols, m.values + (size_t)r * (size_t)cols);
    return m;
}

static inline void matrix_free(matrix m) {
    free(m.bytes);
    free(m.values);
}

/* Σ_k w[row][k]·x[k], and Σ|w·x|, the size that rounding errors are measured by. */
static inline double expected_dot(matrix w, int row, const float *x, double *size) {
    double sum = 0;
    *size = 0;
    for (int k = 0; k < w.cols; k++) {
        double product = (double)w.values[(size_t)row * (size_t)w.cols + (size_t)k] * (double)x[k];
        sum += product;
        *size += fabs(product);
    }
    return sum;
}

#endif
