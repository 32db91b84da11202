/*
 * Rules that many architectures have in common; see arch.h. Each is one or more entries of a pen_rule array.
 */
#ifndef PEN_RULES_H
#define PEN_RULES_H

#include "arch.h"

#define PEN_MATRIX(unit, name, slot, rows, cols, presence)                                                             \
    { name, slot, unit, PEN_FORM_MATRIX, rows, cols, presence, PEN_DIM_0, PEN_DIM_0 }
#define PEN_VECTOR(unit, name, slot, cols, presence)                                                                   \
    { name, slot, unit, PEN_FORM_VECTOR, PEN_DIM_1, cols, presence, PEN_DIM_0, PEN_DIM_0 }
#define PEN_BLOCK_MATRIX(name, slot, rows, cols)     PEN_MATRIX(PEN_UNIT_BLOCK, name, slot, rows, cols, PEN_REQUIRED)
#define PEN_BLOCK_VECTOR(name, slot, cols, presence) PEN_VECTOR(PEN_UNIT_BLOCK, name, slot, cols, presence)
#define PEN_BLOCK_FACTORS(name, slot)                                                                                  \
    { name, slot, PEN_UNIT_BLOCK, PEN_FORM_FACTORS, PEN_DIM_1, PEN_DIM_ROPE_PAIRS, PEN_OPTIONAL, PEN_DIM_0, PEN_DIM_0 }
/* Parts of a tensor that is `whole` long, from `begin` on. */
#define PEN_BLOCK_MATRIX_PART(name, slot, rows, cols, whole, begin)                                                    \
    { name, slot, PEN_UNIT_BLOCK, PEN_FORM_MATRIX, rows, cols, PEN_REQUIRED, whole, begin }
#define PEN_BLOCK_VECTOR_PART(name, slot, cols, whole, begin)                                                          \
    { name, slot, PEN_UNIT_BLOCK, PEN_FORM_VECTOR, PEN_DIM_1, cols, PEN_REQUIRED, whole, begin }

#define PEN_RULES_EMBEDDING                                                                                            \
    PEN_MATRIX(PEN_UNIT_EMBEDDING, "token_embd.weight", PEN_SLOT_TOKEN_EMBEDDING, PEN_DIM_VOCAB, PEN_DIM_HIDDEN,       \
               PEN_REQUIRED)

#define PEN_RULES_QKV                                                                                                  \
    PEN_BLOCK_MATRIX("attn_q.weight", PEN_SLOT_Q, PEN_DIM_Q, PEN_DIM_HIDDEN),                                          \
        PEN_BLOCK_MATRIX("attn_k.weight", PEN_SLOT_K, PEN_DIM_KV, PEN_DIM_HIDDEN),                                     \
        PEN_BLOCK_MATRIX("attn_v.weight", PEN_SLOT_V, PEN_DIM_KV, PEN_DIM_HIDDEN)

#define PEN_RULES_QKV_BIAS(presence)                                                                                   \
    PEN_BLOCK_VECTOR("attn_q.bias", PEN_SLOT_Q_BIAS, PEN_DIM_Q, presence),                                             \
        PEN_BLOCK_VECTOR("attn_k.bias", PEN_SLOT_K_BIAS, PEN_DIM_KV, presence),                                        \
        PEN_BLOCK_VECTOR("attn_v.bias", PEN_SLOT_V_BIAS, PEN_DIM_KV, presence)

/* Q, K and V as one tensor of the file. */
#define PEN_RULES_FUSED_QKV                                                                                            \
    PEN_BLOCK_MATRIX_PART("attn_qkv.weight", PEN_SLOT_Q, PEN_DIM_Q, PEN_DIM_HIDDEN, PEN_DIM_QKV, PEN_DIM_0),           \
        PEN_BLOCK_MATRIX_PART("attn_qkv.weight", PEN_SLOT_K, PEN_DIM_KV, PEN_DIM_HIDDEN, PEN_DIM_QKV, PEN_DIM_Q),      \
        PEN_BLOCK_MATRIX_PART("attn_qkv.weight", PEN_SLOT_V, PEN_DIM_KV, PEN_DIM_HIDDEN, PEN_DIM_QKV, PEN_DIM_QK)

#define PEN_RULES_QK_NORM                                                                                              \
    PEN_BLOCK_VECTOR("attn_q_norm.weight", PEN_SLOT_Q_NORM, PEN_DIM_HEAD, PEN_REQUIRED),                               \
        PEN_BLOCK_VECTOR("attn_k_norm.weight", PEN_SLOT_K_NORM, PEN_DIM_HEAD, PEN_REQUIRED)

#define PEN_RULES_ATTENTION_OUT                                                                                        \
    PEN_BLOCK_MATRIX("attn_output.weight", PEN_SLOT_ATTENTION_OUT, PEN_DIM_HIDDEN, PEN_DIM_Q)

#define PEN_RULES_NORMS                                                                                                \
    PEN_BLOCK_VECTOR("attn_norm.weight", PEN_SLOT_ATTENTION_NORM, PEN_DIM_HIDDEN, PEN_REQUIRED),                       \
        PEN_BLOCK_VECTOR("ffn_norm.weight", PEN_SLOT_FFN_NORM, PEN_DIM_HIDDEN, PEN_REQUIRED)

#define PEN_RULES_GATED_FFN                                                                                            \
    PEN_BLOCK_MATRIX("ffn_gate.weight", PEN_SLOT_GATE, PEN_DIM_FFN, PEN_DIM_HIDDEN),                                   \
        PEN_BLOCK_MATRIX("ffn_up.weight", PEN_SLOT_UP, PEN_DIM_FFN, PEN_DIM_HIDDEN),                                   \
        PEN_BLOCK_MATRIX("ffn_down.weight", PEN_SLOT_DOWN, PEN_DIM_HIDDEN, PEN_DIM_FFN)

#define PEN_RULES_HEAD                                                                                                 \
    PEN_VECTOR(PEN_UNIT_HEAD, "output_norm.weight", PEN_SLOT_OUTPUT_NORM, PEN_DIM_HIDDEN, PEN_REQUIRED),               \
        PEN_MATRIX(PEN_UNIT_HEAD, "output.weight", PEN_SLOT_OUTPUT, PEN_DIM_VOCAB, PEN_DIM_HIDDEN, PEN_OR_TIED)

#endif
