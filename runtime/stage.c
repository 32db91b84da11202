/*
 * A stage; see stage.h. Everything that a microbatch needs is made at creation, so that running one allocates nothing.
 */
#include "stage.h"

#include "log.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

typedef struct stage_slot {
    pen_buffer *rows;    /* the residual, f32 [T][H] */
    pen_choice *choices; /* [L] on the host; only with the head */
} stage_slot;

struct pen_stage {
    const pen_model *model;
    pen_device *device;
    int first, last, slot_count;
    pen_shard *shard;
    pen_kv **kv;             /* [last − first + 1]; NULL where the unit is no block */
    pen_workspace workspace; /* its x is slot 0's */
    pen_buffer *choices;     /* pen_choice [L]; only with the head */
    stage_slot *slots;
};

static bool is_head(const pen_model *model, int unit) {
    return pen_model_unit(model, unit)->kind == PEN_UNIT_HEAD;
}

static bool is_block(const pen_model *model, int unit) {
    return pen_model_unit(model, unit)->kind == PEN_UNIT_BLOCK;
}

static pen_shard_options shard_options(const pen_stage_options *options) {
    return (pen_shard_options){
        .first = options->first,
        .last = options->last,
        .source = PEN_SHARD_MODEL,
        .context = options->context,
        .longest = options->longest,
        .progress = options->progress,
        .progress_context = options->progress_context,
    };
}

static size_t residual_bytes(const pen_model *model, const pen_stage_options *options) {
    return (size_t)options->rows * (size_t)pen_model_hparams(model)->hidden * sizeof(float);
}

static int kv_blocks(const pen_model *model, const pen_stage_options *options, int unit) {
    return options->kv.blocks[pen_model_unit(model, unit)->kv_group];
}

pen_kv_pools pen_stage_kv_pools(const pen_model *model, int sequences, int rows, int context, int blocks) {
    const pen_hparams *h = pen_model_hparams(model);
    pen_kv_pools pools = {.count = h->kv_groups};
    for (int g = 0; g < pools.count; g++) {
        pools.windows[g] = h->kv_windows[g];
        pools.blocks[g] = pools.windows[g] ? sequences * pen_kv_blocks_held(pools.windows[g], rows, context) : blocks;
    }
    return pools;
}

/* What a stage takes, in bytes: the first for as long as it lives, the second as requests fill it, the last where
 * batches are as large as they may be. */
typedef struct stage_parts {
    uint64_t weights, kv, scratch;
} stage_parts;

static stage_parts parts_of(const pen_model *model, const pen_device *device, const pen_stage_options *options) {
    const pen_hparams *h = pen_model_hparams(model);
    pen_limits limits;
    pen_model_limits(model, options->rows, options->logit_rows, options->context, &limits);
    pen_shard_options shard = shard_options(options);
    bool head = is_head(model, options->last);
    stage_parts parts = {.weights = pen_shard_bytes(model, device, &shard)};
    for (int unit = options->first; unit <= options->last; unit++)
        if (is_block(model, unit))
            parts.kv += pen_kv_bytes(device, h->kv_heads, h->head_size, kv_blocks(model, options, unit));
    parts.scratch = pen_device_scratch_bytes(device, &limits) +
                    pen_workspace_bytes(model, device, options->rows, options->logit_rows, head) +
                    (uint64_t)(options->slots - 1) * residual_bytes(model, options);
    if (head) parts.scratch += (uint64_t)options->logit_rows * sizeof(pen_choice);
    return parts;
}

uint64_t pen_stage_bytes(const pen_model *model, const pen_device *device, const pen_stage_options *options) {
    stage_parts parts = parts_of(model, device, options);
    return parts.weights + parts.kv + parts.scratch;
}

static pen_status make_slots(pen_stage *stage, const pen_stage_options *options) {
    bool head = is_head(stage->model, stage->last);
    for (int i = 0; i < options->slots; i++) {
        stage_slot *slot = &stage->slots[i];
        if (i == 0)
            slot->rows = stage->workspace.x;
        else
            PEN_TRY(pen_buffer_create(stage->device, residual_bytes(stage->model, options), &slot->rows));
        if (!head) continue;
        slot->choices = calloc((size_t)options->logit_rows, sizeof *slot->choices);
        if (!slot->choices) return pen_fail(PEN_NO_MEMORY, "no memory for the choices of a microbatch");
    }
    return PEN_OK;
}

static pen_status fill(pen_stage *stage, const pen_stage_options *options) {
    const pen_model *model = stage->model;
    const pen_hparams *h = pen_model_hparams(model);
    bool head = is_head(model, stage->last);
    pen_limits limits;
    pen_model_limits(model, options->rows, options->logit_rows, options->context, &limits);
    PEN_TRY(pen_device_reserve(stage->device, &limits));
    PEN_TRY(pen_workspace_create(model, stage->device, options->rows, options->logit_rows, head, &stage->workspace));
    PEN_TRY(make_slots(stage, options));
    if (head)
        PEN_TRY(pen_buffer_create(stage->device, (size_t)options->logit_rows * sizeof(pen_choice), &stage->choices));
    for (int unit = stage->first; unit <= stage->last; unit++)
        if (is_block(model, unit))
            PEN_TRY(pen_kv_create(stage->device, h->kv_heads, h->head_size, kv_blocks(model, options, unit),
                                  &stage->kv[unit - stage->first]));
    /* The weights last: they take the longest, and everything that can fail has been tried by then. */
    pen_shard_options shard = shard_options(options);
    PEN_TRY(pen_shard_load(model, stage->device, &shard, &stage->shard));
    stage_parts parts = parts_of(model, stage->device, options);
    PEN_DEBUG("bytes of the stage: weights %" PRIu64 ", KV %" PRIu64 ", scratch %" PRIu64, parts.weights, parts.kv,
              parts.scratch);
    return PEN_OK;
}

pen_status pen_stage_create(const pen_model *model, pen_device *device, const pen_stage_options *options,
                            pen_stage **stage) {
    assert(options->slots >= 1 && options->rows >= 1);
    *stage = calloc(1, sizeof **stage);
    pen_kv **kv = calloc((size_t)(options->last - options->first + 1), sizeof *kv);
    stage_slot *slots = calloc((size_t)options->slots, sizeof *slots);
    if (!*stage || !kv || !slots) {
        free(*stage);
        free(kv);
        free(slots);
        *stage = NULL;
        return pen_fail(PEN_NO_MEMORY, "no memory for a stage");
    }
    **stage = (pen_stage){.model = model,
                          .device = device,
                          .first = options->first,
                          .last = options->last,
                          .slot_count = options->slots,
                          .kv = kv,
                          .slots = slots};
    pen_status status = fill(*stage, options);
    if (status != PEN_OK) {
        pen_stage_destroy(*stage);
        *stage = NULL;
    }
    return status;
}

void pen_stage_destroy(pen_stage *stage) {
    if (!stage) return;
    pen_shard_destroy(stage->shard);
    for (int unit = stage->first; unit <= stage->last; unit++) pen_kv_destroy(stage->kv[unit - stage->first]);
    pen_buffer_destroy(stage->choices);
    for (int i = 0; i < stage->slot_count; i++) {
        if (i > 0) pen_buffer_destroy(stage->slots[i].rows);
        free(stage->slots[i].choices);
    }
    pen_workspace_destroy(&stage->workspace);
    free(stage->kv);
    free(stage->slots);
    free(stage);
}

bool pen_stage_has_head(const pen_stage *stage) {
    return is_head(stage->model, stage->last);
}

pen_buffer *pen_stage_rows(pen_stage *stage, int slot) {
    assert(slot >= 0 && slot < stage->slot_count);
    return stage->slots[slot].rows;
}

static bool is_greedy(const pen_batch *batch, const pen_pick *picks) {
    for (int l = 0; l < batch->logit_count; l++)
        if (!pen_pick_is_greedy(&picks[l]) || (batch->edits && batch->edits[l].count > 0)) return false;
    return true;
}

/* Logits were wanted: the picks, which belong to the head's time, and the choices on their way to the host. */
static void pick(pen_stage *stage, const stage_slot *slot, const pen_batch *batch, const pen_pick *picks) {
    pen_device_unit_begin(stage->device, stage->last);
    pen_op_pick(stage->device, stage->workspace.logits, pen_model_hparams(stage->model)->vocab, picks, stage->choices);
    pen_device_unit_end(stage->device);
    pen_buffer_read(stage->choices, 0, slot->choices, (size_t)batch->logit_count * sizeof(pen_choice));
}

void pen_stage_copy_blocks(pen_stage *stage, const pen_kv_copy *copies, int count) {
    for (int i = 0; i < count; i++)
        for (int unit = stage->first; unit <= stage->last; unit++) {
            pen_kv *kv = stage->kv[unit - stage->first];
            if (kv && pen_model_unit(stage->model, unit)->kv_group == copies[i].group)
                pen_op_kv_copy(stage->device, kv, copies[i].from, copies[i].to);
        }
}

void pen_stage_run(pen_stage *stage, int slot, const pen_batch *batch, const pen_pick *picks) {
    pen_workspace workspace = stage->workspace;
    workspace.x = pen_stage_rows(stage, slot);
    bool wants_logits = pen_stage_has_head(stage) && batch->logit_count > 0;
    int last_run = pen_stage_has_head(stage) && !wants_logits ? stage->last - 1 : stage->last;
    pen_batch own = *batch;
    own.greedy = wants_logits && is_greedy(batch, picks);
    pen_device_set_batch(stage->device, &own);
    for (bool go = pen_device_graph_begin(stage->device, stage, slot); go; go = pen_device_graph_end(stage->device))
        for (int unit = stage->first; unit <= last_run; unit++)
            pen_shard_run(stage->shard, unit, &workspace, stage->kv[unit - stage->first]);
    if (wants_logits) pick(stage, &stage->slots[slot], batch, picks);
}

const pen_choice *pen_stage_choices(pen_stage *stage, int slot) {
    assert(slot >= 0 && slot < stage->slot_count);
    return stage->slots[slot].choices;
}
