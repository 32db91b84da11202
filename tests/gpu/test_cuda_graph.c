/*
 * CUDA graphs: decodes give the same bits with and without them, whatever the batches between, whoever decodes beside,
 * and however long the contexts are; a bucket is captured once, anew for a new stage, and not at all where that fails.
 *
 * In the emulation a graph's launches have the arguments of its capture, so one that hangs on a step shows.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cuda_device.h"
#include "cuda_tests.h"
#include "pipeline.h"
#include "profile.h"

enum { SEQUENCES = 11, VOCAB = 203, CONTEXT = 192, SLOTS = 2, BLOCKS = CONTEXT / PEN_KV_BLOCK, STEPS = 40 };
#define SHAPE "layers=2,hidden=96,ffn=160/96,heads=6,kv_heads=2,vocab=203,context=192"

static const char *const models[] = {
    "synthetic:llama:" SHAPE ",type=q4_1", "synthetic:gemma3:" SHAPE ",type=f16,window=20",
    "synthetic:gpt2:layers=2,hidden=96,ffn=160,heads=6,vocab=203,context=192", /* learned positions */
};
enum { MODELS = sizeof models / sizeof *models };

static pen_status open_with_graphs(pen_activations activations, pen_device **device) {
    return pen_cuda_device_create(&(pen_cuda_options){.activations = activations}, device);
}
static pen_status open_eager(pen_activations activations, pen_device **device) {
    return pen_cuda_device_create(&(pen_cuda_options){.activations = activations, .enforce_eager = true}, device);
}

static pipeline_options options_of(const char *model, pen_activations activations, bool eager) {
    return (pipeline_options){.model = model,
                              .stages = 1,
                              .cpu = {.activations = activations},
                              .open = eager ? open_eager : open_with_graphs,
                              .stage = {.rows = 24,
                                        .logit_rows = 11,
                                        .context = CONTEXT,
                                        .kv = {.count = 2, .blocks = {BLOCKS * SEQUENCES, BLOCKS * SEQUENCES}},
                                        .slots = SLOTS}};
}

static int32_t token_at(int sequence, int position) {
    return (int32_t)((unsigned)(position * 31 + sequence * 7) * 7919u % VOCAB);
}

/* Sequences that take part in a step, and the rows of each: prompts' chunks now and then, else a row each. */
typedef struct step_shape {
    int sequences, rows, first;
    bool logits, edited;
} step_shape;
static step_shape shape_of(int step) {
    static const int counts[] = {3, 3, 3, 1, 1, 1, 11, 11, 11, 11, 5, 7, 2, 2};
    step_shape s = {.sequences = counts[step % 14], .rows = 1, .first = step % 3, .logits = step % 7 != 4};
    if (step % 9 == 0) s.rows = 8;
    if (s.rows > 1) s.sequences = 3;
    if (s.sequences + s.first > SEQUENCES) s.first = 0;
    s.edited = step % 5 == 3;
    return s;
}

/* Runs STEPS steps; the choices of all, one behind the other. */
static void generate(pipeline *p, pen_choice *out) {
    int done[SEQUENCES] = {0};
    int32_t tables[SEQUENCES][BLOCKS];
    for (int i = 0; i < SEQUENCES; i++)
        for (int b = 0; b < BLOCKS; b++) tables[i][b] = (b * SEQUENCES + i) * 7 % (BLOCKS * SEQUENCES);
    for (int i = 0; i < SEQUENCES; i++) done[i] = i == 1 ? 100 : i == 4 ? 60 : 0;
    const pen_logit_edit edit = {.token = 5, .add = 100, .scale = 1};
    for (int step = 0; step < STEPS; step++) {
        step_shape s = shape_of(step);
        pen_run runs[SEQUENCES];
        int32_t tokens[24], logit_rows[SEQUENCES];
        pen_pick picks[SEQUENCES];
        pen_logit_edits edits[SEQUENCES] = {{0}};
        pen_batch batch = {.runs = runs, .tokens = tokens, .logit_rows = logit_rows};
        for (int i = 0; i < s.sequences; i++) {
            int sequence = s.first + i;
            runs[i] = (pen_run){.row = batch.rows,
                                .rows = s.rows,
                                .position = done[sequence],
                                .tables = {tables[sequence], tables[sequence]}};
            for (int r = 0; r < s.rows; r++) tokens[batch.rows++] = token_at(sequence, done[sequence]++);
            if (!s.logits) continue;
            picks[batch.logit_count] =
                (pen_pick){.top_p = 1, .position = done[sequence], .target = -1, .top_logprobs = 3};
            if (s.edited && i == 0) edits[batch.logit_count] = (pen_logit_edits){&edit, 1};
            logit_rows[batch.logit_count++] = batch.rows - 1;
        }
        batch.run_count = s.sequences;
        if (s.edited) batch.edits = edits;
        const pen_choice *choices = run_pipeline(p, step % SLOTS, &batch, picks);
        if (batch.logit_count) memcpy(out, choices, (size_t)batch.logit_count * sizeof *out);
        out += batch.logit_count;
    }
}

enum { CHOICES = STEPS * SEQUENCES };

/* The pages that nobody wrote must not hold NaN: sequences begin in their middle. */
static void write_pages(pipeline *p) {
    int32_t tables[SEQUENCES][BLOCKS], tokens[24];
    for (int i = 0; i < SEQUENCES; i++)
        for (int b = 0; b < BLOCKS; b++) tables[i][b] = (b * SEQUENCES + i) * 7 % (BLOCKS * SEQUENCES);
    for (int i = 0; i < 24; i++) tokens[i] = i;
    for (int sequence = 1; sequence <= 4; sequence += 3)
        for (int at = 0; at < 120; at += 24) {
            const pen_run run = {.rows = 24, .position = at, .tables = {tables[sequence], tables[sequence]}};
            run_pipeline(p, 0, &(pen_batch){.rows = 24, .run_count = 1, .runs = &run, .tokens = tokens}, NULL);
        }
}

static void run(const char *model, pen_activations activations, bool eager, pen_choice *choices) {
    pipeline p;
    pipeline_options o = options_of(model, activations, eager);
    open_pipeline(&p, &o);
    write_pages(&p);
    generate(&p, choices);
    close_pipeline(&p);
}

#if defined(PEN_CUDA_EMULATED)
static pen_emulated_graphs graphs_so_far(void) {
    return pen_emulate_graphs();
}
#endif

static void test_graphs_do_not_change_a_bit(void **state) {
    (void)state;
    static pen_choice eager[CHOICES], graphs[CHOICES];
    for (int m = 0; m < MODELS; m++)
        for (int f32 = 0; f32 < (m == 0 ? 2 : 1); f32++) {
            pen_activations activations = f32 ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST;
            memset(eager, 0, sizeof eager);
            memset(graphs, 0, sizeof graphs);
            run(models[m], activations, true, eager);
#if defined(PEN_CUDA_EMULATED)
            int before = graphs_so_far().launched;
#endif
            run(models[m], activations, false, graphs);
            for (int i = 0; i < CHOICES; i++) {
                assert_int_equal(eager[i].bad_logits, 0);
                assert_memory_equal(&eager[i], &graphs[i], sizeof eager[i]);
            }
#if defined(PEN_CUDA_EMULATED)
            assert_true(graphs_so_far().launched - before > STEPS / 4);
#endif
        }
}

static void test_rows_are_rounded_up_to_a_bucket(void **state) {
    (void)state;
    static const int expected[][3] = {{0, 64, 0},   {1, 64, 1},   {2, 64, 2},   {3, 64, 4},   {5, 64, 8},  {9, 64, 16},
                                      {16, 64, 16}, {17, 64, 24}, {57, 64, 64}, {64, 99, 64}, {65, 99, 0}, {5, 6, 6}};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        assert_int_equal(pen_cuda_graph_bucket(expected[i][0], expected[i][1]), expected[i][2]);
}

#if defined(PEN_CUDA_EMULATED)

/* Decodes `count` sequences at `position`, twice as many rows of pages as there are. */
static void decode(pipeline *p, int slot, int count, int position) {
    static const int32_t table[BLOCKS];
    pen_run runs[SEQUENCES];
    int32_t tokens[SEQUENCES], logit_rows[SEQUENCES];
    pen_pick picks[SEQUENCES];
    for (int i = 0; i < count; i++) {
        runs[i] = (pen_run){.row = i, .rows = 1, .position = position, .tables = {table, table}};
        tokens[i] = logit_rows[i] = i;
        picks[i] = (pen_pick){.top_p = 1, .target = -1};
    }
    run_pipeline(p, slot,
                 &(pen_batch){.rows = count,
                              .run_count = count,
                              .runs = runs,
                              .tokens = tokens,
                              .logit_count = count,
                              .logit_rows = logit_rows},
                 picks);
}

static void expect_graphs(const pen_emulated_graphs *before, int captured, int launched) {
    assert_int_equal(graphs_so_far().captured - before->captured, captured);
    assert_int_equal(graphs_so_far().launched - before->launched, launched);
}

/* A step runs as it is, is captured the next time, and then launched; a bucket holds several numbers of rows. */
static void test_a_bucket_is_captured_once(void **state) {
    (void)state;
    pipeline p;
    pipeline_options o = options_of(models[0], PEN_ACTIVATIONS_FAST, false);
    open_pipeline(&p, &o);
    pen_emulated_graphs before = graphs_so_far();
    decode(&p, 0, 5, 0);
    expect_graphs(&before, 0, 0);
    decode(&p, 0, 6, 1);
    expect_graphs(&before, 1, 1);
    decode(&p, 0, 8, 150); /* with a long context, too */
    expect_graphs(&before, 1, 2);
    decode(&p, 1, 8, 2); /* another slot's rows */
    expect_graphs(&before, 1, 2);
    decode(&p, 0, 9, 2);
    decode(&p, 0, 11, 2); /* as many as there may be logits */
    expect_graphs(&before, 2, 3);
    close_pipeline(&p);
}

static void test_memory_that_is_freed_takes_its_graphs_along(void **state) {
    (void)state;
    pipeline p;
    pipeline_options o = options_of(models[0], PEN_ACTIVATIONS_FAST, false);
    open_pipeline(&p, &o);
    for (int i = 0; i < 3; i++) decode(&p, 0, 2, i);
    pen_emulated_graphs before = graphs_so_far();
    pen_buffer_destroy(empty_buffer(p.devices[0], 16));
    for (int i = 0; i < 3; i++) decode(&p, 0, 2, i);
    expect_graphs(&before, 1, 2);
    close_pipeline(&p);
}

static void test_without_memory_for_graphs_steps_run_as_they_are(void **state) {
    (void)state;
    static pen_choice eager[CHOICES], graphs[CHOICES];
    memset(eager, 0, sizeof eager);
    memset(graphs, 0, sizeof graphs);
    run(models[0], PEN_ACTIVATIONS_FAST, true, eager);
    pen_emulated_graphs before = graphs_so_far();
    pen_emulate_graphs_left(1);
    run(models[0], PEN_ACTIVATIONS_FAST, false, graphs);
    pen_emulate_graphs_left(INT32_MAX);
    assert_int_equal(graphs_so_far().captured - before.captured, 2); /* the second one comes to nothing */
    assert_memory_equal(eager, graphs, sizeof eager);
}

/* Decodes are measured as they are run. Of the three units each has a time at every number of rows. */
static void test_a_profile_is_measured_with_graphs(void **state) {
    (void)state;
    pen_model *model;
    if (pen_model_open("synthetic:llama:layers=1,hidden=96,ffn=320,heads=6,kv_heads=2,vocab=160,context=64,type=q8_0",
                       &model) != PEN_OK)
        fail_msg("%s", pen_last_error());
    for (int eager = 0; eager < 2; eager++) {
        pen_device *device;
        pen_profile *profile;
        const pen_profile_options options = {.context = 0};
        pen_emulated_graphs before = graphs_so_far();
        assert_int_equal((eager ? open_eager : open_with_graphs)(PEN_ACTIVATIONS_FAST, &device), PEN_OK);
        if (pen_profile_measure(model, device, &options, &profile) != PEN_OK) fail_msg("%s", pen_last_error());
        assert_true((graphs_so_far().launched == before.launched) == eager);
        assert_true((strstr(profile->device, ", eager") != NULL) == eager);
        for (int c = 0; c < profile->class_count; c++)
            for (int i = 0; i < profile->classes[c].row_count; i++)
                assert_true(profile->classes[c].points[0][i].min > 0);
        pen_profile_destroy(profile);
        pen_device_destroy(device);
    }
    pen_model_close(model);
}

/* What a decode costs in launches: a block of the llama shape, and what is around the blocks. */
static void test_a_layer_takes_few_launches(void **state) {
    (void)state;
    int nodes[2];
    for (int i = 0; i < 2; i++) {
        pipeline p;
        pipeline_options o = options_of(i ? "synthetic:llama:layers=3,hidden=128,ffn=160,heads=4,kv_heads=2,vocab=203,"
                                            "context=192,type=q4_1"
                                          : "synthetic:llama:layers=2,hidden=128,ffn=160,heads=4,kv_heads=2,vocab=203,"
                                            "context=192,type=q4_1",
                                        PEN_ACTIVATIONS_FAST, false);
        open_pipeline(&p, &o);
        for (int step = 0; step < 2; step++) decode(&p, 0, 1, step);
        nodes[i] = graphs_so_far().nodes;
        close_pipeline(&p);
    }
    print_message("a layer's decode takes %d launches, what is around the layers %d\n", nodes[1] - nodes[0],
                  3 * nodes[0] - 2 * nodes[1]);
    assert_in_range(nodes[1] - nodes[0], 1, 9);
    assert_in_range(3 * nodes[0] - 2 * nodes[1], 1, 3);
}

#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_graphs_do_not_change_a_bit),
        cmocka_unit_test(test_rows_are_rounded_up_to_a_bucket),
#if defined(PEN_CUDA_EMULATED)
        cmocka_unit_test(test_a_bucket_is_captured_once),
        cmocka_unit_test(test_memory_that_is_freed_takes_its_graphs_along),
        cmocka_unit_test(test_without_memory_for_graphs_steps_run_as_they_are),
        cmocka_unit_test(test_a_profile_is_measured_with_graphs),
        cmocka_unit_test(test_a_layer_takes_few_launches),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
