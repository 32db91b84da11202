/*
 * A stage: a rank's share of the model, ready to run microbatches.
 *
 * It owns the shard (weights of units [first, last]), the KV pages of its layers, one workspace and `slots` residual
 * buffers, so that a received microbatch can wait while another is computed. It knows no ranks and no messages: the
 * engine puts rows into a slot (or the first unit makes them from tokens), runs it, and takes rows or choices out.
 */
#ifndef PEN_STAGE_H
#define PEN_STAGE_H

#include "kvcache.h"
#include "model.h"

typedef struct pen_stage pen_stage;

typedef struct pen_stage_options {
    int first, last; /* units */
    int rows;        /* largest T of a microbatch */
    int logit_rows;  /* largest L */
    int context;     /* positions of a sequence */
    int longest;     /* positions that any sequence may ever have, see pen_shard_options */
    pen_kv_pools kv;
    int slots; /* residual buffers */
    pen_shard_progress *progress;
    void *progress_context;
} pen_stage_options;

/* The pools for `sequences` sequences of `context` positions at most: `blocks` blocks where layers see all positions,
 * what the sequences can hold at a time where they see a window. */
pen_kv_pools pen_stage_kv_pools(const pen_model *model, int sequences, int rows, int context, int blocks);

pen_status pen_stage_create(const pen_model *model, pen_device *device, const pen_stage_options *options,
                            pen_stage **stage);
void pen_stage_destroy(pen_stage *stage);
bool pen_stage_has_head(const pen_stage *stage);

/* The residual rows of a slot, f32 [T][H]: input before pen_stage_run, output after it. */
pen_buffer *pen_stage_rows(pen_stage *stage, int slot);

/* Enqueues copies of KV blocks, in all layers of each copy's group. */
void pen_stage_copy_blocks(pen_stage *stage, const pen_kv_copy *copies, int count);

/* Enqueues the whole stage on slot for `batch`; on the last stage also picks[L] (else NULL). */
void pen_stage_run(pen_stage *stage, int slot, const pen_batch *batch, const pen_pick *picks);

/* The choices [L] of the last pen_stage_run of `slot`, after the stream has reached its end. Host memory, valid until
 * the slot's next run. */
const pen_choice *pen_stage_choices(pen_stage *stage, int slot);

/* Bytes that pen_stage_create would take on this device, weights, KV, workspace and slots, as the plan predicts them.
 */
uint64_t pen_stage_bytes(const pen_model *model, const pen_device *device, const pen_stage_options *options);

#endif
