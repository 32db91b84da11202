/*
 * The tensor cores: products of small matrices by a warp, in the shapes that sm_80 and all later GPUs have.
 *
 * c[16][8] += a[16][K]·b[K][8]. Lane 4·g + t has of a row g and row g + 8, of b column g, of c columns 2t and 2t + 1 of
 * rows g and g + 8, as {(g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)}.
 *   s8, K = 32: a = {row g from 4t, row g+8 from 4t, row g from 16+4t, row g+8 from 16+4t}, four values in a word;
 *               b = {from 4t, from 16+4t}. K = 16: the first half of each. Sums are exact.
 *   16-bit floats, K = 16: the same with 2t and 8+2t, two values in a word. How the 16 products are summed is the
 *               hardware's business: the same for every row and column of every product on one type of GPU.
 * Which 16 or 32 values these are is free, as long as a and b agree.
 */
#ifndef PEN_TENSOR_CUH
#define PEN_TENSOR_CUH

#include "device.cuh"

#ifndef PEN_CUDA_EMULATED

__device__ inline void mma_s8_k32(int c[4], const unsigned a[4], const unsigned b[2]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_s8_k16(int c[4], const unsigned a[2], unsigned b) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
}

__device__ inline void mma_f16(float c[4], const unsigned a[4], const unsigned b[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_bf16(float c[4], const unsigned a[4], const unsigned b[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* a·b + c of two pairs of 16-bit floats. */
__device__ inline unsigned fma_f16_pair(unsigned a, unsigned b, unsigned c) {
    asm("fma.rn.f16x2 %0, %0, %1, %2;" : "+r"(a) : "r"(b), "r"(c));
    return a;
}
__device__ inline unsigned fma_bf16_pair(unsigned a, unsigned b, unsigned c) {
    asm("fma.rn.bf16x2 %0, %0, %1, %2;" : "+r"(a) : "r"(b), "r"(c));
    return a;
}

#endif

/* Four signed bytes as bf16 or f16, without a conversion: (base + the lower seven bits) − (base + 128 where negative),
 * base being the power of two of whose float the last of seven, or ten, bits is worth 1. */
template <bool BF16> __device__ void widen(unsigned bytes, unsigned pairs[2]) {
    const unsigned base = BF16 ? 0x43U : 0x64U, one = BF16 ? 0x3f803f80U : 0x3c003c00U;
    const unsigned bases = base << 8 | base, minus = bases | 0x8080U;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        unsigned lower = __byte_perm(bytes & 0x7f7f7f7fU, bases, i == 0 ? 0x4140 : 0x4342);
        unsigned sign = __byte_perm(bytes & 0x80808080U, minus, i == 0 ? 0x4140 : 0x4342);
        pairs[i] = BF16 ? fma_bf16_pair(lower, one, sign) : fma_f16_pair(lower, one, sign);
    }
}

#endif
