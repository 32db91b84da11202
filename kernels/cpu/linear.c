/*
 * The operations that multiply by a weight, divided into tasks for the pool.
 *
 * A task is some groups of 16 outputs × a tile of tokens, of about TASK_NS: short enough for the poke and for even
 * shares, long enough for the pool. Tasks of one thread follow each other in memory, so that weights stream in order.
 */
#include "linear.h"
#include "pack.h"

#include <assert.h>
#include <string.h>

enum { ROWS = PEN_PACK_ROWS, BLOCK = PEN_QUANT_BLOCK, TILE = PEN_TOKEN_TILE, TASK_NS = 10000, CACHE_LINE = 64 };

static const pen_cpu_device *cpu_of(const pen_device *device) {
    return (const pen_cpu_device *)device;
}
static const pen_cpu_weight *packed(const pen_weight *weight) {
    return (const pen_cpu_weight *)weight;
}

static int divide_up(int a, int b) {
    return (a + b - 1) / b;
}

const pen_cpu_linear_kernels *pen_cpu_linear_kernels_get(pen_cpu_isa isa) {
    switch (isa) {
    case PEN_CPU_PORTABLE: return &pen_cpu_linear_kernels_portable;
#if defined(__x86_64__)
    case PEN_CPU_AVX2: return &pen_cpu_linear_kernels_avx2;
    case PEN_CPU_AVXVNNI: return &pen_cpu_linear_kernels_avxvnni;
    case PEN_CPU_AVX512: return &pen_cpu_linear_kernels_avx512;
#endif
    default: return NULL;
    }
}

/* ---- Activation rows ------------------------------------------------------------------------------------------- */

size_t pen_activation_row_bytes(pen_row_form form, int cols) {
    static const size_t block_bytes[] = {
        [PEN_ROW_F32] = BLOCK * sizeof(float),
        [PEN_ROW_INT8] = sizeof(pen_activation_block),
        [PEN_ROW_FINE] = sizeof(pen_fine_block),
    };
    /* Of columns that no weight may have, too: scratch memory is planned before the weights are seen. */
    size_t blocks = ((size_t)cols + BLOCK - 1) / BLOCK;
    size_t lines = (blocks * block_bytes[form] + CACHE_LINE - 1) / CACHE_LINE;
    return (lines | 1) * CACHE_LINE;
}

void pen_cpu_activation_store(const pen_cpu_device *device, pen_row_form form, const float *x, int cols, void *row) {
    if (form == PEN_ROW_F32)
        memcpy(row, x, sizeof *x * (size_t)cols);
    else if (!device->linear)
        pen_reference_activation_store(form, x, cols, row);
    else if (form == PEN_ROW_INT8)
        device->linear->quantize_row(x, cols, row);
    else
        device->linear->quantize_fine_row(x, cols, row);
}

/* ---- Weights --------------------------------------------------------------------------------------------------- */

size_t pen_cpu_weight_bytes(const pen_device *device, pen_type type, int rows, int cols) {
    (void)device;
    return (size_t)divide_up(rows, ROWS) * (pen_pack_group_bytes(type, cols) + sizeof(float));
}

float *pen_cpu_lengths(const pen_cpu_weight *weight) {
    const pen_weight *w = &weight->base;
    return (void *)(weight->data + (size_t)divide_up(w->rows, ROWS) * pen_pack_group_bytes(w->type, w->cols));
}

typedef struct write_job {
    const pen_cpu_weight *weight;
    const unsigned char *source;
    int first, rows; /* in rows of the matrix */
    int groups_per_task;
} write_job;

static void write_task(void *context, int task, int thread) {
    (void)thread;
    const write_job *job = context;
    const pen_weight *w = &job->weight->base;
    size_t row_bytes = pen_type_row_bytes(w->type, w->cols), group_bytes = pen_pack_group_bytes(w->type, w->cols);
    int row = task * job->groups_per_task * ROWS, end = row + job->groups_per_task * ROWS;
    for (; row < end && row < job->rows; row += ROWS) {
        int rows = job->rows - row < ROWS ? job->rows - row : ROWS;
        pen_pack_group(w->type, job->source + (size_t)row * row_bytes, rows, w->cols,
                       job->weight->data + (size_t)((job->first + row) / ROWS) * group_bytes);
    }
}

void pen_cpu_weight_write(pen_weight *weight, int first, int rows, const void *source) {
    assert(first % ROWS == 0 && (rows % ROWS == 0 || first + rows == weight->rows));
    enum { TASK_BYTES = 1 << 17 };
    size_t group_bytes = pen_pack_group_bytes(weight->type, weight->cols);
    write_job job = {packed(weight), source, first, rows, (int)(TASK_BYTES / group_bytes) + 1};
    pen_pool_run(cpu_of(weight->device)->pool, write_task, &job, divide_up(divide_up(rows, ROWS), job.groups_per_task));
}

/* ---- Division into tasks --------------------------------------------------------------------------------------- */

/* Tasks are a grid: shares of the units (groups of outputs) × tiles of the tokens. */
typedef struct grid {
    int units, tokens;
    int shares, tiles;
} grid;

/* `unit_blocks`: blocks of 16 × 32 weights in a unit. */
static grid grid_of(const pen_cpu_device *device, pen_row_form form, int units, int unit_blocks, int tokens) {
    const float read_ns = 16; /* a block from memory, where there are few tokens */
    grid g = {.units = units, .tokens = tokens, .tiles = divide_up(tokens, TILE)};
    float block_ns = device->linear->block_ns[form] * (float)tokens / (float)g.tiles;
    float unit_ns = (float)unit_blocks * (block_ns > read_ns ? block_ns : read_ns);
    int threads = pen_pool_threads(device->pool), most = divide_up(units, threads);
    int units_per_task = (int)(TASK_NS / unit_ns) + 1;
    if (units_per_task > most) units_per_task = most;
    g.shares = divide_up(divide_up(units, units_per_task), threads) * threads;
    if (g.shares > units) g.shares = units;
    return g;
}

/* Range `index` of `count` nearly equal ones that divide [0, total). */
typedef struct range {
    int begin, end;
} range;

static range range_of(int total, int index, int count) {
    return (range){(int)((int64_t)total * index / count), (int)((int64_t)total * (index + 1) / count)};
}

/* ---- Matrix products ------------------------------------------------------------------------------------------- */

typedef struct matmul_job {
    const pen_matmul *m;
    grid grid;
    int first_group[4]; /* of each product, and the end */
} matmul_job;

static void matmul_task(void *context, int task, int thread) {
    (void)thread;
    const matmul_job *job = context;
    const pen_matmul *m = job->m;
    const pen_cpu_linear_kernels *kernels = m->device->linear;
    range groups = range_of(job->grid.units, task / job->grid.tiles, job->grid.shares);
    range tokens = range_of(job->grid.tokens, task % job->grid.tiles, job->grid.tiles);
    int token_count = tokens.end - tokens.begin, product = 0;
    _Alignas(CACHE_LINE) float y[TILE * ROWS];

    for (int g = groups.begin; g < groups.end; g++) {
        while (g >= job->first_group[product + 1]) product++;
        const pen_product *p = &m->products[product];
        const pen_weight *w = &p->weight->base;
        size_t x_stride = pen_activation_row_bytes(p->form, m->cols);
        const unsigned char *x = p->x + x_stride * (size_t)tokens.begin;
        int group = g - job->first_group[product], column = group * ROWS;
        const unsigned char *weights = p->weight->data + (size_t)group * pen_pack_group_bytes(w->type, w->cols);
        int columns = w->rows - column < ROWS ? w->rows - column : ROWS;
        kernels->dot[p->form][w->type](weights, w->cols / BLOCK, x, x_stride, token_count, y);
        if (m->peaks) {
            float *peaks = p->out + m->out_stride * (size_t)tokens.begin + group;
            kernels->peak(y, token_count, columns, peaks, m->out_stride);
            continue;
        }
        pen_tile_target target = {
            .out = p->out + m->out_stride * (size_t)tokens.begin + column,
            .stride = m->out_stride,
            .columns = columns,
            .bias = p->bias ? p->bias + column : NULL,
            .softcap = m->softcap,
            .add = m->add,
        };
        kernels->put(y, token_count, &target);
    }
}

void pen_cpu_matmul(const pen_matmul *m) {
    if (!m->device->linear) {
        pen_reference_matmul(m);
        return;
    }
    matmul_job job = {.m = m};
    for (int i = 0; i < m->count; i++) {
        assert(m->products[i].weight->base.cols == m->cols);
        job.first_group[i + 1] = job.first_group[i] + divide_up(m->products[i].weight->base.rows, ROWS);
    }
    job.grid = grid_of(m->device, m->products[0].form, job.first_group[m->count], m->cols / BLOCK, m->tokens);
    pen_pool_run(m->device->pool, matmul_task, &job, job.grid.shares * job.grid.tiles);
}

void pen_cpu_qkv(pen_device *device, const pen_qkv_op *op) {
    const pen_weight *weights[3] = {op->q, op->k, op->v};
    const pen_buffer *biases[3] = {op->q_bias, op->k_bias, op->v_bias};
    pen_matmul m = {
        .device = cpu_of(device),
        .cols = op->q->cols,
        .tokens = cpu_of(device)->batch.rows,
        .count = 3,
        .out_stride = (size_t)(op->q->rows + op->k->rows + op->v->rows),
    };
    pen_row_form fine = pen_row_form_of(device->activations, true), score = pen_cpu_score_form(device);
    const unsigned char *of_v = pen_cpu_data(op->x), *of_scores = of_v;
    if (score != fine) of_scores += pen_activation_row_bytes(fine, m.cols) * (size_t)m.tokens;
    float *out = pen_cpu_data(op->qkv);
    for (int i = 0, column = 0; i < 3; column += weights[i++]->rows)
        m.products[i] = (pen_product){
            .weight = packed(weights[i]),
            .x = i == 2 ? of_v : of_scores,
            .form = i == 2 ? fine : score,
            .bias = biases[i] ? pen_cpu_data(biases[i]) : NULL,
            .out = out + column,
        };
    pen_cpu_matmul(&m);
}

static void project(const pen_device *device, const pen_project_op *op) {
    pen_matmul m = {
        .device = cpu_of(device),
        .cols = op->w->cols,
        .tokens = cpu_of(device)->batch.rows,
        .products = {{.weight = packed(op->w),
                      .x = pen_cpu_data(op->x),
                      .form = pen_row_form_of(device->activations, false),
                      .bias = op->bias ? pen_cpu_data(op->bias) : NULL,
                      .out = pen_cpu_data(op->out)}},
        .count = 1,
        .out_stride = (size_t)op->w->rows,
        .add = !op->store,
    };
    pen_cpu_matmul(&m);
}

void pen_cpu_out_project(pen_device *device, const pen_project_op *op) {
    project(device, op);
}
void pen_cpu_down(pen_device *device, const pen_project_op *op) {
    project(device, op);
}

/* ---- Feed-forward, first half ---------------------------------------------------------------------------------- */

typedef struct gate_up_job {
    const pen_cpu_device *device;
    const pen_gate_up_op *op;
    pen_row_form form;
    grid grid; /* units: 32 outputs, one activation block */
} gate_up_job;

/* Groups 2·unit and 2·unit + 1 of a weight, into the two halves of a tile. */
static void dot_unit(const gate_up_job *job, const pen_weight *w, int unit, const unsigned char *x, int tokens,
                     float y[2][TILE * ROWS]) {
    pen_dot *dot = job->device->linear->dot[job->form][w->type];
    size_t group_bytes = pen_pack_group_bytes(w->type, w->cols), stride = pen_activation_row_bytes(job->form, w->cols);
    const unsigned char *groups = packed(w)->data + 2 * (size_t)unit * group_bytes;
    for (size_t half = 0; half < 2; half++)
        dot(groups + half * group_bytes, w->cols / BLOCK, x, stride, tokens, y[half]);
}

static void gate_up_task(void *context, int task, int thread) {
    (void)thread;
    const gate_up_job *job = context;
    const pen_gate_up_op *op = job->op;
    size_t x_stride = pen_activation_row_bytes(job->form, op->up->cols);
    size_t out_stride = pen_activation_row_bytes(job->form, op->up->rows);
    range units = range_of(job->grid.units, task / job->grid.tiles, job->grid.shares);
    range tokens = range_of(job->grid.tokens, task % job->grid.tiles, job->grid.tiles);
    const unsigned char *x = (unsigned char *)pen_cpu_data(op->x) + x_stride * (size_t)tokens.begin;
    unsigned char *out = (unsigned char *)pen_cpu_data(op->out) + out_stride * (size_t)tokens.begin;
    const float *bias = op->bias ? pen_cpu_data(op->bias) : NULL;
    int count = tokens.end - tokens.begin;
    _Alignas(CACHE_LINE) pen_gate_tile tile;

    for (int unit = units.begin; unit < units.end; unit++) {
        if (op->gate) dot_unit(job, op->gate, unit, x, count, tile.gate);
        dot_unit(job, op->up, unit, x, count, tile.up);
        job->device->linear->gate(&tile, count, op->act, op->gate != NULL, bias ? bias + BLOCK * unit : NULL, job->form,
                                  out, out_stride, unit);
    }
}

void pen_cpu_gate_up(pen_device *device, const pen_gate_up_op *op) {
    const pen_cpu_device *cpu = cpu_of(device);
    assert(op->up->rows % BLOCK == 0);
    if (!cpu->linear) {
        pen_reference_gate_up(cpu, op);
        return;
    }
    gate_up_job job = {.device = cpu, .op = op, .form = pen_row_form_of(device->activations, false)};
    int unit_blocks = op->up->cols / BLOCK * (op->gate ? 4 : 2);
    job.grid = grid_of(cpu, job.form, op->up->rows / BLOCK, unit_blocks, cpu->batch.rows);
    pen_pool_run(cpu->pool, gate_up_task, &job, job.grid.shares * job.grid.tiles);
}

/* ---- Embedding ------------------------------------------------------------------------------------------------- */

typedef struct embed_job {
    const pen_cpu_device *device;
    const pen_embed_op *op;
} embed_job;

enum { EMBED_ROWS = 16 }; /* of a task */

/* x[H] += positions[row]. */
static void add_position(const pen_weight *positions, int row, float *x) {
    assert(row >= 0 && row < positions->rows);
    for (int b = 0; b < positions->cols / BLOCK; b++) {
        float learned[BLOCK];
        pen_pack_read_block(positions->type, packed(positions)->data, positions->cols, row, b, learned);
        for (int i = 0; i < BLOCK; i++) x[BLOCK * b + i] += learned[i];
    }
}

static void embed_task(void *context, int task, int thread) {
    (void)thread;
    const embed_job *job = context;
    const pen_cpu_device *device = job->device;
    const pen_weight *table = job->op->table;
    for (int t = task * EMBED_ROWS; t < (task + 1) * EMBED_ROWS && t < device->batch.rows; t++) {
        float *x = (float *)pen_cpu_data(job->op->x) + (size_t)t * (size_t)table->cols;
        assert(device->batch.tokens[t] >= 0 && device->batch.tokens[t] < table->rows);
        pen_pack_read_row(table->type, packed(table)->data, table->cols, device->batch.tokens[t], x);
        for (int i = 0; i < table->cols; i++) x[i] *= job->op->scale;
        const pen_run *run = &device->runs[device->row_run[t]];
        if (job->op->positions) add_position(job->op->positions, run->position + t - run->row, x);
    }
}

void pen_cpu_embed(pen_device *device, const pen_embed_op *op) {
    embed_job job = {cpu_of(device), op};
    pen_pool_run(job.device->pool, embed_task, &job, divide_up(job.device->batch.rows, EMBED_ROWS));
}
