/*
 * The history of a sequence: what it has said so far, as far as that changes which token it may say next. Repetition,
 * presence and frequency penalties, logit biases and ids that are banned for a while all come down to a list of changed
 * logits, one for each token id that is not as the model left it.
 *
 * Histories live on the last stage, one for each slot of a sequence, and only for sequences that ask for any of this;
 * the leader tells them the tokens (wire.h). The changes depend on the tokens alone, in no way on how they came.
 * Semantics are vLLM's: bias and bans first, then the repetition penalty over prompt and output, then presence and
 * frequency penalties over the output.
 */
#ifndef PEN_HISTORY_H
#define PEN_HISTORY_H

#include "kernels.h"

typedef struct pen_history pen_history;

typedef struct pen_logit_bias {
    int32_t token;
    float value;
} pen_logit_bias;

/* What a sequence asked for. Plain data: it travels. */
typedef struct pen_history_rules {
    float repetition;          /* > 0; 1: off */
    float presence, frequency; /* 0: off */
    int32_t prompt_count;      /* tokens from this position on are output */
    int32_t ban_end;           /* banned ids may be chosen from this position on */
    int32_t bias_count, ban_count;
} pen_history_rules;

/* Whether the rules need the sequence's tokens, and not only its position. */
static inline bool pen_history_wants_tokens(const pen_history_rules *rules) {
    return rules->repetition != 1 || rules->presence != 0 || rules->frequency != 0;
}

pen_status pen_history_create(pen_history **history);
void pen_history_destroy(pen_history *history);

/* Begins anew, for another sequence; copies. Memory is kept from sequence to sequence, and grows with the number of
 * different tokens. */
pen_status pen_history_begin(pen_history *history, const pen_history_rules *rules, const pen_logit_bias *biases,
                             const int32_t *bans);
/* The sequence's next tokens, from position pen_history_count on. */
pen_status pen_history_append(pen_history *history, const int32_t *tokens, int count);
int pen_history_count(const pen_history *history);

/* What to change before the token of `position` is chosen; valid until the history changes. Positions never go back. */
pen_logit_edits pen_history_edits(pen_history *history, int position);

#endif
