/*
 * Rotation and KV pages, and attention over float pages in plain f32: the exact mode. A thread is a position when
 * scores are made, and a dimension when values are added up.
 */
#include "attention.cuh"

enum { QUERIES = PEN_CUDA_PLAIN_QUERIES, WARPS = SPAN / WARP };

/* ---- Elements of the pages ------------------------------------------------------------------------------------- */

template <class Element> struct page_format;
template <> struct page_format<float> {
    enum { EACH = 4 }; /* in 16 bytes */
    __device__ static float narrow(float x) { return x; }
    __device__ static size_t v_index(const pen_cuda_pages &pages, int position, int d) {
        return (size_t)(position % PEN_KV_BLOCK) * pages.width + d;
    }
};
template <> struct page_format<__half> {
    enum { EACH = 8 };
    __device__ static __half narrow(float x) { return __float2half_rn(x); }
    __device__ static size_t v_index(const pen_cuda_pages &, int position, int d) {
        return (size_t)((d / 2 * 4 + position % PEN_KV_BLOCK / 4) * 2 + d % 2) * 4 + position % 4;
    }
};
template <class Element> __device__ size_t k_index(int position, int d) {
    const int each = page_format<Element>::EACH;
    return (size_t)(d / each * PEN_KV_BLOCK + position % PEN_KV_BLOCK) * each + d % each;
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
    follow();
    typedef page_format<Element> format;
    const pen_cuda_pages &pages = args.pages;
    int size = pages.head_size, lane = threadIdx.x, row = blockIdx.x, index = blockIdx.y;
    if (args.rows.first_block[row] < 0) return; /* it fills up a bucket */
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
            v[format::v_index(pages, position, d)] = format::narrow(d < size ? x[d] : 0);
    }
}

void pen_cuda_launch_rope_kv(cudaStream_t stream, const pen_cuda_rope_kv_args *args) {
    dim3 grid(args->rows.count, args->heads + 2 * args->pages.kv_heads); /* rows may be more than y can count */
    launch(args->pages.half ? rope_kv_kernel<__half> : rope_kv_kernel<float>, grid, dim3(WARP), stream, *args);
}

/* ---- Attention, plainly ---------------------------------------------------------------------------------------- */

template <int SLOTS> struct plain_memory {
    alignas(16) float q[QUERIES][SLOTS * SPAN]; /* read four at a time */
    float weights[QUERIES][SPAN], max[QUERIES], sum[QUERIES];
};

/* Softmax-weighted sums of the queries, relative to exp(max); every thread has the sums and SLOTS dimensions of the
 * values. max is −∞ where nothing was visible. */
template <int SLOTS> struct softmax { float max[QUERIES], sum[QUERIES], values[QUERIES][SLOTS]; };

template <int SLOTS> struct plain_way {
    typedef plain_memory<SLOTS> memory;
    const pen_cuda_attention_args &args;
    const queries q;
    const sight s;
    memory &shared;
    softmax<SLOTS> state;

    __device__ plain_way(const pen_cuda_attention_args &args_, const queries &q_, const sight &s_, memory &shared_)
        : args(args_), q(q_), s(s_), shared(shared_) {
        int size = args.pages.head_size;
        float scale = args.softcap > 0 ? args.scale / args.softcap : args.scale;
        for (int n = 0; n < QUERIES; n++)
            for (int d = threadIdx.x; d < SLOTS * SPAN; d += SPAN) {
                const float *x = args.qkv + (size_t)q.row(n) * (args.heads + 2 * args.pages.kv_heads) * size;
                shared.q[n][d] = n < q.count && d < size ? x[q.head(n) * size + d] * scale : 0;
            }
        __syncthreads();
        start();
    }

    __device__ void start() {
#pragma unroll
        for (int n = 0; n < QUERIES; n++) {
            state.max[n] = -INFINITY;
            state.sum[n] = 0;
#pragma unroll
            for (int i = 0; i < SLOTS; i++) state.values[n][i] = 0;
        }
    }

    /* Elements of the page of a position. */
    __device__ size_t page(int position) const {
        return page_of(args.pages, s.table[position / PEN_KV_BLOCK], q.kv_head);
    }

    /* This thread's position with every query: scores in shared.weights, −∞ where a query does not see it. */
    __device__ void score(int position) {
        float sums[QUERIES] = {};
        if (position >= s.begin && position < s.end) {
            const float *k = reinterpret_cast<const float *>(args.pages.k) + page(position);
            for (int d = 0; d < args.pages.width; d += 4) {
                float4 piece = *reinterpret_cast<const float4 *>(k + k_index<float>(position, d));
#pragma unroll
                for (int n = 0; n < QUERIES; n++) {
                    float4 x = *reinterpret_cast<const float4 *>(&shared.q[n][d]);
                    sums[n] = fmaf(x.x, piece.x, sums[n]);
                    sums[n] = fmaf(x.y, piece.y, sums[n]);
                    sums[n] = fmaf(x.z, piece.z, sums[n]);
                    sums[n] = fmaf(x.w, piece.w, sums[n]);
                }
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
    __device__ void soften() {
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

    __device__ void span(int number) {
        int base = number * SPAN, begin = max(base, s.begin), end = min(base + SPAN, s.end);
        score(base + threadIdx.x);
        __syncthreads();
        soften();
        __syncthreads();
        softmax<SLOTS> out;
#pragma unroll
        for (int n = 0; n < QUERIES; n++) {
            out.max[n] = n < q.count ? shared.max[n] : -INFINITY;
            out.sum[n] = n < q.count ? shared.sum[n] : 0;
#pragma unroll
            for (int i = 0; i < SLOTS; i++) out.values[n][i] = 0;
        }
        for (int p = begin; p < end; p++) {
            const float *v = reinterpret_cast<const float *>(args.pages.v) + page(p);
#pragma unroll
            for (int i = 0; i < SLOTS; i++) {
                int d = threadIdx.x + SPAN * i;
                if (d >= args.pages.width) continue;
                float value = v[page_format<float>::v_index(args.pages, p, d)];
#pragma unroll
                for (int n = 0; n < QUERIES; n++) { /* what a query does not see is not even multiplied by 0 */
                    float weight = shared.weights[n][p - base];
                    if (n < q.count && weight > 0) out.values[n][i] = fmaf(weight, value, out.values[n][i]);
                }
            }
        }
        merge(out);
        __syncthreads(); /* before the next span's scores */
    }

    /* Takes the softmax over a next span into that over the spans before. */
    __device__ void merge(const softmax<SLOTS> &next) {
#pragma unroll
        for (int n = 0; n < QUERIES; n++) {
            if (next.max[n] == -INFINITY) continue;
            float most = fmaxf(state.max[n], next.max[n]);
            float keep = expf(state.max[n] - most), take = expf(next.max[n] - most);
            state.max[n] = most;
            state.sum[n] = fmaf(state.sum[n], keep, next.sum[n] * take);
#pragma unroll
            for (int i = 0; i < SLOTS; i++)
                state.values[n][i] = fmaf(state.values[n][i], keep, next.values[n][i] * take);
        }
    }

    template <class Place> __device__ void put(Place place) {
        int width = args.pages.width;
#pragma unroll
        for (int n = 0; n < QUERIES; n++) {
            if (n >= q.count) break;
            float *to = place(n);
            if (threadIdx.x == 0) to[width] = state.max[n], to[width + 1] = state.sum[n];
#pragma unroll
            for (int i = 0; i < SLOTS; i++)
                if ((int)threadIdx.x + SPAN * i < width) to[threadIdx.x + SPAN * i] = state.values[n][i];
        }
    }

    template <class Place> __device__ void take(Place place) {
        int width = args.pages.width;
        softmax<SLOTS> next;
#pragma unroll
        for (int n = 0; n < QUERIES; n++) {
            const float *from = n < q.count ? place(n) : NULL;
            next.max[n] = from ? __ldcg(from + width) : -INFINITY;
            next.sum[n] = from ? __ldcg(from + width + 1) : 0;
#pragma unroll
            for (int i = 0; i < SLOTS; i++) {
                int d = threadIdx.x + SPAN * i;
                next.values[n][i] = from && d < width ? __ldcg(from + d) : 0;
            }
        }
        merge(next);
    }

    /* Divides by the sum of weights. */
    __device__ void finish() {
        int size = args.pages.head_size;
#pragma unroll
        for (int n = 0; n < QUERIES; n++) {
            if (n >= q.count) break;
            float *out = reinterpret_cast<float *>(args.out + args.stride * q.row(n)) + q.head(n) * size;
            float scale = 1 / state.sum[n];
#pragma unroll
            for (int i = 0; i < SLOTS; i++) {
                int d = threadIdx.x + SPAN * i;
                if (d < size) out[d] = state.values[n][i] * scale;
            }
        }
    }
};

template <int SLOTS>
static __global__ void __launch_bounds__(ATTENTION_THREADS, SLOTS < 4 ? 3 : 2)
    plain_kernel(pen_cuda_attention_args args) {
    follow();
    __shared__ plain_memory<SLOTS> memory;
    attend<plain_way<SLOTS>>(args, memory);
}

void pen_cuda_launch_plain_attention(cudaStream_t stream, const pen_cuda_attention_args *args) {
    dim3 grid(args->tile_count, args->chunks, args->blocks), block(ATTENTION_THREADS);
    if (args->pages.width <= SPAN)
        launch(plain_kernel<1>, grid, block, stream, *args);
    else if (args->pages.width <= 2 * SPAN)
        launch(plain_kernel<2>, grid, block, stream, *args);
    else
        launch(plain_kernel<4>, grid, block, stream, *args);
}
