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

#include "cpu.h"
#include "stage.h"

/* Widths and head counts that are no powers of two; blocks of two classes. */
#define SHAPE "synthetic:llama:layers=4,hidden=96,ffn=160*2/96*2,heads=6,kv_heads=2,vocab=331,context=128"

enum { VOCAB = 331, TOKENS = 75, STAGES_MOST = 4, SLOTS = 2, KV_BLOCKS = 24, CONTEXT = 128 };

/* ---- A pipeline of stages in one process ------------------------------------------------------------------------- */

/* How a run is made; what must not matter. */
typedef struct setup {
    const char *model;
    int first[STAGES_MOST]; /* first unit of each stage, 0 … */
    int stages;
    int chunk; /* rows of a microbatch */
    int threads;
    pen_cpu_isa isa;
    pen_activations activations;
    bool neighbour; /* another sequence shares every microbatch */
    bool backwards; /* KV blocks are handed out from the last */
} setup;

typedef struct pipeline {
    pen_model *model;
    pen_device *devices[STAGES_MOST];
    pen_stage *stages[STAGES_MOST];
    int count, hidden;
} pipeline;

static void open_pipeline(pipeline *p, const setup *s) {
    if (pen_model_open(s->model, &p->model) != PEN_OK) fail_msg("%s", pen_last_error());
    p->count = s->stages;
    p->hidden = pen_model_hparams(p->model)->hidden;
    for (int i = 0; i < s->stages; i++) {
        const pen_cpu_options cpu = {.isa = s->isa, .activations = s->activations, .threads = s->threads};
        if (pen_cpu_device_create(&cpu, &p->devices[i]) != PEN_OK) fail_msg("%s", pen_last_error());
        const pen_stage_options options = {
            .first = s->first[i],
            .last = i + 1 < s->stages ? s->first[i + 1] - 1 : pen_model_unit_count(p->model) - 1,
            .rows = 2 * TOKENS,
            .logit_rows = 2 * TOKENS,
            .context = CONTEXT,
            .kv_blocks = KV_BLOCKS,
            .slots = SLOTS,
        };
        size_t before = pen_device_bytes_used(p->devices[i]);
        if (pen_stage_create(p->model, p->devices[i], &options, &p->stages[i]) != PEN_OK)
            fail_msg("%s", pen_last_error());
        assert_int_equal(pen_device_bytes_used(p->devices[i]) - before,
                         pen_stage_bytes(p->model, p->devices[i], &options));
        assert_int_equal(pen_stage_has_head(p->stages[i]), i + 1 == s->stages);
    }
}

static void close_pipeline(pipeline *p) {
    for (int i = 0; i < p->count; i++) {
        pen_stage_destroy(p->stages[i]);
        assert_int_equal(pen_device_sync(p->devices[i]), PEN_OK);
        pen_device_destroy(p->devices[i]);
    }
    pen_model_close(p->model);
}

/* One microbatch through all stages; rows go from stage to stage by way of the host. */
static const pen_choice *run(pipeline *p, int slot, const pen_batch *batch, const pen_pick *picks) {
    size_t bytes = (size_t)batch->rows * (size_t)p->hidden * sizeof(float);
    float *rows = malloc(bytes);
    for (int i = 0; i < p->count; i++) {
        if (i > 0) pen_buffer_write(pen_stage_rows(p->stages[i], slot), 0, rows, bytes);
        pen_stage_run(p->stages[i], slot, batch, i + 1 == p->count ? picks : NULL);
        assert_int_equal(pen_device_sync(p->devices[i]), PEN_OK);
        if (i + 1 < p->count) pen_buffer_read(pen_stage_rows(p->stages[i], slot), 0, rows, bytes);
    }
    free(rows);
    return pen_stage_choices(p->stages[p->count - 1], slot);
}

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

/* Feeds the sequence in chunks and keeps the choices of all positions. */
static void feed(const setup *s, outcome *out) {
    pipeline p = {0};
    open_pipeline(&p, s);
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
        const pen_choice *choices = run(&p, step % SLOTS, &batch, picks);
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
    } sets[] = {{"portable", PEN_CPU_PORTABLE}, {"avx2", PEN_CPU_AVX2}, {"avx512", PEN_CPU_AVX512}};
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
            for (int i = 0; i < TOKENS; i++) /* scores of the same token, and the best one's */
                assert_true(fabsf(first.choices[i].top_logprobs[0] - oracle.choices[i].top_logprobs[0]) < 0.02f);
        }
}

/* A microbatch in the middle of a prompt wants no logits; the head is left out and the KV is there all the same. */
static void test_rows_without_logits(void **state) {
    (void)state;
    static outcome expected;
    setup s = {.model = models[0], .stages = 1, .chunk = TOKENS, .threads = 1};
    feed(&s, &expected);
    pipeline p = {0};
    open_pipeline(&p, &s);
    int32_t table[KV_BLOCKS], tokens[TOKENS];
    for (int i = 0; i < KV_BLOCKS; i++) table[i] = i;
    for (int i = 0; i < TOKENS; i++) tokens[i] = token_at(i);
    pen_run prompt = {.rows = TOKENS - 1, .tables = {table, table}};
    run(&p, 0, &(pen_batch){.rows = TOKENS - 1, .run_count = 1, .runs = &prompt, .tokens = tokens}, NULL);
    pen_run last = {.rows = 1, .position = TOKENS - 1, .tables = {table, table}};
    pen_pick pick = pick_at(TOKENS - 1);
    const pen_batch batch = {.rows = 1,
                             .run_count = 1,
                             .runs = &last,
                             .tokens = tokens + TOKENS - 1,
                             .logit_count = 1,
                             .logit_rows = &(int32_t){0}};
    const pen_choice *choice = run(&p, 1, &batch, &pick);
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
