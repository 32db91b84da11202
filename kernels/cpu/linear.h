/*
 * Inner kernels of the operations that multiply by a weight: one table per instruction set (linear.isa.c), and the
 * plain reference of whole operations (linear_reference.c).
 *
 * All tables give the same bits; cpu_device.h holds the numeric contract. The caller (linear.c) divides an operation
 * into tiles of 16 outputs × up to PEN_TOKEN_TILE tokens, which never shows in a result.
 */
#ifndef PEN_LINEAR_H
#define PEN_LINEAR_H

#include "cpu_device.h"
#include "quantize.h"

enum { PEN_TOKEN_TILE = 64 };

/* y[tokens][16] = the group's 16 rows times each activation row: `blocks` blocks of 32 values, rows `stride` bytes
 * apart. */
typedef void pen_dot(const unsigned char *group, int blocks, const unsigned char *x, size_t stride, int tokens,
                     float *y);

/* Where a tile of results goes: out[t·stride + column] = y (+ bias, softcap), or += that. */
typedef struct pen_tile_target {
    float *out;
    size_t stride;     /* floats */
    int columns;       /* 1 … 16 */
    const float *bias; /* [columns] or NULL */
    float softcap;     /* or 0 */
    bool add;
} pen_tile_target;

/* 32 outputs of the feed-forward's first half: [half][token][16]. */
typedef struct pen_gate_tile {
    float gate[2][PEN_TOKEN_TILE * PEN_PACK_ROWS];
    float up[2][PEN_TOKEN_TILE * PEN_PACK_ROWS];
} pen_gate_tile;

struct pen_cpu_linear_kernels {
    pen_dot *dot[PEN_ROW_FORMS][PEN_TYPE_COUNT]; /* by form of activation rows and weight type */
    void (*put)(const float *y, int tokens, const pen_tile_target *target);
    /* out[t·stride] = the largest of the first `columns` of y[t][16]. */
    void (*peak)(const float *y, int tokens, int columns, float *out, size_t stride);
    /* y[16] = Σ w² of the group's rows; of quantised types. */
    void (*squares[PEN_TYPE_COUNT])(const unsigned char *group, int blocks, float *y);

    /* Activation block `block` of the rows at `out`: act(gate) ⊙ (up + bias), or act(up + bias) where not `gated`. */
    void (*gate)(const pen_gate_tile *tile, int tokens, pen_gate act, bool gated, const float *bias, pen_row_form form,
                 unsigned char *out, size_t stride, int block);
    void (*quantize_row)(const float *x, int cols, pen_activation_block *row);
    void (*quantize_fine_row)(const float *x, int cols, pen_fine_block *row);

    /* Rough nanoseconds per block of 16 × 32 weights and token, by form of activation rows: sizes the tasks. */
    float block_ns[PEN_ROW_FORMS];
};

extern const pen_cpu_linear_kernels pen_cpu_linear_kernels_portable, pen_cpu_linear_kernels_avx2,
    pen_cpu_linear_kernels_avxvnni, pen_cpu_linear_kernels_avx512;

/* One of the matrices that an operation multiplies its rows with; its results begin at `out`. */
typedef struct pen_product {
    const pen_cpu_weight *weight;
    const unsigned char *x; /* activation rows */
    pen_row_form form;
    const float *bias; /* [rows of the weight] or NULL */
    float *out;
} pen_product;

/* out[t][n] of every product from its x[tokens]: stored, or added with `add`; or with `peaks` the largest of each group
 * of 16 n only, out[t][group]. */
typedef struct pen_matmul {
    const pen_cpu_device *device;
    int cols, tokens;
    pen_product products[3];
    int count;
    size_t out_stride; /* floats */
    float softcap;     /* or 0 */
    bool add, peaks;
} pen_matmul;

void pen_cpu_matmul(const pen_matmul *m);

/* The oracle, in plain C: dequantised weights times what the activation rows stand for, summed in double. */
void pen_reference_matmul(const pen_matmul *m);
void pen_reference_gate_up(const pen_cpu_device *device, const pen_gate_up_op *op);
void pen_reference_activation_store(pen_row_form form, const float *x, int cols, void *row);

#endif
