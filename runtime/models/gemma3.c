/*
 * Architecture `gemma3`: norms before and after each half of a block, norms of query and key heads, GELU-gated
 * feed-forward, an embedding scaled by √H. Five layers of six slide over a window, with a rotation of their own.
 */
#include "layers.h"
#include "rules.h"

#include <math.h>

static const pen_rule rules[] = {
    PEN_RULES_EMBEDDING,
    PEN_RULES_NORMS,
    PEN_RULES_QKV,
    PEN_RULES_QK_NORM,
    PEN_RULES_ATTENTION_OUT,
    PEN_BLOCK_VECTOR("post_attention_norm.weight", PEN_SLOT_ATTENTION_POST_NORM, PEN_DIM_HIDDEN, PEN_REQUIRED),
    PEN_RULES_GATED_FFN,
    PEN_BLOCK_VECTOR("post_ffw_norm.weight", PEN_SLOT_FFN_POST_NORM, PEN_DIM_HIDDEN, PEN_REQUIRED),
    PEN_RULES_HEAD,
};

enum { LAYERS_27B = 62 };

/* Queries are scaled by the head size but in the 27B, which has no key to say so, by hidden size over heads. */
static void adapt(pen_hparams *h) {
    h->embedding_scale = sqrtf((float)h->hidden);
    if (h->layers == LAYERS_27B) h->attention_scale = 1 / sqrtf((float)h->hidden / (float)h->heads);
}

static void block(const pen_unit_run *run) {
    pen_layer_attention(run);
    pen_layer_feed_forward(run, PEN_GATE_GELU_TANH);
}

const pen_arch pen_arch_gemma3 = {
    .name = "gemma3",
    .rules = rules,
    .rule_count = sizeof rules / sizeof *rules,
    .rope = PEN_ROPE_NEOX,
    .sliding_period = 6,
    .local_rope_base = 10000,
    .adapt = adapt,
    .embedding = pen_layer_embed,
    .block = block,
    .head = pen_layer_head,
};
