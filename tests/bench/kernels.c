/*
 * bench_kernels [THREADS] [INSTRUCTION SET] [TYPE…]: how near the operations that multiply by a weight come to what
 * this machine can do.
 *
 * First the limits, with all threads at once: reading memory, int8 multiply-adds (VNNI), f32 multiply-adds. Then the
 * weight types named, at the shapes of SmolLM2-135M and Llama-3.2-1B, or every type at one shape; with weights that no
 * cache holds: copies of a matrix, in turn, beyond twice the last-level cache. Few tokens are bound by reading, many by
 * multiplying; both shares are shown. Fine activation rows (QKV and logits) are two multiplications that count as one.
 */
#include "cpu_bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { TOKENS_MAX = 512, COPIES_MAX = 512, REPEATS = 15 };

/* ---- Operations ------------------------------------------------------------------------------------------------ */

typedef enum operation { QKV, PROJECT, GATE_UP, LOGITS } operation;

typedef struct shape {
    const char *name;
    operation op;
    int cols, rows[3]; /* of its matrices */
} shape;

static const shape shapes[] = {
    {"SmolLM2 qkv", QKV, 576, {576, 192, 192}},        {"SmolLM2 out", PROJECT, 576, {576}},
    {"SmolLM2 gate+up", GATE_UP, 576, {1536, 1536}},   {"SmolLM2 down", PROJECT, 1536, {576}},
    {"SmolLM2 logits", LOGITS, 576, {49152}},          {"Llama-1B qkv", QKV, 2048, {2048, 512, 512}},
    {"Llama-1B gate+up", GATE_UP, 2048, {8192, 8192}}, {"Llama-1B down", PROJECT, 8192, {2048}},
};
static const int token_counts[] = {1, 2, 4, 8, 16, 32, 64, 512};
enum { COUNTS = sizeof token_counts / sizeof *token_counts, MATRICES = 3, LOGITS_TOKENS_MAX = 64 };

typedef struct bench {
    pen_device *device;
    const shape *shape;
    pen_weight *weights[COPIES_MAX][MATRICES];
    int copies, threads;
    pen_buffer *x, *norm_weight, *rows, *out; /* f32, f32, activation rows, results */
} bench;

static void run_once(const bench *b, int copy) {
    pen_weight *const *w = b->weights[copy];
    switch (b->shape->op) {
    case QKV: pen_op_qkv(b->device, &(pen_qkv_op){.x = b->rows, .q = w[0], .k = w[1], .v = w[2], .qkv = b->out}); break;
    case PROJECT:
        pen_op_down(b->device, &(pen_project_op){.x = b->rows, .w = w[0], .store = true, .out = b->out});
        break;
    case GATE_UP:
        pen_op_gate_up(b->device, &(pen_gate_up_op){.x = b->rows, .gate = w[0], .up = w[1], .out = b->out});
        break;
    case LOGITS: {
        pen_norm_op norm = {.x = b->x, .weight = b->norm_weight, .cols = b->shape->cols, .eps = 1};
        pen_op_logits(b->device, &(pen_logits_op){.norm = norm, .w = w[0], .logits = b->out});
        break;
    }
    }
}

/* Best of some rounds over all copies: nanoseconds of one operation. */
static double time_ns(const bench *b, int tokens) {
    int threads = b->threads;
    static const int32_t table[64];
    int32_t logit_rows[TOKENS_MAX];
    for (int t = 0; t < tokens; t++) logit_rows[t] = t;
    pen_run run = {.rows = tokens, .tables = {table, table}};
    pen_batch batch = {.rows = tokens, .run_count = 1, .runs = &run, .logit_rows = logit_rows};
    if (b->shape->op == LOGITS) batch.logit_count = tokens;
    pen_device_set_batch(b->device, &batch);
    pen_op_norm(b->device, &(pen_norm_op){.x = b->x,
                                          .weight = b->norm_weight,
                                          .cols = b->shape->cols,
                                          .eps = 1,
                                          .fine = b->shape->op == QKV,
                                          .out = b->rows});
    double best = 1e30;
    int copies = tokens < 64 ? b->copies : 2;
    for (int i = 0; i < REPEATS; i++) {
        int64_t begin = bench_now_ns(threads);
        for (int copy = 0; copy < copies; copy++) run_once(b, copy);
        double ns = (double)(bench_now_ns(threads) - begin) / copies;
        if (ns < best) best = ns;
    }
    return best;
}

static void bench_shape(pen_device *device, int threads, const shape *at, pen_type type, double read, double multiply) {
    if (at->cols % pen_type_get(type)->block_values) return;
    bench b = {.device = device, .shape = at, .threads = threads};
    size_t rows = 0, cols = (size_t)at->cols, matrix_bytes = 0;
    for (int i = 0; i < MATRICES; i++) {
        rows += (size_t)at->rows[i];
        matrix_bytes += pen_weight_bytes(device, type, at->rows[i], at->cols);
    }
    unsigned char *source = calloc(rows, pen_type_row_bytes(type, at->cols));
    if (!source) exit(1);
    size_t copies = 2 * bench_cache_bytes() / matrix_bytes + 2;
    for (; (size_t)b.copies < copies && b.copies < COPIES_MAX; b.copies++)
        for (int i = 0; i < MATRICES && at->rows[i]; i++) {
            check(pen_weight_create(device, type, at->rows[i], at->cols, &b.weights[b.copies][i]));
            pen_weight_write(b.weights[b.copies][i], 0, at->rows[i], source);
        }
    size_t tokens_max = at->op == LOGITS ? LOGITS_TOKENS_MAX : TOKENS_MAX;
    b.x = random_buffer(device, TOKENS_MAX * cols);
    b.norm_weight = random_buffer(device, cols);
    b.out = random_buffer(device, tokens_max * (rows + 64));
    check(pen_buffer_create(device, pen_device_fine_bytes(device, TOKENS_MAX, at->cols), &b.rows));

    double ns[COUNTS];
    int counts = 0;
    for (; counts < COUNTS && (size_t)token_counts[counts] <= tokens_max; counts++)
        ns[counts] = time_ns(&b, token_counts[counts]);
    printf("%-17s %-6s GB/s", at->name, pen_type_get(type)->name);
    for (int i = 0; i < counts; i++) {
        double rate = (double)matrix_bytes / ns[i];
        printf(" | %5.1f %3.0f %%", rate, 100 * rate / read);
    }
    printf("\n%24s Tops", "");
    for (int i = 0; i < counts; i++) {
        double rate = 2.0 * (double)rows * (double)cols * token_counts[i] / ns[i] / 1e3;
        printf(" | %5.3f %3.0f %%", rate, multiply > 0 ? 100 * rate / multiply : 0);
    }
    printf("\n");
    fflush(stdout);
    for (int copy = 0; copy < b.copies; copy++)
        for (int i = 0; i < MATRICES; i++) pen_weight_destroy(b.weights[copy][i]);
    pen_buffer_destroy(b.x);
    pen_buffer_destroy(b.norm_weight);
    pen_buffer_destroy(b.out);
    pen_buffer_destroy(b.rows);
    free(source);
}

int main(int argc, char **argv) {
    pen_cpu_options options = bench_options(argc, argv, "bench_kernels [THREADS] [INSTRUCTION SET] [TYPE…]");
    int threads = options.threads;

    double read = 0, int8 = bench_limit_tops(BENCH_INT8, threads), f32 = bench_limit_tops(BENCH_F32, threads);
    for (int n = 1; n <= threads; n = n < threads && 2 * n > threads ? threads : 2 * n) {
        read = bench_limit_read(n).best;
        printf("reading memory, %d threads: %.1f GB/s\n", n, read);
    }
    printf("int8 multiply-add, %d threads: %.2f Tops\nf32 multiply-add, %d threads: %.2f Tflops\n", threads, int8,
           threads, f32);

    pen_device *device;
    check(pen_cpu_device_create(&options, &device));
    pen_limits limits = {.rows = TOKENS_MAX,
                         .logit_rows = LOGITS_TOKENS_MAX,
                         .hidden = 8192,
                         .ffn = 8192,
                         .heads = 1,
                         .kv_heads = 1,
                         .head_size = 64,
                         .vocab = 49152,
                         .context = TOKENS_MAX};
    check(pen_device_reserve(device, &limits));
    printf("%s\n%-17s %-6s     ", pen_device_name(device), "operation", "type");
    for (int i = 0; i < COUNTS; i++) printf(" | %3d token%c", token_counts[i], token_counts[i] > 1 ? 's' : ' ');
    printf("\n");
    enum { SHAPES = sizeof shapes / sizeof *shapes };
    for (int s = argc > 3 ? 0 : SHAPES - 1; s < SHAPES; s++)
        for (int t = 0; t < PEN_TYPE_COUNT; t++) {
            const pen_type_info *type = pen_type_get((pen_type)t);
            bool named = argc <= 3;
            for (int i = 3; i < argc; i++) named = named || strcasecmp(argv[i], type->name) == 0;
            if (named) bench_shape(device, threads, &shapes[s], (pen_type)t, read, type->quant.bits ? int8 : f32);
        }
    pen_device_destroy(device);
    return 0;
}
