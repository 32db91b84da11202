/*
 * What the host hands to the kernels: one argument struct and one launch function per kernel, in C, so that only the
 * .cu files are C++. All pointers are to device memory; all launches are asynchronous, in the order of the stream.
 *
 * Activation rows. One row after the other, each pen_cuda_row_bytes() long, a multiple of 16.
 *   FAST: int8_t q[cols], then pen_cuda_factor[cols/32]; x ≈ scale·q, scale = max|x|/127,
 *         q = round-half-even(x·(127/max|x|)), all 0 in a block whose max|x| is below 2^-100; scale NaN, q 0 where
 *         one of the values is not finite: as on the CPU
 *   F32:  float x[cols]
 * A fine row is pen_cuda_parts() rows side by side, which add up to the values.
 *
 * Weights. Groups of 32 rows, so that a lane of a warp is an output row; in a group *tiles* of 32 values, one behind
 * the other, so that a warp reads consecutive memory and a lane 4, 8 or 16 bytes of it at once.
 *   F32, F16, BF16: [128, 64, 64 bytes ÷ 16][32 rows][16 bytes]: a row's 32 numbers in pieces of 16 bytes.
 *   Others: a row's 32 codes as bytes would be 8 words, word v holding values 4v … 4v+3. Planes of 8, 4, 2 and 1 bits
 *     keep them: the plane of w bits has w words per row, and word v is at bit w·(v div w) of word v mod w. 4 bits are
 *     one plane, 5 are 4 + 1, 6 are 4 + 2, 3 are 2 + 1, the wider one holding the lower bits. Planes lie as [words of a
 *     row in pieces of 16 bytes at most][32 rows][piece]. Behind them the factors:
 *     in blocks of 32: f16 d[32 rows], with minima f16 m[32 rows]; MXFP4 instead the exponent, a byte for each row;
 *     in blocks of 256: two bytes for each row: scale and minimum, or the two scales, each with its minimum in the high
 *     nibble if there is one. Behind each 8 tiles f16 d[32 rows] and perhaps f16 m[32 rows].
 *   Q8_0's codes are signed bytes here. Rows past the end of the matrix are zero.
 *
 * Numeric contract of y[n], for any number of tokens and whatever kernel computes it. K is cut into spans of
 * PEN_CUDA_SPAN values; p of a span is summed from 0 over its tiles in order, all f32:
 *   FAST × quantised: as in kernels/cpu/cpu_device.h with acc = p
 *   F32 × any, and F32, F16, BF16 weights in either mode: p = fma(w_k, x_k, p) for k in order, w_k as
 *               pen_type_dequantize_row gives it and, in FAST mode, x_k = scale·q
 * then y = ((p_0 + p_1) + p_2) + …, for fine rows the sum of the parts' y, then y + bias where there is one.
 * Attention is cut at absolute multiples of PEN_CUDA_ATTENTION_SPAN positions and merged in their order (attention.cu).
 * Everything else is computed by one block per row, of a fixed number of threads.
 */
#ifndef PEN_CUDA_KERNELS_H
#define PEN_CUDA_KERNELS_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels.h"

enum {
    PEN_CUDA_BLOCK = 32,      /* values with one scale in activations; rows of a weight group; a warp */
    PEN_CUDA_SPAN = 128,      /* values of K that are summed by themselves */
    PEN_CUDA_SUPER = 256,     /* values of the larger blocks of weights */
    PEN_CUDA_TILE_QUERIES = 8 /* queries that attention reads a key for at once */
};
enum { PEN_CUDA_ATTENTION_SPAN = 128, PEN_CUDA_HEAD_MAX = 512 };

typedef struct pen_cuda_factor {
    float scale;
    int16_t sums[2]; /* Σ of each half of q */
} pen_cuda_factor;

/* Whether this build has kernels that the current GPU can run. */
bool pen_cuda_kernels_fit(void);

/* ---- norm.cu --------------------------------------------------------------------------------------------------- */

/* Row i of the result is the norm of row rows[i] of x, or of row i where rows is NULL. */
typedef struct pen_cuda_norm_args {
    const float *x, *weight, *bias; /* [..][cols], [cols], [cols] or NULL */
    const int32_t *rows;
    int count, cols;
    float eps;
    bool mean;
    pen_activations activations;
    int parts;          /* of the activation rows */
    unsigned char *out; /* activation rows, or NULL */
    size_t stride;      /* bytes of a part of one */
    float *add_to;      /* f32 rows, or NULL */
} pen_cuda_norm_args;
void pen_cuda_launch_norm(cudaStream_t stream, const pen_cuda_norm_args *args);

/* Turns f32 rows [count][cols] into activation rows. */
typedef struct pen_cuda_store_args {
    const float *x;
    int count, cols;
    unsigned char *out;
    size_t stride;
} pen_cuda_store_args;
void pen_cuda_launch_store(cudaStream_t stream, const pen_cuda_store_args *args);

/* out[count][cols] = act(gate) ⊙ up as activation rows; without a gate, act(up). */
typedef struct pen_cuda_activate_args {
    const float *gate, *up; /* f32 [count][cols]; gate may be NULL */
    int count, cols;
    pen_gate act;
    pen_activations activations;
    unsigned char *out;
    size_t stride;
} pen_cuda_activate_args;
void pen_cuda_launch_activate(cudaStream_t stream, const pen_cuda_activate_args *args);

/* ---- linear.cu ------------------------------------------------------------------------------------------------- */

typedef struct pen_cuda_matrix {
    const unsigned char *data;
    pen_type type;
    int rows, cols;
    size_t group_bytes;
} pen_cuda_matrix;

typedef struct pen_cuda_product_args {
    pen_cuda_matrix w;
    pen_activations activations;
    const unsigned char *x; /* [tokens][parts] activation rows */
    size_t stride;          /* bytes of a part */
    int tokens, parts;
    const float *bias; /* [rows of w] or NULL */
    float softcap;     /* or 0 */
    bool add;          /* to what is there */
    float *out;        /* out[token·out_stride + row] */
    size_t out_stride;
} pen_cuda_product_args;
void pen_cuda_launch_product(cudaStream_t stream, const pen_cuda_product_args *args);

/* x[t][cols] = scale · table[token[t]] (+ positions[position[t]]). */
typedef struct pen_cuda_embed_args {
    pen_cuda_matrix table, positions; /* positions.data may be NULL */
    const int32_t *token, *position;  /* [count] */
    int count;
    float scale;
    float *x;
} pen_cuda_embed_args;
void pen_cuda_launch_embed(cudaStream_t stream, const pen_cuda_embed_args *args);

/* ---- attention.cu ---------------------------------------------------------------------------------------------- */

/* Pages of one layer; E is 16 bytes ÷ element. `width` is head_size rounded up to a multiple of 8, padded with zeros.
 *   K of a block: [kv_head][width/E][PEN_KV_BLOCK][E]: a thread is a position and reads 16 bytes at once
 *   V of a block: [kv_head][PEN_KV_BLOCK][width]: a thread is a dimension */
typedef struct pen_cuda_pages {
    unsigned char *k, *v;
    int kv_heads, head_size, width;
    bool half; /* f16 elements, or f32 */
} pen_cuda_pages;

/* The rows of the current batch: row t's block of position p is tables[first_block[t] + p / PEN_KV_BLOCK]. */
typedef struct pen_cuda_rows {
    int count;
    const int32_t *position;    /* [count] */
    const int32_t *first_block; /* [count], of one group */
    const int32_t *tables;
} pen_cuda_rows;

typedef struct pen_cuda_rope_kv_args {
    pen_cuda_rows rows;
    float *qkv;
    int heads;
    const float *q_norm, *k_norm; /* [head_size] or NULL */
    float eps;
    const float *rope; /* [positions][dims/2][2] or NULL */
    int dims;
    bool interleaved;
    pen_cuda_pages pages;
} pen_cuda_rope_kv_args;
void pen_cuda_launch_rope_kv(cudaStream_t stream, const pen_cuda_rope_kv_args *args);

/* Some consecutive rows of one run; with a KV head and at most PEN_CUDA_TILE_QUERIES of its query heads they are the
 * queries that read the same keys. */
typedef struct pen_cuda_tile {
    int32_t row, rows;
} pen_cuda_tile;

typedef struct pen_cuda_attention_args {
    pen_cuda_rows rows;
    const pen_cuda_tile *tiles;
    int tile_count;
    const float *qkv;
    int heads;
    float scale, softcap;
    int window;
    pen_cuda_pages pages;
    int spans;       /* most spans of a tile: each has a block of its own; or 0: a block walks all spans of a tile */
    float *partials; /* [tile][head chunk][span][queries][2 + width] */
    float *out;      /* f32 [count], rows out_stride floats apart */
    size_t out_stride;
} pen_cuda_attention_args;
/* Floats of `partials`. */
size_t pen_cuda_attention_partials(const pen_cuda_attention_args *args);
void pen_cuda_launch_attention(cudaStream_t stream, const pen_cuda_attention_args *args);

/* ---- pick.cu --------------------------------------------------------------------------------------------------- */

/* A pick as the device wants it. */
typedef struct pen_cuda_pick_args {
    double uniform; /* of the draw */
    float temperature, top_p, min_p;
    int32_t top_k, target, top_logprobs;
    int32_t edited; /* its row was edited: choose from the edited logits */
} pen_cuda_pick_args;

typedef struct pen_cuda_edit {
    int32_t row;
    pen_logit_edit edit;
} pen_cuda_edit;

typedef struct pen_cuda_choose_args {
    const float *logits; /* [count][vocab] */
    float *edited;       /* the same; only rows that have edits */
    int count, vocab;
    const pen_cuda_pick_args *picks; /* [count] */
    pen_choice *choices;             /* [count] */
} pen_cuda_choose_args;
/* Copies the rows that are edited, to be followed by the edits themselves, in any number of launches. */
void pen_cuda_launch_copy_edited(cudaStream_t stream, const pen_cuda_choose_args *args);
void pen_cuda_launch_edit(cudaStream_t stream, const pen_cuda_choose_args *args, const pen_cuda_edit *edits, int count);
void pen_cuda_launch_choose(cudaStream_t stream, const pen_cuda_choose_args *args);

#ifdef __cplusplus
}
#endif

#endif
