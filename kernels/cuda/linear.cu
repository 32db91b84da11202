/*
 * Products of activation rows with weights, for any number of rows, with the bits of the numeric contract of
 * cuda_kernels.h. Two kernels:
 *
 * product_kernel, for few rows, reads the weights of a group of 32 rows once for up to COLS activation rows. Its time
 * is that of the memory, so what counts is bytes on their way: latency × bandwidth, on an H100 700 ns × 3.35 TB/s ≈ 2.3
 * MB, 18 kB for each of 132 SMs, and twice that to be safe. A warp loads up to four tiles of its span before it uses
 * the first, in pieces of 16 bytes where the type allows: 2.3 kB of Q4_K, 4 kB of BF16. The spans of a group are shared
 * out among the warps of its block, which adds the spans' sums in their order. pen_cuda_launch_product chooses how many
 * warps these are, so that all blocks are at work at the same time, with 16 to 24 warps on an SM where the matrix is
 * large enough: 37 to 55 kB of Q4_K on their way, 64 to 96 kB of BF16.
 *
 * wide_kernel, for many rows, is bound by arithmetic and by what passes from the L2 cache: a block makes 128 rows of
 * the result for 32 activation rows. Each warp walks along all of K by itself and keeps its sums to itself; the four
 * warps of a block read the same activations at about the same time, so that most of them come from the L1 cache.
 */
#include "quantize.cuh"
#include "tensor.cuh"
#include "weights.cuh"

enum { SPAN_TILES = PEN_CUDA_SPAN / PEN_CUDA_BLOCK, MIN_WARPS = 4 };
enum { WIDE_WARPS = 4, WIDE_COLS = 32, WIDE_BLOCKS_ON_SM = 3 };

/* What ptxas can keep in registers differs a little between architectures, as tests/gpu/spills.sh tells. From sm_100 on
 * it wants more of them, so blocks get the registers of one that is not there. */
#ifdef __CUDA_ARCH__
enum { ARCHITECTURE = __CUDA_ARCH__ };
#else
enum { ARCHITECTURE = 0 };
#endif
static constexpr int blocks_for_registers(int blocks) {
    return ARCHITECTURE >= 1000 && blocks > 1 ? blocks - 1 : blocks;
}

/* Whether tensor cores multiply: not where activations or weights are f32. */
template <int TYPE, bool F32> constexpr bool on_tensor_cores = !F32 && TYPE != PEN_TYPE_F32;

/* ---- Activation rows ------------------------------------------------------------------------------------------- */

/* Up to COLS activation rows, which are columns of a product, as the lanes of a warp read them. Lane 4·g + t reads the
 * values of columns g, g + 8, …, and has the sums of EACH columns from 2t, from 2t + 8, …: SUMS for each weight row.
 * Columns past the last repeat it; nobody wants their sums. */
template <int COLS> struct columns {
    enum { TILES = (COLS + 7) / 8, EACH = COLS == 1 ? 1 : 2, SUMS = TILES * EACH };
    const unsigned char *first;
    unsigned stride;  /* in bytes; 32 bits, as all of a batch's rows have, keep registers free */
    int count, width; /* of columns, and of values in one */

    template <class T> __device__ T load(int column, int offset) const {
        unsigned from = min(column, count - 1);
        return *reinterpret_cast<const T *>(first + (stride * from + offset));
    }
};

/* A pen_cuda_factor, loaded at once. */
struct column_factor {
    float scale;
    int sums[2];
};
template <int COLS> __device__ column_factor load_factor(const columns<COLS> &x, int column, int tile) {
    uint2 bits = x.template load<uint2>(column, x.width + tile * (int)sizeof(pen_cuda_factor));
    return {__uint_as_float(bits.x), {(short)bits.y, (short)(bits.y >> 16)}};
}

/* ---- The dot product of a span: p[s][c] += Σ over its values, of row g + 8s and the lane's c'th column ----------- */

/* A sum of products below 2^22 starts from here, the bits of 1.5·2^23: the sum's bits are then a float. */
static const int SUM_START = 0x4b400000;
__device__ static float float_of_sum(int sum) {
    return __uint_as_float((unsigned)sum) - 0x1.8p23F;
}

/* Sums of two weight rows and two columns, of 32 values or 16, without the type's zero. */
template <int ZERO, bool HALF>
__device__ static void exact_sums(const unsigned *codes, const unsigned b[2], const int x_sums[2], float sums[4]) {
    int i[4];
#pragma unroll
    for (int e = 0; e < 4; e++) i[e] = SUM_START - ZERO * x_sums[e % 2];
    if constexpr (HALF) {
        const unsigned a[2] = {codes[0], codes[2]};
        mma_s8_k16(i, a, b[0]);
    } else {
        const unsigned a[4] = {codes[0], codes[2], codes[1], codes[3]};
        mma_s8_k32(i, a, b);
    }
#pragma unroll
    for (int e = 0; e < 4; e++) sums[e] = float_of_sum(i[e]);
}

template <int TYPE, int COLS>
__device__ void add_codes(const packed_tile<TYPE> &w, const columns<COLS> &x, int tile, int lane,
                          float (&p)[LANE_ROWS][columns<COLS>::SUMS]) {
    typedef columns<COLS> cols;
    constexpr weight_traits t = traits_of<TYPE>::traits;
    constexpr bool halves = t.share == 16;
    unsigned codes[8];
    w.codes(codes);
    factors f = w.scales();
#pragma unroll
    for (int j = 0; j < cols::TILES; j++) {
        int at = PEN_CUDA_BLOCK * tile + 4 * (lane % 4);
        const unsigned b[2] = {x.template load<unsigned>(8 * j + lane / 4, at),
                               x.template load<unsigned>(8 * j + lane / 4, at + 16)};
        column_factor factor[2];
#pragma unroll
        for (int e = 0; e < 2; e++) factor[e] = load_factor(x, 8 * j + 2 * (lane % 4) + (e < cols::EACH ? e : 0), tile);
        const int lower[2] = {factor[0].sums[0], factor[1].sums[0]}, upper[2] = {factor[0].sums[1], factor[1].sums[1]};
        const int both[2] = {lower[0] + upper[0], lower[1] + upper[1]};
#pragma unroll
        for (int m = 0; m < 2; m++) {
            float sums[4], more[4];
            exact_sums<t.code_zero(), halves>(codes + 4 * m, b, halves ? lower : both, sums);
            if constexpr (halves) exact_sums<t.code_zero(), true>(codes + 4 * m + 1, b + 1, upper, more);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (i % 2 >= cols::EACH) continue;
                const int s = 2 * m + i / 2, e = i % 2;
                float &to = p[s][cols::EACH * j + e], scale = factor[e].scale;
                if constexpr (!halves) {
                    to = fmaf(sums[i], f.d[s][0] * scale, to);
                    if constexpr (t.minima()) to = fmaf(f.m[s][0], scale * (float)both[e], to);
                } else {
                    float sum = fmaf(more[i], f.d[s][1], sums[i] * f.d[s][0]);
                    if constexpr (t.minima()) {
                        sum = fmaf(f.m[s][0], (float)lower[e], sum);
                        sum = fmaf(f.m[s][1], (float)upper[e], sum);
                    }
                    to = fmaf(sum, scale, to);
                }
            }
        }
    }
}

/* Numbers of 16 bits: the codes of activations are whole numbers in them, too. */
template <int TYPE, int COLS>
__device__ void add_numbers(const plain_tile<TYPE> &w, const columns<COLS> &x, int tile, int lane,
                            float (&p)[LANE_ROWS][columns<COLS>::SUMS]) {
    typedef columns<COLS> cols;
    constexpr bool bf16 = TYPE == PEN_TYPE_BF16;
#pragma unroll
    for (int j = 0; j < cols::TILES; j++) {
        uint2 q = x.template load<uint2>(8 * j + lane / 4, PEN_CUDA_BLOCK * tile + 8 * (lane % 4));
        unsigned b[4];
        widen<bf16>(q.x, b), widen<bf16>(q.y, b + 2);
        column_factor factor[2];
#pragma unroll
        for (int e = 0; e < cols::EACH; e++) factor[e] = load_factor(x, 8 * j + 2 * (lane % 4) + e, tile);
#pragma unroll
        for (int m = 0; m < 2; m++) {
            float sums[4] = {0, 0, 0, 0};
#pragma unroll
            for (int step = 0; step < 2; step++) {
                const unsigned a[4] = {w.words[2 * m][2 * step], w.words[2 * m + 1][2 * step],
                                       w.words[2 * m][2 * step + 1], w.words[2 * m + 1][2 * step + 1]};
                if constexpr (bf16)
                    mma_bf16(sums, a, b + 2 * step);
                else
                    mma_f16(sums, a, b + 2 * step);
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (i % 2 < cols::EACH) {
                    float &to = p[2 * m + i / 2][cols::EACH * j + i % 2];
                    to = fmaf(sums[i], factor[i % 2].scale, to);
                }
        }
    }
}

template <int TYPE, int COLS>
__device__ void add_tile(const lane_tile<TYPE> &w, const columns<COLS> &x, int tile, int lane,
                         float (&p)[LANE_ROWS][columns<COLS>::SUMS]) {
    if constexpr (traits_of<TYPE>::traits.quantised())
        add_codes<TYPE>(w, x, tile, lane, p);
    else
        add_numbers<TYPE>(w, x, tile, lane, p);
}

/* AHEAD tiles are loaded before the first is used; of a span that is short, the last one instead of those behind it. */
template <int AHEAD, int TYPE, int COLS>
__device__ void dot_on_tensor_cores(const pen_cuda_matrix &w, int group, const columns<COLS> &x, int first, int count,
                                    int lane, float (&p)[LANE_ROWS][columns<COLS>::SUMS]) {
    typedef lane_tile<TYPE> lane_part;
    if constexpr (traits_of<TYPE>::traits.large()) count = SPAN_TILES;
    typename lane_part::place from = lane_part::find(w, group, first, lane);
    lane_part tiles[AHEAD];
#pragma unroll 1
    for (int begin = 0; begin < SPAN_TILES; begin += AHEAD) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) tiles[i].load(from, min(begin + i, count - 1), lane);
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (begin + i < count) add_tile<TYPE>(tiles[i], x, first + begin + i, lane, p);
    }
}

/* Four values of a column that an activation row stands for. */
template <bool F32, int COLS> __device__ float4 x_values(const columns<COLS> &x, int column, int at) {
    if constexpr (F32) {
        return x.template load<float4>(column, at * (int)sizeof(float));
    } else {
        char4 q = x.template load<char4>(column, at);
        float scale = load_factor(x, column, at / PEN_CUDA_BLOCK).scale;
        return make_float4(scale * (float)q.x, scale * (float)q.y, scale * (float)q.z, scale * (float)q.w);
    }
}

/* Each lane multiplies its own values of its rows with those of all columns; then the four that share a row add up. */
template <int TYPE, bool F32, int COLS>
__device__ void dot_in_order(const pen_cuda_matrix &w, int group, const columns<COLS> &x, int first, int count,
                             int lane, float (&p)[LANE_ROWS][columns<COLS>::SUMS]) {
    float sums[LANE_ROWS][COLS] = {};
    for (int tile = first; tile < first + count; tile++) {
        lane_values<TYPE> values(w, group, tile, lane);
#pragma unroll
        for (int run = 0; run < 2; run++)
#pragma unroll
            for (int c = 0; c < COLS; c++) {
                float4 v = x_values<F32>(x, c, PEN_CUDA_BLOCK * tile + values.run_at(lane % 4, run));
#pragma unroll
                for (int s = 0; s < LANE_ROWS; s++) {
                    sums[s][c] = fmaf(values.at(s, RUN * run), v.x, sums[s][c]);
                    sums[s][c] = fmaf(values.at(s, RUN * run + 1), v.y, sums[s][c]);
                    sums[s][c] = fmaf(values.at(s, RUN * run + 2), v.z, sums[s][c]);
                    sums[s][c] = fmaf(values.at(s, RUN * run + 3), v.w, sums[s][c]);
                }
            }
    }
#pragma unroll
    for (int s = 0; s < LANE_ROWS; s++)
#pragma unroll
        for (int c = 0; c < COLS; c++) {
            float total = sums[s][c];
            total += __shfl_xor_sync(ALL_LANES, total, 1);
            total += __shfl_xor_sync(ALL_LANES, total, 2);
            if (c / 2 == lane % 4) p[s][c % 2] = total;
        }
}

template <int AHEAD, int TYPE, bool F32, int COLS>
__device__ void dot_span(const pen_cuda_matrix &w, int group, const columns<COLS> &x, int span, int lane,
                         float (&p)[LANE_ROWS][columns<COLS>::SUMS]) {
    int first = span * SPAN_TILES, count = min((int)SPAN_TILES, w.cols / PEN_CUDA_BLOCK - first);
    if constexpr (on_tensor_cores<TYPE, F32>)
        dot_on_tensor_cores<AHEAD, TYPE>(w, group, x, first, count, lane, p);
    else
        dot_in_order<TYPE, F32>(w, group, x, first, count, lane, p);
}

/* ---- Where results go ------------------------------------------------------------------------------------------ */

/* A group of 32 rows of the matrices side by side: of which one, and where the results of that one begin. */
struct place {
    int matrix, group, column;
};

__host__ __device__ static int groups_of(const pen_cuda_matrix &w) {
    return (w.rows + WARP - 1) / WARP;
}

__device__ static place find_group(const pen_cuda_product_args &args, int group) {
    place at = {0, group, 0};
    for (; at.matrix + 1 < args.count && at.group >= groups_of(args.w[at.matrix]); at.matrix++) {
        at.group -= groups_of(args.w[at.matrix]);
        at.column += args.w[at.matrix].rows;
    }
    return at;
}

__device__ static float with_bias(const float *bias, int n, float y) {
    return bias ? y + bias[n] : y;
}

/* Row n of the matrix, for a token. */
__device__ static void put(const pen_cuda_product_args &args, const place &at, int token, int n, float y) {
    if (n >= args.w[at.matrix].rows) return;
    y = with_bias(args.bias[at.matrix], n, y);
    if (args.softcap > 0) y = args.softcap * tanhf(y / args.softcap);
    float *out = args.out + (size_t)token * args.out_stride + at.column + n;
    *out = args.add ? *out + y : y;
}

/* A warp's 32 values of gate and up make one block of an activation row. */
__device__ static void put_activated(const pen_cuda_product_args &args, int group, int token, float gate, float up) {
    int cols = args.w[0].rows, n = WARP * group + (int)threadIdx.x;
    up = with_bias(args.bias[args.count - 1], n, up);
    float y = args.count == 2 ? activate(with_bias(args.bias[0], n, gate), args.act) * up : activate(up, args.act);
    unsigned char *row = args.activated + args.activated_stride * token;
    if (args.activations == PEN_ACTIVATIONS_FAST)
        store_block(y, row, cols, group);
    else
        reinterpret_cast<float *>(row)[n] = y;
}

/* ---- Few rows -------------------------------------------------------------------------------------------------- */

/* Tiles that there are registers for before the first is used. */
static constexpr int tiles_ahead(const weight_traits &t, int cols) {
    bool two_scales = t.share == 16 && !t.minima();
    if (two_scales && (ARCHITECTURE >= 1000 ? cols == 16 : ARCHITECTURE < 900 && cols == 1)) return SPAN_TILES / 2;
    if (cols == 32 && (t.share == 16 || t.bits > 4 || (ARCHITECTURE < 900 && t.large()))) return 1;
    return cols == 32 || !t.quantised() || (cols == 1 && t.bits > 5) ? SPAN_TILES / 2 : SPAN_TILES;
}

/* Sums of a span are kept as [column][32 rows], with a stride that spreads what a warp writes over all banks. Where
 * there is room for two rounds of them, no warp has to wait before it writes the next. */
template <int TYPE, bool F32, int COLS> struct block_shape {
    enum {
        WARPS = COLS == 1 && on_tensor_cores<TYPE, F32> ? 24
                : COLS == 32                            ? 8
                                                        : 16,
        ON_SM = COLS == 32 ? 2 : 1, /* blocks of this size */
        ROUNDS = COLS > 8 ? 1 : 2,
        AHEAD = tiles_ahead(traits_of<TYPE>::traits, COLS),
        STRIDE = WARP + 4
    };
    typedef float span_sums[COLS][STRIDE];
};

template <int TYPE, bool F32, int COLS>
static __global__ void __launch_bounds__(WARP *(block_shape<TYPE, F32, COLS>::WARPS),
                                         blocks_for_registers(block_shape<TYPE, F32, COLS>::ON_SM))
    product_kernel(pen_cuda_product_args args) {
    typedef block_shape<TYPE, F32, COLS> shape;
    typedef columns<COLS> cols;
    __shared__ typename shape::span_sums sums[shape::ROUNDS][shape::WARPS];
    __shared__ float totals[2][COLS][WARP];
    int lane = threadIdx.x, warp = threadIdx.y, warps = blockDim.y, first = blockIdx.x * COLS;
    place at = {0, (int)blockIdx.y, 0};
    if (!args.activated) at = find_group(args, blockIdx.y);
    cols x = {args.x + args.stride * first, (unsigned)args.stride, min(args.tokens * args.parts - first, COLS),
              args.w[0].cols};
    int matrices = args.activated ? args.count : 1, spans = (x.width + PEN_CUDA_SPAN - 1) / PEN_CUDA_SPAN;
    for (int c = warp; c < x.count; c += warps) totals[0][c][lane] = totals[1][c][lane] = 0;

    /* Weights do not depend on the kernel before, which may not have ended: the first are asked for already. */
    if (warp < matrices * spans) {
        typedef lane_tile<TYPE> lane_part;
        int tile = warp % spans * SPAN_TILES, count = min((int)SPAN_TILES, x.width / PEN_CUDA_BLOCK - tile);
        const pen_cuda_matrix &w = args.w[at.matrix + warp / spans];
        lane_part::prefetch(lane_part::find(w, at.group, tile, lane), count, lane);
    }
    follow();

    /* The spans of the matrix, or of gate and then of up, are dealt to the warps in turn. */
    for (int round = 0, buffer = 0; round < matrices * spans; round += warps, buffer ^= shape::ROUNDS - 1) {
        int own = round + warp;
        if (own < matrices * spans) {
            float p[LANE_ROWS][cols::SUMS] = {};
            dot_span<shape::AHEAD, TYPE, F32>(args.w[at.matrix + own / spans], at.group, x, own % spans, lane, p);
#pragma unroll
            for (int s = 0; s < LANE_ROWS; s++)
#pragma unroll
                for (int c = 0; c < cols::SUMS; c++) {
                    int column = 8 * (c / cols::EACH) + 2 * (lane % 4) + c % cols::EACH;
                    if (column < COLS) sums[buffer][warp][column][lane / 4 + 8 * s] = p[s][c];
                }
        }
        __syncthreads();
        for (int c = warp; c < x.count; c += warps)
            for (int m = 0; m < matrices; m++) {
                float total = totals[m][c][lane];
                for (int i = max(m * spans - round, 0); i < min((m + 1) * spans - round, warps); i++)
                    total += sums[buffer][i][c][lane];
                totals[m][c][lane] = total;
            }
        if (shape::ROUNDS == 1) __syncthreads();
    }
    __syncthreads();
    for (int token = warp; token < x.count / args.parts; token += warps) {
        auto sum_of = [&](int m) {
            float y = totals[m][args.parts * token][lane];
            return args.parts == 2 ? y + totals[m][2 * token + 1][lane] : y;
        };
        if (args.activated)
            put_activated(args, at.group, first / args.parts + token, sum_of(0), sum_of(matrices - 1));
        else
            put(args, at, first / args.parts + token, WARP * at.group + lane, sum_of(0));
    }
}

/* ---- Many rows ------------------------------------------------------------------------------------------------- */

template <int TYPE>
static __global__ void __launch_bounds__(WARP *WIDE_WARPS, blocks_for_registers(WIDE_BLOCKS_ON_SM))
    wide_kernel(pen_cuda_product_args args) {
    follow();
    typedef columns<WIDE_COLS> cols;
    int lane = threadIdx.x, first = blockIdx.x * WIDE_COLS;
    place at = find_group(args, WIDE_WARPS * blockIdx.y + threadIdx.y);
    const pen_cuda_matrix &w = args.w[at.matrix];
    if (at.group >= groups_of(w)) return;
    cols x = {args.x + args.stride * first, (unsigned)args.stride,
              min(args.tokens * args.parts - first, (int)WIDE_COLS), w.cols};
    /* Each thread's own: registers are needed for what changes more often. */
    __shared__ float totals[LANE_ROWS][cols::SUMS][WIDE_WARPS][WARP];
#pragma unroll
    for (int s = 0; s < LANE_ROWS; s++)
#pragma unroll
        for (int c = 0; c < cols::SUMS; c++) totals[s][c][threadIdx.y][lane] = 0;
    for (int span = 0; span * PEN_CUDA_SPAN < x.width; span++) {
        float p[LANE_ROWS][cols::SUMS] = {};
        dot_span<1, TYPE, false>(w, at.group, x, span, lane, p);
#pragma unroll
        for (int s = 0; s < LANE_ROWS; s++)
#pragma unroll
            for (int c = 0; c < cols::SUMS; c++) totals[s][c][threadIdx.y][lane] += p[s][c];
    }
    for (int s = 0; s < LANE_ROWS; s++)
        for (int c = 0; c < cols::SUMS; c += 2) { /* the two columns of a token, or of two */
            int column = 4 * c + 2 * (lane % 4), n = WARP * at.group + lane / 4 + 8 * s;
            float one = totals[s][c][threadIdx.y][lane], other = totals[s][c + 1][threadIdx.y][lane];
            if (column >= x.count) continue;
            if (args.parts == 2) {
                put(args, at, (first + column) / 2, n, one + other);
            } else {
                put(args, at, first + column, n, one);
                if (column + 1 < x.count) put(args, at, first + column + 1, n, other);
            }
        }
}

/* ---- The launch ------------------------------------------------------------------------------------------------ */

/* Warps of each of `blocks` blocks that have `spans` spans to do: `most`, or as many as let all blocks be at work
 * together, with `at_once` warps on the whole GPU; no warp has a round less to do than
 * another where that can be. */
static int block_warps(int blocks, int spans, int most, int at_once) {
    int warps = most;
    while (warps / 2 >= MIN_WARPS && blocks * warps > at_once) warps /= 2;
    int rounds = (spans + warps - 1) / warps;
    return (spans + rounds - 1) / rounds;
}

struct product_call {
    cudaStream_t stream;
    const pen_cuda_product_args &args;
    int groups;

    template <int TYPE, bool F32, int COLS> void run_few() {
        typedef block_shape<TYPE, F32, COLS> shape;
        int tiles = (args.tokens * args.parts + COLS - 1) / COLS;
        int spans = (args.w[0].cols + PEN_CUDA_SPAN - 1) / PEN_CUDA_SPAN * (args.activated ? args.count : 1);
        int warps = block_warps(groups * tiles, spans, shape::WARPS, shape::WARPS * shape::ON_SM * args.processors);
        launch(product_kernel<TYPE, F32, COLS>, dim3(tiles, groups), dim3(WARP, warps), stream, args);
    }
    template <int TYPE, bool F32> void run_mode() {
        int rows = args.tokens * args.parts, tiles = (rows + WIDE_COLS - 1) / WIDE_COLS;
        int blocks = (groups + WIDE_WARPS - 1) / WIDE_WARPS;
        if (rows == 1) {
            run_few<TYPE, F32, 1>();
        } else if constexpr (on_tensor_cores<TYPE, F32>) {
            if (rows <= 8)
                run_few<TYPE, F32, 8>();
            else if (rows <= 16)
                run_few<TYPE, F32, 16>();
            else if (args.activated || tiles * blocks < WIDE_BLOCKS_ON_SM * args.processors)
                run_few<TYPE, F32, WIDE_COLS>();
            else
                launch(wide_kernel<TYPE>, dim3(tiles, blocks), dim3(WARP, WIDE_WARPS), stream, args);
        } else {
            run_few<TYPE, F32, 4>();
        }
    }
    template <int TYPE> void run() {
        if (args.activations == PEN_ACTIVATIONS_F32)
            run_mode<TYPE, true>();
        else
            run_mode<TYPE, false>();
    }
};

void pen_cuda_launch_product(cudaStream_t stream, const pen_cuda_product_args *args) {
    int groups = groups_of(args->w[0]);
    for (int m = 1; m < args->count && !args->activated; m++) groups += groups_of(args->w[m]);
    for_type(args->w[0].type, product_call{stream, *args, groups});
}
