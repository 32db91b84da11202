/* Weights and activation rows as 16-bit floats, row after row: what cuBLASLt multiplies. */
#include "weights.cuh"

enum { DEQUANTIZE_TILES = 8, ROUND_THREADS = 128 };

/* To f16, whose largest value stands for all that are larger; NaN stays. */
static __device__ unsigned f16_bits(float value) {
    const float largest = 65504;
    return __half_as_ushort(__float2half_rn(value > largest ? largest : value < -largest ? -largest : value));
}

static __device__ unsigned bf16_bits(float value) {
    unsigned bits = __float_as_uint(value);
    return value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fff;
}

/* A warp does a tile. */
template <int TYPE>
static __global__ void __launch_bounds__(WARP *DEQUANTIZE_TILES) dequantize_kernel(pen_cuda_dequantize_args args) {
    follow();
    int lane = threadIdx.x, tile = DEQUANTIZE_TILES * blockIdx.x + threadIdx.y, cols = args.w.cols;
    if (PEN_CUDA_BLOCK * tile >= cols) return;
    lane_values<TYPE> values(args.w, args.first / WARP + blockIdx.y, tile, lane);
#pragma unroll
    for (int s = 0; s < LANE_ROWS; s++) {
        int row = WARP * blockIdx.y + lane / 4 + 8 * s;
        if (row >= args.rows) continue;
#pragma unroll
        for (int run = 0; run < 2; run++) {
            unsigned bits[RUN];
#pragma unroll
            for (int i = 0; i < RUN; i++) bits[i] = f16_bits(values.at(s, RUN * run + i));
            uint16_t *to = args.out + (size_t)row * cols + PEN_CUDA_BLOCK * tile + values.run_at(lane % 4, run);
            *reinterpret_cast<uint2 *>(to) = make_uint2(bits[1] << 16 | bits[0], bits[3] << 16 | bits[2]);
        }
    }
}

struct dequantize_call {
    cudaStream_t stream;
    const pen_cuda_dequantize_args &args;

    template <int TYPE> void run() {
        if constexpr (TYPE != PEN_TYPE_F16 && TYPE != PEN_TYPE_BF16)
            launch(dequantize_kernel<TYPE>,
                   dim3((args.w.cols / PEN_CUDA_BLOCK + DEQUANTIZE_TILES - 1) / DEQUANTIZE_TILES,
                        (args.rows + WARP - 1) / WARP),
                   dim3(WARP, DEQUANTIZE_TILES), stream, args);
    }
};

void pen_cuda_launch_dequantize(cudaStream_t stream, const pen_cuda_dequantize_args *args) {
    for_type(args->w.type, dequantize_call{stream, *args});
}

/* A block does a row, a thread four values at a time. */
static __global__ void __launch_bounds__(ROUND_THREADS) round_kernel(pen_cuda_round_args args) {
    follow();
    const unsigned char *x = args.x + args.stride * args.parts * blockIdx.x;
    for (int at = RUN * threadIdx.x; at < args.cols; at += RUN * ROUND_THREADS) {
        float sums[RUN] = {0, 0, 0, 0};
        for (int p = 0; p < args.parts; p++) {
            const unsigned char *row = x + args.stride * p;
            char4 q = *reinterpret_cast<const char4 *>(row + at);
            float scale = reinterpret_cast<const pen_cuda_factor *>(row + args.cols)[at / PEN_CUDA_BLOCK].scale;
            sums[0] = fmaf(scale, (float)q.x, sums[0]), sums[1] = fmaf(scale, (float)q.y, sums[1]);
            sums[2] = fmaf(scale, (float)q.z, sums[2]), sums[3] = fmaf(scale, (float)q.w, sums[3]);
        }
        unsigned bits[RUN];
#pragma unroll
        for (int i = 0; i < RUN; i++) bits[i] = args.bf16 ? bf16_bits(sums[i]) : f16_bits(sums[i]);
        *reinterpret_cast<uint2 *>(args.out + (size_t)args.cols * blockIdx.x + at) =
            make_uint2(bits[1] << 16 | bits[0], bits[3] << 16 | bits[2]);
    }
}

void pen_cuda_launch_round(cudaStream_t stream, const pen_cuda_round_args *args) {
    launch(round_kernel, dim3(args->tokens), dim3(ROUND_THREADS), stream, *args);
}
