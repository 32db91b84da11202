/*
 * Two-layer models end to end on the CUDA device: every architecture near the CPU's oracle, and bit for bit equal for
 * one to three stages, any microbatches, neighbours and order of a block's threads.
 *
 * By hand: test_cuda_stage MODEL compares a whole model, a file or a synthetic one, with the oracle; in the emulation
 * 135M parameters take about a minute.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cuda_tests.h"
#include "sequence.h"

enum { VOCAB = 203, TOKENS = 37, KV_BLOCKS = 12 };
#define SHAPE "layers=2,hidden=96,ffn=160/96,heads=6,kv_heads=2,vocab=203,context=64"
#define WIDE  "layers=2,hidden=256,ffn=256,heads=4,kv_heads=2,vocab=203,context=64" /* for blocks of 256 */

typedef struct setup {
    const char *model;
    int first[STAGES_MOST];
    int stages;
    sequence sequence;
    unsigned order; /* of a block's threads */
    pen_activations activations;
    bool oracle;
} setup;

static pen_status open_gpu(pen_activations activations, pen_device **device) {
    return pen_cuda_device_create(&(pen_cuda_options){.activations = activations}, device);
}

static void run(const setup *s, outcome *out) {
    pipeline_options o = {.model = s->model,
                          .stages = s->stages,
                          .cpu = {.isa = PEN_CPU_REFERENCE, .activations = s->activations, .threads = 1},
                          .open = s->oracle ? NULL : open_gpu,
                          .stage = {.rows = 2 * TOKENS,
                                    .logit_rows = TOKENS,
                                    .context = 64,
                                    .kv = {.count = 1, .blocks = {KV_BLOCKS, KV_BLOCKS}},
                                    .slots = 2}};
    memcpy(o.first, s->first, sizeof o.first);
    shuffle_threads(s->order);
    feed(&o, &s->sequence, out);
    shuffle_threads(0);
}

static const char *const models[] = {
    "synthetic:llama:" SHAPE,
    "synthetic:llama:" SHAPE ",tied=1,type=q8_0",
    "synthetic:llama:" SHAPE ",type=q4_1",
    "synthetic:llama:" WIDE ",type=q4_k",
    "synthetic:gemma3:" SHAPE ",type=f16,window=20",
    "synthetic:gpt2:layers=2,hidden=96,ffn=160,heads=6,vocab=203,context=64",
    "synthetic:phi3:" SHAPE ",type=q5_0",
    "synthetic:qwen2:" SHAPE ",type=bf16",
    "synthetic:qwen3:" WIDE ",type=q6_k",
};
enum { MODELS = sizeof models / sizeof *models };

/* `far`: how much farther than two layers on average a model may be. */
static void check_near_the_oracle(const char *model, double far) {
    for (int f32 = 0; f32 < 2; f32++) {
        static outcome expected, got;
        setup s = {.model = model, .stages = 1, .sequence = {VOCAB, TOKENS, .chunk = 9}};
        s.activations = f32 ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST;
        run(&s, &got);
        s.oracle = true;
        run(&s, &expected);
        for (int i = 0; f32 && i < TOKENS; i++) {
            assert_int_equal(got.choices[i].argmax, expected.choices[i].argmax);
            assert_int_equal(got.choices[i].token, expected.choices[i].token);
        }
        distance d = distance_of(&s.sequence, &got, &expected);
        if (far > 1) print_message("%s: %g from the oracle, at most %g\n", f32 ? "f32" : "fast", d.mean, d.worst);
        if (d.worst > far * (f32 ? 2e-5 : 0.1) || d.mean > far * (f32 ? 3e-6 : 0.02))
            fail_msg("%s, %s: %g from the oracle, at most %g", model, f32 ? "f32" : "fast", d.mean, d.worst);
    }
}

static void test_models_are_near_the_oracle(void **state) {
    (void)state;
    for (int m = 0; m < MODELS; m++) check_near_the_oracle(models[m], 1);
}

static void test_nothing_but_the_sequence_matters(void **state) {
    (void)state;
    static const setup ways[] = {
        {.stages = 1, .sequence = {.chunk = 1, .backwards = true}, .order = 1},
        {.stages = 2, .sequence = {.chunk = 16, .neighbour = true}, .first = {0, 2}},
        {.stages = 3, .sequence = {.chunk = 7, .backwards = true}, .first = {0, 1, 3}, .order = 2},
    };
    for (int m = 0; m < MODELS; m++) {
        static outcome expected, actual;
        setup whole = {.model = models[m], .stages = 1, .sequence = {VOCAB, TOKENS, .chunk = TOKENS}};
        whole.activations = m % 2 ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST;
        run(&whole, &expected);
        for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
            setup way = ways[w];
            char what[256];
            way.model = models[m];
            way.activations = whole.activations;
            way.sequence.vocab = VOCAB;
            way.sequence.tokens = TOKENS;
            snprintf(what, sizeof what, "%s, way %zu", models[m], w);
            run(&way, &actual);
            assert_same(&way.sequence, &expected, &actual, what);
        }
    }
}

static void test_the_model_given_is_near_the_oracle(void **state) {
    check_near_the_oracle(*state, 10); /* the CPU's fast kernels are as far from it */
}

int main(int argc, char **argv) {
    if (argc > 1) {
        const struct CMUnitTest given[] = {cmocka_unit_test_prestate(test_the_model_given_is_near_the_oracle, argv[1])};
        return cmocka_run_group_tests(given, NULL, NULL);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_models_are_near_the_oracle),
        cmocka_unit_test(test_nothing_but_the_sequence_matters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
