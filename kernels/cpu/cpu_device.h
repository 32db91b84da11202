/*
 * What the files of the CPU device share: the device struct, its objects, and the table of inner kernels that each
 * instruction set fills.
 *
 * One source, several instruction sets: a file named X.isa.c is compiled once per instruction set with other flags and
 * a suffix (PEN_ISA_NAME(x)); hand-written intrinsics live in X_avx512.c and X_avx2.c. Every version of an inner kernel
 * gives the same bits: vectors hold independent results (output rows, positions, head dimensions), sums run in index
 * order by explicit FMA, and where one result is a sum over a vector it is 16 partials added by a fixed tree.
 */
#ifndef PEN_CPU_DEVICE_H
#define PEN_CPU_DEVICE_H

#include "arena.h"
#include "cpu.h"
#include "device_class.h"
#include "pool.h"

/*
 * Activation rows. One row after the other, each pen_activation_row_bytes() long: an odd multiple of 64, so that the
 * same block of many rows does not fall into a few sets of the L1 cache.
 *   INT8: pen_activation_block[cols/32] (quantize.h)   x ≈ scale·q, scale = max|x|/most, q =
 *         round-half-even(x·(most/max|x|)), all 0 in a block whose max|x| is below 2^-100; scale NaN, q 0 where one of
 *         the values is not finite; most = 127
 *   FINE: pen_fine_block[cols/32]   the same with most = 127·128; q in two parts, 128·q₀ + q₁ with −64 ≤ q₁ < 64
 *   F32:  float x[cols]
 * Where a norm is asked for fine rows, for Q, K and V, they are those of V; Q and K get INT8 rows, which follow behind
 * the last of the fine ones, unless K in q8_0 has used up what scores may be off by (pen_cpu_score_form).
 */
typedef enum pen_row_form { PEN_ROW_F32, PEN_ROW_INT8, PEN_ROW_FINE, PEN_ROW_FORMS } pen_row_form;

static inline pen_row_form pen_row_form_of(pen_activations activations, bool fine) {
    return activations == PEN_ACTIVATIONS_F32 ? PEN_ROW_F32 : fine ? PEN_ROW_FINE : PEN_ROW_INT8;
}

size_t pen_activation_row_bytes(pen_row_form form, int cols);

/* The form of the rows that make Q and K. An error of V is one of the result, in proportion. Those of Q and K only move
 * weight between positions, and the softmax damps them; but there they add to what the storage of K costs. */
static inline pen_row_form pen_cpu_score_form(const pen_device *device) {
    return pen_row_form_of(device->activations, device->kv_type == PEN_TYPE_Q8_0);
}

/*
 * Packed weights: groups of 16 rows, so that a vector lane is an output row.
 *   F32, F16, BF16: blocks of 32 values: [32][16] numbers as they are.
 *   Others: blocks of 32 or 256 values, as in the file. First, for each 32 values, 64 bytes for each bit of a code: the
 *     codes as bytes would be 8 vectors of 64 bytes, byte 4·row+j of vector v being value 4v+j; the lower 2, 4 or 8
 *     bits of codes are kept in planes of 64 bytes, w bits of vector v in plane v mod w from bit w·(v div w); the rest
 *     of 1 or 2 bits in the same way in planes that follow. (4 bits: byte 4·row+j of plane v holds value 4v+j in its
 *     low nibble, 16+4v+j in its high one.) In blocks of 256 then [8][2][16] bytes, the scales of each 32 values: scale
 *     and min; or two scales, for 16 values each, with their minima in the high nibbles if any. Last 16 f16 d (MXFP4:
 * 16 bytes) and perhaps 16 f16 m. types.def says what these make. Rows past the end of the matrix are zero.
 *
 * Numeric contract of y[n], blocks of 32 values b in order, all f32, from acc = 0:
 *   int8 or fine × quantised, one scale in 32 values: i = exact int32 Σ (code − zero)·q_a, d_w = d·scale, m_w = m·min
 *               acc = fma((float)i, d_w·scale_a, acc); with minima then acc = fma(m_w, scale_a·(float)Σq_a, acc)
 *   int8 or fine × quantised, two scales: with i₀, d_w₀, … of each half of the 32 values
 *               p = fma((float)i₁, d_w₁, (float)i₀·d_w₀)
 *               with minima then p = fma(m_w₀, (float)Σ₀q_a, p); p = fma(m_w₁, (float)Σ₁q_a, p)
 *               acc = fma(p, scale_a, acc)
 *   F32 × any, and F32, F16, BF16 weights with any: acc = fma(w_k, x_k, acc) for even k in order; odd = fma(w_k, x_k,
 *               odd) for odd k in order from 0; acc = acc + odd, with w_k as
 *               pen_type_dequantize_row gives it and, of int8 and fine rows, x_k = scale·(float)q
 * then y = acc + bias where there is one. GEMV, small batches and large ones, and all instruction sets, give these
 * bits; only the reference is free to differ by rounding.
 * The layout is the CPU device's own business; nothing outside kernels/cpu knows it.
 */
enum { PEN_PACK_ROWS = 16, PEN_QUANT_BLOCK = 32 };

typedef struct pen_cpu_weight {
    pen_weight base;
    size_t bytes;
    unsigned char *data; /* of the device's arena */
    bool has_lengths;    /* behind the groups of 16 rows, f32: the longest of each, once somebody asked (logits.c) */
} pen_cpu_weight;

float *pen_cpu_lengths(const pen_cpu_weight *weight);

typedef struct pen_cpu_buffer {
    pen_buffer base;
    void *data; /* 64-byte aligned */
} pen_cpu_buffer;

static inline void *pen_cpu_data(const pen_buffer *buffer) {
    return ((const pen_cpu_buffer *)buffer)->data;
}

/*
 * Pages of one layer, [kv_head][block], so that a head's blocks in a row are one stream. Of a head's 16 positions K is
 * [head_size][16], with positions in lanes, and V [16][head_size], of f32 or f16. Of q8_0, x ≈ scale·q with q and scale
 * as in an INT8 activation row and the scale then rounded to f16, they are K: uint8 q + 128 [head_size/4][16][4]   V:
 * int8 q [16][head_size]   and behind either: f16 scale [head_size/32][16]
 */
typedef struct pen_cpu_kv {
    pen_kv base;
    int kv_heads, head_size, blocks;
    pen_type type;
    size_t page; /* bytes of a head's 16 positions of K, or of V */
    unsigned char *k, *v;
} pen_cpu_kv;

static inline size_t pen_cpu_kv_page(const pen_cpu_kv *kv, size_t block, int kv_head) {
    return ((size_t)kv_head * (size_t)kv->blocks + block) * kv->page;
}

typedef struct pen_cpu_rope {
    pen_rope base;
    int dims, positions;
    bool interleaved;
    size_t bytes;
    float *table; /* [positions][dims/2][2]: cosine, sine */
} pen_cpu_rope;

typedef struct pen_cpu_device pen_cpu_device;

/* The operations of linear.c, and logits.c: everything that multiplies by a weight. */
void pen_cpu_embed(pen_device *device, const pen_embed_op *op);
void pen_cpu_qkv(pen_device *device, const pen_qkv_op *op);
void pen_cpu_out_project(pen_device *device, const pen_project_op *op);
void pen_cpu_gate_up(pen_device *device, const pen_gate_up_op *op);
void pen_cpu_down(pen_device *device, const pen_project_op *op);
void pen_cpu_logits(pen_device *device, const pen_logits_op *op);
size_t pen_cpu_weight_bytes(const pen_device *device, pen_type type, int rows, int cols);
void pen_cpu_weight_write(pen_weight *weight, int first, int rows, const void *source);
/* Scratch that the logits want for these limits, in bytes; they find it at device->linear_scratch. */
size_t pen_cpu_logits_scratch(const pen_cpu_device *device, const pen_limits *limits);

/* The operations of ops.c, attention.c and sample.c. */
void pen_cpu_norm(pen_device *device, const pen_norm_op *op);
void pen_cpu_rope_kv(pen_device *device, const pen_rope_kv_op *op);
void pen_cpu_attention(pen_device *device, const pen_attention_op *op);
void pen_cpu_pick(pen_device *device, const pen_buffer *logits, int vocab, const pen_pick *picks, pen_buffer *choices);
/* Scratch of each of them for these limits, in bytes; they find it, one at a time, at device->op_scratch. */
size_t pen_cpu_ops_scratch(const pen_cpu_device *device, const pen_limits *limits);
size_t pen_cpu_attention_scratch(const pen_cpu_device *device, const pen_limits *limits);
size_t pen_cpu_pick_scratch(const pen_cpu_device *device, const pen_limits *limits);

/* Normalises one row of op->x into out[cols]. Thread-safe; `logits` does its final norm with it. */
void pen_cpu_norm_row(const pen_cpu_device *device, const pen_norm_op *op, int row, float *out);

/* A row's largest logit. */
typedef struct pen_cpu_best {
    int32_t token;
    bool bad; /* a logit is no finite number */
} pen_cpu_best;

/* Inner kernels of one instruction set, NULL for PEN_CPU_REFERENCE. */
typedef struct pen_cpu_linear_kernels pen_cpu_linear_kernels; /* linear.h */
typedef struct pen_cpu_op_kernels pen_cpu_op_kernels;         /* ops.h */
const pen_cpu_linear_kernels *pen_cpu_linear_kernels_get(pen_cpu_isa isa);
const pen_cpu_op_kernels *pen_cpu_op_kernels_get(pen_cpu_isa isa);

struct pen_cpu_device {
    pen_device base;
    pen_cpu_isa isa; /* resolved: never PEN_CPU_AUTO */
    pen_pool *pool;
    char name[64];
    const pen_cpu_linear_kernels *linear;
    const pen_cpu_op_kernels *ops;
    pen_limits limits;
    size_t bytes_used;
    pen_arena weights;

    /* One allocation, made by reserve, and its parts. */
    void *scratch;
    size_t scratch_bytes;
    void *linear_scratch;
    void *op_scratch;

    /* The current batch, copied by set_batch into arrays that reserve sizes; `batch` points at the copies. */
    pen_batch batch;
    pen_run *runs;    /* [T] */
    int32_t *tokens;  /* [T] */
    int32_t *row_run; /* [T] run of each row */
    int32_t *logit_rows;
    int32_t *tables;          /* the runs' block tables, one behind the other */
    const pen_cpu_best *best; /* [L] where the logits of this greedy batch were not made, for its picks; else NULL */

    /* Markers. */
    int unit;
    int64_t unit_begin_ns;
    double unit_ms[PEN_UNITS_MAX];
};

/* Turns one row of f32 values into an activation row. Thread-safe. */
void pen_cpu_activation_store(const pen_cpu_device *device, pen_row_form form, const float *x, int cols, void *row);

#endif
