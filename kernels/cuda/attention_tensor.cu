/*
 * Attention over half pages by tensor cores, for prompts and decodes alike.
 *
 * One arithmetic serves both, so that the numeric contract holds without a second path: queries are rounded to f16,
 * scores are f32 sums of their products with the keys, weights are relative to the span's largest score and rounded to
 * f16, and values are added up in f32, 16 positions of a KV block at a time. An element of a product depends on its own
 * row and column only (tensor.cuh), so a query may sit in a tile of 16 with none beside it, or in one of 64.
 *
 * A block of four warps has ROWS queries and goes through a span at a time. First each warp makes the scores of 32 of
 * its 128 positions; the weights meet in shared memory; then each warp adds up a quarter of the dimensions over all
 * positions. So a block reads every key and value once, 16 bytes a lane, straight into the operands' registers: pages
 * are laid out for that (cuda_kernels.h), and no shared memory lies between. Which position is which column, and which
 * dimension which k, is free: lane 4·g + t has dimensions 8·(4·j + t) … + 7 of a key, positions 4·t … 4·t + 3 of a
 * block, and dimensions 16·m + 4·t … + 3 of a result.
 *
 * What is not finite in a value may also spoil the rows before it in the same chunk, which multiply it by 0.
 */
#include "attention.cuh"
#include "quantize.cuh"
#include "tensor.cuh"

enum { WARPS = ATTENTION_THREADS / WARP, BLOCKS = SPAN / PEN_KV_BLOCK };
static_assert(BLOCKS == 2 * WARPS, "a warp makes the scores of two KV blocks");

/* TILES of 16 queries; PAIRS times 64 dimensions at most. Rows are padded so that lanes read different banks. */
template <int TILES, int PAIRS> struct tensor_memory {
    enum { ROWS = 16 * TILES, DIMS = 64 * PAIRS, Q_PITCH = DIMS + 32, PITCH = SPAN + 16 };
    struct operands {
        unsigned q[ROWS][Q_PITCH / 2], weights[ROWS][PITCH / 2]; /* pairs of f16 */
    };
    union {
        uint4 aligned;
        operands in;
        float out[ROWS][DIMS];
    };
    float max[WARPS][ROWS], sum[WARPS][ROWS];
    int first[ROWS], end[ROWS]; /* positions that a query sees */
};

__device__ static unsigned pair_of(float low, float high) {
    return (unsigned)__half_as_ushort(__float2half_rn(low)) | (unsigned)__half_as_ushort(__float2half_rn(high)) << 16;
}

/* Reduces over the four lanes that have a row. */
template <class Op> __device__ float reduce_row(Op op, float x) {
    x = op(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return op(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

template <int TILES, int PAIRS> struct tensor_way {
    typedef tensor_memory<TILES, PAIRS> memory;
    const pen_cuda_attention_args &args;
    const queries q;
    const sight s;
    memory &shared;
    int warp, g, t;
    /* Of rows 16·tile + g and 16·tile + g + 8; values[..][pair][e][2·half + b] is dimension 4·t + 2·b + e of the pair's
     * 16. */
    float max[TILES][2], sum[TILES][2], values[TILES][PAIRS][2][4];

    __device__ tensor_way(const pen_cuda_attention_args &args_, const queries &q_, const sight &s_, memory &shared_)
        : args(args_), q(q_), s(s_), shared(shared_), warp(threadIdx.x / WARP), g(threadIdx.x % WARP / 4),
          t(threadIdx.x % 4) {
        int size = args.pages.head_size;
        for (int i = threadIdx.x; i < memory::ROWS * memory::Q_PITCH / 2; i += ATTENTION_THREADS) {
            int n = i / (memory::Q_PITCH / 2), d = 2 * (i % (memory::Q_PITCH / 2));
            float x = 0, y = 0;
            if (n < q.count) {
                const float *from =
                    args.qkv + ((size_t)q.row(n) * (args.heads + 2 * args.pages.kv_heads) + q.head(n)) * size;
                if (d < size) x = from[d];
                if (d + 1 < size) y = from[d + 1];
            }
            shared.in.q[n][d / 2] = pair_of(x, y);
        }
        for (int n = threadIdx.x; n < memory::ROWS; n += ATTENTION_THREADS) {
            shared.first[n] = n < q.count ? row_first(args, q.row(n)) : 0;
            shared.end[n] = n < q.count ? row_end(args, q.row(n)) : 0;
        }
        __syncthreads();
        start();
    }

    __device__ void start() {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                max[tile][half] = -INFINITY;
                sum[tile][half] = 0;
#pragma unroll
                for (int i = 0; i < 4 * PAIRS; i++) values[tile][i / 4][i % 2][2 * half + i / 2 % 2] = 0;
            }
    }

    __device__ bool used(int tile) const {
        return 16 * tile < q.count;
    }

    /* Scores of this warp's two KV blocks: scores[tile][2·block + i][2·half + b] is position 4·t + 2·i + b. */
    __device__ void score(int base, float scores[TILES][4][4]) {
        const uint4 *pages[2];
#pragma unroll
        for (int b = 0; b < 2; b++) {
            int position = base + PEN_KV_BLOCK * (2 * warp + b);
            bool seen = position < s.end && position + PEN_KV_BLOCK > s.begin;
            pages[b] = !seen ? NULL
                             : reinterpret_cast<const uint4 *>(args.pages.k) +
                                   page_of(args.pages, s.table[position / PEN_KV_BLOCK], q.kv_head) / 8 +
                                   (4 * (g / 2) + g % 2);
        }
        if (!pages[0] && !pages[1]) return;
#pragma unroll 2
        for (int j = 0; 32 * j < args.pages.width; j++) {
            int piece = 4 * j + t;
            uint4 k[4];
#pragma unroll
            for (int n = 0; n < 4; n++)
                k[n] = pages[n / 2] && 8 * piece < args.pages.width ? pages[n / 2][PEN_KV_BLOCK * piece + 2 * (n % 2)]
                                                                    : uint4{0, 0, 0, 0};
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                if (!used(tile)) break;
                uint4 upper = *reinterpret_cast<const uint4 *>(&shared.in.q[16 * tile + g][4 * piece]);
                uint4 lower = *reinterpret_cast<const uint4 *>(&shared.in.q[16 * tile + g + 8][4 * piece]);
                const unsigned a[2][4] = {{upper.x, lower.x, upper.y, lower.y}, {upper.z, lower.z, upper.w, lower.w}};
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    const unsigned b[2][2] = {{k[n].x, k[n].y}, {k[n].z, k[n].w}};
                    mma_f16(scores[tile][n], a[0], b[0]);
                    mma_f16(scores[tile][n], a[1], b[1]);
                }
            }
        }
    }

    /* Scales and masks; the warp's largest of each row goes to shared.max. */
    __device__ void mask(int base, float scores[TILES][4][4]) {
        float scale = args.softcap > 0 ? args.scale / args.softcap : args.scale;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = 16 * tile + g + 8 * half, first = shared.first[row], end = shared.end[row];
                float most = -INFINITY;
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    float &x = scores[tile][i / 2][2 * half + i % 2];
                    int position = base + PEN_KV_BLOCK * (2 * warp + i / 4) + 4 * t + i % 4;
                    x *= scale;
                    if (args.softcap > 0) x = args.softcap * tanhf(x);
                    if (position < first || position >= end) x = -INFINITY;
                    most = fmaxf(most, x);
                }
                most = reduce_row(larger(), most);
                if (t == 0) shared.max[warp][row] = most;
            }
    }

    /* Weights go to shared memory, their sums to shared.sum; `most` gets the span's largest scores. */
    __device__ void soften(const float scores[TILES][4][4], float most[TILES][2]) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = 16 * tile + g + 8 * half;
                float largest = shared.max[0][row], total = 0;
                for (int w = 1; w < WARPS; w++) largest = fmaxf(largest, shared.max[w][row]);
                most[tile][half] = largest;
#pragma unroll
                for (int i = 0; i < 8; i += 2) {
                    float pair[2];
#pragma unroll
                    for (int b = 0; b < 2; b++) {
                        float x = scores[tile][i / 2][2 * half + b];
                        pair[b] = x == -INFINITY ? 0 : __half2float(__float2half_rn(expf(x - largest)));
                        total += pair[b];
                    }
                    shared.in.weights[row][PEN_KV_BLOCK / 2 * (2 * warp + i / 4) + 2 * t + i / 2 % 2] =
                        pair_of(pair[0], pair[1]);
                }
                total = reduce_row(::sum(), total);
                if (t == 0) shared.sum[warp][row] = total;
            }
    }

    /* The halves of a pair of positions that [begin, end) has. */
    __device__ unsigned visible(int position) const {
        return (position >= s.begin && position < s.end ? 0xffffU : 0) |
               (position + 1 >= s.begin && position + 1 < s.end ? 0xffff0000U : 0);
    }

    /* This warp's dimensions of the weighted values. */
    __device__ void weigh(int base, float out[TILES][PAIRS][2][4]) {
        int begin = (::max(base, s.begin) - base) / PEN_KV_BLOCK;
        int end = (::min(base + SPAN, s.end) - base + PEN_KV_BLOCK - 1) / PEN_KV_BLOCK;
#pragma unroll(PAIRS > 4 ? 1 : PAIRS > 2 ? 2 : 4)
        for (int block = begin; block < end; block++) {
            int position = base + PEN_KV_BLOCK * block;
            const uint4 *page = reinterpret_cast<const uint4 *>(args.pages.v) +
                                page_of(args.pages, s.table[position / PEN_KV_BLOCK], q.kv_head) / 8;
            bool whole = position >= s.begin && position + PEN_KV_BLOCK <= s.end;
            uint4 v[PAIRS];
#pragma unroll
            for (int i = 0; i < PAIRS; i++) {
                int m = warp + WARPS * i;
                v[i] = 16 * m < args.pages.width ? page[(8 * m + g) * 4 + t] : uint4{0, 0, 0, 0};
                if (whole) continue; /* what nobody wrote may be NaN, and 0 times that is NaN, too */
                unsigned low = visible(position + 4 * t), high = visible(position + 4 * t + 2);
                v[i] = uint4{v[i].x & low, v[i].y & high, v[i].z & low, v[i].w & high};
            }
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                if (!used(tile)) break;
                int word = PEN_KV_BLOCK / 2 * block + 2 * t;
                uint2 upper = *reinterpret_cast<const uint2 *>(&shared.in.weights[16 * tile + g][word]);
                uint2 lower = *reinterpret_cast<const uint2 *>(&shared.in.weights[16 * tile + g + 8][word]);
                const unsigned a[4] = {upper.x, lower.x, upper.y, lower.y};
#pragma unroll
                for (int i = 0; i < PAIRS; i++) {
                    const unsigned even[2] = {v[i].x, v[i].y}, odd[2] = {v[i].z, v[i].w};
                    mma_f16(out[tile][i][0], a, even);
                    mma_f16(out[tile][i][1], a, odd);
                }
            }
        }
    }

    __device__ void span(int number) {
        int base = number * SPAN;
        float scores[TILES][4][4] = {}, most[TILES][2], out[TILES][PAIRS][2][4] = {};
        score(base, scores);
        mask(base, scores);
        __syncthreads();
        soften(scores, most);
        __syncthreads();
        weigh(base, out);
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float total = 0;
                for (int w = 0; w < WARPS; w++) total += shared.sum[w][16 * tile + g + 8 * half];
                merge(tile, half, most[tile][half], total, out[tile]);
            }
    }

    /* Takes the softmax of a row over a next span into that over the spans before. */
    __device__ void merge(int tile, int half, float next, float total, const float out[PAIRS][2][4]) {
        if (next == -INFINITY) return;
        float most = fmaxf(max[tile][half], next), keep = expf(max[tile][half] - most), take = expf(next - most);
        max[tile][half] = most;
        sum[tile][half] = fmaf(sum[tile][half], keep, total * take);
#pragma unroll
        for (int i = 0; i < 4 * PAIRS; i++) {
            float &value = values[tile][i / 4][i % 2][2 * half + i / 2 % 2];
            value = fmaf(value, keep, out[i / 4][i % 2][2 * half + i / 2 % 2] * take);
        }
    }

    /* Calls go(tile, half, n) for this thread's queries, and for each of a query's four dimensions at a time
     * at(pair, d). */
    template <class Go> __device__ void each_query(Go go) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int n = 16 * tile + g + 8 * half;
                if (n < q.count) go(tile, half, n);
            }
    }
    __device__ int dimension(int pair) const {
        return 16 * (warp + WARPS * pair) + 4 * t;
    }

    template <class Place> __device__ void put(Place place) {
        int width = args.pages.width;
        each_query([&](int tile, int half, int n) {
            float *to = place(n);
            if (warp == 0 && t == 0) to[width] = max[tile][half], to[width + 1] = sum[tile][half];
#pragma unroll
            for (int i = 0; i < PAIRS; i++) {
                const float(*from)[4] = values[tile][i];
                if (dimension(i) < width)
                    *reinterpret_cast<float4 *>(to + dimension(i)) =
                        make_float4(from[0][2 * half], from[1][2 * half], from[0][2 * half + 1], from[1][2 * half + 1]);
            }
        });
    }

    template <class Place> __device__ void take(Place place) {
        int width = args.pages.width;
        each_query([&](int tile, int half, int n) {
            const float *from = place(n);
            float out[PAIRS][2][4];
#pragma unroll
            for (int i = 0; i < PAIRS; i++) {
                float4 x = make_float4(0, 0, 0, 0);
                if (dimension(i) < width) x = __ldcg(reinterpret_cast<const float4 *>(from + dimension(i)));
                out[i][0][2 * half] = x.x;
                out[i][1][2 * half] = x.y;
                out[i][0][2 * half + 1] = x.z;
                out[i][1][2 * half + 1] = x.w;
            }
            merge(tile, half, __ldcg(from + width), __ldcg(from + width + 1), out);
        });
    }

    /* Divides by the sum of weights; then a warp has 32 dimensions of a query at a time. */
    __device__ void finish() {
        int size = args.pages.head_size, lane = threadIdx.x % WARP;
        __syncthreads(); /* the operands have been read */
        each_query([&](int tile, int half, int n) {
            float scale = 1 / sum[tile][half];
#pragma unroll
            for (int i = 0; i < 4 * PAIRS; i++)
                shared.out[n][dimension(i / 4) + i % 4] = values[tile][i / 4][i % 2][2 * half + i / 2 % 2] * scale;
        });
        __syncthreads();
        int pieces = (size + WARP - 1) / WARP;
        for (int i = warp; i < q.count * pieces; i += WARPS) {
            int n = i / pieces, d = i % pieces * WARP + lane, first = q.head(n) * size;
            unsigned char *row = args.out + args.stride * q.row(n);
            float x = shared.out[n][d];
            if (args.rounded)
                store_block(x, row, args.heads * size, (first + d) / WARP);
            else if (d < size)
                reinterpret_cast<float *>(row)[first + d] = x;
        }
    }
};

template <int TILES, int PAIRS>
static __global__ void __launch_bounds__(ATTENTION_THREADS, TILES *PAIRS <= 2 ? 4 : 2)
    tensor_kernel(pen_cuda_attention_args args) {
    follow();
    __shared__ tensor_memory<TILES, PAIRS> memory;
    attend<tensor_way<TILES, PAIRS>>(args, memory);
}

void pen_cuda_launch_tensor_attention(cudaStream_t stream, const pen_cuda_attention_args *args) {
    dim3 grid(args->tile_count, args->chunks, args->blocks), block(ATTENTION_THREADS);
    bool small = args->queries == PEN_CUDA_TILE_QUERIES;
    int width = args->pages.width;
    if (width <= 64)
        launch(small ? tensor_kernel<1, 1> : tensor_kernel<4, 1>, grid, block, stream, *args);
    else if (width <= 128)
        launch(small ? tensor_kernel<1, 2> : tensor_kernel<4, 2>, grid, block, stream, *args);
    else if (width <= 256)
        launch(small ? tensor_kernel<1, 4> : tensor_kernel<2, 4>, grid, block, stream, *args);
    else
        launch(tensor_kernel<1, 8>, grid, block, stream, *args);
}
