/*
 * Inner kernels of the operations that do not multiply by weights: one table per instruction set (X.isa.c), and the
 * plain reference of whole operations (reference.c).
 *
 * All tables give the same bits. What they compute is documented with the struct; the callers (ops.c, attention.c,
 * sample.c) own the division into tasks, which never shows in a result.
 */
#ifndef PEN_CPU_OPS_H
#define PEN_CPU_OPS_H

#include "cpu_device.h"
#include "quantize.h"

/* What a slice of consecutive logits contributes to a row's softmax. */
typedef struct pen_logit_slice {
    float max;
    bool bad;   /* a NaN or +∞ was seen */
    double sum; /* Σ exp(x − max); 0 where max is −∞, or where it was not asked for */
} pen_logit_slice;

/* Attention cuts positions at multiples of this and merges the pieces in order, whoever computed them. */
enum { PEN_ATTENTION_SPAN = 256, PEN_SCORE_STRIDE = PEN_ATTENTION_SPAN + 16 };

/* Consecutive blocks of one KV head. Vectors may be read past a row's end, into the next one or the slack of kv. */
enum { PEN_ATTENTION_BLOCKS = 4 };
typedef struct pen_attention_blocks {
    const void *at[PEN_ATTENTION_BLOCKS];
    const void *ahead[PEN_ATTENTION_BLOCKS]; /* of what is read next, to be fetched meanwhile; or the same as `at` */
    int count;
    pen_type type; /* F32, F16 or Q8_0 */
} pen_attention_blocks;

/* 32 values of a query as in a fine activation row, and what takes back the 128 that is on each value of K: −128·Σ of
 * either part. */
typedef struct pen_query_block {
    int8_t parts[2][PEN_QUANT_BLOCK];
    float scale;
    int32_t bias[2];
} pen_query_block;

/* Softmax-weighted sums of some queries: weights are relative to exp(max); max is −inf where nothing was visible. */
typedef struct pen_attention_state {
    float *max, *sum; /* [n] */
    float *values;    /* [n][width] */
} pen_attention_state;

struct pen_cpu_op_kernels {
    /* out = norm(x)·weight (+ bias), rows of `cols`; mean and Σx² are 16 partials by index mod 16. */
    void (*norm_row)(const float *x, const float *weight, const float *bias, int cols, float eps, bool mean,
                     float *out);

    /* Pair i of a head, (2i, 2i + 1) or (i, i + pairs), by turns[i] = cosine, sine. */
    void (*rotate)(const float *turns, int pairs, bool interleaved, float *head);

    /* Attention of n queries over a span of positions; shapes and order in attention.isa.c, layout of blocks in
     * cpu_device.h. scores[n][PEN_SCORE_STRIDE] = queries × K: [head_size][query_stride], one per column, for numbers;
     * [n][head_size/32] for q8_0. */
    void (*scores)(const float *queries, int n, int head_size, const pen_attention_blocks *keys, float *scores);
    void (*scores_q8_0)(const pen_query_block *queries, int n, int head_size, const pen_attention_blocks *keys,
                        float *scores);
    /* In place: scores [from, to) of a query become exp(s − max), the others of [0, count) 0. Returns the sum. */
    float (*soften)(float *scores, int count, int from, int to, float softcap, float *max);
    /* sums[n][width] += Σ_j weights[n][j]·V[j], in the order of j. Columns from head_size to width are undefined. */
    void (*weigh)(const float *weights, int n, const pen_attention_blocks *values, int positions, int head_size,
                  int width, float *sums);
    /* Takes the softmax over a next span into that over the spans before: max[n], sum[n], values[n][width]. */
    void (*merge)(const pen_attention_state *next, int n, int width, pen_attention_state *state);

    void (*narrow)(const float *from, int count, uint16_t *to); /* f32 → f16, to nearest even */

    pen_logit_slice (*slice)(const float *logits, int count, bool sums);
    /* out[i] = exp((x[i] − max)·scale) */
    void (*weights)(const float *x, int count, float max, float scale, float *out);
};

/* Stores one position's K and V of a head in q8_0, `page` being that head's in both. */
void pen_cpu_store_q8_0(const pen_cpu_device *device, const pen_cpu_kv *kv, size_t page, int slot, const float *k,
                        const float *v);

extern const pen_cpu_op_kernels pen_cpu_op_kernels_portable, pen_cpu_op_kernels_avx2, pen_cpu_op_kernels_avx512;

/* The oracle: whole operations in plain C, single threaded, sums in natural order. */
void pen_reference_norm_row(const pen_norm_op *op, int row, float *out);
void pen_reference_rope_kv(const pen_cpu_device *device, const pen_rope_kv_op *op);
void pen_reference_attention(const pen_cpu_device *device, const pen_attention_op *op, float *out);
/* `edits` may be NULL. */
void pen_reference_pick(const float *logits, int vocab, const pen_pick *pick, const pen_logit_edits *edits,
                        void *scratch, pen_choice *choice);

/* Bytes of scratch for picking from one row. */
size_t pen_pick_row_scratch(int vocab);

#endif
