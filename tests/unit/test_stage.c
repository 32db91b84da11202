/*
 * Stages: whatever way a model is split over stages, and a sequence over microbatches, neighbours and threads, the same
 * tokens come out with the same bits; instruction sets agree; memory is what was predicted.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline.h"

/* Widths and head counts that are no powers of two; blocks of two classes. */
#define SHAPE "synthetic:llama:layers=4,hidden=96,ffn=160*2/96*2,heads=6,kv_heads=2,vocab=331,context=128"

enum { VOCAB = 331, TOKENS = 75, SLOTS = 2, KV_BLOCKS = 24 };

/* ---- One sequence, fed in different ways --------------------------------------------------------------------------
 */

/* How a run is made: what must not matter. */
typedef struct setup {
    const char *model;
    int first[STAGES_MOST];
    int stages;
    int chunk; /* rows of a microbatch */
    int threads;
    pen_cpu_isa isa;
    pen_activations activations;
    bool neighbour; /* another sequence shares every microbatch */
    bool backwards; /* KV blocks are handed out from the last */
} setup;

/* What came out: per position the choice for the next token, alternately scored and drawn. */
typedef struct outcome {
    pen_choice choices[TOKENS];
} outcome;

static int32_t token_at(int position) {
    return (int32_t)((unsigned)position * 7919u % VOCAB);
}

static pen_pick pick_at(int position) {
    pen_pick pick = {.top_p = 1, .position = position + 1, .target = -1, .top_logprobs = 5};
    if (position % 3 == 1) pick.target = token_at(position + 1);
    if (position % 3 == 2)
        pick = (pen_pick){.temperature = 0.8f,
                          .top_p = 0.9f,
                          .top_k = 40,
                          .seed = 42,
                          .position = position + 1,
                          .target = -1,
                          .top_logprobs = 5};
    return pick;
}

static void open_setup(pipeline *p, const setup *s) {
    pipeline_options o = {.model = s->model,
                          .stages = s->stages,
                          .cpu = {.isa = s->isa, .activations = s->activations, .threads = s->threads},
                          .stage = {.rows = 2 * TOKENS,
                                    .logit_rows = TOKENS,
                                    .context = 128,
                                    .kv = {.count = 1, .blocks = {KV_BLOCKS}},
                                    .slots = SLOTS}};
    memcpy(o.first, s->first, sizeof o.first);
    open_pipeline(p, &o);
}

/* Feeds the sequence in chunks and keeps the choices of all positions. */
static void feed(const setup *s, outcome *out) {
    pipeline p;
    open_setup(&p, s);
    int32_t own[KV_BLOCKS / 2], other[KV_BLOCKS / 2];
    for (int i = 0; i < KV_BLOCKS / 2; i++) {
        own[i] = s->backwards ? KV_BLOCKS - 1 - 2 * i : 2 * i;
        other[i] = s->backwards ? KV_BLOCKS - 2 - 2 * i : 2 * i + 1;
    }
    for (int at = 0, step = 0; at < TOKENS; at += s->chunk, step++) {
        int count = at + s->chunk <= TOKENS ? s->chunk : TOKENS - at;
        int ahead = s->neighbour ? count : 0; /* rows of the neighbour, which come first */
        pen_run runs[2] = {{.row = 0, .rows = ahead, .position = at, .tables = {other, other}},
                           {.row = ahead, .rows = count, .position = at, .tables = {own, own}}};
        int32_t tokens[2 * TOKENS], logit_rows[TOKENS];
        pen_pick picks[TOKENS];
        for (int i = 0; i < count; i++) {
            if (ahead) tokens[i] = (int32_t)((at + i) * 31 % VOCAB);
            tokens[ahead + i] = token_at(at + i);
            logit_rows[i] = ahead + i;
            picks[i] = pick_at(at + i);
        }
        const pen_batch batch = {.rows = ahead + count,
                                 .run_count = ahead ? 2 : 1,
                                 .runs = ahead ? runs : runs + 1,
                                 .tokens = tokens,
                                 .logit_count = count,
                                 .logit_rows = logit_rows};
        const pen_choice *choices = run_pipeline(&p, step % SLOTS, &batch, picks);
        memcpy(out->choices + at, choices, (size_t)count * sizeof *choices);
    }
    close_pipeline(&p);
}

static void assert_same(const outcome *a, const outcome *b, const char *what) {
    for (int i = 0; i < TOKENS; i++) {
        const pen_choice *x = &a->choices[i], *y = &b->choices[i];
        assert_int_equal(x->bad_logits, 0);
        if (x->token != y->token || memcmp(&x->logprob, &y->logprob, sizeof x->logprob) != 0 ||
            memcmp(x->top_logprobs, y->top_logprobs, 5 * sizeof *x->top_logprobs) != 0 ||
            memcmp(x->top_ids, y->top_ids, 5 * sizeof *x->top_ids) != 0)
            fail_msg("%s: position %d: token %d, %.9g instead of %d, %.9g", what, i, y->token, (double)y->logprob,
                     x->token, (double)x->logprob);
    }
}

/* ---- Tests ------------------------------------------------------------------------------------------------------- */

static const char *const models[] = {SHAPE, SHAPE ",tied=1,type=q8_0", SHAPE ",type=q4_1", SHAPE ",type=f16"};

static void test_nothing_but_the_sequence_matters(void **state) {
    (void)state;
    static const setup ways[] = {
        {.first = {0}, .stages = 1, .chunk = 1, .threads = 1},
        {.first = {0}, .stages = 1, .chunk = 16, .threads = 2},
        {.first = {0, 1}, .stages = 2, .chunk = 75, .threads = 2}, /* the embedding alone */
        {.first = {0, 3}, .stages = 2, .chunk = 7, .threads = 1, .neighbour = true},
        {.first = {0, 2, 5}, .stages = 3, .chunk = 33, .threads = 3, .backwards = true}, /* the head alone */
        {.first = {0, 1, 2, 4}, .stages = 4, .chunk = 50, .threads = 2, .neighbour = true, .backwards = true},
    };
    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (int f32 = 0; f32 < 2; f32++) {
            static outcome expected, actual;
            setup whole = {.model = models[m], .stages = 1, .chunk = TOKENS, .threads = 1};
            whole.activations = f32 ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST;
            feed(&whole, &expected);
            for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
                setup way = ways[w];
                char what[256];
                way.model = models[m];
                way.activations = whole.activations;
                snprintf(what, sizeof what, "%s, way %zu, %s", models[m], w, f32 ? "f32" : "fast");
                feed(&way, &actual);
                assert_same(&expected, &actual, what);
            }
        }
}

/* The outcome depends on the tokens: if it did not, the test above would pass on a constant. */
static void test_choices_differ_between_positions(void **state) {
    (void)state;
    static outcome out;
    feed(&(setup){.model = models[0], .stages = 1, .chunk = TOKENS, .threads = 1}, &out);
    int different = 0;
    for (int i = 3; i < TOKENS; i++) different += out.choices[i].argmax != out.choices[i - 3].argmax;
    assert_true(different > TOKENS / 2);
}

static void test_instruction_sets_agree(void **state) {
    (void)state;
    static const struct {
        const char *name;
        pen_cpu_isa isa;
    } sets[] = {{"portable", PEN_CPU_PORTABLE},
                {"avx2", PEN_CPU_AVX2},
                {"avxvnni", PEN_CPU_AVXVNNI},
                {"avx512", PEN_CPU_AVX512}};
    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (int f32 = 0; f32 < 2; f32++) {
            static outcome oracle, first, actual;
            setup way = {.model = models[m], .stages = 1, .chunk = 16, .threads = 1, .isa = PEN_CPU_REFERENCE};
            way.activations = f32 ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST;
            feed(&way, &oracle);
            for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
                if (!strstr(pen_cpu_isa_names(), sets[i].name)) continue;
                way.isa = sets[i].isa;
                feed(&way, i == 0 ? &first : &actual);
                if (i > 0) assert_same(&first, &actual, sets[i].name);
            }
            /* f32 sums in another order differ in the last bits. In fast mode such a bit can tip the rounding of an
             * activation to int8, and what follows differs by that much. */
            double sum = 0, worst = 0;
            for (int i = 0; i < TOKENS; i++) {
                double error =
                    fabs((double)first.choices[i].top_logprobs[0] - (double)oracle.choices[i].top_logprobs[0]);
                sum += error;
                worst = fmax(worst, error);
            }
            if (worst > (f32 ? 1e-5 : 0.1) || sum / TOKENS > (f32 ? 1e-6 : 0.02))
                fail_msg("%s, %s: %g from the oracle, at most %g", models[m], f32 ? "f32" : "fast", sum / TOKENS,
                         worst);
        }
}

/* A microbatch in the middle of a prompt wants no logits; the head is left out and the KV is there all the same. */
static void test_rows_without_logits(void **state) {
    (void)state;
    static outcome expected;
    setup s = {.model = models[0], .stages = 1, .chunk = TOKENS, .threads = 1};
    feed(&s, &expected);
    pipeline p;
    open_setup(&p, &s);
    int32_t table[KV_BLOCKS], tokens[TOKENS];
    for (int i = 0; i < KV_BLOCKS; i++) table[i] = i;
    for (int i = 0; i < TOKENS; i++) tokens[i] = token_at(i);
    pen_run prompt = {.rows = TOKENS - 1, .tables = {table, table}};
    run_pipeline(&p, 0, &(pen_batch){.rows = TOKENS - 1, .run_count = 1, .runs = &prompt, .tokens = tokens}, NULL);
    pen_run last = {.rows = 1, .position = TOKENS - 1, .tables = {table, table}};
    pen_pick pick = pick_at(TOKENS - 1);
    const pen_batch batch = {.rows = 1,
                             .run_count = 1,
                             .runs = &last,
                             .tokens = tokens + TOKENS - 1,
                             .logit_count = 1,
                             .logit_rows = &(int32_t){0}};
    const pen_choice *choice = run_pipeline(&p, 1, &batch, &pick);
    assert_int_equal(choice->token, expected.choices[TOKENS - 1].token);
    assert_memory_equal(&choice->logprob, &expected.choices[TOKENS - 1].logprob, sizeof choice->logprob);
    close_pipeline(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_but_the_sequence_matters),
        cmocka_unit_test(test_choices_differ_between_positions),
        cmocka_unit_test(test_instruction_sets_agree),
        cmocka_unit_test(test_rows_without_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
