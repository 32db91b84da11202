/*
 * The arena of scratch memory, the current batch, and the operations: which kernels each is, in which order.
 *
 * The batch goes to the device in one copy: tokens, position, the logit rows, the tiles of attention, and the block
 * tables, each run's behind the other's. The device has one place for it: the stream keeps batches apart.
 */
#include "cuda_device.h"

#include "draw.h"

#include <assert.h>
#include <string.h>

enum { ALIGNMENT = 256, PARTIAL_BYTES = 64 << 20 };

size_t pen_cuda_row_bytes(pen_activations activations, int cols) {
    size_t size = (size_t)cols;
    size_t bytes = activations == PEN_ACTIVATIONS_FAST ? size + size / PEN_CUDA_BLOCK * sizeof(pen_cuda_factor)
                                                       : size * sizeof(float);
    return (bytes + 15) / 16 * 16;
}

int pen_cuda_parts(pen_activations activations) {
    return activations == PEN_ACTIVATIONS_FAST ? 2 : 1;
}

/* ---- The arena ------------------------------------------------------------------------------------------------- */

/* Byte offsets of the arena's pieces. */
typedef struct arena_plan {
    size_t batch, normed, gate, up, attended, partials, picks, edits, edited, total;
    size_t partial_bytes;
} arena_plan;

static size_t place(arena_plan *plan, size_t count, size_t size) {
    size_t offset = plan->total;
    plan->total = (offset + count * size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return offset;
}

/* 32-bit words of the largest batch: per row token, position, logit row, two of a tile, and for each group where its
 * table begins and the table. */
static size_t batch_words(const pen_limits *limits) {
    size_t blocks = (size_t)limits->context / PEN_KV_BLOCK + 1;
    return (size_t)limits->rows * (5 + PEN_KV_GROUPS * (1 + blocks));
}

static arena_plan plan_arena(const pen_device *device, const pen_limits *limits) {
    size_t rows = (size_t)limits->rows, logit_rows = (size_t)limits->logit_rows, ffn = (size_t)limits->ffn;
    size_t attended = (size_t)limits->heads * (size_t)limits->head_size, vocab = (size_t)limits->vocab;
    size_t spans = (size_t)limits->context / PEN_CUDA_ATTENTION_SPAN + 1;
    size_t partial = (size_t)limits->head_size + 10; /* floats of a query's: two more, and up to 7 of padding */
    size_t queries = rows * (size_t)limits->heads * PEN_CUDA_TILE_QUERIES;
    arena_plan plan = {.partial_bytes = queries * partial * spans * sizeof(float)};
    if (plan.partial_bytes > PARTIAL_BYTES) plan.partial_bytes = PARTIAL_BYTES;
    plan.batch = place(&plan, batch_words(limits), sizeof(int32_t));
    int parts = pen_cuda_parts(device->activations);
    plan.normed = place(&plan, logit_rows * (size_t)parts, pen_cuda_row_bytes(device->activations, limits->hidden));
    plan.gate = place(&plan, rows * ffn, sizeof(float));
    plan.up = place(&plan, rows * ffn, sizeof(float));
    plan.attended = place(&plan, rows * attended, sizeof(float));
    plan.partials = place(&plan, plan.partial_bytes, 1);
    plan.picks = place(&plan, logit_rows, sizeof(pen_cuda_pick_args));
    plan.edits = place(&plan, PEN_CUDA_EDITS, sizeof(pen_cuda_edit));
    plan.edited = place(&plan, logit_rows * vocab, sizeof(float));
    return plan;
}

size_t pen_cuda_scratch_bytes(const pen_device *device, const pen_limits *limits) {
    return plan_arena(device, limits).total;
}

pen_status pen_cuda_reserve(pen_device *base, const pen_limits *limits) {
    pen_cuda_device *device = pen_cuda(base);
    PEN_TRY(pen_cuda_sync(base)); /* operations may be at work in the old one */
    pen_cuda_release(device, device->arena.memory, device->arena.bytes);
    device->arena = (pen_cuda_arena){0};
    device->batch = (pen_cuda_batch){0};
    /* A batch passes through the ring in one piece. */
    size_t ring = 4 * batch_words(limits) * sizeof(int32_t);
    if (ring > pen_cuda_staging_bytes(device->writes)) {
        pen_cuda_staging_destroy(device->writes);
        device->writes = NULL;
        PEN_TRY(pen_cuda_staging_create(device, ring, &device->writes));
    }
    arena_plan plan = plan_arena(base, limits);
    unsigned char *at;
    PEN_TRY(pen_cuda_allocate(device, plan.total, &at));
    device->limits = *limits;
    device->arena = (pen_cuda_arena){.memory = at,
                                     .bytes = plan.total,
                                     .batch = (int32_t *)(at + plan.batch),
                                     .normed = at + plan.normed,
                                     .gate = (float *)(at + plan.gate),
                                     .up = (float *)(at + plan.up),
                                     .attended = (float *)(at + plan.attended),
                                     .partials = (float *)(at + plan.partials),
                                     .partial_floats = plan.partial_bytes / sizeof(float),
                                     .picks = (pen_cuda_pick_args *)(at + plan.picks),
                                     .edits = (pen_cuda_edit *)(at + plan.edits),
                                     .edited = (float *)(at + plan.edited)};
    return PEN_OK;
}

/* ---- The batch ------------------------------------------------------------------------------------------------- */

/* What is put together in the ring, and where it will be on the device. */
typedef struct upload {
    int32_t *host;
    const int32_t *device;
    size_t words;
} upload;

static int32_t *append(upload *u, int count, const int32_t **on_device) {
    int32_t *at = u->host + u->words;
    *on_device = u->device + u->words;
    u->words += (size_t)count;
    return at;
}

static size_t run_blocks(const pen_run *run) {
    return (size_t)((run->position + run->rows - 1) / PEN_KV_BLOCK + 1);
}

static size_t words_of(const pen_batch *batch) {
    size_t words = (size_t)batch->rows * (5 + PEN_KV_GROUPS);
    for (int r = 0; r < batch->run_count; r++)
        for (int g = 0; g < PEN_KV_GROUPS; g++)
            if (batch->runs[r].tables[g]) words += run_blocks(&batch->runs[r]);
    return words;
}

/* Rows of a tile of attention in this model. */
static int tile_rows(const pen_limits *limits) {
    int group = limits->heads / limits->kv_heads;
    return group < PEN_CUDA_TILE_QUERIES ? PEN_CUDA_TILE_QUERIES / group : 1;
}

static void append_tiles(upload *u, const pen_batch *batch, int rows, pen_cuda_batch *made) {
    const int32_t *on_device;
    int32_t *at = append(u, 2 * batch->rows, &on_device);
    made->tiles = (const pen_cuda_tile *)on_device;
    for (int r = 0; r < batch->run_count; r++) {
        const pen_run *run = &batch->runs[r];
        int spans = (run->position + run->rows - 1) / PEN_CUDA_ATTENTION_SPAN + 1;
        if (spans > made->tile_spans) made->tile_spans = spans;
        for (int row = 0; row < run->rows; row += rows) {
            at[2 * made->tile_count] = run->row + row;
            at[2 * made->tile_count + 1] = run->rows - row < rows ? run->rows - row : rows;
            made->tile_count++;
        }
    }
}

static void append_rows(upload *u, const pen_batch *batch, pen_cuda_batch *made) {
    int32_t *position = append(u, batch->rows, &made->position), *first[PEN_KV_GROUPS];
    for (int g = 0; g < PEN_KV_GROUPS; g++) first[g] = append(u, batch->rows, &made->first_block[g]);
    made->tables = u->device; /* first_block counts from the beginning */
    for (int r = 0; r < batch->run_count; r++) {
        const pen_run *run = &batch->runs[r];
        for (int row = 0; row < run->rows; row++) position[run->row + row] = run->position + row;
        for (int g = 0; g < PEN_KV_GROUPS; g++) {
            for (int row = 0; row < run->rows; row++) first[g][run->row + row] = (int32_t)u->words;
            const int32_t *unused;
            if (run->tables[g])
                memcpy(append(u, (int)run_blocks(run), &unused), run->tables[g], run_blocks(run) * sizeof(int32_t));
        }
    }
}

void pen_cuda_set_batch(pen_device *base, const pen_batch *batch) {
    pen_cuda_device *device = pen_cuda(base);
    pen_cuda_batch made = {.rows = batch->rows, .logit_count = batch->logit_count, .edits = batch->edits};
    assert(device->arena.memory && batch->rows <= device->limits.rows);
    assert(batch->logit_count <= device->limits.logit_rows);
    for (int r = 0; r < batch->run_count; r++)
        assert(batch->runs[r].position + batch->runs[r].rows <= device->limits.context);
    size_t bytes = words_of(batch) * sizeof(int32_t);
    upload u = {.host = pen_cuda_staging_room(device->writes, bytes), .device = device->arena.batch};
    append_tiles(&u, batch, tile_rows(&device->limits), &made); /* first: pairs of words, aligned */
    int32_t *tokens = append(&u, batch->rows, &made.tokens);
    if (batch->tokens) memcpy(tokens, batch->tokens, (size_t)batch->rows * sizeof *tokens);
    int32_t *logit_rows = append(&u, batch->logit_count, &made.logit_rows);
    if (batch->logit_count) memcpy(logit_rows, batch->logit_rows, (size_t)batch->logit_count * sizeof *logit_rows);
    append_rows(&u, batch, &made);
    assert(u.words * sizeof(int32_t) <= bytes);
    cudaError_t error =
        cudaMemcpyAsync(device->arena.batch, u.host, u.words * sizeof(int32_t), cudaMemcpyHostToDevice, device->stream);
    pen_cuda_check(device, error, "copying a batch to the GPU");
    pen_cuda_staging_sent(device->writes);
    device->batch = made;
}

static pen_cuda_rows rows_of(const pen_cuda_device *device, int group) {
    const pen_cuda_batch *batch = &device->batch;
    return (pen_cuda_rows){.count = batch->rows,
                           .position = batch->position,
                           .first_block = batch->first_block[group],
                           .tables = batch->tables};
}

/* ---- Products -------------------------------------------------------------------------------------------------- */

/* out = x·wᵀ (+ bias) of the batch's rows; the caller adds what differs. */
static pen_cuda_product_args product(const pen_device *device, const pen_buffer *x, const pen_weight *w,
                                     const pen_buffer *bias, float *out, int out_stride) {
    return (pen_cuda_product_args){.w = ((const pen_cuda_weight *)w)->matrix,
                                   .activations = device->activations,
                                   .x = x ? pen_cuda_data(x) : NULL,
                                   .stride = pen_cuda_row_bytes(device->activations, w->cols),
                                   .tokens = pen_cuda(device)->batch.rows,
                                   .parts = 1,
                                   .bias = bias ? pen_cuda_data(bias) : NULL,
                                   .out = out,
                                   .out_stride = (size_t)out_stride};
}

static cudaStream_t stream_of(const pen_device *device) {
    return pen_cuda(device)->stream;
}

void pen_cuda_embed(pen_device *device, const pen_embed_op *op) {
    const pen_cuda_batch *batch = &pen_cuda(device)->batch;
    pen_cuda_embed_args args = {.table = ((const pen_cuda_weight *)op->table)->matrix,
                                .token = batch->tokens,
                                .position = batch->position,
                                .count = batch->rows,
                                .scale = op->scale,
                                .x = pen_cuda_data(op->x)};
    if (op->positions) args.positions = ((const pen_cuda_weight *)op->positions)->matrix;
    pen_cuda_launch_embed(stream_of(device), &args);
}

void pen_cuda_qkv(pen_device *device, const pen_qkv_op *op) {
    const pen_weight *weights[] = {op->q, op->k, op->v};
    const pen_buffer *biases[] = {op->q_bias, op->k_bias, op->v_bias};
    float *out = pen_cuda_data(op->qkv);
    int stride = op->q->rows + op->k->rows + op->v->rows;
    for (int i = 0; i < 3; out += weights[i++]->rows) {
        pen_cuda_product_args args = product(device, op->x, weights[i], biases[i], out, stride);
        args.parts = pen_cuda_parts(device->activations);
        pen_cuda_launch_product(stream_of(device), &args);
    }
}

void pen_cuda_project(pen_device *device, const pen_project_op *op) {
    pen_cuda_product_args args = product(device, op->x, op->w, op->bias, pen_cuda_data(op->out), op->w->rows);
    args.add = !op->store;
    pen_cuda_launch_product(stream_of(device), &args);
}

void pen_cuda_gate_up(pen_device *device, const pen_gate_up_op *op) {
    const pen_cuda_arena *arena = &pen_cuda(device)->arena;
    int cols = op->up->rows;
    assert(cols <= pen_cuda(device)->limits.ffn && cols % PEN_CUDA_BLOCK == 0);
    pen_cuda_product_args up = product(device, op->x, op->up, op->bias, arena->up, cols);
    pen_cuda_launch_product(stream_of(device), &up);
    if (op->gate) {
        pen_cuda_product_args gate = product(device, op->x, op->gate, NULL, arena->gate, cols);
        pen_cuda_launch_product(stream_of(device), &gate);
    }
    pen_cuda_activate_args args = {.gate = op->gate ? arena->gate : NULL,
                                   .up = arena->up,
                                   .count = pen_cuda(device)->batch.rows,
                                   .cols = cols,
                                   .act = op->act,
                                   .activations = device->activations,
                                   .out = pen_cuda_data(op->out),
                                   .stride = pen_cuda_row_bytes(device->activations, cols)};
    pen_cuda_launch_activate(stream_of(device), &args);
}

/* ---- Norms and logits ------------------------------------------------------------------------------------------ */

static pen_cuda_norm_args norm_of(const pen_device *device, const pen_norm_op *op) {
    return (pen_cuda_norm_args){.x = pen_cuda_data(op->x),
                                .weight = pen_cuda_data(op->weight),
                                .bias = op->bias ? pen_cuda_data(op->bias) : NULL,
                                .count = pen_cuda(device)->batch.rows,
                                .cols = op->cols,
                                .eps = op->eps,
                                .mean = op->mean,
                                .activations = device->activations,
                                .parts = op->fine ? pen_cuda_parts(device->activations) : 1,
                                .out = op->out ? pen_cuda_data(op->out) : NULL,
                                .stride = pen_cuda_row_bytes(device->activations, op->cols),
                                .add_to = op->add_to ? pen_cuda_data(op->add_to) : NULL};
}

void pen_cuda_norm(pen_device *device, const pen_norm_op *op) {
    assert(!op->out || device->activations == PEN_ACTIVATIONS_F32 || op->cols % PEN_CUDA_BLOCK == 0);
    pen_cuda_norm_args args = norm_of(device, op);
    pen_cuda_launch_norm(stream_of(device), &args);
}

void pen_cuda_logits(pen_device *device, const pen_logits_op *op) {
    const pen_cuda_batch *batch = &pen_cuda(device)->batch;
    if (batch->logit_count == 0) return;
    pen_cuda_norm_args norm = norm_of(device, &op->norm);
    norm.count = batch->logit_count;
    norm.rows = batch->logit_rows;
    norm.parts = pen_cuda_parts(device->activations);
    norm.out = pen_cuda(device)->arena.normed;
    pen_cuda_launch_norm(stream_of(device), &norm);
    pen_cuda_product_args args = product(device, NULL, op->w, NULL, pen_cuda_data(op->logits), op->w->rows);
    args.x = norm.out;
    args.parts = norm.parts;
    args.tokens = norm.count;
    args.softcap = op->softcap;
    pen_cuda_launch_product(stream_of(device), &args);
}

/* ---- Attention ------------------------------------------------------------------------------------------------- */

void pen_cuda_rope_kv(pen_device *device, const pen_rope_kv_op *op) {
    const pen_cuda_rope *rope = (const pen_cuda_rope *)op->rope;
    pen_cuda_rope_kv_args args = {.rows = rows_of(pen_cuda(device), op->group),
                                  .qkv = pen_cuda_data(op->qkv),
                                  .heads = op->heads,
                                  .q_norm = op->q_norm ? pen_cuda_data(op->q_norm) : NULL,
                                  .k_norm = op->k_norm ? pen_cuda_data(op->k_norm) : NULL,
                                  .eps = op->eps,
                                  .rope = rope ? rope->table : NULL,
                                  .dims = rope ? rope->dims : 0,
                                  .interleaved = rope && rope->interleaved,
                                  .pages = ((const pen_cuda_kv *)op->kv)->pages};
    assert(args.pages.kv_heads == op->kv_heads && args.pages.head_size == op->head_size);
    pen_cuda_launch_rope_kv(stream_of(device), &args);
}

enum { FEW_BLOCKS = 4 }; /* of attention for a processor: fewer than that, and every span is a block */

void pen_cuda_attention(pen_device *base, const pen_attention_op *op) {
    pen_cuda_device *device = pen_cuda(base);
    const pen_cuda_batch *batch = &device->batch;
    int cols = op->heads * op->head_size;
    bool fast = base->activations == PEN_ACTIVATIONS_FAST;
    pen_cuda_attention_args args = {.rows = rows_of(device, op->group),
                                    .tiles = batch->tiles,
                                    .tile_count = batch->tile_count,
                                    .qkv = pen_cuda_data(op->qkv),
                                    .heads = op->heads,
                                    .scale = op->scale,
                                    .softcap = op->softcap,
                                    .window = op->window,
                                    .pages = ((const pen_cuda_kv *)op->kv)->pages,
                                    .spans = batch->tile_spans,
                                    .partials = device->arena.partials,
                                    .out = fast ? device->arena.attended : pen_cuda_data(op->out)};
    args.out_stride = fast ? (size_t)cols : pen_cuda_row_bytes(base->activations, cols) / sizeof(float);
    assert(args.pages.kv_heads == op->kv_heads && args.pages.head_size == op->head_size);
    assert(op->heads / op->kv_heads == device->limits.heads / device->limits.kv_heads);
    if (args.spans == 1 || args.tile_count * op->kv_heads >= FEW_BLOCKS * device->processors ||
        pen_cuda_attention_partials(&args) > device->arena.partial_floats)
        args.spans = 0;
    pen_cuda_launch_attention(device->stream, &args);
    if (!fast) return;
    pen_cuda_store_args store = {.x = args.out,
                                 .count = batch->rows,
                                 .cols = cols,
                                 .out = pen_cuda_data(op->out),
                                 .stride = pen_cuda_row_bytes(base->activations, cols)};
    pen_cuda_launch_store(device->stream, &store);
}

/* ---- Picking --------------------------------------------------------------------------------------------------- */

/* Edits go to the device some at a time; the row's logits were copied before. */
static void upload_edits(pen_cuda_device *device, const pen_cuda_choose_args *args) {
    const pen_logit_edits *edits = device->batch.edits;
    for (int row = 0, at = 0; row < args->count;) {
        pen_cuda_edit *list = pen_cuda_staging_room(device->writes, PEN_CUDA_EDITS * sizeof *list);
        int count = 0;
        for (; row < args->count && count < PEN_CUDA_EDITS; row++, at = 0) {
            for (; at < edits[row].count && count < PEN_CUDA_EDITS; at++)
                list[count++] = (pen_cuda_edit){row, edits[row].list[at]};
            if (at < edits[row].count) break;
        }
        cudaError_t error = cudaMemcpyAsync(device->arena.edits, list, (size_t)count * sizeof *list,
                                            cudaMemcpyHostToDevice, device->stream);
        pen_cuda_check(device, error, "copying edits to the GPU");
        pen_cuda_staging_sent(device->writes);
        if (count > 0) pen_cuda_launch_edit(device->stream, args, device->arena.edits, count);
    }
}

void pen_cuda_pick(pen_device *base, const pen_buffer *logits, int vocab, const pen_pick *picks, pen_buffer *choices) {
    pen_cuda_device *device = pen_cuda(base);
    const pen_logit_edits *edits = device->batch.edits;
    int count = device->batch.logit_count;
    bool edited = false;
    if (count == 0) return;
    assert(vocab <= device->limits.vocab);
    pen_cuda_pick_args *list = pen_cuda_staging_room(device->writes, (size_t)count * sizeof *list);
    for (int i = 0; i < count; i++) {
        list[i] = (pen_cuda_pick_args){.uniform = pen_pick_uniform(&picks[i]),
                                       .temperature = picks[i].temperature,
                                       .top_p = picks[i].top_p,
                                       .min_p = picks[i].min_p,
                                       .top_k = picks[i].top_k,
                                       .target = picks[i].target,
                                       .top_logprobs = picks[i].top_logprobs,
                                       .edited = edits && edits[i].count > 0 && picks[i].target < 0};
        edited |= list[i].edited;
    }
    cudaError_t error = cudaMemcpyAsync(device->arena.picks, list, (size_t)count * sizeof *list, cudaMemcpyHostToDevice,
                                        device->stream);
    pen_cuda_check(device, error, "copying picks to the GPU");
    pen_cuda_staging_sent(device->writes);
    const pen_cuda_choose_args args = {.logits = pen_cuda_data(logits),
                                       .edited = device->arena.edited,
                                       .count = count,
                                       .vocab = vocab,
                                       .picks = device->arena.picks,
                                       .choices = pen_cuda_data(choices)};
    if (edited) {
        pen_cuda_launch_copy_edited(device->stream, &args);
        upload_edits(device, &args);
    }
    pen_cuda_launch_choose(device->stream, &args);
}
