/*
 * Outlines: models of which only the units' sizes are known, as a profile tells them. The weights of a unit are one
 * matrix of 16-bit numbers that has a size and no values, and its operations are none: only a device that goes by the
 * units' markers, as the simulated one does, can run an outline.
 */
#include "arch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const pen_rule rules[] = {
    {.name = "embedding", .slot = PEN_SLOT_TOKEN_EMBEDDING, .unit = PEN_UNIT_EMBEDDING, .form = PEN_FORM_MATRIX},
    {.name = "block", .slot = PEN_SLOT_UP, .unit = PEN_UNIT_BLOCK, .form = PEN_FORM_MATRIX},
    {.name = "head", .slot = PEN_SLOT_OUTPUT, .unit = PEN_UNIT_HEAD, .form = PEN_FORM_MATRIX},
};

static void nothing(const pen_unit_run *run) {
    (void)run;
}

static const pen_arch outline_arch = {
    .name = "outline",
    .rules = rules,
    .rule_count = sizeof rules / sizeof *rules,
    .rope = PEN_ROPE_NONE,
    .embedding = nothing,
    .block = nothing,
    .head = nothing,
};

static pen_status add_weights(pen_model *model, pen_unit *unit, uint64_t bytes, pen_tensor *tensor) {
    uint64_t row = (uint64_t)model->hparams.hidden * sizeof(uint16_t), rows = (bytes + row - 1) / row;
    if (rows > INT32_MAX)
        return pen_fail(PEN_UNSUPPORTED, "%s: %s has %llu bytes of weights, too many", model->name, unit->name,
                        (unsigned long long)bytes);
    *tensor = (pen_tensor){
        .rule = &rules[unit->kind], .type = PEN_TYPE_F16, .rows = (int)rows, .cols = model->hparams.hidden};
    snprintf(tensor->name, sizeof tensor->name, "%s", unit->name);
    unit->weight_bytes = rows * row;
    return PEN_OK;
}

static pen_status fill(pen_model *model, const pen_model_outline *outline) {
    model->arch = &outline_arch;
    model->outline = true;
    model->hash = outline->hash;
    model->unit_count = outline->unit_count;
    model->path = strdup(outline->name);
    model->units = calloc((size_t)outline->unit_count, sizeof *model->units);
    model->tensors = calloc((size_t)outline->unit_count, sizeof *model->tensors);
    model->tensor_first = calloc((size_t)outline->unit_count + 1, sizeof *model->tensor_first);
    if (!model->path || !model->units || !model->tensors || !model->tensor_first)
        return pen_fail(PEN_NO_MEMORY, "%s: no memory for %d units", outline->name, outline->unit_count);
    snprintf(model->name, sizeof model->name, "%s", outline->name);
    pen_hparams *h = &model->hparams;
    *h = (pen_hparams){.hidden = outline->hidden,
                       .vocab = outline->vocab,
                       .context = outline->context,
                       .original_context = outline->context,
                       .ffn = 4 * outline->hidden,
                       .heads = 1,
                       .kv_heads = 1,
                       .head_size = outline->kv_values,
                       .kv_groups = 1};
    for (int u = 0; u < outline->unit_count; u++) {
        const pen_outline_unit *from = &outline->units[u];
        pen_unit *unit = &model->units[u];
        unit->kind = from->kind;
        unit->layer = from->kind == PEN_UNIT_BLOCK ? h->layers++ : -1;
        unit->class_hash = from->class_hash;
        if (from->kind == PEN_UNIT_BLOCK) unit->kv_bytes_per_token = 2 * sizeof(uint16_t) * (uint64_t)h->head_size;
        snprintf(unit->name, sizeof unit->name, "%s", from->name);
        int tensors = model->tensor_first[u];
        if (from->weight_bytes > 0) PEN_TRY(add_weights(model, unit, from->weight_bytes, &model->tensors[tensors++]));
        model->tensor_first[u + 1] = tensors;
    }
    return PEN_OK;
}

pen_status pen_model_from_outline(const pen_model_outline *outline, pen_model **model) {
    *model = calloc(1, sizeof **model);
    if (!*model) return pen_fail(PEN_NO_MEMORY, "%s: no memory for a model", outline->name);
    pen_status status = fill(*model, outline);
    if (status == PEN_OK) return PEN_OK;
    pen_model_close(*model);
    *model = NULL;
    return status;
}
