/*
 * Shards: the weights of a range of units on a device; see model.h. A shard owns its weights, vectors and rotation
 * table. Loading streams each tensor through one staging buffer, a chunk of rows at a time, so that a rank never holds
 * more of the file than a chunk, and never touches a tensor that is not its own.
 */
#include "arch.h"

#include "log.h"
#include "type_check.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

enum {
    CHUNK_BYTES = 2 << 20, /* of file data at a time: long enough to read fast, short enough to stay in the cache */
    CHUNK_ROWS = 64,       /* what chunks are a multiple of, for pen_weight_write */
    BAD_SHOWN = 8,         /* tensors with values that are no numbers, by name */
};

typedef struct unit_tensors {
    pen_weight *weights[PEN_SLOT_COUNT];
    pen_buffer *vectors[PEN_SLOT_COUNT];
} unit_tensors;

struct pen_shard {
    const pen_model *model;
    pen_device *device;
    int first, last;
    unit_tensors *units;            /* [last − first + 1] */
    pen_rope *ropes[PEN_ROTATIONS]; /* those that the range's layers need */
    uint64_t file_bytes;
};

/* What a load in progress knows. */
typedef struct loader {
    pen_shard *shard;
    const pen_shard_options *options;
    unsigned char *staging;
    uint64_t total;
    const pen_tensor *bad; /* the last one that had values that are no numbers */
    int bad_count;
} loader;

/* ---- What a range holds ------------------------------------------------------------------------------------------ */

/* Whether the tensor is the head's name for a table that the range already has as its embedding. */
static bool is_second_end(const pen_tensor *tensor, int first) {
    return tensor->tied && tensor->rule->slot == PEN_SLOT_OUTPUT && first == 0;
}

static int rows_per_chunk(const pen_tensor *tensor) {
    size_t rows = CHUNK_BYTES / pen_type_row_bytes(tensor->type, tensor->cols) / CHUNK_ROWS * CHUNK_ROWS;
    if (rows < CHUNK_ROWS) rows = CHUNK_ROWS;
    return rows < (size_t)tensor->rows ? (int)rows : tensor->rows;
}

static size_t chunk_bytes(const pen_tensor *tensor) {
    return (size_t)rows_per_chunk(tensor) * pen_type_row_bytes(tensor->type, tensor->cols);
}

/* The rotation of a unit, or −1. */
static int rotation_of(const pen_model *model, int unit) {
    if (model->units[unit].kind != PEN_UNIT_BLOCK || model->arch->rope == PEN_ROPE_NONE) return -1;
    return model->arch->local_rope_base > 0 && model->layers[model->units[unit].layer].sliding;
}

static bool range_has_rotation(const pen_model *model, const pen_shard_options *options, int rotation) {
    for (int unit = options->first; unit <= options->last; unit++)
        if (rotation_of(model, unit) == rotation) return true;
    return false;
}

static pen_rope_options rope_options(const pen_model *model, int rotation, int context) {
    const pen_hparams *h = &model->hparams;
    return (pen_rope_options){
        .dims = h->rope_dims,
        .positions = context,
        .base = h->rotations[rotation].base,
        .scale = h->rotations[rotation].scale,
        .magnitude = h->rotations[rotation].magnitude,
        .interleaved = model->arch->rope == PEN_ROPE_INTERLEAVED,
    };
}

size_t pen_shard_bytes(const pen_model *model, const pen_device *device, const pen_shard_options *options) {
    size_t bytes = 0;
    for (int i = model->tensor_first[options->first]; i < model->tensor_first[options->last + 1]; i++) {
        const pen_tensor *tensor = &model->tensors[i];
        if (tensor->rule->form == PEN_FORM_VECTOR)
            bytes += (size_t)tensor->cols * sizeof(float);
        else if (tensor->rule->form == PEN_FORM_MATRIX && !is_second_end(tensor, options->first))
            bytes += pen_weight_bytes(device, tensor->type, tensor->rows, tensor->cols);
    }
    for (int rotation = 0; rotation < PEN_ROTATIONS; rotation++) {
        pen_rope_options rope = rope_options(model, rotation, options->context);
        if (range_has_rotation(model, options, rotation)) bytes += pen_rope_bytes(device, &rope);
    }
    return bytes;
}

/* ---- Reading ----------------------------------------------------------------------------------------------------- */

/* Fetches rows [first, first + rows) into the staging buffer. */
static pen_status fetch(loader *l, const pen_tensor *tensor, int first, int rows) {
    const pen_model *model = l->shard->model;
    size_t row_bytes = pen_type_row_bytes(tensor->type, tensor->cols), bytes = (size_t)rows * row_bytes;
    bool vector = tensor->rule->form == PEN_FORM_VECTOR;
    size_t begin = vector ? pen_type_row_bytes(tensor->type, tensor->begin) : (size_t)tensor->begin * row_bytes;
    if (l->options->source == PEN_SHARD_RANDOM) {
        /* Only shapes and types matter: the first chunk serves for all. */
        if (first == 0) pen_synthetic_rows(tensor, &model->hparams, model->seed, 0, rows, l->staging);
    } else if (tensor->file) {
        PEN_TRY(pen_gguf_read(model->gguf, tensor->file, begin + (uint64_t)first * row_bytes, bytes, l->staging));
    } else {
        pen_synthetic_rows(tensor, &model->hparams, model->seed, first, rows, l->staging);
    }
    l->shard->file_bytes += bytes;
    return PEN_OK;
}

static pen_status report(const loader *l) {
    const pen_shard_options *o = l->options;
    if (!o->progress || o->progress(o->progress_context, l->shard->file_bytes, l->total)) return PEN_OK;
    return pen_fail(PEN_INTERRUPTED, "interrupted while loading %s", l->shard->model->path);
}

/* Weights that are no numbers may never be used, as the rows of tokens that no text has. So this only says which tensor
 * has them, once: should the logits be no numbers, a person knows where from. */
static void check_values(loader *l, const pen_tensor *tensor, int rows) {
    size_t bytes = (size_t)rows * pen_type_row_bytes(tensor->type, tensor->cols);
    if (!tensor->file || l->options->source == PEN_SHARD_RANDOM || l->bad == tensor) return;
    if (pen_type_all_finite(tensor->type, l->staging, bytes)) return;
    l->bad = tensor;
    if (++l->bad_count <= BAD_SHOWN)
        PEN_WARN("%s: tensor %s holds NaN or infinite values", l->shard->model->path, tensor->name);
}

static pen_status load_matrix(loader *l, const pen_tensor *tensor, pen_weight **weight) {
    const pen_model *model = l->shard->model;
    pen_status status = pen_weight_create(l->shard->device, tensor->type, tensor->rows, tensor->cols, weight);
    if (status != PEN_OK) return pen_fail(status, "%s: tensor %s: %s", model->path, tensor->name, pen_last_error());
    if (model->outline) return PEN_OK;
    int chunk = rows_per_chunk(tensor);
    for (int first = 0; first < tensor->rows; first += chunk) {
        int rows = first + chunk <= tensor->rows ? chunk : tensor->rows - first;
        PEN_TRY(fetch(l, tensor, first, rows));
        check_values(l, tensor, rows);
        pen_weight_write(*weight, first, rows, l->staging);
        PEN_TRY(report(l));
    }
    return PEN_OK;
}

/* Reads a vector as f32 into *values, which the caller frees. A value that is no number would spread to every row of
 * every batch, so it is looked for here, where the tensor still has a name. */
static pen_status read_vector(loader *l, const pen_tensor *tensor, float **values) {
    const char *path = l->shard->model->path;
    PEN_TRY(fetch(l, tensor, 0, 1));
    *values = malloc((size_t)tensor->cols * sizeof **values);
    if (!*values) return pen_fail(PEN_NO_MEMORY, "%s: no memory to read tensor %s", path, tensor->name);
    pen_type_dequantize_row(tensor->type, l->staging, tensor->cols, *values);
    for (int i = 0; i < tensor->cols; i++)
        if (!isfinite((*values)[i]))
            return pen_fail(PEN_BAD_INPUT, "%s: value %d of tensor %s is %g", path, i, tensor->name,
                            (double)(*values)[i]);
    return PEN_OK;
}

static pen_status load_vector(loader *l, const pen_tensor *tensor, pen_buffer **vector) {
    float *values = NULL;
    size_t bytes = (size_t)tensor->cols * sizeof *values;
    pen_status status = read_vector(l, tensor, &values);
    if (status == PEN_OK) status = pen_buffer_create(l->shard->device, bytes, vector);
    if (status == PEN_OK) {
        pen_buffer_write(*vector, 0, values, bytes);
        status = pen_device_sync(l->shard->device);
    }
    free(values);
    PEN_TRY(status);
    return report(l);
}

static pen_status read_factors(loader *l, const pen_tensor *tensor, float **factors) {
    PEN_TRY(read_vector(l, tensor, factors));
    for (int i = 0; i < tensor->cols; i++)
        if (!((*factors)[i] > 0))
            return pen_fail(PEN_BAD_INPUT, "%s: value %d of tensor %s is %g, a rotation factor is above 0",
                            l->shard->model->path, i, tensor->name, (double)(*factors)[i]);
    return PEN_OK;
}

static pen_status yarn_factors(const pen_model *model, const pen_rotation *rotation, float **factors) {
    const pen_hparams *h = &model->hparams;
    *factors = malloc((size_t)h->rope_dims / 2 * sizeof **factors);
    if (!*factors) return pen_fail(PEN_NO_MEMORY, "%s: no memory for a rotation table", model->path);
    pen_rope_yarn(rotation, h->rope_dims, h->original_context, *factors);
    return PEN_OK;
}

/* A rotation table, once per shard; `tensor` holds its factors, or is NULL. */
static pen_status make_rope(loader *l, int rotation, const pen_tensor *tensor) {
    const pen_model *model = l->shard->model;
    pen_rope_options options = rope_options(model, rotation, l->options->context);
    float *factors = NULL;
    pen_status status = PEN_OK;
    if (model->hparams.rotations[rotation].yarn > 0)
        status = yarn_factors(model, &model->hparams.rotations[rotation], &factors);
    else if (tensor)
        status = read_factors(l, tensor, &factors);
    options.factors = factors;
    if (status == PEN_OK) status = pen_rope_create(l->shard->device, &options, &l->shard->ropes[rotation]);
    free(factors);
    return status;
}

/* LongRoPE has two tensors of factors. One of them serves for all, so that what a sequence's first tokens are turned by
 * does not depend on how long it gets. */
static bool is_right_factors(const loader *l, pen_slot slot) {
    bool beyond = l->options->longest > l->shard->model->hparams.original_context;
    return slot != (beyond ? PEN_SLOT_ROPE_FACTORS_SHORT : PEN_SLOT_ROPE_FACTORS_LONG);
}

static pen_status load_unit(loader *l, int unit) {
    pen_shard *shard = l->shard;
    const pen_model *model = shard->model;
    unit_tensors *target = &shard->units[unit - shard->first];
    const pen_tensor *factors = NULL;
    for (int i = model->tensor_first[unit]; i < model->tensor_first[unit + 1]; i++) {
        const pen_tensor *tensor = &model->tensors[i];
        pen_slot slot = tensor->rule->slot;
        switch (tensor->rule->form) {
        case PEN_FORM_FACTORS:
            if (is_right_factors(l, slot)) factors = tensor;
            break;
        case PEN_FORM_VECTOR: PEN_TRY(load_vector(l, tensor, &target->vectors[slot])); break;
        case PEN_FORM_MATRIX:
            if (is_second_end(tensor, shard->first))
                target->weights[slot] = shard->units[0].weights[PEN_SLOT_TOKEN_EMBEDDING];
            else
                PEN_TRY(load_matrix(l, tensor, &target->weights[slot]));
            break;
        }
    }
    int rotation = rotation_of(model, unit);
    if (rotation < 0 || shard->ropes[rotation]) return PEN_OK;
    return make_rope(l, rotation, factors);
}

pen_status pen_shard_load(const pen_model *model, pen_device *device, const pen_shard_options *options,
                          pen_shard **shard) {
    assert(options->first >= 0 && options->first <= options->last && options->last < model->unit_count);
    *shard = calloc(1, sizeof **shard);
    if (!*shard) return pen_fail(PEN_NO_MEMORY, "%s: no memory to load it", model->path);
    loader l = {.shard = *shard, .options = options};
    **shard = (pen_shard){.model = model, .device = device, .first = options->first, .last = options->last};
    (*shard)->units = calloc((size_t)(options->last - options->first + 1), sizeof *(*shard)->units);

    size_t staging = 0;
    for (int i = model->tensor_first[options->first]; i < model->tensor_first[options->last + 1]; i++) {
        const pen_tensor *tensor = &model->tensors[i];
        if (chunk_bytes(tensor) > staging) staging = chunk_bytes(tensor);
        if (!is_second_end(tensor, options->first) && tensor->rule->form != PEN_FORM_FACTORS)
            l.total += pen_tensor_bytes(tensor);
    }
    l.staging = malloc(staging);

    pen_status status = PEN_OK;
    if (!(*shard)->units || !l.staging)
        status =
            pen_fail(PEN_NO_MEMORY, "%s: no memory to load units %d to %d", model->path, options->first, options->last);
    for (int unit = options->first; status == PEN_OK && unit <= options->last; unit++) status = load_unit(&l, unit);
    free(l.staging);
    if (l.bad_count > BAD_SHOWN) PEN_WARN("%s: so do %d more tensors", model->path, l.bad_count - BAD_SHOWN);
    if (status != PEN_OK) {
        pen_shard_destroy(*shard);
        *shard = NULL;
    }
    return status;
}

void pen_shard_destroy(pen_shard *shard) {
    if (!shard) return;
    int units = shard->units ? shard->last - shard->first + 1 : 0;
    for (int u = units - 1; u >= 0; u--) {
        unit_tensors *unit = &shard->units[u];
        for (int slot = 0; slot < PEN_SLOT_COUNT; slot++) {
            bool shared = slot == PEN_SLOT_OUTPUT && u > 0 &&
                          unit->weights[slot] == shard->units[0].weights[PEN_SLOT_TOKEN_EMBEDDING];
            if (!shared) pen_weight_destroy(unit->weights[slot]);
            pen_buffer_destroy(unit->vectors[slot]);
        }
    }
    for (int i = 0; i < PEN_ROTATIONS; i++) pen_rope_destroy(shard->ropes[i]);
    free(shard->units);
    free(shard);
}

int pen_shard_first(const pen_shard *shard) {
    return shard->first;
}
uint64_t pen_shard_file_bytes(const pen_shard *shard) {
    return shard->file_bytes;
}

/* ---- Running ----------------------------------------------------------------------------------------------------- */

void pen_shard_run(pen_shard *shard, int unit, const pen_workspace *workspace, pen_kv *kv) {
    assert(unit >= shard->first && unit <= shard->last);
    const pen_model *model = shard->model;
    const unit_tensors *own = &shard->units[unit - shard->first];
    int rotation = rotation_of(model, unit), group = model->units[unit].kv_group;
    const pen_unit_run run = {
        .device = shard->device,
        .arch = model->arch,
        .hparams = &model->hparams,
        .weights = own->weights,
        .vectors = own->vectors,
        .rope = rotation < 0 ? NULL : shard->ropes[rotation],
        .kv = kv,
        .kv_group = group,
        .window = model->hparams.kv_windows[group],
        .workspace = workspace,
    };
    pen_device_unit_begin(shard->device, unit);
    switch (model->units[unit].kind) {
    case PEN_UNIT_EMBEDDING: model->arch->embedding(&run); break;
    case PEN_UNIT_BLOCK: model->arch->block(&run); break;
    case PEN_UNIT_HEAD: model->arch->head(&run); break;
    }
    pen_device_unit_end(shard->device);
}

/* ---- Workspace --------------------------------------------------------------------------------------------------- */

typedef struct workspace_sizes {
    size_t x, h, qkv, ffn, branch, logits;
} workspace_sizes;

static bool has_post_norms(const pen_model *model) {
    for (int i = 0; i < model->arch->rule_count; i++)
        if (model->arch->rules[i].slot == PEN_SLOT_ATTENTION_POST_NORM) return true;
    return false;
}

static workspace_sizes sizes_of(const pen_model *model, const pen_device *device, int rows, int logit_rows,
                                bool has_head) {
    const pen_hparams *p = &model->hparams;
    size_t normed = pen_device_fine_bytes(device, rows, p->hidden);
    size_t attended = pen_device_activation_bytes(device, rows, p->heads * p->head_size);
    return (workspace_sizes){
        .x = (size_t)rows * (size_t)p->hidden * sizeof(float),
        .h = normed > attended ? normed : attended,
        .qkv = (size_t)rows * (size_t)(p->heads + 2 * p->kv_heads) * (size_t)p->head_size * sizeof(float),
        .ffn = pen_device_activation_bytes(device, rows, p->ffn),
        .branch = has_post_norms(model) ? (size_t)rows * (size_t)p->hidden * sizeof(float) : 0,
        .logits = has_head ? (size_t)logit_rows * (size_t)p->vocab * sizeof(float) : 0,
    };
}

size_t pen_workspace_bytes(const pen_model *model, const pen_device *device, int rows, int logit_rows, bool has_head) {
    workspace_sizes s = sizes_of(model, device, rows, logit_rows, has_head);
    return s.x + s.h + s.qkv + s.ffn + s.branch + s.logits;
}

pen_status pen_workspace_create(const pen_model *model, pen_device *device, int rows, int logit_rows, bool has_head,
                                pen_workspace *workspace) {
    workspace_sizes s = sizes_of(model, device, rows, logit_rows, has_head);
    *workspace = (pen_workspace){0};
    pen_status status = pen_buffer_create(device, s.x, &workspace->x);
    if (status == PEN_OK) status = pen_buffer_create(device, s.h, &workspace->h);
    if (status == PEN_OK) status = pen_buffer_create(device, s.qkv, &workspace->qkv);
    if (status == PEN_OK) status = pen_buffer_create(device, s.ffn, &workspace->ffn);
    if (status == PEN_OK && s.branch) status = pen_buffer_create(device, s.branch, &workspace->branch);
    if (status == PEN_OK && s.logits) status = pen_buffer_create(device, s.logits, &workspace->logits);
    if (status != PEN_OK) pen_workspace_destroy(workspace);
    return status;
}

void pen_workspace_destroy(pen_workspace *workspace) {
    pen_buffer_destroy(workspace->logits);
    pen_buffer_destroy(workspace->branch);
    pen_buffer_destroy(workspace->ffn);
    pen_buffer_destroy(workspace->qkv);
    pen_buffer_destroy(workspace->h);
    pen_buffer_destroy(workspace->x);
    *workspace = (pen_workspace){0};
}
