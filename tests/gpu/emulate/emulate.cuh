/*
 * CUDA's device language for g++, for tests: what the kernels of kernels/cuda use, and no more.
 *
 * A launch becomes a closure of the stream. Its blocks run one after the other; a block's threads are fibers that run
 * until they wait (fibers.cpp). Shared memory is static, so that the next block finds what the last one left, as on a
 * GPU. The warp is 32 lanes, of x first; intrinsics of a warp must be met by all of its lanes.
 */
#ifndef PEN_EMULATE_CUH
#define PEN_EMULATE_CUH

#include "cuda_runtime_api.h"

extern "C" {
#include "types.h"
}

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

using std::max;
using std::min;

struct dim3 {
    unsigned x, y, z;
    explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uchar2 {
    unsigned char x, y;
};
struct char4 {
    signed char x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) {
    return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}

extern dim3 threadIdx, blockIdx, blockDim, gridDim; /* of the fiber that runs */

/* ---- Launches and barriers (fibers.cpp) ------------------------------------------------------------------------ */

void pen_emulate_launch(dim3 grid, dim3 block, cudaStream_t stream, std::function<void()> thread);

void __syncthreads();
/* kernels/cuda/device.cuh: what every thread of a kernel does first; checked when it ends. */
void follow();
void pen_emulate_end_of_thread();
/* Puts down this lane's bytes and returns those of lane `from` of the warp, when all lanes have. */
const void *pen_emulate_exchange(unsigned mask, const void *bytes, size_t size, unsigned from);
unsigned pen_emulate_lane();

template <class T> T __shfl_xor_sync(unsigned mask, T value, int other) {
    T result;
    memcpy(&result, pen_emulate_exchange(mask, &value, sizeof value, pen_emulate_lane() ^ (unsigned)other),
           sizeof result);
    return result;
}

/* The tensor cores' products (kernels/cuda/tensor.cuh); a lane's words of a and b. */
struct pen_emulated_fragments {
    unsigned a[4], b[2], unused[2]; /* as large as an exchange may be: those of all lanes lie side by side */
};
inline const pen_emulated_fragments *pen_emulate_fragments(const unsigned *a, int a_words, const unsigned *b) {
    pen_emulated_fragments mine = {};
    std::copy(a, a + a_words, mine.a);
    std::copy(b, b + a_words / 2, mine.b);
    return (const pen_emulated_fragments *)pen_emulate_exchange(~0U, &mine, sizeof mine, 0);
}

/* c += a·b, four words of a row and a column at a time: `dot` adds the products of two words to a sum. */
template <class Sum, class Dot>
void pen_emulate_mma(Sum c[4], const unsigned *a, int a_words, const unsigned *b, Dot dot) {
    const pen_emulated_fragments *lanes = pen_emulate_fragments(a, a_words, b);
    unsigned g = pen_emulate_lane() / 4, t = pen_emulate_lane() % 4;
    for (unsigned i = 0; i < 4; i++)
        for (unsigned half = 0; half < (unsigned)a_words / 2; half++)
            for (unsigned other = 0; other < 4; other++)
                c[i] = dot(lanes[4 * g + other].a[i / 2 + 2 * half], lanes[4 * (2 * t + i % 2) + other].b[half], c[i]);
}

inline void __threadfence() {} /* blocks run one after the other */
template <class T> T __ldcg(const T *at) {
    return *at;
}
template <class T> T atomicAdd(T *at, T value) {
    T before = *at;
    *at += value;
    return before;
}

/* ---- Arithmetic ------------------------------------------------------------------------------------------------ */

inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline int __float2int_rn(float value) {
    return (int)lrintf(value);
}

inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 4; i++) sum += (int)(int8_t)(a >> 8 * i) * (int)(int8_t)(b >> 8 * i);
    return sum;
}

inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    uint64_t bytes = (uint64_t)high << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= (unsigned)(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return result;
}

struct __half {
    uint16_t bits;
};
inline float __half2float(__half half) {
    return pen_f16_to_f32(half.bits);
}
inline __half __float2half_rn(float value) {
    return {pen_f32_to_f16(value)};
}
inline unsigned short __half_as_ushort(__half half) {
    return half.bits;
}
inline __half __ushort_as_half(unsigned short bits) {
    return {bits};
}

inline float pen_emulate_bf16(unsigned bits) {
    return pen_bf16_to_f32((uint16_t)bits);
}
inline float pen_emulate_f16(unsigned bits) {
    return pen_f16_to_f32((uint16_t)bits);
}
inline uint16_t pen_emulate_to_bf16(float value) { /* of a number */
    unsigned bits = __float_as_uint(value);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void mma_s8_k32(int c[4], const unsigned a[4], const unsigned b[2]) {
    pen_emulate_mma(c, a, 4, b, [](unsigned x, unsigned y, int sum) { return __dp4a((int)x, (int)y, sum); });
}
inline void mma_s8_k16(int c[4], const unsigned a[2], unsigned b) {
    pen_emulate_mma(c, a, 2, &b, [](unsigned x, unsigned y, int sum) { return __dp4a((int)x, (int)y, sum); });
}
inline void mma_f16(float c[4], const unsigned a[4], const unsigned b[2]) {
    pen_emulate_mma(c, a, 4, b, [](unsigned x, unsigned y, float sum) {
        sum = fmaf(pen_emulate_f16(x), pen_emulate_f16(y), sum);
        return fmaf(pen_emulate_f16(x >> 16), pen_emulate_f16(y >> 16), sum);
    });
}
inline void mma_bf16(float c[4], const unsigned a[4], const unsigned b[2]) {
    pen_emulate_mma(c, a, 4, b, [](unsigned x, unsigned y, float sum) {
        sum = fmaf(pen_emulate_bf16(x), pen_emulate_bf16(y), sum);
        return fmaf(pen_emulate_bf16(x >> 16), pen_emulate_bf16(y >> 16), sum);
    });
}
inline unsigned fma_f16_pair(unsigned a, unsigned b, unsigned c) {
    unsigned low = pen_f32_to_f16(fmaf(pen_emulate_f16(a), pen_emulate_f16(b), pen_emulate_f16(c)));
    return low |
           (unsigned)pen_f32_to_f16(fmaf(pen_emulate_f16(a >> 16), pen_emulate_f16(b >> 16), pen_emulate_f16(c >> 16)))
               << 16;
}
inline unsigned fma_bf16_pair(unsigned a, unsigned b, unsigned c) {
    unsigned low = pen_emulate_to_bf16(fmaf(pen_emulate_bf16(a), pen_emulate_bf16(b), pen_emulate_bf16(c)));
    return low | (unsigned)pen_emulate_to_bf16(
                     fmaf(pen_emulate_bf16(a >> 16), pen_emulate_bf16(b >> 16), pen_emulate_bf16(c >> 16)))
                     << 16;
}

/* ---- What only C++ can ask the runtime ------------------------------------------------------------------------- */

struct cudaFuncAttributes {
    int binaryVersion, ptxVersion;
};
cudaError_t pen_emulate_kernel_attributes();
template <class Kernel> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, Kernel) {
    *attributes = {90, 90};
    return pen_emulate_kernel_attributes();
}

#endif
