/* Inner kernels of the row operations for one instruction set, and the table of all of them; see ops.h. */
#include "ops.isa.h"

/* Rows are worked on in steps of 16; a row that ends within a step gets its last values through a zeroed vector. */
static v16 load_tail(const float *x, int count) {
    float padded[16] = {0};
    memcpy(padded, x, (size_t)count * sizeof *x);
    return v16_load(padded);
}

static v16 load_some(const float *x, int i, int cols) {
    return cols - i >= 16 ? v16_load(x + i) : load_tail(x + i, cols - i);
}

static void store_some(float *x, int i, int cols, v16 value) {
    if (cols - i >= 16) {
        v16_store(x + i, value);
        return;
    }
    float padded[16];
    v16_store(padded, value);
    memcpy(x + i, padded, (size_t)(cols - i) * sizeof *x);
}

static void norm_row(const float *x, const float *weight, const float *bias, int cols, float eps, bool mean,
                     float *out) {
    v16 center = v16_all(0);
    if (mean) {
        v16 sum = v16_all(0);
        for (int i = 0; i < cols; i += 16) sum = v16_add(sum, load_some(x, i, cols));
        center = v16_all(v16_sum(sum) / (float)cols);
    }
    int full = cols / 16 * 16;
    v16 squares = v16_all(0);
    for (int i = 0; i < full; i += 16) {
        v16 value = v16_sub(v16_load(x + i), center);
        squares = v16_fma(value, value, squares);
    }
    if (full < cols) { /* lanes past the end: x − x = 0, where x is the center itself */
        float padded[16];
        v16_store(padded, center);
        memcpy(padded, x + full, (size_t)(cols - full) * sizeof *x);
        v16 value = v16_sub(v16_load(padded), center);
        squares = v16_fma(value, value, squares);
    }
    v16 scale = v16_all(1.0F / sqrtf(v16_sum(squares) / (float)cols + eps));
    for (int i = 0; i < cols; i += 16) {
        v16 value = v16_mul(v16_mul(v16_sub(load_some(x, i, cols), center), scale), load_some(weight, i, cols));
        if (bias) value = v16_add(value, load_some(bias, i, cols));
        store_some(out, i, cols, value);
    }
}

/* Products and sums are rounded one by one. So are they in vectors that the compiler makes, as long as a difference and
 * a sum are not neighbours: of those it would make a fused operation, -ffp-contract=off or not. */
static void turn(const float *restrict turns, int pairs, float *restrict a, float *restrict b) {
    for (int i = 0; i < pairs; i++) {
        float x = a[i], y = b[i], cosine = turns[2 * i], sine = turns[2 * i + 1];
        a[i] = x * cosine - y * sine;
        b[i] = x * sine + y * cosine;
    }
}

static void rotate(const float *turns, int pairs, bool interleaved, float *head) {
    if (!interleaved) {
        turn(turns, pairs, head, head + pairs);
        return;
    }
    enum { AT_ONCE = 32 };
    float even[AT_ONCE], odd[AT_ONCE];
    for (int first = 0; first < pairs; first += AT_ONCE, head += 2 * AT_ONCE) {
        int count = pairs - first < AT_ONCE ? pairs - first : AT_ONCE;
        for (int i = 0; i < count; i++) {
            even[i] = head[2 * i];
            odd[i] = head[2 * i + 1];
        }
        turn(turns + 2 * first, count, even, odd);
        for (int i = 0; i < count; i++) {
            head[2 * i] = even[i];
            head[2 * i + 1] = odd[i];
        }
    }
}

static void narrow(const float *from, int count, uint16_t *to) {
    int i = 0;
    for (; i + 16 <= count; i += 16) v16_store_f16(to + i, v16_load(from + i));
    for (; i < count; i++) to[i] = pen_f32_to_f16(from[i]);
}

const pen_cpu_op_kernels PEN_ISA_NAME(pen_cpu_op_kernels) = {
    .norm_row = norm_row,
    .rotate = rotate,
    .narrow = narrow,
    .scores = PEN_ISA_NAME(pen_attention_scores),
    .scores_q8_0 = PEN_ISA_NAME(pen_attention_scores_q8_0),
    .soften = PEN_ISA_NAME(pen_attention_soften),
    .weigh = PEN_ISA_NAME(pen_attention_weigh),
    .merge = PEN_ISA_NAME(pen_attention_merge),
    .slice = PEN_ISA_NAME(pen_sample_slice),
    .weights = PEN_ISA_NAME(pen_sample_weights),
};
