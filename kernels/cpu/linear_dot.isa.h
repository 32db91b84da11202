/*
 * The exact integer product of 32 or 16 weights of 16 rows with an activation block: the only part of the linear
 * kernels that is written separately for each instruction set.
 *
 * Weights are vectors of 64 unsigned bytes: byte j of lane `row` of vector v is the code of value 4v+j of the row.
 */
#ifndef PEN_LINEAR_DOT_ISA_H
#define PEN_LINEAR_DOT_ISA_H

#include "math.isa.h"

static inline int32_t load_i32(const void *p) {
    int32_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

/* sums[i] += Σ (w − zero)·q of `count` vectors of codes below 2^bits and 4·count activations from −127 to 127, for n
 * rows of activations that are `stride` bytes apart. The caller has put −zero·Σq into the sums; but codes of 8 bits
 * have zero 128. */
#if defined(__AVX512VNNI__)

static inline void dot(const v16i *w, int count, int bits, const int8_t *q, size_t stride, int n, v16i *sums) {
    (void)bits;
    for (int v = 0; v < count; v++)
        for (int i = 0; i < n; i++)
            sums[i] = _mm512_dpbusd_epi32(sums[i], w[v], v16i_all(load_i32(q + stride * (size_t)i + 4 * v)));
}

#elif defined(__AVX2__)

/* Two products of at most 128·127 fit an int16, so |w−128| is the unsigned operand and q takes its sign. */
static inline v16i dot_8_bits(const v16i *w, int count, const int8_t *q) {
    const __m256i ones = _mm256_set1_epi16(1), flip = _mm256_set1_epi8(-128);
    v16i sum = v16i_all(0);
    for (int v = 0; v < count; v++) {
        __m256i four = _mm256_set1_epi32(load_i32(q + 4 * v));
        __m256i lo = _mm256_xor_si256(w[v].lo, flip), hi = _mm256_xor_si256(w[v].hi, flip);
        v16i pairs = {_mm256_maddubs_epi16(_mm256_abs_epi8(lo), _mm256_sign_epi8(four, lo)),
                      _mm256_maddubs_epi16(_mm256_abs_epi8(hi), _mm256_sign_epi8(four, hi))};
        sum = v16i_add(sum, (v16i){_mm256_madd_epi16(pairs.lo, ones), _mm256_madd_epi16(pairs.hi, ones)});
    }
    return sum;
}

/* An int16 holds 16 products with codes of 4 bits, 8 with 5 bits, 4 with 6: so many vectors are added before widening,
 * two products of each in a lane. */
static inline v16i dot_row(const v16i *w, int count, int bits, const int8_t *q, v16i sum) {
    const __m256i ones = _mm256_set1_epi16(1);
    int at_once = bits <= 4 ? 8 : bits == 5 ? 4 : 2;
    for (int first = 0; first < count; first += at_once) {
        __m256i lo = _mm256_setzero_si256(), hi = lo;
        for (int v = first; v < first + at_once && v < count; v++) {
            __m256i four = _mm256_set1_epi32(load_i32(q + 4 * v));
            lo = _mm256_add_epi16(lo, _mm256_maddubs_epi16(w[v].lo, four));
            hi = _mm256_add_epi16(hi, _mm256_maddubs_epi16(w[v].hi, four));
        }
        sum = v16i_add(sum, (v16i){_mm256_madd_epi16(lo, ones), _mm256_madd_epi16(hi, ones)});
    }
    return sum;
}

static inline void dot(const v16i *w, int count, int bits, const int8_t *q, size_t stride, int n, v16i *sums) {
    for (int i = 0; i < n; i++, q += stride)
        sums[i] = bits == 8 ? dot_8_bits(w, count, q) : dot_row(w, count, bits, q, sums[i]);
}

#else

static inline void dot(const v16i *w, int count, int bits, const int8_t *q, size_t stride, int n, v16i *sums) {
    (void)bits;
    for (int i = 0; i < n; i++, q += stride)
        for (int v = 0; v < count; v++) {
            uint8_t codes[64];
            memcpy(codes, &w[v], sizeof codes);
            for (int row = 0; row < 16; row++)
                for (int j = 0; j < 4; j++) sums[i].v[row] += codes[4 * row + j] * q[4 * v + j];
        }
}

#endif

#endif
