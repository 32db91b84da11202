/*
 * What all kernels share: the CUDA headers or, in tests/gpu/emulate, what stands in for them; the one way to launch;
 * and reductions over a warp and a block, in an order that depends on nothing but the number of threads.
 *
 * A decode is a chain of kernels of a few microseconds, and between two of them the GPU would idle for one. So from
 * sm_90 on a kernel is launched while the one before it ends (programmatic dependent launch): its blocks are set up
 * where there is room, and every kernel calls follow() before it touches what others write; that waits until all that
 * was launched before has ended and its writes are seen. The emulation ends a test whose kernel has threads that do not
 * call it.
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

inline cudaError_t launch_failure = cudaSuccess; /* see pen_cuda_launch_failure() */

#ifdef PEN_CUDA_EMULATED
template <class Kernel, class Args>
void launch(Kernel kernel, dim3 grid, dim3 block, cudaStream_t stream, const Args &args) {
    pen_emulate_launch(grid, block, stream, [=] {
        kernel(args);
        pen_emulate_end_of_thread();
    });
}
#else
template <class Kernel, class Args>
void launch(Kernel kernel, dim3 grid, dim3 block, cudaStream_t stream, const Args &args) {
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = pen_cuda_launches_early() ? 1 : 0;
    cudaError_t error = cudaLaunchKernelEx(&config, kernel, args);
    if (error != cudaSuccess) launch_failure = error;
}

__device__ inline void follow() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
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
