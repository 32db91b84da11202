/* Architecture `qwen2`: a llama with biases on Q, K and V, and rotation in NeoX order. Qwen 1.5, 2 and 2.5. */
#include "layers.h"
#include "rules.h"

static const pen_rule rules[] = {
    PEN_RULES_EMBEDDING,     PEN_RULES_NORMS,     PEN_RULES_QKV,  PEN_RULES_QKV_BIAS(PEN_REQUIRED),
    PEN_RULES_ATTENTION_OUT, PEN_RULES_GATED_FFN, PEN_RULES_HEAD,
};

static void block(const pen_unit_run *run) {
    pen_layer_attention(run);
    pen_layer_feed_forward(run, PEN_GATE_SILU);
}

const pen_arch pen_arch_qwen2 = {
    .name = "qwen2",
    .rules = rules,
    .rule_count = sizeof rules / sizeof *rules,
    .rope = PEN_ROPE_NEOX,
    .embedding = pen_layer_embed,
    .block = block,
    .head = pen_layer_head,
};
