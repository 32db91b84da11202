/*
 * Inner kernels of attention for one instruction set.
 *
 * Numeric contract, per query, whatever the tile, the other queries and the thread:
 *   score of a position  fma over d in order, positions in lanes
 *         of q8_0        i = exact int32 Σ q_q·q_k of 32 values; s = fma((float)i, scale_q·scale_k, s), in order
 *   weight               exp(s − max), max over the visible positions of the span; exactly 0 where not visible
 *   sum of weights       16 partials by position mod 16 in order, then the tree of v16_sum
 *   value d              fma over the span's positions in order, values in lanes
 *         of q8_0        fma(weight·scale_v, (float)q_v, …)
 *   spans                merged in order by pen_attention_merge
 * Tiles below only decide how many independent results are in registers at a time.
 *
 * Why q8_0 is multiplied like this: scores as int8 products, two for a query of 15 bits, are half of the work in f32.
 * With queries of 8 bits they are a quarter, which decode, waiting for memory, does not notice; the largest error of a
 * log-probability on the reference text is 0.59 then, not 0.48 (0.30 with f16). Weights stay f32: beside one position
 * that has most of the weight, 8 bits would lose all others.
 */
#include "linear_dot.isa.h"
#include "ops.isa.h"

#define TILE static inline __attribute__((always_inline))

/* Largest tiles that stay in registers: queries × K blocks and queries × vectors of values. Portable code has no
 * registers to fill, and compilers take minutes over unrolled tiles of it. */
#if defined(__AVX512F__)
enum { SCORE_QUERIES = 12, SCORE_BLOCKS = 2, VALUE_QUERIES = 6, VALUE_VECTORS = 4, DOT_QUERIES = 6 };
#elif defined(__AVX2__)
enum { SCORE_QUERIES = 2, SCORE_BLOCKS = 2, VALUE_QUERIES = 2, VALUE_VECTORS = 2, DOT_QUERIES = 2 };
#else
enum { SCORE_QUERIES = 1, SCORE_BLOCKS = 1, VALUE_QUERIES = 1, VALUE_VECTORS = 1, DOT_QUERIES = 1 };
#endif

/* while (n >= size) { body; n −= size; }, for a size that the tiles have; others leave no code. */
#define TAKE(n, size, most) for (; (size) <= (most) && (n) >= (size); (n) -= (size))

/* Element `index` and the next 15 of a block; of q8_0 without the scale. */
TILE v16 load_elements(const pen_type type, const void *block, int index) {
    if (type == PEN_TYPE_Q8_0) return v16_from_i32(v16i_load_i8((const int8_t *)block + index));
    return type == PEN_TYPE_F16 ? v16_load_f16((const uint16_t *)block + index)
                                : v16_load((const float *)block + index);
}

/* Asks for byte `at` of the block that comes after this one. Decode waits for memory; a burst of such requests between
 * blocks would wait, too, so each read of a block brings one. */
TILE void fetch_ahead(const void *ahead, int at) {
    __builtin_prefetch((const char *)ahead + at, 0, 2);
}

TILE int element_bytes(const pen_type type) {
    return type == PEN_TYPE_Q8_0 ? 1 : type == PEN_TYPE_F16 ? 2 : 4;
}

/* The 16 positions' scales of values [32·b, 32·b + 32) of a q8_0 block. */
TILE v16 load_scales(const void *block, int head_size, int b) {
    return v16_load_f16((const uint16_t *)block + PEN_KV_BLOCK * (head_size / 2 + b));
}

/* ---- Scores ---------------------------------------------------------------------------------------------------- */

TILE void score_tile(const int q_count, const int k_count, const pen_type type, const float *queries, int head_size,
                     const void *const *blocks, const void *const *ahead, float *scores) {
    v16 sums[12][2], k[2];
    const float *rows[4]; /* of three queries each, so that there are registers for their addresses */
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) rows[i] = queries + 3 * i * (ptrdiff_t)head_size;
#pragma GCC unroll 12
    for (int q = 0; q < q_count; q++)
#pragma GCC unroll 2
        for (int b = 0; b < k_count; b++) sums[q][b] = v16_all(0);
    for (int d = 0; d < head_size; d++) {
#pragma GCC unroll 2
        for (int b = 0; b < k_count; b++) {
            k[b] = load_elements(type, blocks[b], d * PEN_KV_BLOCK);
            if (q_count < 12) /* the others are a prompt's */
                fetch_ahead(ahead[b], d * PEN_KV_BLOCK * element_bytes(type));
        }
#pragma GCC unroll 12
        for (int q = 0; q < q_count; q++) {
            v16 x = v16_all(rows[q / 3][q % 3 * (ptrdiff_t)head_size + d]);
#pragma GCC unroll 2
            for (int b = 0; b < k_count; b++) sums[q][b] = v16_fma(x, k[b], sums[q][b]);
        }
    }
#pragma GCC unroll 12
    for (int q = 0; q < q_count; q++)
#pragma GCC unroll 2
        for (int b = 0; b < k_count; b++) v16_store(scores + q * PEN_SCORE_STRIDE + b * PEN_KV_BLOCK, sums[q][b]);
}

/* All queries against one or two K blocks. */
TILE void score_blocks(const int k_count, const pen_type type, const float *queries, int n, int head_size,
                       const void *const *blocks, const void *const *ahead, float *scores){
#define SCORE_TILES(size)                                                                                              \
    TAKE(n, size, SCORE_QUERIES) {                                                                                     \
        score_tile(size, k_count, type, queries, head_size, blocks, ahead, scores);                                    \
        queries += size * head_size;                                                                                   \
        scores += size * PEN_SCORE_STRIDE;                                                                             \
    }
    SCORE_TILES(12) SCORE_TILES(8) SCORE_TILES(4) SCORE_TILES(3) SCORE_TILES(2) SCORE_TILES(1)
#undef SCORE_TILES
}

TILE void score_all(const pen_type type, const float *queries, int n, int head_size, const pen_attention_blocks *keys,
                    float *scores) {
    const void *const *blocks = keys->at, *const *ahead = keys->ahead;
    int count = keys->count;
#define SCORE_BLOCK_TILES(size)                                                                                        \
    TAKE(count, size, SCORE_BLOCKS) {                                                                                  \
        score_blocks(size, type, queries, n, head_size, blocks, ahead, scores);                                        \
        blocks += size;                                                                                                \
        ahead += size;                                                                                                 \
        scores += size * PEN_KV_BLOCK;                                                                                 \
    }
    SCORE_BLOCK_TILES(2)
    SCORE_BLOCK_TILES(1)
#undef SCORE_BLOCK_TILES
}

void PEN_ISA_NAME(pen_attention_scores)(const float *queries, int n, int head_size, const pen_attention_blocks *keys,
                                        float *scores) {
    if (keys->type == PEN_TYPE_F16)
        score_all(PEN_TYPE_F16, queries, n, head_size, keys, scores);
    else
        score_all(PEN_TYPE_F32, queries, n, head_size, keys, scores);
}

/* Some queries [count][head_size/32] against one K block of q8_0. */
TILE void dot_tile(const int count, const pen_query_block *queries, int head_size, const void *block, const void *ahead,
                   float *scores) {
    enum { VECTORS = PEN_QUANT_BLOCK / 4 };
    int blocks = head_size / PEN_QUANT_BLOCK;
    v16 sums[DOT_QUERIES];
    v16i w[VECTORS], upper[DOT_QUERIES], lower[DOT_QUERIES];
#pragma GCC unroll 12
    for (int q = 0; q < count; q++) sums[q] = v16_all(0);
    for (int b = 0; b < blocks; b++, queries++) {
        const int32_t *codes = (const int32_t *)block + PEN_KV_BLOCK * VECTORS * b;
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            w[v] = v16i_load(codes + PEN_KV_BLOCK * v);
            fetch_ahead(ahead, 64 * (VECTORS * b + v));
        }
        fetch_ahead(ahead, PEN_KV_BLOCK * (head_size + 2 * b)); /* scales */
#pragma GCC unroll 12
        for (int q = 0; q < count; q++) {
            upper[q] = v16i_all(queries[q * blocks].bias[0]);
            lower[q] = v16i_all(queries[q * blocks].bias[1]);
        }
        dot(w, VECTORS, 8, queries->parts[0], (size_t)blocks * sizeof *queries, 1, count, upper);
        dot(w, VECTORS, 8, queries->parts[1], (size_t)blocks * sizeof *queries, 1, count, lower);
        v16 scales = load_scales(block, head_size, b);
#pragma GCC unroll 12
        for (int q = 0; q < count; q++) {
            v16 scale = v16_mul(v16_all(queries[q * blocks].scale), scales);
            v16i product = v16i_add(v16i_shift_left(upper[q], PEN_FINE_SHIFT), lower[q]);
            sums[q] = v16_fma(v16_from_i32(product), scale, sums[q]);
        }
    }
#pragma GCC unroll 12
    for (int q = 0; q < count; q++) v16_store(scores + q * PEN_SCORE_STRIDE, sums[q]);
}

void PEN_ISA_NAME(pen_attention_scores_q8_0)(const pen_query_block *queries, int n, int head_size,
                                             const pen_attention_blocks *keys, float *scores) {
    for (int b = 0; b < keys->count; b++) {
        const pen_query_block *from = queries;
        float *to = scores + b * PEN_KV_BLOCK;
        int left = n;
#define DOT_TILES(size)                                                                                                \
    TAKE(left, size, DOT_QUERIES) {                                                                                    \
        dot_tile(size, from, head_size, keys->at[b], keys->ahead[b], to);                                              \
        from += size * head_size / PEN_QUANT_BLOCK;                                                                    \
        to += size * PEN_SCORE_STRIDE;                                                                                 \
    }
        DOT_TILES(6)
        DOT_TILES(4)
        DOT_TILES(3)
        DOT_TILES(2)
        DOT_TILES(1)
#undef DOT_TILES
    }
}

/* ---- Softmax of a span ----------------------------------------------------------------------------------------- */

/* `value` where position base + lane lies in [from, to), else `other`. */
static v16 visible(v16 value, v16 other, int base, int from, int to) {
    if (base >= from && base + 16 <= to) return value;
    static const float lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    v16 position = v16_add(v16_load(lane), v16_all((float)base));
    v16 masked = v16_select_less(position, v16_all((float)to), value, other);
    return v16_select_less(position, v16_all((float)from), other, masked);
}

/* Puts −∞ where the vector at `base` is not visible. */
static void hide(float *scores, int base, int from, int to) {
    v16_store(scores + base, visible(v16_load(scores + base), v16_all(-INFINITY), base, from, to));
}

float PEN_ISA_NAME(pen_attention_soften)(float *scores, int count, int from, int to, float softcap, float *max) {
    const v16 zero = v16_all(0);
    int first = from / 16 * 16, end = (to + 15) / 16 * 16;
    if (softcap > 0)
        for (int i = first; i < end; i += 16)
            v16_store(scores + i, v16_mul(v16_all(softcap), v16_tanh(v16_load(scores + i))));
    if (first < end) {
        hide(scores, first, from, to);
        hide(scores, end - 16, from, to);
    }
    v16 largest = v16_all(-INFINITY);
    for (int i = first; i < end; i += 16) largest = v16_max(largest, v16_load(scores + i));
    *max = v16_largest(largest);
    v16 top = v16_all(*max), sum = zero;
    for (int i = 0; i < first; i += 16) v16_store(scores + i, zero);
    for (int i = first; i < end; i += 16) {
        v16 weight = v16_exp(v16_sub(v16_load(scores + i), top));
        v16_store(scores + i, weight);
        sum = v16_add(sum, weight);
    }
    for (int i = end; i < count; i += 16) v16_store(scores + i, zero);
    return v16_sum(sum);
}

/* ---- Values ---------------------------------------------------------------------------------------------------- */

enum { VALUE_POSITIONS = PEN_ATTENTION_BLOCKS * PEN_KV_BLOCK };

/* What a tile of values works on: columns [column, column + 16·vectors) of all queries. */
typedef struct value_job {
    const pen_attention_blocks *values;
    int positions, head_size, width, column;
} value_job;

TILE void value_tile(const int q_count, const int v_count, const pen_type type, const value_job *job,
                     const float *weights, int stride, float *sums) {
    v16 sum[VALUE_QUERIES][VALUE_VECTORS], v[VALUE_VECTORS];
    int width = job->width;
#pragma GCC unroll 12
    for (int q = 0; q < q_count; q++)
#pragma GCC unroll 4
        for (int i = 0; i < v_count; i++) sum[q][i] = v16_load(sums + q * width + 16 * i);
    for (int b = 0, left = job->positions; left > 0; b++, left -= PEN_KV_BLOCK) {
        const void *block = job->values->at[b], *ahead = job->values->ahead[b];
        int rows = left < PEN_KV_BLOCK ? left : PEN_KV_BLOCK, at = job->column;
        for (int j = 0; j < rows; j++, at += job->head_size, weights++) {
#pragma GCC unroll 4
            for (int i = 0; i < v_count; i++) v[i] = load_elements(type, block, at + 16 * i);
#pragma GCC unroll 2
            for (int i = 0; i < v_count; i += 2) fetch_ahead(ahead, (at + 16 * i) * element_bytes(type));
#pragma GCC unroll 12
            for (int q = 0; q < q_count; q++) {
                v16 weight = v16_all(weights[q * stride]);
#pragma GCC unroll 4
                for (int i = 0; i < v_count; i++) sum[q][i] = v16_fma(weight, v[i], sum[q][i]);
            }
        }
    }
#pragma GCC unroll 12
    for (int q = 0; q < q_count; q++)
#pragma GCC unroll 4
        for (int i = 0; i < v_count; i++) v16_store(sums + q * width + 16 * i, sum[q][i]);
}

/* Of q8_0 the scales go into the weights, once for 32 columns: scaled[q_count][VALUE_POSITIONS]. */
TILE void scale_weights(const int q_count, const value_job *job, const float *weights, float *scaled) {
    for (int b = 0; b < job->values->count; b++) {
        int of_columns = job->column / PEN_QUANT_BLOCK;
        v16 scales = load_scales(job->values->at[b], job->head_size, of_columns);
        fetch_ahead(job->values->ahead[b], PEN_KV_BLOCK * (job->head_size + 2 * of_columns));
#pragma GCC unroll 12
        for (int q = 0; q < q_count; q++) {
            int at = PEN_KV_BLOCK * b;
            v16_store(scaled + q * VALUE_POSITIONS + at,
                      v16_mul(v16_load(weights + q * PEN_SCORE_STRIDE + at), scales));
        }
    }
}

TILE void value_columns(const int v_count, const pen_type type, const value_job *job, int n, const float *weights,
                        float *sums) {
    float scaled[VALUE_QUERIES * VALUE_POSITIONS];
    sums += job->column;
#define VALUE_TILES(size)                                                                                              \
    TAKE(n, size, VALUE_QUERIES) {                                                                                     \
        if (type == PEN_TYPE_Q8_0) {                                                                                   \
            scale_weights(size, job, weights, scaled);                                                                 \
            value_tile(size, v_count, type, job, scaled, VALUE_POSITIONS, sums);                                       \
        } else {                                                                                                       \
            value_tile(size, v_count, type, job, weights, PEN_SCORE_STRIDE, sums);                                     \
        }                                                                                                              \
        weights += size * PEN_SCORE_STRIDE;                                                                            \
        sums += size * job->width;                                                                                     \
    }
    VALUE_TILES(6)
    VALUE_TILES(4)
    VALUE_TILES(3)
    VALUE_TILES(2)
    VALUE_TILES(1)
#undef VALUE_TILES
}

TILE void value_all(const pen_type type, value_job job, int n, const float *weights, float *sums) {
    int left = job.width / 16;
#define VALUE_COLUMNS(size)                                                                                            \
    TAKE(left, size, VALUE_VECTORS) {                                                                                  \
        value_columns(size, type, &job, n, weights, sums);                                                             \
        job.column += 16 * size;                                                                                       \
    }
    if (type != PEN_TYPE_Q8_0) { /* of which 32 columns have one scale */
        VALUE_COLUMNS(4)
        VALUE_COLUMNS(3)
    }
    VALUE_COLUMNS(2)
    VALUE_COLUMNS(1)
#undef VALUE_COLUMNS
}

void PEN_ISA_NAME(pen_attention_weigh)(const float *weights, int n, const pen_attention_blocks *values, int positions,
                                       int head_size, int width, float *sums) {
    value_job job = {.values = values, .positions = positions, .head_size = head_size, .width = width};
    switch (values->type) {
    case PEN_TYPE_Q8_0: value_all(PEN_TYPE_Q8_0, job, n, weights, sums); break;
    case PEN_TYPE_F16: value_all(PEN_TYPE_F16, job, n, weights, sums); break;
    default: value_all(PEN_TYPE_F32, job, n, weights, sums); break;
    }
}

/* ---- Spans ----------------------------------------------------------------------------------------------------- */

static v16 decay(float from, float to) {
    return v16_exp(v16_all(from - to));
}

void PEN_ISA_NAME(pen_attention_merge)(const pen_attention_state *next, int n, int width, pen_attention_state *state) {
    for (int q = 0; q < n; q++) {
        if (next->max[q] == -INFINITY) continue; /* nothing visible there */
        float *values = state->values + q * width;
        const float *added = next->values + q * width;
        if (state->max[q] == -INFINITY) {
            state->max[q] = next->max[q];
            state->sum[q] = next->sum[q];
            memcpy(values, added, (size_t)width * sizeof *values);
            continue;
        }
        float max = state->max[q] > next->max[q] ? state->max[q] : next->max[q];
        v16 keep = decay(state->max[q], max), take = decay(next->max[q], max);
        float sums[16];
        v16_store(sums, v16_fma(v16_all(state->sum[q]), keep, v16_mul(v16_all(next->sum[q]), take)));
        state->max[q] = max;
        state->sum[q] = sums[0];
        for (int i = 0; i < width; i += 16)
            v16_store(values + i, v16_fma(v16_load(values + i), keep, v16_mul(v16_load(added + i), take)));
    }
}
