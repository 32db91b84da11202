/*
 * The exact integer product of 32 or 16 weights of 16 rows with an activation block: the only part of the linear
 * kernels that is written separately for each instruction set.
 *
 * Weights are vectors of 64 unsigned bytes: byte j of lane `row` of vector v is the code of value 4v+j of the row.
 */
#ifndef PEN_LINEAR_DOT_ISA_H
#define PEN_LINEAR_DOT_ISA_H

#include "cpu_device.h"
#include "math.isa.h"
#include "quantize.h"

/* A copy for each use has its constants folded and its sums in registers. The portable vectors are slow to compile, and
 * to run either way. */
#if defined(__AVX2__)
#define SPECIALISED inline __attribute__((always_inline))
#else
#define SPECIALISED __attribute__((noinline, noclone))
#endif

/* Tokens whose sums of products are formed side by side: enough that none waits for the last multiplication of its own
 * and that codes in memory are read once for all, few enough for the registers. */
#if defined(__AVX512F__) || defined(__AVXVNNI__)
enum { AT_ONCE = 4 };
#elif defined(__AVX2__)
enum { AT_ONCE = 2 };
#else
enum { AT_ONCE = 1 };
#endif

static inline int32_t load_i32(const void *p) {
    int32_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

/* sums[i] += Σ code·q of `count` vectors of codes below 2^bits and 4·count activations from −127 to 127, for n rows of
 * activations that are `stride` bytes apart. */
#if defined(__AVX512VNNI__)

static SPECIALISED void dot_bytes(const v16i *w, int count, int bits, const int8_t *q, size_t stride, int n,
                                  v16i *sums) {
    (void)bits;
    for (int v = 0; v < count; v++)
        for (int i = 0; i < n; i++)
            sums[i] = _mm512_dpbusd_epi32(sums[i], w[v], v16i_all(load_i32(q + stride * (size_t)i + 4 * v)));
}

#elif defined(__AVXVNNI__)

static SPECIALISED void dot_bytes(const v16i *w, int count, int bits, const int8_t *q, size_t stride, int n,
                                  v16i *sums) {
    (void)bits;
    for (int v = 0; v < count; v++)
        for (int i = 0; i < n; i++) {
            __m256i four = _mm256_set1_epi32(load_i32(q + stride * (size_t)i + 4 * v));
            sums[i].lo = _mm256_dpbusd_avx_epi32(sums[i].lo, w[v].lo, four);
            sums[i].hi = _mm256_dpbusd_avx_epi32(sums[i].hi, w[v].hi, four);
        }
}

#elif defined(__AVX2__)

/* Codes of up to 6 bits: an int16 holds 16 products with codes of 4 bits, 8 with 5 bits, 4 with 6. So many vectors are
 * added before widening, two products of each in a lane. */
static SPECIALISED void dot_bytes(const v16i *w, int count, int bits, const int8_t *q, size_t stride, int n,
                                  v16i *sums) {
    const __m256i ones = _mm256_set1_epi16(1);
    int together = bits <= 4 ? 8 : bits == 5 ? 4 : 2;
    for (int first = 0; first < count; first += together) {
        v16i pairs[AT_ONCE];
        for (int i = 0; i < n; i++) pairs[i] = v16i_all(0);
        for (int v = first; v < first + together && v < count; v++)
            for (int i = 0; i < n; i++) {
                __m256i four = _mm256_set1_epi32(load_i32(q + stride * (size_t)i + 4 * v));
                pairs[i].lo = _mm256_add_epi16(pairs[i].lo, _mm256_maddubs_epi16(w[v].lo, four));
                pairs[i].hi = _mm256_add_epi16(pairs[i].hi, _mm256_maddubs_epi16(w[v].hi, four));
            }
        for (int i = 0; i < n; i++)
            sums[i] =
                v16i_add(sums[i], (v16i){_mm256_madd_epi16(pairs[i].lo, ones), _mm256_madd_epi16(pairs[i].hi, ones)});
    }
}

/* sums[i] = Σ (code − 128)·q of codes of 8 bits: two products fit an int16 where |code − 128| is the unsigned operand
 * and q takes its sign. */
static SPECIALISED void dot_signed(const v16i *w, int count, const int8_t *q, size_t stride, int n, v16i *sums) {
    const __m256i ones = _mm256_set1_epi16(1), flip = _mm256_set1_epi8(-128);
    for (int i = 0; i < n; i++, q += stride) {
        sums[i] = v16i_all(0);
        for (int v = 0; v < count; v++) {
            __m256i four = _mm256_set1_epi32(load_i32(q + 4 * v));
            __m256i lo = _mm256_xor_si256(w[v].lo, flip), hi = _mm256_xor_si256(w[v].hi, flip);
            v16i pairs = {_mm256_maddubs_epi16(_mm256_abs_epi8(lo), _mm256_sign_epi8(four, lo)),
                          _mm256_maddubs_epi16(_mm256_abs_epi8(hi), _mm256_sign_epi8(four, hi))};
            sums[i] = v16i_add(sums[i], (v16i){_mm256_madd_epi16(pairs.lo, ones), _mm256_madd_epi16(pairs.hi, ones)});
        }
    }
}

/* sums[i] += Σ code·q of codes of 8 bits and activations of two parts, joined to words: one pass instead of two. */
static SPECIALISED void dot_words(const v16i *w, int count, const int8_t *q, size_t stride, int n, v16i *sums) {
    int32_t pairs[AT_ONCE][16]; /* of each row's values, two words each */
    for (int i = 0; i < n; i++)
        for (int v = 0; v < count; v += 4) {
            const __m128i *bytes = (const void *)(q + stride * (size_t)i + 4 * v);
            __m256i upper = _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes));
            __m256i lower = _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes + 2));
            __m256i words = _mm256_add_epi16(_mm256_slli_epi16(upper, PEN_FINE_SHIFT), lower);
            _mm256_storeu_si256((void *)(pairs[i] + 2 * v), words);
        }
    const __m128i first_two = _mm_setr_epi8(0, -128, 1, -128, 4, -128, 5, -128, 8, -128, 9, -128, 12, -128, 13, -128);
    for (int v = 0; v < count; v++)
        for (int pair = 0; pair < 2; pair++) {
            __m256i of_lane = _mm256_broadcastsi128_si256(_mm_add_epi8(first_two, _mm_set1_epi8((char)(2 * pair))));
            __m256i lo = _mm256_shuffle_epi8(w[v].lo, of_lane), hi = _mm256_shuffle_epi8(w[v].hi, of_lane);
            for (int i = 0; i < n; i++) {
                __m256i two = _mm256_set1_epi32(pairs[i][2 * v + pair]);
                sums[i].lo = _mm256_add_epi32(sums[i].lo, _mm256_madd_epi16(lo, two));
                sums[i].hi = _mm256_add_epi32(sums[i].hi, _mm256_madd_epi16(hi, two));
            }
        }
}

#else

static inline void dot_bytes(const v16i *w, int count, int bits, const int8_t *q, size_t stride, int n, v16i *sums) {
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

/* sums[i] += Σ code·q of activation rows of one or two parts, whose products are exact in an int32. */
static SPECIALISED void dot(const v16i *w, int count, int bits, const int8_t *q, size_t stride, int parts, int n,
                            v16i *sums) {
#if defined(__AVX2__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
    if (bits == 8) {
        if (parts == 1)
            dot_signed(w, count, q, stride, n, sums);
        else
            dot_words(w, count, q, stride, n, sums);
        return;
    }
#endif
    dot_bytes(w, count, bits, q + PEN_QUANT_BLOCK * (parts - 1), stride, n, sums);
    if (parts == 1) return;
    v16i upper[AT_ONCE];
    for (int i = 0; i < n; i++) upper[i] = v16i_all(0);
    dot_bytes(w, count, bits, q, stride, n, upper);
    for (int i = 0; i < n; i++) sums[i] = v16i_add(sums[i], v16i_shift_left(upper[i], PEN_FINE_SHIFT));
}

#endif
