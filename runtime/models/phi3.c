/*
 * Architecture `phi3`: a llama whose Q, K, V and whose gate and up are one tensor each, with rotation in NeoX order of
 * a part of each head, and LongRoPE. Phi 3, 3.5 and 4-mini.
 */
#include "layers.h"
#include "rules.h"

static const pen_rule rules[] = {
    PEN_RULES_EMBEDDING,
    PEN_RULES_NORMS,
    PEN_RULES_FUSED_QKV,
    PEN_BLOCK_FACTORS("rope_factors_short.weight", PEN_SLOT_ROPE_FACTORS_SHORT),
    PEN_BLOCK_FACTORS("rope_factors_long.weight", PEN_SLOT_ROPE_FACTORS_LONG),
    PEN_RULES_ATTENTION_OUT,
    PEN_BLOCK_MATRIX_PART("ffn_up.weight", PEN_SLOT_GATE, PEN_DIM_FFN, PEN_DIM_HIDDEN, PEN_DIM_FFN_FFN, PEN_DIM_0),
    PEN_BLOCK_MATRIX_PART("ffn_up.weight", PEN_SLOT_UP, PEN_DIM_FFN, PEN_DIM_HIDDEN, PEN_DIM_FFN_FFN, PEN_DIM_FFN),
    PEN_BLOCK_MATRIX("ffn_down.weight", PEN_SLOT_DOWN, PEN_DIM_HIDDEN, PEN_DIM_FFN),
    PEN_RULES_HEAD,
};

static void block(const pen_unit_run *run) {
    pen_layer_attention(run);
    pen_layer_feed_forward(run, PEN_GATE_SILU);
}

const pen_arch pen_arch_phi3 = {
    .name = "phi3",
    .rules = rules,
    .rule_count = sizeof rules / sizeof *rules,
    .rope = PEN_ROPE_NEOX,
    .embedding = pen_layer_embed,
    .block = block,
    .head = pen_layer_head,
};
