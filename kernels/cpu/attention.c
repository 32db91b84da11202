/*
 * Attention over paged KV: the division of a ragged batch into tasks.
 *
 * A *tile* is some consecutive rows of one run; with one KV head it is rows × (query heads per KV head) queries that
 * read the same keys and values. A tile's positions are cut into *spans* at absolute multiples of PEN_ATTENTION_SPAN;
 * each span gives a softmax of its own and the spans are merged in order. Where there are enough tiles a task walks
 * all spans of one; where there are few (decode of a long context) every span is a task. Both do the same arithmetic,
 * so nothing of this shows in a result. What comes out of a head is stored in the activation row at once, but of heads
 * that are no whole activation blocks, which a second pass puts together.
 */
#include "ops.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum {
    TILE_QUERIES = 48,       /* or the query heads of a KV head, where those are more */
    FEW_ITEMS = 4,           /* a thread: fewer items, tiles × KV heads, than that, and spans become tasks … */
    PARTIAL_BYTES = 8 << 20, /* … within this much scratch; beyond it a task walks all spans */
};

typedef struct query_tile {
    int run, row, rows; /* row: in the batch */
} query_tile;

/* Scratch of one thread, in floats. */
typedef struct workspace {
    float *queries;           /* [query][head_size] scaled */
    pen_query_block *rounded; /* [query][head_size/32] instead, where K is q8_0 */
    float *scores;            /* [query][PEN_SCORE_STRIDE] */
    pen_attention_state span, state;
} workspace;

/* The shape of an operation and where its scratch lies. */
typedef struct layout {
    int group;        /* query heads per KV head */
    int tile_queries; /* most queries of a tile, a multiple of `group` */
    int query_stride; /* those rounded up to whole vectors */
    int width;        /* head_size rounded up to whole vectors */
    size_t state_floats, thread_floats;
    size_t rows_at, tiles_at, partials_at, total; /* bytes; the threads' parts come first */
} layout;

typedef struct attention_job {
    pen_cpu_device *device;
    const pen_attention_op *op;
    const pen_cpu_kv *kv;
    layout at;
    query_tile *tiles;
    int tile_count;
    bool few;  /* tiles × KV heads, for so many threads */
    int spans; /* most spans of a tile */
    pen_row_form form;
    float *rows;     /* f32 [T][heads·head_size], for the second pass; else NULL */
    float *partials; /* [tile][kv head][span] states, where spans are tasks */
} attention_job;

static size_t round_up(size_t value, size_t to) {
    return (value + to - 1) / to * to;
}

static layout lay_out(const pen_cpu_device *device, const pen_limits *limits, int heads, int kv_heads, int head_size) {
    layout at = {.group = heads / kv_heads, .width = (int)round_up((size_t)head_size, 16)};
    at.tile_queries = at.group > TILE_QUERIES ? at.group : TILE_QUERIES / at.group * at.group;
    at.query_stride = (int)round_up((size_t)at.tile_queries, 16);
    size_t padded = (size_t)at.query_stride, width = (size_t)at.width, size = (size_t)head_size;
    at.state_floats = padded * (2 + width);
    at.thread_floats = padded * (size + PEN_SCORE_STRIDE) + 2 * at.state_floats;
    size_t spans = (size_t)limits->context / PEN_ATTENTION_SPAN + 1;
    size_t threads = (size_t)pen_pool_threads(device->pool);
    size_t items = (size_t)limits->rows * (size_t)kv_heads, most = threads > 1 ? FEW_ITEMS * threads - 1 : 0;
    size_t partials = (items < most ? items : most) * spans * at.state_floats * sizeof(float);
    at.rows_at = threads * at.thread_floats * sizeof(float);
    at.tiles_at = at.rows_at + round_up((size_t)limits->rows * (size_t)heads * size * sizeof(float), 64);
    at.partials_at = at.tiles_at + round_up((size_t)limits->rows * sizeof(query_tile), 64);
    at.total = at.partials_at + (partials < PARTIAL_BYTES ? partials : PARTIAL_BYTES);
    return at;
}

size_t pen_cpu_attention_scratch(const pen_cpu_device *device, const pen_limits *limits) {
    return lay_out(device, limits, limits->heads, limits->kv_heads, limits->head_size).total;
}

static pen_attention_state state_at(const layout *at, float *memory) {
    size_t padded = (size_t)at->query_stride;
    return (pen_attention_state){.max = memory, .sum = memory + padded, .values = memory + 2 * padded};
}

static workspace workspace_of(const attention_job *job, int thread) {
    const layout *at = &job->at;
    size_t padded = (size_t)at->query_stride, size = (size_t)job->op->head_size;
    workspace work;
    work.queries = (float *)job->device->op_scratch + (size_t)thread * at->thread_floats;
    work.rounded = (pen_query_block *)work.queries;
    work.scores = work.queries + padded * size;
    float *states = work.scores + padded * PEN_SCORE_STRIDE;
    work.span = state_at(at, states);
    work.state = state_at(at, states + at->state_floats);
    return work;
}

/* ---- One tile -------------------------------------------------------------------------------------------------- */

/* An item is a tile and a KV head. */
static int item_count(const attention_job *job) {
    return job->tile_count * job->op->kv_heads;
}

/* Positions that a row sees: [first, end). */
static int row_end(const attention_job *job, const query_tile *tile, int row) {
    const pen_run *run = &job->device->runs[tile->run];
    return run->position + row - run->row + 1;
}

static int row_first(const attention_job *job, int end) {
    int window = job->op->window;
    return window > 0 && end > window ? end - window : 0;
}

/* Spans that any row of the tile sees: [*first, returned). */
static int tile_spans(const attention_job *job, const query_tile *tile, int *first) {
    *first = row_first(job, row_end(job, tile, tile->row)) / PEN_ATTENTION_SPAN;
    return (row_end(job, tile, tile->row + tile->rows - 1) - 1) / PEN_ATTENTION_SPAN + 1;
}

/* Query n of a tile is head n mod group of row n / group. */
static const float *query_at(const attention_job *job, const query_tile *tile, int kv_head, int n) {
    const pen_attention_op *op = job->op;
    int group = job->at.group, head = kv_head * group + n % group;
    size_t row = (size_t)(tile->row + n / group) * (size_t)(op->heads + 2 * op->kv_heads);
    return (const float *)pen_cpu_data(op->qkv) + (row + (size_t)head) * (size_t)op->head_size;
}

/* GCC takes a function that only asks for memory for one without effect, and drops calls of it. */
#define FETCH static inline __attribute__((always_inline)) void

/* Rows of a batch are too far apart for the processor to see what comes next. */
FETCH fetch_queries(const attention_job *job, const query_tile *tile, int kv_head) {
    for (int n = 0; n < tile->rows * job->at.group; n++)
        for (int d = 0; d < job->op->head_size; d += 16) __builtin_prefetch(query_at(job, tile, kv_head, n) + d);
}

static float score_scale(const pen_attention_op *op) {
    return op->softcap > 0 ? op->scale / op->softcap : op->scale;
}

/* For q8_0, queries are rounded as fine activation rows are, and the scale goes into theirs. */
static void quantize_queries(const attention_job *job, const query_tile *tile, int kv_head, pen_query_block *out) {
    int size = job->op->head_size;
    float scale = score_scale(job->op);
    pen_fine_block block;
    for (int n = 0; n < tile->rows * job->at.group; n++) {
        const float *query = query_at(job, tile, kv_head, n);
        for (int d = 0; d < size; d += PEN_QUANT_BLOCK, out++) {
            pen_cpu_activation_store(job->device, PEN_ROW_FINE, query + d, PEN_QUANT_BLOCK, &block);
            *out = (pen_query_block){.scale = block.factors.scale * scale};
            memcpy(out->parts, block.parts, sizeof out->parts);
            for (int part = 0; part < 2; part++)
                for (int i = 0; i < PEN_QUANT_BLOCK; i++) out->bias[part] -= 128 * block.parts[part][i];
        }
    }
}

static void load_queries(const attention_job *job, const query_tile *tile, int kv_head, workspace *work) {
    fetch_queries(job, tile, kv_head);
    if (job->kv->type == PEN_TYPE_Q8_0) {
        quantize_queries(job, tile, kv_head, work->rounded);
        return;
    }
    int size = job->op->head_size;
    float *restrict to = work->queries, scale = score_scale(job->op);
    for (int n = 0; n < tile->rows * job->at.group; n++, to += size) {
        const float *query = query_at(job, tile, kv_head, n);
        for (int d = 0; d < size; d++) to[d] = query[d] * scale;
    }
}

/* What is read of K and V at a time: blocks [begin, end) of a run's, for one KV head. */
typedef struct stretch {
    const pen_run *run;
    int kv_head, begin, end;
} stretch;

/* Positions that no row sees are not touched: their pages may be gone, or not yet written. */
static stretch stretch_of(const attention_job *job, const query_tile *tile, int kv_head, int span) {
    int begin = span * PEN_ATTENTION_SPAN, end = begin + PEN_ATTENTION_SPAN;
    int first = row_first(job, row_end(job, tile, tile->row)), last = row_end(job, tile, tile->row + tile->rows - 1);
    if (first > begin) begin = first;
    if (last < end) end = last;
    return (stretch){.run = &job->device->runs[tile->run],
                     .kv_head = kv_head,
                     .begin = begin / PEN_KV_BLOCK,
                     .end = (end - 1) / PEN_KV_BLOCK + 1};
}

static const unsigned char *block_at(const attention_job *job, const stretch *of, const unsigned char *half_of_kv,
                                     int block) {
    int32_t page = of->run->tables[job->op->group][block];
    assert(page >= 0 && page < job->kv->blocks);
    return half_of_kv + pen_cpu_kv_page(job->kv, (size_t)page, of->kv_head);
}

/* The blocks of K and V in the order in which a thread reads them, span by span and item by item. */
typedef struct walk {
    int item, items_end, span, spans_end;
    stretch now;
    const unsigned char *half_of_kv;
    int block;
} walk;

static void walk_span(const attention_job *job, walk *at) {
    const query_tile *tile = &job->tiles[at->item / job->op->kv_heads];
    at->now = stretch_of(job, tile, at->item % job->op->kv_heads, at->span);
    at->half_of_kv = job->kv->k;
    at->block = at->now.begin;
}

/* The next block, or NULL at the end. */
static const unsigned char *walk_on(const attention_job *job, walk *at) {
    if (at->item == at->items_end) return NULL;
    const unsigned char *block = block_at(job, &at->now, at->half_of_kv, at->block);
    if (++at->block < at->now.end) return block;
    if (at->half_of_kv == job->kv->k) {
        at->half_of_kv = job->kv->v;
        at->block = at->now.begin;
        return block;
    }
    if (++at->span == at->spans_end) {
        if (++at->item == at->items_end) return block;
        at->spans_end = tile_spans(job, &job->tiles[at->item / job->op->kv_heads], &at->span);
    }
    walk_span(job, at);
    return block;
}

/* Decode reads each block once and waits for memory, so while the kernels read one they ask for another, AHEAD of it.
 * Where there are few items, that is a block of the same one, and its first blocks, which nobody has asked for, are
 * fetched at once. Where there are many, it is far enough to be of the next one, which is most likely this thread's. */
enum { AHEAD = 16, AHEAD_OF_FEW = 4 };

FETCH fetch(const unsigned char *block, size_t bytes) {
    for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(block + at, 0, 2);
}

/* What is ahead of spans [span, end) of an item. */
static walk walk_ahead(const attention_job *job, int item, int span, int end) {
    walk ahead = {.item = item, .items_end = job->few ? item + 1 : item_count(job), .span = span, .spans_end = end};
    walk_span(job, &ahead);
    for (int i = 0; i < (job->few ? AHEAD_OF_FEW : AHEAD); i++) {
        const unsigned char *block = walk_on(job, &ahead);
        if (block && job->few) fetch(block, job->kv->page);
    }
    return ahead;
}

/* At most PEN_ATTENTION_BLOCKS blocks of K or V from `block` on; `ahead` is NULL for a prompt, which finds most of them
 * in a cache. */
static pen_attention_blocks blocks_of(const attention_job *job, const stretch *now, const unsigned char *half_of_kv,
                                      int block, walk *ahead) {
    pen_attention_blocks blocks = {.type = job->kv->type};
    for (; block < now->end && blocks.count < PEN_ATTENTION_BLOCKS; block++) {
        const void *at = block_at(job, now, half_of_kv, block), *other = ahead ? walk_on(job, ahead) : NULL;
        blocks.at[blocks.count] = at;
        blocks.ahead[blocks.count++] = other ? other : at;
    }
    return blocks;
}

/* The softmax of a tile over one span. */
static void attend_span(const attention_job *job, const query_tile *tile, int kv_head, int span, walk *ahead,
                        workspace *work, pen_attention_state *out) {
    const pen_cpu_op_kernels *ops = job->device->ops;
    stretch now = stretch_of(job, tile, kv_head, span);
    int group = job->at.group, width = job->at.width, n = tile->rows * group;
    int begin = now.begin * PEN_KV_BLOCK, last = row_end(job, tile, tile->row + tile->rows - 1);
    int end = (span + 1) * PEN_ATTENTION_SPAN < last ? (span + 1) * PEN_ATTENTION_SPAN : last;
    for (int block = now.begin; block < now.end; block += PEN_ATTENTION_BLOCKS) {
        pen_attention_blocks keys = blocks_of(job, &now, job->kv->k, block, ahead);
        float *scores = work->scores + block * PEN_KV_BLOCK - begin;
        if (keys.type == PEN_TYPE_Q8_0)
            ops->scores_q8_0(work->rounded, n, job->op->head_size, &keys, scores);
        else
            ops->scores(work->queries, n, job->op->head_size, &keys, scores);
    }

    for (int q = 0; q < n; q++) {
        int to = row_end(job, tile, tile->row + q / group), from = row_first(job, to);
        from = from < begin ? begin : from;
        to = to > end ? end : to;
        if (to < from) to = from = begin;
        out->sum[q] = ops->soften(work->scores + q * PEN_SCORE_STRIDE, now.end * PEN_KV_BLOCK - begin, from - begin,
                                  to - begin, job->op->softcap, &out->max[q]);
    }
    memset(out->values, 0, (size_t)(n * width) * sizeof *out->values);
    for (int block = now.begin; block < now.end; block += PEN_ATTENTION_BLOCKS) {
        int at = block * PEN_KV_BLOCK - begin, left = end - begin - at, most = PEN_ATTENTION_BLOCKS * PEN_KV_BLOCK;
        pen_attention_blocks values = blocks_of(job, &now, job->kv->v, block, ahead);
        ops->weigh(work->scores + at, n, &values, left < most ? left : most, job->op->head_size, width, out->values);
    }
}

/* Divides by the sum of weights and stores the result. The + 0 makes a negative zero, which masked positions could have
 * hidden, positive. */
static void finish(const attention_job *job, const query_tile *tile, int kv_head, const pen_attention_state *state) {
    const pen_attention_op *op = job->op;
    int group = job->at.group, size = op->head_size, cols = op->heads * size;
    size_t bytes = pen_activation_row_bytes(job->form, cols);
    for (int n = 0; n < tile->rows * group; n++) {
        float *values = state->values + n * job->at.width, scale = 1.0F / state->sum[n];
        for (int d = 0; d < size; d++) values[d] = values[d] * scale + 0.0F;
    }
    for (int n = 0; n < tile->rows * group; n++) { /* after all of that: vectors would wait for its narrow stores */
        size_t row = (size_t)(tile->row + n / group), column = (size_t)(kv_head * group + n % group) * (size_t)size;
        const float *values = state->values + n * job->at.width;
        if (job->rows) {
            memcpy(job->rows + row * (size_t)cols + column, values, (size_t)size * sizeof *values);
            continue;
        }
        size_t at =
            job->form == PEN_ROW_F32 ? column * sizeof(float) : column / PEN_QUANT_BLOCK * sizeof(pen_activation_block);
        pen_cpu_activation_store(job->device, job->form, values, size,
                                 (unsigned char *)pen_cpu_data(op->out) + row * bytes + at);
    }
}

/* ---- Tasks ----------------------------------------------------------------------------------------------------- */

static void tile_task(void *context, int item, int thread) {
    const attention_job *job = context;
    const query_tile *tile = &job->tiles[item / job->op->kv_heads];
    int kv_head = item % job->op->kv_heads, n = tile->rows * job->at.group, after = item + 1;
    workspace work = workspace_of(job, thread);
    load_queries(job, tile, kv_head, &work);
    if (after < item_count(job)) fetch_queries(job, &job->tiles[after / job->op->kv_heads], after % job->op->kv_heads);
    int first, end = tile_spans(job, tile, &first);
    walk ahead;
    if (tile->rows == 1) ahead = walk_ahead(job, item, first, end);
    for (int span = first; span < end; span++) {
        attend_span(job, tile, kv_head, span, tile->rows == 1 ? &ahead : NULL, &work,
                    span > first ? &work.span : &work.state);
        if (span > first) job->device->ops->merge(&work.span, n, job->at.width, &work.state);
        if (thread == 0) pen_pool_poke(job->device->pool);
    }
    finish(job, tile, kv_head, &work.state);
}

static pen_attention_state partial(const attention_job *job, int item, int span) {
    size_t index = (size_t)item * (size_t)job->spans + (size_t)span;
    return state_at(&job->at, job->partials + index * job->at.state_floats);
}

static void span_task(void *context, int task, int thread) {
    const attention_job *job = context;
    int item = task / job->spans, first;
    const query_tile *tile = &job->tiles[item / job->op->kv_heads];
    int end = tile_spans(job, tile, &first), span = first + task % job->spans;
    if (span >= end) return;
    workspace work = workspace_of(job, thread);
    pen_attention_state out = partial(job, item, task % job->spans);
    load_queries(job, tile, item % job->op->kv_heads, &work);
    walk ahead;
    if (tile->rows == 1) ahead = walk_ahead(job, item, span, span + 1);
    attend_span(job, tile, item % job->op->kv_heads, span, tile->rows == 1 ? &ahead : NULL, &work, &out);
}

static void merge_task(void *context, int item, int thread) {
    (void)thread;
    const attention_job *job = context;
    const query_tile *tile = &job->tiles[item / job->op->kv_heads];
    pen_attention_state state = partial(job, item, 0);
    int first, end = tile_spans(job, tile, &first);
    for (int i = 1; i < end - first; i++) {
        pen_attention_state next = partial(job, item, i);
        job->device->ops->merge(&next, tile->rows * job->at.group, job->at.width, &state);
    }
    finish(job, tile, item % job->op->kv_heads, &state);
}

enum { STORE_ROWS = 8 };

static void store_task(void *context, int task, int thread) {
    (void)thread;
    const attention_job *job = context;
    const pen_cpu_device *device = job->device;
    int cols = job->op->heads * job->op->head_size, end = (task + 1) * STORE_ROWS;
    size_t bytes = pen_activation_row_bytes(job->form, cols);
    unsigned char *out = pen_cpu_data(job->op->out);
    for (int row = task * STORE_ROWS; row < end && row < device->batch.rows; row++)
        pen_cpu_activation_store(device, job->form, job->rows + (size_t)row * (size_t)cols, cols,
                                 out + (size_t)row * bytes);
}

/* Last rows first: they see most, and what is left for the end should be short. */
static void make_tiles(attention_job *job) {
    const pen_batch *batch = &job->device->batch;
    int tile_rows = job->at.tile_queries / job->at.group;
    for (int r = batch->run_count - 1; r >= 0; r--) {
        const pen_run *run = &batch->runs[r];
        for (int row = (run->rows - 1) / tile_rows * tile_rows; row >= 0; row -= tile_rows) {
            int rows = run->rows - row < tile_rows ? run->rows - row : tile_rows;
            query_tile *made = &job->tiles[job->tile_count++];
            *made = (query_tile){.run = r, .row = run->row + row, .rows = rows};
            int first, spans = tile_spans(job, made, &first) - first;
            if (spans > job->spans) job->spans = spans;
        }
    }
}

void pen_cpu_attention(pen_device *base, const pen_attention_op *op) {
    pen_cpu_device *device = (pen_cpu_device *)base;
    const pen_cpu_kv *kv = (const pen_cpu_kv *)op->kv;
    assert(kv->kv_heads == op->kv_heads && kv->head_size == op->head_size);
    attention_job job = {
        .device = device, .op = op, .kv = kv, .form = pen_row_form_of(device->base.activations, false)};
    job.at = lay_out(device, &device->limits, op->heads, op->kv_heads, op->head_size);
    assert(job.at.total <= pen_cpu_attention_scratch(device, &device->limits));
    unsigned char *scratch = device->op_scratch;
    bool whole = job.form == PEN_ROW_F32 || op->head_size % PEN_QUANT_BLOCK == 0;
    if (device->isa == PEN_CPU_REFERENCE || !whole) job.rows = (float *)(scratch + job.at.rows_at);
    if (device->isa == PEN_CPU_REFERENCE) {
        pen_reference_attention(device, op, job.rows);
    } else {
        job.tiles = (query_tile *)(scratch + job.at.tiles_at);
        job.partials = (float *)(scratch + job.at.partials_at);
        make_tiles(&job);
        int items = item_count(&job), threads = pen_pool_threads(device->pool);
        job.few = items < FEW_ITEMS * threads;
        size_t partial_bytes = (size_t)items * (size_t)job.spans * job.at.state_floats * sizeof(float);
        if (threads > 1 && job.few && job.spans > 1 && partial_bytes <= job.at.total - job.at.partials_at) {
            pen_pool_run(device->pool, span_task, &job, items * job.spans);
            pen_pool_run(device->pool, merge_task, &job, items);
        } else {
            pen_pool_run(device->pool, tile_task, &job, items);
        }
    }
    if (job.rows) pen_pool_run(device->pool, store_task, &job, (device->batch.rows + STORE_ROWS - 1) / STORE_ROWS);
}
