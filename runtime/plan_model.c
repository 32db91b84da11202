/* The plan of a model; see plan_model.h. */
#include "plan_model.h"

#include "kvcache.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* An estimated unit is bound by memory or by arithmetic, whichever takes longer. The two rates are those of a couple of
 * CPU cores, but only their ratio matters to a split. */
#define ESTIMATE_BYTES_PER_MS 20e6
#define ESTIMATE_FLOPS_PER_MS 500e6

static double estimate_ms(const pen_model *model, const pen_unit *unit, const pen_steady *steady) {
    const pen_hparams *h = pen_model_hparams(model);
    int window = h->kv_windows[unit->kv_group];
    double seen = window > 0 ? fmin(window, steady->context) : steady->context;
    /* All matrices have about as many bits per weight as the embedding table. */
    double bytes_per_weight = (double)pen_model_unit(model, 0)->weight_bytes / ((double)h->vocab * h->hidden);
    double weights = (double)unit->weight_bytes / bytes_per_weight, bytes = (double)unit->weight_bytes, flops = 0;
    switch (unit->kind) {
    case PEN_UNIT_EMBEDDING: bytes = steady->rows * h->hidden * (bytes_per_weight + sizeof(float)); break;
    case PEN_UNIT_BLOCK:
        /* Multiply and add per weight and row; the same twice per position seen, head and dimension in attention. */
        flops = 2 * weights * steady->rows + 4 * steady->rows * seen * h->heads * h->head_size;
        bytes += steady->decode_rows * seen * (double)unit->kv_bytes_per_token;
        break;
    case PEN_UNIT_HEAD: flops = 2 * weights * steady->logit_rows; break;
    }
    return fmax(bytes / ESTIMATE_BYTES_PER_MS, flops / ESTIMATE_FLOPS_PER_MS);
}

/* All rotation tables of the model: which of them a stage needs depends on its layers, and it may be all. */
static uint64_t rotation_bytes(const pen_model *model, const pen_device *device, int context) {
    pen_shard_options blocks = {.first = 1, .last = pen_model_unit_count(model) - 2, .context = context};
    uint64_t bytes = pen_shard_bytes(model, device, &blocks);
    blocks.context = 0;
    return bytes - pen_shard_bytes(model, device, &blocks);
}

/* What a stage takes once besides weights and KV, by the kinds of units it has. */
static uint64_t workspace_bytes(const pen_model *model, const pen_plan_model_options *options, const pen_unit *unit) {
    const pen_device *device = options->device;
    pen_limits limits;
    pen_model_limits(model, options->rows, options->logit_rows, options->context, &limits);
    uint64_t slot = (uint64_t)options->rows * (uint64_t)pen_model_hparams(model)->hidden * sizeof(float);
    return pen_device_scratch_bytes(device, &limits) +
           pen_workspace_bytes(model, device, options->rows, options->logit_rows, unit->kind == PEN_UNIT_HEAD) +
           (uint64_t)options->slots * slot +
           (unit->kind == PEN_UNIT_BLOCK ? rotation_bytes(model, device, options->context) : 0);
}

static void size_on_device(const pen_model *model, const pen_plan_model_options *options, int u, pen_plan_unit *made) {
    const pen_unit *unit = pen_model_unit(model, u);
    const pen_hparams *h = pen_model_hparams(model);
    const pen_shard_options shard = {.first = u, .last = u, .context = 0}; /* without rotation tables */
    made->workspace_bytes = workspace_bytes(model, options, unit);
    made->weight_bytes = pen_shard_bytes(model, options->device, &shard);
    if (unit->kind == PEN_UNIT_BLOCK)
        made->kv_bytes_per_token = pen_kv_bytes(options->device, h->kv_heads, h->head_size, 1) / PEN_KV_BLOCK;
}

/* Bytes per token become bytes where a layer sees a window: they do not grow with the tokens. */
static void size_window(const pen_model *model, const pen_plan_model_options *options, int u, pen_plan_unit *made) {
    const pen_hparams *h = pen_model_hparams(model);
    int window = h->kv_windows[pen_model_unit(model, u)->kv_group];
    if (window == 0) return;
    int64_t blocks = (int64_t)options->sequences * pen_kv_blocks_held(window, options->rows, options->positions);
    made->kv_window_bytes = made->kv_bytes_per_token * PEN_KV_BLOCK * (uint64_t)blocks;
    made->kv_bytes_per_token = 0;
}

pen_steady pen_plan_steady(const pen_plan_workload *workload, int stages, int rows) {
    int microbatches = workload->microbatches > 0 ? workload->microbatches : stages + 1;
    pen_steady steady = pen_profile_steady(workload->prompt_tokens, workload->output_tokens,
                                           pen_plan_sequences(workload, stages), microbatches);
    double share = rows > 0 && steady.rows > rows ? rows / steady.rows : 1;
    steady.rows *= share;
    steady.decode_rows *= share;
    steady.logit_rows *= share;
    return steady;
}

static pen_type kv_type_of(const pen_plan_model_options *options) {
    if (options->device) return pen_device_kv_type(options->device);
    return options->kv_q8_0 ? PEN_TYPE_Q8_0 : PEN_TYPE_F16;
}

void pen_plan_model_sizes(const pen_model *model, const pen_plan_model_options *options, pen_plan_unit *sizes) {
    pen_steady steady = pen_plan_steady(&options->workload, options->stages, options->rows);
    int head = pen_model_hparams(model)->head_size;
    uint64_t f16_row = pen_type_row_bytes(PEN_TYPE_F16, head), row = pen_type_row_bytes(kv_type_of(options), head);
    for (int u = 0; u < pen_model_unit_count(model); u++) {
        sizes[u].weight_bytes = pen_model_unit(model, u)->weight_bytes;
        sizes[u].kv_bytes_per_token = pen_model_unit(model, u)->kv_bytes_per_token / f16_row * row;
        sizes[u].workspace_bytes = pen_plan_activation_bytes(pen_model_hparams(model)->hidden, steady.rows);
        if (options->device) size_on_device(model, options, u, &sizes[u]);
        size_window(model, options, u, &sizes[u]);
    }
}

pen_status pen_plan_from_model(const pen_model *model, const pen_plan_model_options *options, pen_plan **plan) {
    int units = pen_model_unit_count(model);
    PEN_TRY(pen_kv_check(kv_type_of(options), pen_model_hparams(model)->head_size));
    PEN_TRY(pen_plan_create(units, 1, plan));
    pen_plan *made = *plan;
    const pen_profile *profile = options->profile;
    made->workload = options->workload;
    pen_steady steady = pen_plan_steady(&made->workload, options->stages, options->rows);
    pen_step_shape shape = pen_profile_shape(&steady);
    if (options->sizes)
        memcpy(made->units, options->sizes, (size_t)units * sizeof *made->units);
    else
        pen_plan_model_sizes(model, options, made->units);
    for (int u = 0; u < units; u++) {
        const pen_unit *unit = pen_model_unit(model, u);
        pen_plan_unit *to = &made->units[u];
        memcpy(to->name, unit->name, strlen(unit->name) + 1);
        to->time_ms = profile ? pen_profile_unit_ms(profile, model, u, &shape) : estimate_ms(model, unit, &steady);
    }
    uint64_t first = made->units[0].weight_bytes, last = made->units[units - 1].weight_bytes;
    made->devices[0].numa_nodes = options->numa_nodes;
    made->tied_bytes = pen_model_unit(model, 0)->tied_bytes;
    if (made->tied_bytes > first) made->tied_bytes = first;
    if (made->tied_bytes > last) made->tied_bytes = last;
    if (profile) {
        snprintf(made->source, sizeof made->source, "measured on %s", profile->device);
        snprintf(made->devices[0].name, sizeof made->devices[0].name, "%s", profile->device);
    } else {
        snprintf(made->source, sizeof made->source, "estimated, not measured: %g GB/s and %g Gflop/s",
                 ESTIMATE_BYTES_PER_MS * 1e-6, ESTIMATE_FLOPS_PER_MS * 1e-6);
        snprintf(made->devices[0].name, sizeof made->devices[0].name, "estimate");
    }
    return PEN_OK;
}
