/*
 * Everything that multiplies by a weight: each operation on each instruction set, weight type and activation form
 * against sums in double made here from the GGUF rows, and bit for bit against each other, for any number of threads
 * and any split into batches.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "linear.h"
#include "matrix.h"
#include "one_run.h"
#include "pack.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_MAX = 70, COLS_MAX = 1536 };

enum { TYPES = PEN_TYPE_COUNT };

/* ---- Devices --------------------------------------------------------------------------------------------------- */

/* Those of AVX-VNNI with the other encoding of its instruction (evex.h), for machines that have AVX-512's. */
static const pen_cpu_linear_kernels *evex_kernels(void) {
#if defined(__x86_64__)
    extern const pen_cpu_linear_kernels pen_cpu_linear_kernels_evex;
    const char *names = pen_cpu_isa_names();
    if (strstr(names, "avx512") && !strstr(names, "avxvnni")) return &pen_cpu_linear_kernels_evex;
#endif
    return NULL;
}

/* The ones to compare: the reference first, then what this machine can run, with various numbers of threads. */
typedef struct variant {
    pen_cpu_isa isa;
    int threads;
} variant;

static const variant variants[] = {{PEN_CPU_REFERENCE, 1}, {PEN_CPU_PORTABLE, 1}, {PEN_CPU_PORTABLE, 3},
                                   {PEN_CPU_AVX2, 1},      {PEN_CPU_AVX2, 2},     {PEN_CPU_AVXVNNI, 2},
                                   {PEN_CPU_AVX512, 1},    {PEN_CPU_AVX512, 3}};
enum { VARIANTS = sizeof variants / sizeof *variants };

/* NULL where this machine lacks the instruction set. */
static pen_device *open_device(variant v, pen_activations activations) {
    pen_cpu_options options = {.isa = v.isa, .activations = activations, .threads = v.threads};
    const pen_cpu_linear_kernels *kernels = v.isa == PEN_CPU_AVXVNNI ? evex_kernels() : NULL;
    if (kernels) options.isa = PEN_CPU_AVX2;
    pen_device *device;
    pen_status status = pen_cpu_device_create(&options, &device);
    if (status == PEN_UNSUPPORTED && v.isa > PEN_CPU_PORTABLE) return NULL;
    assert_int_equal(status, PEN_OK);
    if (kernels) ((pen_cpu_device *)device)->linear = kernels;
    pen_limits limits = {.rows = ROWS_MAX,
                         .logit_rows = ROWS_MAX,
                         .hidden = COLS_MAX,
                         .ffn = COLS_MAX,
                         .heads = 1,
                         .kv_heads = 1,
                         .head_size = 64,
                         .vocab = 1000,
                         .context = 128};
    assert_int_equal(pen_device_reserve(device, &limits), PEN_OK);
    return device;
}

static pen_buffer *buffer_of(pen_device *device, const void *source, size_t bytes) {
    pen_buffer *buffer;
    assert_int_equal(pen_buffer_create(device, bytes, &buffer), PEN_OK);
    pen_buffer_write(buffer, 0, source, bytes);
    return buffer;
}

static pen_weight *weight_of(pen_device *device, matrix m) {
    pen_weight *weight;
    assert_int_equal(pen_weight_create(device, m.type, m.rows, m.cols, &weight), PEN_OK);
    int half = m.rows / 2 / 64 * 64; /* in two pieces, as a loader may */
    if (half > 0) pen_weight_write(weight, 0, half, m.bytes);
    pen_weight_write(weight, half, m.rows - half, m.bytes + pen_type_row_bytes(m.type, m.cols) * (size_t)half);
    return weight;
}

/* Value i of an activation row. */
static float value_of(pen_row_form form, const void *row, size_t i) {
    const pen_activation_block *block = (const pen_activation_block *)row + i / PEN_QUANT_BLOCK;
    const pen_fine_block *fine = (const pen_fine_block *)row + i / PEN_QUANT_BLOCK;
    size_t at = i % PEN_QUANT_BLOCK;
    if (form == PEN_ROW_F32) return ((const float *)row)[i];
    if (form == PEN_ROW_INT8) return block->factors.scale * (float)block->q[at];
    return fine->factors.scale * (float)(128 * fine->parts[0][at] + fine->parts[1][at]);
}

/* Fills activation rows of x[tokens][cols], and `values` with what they stand for. Returns the end of the rows. */
static unsigned char *store_rows(pen_device *device, pen_row_form form, const float *x, int tokens, int cols,
                                 unsigned char *rows, float *values) {
    size_t row_bytes = pen_activation_row_bytes(form, cols), size = (size_t)cols;
    for (size_t t = 0; t < (size_t)tokens; t++, rows += row_bytes) {
        pen_cpu_activation_store((pen_cpu_device *)device, form, x + t * size, cols, rows);
        for (size_t i = 0; i < size; i++) values[t * size + i] = value_of(form, rows, i);
    }
    return rows;
}

static pen_buffer *activations_of(pen_device *device, const float *x, int tokens, int cols, bool fine, float *values) {
    pen_row_form form = pen_row_form_of(pen_device_activations(device), fine);
    size_t bytes = pen_activation_row_bytes(form, cols) * (size_t)tokens;
    unsigned char *rows = allocate(bytes);
    store_rows(device, form, x, tokens, cols, rows, values);
    pen_buffer *buffer = buffer_of(device, rows, bytes);
    free(rows);
    return buffer;
}

/* What a norm makes for Q, K and V: fine rows, and behind them coarser ones for Q and K where these are of another
 * form. */
static pen_buffer *qkv_rows_of(pen_device *device, const float *x, int tokens, int cols, float *of_scores,
                               float *of_v) {
    size_t bytes = pen_device_fine_bytes(device, tokens, cols);
    unsigned char *rows = allocate(bytes);
    pen_row_form fine = pen_row_form_of(pen_device_activations(device), true), score = pen_cpu_score_form(device);
    unsigned char *behind = store_rows(device, fine, x, tokens, cols, rows, of_v);
    store_rows(device, score, x, tokens, cols, score == fine ? rows : behind, of_scores);
    pen_buffer *buffer = buffer_of(device, rows, bytes);
    free(rows);
    return buffer;
}

/* ---- What must come out ---------------------------------------------------------------------------------------- */

static void assert_near(double value, double expected, double tolerance, const char *what, variant v) {
    if (!(fabs(value - expected) <= tolerance))
        fail_msg("%s: %.9g, expected %.9g ± %.2g (instruction set %d, %d threads)", what, value, expected, tolerance,
                 (int)v.isa, v.threads);
}

/* Keeps the first result of a fast instruction set and compares the others with it. */
static void assert_same_bits(void **first, const void *result, size_t bytes, variant v) {
    if (v.isa == PEN_CPU_REFERENCE) return;
    if (!*first) {
        *first = allocate(bytes);
        memcpy(*first, result, bytes);
    } else if (memcmp(*first, result, bytes) != 0) {
        fail_msg("instruction set %d with %d threads gives other bits", (int)v.isa, v.threads);
    }
}

/* ---- Matrix products ------------------------------------------------------------------------------------------- */

typedef struct product_case {
    pen_activations activations;
    pen_type types[3];
    int rows[3];
    int cols, tokens;
    bool bias;
} product_case;

/* qkv of all tokens at once on every variant, then again in batches of 1, 3 and the rest. */
static void check_qkv(product_case c) {
    matrix w[3];
    int columns = 0;
    for (int i = 0; i < 3; i++) {
        w[i] = random_matrix(c.types[i], c.rows[i], c.cols);
        columns += c.rows[i];
    }
    float *x = random_floats((size_t)c.tokens * (size_t)c.cols), *bias = random_floats((size_t)columns);
    size_t count = (size_t)c.tokens * (size_t)c.cols;
    float *values[2] = {allocate(count * sizeof(float)), allocate(count * sizeof(float))}; /* of Q and K, of V */
    size_t bytes = (size_t)c.tokens * (size_t)columns * sizeof(float);
    float *result = allocate(bytes);
    void *first = NULL;
    for (int v = 0; v < VARIANTS; v++) {
        pen_device *device = open_device(variants[v], c.activations);
        if (!device) continue;
        pen_weight *weights[3];
        for (int i = 0; i < 3; i++) weights[i] = weight_of(device, w[i]);
        pen_buffer *biases[3] = {NULL, NULL, NULL};
        for (int i = 0, column = 0; c.bias && i < 3; column += c.rows[i++])
            biases[i] = buffer_of(device, bias + column, (size_t)c.rows[i] * sizeof(float));
        for (int split = 0; split < 2; split++) {
            memset(result, 0xff, bytes);
            for (int t = 0, n; t < c.tokens; t += n) {
                n = split == 0 ? c.tokens : t == 0 ? 1 : t == 1 && c.tokens > 4 ? 3 : c.tokens - t;
                size_t at = (size_t)t * (size_t)c.cols;
                pen_buffer *rows = qkv_rows_of(device, x + at, n, c.cols, values[0] + at, values[1] + at);
                pen_buffer *out;
                assert_int_equal(pen_buffer_create(device, (size_t)n * (size_t)columns * sizeof(float), &out), PEN_OK);
                set_rows(device, n, NULL, 0, NULL);
                pen_op_qkv(device, &(pen_qkv_op){rows, weights[0], weights[1], weights[2], biases[0], biases[1],
                                                 biases[2], out});
                pen_buffer_read(out, 0, result + (size_t)t * (size_t)columns,
                                (size_t)n * (size_t)columns * sizeof(float));
                pen_buffer_destroy(rows);
                pen_buffer_destroy(out);
            }
            assert_same_bits(&first, result, bytes, variants[v]);
        }
        double limit = variants[v].isa == PEN_CPU_REFERENCE ? 1e-7 : 1e-5;
        for (int t = 0; t < c.tokens && (v == 0 || variants[v].isa == PEN_CPU_PORTABLE); t++)
            for (int i = 0, column = 0; i < 3; column += c.rows[i++])
                for (int n = 0; n < c.rows[i]; n++) {
                    double size, sum = expected_dot(w[i], n, values[i == 2] + (size_t)t * (size_t)c.cols, &size);
                    if (c.bias) sum += (double)bias[column + n];
                    assert_near((double)result[(size_t)t * (size_t)columns + (size_t)(column + n)], sum,
                                limit * (size + 1), pen_type_get(c.types[i])->name, variants[v]);
                }
        for (int i = 0; i < 3; i++) pen_weight_destroy(weights[i]);
        for (int i = 0; i < 3; i++) pen_buffer_destroy(biases[i]);
        pen_device_destroy(device);
    }
    for (int i = 0; i < 3; i++) matrix_free(w[i]);
    free(x);
    free(bias);
    for (int i = 0; i < 2; i++) free(values[i]);
    free(result);
    free(first);
}

static void test_qkv_of_all_types_and_odd_shapes(void **state) {
    (void)state;
    random_state = 1;
    static const int tokens[] = {1, 2, 17, 5, 70}, cols[] = {576, 32, 160, 1536, 96};
    for (int a = 0; a < 2; a++)
        for (int i = 0; i < TYPES; i++) {
            pen_activations activations = a ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST;
            pen_type q = (pen_type)i, k = (pen_type)((i + 1) % TYPES), v = (pen_type)((i + 3) % TYPES);
            int shape = (i + 2 * a) % 5, next = (shape + 1) % 5;
            check_qkv(
                (product_case){activations, {q, q, q}, {60, 33, 1}, columns_for(cols[shape], q), tokens[shape], true});
            int columns = columns_for(columns_for(columns_for(cols[next], q), k), v);
            check_qkv((product_case){activations, {q, k, v}, {16, 45, 40}, columns, tokens[(shape + 2) % 5], false});
        }
}

/* Every number of tokens up to a tile and beyond, in one batch and in three. */
static void test_any_number_of_tokens(void **state) {
    (void)state;
    random_state = 8;
    for (int tokens = 1; tokens <= ROWS_MAX; tokens++) {
        pen_type type = (pen_type)(tokens % TYPES);
        pen_activations activations = tokens / TYPES % 2 ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST;
        int cols = columns_for(32, type);
        check_qkv((product_case){activations, {type, type, type}, {17, 1, 3}, cols, tokens, true});
    }
}

/* ---- Projections: stored, added, with and without bias --------------------------------------------------------- */

/* Uses up w and x[tokens][w.cols]. */
static void check_project(matrix w, pen_activations activations, float *x, int tokens, bool store, bool bias,
                          bool down) {
    int rows = w.rows, cols = w.cols;
    float *residual = random_floats((size_t)tokens * (size_t)rows);
    float *bias_values = random_floats((size_t)rows);
    float *values = allocate((size_t)tokens * (size_t)cols * sizeof(float));
    size_t bytes = (size_t)tokens * (size_t)rows * sizeof(float);
    float *result = allocate(bytes);
    void *first = NULL;
    for (int v = 0; v < VARIANTS; v++) {
        pen_device *device = open_device(variants[v], activations);
        if (!device) continue;
        pen_weight *weight = weight_of(device, w);
        pen_buffer *bias_buffer = buffer_of(device, bias_values, (size_t)rows * sizeof(float));
        pen_buffer *x_rows = activations_of(device, x, tokens, cols, false, values);
        pen_buffer *out = buffer_of(device, residual, bytes);
        set_rows(device, tokens, NULL, 0, NULL);
        pen_project_op op = {x_rows, weight, bias ? bias_buffer : NULL, store, out};
        if (down)
            pen_op_down(device, &op);
        else
            pen_op_out_project(device, &op);
        pen_buffer_read(out, 0, result, bytes);
        assert_same_bits(&first, result, bytes, variants[v]);
        for (int t = 0; t < tokens; t++)
            for (int n = 0; n < rows; n++) {
                double size, sum = expected_dot(w, n, values + (size_t)t * (size_t)cols, &size);
                size_t at = (size_t)t * (size_t)rows + (size_t)n;
                if (bias) sum += (double)bias_values[n];
                if (!store) sum += (double)residual[at];
                assert_near((double)result[at], sum, 1e-5 * (size + 1), "projection", variants[v]);
            }
        pen_buffer_destroy(bias_buffer);
        pen_buffer_destroy(x_rows);
        pen_buffer_destroy(out);
        pen_weight_destroy(weight);
        pen_device_destroy(device);
    }
    matrix_free(w);
    free(x);
    free(residual);
    free(bias_values);
    free(values);
    free(result);
    free(first);
}

static void test_projections_store_or_add(void **state) {
    (void)state;
    random_state = 2;
    for (int i = 0; i < TYPES; i++) {
        int cols = columns_for(96, (pen_type)i), tokens = 1 + 3 * (i % 8);
        check_project(random_matrix((pen_type)i, 40 + 7 * i, cols),
                      i % 3 == 0 ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST,
                      random_floats((size_t)tokens * (size_t)cols), tokens, i & 1, i & 2, i & 4);
    }
}

/* Up to 16 rows of w times fine activation rows, by the kernels themselves. */
static void check_fine_dot(matrix w, const float *x, int tokens) {
    float *values = allocate((size_t)tokens * (size_t)w.cols * sizeof(float)), y[ROWS_MAX * PEN_PACK_ROWS];
    size_t bytes = (size_t)tokens * PEN_PACK_ROWS * sizeof(float);
    void *first = NULL;
    for (int v = 1; v < VARIANTS; v++) {
        pen_device *device = open_device(variants[v], PEN_ACTIVATIONS_FAST);
        if (!device) continue;
        pen_weight *weight = weight_of(device, w);
        pen_buffer *rows = activations_of(device, x, tokens, w.cols, true, values);
        ((pen_cpu_device *)device)
            ->linear->dot[PEN_ROW_FINE][w.type](((pen_cpu_weight *)weight)->data, w.cols / PEN_QUANT_BLOCK,
                                                pen_cpu_data(rows), pen_activation_row_bytes(PEN_ROW_FINE, w.cols),
                                                tokens, y);
        assert_same_bits(&first, y, bytes, variants[v]);
        for (int t = 0; t < tokens; t++)
            for (int n = 0; n < w.rows; n++) {
                double size, sum = expected_dot(w, n, values + t * w.cols, &size);
                assert_near((double)y[t * PEN_PACK_ROWS + n], sum, 1e-5 * (size + 1), "fine rows", variants[v]);
            }
        pen_buffer_destroy(rows);
        pen_weight_destroy(weight);
        pen_device_destroy(device);
    }
    free(values);
    free(first);
}

/* The largest products that there are, of either sign, all in one sum: nothing saturates on the way. */
static void test_the_largest_integers(void **state) {
    (void)state;
    random_state = 9;
    static const unsigned char fillings[] = {0x00, 0xff, 0x7f, 0x80, 0x0f, 0xf0, 0x01, 0xfe};
    enum { FILLINGS = sizeof fillings, TOKENS = 5 };
    for (int i = 0; i < TYPES; i++) {
        const pen_type_info *info = pen_type_get((pen_type)i);
        if (!info->quant.bits) continue;
        int cols = info->block_values;
        matrix w = random_matrix((pen_type)i, FILLINGS, cols);
        for (int row = 0; row < FILLINGS; row++) { /* whose factors stay */
            unsigned char *block = w.bytes + row * info->block_bytes;
            for (int at = 0; at < info->block_bytes; at++)
                if (at / 2 * 2 != info->quant.d && at / 2 * 2 != info->quant.m && (at > 0 || info->quant.d >= 0))
                    block[at] = fillings[row];
            pen_type_dequantize_row((pen_type)i, block, cols, w.values + row * cols);
        }
        float *x = allocate(sizeof *x * TOKENS * (size_t)cols);
        for (int k = 0; k < cols; k++) {
            x[k] = 1;
            x[cols + k] = -1;
            x[2 * cols + k] = k % 32 < 16 ? 1 : -1;
            x[3 * cols + k] = k % 2 ? 1 : -1;
            x[4 * cols + k] = k % 32 ? 16192.0F / 16256 : 1; /* of a fine row both parts are as large as can be */
        }
        check_fine_dot(w, x, TOKENS);
        check_project(w, PEN_ACTIVATIONS_FAST, x, TOKENS, true, false, true);
    }
}

static void test_packed_weights_are_as_small_as_the_file(void **state) {
    (void)state;
    pen_device *device = open_device((variant){PEN_CPU_PORTABLE, 1}, PEN_ACTIVATIONS_FAST);
    for (int i = 0; i < TYPES; i++) {
        size_t file = 160 * pen_type_row_bytes((pen_type)i, 1024);
        size_t packed = pen_weight_bytes(device, (pen_type)i, 160, 1024);
        assert_in_range(packed, file, file + file / 25);
    }
    pen_device_destroy(device);
}

static void test_rows_that_end_within_a_block_are_refused(void **state) {
    (void)state;
    for (int a = 0; a < 2; a++) {
        pen_device *device = open_device((variant){PEN_CPU_PORTABLE, 1}, (pen_activations)a);
        for (int i = 0; i < TYPES; i++) {
            const pen_type_info *info = pen_type_get((pen_type)i);
            int multiple = info->block_values > 32 ? info->block_values : 32;
            pen_weight *weight;
            char text[128];
            assert_int_equal(pen_weight_create(device, (pen_type)i, 16, multiple / 2 * 3, &weight), PEN_UNSUPPORTED);
            snprintf(text, sizeof text, "a %s weight of %d columns: the CPU needs a multiple of %d", info->name,
                     multiple / 2 * 3, multiple);
            assert_string_equal(pen_last_error(), text);
        }
        pen_device_destroy(device);
    }
}

/* ---- Gate and up ----------------------------------------------------------------------------------------------- */

static double activate(double x, pen_gate act) {
    return act == PEN_GATE_SILU ? x / (1 + exp(-x))
                                : 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

static void check_gate_up(pen_type type, pen_activations activations, pen_gate act, bool gated, bool bias, int rows,
                          int cols, int tokens) {
    matrix gate = random_matrix(type, rows, cols), up = random_matrix(type, rows, cols);
    float *x = random_floats((size_t)tokens * (size_t)cols), *bias_values = random_floats((size_t)rows);
    float *values = allocate((size_t)tokens * (size_t)cols * sizeof(float));
    pen_row_form form = pen_row_form_of(activations, false);
    size_t stride = pen_activation_row_bytes(form, rows), bytes = stride * (size_t)tokens;
    unsigned char *result = allocate(bytes), *empty = allocate(bytes);
    void *first = NULL;
    for (int v = 0; v < VARIANTS; v++) {
        pen_device *device = open_device(variants[v], activations);
        if (!device) continue;
        pen_weight *gate_weight = weight_of(device, gate), *up_weight = weight_of(device, up);
        pen_buffer *bias_buffer = buffer_of(device, bias_values, (size_t)rows * sizeof(float));
        pen_buffer *x_rows = activations_of(device, x, tokens, cols, false, values);
        pen_buffer *out = buffer_of(device, empty, bytes);
        set_rows(device, tokens, NULL, 0, NULL);
        pen_op_gate_up(device, &(pen_gate_up_op){x_rows, gated ? gate_weight : NULL, up_weight,
                                                 bias ? bias_buffer : NULL, act, out});
        pen_buffer_read(out, 0, result, bytes);
        assert_same_bits(&first, result, bytes, variants[v]);
        for (int t = 0; t < tokens; t++)
            for (int n = 0; n < rows; n++) {
                double gate_size = 0, up_size;
                const float *row = values + (size_t)t * (size_t)cols;
                double u = expected_dot(up, n, row, &up_size) + (bias ? (double)bias_values[n] : 0);
                double g = gated ? expected_dot(gate, n, row, &gate_size) : 0;
                double sum = gated ? activate(g, act) * u : activate(u, act);
                /* An error in g or u passes on at most 1.2-fold, times the other factor. */
                double tolerance = 2e-5 * (gated ? gate_size * (fabs(u) + 1) + up_size * (fabs(g) + 1) : up_size + 1);
                const unsigned char *at = result + stride * (size_t)t;
                if (form == PEN_ROW_INT8)
                    tolerance += 0.51 * (double)((const pen_activation_block *)(const void *)at)[n / 32].factors.scale;
                assert_near((double)value_of(form, at, (size_t)n), sum, tolerance, "gate and up", variants[v]);
            }
        pen_buffer_destroy(bias_buffer);
        pen_buffer_destroy(x_rows);
        pen_buffer_destroy(out);
        pen_weight_destroy(gate_weight);
        pen_weight_destroy(up_weight);
        pen_device_destroy(device);
    }
    matrix_free(gate);
    matrix_free(up);
    free(x);
    free(bias_values);
    free(values);
    free(result);
    free(empty);
    free(first);
}

static void test_gate_up_activates_and_quantises(void **state) {
    (void)state;
    random_state = 3;
    for (int i = 0; i < TYPES; i++) {
        pen_type type = (pen_type)i;
        pen_activations activations = i % 2 ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST;
        check_gate_up(type, activations, PEN_GATE_SILU, true, false, 160, columns_for(64, type), 3 + 2 * (i % 8));
        check_gate_up(type, activations, PEN_GATE_GELU_TANH, true, true, 96, columns_for(96, type), 1);
        check_gate_up(type, PEN_ACTIVATIONS_FAST, PEN_GATE_GELU_TANH, false, i % 2, 64, columns_for(32, type), 70);
    }
}

/* ---- Logits and embedding -------------------------------------------------------------------------------------- */

enum { VOCAB = 203, HIDDEN = 512, TOKENS = 21, WANTED = 3 };
static const int32_t wanted[WANTED] = {0, 4, 20};

/* The picks of a greedy batch are the largest of the logits, the lowest id among equals, by the short way where there
 * is one; and bad where the row is. */
static void check_greedy(pen_device *device, const pen_logits_op *op, float result[WANTED][VOCAB], bool is_short) {
    static const int32_t table[128 / PEN_KV_BLOCK];
    pen_run run = {.rows = TOKENS, .tables = {table, table}};
    pen_batch batch = {
        .rows = TOKENS, .run_count = 1, .runs = &run, .logit_count = WANTED, .logit_rows = wanted, .greedy = true};
    pen_pick picks[WANTED];
    for (int l = 0; l < WANTED; l++) picks[l] = (pen_pick){.target = -1, .top_logprobs = -1};
    pen_choice chosen[WANTED] = {0};
    pen_buffer *choices = buffer_of(device, chosen, sizeof chosen);
    for (int spoilt = 0; spoilt < 2; spoilt++) {
        if (spoilt) ((float *)pen_buffer_host((pen_buffer *)op->norm.x))[wanted[1] * HIDDEN + 40] = NAN;
        pen_device_set_batch(device, &batch);
        pen_op_logits(device, op);
        assert_int_equal(((pen_cpu_device *)device)->best != NULL, is_short);
        pen_op_pick(device, op->logits, VOCAB, picks, choices);
        pen_buffer_read(choices, 0, chosen, sizeof chosen);
        for (int l = 0; l < WANTED; l++) {
            int best = 0;
            for (int n = 1; n < VOCAB; n++)
                if (result[l][n] > result[l][best]) best = n;
            assert_int_equal(chosen[l].bad_logits, spoilt && l == 1);
            if (!chosen[l].bad_logits) assert_int_equal(chosen[l].token, best);
        }
    }
    pen_buffer_destroy(choices);
}

static void check_logits(pen_type type, pen_activations activations, float softcap) {
    matrix w = random_matrix(type, VOCAB, HIDDEN);
    size_t twins = 100, row_bytes = pen_type_row_bytes(type, HIDDEN); /* equal logits */
    memcpy(w.bytes + twins * row_bytes, w.bytes, twins * row_bytes);
    memcpy(w.values + twins * HIDDEN, w.values, twins * HIDDEN * sizeof *w.values);
    float *x = random_floats((size_t)TOKENS * HIDDEN), *norm = random_floats(HIDDEN);
    float result[WANTED][VOCAB];
    void *first = NULL;
    for (int v = 0; v < VARIANTS; v++) {
        pen_device *device = open_device(variants[v], activations);
        if (!device) continue;
        pen_weight *weight = weight_of(device, w);
        pen_buffer *x_buffer = buffer_of(device, x, sizeof(float) * TOKENS * HIDDEN);
        pen_buffer *norm_buffer = buffer_of(device, norm, sizeof(float) * HIDDEN);
        pen_buffer *logits = buffer_of(device, result, sizeof result);
        set_rows(device, TOKENS, NULL, WANTED, wanted);
        pen_norm_op norm_op = {.x = x_buffer, .weight = norm_buffer, .cols = HIDDEN, .eps = 1e-5F};
        const pen_logits_op op = {norm_op, weight, softcap, logits};
        pen_op_logits(device, &op);
        pen_buffer_read(logits, 0, result, sizeof result);
        assert_same_bits(&first, result, sizeof result, variants[v]);
        for (int l = 0; l < WANTED; l++) {
            float normed[HIDDEN], values[HIDDEN];
            pen_cpu_norm_row((pen_cpu_device *)device, &norm_op, wanted[l], normed);
            pen_buffer_destroy(activations_of(device, normed, 1, HIDDEN, true, values));
            for (int n = 0; n < VOCAB; n++) {
                double size, sum = expected_dot(w, n, values, &size);
                if (softcap > 0) sum = (double)softcap * tanh(sum / (double)softcap);
                assert_near((double)result[l][n], sum, 1e-5 * size, "logit", variants[v]);
            }
        }
        const pen_quant *quant = &pen_type_get(type)->quant;
        bool is_short = variants[v].isa != PEN_CPU_REFERENCE && activations == PEN_ACTIVATIONS_FAST &&
                        quant->bits > 0 && quant->m < 0 && softcap == 0;
        check_greedy(device, &op, result, is_short);
        pen_buffer_destroy(x_buffer);
        pen_buffer_destroy(norm_buffer);
        pen_buffer_destroy(logits);
        pen_weight_destroy(weight);
        pen_device_destroy(device);
    }
    matrix_free(w);
    free(x);
    free(norm);
    free(first);
}

static void test_logits_of_chosen_rows(void **state) {
    (void)state;
    random_state = 4;
    for (int i = 0; i < TYPES; i++) {
        check_logits((pen_type)i, PEN_ACTIVATIONS_FAST, 0);
        if (i % 2) check_logits((pen_type)i, PEN_ACTIVATIONS_FAST, 3);
        check_logits((pen_type)i, PEN_ACTIVATIONS_F32, i % 2 ? 0 : 3);
    }
}

static void test_fine_rows_are_a_hundred_times_nearer(void **state) {
    (void)state;
    random_state = 7;
    enum { COLS = 576 };
    float *x = random_floats(COLS), plain[COLS], fine[COLS];
    pen_device *device = open_device((variant){PEN_CPU_PORTABLE, 1}, PEN_ACTIVATIONS_FAST);
    pen_buffer_destroy(activations_of(device, x, 1, COLS, false, plain));
    pen_buffer_destroy(activations_of(device, x, 1, COLS, true, fine));
    double off_plain = 0, off_fine = 0;
    for (int i = 0; i < COLS; i++) {
        off_plain += fabs((double)plain[i] - (double)x[i]);
        off_fine += fabs((double)fine[i] - (double)x[i]);
    }
    assert_true(off_plain > 0 && off_fine < off_plain / 100);
    pen_device_destroy(device);
    free(x);
}

static void test_embedding_reads_the_packed_rows(void **state) {
    (void)state;
    random_state = 5;
    int32_t tokens[TOKENS];
    for (int t = 0; t < TOKENS; t++) tokens[t] = t == 0 ? VOCAB - 1 : (int32_t)(random_bits() % VOCAB);
    for (int i = 0; i < TYPES; i++) {
        matrix table = random_matrix((pen_type)i, VOCAB, HIDDEN);
        for (int v = 0; v < VARIANTS; v++) {
            pen_device *device = open_device(variants[v], PEN_ACTIVATIONS_FAST);
            if (!device) continue;
            pen_weight *weight = weight_of(device, table);
            float result[TOKENS][HIDDEN];
            pen_buffer *x = buffer_of(device, result, sizeof result);
            set_rows(device, TOKENS, tokens, 0, NULL);
            pen_op_embed(device, &(pen_embed_op){.table = weight, .scale = 1.5F, .x = x});
            pen_buffer_read(x, 0, result, sizeof result);
            for (int t = 0; t < TOKENS; t++)
                for (int k = 0; k < HIDDEN; k++) {
                    float expected = table.values[tokens[t] * HIDDEN + k] * 1.5F;
                    assert_memory_equal(&result[t][k], &expected, sizeof expected);
                }
            pen_buffer_destroy(x);
            pen_weight_destroy(weight);
            pen_device_destroy(device);
        }
        matrix_free(table);
    }
}

/* ---- Activation rows ------------------------------------------------------------------------------------------- */

static void test_activation_rows_round_alike_and_pass_on_what_is_not_finite(void **state) {
    (void)state;
    random_state = 6;
    enum { COLS = 256 };
    float x[COLS];
    for (int i = 0; i < COLS; i++) x[i] = ldexpf(random_float(), (int)(random_bits() % 20) - 10);
    memset(x, 0, 32 * sizeof *x);                                /* block 0: zeros */
    for (int i = 32; i < 64; i++) x[i] = ldexpf(x[i], -120);     /* block 1: next to nothing */
    x[70] = NAN;                                                 /* block 2 */
    x[100] = -INFINITY;                                          /* block 3 */
    for (int i = 128; i < 160; i++) x[i] = (float)(i - 143) / 2; /* block 4: ties: the largest is 8 */
    enum { BLOCKS = COLS / 32 };
    float first_values[2][COLS];
    pen_activation_factors first[2][BLOCKS];
    for (int v = 0; v < VARIANTS; v++) {
        pen_device *device = open_device(variants[v], PEN_ACTIVATIONS_FAST);
        if (!device) continue;
        for (int fine = 0; fine < 2; fine++) {
            pen_row_form form = fine ? PEN_ROW_FINE : PEN_ROW_INT8;
            pen_activation_block row[BLOCKS];
            pen_fine_block fine_row[BLOCKS];
            assert_true(pen_activation_row_bytes(form, COLS) >= (fine ? sizeof fine_row : sizeof row));
            pen_cpu_activation_store((pen_cpu_device *)device, form, x, COLS, fine ? (void *)fine_row : row);
            for (int b = 0; b < BLOCKS; b++) {
                pen_activation_factors factors = fine ? fine_row[b].factors : row[b].factors;
                bool finite = b != 2 && b != 3;
                assert_int_equal(isnan(factors.scale) == 0, finite);
                assert_int_equal(isnan(factors.scaled_sum) == 0, finite);
                if (b < 2) assert_true(factors.scale == 0);
                int minus[2] = {0};
                for (int i = 0; i < 32; i++) {
                    int q = fine ? 128 * fine_row[b].parts[0][i] + fine_row[b].parts[1][i] : row[b].q[i];
                    if (fine) assert_in_range(fine_row[b].parts[1][i] + 64, 0, 127);
                    minus[i / 16] -= q;
                    float value = factors.scale * (float)q;
                    if (b > 3) assert_true(fabsf(value - x[32 * b + i]) <= 0.505F * factors.scale);
                    if (v == 0) first_values[fine][32 * b + i] = value;
                    if (finite) assert_true(value == first_values[fine][32 * b + i]);
                }
                assert_memory_equal(factors.minus, minus, sizeof minus);
                if (v == 0) first[fine][b] = factors;
                if (finite) assert_memory_equal(&factors, &first[fine][b], sizeof factors);
            }
        }
        pen_device_destroy(device);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_qkv_of_all_types_and_odd_shapes),
        cmocka_unit_test(test_any_number_of_tokens),
        cmocka_unit_test(test_projections_store_or_add),
        cmocka_unit_test(test_the_largest_integers),
        cmocka_unit_test(test_packed_weights_are_as_small_as_the_file),
        cmocka_unit_test(test_rows_that_end_within_a_block_are_refused),
        cmocka_unit_test(test_gate_up_activates_and_quantises),
        cmocka_unit_test(test_logits_of_chosen_rows),
        cmocka_unit_test(test_fine_rows_are_a_hundred_times_nearer),
        cmocka_unit_test(test_embedding_reads_the_packed_rows),
        cmocka_unit_test(test_activation_rows_round_alike_and_pass_on_what_is_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
