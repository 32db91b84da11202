/*
 * Linear kernels, compiled once per instruction set; see linear.h.
 *
 * A weight type is an unpacking of one block, the step that adds a block's product to 16 sums, and a line in the table.
 * The sums of all tokens of a tile stay in the L1 cache, so that a block is unpacked once for up to 64 tokens.
 */
#include "linear.h"
#include "linear_dot.isa.h"
#include "quantize.isa.h"

enum { ROWS = PEN_PACK_ROWS, BLOCK = PEN_QUANT_BLOCK, PREFETCH = 8192 };

/* ---- int8 activations × quantised weights ---------------------------------------------------------------------- */

/* A block of any quantised type, ready to be multiplied; m only where the type has minima. */
typedef struct weight_block {
    weights32 w;
    v16 d, m;
} weight_block;

static inline v16 f16_at(const unsigned char *p) {
    return v16_load_f16((const uint16_t *)(const void *)p);
}

static inline weight_block unpack_q4_0(const unsigned char *p) {
    return (weight_block){.w = unpack_nibbles(p), .d = f16_at(p + 256)};
}

static inline weight_block unpack_q4_1(const unsigned char *p) {
    return (weight_block){.w = unpack_nibbles(p), .d = f16_at(p + 256), .m = f16_at(p + 288)};
}

static inline weight_block unpack_q8_0(const unsigned char *p) {
    return (weight_block){.w = load_bytes(p), .d = f16_at(p + 512)};
}

static inline v16 scaled(v16i i, const weight_block *b, const pen_activation_block *x, v16 sum) {
    return v16_fma(v16_from_i32(i), v16_mul(b->d, v16_all(x->scale)), sum);
}

static inline v16 step_q4_0(const weight_block *b, const pen_activation_block *x, v16 sum) {
    return scaled(dot_u4_less_8(&b->w, x), b, x, sum);
}

static inline v16 step_q4_1(const weight_block *b, const pen_activation_block *x, v16 sum) {
    return v16_fma(b->m, v16_all(x->scaled_sum), scaled(dot_u4(&b->w, x), b, x, sum));
}

static inline v16 step_q8_0(const weight_block *b, const pen_activation_block *x, v16 sum) {
    return scaled(dot_u8_less_128(&b->w, x), b, x, sum);
}

/* The hardware's own prefetching stops at pages and falls behind where several tokens are computed per block. */
static inline void prefetch(const unsigned char *p, int bytes) {
    for (int line = 0; line < bytes; line += 64) __builtin_prefetch(p + PREFETCH + line);
}

/* One token, the case of decoding, keeps its sums in a register and is bound by reading the weights. */
#define DOT_INT8(type, bytes)                                                                                          \
    static void dot_##type(const unsigned char *group, int blocks, const unsigned char *x, size_t stride, int tokens,  \
                           float *y) {                                                                                 \
        if (tokens == 1) {                                                                                             \
            v16 sum = v16_all(0);                                                                                      \
            const pen_activation_block *row = (const void *)x;                                                         \
            for (int b = 0; b < blocks; b++, group += bytes) {                                                         \
                prefetch(group, bytes);                                                                                \
                weight_block unpacked = unpack_##type(group);                                                          \
                sum = step_##type(&unpacked, row + b, sum);                                                            \
            }                                                                                                          \
            v16_store(y, sum);                                                                                         \
            return;                                                                                                    \
        }                                                                                                              \
        for (int t = 0; t < tokens; t++) v16_store(y + ROWS * t, v16_all(0));                                          \
        for (int b = 0; b < blocks; b++, group += bytes) {                                                             \
            prefetch(group, bytes);                                                                                    \
            weight_block unpacked = unpack_##type(group);                                                              \
            const unsigned char *at = x + sizeof(pen_activation_block) * (size_t)b;                                    \
            for (int t = 0; t < tokens; t++, at += stride) {                                                           \
                v16 sum = v16_load(y + ROWS * t);                                                                      \
                v16_store(y + ROWS * t, step_##type(&unpacked, (const void *)at, sum));                                \
            }                                                                                                          \
        }                                                                                                              \
    }

DOT_INT8(q4_0, 288)
DOT_INT8(q4_1, 320)
DOT_INT8(q8_0, 544)

/* ---- Products in f32 ------------------------------------------------------------------------------------------- */

/* A block of weights as f32: value k of the 16 rows in w[k]. */
typedef struct float_block {
    float w[BLOCK][ROWS];
} float_block;

/* Bits [shift, shift + 4 or 8) of the 16 little-endian words at p, as numbers. */
static inline v16 bits_at(const unsigned char *p, int shift, int mask) {
    v16i words = v16i_load((const int32_t *)(const void *)p);
    return v16_from_i32(v16i_and(v16i_shift_right(words, shift), v16i_all(mask)));
}

static void widen_q4_0(const unsigned char *p, float_block *out) {
    v16 d = f16_at(p + 256);
    for (int k = 0; k < BLOCK; k++) {
        v16 q = bits_at(p + 64 * (k % 16 / 4), 8 * (k % 4) + 4 * (k / 16), 15);
        v16_store(out->w[k], v16_mul(d, v16_sub(q, v16_all(8))));
    }
}

static void widen_q4_1(const unsigned char *p, float_block *out) {
    v16 d = f16_at(p + 256), m = f16_at(p + 288);
    for (int k = 0; k < BLOCK; k++) {
        v16 q = bits_at(p + 64 * (k % 16 / 4), 8 * (k % 4) + 4 * (k / 16), 15);
        v16_store(out->w[k], v16_add(v16_mul(d, q), m));
    }
}

static void widen_q8_0(const unsigned char *p, float_block *out) {
    v16 d = f16_at(p + 512);
    for (int k = 0; k < BLOCK; k++) {
        v16 q = bits_at(p + 64 * (k / 4), 8 * (k % 4), 255);
        v16_store(out->w[k], v16_mul(d, v16_sub(q, v16_all(128))));
    }
}

static void widen_f16(const unsigned char *p, float_block *out) {
    for (int k = 0; k < BLOCK; k++) v16_store(out->w[k], f16_at(p + 2 * ROWS * k));
}

static void widen_f32(const unsigned char *p, float_block *out) {
    memcpy(out, p, sizeof *out);
}

/* One copy per number of tokens keeps the sums in registers, where there are some; elsewhere it is slow to compile. */
#if defined(__AVX2__)
#define SPECIALISED inline __attribute__((always_inline))
#else
#define SPECIALISED __attribute__((noinline, noclone))
#endif

/* y[n][16] += the block times n tokens' 32 values each, in order. */
static SPECIALISED void add_products(const float_block *b, const float *const *x, int n, float *y) {
    v16 sum[8];
    for (int i = 0; i < n; i++) sum[i] = v16_load(y + ROWS * i);
    for (int k = 0; k < BLOCK; k++)
        for (int i = 0; i < n; i++) sum[i] = v16_fma(v16_load(b->w[k]), v16_all(x[i][k]), sum[i]);
    for (int i = 0; i < n; i++) v16_store(y + ROWS * i, sum[i]);
}

/* The 32 values of block b of an activation row: in place, or made from the int8 form in `buffer`. */
static inline const float *values_of(const unsigned char *row, int b, bool int8, float *buffer) {
    if (!int8) return (const float *)(const void *)row + BLOCK * b;
    const pen_activation_block *block = (const pen_activation_block *)(const void *)row + b;
    for (int k = 0; k < BLOCK; k++) buffer[k] = block->scale * (float)block->q[k];
    return buffer;
}

static void dot_float(void (*widen)(const unsigned char *, float_block *), size_t bytes, bool int8,
                      const unsigned char *group, int blocks, const unsigned char *x, size_t stride, int tokens,
                      float *y) {
    _Alignas(64) float_block w;
    float buffers[8][BLOCK];
    for (int t = 0; t < tokens; t++) v16_store(y + ROWS * t, v16_all(0));
    for (int b = 0; b < blocks; b++, group += bytes) {
        widen(group, &w);
        for (int t = 0; t < tokens;) {
            const float *values[8];
            int left = tokens - t, n = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            for (int i = 0; i < n; i++) values[i] = values_of(x + stride * (size_t)(t + i), b, int8, buffers[i]);
            switch (n) {
            case 8: add_products(&w, values, 8, y + ROWS * t); break;
            case 4: add_products(&w, values, 4, y + ROWS * t); break;
            case 2: add_products(&w, values, 2, y + ROWS * t); break;
            case 1: add_products(&w, values, 1, y + ROWS * t); break;
            }
            t += n;
        }
    }
}

#define DOT_FLOAT(name, type, bytes, int8)                                                                             \
    static void dot_##name(const unsigned char *group, int blocks, const unsigned char *x, size_t stride, int tokens,  \
                           float *y) {                                                                                 \
        dot_float(widen_##type, bytes, int8, group, blocks, x, stride, tokens, y);                                     \
    }

DOT_FLOAT(f32_q4_0, q4_0, 288, false)
DOT_FLOAT(f32_q4_1, q4_1, 320, false)
DOT_FLOAT(f32_q8_0, q8_0, 544, false)
DOT_FLOAT(f32_f16, f16, 1024, false)
DOT_FLOAT(f32_f32, f32, 2048, false)
DOT_FLOAT(f16, f16, 1024, true)
DOT_FLOAT(f32, f32, 2048, true)

/* ---- What happens to the results ------------------------------------------------------------------------------- */

static inline v16 load_part(const float *p, int n) {
    if (n == 16) return v16_load(p);
    float part[16] = {0};
    memcpy(part, p, sizeof *p * (size_t)n);
    return v16_load(part);
}

static inline void store_part(float *p, int n, v16 a) {
    if (n == 16) {
        v16_store(p, a);
        return;
    }
    float part[16];
    v16_store(part, a);
    memcpy(p, part, sizeof *p * (size_t)n);
}

static void put(const float *y, int tokens, const pen_tile_target *target) {
    int n = target->columns;
    v16 bias = target->bias ? load_part(target->bias, n) : v16_all(0);
    for (int t = 0; t < tokens; t++) {
        float *out = target->out + target->stride * (size_t)t;
        v16 a = v16_load(y + ROWS * t);
        if (target->bias) a = v16_add(a, bias);
        if (target->softcap > 0) {
            v16 cap = v16_all(target->softcap);
            a = v16_mul(cap, v16_tanh(v16_div(a, cap)));
        }
        if (target->add) a = v16_add(load_part(out, n), a);
        store_part(out, n, a);
    }
}

/* silu(x) = x/(1 + e^−x); gelu_tanh(x) = x/2·(1 + tanh z) = x/(1 + e^−2z), z = √(2/π)·(x + 0.044715·x³). */
static inline v16 activate(v16 x, pen_gate act) {
    v16 z = x;
    if (act == PEN_GATE_GELU_TANH) {
        v16 cubic = v16_fma(v16_mul(v16_all(0.044715F), v16_mul(x, x)), x, x);
        z = v16_mul(v16_all(1.5957691216F), cubic);
    }
    return v16_div(x, v16_add(v16_all(1), v16_exp(v16_neg(z))));
}

static void gate(const pen_gate_tile *tile, int tokens, pen_gate act, bool gated, const float *bias,
                 pen_activations activations, unsigned char *out, size_t stride, int b) {
    for (int t = 0; t < tokens; t++, out += stride) {
        v16 half[2];
        for (int h = 0; h < 2; h++) {
            v16 up = v16_load(tile->up[h] + ROWS * t);
            if (bias) up = v16_add(up, v16_load(bias + ROWS * h));
            half[h] = gated ? v16_mul(activate(v16_load(tile->gate[h] + ROWS * t), act), up) : activate(up, act);
        }
        if (activations == PEN_ACTIVATIONS_FAST) {
            quantize_block(half[0], half[1], (pen_activation_block *)(void *)out + b);
        } else {
            float *row = (float *)(void *)out + BLOCK * b;
            v16_store(row, half[0]);
            v16_store(row + ROWS, half[1]);
        }
    }
}

static void quantize_row(const float *x, int cols, pen_activation_block *row) {
    for (int b = 0; b < cols / BLOCK; b++, x += BLOCK) quantize_block(v16_load(x), v16_load(x + 16), row + b);
}

#if defined(__AVX512F__)
#define BLOCK_NS                                                                                                       \
    { 4, 12 }
#elif defined(__AVX2__)
#define BLOCK_NS                                                                                                       \
    { 12, 20 }
#else
#define BLOCK_NS                                                                                                       \
    { 400, 1000 }
#endif

const pen_cpu_linear_kernels PEN_ISA_NAME(pen_cpu_linear_kernels) = {
    .dot =
        {
            [PEN_ACTIVATIONS_FAST] =
                {
                    [PEN_TYPE_F32] = dot_f32,
                    [PEN_TYPE_F16] = dot_f16,
                    [PEN_TYPE_Q4_0] = dot_q4_0,
                    [PEN_TYPE_Q4_1] = dot_q4_1,
                    [PEN_TYPE_Q8_0] = dot_q8_0,
                },
            [PEN_ACTIVATIONS_F32] =
                {
                    [PEN_TYPE_F32] = dot_f32_f32,
                    [PEN_TYPE_F16] = dot_f32_f16,
                    [PEN_TYPE_Q4_0] = dot_f32_q4_0,
                    [PEN_TYPE_Q4_1] = dot_f32_q4_1,
                    [PEN_TYPE_Q8_0] = dot_f32_q8_0,
                },
        },
    .put = put,
    .gate = gate,
    .quantize_row = quantize_row,
    .block_ns = BLOCK_NS,
};
