/*
 * The CPU device itself: memory and its accounts, markers, the batch, tables; and norms, against the reference and bit
 * for bit. Also linked with the planted library, where test_norm_rows_do_not_depend_on_the_batch must fail.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "clock.h"
#include "cpu_device.h"
#include "exact.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 40, HIDDEN = 576 };

static pen_device *open_device(pen_cpu_isa isa, int threads, pen_activations activations) {
    pen_device *device;
    pen_cpu_options options = {.isa = isa, .threads = threads, .activations = activations};
    assert_int_equal(pen_cpu_device_create(&options, &device), PEN_OK);
    return device;
}

static void reserve(pen_device *device) {
    pen_limits limits = {.rows = ROWS,
                         .logit_rows = 4,
                         .hidden = HIDDEN,
                         .ffn = 64,
                         .heads = 9,
                         .kv_heads = 3,
                         .head_size = 64,
                         .vocab = 32,
                         .context = 100};
    size_t before = pen_device_bytes_used(device), bytes = pen_device_scratch_bytes(device, &limits);
    assert_int_equal(pen_device_reserve(device, &limits), PEN_OK);
    assert_int_equal(pen_device_bytes_used(device), before + bytes);
    assert_int_equal(pen_device_reserve(device, &limits), PEN_OK); /* replaces the first */
    assert_int_equal(pen_device_bytes_used(device), before + bytes);
}

static void test_instruction_sets_are_chosen_by_name(void **state) {
    (void)state;
    pen_cpu_isa isa;
    assert_int_equal(pen_cpu_isa_parse("AVX2", &isa), PEN_OK);
    assert_int_equal(isa, PEN_CPU_AVX2);
    assert_int_equal(pen_cpu_isa_parse("auto", &isa), PEN_OK);
    assert_int_equal(isa, PEN_CPU_AUTO);
    assert_int_equal(pen_cpu_isa_parse("sse9", &isa), PEN_USAGE);
    assert_non_null(strstr(pen_last_error(), "portable"));
    assert_ptr_equal(strstr(pen_cpu_isa_names(), "reference portable"), pen_cpu_isa_names());
    for (isa = PEN_CPU_REFERENCE; isa <= PEN_CPU_AVX512; isa++) {
        static const char *const names[] = {"", "reference", "portable", "avx2", "avxvnni", "avx512"};
        pen_device *device;
        pen_cpu_options options = {.isa = isa, .threads = 1};
        pen_status status = pen_cpu_device_create(&options, &device);
        assert_int_equal(status, strstr(pen_cpu_isa_names(), names[isa]) ? PEN_OK : PEN_UNSUPPORTED);
        if (status != PEN_OK) continue;
        assert_non_null(strstr(pen_device_name(device), names[isa]));
        assert_non_null(strstr(pen_device_name(device), ", 1 thread"));
        pen_device_destroy(device);
    }
}

static void test_memory_is_accounted_for_and_given_back(void **state) {
    (void)state;
    pen_device *device = open_device(PEN_CPU_AUTO, 1, PEN_ACTIVATIONS_FAST);
    reserve(device);
    size_t before = pen_device_bytes_used(device);
    pen_buffer *buffer;
    pen_weight *weight;
    pen_kv *kv;
    pen_rope *rope;
    pen_rope_options options = {.dims = 64, .positions = 100, .base = 1e4, .scale = 1, .magnitude = 1};
    assert_int_equal(pen_buffer_create(device, 5 << 20, &buffer), PEN_OK);
    assert_int_equal(pen_weight_create(device, PEN_TYPE_Q4_1, 100, 64, &weight), PEN_OK);
    assert_int_equal(pen_kv_create(device, 3, 64, 10, &kv), PEN_OK);
    assert_int_equal(pen_rope_create(device, &options, &rope), PEN_OK);
    size_t bytes = (5 << 20) + pen_weight_bytes(device, PEN_TYPE_Q4_1, 100, 64) + pen_kv_bytes(device, 3, 64, 10) +
                   100 * 64 * sizeof(float);
    assert_int_equal(pen_device_bytes_used(device), before + bytes);
    assert_true(pen_kv_bytes(device, 3, 64, 10) >= 2 * 3 * 64 * 10 * PEN_KV_BLOCK * sizeof(uint16_t));
    assert_int_equal((uintptr_t)pen_buffer_host(buffer) % 64, 0);

    const char text[] = "through the device and back";
    char back[sizeof text];
    pen_buffer_write(buffer, (5 << 20) - sizeof text, text, sizeof text);
    pen_buffer_read(buffer, (5 << 20) - sizeof text, back, sizeof back);
    assert_string_equal(back, text);

    pen_rope_destroy(rope);
    pen_kv_destroy(kv);
    pen_weight_destroy(weight);
    pen_buffer_destroy(buffer);
    assert_int_equal(pen_device_bytes_used(device), before);
    assert_int_equal(pen_buffer_create(device, SIZE_MAX - 1, &buffer), PEN_NO_MEMORY);
    assert_int_equal(pen_weight_create(device, PEN_TYPE_F16, 8, 33, &weight), PEN_UNSUPPORTED);
    assert_non_null(strstr(pen_last_error(), "F16 weight of 33 columns"));
    assert_int_equal(pen_device_bytes_used(device), before);
    pen_device_destroy(device);
}

static void test_markers_add_up_each_units_time(void **state) {
    (void)state;
    enum { MS = 1000000 };
    for (int threads = 1; threads <= 2; threads++) {
        pen_device *device = open_device(PEN_CPU_AUTO, threads, PEN_ACTIVATIONS_FAST);
        for (int i = 0; i < 2; i++) {
            pen_device_unit_begin(device, 7);
            for (int64_t end = pen_clock_thread_cpu_ns() + 2 * MS; pen_clock_thread_cpu_ns() < end;) continue;
            pen_clock_sleep_until(pen_clock_ns() + 50 * MS);
            pen_device_unit_end(device);
        }
        /* A thread by itself is timed by its own clock, which stands still while it sleeps. */
        double least = threads == 1 ? 4 : 104, most = threads == 1 ? 100 : 10000;
        assert_true(pen_device_unit_ms(device, 7) >= least && pen_device_unit_ms(device, 7) < most);
        assert_true(pen_device_unit_ms(device, 6) == 0);
        pen_device_unit_reset(device);
        assert_true(pen_device_unit_ms(device, 7) == 0);
        pen_device_destroy(device);
    }
}

static void test_events_are_done(void **state) {
    (void)state;
    pen_device *device = open_device(PEN_CPU_AUTO, 1, PEN_ACTIVATIONS_FAST);
    pen_event *event;
    assert_int_equal(pen_event_create(device, &event), PEN_OK);
    assert_true(pen_event_done(event));
    pen_event_record(event);
    assert_true(pen_event_done(event));
    assert_int_equal(pen_device_sync(device), PEN_OK);
    pen_event_destroy(event);
    pen_device_destroy(device);
}

static void test_the_batch_is_copied(void **state) {
    (void)state;
    pen_device *device = open_device(PEN_CPU_AUTO, 1, PEN_ACTIVATIONS_FAST);
    reserve(device);
    int32_t table[] = {5, 6, 7}, tokens[] = {1, 2, 3, 4}, logit_rows[] = {1, 3};
    pen_run runs[] = {{.row = 0, .rows = 3, .position = 30, .tables = {table, table}},
                      {.row = 3, .rows = 1, .position = 0, .tables = {NULL, table + 2}}};
    pen_batch batch = {
        .rows = 4, .run_count = 2, .runs = runs, .tokens = tokens, .logit_count = 2, .logit_rows = logit_rows};
    pen_device_set_batch(device, &batch);
    memset(table, 0, sizeof table);
    memset(tokens, 0, sizeof tokens);
    memset(logit_rows, 0, sizeof logit_rows);
    memset(runs, 0, sizeof runs);

    const pen_batch *kept = &((pen_cpu_device *)device)->batch;
    const int32_t tables[] = {5, 6, 7}, row_runs[] = {0, 0, 0, 1}, kept_tokens[] = {1, 2, 3, 4}, rows[] = {1, 3};
    assert_memory_equal(kept->runs[0].tables[0], tables, sizeof tables);
    assert_memory_equal(kept->runs[0].tables[1], tables, sizeof tables);
    assert_null(kept->runs[1].tables[0]);
    assert_int_equal(kept->runs[1].tables[1][0], 7);
    assert_int_equal(kept->runs[0].position, 30);
    assert_memory_equal(kept->tokens, kept_tokens, sizeof kept_tokens);
    assert_memory_equal(kept->logit_rows, rows, sizeof rows);
    assert_memory_equal(((pen_cpu_device *)device)->row_run, row_runs, sizeof row_runs);
    pen_device_destroy(device);
}

static void test_exact_functions_agree_with_libm(void **state) {
    (void)state;
    for (int i = -6000; i < 6000; i++) {
        double x = i * 0.1137, sine, cosine;
        assert_true(fabs(pen_exact_exp(x) - exp(x)) <= 1e-15 * exp(x));
        assert_true(fabs(pen_exact_log(exp(x / 10)) - x / 10) <= 1e-14 * fabs(x / 10));
        pen_exact_sincos(x * 1000, &sine, &cosine);
        assert_true(fabs(sine - sin(x * 1000)) < 1e-15 && fabs(cosine - cos(x * 1000)) < 1e-15);
    }
    assert_true(pen_exact_exp(-INFINITY) == 0 && isnan(pen_exact_exp(NAN)));
    assert_true(pen_exact_log(1) == 0);
}

static void test_rotation_tables(void **state) {
    (void)state;
    pen_device *device = open_device(PEN_CPU_AUTO, 1, PEN_ACTIVATIONS_FAST);
    const float factors[] = {1, 1.5F, 2, 8};
    pen_rope *rope;
    pen_rope_options options = {
        .dims = 8, .positions = 9000, .base = 1e5, .scale = 0.25, .magnitude = 1.5, .factors = factors};
    assert_int_equal(pen_rope_create(device, &options, &rope), PEN_OK);
    for (int p = 0; p < 9000; p += 7)
        for (int i = 0; i < 4; i++) {
            double angle = p * pow(1e5, -2.0 * i / 8) * 0.25 / (double)factors[i];
            const float *turn = ((pen_cpu_rope *)rope)->table + p * 8 + 2 * i;
            assert_true(fabs((double)turn[0] - 1.5 * cos(angle)) < 1e-7);
            assert_true(fabs((double)turn[1] - 1.5 * sin(angle)) < 1e-7);
        }
    pen_rope_destroy(rope);
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

static float noise(int i) {
    return (float)((uint32_t)(i + 1) * 2654435761u >> 8) * 0x1p-24F - 0.4F;
}

/* Norms all rows, `step` of them in a batch, and returns f32 rows [ROWS][cols]. */
static float *norm_rows(pen_cpu_isa isa, int threads, const norm_case *what, int step) {
    pen_device *device = open_device(isa, threads, PEN_ACTIVATIONS_F32);
    reserve(device);
    size_t cols = (size_t)what->cols, row = cols * sizeof(float);
    pen_buffer *x, *weight, *bias, *out;
    size_t out_row = what->add ? row : pen_device_activation_bytes(device, 1, what->cols);
    assert_int_equal(pen_buffer_create(device, ROWS * row, &x), PEN_OK);
    assert_int_equal(pen_buffer_create(device, row, &weight), PEN_OK);
    assert_int_equal(pen_buffer_create(device, row, &bias), PEN_OK);
    assert_int_equal(pen_buffer_create(device, ROWS * out_row, &out), PEN_OK);
    for (int i = 0; i < what->cols; i++) {
        ((float *)pen_buffer_host(weight))[i] = 1 + noise(i * 3);
        ((float *)pen_buffer_host(bias))[i] = noise(i * 5 + 1);
    }
    float *results = malloc(ROWS * row);
    for (int first = 0; first < ROWS; first += step) {
        int rows = ROWS - first < step ? ROWS - first : step;
        pen_run run = {.rows = rows};
        pen_batch batch = {.rows = rows, .run_count = 1, .runs = &run};
        for (int i = 0; i < rows * what->cols; i++) {
            int index = first * what->cols + i;
            ((float *)pen_buffer_host(x))[i] = noise(index) * (float)(index / what->cols + 1);
            if (what->add) ((float *)pen_buffer_host(out))[i] = noise(7 * index);
        }
        pen_norm_op op = {.x = x,
                          .weight = weight,
                          .bias = what->bias ? bias : NULL,
                          .cols = what->cols,
                          .eps = 1e-5F,
                          .mean = what->mean,
                          .out = what->add ? NULL : out,
                          .add_to = what->add ? out : NULL};
        pen_device_set_batch(device, &batch);
        pen_op_norm(device, &op);
        for (int r = 0; r < rows; r++)
            pen_buffer_read(out, (size_t)r * out_row, results + (size_t)(first + r) * cols, row);
    }
    pen_buffer_destroy(out);
    pen_buffer_destroy(bias);
    pen_buffer_destroy(weight);
    pen_buffer_destroy(x);
    pen_device_destroy(device);
    return results;
}

static void test_norms_are_near_the_reference(void **state) {
    (void)state;
    for (int c = 0; c < NORM_CASES; c++) {
        float *expected = norm_rows(PEN_CPU_REFERENCE, 1, &norm_cases[c], ROWS);
        float *got = norm_rows(PEN_CPU_AUTO, 2, &norm_cases[c], ROWS);
        float largest = 0;
        for (int i = 0; i < ROWS * norm_cases[c].cols; i++) {
            assert_true(fabsf(expected[i] - got[i]) < 1e-5F);
            largest = fmaxf(largest, fabsf(got[i]));
        }
        assert_true(largest > 0.9F);
        free(expected);
        free(got);
    }
}

static void test_norm_rows_do_not_depend_on_the_batch(void **state) {
    (void)state;
    static const norm_case what = {HIDDEN, false, false, false};
    float *alone = norm_rows(PEN_CPU_AUTO, 1, &what, 1);
    float *together = norm_rows(PEN_CPU_AUTO, 1, &what, ROWS);
    assert_memory_equal(alone, together, ROWS * HIDDEN * sizeof(float));
    free(alone);
    free(together);
}

static void test_norm_bits_are_equal_on_every_device(void **state) {
    (void)state;
    for (int c = 0; c < NORM_CASES; c++) {
        float *expected = norm_rows(PEN_CPU_AUTO, 1, &norm_cases[c], 11);
        for (pen_cpu_isa isa = PEN_CPU_PORTABLE; isa <= PEN_CPU_AVX512; isa++) {
            static const char *const names[] = {"", "", "portable", "avx2", "avxvnni", "avx512"};
            for (int threads = 1; strstr(pen_cpu_isa_names(), names[isa]) && threads <= 3; threads++) {
                float *got = norm_rows(isa, threads, &norm_cases[c], 11);
                assert_memory_equal(got, expected, ROWS * (size_t)norm_cases[c].cols * sizeof *got);
                free(got);
            }
        }
        free(expected);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_instruction_sets_are_chosen_by_name),
        cmocka_unit_test(test_memory_is_accounted_for_and_given_back),
        cmocka_unit_test(test_markers_add_up_each_units_time),
        cmocka_unit_test(test_events_are_done),
        cmocka_unit_test(test_the_batch_is_copied),
        cmocka_unit_test(test_exact_functions_agree_with_libm),
        cmocka_unit_test(test_rotation_tables),
        cmocka_unit_test(test_norms_are_near_the_reference),
        cmocka_unit_test(test_norm_rows_do_not_depend_on_the_batch),
        cmocka_unit_test(test_norm_bits_are_equal_on_every_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
