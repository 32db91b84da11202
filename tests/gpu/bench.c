/*
 * bench [OPTION…]: how fast each operation of a device is, a line of JSON for each figure.
 *
 * The operations are those of kernels.h at the shapes of an 8B Llama, timed by the device's own marks around them
 * (CUDA events on a GPU), over weights and KV that no cache holds: copies in turn, beyond twice the cache. A figure is
 * the median of some repetitions; one of those is as many operations as take half a millisecond, so that what a mark
 * costs does not count. It says bytes and operations per second; what the machine could do is limits.cu's to say, and
 * report.py sets both side by side. Bytes are those of the weights as a file has them, of KV, and of the rows; a device
 * that keeps weights in a larger form does not look better for it.
 *
 *   --device cuda|cpu     --activations fast|f32     --threads N (all cores)
 *   --deterministic       no cuBLASLt (cuda)      --only attention|small|products
 *   --types LIST, --rows LIST, --contexts LIST, --streams LIST: instead of all
 *   --cold MIB            beyond which copies go (128: more than twice the 50 MB of an H100)
 *   --tiny                other shapes, once: to see that it runs
 */
#include "cpu.h"
#include "cuda.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LIST_MAX = 16, COPIES_MAX = 128, REPEATS_MAX = 20, SOURCE_ROWS = 512, MATRICES = 3, FEW_ROWS = 64 };

typedef struct int_list {
    int values[LIST_MAX], count;
} int_list;

typedef struct shape {
    int hidden, ffn, heads, kv_heads, head_size, vocab;
} shape;

static const shape shapes[] = {{4096, 14336, 32, 8, 128, 128256}, {256, 512, 4, 2, 64, 512}};

typedef struct bench {
    pen_device *device;
    const char *how; /* what is said behind the device's name */
    shape shape;
    bool types[PEN_TYPE_COUNT];
    const char *only; /* this group of operations, or NULL */
    int_list rows, contexts, streams;
    size_t cold_bytes;
    double budget_ms; /* of a figure */
    int rows_max, context_max;
    int32_t *tokens, *logit_rows, *table;
    pen_buffer *x, *ones;           /* f32 [T][H] and [H] */
    pen_buffer *fine, *slim, *wide; /* activation rows: fine [T][H], [T][H], [T][F] */
    pen_buffer *qkv, *out;          /* f32 [T][(Nq + 2·Nk)·D], [T][H] */
    pen_buffer *gated, *attended;   /* activation rows [T][F], [T][Nq·D] */
    pen_buffer *logits, *choices;   /* f32 [L][V]; pen_choice [L] */
    pen_weight *widener;            /* [F][H], which makes `wide` */
} bench;

static void check(pen_status status) {
    if (status == PEN_OK) return;
    fprintf(stderr, "bench: %s\n", pen_last_error());
    exit(1);
}

static void usage(const char *what) {
    fprintf(stderr, "bench: %s; what it takes stands at the top of tests/gpu/bench.c\n", what);
    exit(2);
}

static void *allocate(size_t bytes) {
    void *memory = calloc(1, bytes);
    if (!memory) {
        fprintf(stderr, "bench: no memory\n");
        exit(1);
    }
    return memory;
}

static int larger(int a, int b) {
    return a > b ? a : b;
}

/* ---- What is multiplied: never zeros, with which a GPU is faster than it is -----------------------------------------
 */

static uint64_t random_state = 1;

static uint32_t random_bits(void) {
    random_state = random_state * 6364136223846793005U + 1442695040888963407U;
    return (uint32_t)(random_state >> 32);
}

static float random_float(void) {
    return (float)random_bits() / 0x1p31F - 1;
}

static pen_buffer *empty_buffer(bench *b, size_t bytes) {
    pen_buffer *buffer;
    check(pen_buffer_create(b->device, bytes, &buffer));
    return buffer;
}

/* Few are large, as of a model that knows what it says: sampling sorts hundreds of candidates, not all. */
static float random_logit(void) {
    float x = random_float();
    return 30 * x * x * x;
}

static pen_buffer *random_buffer(bench *b, size_t count, float (*draw)(void)) {
    float *values = allocate(count * sizeof *values);
    for (size_t i = 0; i < count; i++) values[i] = draw();
    pen_buffer *buffer = empty_buffer(b, count * sizeof *values);
    pen_buffer_write(buffer, 0, values, count * sizeof *values);
    check(pen_device_sync(b->device));
    free(values);
    return buffer;
}

static void random_block(pen_type type, unsigned char *block) {
    const pen_type_info *info = pen_type_get(type);
    float number = random_float();
    uint16_t half = pen_f32_to_f16(number / 64);
    for (int i = 0; i < info->block_bytes; i++) block[i] = (unsigned char)random_bits();
    if (type == PEN_TYPE_F32) memcpy(block, &number, sizeof number);
    if (type == PEN_TYPE_F16) memcpy(block, &half, sizeof half);
    if (type == PEN_TYPE_BF16) memcpy(block, (unsigned char *)&number + 2, 2);
    if (type == PEN_TYPE_MXFP4) block[0] = (unsigned char)(120 + block[0] % 8);
    if (!info->quant.bits || type == PEN_TYPE_MXFP4) return;
    memcpy(block + info->quant.d, &half, sizeof half);
    if (info->quant.m >= 0) memcpy(block + info->quant.m, &half, sizeof half);
}

/* Rows in GGUF layout, enough to fill a weight with, again and again. */
static unsigned char *random_rows(pen_type type, int cols) {
    const pen_type_info *info = pen_type_get(type);
    size_t bytes = pen_type_row_bytes(type, cols) * SOURCE_ROWS;
    unsigned char *rows = allocate(bytes);
    for (size_t at = 0; at < bytes; at += (size_t)info->block_bytes) random_block(type, rows + at);
    return rows;
}

static pen_weight *weight_of(bench *b, pen_type type, int rows, int cols, const unsigned char *source) {
    pen_weight *weight;
    check(pen_weight_create(b->device, type, rows, cols, &weight));
    for (int row = 0; row < rows; row += SOURCE_ROWS)
        pen_weight_write(weight, row, rows - row < SOURCE_ROWS ? rows - row : SOURCE_ROWS, source);
    return weight;
}

/* ---- Timing ------------------------------------------------------------------------------------------------------ */

typedef void enqueue(bench *b, void *context, int copy);

/* One mark around `count` operations, each with the next copy. */
static double mark_ms(bench *b, enqueue *operation, void *context, int copies, int count) {
    static unsigned next;
    pen_device_unit_reset(b->device);
    pen_device_unit_begin(b->device, 0);
    for (int i = 0; i < count; i++) operation(b, context, (int)(next++ % (unsigned)copies));
    pen_device_unit_end(b->device);
    check(pen_device_sync(b->device));
    return pen_device_unit_ms(b->device, 0) / count;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Milliseconds of one operation. */
static double time_ms(bench *b, enqueue *operation, void *context, int copies) {
    mark_ms(b, operation, context, copies, 1); /* the first is slower */
    double once = mark_ms(b, operation, context, copies, 1), times[REPEATS_MAX];
    int count = once > 0 && once < 0.5 ? (int)(0.5 / once) + 1 : 1, repeats = 3;
    if (count > 256) count = 256;
    if (b->budget_ms == 0) count = repeats = 1;
    while (repeats < REPEATS_MAX && repeats * count * once < b->budget_ms) repeats++;
    for (int r = 0; r < repeats; r++) times[r] = mark_ms(b, operation, context, copies, count);
    qsort(times, (size_t)repeats, sizeof *times, compare);
    return times[repeats / 2];
}

/* What a figure is of, and what the operation must move and compute at least. */
typedef struct figure {
    const char *op, *type;
    int rows, streams, context;
    double bytes, flops;
} figure;

static void measure(bench *b, const figure *f, enqueue *operation, void *context, int copies) {
    double ms = time_ms(b, operation, context, copies);
    printf(
        "{\"kind\": \"kernel\", \"device\": \"%s%s\", \"op\": \"%s\", \"type\": \"%s\", \"rows\": %d, \"streams\": %d,"
        " \"context\": %d, \"ms\": %.6g, \"gb_s\": %.6g, \"tflop_s\": %.6g}\n",
        pen_device_name(b->device), b->how, f->op, f->type, f->rows, f->streams, f->context, ms, f->bytes / ms / 1e6,
        f->flops / ms / 1e9);
    fflush(stdout);
}

/* ---- Batches ------------------------------------------------------------------------------------------------------
 */

/* One run of `rows` rows that ends at `context`; all its blocks are other ones. */
static void set_rows(bench *b, int rows, int context, int logit_count) {
    pen_run run = {.rows = rows, .position = context - rows, .tables = {b->table, b->table}};
    for (int i = 0; i < logit_count; i++) b->logit_rows[i] = rows - logit_count + i;
    pen_device_set_batch(b->device, &(pen_batch){.rows = rows,
                                                 .run_count = 1,
                                                 .runs = &run,
                                                 .tokens = b->tokens,
                                                 .logit_count = logit_count,
                                                 .logit_rows = b->logit_rows});
}

/* A row each of `streams` sequences. */
static void set_streams(bench *b, int streams, int context) {
    pen_run *runs = allocate(sizeof *runs * (size_t)streams);
    int blocks = (context + PEN_KV_BLOCK - 1) / PEN_KV_BLOCK;
    for (int s = 0; s < streams; s++)
        runs[s] = (pen_run){s, 1, context - 1, {b->table + s * blocks, b->table + s * blocks}};
    pen_device_set_batch(b->device,
                         &(pen_batch){.rows = streams, .run_count = streams, .runs = runs, .tokens = b->tokens});
    free(runs);
}

/* ---- Products ------------------------------------------------------------------------------------------------------
 */

typedef enum product { QKV, OUT, GATE_UP, DOWN, LOGITS, PRODUCTS } product;
static const char *const product_names[PRODUCTS] = {"qkv", "out", "gate_up", "down", "logits"};

typedef struct matrices {
    product which;
    int copies, count, cols, rows[MATRICES];
    pen_weight *weights[COPIES_MAX][MATRICES];
} matrices;

static void enqueue_norm(bench *b, void *context, int copy) {
    (void)copy;
    pen_buffer *out = context;
    pen_op_norm(
        b->device,
        &(pen_norm_op){
            .x = b->x, .weight = b->ones, .cols = b->shape.hidden, .eps = 1e-5F, .fine = out == b->fine, .out = out});
}

static void enqueue_product(bench *b, void *context, int copy) {
    const matrices *m = context;
    pen_weight *const *w = m->weights[copy];
    switch (m->which) {
    case QKV: pen_op_qkv(b->device, &(pen_qkv_op){.x = b->fine, .q = w[0], .k = w[1], .v = w[2], .qkv = b->qkv}); break;
    case OUT:
        pen_op_out_project(b->device, &(pen_project_op){.x = b->slim, .w = w[0], .store = true, .out = b->out});
        break;
    case GATE_UP:
        pen_op_gate_up(b->device, &(pen_gate_up_op){.x = b->slim, .gate = w[0], .up = w[1], .out = b->gated});
        break;
    case DOWN: pen_op_down(b->device, &(pen_project_op){.x = b->wide, .w = w[0], .store = true, .out = b->out}); break;
    default:
        pen_op_logits(b->device,
                      &(pen_logits_op){.norm = {.x = b->x, .weight = b->ones, .cols = b->shape.hidden, .eps = 1e-5F},
                                       .w = w[0],
                                       .logits = b->logits});
    }
}

/* The matrices [rows][cols] of a product. */
static matrices shape_of(const bench *b, product which) {
    const shape *s = &b->shape;
    int heads = s->heads * s->head_size, kv_heads = s->kv_heads * s->head_size;
    switch (which) {
    case QKV: return (matrices){.which = which, .count = 3, .cols = s->hidden, .rows = {heads, kv_heads, kv_heads}};
    case OUT: return (matrices){.which = which, .count = 1, .cols = heads, .rows = {s->hidden}};
    case GATE_UP: return (matrices){.which = which, .count = 2, .cols = s->hidden, .rows = {s->ffn, s->ffn}};
    case DOWN: return (matrices){.which = which, .count = 1, .cols = s->ffn, .rows = {s->hidden}};
    default: return (matrices){.which = which, .count = 1, .cols = s->hidden, .rows = {s->vocab}};
    }
}

/* All forms of `rows` rows, as the operations before would leave them. */
static void prepare_rows(bench *b, int rows, int logit_count) {
    set_rows(b, rows, rows, logit_count);
    enqueue_norm(b, b->fine, 0);
    enqueue_norm(b, b->slim, 0);
    pen_op_gate_up(b->device, &(pen_gate_up_op){.x = b->slim, .up = b->widener, .out = b->wide});
}

static void bench_product(bench *b, pen_type type, product which) {
    matrices *m = allocate(sizeof *m);
    *m = shape_of(b, which);
    size_t row_bytes = pen_type_row_bytes(type, m->cols), outputs = 0;
    for (int i = 0; i < m->count; i++) outputs += (size_t)m->rows[i];
    m->copies = (int)(b->cold_bytes / (row_bytes * outputs)) + 2;
    if (m->copies > COPIES_MAX) m->copies = COPIES_MAX;
    unsigned char *source = random_rows(type, m->cols);
    for (int copy = 0; copy < m->copies; copy++)
        for (int i = 0; i < m->count; i++) m->weights[copy][i] = weight_of(b, type, m->rows[i], m->cols, source);
    for (int i = 0; i < b->rows.count; i++) {
        int rows = b->rows.values[i];
        if (which == LOGITS && rows > FEW_ROWS) continue; /* nobody wants those of a whole prompt */
        prepare_rows(b, rows, which == LOGITS ? rows : 0);
        double values = (double)outputs * (double)m->cols, moved = (double)outputs + (double)m->cols;
        figure f = {.op = product_names[which],
                    .type = pen_type_get(type)->name,
                    .rows = rows,
                    .bytes = (double)(row_bytes * outputs) + moved * rows * sizeof(float),
                    .flops = 2 * values * rows};
        measure(b, &f, enqueue_product, m, m->copies);
    }
    for (int copy = 0; copy < m->copies; copy++)
        for (int i = 0; i < m->count; i++) pen_weight_destroy(m->weights[copy][i]);
    free(source);
    free(m);
}

/* ---- Attention ------------------------------------------------------------------------------------------------------
 */

typedef struct pages {
    int copies;
    pen_kv *kv[COPIES_MAX];
    pen_rope *rope;
} pages;

static void enqueue_rope_kv(bench *b, void *context, int copy) {
    const pages *p = context;
    pen_op_rope_kv(b->device, &(pen_rope_kv_op){.qkv = b->qkv,
                                                .heads = b->shape.heads,
                                                .kv_heads = b->shape.kv_heads,
                                                .head_size = b->shape.head_size,
                                                .rope = p->rope,
                                                .kv = p->kv[copy]});
}

static void enqueue_attention(bench *b, void *context, int copy) {
    const pages *p = context;
    pen_op_attention(b->device, &(pen_attention_op){.qkv = b->qkv,
                                                    .heads = b->shape.heads,
                                                    .kv_heads = b->shape.kv_heads,
                                                    .head_size = b->shape.head_size,
                                                    .scale = 0.088F,
                                                    .kv = p->kv[copy],
                                                    .out = b->attended});
}

/* KV of `streams` sequences of `context` positions, as many times as it takes to be cold. */
static void make_pages(bench *b, pages *p, int streams, int context) {
    const shape *s = &b->shape;
    int blocks = (context + PEN_KV_BLOCK - 1) / PEN_KV_BLOCK * streams;
    size_t bytes = pen_kv_bytes(b->device, s->kv_heads, s->head_size, blocks);
    p->copies = (int)(b->cold_bytes / bytes) + 2;
    if (p->copies > COPIES_MAX) p->copies = COPIES_MAX;
    pen_rope_options rope = {.dims = s->head_size,
                             .positions = b->context_max,
                             .base = 5e5,
                             .scale = 1,
                             .magnitude = 1,
                             .interleaved = true};
    check(pen_rope_create(b->device, &rope, &p->rope));
    for (int copy = 0; copy < p->copies; copy++) {
        check(pen_kv_create(b->device, s->kv_heads, s->head_size, blocks, &p->kv[copy]));
        /* All streams' blocks, as if they were of one sequence; its rotation ends where the table does. */
        for (int first = 0; first < blocks * PEN_KV_BLOCK; first += b->rows_max / PEN_KV_BLOCK * PEN_KV_BLOCK) {
            int rows = b->rows_max / PEN_KV_BLOCK * PEN_KV_BLOCK, block = first / PEN_KV_BLOCK;
            if (rows > blocks * PEN_KV_BLOCK - first) rows = blocks * PEN_KV_BLOCK - first;
            pen_run run = {.rows = rows, .tables = {b->table + block, b->table + block}};
            pen_device_set_batch(b->device, &(pen_batch){.rows = rows, .run_count = 1, .runs = &run});
            enqueue_rope_kv(b, p, copy);
        }
    }
    check(pen_device_sync(b->device));
}

static void free_pages(pages *p) {
    for (int copy = 0; copy < p->copies; copy++) pen_kv_destroy(p->kv[copy]);
    pen_rope_destroy(p->rope);
}

/* Bytes of K and V of one position, as the device keeps them. */
static double position_bytes(const bench *b) {
    return (double)pen_kv_bytes(b->device, b->shape.kv_heads, b->shape.head_size, 1024) / (1024 * PEN_KV_BLOCK);
}

static double row_bytes_of(const bench *b) {
    return 2.0 * b->shape.heads * b->shape.head_size * sizeof(float);
}

static void bench_decode(bench *b, int streams, int context) {
    static pages p;
    make_pages(b, &p, streams, context);
    set_streams(b, streams, context);
    double positions = (double)streams * context;
    figure f = {.op = "decode attention",
                .type = "",
                .rows = streams,
                .streams = streams,
                .context = context,
                .bytes = positions * position_bytes(b) + streams * row_bytes_of(b),
                .flops = 4.0 * b->shape.heads * b->shape.head_size * positions};
    measure(b, &f, enqueue_attention, &p, p.copies);
    free_pages(&p);
}

static void bench_prefill(bench *b, int rows, int context) {
    static pages p;
    make_pages(b, &p, 1, context);
    set_rows(b, rows, context, 0);
    double pairs = (double)rows * (context - rows) + 0.5 * rows * (rows + 1.0);
    figure f = {.op = "prefill attention",
                .type = "",
                .rows = rows,
                .streams = 1,
                .context = context,
                .bytes = context * position_bytes(b) + rows * row_bytes_of(b),
                .flops = 4.0 * b->shape.heads * b->shape.head_size * pairs};
    measure(b, &f, enqueue_attention, &p, p.copies);
    free_pages(&p);
}

/* ---- What is small --------------------------------------------------------------------------------------------------
 */

static void bench_rows(bench *b, int rows) {
    static pages p;
    int heads = b->shape.heads + 2 * b->shape.kv_heads, hidden = b->shape.hidden;
    double activations = (double)pen_device_activation_bytes(b->device, rows, hidden);
    make_pages(b, &p, 1, b->rows_max);
    set_rows(b, rows, rows, 0);
    figure norm = {
        .op = "norm", .type = "", .rows = rows, .bytes = (double)rows * hidden * sizeof(float) + activations};
    measure(b, &norm, enqueue_norm, b->slim, 1);
    double moved = (double)(heads + b->shape.heads) * b->shape.head_size * sizeof(float);
    figure rope = {.op = "rope_kv", .type = "", .rows = rows, .bytes = rows * (moved + position_bytes(b))};
    measure(b, &rope, enqueue_rope_kv, &p, p.copies);
    free_pages(&p);
}

static void enqueue_pick(bench *b, void *context, int copy) {
    (void)copy;
    pen_op_pick(b->device, b->logits, b->shape.vocab, context, b->choices);
}

static void bench_pick(bench *b, int rows) {
    pen_pick *picks = allocate(sizeof *picks * (size_t)rows);
    for (int sampled = 0; sampled < 2; sampled++) {
        for (int i = 0; i < rows; i++)
            picks[i] = (pen_pick){.temperature = sampled ? 0.8F : 0, .top_p = 0.95F, .target = -1, .position = i};
        set_rows(b, rows, rows, rows);
        figure f = {.op = sampled ? "pick, sampled" : "pick, greedy",
                    .type = "",
                    .rows = rows,
                    .bytes = (double)rows * b->shape.vocab * sizeof(float)};
        measure(b, &f, enqueue_pick, picks, 1);
    }
    free(picks);
}

/* ---- All of it ------------------------------------------------------------------------------------------------------
 */

static void open_buffers(bench *b) {
    const shape *s = &b->shape;
    pen_limits limits = {.rows = b->rows_max,
                         .logit_rows = FEW_ROWS,
                         .hidden = s->hidden,
                         .ffn = s->ffn,
                         .heads = s->heads,
                         .kv_heads = s->kv_heads,
                         .head_size = s->head_size,
                         .vocab = s->vocab,
                         .context = b->context_max};
    check(pen_device_reserve(b->device, &limits));
    size_t rows = (size_t)b->rows_max, hidden = (size_t)s->hidden;
    int streams = 1;
    for (int i = 0; i < b->streams.count; i++) streams = larger(streams, b->streams.values[i]);
    size_t blocks = (size_t)(b->context_max / PEN_KV_BLOCK + 1) * (size_t)streams;
    b->tokens = allocate(rows * sizeof *b->tokens);
    b->logit_rows = allocate(rows * sizeof *b->logit_rows);
    b->table = allocate(blocks * sizeof *b->table);
    for (size_t i = 0; i < blocks; i++) b->table[i] = (int32_t)i;
    b->x = random_buffer(b, rows * hidden, random_float);
    b->ones = random_buffer(b, hidden, random_float);
    b->qkv = random_buffer(b, rows * (size_t)((s->heads + 2 * s->kv_heads) * s->head_size), random_float);
    b->out = random_buffer(b, rows * hidden, random_float);
    b->logits = random_buffer(b, (size_t)FEW_ROWS * (size_t)s->vocab, random_logit);
    b->choices = empty_buffer(b, FEW_ROWS * sizeof(pen_choice));
    b->fine = empty_buffer(b, pen_device_fine_bytes(b->device, b->rows_max, s->hidden));
    b->slim = empty_buffer(b, pen_device_activation_bytes(b->device, b->rows_max, s->hidden));
    b->wide = empty_buffer(b, pen_device_activation_bytes(b->device, b->rows_max, s->ffn));
    b->gated = empty_buffer(b, pen_device_activation_bytes(b->device, b->rows_max, s->ffn));
    b->attended = empty_buffer(b, pen_device_activation_bytes(b->device, b->rows_max, s->heads * s->head_size));
    unsigned char *source = random_rows(PEN_TYPE_Q8_0, s->hidden);
    b->widener = weight_of(b, PEN_TYPE_Q8_0, s->ffn, s->hidden, source);
    free(source);
}

static void close_buffers(bench *b) {
    pen_buffer *buffers[] = {b->x,   b->ones,  b->fine,     b->slim,   b->wide,   b->qkv,
                             b->out, b->gated, b->attended, b->logits, b->choices};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) pen_buffer_destroy(buffers[i]);
    pen_weight_destroy(b->widener);
    free(b->tokens);
    free(b->logit_rows);
    free(b->table);
}

static bool wants(const bench *b, const char *group) {
    return !b->only || strcmp(b->only, group) == 0;
}

static void run_all(bench *b) {
    if (wants(b, "attention")) {
        for (int i = 0; i < b->contexts.count; i++)
            for (int s = 0; s < b->streams.count; s++) bench_decode(b, b->streams.values[s], b->contexts.values[i]);
        bench_prefill(b, b->rows_max, b->rows_max);
        for (int i = 0; i < b->contexts.count; i++)
            if (b->contexts.values[i] > b->rows_max) bench_prefill(b, b->rows_max, b->contexts.values[i]);
    }
    for (int i = 0; i < b->rows.count && wants(b, "small"); i++) {
        bench_rows(b, b->rows.values[i]);
        if (b->rows.values[i] <= FEW_ROWS) bench_pick(b, b->rows.values[i]);
    }
    for (int t = 0; t < PEN_TYPE_COUNT && wants(b, "products"); t++)
        for (int p = 0; p < PRODUCTS; p++)
            if (b->types[t]) bench_product(b, (pen_type)t, (product)p);
}

static int_list int_list_of(const char *text, int most) {
    int_list list = {.count = 0};
    for (char *end = NULL; list.count < LIST_MAX; text = end + 1) {
        long value = strtol(text, &end, 10);
        if (end == text || value < 1 || value > most || (*end && *end != ',')) break;
        list.values[list.count++] = (int)value;
        if (!*end) return list;
    }
    usage("a list is positive numbers with commas, at most 16");
    return list;
}

static void read_types(bench *b, char *text) {
    memset(b->types, 0, sizeof b->types);
    for (char *name = strtok(text, ","); name; name = strtok(NULL, ",")) {
        pen_type type;
        if (pen_type_by_name(name, &type) != 0) usage("there is no such type of weights");
        b->types[type] = true;
    }
}

typedef struct settings {
    const char *device;
    pen_activations activations;
    int threads;
    bool deterministic;
} settings;

/* Small shapes, each once. */
static void make_tiny(bench *b) {
    b->shape = shapes[1];
    b->rows = (int_list){{1, 20}, 2};
    b->contexts = (int_list){{50}, 1};
    b->streams = (int_list){{1, 2}, 2};
    b->cold_bytes = 0;
    b->budget_ms = 0;
}

static void read_options(int argc, char **argv, bench *b, settings *s) {
    enum { ROWS_MOST = 1 << 14, CONTEXT_MOST = 1 << 20, STREAMS_MOST = 1 << 10, MIB_MOST = 1 << 16 };
    static const struct option options[] = {
        {"device", 1, NULL, 'd'},   {"activations", 1, NULL, 'a'},   {"threads", 1, NULL, 't'},
        {"only", 1, NULL, 'o'},     {"types", 1, NULL, 'w'},         {"rows", 1, NULL, 'r'},
        {"contexts", 1, NULL, 'c'}, {"streams", 1, NULL, 's'},       {"cold", 1, NULL, 'm'},
        {"tiny", 0, NULL, 'y'},     {"deterministic", 0, NULL, 'e'}, {0}};
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) switch (option) {
        case 'd': s->device = optarg; break;
        case 'a':
            if (strcmp(optarg, "fast") != 0 && strcmp(optarg, "f32") != 0) usage("--activations is fast or f32");
            s->activations = strcmp(optarg, "f32") == 0 ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST;
            break;
        case 't': s->threads = int_list_of(optarg, 1024).values[0]; break;
        case 'o':
            if (strcmp(optarg, "attention") != 0 && strcmp(optarg, "small") != 0 && strcmp(optarg, "products") != 0)
                usage("--only is attention, small or products");
            b->only = optarg;
            break;
        case 'w': read_types(b, optarg); break;
        case 'r': b->rows = int_list_of(optarg, ROWS_MOST); break;
        case 'c': b->contexts = int_list_of(optarg, CONTEXT_MOST); break;
        case 's': b->streams = int_list_of(optarg, STREAMS_MOST); break;
        case 'm': b->cold_bytes = (size_t)int_list_of(optarg, MIB_MOST).values[0] << 20; break;
        case 'y': make_tiny(b); break;
        case 'e': s->deterministic = true; break;
        default: usage("an option is unknown, or lacks its value");
        }
    if (optind < argc) usage("it takes options only");
    for (int i = 0; i < b->rows.count; i++) b->rows_max = larger(b->rows_max, b->rows.values[i]);
    for (int i = 0; i < b->streams.count; i++) b->rows_max = larger(b->rows_max, b->streams.values[i]);
    b->context_max = b->rows_max = larger(b->rows_max, PEN_KV_BLOCK);
    for (int i = 0; i < b->contexts.count; i++) b->context_max = larger(b->context_max, b->contexts.values[i]);
    b->context_max = (b->context_max + PEN_KV_BLOCK - 1) / PEN_KV_BLOCK * PEN_KV_BLOCK;
}

int main(int argc, char **argv) {
    bench b = {.shape = shapes[0],
               .rows = {{1, 4, 16, 64, 512, 2048}, 6},
               .contexts = {{512, 4096, 32768}, 3},
               .streams = {{1, 16}, 2},
               .cold_bytes = (size_t)128 << 20,
               .budget_ms = 60};
    settings s = {.device = "cuda", .activations = PEN_ACTIVATIONS_FAST, .threads = (int)sysconf(_SC_NPROCESSORS_ONLN)};
    for (int t = 0; t < PEN_TYPE_COUNT; t++) b.types[t] = true;
    read_options(argc, argv, &b, &s);
    pen_cuda_options on_gpu = {.activations = s.activations, .threads = s.threads, .deterministic = s.deterministic};
    pen_cpu_options on_cpu = {.activations = s.activations, .threads = s.threads};
    if (strcmp(s.device, "cuda") == 0)
        check(pen_cuda_device_create(&on_gpu, &b.device));
    else if (strcmp(s.device, "cpu") == 0)
        check(pen_cpu_device_create(&on_cpu, &b.device));
    else
        usage("--device is cuda or cpu");
    b.how = s.deterministic ? ", deterministic" : "";
    open_buffers(&b);
    run_all(&b);
    close_buffers(&b);
    pen_device_destroy(b.device);
    return 0;
}
