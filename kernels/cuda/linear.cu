/*
 * Everything that multiplies by a weight, and reading rows of one: plain kernels that honour the numeric contract of
 * cuda_kernels.h.
 *
 * A block of WARPS warps makes 32 outputs (a weight group) of up to ROWS activation rows: warp w takes every WARPS'th
 * span of K, and after each round the warps add the spans' sums to the totals, in the spans' order.
 */
#include "weights.cuh"

enum { WARPS = 8, SPAN_TILES = PEN_CUDA_SPAN / PEN_CUDA_BLOCK };

/* ---- The dot product of a span --------------------------------------------------------------------------------- */

__device__ static int dot4(const unsigned codes[4], int4 q, int i) {
    i = __dp4a((int)codes[0], q.x, i);
    i = __dp4a((int)codes[1], q.y, i);
    i = __dp4a((int)codes[2], q.z, i);
    return __dp4a((int)codes[3], q.w, i);
}

/* p += 32 values of the lane's row times those of an activation row. */
template <int TYPE>
__device__ float add_block(const lane_weights<TYPE> &w, const int4 q[2], const pen_cuda_factor &x, float p) {
    constexpr weight_traits t = traits_of<TYPE>::traits;
    int lower = dot4(w.words, q[0], 0) - t.code_zero() * x.sums[0];
    int upper = dot4(w.words + 4, q[1], 0) - t.code_zero() * x.sums[1];
    if constexpr (t.share == 32) {
        p = fmaf((float)(lower + upper), w.f.d[0] * x.scale, p);
        if constexpr (t.minima()) p = fmaf(w.f.m[0], x.scale * (float)(x.sums[0] + x.sums[1]), p);
        return p;
    }
    float both = fmaf((float)upper, w.f.d[1], (float)lower * w.f.d[0]);
    if constexpr (t.minima()) {
        both = fmaf(w.f.m[0], (float)x.sums[0], both);
        both = fmaf(w.f.m[1], (float)x.sums[1], both);
    }
    return fmaf(both, x.scale, p);
}

/* The 32 values that an activation block stands for, four at a time. */
template <bool F32> __device__ float4 x_values(const unsigned char *row, int cols, int tile, int four) {
    if (F32) return reinterpret_cast<const float4 *>(row)[8 * tile + four];
    char4 q = reinterpret_cast<const char4 *>(row)[8 * tile + four];
    float scale = reinterpret_cast<const pen_cuda_factor *>(row + cols)[tile].scale;
    return make_float4(scale * (float)q.x, scale * (float)q.y, scale * (float)q.z, scale * (float)q.w);
}

template <int TYPE, bool F32, int ROWS>
__device__ void dot_span(const pen_cuda_product_args &args, const unsigned char *group,
                         const unsigned char *const x[ROWS], int span, int lane, float p[ROWS]) {
    int end = min((span + 1) * SPAN_TILES, args.w.cols / PEN_CUDA_BLOCK);
    for (int tile = span * SPAN_TILES; tile < end; tile++) {
        lane_weights<TYPE> w(group, tile, lane);
        if constexpr (!F32 && traits_of<TYPE>::traits.quantised()) {
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const int4 *q = reinterpret_cast<const int4 *>(x[r]) + 2 * tile;
                p[r] = add_block(w, q, reinterpret_cast<const pen_cuda_factor *>(x[r] + args.w.cols)[tile], p[r]);
            }
        } else {
#pragma unroll
            for (int four = 0; four < 8; four++)
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    float4 v = x_values<F32>(x[r], args.w.cols, tile, four);
                    p[r] = fmaf(w.at(4 * four), v.x, p[r]);
                    p[r] = fmaf(w.at(4 * four + 1), v.y, p[r]);
                    p[r] = fmaf(w.at(4 * four + 2), v.z, p[r]);
                    p[r] = fmaf(w.at(4 * four + 3), v.w, p[r]);
                }
        }
    }
}

/* ---- The product ----------------------------------------------------------------------------------------------- */

__device__ static void put(const pen_cuda_product_args &args, int token, int n, float y) {
    if (args.bias) y += args.bias[n];
    if (args.softcap > 0) y = args.softcap * tanhf(y / args.softcap);
    float *out = args.out + (size_t)token * args.out_stride + n;
    *out = args.add ? *out + y : y;
}

template <int TYPE, bool F32, int ROWS>
static __global__ void __launch_bounds__(WARP *WARPS) product_kernel(pen_cuda_product_args args) {
    __shared__ float sums[WARPS][ROWS][WARP];
    int lane = threadIdx.x, warp = threadIdx.y, rows = args.tokens * args.parts, first = blockIdx.y * ROWS;
    const unsigned char *group = args.w.data + args.w.group_bytes * blockIdx.x, *x[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) x[r] = args.x + args.stride * min(first + r, rows - 1); /* past the end: unused */

    int spans = (args.w.cols + PEN_CUDA_SPAN - 1) / PEN_CUDA_SPAN;
    float total[2] = {0, 0}; /* of this warp's token, by part */
    for (int round = 0; round < spans; round += WARPS) {
        if (round + warp < spans) {
            float p[ROWS] = {};
            dot_span<TYPE, F32, ROWS>(args, group, x, round + warp, lane, p);
#pragma unroll
            for (int r = 0; r < ROWS; r++) sums[warp][r][lane] = p[r];
        }
        __syncthreads();
        for (int part = 0; part < args.parts && (warp + 1) * args.parts <= ROWS; part++)
            for (int w = 0; w < WARPS && round + w < spans; w++) total[part] += sums[w][warp * args.parts + part][lane];
        __syncthreads();
    }
    int token = first / args.parts + warp, n = WARP * blockIdx.x + lane;
    if ((warp + 1) * args.parts <= ROWS && token < args.tokens && n < args.w.rows)
        put(args, token, n, args.parts == 2 ? total[0] + total[1] : total[0]);
}

template <int TYPE, bool F32, int ROWS>
static void launch_rows(cudaStream_t stream, const pen_cuda_product_args &args) {
    dim3 grid((args.w.rows + WARP - 1) / WARP, (args.tokens * args.parts + ROWS - 1) / ROWS);
    launch(product_kernel<TYPE, F32, ROWS>, grid, dim3(WARP, WARPS), stream, args);
}

struct product_call {
    cudaStream_t stream;
    const pen_cuda_product_args &args;

    template <int TYPE, bool F32> void run_mode() {
        int rows = args.tokens * args.parts;
        if (rows == 1)
            launch_rows<TYPE, F32, 1>(stream, args);
        else if (rows == 2 && !F32) /* a fine row */
            launch_rows<TYPE, false, 2>(stream, args);
        else
            launch_rows<TYPE, F32, 8>(stream, args);
    }
    template <int TYPE> void run() {
        if (args.activations == PEN_ACTIVATIONS_F32)
            run_mode<TYPE, true>();
        else
            run_mode<TYPE, false>();
    }
};

void pen_cuda_launch_product(cudaStream_t stream, const pen_cuda_product_args *args) {
    for_type(args->w.type, product_call{stream, *args});
}

/* ---- Embedding ------------------------------------------------------------------------------------------------- */

/* A thread does the 32 values of a tile. */
enum { EMBED_THREADS = 64 };

template <int TYPE> static __device__ lane_weights<TYPE> tile_of(const pen_cuda_matrix &table, int row, int tile) {
    return lane_weights<TYPE>(table.data + table.group_bytes * (row / WARP), tile, row % WARP);
}

template <int TYPE> static __global__ void __launch_bounds__(EMBED_THREADS) embed_kernel(pen_cuda_embed_args args) {
    int cols = args.table.cols, row = blockIdx.x;
    for (int tile = threadIdx.x; tile < cols / PEN_CUDA_BLOCK; tile += EMBED_THREADS) {
        lane_weights<TYPE> w = tile_of<TYPE>(args.table, args.token[row], tile);
        float4 *x = reinterpret_cast<float4 *>(args.x + (size_t)row * cols + PEN_CUDA_BLOCK * tile);
#pragma unroll
        for (int i = 0; i < PEN_CUDA_BLOCK; i += 4)
            x[i / 4] = make_float4(args.scale * w.at(i), args.scale * w.at(i + 1), args.scale * w.at(i + 2),
                                   args.scale * w.at(i + 3));
    }
}

/* x += rows of a second table, by position. */
template <int TYPE>
static __global__ void __launch_bounds__(EMBED_THREADS) add_positions_kernel(pen_cuda_embed_args args) {
    int cols = args.table.cols, row = blockIdx.x;
    for (int tile = threadIdx.x; tile < cols / PEN_CUDA_BLOCK; tile += EMBED_THREADS) {
        float *x = args.x + (size_t)row * cols + PEN_CUDA_BLOCK * tile;
        lane_weights<TYPE> w = tile_of<TYPE>(args.positions, args.position[row], tile);
#pragma unroll
        for (int i = 0; i < PEN_CUDA_BLOCK; i++) x[i] += w.at(i);
    }
}

struct embed_call {
    cudaStream_t stream;
    const pen_cuda_embed_args &args;
    bool positions;

    template <int TYPE> void run() {
        launch(positions ? add_positions_kernel<TYPE> : embed_kernel<TYPE>, dim3(args.count), dim3(EMBED_THREADS),
               stream, args);
    }
};

void pen_cuda_launch_embed(cudaStream_t stream, const pen_cuda_embed_args *args) {
    for_type(args->table.type, embed_call{stream, *args, false});
    if (args->positions.data) for_type(args->positions.type, embed_call{stream, *args, true});
}
