/*
 * Linear kernels, compiled once per instruction set; see linear.h.
 *
 * One kernel for all quantised types, and one copy of it for each: the line of types.def makes its loops and shifts
 * constant. The sums of all tokens of a tile stay in the L1 cache, so that a block is unpacked once for up to 64
 * tokens.
 */
#include "linear.h"
#include "linear_dot.isa.h"
#include "pack.h"
#include "quantize.isa.h"

enum { ROWS = PEN_PACK_ROWS, BLOCK = PEN_QUANT_BLOCK, PREFETCH = 8192 };

/* ---- Blocks of 32 quantised weights ---------------------------------------------------------------------------- */

/* 32 weights of 16 rows, ready to be multiplied: d and m of each half, or of all in d[0] and m[0]; m only where the
 * type has minima. */
typedef struct weight_block {
    v16i codes[8];
    v16 d[2], m[2];
} weight_block;

static inline v16 f16_at(const unsigned char *p) {
    return v16_load_f16((const uint16_t *)(const void *)p);
}

/* The field of vector v in planes of `width` bits, moved to bit `to` of each byte. */
static SPECIALISED v16i field(const unsigned char *planes, int width, int v, int to) {
    v16i a = v16i_load((const int32_t *)(const void *)(planes + 64 * (v % width)));
    int shift = width * (v / width) - to;
    uint32_t mask = (((1U << width) - 1) << to) * 0x01010101U;
    a = shift > 0 ? v16i_shift_right(a, shift) : shift < 0 ? v16i_shift_left(a, -shift) : a;
    return width == 8 ? a : v16i_and(a, v16i_all((int32_t)mask));
}

static SPECIALISED void unpack_codes(const pen_quant *quant, const unsigned char *planes, v16i *codes) {
    int low = pen_packed_low_bits(quant);
    for (int v = 0; v < 8; v++) {
        codes[v] = field(planes, low, v, 0);
        if (quant->bits > low) codes[v] = v16i_or(codes[v], field(planes + 64 * low, quant->bits - low, v, low));
        if (quant->codes) codes[v] = v16i_lookup(quant->codes, codes[v]);
    }
}

/* pen_e8m0_to_f32 of 16 bytes: the subnormal numbers of e < 2 are the larger, as bits. */
static SPECIALISED v16 e8m0_at(const unsigned char *p) {
    v16i e = v16i_and(v16i_load_i8(p), v16i_all(255)), one = v16i_all(1);
    return v16_from_bits(v16i_max(v16i_shift_left(v16i_sub(e, one), 23), v16i_shift_left(v16i_add(e, one), 21)));
}

/* The factors of 32 values of a block of 256, from those of the block and small integers. */
static SPECIALISED void scale_factors(const pen_quant *quant, const unsigned char *scales, weight_block *w) {
    v16 d = w->d[0], m = w->m[0];
    for (int half = 0; half < (quant->share == BLOCK ? 1 : 2); half++) {
        v16i scale = v16i_load_i8(scales + ROWS * half), min = v16i_load_i8(scales + ROWS);
        if (quant->share < BLOCK && quant->m >= 0) {
            min = v16i_and(v16i_shift_right(scale, 4), v16i_all(15));
            scale = v16i_and(scale, v16i_all(15));
        }
        w->d[half] = v16_mul(d, v16_from_i32(scale));
        if (quant->m >= 0) w->m[half] = v16_mul(m, v16_from_i32(min));
    }
}

/* The hardware's own prefetching stops at pages and falls behind where much is computed per block; without this the
 * rate is half. Into L2: L1's few outstanding misses would hold up the kernel's own loads. */
static SPECIALISED void prefetch(const unsigned char *p, size_t bytes) {
    for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(p + PREFETCH + line, 0, 2);
}

/* The 32 values from 32·b of a group. */
static SPECIALISED weight_block weight_block_at(const pen_type_info *type, const unsigned char *group, int b) {
    const pen_quant *quant = &type->quant;
    size_t pieces = (size_t)pen_packed_pieces(type), bytes = pen_packed_bytes(type), piece = (size_t)b % pieces;
    const unsigned char *packed = group + (size_t)b / pieces * bytes;
    prefetch(packed + bytes / pieces * piece, bytes / pieces);
    weight_block w;
    unpack_codes(quant, packed + pen_packed_piece_bytes(type) * piece, w.codes);
    w.d[0] = quant->d < 0 ? e8m0_at(packed + pen_packed_d(type)) : f16_at(packed + pen_packed_d(type));
    w.m[0] = quant->m < 0 ? v16_all(0) : f16_at(packed + pen_packed_m(type));
    if (pieces > 1) scale_factors(quant, packed + pen_packed_scales(type) + 2 * ROWS * piece, &w);
    return w;
}

/* ---- int8 activations × quantised weights ---------------------------------------------------------------------- */

/* An activation block: `parts` of 32 bytes, then the factors. */
static inline size_t block_bytes(int parts) {
    return parts == 1 ? sizeof(pen_activation_block) : sizeof(pen_fine_block);
}
static inline const pen_activation_factors *factors_of(const unsigned char *x, int parts) {
    return (const void *)(x + BLOCK * parts);
}

/* Vectors `first` … first + count of the block's codes times the same values of n rows: sums[i] = Σ (code − zero)·q,
 * where minus[i] is −Σq. */
static SPECIALISED void multiply(const pen_quant *quant, const weight_block *w, int first, int count,
                                 const unsigned char *x, size_t stride, int parts, int n, const v16i *minus,
                                 v16i *sums) {
    int bits = quant->zero ? __builtin_ctz((unsigned)quant->zero) + 1 : quant->bits; /* behind the table of codes */
    for (int i = 0; i < n; i++) sums[i] = quant->zero ? v16i_shift_left(minus[i], bits - 1) : v16i_all(0);
    dot(w->codes + first, count, bits, (const int8_t *)x + 4 * first, stride, parts, n, sums);
}

/* y[n] += the block's products with n rows, as the numeric contract says. */
static SPECIALISED void step(const pen_quant *quant, const weight_block *w, const unsigned char *x, size_t stride,
                             int parts, int n, v16 *y) {
    const pen_activation_factors *f[AT_ONCE];
    v16i minus[3][AT_ONCE], sums[2][AT_ONCE];
    for (int i = 0; i < n; i++) {
        f[i] = factors_of(x + stride * (size_t)i, parts);
        for (int half = 0; half < 2; half++) minus[half][i] = v16i_all(f[i]->minus[half]);
        minus[2][i] = v16i_add(minus[0][i], minus[1][i]);
    }
    if (quant->share == BLOCK) {
        multiply(quant, w, 0, 8, x, stride, parts, n, minus[2], sums[0]);
        for (int i = 0; i < n; i++) {
            y[i] = v16_fma(v16_from_i32(sums[0][i]), v16_mul(w->d[0], v16_all(f[i]->scale)), y[i]);
            if (quant->m >= 0) y[i] = v16_fma(w->m[0], v16_all(f[i]->scaled_sum), y[i]);
        }
        return;
    }
    for (int half = 0; half < 2; half++) multiply(quant, w, 4 * half, 4, x, stride, parts, n, minus[half], sums[half]);
    for (int i = 0; i < n; i++) {
        v16 p = v16_mul(v16_from_i32(sums[0][i]), w->d[0]);
        p = v16_fma(v16_from_i32(sums[1][i]), w->d[1], p);
        for (int half = 0; half < 2 && quant->m >= 0; half++)
            p = v16_fma(w->m[half], v16_from_i32(v16i_sub(v16i_all(0), minus[half][i])), p);
        y[i] = v16_fma(p, v16_all(f[i]->scale), y[i]);
    }
}

/* The same with the sums in memory. */
static SPECIALISED void add_step(const pen_quant *quant, const weight_block *w, const unsigned char *x, size_t stride,
                                 int parts, int n, float *y) {
    v16 sums[AT_ONCE];
    for (int i = 0; i < n; i++) sums[i] = v16_load(y + ROWS * i);
    step(quant, w, x, stride, parts, n, sums);
    for (int i = 0; i < n; i++) v16_store(y + ROWS * i, sums[i]);
}

/* One token, the case of decoding, keeps its sums in a register and is bound by reading the weights. */
static SPECIALISED void dot_quant(const pen_type_info *type, int parts, const unsigned char *group, int blocks,
                                  const unsigned char *x, size_t stride, int tokens, float *y) {
    if (tokens == 1) {
        v16 sum = v16_all(0);
        for (int b = 0; b < blocks; b++, x += block_bytes(parts)) {
            weight_block w = weight_block_at(type, group, b);
            step(&type->quant, &w, x, 0, parts, 1, &sum);
        }
        v16_store(y, sum);
        return;
    }
    for (int t = 0; t < tokens; t++) v16_store(y + ROWS * t, v16_all(0));
    for (int b = 0; b < blocks; b++, x += block_bytes(parts)) {
        weight_block w = weight_block_at(type, group, b);
        const unsigned char *at = x;
        int t = 0;
        for (; t + AT_ONCE <= tokens; t += AT_ONCE, at += AT_ONCE * stride)
            add_step(&type->quant, &w, at, stride, parts, AT_ONCE, y + ROWS * t);
        for (; t < tokens; t++, at += stride) add_step(&type->quant, &w, at, stride, parts, 1, y + ROWS * t);
    }
}

/* ---- Products in f32 ------------------------------------------------------------------------------------------- */

/* A block of weights as f32: value k of the 16 rows in w[k]. */
typedef struct float_block {
    float w[BLOCK][ROWS];
} float_block;

/* *out = the 32 values from 32·b of a group. */
typedef void widener(const unsigned char *group, int b, float_block *out);

static SPECIALISED void widen_quant(const pen_type_info *type, const unsigned char *group, int b, float_block *out) {
    weight_block w = weight_block_at(type, group, b);
    for (int k = 0; k < BLOCK; k++) {
        v16i code = v16i_and(v16i_shift_right(w.codes[k / 4], 8 * (k % 4)), v16i_all(255));
        int half = k / type->quant.share;
        v16 value = v16_mul(w.d[half], v16_sub(v16_from_i32(code), v16_all((float)type->quant.zero)));
        v16_store(out->w[k], type->quant.m < 0 ? value : v16_add(value, w.m[half]));
    }
}

/* Value k of 16 rows, of a block of numbers. */
static inline v16 number_at(pen_type type, const unsigned char *numbers, int k) {
    if (type == PEN_TYPE_F32) return v16_load((const float *)(const void *)numbers + ROWS * k);
    const unsigned char *halves = numbers + 2 * ROWS * k;
    return type == PEN_TYPE_F16 ? f16_at(halves) : v16_from_bits(v16i_shift_left(v16i_load_u16(halves), 16));
}

/* Tokens at once: of each, two sums stay in registers. */
#if defined(__AVX512F__)
enum { FLOATS_AT_ONCE = 8 };
#else
enum { FLOATS_AT_ONCE = 2 };
#endif

/* y[n][16] += the block times n tokens' 32 values each: those of even index in order onto y, the odd ones apart. */
static SPECIALISED void add_products(pen_type type, const unsigned char *numbers, const float *const *x, int n,
                                     float *y) {
    v16 even[FLOATS_AT_ONCE], odd[FLOATS_AT_ONCE];
    for (int i = 0; i < n; i++) {
        even[i] = v16_load(y + ROWS * i);
        odd[i] = v16_all(0);
    }
    for (int k = 0; k < BLOCK; k += 2) {
        v16 w[2] = {number_at(type, numbers, k), number_at(type, numbers, k + 1)};
        for (int i = 0; i < n; i++) {
            even[i] = v16_fma(w[0], v16_all(x[i][k]), even[i]);
            odd[i] = v16_fma(w[1], v16_all(x[i][k + 1]), odd[i]);
        }
    }
    for (int i = 0; i < n; i++) v16_store(y + ROWS * i, v16_add(even[i], odd[i]));
}

/* The 32 values of block b of an activation row: in place, or made from integers in `buffer`. */
static inline const float *values_of(const unsigned char *row, int b, pen_row_form form, float *buffer) {
    if (form == PEN_ROW_F32) return (const float *)(const void *)row + BLOCK * b;
    int parts = form == PEN_ROW_FINE ? 2 : 1;
    const unsigned char *x = row + block_bytes(parts) * (size_t)b;
    const int8_t *q = (const int8_t *)x;
    float scale = factors_of(x, parts)->scale;
    for (int k = 0; k < BLOCK; k++)
        buffer[k] = scale * (float)(parts == 1 ? q[k] : (1 << PEN_FINE_SHIFT) * q[k] + q[BLOCK + k]);
    return buffer;
}

/* Of numbers, as they are in memory, or of what `widen` makes of a block. */
static SPECIALISED void dot_float(pen_type type, widener *widen, pen_row_form form, const unsigned char *group,
                                  int blocks, const unsigned char *x, size_t stride, int tokens, float *y) {
    _Alignas(64) float_block widened;
    float buffers[FLOATS_AT_ONCE][BLOCK];
    size_t bytes = ROWS * BLOCK * (type == PEN_TYPE_F32 ? sizeof(float) : sizeof(uint16_t));
    for (int t = 0; t < tokens; t++) v16_store(y + ROWS * t, v16_all(0));
    for (int b = 0; b < blocks; b++) {
        const unsigned char *numbers = group + bytes * (size_t)b;
        if (widen) {
            widen(group, b, &widened);
            numbers = (const unsigned char *)&widened;
        } else {
            prefetch(numbers, bytes);
        }
        for (int t = 0, n; t < tokens; t += n) {
            const float *values[FLOATS_AT_ONCE];
            for (n = FLOATS_AT_ONCE; n > tokens - t; n /= 2) {
            }
            for (int i = 0; i < n; i++) values[i] = values_of(x + stride * (size_t)(t + i), b, form, buffers[i]);
            switch (n) {
            case 1: add_products(type, numbers, values, 1, y + ROWS * t); break;
            case 2: add_products(type, numbers, values, 2, y + ROWS * t); break;
#if defined(__AVX512F__)
            case 4: add_products(type, numbers, values, 4, y + ROWS * t); break;
            case 8: add_products(type, numbers, values, 8, y + ROWS * t); break;
#endif
            }
        }
    }
}

static void sum_squares(widener *widen, const unsigned char *group, int blocks, float *y) {
    _Alignas(64) float_block widened;
    v16 sum = v16_all(0);
    for (int b = 0; b < blocks; b++) {
        widen(group, b, &widened);
        for (int k = 0; k < BLOCK; k++) {
            v16 w = v16_load(widened.w[k]);
            sum = v16_fma(w, w, sum);
        }
    }
    v16_store(y, sum);
}

static void dot_widened(widener *widen, const unsigned char *group, int blocks, const unsigned char *x, size_t stride,
                        int tokens, float *y) {
    dot_float(PEN_TYPE_F32, widen, PEN_ROW_F32, group, blocks, x, stride, tokens, y);
}

/* ---- A kernel for each type and form of activations: dot_Q4_0, dot_fine_Q4_0, dot_f32_Q4_0, … -------------------- */

#define DOT(name, call, ...)                                                                                           \
    static void name(const unsigned char *group, int blocks, const unsigned char *x, size_t stride, int tokens,        \
                     float *y) {                                                                                       \
        call(__VA_ARGS__, group, blocks, x, stride, tokens, y);                                                        \
    }
#define PEN_TYPE(name, gguf, values, bytes)                                                                            \
    DOT(dot_##name, dot_float, PEN_TYPE_##name, NULL, PEN_ROW_INT8)                                                    \
    DOT(dot_fine_##name, dot_float, PEN_TYPE_##name, NULL, PEN_ROW_FINE)                                               \
    DOT(dot_f32_##name, dot_float, PEN_TYPE_##name, NULL, PEN_ROW_F32)
#define PEN_QUANT(name, gguf, values, bytes, bits, zero, share, d, m, codes)                                           \
    static const pen_type_info name = {#name, gguf, values, bytes, {bits, zero, share, d, m, codes}};                  \
    static void widen_##name(const unsigned char *group, int b, float_block *out) {                                    \
        widen_quant(&name, group, b, out);                                                                             \
    }                                                                                                                  \
    DOT(dot_##name, dot_quant, &name, 1)                                                                               \
    DOT(dot_fine_##name, dot_quant, &name, 2)                                                                          \
    DOT(dot_f32_##name, dot_widened, widen_##name)                                                                     \
    static void squares_##name(const unsigned char *group, int blocks, float *y) {                                     \
        sum_squares(widen_##name, group, blocks, y);                                                                   \
    }
#include "types.def"

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

static void peak(const float *y, int tokens, int columns, float *out, size_t stride) {
    for (int t = 0; t < tokens; t++, y += ROWS, out += stride) {
        if (columns == ROWS) {
            *out = v16_largest(v16_load(y));
            continue;
        }
        *out = y[0];
        for (int n = 1; n < columns; n++) *out = y[n] > *out ? y[n] : *out;
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

static void gate(const pen_gate_tile *tile, int tokens, pen_gate act, bool gated, const float *bias, pen_row_form form,
                 unsigned char *out, size_t stride, int b) {
    for (int t = 0; t < tokens; t++, out += stride) {
        v16 half[2];
        for (int h = 0; h < 2; h++) {
            v16 up = v16_load(tile->up[h] + ROWS * t);
            if (bias) up = v16_add(up, v16_load(bias + ROWS * h));
            half[h] = gated ? v16_mul(activate(v16_load(tile->gate[h] + ROWS * t), act), up) : activate(up, act);
        }
        if (form == PEN_ROW_INT8) {
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

static void quantize_fine_row(const float *x, int cols, pen_fine_block *row) {
    for (int b = 0; b < cols / BLOCK; b++, x += BLOCK) quantize_fine_block(v16_load(x), v16_load(x + 16), row + b);
}

#if defined(__AVX512F__)
#define BLOCK_NS(avx512, avx2, any) (avx512)
#elif defined(__AVX2__)
#define BLOCK_NS(avx512, avx2, any) (avx2)
#else
#define BLOCK_NS(avx512, avx2, any) (any)
#endif

const pen_cpu_linear_kernels PEN_ISA_NAME(pen_cpu_linear_kernels) = {
    .dot =
        {
            [PEN_ROW_INT8] =
                {
#define PEN_TYPE(name, gguf, values, bytes) [PEN_TYPE_##name] = dot_##name,
#include "types.def"
                },
            [PEN_ROW_FINE] =
                {
#define PEN_TYPE(name, gguf, values, bytes) [PEN_TYPE_##name] = dot_fine_##name,
#include "types.def"
                },
            [PEN_ROW_F32] =
                {
#define PEN_TYPE(name, gguf, values, bytes) [PEN_TYPE_##name] = dot_f32_##name,
#include "types.def"
                },
        },
    .put = put,
    .peak = peak,
    .squares =
        {
#define PEN_TYPE(name, gguf, values, bytes)
#define PEN_QUANT(name, gguf, values, bytes, bits, zero, share, d, m, codes) [PEN_TYPE_##name] = squares_##name,
#include "types.def"
        },
    .gate = gate,
    .quantize_row = quantize_row,
    .quantize_fine_row = quantize_fine_row,
    .block_ns =
        {
            [PEN_ROW_INT8] = BLOCK_NS(4, 6, 400),
            [PEN_ROW_FINE] = BLOCK_NS(7, 11, 800),
            [PEN_ROW_F32] = BLOCK_NS(12, 20, 1000),
        },
};
