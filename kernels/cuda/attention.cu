/*
 * Rotation, KV pages and attention.
 *
 * Attention works on *tiles*: some rows of one run with a KV head and at most PEN_CUDA_TILE_QUERIES of its query heads.
 * Positions are cut into spans at absolute multiples of PEN_CUDA_ATTENTION_SPAN; each span gives a softmax of its own
 * and the spans are merged in order. Where there are enough tiles a block walks all spans of one; where there are few
 * (decode of a long context) every span has a block and a second kernel merges. Both do the same arithmetic, and that
 * of a query does not depend on the others of its tile, so nothing of this shows in a result.
 */
#include "device.cuh"

enum { SPAN = PEN_CUDA_ATTENTION_SPAN, QUERIES = PEN_CUDA_TILE_QUERIES, WARPS = SPAN / WARP };

/* ---- Elements of the pages ------------------------------------------------------------------------------------- */

template <class Element> struct page_format;
template <> struct page_format<float> {
    enum { EACH = 4 }; /* in 16 bytes */
    __device__ static float narrow(float x) { return x; }
    __device__ static float widen(float x) { return x; }
};
template <> struct page_format<__half> {
    enum { EACH = 8 };
    __device__ static __half narrow(float x) { return __float2half_rn(x); }
    __device__ static float widen(__half x) { return __half2float(x); }
};

/* Element indices. */
__device__ static size_t page_of(const pen_cuda_pages &pages, int block, int head) {
    return ((size_t)block * pages.kv_heads + head) * PEN_KV_BLOCK * pages.width;
}
template <class Element> __device__ size_t k_index(int position, int d) {
    const int each = page_format<Element>::EACH;
    return (size_t)(d / each * PEN_KV_BLOCK + position % PEN_KV_BLOCK) * each + d % each;
}
__device__ static size_t v_index(const pen_cuda_pages &pages, int position, int d) {
    return (size_t)(position % PEN_KV_BLOCK) * pages.width + d;
}

/* ---- Rotation and the pages ------------------------------------------------------------------------------------ */

/* A head as it is rotated: normalised, times cosine and sine of its row's position. */
struct head {
    const float *x, *norm; /* [head_size]; norm may be NULL */
    float scale;           /* of the norm */
    __device__ float at(int d) const { return norm ? x[d] * scale * norm[d] : x[d]; }
};

/* Calls put(d, value) for the lane's share of all values of a rotated head. */
template <class Put> static __device__ void rotate(const pen_cuda_rope_kv_args &args, const head &h, int row, Put put) {
    int lane = threadIdx.x, pairs = args.rope ? args.dims / 2 : 0;
    const float *turns = pairs ? args.rope + (size_t)args.rows.position[row] * args.dims : NULL;
    for (int i = lane; i < pairs; i += WARP) {
        int a = args.interleaved ? 2 * i : i, b = args.interleaved ? 2 * i + 1 : i + pairs;
        float x = h.at(a), y = h.at(b), cosine = turns[2 * i], sine = turns[2 * i + 1];
        put(a, x * cosine - y * sine);
        put(b, x * sine + y * cosine);
    }
    for (int d = 2 * pairs + lane; d < args.pages.head_size; d += WARP) put(d, h.at(d));
}

/* A warp for each head of q, k and v of a row. */
template <class Element> static __global__ void __launch_bounds__(WARP) rope_kv_kernel(pen_cuda_rope_kv_args args) {
    typedef page_format<Element> format;
    const pen_cuda_pages &pages = args.pages;
    int size = pages.head_size, lane = threadIdx.x, row = blockIdx.y, index = blockIdx.x;
    float *x = args.qkv + ((size_t)row * (args.heads + 2 * pages.kv_heads) + index) * size;
    int kind = index < args.heads ? 0 : index < args.heads + pages.kv_heads ? 1 : 2;
    head h = {x, kind == 0 ? args.q_norm : kind == 1 ? args.k_norm : NULL, 1};
    if (h.norm) {
        float squares = 0;
        for (int d = lane; d < size; d += WARP) squares = fmaf(x[d], x[d], squares);
        h.scale = 1 / sqrtf(reduce_warp(sum(), squares) / (float)size + args.eps);
    }
    if (kind == 0) {
        rotate(args, h, row, [&](int d, float value) { x[d] = value; });
        return;
    }
    int position = args.rows.position[row], kv_head = (index - args.heads) % pages.kv_heads;
    int block = args.rows.tables[args.rows.first_block[row] + position / PEN_KV_BLOCK];
    size_t page = page_of(pages, block, kv_head);
    Element *k = reinterpret_cast<Element *>(pages.k) + page, *v = reinterpret_cast<Element *>(pages.v) + page;
    if (kind == 1) {
        rotate(args, h, row, [&](int d, float value) { k[k_index<Element>(position, d)] = format::narrow(value); });
        for (int d = size + lane; d < pages.width; d += WARP) k[k_index<Element>(position, d)] = format::narrow(0);
    } else {
        for (int d = lane; d < pages.width; d += WARP)
            v[v_index(pages, position, d)] = format::narrow(d < size ? x[d] : 0);
    }
}

void pen_cuda_launch_rope_kv(cudaStream_t stream, const pen_cuda_rope_kv_args *args) {
    dim3 grid(args->heads + 2 * args->pages.kv_heads, args->rows.count);
    launch(args->pages.half ? rope_kv_kernel<__half> : rope_kv_kernel<float>, grid, dim3(WARP), stream, *args);
}

/* ---- Queries of a tile ----------------------------------------------------------------------------------------- */

/* Query n of a block is head first_head + n mod heads of row first_row + n / heads. */
struct queries {
    int first_row, first_head, heads, count, kv_head, chunk;

    __device__ int row(int n) const { return first_row + n / heads; }
    __device__ int head(int n) const { return first_head + n % heads; }
};

/* Heads of a KV head that share a block, and how many such chunks there are. */
__device__ static int chunk_heads(int group) {
    return group < QUERIES ? group : QUERIES;
}
__host__ __device__ static int chunk_count(int group) {
    return (group + QUERIES - 1) / QUERIES;
}

__device__ static queries queries_of(const pen_cuda_attention_args &args, int tile, int item) {
    int group = args.heads / args.pages.kv_heads, chunks = chunk_count(group), each = chunk_heads(group);
    queries q;
    q.first_row = args.tiles[tile].row;
    q.kv_head = item / chunks;
    q.chunk = item;
    q.first_head = q.kv_head * group + item % chunks * each;
    q.heads = min(each, (q.kv_head + 1) * group - q.first_head);
    q.count = q.heads * args.tiles[tile].rows;
    return q;
}

/* Positions that a row sees: [first, end). */
__device__ static int row_end(const pen_cuda_attention_args &args, int row) {
    return args.rows.position[row] + 1;
}
__device__ static int row_first(const pen_cuda_attention_args &args, int row) {
    int end = row_end(args, row);
    return args.window > 0 && end > args.window ? end - args.window : 0;
}

/* What a tile sees, and the spans [first, end) of it. Earlier positions' pages may be gone, later ones not written. */
struct sight {
    int begin, end, first_span, end_span;
};
__device__ static sight sight_of(const pen_cuda_attention_args &args, int tile) {
    int row = args.tiles[tile].row;
    sight s = {row_first(args, row), row_end(args, row + args.tiles[tile].rows - 1), 0, 0};
    s.first_span = s.begin / SPAN;
    s.end_span = (s.end - 1) / SPAN + 1;
    return s;
}

/* ---- A span ---------------------------------------------------------------------------------------------------- */

/* Softmax-weighted sums of a block's queries, relative to exp(max); every thread has the sums and SLOTS dimensions of
 * the values. max is −∞ where nothing was visible. */
template <int SLOTS> struct softmax { float max[QUERIES], sum[QUERIES], values[QUERIES][SLOTS]; };

template <int SLOTS> struct shared_tile {
    float q[QUERIES][SLOTS * SPAN], weights[QUERIES][SPAN], max[QUERIES], sum[QUERIES];
};

template <int SLOTS>
__device__ void load_queries(const pen_cuda_attention_args &args, const queries &q, shared_tile<SLOTS> &shared) {
    int size = args.pages.head_size;
    float scale = args.softcap > 0 ? args.scale / args.softcap : args.scale;
    for (int n = 0; n < QUERIES; n++)
        for (int d = threadIdx.x; d < SLOTS * SPAN; d += SPAN) {
            const float *x = args.qkv + (size_t)q.row(n) * (args.heads + 2 * args.pages.kv_heads) * size;
            shared.q[n][d] = n < q.count && d < size ? x[q.head(n) * size + d] * scale : 0;
        }
    __syncthreads();
}

/* This thread's position with every query: scores in shared.weights, −∞ where a query does not see it. */
template <class Element, int SLOTS>
__device__ void score(const pen_cuda_attention_args &args, const queries &q, const sight &s, int position,
                      shared_tile<SLOTS> &shared) {
    typedef page_format<Element> format;
    float sums[QUERIES] = {};
    if (position >= s.begin && position < s.end) {
        int block = args.rows.tables[args.rows.first_block[q.first_row] + position / PEN_KV_BLOCK];
        const Element *k = reinterpret_cast<const Element *>(args.pages.k) + page_of(args.pages, block, q.kv_head);
        for (int d = 0; d < args.pages.width; d += format::EACH) {
            union {
                uint4 bits;
                Element each[format::EACH];
            } piece;
            piece.bits = *reinterpret_cast<const uint4 *>(k + k_index<Element>(position, d));
#pragma unroll
            for (int e = 0; e < format::EACH; e++)
#pragma unroll
                for (int n = 0; n < QUERIES; n++)
                    sums[n] = fmaf(shared.q[n][d + e], format::widen(piece.each[e]), sums[n]);
        }
    }
#pragma unroll
    for (int n = 0; n < QUERIES; n++) {
        bool seen = n < q.count && position >= row_first(args, q.row(n)) && position < row_end(args, q.row(n));
        float x = args.softcap > 0 ? args.softcap * tanhf(sums[n]) : sums[n];
        shared.weights[n][threadIdx.x] = seen ? x : -INFINITY;
    }
}

/* A warp's share of the queries: scores become weights. */
template <int SLOTS> __device__ void soften(const queries &q, shared_tile<SLOTS> &shared) {
    int lane = threadIdx.x % WARP;
    for (int n = threadIdx.x / WARP; n < q.count; n += WARPS) {
        float *x = shared.weights[n], most = -INFINITY, total = 0;
        for (int i = 0; i < WARPS; i++) most = fmaxf(most, x[lane + WARP * i]);
        most = reduce_warp(larger(), most);
        for (int i = 0; i < WARPS; i++) {
            float weight = x[lane + WARP * i] == -INFINITY ? 0 : expf(x[lane + WARP * i] - most);
            x[lane + WARP * i] = weight;
            total += weight;
        }
        total = reduce_warp(::sum(), total);
        if (lane == 0) {
            shared.max[n] = most;
            shared.sum[n] = total;
        }
    }
}

/* The softmax over one span, in `out`. */
template <class Element, int SLOTS>
__device__ void attend_span(const pen_cuda_attention_args &args, const queries &q, const sight &s, int span,
                            shared_tile<SLOTS> &shared, softmax<SLOTS> &out) {
    int base = span * SPAN, begin = max(base, s.begin), end = min(base + SPAN, s.end);
    score<Element, SLOTS>(args, q, s, base + threadIdx.x, shared);
    __syncthreads();
    soften<SLOTS>(q, shared);
    __syncthreads();
#pragma unroll
    for (int n = 0; n < QUERIES; n++) {
        out.max[n] = n < q.count ? shared.max[n] : -INFINITY;
        out.sum[n] = n < q.count ? shared.sum[n] : 0;
#pragma unroll
        for (int i = 0; i < SLOTS; i++) out.values[n][i] = 0;
    }
    for (int p = begin; p < end; p++) {
        int block = args.rows.tables[args.rows.first_block[q.first_row] + p / PEN_KV_BLOCK];
        const Element *v = reinterpret_cast<const Element *>(args.pages.v) + page_of(args.pages, block, q.kv_head);
#pragma unroll
        for (int i = 0; i < SLOTS; i++) {
            int d = threadIdx.x + SPAN * i;
            if (d >= args.pages.width) continue;
            float value = page_format<Element>::widen(v[v_index(args.pages, p, d)]);
#pragma unroll
            for (int n = 0; n < QUERIES; n++) { /* what a query does not see is not even multiplied by 0 */
                float weight = shared.weights[n][p - base];
                if (n < q.count && weight > 0) out.values[n][i] = fmaf(weight, value, out.values[n][i]);
            }
        }
    }
    __syncthreads(); /* before the next span's scores */
}

/* Takes the softmax over a next span into that over the spans before. */
template <int SLOTS> __device__ void merge(softmax<SLOTS> &state, const softmax<SLOTS> &next) {
#pragma unroll
    for (int n = 0; n < QUERIES; n++) {
        float most = fmaxf(state.max[n], next.max[n]);
        if (most == -INFINITY) continue;
        float keep = expf(state.max[n] - most), take = expf(next.max[n] - most);
        state.max[n] = most;
        state.sum[n] = fmaf(state.sum[n], keep, next.sum[n] * take);
#pragma unroll
        for (int i = 0; i < SLOTS; i++) state.values[n][i] = fmaf(state.values[n][i], keep, next.values[n][i] * take);
    }
}

template <int SLOTS> __device__ void start(softmax<SLOTS> &state) {
#pragma unroll
    for (int n = 0; n < QUERIES; n++) {
        state.max[n] = -INFINITY;
        state.sum[n] = 0;
#pragma unroll
        for (int i = 0; i < SLOTS; i++) state.values[n][i] = 0;
    }
}

/* Divides by the sum of weights. */
template <int SLOTS>
__device__ void finish(const pen_cuda_attention_args &args, const queries &q, const softmax<SLOTS> &state) {
    int size = args.pages.head_size;
#pragma unroll
    for (int n = 0; n < QUERIES; n++) {
        if (n >= q.count) break;
        float *out = args.out + (size_t)q.row(n) * args.out_stride + (size_t)q.head(n) * size, scale = 1 / state.sum[n];
#pragma unroll
        for (int i = 0; i < SLOTS; i++) {
            int d = threadIdx.x + SPAN * i;
            if (d < size) out[d] = state.values[n][i] * scale;
        }
    }
}

/* ---- Kernels --------------------------------------------------------------------------------------------------- */

/* Floats of a query's partial softmax: max, sum, values. */
static __host__ __device__ size_t partial_floats(const pen_cuda_pages &pages) {
    return 2 + (size_t)pages.width;
}
__host__ __device__ static int chunks_of(const pen_cuda_attention_args &args) {
    return args.pages.kv_heads * chunk_count(args.heads / args.pages.kv_heads);
}
__device__ static float *partial_of(const pen_cuda_attention_args &args, const queries &q, int tile, int span, int n) {
    size_t item = (size_t)tile * chunks_of(args) + q.chunk;
    return args.partials + ((item * args.spans + span) * QUERIES + n) * partial_floats(args.pages);
}

template <class Element, int SLOTS>
static __global__ void __launch_bounds__(SPAN) walk_kernel(pen_cuda_attention_args args) {
    __shared__ shared_tile<SLOTS> shared;
    queries q = queries_of(args, blockIdx.x, blockIdx.y);
    sight s = sight_of(args, blockIdx.x);
    softmax<SLOTS> state, next;
    start(state);
    load_queries(args, q, shared);
    for (int span = s.first_span; span < s.end_span; span++) {
        attend_span<Element, SLOTS>(args, q, s, span, shared, next);
        merge(state, next);
    }
    finish(args, q, state);
}

template <class Element, int SLOTS>
static __global__ void __launch_bounds__(SPAN) span_kernel(pen_cuda_attention_args args) {
    __shared__ shared_tile<SLOTS> shared;
    queries q = queries_of(args, blockIdx.x, blockIdx.y);
    sight s = sight_of(args, blockIdx.x);
    int span = s.first_span + blockIdx.z;
    if (span >= s.end_span) return;
    softmax<SLOTS> out;
    load_queries(args, q, shared);
    attend_span<Element, SLOTS>(args, q, s, span, shared, out);
#pragma unroll
    for (int n = 0; n < QUERIES; n++) {
        if (n >= q.count) break;
        float *to = partial_of(args, q, blockIdx.x, blockIdx.z, n);
        if (threadIdx.x == 0) to[0] = out.max[n], to[1] = out.sum[n];
#pragma unroll
        for (int i = 0; i < SLOTS; i++) {
            int d = threadIdx.x + SPAN * i;
            if (d < args.pages.width) to[2 + d] = out.values[n][i];
        }
    }
}

template <int SLOTS> static __global__ void __launch_bounds__(SPAN) merge_kernel(pen_cuda_attention_args args) {
    queries q = queries_of(args, blockIdx.x, blockIdx.y);
    sight s = sight_of(args, blockIdx.x);
    softmax<SLOTS> state, next;
    start(state);
    start(next);
    for (int span = 0; span < s.end_span - s.first_span; span++) {
#pragma unroll
        for (int n = 0; n < QUERIES; n++) {
            if (n >= q.count) break;
            const float *from = partial_of(args, q, blockIdx.x, span, n);
            next.max[n] = from[0];
            next.sum[n] = from[1];
#pragma unroll
            for (int i = 0; i < SLOTS; i++) {
                int d = threadIdx.x + SPAN * i;
                next.values[n][i] = d < args.pages.width ? from[2 + d] : 0;
            }
        }
        merge(state, next);
    }
    finish(args, q, state);
}

size_t pen_cuda_attention_partials(const pen_cuda_attention_args *args) {
    return (size_t)args->tile_count * chunks_of(*args) * args->spans * QUERIES * partial_floats(args->pages);
}

template <class Element, int SLOTS> static void launch_slots(cudaStream_t stream, const pen_cuda_attention_args &args) {
    dim3 grid(args.tile_count, chunks_of(args)), spans(grid.x, grid.y, args.spans), block(SPAN);
    if (args.spans == 0) {
        launch(walk_kernel<Element, SLOTS>, grid, block, stream, args);
        return;
    }
    launch(span_kernel<Element, SLOTS>, spans, block, stream, args);
    launch(merge_kernel<SLOTS>, grid, block, stream, args);
}

template <class Element> static void launch_element(cudaStream_t stream, const pen_cuda_attention_args &args) {
    if (args.pages.width <= SPAN)
        launch_slots<Element, 1>(stream, args);
    else if (args.pages.width <= 2 * SPAN)
        launch_slots<Element, 2>(stream, args);
    else
        launch_slots<Element, 4>(stream, args);
}

void pen_cuda_launch_attention(cudaStream_t stream, const pen_cuda_attention_args *args) {
    if (args->pages.half)
        launch_element<__half>(stream, *args);
    else
        launch_element<float>(stream, *args);
}
