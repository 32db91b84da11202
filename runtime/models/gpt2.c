/* Architecture `gpt2`: learned positions, layer norm, biases everywhere, a feed-forward without a gate. */
#include "layers.h"
#include "rules.h"

static const pen_rule rules[] = {
    PEN_RULES_EMBEDDING,
    PEN_MATRIX(PEN_UNIT_EMBEDDING, "position_embd.weight", PEN_SLOT_POSITION_EMBEDDING, PEN_DIM_CONTEXT, PEN_DIM_HIDDEN,
               PEN_REQUIRED),
    PEN_RULES_NORMS,
    PEN_BLOCK_VECTOR("attn_norm.bias", PEN_SLOT_ATTENTION_NORM_BIAS, PEN_DIM_HIDDEN, PEN_REQUIRED),
    PEN_BLOCK_VECTOR("ffn_norm.bias", PEN_SLOT_FFN_NORM_BIAS, PEN_DIM_HIDDEN, PEN_REQUIRED),
    PEN_RULES_FUSED_QKV,
    PEN_BLOCK_VECTOR_PART("attn_qkv.bias", PEN_SLOT_Q_BIAS, PEN_DIM_Q, PEN_DIM_QKV, PEN_DIM_0),
    PEN_BLOCK_VECTOR_PART("attn_qkv.bias", PEN_SLOT_K_BIAS, PEN_DIM_KV, PEN_DIM_QKV, PEN_DIM_Q),
    PEN_BLOCK_VECTOR_PART("attn_qkv.bias", PEN_SLOT_V_BIAS, PEN_DIM_KV, PEN_DIM_QKV, PEN_DIM_QK),
    PEN_RULES_ATTENTION_OUT,
    PEN_BLOCK_VECTOR("attn_output.bias", PEN_SLOT_ATTENTION_OUT_BIAS, PEN_DIM_HIDDEN, PEN_REQUIRED),
    PEN_BLOCK_MATRIX("ffn_up.weight", PEN_SLOT_UP, PEN_DIM_FFN, PEN_DIM_HIDDEN),
    PEN_BLOCK_VECTOR("ffn_up.bias", PEN_SLOT_UP_BIAS, PEN_DIM_FFN, PEN_REQUIRED),
    PEN_BLOCK_MATRIX("ffn_down.weight", PEN_SLOT_DOWN, PEN_DIM_HIDDEN, PEN_DIM_FFN),
    PEN_BLOCK_VECTOR("ffn_down.bias", PEN_SLOT_DOWN_BIAS, PEN_DIM_HIDDEN, PEN_REQUIRED),
    PEN_RULES_HEAD,
    PEN_VECTOR(PEN_UNIT_HEAD, "output_norm.bias", PEN_SLOT_OUTPUT_NORM_BIAS, PEN_DIM_HIDDEN, PEN_REQUIRED),
};

static void block(const pen_unit_run *run) {
    pen_layer_attention(run);
    pen_layer_feed_forward(run, PEN_GATE_GELU_TANH);
}

const pen_arch pen_arch_gpt2 = {
    .name = "gpt2",
    .rules = rules,
    .rule_count = sizeof rules / sizeof *rules,
    .layer_norm = true,
    .rope = PEN_ROPE_NONE,
    .embedding = pen_layer_embed,
    .block = block,
    .head = pen_layer_head,
};
