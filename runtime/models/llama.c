/*
 * Architecture `llama`: RMS norm, grouped-query attention with rotary positions, SiLU-gated feed-forward. Llama 1 … 3,
 * SmolLM, TinyLlama and their kin.
 */
#include "arch.h"

#include <math.h>
#include <string.h>

static const pen_rule rules[] = {
    {"token_embd.weight", PEN_SLOT_TOKEN_EMBEDDING, PEN_UNIT_EMBEDDING, PEN_FORM_MATRIX, PEN_DIM_VOCAB, PEN_DIM_HIDDEN,
     PEN_REQUIRED},

    {"attn_norm.weight", PEN_SLOT_ATTENTION_NORM, PEN_UNIT_BLOCK, PEN_FORM_VECTOR, PEN_DIM_1, PEN_DIM_HIDDEN,
     PEN_REQUIRED},
    {"attn_q.weight", PEN_SLOT_Q, PEN_UNIT_BLOCK, PEN_FORM_MATRIX, PEN_DIM_Q, PEN_DIM_HIDDEN, PEN_REQUIRED},
    {"attn_k.weight", PEN_SLOT_K, PEN_UNIT_BLOCK, PEN_FORM_MATRIX, PEN_DIM_KV, PEN_DIM_HIDDEN, PEN_REQUIRED},
    {"attn_v.weight", PEN_SLOT_V, PEN_UNIT_BLOCK, PEN_FORM_MATRIX, PEN_DIM_KV, PEN_DIM_HIDDEN, PEN_REQUIRED},
    {"attn_output.weight", PEN_SLOT_ATTENTION_OUT, PEN_UNIT_BLOCK, PEN_FORM_MATRIX, PEN_DIM_HIDDEN, PEN_DIM_Q,
     PEN_REQUIRED},
    {"rope_freqs.weight", PEN_SLOT_ROPE_FACTORS, PEN_UNIT_BLOCK, PEN_FORM_FACTORS, PEN_DIM_1, PEN_DIM_ROPE_PAIRS,
     PEN_OPTIONAL},
    {"ffn_norm.weight", PEN_SLOT_FFN_NORM, PEN_UNIT_BLOCK, PEN_FORM_VECTOR, PEN_DIM_1, PEN_DIM_HIDDEN, PEN_REQUIRED},
    {"ffn_gate.weight", PEN_SLOT_GATE, PEN_UNIT_BLOCK, PEN_FORM_MATRIX, PEN_DIM_FFN, PEN_DIM_HIDDEN, PEN_REQUIRED},
    {"ffn_up.weight", PEN_SLOT_UP, PEN_UNIT_BLOCK, PEN_FORM_MATRIX, PEN_DIM_FFN, PEN_DIM_HIDDEN, PEN_REQUIRED},
    {"ffn_down.weight", PEN_SLOT_DOWN, PEN_UNIT_BLOCK, PEN_FORM_MATRIX, PEN_DIM_HIDDEN, PEN_DIM_FFN, PEN_REQUIRED},

    {"output_norm.weight", PEN_SLOT_OUTPUT_NORM, PEN_UNIT_HEAD, PEN_FORM_VECTOR, PEN_DIM_1, PEN_DIM_HIDDEN,
     PEN_REQUIRED},
    {"output.weight", PEN_SLOT_OUTPUT, PEN_UNIT_HEAD, PEN_FORM_MATRIX, PEN_DIM_VOCAB, PEN_DIM_HIDDEN, PEN_OR_TIED},
};

/* feed_forward_length: one width, or an array of a width per layer. */
static pen_status read_ffn(const pen_gguf *gguf, pen_model *model) {
    const char *key = "llama.feed_forward_length";
    size_t count = 0;
    bool array = pen_gguf_array(gguf, key, &count) == PEN_OK;
    if (array && count != (size_t)model->hparams.layers)
        return pen_fail(PEN_BAD_INPUT, "%s: %s has %zu widths for %d layers", pen_gguf_path(gguf), key, count,
                        model->hparams.layers);
    for (int layer = 0; layer < model->hparams.layers; layer++) {
        int64_t width;
        if (array)
            PEN_TRY(pen_gguf_array_i64(gguf, key, (size_t)layer, &width));
        else
            PEN_TRY(pen_gguf_i64(gguf, key, 1, INT32_MAX, &width));
        if (width < 1 || width > INT32_MAX)
            return pen_fail(PEN_BAD_INPUT, "%s: %s of layer %d is %lld", pen_gguf_path(gguf), key, layer,
                            (long long)width);
        model->layer_ffn[layer] = (int)width;
    }
    return PEN_OK;
}

static bool is(pen_gguf_string string, const char *text) {
    return string.length == strlen(text) && memcmp(string.data, text, string.length) == 0;
}

static pen_status read_rope_scaling(const pen_gguf *gguf, pen_hparams *h) {
    h->rope_scale = 1;
    if (pen_gguf_has(gguf, "llama.rope.scaling.type")) {
        pen_gguf_string type;
        PEN_TRY(pen_gguf_str(gguf, "llama.rope.scaling.type", &type));
        if (is(type, "none")) return PEN_OK;
        if (!is(type, "linear"))
            return pen_fail(PEN_UNSUPPORTED, "%s: llama.rope.scaling.type is '%.*s', known are none and linear",
                            pen_gguf_path(gguf), (int)type.length, type.data);
    }
    double factor;
    PEN_TRY(pen_gguf_f64_or(gguf, "llama.rope.scale_linear", 1, &factor)); /* the key of older files */
    PEN_TRY(pen_gguf_f64_or(gguf, "llama.rope.scaling.factor", factor, &factor));
    if (!(factor > 0)) /* also where it is no number */
        return pen_fail(PEN_BAD_INPUT, "%s: rope scaling factor %g is not above 0", pen_gguf_path(gguf), factor);
    h->rope_scale = 1 / factor;
    return PEN_OK;
}

static pen_status read_hparams(const pen_gguf *gguf, pen_model *model) {
    pen_hparams *h = &model->hparams;
    const int64_t most = INT32_MAX;
    int64_t layers, hidden, heads, kv_heads, head_size, value_size, context, rope_dims, experts;
    double eps;
    PEN_TRY(pen_gguf_i64_or(gguf, "llama.expert_count", 0, most, 0, &experts));
    if (experts > 0)
        return pen_fail(PEN_UNSUPPORTED, "%s: a mixture of %lld experts", pen_gguf_path(gguf), (long long)experts);
    PEN_TRY(pen_gguf_i64(gguf, "llama.block_count", 1, most, &layers));
    PEN_TRY(pen_model_set_layers(model, layers));
    PEN_TRY(pen_gguf_i64(gguf, "llama.embedding_length", 1, most, &hidden));
    PEN_TRY(pen_gguf_i64(gguf, "llama.attention.head_count", 1, most, &heads));
    PEN_TRY(pen_gguf_i64_or(gguf, "llama.attention.head_count_kv", 1, most, heads, &kv_heads));
    if (!pen_gguf_has(gguf, "llama.attention.key_length") && hidden % heads)
        return pen_fail(PEN_BAD_INPUT, "%s: %lld heads do not divide the hidden size %lld", pen_gguf_path(gguf),
                        (long long)heads, (long long)hidden);
    PEN_TRY(pen_gguf_i64_or(gguf, "llama.attention.key_length", 1, most, hidden / heads, &head_size));
    PEN_TRY(pen_gguf_i64_or(gguf, "llama.attention.value_length", 1, most, head_size, &value_size));
    if (value_size != head_size)
        return pen_fail(PEN_UNSUPPORTED, "%s: values of %lld and keys of %lld per head", pen_gguf_path(gguf),
                        (long long)value_size, (long long)head_size);
    PEN_TRY(pen_gguf_i64(gguf, "llama.context_length", 1, most, &context));
    PEN_TRY(pen_gguf_i64_or(gguf, "llama.rope.dimension_count", 1, most, head_size, &rope_dims));
    PEN_TRY(pen_gguf_f64_or(gguf, "llama.rope.freq_base", 10000, &h->rope_base));
    PEN_TRY(pen_gguf_f64(gguf, "llama.attention.layer_norm_rms_epsilon", &eps));
    PEN_TRY(read_rope_scaling(gguf, h));
    PEN_TRY(read_ffn(gguf, model));

    const pen_gguf_tensor *table = pen_gguf_tensor_find(gguf, "token_embd.weight");
    if (!table) return pen_fail(PEN_BAD_INPUT, "%s: there is no tensor token_embd.weight", pen_gguf_path(gguf));
    if (table->shape[1] > most)
        return pen_fail(PEN_BAD_INPUT, "%s: token_embd.weight has %lld rows", pen_gguf_path(gguf),
                        (long long)table->shape[1]);

    h->hidden = (int)hidden;
    h->heads = (int)heads;
    h->kv_heads = (int)kv_heads;
    h->head_size = (int)head_size;
    h->context = (int)context;
    h->rope_dims = (int)rope_dims;
    h->vocab = (int)table->shape[1];
    h->norm_eps = (float)eps;
    return PEN_OK;
}

static void embedding(const pen_unit_run *run) {
    pen_op_embed(run->device, run->weights[PEN_SLOT_TOKEN_EMBEDDING], 1, run->workspace->x);
}

static void norm(const pen_unit_run *run, pen_slot slot, bool fine) {
    const pen_norm_op op = {
        .x = run->workspace->x,       /* f32 [T][H] */
        .weight = run->vectors[slot], /* f32 [H] */
        .cols = run->hparams->hidden,
        .eps = run->hparams->norm_eps,
        .fine = fine,
        .out = run->workspace->h, /* activation [T][H], fine or not */
    };
    pen_op_norm(run->device, &op);
}

static void attention(const pen_unit_run *run) {
    const pen_hparams *h = run->hparams;
    const pen_workspace *w = run->workspace;
    const pen_qkv_op qkv = {
        .x = w->h,
        .q = run->weights[PEN_SLOT_Q],
        .k = run->weights[PEN_SLOT_K],
        .v = run->weights[PEN_SLOT_V],
        .qkv = w->qkv, /* f32 [T][(Nq + 2·Nk)·D] */
    };
    const pen_rope_kv_op rope = {
        .qkv = w->qkv,
        .heads = h->heads,
        .kv_heads = h->kv_heads,
        .head_size = h->head_size,
        .rope = run->rope,
        .kv = run->kv,
    };
    const pen_attention_op attend = {
        .qkv = w->qkv,
        .heads = h->heads,
        .kv_heads = h->kv_heads,
        .head_size = h->head_size,
        .scale = 1 / sqrtf((float)h->head_size),
        .kv = run->kv,
        .out = w->h, /* activation [T][Nq·D] */
    };
    const pen_project_op out = {
        .x = w->h, .w = run->weights[PEN_SLOT_ATTENTION_OUT], .out = w->x, /* added to the residual */
    };
    pen_op_qkv(run->device, &qkv);
    pen_op_rope_kv(run->device, &rope);
    pen_op_attention(run->device, &attend);
    pen_op_out_project(run->device, &out);
}

static void feed_forward(const pen_unit_run *run) {
    const pen_workspace *w = run->workspace;
    const pen_gate_up_op gate_up = {
        .x = w->h,
        .gate = run->weights[PEN_SLOT_GATE],
        .up = run->weights[PEN_SLOT_UP],
        .act = PEN_GATE_SILU,
        .out = w->ffn, /* activation [T][F] */
    };
    const pen_project_op down = {
        .x = w->ffn, .w = run->weights[PEN_SLOT_DOWN], .out = w->x, /* added to the residual */
    };
    pen_op_gate_up(run->device, &gate_up);
    pen_op_down(run->device, &down);
}

static void block(const pen_unit_run *run) {
    norm(run, PEN_SLOT_ATTENTION_NORM, true);
    attention(run);
    norm(run, PEN_SLOT_FFN_NORM, false);
    feed_forward(run);
}

static void head(const pen_unit_run *run) {
    const pen_logits_op op = {
        .norm = {.x = run->workspace->x,
                 .weight = run->vectors[PEN_SLOT_OUTPUT_NORM],
                 .cols = run->hparams->hidden,
                 .eps = run->hparams->norm_eps},
        .w = run->weights[PEN_SLOT_OUTPUT],
        .logits = run->workspace->logits, /* f32 [L][V] */
    };
    pen_op_logits(run->device, &op);
}

const pen_arch pen_arch_llama = {
    .name = "llama",
    .rules = rules,
    .rule_count = sizeof rules / sizeof *rules,
    .rope_interleaved = true,
    .read = read_hparams,
    .embedding = embedding,
    .block = block,
    .head = head,
};
