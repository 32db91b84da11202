/*
 * Everything that multiplies by a weight on the CUDA device: every type and both modes at odd shapes, against sums in
 * double made from the GGUF rows and the values that the device's own activation rows stand for; and bit for bit
 * against itself for any split of the rows into batches and any order of a block's threads.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cuda_tests.h"

enum { ROWS_MAX = 70, COLS_MAX = 1536 };

static const pen_limits limits = {.rows = ROWS_MAX,
                                  .logit_rows = ROWS_MAX,
                                  .hidden = COLS_MAX,
                                  .ffn = COLS_MAX,
                                  .heads = 1,
                                  .kv_heads = 1,
                                  .head_size = 64,
                                  .vocab = 1000,
                                  .context = 128};

/* Activation rows of x[tokens][cols], made by the device's norm, and in `values` what they stand for. */
static pen_buffer *activations_of(pen_device *device, const float *x, int tokens, int cols, bool fine, float *values) {
    pen_activations activations = pen_device_activations(device);
    int parts = fine && activations == PEN_ACTIVATIONS_FAST ? 2 : 1;
    size_t bytes =
        fine ? pen_device_fine_bytes(device, tokens, cols) : pen_device_activation_bytes(device, tokens, cols);
    float *ones = allocate((size_t)cols * sizeof *ones);
    for (int i = 0; i < cols; i++) ones[i] = 1;
    pen_buffer *in = buffer_of(device, x, (size_t)tokens * (size_t)cols * sizeof *x);
    pen_buffer *weight = buffer_of(device, ones, (size_t)cols * sizeof *ones), *out = empty_buffer(device, bytes);
    set_rows(device, tokens, NULL, 0, NULL);
    pen_op_norm(device,
                &(pen_norm_op){.x = in, .weight = weight, .cols = cols, .eps = 1e-5F, .fine = fine, .out = out});
    unsigned char *rows = allocate(bytes);
    read_back(out, rows, bytes);
    for (int t = 0; t < tokens; t++)
        activation_values(activations, rows + bytes / (size_t)tokens * (size_t)t, parts, cols,
                          values + (size_t)t * (size_t)cols);
    pen_buffer_destroy(in);
    pen_buffer_destroy(weight);
    free(ones);
    free(rows);
    return out;
}

/* ---- QKV ------------------------------------------------------------------------------------------------------- */

typedef struct product_case {
    pen_activations activations;
    pen_type types[3];
    int rows[3];
    int cols, tokens;
    bool bias;
} product_case;

/* Rows of a batch: all of them, or 1, 3 and the rest. */
static int batch_rows(int split, int done, int tokens) {
    return split == 0 ? tokens : done == 0 ? 1 : done == 1 && tokens > 4 ? 3 : tokens - done;
}

static void run_qkv(const product_case *c, const matrix w[3], const float *x, const float *bias, int split,
                    float *values, float *result) {
    pen_device *device = open_cuda(c->activations, &limits);
    pen_weight *weights[3];
    pen_buffer *biases[3] = {NULL, NULL, NULL};
    int columns = 0;
    for (int i = 0; i < 3; columns += c->rows[i++]) {
        weights[i] = weight_of(device, w[i]);
        if (c->bias) biases[i] = buffer_of(device, bias + columns, (size_t)c->rows[i] * sizeof *bias);
    }
    for (int t = 0, n; t < c->tokens; t += n) {
        n = batch_rows(split, t, c->tokens);
        size_t from = (size_t)t * (size_t)c->cols, bytes = (size_t)n * (size_t)columns * sizeof(float);
        pen_buffer *rows = activations_of(device, x + from, n, c->cols, true, values + from);
        pen_buffer *out = empty_buffer(device, bytes);
        pen_op_qkv(device,
                   &(pen_qkv_op){rows, weights[0], weights[1], weights[2], biases[0], biases[1], biases[2], out});
        read_back(out, result + (size_t)t * (size_t)columns, bytes);
        pen_buffer_destroy(rows);
        pen_buffer_destroy(out);
    }
    for (int i = 0; i < 3; i++) {
        pen_weight_destroy(weights[i]);
        pen_buffer_destroy(biases[i]);
    }
    pen_device_destroy(device);
}

static void check_qkv(product_case c) {
    matrix w[3];
    int columns = 0;
    for (int i = 0; i < 3; columns += c.rows[i++]) w[i] = random_matrix(c.types[i], c.rows[i], c.cols);
    float *x = random_floats((size_t)c.tokens * (size_t)c.cols), *bias = random_floats((size_t)columns);
    float *values = allocate((size_t)c.tokens * (size_t)c.cols * sizeof(float));
    size_t bytes = (size_t)c.tokens * (size_t)columns * sizeof(float);
    float *result = allocate(bytes), *other = allocate(bytes);
    run_qkv(&c, w, x, bias, 0, values, result);
    for (int t = 0; t < c.tokens; t++)
        for (int i = 0, column = 0; i < 3; column += c.rows[i++])
            for (int n = 0; n < c.rows[i]; n++) {
                double size, sum = expected_dot(w[i], n, values + (size_t)t * (size_t)c.cols, &size);
                if (c.bias) sum += (double)bias[column + n];
                assert_near((double)result[(size_t)t * (size_t)columns + (size_t)(column + n)], sum, 1e-5 * (size + 1),
                            pen_type_get(c.types[i])->name);
            }
    shuffle_threads(2);
    run_qkv(&c, w, x, bias, 1, values, other);
    shuffle_threads(0);
    assert_memory_equal(other, result, bytes);
    for (int i = 0; i < 3; i++) matrix_free(w[i]);
    free(x);
    free(bias);
    free(values);
    free(result);
    free(other);
}

static void test_qkv_of_all_types_and_odd_shapes(void **state) {
    (void)state;
    random_state = 1;
    static const int tokens[] = {1, 2, 7, 5, 21}, cols[] = {576, 32, 160, 1536, 96};
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

static void test_any_number_of_tokens(void **state) {
    (void)state;
    random_state = 8;
    for (int tokens = 1; tokens <= 33; tokens++) {
        pen_type type = (pen_type)(tokens % TYPES);
        pen_activations activations = tokens / TYPES % 2 ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST;
        check_qkv((product_case){activations, {type, type, type}, {17, 1, 3}, columns_for(32, type), tokens, true});
    }
}

/* ---- Projections ----------------------------------------------------------------------------------------------- */

/* Uses up w and x[tokens][w.cols]. */
static void check_project(matrix w, pen_activations activations, float *x, int tokens, bool store, bool bias,
                          bool down) {
    float *residual = random_floats((size_t)tokens * (size_t)w.rows), *bias_values = random_floats((size_t)w.rows);
    float *values = allocate((size_t)tokens * (size_t)w.cols * sizeof(float));
    size_t bytes = (size_t)tokens * (size_t)w.rows * sizeof(float);
    float *result = allocate(bytes);
    pen_device *device = open_cuda(activations, &limits);
    pen_weight *weight = weight_of(device, w);
    pen_buffer *bias_buffer = buffer_of(device, bias_values, (size_t)w.rows * sizeof(float));
    pen_buffer *rows = activations_of(device, x, tokens, w.cols, false, values);
    pen_buffer *out = buffer_of(device, residual, bytes);
    pen_project_op op = {rows, weight, bias ? bias_buffer : NULL, store, out};
    if (down)
        pen_op_down(device, &op);
    else
        pen_op_out_project(device, &op);
    read_back(out, result, bytes);
    for (int t = 0; t < tokens; t++)
        for (int n = 0; n < w.rows; n++) {
            double size, sum = expected_dot(w, n, values + (size_t)t * (size_t)w.cols, &size);
            size_t at = (size_t)t * (size_t)w.rows + (size_t)n;
            if (bias) sum += (double)bias_values[n];
            if (!store) sum += (double)residual[at];
            assert_near((double)result[at], sum, 1e-5 * (size + 1), pen_type_get(w.type)->name);
        }
    pen_buffer_destroy(bias_buffer);
    pen_buffer_destroy(rows);
    pen_buffer_destroy(out);
    pen_weight_destroy(weight);
    pen_device_destroy(device);
    matrix_free(w);
    free(x);
    free(residual);
    free(bias_values);
    free(values);
    free(result);
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

/* The largest products that there are, of either sign, all in one sum: nothing saturates on the way. */
static void test_the_largest_integers(void **state) {
    (void)state;
    random_state = 9;
    static const unsigned char fillings[] = {0x00, 0xff, 0x7f, 0x80, 0x0f, 0xf0, 0x01, 0xfe};
    enum { FILLINGS = sizeof fillings, TOKENS = 4 };
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
        }
        check_project(w, PEN_ACTIVATIONS_FAST, x, TOKENS, true, false, true);
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
    float *got = allocate((size_t)rows * sizeof *got);
    pen_device *device = open_cuda(activations, &limits);
    pen_weight *gate_weight = weight_of(device, gate), *up_weight = weight_of(device, up);
    pen_buffer *bias_buffer = buffer_of(device, bias_values, (size_t)rows * sizeof(float));
    pen_buffer *x_rows = activations_of(device, x, tokens, cols, false, values);
    size_t stride = pen_device_activation_bytes(device, 1, rows), bytes = stride * (size_t)tokens;
    unsigned char *result = allocate(bytes);
    pen_buffer *out = empty_buffer(device, bytes);
    pen_op_gate_up(
        device, &(pen_gate_up_op){x_rows, gated ? gate_weight : NULL, up_weight, bias ? bias_buffer : NULL, act, out});
    read_back(out, result, bytes);
    for (int t = 0; t < tokens; t++) {
        activation_values(activations, result + stride * (size_t)t, 1, rows, got);
        for (int n = 0; n < rows; n++) {
            double gate_size = 0, up_size;
            const float *row = values + (size_t)t * (size_t)cols;
            double u = expected_dot(up, n, row, &up_size) + (bias ? (double)bias_values[n] : 0);
            double g = gated ? expected_dot(gate, n, row, &gate_size) : 0;
            /* An error in g or u passes on at most 1.2-fold, times the other factor. */
            double tolerance = 2e-5 * (gated ? gate_size * (fabs(u) + 1) + up_size * (fabs(g) + 1) : up_size + 1);
            double step = 0; /* of the rounding to int8 */
            for (int i = n / 32 * 32; i < n / 32 * 32 + 32; i++) step = fmax(step, fabs((double)got[i]) / 127);
            if (activations == PEN_ACTIVATIONS_FAST) tolerance += 0.51 * step;
            assert_near((double)got[n], gated ? activate(g, act) * u : activate(u, act), tolerance, "gate and up");
        }
    }
    pen_buffer_destroy(bias_buffer);
    pen_buffer_destroy(x_rows);
    pen_buffer_destroy(out);
    pen_weight_destroy(gate_weight);
    pen_weight_destroy(up_weight);
    pen_device_destroy(device);
    matrix_free(gate);
    matrix_free(up);
    free(x);
    free(bias_values);
    free(values);
    free(got);
    free(result);
}

static void test_gate_up_activates_and_quantises(void **state) {
    (void)state;
    random_state = 3;
    for (int i = 0; i < TYPES; i++) {
        pen_type type = (pen_type)i;
        pen_activations activations = i % 2 ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST;
        check_gate_up(type, activations, PEN_GATE_SILU, true, false, 160, columns_for(64, type), 3 + 2 * (i % 4));
        check_gate_up(type, activations, PEN_GATE_GELU_TANH, true, true, 96, columns_for(96, type), 1);
        check_gate_up(type, PEN_ACTIVATIONS_FAST, PEN_GATE_GELU_TANH, false, i % 2, 64, columns_for(32, type), 9);
    }
}

/* ---- Logits and embedding -------------------------------------------------------------------------------------- */

static void check_logits(pen_type type, pen_activations activations, float softcap) {
    enum { VOCAB = 203, HIDDEN = 256, TOKENS = 9, WANTED = 3 };
    static const int32_t wanted[WANTED] = {0, 4, 8};
    matrix w = random_matrix(type, VOCAB, HIDDEN);
    float *x = random_floats((size_t)TOKENS * HIDDEN), ones[HIDDEN], result[WANTED][VOCAB];
    float *values = allocate(sizeof(float) * TOKENS * HIDDEN);
    for (int i = 0; i < HIDDEN; i++) ones[i] = 1;
    pen_device *device = open_cuda(activations, &limits);
    pen_weight *weight = weight_of(device, w);
    pen_buffer *rows = activations_of(device, x, TOKENS, HIDDEN, true, values); /* as logits does for itself */
    pen_buffer *x_buffer = buffer_of(device, x, sizeof(float) * TOKENS * HIDDEN);
    pen_buffer *ones_buffer = buffer_of(device, ones, sizeof ones), *logits = empty_buffer(device, sizeof result);
    set_rows(device, TOKENS, NULL, WANTED, wanted);
    pen_norm_op norm_op = {.x = x_buffer, .weight = ones_buffer, .cols = HIDDEN, .eps = 1e-5F};
    pen_op_logits(device, &(pen_logits_op){norm_op, weight, softcap, logits});
    read_back(logits, result, sizeof result);
    for (int l = 0; l < WANTED; l++)
        for (int n = 0; n < VOCAB; n++) {
            double size, sum = expected_dot(w, n, values + wanted[l] * HIDDEN, &size);
            if (softcap > 0) sum = (double)softcap * tanh(sum / (double)softcap);
            assert_near((double)result[l][n], sum, 1e-5 * (size + 1), "logit");
        }
    pen_buffer_destroy(rows);
    pen_buffer_destroy(x_buffer);
    pen_buffer_destroy(ones_buffer);
    pen_buffer_destroy(logits);
    pen_weight_destroy(weight);
    pen_device_destroy(device);
    matrix_free(w);
    free(x);
    free(values);
}

static void test_logits_of_chosen_rows(void **state) {
    (void)state;
    random_state = 4;
    for (int i = 0; i < TYPES; i++)
        check_logits((pen_type)i, i % 2 ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST, i % 3 ? 0 : 20);
}

static void test_embedding_has_the_bits_of_the_file(void **state) {
    (void)state;
    random_state = 5;
    enum { VOCAB = 77, HIDDEN = 512, TOKENS = 21, CONTEXT = 40 };
    int32_t tokens[TOKENS];
    for (int t = 0; t < TOKENS; t++) tokens[t] = t == 0 ? VOCAB - 1 : (int32_t)(random_bits() % VOCAB);
    for (int i = 0; i < TYPES; i++) {
        matrix table = random_matrix((pen_type)i, VOCAB, HIDDEN),
               positions = random_matrix(PEN_TYPE_F32, CONTEXT, HIDDEN);
        pen_device *device = open_cuda(PEN_ACTIVATIONS_FAST, &limits);
        pen_weight *weight = weight_of(device, table), *learned = weight_of(device, positions);
        static float result[TOKENS][HIDDEN];
        pen_buffer *x = empty_buffer(device, sizeof result);
        set_rows(device, TOKENS, tokens, 0, NULL);
        for (int with = 0; with < 2; with++) {
            pen_op_embed(device,
                         &(pen_embed_op){.table = weight, .positions = with ? learned : NULL, .scale = 1.5F, .x = x});
            read_back(x, result, sizeof result);
            for (int t = 0; t < TOKENS; t++)
                for (int k = 0; k < HIDDEN; k++) {
                    float expected = table.values[tokens[t] * HIDDEN + k] * 1.5F;
                    if (with) expected += positions.values[t * HIDDEN + k];
                    assert_memory_equal(&result[t][k], &expected, sizeof expected);
                }
        }
        pen_buffer_destroy(x);
        pen_weight_destroy(weight);
        pen_weight_destroy(learned);
        pen_device_destroy(device);
        matrix_free(table);
        matrix_free(positions);
    }
}

static void test_weights_are_as_small_as_the_file(void **state) {
    (void)state;
    pen_device *device = open_cuda(PEN_ACTIVATIONS_FAST, NULL);
    for (int i = 0; i < TYPES; i++) {
        size_t file = 160 * pen_type_row_bytes((pen_type)i, 1024);
        size_t packed = pen_weight_bytes(device, (pen_type)i, 160, 1024);
        assert_in_range(packed, file, file + file / 25);
    }
    pen_weight *weight;
    assert_int_equal(pen_weight_create(device, PEN_TYPE_Q4_K, 16, 384, &weight), PEN_UNSUPPORTED);
    assert_string_equal(pen_last_error(), "a Q4_K weight of 384 columns: a GPU needs a multiple of 256");
    pen_device_destroy(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_qkv_of_all_types_and_odd_shapes),
        cmocka_unit_test(test_any_number_of_tokens),
        cmocka_unit_test(test_projections_store_or_add),
        cmocka_unit_test(test_the_largest_integers),
        cmocka_unit_test(test_gate_up_activates_and_quantises),
        cmocka_unit_test(test_logits_of_chosen_rows),
        cmocka_unit_test(test_embedding_has_the_bits_of_the_file),
        cmocka_unit_test(test_weights_are_as_small_as_the_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
