/* Rounding of 32 values, one per lane of a warp, to a block of an activation row; cuda_kernels.h says how. */
#ifndef PEN_QUANTIZE_CUH
#define PEN_QUANTIZE_CUH

#include "device.cuh"

/* Stores block `block` of a row of `cols` values and returns what rounding left of x. */
__device__ inline float store_block(float x, unsigned char *row, int cols, int block) {
    int lane = threadIdx.x % WARP;
    /* On the bits, where NaN is above all. */
    unsigned bits = reduce_warp(larger(), __float_as_uint(x) & 0x7fffffffU);
    float largest = __uint_as_float(bits);
    bool finite = bits < 0x7f800000U, zero = largest < 0x1p-100F;
    int q = finite && !zero ? __float2int_rn(x * (127.0F / largest)) : 0;
    float scale = !finite ? __uint_as_float(0x7fc00000U) : zero ? 0 : largest / 127.0F;
    int total = q; /* of 16 lanes */
#pragma unroll
    for (int step = 1; step < WARP / 2; step *= 2) total += __shfl_xor_sync(ALL_LANES, total, step);
    int upper = __shfl_xor_sync(ALL_LANES, total, WARP / 2);
    row[PEN_CUDA_BLOCK * block + lane] = (unsigned char)(signed char)q;
    if (lane == 0) {
        pen_cuda_factor factor = {scale, {(short)total, (short)upper}};
        reinterpret_cast<pen_cuda_factor *>(row + cols)[block] = factor;
    }
    return x - scale * (float)q;
}

/* The same in as many parts as a row has. */
__device__ inline void store_parts(float x, unsigned char *row, size_t stride, int parts, int cols, int block) {
    for (int p = 0; p < parts; p++) x = store_block(x, row + stride * p, cols, block);
}

#endif
