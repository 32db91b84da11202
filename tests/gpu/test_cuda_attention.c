/*
 * Rotation, KV pages and attention on the CUDA device: near the CPU's oracle, and bit for bit equal for every split of
 * the same sequences into batches, whether a block walks all spans or every span has a block, and in any order of a
 * block's threads.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cuda_tests.h"

enum { SEQUENCES = 3, LONGEST = 320, BATCH_ROWS = 48 };

typedef struct shape {
    int heads, kv_heads, head_size, window;
    float softcap;
    bool norm, interleaved;
    int rope_dims;
    int lengths[SEQUENCES];
} shape;

typedef enum split { WHOLE, SINGLE_ROWS, RAGGED, SPLITS } split;

static int qkv_cols(const shape *s) {
    return (s->heads + 2 * s->kv_heads) * s->head_size;
}

/* Rows of all sequences, one behind the other; `first[s]` is where one begins. */
static int count_rows(const shape *s, int first[SEQUENCES]) {
    int rows = 0;
    for (int i = 0; i < SEQUENCES; i++) {
        if (first) first[i] = rows;
        rows += s->lengths[i];
    }
    return rows;
}

/* How many rows of a sequence go into the next batch. */
static int next_rows(split how, int step, int sequence, int left, int room) {
    static const int ragged[] = {1, 17, 0, 33, 3, 1, 16, 0, 7, 40};
    int rows = left;
    if (how == SINGLE_ROWS) rows = 1;
    if (how == RAGGED) rows = ragged[(step * SEQUENCES + sequence * 2) % 10];
    if (how == WHOLE && sequence != step % SEQUENCES) rows = 0; /* one sequence at a time */
    rows = rows < left ? rows : left;
    return rows < room ? rows : room;
}

/* Values of an attention's result: f32 rows of the oracle, the device's activation rows. */
static void take_row(const pen_device *device, bool oracle, const unsigned char *row, int cols, float *values) {
    if (oracle)
        memcpy(values, row, (size_t)cols * sizeof *values);
    else
        activation_values(pen_device_activations(device), row, 1, cols, values);
}

/* Feeds all sequences through a device; results[row][heads·head_size] in the order of the inputs. */
static void attend(pen_device *device, bool oracle, const shape *s, split how, const float *inputs, float *results) {
    int first[SEQUENCES], total = count_rows(s, first), cols = qkv_cols(s), out_cols = s->heads * s->head_size;
    enum { SEQUENCE_BLOCKS = LONGEST / PEN_KV_BLOCK + 1, BLOCKS = SEQUENCE_BLOCKS * SEQUENCES };
    pen_limits limits = {.rows = BATCH_ROWS,
                         .logit_rows = 1,
                         .hidden = out_cols,
                         .ffn = 64,
                         .heads = s->heads,
                         .kv_heads = s->kv_heads,
                         .head_size = s->head_size,
                         .vocab = 32,
                         .context = LONGEST};
    assert_int_equal(pen_device_reserve(device, &limits), PEN_OK);
    pen_kv *kv;
    assert_int_equal(pen_kv_create(device, s->kv_heads, s->head_size, BLOCKS, &kv), PEN_OK);
    int32_t tables[SEQUENCES][SEQUENCE_BLOCKS];
    for (int b = 0; b < BLOCKS; b++) tables[b % SEQUENCES][b / SEQUENCES] = (b * 37 + 11) % BLOCKS; /* 37 ∤ BLOCKS */
    pen_rope *rope;
    pen_rope_options rope_options = {.dims = s->rope_dims ? s->rope_dims : 2,
                                     .positions = LONGEST,
                                     .base = 1e4,
                                     .scale = 1,
                                     .magnitude = 1,
                                     .interleaved = s->interleaved};
    assert_int_equal(pen_rope_create(device, &rope_options, &rope), PEN_OK);
    float *norms = allocate((size_t)s->head_size * sizeof *norms);
    for (int d = 0; d < s->head_size; d++) norms[d] = 1 + 0.01F * (float)d;
    size_t row_bytes = pen_device_activation_bytes(device, 1, out_cols);
    pen_buffer *qkv = empty_buffer(device, (size_t)(BATCH_ROWS * cols) * sizeof(float));
    pen_buffer *out = empty_buffer(device, BATCH_ROWS * row_bytes);
    pen_buffer *norm = buffer_of(device, norms, (size_t)s->head_size * sizeof *norms);
    pen_rope_kv_op rope_kv = {.qkv = qkv,
                              .heads = s->heads,
                              .kv_heads = s->kv_heads,
                              .head_size = s->head_size,
                              .q_norm = s->norm ? norm : NULL,
                              .k_norm = s->norm ? norm : NULL,
                              .eps = 1e-5F,
                              .rope = s->rope_dims ? rope : NULL,
                              .kv = kv};
    pen_attention_op attention = {.qkv = qkv,
                                  .heads = s->heads,
                                  .kv_heads = s->kv_heads,
                                  .head_size = s->head_size,
                                  .scale = 1.0F / sqrtf((float)s->head_size),
                                  .softcap = s->softcap,
                                  .window = s->window,
                                  .kv = kv,
                                  .out = out};
    unsigned char *rows = allocate(BATCH_ROWS * row_bytes);
    int done[SEQUENCES] = {0}, finished = 0;
    for (int step = 0; finished < total; step++) {
        pen_run runs[SEQUENCES];
        int of[SEQUENCES];
        pen_batch batch = {.runs = runs};
        for (int i = 0; i < SEQUENCES; i++) {
            int n = next_rows(how, step, i, s->lengths[i] - done[i], BATCH_ROWS - batch.rows);
            if (n == 0) continue;
            of[batch.run_count] = i;
            runs[batch.run_count++] =
                (pen_run){.row = batch.rows, .rows = n, .position = done[i], .tables = {tables[i]}};
            pen_buffer_write(qkv, (size_t)(batch.rows * cols) * sizeof(float), inputs + (first[i] + done[i]) * cols,
                             (size_t)(n * cols) * sizeof(float));
            batch.rows += n;
        }
        if (batch.rows == 0) continue;
        pen_device_set_batch(device, &batch);
        pen_op_rope_kv(device, &rope_kv);
        pen_op_attention(device, &attention);
        read_back(out, rows, (size_t)batch.rows * row_bytes);
        for (int r = 0; r < batch.run_count; r++)
            for (int i = 0; i < runs[r].rows; i++, done[of[r]]++, finished++)
                take_row(device, oracle, rows + (size_t)(runs[r].row + i) * row_bytes, out_cols,
                         results + (size_t)((first[of[r]] + done[of[r]]) * out_cols));
    }
    pen_buffer_destroy(norm);
    pen_buffer_destroy(out);
    pen_buffer_destroy(qkv);
    pen_rope_destroy(rope);
    pen_kv_destroy(kv);
    free(norms);
    free(rows);
}

static const shape shapes[] = {
    {9, 3, 64, 0, 0, false, true, 64, {5, 130, 270}},     /* SmolLM2 */
    {4, 2, 80, 0, 30, true, false, 80, {1, 33, 150}},     /* softcap, head norms */
    {3, 1, 128, 20, 0, false, false, 64, {16, 40, 140}},  /* windows, half of a head rotated */
    {2, 2, 96, 140, 0, false, true, 96, {17, 48, 290}},   /* a window longer than a span */
    {20, 2, 16, 0, 0, true, false, 0, {15, 129, 3}},      /* more query heads than a tile; no rotation */
    {4, 4, 200, 0, 0, false, false, 200, {3, 20, 131}},   /* two dimensions for a thread */
    {6, 2, 256, 100, 20, false, false, 64, {2, 133, 20}}, /* wide heads in large tiles */
    {8, 8, 260, 0, 0, false, true, 40, {1, 2, 9}},        /* four */
    {4, 2, 504, 0, 0, false, true, 0, {1, 131, 3}},       /* the widest */
    {17, 1, 32, 0, 0, false, true, 32, {131, 20, 7}},     /* a head more than a tile has, in chunks of 9 and 8 */
    {16, 4, 12, 0, 0, false, true, 12, {2, 140, 1}},      /* heads that are padded */
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static void test_results_are_near_the_oracle(void **state) {
    (void)state;
    random_state = 7;
    for (int i = 0; i < SHAPES; i++)
        for (int f32 = 0; f32 < 2; f32++) {
            const shape *s = &shapes[i];
            size_t count = (size_t)count_rows(s, NULL), values = count * (size_t)(s->heads * s->head_size);
            float *inputs = random_floats(count * (size_t)qkv_cols(s));
            for (size_t v = 0; v < count * (size_t)qkv_cols(s); v++) inputs[v] *= 2;
            float *expected = allocate(values * sizeof(float)), *got = allocate(values * sizeof(float));
            pen_device *oracle = open_oracle(PEN_ACTIVATIONS_F32, NULL);
            pen_device *device = open_cuda(f32 ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST, NULL);
            attend(oracle, true, s, WHOLE, inputs, expected);
            attend(device, false, s, RAGGED, inputs, got);
            double largest = 0;
            for (size_t v = 0; v < values; v++) largest = fmax(largest, fabs((double)expected[v]));
            assert_true(largest > 0.5);
            for (size_t v = 0; v < values; v++) /* f16 pages and int8 rows, or rounding alone */
                assert_near((double)got[v], (double)expected[v], (f32 ? 3e-6 : 0.006) * largest, "attention");
            pen_device_destroy(oracle);
            pen_device_destroy(device);
            free(inputs);
            free(expected);
            free(got);
        }
}

static void test_bits_do_not_depend_on_the_batch(void **state) {
    (void)state;
    random_state = 8;
    for (int i = 0; i < SHAPES; i++) {
        const shape *s = &shapes[i];
        size_t count = (size_t)count_rows(s, NULL), values = count * (size_t)(s->heads * s->head_size);
        float *inputs = random_floats(count * (size_t)qkv_cols(s));
        float *expected = allocate(values * sizeof(float)), *got = allocate(values * sizeof(float));
        pen_device *device = open_cuda(i % 2 ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST, NULL);
        attend(device, false, s, WHOLE, inputs, expected);
        for (int how = 1 + i / 2 % 2; how < SPLITS; how += 2) { /* each meets half of the shapes */
            shuffle_threads((unsigned)how);
            attend(device, false, s, (split)how, inputs, got);
            assert_memory_equal(got, expected, values * sizeof(float));
        }
        shuffle_threads(0);
        pen_device_destroy(device);
        free(inputs);
        free(expected);
        free(got);
    }
}

/* A copied block is read like the one that it was copied from. */
static void test_blocks_are_copied(void **state) {
    (void)state;
    random_state = 9;
    enum { HEADS = 2, SIZE = 32, ROWS = 20, COLS = 4 * SIZE, OUT = HEADS * SIZE };
    const pen_limits limits = {ROWS, 1, OUT, 32, HEADS, 1, SIZE, 32, 64};
    pen_device *device = open_cuda(PEN_ACTIVATIONS_F32, &limits);
    pen_kv *kv;
    assert_int_equal(pen_kv_create(device, 1, SIZE, 5, &kv), PEN_OK);
    float *inputs = random_floats(ROWS * COLS), results[2][OUT];
    const int32_t table[] = {1, 3}, copied[] = {4, 3};
    pen_buffer *qkv = buffer_of(device, inputs, ROWS * COLS * sizeof(float));
    pen_buffer *out = empty_buffer(device, ROWS * OUT * sizeof(float));
    pen_rope_kv_op rope_kv = {.qkv = qkv, .heads = HEADS, .kv_heads = 1, .head_size = SIZE, .kv = kv};
    pen_attention_op attention = {
        .qkv = qkv, .heads = HEADS, .kv_heads = 1, .head_size = SIZE, .scale = 1, .kv = kv, .out = out};
    pen_run run = {.rows = ROWS, .tables = {table}}, last = {.rows = 1, .position = ROWS - 1};
    pen_device_set_batch(device, &(pen_batch){.rows = ROWS, .run_count = 1, .runs = &run});
    pen_op_rope_kv(device, &rope_kv);
    pen_op_kv_copy(device, kv, 1, 4);
    for (int i = 0; i < 2; i++) {
        last.tables[0] = i ? copied : table;
        pen_device_set_batch(device, &(pen_batch){.rows = 1, .run_count = 1, .runs = &last});
        pen_op_attention(device, &attention);
        read_back(out, results[i], sizeof results[i]);
    }
    assert_memory_equal(results[0], results[1], sizeof results[0]);
    assert_true(isfinite(results[0][0]));
    pen_buffer_destroy(qkv);
    pen_buffer_destroy(out);
    pen_kv_destroy(kv);
    pen_device_destroy(device);
    free(inputs);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_results_are_near_the_oracle),
        cmocka_unit_test(test_bits_do_not_depend_on_the_batch),
        cmocka_unit_test(test_blocks_are_copied),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
