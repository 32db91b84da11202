/*
 * The exact integer product of 32 weights of 16 rows with one activation block: the only part of the linear kernels
 * that is written separately for each instruction set.
 *
 * weights32: 8 vectors of 64 unsigned bytes; byte 4·row+j of vector v is value 4v+j of the row.
 */
#ifndef PEN_LINEAR_DOT_ISA_H
#define PEN_LINEAR_DOT_ISA_H

#include "math.isa.h"
#include "quantize.h"

static inline int32_t load_i32(const void *p) {
    int32_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

#if defined(__AVX512VNNI__)

typedef struct weights32 {
    __m512i v[8];
} weights32;

static inline weights32 unpack_nibbles(const unsigned char *p) {
    const __m512i low = _mm512_set1_epi8(15);
    weights32 w;
    for (int v = 0; v < 4; v++) {
        __m512i bytes = _mm512_loadu_si512(p + 64 * v);
        w.v[v] = _mm512_and_si512(bytes, low);
        w.v[4 + v] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
    }
    return w;
}

static inline weights32 load_bytes(const unsigned char *p) {
    weights32 w;
    for (int v = 0; v < 8; v++) w.v[v] = _mm512_loadu_si512(p + 64 * v);
    return w;
}

static inline v16i dot_from(v16i sum, const weights32 *w, const pen_activation_block *x) {
    for (int v = 0; v < 8; v++) sum = _mm512_dpbusd_epi32(sum, w->v[v], _mm512_set1_epi32(load_i32(x->q + 4 * v)));
    return sum;
}

/* Σ w·q of weights up to 15. */
static inline v16i dot_u4(const weights32 *w, const pen_activation_block *x) {
    return dot_from(_mm512_setzero_si512(), w, x);
}

/* Σ (w−8)·q of weights up to 15, Σ (w−128)·q of any. */
static inline v16i dot_u4_less_8(const weights32 *w, const pen_activation_block *x) {
    return dot_from(v16i_all(x->bias8), w, x);
}
static inline v16i dot_u8_less_128(const weights32 *w, const pen_activation_block *x) {
    return dot_from(v16i_shift_left(v16i_all(x->bias8), 4), w, x);
}

#elif defined(__AVX2__)

typedef struct weights32 {
    __m256i v[8][2]; /* rows 0…7, 8…15 */
} weights32;

static inline weights32 unpack_nibbles(const unsigned char *p) {
    const __m256i low = _mm256_set1_epi8(15);
    weights32 w;
    for (int v = 0; v < 4; v++)
        for (int half = 0; half < 2; half++) {
            __m256i bytes = _mm256_loadu_si256((const void *)(p + 64 * v + 32 * half));
            w.v[v][half] = _mm256_and_si256(bytes, low);
            w.v[4 + v][half] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
        }
    return w;
}

static inline weights32 load_bytes(const unsigned char *p) {
    weights32 w;
    memcpy(&w, p, sizeof w);
    return w;
}

/* 16 products of at most 15·127 fit an int16. */
static inline v16i dot_u4(const weights32 *w, const pen_activation_block *x) {
    __m256i low = _mm256_setzero_si256(), high = low;
    for (int v = 0; v < 8; v++) {
        __m256i q = _mm256_set1_epi32(load_i32(x->q + 4 * v));
        low = _mm256_add_epi16(low, _mm256_maddubs_epi16(w->v[v][0], q));
        high = _mm256_add_epi16(high, _mm256_maddubs_epi16(w->v[v][1], q));
    }
    const __m256i ones = _mm256_set1_epi16(1);
    return (v16i){_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones)};
}

static inline v16i dot_u4_less_8(const weights32 *w, const pen_activation_block *x) {
    return v16i_add(dot_u4(w, x), v16i_all(x->bias8));
}

/* Two products of at most 128·127 fit an int16, so |w−128| is the unsigned operand and q takes its sign. */
static inline v16i dot_u8_less_128(const weights32 *w, const pen_activation_block *x) {
    const __m256i ones = _mm256_set1_epi16(1), flip = _mm256_set1_epi8(-128);
    __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int v = 0; v < 8; v++) {
        __m256i q = _mm256_set1_epi32(load_i32(x->q + 4 * v));
        for (int half = 0; half < 2; half++) {
            __m256i s = _mm256_xor_si256(w->v[v][half], flip);
            __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(s), _mm256_sign_epi8(q, s));
            sum[half] = _mm256_add_epi32(sum[half], _mm256_madd_epi16(pairs, ones));
        }
    }
    return (v16i){sum[0], sum[1]};
}

#else

typedef struct weights32 {
    unsigned char v[8][64];
} weights32;

static inline weights32 unpack_nibbles(const unsigned char *p) {
    weights32 w;
    for (int v = 0; v < 4; v++)
        for (int i = 0; i < 64; i++) {
            w.v[v][i] = p[64 * v + i] & 15;
            w.v[4 + v][i] = p[64 * v + i] >> 4;
        }
    return w;
}

static inline weights32 load_bytes(const unsigned char *p) {
    weights32 w;
    memcpy(&w, p, sizeof w);
    return w;
}

static inline v16i dot_u4(const weights32 *w, const pen_activation_block *x) {
    v16i sum = v16i_all(0);
    for (int v = 0; v < 8; v++)
        for (int row = 0; row < 16; row++)
            for (int j = 0; j < 4; j++) sum.v[row] += w->v[v][4 * row + j] * x->q[4 * v + j];
    return sum;
}

static inline v16i dot_u4_less_8(const weights32 *w, const pen_activation_block *x) {
    return v16i_add(dot_u4(w, x), v16i_all(x->bias8));
}

static inline v16i dot_u8_less_128(const weights32 *w, const pen_activation_block *x) {
    return v16i_add(dot_u4(w, x), v16i_shift_left(v16i_all(x->bias8), 4));
}

#endif

#endif
