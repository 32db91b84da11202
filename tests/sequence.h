/*
 * For tests: one sequence, fed to a pipeline in different ways, and what came out. What must not matter (stages,
 * microbatches, neighbours, blocks of KV) is an argument; the same for every device. Include it after cmocka.h.
 */
#ifndef PEN_TESTS_SEQUENCE_H
#define PEN_TESTS_SEQUENCE_H

#include "pipeline.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { SEQUENCE_MOST = 80 };

typedef struct sequence {
    int vocab, tokens; /* at most SEQUENCE_MOST */
    int chunk;         /* rows of a microbatch */
    bool neighbour;    /* another sequence shares every microbatch */
    bool backwards;    /* KV blocks are handed out from the last */
} sequence;

/* Per position the choice for the next token. */
typedef struct outcome {
    pen_choice choices[SEQUENCE_MOST];
} outcome;

static int32_t token_at(const sequence *s, int position) {
    return (int32_t)((unsigned)position * 7919u % (unsigned)s->vocab);
}

/* Greedy, scored and drawn in turn. */
static pen_pick pick_at(const sequence *s, int position) {
    pen_pick pick = {.top_p = 1, .position = position + 1, .target = -1, .top_logprobs = 5};
    if (position % 3 == 1) pick.target = token_at(s, position + 1);
    if (position % 3 == 2) {
        pick.temperature = 0.8f;
        pick.top_p = 0.9f;
        pick.top_k = 40;
        pick.seed = 42;
    }
    return pick;
}

/* `o` has an even number of KV blocks: one half is the sequence's, the other its neighbour's. */
static void feed(const pipeline_options *o, const sequence *s, outcome *out) {
    pipeline p;
    open_pipeline(&p, o);
    int32_t own[SEQUENCE_MOST], other[SEQUENCE_MOST];
    int blocks = o->stage.kv.blocks[0];
    for (int i = 0; i < blocks / 2; i++) {
        own[i] = s->backwards ? blocks - 1 - 2 * i : 2 * i;
        other[i] = s->backwards ? blocks - 2 - 2 * i : 2 * i + 1;
    }
    for (int at = 0, step = 0; at < s->tokens; at += s->chunk, step++) {
        int count = at + s->chunk <= s->tokens ? s->chunk : s->tokens - at;
        int ahead = s->neighbour ? count : 0; /* rows of the neighbour, which come first */
        pen_run runs[2] = {{.row = 0, .rows = ahead, .position = at, .tables = {other, other}},
                           {.row = ahead, .rows = count, .position = at, .tables = {own, own}}};
        int32_t tokens[2 * SEQUENCE_MOST], logit_rows[SEQUENCE_MOST];
        pen_pick picks[SEQUENCE_MOST];
        for (int i = 0; i < count; i++) {
            if (ahead) tokens[i] = (int32_t)((at + i) * 31 % s->vocab);
            tokens[ahead + i] = token_at(s, at + i);
            logit_rows[i] = ahead + i;
            picks[i] = pick_at(s, at + i);
        }
        const pen_batch batch = {.rows = ahead + count,
                                 .run_count = ahead ? 2 : 1,
                                 .runs = ahead ? runs : runs + 1,
                                 .tokens = tokens,
                                 .logit_count = count,
                                 .logit_rows = logit_rows};
        const pen_choice *choices = run_pipeline(&p, step % o->stage.slots, &batch, picks);
        memcpy(out->choices + at, choices, (size_t)count * sizeof *choices);
    }
    close_pipeline(&p);
}

static void assert_same(const sequence *s, const outcome *a, const outcome *b, const char *what) {
    for (int i = 0; i < s->tokens; i++) {
        const pen_choice *x = &a->choices[i], *y = &b->choices[i];
        assert_int_equal(x->bad_logits, 0);
        if (x->token != y->token || memcmp(&x->logprob, &y->logprob, sizeof x->logprob) != 0 ||
            memcmp(x->top_logprobs, y->top_logprobs, 5 * sizeof *x->top_logprobs) != 0 ||
            memcmp(x->top_ids, y->top_ids, 5 * sizeof *x->top_ids) != 0)
            fail_msg("%s: position %d: token %d, %.9g instead of %d, %.9g", what, i, y->token, (double)y->logprob,
                     x->token, (double)x->logprob);
    }
}

/* How far the best tokens' log-probabilities lie apart, on average and at most. Sums in another order differ in the
 * last bits. In fast mode such a bit can tip the rounding of an activation to int8, and what follows differs by that
 * much. */
typedef struct distance {
    double mean, worst;
} distance;
static distance distance_of(const sequence *s, const outcome *a, const outcome *b) {
    distance d = {0, 0};
    for (int i = 0; i < s->tokens; i++) {
        assert_int_equal(a->choices[i].bad_logits, 0);
        double error = fabs((double)a->choices[i].top_logprobs[0] - (double)b->choices[i].top_logprobs[0]);
        d.mean += error / s->tokens;
        d.worst = fmax(d.worst, error);
    }
    return d;
}

#endif
