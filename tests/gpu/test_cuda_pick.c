/*
 * Picking on the CUDA device: the choices of the CPU's oracle, alone or among others, with edits in one upload or many,
 * in any order of a block's threads.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cuda_tests.h"

enum { ROWS = 24, VOCAB_MAX = 3001 };

static const pen_limits limits = {ROWS, ROWS, 32, 32, 1, 1, 32, VOCAB_MAX, 64};

/* Picks from logits[rows][vocab] on a device, with edits[rows] or NULL. */
static void pick_rows(pen_device *device, const float *logits, int rows, int vocab, const pen_pick *picks,
                      const pen_logit_edits *edits, pen_choice *choices) {
    pen_buffer *in = buffer_of(device, logits, (size_t)rows * (size_t)vocab * sizeof *logits);
    pen_buffer *out = empty_buffer(device, (size_t)rows * sizeof *choices);
    int32_t logit_rows[ROWS];
    for (int i = 0; i < rows; i++) logit_rows[i] = i;
    static const int32_t table[4];
    pen_run run = {.rows = rows, .tables = {table}};
    pen_batch batch = {
        .rows = rows, .run_count = 1, .runs = &run, .logit_count = rows, .logit_rows = logit_rows, .edits = edits};
    pen_device_set_batch(device, &batch);
    pen_op_pick(device, in, vocab, picks, out);
    read_back(out, choices, (size_t)rows * sizeof *choices);
    pen_buffer_destroy(in);
    pen_buffer_destroy(out);
}

static float *random_logits(int rows, int vocab) {
    float *logits = random_floats((size_t)rows * (size_t)vocab);
    for (int i = 0; i < rows * vocab; i++) logits[i] = i % 5 == 0 && i > 0 ? logits[i - 1] : 7 * logits[i]; /* ties */
    return logits;
}

static void vary(pen_pick picks[ROWS], int vocab) {
    for (int i = 0; i < ROWS; i++)
        picks[i] = (pen_pick){.temperature = (float)(i % 4) * 0.4F,
                              .top_p = i % 3 ? 0.3F * (float)(i % 5) + 0.01F : 1,
                              .min_p = i % 7 ? 0 : 0.2F,
                              .top_k = i % 2 ? 0 : 10 * i + 1,
                              .seed = 99,
                              .choice = i % 3,
                              .position = i,
                              .target = i % 6 == 5 ? i * 31 % vocab : -1,
                              .top_logprobs = i % (PEN_TOP_LOGPROBS + 1)};
}

static void assert_agree(const pen_choice *got, const pen_choice *expected) {
    assert_int_equal(got->bad_logits, expected->bad_logits);
    if (expected->bad_logits) return;
    assert_int_equal(got->token, expected->token);
    assert_int_equal(got->argmax, expected->argmax);
    assert_near((double)got->logprob, (double)expected->logprob, 3e-6, "log-probability");
    assert_memory_equal(got->top_ids, expected->top_ids, sizeof got->top_ids);
    for (int t = 0; t < PEN_TOP_LOGPROBS; t++)
        assert_near((double)got->top_logprobs[t], (double)expected->top_logprobs[t], 3e-6, "a best log-probability");
}

static void test_choices_agree_with_the_oracle(void **state) {
    (void)state;
    static const int vocabs[] = {33, 1024, VOCAB_MAX};
    random_state = 3;
    for (int v = 0; v < 3; v++) {
        float *logits = random_logits(ROWS, vocabs[v]);
        pen_pick picks[ROWS];
        pen_choice expected[ROWS], got[ROWS], alone;
        vary(picks, vocabs[v]);
        pen_device *oracle = open_oracle(PEN_ACTIVATIONS_FAST, &limits),
                   *device = open_cuda(PEN_ACTIVATIONS_FAST, &limits);
        pick_rows(oracle, logits, ROWS, vocabs[v], picks, NULL, expected);
        pick_rows(device, logits, ROWS, vocabs[v], picks, NULL, got);
        shuffle_threads(2);
        for (int i = 0; i < ROWS; i++) {
            assert_agree(&got[i], &expected[i]);
            pick_rows(device, logits + i * vocabs[v], 1, vocabs[v], &picks[i], NULL, &alone);
            assert_memory_equal(&alone, &got[i], sizeof alone);
        }
        shuffle_threads(0);
        pen_device_destroy(oracle);
        pen_device_destroy(device);
        free(logits);
    }
}

/* Edits of most of the rows, as many as there are tokens in some of them: more than one upload holds. */
static void test_edited_choices_agree_with_the_oracle(void **state) {
    (void)state;
    random_state = 4;
    enum { VOCAB = VOCAB_MAX };
    float *logits = random_logits(ROWS, VOCAB);
    pen_logit_edit *list = allocate((size_t)(ROWS * VOCAB) * sizeof *list);
    pen_logit_edits edits[ROWS];
    int all = 0, changed = 0;
    for (int row = 0; row < ROWS; row++) {
        int count = row % 5 == 0 ? 0 : row % 3 == 0 ? VOCAB : 1 + row * 37 % 200;
        edits[row] = (pen_logit_edits){list + row * VOCAB, count};
        all += count;
        for (int i = 0; i < count; i++)
            list[row * VOCAB + i] = (pen_logit_edit){.token = i * (VOCAB / count),
                                                     .add = i % 9 == 4   ? -INFINITY
                                                            : i % 4 == 1 ? (float)(i % 13) - 6
                                                                         : 0,
                                                     .scale = i % 3 ? 1.3F : 0.7F,
                                                     .less = (float)(i % 7) * 0.5F - 1};
    }
    assert_true(all > 16384); /* PEN_CUDA_EDITS */
    pen_pick picks[ROWS];
    pen_choice expected[ROWS], got[ROWS], plain[ROWS];
    vary(picks, VOCAB);
    pen_device *oracle = open_oracle(PEN_ACTIVATIONS_FAST, &limits), *device = open_cuda(PEN_ACTIVATIONS_FAST, &limits);
    pick_rows(oracle, logits, ROWS, VOCAB, picks, edits, expected);
    pick_rows(device, logits, ROWS, VOCAB, picks, edits, got);
    pick_rows(device, logits, ROWS, VOCAB, picks, NULL, plain);
    for (int i = 0; i < ROWS; i++) {
        assert_agree(&got[i], &expected[i]);
        changed += got[i].token != plain[i].token;
    }
    assert_true(changed > ROWS / 4);
    pen_device_destroy(oracle);
    pen_device_destroy(device);
    free(list);
    free(logits);
}

static pen_choice pick_one(const float *logits, int vocab, pen_pick pick, const pen_logit_edits *edits) {
    pen_choice choice;
    pen_device *device = open_cuda(PEN_ACTIVATIONS_FAST, &limits);
    pick_rows(device, logits, 1, vocab, &pick, edits, &choice);
    pen_device_destroy(device);
    return choice;
}

static void test_what_is_not_finite(void **state) {
    (void)state;
    const pen_pick greedy = {.top_p = 1, .target = -1, .top_logprobs = 4};
    float logits[1500] = {0};
    logits[1234] = NAN;
    assert_int_equal(pick_one(logits, 1500, greedy, NULL).bad_logits, 1);
    logits[1234] = INFINITY;
    assert_int_equal(pick_one(logits, 1500, greedy, NULL).bad_logits, 1);
    for (int i = 0; i < 1500; i++) logits[i] = -INFINITY;
    assert_int_equal(pick_one(logits, 1500, greedy, NULL).bad_logits, 1);
    logits[1234] = logits[1100] = logits[1030] = 2;
    logits[5] = -0.0F;
    pen_choice choice = pick_one(logits, 1500, greedy, NULL);
    assert_int_equal(choice.bad_logits, 0);
    assert_int_equal(choice.token, 1030);
    assert_int_equal(choice.top_ids[2], 1234);
    assert_int_equal(choice.top_ids[3], 5);
    assert_near((double)choice.logprob, -log(3 + exp(-2)), 1e-6, "log-probability");
    /* Edits may reach infinity. */
    for (int i = 0; i < 100; i++) logits[i] = (float)i;
    pen_logit_edit list[] = {{.token = 40, .scale = 1e-38F}, {.token = 99, .add = -INFINITY, .scale = 2}};
    pen_logit_edits edits = {list, 2};
    for (int i = 0; i < 2; i++) {
        choice = pick_one(logits, 100, (pen_pick){.temperature = (float)i, .top_p = 1, .target = -1}, &edits);
        assert_int_equal(choice.token, 40);
        assert_int_equal(choice.argmax, 99);
    }
}

/* Which tokens are drawn at all over many positions, as a bit mask. */
static int drawn(const float *logits, int vocab, pen_pick pick) {
    enum { BATCHES = 20 };
    float rows[ROWS * 8];
    pen_pick picks[ROWS];
    pen_choice choices[ROWS];
    int mask = 0;
    pen_device *device = open_cuda(PEN_ACTIVATIONS_FAST, &limits);
    for (int b = 0; b < BATCHES; b++) {
        for (int i = 0; i < ROWS; i++) {
            memcpy(rows + i * vocab, logits, (size_t)vocab * sizeof *rows);
            picks[i] = pick;
            picks[i].temperature = 1;
            picks[i].target = -1;
            picks[i].position = b * ROWS + i;
        }
        pick_rows(device, rows, ROWS, vocab, picks, NULL, choices);
        for (int i = 0; i < ROWS; i++) mask |= 1 << choices[i].token;
    }
    pen_device_destroy(device);
    return mask;
}

static void test_cuts_keep_exactly_what_they_say(void **state) {
    (void)state;
    float logits[6]; /* probabilities 4, 2, 8, 1, 16, 1 of 32 */
    const int weight[] = {4, 2, 8, 1, 16, 1};
    for (int i = 0; i < 6; i++) logits[i] = logf((float)weight[i]);
    assert_int_equal(drawn(logits, 6, (pen_pick){.top_p = 1}), 0x3f);
    assert_int_equal(drawn(logits, 6, (pen_pick){.top_p = 1, .top_k = 3}), 0x15);
    assert_int_equal(drawn(logits, 6, (pen_pick){.top_p = 1, .top_k = 5}), 0x1f); /* of equals the lower id */
    assert_int_equal(drawn(logits, 6, (pen_pick){.top_p = 0.49F}), 0x10);
    assert_int_equal(drawn(logits, 6, (pen_pick){.top_p = 0.51F}), 0x14); /* until the sum reaches it */
    assert_int_equal(drawn(logits, 6, (pen_pick){.top_p = 0}), 0x10);
    assert_int_equal(drawn(logits, 6, (pen_pick){.top_p = 0.85F, .top_k = 3}), 0x14); /* of what top-k left */
    assert_int_equal(drawn(logits, 6, (pen_pick){.top_p = 1, .min_p = 0.24F}), 0x15);
    assert_int_equal(drawn(logits, 6, (pen_pick){.top_p = 1, .min_p = 1}), 0x10);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choices_agree_with_the_oracle),
        cmocka_unit_test(test_edited_choices_agree_with_the_oracle),
        cmocka_unit_test(test_what_is_not_finite),
        cmocka_unit_test(test_cuts_keep_exactly_what_they_say),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
