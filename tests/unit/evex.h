/*
 * Included ahead of linear.isa.c for AVX-VNNI: gives that set's one instruction the encoding of AVX-512, and the table
 * another name. What the kernels compute is the same, and machines with either of the two sets can test it.
 */
#ifndef PEN_EVEX_H
#define PEN_EVEX_H

#include <immintrin.h>

__attribute__((target("avx2"))) static inline __m256i evex_dpbusd(__m256i sum, __m256i codes, __m256i q) {
    __asm__("%{evex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(q));
    return sum;
}

#define _mm256_dpbusd_avx_epi32        evex_dpbusd
#define pen_cpu_linear_kernels_avxvnni pen_cpu_linear_kernels_evex

#endif
