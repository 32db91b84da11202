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
    size_t batch, normed, gate_up, attended, partials, tickets, picks, edits, edited;
    size_t dense_x, dense_w, blas_workspace, total;
    size_t partial_bytes, dense_x_bytes; /* 0: no cuBLASLt */
} arena_plan;

static size_t place(arena_plan *plan, size_t count, size_t size) {
    size_t offset = plan->total;
    plan->total = (offset + count * size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return offset;
}

/* 32-bit words of a row without its table: token, position, logit row, a tile, and for each group where its table
 * begins. */
enum { TILE_WORDS = sizeof(pen_cuda_tile) / sizeof(int32_t), ROW_WORDS = 3 + TILE_WORDS + PEN_KV_GROUPS };

static size_t batch_words(const pen_limits *limits) {
    size_t blocks = (size_t)limits->context / PEN_KV_BLOCK + 1;
    return (size_t)limits->rows * (ROW_WORDS + PEN_KV_GROUPS * blocks);
}

static int attention_queries(const pen_device *device) {
    return device->activations == PEN_ACTIVATIONS_FAST ? PEN_CUDA_TILE_QUERIES : PEN_CUDA_PLAIN_QUERIES;
}

/* Of all KV heads, and the query heads of one at most. */
static int attention_chunks(const pen_device *device, const pen_limits *limits) {
    return limits->kv_heads * pen_cuda_head_chunks(limits->heads / limits->kv_heads, attention_queries(device));
}
static int chunk_heads(const pen_device *device, const pen_limits *limits) {
    int chunks = attention_chunks(device, limits);
    return (limits->heads + chunks - 1) / chunks;
}

/* Floats that a row's partial softmaxes over one span take. */
static size_t row_partial_floats(const pen_device *device, const pen_limits *limits) {
    int width = (limits->head_size + PEN_CUDA_HEAD_WIDTH - 1) / PEN_CUDA_HEAD_WIDTH * PEN_CUDA_HEAD_WIDTH;
    return (size_t)(attention_chunks(device, limits) * chunk_heads(device, limits)) * pen_cuda_partial_floats(width);
}

static arena_plan plan_arena(const pen_device *device, const pen_limits *limits) {
    size_t rows = (size_t)limits->rows, logit_rows = (size_t)limits->logit_rows, ffn = (size_t)limits->ffn;
    size_t attended = (size_t)limits->heads * (size_t)limits->head_size, vocab = (size_t)limits->vocab;
    size_t spans = (size_t)limits->context / PEN_CUDA_ATTENTION_SPAN + 1;
    arena_plan plan = {.partial_bytes = rows * spans * row_partial_floats(device, limits) * sizeof(float)};
    if (plan.partial_bytes > PARTIAL_BYTES) plan.partial_bytes = PARTIAL_BYTES;
    plan.batch = place(&plan, batch_words(limits), sizeof(int32_t));
    int parts = pen_cuda_parts(device->activations);
    plan.normed = place(&plan, logit_rows * (size_t)parts, pen_cuda_row_bytes(device->activations, limits->hidden));
    plan.gate_up = place(&plan, rows * ffn * 2, sizeof(float));
    plan.attended = place(&plan, rows * attended, sizeof(float));
    plan.partials = place(&plan, plan.partial_bytes, 1);
    plan.tickets = place(&plan, rows * (size_t)attention_chunks(device, limits), sizeof(int32_t));
    plan.picks = place(&plan, logit_rows, sizeof(pen_cuda_pick_args));
    plan.edits = place(&plan, PEN_CUDA_EDITS, sizeof(pen_cuda_edit));
    plan.edited = place(&plan, logit_rows * vocab, sizeof(float));
    if (!pen_cuda(device)->blas) return plan;
    size_t widest = ffn > attended ? ffn : attended;
    if (widest < (size_t)limits->hidden) widest = (size_t)limits->hidden;
    plan.dense_x_bytes = rows * widest * sizeof(uint16_t);
    plan.dense_x = place(&plan, plan.dense_x_bytes, 1);
    plan.dense_w = place(&plan, PEN_CUDA_DENSE_BYTES, 1);
    plan.blas_workspace = place(&plan, PEN_CUDA_BLAS_WORKSPACE, 1);
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
                                     .gate_up = (float *)(at + plan.gate_up),
                                     .gate_up_floats = (size_t)limits->rows * (size_t)limits->ffn * 2,
                                     .attended = (float *)(at + plan.attended),
                                     .partials = (float *)(at + plan.partials),
                                     .partial_floats = plan.partial_bytes / sizeof(float),
                                     .tickets = (int32_t *)(at + plan.tickets),
                                     .picks = (pen_cuda_pick_args *)(at + plan.picks),
                                     .edits = (pen_cuda_edit *)(at + plan.edits),
                                     .edited = (float *)(at + plan.edited)};
    if (plan.dense_x_bytes > 0) {
        device->arena.dense_x = (uint16_t *)(at + plan.dense_x);
        device->arena.dense_x_bytes = plan.dense_x_bytes;
        device->arena.dense_w = (uint16_t *)(at + plan.dense_w);
        device->arena.dense_w_bytes = PEN_CUDA_DENSE_BYTES;
        device->arena.blas_workspace = at + plan.blas_workspace;
    }
    cudaError_t error = cudaMemsetAsync(device->arena.tickets, 0, plan.picks - plan.tickets, device->stream);
    pen_cuda_check(device, error, "clearing memory of the GPU");
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

static size_t words_of(const pen_batch *batch, int rows) {
    size_t words = (size_t)rows * ROW_WORDS;
    for (int r = 0; r < batch->run_count; r++)
        for (int g = 0; g < PEN_KV_GROUPS; g++)
            if (batch->runs[r].tables[g]) words += run_blocks(&batch->runs[r]);
    return words;
}

/* How runs are cut into tiles. A run of many rows is worth large tiles where those of all such runs are enough to keep
 * the GPU busy. */
typedef struct tile_plan {
    int rows, large_rows; /* of a tile; large_rows 0: none is large */
} tile_plan;

static tile_plan plan_tiles(const pen_cuda_device *device, const pen_batch *batch) {
    const pen_limits *limits = &device->limits;
    int each = chunk_heads(&device->base, limits), queries = attention_queries(&device->base), blocks = 0;
    tile_plan plan = {.rows = queries / each};
    if (device->base.activations != PEN_ACTIVATIONS_FAST) return plan;
    int large = pen_cuda_large_tile(limits->head_size);
    if (large == queries) return plan;
    plan.large_rows = large / each;
    for (int r = 0; r < batch->run_count; r++)
        if (batch->runs[r].rows > plan.rows)
            blocks +=
                (batch->runs[r].rows + plan.large_rows - 1) / plan.large_rows * attention_chunks(&device->base, limits);
    if (blocks < device->processors) plan.large_rows = 0;
    return plan;
}

/* Tiles of the runs that get large ones, or of the others. Small ones may be shared by blocks while there is room for
 * partial softmaxes. */
static void append_tiles(const pen_cuda_device *device, const pen_batch *batch, const tile_plan *plan, bool large,
                         pen_cuda_tile *tiles, int *count) {
    size_t room = device->arena.partial_floats / row_partial_floats(&device->base, &device->limits), used = 0;
    int most = large ? plan->large_rows : plan->rows;
    for (int r = 0; r < batch->run_count; r++) {
        const pen_run *run = &batch->runs[r];
        if (large != (plan->large_rows > 0 && run->rows > plan->rows)) continue;
        for (int row = 0; row < run->rows; row += most) {
            int rows = run->rows - row < most ? run->rows - row : most;
            size_t need = (size_t)rows * (size_t)((run->position + row + rows - 1) / PEN_CUDA_ATTENTION_SPAN + 1);
            bool shared = !large && used + need <= room;
            tiles[(*count)++] = (pen_cuda_tile){run->row + row, rows, shared ? (int32_t)used : -1};
            if (shared) used += need;
        }
    }
}

static void append_rows(upload *u, const pen_batch *batch, int rows, pen_cuda_batch *made) {
    int32_t *position = append(u, rows, &made->position), *first[PEN_KV_GROUPS];
    for (int g = 0; g < PEN_KV_GROUPS; g++) first[g] = append(u, rows, &made->first_block[g]);
    for (int row = batch->rows; row < rows; row++) {
        position[row] = 0;
        for (int g = 0; g < PEN_KV_GROUPS; g++) first[g][row] = -1;
    }
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

/* `count` values of `source`, if it is given, and zeros up to `room`. */
static const int32_t *append_values(upload *u, const int32_t *source, int count, int room) {
    const int32_t *on_device;
    int32_t *to = append(u, room, &on_device);
    memset(to, 0, (size_t)room * sizeof *to);
    if (source) memcpy(to, source, (size_t)count * sizeof *to);
    return on_device;
}

void pen_cuda_set_batch(pen_device *base, const pen_batch *batch) {
    pen_cuda_device *device = pen_cuda(base);
    pen_cuda_batch made = {.rows = batch->rows, .logit_count = batch->logit_count, .edits = batch->edits};
    assert(device->arena.memory && batch->rows <= device->limits.rows);
    assert(batch->logit_count <= device->limits.logit_rows);
    for (int r = 0; r < batch->run_count; r++)
        assert(batch->runs[r].position + batch->runs[r].rows <= device->limits.context);
    int rows = batch->rows, logit_rows = batch->logit_count; /* places for them */
    if (device->graphs && batch->run_count == batch->rows) {
        made.graph_rows = pen_cuda_graph_bucket(rows, device->limits.rows);
        made.graph_logit_rows = pen_cuda_graph_bucket(logit_rows, device->limits.logit_rows);
    }
    if (made.graph_rows) {
        rows = made.graph_rows;
        logit_rows = made.graph_logit_rows;
    }
    size_t bytes = words_of(batch, rows) * sizeof(int32_t);
    upload u = {.host = pen_cuda_staging_room(device->writes, bytes), .device = device->arena.batch};
    const int32_t *on_device;
    pen_cuda_tile *tiles = (pen_cuda_tile *)append(&u, rows * TILE_WORDS, &on_device);
    made.tiles = (const pen_cuda_tile *)on_device;
    tile_plan plan = plan_tiles(device, batch);
    append_tiles(device, batch, &plan, false, tiles, &made.tile_count);
    append_tiles(device, batch, &plan, true, tiles + made.tile_count, &made.large_count);
    for (int i = made.tile_count + made.large_count; i < rows; i++) tiles[i] = (pen_cuda_tile){0};
    made.tokens = append_values(&u, batch->tokens, batch->rows, rows);
    made.logit_rows = append_values(&u, batch->logit_rows, batch->logit_count, logit_rows);
    append_rows(&u, batch, rows, &made);
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

/* out = x·[w…]ᵀ (+ bias) of the batch's rows; the caller says which weights, and what differs. */
static pen_cuda_product_args product(const pen_device *device, const pen_buffer *x, int cols, float *out,
                                     int out_stride) {
    return (pen_cuda_product_args){.processors = pen_cuda(device)->processors,
                                   .activations = device->activations,
                                   .x = x ? pen_cuda_data(x) : NULL,
                                   .stride = pen_cuda_row_bytes(device->activations, cols),
                                   .tokens = pen_cuda(device)->batch.rows,
                                   .parts = 1,
                                   .out = out,
                                   .out_stride = (size_t)out_stride};
}

static void add_weight(pen_cuda_product_args *args, const pen_weight *w, const pen_buffer *bias) {
    args->w[args->count] = ((const pen_cuda_weight *)w)->matrix;
    args->bias[args->count++] = bias ? pen_cuda_data(bias) : NULL;
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

/* Matrices of one type that follow each other are one launch. */
static void run_product(const pen_device *device, pen_cuda_product_args args) {
    if (pen_cuda_dense_product(pen_cuda(device), &args)) return;
    for (int first = 0, end; first < args.count; first = end) {
        pen_cuda_product_args part = args;
        part.count = 0;
        for (end = first; end < args.count && args.w[end].type == args.w[first].type; end++) {
            part.w[part.count] = args.w[end];
            part.bias[part.count++] = args.bias[end];
            args.out += args.w[end].rows;
        }
        pen_cuda_launch_product(stream_of(device), &part);
    }
}

void pen_cuda_qkv(pen_device *device, const pen_qkv_op *op) {
    int rows = op->q->rows + op->k->rows + op->v->rows;
    pen_cuda_product_args args = product(device, op->x, op->q->cols, pen_cuda_data(op->qkv), rows);
    add_weight(&args, op->q, op->q_bias);
    add_weight(&args, op->k, op->k_bias);
    add_weight(&args, op->v, op->v_bias);
    args.parts = pen_cuda_parts(device->activations);
    run_product(device, args);
}

void pen_cuda_project(pen_device *device, const pen_project_op *op) {
    pen_cuda_product_args args = product(device, op->x, op->w->cols, pen_cuda_data(op->out), op->w->rows);
    add_weight(&args, op->w, op->bias);
    args.add = !op->store;
    run_product(device, args);
}

void pen_cuda_gate_up(pen_device *device, const pen_gate_up_op *op) {
    float *out = pen_cuda(device)->arena.gate_up;
    int cols = op->up->rows, both = op->gate ? 2 * cols : cols;
    size_t stride = pen_cuda_row_bytes(device->activations, cols);
    assert(cols <= pen_cuda(device)->limits.ffn && cols % PEN_CUDA_BLOCK == 0);
    pen_cuda_product_args args = product(device, op->x, op->up->cols, out, both);
    if (op->gate) add_weight(&args, op->gate, NULL);
    add_weight(&args, op->up, op->bias);
    if (args.tokens <= PEN_CUDA_FEW_ROWS && args.w[0].type == args.w[args.count - 1].type) {
        args.act = op->act;
        args.activated = pen_cuda_data(op->out);
        args.activated_stride = stride;
        pen_cuda_launch_product(stream_of(device), &args);
        return;
    }
    run_product(device, args);
    pen_cuda_activate_args activate = {.gate = op->gate ? out : NULL,
                                       .up = out + (both - cols),
                                       .in_stride = (size_t)both,
                                       .count = args.tokens,
                                       .cols = cols,
                                       .act = op->act,
                                       .activations = device->activations,
                                       .out = pen_cuda_data(op->out),
                                       .stride = stride};
    pen_cuda_launch_activate(stream_of(device), &activate);
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
    pen_cuda_product_args args = product(device, NULL, op->w->cols, pen_cuda_data(op->logits), op->w->rows);
    add_weight(&args, op->w, NULL);
    args.x = norm.out;
    args.parts = norm.parts;
    args.tokens = norm.count;
    args.softcap = op->softcap;
    run_product(device, args);
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

enum { BLOCKS_EACH = 8 }; /* of attention for a processor, where spans can be shared */

/* Blocks that share the spans of a tile and chunk. It depends on nothing but the number of tiles, for graphs. */
static int blocks_of(const pen_cuda_device *device, int tiles, int chunks) {
    int wanted = (BLOCKS_EACH * device->processors + tiles * chunks - 1) / (tiles * chunks);
    int spans = (device->limits.context - 1) / PEN_CUDA_ATTENTION_SPAN + 1;
    return wanted < spans ? wanted : spans;
}

void pen_cuda_attention(pen_device *base, const pen_attention_op *op) {
    pen_cuda_device *device = pen_cuda(base);
    const pen_cuda_batch *batch = &device->batch;
    int cols = op->heads * op->head_size;
    bool fast = base->activations == PEN_ACTIVATIONS_FAST, whole = op->head_size % PEN_CUDA_BLOCK == 0;
    assert(op->heads == device->limits.heads && op->kv_heads == device->limits.kv_heads);
    pen_cuda_attention_args args = {.rows = rows_of(device, op->group),
                                    .tiles = batch->tiles,
                                    .tile_count = batch->tile_count,
                                    .queries = attention_queries(base),
                                    .chunks = attention_chunks(base, &device->limits),
                                    .qkv = pen_cuda_data(op->qkv),
                                    .heads = op->heads,
                                    .scale = op->scale,
                                    .softcap = op->softcap,
                                    .window = op->window,
                                    .pages = ((const pen_cuda_kv *)op->kv)->pages,
                                    .partials = device->arena.partials,
                                    .tickets = device->arena.tickets,
                                    .out = pen_cuda_data(op->out),
                                    .stride = pen_cuda_row_bytes(base->activations, cols),
                                    .rounded = fast && whole};
    assert(args.pages.kv_heads == op->kv_heads && args.pages.head_size == op->head_size);
    if (fast && !whole) { /* 32 values with one scale are of two heads */
        args.out = (unsigned char *)device->arena.attended;
        args.stride = (size_t)cols * sizeof(float);
    }
    if (batch->tile_count > 0) {
        args.blocks = blocks_of(device, args.tile_count, args.chunks);
        if (fast)
            pen_cuda_launch_tensor_attention(device->stream, &args);
        else
            pen_cuda_launch_plain_attention(device->stream, &args);
    }
    if (batch->large_count > 0) {
        args.tiles += batch->tile_count;
        args.tile_count = batch->large_count;
        args.queries = pen_cuda_large_tile(args.pages.width);
        args.blocks = 1;
        pen_cuda_launch_tensor_attention(device->stream, &args);
    }
    if (!fast || whole) return;
    pen_cuda_store_args store = {.x = device->arena.attended,
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
