/*
 * Profiles: interpolation and the steady state as written down by hand, text there and back, measurements that make
 * sense on a tiny model, and a cache that never stops a run.
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
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "cpu.h"
#include "plan_model.h"
#include "profile.h"
#include "profile_cache.h"
#include "step_cost.h"

/* Three classes of blocks' widths make five classes. */
#define TINY "synthetic:llama:layers=5,hidden=64,ffn=2048*2/64*2/128,heads=4,kv_heads=2,vocab=160,context=256"

static pen_model *open_model(const char *name) {
    pen_model *model;
    if (pen_model_open(name, &model) != PEN_OK) fail_msg("%s", pen_last_error());
    return model;
}

static pen_device *new_device(void) {
    pen_device *device;
    const pen_cpu_options options = {.activations = PEN_ACTIVATIONS_FAST, .threads = 1};
    assert_int_equal(pen_cpu_device_create(&options, &device), PEN_OK);
    return device;
}

static void assert_near(double actual, double expected) {
    if (fabs(actual - expected) > 1e-9 * (1 + fabs(expected))) fail_msg("%.12g is not %.12g", actual, expected);
}

/* A profile of the model in which r rows of a class cost 2 + r/2; a context of 100 adds 1 for each decode, and 1/4 for
 * each row of a chunk. */
static pen_profile *made_profile(const pen_model *model) {
    pen_profile *profile = calloc(1, sizeof *profile + (size_t)pen_model_unit_count(model) * sizeof *profile->classes);
    strcpy(profile->device, "made");
    for (int u = 0; u < pen_model_unit_count(model); u++) {
        const pen_unit *unit = pen_model_unit(model, u);
        pen_profile_class *class = &profile->classes[profile->class_count];
        bool known = false;
        for (int i = 0; i < profile->class_count; i++) known |= profile->classes[i].hash == unit->class_hash;
        if (known) continue;
        profile->class_count++;
        *class = (pen_profile_class){.hash = unit->class_hash, .row_count = 4, .rows = {1, 4, 16, 64}};
        class->context_count = unit->kind == PEN_UNIT_BLOCK ? 2 : 1;
        if (class->context_count == 2) class->contexts[1] = 100;
        for (int c = 0; c < class->context_count; c++)
            for (int i = 0; i < 4; i++) {
                double growth = class->rows[i] <= PEN_PROFILE_DECODES ? 1 : 0.25;
                class->points[c][i] =
                    (pen_profile_point){.median = 2 + (0.5 + c * growth) * class->rows[i], .count = 1 + i, .max = 0.1};
            }
    }
    return profile;
}

static void test_interpolates_in_rows_and_context(void **state) {
    (void)state;
    pen_model *model = open_model(TINY);
    pen_profile *profile = made_profile(model);
    int head = pen_model_unit_count(model) - 1;
    const struct {
        int unit;
        pen_step_shape shape;
        double ms;
    } cases[] = {
        {1, {.rows = 1}, 2.5},
        {1, {.rows = 2.5}, 3.25},
        {1, {.rows = 10, .logit_rows = 7}, 7},
        {1, {.rows = 32}, 18},
        {1, {.rows = 128}, 68},  /* in proportion */
        {1, {.rows = 0.5}, 2.5}, /* no less than one row */
        {1, {.rows = 0}, 0},
        {1, {.rows = 4, .decodes = 4, .decode_context = 50}, 6},
        {1, {.rows = 4, .decodes = 4, .decode_context = 300}, 16},
        {1, {.rows = 4, .prompt_context = 100}, 5},
        {1, {.rows = 10, .decodes = 4, .decode_context = 100, .prompt_context = 200}, 7 + 4 + 3},
        {0, {.rows = 4, .decodes = 4, .decode_context = 300}, 4}, /* the embedding knows no context, */
        {head, {.rows = 16, .logit_rows = 4, .decodes = 4, .decode_context = 300}, 4}, /* the head logit rows only */
        {head, {.rows = 16}, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_near(pen_profile_unit_ms(profile, model, cases[i].unit, &cases[i].shape), cases[i].ms);

    /* Without a chunk's point its rows are taken for decodes; a context that seems to make things faster is noise. */
    for (int c = 0; c < profile->class_count; c++) profile->classes[c].row_count = 3;
    assert_near(pen_profile_unit_ms(profile, model, 1, &cases[9].shape), 8);
    for (int c = 0; c < profile->class_count; c++) profile->classes[c].points[1][1].median = 3;
    for (int c = 0; c < profile->class_count; c++) profile->classes[c].points[1][2].median = 9;
    assert_near(pen_profile_unit_ms(profile, model, 1, &cases[9].shape), 4);
    pen_profile_destroy(profile);
    pen_model_close(model);
}

/* Summed over a stage's units, and scaled to what the plan says of the planned microbatch. */
static void test_table_of_steps_says_what_the_units_say(void **state) {
    (void)state;
    pen_model *model = open_model(TINY);
    pen_profile *profile = made_profile(model);
    const pen_plan_model_options options = {
        .workload = {.prompt_tokens = 64, .output_tokens = 32}, .stages = 2, .profile = profile};
    pen_plan *plan;
    assert_int_equal(pen_plan_from_model(model, &options, &plan), PEN_OK);
    assert_int_equal(pen_plan_set_devices(plan, 2), PEN_OK);
    plan->devices[1].speed = 0.5;
    assert_int_equal(pen_plan_apply(plan, "custom", 2, (int[]){0, 3, 7}, 1000), PEN_OK);
    pen_steady steady = pen_plan_steady(&plan->workload, 2, 0);
    pen_step_shape planned = pen_profile_shape(&steady);
    pen_step_cost *cost;
    assert_int_equal(pen_step_cost_create(plan, model, profile, &planned, &cost), PEN_OK);
    const pen_step_shape shapes[] = {
        planned,
        {.rows = 8, .logit_rows = 8, .decodes = 8, .decode_context = 160},
        {.rows = 48, .logit_rows = 1, .prompt_context = 32},
        {.rows = 24, .logit_rows = 9, .decodes = 8, .decode_context = 160, .prompt_context = 64},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int s = 0; s < 2; s++) {
            double ms = 0;
            for (int u = plan->stages[s].first; u <= plan->stages[s].last; u++)
                ms += pen_profile_unit_ms(profile, model, u, &shapes[i]) / plan->devices[s].speed;
            assert_near(pen_step_cost_stage_ms(cost, s, &shapes[i]), ms);
        }
    pen_step_cost_destroy(cost);
    pen_plan_destroy(plan);
    pen_profile_destroy(profile);
    pen_model_close(model);
}

static void test_steady_state_of_a_workload(void **state) {
    (void)state;
    pen_steady s = pen_profile_steady(512, 128, 32, 4); /* 4 microbatches of 8 decodes and 8·4 prompt tokens */
    assert_int_equal(s.microbatches, 4);
    assert_near(s.decode_rows, 8);
    assert_near(s.rows, 40);
    assert_near(s.logit_rows, 8.0625);
    assert_near(s.context, 576);
    assert_near(s.prompt_context, 256);
    pen_step_shape shape = pen_profile_shape(&s);
    assert_near(shape.rows, 40);
    assert_near(shape.decodes, 8);
    assert_near(shape.decode_context, 576);
    assert_near(shape.prompt_context, 256);
    s = pen_profile_steady(100, 100, 2, 8); /* fewer sequences than could be in flight */
    assert_int_equal(s.microbatches, 2);
    assert_near(s.rows, 2);
}

static void test_text_there_and_back(void **state) {
    (void)state;
    pen_model *model = open_model(TINY);
    pen_profile *profile = made_profile(model), *back;
    profile->classes[0].points[0][1] = (pen_profile_point){0.1, 1 / 3.0, 1e-9, 0.05, 1e6, 25};
    char *text = pen_profile_encode(profile);
    assert_int_equal(pen_profile_decode(text, strlen(text), &back), PEN_OK);
    assert_int_equal(back->class_count, profile->class_count);
    assert_string_equal(back->device, "made");
    assert_memory_equal(back->classes, profile->classes, (size_t)back->class_count * sizeof *back->classes);
    assert_true(pen_profile_covers(back, model));
    back->classes[2].hash ^= 1;
    assert_false(pen_profile_covers(back, model));
    pen_profile_destroy(back);

    /* No prefix of the text is a profile, and no bit turned over makes the decoder fall. */
    for (size_t length = 0; length < strlen(text); length++)
        assert_int_equal(pen_profile_decode(text, length, &back), PEN_BAD_INPUT);
    for (size_t i = 0, length = strlen(text); i < length; i++) {
        text[i] ^= (char)(1 << i % 7);
        if (pen_profile_decode(text, length, &back) == PEN_OK) pen_profile_destroy(back);
        text[i] ^= (char)(1 << i % 7);
    }
    static const char *const wrong[] = {
        "{\"version\":2,\"device\":\"x\",\"classes\":[]}",
        "{\"version\":1,\"device\":\"x\",\"classes\":[{\"hash\":\"1\",\"rows\":[],\"contexts\":[0],\"points\":[]}]}",
        "{\"version\":1,\"device\":\"x\",\"classes\":[{\"hash\":\"1\",\"rows\":[2],\"contexts\":[0],\"points\":[[]]}]}",
        "{\"version\":1,\"device\":\"x\",\"classes\":[{\"hash\":\"1\",\"rows\":[1],\"contexts\":[0],\"points\":[[]]}]}",
        "{\"version\":1,\"device\":\"x\",\"classes\":[{\"hash\":\"1\",\"rows\":[1,1],\"contexts\":[0],\"points\":[]}]}",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(pen_profile_decode(wrong[i], strlen(wrong[i]), &back), PEN_BAD_INPUT);
    free(text);
    pen_profile_destroy(profile);
    pen_model_close(model);
}

typedef struct watch {
    int barriers, done, total, stop_at;
} watch;

static pen_status count_barrier(void *context) {
    ((watch *)context)->barriers++;
    return PEN_OK;
}

static bool see_progress(void *context, int done, int total) {
    watch *w = context;
    w->done = done;
    w->total = total;
    return done != w->stop_at;
}

static void test_measures_every_class_twice(void **state) {
    (void)state;
    pen_model *model = open_model(TINY);
    pen_device *device = new_device();
    watch w = {.stop_at = -1};
    const pen_profile_options options = {.context = 100,
                                         .barrier = count_barrier,
                                         .barrier_context = &w,
                                         .progress = see_progress,
                                         .progress_context = &w};
    pen_profile *profile;
    int64_t begin = pen_clock_ns();
    assert_int_equal(pen_profile_measure(model, device, &options, &profile), PEN_OK);
    print_message("          measured in %.0f ms\n", (double)(pen_clock_ns() - begin) / 1e6);
    assert_int_equal(profile->class_count, 5);
    assert_int_equal(w.barriers, 10);
    assert_int_equal(w.done, 5);
    assert_int_equal(w.total, 5);
    assert_string_equal(profile->device, pen_device_name(device));
    assert_true(pen_profile_covers(profile, model));

    const pen_profile_class *block = pen_profile_class_of(profile, model, 1);
    assert_int_equal(block->context_count, 2);
    assert_int_equal(block->contexts[1], 100);
    assert_int_equal(block->row_count, 8); /* up to half the model's context of 256 */
    for (int i = 0; i < block->row_count; i++) {
        const pen_profile_point *p = &block->points[1][i];
        assert_int_equal(block->rows[i], 1 << i);
        assert_true(p->count >= 6); /* of two passes */
        assert_true(p->min > 0 && p->min <= p->median && p->median <= p->max && p->mean <= p->max);
    }
    /* A feed-forward of 2048 costs more than one of 64, and 128 rows more than one. */
    const pen_step_shape chunk = {.rows = 64};
    double wide = pen_profile_unit_ms(profile, model, 1, &chunk);
    double narrow = pen_profile_unit_ms(profile, model, 3, &chunk);
    assert_true(wide > 2 * narrow);
    assert_true(block->points[0][7].median > 4 * block->points[0][0].median);
    pen_profile_destroy(profile);

    w = (watch){.stop_at = 2};
    assert_int_equal(pen_profile_measure(model, device, &options, &profile), PEN_INTERRUPTED);
    assert_null(profile);
    assert_int_equal(w.barriers, 4);
    pen_device_destroy(device);
    pen_model_close(model);
}

/* ---- The cache --------------------------------------------------------------------------------------------------- */

/* The only file in the folder, as "folder/name"; asserts that there is exactly one. */
static void only_file(const char *folder, char *path, size_t size) {
    char command[512];
    snprintf(command, sizeof command, "ls -A '%s' | wc -l; echo '%s'/*", folder, folder);
    FILE *list = popen(command, "r");
    int files;
    assert_int_equal(fscanf(list, "%d ", &files), 1);
    assert_int_equal(files, 1);
    assert_non_null(fgets(path, (int)size, list));
    path[strcspn(path, "\n")] = 0;
    pclose(list);
}

static void test_cache_keeps_what_fits_and_survives_the_rest(void **state) {
    (void)state;
    char base[] = "/tmp/penstock-cache-XXXXXX", folder[64], path[512];
    assert_non_null(mkdtemp(base));
    snprintf(folder, sizeof folder, "%s/a/b", base); /* folders are made */
    pen_model *model = open_model(TINY), *other = open_model(TINY ",type=q8_0");
    pen_device *device = new_device();
    pen_profile *profile = made_profile(model), *back;
    const pen_profile_key key = {.model = model, .device = device, .ranks = 2, .context = 576};
    pen_profile_key others[3] = {key, key, key};
    others[0].model = other;
    others[1].ranks = 3;
    others[2].context = 100;

    assert_null(pen_profile_cache_load(folder, &key));
    pen_profile_cache_store(folder, &key, profile);
    back = pen_profile_cache_load(folder, &key);
    assert_non_null(back);
    assert_memory_equal(back->classes, profile->classes, (size_t)back->class_count * sizeof *back->classes);
    pen_profile_destroy(back);
    for (int i = 0; i < 3; i++) assert_null(pen_profile_cache_load(folder, &others[i]));

    only_file(folder, path, sizeof path); /* no temporary is left */
    assert_int_equal(truncate(path, 100), 0);
    assert_null(pen_profile_cache_load(folder, &key));
    pen_profile_cache_store(folder, &key, profile); /* and is written anew */
    back = pen_profile_cache_load(folder, &key);
    assert_non_null(back);
    pen_profile_destroy(back);

    assert_null(pen_profile_cache_load("-", &key));
    pen_profile_cache_store("/proc/penstock", &key, profile); /* cannot be written: warns, goes on */
    assert_null(pen_profile_cache_load("/proc/penstock", &key));

    setenv("XDG_CACHE_HOME", base, 1); /* "" is the usual place */
    pen_profile_cache_store("", &key, profile);
    back = pen_profile_cache_load("", &key);
    assert_non_null(back);
    pen_profile_destroy(back);
    char usual[600];
    snprintf(usual, sizeof usual, "%s/penstock/%s", base, strrchr(path, '/') + 1);
    assert_int_equal(access(usual, R_OK), 0);

    unlink(usual);
    unlink(path);
    snprintf(usual, sizeof usual, "%s/penstock", base);
    rmdir(usual);
    rmdir(folder);
    *strrchr(folder, '/') = 0;
    rmdir(folder);
    assert_int_equal(rmdir(base), 0);
    pen_profile_destroy(profile);
    pen_device_destroy(device);
    pen_model_close(other);
    pen_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_interpolates_in_rows_and_context),
        cmocka_unit_test(test_table_of_steps_says_what_the_units_say),
        cmocka_unit_test(test_steady_state_of_a_workload),
        cmocka_unit_test(test_text_there_and_back),
        cmocka_unit_test(test_measures_every_class_twice),
        cmocka_unit_test(test_cache_keeps_what_fits_and_survives_the_rest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
