/* Picking tokens: against the reference and bit for bit against itself; exact cases of the cuts; fair draws. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Picks from `rows` rows of logits, with edits (or NULL), on a device of its own. */
static void pick_edited(pen_cpu_isa isa, int threads, const float *logits, int rows, int vocab, const pen_pick *picks,
                        const pen_logit_edits *edits, pen_choice *choices) {
    pen_device *device;
    pen_buffer *in, *out;
    pen_cpu_options options = {.isa = isa, .threads = threads};
    assert_int_equal(pen_cpu_device_create(&options, &device), PEN_OK);
    pen_limits limits = {.rows = rows,
                         .logit_rows = rows,
                         .hidden = 64,
                         .ffn = 64,
                         .heads = 1,
                         .kv_heads = 1,
                         .head_size = 64,
                         .vocab = vocab,
                         .context = rows};
    assert_int_equal(pen_device_reserve(device, &limits), PEN_OK);
    size_t bytes = (size_t)rows * (size_t)vocab * sizeof *logits;
    assert_int_equal(pen_buffer_create(device, bytes, &in), PEN_OK);
    assert_int_equal(pen_buffer_create(device, (size_t)rows * sizeof *choices, &out), PEN_OK);
    pen_buffer_write(in, 0, logits, bytes);
    int32_t *logit_rows = malloc((size_t)rows * sizeof *logit_rows);
    for (int i = 0; i < rows; i++) logit_rows[i] = i;
    pen_run run = {.rows = rows};
    pen_batch batch = {
        .rows = rows, .run_count = 1, .runs = &run, .logit_count = rows, .logit_rows = logit_rows, .edits = edits};
    pen_device_set_batch(device, &batch);
    pen_op_pick(device, in, vocab, picks, out);
    pen_buffer_read(out, 0, choices, (size_t)rows * sizeof *choices);
    free(logit_rows);
    pen_buffer_destroy(out);
    pen_buffer_destroy(in);
    pen_device_destroy(device);
}

static void pick_rows(pen_cpu_isa isa, int threads, const float *logits, int rows, int vocab, const pen_pick *picks,
                      pen_choice *choices) {
    pick_edited(isa, threads, logits, rows, vocab, picks, NULL, choices);
}

static pen_choice pick_one(const float *logits, int vocab, pen_pick pick) {
    pen_choice choice;
    pick_rows(PEN_CPU_AUTO, 1, logits, 1, vocab, &pick, &choice);
    return choice;
}

static const pen_pick greedy = {.top_p = 1, .target = -1};

static float *random_logits(int rows, int vocab) {
    float *logits = malloc((size_t)rows * (size_t)vocab * sizeof *logits);
    uint64_t state = 3;
    for (int i = 0; i < rows * vocab; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        logits[i] = (float)(state >> 40) * 0x1p-24F * 14 - 7;
        if (i % 5 == 0 && i > 0) logits[i] = logits[i - 1]; /* ties */
    }
    return logits;
}

enum { ROWS = 24 };

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

static void test_choices_agree_with_the_reference(void **state) {
    (void)state;
    static const int vocabs[] = {33, 1024, 3001};
    for (int v = 0; v < 3; v++) {
        float *logits = random_logits(ROWS, vocabs[v]);
        pen_pick picks[ROWS];
        pen_choice expected[ROWS], got[ROWS];
        vary(picks, vocabs[v]);
        pick_rows(PEN_CPU_REFERENCE, 1, logits, ROWS, vocabs[v], picks, expected);
        pick_rows(PEN_CPU_AUTO, 2, logits, ROWS, vocabs[v], picks, got);
        for (int i = 0; i < ROWS; i++) {
            assert_int_equal(got[i].token, expected[i].token);
            assert_int_equal(got[i].argmax, expected[i].argmax);
            assert_int_equal(got[i].bad_logits, 0);
            assert_true(fabsf(got[i].logprob - expected[i].logprob) < 2e-6F);
            assert_memory_equal(got[i].top_ids, expected[i].top_ids, sizeof got[i].top_ids);
            for (int t = 0; t < PEN_TOP_LOGPROBS; t++)
                assert_true(fabsf(got[i].top_logprobs[t] - expected[i].top_logprobs[t]) < 2e-6F);
        }
        free(logits);
    }
}

static void test_choices_are_equal_on_every_device_and_alone(void **state) {
    (void)state;
    enum { VOCAB = 5003 };
    float *logits = random_logits(ROWS, VOCAB);
    pen_pick picks[ROWS];
    pen_choice expected[ROWS], got[ROWS];
    vary(picks, VOCAB);
    pick_rows(PEN_CPU_AUTO, 1, logits, ROWS, VOCAB, picks, expected);
    for (pen_cpu_isa isa = PEN_CPU_PORTABLE; isa <= PEN_CPU_AVX512; isa++) {
        static const char *const names[] = {"", "", "portable", "avx2", "avxvnni", "avx512"};
        if (!strstr(pen_cpu_isa_names(), names[isa])) continue;
        for (int threads = 1; threads <= 3; threads++) {
            pick_rows(isa, threads, logits, ROWS, VOCAB, picks, got);
            assert_memory_equal(got, expected, sizeof got);
        }
    }
    for (int i = 0; i < ROWS; i++) {
        pick_rows(PEN_CPU_AUTO, 1, logits + i * VOCAB, 1, VOCAB, &picks[i], got);
        assert_memory_equal(got, &expected[i], sizeof got[0]);
    }
    free(logits);
}

/* Random edits of each row; some rows have none. list[ROWS][EDITS_MOST] */
enum { EDITS_MOST = 200 };
static void make_edits(int vocab, pen_logit_edit *list, pen_logit_edits edits[ROWS]) {
    for (int row = 0; row < ROWS; row++, list += EDITS_MOST) {
        int count = row % 5 ? 1 + row * 37 % EDITS_MOST : 0, stride = vocab / EDITS_MOST > 1 ? vocab / EDITS_MOST : 1;
        if (count > vocab) count = vocab;
        for (int i = 0; i < count; i++)
            list[i] = (pen_logit_edit){.token = i * stride,
                                       .add = i % 9 == 4   ? -INFINITY
                                              : i % 4 == 1 ? (float)(i % 13) - 6
                                                           : 0,
                                       .scale = i % 3 ? 1.3F : 0.7F,
                                       .less = (float)(i % 7) * 0.5F - 1};
        edits[row] = (pen_logit_edits){list, count};
    }
}

static void test_edited_choices_are_choices_from_edited_logits(void **state) {
    (void)state;
    static const int vocabs[] = {33, 1024, 3001};
    for (int v = 0; v < 3; v++) {
        int vocab = vocabs[v], changed = 0;
        float *logits = random_logits(ROWS, vocab), *edited = random_logits(ROWS, vocab);
        pen_logit_edit *list = malloc((size_t)(ROWS * EDITS_MOST) * sizeof *list);
        pen_logit_edits edits[ROWS];
        pen_pick picks[ROWS];
        pen_choice expected[ROWS], plain[ROWS], got[ROWS], reference[ROWS];
        make_edits(vocab, list, edits);
        for (int row = 0; row < ROWS; row++)
            for (int i = 0; i < edits[row].count; i++) {
                const pen_logit_edit *by = &edits[row].list[i];
                float *x = &edited[row * vocab + by->token];
                *x += by->add;
                *x = (*x > 0 ? *x / by->scale : *x * by->scale) - by->less;
            }
        vary(picks, vocab);
        pick_rows(PEN_CPU_AUTO, 1, edited, ROWS, vocab, picks, expected);
        pick_rows(PEN_CPU_AUTO, 1, logits, ROWS, vocab, picks, plain);
        pick_edited(PEN_CPU_AUTO, 2, logits, ROWS, vocab, picks, edits, got);
        pick_edited(PEN_CPU_REFERENCE, 1, logits, ROWS, vocab, picks, edits, reference);
        for (int i = 0; i < ROWS; i++) {
            assert_int_equal(got[i].token, expected[i].token);
            assert_int_equal(got[i].token, reference[i].token);
            changed += got[i].token != plain[i].token;
            /* Everything else is the model's own. */
            assert_int_equal(got[i].argmax, plain[i].argmax);
            assert_memory_equal(got[i].top_ids, plain[i].top_ids, sizeof got[i].top_ids);
            assert_memory_equal(got[i].top_logprobs, plain[i].top_logprobs, sizeof got[i].top_logprobs);
            assert_true(fabsf(got[i].logprob - reference[i].logprob) < 2e-6F);
            if (got[i].token == plain[i].token) assert_true(got[i].logprob == plain[i].logprob);
        }
        assert_true(changed > ROWS / 4);
        /* Whatever the device, and alone. */
        for (pen_cpu_isa isa = PEN_CPU_PORTABLE; isa <= PEN_CPU_AVX512; isa++) {
            static const char *const names[] = {"", "", "portable", "avx2", "avxvnni", "avx512"};
            if (!strstr(pen_cpu_isa_names(), names[isa])) continue;
            pick_edited(isa, 3, logits, ROWS, vocab, picks, edits, reference);
            assert_memory_equal(reference, got, sizeof got);
        }
        for (int i = 0; i < ROWS; i++) {
            pick_edited(PEN_CPU_AUTO, 1, logits + i * vocab, 1, vocab, &picks[i], &edits[i], expected);
            assert_memory_equal(expected, &got[i], sizeof got[i]);
        }
        free(list);
        free(edited);
        free(logits);
    }
}

static void test_edits_that_reach_infinity(void **state) {
    (void)state;
    float logits[100];
    for (int i = 0; i < 100; i++) logits[i] = (float)i;
    pen_logit_edit list[] = {{.token = 40, .scale = 1e-38F}, {.token = 99, .add = -INFINITY, .scale = 2}};
    pen_logit_edits edits = {list, 2};
    for (int i = 0; i < 2; i++) {
        pen_choice choice;
        pen_pick pick = {.temperature = (float)i, .top_p = 1, .target = -1};
        pick_edited(PEN_CPU_AUTO, 1, logits, 1, 100, &pick, &edits, &choice);
        assert_int_equal(choice.token, 40);
        assert_int_equal(choice.argmax, 99);
        assert_int_equal(choice.bad_logits, 0);
    }
}

static void test_greedy_takes_the_lowest_of_equals(void **state) {
    (void)state;
    float logits[2000];
    for (int i = 0; i < 2000; i++) logits[i] = -INFINITY;
    logits[1999] = logits[1100] = logits[1030] = 2;
    logits[5] = -0.0F;
    pen_pick pick = greedy;
    pick.top_logprobs = 4;
    pen_choice choice = pick_one(logits, 2000, pick);
    assert_int_equal(choice.token, 1030);
    assert_int_equal(choice.top_ids[1], 1100);
    assert_int_equal(choice.top_ids[2], 1999);
    assert_int_equal(choice.top_ids[3], 5);
    assert_true(fabs((double)choice.logprob + log(3 + exp(-2))) < 1e-6);
}

static void test_bad_logits_are_told(void **state) {
    (void)state;
    float logits[1500] = {0};
    logits[1234] = NAN;
    assert_int_equal(pick_one(logits, 1500, greedy).bad_logits, 1);
    logits[1234] = INFINITY;
    assert_int_equal(pick_one(logits, 1500, greedy).bad_logits, 1);
    logits[1234] = -INFINITY;
    assert_int_equal(pick_one(logits, 1500, greedy).bad_logits, 0);
    for (int i = 0; i < 1500; i++) logits[i] = -INFINITY;
    assert_int_equal(pick_one(logits, 1500, greedy).bad_logits, 1);
}

static void test_log_probabilities_of_large_logits(void **state) {
    (void)state;
    float logits[40];
    for (int i = 0; i < 40; i++) logits[i] = 30000;
    pen_pick pick = greedy;
    pick.target = 39;
    pen_choice choice = pick_one(logits, 40, pick);
    assert_int_equal(choice.token, 39);
    assert_true(fabs((double)choice.logprob + log(40)) < 1e-6);
}

/* How often each of `vocab` tokens is drawn, over positions. */
enum { DRAWS = 4000 };
static void draw_many(const float *logits, int vocab, pen_pick pick, int counts[]) {
    float *rows = malloc(DRAWS * (size_t)vocab * sizeof *rows);
    pen_pick *picks = malloc(DRAWS * sizeof *picks);
    pen_choice *choices = malloc(DRAWS * sizeof *choices);
    for (int i = 0; i < DRAWS; i++) {
        memcpy(rows + i * vocab, logits, (size_t)vocab * sizeof *logits);
        picks[i] = pick;
        picks[i].position = i;
    }
    pick_rows(PEN_CPU_AUTO, 2, rows, DRAWS, vocab, picks, choices);
    memset(counts, 0, (size_t)vocab * sizeof *counts);
    for (int i = 0; i < DRAWS; i++) counts[choices[i].token]++;
    free(choices);
    free(picks);
    free(rows);
}

static void test_draws_follow_the_probabilities(void **state) {
    (void)state;
    const double p[] = {0.4, 0.25, 0.2, 0.1, 0.05};
    float logits[5];
    for (int i = 0; i < 5; i++) logits[i] = (float)log(p[i]);
    int counts[5];
    for (int seed = 0; seed < 3; seed++) {
        double chi = 0;
        draw_many(logits, 5, (pen_pick){.temperature = 1, .top_p = 1, .seed = (uint64_t)seed, .target = -1}, counts);
        for (int i = 0; i < 5; i++) chi += (counts[i] - DRAWS * p[i]) * (counts[i] - DRAWS * p[i]) / (DRAWS * p[i]);
        assert_true(chi < 18.5); /* p = 0.001 with 4 degrees of freedom */
    }
    /* Temperature 2 takes the square root of each probability. */
    double roots = 0, chi = 0;
    for (int i = 0; i < 5; i++) roots += sqrt(p[i]);
    draw_many(logits, 5, (pen_pick){.temperature = 2, .top_p = 1, .seed = 8, .target = -1}, counts);
    for (int i = 0; i < 5; i++) {
        double expected = DRAWS * sqrt(p[i]) / roots;
        chi += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    assert_true(chi < 18.5);
}

/* Which tokens are drawn at all, as a bit mask. */
static int drawn(const float *logits, int vocab, pen_pick pick) {
    int counts[8], mask = 0;
    pick.temperature = 1;
    pick.target = -1;
    draw_many(logits, vocab, pick, counts);
    for (int i = 0; i < vocab; i++) mask |= (counts[i] > 0) << i;
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
    assert_int_equal(drawn(logits, 6, (pen_pick){.top_p = 0.76F}), 0x15);
    assert_int_equal(drawn(logits, 6, (pen_pick){.top_p = 0}), 0x10);
    /* top-p is of what top-k left: 16/28 = 0.571, 24/28 = 0.857 */
    assert_int_equal(drawn(logits, 6, (pen_pick){.top_p = 0.56F, .top_k = 3}), 0x10);
    assert_int_equal(drawn(logits, 6, (pen_pick){.top_p = 0.85F, .top_k = 3}), 0x14);
    assert_int_equal(drawn(logits, 6, (pen_pick){.top_p = 1, .min_p = 0.24F}), 0x15);
    assert_int_equal(drawn(logits, 6, (pen_pick){.top_p = 1, .min_p = 0.26F}), 0x14);
    assert_int_equal(drawn(logits, 6, (pen_pick){.top_p = 1, .min_p = 1}), 0x10);
}

static void test_a_draw_depends_on_seed_choice_and_position(void **state) {
    (void)state;
    float logits[1000] = {0};
    pen_pick pick = {.temperature = 1, .top_p = 1, .seed = 1, .position = 5, .target = -1}, other = pick;
    int first = pick_one(logits, 1000, pick).token;
    assert_int_equal(pick_one(logits, 1000, pick).token, first);
    other.seed = 2;
    assert_int_not_equal(pick_one(logits, 1000, other).token, first);
    other = pick;
    other.choice = 1;
    assert_int_not_equal(pick_one(logits, 1000, other).token, first);
    other = pick;
    other.position = 6;
    assert_int_not_equal(pick_one(logits, 1000, other).token, first);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choices_agree_with_the_reference),
        cmocka_unit_test(test_choices_are_equal_on_every_device_and_alone),
        cmocka_unit_test(test_edited_choices_are_choices_from_edited_logits),
        cmocka_unit_test(test_edits_that_reach_infinity),
        cmocka_unit_test(test_greedy_takes_the_lowest_of_equals),
        cmocka_unit_test(test_bad_logits_are_told),
        cmocka_unit_test(test_log_probabilities_of_large_logits),
        cmocka_unit_test(test_draws_follow_the_probabilities),
        cmocka_unit_test(test_cuts_keep_exactly_what_they_say),
        cmocka_unit_test(test_a_draw_depends_on_seed_choice_and_position),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
