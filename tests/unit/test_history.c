/* Histories: the edits they make are the penalties as vLLM defines them, written down plainly, however the tokens came.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "history.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 700, TOKENS_MOST = 900, BIASES = 9, BANS = 3 };

static int below(int n) {
    return rand() % n;
}

static float within(float low, float high) {
    return low + (high - low) * (float)rand() / (float)RAND_MAX;
}

typedef struct example {
    pen_history_rules rules;
    pen_logit_bias biases[BIASES];
    int32_t bans[BANS];
    int32_t tokens[TOKENS_MOST];
    int count;
} example;

static example make_example(void) {
    example e = {.count = 1 + below(TOKENS_MOST)};
    int prompt = 1 + below(e.count);
    e.rules = (pen_history_rules){.repetition = below(3) ? within(0.3f, 3) : 1,
                                  .presence = below(3) ? within(-2, 2) : 0,
                                  .frequency = below(3) ? within(-2, 2) : 0,
                                  .prompt_count = prompt,
                                  .ban_end = prompt + below(2 * (e.count - prompt) + 2),
                                  .bias_count = below(BIASES + 1),
                                  .ban_count = below(BANS + 1)};
    int different = 1 + below(below(2) ? VOCAB : 20); /* few tokens come often */
    for (int i = 0; i < e.count; i++) e.tokens[i] = below(different);
    for (int i = 0; i < e.rules.bias_count; i++) e.biases[i] = (pen_logit_bias){i * 70 % VOCAB, within(-100, 100)};
    for (int i = 0; i < e.rules.ban_count; i++) e.bans[i] = below(2) ? below(VOCAB) : 70; /* one that has a bias */
    return e;
}

/* The logit of a token with the first `known` tokens said. */
static double plain(const example *e, int known, int32_t token, double logit) {
    const pen_history_rules *rules = &e->rules;
    int seen = 0, outputs = 0;
    for (int i = 0; i < known; i++) {
        seen += e->tokens[i] == token;
        outputs += i >= rules->prompt_count && e->tokens[i] == token;
    }
    for (int i = 0; i < rules->bias_count; i++)
        if (e->biases[i].token == token) logit += (double)e->biases[i].value;
    for (int i = 0; i < rules->ban_count; i++)
        if (e->bans[i] == token && known < rules->ban_end) return -INFINITY;
    if (seen > 0) logit = logit > 0 ? logit / (double)rules->repetition : logit * (double)rules->repetition;
    return logit - rules->frequency * outputs - (outputs > 0 ? (double)rules->presence : 0);
}

static void apply(const pen_logit_edits *edits, float *logits) {
    for (int i = 0; i < edits->count; i++) {
        const pen_logit_edit *by = &edits->list[i];
        float x = logits[by->token] + by->add;
        logits[by->token] = (x > 0 ? x / by->scale : x * by->scale) - by->less;
    }
}

static void check(const example *e, pen_history *history, int known) {
    float logits[VOCAB], given[VOCAB];
    for (int t = 0; t < VOCAB; t++) given[t] = logits[t] = within(-15, 15);
    pen_logit_edits edits = pen_history_edits(history, known);
    bool twice[VOCAB] = {false};
    for (int i = 0; i < edits.count; i++) {
        assert_in_range(edits.list[i].token, 0, VOCAB - 1);
        assert_false(twice[edits.list[i].token]);
        twice[edits.list[i].token] = true;
    }
    apply(&edits, logits);
    for (int32_t t = 0; t < VOCAB; t++) {
        double expected = plain(e, known, t, (double)given[t]);
        if (isinf(expected))
            assert_true(isinf(logits[t]) && logits[t] < 0);
        else
            assert_true(fabs((double)logits[t] - expected) <= 1e-5 * (1 + fabs(expected)));
    }
}

static void test_edits_are_the_penalties(void **state) {
    (void)state;
    pen_history *history; /* of one sequence after the other */
    assert_int_equal(pen_history_create(&history), PEN_OK);
    srand(5);
    int banned = 0, lifted = 0;
    for (int round = 0; round < 150; round++) {
        example e = make_example();
        assert_int_equal(pen_history_begin(history, &e.rules, e.biases, e.bans), PEN_OK);
        int known = e.rules.prompt_count;
        assert_int_equal(pen_history_append(history, e.tokens, known), PEN_OK);
        while (true) {
            assert_int_equal(pen_history_count(history), known);
            check(&e, history, known);
            if (e.rules.ban_count > 0) ++*(known < e.rules.ban_end ? &banned : &lifted);
            if (known == e.count) break;
            int next = 1 + below(e.count - known < 60 ? e.count - known : 60);
            assert_int_equal(pen_history_append(history, e.tokens + known, next), PEN_OK);
            known += next;
        }
    }
    assert_true(banned > 50 && lifted > 50);
    pen_history_destroy(history);
}

/* Bit for bit: edits do not depend on the calls that brought the tokens. */
static void test_edits_do_not_depend_on_the_cuts(void **state) {
    (void)state;
    pen_history *whole, *parts;
    assert_int_equal(pen_history_create(&whole), PEN_OK);
    assert_int_equal(pen_history_create(&parts), PEN_OK);
    srand(6);
    for (int round = 0; round < 100; round++) {
        example e = make_example();
        assert_int_equal(pen_history_begin(whole, &e.rules, e.biases, e.bans), PEN_OK);
        assert_int_equal(pen_history_begin(parts, &e.rules, e.biases, e.bans), PEN_OK);
        assert_int_equal(pen_history_append(whole, e.tokens, e.count), PEN_OK);
        for (int known = 0, next; known < e.count; known += next) {
            next = 1 + below(e.count - known);
            assert_int_equal(pen_history_append(parts, e.tokens + known, next), PEN_OK);
            if (below(2)) pen_history_edits(parts, known + next);
        }
        pen_logit_edits a = pen_history_edits(whole, e.count), b = pen_history_edits(parts, e.count);
        assert_int_equal(a.count, b.count);
        if (a.count) assert_memory_equal(a.list, b.list, (size_t)a.count * sizeof *a.list);
    }
    pen_history_destroy(whole);
    pen_history_destroy(parts);
}

static void test_neutral_rules_want_no_tokens(void **state) {
    (void)state;
    assert_false(pen_history_wants_tokens(&(pen_history_rules){.repetition = 1, .bias_count = 3, .ban_count = 2}));
    assert_true(pen_history_wants_tokens(&(pen_history_rules){.repetition = 1.1f}));
    assert_true(pen_history_wants_tokens(&(pen_history_rules){.repetition = 1, .presence = -1}));
    assert_true(pen_history_wants_tokens(&(pen_history_rules){.repetition = 1, .frequency = 0.1f}));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_edits_are_the_penalties),
        cmocka_unit_test(test_edits_do_not_depend_on_the_cuts),
        cmocka_unit_test(test_neutral_rules_want_no_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
