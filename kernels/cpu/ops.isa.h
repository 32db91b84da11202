/* The inner kernels that are not in ops.isa.c itself, under the name of the instruction set; see ops.h. */
#ifndef PEN_OPS_ISA_H
#define PEN_OPS_ISA_H

#include "math.isa.h"
#include "ops.h"

void PEN_ISA_NAME(pen_attention_scores)(const float *queries, int n, int head_size, const pen_attention_blocks *keys,
                                        float *scores);
void PEN_ISA_NAME(pen_attention_scores_q8_0)(const pen_query_block *queries, int n, int head_size,
                                             const pen_attention_blocks *keys, float *scores);
float PEN_ISA_NAME(pen_attention_soften)(float *scores, int count, int from, int to, float softcap, float *max);
void PEN_ISA_NAME(pen_attention_weigh)(const float *weights, int n, const pen_attention_blocks *values, int positions,
                                       int head_size, int width, float *sums);
void PEN_ISA_NAME(pen_attention_merge)(const pen_attention_state *next, int n, int width, pen_attention_state *state);
pen_logit_slice PEN_ISA_NAME(pen_sample_slice)(const float *logits, int count, bool sums);
void PEN_ISA_NAME(pen_sample_weights)(const float *x, int count, float max, float scale, float *out);

#endif
