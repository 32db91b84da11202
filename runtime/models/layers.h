/*
 * The parts that transformers are made of, for the architectures' files. What is optional in a part (biases, norms of
 * heads, post-norms) is done where the unit has its tensor.
 */
#ifndef PEN_LAYERS_H
#define PEN_LAYERS_H

#include "arch.h"

/* x[T][H] = embedding_scale · the tokens' rows (+ the positions' rows). */
void pen_layer_embed(const pen_unit_run *run);
/* x += attention(norm(x)): norm, Q, K, V (+ biases, norms of heads), rotation, attention, output projection. */
void pen_layer_attention(const pen_unit_run *run);
/* x += down(act(gate) ⊙ up), of norm(x); without a gate down(act(up)). */
void pen_layer_feed_forward(const pen_unit_run *run, pen_gate act);
/* logits[L][V] of the rows that want them. */
void pen_layer_head(const pen_unit_run *run);

#endif
