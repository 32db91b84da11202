/*
 * Measuring, asking and writing profiles; see profile.h.
 *
 * A measurement must find the caches as a run leaves them: with the weights and the KV of other layers in them. So a
 * class is measured on several copies of its weights, one after the other, that together are more than twice the
 * last-level cache, and every repetition attends over other pages of a KV pool of that size. Decodes are launched as a
 * run launches them: as graphs, on a device that keeps any.
 */
#include "profile.h"

#include <assert.h>
#include <hwloc.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const int grid[PEN_PROFILE_ROWS] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512};

enum {
    LOGIT_ROWS_MOST = 64, /* the grid's end for the head */
    DECODES_MOST = PEN_PROFILE_DECODES,
    COPIES_MOST = 512, /* copies of a unit */
    GRAPHS_MOST = 64,  /* copies of one of which each gets a graph */
    PASSES = 2,
    REPEATS_LEAST = 3,
    REPEATS_MOST = 25,
    BUDGET_MS = 2000, /* aimed at for all classes together */
    SLOW_MS = 400,    /* a point that takes this long is repeated once, and larger ones are left to extrapolation */
    FORMAT_VERSION = 1,
};
static const size_t copies_bytes_most = (size_t)512 << 20, pool_bytes_most = (size_t)256 << 20;

/* ---- The bench --------------------------------------------------------------------------------------------------- */

/* What the measurements of a profile share. */
typedef struct bench {
    const pen_model *model;
    pen_device *device;
    int rows_most; /* the grid's end, less where the model's context is short */
    int contexts[PEN_PROFILE_CONTEXTS];
    int context_count;
    size_t cold_bytes; /* what must pass through the cache between two uses of the same bytes */
    double point_ms;   /* time to spend on a point */
    pen_workspace workspace;
    pen_buffer *choices;
    pen_kv *kv;
    int kv_blocks, kv_next;
    int table_blocks;    /* of the longest sequence */
    int32_t *tables;     /* [DECODES_MOST][table_blocks] */
    int32_t *tokens;     /* [rows_most] */
    int32_t *logit_rows; /* [LOGIT_ROWS_MOST] 0, 1, … */
    pen_pick *picks;     /* [LOGIT_ROWS_MOST] */
    float *residual;     /* [rows_most][H] */
    uint32_t random;
} bench;

static size_t last_level_cache(void) {
    size_t bytes = (size_t)32 << 20; /* where the machine does not say */
    hwloc_topology_t topology;
    if (hwloc_topology_init(&topology) != 0) return bytes;
    if (hwloc_topology_load(topology) == 0)
        for (hwloc_obj_type_t type = HWLOC_OBJ_L3CACHE; type >= HWLOC_OBJ_L2CACHE; type--) {
            hwloc_obj_t cache = hwloc_get_obj_by_type(topology, type, 0);
            if (!cache || cache->attr->cache.size == 0) continue;
            bytes = (size_t)cache->attr->cache.size;
            break;
        }
    hwloc_topology_destroy(topology);
    return bytes;
}

static uint32_t next_random(bench *b) {
    b->random = b->random * 1664525u + 1013904223u;
    return b->random >> 8;
}

/* In [−1, 1). */
static float next_uniform(bench *b) {
    return (float)next_random(b) * 0x1p-23f - 1;
}

/* The grid must fit into the model's context: rows up to half of it, and the larger context before them. */
static void choose_shapes(bench *b, int context) {
    int most = pen_model_hparams(b->model)->context;
    b->rows_most = 1;
    while (b->rows_most < grid[PEN_PROFILE_ROWS - 1] && 4 * b->rows_most <= most) b->rows_most *= 2;
    if (context > most - b->rows_most) context = most - b->rows_most;
    if (context < 0) context = 0;
    b->contexts[1] = context;
    b->context_count = context > 0 ? 2 : 1;
    b->table_blocks = (context + b->rows_most + PEN_KV_BLOCK - 1) / PEN_KV_BLOCK;
}

static pen_status make_kv(bench *b) {
    const pen_hparams *h = pen_model_hparams(b->model);
    size_t block_bytes = pen_kv_bytes(b->device, h->kv_heads, h->head_size, 64) / 64;
    size_t bytes = (size_t)DECODES_MOST * (size_t)b->table_blocks * block_bytes;
    if (bytes < b->cold_bytes) bytes = b->cold_bytes;
    if (bytes > pool_bytes_most) bytes = pool_bytes_most; /* sequences then share pages */
    size_t blocks = bytes / (block_bytes ? block_bytes : 1);
    b->kv_blocks = blocks < (size_t)b->table_blocks ? b->table_blocks : (int)blocks;
    return pen_kv_create(b->device, h->kv_heads, h->head_size, b->kv_blocks, &b->kv);
}

/* Writes every page of the KV pool once: memory that was never written is one page of zeros, which no cache misses. */
static pen_status fill_kv(bench *b) {
    const pen_hparams *h = pen_model_hparams(b->model);
    size_t width = (size_t)(h->heads + 2 * h->kv_heads) * (size_t)h->head_size;
    float *row = calloc(width, sizeof *row);
    if (!row) return pen_fail(PEN_NO_MEMORY, "no memory to measure a profile");
    for (size_t i = 0; i < width; i++) row[i] = next_uniform(b);
    for (int i = 0; i < b->rows_most; i++)
        pen_buffer_write(b->workspace.qkv, (size_t)i * width * sizeof *row, row, width * sizeof *row);
    int per_batch = (b->rows_most + PEN_KV_BLOCK - 1) / PEN_KV_BLOCK;
    for (int first = 0; first < b->kv_blocks; first += per_batch) {
        for (int i = 0; i < per_batch; i++) b->tables[i] = (first + i) % b->kv_blocks;
        const pen_run run = {.rows = b->rows_most, .tables = {b->tables, b->tables}};
        const pen_batch batch = {.rows = b->rows_most, .run_count = 1, .runs = &run};
        pen_device_set_batch(b->device, &batch);
        pen_op_rope_kv(b->device, &(pen_rope_kv_op){.qkv = b->workspace.qkv,
                                                    .heads = h->heads,
                                                    .kv_heads = h->kv_heads,
                                                    .head_size = h->head_size,
                                                    .kv = b->kv});
    }
    pen_status status = pen_device_sync(b->device);
    free(row);
    return status;
}

static pen_status open_bench(bench *b, int context) {
    const pen_hparams *h = pen_model_hparams(b->model);
    choose_shapes(b, context);
    size_t cache = pen_device_cache_bytes(b->device);
    b->cold_bytes = 2 * (cache > 0 ? cache : last_level_cache());
    size_t values = (size_t)b->rows_most * (size_t)h->hidden;
    b->tables = calloc((size_t)DECODES_MOST * (size_t)b->table_blocks, sizeof *b->tables);
    b->tokens = calloc((size_t)b->rows_most, sizeof *b->tokens);
    b->logit_rows = calloc(LOGIT_ROWS_MOST, sizeof *b->logit_rows);
    b->picks = calloc(LOGIT_ROWS_MOST, sizeof *b->picks);
    b->residual = calloc(values, sizeof *b->residual);
    if (!b->tables || !b->tokens || !b->logit_rows || !b->picks || !b->residual)
        return pen_fail(PEN_NO_MEMORY, "no memory to measure a profile");
    for (int i = 0; i < LOGIT_ROWS_MOST; i++) {
        b->logit_rows[i] = i;
        b->picks[i] = (pen_pick){.top_p = 1, .target = -1, .top_logprobs = -1};
    }
    for (size_t i = 0; i < values; i++) b->residual[i] = next_uniform(b);

    pen_limits limits;
    pen_model_limits(b->model, b->rows_most, LOGIT_ROWS_MOST, b->contexts[1] + b->rows_most, &limits);
    PEN_TRY(pen_device_reserve(b->device, &limits));
    PEN_TRY(pen_workspace_create(b->model, b->device, b->rows_most, LOGIT_ROWS_MOST, true, &b->workspace));
    PEN_TRY(pen_buffer_create(b->device, LOGIT_ROWS_MOST * sizeof(pen_choice), &b->choices));
    PEN_TRY(make_kv(b));
    return fill_kv(b);
}

static void close_bench(bench *b) {
    pen_kv_destroy(b->kv);
    pen_buffer_destroy(b->choices);
    pen_workspace_destroy(&b->workspace);
    free(b->residual);
    free(b->picks);
    free(b->logit_rows);
    free(b->tokens);
    free(b->tables);
}

/* ---- One measurement --------------------------------------------------------------------------------------------- */

/* The batch of a point, on pages that were not used lately: `runs` has room for DECODES_MOST. */
static pen_batch next_batch(bench *b, int rows, int logit_rows, int context, pen_run *runs) {
    bool decodes = rows <= DECODES_MOST;
    int count = decodes ? rows : 1;
    for (int i = 0; i < count; i++) {
        int32_t *table = b->tables + (size_t)i * (size_t)b->table_blocks;
        for (int j = 0; j < b->table_blocks; j++) {
            table[j] = b->kv_next;
            b->kv_next = (b->kv_next + 1) % b->kv_blocks;
        }
        runs[i] = (pen_run){.row = i, .rows = decodes ? 1 : rows, .position = context};
        for (int group = 0; group < PEN_KV_GROUPS; group++) runs[i].tables[group] = table;
    }
    for (int i = 0; i < rows; i++)
        b->tokens[i] = (int32_t)(next_random(b) % (uint32_t)pen_model_hparams(b->model)->vocab);
    return (pen_batch){.rows = rows,
                       .run_count = count,
                       .runs = runs,
                       .tokens = b->tokens,
                       .logit_count = logit_rows,
                       .logit_rows = b->logit_rows,
                       .greedy = true};
}

static void run_unit(bench *b, pen_shard *shard, bool graph) {
    int unit = pen_shard_first(shard);
    for (bool go = !graph || pen_device_graph_begin(b->device, shard, 0); go;
         go = graph && pen_device_graph_end(b->device))
        pen_shard_run(shard, unit, &b->workspace, b->kv);
}

static double run_once(bench *b, pen_shard *shard, const pen_batch *batch, bool graph) {
    int unit = pen_shard_first(shard);
    pen_device_set_batch(b->device, batch);
    pen_device_unit_reset(b->device);
    run_unit(b, shard, graph);
    if (batch->logit_count > 0) {
        pen_device_unit_begin(b->device, unit);
        pen_op_pick(b->device, b->workspace.logits, pen_model_hparams(b->model)->vocab, b->picks, b->choices);
        pen_device_unit_end(b->device);
    }
    return pen_device_unit_ms(b->device, unit);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static pen_profile_point summary(double *samples, int count) {
    pen_profile_point point = {.count = count};
    qsort(samples, (size_t)count, sizeof *samples, by_value);
    double sum = 0, squares = 0;
    for (int i = 0; i < count; i++) sum += samples[i];
    point.mean = sum / count;
    for (int i = 0; i < count; i++) squares += (samples[i] - point.mean) * (samples[i] - point.mean);
    point.deviation = count > 1 ? sqrt(squares / (count - 1)) : 0;
    point.median = (samples[(count - 1) / 2] + samples[count / 2]) / 2;
    point.min = samples[0];
    point.max = samples[count - 1];
    return point;
}

static pen_profile_point measure_point(bench *b, pen_shard **copies, int copy_count, int rows, int logit_rows,
                                       int context) {
    pen_run runs[DECODES_MOST];
    double samples[REPEATS_MOST], spent = 0;
    int count = 0, least = REPEATS_LEAST, next = 0;
    bool graph = pen_device_keeps_graphs(b->device) && rows <= DECODES_MOST && copy_count <= GRAPHS_MOST;
    size_t bytes = (size_t)rows * (size_t)pen_model_hparams(b->model)->hidden * sizeof(float);
    pen_buffer_write(b->workspace.x, 0, b->residual, bytes);

    pen_batch batch = next_batch(b, rows, logit_rows, context, runs);
    double warm_up = run_once(b, copies[next++ % copy_count], &batch, graph);
    while (graph && next < 2 * copy_count) run_once(b, copies[next++ % copy_count], &batch, graph);
    if (warm_up >= SLOW_MS) { /* what a warm-up is for is lost in such a time */
        samples[count++] = warm_up;
        least = 2;
    }
    while (count < least || (count < REPEATS_MOST && spent < b->point_ms)) {
        batch = next_batch(b, rows, logit_rows, context, runs);
        samples[count] = run_once(b, copies[next++ % copy_count], &batch, graph);
        spent += samples[count++];
    }
    return summary(samples, count);
}

/* ---- One class --------------------------------------------------------------------------------------------------- */

static void measure_grid(bench *b, pen_unit_kind kind, pen_shard **copies, int copy_count, pen_profile_class *class) {
    int most = kind == PEN_UNIT_HEAD && b->rows_most > LOGIT_ROWS_MOST ? LOGIT_ROWS_MOST : b->rows_most;
    class->context_count = kind == PEN_UNIT_BLOCK ? b->context_count : 1;
    for (int c = 0; c < class->context_count; c++) {
        class->contexts[c] = b->contexts[c];
        for (int i = 0; i < PEN_PROFILE_ROWS && grid[i] <= most; i++) {
            if (c > 0 && i == class->row_count) break; /* too slow already without context */
            class->points[c][i] =
                measure_point(b, copies, copy_count, grid[i], kind == PEN_UNIT_HEAD ? grid[i] : 0, class->contexts[c]);
            if (c > 0) continue;
            class->rows[i] = grid[i];
            class->row_count = i + 1;
            if (class->points[c][i].median >= SLOW_MS) break;
        }
    }
}

/* What else runs on the machine makes measurements longer, for a while, and it will make runs longer, too: of two that
 * lie apart the average counts. (The shorter one promised 2 to 8 % more than runs kept.) */
static void take_average(pen_profile_class *class, const pen_profile_class *again) {
    if (again->row_count < class->row_count) class->row_count = again->row_count;
    for (int c = 0; c < class->context_count; c++)
        for (int i = 0; i < class->row_count; i++) {
            pen_profile_point *point = &class->points[c][i];
            const pen_profile_point *other = &again->points[c][i];
            point->median = (point->median + other->median) / 2;
            point->mean = (point->mean + other->mean) / 2;
            point->deviation = (point->deviation + other->deviation) / 2;
            point->min = fmin(point->min, other->min);
            point->max = fmax(point->max, other->max);
            point->count += other->count;
        }
}

/* More rows, or more context, do not cost less: a point that says so was disturbed by something else on the machine. */
static void make_monotone(pen_profile_class *class) {
    for (int i = class->row_count - 1; i >= 0; i--)
        for (int c = class->context_count - 1; c >= 0; c--) {
            double *ms = &class->points[c][i].median;
            if (i + 1 < class->row_count) *ms = fmin(*ms, class->points[c][i + 1].median);
            if (c + 1 < class->context_count) *ms = fmin(*ms, class->points[c + 1][i].median);
        }
}

/* How many copies of a unit's weights keep each other out of the cache. A row of the embedding is read alone, and the
 * tokens change: its one copy is always cold. */
static int copies_wanted(const bench *b, const pen_unit *unit, const pen_shard_options *options) {
    size_t bytes = pen_shard_bytes(b->model, b->device, options);
    if (unit->kind == PEN_UNIT_EMBEDDING || bytes > b->cold_bytes) return 1;
    size_t copies = b->cold_bytes / bytes + 1;
    if (copies > copies_bytes_most / bytes) copies = copies_bytes_most / bytes;
    if (copies > COPIES_MOST) copies = COPIES_MOST;
    return copies < 1 ? 1 : (int)copies;
}

static pen_status measure_class(bench *b, int unit, const pen_profile_options *options, pen_profile_class *class) {
    const pen_unit *u = pen_model_unit(b->model, unit);
    pen_shard *copies[COPIES_MOST];
    int wanted, count = 0;
    pen_shard_options load = {.first = unit, .last = unit, .source = PEN_SHARD_RANDOM};
    load.context = b->contexts[1] + b->rows_most;
    wanted = copies_wanted(b, u, &load);
    class->hash = u->class_hash;

    pen_status status = PEN_OK;
    while (status == PEN_OK && count < wanted) {
        status = pen_shard_load(b->model, b->device, &load, &copies[count]);
        if (status == PEN_OK) count++;
    }
    if (status == PEN_OK && options->barrier) status = options->barrier(options->barrier_context);
    if (status == PEN_OK) {
        measure_grid(b, u->kind, copies, count, class);
        status = pen_device_sync(b->device);
    }
    while (count > 0) pen_shard_destroy(copies[--count]);
    return status;
}

/* ---- The profile ------------------------------------------------------------------------------------------------- */

static const pen_profile_class *find_class(const pen_profile *profile, uint64_t hash) {
    for (int i = 0; i < profile->class_count; i++)
        if (profile->classes[i].hash == hash) return &profile->classes[i];
    return NULL;
}

/* Writes the first unit of each class to `units` and returns how many there are. */
static int classes_of(const pen_model *model, int *units) {
    int count = 0;
    for (int u = 0; u < pen_model_unit_count(model); u++) {
        uint64_t hash = pen_model_unit(model, u)->class_hash;
        int known = 0;
        while (known < count && pen_model_unit(model, units[known])->class_hash != hash) known++;
        if (known == count) units[count++] = u;
    }
    return count;
}

static pen_status measure_all(bench *b, const pen_profile_options *options, const int *units, pen_profile *profile) {
    PEN_TRY(open_bench(b, options->context));
    b->point_ms = (double)BUDGET_MS / (PASSES * profile->class_count * PEN_PROFILE_ROWS * PEN_PROFILE_CONTEXTS);
    for (int step = 0; step < PASSES * profile->class_count; step++) {
        if (options->progress && !options->progress(options->progress_context, step / PASSES, profile->class_count))
            return pen_fail(PEN_INTERRUPTED, "interrupted while measuring the layers");
        pen_profile_class measured = {0}, *class = &profile->classes[step % profile->class_count];
        PEN_TRY(measure_class(b, units[step % profile->class_count], options, &measured));
        if (step < profile->class_count)
            *class = measured;
        else
            take_average(class, &measured);
    }
    for (int i = 0; i < profile->class_count; i++) make_monotone(&profile->classes[i]);
    if (options->progress) options->progress(options->progress_context, profile->class_count, profile->class_count);
    return PEN_OK;
}

static pen_profile *new_profile(int classes) {
    pen_profile *profile = calloc(1, sizeof *profile + (size_t)classes * sizeof *profile->classes);
    if (profile) profile->class_count = classes;
    return profile;
}

pen_status pen_profile_measure(const pen_model *model, pen_device *device, const pen_profile_options *options,
                               pen_profile **profile) {
    int units[PEN_UNITS_MAX];
    *profile = new_profile(classes_of(model, units));
    if (!*profile) return pen_fail(PEN_NO_MEMORY, "no memory for a profile");
    strncpy((*profile)->device, pen_device_name(device), sizeof(*profile)->device - 1);
    bench b = {.model = model, .device = device, .random = 1};
    pen_status status = measure_all(&b, options, units, *profile);
    close_bench(&b);
    if (status != PEN_OK) {
        pen_profile_destroy(*profile);
        *profile = NULL;
    }
    return status;
}

void pen_profile_destroy(pen_profile *profile) {
    free(profile);
}

bool pen_profile_covers(const pen_profile *profile, const pen_model *model) {
    for (int u = 0; u < pen_model_unit_count(model); u++)
        if (!find_class(profile, pen_model_unit(model, u)->class_hash)) return false;
    return true;
}

const pen_profile_class *pen_profile_class_of(const pen_profile *profile, const pen_model *model, int unit) {
    const pen_profile_class *class = find_class(profile, pen_model_unit(model, unit)->class_hash);
    assert(class);
    return class;
}

/* Linear between grid points; at most one row costs as one; beyond the last point in proportion. */
static double at_rows(const pen_profile_class *class, int context, double rows) {
    const pen_profile_point *points = class->points[context];
    int last = class->row_count - 1;
    if (rows <= 0) return 0;
    if (rows <= class->rows[0]) return points[0].median;
    if (rows >= class->rows[last]) return points[last].median * rows / class->rows[last];
    int i = 0;
    while (rows > class->rows[i + 1]) i++;
    double share = (rows - class->rows[i]) / (class->rows[i + 1] - class->rows[i]);
    return points[i].median + share * (points[i + 1].median - points[i].median);
}

/* Milliseconds for each position before a decode, or before a row of a chunk: the median over the grid's points of that
 * kind. At few decodes, where reading the weights is nearly all, the difference of two contexts is mostly noise. */
static double position_ms(const pen_profile_class *class, bool decodes) {
    double found[PEN_PROFILE_ROWS];
    int begin = 0, end = 0, count = 0;
    while (end < class->row_count && class->rows[end] <= PEN_PROFILE_DECODES) end++;
    if (!decodes && end < class->row_count) {
        begin = end;
        end = class->row_count;
    } else {
        begin = end / 2;
    }
    for (int i = begin; i < end; i++) {
        double growth = class->points[1][i].median - class->points[0][i].median;
        found[count++] = growth / class->rows[i] / class->contexts[1];
    }
    qsort(found, (size_t)count, sizeof *found, by_value);
    return fmax((found[(count - 1) / 2] + found[count / 2]) / 2, 0);
}

double pen_profile_unit_ms(const pen_profile *profile, const pen_model *model, int unit, const pen_step_shape *shape) {
    const pen_profile_class *class = pen_profile_class_of(profile, model, unit);
    bool head = pen_model_unit(model, unit)->kind == PEN_UNIT_HEAD;
    double ms = at_rows(class, 0, head ? shape->logit_rows : shape->rows);
    if (class->context_count == 1) return ms;
    double decode_positions = shape->decodes * shape->decode_context;
    double prompt_positions = (shape->rows - shape->decodes) * shape->prompt_context;
    return ms + decode_positions * position_ms(class, true) + prompt_positions * position_ms(class, false);
}

pen_steady pen_profile_steady(int prompt, int output, int sequences, int microbatches) {
    assert(prompt >= 1 && output >= 1 && sequences >= 1 && microbatches >= 1);
    if (microbatches > sequences) microbatches = sequences;
    double decodes = (double)sequences / microbatches;
    return (pen_steady){
        .microbatches = microbatches,
        .decode_rows = decodes,
        .rows = decodes + decodes * prompt / output,
        .logit_rows = decodes * (1 + 1.0 / output),
        .context = prompt + output / 2.0,
        .prompt_context = prompt / 2.0,
    };
}

pen_step_shape pen_profile_shape(const pen_steady *steady) {
    return (pen_step_shape){.rows = steady->rows,
                            .logit_rows = steady->logit_rows,
                            .decodes = steady->decode_rows,
                            .decode_context = steady->context,
                            .prompt_context = steady->prompt_context};
}

/* ---- As text ----------------------------------------------------------------------------------------------------- */

static json_t *encode_points(const pen_profile_class *class, int context) {
    json_t *list = json_array();
    for (int i = 0; i < class->row_count; i++) {
        const pen_profile_point *p = &class->points[context][i];
        json_array_append_new(list,
                              json_pack("{s:f,s:f,s:f,s:f,s:f,s:i}", "median", p->median, "mean", p->mean, "deviation",
                                        p->deviation, "min", p->min, "max", p->max, "count", p->count));
    }
    return list;
}

static json_t *encode_class(const pen_profile_class *class) {
    char hash[17];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)class->hash);
    json_t *rows = json_array(), *contexts = json_array(), *points = json_array();
    for (int i = 0; i < class->row_count; i++) json_array_append_new(rows, json_integer(class->rows[i]));
    for (int c = 0; c < class->context_count; c++) {
        json_array_append_new(contexts, json_integer(class->contexts[c]));
        json_array_append_new(points, encode_points(class, c));
    }
    return json_pack("{s:s,s:o,s:o,s:o}", "hash", hash, "rows", rows, "contexts", contexts, "points", points);
}

char *pen_profile_encode(const pen_profile *profile) {
    json_t *classes = json_array();
    for (int i = 0; i < profile->class_count; i++) json_array_append_new(classes, encode_class(&profile->classes[i]));
    json_t *root = json_pack("{s:i,s:s,s:o}", "version", FORMAT_VERSION, "device", profile->device, "classes", classes);
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    return text;
}

static bool decode_point(json_t *from, pen_profile_point *p) {
    if (json_unpack(from, "{s:F,s:F,s:F,s:F,s:F,s:i}", "median", &p->median, "mean", &p->mean, "deviation",
                    &p->deviation, "min", &p->min, "max", &p->max, "count", &p->count) != 0)
        return false;
    return isfinite(p->median) && p->median >= 0 && p->count >= 1;
}

/* Whole numbers in ascending order from `first`. */
static bool decode_axis(json_t *from, int first, int most, int *values, int *count) {
    size_t size = json_array_size(from);
    if (size < 1 || size > (size_t)most) return false;
    *count = (int)size;
    for (int i = 0; i < *count; i++) {
        json_int_t value = json_integer_value(json_array_get(from, (size_t)i));
        if (value > INT32_MAX || (i == 0 ? value != first : value <= values[i - 1])) return false;
        values[i] = (int)value;
    }
    return true;
}

static bool decode_class(json_t *from, pen_profile_class *class) {
    const char *hash;
    json_t *rows, *contexts, *points;
    if (json_unpack(from, "{s:s,s:o,s:o,s:o}", "hash", &hash, "rows", &rows, "contexts", &contexts, "points",
                    &points) != 0)
        return false;
    char *end;
    class->hash = strtoull(hash, &end, 16);
    if (*end || end == hash || !decode_axis(rows, 1, PEN_PROFILE_ROWS, class->rows, &class->row_count) ||
        !decode_axis(contexts, 0, PEN_PROFILE_CONTEXTS, class->contexts, &class->context_count))
        return false;
    for (int c = 0; c < class->context_count; c++) {
        json_t *list = json_array_get(points, (size_t)c);
        for (int i = 0; i < class->row_count; i++)
            if (!decode_point(json_array_get(list, (size_t)i), &class->points[c][i])) return false;
    }
    return true;
}

static pen_profile *decode(json_t *root) {
    int version;
    const char *device;
    json_t *classes;
    if (json_unpack(root, "{s:i,s:s,s:o}", "version", &version, "device", &device, "classes", &classes) != 0 ||
        version != FORMAT_VERSION || json_array_size(classes) > PEN_UNITS_MAX)
        return NULL;
    pen_profile *profile = new_profile((int)json_array_size(classes));
    if (!profile) return NULL;
    strncpy(profile->device, device, sizeof profile->device - 1);
    for (int i = 0; i < profile->class_count; i++)
        if (!decode_class(json_array_get(classes, (size_t)i), &profile->classes[i])) {
            pen_profile_destroy(profile);
            return NULL;
        }
    return profile;
}

pen_status pen_profile_decode(const char *text, size_t length, pen_profile **profile) {
    json_t *root = json_loadb(text, length, 0, NULL);
    *profile = root ? decode(root) : NULL;
    json_decref(root);
    return *profile ? PEN_OK : pen_fail(PEN_BAD_INPUT, "a profile of %zu bytes cannot be read", length);
}
