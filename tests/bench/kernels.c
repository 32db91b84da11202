/*
 * bench_kernels [THREADS] [INSTRUCTION SET] [TYPE…]: how near the operations that multiply by a weight come to what
 * this machine can do.
 *
 * First the limits, with all threads at once: reading memory, int8 multiply-adds (VNNI), f32 multiply-adds. Then the
 * weight types named, at the shapes of SmolLM2-135M and Llama-3.2-1B, or every type at one shape; with weights that no
 * cache holds: copies of a matrix, in turn, beyond twice the last-level cache. Few tokens are bound by reading, many by
 * multiplying; both shares are shown. Fine activation rows (QKV and logits) are two multiplications that count as one.
 */
#include "clock.h"
#include "cpu.h"
#include "pool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { TOKENS_MAX = 512, COPIES_MAX = 512, REPEATS = 15 };

static void check(pen_status status) {
    if (status == PEN_OK) return;
    fprintf(stderr, "bench_kernels: %s\n", pen_last_error());
    exit(1);
}

/* One thread is timed by the core time it used, as the machine may be shared; several by the clock, best of many. */
static int64_t now_ns(int threads) {
    return threads == 1 ? pen_clock_thread_cpu_ns() : pen_clock_ns();
}

static size_t cache_bytes(void) {
    long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return bytes > 0 ? (size_t)bytes : (size_t)32 << 20;
}

/* ---- Limits of the machine ------------------------------------------------------------------------------------- */

typedef struct limit_job {
    const uint64_t *memory;
    size_t words; /* of a task */
    uint64_t sums[1024];
} limit_job;

static void read_task(void *context, int task, int thread) {
    limit_job *job = context;
    const uint64_t *p = job->memory + job->words * (size_t)task;
    uint64_t sum[8] = {0};
    for (size_t i = 0; i < job->words; i += 8)
        for (int j = 0; j < 8; j++) sum[j] += p[i + (size_t)j];
    for (int j = 0; j < 8; j++) job->sums[thread] += sum[j];
}

/* GB/s of `threads` threads together. */
static double read_limit(int threads) {
    enum { TASKS = 256 };
    size_t bytes = 4 * cache_bytes() / TASKS / 64 * 64 * TASKS;
    void *memory = aligned_alloc(2 << 20, (bytes + (2 << 20) - 1) >> 21 << 21);
    limit_job *job = calloc(1, sizeof *job);
    if (!memory || !job) exit(1);
    memset(memory, 1, bytes);
    job->memory = memory;
    job->words = bytes / TASKS / sizeof(uint64_t);
    pen_pool *pool;
    check(pen_pool_create(threads, NULL, true, &pool));
    double best = 0;
    for (int i = 0; i < REPEATS; i++) {
        int64_t begin = now_ns(threads);
        pen_pool_run(pool, read_task, job, TASKS);
        double rate = (double)bytes / (double)(now_ns(threads) - begin);
        if (rate > best) best = rate;
    }
    pen_pool_destroy(pool);
    free(memory);
    free(job);
    return best;
}

enum { PEAK_ROUNDS = 10000, PEAK_CHAINS = 12 };

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512vnni"))) static void int8_task(void *context, int task, int thread) {
    (void)task;
    __m512i sums[PEAK_CHAINS], a = _mm512_set1_epi32(thread), b = _mm512_set1_epi32(task);
#pragma GCC unroll 12
    for (int i = 0; i < PEAK_CHAINS; i++) sums[i] = a;
    for (int round = 0; round < PEAK_ROUNDS; round++)
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_CHAINS; i++) {
            sums[i] = _mm512_dpbusd_epi32(sums[i], a, b);
            __asm__("" : "+v"(sums[i]));
        }
#pragma GCC unroll 12
    for (int i = 1; i < PEAK_CHAINS; i++) sums[0] = _mm512_add_epi32(sums[0], sums[i]);
    ((limit_job *)context)->sums[thread] = (uint64_t)_mm512_reduce_add_epi32(sums[0]);
}

__attribute__((target("avx512f"))) static void float_task(void *context, int task, int thread) {
    (void)task;
    __m512 sums[PEAK_CHAINS], a = _mm512_set1_ps((float)thread), b = _mm512_set1_ps((float)task);
#pragma GCC unroll 12
    for (int i = 0; i < PEAK_CHAINS; i++) sums[i] = a;
    for (int round = 0; round < PEAK_ROUNDS; round++)
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_CHAINS; i++) {
            sums[i] = _mm512_fmadd_ps(a, b, sums[i]);
            __asm__("" : "+v"(sums[i]));
        }
#pragma GCC unroll 12
    for (int i = 1; i < PEAK_CHAINS; i++) sums[0] = _mm512_add_ps(sums[0], sums[i]);
    ((limit_job *)context)->sums[thread] = (uint64_t)_mm512_reduce_add_ps(sums[0]);
}

/* 10^12 operations a second; 0 where this machine lacks the instructions. */
static double multiply_limit(int threads, bool int8) {
    if (!__builtin_cpu_supports("avx512f") || (int8 && !__builtin_cpu_supports("avx512vnni"))) return 0;
    limit_job *job = calloc(1, sizeof *job);
    pen_pool *pool;
    check(pen_pool_create(threads, NULL, true, &pool));
    double best = 0, operations = 2.0 * (int8 ? 64 : 16) * PEAK_CHAINS * PEAK_ROUNDS * threads * 8;
    for (int i = 0; job && i < REPEATS; i++) {
        int64_t begin = now_ns(threads);
        pen_pool_run(pool, int8 ? int8_task : float_task, job, threads * 8);
        double rate = operations / (double)(now_ns(threads) - begin) / 1e3;
        if (rate > best) best = rate;
    }
    pen_pool_destroy(pool);
    free(job);
    return best;
}
#else
static double multiply_limit(int threads, bool int8) {
    return (void)threads, (void)int8, 0;
}
#endif

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
        int64_t begin = now_ns(threads);
        for (int copy = 0; copy < copies; copy++) run_once(b, copy);
        double ns = (double)(now_ns(threads) - begin) / copies;
        if (ns < best) best = ns;
    }
    return best;
}

static pen_buffer *random_buffer(pen_device *device, size_t floats) {
    pen_buffer *buffer;
    check(pen_buffer_create(device, floats * sizeof(float), &buffer));
    float *values = pen_buffer_host(buffer);
    for (size_t i = 0; i < floats; i++) values[i] = (float)(rand() % 2001 - 1000) / 1000;
    return buffer;
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
    size_t copies = 2 * cache_bytes() / matrix_bytes + 2;
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
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    int threads = argc > 1 ? atoi(argv[1]) : (int)online;
    pen_cpu_options options = {.threads = threads, .activations = PEN_ACTIVATIONS_FAST, .may_spin = threads <= online};
    if (threads < 1 || threads > 1024) {
        fprintf(stderr, "usage: bench_kernels [THREADS] [INSTRUCTION SET] [TYPE…]\n");
        return 2;
    }
    check(pen_cpu_isa_parse(argc > 2 ? argv[2] : "auto", &options.isa));

    double read = 0, int8 = multiply_limit(threads, true), f32 = multiply_limit(threads, false);
    for (int n = 1; n <= threads; n = n < threads && 2 * n > threads ? threads : 2 * n) {
        read = read_limit(n);
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
