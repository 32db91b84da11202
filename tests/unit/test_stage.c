/*
 * Stages: whatever way a model is split over stages, and a sequence over microbatches, neighbours and threads, the same
 * tokens come out with the same bits; instruction sets agree; memory is what was predicted.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sequence.h"

/* Widths and head counts that are no powers of two; blocks of two classes. */
#define SHAPE "synthetic:llama:layers=4,hidden=96,ffn=160*2/96*2,heads=6,kv_heads=2,vocab=331,context=128"

enum { VOCAB = 331, TOKENS = 75, KV_BLOCKS = 24 };

/* How a run is made: what must not matter. */
typedef struct setup {
    const char *model;
    int first[STAGES_MOST];
    int stages;
    int threads;
    pen_cpu_isa isa;
    pen_activations activations;
    sequence sequence;
} setup;

static pipeline_options options_of(const setup *s) {
    pipeline_options o = {.model = s->model,
                          .stages = s->stages,
                          .cpu = {.isa = s->isa, .activations = s->activations, .threads = s->threads},
                          .stage = {.rows = 2 * TOKENS,
                                    .logit_rows = TOKENS,
                                    .context = 128,
                                    .kv = {.count = 1, .blocks = {KV_BLOCKS}},
                                    .slots = 2}};
    memcpy(o.first, s->first, sizeof o.first);
    return o;
}

static void run(const setup *s, outcome *out) {
    pipeline_options o = options_of(s);
    feed(&o, &s->sequence, out);
}

/* ---- Tests ------------------------------------------------------------------------------------------------------- */

static const char *const models[] = {SHAPE, SHAPE ",tied=1,type=q8_0", SHAPE ",type=q4_1", SHAPE ",type=f16"};

static void test_nothing_but_the_sequence_matters(void **state) {
    (void)state;
    static const setup ways[] = {
        {.first = {0}, .stages = 1, .threads = 1, .sequence = {.chunk = 1}},
        {.first = {0}, .stages = 1, .threads = 2, .sequence = {.chunk = 16}},
        {.first = {0, 1}, .stages = 2, .threads = 2, .sequence = {.chunk = 75}}, /* the embedding alone */
        {.first = {0, 3}, .stages = 2, .threads = 1, .sequence = {.chunk = 7, .neighbour = true}},
        {.first = {0, 2, 5}, .stages = 3, .threads = 3, .sequence = {.chunk = 33, .backwards = true}}, /* the head */
        {.first = {0, 1, 2, 4},
         .stages = 4,
         .threads = 2,
         .sequence = {.chunk = 50, .neighbour = true, .backwards = true}},
    };
    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (int f32 = 0; f32 < 2; f32++) {
            static outcome expected, actual;
            setup whole = {.model = models[m], .stages = 1, .threads = 1, .sequence = {VOCAB, TOKENS, .chunk = TOKENS}};
            whole.activations = f32 ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST;
            run(&whole, &expected);
            for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
                setup way = ways[w];
                char what[256];
                way.model = models[m];
                way.activations = whole.activations;
                snprintf(what, sizeof what, "%s, way %zu, %s", models[m], w, f32 ? "f32" : "fast");
                way.sequence.vocab = VOCAB;
                way.sequence.tokens = TOKENS;
                run(&way, &actual);
                assert_same(&way.sequence, &expected, &actual, what);
            }
        }
}

/* The outcome depends on the tokens: if it did not, the test above would pass on a constant. */
static void test_choices_differ_between_positions(void **state) {
    (void)state;
    static outcome out;
    run(&(setup){.model = models[0], .stages = 1, .threads = 1, .sequence = {VOCAB, TOKENS, .chunk = TOKENS}}, &out);
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
            setup way = {.model = models[m],
                         .stages = 1,
                         .threads = 1,
                         .isa = PEN_CPU_REFERENCE,
                         .sequence = {VOCAB, TOKENS, .chunk = 16}};
            way.activations = f32 ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST;
            run(&way, &oracle);
            for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
                if (!strstr(pen_cpu_isa_names(), sets[i].name)) continue;
                way.isa = sets[i].isa;
                run(&way, i == 0 ? &first : &actual);
                if (i > 0) assert_same(&way.sequence, &first, &actual, sets[i].name);
            }
            distance d = distance_of(&way.sequence, &first, &oracle);
            if (d.worst > (f32 ? 1e-5 : 0.1) || d.mean > (f32 ? 1e-6 : 0.02))
                fail_msg("%s, %s: %g from the oracle, at most %g", models[m], f32 ? "f32" : "fast", d.mean, d.worst);
        }
}

/* A microbatch in the middle of a prompt wants no logits; the head is left out and the KV is there all the same. */
static void test_rows_without_logits(void **state) {
    (void)state;
    static outcome expected;
    setup s = {.model = models[0], .stages = 1, .threads = 1, .sequence = {VOCAB, TOKENS, .chunk = TOKENS}};
    run(&s, &expected);
    pipeline p;
    pipeline_options o = options_of(&s);
    open_pipeline(&p, &o);
    int32_t table[KV_BLOCKS], tokens[TOKENS];
    for (int i = 0; i < KV_BLOCKS; i++) table[i] = i;
    for (int i = 0; i < TOKENS; i++) tokens[i] = token_at(&s.sequence, i);
    pen_run prompt = {.rows = TOKENS - 1, .tables = {table, table}};
    run_pipeline(&p, 0, &(pen_batch){.rows = TOKENS - 1, .run_count = 1, .runs = &prompt, .tokens = tokens}, NULL);
    pen_run last = {.rows = 1, .position = TOKENS - 1, .tables = {table, table}};
    pen_pick pick = pick_at(&s.sequence, TOKENS - 1);
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
