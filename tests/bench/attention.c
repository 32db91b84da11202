/*
 * bench_attention [THREADS] [INSTRUCTION SET]: how near attention comes to what this machine can do.
 *
 * A prompt in one batch, one decoded row of a sequence, and one of each of many, at the shapes of SmolLM2-135M and
 * Gemma 3 270M (a layer with a window and one without), with K and V in f16 and in q8_0. Decodes read pages that no
 * cache holds: sequences in turn, beyond twice the last-level cache. Shares are of two multiply-adds in f32 for each
 * head, its dimensions and each position seen, at the machine's peak, and of reading K and V once; with q8_0 scores are
 * int8 products, and more than the whole peak is possible.
 */
#include "cpu_bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROWS_MAX = 512, CONTEXT_MAX = 4096 + 16, REPEATS = 9 };

typedef struct shape {
    const char *name;
    int heads, kv_heads, head_size, window;
} shape;

static const shape shapes[] = {
    {"SmolLM2", 9, 3, 64, 0},
    {"Gemma 3 270M", 4, 1, 256, 0},
    {"Gemma 3 window", 4, 1, 256, 512},
};

typedef struct phase {
    const char *name;
    int runs, rows, position; /* rows of a run */
} phase;

static const phase phases[] = {{"prompt 512", 1, 512, 0},
                               {"decode at 512", 1, 1, 511},
                               {"decode at 4096", 1, 1, 4095},
                               {"32 decodes at 144", 32, 1, 143}};

static double seen(const shape *s, const phase *p) {
    double sum = 0;
    for (int row = 0; row < p->rows; row++) {
        int end = p->position + row + 1;
        sum += s->window > 0 && end > s->window ? s->window : end;
    }
    return sum;
}

static void bench_phase(pen_device *device, int threads, const shape *s, const phase *p, double read, double multiply) {
    int blocks = (p->position + p->rows + PEN_KV_BLOCK - 1) / PEN_KV_BLOCK;
    double bytes = (double)pen_kv_bytes(device, s->kv_heads, s->head_size, blocks);
    int batches = p->rows > 1 ? 1 : (int)(2 * (double)bench_cache_bytes() / (bytes * p->runs)) + 2;
    int sequences = batches * p->runs;
    pen_kv *kv;
    check(pen_kv_create(device, s->kv_heads, s->head_size, blocks * sequences, &kv));
    size_t cols = (size_t)((s->heads + 2 * s->kv_heads) * s->head_size);
    pen_buffer *qkv = random_buffer(device, ROWS_MAX * cols), *out;
    check(pen_buffer_create(device, pen_device_activation_bytes(device, ROWS_MAX, s->heads * s->head_size), &out));
    int32_t *table = malloc((size_t)(blocks * sequences) * sizeof *table);
    if (!table) exit(1);
    for (int b = 0; b < blocks * sequences; b++) table[b] = b;
    pen_rope_kv_op rope_kv = {
        .qkv = qkv, .heads = s->heads, .kv_heads = s->kv_heads, .head_size = s->head_size, .kv = kv};
    for (int b = 0; b < blocks * sequences; b++) {
        pen_run run = {.rows = PEN_KV_BLOCK, .tables = {table + b}};
        pen_device_set_batch(device, &(pen_batch){.rows = PEN_KV_BLOCK, .run_count = 1, .runs = &run});
        pen_op_rope_kv(device, &rope_kv);
    }
    pen_attention_op op = {.qkv = qkv,
                           .heads = s->heads,
                           .kv_heads = s->kv_heads,
                           .head_size = s->head_size,
                           .scale = 1 / sqrtf((float)s->head_size),
                           .window = s->window,
                           .kv = kv,
                           .out = out};
    double best = 1e30;
    for (int i = 0; i < REPEATS; i++) {
        int64_t ns = 0;
        for (int batch = 0; batch < batches; batch++) {
            pen_run runs[ROWS_MAX];
            for (int r = 0; r < p->runs; r++)
                runs[r] = (pen_run){.row = r * p->rows,
                                    .rows = p->rows,
                                    .position = p->position,
                                    .tables = {table + (size_t)blocks * (size_t)(batch * p->runs + r)}};
            pen_device_set_batch(device, &(pen_batch){.rows = p->runs * p->rows, .run_count = p->runs, .runs = runs});
            int64_t begin = bench_now_ns(threads);
            pen_op_attention(device, &op);
            ns += bench_now_ns(threads) - begin;
        }
        if ((double)ns / batches < best) best = (double)ns / batches;
    }
    double positions = p->runs * seen(s, p), flops = 4 * positions * s->heads * s->head_size;
    double last = p->rows > 1 ? p->rows : positions; /* positions of which K and V are read */
    double gb_s = bytes / (blocks * PEN_KV_BLOCK) * last / best;
    printf("  %-17s %9.1f µs %6.1f Gflop/s %4.0f %% %6.1f GB/s %4.0f %%\n", p->name, best / 1e3, flops / best,
           100 * flops / best / (multiply * 1e3), gb_s, 100 * gb_s / read);
    fflush(stdout);
    free(table);
    pen_buffer_destroy(out);
    pen_buffer_destroy(qkv);
    pen_kv_destroy(kv);
}

int main(int argc, char **argv) {
    pen_cpu_options options = bench_options(argc, argv, "bench_attention [THREADS] [INSTRUCTION SET]");
    int threads = options.threads;
    double read = bench_limit_read(threads).best, multiply = bench_limit_tops(BENCH_F32, threads);
    printf("reading memory %.1f GB/s, f32 multiply-add %.3f Tflops\n", read, multiply);
    for (int q8_0 = 0; q8_0 < 2; q8_0++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            pen_device *device;
            options.kv_q8_0 = q8_0;
            check(pen_cpu_device_create(&options, &device));
            pen_limits limits = {.rows = ROWS_MAX,
                                 .logit_rows = 1,
                                 .hidden = 64,
                                 .ffn = 64,
                                 .heads = shapes[s].heads,
                                 .kv_heads = shapes[s].kv_heads,
                                 .head_size = shapes[s].head_size,
                                 .vocab = 64,
                                 .context = CONTEXT_MAX};
            check(pen_device_reserve(device, &limits));
            printf("%s, %s, K and V in %s\n", shapes[s].name, pen_device_name(device), q8_0 ? "q8_0" : "f16");
            for (size_t p = 0; p < sizeof phases / sizeof *phases; p++)
                bench_phase(device, threads, &shapes[s], &phases[p], read, multiply);
            pen_device_destroy(device);
        }
    return 0;
}
