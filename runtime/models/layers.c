/* The parts of a transformer as operations on the device; see layers.h. */
#include "layers.h"

void pen_layer_embed(const pen_unit_run *run) {
    const pen_embed_op op = {
        .table = run->weights[PEN_SLOT_TOKEN_EMBEDDING],        /* [V][H] */
        .positions = run->weights[PEN_SLOT_POSITION_EMBEDDING], /* [context][H] */
        .scale = run->hparams->embedding_scale,
        .x = run->workspace->x, /* f32 [T][H] */
    };
    pen_op_embed(run->device, &op);
}

static pen_norm_op norm_of(const pen_unit_run *run, pen_slot weight, pen_slot bias) {
    return (pen_norm_op){
        .x = run->workspace->x,         /* f32 [T][H] */
        .weight = run->vectors[weight], /* f32 [H] */
        .bias = run->vectors[bias],     /* f32 [H] */
        .cols = run->hparams->hidden,
        .eps = run->hparams->norm_eps,
        .mean = run->arch->layer_norm,
    };
}

/* x += w·rows (+ bias), through the post-norm where there is one. */
static void add_to_residual(const pen_unit_run *run, void (*project)(pen_device *, const pen_project_op *),
                            const pen_project_op *op, pen_slot post_norm) {
    pen_project_op added = *op;
    if (!run->vectors[post_norm]) {
        added.out = run->workspace->x; /* f32 [T][H] */
        project(run->device, &added);
        return;
    }
    added.store = true;
    added.out = run->workspace->branch; /* f32 [T][H] */
    project(run->device, &added);
    const pen_norm_op norm = {
        .x = run->workspace->branch,
        .weight = run->vectors[post_norm], /* f32 [H] */
        .cols = run->hparams->hidden,
        .eps = run->hparams->norm_eps,
        .add_to = run->workspace->x,
    };
    pen_op_norm(run->device, &norm);
}

void pen_layer_attention(const pen_unit_run *run) {
    const pen_hparams *h = run->hparams;
    const pen_workspace *w = run->workspace;
    pen_norm_op norm = norm_of(run, PEN_SLOT_ATTENTION_NORM, PEN_SLOT_ATTENTION_NORM_BIAS);
    norm.fine = true;
    norm.out = w->h; /* fine activation [T][H] */
    const pen_qkv_op qkv = {
        .x = w->h,
        .q = run->weights[PEN_SLOT_Q],           /* [Nq·D][H] */
        .k = run->weights[PEN_SLOT_K],           /* [Nk·D][H] */
        .v = run->weights[PEN_SLOT_V],           /* [Nk·D][H] */
        .q_bias = run->vectors[PEN_SLOT_Q_BIAS], /* f32 [Nq·D] */
        .k_bias = run->vectors[PEN_SLOT_K_BIAS], /* f32 [Nk·D] */
        .v_bias = run->vectors[PEN_SLOT_V_BIAS], /* f32 [Nk·D] */
        .qkv = w->qkv,                           /* f32 [T][(Nq + 2·Nk)·D] */
    };
    const pen_rope_kv_op rope = {
        .qkv = w->qkv,
        .heads = h->heads,
        .kv_heads = h->kv_heads,
        .head_size = h->head_size,
        .q_norm = run->vectors[PEN_SLOT_Q_NORM], /* f32 [D] */
        .k_norm = run->vectors[PEN_SLOT_K_NORM], /* f32 [D] */
        .eps = h->norm_eps,
        .rope = run->rope,
        .kv = run->kv,
        .group = run->kv_group,
    };
    const pen_attention_op attend = {
        .qkv = w->qkv,
        .heads = h->heads,
        .kv_heads = h->kv_heads,
        .head_size = h->head_size,
        .scale = h->attention_scale,
        .window = run->window,
        .kv = run->kv,
        .group = run->kv_group,
        .out = w->h, /* activation [T][Nq·D] */
    };
    const pen_project_op out = {
        .x = w->h,
        .w = run->weights[PEN_SLOT_ATTENTION_OUT],         /* [H][Nq·D] */
        .bias = run->vectors[PEN_SLOT_ATTENTION_OUT_BIAS], /* f32 [H] */
    };
    pen_op_norm(run->device, &norm);
    pen_op_qkv(run->device, &qkv);
    pen_op_rope_kv(run->device, &rope);
    pen_op_attention(run->device, &attend);
    add_to_residual(run, pen_op_out_project, &out, PEN_SLOT_ATTENTION_POST_NORM);
}

void pen_layer_feed_forward(const pen_unit_run *run, pen_gate act) {
    const pen_workspace *w = run->workspace;
    pen_norm_op norm = norm_of(run, PEN_SLOT_FFN_NORM, PEN_SLOT_FFN_NORM_BIAS);
    norm.out = w->h; /* activation [T][H] */
    const pen_gate_up_op gate_up = {
        .x = w->h,
        .gate = run->weights[PEN_SLOT_GATE],    /* [F][H] */
        .up = run->weights[PEN_SLOT_UP],        /* [F][H] */
        .bias = run->vectors[PEN_SLOT_UP_BIAS], /* f32 [F] */
        .act = act,
        .out = w->ffn, /* activation [T][F] */
    };
    const pen_project_op down = {
        .x = w->ffn,
        .w = run->weights[PEN_SLOT_DOWN],         /* [H][F] */
        .bias = run->vectors[PEN_SLOT_DOWN_BIAS], /* f32 [H] */
    };
    pen_op_norm(run->device, &norm);
    pen_op_gate_up(run->device, &gate_up);
    add_to_residual(run, pen_op_down, &down, PEN_SLOT_FFN_POST_NORM);
}

void pen_layer_head(const pen_unit_run *run) {
    const pen_logits_op op = {
        .norm = norm_of(run, PEN_SLOT_OUTPUT_NORM, PEN_SLOT_OUTPUT_NORM_BIAS),
        .w = run->weights[PEN_SLOT_OUTPUT], /* [V][H] */
        .logits = run->workspace->logits,   /* f32 [L][V] */
    };
    pen_op_logits(run->device, &op);
}
