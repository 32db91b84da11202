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

#include "types.h"

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
/* Puts down this lane's bytes and returns those of lane `from` of the warp, when all lanes have. */
const void *pen_emulate_exchange(unsigned mask, const void *bytes, size_t size, unsigned from);
unsigned pen_emulate_lane();

template <class T> T __shfl_xor_sync(unsigned mask, T value, int other) {
    T result;
    memcpy(&result, pen_emulate_exchange(mask, &value, sizeof value, pen_emulate_lane() ^ (unsigned)other),
           sizeof result);
    return result;
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
inline __half __ushort_as_half(unsigned short bits) {
    return {bits};
}

/* ---- What only C++ can ask the runtime ------------------------------------------------------------------------- */

struct cudaFuncAttributes {
    int unused;
};
cudaError_t pen_emulate_kernel_attributes();
template <class Kernel> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *, Kernel) {
    return pen_emulate_kernel_attributes();
}

#endif
