/*
 * Vectors of 16 floats, the same on every instruction set: one AVX-512 register, two AVX2 registers, or a C array.
 *
 * Why: a file X.isa.c is compiled once per instruction set and must give the same bits each time. Each function here
 * is one IEEE operation per lane (or a fixed sequence of them), sums over lanes follow one tree, and exp and tanh are
 * our own polynomials with every fused multiply-add written down.
 *
 * PEN_ISA_NAME(x) is x with the suffix of the instruction set being compiled for, as the compiler's flags tell.
 */
#ifndef PEN_MATH_ISA_H
#define PEN_MATH_ISA_H

#include "types.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)

#define PEN_ISA_NAME(x) x##_avx512

typedef __m512 v16;   /* 16 × f32 */
typedef __m512i v16i; /* 16 × i32 */

#define V16_BINARY(name, type, call)                                                                                   \
    static inline type name(type a, type b) {                                                                          \
        return call(a, b);                                                                                             \
    }

static inline __m256 v16_low(v16 a) {
    return _mm512_castps512_ps256(a);
}
static inline __m256 v16_high(v16 a) {
    return _mm512_extractf32x8_ps(a, 1);
}
static inline __m256i v16i_low(v16i a) {
    return _mm512_castsi512_si256(a);
}
static inline __m256i v16i_high(v16i a) {
    return _mm512_extracti32x8_epi32(a, 1);
}
static inline v16 v16_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline void v16_store(float *p, v16 a) {
    _mm512_storeu_ps(p, a);
}
static inline v16i v16i_load(const int32_t *p) {
    return _mm512_loadu_si512(p);
}
static inline void v16i_store(int32_t *p, v16i a) {
    _mm512_storeu_si512(p, a);
}
static inline v16 v16_all(float x) {
    return _mm512_set1_ps(x);
}
static inline v16i v16i_all(int32_t x) {
    return _mm512_set1_epi32(x);
}
static inline v16 v16_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}
static inline void v16_store_f16(uint16_t *p, v16 a) {
    _mm256_storeu_si256((void *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
V16_BINARY(v16_add, v16, _mm512_add_ps)
V16_BINARY(v16_sub, v16, _mm512_sub_ps)
V16_BINARY(v16_mul, v16, _mm512_mul_ps)
V16_BINARY(v16_div, v16, _mm512_div_ps)
V16_BINARY(v16_max, v16, _mm512_max_ps)
V16_BINARY(v16_min, v16, _mm512_min_ps)
V16_BINARY(v16i_add, v16i, _mm512_add_epi32)
V16_BINARY(v16i_sub, v16i, _mm512_sub_epi32)
V16_BINARY(v16i_max, v16i, _mm512_max_epi32)
V16_BINARY(v16i_and, v16i, _mm512_and_si512)
V16_BINARY(v16i_or, v16i, _mm512_or_si512)
static inline v16i v16i_load_i8(const void *p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(p));
}
static inline v16i v16i_load_u16(const void *p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(p));
}
static inline v16i v16i_lookup(const uint8_t table[16], v16i a) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const void *)table)), a);
}
static inline v16 v16_fma(v16 a, v16 b, v16 c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline v16i v16i_shift_left(v16i a, int n) {
    return _mm512_slli_epi32(a, (unsigned)n);
}
static inline v16i v16i_shift_right(v16i a, int n) {
    return _mm512_srli_epi32(a, (unsigned)n);
}
static inline void v16i_store_i8(int8_t *p, v16i a) {
    _mm_storeu_si128((void *)p, _mm512_cvtepi32_epi8(a));
}
static inline v16i v16_bits(v16 a) {
    return _mm512_castps_si512(a);
}
static inline v16 v16_from_bits(v16i a) {
    return _mm512_castsi512_ps(a);
}
static inline v16 v16_from_i32(v16i a) {
    return _mm512_cvtepi32_ps(a);
}
static inline v16 v16_select_less(v16 a, v16 b, v16 yes, v16 no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}

#elif defined(__AVX2__)

#if defined(__AVXVNNI__)
#define PEN_ISA_NAME(x) x##_avxvnni
#else
#define PEN_ISA_NAME(x) x##_avx2
#endif

typedef struct v16 {
    __m256 lo, hi;
} v16;
typedef struct v16i {
    __m256i lo, hi;
} v16i;

#define V16_BINARY(name, type, call)                                                                                   \
    static inline type name(type a, type b) {                                                                          \
        return (type){call(a.lo, b.lo), call(a.hi, b.hi)};                                                             \
    }

static inline __m256 v16_low(v16 a) {
    return a.lo;
}
static inline __m256 v16_high(v16 a) {
    return a.hi;
}
static inline __m256i v16i_low(v16i a) {
    return a.lo;
}
static inline __m256i v16i_high(v16i a) {
    return a.hi;
}
static inline v16 v16_load(const float *p) {
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline void v16_store(float *p, v16 a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
static inline v16i v16i_load(const int32_t *p) {
    return (v16i){_mm256_loadu_si256((const void *)p), _mm256_loadu_si256((const void *)(p + 8))};
}
static inline void v16i_store(int32_t *p, v16i a) {
    _mm256_storeu_si256((void *)p, a.lo);
    _mm256_storeu_si256((void *)(p + 8), a.hi);
}
static inline v16 v16_all(float x) {
    return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
static inline v16i v16i_all(int32_t x) {
    return (v16i){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
static inline v16 v16_load_f16(const uint16_t *p) {
    return (v16){_mm256_cvtph_ps(_mm_loadu_si128((const void *)p)),
                 _mm256_cvtph_ps(_mm_loadu_si128((const void *)(p + 8)))};
}
static inline void v16_store_f16(uint16_t *p, v16 a) {
    _mm_storeu_si128((void *)p, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((void *)(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
V16_BINARY(v16_add, v16, _mm256_add_ps)
V16_BINARY(v16_sub, v16, _mm256_sub_ps)
V16_BINARY(v16_mul, v16, _mm256_mul_ps)
V16_BINARY(v16_div, v16, _mm256_div_ps)
V16_BINARY(v16_max, v16, _mm256_max_ps)
V16_BINARY(v16_min, v16, _mm256_min_ps)
V16_BINARY(v16i_add, v16i, _mm256_add_epi32)
V16_BINARY(v16i_sub, v16i, _mm256_sub_epi32)
V16_BINARY(v16i_max, v16i, _mm256_max_epi32)
V16_BINARY(v16i_and, v16i, _mm256_and_si256)
V16_BINARY(v16i_or, v16i, _mm256_or_si256)
static inline v16i v16i_load_i8(const void *p) {
    __m128i bytes = _mm_loadu_si128(p);
    return (v16i){_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes))};
}
static inline v16i v16i_load_u16(const void *p) {
    const __m128i *halves = p;
    return (v16i){_mm256_cvtepu16_epi32(_mm_loadu_si128(halves)), _mm256_cvtepu16_epi32(_mm_loadu_si128(halves + 1))};
}
static inline v16i v16i_lookup(const uint8_t table[16], v16i a) {
    __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table));
    return (v16i){_mm256_shuffle_epi8(bytes, a.lo), _mm256_shuffle_epi8(bytes, a.hi)};
}
static inline v16 v16_fma(v16 a, v16 b, v16 c) {
    return (v16){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
static inline v16i v16i_shift_left(v16i a, int n) {
    return (v16i){_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)};
}
static inline v16i v16i_shift_right(v16i a, int n) {
    return (v16i){_mm256_srli_epi32(a.lo, n), _mm256_srli_epi32(a.hi, n)};
}
static inline void v16i_store_i8(int8_t *p, v16i a) {
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
    _mm_storeu_si128((void *)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
static inline v16i v16_bits(v16 a) {
    return (v16i){_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)};
}
static inline v16 v16_from_bits(v16i a) {
    return (v16){_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)};
}
static inline v16 v16_from_i32(v16i a) {
    return (v16){_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}
static inline v16 v16_select_less(v16 a, v16 b, v16 yes, v16 no) {
    return (v16){_mm256_blendv_ps(no.lo, yes.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
                 _mm256_blendv_ps(no.hi, yes.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}

#else

#define PEN_ISA_NAME(x) x##_portable

typedef struct v16 {
    float v[16];
} v16;
typedef struct v16i {
    int32_t v[16];
} v16i;

/* r.v[i] = expression, for each lane i. */
#define V16_LANES(type, expression)                                                                                    \
    type r;                                                                                                            \
    for (int i = 0; i < 16; i++) r.v[i] = (expression);                                                                \
    return r

static inline v16 v16_load(const float *p) {
    V16_LANES(v16, p[i]);
}
static inline void v16_store(float *p, v16 a) {
    memcpy(p, a.v, sizeof a.v);
}
static inline v16i v16i_load(const int32_t *p) {
    V16_LANES(v16i, p[i]);
}
static inline void v16i_store(int32_t *p, v16i a) {
    memcpy(p, a.v, sizeof a.v);
}
static inline v16 v16_all(float x) {
    V16_LANES(v16, x);
}
static inline v16i v16i_all(int32_t x) {
    V16_LANES(v16i, x);
}
static inline v16 v16_load_f16(const uint16_t *p) {
    V16_LANES(v16, pen_f16_to_f32(p[i]));
}
static inline void v16_store_f16(uint16_t *p, v16 a) {
    for (int i = 0; i < 16; i++) p[i] = pen_f32_to_f16(a.v[i]);
}
static inline v16 v16_add(v16 a, v16 b) {
    V16_LANES(v16, a.v[i] + b.v[i]);
}
static inline v16 v16_sub(v16 a, v16 b) {
    V16_LANES(v16, a.v[i] - b.v[i]);
}
static inline v16 v16_mul(v16 a, v16 b) {
    V16_LANES(v16, a.v[i] * b.v[i]);
}
static inline v16 v16_div(v16 a, v16 b) {
    V16_LANES(v16, a.v[i] / b.v[i]);
}
static inline v16 v16_max(v16 a, v16 b) {
    V16_LANES(v16, a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
}
static inline v16 v16_min(v16 a, v16 b) {
    V16_LANES(v16, a.v[i] < b.v[i] ? a.v[i] : b.v[i]);
}
static inline v16i v16i_add(v16i a, v16i b) {
    V16_LANES(v16i, (int32_t)((uint32_t)a.v[i] + (uint32_t)b.v[i]));
}
static inline v16i v16i_sub(v16i a, v16i b) {
    V16_LANES(v16i, (int32_t)((uint32_t)a.v[i] - (uint32_t)b.v[i]));
}
static inline v16i v16i_max(v16i a, v16i b) {
    V16_LANES(v16i, a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
}
static inline v16i v16i_and(v16i a, v16i b) {
    V16_LANES(v16i, a.v[i] & b.v[i]);
}
static inline v16i v16i_or(v16i a, v16i b) {
    V16_LANES(v16i, a.v[i] | b.v[i]);
}
static inline v16i v16i_load_i8(const void *p) {
    V16_LANES(v16i, ((const int8_t *)p)[i]);
}
static inline v16i v16i_load_u16(const void *p) {
    uint16_t values[16];
    memcpy(values, p, sizeof values);
    V16_LANES(v16i, values[i]);
}
static inline v16i v16i_lookup(const uint8_t table[16], v16i a) {
    uint8_t bytes[64];
    memcpy(bytes, &a, sizeof bytes);
    for (int i = 0; i < 64; i++) bytes[i] = table[bytes[i]];
    memcpy(&a, bytes, sizeof bytes);
    return a;
}
static inline v16 v16_fma(v16 a, v16 b, v16 c) {
    V16_LANES(v16, fmaf(a.v[i], b.v[i], c.v[i]));
}
static inline v16i v16i_shift_left(v16i a, int n) {
    V16_LANES(v16i, (int32_t)((uint32_t)a.v[i] << n));
}
static inline v16i v16i_shift_right(v16i a, int n) {
    V16_LANES(v16i, (int32_t)((uint32_t)a.v[i] >> n));
}
static inline void v16i_store_i8(int8_t *p, v16i a) {
    for (int i = 0; i < 16; i++) p[i] = (int8_t)a.v[i];
}
static inline v16i v16_bits(v16 a) {
    v16i r;
    memcpy(&r, &a, sizeof r);
    return r;
}
static inline v16 v16_from_bits(v16i a) {
    v16 r;
    memcpy(&r, &a, sizeof r);
    return r;
}
static inline v16 v16_from_i32(v16i a) {
    V16_LANES(v16, (float)a.v[i]);
}
static inline v16 v16_select_less(v16 a, v16 b, v16 yes, v16 no) {
    V16_LANES(v16, a.v[i] < b.v[i] ? yes.v[i] : no.v[i]);
}

#endif

/* Notes on the operations above: max and min give their second operand where either is NaN; select_less(a, b, yes,
 * no) is a < b ? yes : no; f16 conversions round to nearest even; shift_right fills with zeros; store_i8 wants lanes
 * that fit; load_i8 and load_u16 widen 16 numbers; lookup replaces each byte, which must be below 16. */

static inline v16 v16_abs(v16 a) {
    return v16_from_bits(v16i_and(v16_bits(a), v16i_all(0x7fffffff)));
}
static inline v16 v16_neg(v16 a) {
    return v16_sub(v16_all(-0.0F), a);
}

/* Sum and maximum over the lanes, by one tree: lanes i and i+8, then i and i+4, i+2, i+1. */
#if defined(__AVX2__)

static inline float v16_sum(v16 a) {
    __m256 by8 = _mm256_add_ps(v16_low(a), v16_high(a));
    __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
    __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
    return _mm_cvtss_f32(_mm_add_ps(by2, _mm_movehdup_ps(by2)));
}
static inline float v16_largest(v16 a) {
    __m256 by8 = _mm256_max_ps(v16_low(a), v16_high(a));
    __m128 by4 = _mm_max_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
    __m128 by2 = _mm_max_ps(by4, _mm_movehl_ps(by4, by4));
    return _mm_cvtss_f32(_mm_max_ps(by2, _mm_movehdup_ps(by2)));
}
static inline int32_t v16i_sum(v16i a) {
    __m256i by8 = _mm256_add_epi32(v16i_low(a), v16i_high(a));
    __m128i by4 = _mm_add_epi32(_mm256_castsi256_si128(by8), _mm256_extracti128_si256(by8, 1));
    __m128i by2 = _mm_add_epi32(by4, _mm_shuffle_epi32(by4, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(by2, _mm_shuffle_epi32(by2, 0xb1)));
}
static inline int32_t v16i_largest(v16i a) {
    __m256i by8 = _mm256_max_epi32(v16i_low(a), v16i_high(a));
    __m128i by4 = _mm_max_epi32(_mm256_castsi256_si128(by8), _mm256_extracti128_si256(by8, 1));
    __m128i by2 = _mm_max_epi32(by4, _mm_shuffle_epi32(by4, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(by2, _mm_shuffle_epi32(by2, 0xb1)));
}

#else

static inline float v16_sum(v16 a) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) a.v[i] += a.v[i + half];
    return a.v[0];
}
static inline float v16_largest(v16 a) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
    return a.v[0];
}
static inline int32_t v16i_sum(v16i a) {
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += a.v[i];
    return sum;
}
static inline int32_t v16i_largest(v16i a) {
    int32_t largest = a.v[0];
    for (int i = 1; i < 16; i++) largest = a.v[i] > largest ? a.v[i] : largest;
    return largest;
}

#endif

#define ROUNDING 12582912.0F /* 1.5·2^23: adding it leaves an integer in the low bits, of which 9 are its own 0 */

/* Nearest integer, ties to even, of |a| < 2^22. */
static inline v16i v16_round_i32(v16 a) {
    return v16i_sub(v16_bits(v16_add(a, v16_all(ROUNDING))), v16_bits(v16_all(ROUNDING)));
}

/* e^a within 2 units in the last place; 0 below −87.3 (−inf too), at most 2.4e38 above 88.3, NaN of NaN. */
static inline v16 v16_exp(v16 a) {
    const v16 lowest = v16_all(-87.3F);
    v16 x = v16_min(v16_all(88.3F), v16_max(lowest, a));
    v16 n = v16_add(v16_mul(x, v16_all(1.44269504F)), v16_all(ROUNDING)), nf = v16_sub(n, v16_all(ROUNDING));
    v16 r = v16_fma(nf, v16_all(-0.693359375F), x); /* −ln 2 in two parts, the first of few bits */
    r = v16_fma(nf, v16_all(2.12194440e-4F), r);
    v16 p = v16_all(1.9875691500e-4F); /* Cephes' expf */
    p = v16_fma(p, r, v16_all(1.3981999507e-3F));
    p = v16_fma(p, r, v16_all(8.3334519073e-3F));
    p = v16_fma(p, r, v16_all(4.1665795894e-2F));
    p = v16_fma(p, r, v16_all(1.6666665459e-1F));
    p = v16_fma(p, r, v16_all(5.0000001201e-1F));
    p = v16_add(v16_fma(p, v16_mul(r, r), r), v16_all(1.0F));
    v16 power = v16_from_bits(v16i_add(v16i_shift_left(v16_bits(n), 23), v16_bits(v16_all(1.0F)))); /* 2^nf */
    return v16_select_less(a, lowest, v16_all(0.0F), v16_mul(p, power));
}

/* tanh within 3 units in the last place, NaN of NaN. */
static inline v16 v16_tanh(v16 a) {
    v16 z = v16_mul(a, a);
    v16 p = v16_all(-5.70498872745e-3F); /* Cephes' tanhf, for |a| < 0.625 */
    p = v16_fma(p, z, v16_all(2.06390887954e-2F));
    p = v16_fma(p, z, v16_all(-5.37397155531e-2F));
    p = v16_fma(p, z, v16_all(1.33314422036e-1F));
    p = v16_fma(p, z, v16_all(-3.33332819422e-1F));
    v16 small = v16_fma(v16_mul(p, z), a, a);
    v16 e = v16_exp(v16_add(a, a)); /* tanh = 1 − 2/(e^2a + 1) */
    v16 large = v16_sub(v16_all(1.0F), v16_div(v16_all(2.0F), v16_add(e, v16_all(1.0F))));
    return v16_select_less(v16_abs(a), v16_all(0.625F), small, large);
}

#endif
