/*
 * Rotation, KV pages and attention on the CPU: against the reference, and bit for bit against themselves on every
 * instruction set, number of threads and split of the same sequences into batches.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cpu_device.h"
#include "quantize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SEQUENCES = 3, LONGEST = 560, BATCH_ROWS = 96 };

typedef struct test_shape {
    int heads, kv_heads, head_size, window;
    float softcap;
    bool norm, interleaved;
    int rope_dims;
    int lengths[SEQUENCES];
} test_shape;

typedef enum test_split { WHOLE, SINGLE_ROWS, RAGGED, SPLITS } test_split;

typedef struct test_setup {
    pen_cpu_isa isa;
    pen_activations activations;
    int threads;
    test_split split;
    bool q8_0;
} test_setup;

static float random_float(uint64_t *state) { /* about normal, deterministic */
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(*state >> 40) * 0x1p-24F - 0.5F;
    }
    return sum * 1.7F;
}

static int qkv_cols(const test_shape *shape) {
    return (shape->heads + 2 * shape->kv_heads) * shape->head_size;
}

/* Rows of all sequences, one behind the other; `first[s]` is where one begins. */
static int count_rows(const test_shape *shape, int first[SEQUENCES]) {
    int rows = 0;
    for (int s = 0; s < SEQUENCES; s++) {
        if (first) first[s] = rows;
        rows += shape->lengths[s];
    }
    return rows;
}

static float *make_inputs(const test_shape *shape) {
    size_t values = (size_t)count_rows(shape, NULL) * (size_t)qkv_cols(shape);
    float *inputs = malloc(values * sizeof *inputs);
    uint64_t state = 7;
    for (size_t i = 0; i < values; i++) inputs[i] = random_float(&state);
    return inputs;
}

/* How many rows of a sequence go into the next batch. */
static int next_rows(test_split split, int step, int sequence, int left, int room) {
    static const int ragged[] = {1, 17, 0, 33, 3, 1, 16, 0, 7, 40};
    int rows = left;
    if (split == SINGLE_ROWS) rows = 1;
    if (split == RAGGED) rows = ragged[(step * SEQUENCES + sequence * 2) % 10];
    if (split == WHOLE && sequence != step % SEQUENCES) rows = 0; /* one sequence at a time */
    rows = rows < left ? rows : left;
    return rows < room ? rows : room;
}

/* Feeds all sequences through a device; returns the activation rows in the order of the inputs, and their bytes. */
static unsigned char *attend(const test_shape *shape, const test_setup *setup, const float *inputs, size_t *row_bytes) {
    int first[SEQUENCES], total = count_rows(shape, first), cols = qkv_cols(shape);
    int blocks = (LONGEST / PEN_KV_BLOCK + 1) * SEQUENCES;
    pen_device *device;
    pen_cpu_options options = {
        .isa = setup->isa, .activations = setup->activations, .kv_q8_0 = setup->q8_0, .threads = setup->threads};
    assert_int_equal(pen_cpu_device_create(&options, &device), PEN_OK);
    pen_limits limits = {.rows = BATCH_ROWS,
                         .logit_rows = 1,
                         .hidden = shape->heads * shape->head_size,
                         .ffn = 64,
                         .heads = shape->heads,
                         .kv_heads = shape->kv_heads,
                         .head_size = shape->head_size,
                         .vocab = 32,
                         .context = LONGEST};
    assert_int_equal(pen_device_reserve(device, &limits), PEN_OK);

    pen_kv *kv;
    assert_int_equal(pen_kv_create(device, shape->kv_heads, shape->head_size, blocks, &kv), PEN_OK);
    /* NaN everywhere: whoever reads a slot that was not written shows it. */
    memset(((pen_cpu_kv *)kv)->k, 0xff, pen_kv_bytes(device, shape->kv_heads, shape->head_size, blocks));
    int32_t tables[SEQUENCES][LONGEST / PEN_KV_BLOCK + 1];
    for (int b = 0; b < blocks; b++) tables[b % SEQUENCES][b / SEQUENCES] = (b * 37 + 11) % blocks; /* 37 ∤ blocks */

    pen_rope *rope;
    pen_rope_options rope_options = {.dims = shape->rope_dims,
                                     .positions = LONGEST,
                                     .base = 1e4,
                                     .scale = 1,
                                     .magnitude = 1,
                                     .interleaved = shape->interleaved};
    assert_int_equal(pen_rope_create(device, &rope_options, &rope), PEN_OK);
    *row_bytes = pen_device_activation_bytes(device, 1, shape->heads * shape->head_size);
    pen_buffer *qkv, *out, *norm;
    assert_int_equal(pen_buffer_create(device, (size_t)(BATCH_ROWS * cols) * sizeof(float), &qkv), PEN_OK);
    assert_int_equal(pen_buffer_create(device, BATCH_ROWS * *row_bytes, &out), PEN_OK);
    assert_int_equal(pen_buffer_create(device, (size_t)shape->head_size * sizeof(float), &norm), PEN_OK);
    memset(pen_buffer_host(out), 0, BATCH_ROWS * *row_bytes); /* rows are padded */
    for (int d = 0; d < shape->head_size; d++) ((float *)pen_buffer_host(norm))[d] = 1.0F + 0.01F * (float)d;
    pen_rope_kv_op rope_kv = {.qkv = qkv,
                              .heads = shape->heads,
                              .kv_heads = shape->kv_heads,
                              .head_size = shape->head_size,
                              .q_norm = shape->norm ? norm : NULL,
                              .k_norm = shape->norm ? norm : NULL,
                              .eps = 1e-5F,
                              .rope = shape->rope_dims ? rope : NULL,
                              .kv = kv};
    pen_attention_op attention = {.qkv = qkv,
                                  .heads = shape->heads,
                                  .kv_heads = shape->kv_heads,
                                  .head_size = shape->head_size,
                                  .scale = 1.0F / sqrtf((float)shape->head_size),
                                  .softcap = shape->softcap,
                                  .window = shape->window,
                                  .kv = kv,
                                  .out = out};

    unsigned char *results = malloc((size_t)total * *row_bytes);
    int done[SEQUENCES] = {0}, finished = 0;
    for (int step = 0; finished < total; step++) {
        pen_run runs[SEQUENCES];
        pen_batch batch = {.runs = runs};
        for (int s = 0; s < SEQUENCES; s++) {
            int rows = next_rows(setup->split, step, s, shape->lengths[s] - done[s], BATCH_ROWS - batch.rows);
            if (rows == 0) continue;
            runs[batch.run_count++] =
                (pen_run){.row = batch.rows, .rows = rows, .position = done[s], .tables = {tables[s]}};
            pen_buffer_write(qkv, (size_t)(batch.rows * cols) * sizeof(float), inputs + (first[s] + done[s]) * cols,
                             (size_t)(rows * cols) * sizeof(float));
            batch.rows += rows;
        }
        if (batch.rows == 0) continue;
        pen_device_set_batch(device, &batch);
        pen_op_rope_kv(device, &rope_kv);
        pen_op_attention(device, &attention);
        for (int r = 0, s = 0; r < batch.run_count; r++, s++) {
            while (runs[r].tables[0] != tables[s]) s++;
            pen_buffer_read(out, (size_t)runs[r].row * *row_bytes, results + (size_t)(first[s] + done[s]) * *row_bytes,
                            (size_t)runs[r].rows * *row_bytes);
            done[s] += runs[r].rows;
            finished += runs[r].rows;
        }
    }
    pen_buffer_destroy(norm);
    pen_buffer_destroy(out);
    pen_buffer_destroy(qkv);
    pen_rope_destroy(rope);
    pen_kv_destroy(kv);
    pen_device_destroy(device);
    return results;
}

static const test_shape shapes[] = {
    {9, 3, 64, 0, 0, false, true, 64, {5, 300, 530}},    /* SmolLM2 */
    {4, 2, 80, 0, 30, true, false, 80, {1, 33, 290}},    /* Gemma's softcap, head norms */
    {3, 1, 128, 20, 0, false, false, 64, {16, 90, 270}}, /* windows, half of a head rotated */
    {2, 2, 96, 300, 0, false, true, 96, {17, 48, 545}},  {2, 1, 32, 0, 0, true, false, 32, {15, 257, 3}},
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static bool present(pen_cpu_isa isa) {
    pen_device *device;
    pen_cpu_options options = {.isa = isa, .threads = 1};
    if (pen_cpu_device_create(&options, &device) != PEN_OK) return false;
    pen_device_destroy(device);
    return true;
}

/* Heads of 80 values have no q8_0. */
static bool allows(const test_shape *shape, bool q8_0) {
    return !q8_0 || shape->head_size % 32 == 0;
}

/* What an activation row says. */
static float row_value(const unsigned char *row, bool q8_0, int i) {
    if (!q8_0) return ((const float *)row)[i];
    const pen_activation_block *block = (const pen_activation_block *)row + i / 32;
    return block->factors.scale * (float)block->q[i % 32];
}

/* In f32 to the last bits. With K and V in q8_0 the reference reads the same pages, but does not round queries to int8;
 * either rounds what comes out. */
static void check_near_the_reference(bool q8_0, double tolerance) {
    pen_activations activations = q8_0 ? PEN_ACTIVATIONS_FAST : PEN_ACTIVATIONS_F32;
    for (int i = 0; i < SHAPES; i++) {
        if (!allows(&shapes[i], q8_0)) continue;
        float *inputs = make_inputs(&shapes[i]);
        size_t bytes;
        test_setup exact = {PEN_CPU_REFERENCE, activations, 1, WHOLE, q8_0};
        test_setup fast = {PEN_CPU_AUTO, activations, 2, RAGGED, q8_0};
        unsigned char *expected = attend(&shapes[i], &exact, inputs, &bytes);
        unsigned char *got = attend(&shapes[i], &fast, inputs, &bytes);
        int rows = count_rows(&shapes[i], NULL), cols = shapes[i].heads * shapes[i].head_size;
        double worst = 0, largest = 0;
        for (int v = 0; v < rows * cols; v++) {
            size_t row = (size_t)(v / cols) * bytes;
            double is = (double)row_value(got + row, q8_0, v % cols);
            double should_be = (double)row_value(expected + row, q8_0, v % cols);
            worst = fmax(worst, fabs(is - should_be));
            largest = fmax(largest, fabs(should_be));
            assert_true(isfinite(is));
        }
        print_message("          shape %d: off by %.2g of %.2g\n", i, worst, largest);
        assert_true(largest > 0.5);
        assert_true(worst < tolerance * largest);
        free(expected);
        free(got);
        free(inputs);
    }
}

static void test_results_are_near_the_reference(void **state) {
    (void)state;
    check_near_the_reference(false, 2e-6);
    check_near_the_reference(true, 0.02);
}

static void check_equal_bits(pen_activations activations, bool q8_0) {
    for (int i = 0; i < SHAPES; i++) {
        if (!allows(&shapes[i], q8_0)) continue;
        float *inputs = make_inputs(&shapes[i]);
        size_t bytes, total = (size_t)count_rows(&shapes[i], NULL);
        test_setup base = {PEN_CPU_AUTO, activations, 1, WHOLE, q8_0};
        unsigned char *expected = attend(&shapes[i], &base, inputs, &bytes);
        for (pen_cpu_isa isa = PEN_CPU_PORTABLE; isa <= PEN_CPU_AVX512; isa++)
            for (int threads = 1; present(isa) && threads <= 3; threads++)
                for (int split = 0; split < SPLITS; split++) {
                    /* All splits with one thread, one of them with more; slow portable code in one way. */
                    if (threads > 1 && split != (threads + i) % SPLITS) continue;
                    if (isa == PEN_CPU_PORTABLE && threads != 2) continue;
                    test_setup other = {isa, activations, threads, (test_split)split, q8_0};
                    unsigned char *got = attend(&shapes[i], &other, inputs, &bytes);
                    assert_memory_equal(got, expected, total * bytes);
                    free(got);
                }
        free(expected);
        free(inputs);
    }
}

static void test_bits_are_equal_in_f32(void **state) {
    (void)state;
    check_equal_bits(PEN_ACTIVATIONS_F32, false);
}

static void test_bits_are_equal_in_fast_mode(void **state) {
    (void)state;
    check_equal_bits(PEN_ACTIVATIONS_FAST, false);
}

static void test_bits_are_equal_with_kv_in_q8_0(void **state) {
    (void)state;
    check_equal_bits(PEN_ACTIVATIONS_FAST, true);
}

static void test_q8_0_takes_its_bytes_and_refuses_odd_heads(void **state) {
    (void)state;
    pen_device *device;
    pen_kv *kv;
    pen_cpu_options options = {.kv_q8_0 = true, .threads = 1};
    assert_int_equal(pen_cpu_device_create(&options, &device), PEN_OK);
    assert_int_equal(pen_device_kv_type(device), PEN_TYPE_Q8_0);
    size_t blocks = pen_kv_bytes(device, 3, 64, 10) - pen_kv_bytes(device, 3, 64, 0);
    assert_int_equal(blocks, 2 * 3 * 10 * PEN_KV_BLOCK * 64 / 32 * 34);
    assert_int_equal(pen_kv_create(device, 2, 80, 1, &kv), PEN_UNSUPPORTED);
    assert_non_null(strstr(pen_last_error(), "--kv-type q8_0"));
    pen_device_destroy(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_results_are_near_the_reference),
        cmocka_unit_test(test_bits_are_equal_in_f32),
        cmocka_unit_test(test_bits_are_equal_in_fast_mode),
        cmocka_unit_test(test_bits_are_equal_with_kv_in_q8_0),
        cmocka_unit_test(test_q8_0_takes_its_bytes_and_refuses_odd_heads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
