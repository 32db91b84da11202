/*
 * The CUDA device itself: finding a GPU, memory and its accounts, the way of bytes to the device and back, events,
 * markers; and norms against the CPU's oracle.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cuda_tests.h"

enum { ROWS = 40, HIDDEN = 576 };

static const pen_limits limits = {.rows = ROWS,
                                  .logit_rows = 4,
                                  .hidden = HIDDEN,
                                  .ffn = 64,
                                  .heads = 9,
                                  .kv_heads = 3,
                                  .head_size = 64,
                                  .vocab = 32,
                                  .context = 100};

#if defined(PEN_CUDA_EMULATED)
static void test_what_is_missing_is_said(void **state) {
    (void)state;
    static const struct {
        pen_emulated_machine machine;
        const char *says;
    } cases[] = {{PEN_EMULATE_NO_DRIVER, "there is no NVIDIA driver on this machine"},
                 {PEN_EMULATE_OLD_DRIVER, "the NVIDIA driver knows CUDA 11.4: this build needs 13.0 or newer"},
                 {PEN_EMULATE_NO_DEVICE, "there is an NVIDIA driver, but no GPU that this process may use"},
                 {PEN_EMULATE_OTHER_GPU, "this build has no kernels for GPU 0, Emulated GPU (compute capability 9.0)"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pen_device *device;
        pen_emulate_machine(cases[i].machine);
        assert_int_equal(pen_cuda_device_create(&(pen_cuda_options){0}, &device), PEN_UNSUPPORTED);
        assert_string_equal(pen_last_error(), cases[i].says);
    }
    pen_emulate_machine(PEN_EMULATE_GPU);
    int count;
    assert_int_equal(pen_cuda_device_count(&count), PEN_OK);
    assert_int_equal(count, 1);
}

static int pokes;
static void count_poke(void *context) {
    (void)context;
    pokes++;
}

/* A GPU that fails in the middle ends every wait, and sync says what happened. */
static void test_a_lost_gpu_is_told_and_nobody_waits(void **state) {
    (void)state;
    pen_device *device = open_cuda(PEN_ACTIVATIONS_FAST, &limits);
    pen_event *event;
    float values[64] = {0};
    pen_buffer *buffer = buffer_of(device, values, sizeof values);
    assert_int_equal(pen_event_create(device, &event), PEN_OK);
    pen_event_record(event);
    pen_emulate_lost(true);
    assert_int_equal(pen_device_status(device), PEN_OK); /* nobody has noticed yet */
    assert_false(pen_event_done(event));
    assert_int_equal(pen_device_status(device), PEN_INTERNAL);
    pen_buffer_read(buffer, 0, values, sizeof values);
    assert_int_equal(pen_device_sync(device), PEN_INTERNAL);
    assert_non_null(strstr(pen_last_error(), "cuda Emulated GPU failed in "));
    assert_non_null(strstr(pen_last_error(), "unspecified launch failure"));
    pen_event_destroy(event);
    pen_buffer_destroy(buffer);
    pen_device_destroy(device);
    pen_emulate_lost(false);
}

static void test_too_little_memory_is_told(void **state) {
    (void)state;
    pen_device *device = open_cuda(PEN_ACTIVATIONS_FAST, &limits);
    pen_buffer *buffer;
    pen_own_memory memory;
    assert_int_equal(pen_device_own_memory(device, &memory), PEN_OK);
    pen_emulate_memory(1000);
    assert_int_equal(pen_buffer_create(device, 1001, &buffer), PEN_NO_MEMORY);
    assert_string_equal(pen_last_error(),
                        "cannot allocate 1001 bytes on cuda Emulated GPU: 1000 of 4294967296 are free");
    assert_int_equal(pen_buffer_create(device, 1000, &buffer), PEN_OK); /* that failure is no launch's */
    pen_emulate_memory(memory.free_bytes);
    assert_int_equal(pen_device_sync(device), PEN_OK);
    pen_buffer_destroy(buffer);
    pen_device_destroy(device);
}

/* Nothing happens before somebody waits, and whoever waits pokes. */
static void test_waiting_pokes(void **state) {
    (void)state;
    pen_device *device = open_cuda(PEN_ACTIVATIONS_FAST, &limits);
    pen_event *event;
    assert_int_equal(pen_event_create(device, &event), PEN_OK);
    pen_buffer *buffer = empty_buffer(device, 64);
    char values[64] = "there", back[64] = "not yet";
    for (int i = 0; i < 30; i++) pen_buffer_write(buffer, 0, values, sizeof values);
    pen_buffer_read(buffer, 0, back, sizeof back);
    pen_event_record(event);
    memset(values, 0, sizeof values);
    assert_false(pen_event_done(event));
    assert_string_equal(back, "not yet");
    pen_device_set_poke(device, count_poke, NULL);
    pokes = 0;
    assert_int_equal(pen_device_sync(device), PEN_OK);
    assert_true(pokes > 0);
    assert_true(pen_event_done(event));
    assert_string_equal(back, "there");
    pen_event_destroy(event);
    pen_buffer_destroy(buffer);
    pen_device_destroy(device);
}
#endif

static void test_memory_is_accounted_for_and_given_back(void **state) {
    (void)state;
    pen_device *device = open_cuda(PEN_ACTIVATIONS_FAST, NULL);
    assert_ptr_equal(strstr(pen_device_name(device), "cuda "), pen_device_name(device));
    size_t scratch = pen_device_scratch_bytes(device, &limits);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pen_device_reserve(device, &limits), PEN_OK); /* the second replaces the first */
        assert_int_equal(pen_device_bytes_used(device), scratch);
    }
    pen_buffer *buffer;
    pen_weight *weight;
    pen_kv *kv;
    pen_rope *rope;
    pen_rope_options options = {.dims = 64, .positions = 100, .base = 1e4, .scale = 1, .magnitude = 1};
    assert_int_equal(pen_buffer_create(device, 5 << 20, &buffer), PEN_OK);
    assert_int_equal(pen_weight_create(device, PEN_TYPE_Q4_1, 100, 64, &weight), PEN_OK);
    assert_int_equal(pen_kv_create(device, 3, 64, 10, &kv), PEN_OK);
    assert_int_equal(pen_rope_create(device, &options, &rope), PEN_OK);
    assert_int_equal(pen_device_bytes_used(device),
                     scratch + (5 << 20) + pen_weight_bytes(device, PEN_TYPE_Q4_1, 100, 64) +
                         pen_kv_bytes(device, 3, 64, 10) + pen_rope_bytes(device, &options));
    assert_null(pen_buffer_host(buffer));
    pen_rope_destroy(rope);
    pen_kv_destroy(kv);
    pen_weight_destroy(weight);
    pen_buffer_destroy(buffer);
    assert_int_equal(pen_device_bytes_used(device), scratch);
    assert_int_equal(pen_buffer_create(device, SIZE_MAX - 1, &buffer), PEN_NO_MEMORY);
    assert_int_equal(pen_kv_create(device, 1, PEN_CUDA_HEAD_MAX + 1, 1, &kv), PEN_UNSUPPORTED);
    assert_int_equal(pen_device_bytes_used(device), scratch);
    pen_device_destroy(device);
}

/* Many copies of all sizes, more than the rings hold, whose sources change at once. */
static void test_bytes_pass_to_the_device_and_back(void **state) {
    (void)state;
    pen_device *device = open_cuda(PEN_ACTIVATIONS_FAST, NULL);
    enum { LARGE = 5 << 20, COPIES = 600 };
    unsigned char *values = allocate(LARGE), *back = allocate(LARGE);
    pen_buffer *buffer = empty_buffer(device, LARGE);
    random_state = 11;
    for (int i = 0; i < LARGE; i++) values[i] = (unsigned char)random_bits();
    pen_buffer_write(buffer, 0, values, LARGE);
    for (int i = 0; i < COPIES; i++) {
        size_t bytes = 1 + random_bits() % (i % 50 ? 5000 : 3000000), at = random_bits() % (LARGE - bytes);
        unsigned char *piece = allocate(bytes);
        for (size_t b = 0; b < bytes; b++) piece[b] = values[at + b] ^= (unsigned char)(i + 1);
        pen_buffer_write(buffer, at, piece, bytes);
        memset(piece, 0, bytes);
        free(piece);
        if (i % 3 == 0) pen_buffer_read(buffer, at, back + at, bytes); /* lands at some time: overwritten below */
    }
    read_back(buffer, back, LARGE);
    assert_memory_equal(back, values, LARGE);
    pen_buffer_destroy(buffer);
    pen_device_destroy(device);
    free(values);
    free(back);
}

static void test_reads_land_with_the_event_behind_them(void **state) {
    (void)state;
    pen_device *device = open_cuda(PEN_ACTIVATIONS_FAST, NULL);
    pen_buffer *buffer = empty_buffer(device, sizeof(int));
    pen_event *events[40];
    int back[40];
    for (int i = 0; i < 40; i++) {
        back[i] = -1;
        pen_buffer_write(buffer, 0, &i, sizeof i);
        pen_buffer_read(buffer, 0, &back[i], sizeof i);
        assert_int_equal(pen_event_create(device, &events[i]), PEN_OK);
        assert_true(pen_event_done(events[i]));
        pen_event_record(events[i]);
    }
    for (int i = 0; i < 40; i++) {
        while (!pen_event_done(events[i])) continue;
        for (int k = 0; k <= i; k++) assert_int_equal(back[k], k);
        pen_event_destroy(events[i]);
    }
    pen_buffer_destroy(buffer);
    pen_device_destroy(device);
}

/* Pinned memory goes to the device and comes back as a whole, at any offset; next to it lies none. */
static void test_pinned_memory_is_copied_in_place(void **state) {
    (void)state;
    pen_device *device = open_cuda(PEN_ACTIVATIONS_FAST, NULL);
    enum { BYTES = 3 << 20 };
    void *memory[3];
    for (int i = 0; i < 3; i++) assert_int_equal(pen_host_create(device, BYTES, &memory[i]), PEN_OK);
    unsigned char *values = memory[0], *back = memory[2];
    random_state = 12;
    for (int i = 0; i < BYTES; i++) values[i] = (unsigned char)random_bits();
    memset(back, 0, BYTES);
    pen_host_destroy(device, memory[1]);
    pen_buffer *buffer = empty_buffer(device, BYTES);
    pen_event *event;
    assert_int_equal(pen_event_create(device, &event), PEN_OK);
    pen_buffer_write(buffer, 0, values, BYTES);
    pen_buffer_read(buffer, 100, back + 100, BYTES - 100);
    pen_event_record(event);
#if defined(PEN_CUDA_EMULATED)
    values[200] ^= 0xff; /* in place: it has not been copied yet */
#endif
    while (!pen_event_done(event)) continue;
    assert_memory_equal(back + 100, values + 100, BYTES - 100);
    assert_int_equal(back[99], 0);
    pen_host_destroy(device, values);
    pen_host_destroy(device, back);
    pen_event_destroy(event);
    pen_buffer_destroy(buffer);
    pen_device_destroy(device);
}

/* More pairs of markers than there is room for, and some reads of them. */
static void test_markers_add_up_each_units_time(void **state) {
    (void)state;
    pen_device *device = open_cuda(PEN_ACTIVATIONS_FAST, &limits);
    pen_buffer *x = empty_buffer(device, ROWS * HIDDEN * sizeof(float));
    float *ones = random_floats(ROWS * HIDDEN);
    pen_buffer_write(x, 0, ones, ROWS * HIDDEN * sizeof(float));
    pen_norm_op op = {.x = x, .weight = x, .cols = HIDDEN, .eps = 1, .add_to = x};
    set_rows(device, ROWS, NULL, 0, NULL);
    for (int i = 0; i < 1500; i++) {
        pen_device_unit_begin(device, i % 3);
        if (i % 3 == 0 && i % 100 == 0) pen_op_norm(device, &op);
        pen_device_unit_end(device);
    }
    double with = pen_device_unit_ms(device, 0), without = pen_device_unit_ms(device, 1);
    assert_true(with > 0 && with > without);
    assert_true(pen_device_unit_ms(device, 5) == 0);
    pen_device_unit_reset(device);
    assert_true(pen_device_unit_ms(device, 0) == 0);
    free(ones);
    pen_buffer_destroy(x);
    pen_device_destroy(device);
}

/* ---- Norm ------------------------------------------------------------------------------------------------------ */

typedef struct norm_case {
    int cols;
    bool mean, bias, add;
} norm_case;

static const norm_case norm_cases[] = {
    {HIDDEN, false, false, false}, {64, true, true, false}, {100, false, false, true}, {33, true, false, true}};
enum { NORM_CASES = sizeof norm_cases / sizeof norm_cases[0] };

/* Norms all rows of x, `step` of them in a batch: activation rows, or f32 rows where they are added. */
static void norm_rows(pen_device *device, const norm_case *what, const float *x, const float *weights, int step,
                      bool fine, unsigned char *results) {
    size_t row = (size_t)what->cols * sizeof(float);
    size_t out_row = what->add ? row
                     : fine    ? pen_device_fine_bytes(device, 1, what->cols)
                               : pen_device_activation_bytes(device, 1, what->cols);
    pen_buffer *weight = buffer_of(device, weights, row), *bias = buffer_of(device, weights + what->cols, row);
    for (int first = 0; first < ROWS; first += step) {
        int rows = ROWS - first < step ? ROWS - first : step;
        pen_buffer *in = buffer_of(device, x + first * what->cols, (size_t)rows * row);
        pen_buffer *out = what->add ? buffer_of(device, x + first * what->cols, (size_t)rows * row)
                                    : empty_buffer(device, (size_t)rows * out_row);
        set_rows(device, rows, NULL, 0, NULL);
        pen_op_norm(device, &(pen_norm_op){.x = in,
                                           .weight = weight,
                                           .bias = what->bias ? bias : NULL,
                                           .cols = what->cols,
                                           .eps = 1e-5F,
                                           .mean = what->mean,
                                           .fine = fine,
                                           .out = what->add ? NULL : out,
                                           .add_to = what->add ? out : NULL});
        read_back(out, results + (size_t)first * out_row, (size_t)rows * out_row);
        pen_buffer_destroy(in);
        pen_buffer_destroy(out);
    }
    pen_buffer_destroy(weight);
    pen_buffer_destroy(bias);
}

static void test_norms_are_near_the_oracle(void **state) {
    (void)state;
    random_state = 21;
    for (int c = 0; c < NORM_CASES; c++) {
        const norm_case *what = &norm_cases[c];
        int cols = what->cols, count = ROWS * cols;
        float *x = random_floats((size_t)count), *weights = random_floats(2 * (size_t)cols);
        for (int i = 0; i < count; i++) x[i] *= (float)(i / cols + 1);
        pen_device *oracle = open_oracle(PEN_ACTIVATIONS_F32, &limits),
                   *device = open_cuda(PEN_ACTIVATIONS_F32, &limits);
        size_t bytes = (size_t)count * sizeof(float);
        size_t stride = what->add ? (size_t)cols * sizeof(float) : pen_device_activation_bytes(oracle, 1, cols);
        unsigned char *expected = allocate(ROWS * stride), *got = allocate(bytes), *alone = allocate(bytes);
        norm_rows(oracle, what, x, weights, ROWS, false, expected);
        norm_rows(device, what, x, weights, ROWS, false, got);
        for (int i = 0; i < count; i++) {
            float a, b;
            memcpy(&a, expected + stride * (size_t)(i / cols) + sizeof a * (size_t)(i % cols), sizeof a);
            memcpy(&b, got + sizeof b * (size_t)i, sizeof b);
            assert_near((double)b, (double)a, 2e-6 * (fabs((double)a) + 1), "norm");
        }
        shuffle_threads(2);
        norm_rows(device, what, x, weights, 1, false, alone);
        shuffle_threads(0);
        assert_memory_equal(alone, got, bytes);
        pen_device_destroy(oracle);
        pen_device_destroy(device);
        free(x);
        free(weights);
        free(expected);
        free(got);
        free(alone);
    }
}

/* In fast mode: blocks of int8 to half a step, two parts a hundred times nearer, sums that are sums; what is not finite
 * is passed on. */
static void test_activation_rows_round_to_nearest(void **state) {
    (void)state;
    static const norm_case plain = {256, false, false, false};
    enum { COLS = 256 };
    random_state = 6;
    float *x = random_floats(ROWS * COLS), weights[2 * COLS], exact[COLS], one[COLS], two[COLS];
    for (int i = 0; i < ROWS * COLS; i++) x[i] = ldexpf(x[i], (int)(random_bits() % 12) - 6);
    memset(x + 3 * COLS, 0, COLS * sizeof *x);    /* zeros */
    memset(x + 4 * COLS + 32, 0, 32 * sizeof *x); /* a block of them */
    x[5 * COLS + 70] = NAN;
    for (int i = 0; i < 2 * COLS; i++) weights[i] = 1;
    pen_device *device = open_cuda(PEN_ACTIVATIONS_FAST, &limits);
    size_t row = pen_device_activation_bytes(device, 1, COLS), fine_row = pen_device_fine_bytes(device, 1, COLS);
    unsigned char *coarse = allocate(ROWS * row), *fine = allocate(ROWS * fine_row);
    norm_rows(device, &plain, x, weights, 7, false, coarse);
    norm_rows(device, &plain, x, weights, ROWS, true, fine);
    for (int t = 0; t < ROWS; t++) {
        double squares = 0;
        for (int i = 0; i < COLS; i++) squares += (double)x[t * COLS + i] * (double)x[t * COLS + i];
        for (int i = 0; i < COLS; i++) exact[i] = (float)((double)x[t * COLS + i] / sqrt(squares / COLS + 1e-5));
        activation_values(PEN_ACTIVATIONS_FAST, coarse + row * (size_t)t, 1, COLS, one);
        activation_values(PEN_ACTIVATIONS_FAST, fine + fine_row * (size_t)t, 2, COLS, two);
        for (int b = 0; b < COLS / 32; b++) {
            pen_cuda_factor factor;
            memcpy(&factor, coarse + row * (size_t)t + COLS + sizeof factor * (size_t)b, sizeof factor);
            int sums[2] = {0};
            for (int i = 0; i < 32; i++) sums[i / 16] += (int8_t)coarse[row * (size_t)t + (size_t)(32 * b + i)];
            assert_int_equal(factor.sums[0], sums[0]);
            assert_int_equal(factor.sums[1], sums[1]);
            for (int i = 32 * b; i < 32 * b + 32; i++) {
                if (t == 5) {
                    assert_true(isnan(one[i]) && isnan(two[i]));
                    continue;
                }
                assert_near((double)one[i], (double)exact[i], 0.501 * (double)factor.scale + 1e-12, "rounded");
                assert_near((double)two[i], (double)exact[i], 0.005 * (double)factor.scale + 1e-6, "rounded twice");
            }
        }
    }
    pen_device_destroy(device);
    free(x);
    free(coarse);
    free(fine);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#if defined(PEN_CUDA_EMULATED)
        cmocka_unit_test(test_what_is_missing_is_said),
        cmocka_unit_test(test_a_lost_gpu_is_told_and_nobody_waits),
        cmocka_unit_test(test_too_little_memory_is_told),
        cmocka_unit_test(test_waiting_pokes),
#endif
        cmocka_unit_test(test_memory_is_accounted_for_and_given_back),
        cmocka_unit_test(test_bytes_pass_to_the_device_and_back),
        cmocka_unit_test(test_pinned_memory_is_copied_in_place),
        cmocka_unit_test(test_reads_land_with_the_event_behind_them),
        cmocka_unit_test(test_markers_add_up_each_units_time),
        cmocka_unit_test(test_norms_are_near_the_oracle),
        cmocka_unit_test(test_activation_rows_round_to_nearest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
