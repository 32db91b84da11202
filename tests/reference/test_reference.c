/*
 * SmolLM2 against the reference values (README.md beside this file): prompts and a teacher-forced text through stages,
 * exact and fast, and the fast values bit for bit however the model is split. The model is the file that
 * PENSTOCK_TEST_MODEL names; without it everything here is skipped.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline.h"

enum { CONTEXT = 1088, KV_BLOCKS = CONTEXT / PEN_KV_BLOCK, CHUNK = 256, TOP = 10 };

static json_t *reference;
static int32_t table[KV_BLOCKS];

typedef struct tolerance {
    double logprob;  /* of every log-probability */
    double mean_nll; /* relative */
    double margin;   /* greedy ids are equal up to the first step below it */
} tolerance;

/* A mode is what the device's options say of precision. */
static const pen_cpu_options exact = {.activations = PEN_ACTIVATIONS_F32}, fast = {.activations = PEN_ACTIVATIONS_FAST},
                             fast_q8_0 = {.activations = PEN_ACTIVATIONS_FAST, .kv_q8_0 = true};

static tolerance tolerance_of(const pen_cpu_options *mode) {
    return mode == &exact ? (tolerance){0.02, 0.001, 0.02} : (tolerance){0.5, 0.014, 0.25};
}

static int integer(json_t *list, size_t i) {
    return (int)json_integer_value(json_array_get(list, i));
}

static double number(json_t *list, size_t i) {
    return json_number_value(json_array_get(list, i));
}

static void open_model(pipeline *p, const pen_cpu_options *mode, int stages, int threads) {
    pipeline_options o = {.model = getenv("PENSTOCK_TEST_MODEL"),
                          .stages = stages,
                          .first = {0, 9, 20},
                          .cpu = *mode,
                          .stage = {.rows = CHUNK,
                                    .logit_rows = CHUNK,
                                    .context = CONTEXT,
                                    .kv = {.count = 1, .blocks = {KV_BLOCKS}},
                                    .slots = 1}};
    o.cpu.threads = threads;
    open_pipeline(p, &o);
}

/* Runs `count` tokens from `position` on. `targets`: their positions' scores are wanted, else the last one's best. */
static const pen_choice *run_tokens(pipeline *p, const int32_t *tokens, int position, int count,
                                    const int32_t *targets) {
    static pen_pick picks[CHUNK];
    static int32_t logit_rows[CHUNK];
    int wanted = targets ? count : 1;
    for (int i = 0; i < wanted; i++) {
        logit_rows[i] = count - wanted + i;
        picks[i] = (pen_pick){.top_p = 1, .target = targets ? targets[i] : -1, .top_logprobs = TOP};
    }
    const pen_run run = {.rows = count, .position = position, .tables = {table, table}};
    const pen_batch batch = {
        .rows = count, .run_count = 1, .runs = &run, .tokens = tokens, .logit_count = wanted, .logit_rows = logit_rows};
    return run_pipeline(p, 0, &batch, picks);
}

/* Log-probabilities of tokens 2 … of the text. */
static void score_text(pipeline *p, int chunk, float *logprobs, int *count) {
    json_t *ids = json_object_get(reference, "token_ids");
    int total = (int)json_array_size(ids);
    static int32_t tokens[CONTEXT];
    for (int i = 0; i < total; i++) tokens[i] = integer(ids, (size_t)i);
    *count = total - 1;
    for (int at = 0; at < *count; at += chunk) {
        int rows = at + chunk <= *count ? chunk : *count - at;
        const pen_choice *choices = run_tokens(p, tokens + at, at, rows, tokens + at + 1);
        for (int i = 0; i < rows; i++) logprobs[at + i] = choices[i].logprob;
    }
}

static void check_text(const pen_cpu_options *mode) {
    static float logprobs[CONTEXT];
    tolerance t = tolerance_of(mode);
    json_t *expected = json_object_get(reference, "token_logprobs");
    pipeline p;
    int count;
    open_model(&p, mode, 1, 2);
    score_text(&p, CHUNK, logprobs, &count);
    close_pipeline(&p);
    assert_int_equal(count, json_array_size(expected));
    double worst = 0, sum = 0, errors = 0;
    for (int i = 0; i < count; i++) {
        double error = fabs((double)logprobs[i] - number(expected, (size_t)i));
        errors += error;
        sum -= (double)logprobs[i];
        if (!(error <= worst)) worst = error; /* also where it is no number */
    }
    double mean = json_number_value(json_object_get(reference, "mean_nll")), off = fabs(sum / count / mean - 1);
    print_message("          %d tokens: mean difference %.5f, largest %.4f, mean_nll %.5f (%.3f %% off)\n", count,
                  errors / count, worst, sum / count, 100 * off);
    assert_true(worst <= t.logprob);
    assert_true(off <= t.mean_nll);
}

static void check_prompt(pipeline *p, json_t *prompt, const tolerance *t) {
    json_t *ids = json_object_get(prompt, "ids"), *greedy = json_object_get(prompt, "greedy_ids");
    json_t *top_ids = json_object_get(prompt, "top_ids"), *top = json_object_get(prompt, "top_logprobs");
    int32_t tokens[64];
    int count = (int)json_array_size(ids);
    for (int i = 0; i < count; i++) tokens[i] = integer(ids, (size_t)i);
    const pen_choice *choice = run_tokens(p, tokens, 0, count, NULL);
    for (size_t i = 0; i < TOP; i++) {
        /* Two ids may change places; the value of each rank may not. */
        assert_true(fabs((double)choice->top_logprobs[i] - number(top, i)) <= t->logprob);
        if (t->logprob < 0.1 && (i + 1 == TOP || number(top, i) - number(top, i + 1) > 2 * t->logprob) &&
            (i == 0 || number(top, i - 1) - number(top, i) > 2 * t->logprob))
            assert_int_equal(choice->top_ids[i], integer(top_ids, i));
    }
    for (size_t i = 0; i < json_array_size(greedy); i++) {
        if (number(json_object_get(prompt, "greedy_margins"), i) < t->margin) break;
        assert_int_equal(choice->token, integer(greedy, i));
        choice = run_tokens(p, &choice->token, count++, 1, NULL);
    }
}

static void check_prompts(const pen_cpu_options *mode) {
    tolerance t = tolerance_of(mode);
    size_t i;
    json_t *prompt;
    pipeline p;
    open_model(&p, mode, 1, 2);
    json_array_foreach(json_object_get(reference, "prompts"), i, prompt) check_prompt(&p, prompt, &t);
    close_pipeline(&p);
}

static void test_prompts_f32(void **state) {
    (void)state;
    if (!reference) skip();
    check_prompts(&exact);
}

static void test_prompts_fast(void **state) {
    (void)state;
    if (!reference) skip();
    check_prompts(&fast);
}

static void test_text_f32(void **state) {
    (void)state;
    if (!reference) skip();
    check_text(&exact);
}

static void test_text_fast(void **state) {
    (void)state;
    if (!reference) skip();
    check_text(&fast);
}

static void test_text_with_kv_in_q8_0(void **state) {
    (void)state;
    if (!reference) skip();
    check_text(&fast_q8_0);
}

static void test_split_changes_no_bit(void **state) {
    (void)state;
    if (!reference) skip();
    static float whole[CONTEXT], split[CONTEXT];
    int count;
    pipeline p;
    open_model(&p, &fast, 1, 2);
    score_text(&p, CHUNK, whole, &count);
    close_pipeline(&p);
    open_model(&p, &fast, 3, 1);
    score_text(&p, 77, split, &count);
    close_pipeline(&p);
    assert_memory_equal(whole, split, (size_t)count * sizeof *whole);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prompts_f32),          cmocka_unit_test(test_text_f32),
        cmocka_unit_test(test_prompts_fast),         cmocka_unit_test(test_text_fast),
        cmocka_unit_test(test_text_with_kv_in_q8_0), cmocka_unit_test(test_split_changes_no_bit),
    };
    for (int i = 0; i < KV_BLOCKS; i++) table[i] = KV_BLOCKS - 1 - i;
    if (getenv("PENSTOCK_TEST_MODEL"))
        reference = json_load_file(PEN_REFERENCE_FOLDER "/smollm2-135m-instruct-q4_1.json", 0, NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(reference);
    return failed;
}
