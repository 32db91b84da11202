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
 * Weights. F32, F16 and BF16 lie as in the file, row after row. Others in groups of 32 rows, and in a group *tiles* of
 * 32 values of each, one behind the other. In a tile lane 4·g + t of a warp has rows g, g + 8, g + 16 and g + 24, and
 * of each two runs of four values, from 4t and from 16 + 4t, which is what tensor cores want of it. With a byte for
 * each code these would be 8 words, word 2·s + h being run h of row g + 8s. Planes of 8, 4, 2 and 1 bits keep them: the
 * plane of w bits has w words for each lane, and word v is at bit w·(v div w) of word v mod w. 4 bits are one plane, 5
 * are 4 + 1, 6 are 4 + 2, 3 are 2 + 1, the wider one holding the lower bits. Planes lie as [words of a lane in pieces
 * of 16 bytes at most][32 lanes][piece]. Behind them the factors of the 32 rows, row g + 8s as the 4·g + s'th: in
 * blocks of 32: f16 d[32], with minima f16 m[32]; MXFP4 instead the exponent, a byte for each row; in blocks of 256:
 * two bytes for each row: scale and minimum, or the two scales, each with its minimum in the high nibble if there is
 * one. Behind each 8 tiles f16 d[32] and perhaps f16 m[32]. Q8_0's codes are signed bytes here. Rows past the end of
 * the matrix are zero.
 *
 * Numeric contract of y[n], for any number of tokens and whatever kernel computes it. K is cut into spans of
 * PEN_CUDA_SPAN values; p of a span is summed from 0 over its tiles in order, all f32:
 *   FAST × quantised: as in kernels/cpu/cpu_device.h with acc = p
 *   FAST × F16, BF16: p = fma(i, scale, p), i being the tensor core's sum of w·q over the tile's values: in two
 *               steps of 16: of every eight values first the lower four, then the upper
 *   F32 × any, and F32 weights in either mode: p = (p_0 + p_1) + (p_2 + p_3), p_t = fma(w_k, x_k, p_t) over the values
 *               of the lanes 4·g + t in order; w_k is as pen_type_dequantize_row gives it and, in FAST mode, x_k =
 *               scale·q. Of plain types these are the values 8t … 8t+7 of a tile.
 *
 * Then y = ((p_0 + p_1) + p_2) + …, for fine rows the sum of the parts' y, then y + bias where there is one. Attention
 * is cut at absolute multiples of PEN_CUDA_ATTENTION_SPAN positions and merged in their order (attention.cuh).
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
    PEN_CUDA_BLOCK = 32,        /* values with one scale in activations; rows of a weight group; a warp */
    PEN_CUDA_SPAN = 128,        /* values of K that are summed by themselves */
    PEN_CUDA_SUPER = 256,       /* values of the larger blocks of weights */
    PEN_CUDA_TILE_QUERIES = 16, /* queries that attention reads a key for at once, by tensor cores */
    PEN_CUDA_PLAIN_QUERIES = 8  /* and without */
};
enum { PEN_CUDA_ATTENTION_SPAN = 128, PEN_CUDA_HEAD_MAX = 512, PEN_CUDA_HEAD_WIDTH = 16 };

typedef struct pen_cuda_factor {
    float scale;
    int16_t sums[2]; /* Σ of each half of q */
} pen_cuda_factor;

/* Whether this build has kernels that the current GPU can run. */
bool pen_cuda_kernels_fit(void);

/* Whether kernels may be launched before the ones before them have ended, see device.cuh. Off at first; what it is set
 * to holds where the current GPU and the build's code for it can do so. */
void pen_cuda_launch_early(bool early);
bool pen_cuda_launches_early(void);

/* A launch that failed since this was asked for last, or cudaSuccess. The runtime's own last error would not do: what
 * fails after a launch, if only an event that is not done yet, takes its place there. */
cudaError_t pen_cuda_launch_failure(void);

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
    const float *gate, *up; /* f32 [count][cols], rows in_stride floats apart; gate may be NULL */
    size_t in_stride;
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
    int dense_from;     /* so many activation rows and more are multiplied by cuBLASLt (dense.c) */
    size_t group_bytes; /* of 32 rows */
} pen_cuda_matrix;

/* Products of the same rows with up to three matrices of one type and as many columns: their results lie side by side.
 * Or, where `activated` is given, act(gate) ⊙ up of two matrices of as many rows, or act(up) of one, which become
 * activation rows at once: for few rows, and matrices of whole groups. */
enum { PEN_CUDA_MATRICES = 3, PEN_CUDA_FEW_ROWS = 64 };
typedef struct pen_cuda_product_args {
    pen_cuda_matrix w[PEN_CUDA_MATRICES];
    const float *bias[PEN_CUDA_MATRICES]; /* [rows of w] or NULL */
    int count;                            /* of matrices */
    int processors;                       /* SMs */
    pen_activations activations;
    const unsigned char *x; /* [tokens][parts] activation rows */
    size_t stride;          /* bytes of a part */
    int tokens, parts;
    float softcap; /* or 0 */
    bool add;      /* to what is there */
    float *out;    /* out[token·out_stride + row] */
    size_t out_stride;
    pen_gate act;
    unsigned char *activated; /* activation rows, or NULL */
    size_t activated_stride;
} pen_cuda_product_args;
void pen_cuda_launch_product(cudaStream_t stream, const pen_cuda_product_args *args);

/* ---- embed.cu -------------------------------------------------------------------------------------------------- */

/* x[t][cols] = scale · table[token[t]] (+ positions[position[t]]). */
typedef struct pen_cuda_embed_args {
    pen_cuda_matrix table, positions; /* positions.data may be NULL */
    const int32_t *token, *position;  /* [count] */
    int count;
    float scale;
    float *x;
} pen_cuda_embed_args;
void pen_cuda_launch_embed(cudaStream_t stream, const pen_cuda_embed_args *args);

/* ---- dense.cu -------------------------------------------------------------------------------------------------- */

/* Rows [first, first + rows) of a weight, `first` a multiple of 32, as f16 [rows][cols]. */
typedef struct pen_cuda_dequantize_args {
    pen_cuda_matrix w;
    int first, rows;
    uint16_t *out;
} pen_cuda_dequantize_args;
void pen_cuda_launch_dequantize(cudaStream_t stream, const pen_cuda_dequantize_args *args);

/* FAST activation rows as f16 or bf16 [tokens][cols]. */
typedef struct pen_cuda_round_args {
    const unsigned char *x; /* [tokens][parts] */
    size_t stride;          /* bytes of a part */
    int tokens, parts, cols;
    bool bf16;
    uint16_t *out;
} pen_cuda_round_args;
void pen_cuda_launch_round(cudaStream_t stream, const pen_cuda_round_args *args);

/* ---- attention.cu, attention_tensor.cu ------------------------------------------------------------------------- */

/* Pages of one layer. `width` is head_size rounded up to a multiple of PEN_CUDA_HEAD_WIDTH, padded with zeros.
 *   K of a block: [kv_head][width/E][PEN_KV_BLOCK][E], E being 16 bytes ÷ element
 *   V of a block, f32: [kv_head][PEN_KV_BLOCK][width]
 *                 f16: [kv_head][width/2][PEN_KV_BLOCK/4][2 dimensions][4 positions] */
typedef struct pen_cuda_pages {
    unsigned char *k, *v;
    int kv_heads, head_size, width;
    bool half; /* f16 elements, or f32 */
} pen_cuda_pages;

/* The rows of the current batch: row t's block of position p is tables[first_block[t] + p / PEN_KV_BLOCK]. A row whose
 * first_block is −1 only fills up a bucket (graph.c). */
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

/* Some consecutive rows of one run; with a KV head and a chunk of its query heads they are the queries of a block. */
typedef struct pen_cuda_tile {
    int32_t row, rows; /* rows 0: it fills up a bucket */
    int32_t partial;   /* where its partial softmaxes begin, in rows × spans; −1: a block walks all its spans */
} pen_cuda_tile;

typedef struct pen_cuda_attention_args {
    pen_cuda_rows rows;
    const pen_cuda_tile *tiles;
    int tile_count;
    int queries; /* of a tile and chunk, at most */
    int chunks;  /* of all KV heads' query heads, see pen_cuda_head_chunks() */
    int blocks;  /* that share the spans of a tile and chunk */
    const float *qkv;
    int heads;
    float scale, softcap;
    int window;
    pen_cuda_pages pages;
    float *partials;    /* [partial of tiles][chunk][query][pen_cuda_partial_floats()] */
    int32_t *tickets;   /* [tile][chunk], all 0 between launches */
    unsigned char *out; /* [row] at stride·row bytes: f32, or an activation row where `rounded` */
    size_t stride;
    bool rounded;
} pen_cuda_attention_args;
void pen_cuda_launch_plain_attention(cudaStream_t stream, const pen_cuda_attention_args *args);
void pen_cuda_launch_tensor_attention(cudaStream_t stream, const pen_cuda_attention_args *args);

/* Chunks that a KV head's `group` query heads are divided into, so that one has at most `queries`. */
static inline int pen_cuda_head_chunks(int group, int queries) {
    return (group + queries - 1) / queries;
}

/* Most queries of a large tile, for prompts; no more than of a small one where heads are too wide. */
static inline int pen_cuda_large_tile(int width) {
    return width <= 128 ? 4 * PEN_CUDA_TILE_QUERIES : width <= 256 ? 2 * PEN_CUDA_TILE_QUERIES : PEN_CUDA_TILE_QUERIES;
}

/* Of a partial softmax: values, the largest score, the sum of weights; a multiple of 16 bytes. */
#ifdef __CUDACC__
__host__ __device__
#endif
    static inline size_t
    pen_cuda_partial_floats(int width) {
    return (size_t)width + 4;
}

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
