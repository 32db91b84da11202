/*
 * Models; see model.h. Opening one reads metadata, checks the hyper-parameters, resolves the architecture's rules to
 * tensors (what the file has, or what a synthetic spec implies) and sums them up unit by unit. Everything else works
 * on that table of tensors. The model owns the table, the units and the open file.
 */
#include "arch.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* ---- The registry ------------------------------------------------------------------------------------------------ */

static const pen_arch *const archs[] = {
#define PEN_ARCH(name) &pen_arch_##name,
#include "arch.def"
#undef PEN_ARCH
};

const pen_arch *pen_arch_find(const char *name, size_t length) {
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++)
        if (strlen(archs[i]->name) == length && memcmp(archs[i]->name, name, length) == 0) return archs[i];
    return NULL;
}

const char *pen_arch_names(void) {
    static const char names[] =
#define PEN_ARCH(name) " " #name
#include "arch.def"
#undef PEN_ARCH
        ;
    return names + 1;
}

/* ---- From rules to tensors --------------------------------------------------------------------------------------- */

static int dim(const pen_model *model, pen_dim expression, int layer) {
    const pen_hparams *h = &model->hparams;
    switch (expression) {
    case PEN_DIM_0: return 0;
    case PEN_DIM_1: return 1;
    case PEN_DIM_HIDDEN: return h->hidden;
    case PEN_DIM_HEAD: return h->head_size;
    case PEN_DIM_Q: return h->heads * h->head_size;
    case PEN_DIM_KV: return h->kv_heads * h->head_size;
    case PEN_DIM_QK: return (h->heads + h->kv_heads) * h->head_size;
    case PEN_DIM_QKV: return (h->heads + 2 * h->kv_heads) * h->head_size;
    case PEN_DIM_FFN: return model->layers[layer].ffn;
    case PEN_DIM_FFN_FFN: return 2 * model->layers[layer].ffn;
    case PEN_DIM_VOCAB: return h->vocab;
    case PEN_DIM_CONTEXT: return h->context;
    case PEN_DIM_ROPE_PAIRS: return h->rope_dims / 2;
    }
    assert(!"a dimension of pen_dim");
    return 0;
}

uint64_t pen_tensor_bytes(const pen_tensor *tensor) {
    return (uint64_t)tensor->rows * pen_type_row_bytes(tensor->type, tensor->cols);
}

static void set_name(pen_tensor *tensor, const pen_rule *rule, int layer) {
    if (layer >= 0 && rule->form != PEN_FORM_FACTORS)
        snprintf(tensor->name, sizeof tensor->name, "blk.%d.%s", layer, rule->name);
    else
        snprintf(tensor->name, sizeof tensor->name, "%s", rule->name);
}

/* Where ours is a part of the file's tensor, that one's rows, or a vector's values, are `whole`; else 0. */
static pen_status check_tensor(const pen_model *model, pen_tensor *tensor, int whole) {
    const pen_gguf_tensor *file = tensor->file;
    bool vector = tensor->rule->form == PEN_FORM_VECTOR;
    int rows = whole && !vector ? whole : tensor->rows, cols = whole && vector ? whole : tensor->cols;
    if (!file->known)
        return pen_fail(PEN_UNSUPPORTED, "%s: tensor %s has type %s, which is not supported", model->path, tensor->name,
                        pen_gguf_type_name(file->gguf_type));
    if (file->shape[0] != cols || file->shape[1] != rows || file->shape[2] != 1 || file->shape[3] != 1)
        return pen_fail(PEN_BAD_INPUT, "%s: tensor %s is [%lld][%lld], %s of these parameters has [%d][%d]",
                        model->path, tensor->name, (long long)file->shape[1], (long long)file->shape[0],
                        model->arch->name, rows, cols);
    if (whole && vector && pen_type_get(file->type)->block_values > 1)
        return pen_fail(PEN_UNSUPPORTED, "%s: tensor %s has type %s, which cannot be divided", model->path,
                        tensor->name, pen_type_get(file->type)->name);
    tensor->type = file->type;
    return PEN_OK;
}

/* Finds what `rule` asks for; `*found` is false where an optional tensor is not there. */
static pen_status resolve(pen_model *model, const pen_rule *rule, int layer, pen_tensor *tensor, bool *found) {
    *tensor = (pen_tensor){.rule = rule,
                           .rows = dim(model, rule->rows, layer),
                           .cols = dim(model, rule->cols, layer),
                           .begin = dim(model, rule->begin, layer)};
    set_name(tensor, rule, layer);
    *found = true;
    if (!model->gguf) {
        *found = rule->presence != PEN_OPTIONAL;
        tensor->type = rule->form == PEN_FORM_MATRIX ? model->synthetic_type : PEN_TYPE_F32;
        if (rule->presence == PEN_OR_TIED && model->hparams.tied) set_name(tensor, &model->arch->rules[0], -1);
        int values = pen_type_get(tensor->type)->block_values;
        if (tensor->cols % values)
            return pen_fail(PEN_BAD_INPUT, "%s: rows of %s have %d values, type %s needs a multiple of %d", model->path,
                            tensor->name, tensor->cols, pen_type_get(tensor->type)->name, values);
        return PEN_OK;
    }
    tensor->file = pen_gguf_tensor_find(model->gguf, tensor->name);
    if (!tensor->file && rule->presence == PEN_OR_TIED) {
        model->hparams.tied = true;
        set_name(tensor, &model->arch->rules[0], -1);
        tensor->file = pen_gguf_tensor_find(model->gguf, tensor->name);
    }
    if (tensor->file) return check_tensor(model, tensor, dim(model, rule->whole, layer));
    *found = false;
    if (rule->presence == PEN_OPTIONAL) return PEN_OK;
    return pen_fail(PEN_BAD_INPUT, "%s: there is no tensor %s", model->path, tensor->name);
}

static pen_status resolve_all(pen_model *model) {
    const pen_arch *arch = model->arch;
    model->unit_count = model->hparams.layers + 2;
    model->units = calloc((size_t)model->unit_count, sizeof *model->units);
    model->tensor_first = calloc((size_t)model->unit_count + 1, sizeof *model->tensor_first);
    model->tensors = calloc((size_t)model->unit_count * (size_t)arch->rule_count, sizeof *model->tensors);
    if (!model->units || !model->tensor_first || !model->tensors)
        return pen_fail(PEN_NO_MEMORY, "%s: no memory for its table of tensors", model->path);
    int count = 0;
    for (int unit = 0; unit < model->unit_count; unit++) {
        pen_unit_kind kind = unit == 0                      ? PEN_UNIT_EMBEDDING
                             : unit < model->unit_count - 1 ? PEN_UNIT_BLOCK
                                                            : PEN_UNIT_HEAD;
        model->units[unit].kind = kind;
        model->units[unit].layer = kind == PEN_UNIT_BLOCK ? unit - 1 : -1;
        for (int i = 0; i < arch->rule_count; i++) {
            bool found;
            if (arch->rules[i].unit != kind) continue;
            PEN_TRY(resolve(model, &arch->rules[i], model->units[unit].layer, &model->tensors[count], &found));
            if (found) count++;
        }
        model->tensor_first[unit + 1] = count;
    }
    if (model->hparams.tied)
        for (int i = 0; i < count; i++)
            model->tensors[i].tied = strcmp(model->tensors[i].name, arch->rules[0].name) == 0;
    return PEN_OK;
}

/* A tensor that no rule asks for would be left out of the sums: a bias, an expert. Better no answer than a wrong one.
 */
static pen_status check_no_others(const pen_model *model) {
    size_t used = 0, count = pen_gguf_tensor_count(model->gguf);
    bool *known = calloc(count ? count : 1, sizeof *known);
    if (!known) return pen_fail(PEN_NO_MEMORY, "%s: no memory for its table of tensors", model->path);
    const pen_gguf_tensor *first = pen_gguf_tensor_at(model->gguf, 0);
    for (int i = 0; i < model->tensor_first[model->unit_count]; i++) known[model->tensors[i].file - first] = true;
    while (used < count && known[used]) used++;
    free(known);
    if (used == count) return PEN_OK;
    return pen_fail(PEN_UNSUPPORTED, "%s: architecture %s has no use for tensor %s", model->path, model->arch->name,
                    pen_gguf_tensor_at(model->gguf, used)->name);
}

/* ---- Units ------------------------------------------------------------------------------------------------------- */

static void sum_up(pen_model *model) {
    const pen_hparams *h = &model->hparams;
    const int shape[] = {h->heads, h->kv_heads, h->head_size, h->rope_dims};
    for (int u = 0; u < model->unit_count; u++) {
        pen_unit *unit = &model->units[u];
        uint64_t hash = XXH64(shape, sizeof shape, (uint64_t)unit->kind);
        if (unit->kind == PEN_UNIT_BLOCK) { /* attention costs what it sees */
            int window = h->kv_windows[pen_layer_kv_group(model, u - 1)];
            hash = XXH64(&window, sizeof window, hash);
        }
        for (int i = model->tensor_first[u]; i < model->tensor_first[u + 1]; i++) {
            const pen_tensor *tensor = &model->tensors[i];
            /* The factors are the model's, not a block's: no stage without them, and a few hundred bytes. */
            if (tensor->rule->form == PEN_FORM_FACTORS) continue;
            unit->weight_bytes += pen_tensor_bytes(tensor);
            if (tensor->tied) unit->tied_bytes += pen_tensor_bytes(tensor);
            const int fields[] = {(int)tensor->rule->slot, pen_type_get(tensor->type)->gguf, tensor->rows,
                                  tensor->cols};
            hash = XXH64(fields, sizeof fields, hash);
        }
        unit->class_hash = hash;
        switch (unit->kind) {
        case PEN_UNIT_EMBEDDING: snprintf(unit->name, sizeof unit->name, "embedding"); break;
        case PEN_UNIT_HEAD: snprintf(unit->name, sizeof unit->name, "head"); break;
        case PEN_UNIT_BLOCK:
            snprintf(unit->name, sizeof unit->name, "block %d", unit->layer);
            unit->kv_group = pen_layer_kv_group(model, unit->layer);
            unit->kv_bytes_per_token = (uint64_t)h->kv_heads * (uint64_t)h->head_size * 2 * sizeof(uint16_t);
            break;
        }
    }
}

/* ---- Opening ----------------------------------------------------------------------------------------------------- */

static pen_status open_gguf(const char *path, pen_model *model) {
    pen_gguf_string name;
    PEN_TRY(pen_gguf_open(path, &model->gguf));
    PEN_TRY(pen_gguf_str(model->gguf, "general.architecture", &name));
    model->arch = pen_arch_find(name.data, name.length);
    if (!model->arch)
        return pen_fail(PEN_UNSUPPORTED, "%s: architecture '%.*s', known are: %s", path, (int)name.length, name.data,
                        pen_arch_names());
    model->hash = pen_gguf_hash(model->gguf);
    if (pen_gguf_has(model->gguf, "general.name")) {
        PEN_TRY(pen_gguf_str(model->gguf, "general.name", &name));
        snprintf(model->name, sizeof model->name, "%.*s", (int)name.length, name.data);
    } else {
        const char *slash = strrchr(path, '/');
        snprintf(model->name, sizeof model->name, "%s", slash ? slash + 1 : path);
    }
    return pen_hparams_read(model);
}

static pen_status open_model(const char *name, pen_model *model) {
    const char *prefix = "synthetic:";
    model->path = strdup(name);
    if (!model->path) return pen_fail(PEN_NO_MEMORY, "%s: no memory to open it", name);
    if (strncmp(name, prefix, strlen(prefix)) == 0)
        PEN_TRY(pen_synthetic_parse(name + strlen(prefix), model));
    else
        PEN_TRY(open_gguf(name, model));
    PEN_TRY(pen_hparams_finish(model));
    PEN_TRY(resolve_all(model));
    if (model->gguf) PEN_TRY(check_no_others(model));
    sum_up(model);
    return PEN_OK;
}

pen_status pen_model_open(const char *name, pen_model **model) {
    *model = calloc(1, sizeof **model);
    if (!*model) return pen_fail(PEN_NO_MEMORY, "%s: no memory to open it", name);
    pen_status status = open_model(name, *model);
    if (status != PEN_OK) {
        pen_model_close(*model);
        *model = NULL;
    }
    return status;
}

void pen_model_close(pen_model *model) {
    if (!model) return;
    if (model->gguf) pen_gguf_close(model->gguf);
    free(model->path);
    free(model->layers);
    free(model->units);
    free(model->tensors);
    free(model->tensor_first);
    free(model);
}

const pen_hparams *pen_model_hparams(const pen_model *model) {
    return &model->hparams;
}
const char *pen_model_arch(const pen_model *model) {
    return model->arch->name;
}
const char *pen_model_name(const pen_model *model) {
    return model->name;
}
const pen_gguf *pen_model_gguf(const pen_model *model) {
    return model->gguf;
}
uint64_t pen_model_hash(const pen_model *model) {
    return model->hash;
}
int pen_model_unit_count(const pen_model *model) {
    return model->unit_count;
}

const pen_unit *pen_model_unit(const pen_model *model, int unit) {
    assert(unit >= 0 && unit < model->unit_count);
    return &model->units[unit];
}

int pen_model_tensor_count(const pen_model *model, int unit) {
    assert(unit >= 0 && unit < model->unit_count);
    return model->tensor_first[unit + 1] - model->tensor_first[unit];
}

pen_tensor_info pen_model_tensor(const pen_model *model, int unit, int i) {
    assert(i >= 0 && i < pen_model_tensor_count(model, unit));
    const pen_tensor *tensor = &model->tensors[model->tensor_first[unit] + i];
    return (pen_tensor_info){.name = tensor->name,
                             .type = tensor->type,
                             .rows = tensor->rows,
                             .cols = tensor->cols,
                             .bytes = pen_tensor_bytes(tensor),
                             .tied = tensor->tied};
}

void pen_model_limits(const pen_model *model, int rows, int logit_rows, int context, pen_limits *limits) {
    const pen_hparams *h = &model->hparams;
    *limits = (pen_limits){
        .rows = rows,
        .logit_rows = logit_rows,
        .hidden = h->hidden,
        .ffn = h->ffn,
        .heads = h->heads,
        .kv_heads = h->kv_heads,
        .head_size = h->head_size,
        .vocab = h->vocab,
        .context = context,
    };
}
