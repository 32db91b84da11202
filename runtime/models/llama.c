/*
 * Architecture `llama`: RMS norm, grouped-query attention with rotary positions, SiLU-gated feed-forward. Llama 1 … 3,
 * Mistral (with a window), SmolLM, TinyLlama and their kin.
 */
#include "layers.h"
#include "rules.h"

static const pen_rule rules[] = {
    PEN_RULES_EMBEDDING,
    PEN_RULES_NORMS,
    PEN_RULES_QKV,
    PEN_RULES_QKV_BIAS(PEN_OPTIONAL),
    PEN_BLOCK_FACTORS("rope_freqs.weight", PEN_SLOT_ROPE_FACTORS),
    PEN_RULES_ATTENTION_OUT,
    PEN_BLOCK_VECTOR("attn_output.bias", PEN_SLOT_ATTENTION_OUT_BIAS, PEN_DIM_HIDDEN, PEN_OPTIONAL),
    PEN_RULES_GATED_FFN,
    PEN_RULES_HEAD,
};

static void block(const pen_unit_run *run) {
    pen_layer_attention(run);
    pen_layer_feed_forward(run, PEN_GATE_SILU);
}

const pen_arch pen_arch_llama = {
    .name = "llama",
    .rules = rules,
    .rule_count = sizeof rules / sizeof *rules,
    .rope = PEN_ROPE_INTERLEAVED,
    .embedding = pen_layer_embed,
    .block = block,
    .head = pen_layer_head,
};
