/*
 * Inner kernels of attention for one instruction set.
 *
 * Numeric contract, per query, whatever the tile, the other queries and the thread:
 *   score of a position  fma over d in order, positions in lanes
 *   weight               exp(s − max), max over the visible positions of the span; exactly 0 where not visible
 *   sum of weights       16 partials by position mod 16 in order, then the tree of v16_sum
 *   value d              fma over the span's positions in order, values in lanes
 *   spans                merged in order by pen_attention_merge
 * Tiles below only decide how many independent results are in registers at a time.
 */
#include "ops.isa.h"

#define TILE static inline __attribute__((always_inline))

/* Largest tiles that stay in registers: queries × K blocks and queries × vectors of values. */
#if defined(__AVX512F__)
enum { SCORE_QUERIES = 8, VALUE_QUERIES = 4, VALUE_VECTORS = 4 };
#else
enum { SCORE_QUERIES = 2, VALUE_QUERIES = 2, VALUE_VECTORS = 2 };
#endif

/* Element `index` and the next 15 of a block. */
TILE v16 load_elements(const bool half, const void *block, int index) {
    return half ? v16_load_f16((const uint16_t *)block + index) : v16_load((const float *)block + index);
}

/* ---- Scores ---------------------------------------------------------------------------------------------------- */

TILE void score_tile(const int q_count, const int k_count, const bool half, const float *queries, int query_stride,
                     int head_size, const void *const *blocks, float *scores) {
    v16 sums[8][2], k[2];
#pragma GCC unroll 8
    for (int q = 0; q < q_count; q++)
#pragma GCC unroll 2
        for (int b = 0; b < k_count; b++) sums[q][b] = v16_all(0);
    for (int d = 0; d < head_size; d++, queries += query_stride) {
#pragma GCC unroll 2
        for (int b = 0; b < k_count; b++) k[b] = load_elements(half, blocks[b], d * PEN_KV_BLOCK);
#pragma GCC unroll 8
        for (int q = 0; q < q_count; q++) {
            v16 x = v16_all(queries[q]);
#pragma GCC unroll 2
            for (int b = 0; b < k_count; b++) sums[q][b] = v16_fma(x, k[b], sums[q][b]);
        }
    }
#pragma GCC unroll 8
    for (int q = 0; q < q_count; q++)
#pragma GCC unroll 2
        for (int b = 0; b < k_count; b++) v16_store(scores + q * PEN_SCORE_STRIDE + b * PEN_KV_BLOCK, sums[q][b]);
}

/* All queries against one or two K blocks. */
TILE void score_blocks(const int k_count, const bool half, const float *queries, int query_stride, int n, int head_size,
                       const void *const *blocks, float *scores) {
    for (; n >= SCORE_QUERIES; n -= SCORE_QUERIES) {
        score_tile(SCORE_QUERIES, k_count, half, queries, query_stride, head_size, blocks, scores);
        queries += SCORE_QUERIES;
        scores += SCORE_QUERIES * PEN_SCORE_STRIDE;
    }
    for (int take; n > 0; n -= take, queries += take, scores += take * PEN_SCORE_STRIDE) {
        switch (take = n >= 4 ? 4 : n) {
        case 4: score_tile(4, k_count, half, queries, query_stride, head_size, blocks, scores); break;
        case 3: score_tile(3, k_count, half, queries, query_stride, head_size, blocks, scores); break;
        case 2: score_tile(2, k_count, half, queries, query_stride, head_size, blocks, scores); break;
        default: score_tile(1, k_count, half, queries, query_stride, head_size, blocks, scores);
        }
    }
}

TILE void score_all(const bool half, const float *queries, int query_stride, int n, int head_size,
                    const pen_attention_blocks *keys, float *scores) {
    int b = 0;
    for (; b + 2 <= keys->count; b += 2)
        score_blocks(2, half, queries, query_stride, n, head_size, keys->at + b, scores + b * PEN_KV_BLOCK);
    if (b < keys->count)
        score_blocks(1, half, queries, query_stride, n, head_size, keys->at + b, scores + b * PEN_KV_BLOCK);
}

void PEN_ISA_NAME(pen_attention_scores)(const float *queries, int query_stride, int n, int head_size,
                                        const pen_attention_blocks *keys, float *scores) {
    if (keys->half)
        score_all(true, queries, query_stride, n, head_size, keys, scores);
    else
        score_all(false, queries, query_stride, n, head_size, keys, scores);
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

float PEN_ISA_NAME(pen_attention_soften)(float *scores, int count, int from, int to, float softcap, float *max) {
    const v16 nothing = v16_all(-INFINITY), zero = v16_all(0);
    int first = from / 16 * 16, end = (to + 15) / 16 * 16;
    v16 largest = nothing;
    for (int i = first; i < end; i += 16) {
        v16 s = v16_load(scores + i);
        if (softcap > 0) s = v16_mul(v16_all(softcap), v16_tanh(s));
        s = visible(s, nothing, i, from, to);
        v16_store(scores + i, s);
        largest = v16_max(largest, s);
    }
    *max = v16_largest(largest);
    v16 top = v16_all(*max), sum = zero;
    for (int i = 0; i < first; i += 16) v16_store(scores + i, zero);
    for (int i = first; i < end; i += 16) {
        v16 weight = visible(v16_exp(v16_sub(v16_load(scores + i), top)), zero, i, from, to);
        v16_store(scores + i, weight);
        sum = v16_add(sum, weight);
    }
    for (int i = end; i < count; i += 16) v16_store(scores + i, zero);
    return v16_sum(sum);
}

/* ---- Values ---------------------------------------------------------------------------------------------------- */

/* What a tile of values works on: columns [column, column + 16·vectors) of all queries. */
typedef struct value_job {
    const pen_attention_blocks *values;
    int positions, head_size, width, column;
} value_job;

TILE void value_tile(const int q_count, const int v_count, const bool half, const value_job *job, const float *scores,
                     float *sums) {
    v16 sum[4][4], v[4];
    int width = job->width;
#pragma GCC unroll 4
    for (int q = 0; q < q_count; q++)
#pragma GCC unroll 4
        for (int i = 0; i < v_count; i++) sum[q][i] = v16_load(sums + q * width + 16 * i);
    for (int b = 0, left = job->positions; left > 0; b++, left -= PEN_KV_BLOCK) {
        const void *block = job->values->at[b];
        int rows = left < PEN_KV_BLOCK ? left : PEN_KV_BLOCK, at = job->column;
        for (int j = 0; j < rows; j++, at += job->head_size, scores++) {
#pragma GCC unroll 4
            for (int i = 0; i < v_count; i++) v[i] = load_elements(half, block, at + 16 * i);
#pragma GCC unroll 4
            for (int q = 0; q < q_count; q++) {
                v16 weight = v16_all(scores[q * PEN_SCORE_STRIDE]);
#pragma GCC unroll 4
                for (int i = 0; i < v_count; i++) sum[q][i] = v16_fma(weight, v[i], sum[q][i]);
            }
        }
    }
#pragma GCC unroll 4
    for (int q = 0; q < q_count; q++)
#pragma GCC unroll 4
        for (int i = 0; i < v_count; i++) v16_store(sums + q * width + 16 * i, sum[q][i]);
}

TILE void value_columns(const int v_count, const bool half, const value_job *job, int n, const float *scores,
                        float *sums) {
    sums += job->column;
    for (; n >= VALUE_QUERIES; n -= VALUE_QUERIES) {
        value_tile(VALUE_QUERIES, v_count, half, job, scores, sums);
        scores += VALUE_QUERIES * PEN_SCORE_STRIDE;
        sums += VALUE_QUERIES * job->width;
    }
    switch (n) {
    case 3: value_tile(3, v_count, half, job, scores, sums); break;
    case 2: value_tile(2, v_count, half, job, scores, sums); break;
    case 1: value_tile(1, v_count, half, job, scores, sums); break;
    default: break;
    }
}

TILE void value_all(const bool half, value_job job, int n, const float *scores, float *sums) {
    for (; job.column + 16 * VALUE_VECTORS <= job.width; job.column += 16 * VALUE_VECTORS)
        value_columns(VALUE_VECTORS, half, &job, n, scores, sums);
    switch ((job.width - job.column) / 16) {
    case 3: value_columns(3, half, &job, n, scores, sums); break;
    case 2: value_columns(2, half, &job, n, scores, sums); break;
    case 1: value_columns(1, half, &job, n, scores, sums); break;
    default: break;
    }
}

void PEN_ISA_NAME(pen_attention_weigh)(const float *scores, int n, const pen_attention_blocks *values, int positions,
                                       int head_size, int width, float *sums) {
    value_job job = {.values = values, .positions = positions, .head_size = head_size, .width = width};
    if (values->half)
        value_all(true, job, n, scores, sums);
    else
        value_all(false, job, n, scores, sums);
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
