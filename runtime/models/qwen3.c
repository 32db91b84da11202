/* Architecture `qwen3`: a llama with norms of query and key heads, and rotation in NeoX order. */
#include "layers.h"
#include "rules.h"

static const pen_rule rules[] = {
    PEN_RULES_EMBEDDING,     PEN_RULES_NORMS,     PEN_RULES_QKV,  PEN_RULES_QK_NORM,
    PEN_RULES_ATTENTION_OUT, PEN_RULES_GATED_FFN, PEN_RULES_HEAD,
};

static void block(const pen_unit_run *run) {
    pen_layer_attention(run);
    pen_layer_feed_forward(run, PEN_GATE_SILU);
}

const pen_arch pen_arch_qwen3 = {
    .name = "qwen3",
    .rules = rules,
    .rule_count = sizeof rules / sizeof *rules,
    .rope = PEN_ROPE_NEOX,
    .embedding = pen_layer_embed,
    .block = block,
    .head = pen_layer_head,
};
