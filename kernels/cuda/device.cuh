/*
 * What all kernels share: the CUDA headers or, in tests/gpu/emulate, what stands in for them; the one way to launch;
 * and reductions over a warp and a block, in an order that depends on nothing but the number of threads.
 */
#ifndef PEN_DEVICE_CUH
#define PEN_DEVICE_CUH

#include "cuda_kernels.h"

#ifdef PEN_CUDA_EMULATED
#include "emulate.cuh"
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#ifdef PEN_CUDA_EMULATED
template <class Kernel, class Args>
void launch(Kernel kernel, dim3 grid, dim3 block, cudaStream_t stream, const Args &args) {
    pen_emulate_launch(grid, block, stream, [=] { kernel(args); });
}
#else
/* A launch that fails leaves its error with the runtime; pen_device_sync() finds it. */
template <class Kernel, class Args>
void launch(Kernel kernel, dim3 grid, dim3 block, cudaStream_t stream, const Args &args) {
    kernel<<<grid, block, 0, stream>>>(args);
}
#endif

enum { WARP = 32 };
static const unsigned ALL_LANES = 0xffffffffU;

struct larger {
    template <class T> __device__ T operator()(T a, T b) const { return a > b ? a : b; }
};
struct sum {
    template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};

/* The same in all lanes: lanes are combined in pairs, pairs in fours, … */
template <class Op, class T> __device__ T reduce_warp(Op op, T value) {
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) value = op(value, __shfl_xor_sync(ALL_LANES, value, step));
    return value;
}

/* The same in all threads of a one-dimensional block of THREADS: warps by themselves, then warp after warp. */
template <int THREADS, class Op, class T> __device__ T reduce_block(Op op, T value) {
    __shared__ T warps[THREADS / WARP];
    value = reduce_warp(op, value);
    __syncthreads(); /* whoever still reads the last result */
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = value;
    __syncthreads();
    value = warps[0];
    for (int w = 1; w < THREADS / WARP; w++) value = op(value, warps[w]);
    return value;
}

#endif
