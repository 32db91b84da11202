/*
 * What the two ways of computing attention share: pages, tiles, and how a tile's spans of positions are divided among
 * blocks and merged.
 *
 * A *tile* is some rows of one run; with a KV head and a chunk of its query heads they are the queries of a block.
 * Positions are cut into spans at absolute multiples of PEN_CUDA_ATTENTION_SPAN. Each span gives a softmax of its own,
 * relative to its own largest score, and these are merged one after the other. Where the batch has enough tiles a block
 * walks all spans of one. Where it has few (decoding) gridDim.z blocks share the spans of a tile; each writes partial
 * softmaxes, and the block that is done last merges them, in the order of the spans. What a query's result is made of
 * does not depend on the other queries of its tile, nor on who computed which span, so nothing of this shows in it.
 *
 * The two ways: float pages are multiplied in plain f32 (attention.cu), half pages by tensor cores
 * (attention_tensor.cu), each for all tiles, prompts and decodes alike.
 */
#ifndef PEN_ATTENTION_CUH
#define PEN_ATTENTION_CUH

#include "device.cuh"

enum { SPAN = PEN_CUDA_ATTENTION_SPAN, ATTENTION_THREADS = 128 };

/* ---- Pages ----------------------------------------------------------------------------------------------------- */

/* Element indices. */
__device__ inline size_t page_of(const pen_cuda_pages &pages, int block, int head) {
    return ((size_t)block * pages.kv_heads + head) * PEN_KV_BLOCK * pages.width;
}

/* ---- Queries of a tile ----------------------------------------------------------------------------------------- */

/* Query n of a block is head first_head + n mod heads of row first_row + n / heads. */
struct queries {
    int first_row, first_head, heads, count, kv_head;

    __device__ int row(int n) const { return first_row + n / heads; }
    __device__ int head(int n) const { return first_head + n % heads; }
};

/* Most heads of a chunk. */
__device__ inline int chunk_heads(const pen_cuda_attention_args &args) {
    return (args.heads + args.chunks - 1) / args.chunks;
}

/* `chunk` counts through all KV heads' chunks. */
__device__ inline queries queries_of(const pen_cuda_attention_args &args, const pen_cuda_tile &tile, int chunk) {
    int group = args.heads / args.pages.kv_heads, chunks = args.chunks / args.pages.kv_heads, each = chunk_heads(args);
    queries q;
    q.first_row = tile.row;
    q.kv_head = chunk / chunks;
    q.first_head = q.kv_head * group + chunk % chunks * each;
    q.heads = min(each, (q.kv_head + 1) * group - q.first_head);
    q.count = q.heads * tile.rows;
    return q;
}

/* Positions that a row sees: [first, end). */
__device__ inline int row_end(const pen_cuda_attention_args &args, int row) {
    return args.rows.position[row] + 1;
}
__device__ inline int row_first(const pen_cuda_attention_args &args, int row) {
    int end = row_end(args, row);
    return args.window > 0 && end > args.window ? end - args.window : 0;
}

/* What a tile sees, and the spans of it. Earlier positions' pages may be gone, later ones not written. */
struct sight {
    int begin, end, first_span, spans;
    const int32_t *table; /* of the run */
};
__device__ inline sight sight_of(const pen_cuda_attention_args &args, const pen_cuda_tile &tile) {
    sight s;
    s.begin = row_first(args, tile.row);
    s.end = row_end(args, tile.row + tile.rows - 1);
    s.first_span = s.begin / SPAN;
    s.spans = (s.end - 1) / SPAN + 1 - s.first_span;
    s.table = args.rows.tables + args.rows.first_block[tile.row];
    return s;
}

/* ---- A block's work -------------------------------------------------------------------------------------------- */

/* The partial softmax of query n over the span'th span: width values, their largest score, the sum of weights. */
__device__ inline float *partial_of(const pen_cuda_attention_args &args, const pen_cuda_tile &tile, int span, int n) {
    size_t slot = (size_t)(tile.partial + span * tile.rows) * args.chunks + blockIdx.y * tile.rows;
    return args.partials + (slot * chunk_heads(args) + n) * pen_cuda_partial_floats(args.pages.width);
}

/* Whether this block is the last of the `blocks` that work at a tile: it then sees what the others wrote. */
__device__ inline bool is_last(const pen_cuda_attention_args &args, int tile, int blocks) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        int32_t *ticket = &args.tickets[tile * args.chunks + blockIdx.y];
        last = atomicAdd(ticket, 1) == blocks - 1;
        if (last) *ticket = 0; /* for the next launch */
    }
    __syncthreads();
    __threadfence();
    return last;
}

/* A Way has a state in registers and shared memory, made for `queries` of a tile: start(), span(n), which takes the
 * n'th span of all into the state, put(n) and take(n), which write the state as a partial and take a partial into it,
 * and finish(), which writes the result. */
template <class Way> __device__ void attend(const pen_cuda_attention_args &args, typename Way::memory &memory) {
    int index = gridDim.x - 1 - blockIdx.x; /* later rows of a prompt see more: they first */
    const pen_cuda_tile tile = args.tiles[index];
    if (tile.rows == 0) return; /* it fills up a bucket */
    sight s = sight_of(args, tile);
    bool shared = gridDim.z > 1 && tile.partial >= 0 && s.spans > 1;
    int blocks = shared ? min((int)gridDim.z, s.spans) : 1;
    if ((int)blockIdx.z >= blocks) return;
    Way way(args, queries_of(args, tile, blockIdx.y), s, memory);
    for (int span = blockIdx.z; span < s.spans; span += blocks) {
        way.span(s.first_span + span);
        if (!shared) continue;
        way.put([&](int n) { return partial_of(args, tile, span, n); });
        way.start();
    }
    if (shared) {
        if (!is_last(args, index, blocks)) return;
        for (int span = 0; span < s.spans; span++)
            way.take([&](int n) { return (const float *)partial_of(args, tile, span, n); });
    }
    way.finish();
}

#endif
