/*
 * The simulated device and the profiles that it runs: memory is counted as planned and hardly used, time passes as the
 * profile says, tokens depend on seed and position alone, bad files are refused.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "sim.h"
#include "sim_profile.h"
#include "stage.h"

enum { ROWS = 64, LOGIT_ROWS = 8, HIDDEN = 32, VOCAB = 1000, BLOCKS = 40 };

/* Embedding of no size and 1 ms; two blocks that take 2 ms with 10 rows, half of it fixed; a head by a table. */
#define UNITS                                                                                                          \
    "{\"name\": \"embedding\", \"time_ms\": 1},"                                                                       \
    "{\"name\": \"block 0\", \"time_ms\": 2, \"weight_bytes\": 6400, \"kv_bytes_per_token\": 128},"                    \
    "{\"name\": \"block 1\", \"time_ms\": 2, \"weight_bytes\": 100000000000, \"kv_bytes_per_token\": 128},"            \
    "{\"name\": \"head\", \"time_ms\": 3, \"weight_bytes\": 6400, \"rows\": [1, 5], \"ms\": [1, 3], \"context\": 100," \
    " \"context_ms\": [2, 8]}"
#define SIM                                                                                                            \
    "\"hidden\": 32, \"devices\": [{\"speed\": 1, \"memory_bytes\": 5000}, {\"speed\": 2}],"                           \
    "\"sim\": {\"vocab\": 1000, \"context\": 640, \"rows\": 10, \"fixed\": 0.5,"                                       \
    " \"slowdowns\": [{\"stage\": 3, \"factor\": 3}, {\"stage\": 1, \"from_s\": 1000, \"factor\": 3},"                 \
    " {\"replica\": 2, \"stage\": 1, \"factor\": 5}, {\"rank\": 4, \"factor\": 7}]}"
#define PROFILE "{\"units\": [" UNITS "], " SIM "}"

static pen_status read_text(const char *text, pen_place place, pen_sim_profile **sim) {
    char path[] = "/tmp/penstock-sim-XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(write(file, text, strlen(text)), strlen(text));
    close(file);
    pen_status status = pen_sim_profile_read(path, &place, sim);
    unlink(path);
    return status;
}

static pen_sim_profile *profile_at(pen_place place) {
    pen_sim_profile *sim = NULL;
    if (read_text(PROFILE, place, &sim) != PEN_OK) fail_msg("%s", pen_last_error());
    return sim;
}

static pen_sim_profile *profile_of(int stage) {
    return profile_at((pen_place){.rank = stage, .stage = stage});
}

static pen_device *device_of(const pen_sim_profile *sim) {
    pen_device *device = NULL;
    assert_int_equal(pen_sim_profile_device(sim, 1, &device), PEN_OK);
    return device;
}

static pen_stage *stage_of(const pen_sim_profile *sim, pen_device *device, pen_stage_options *options) {
    const pen_model *model = pen_sim_profile_model(sim);
    *options = (pen_stage_options){.first = 0,
                                   .last = pen_model_unit_count(model) - 1,
                                   .rows = ROWS,
                                   .logit_rows = LOGIT_ROWS,
                                   .context = 640,
                                   .longest = 640,
                                   .kv = {.count = 1, .blocks = {BLOCKS}},
                                   .slots = 4};
    pen_stage *stage = NULL;
    if (pen_stage_create(model, device, options, &stage) != PEN_OK) fail_msg("%s", pen_last_error());
    return stage;
}

/* A batch of one run with the picks of its last `logits` rows; returns its choices. */
static const pen_choice *run(pen_device *device, pen_stage *stage, int rows, int position, int logits,
                             pen_pick *picks) {
    static const int32_t table[BLOCKS];
    static const int32_t tokens[ROWS];
    int32_t logit_rows[LOGIT_ROWS];
    pen_run one = {.rows = rows, .position = position, .tables = {table, table}};
    for (int l = 0; l < logits; l++) logit_rows[l] = rows - logits + l;
    pen_batch batch = {
        .rows = rows, .run_count = 1, .runs = &one, .tokens = tokens, .logit_count = logits, .logit_rows = logit_rows};
    pen_device_unit_reset(device);
    pen_stage_run(stage, 0, &batch, picks);
    return pen_stage_choices(stage, 0);
}

static void test_memory_is_counted_as_planned_and_not_used(void **state) {
    (void)state;
    pen_sim_profile *sim = profile_of(0);
    pen_device *device = device_of(sim);
    pen_stage_options options;
    pen_stage *stage = stage_of(sim, device, &options);
    uint64_t planned = pen_stage_bytes(pen_sim_profile_model(sim), device, &options);
    assert_true(pen_device_bytes_used(device) == planned);
    /* A hundred gigabytes of weights, whole rows; 128 bytes of KV for each of the tokens of two blocks. */
    uint64_t expected = UINT64_C(100000000000) + 2 * 6400 + 2 * 128 * BLOCKS * PEN_KV_BLOCK;
    assert_true(planned > expected && planned < expected + (1 << 20));
    assert_int_equal(pen_sim_profile_memory(sim), 5000);
    pen_stage_destroy(stage);
    assert_int_equal(pen_device_bytes_used(device), 0);
    pen_device_destroy(device);
    pen_sim_profile_destroy(sim);
}

static void assert_unit_ms(pen_device *device, int unit, double expected) {
    double ms = pen_device_unit_ms(device, unit);
    if (ms < expected - 1e-6 || ms > expected + 1e-6) fail_msg("unit %d: %g ms, expected %g", unit, ms, expected);
}

static void test_units_take_what_the_profile_says(void **state) {
    (void)state;
    static const double slower[] = {1, 0.5, 1, 1.5}; /* a device of speed 2 at 1 and 3; a slowdown of 3 at 3 */
    for (int at = 0; at < 4; at++) {
        pen_sim_profile *sim = profile_of(at);
        pen_device *device = device_of(sim);
        pen_stage_options options;
        pen_stage *stage = stage_of(sim, device, &options);
        pen_pick picks[LOGIT_ROWS] = {{.target = -1}, {.target = -1}, {.target = -1}};
        run(device, stage, 30, 0, 0, NULL);
        assert_unit_ms(device, 0, (0.5 + 0.5 * 3) * slower[at]);
        assert_unit_ms(device, 1, (1 + 3) * slower[at]);
        assert_unit_ms(device, 3, 0); /* nobody wants logits */
        run(device, stage, 1, 100, 1, picks);
        assert_unit_ms(device, 2, 1.1 * slower[at]);
        assert_unit_ms(device, 3, 2 * slower[at]); /* at context 100, and once, picks included */
        run(device, stage, 3, 50, 3, picks);
        assert_unit_ms(device, 3,
                       3.5 * slower[at]); /* between the table's rows, and 50 positions before each of them */
        pen_device_sync(device);
        pen_stage_destroy(stage);
        pen_device_destroy(device);
        pen_sim_profile_destroy(sim);
    }
}

/* Ranks 4 and 5 are replica 2 of two stages each. */
static void test_slowdowns_are_of_ranks_replicas_and_stages(void **state) {
    (void)state;
    static const double slower[] = {1, 0.5, 1, 0.5, 7, 2.5};
    for (int rank = 0; rank < 6; rank++) {
        pen_sim_profile *sim = profile_at((pen_place){.rank = rank, .replica = rank / 2, .stage = rank % 2});
        pen_device *device = device_of(sim);
        assert_non_null(strstr(pen_device_name(device), rank % 2 ? "sim 1" : "sim 0"));
        pen_stage_options options;
        pen_stage *stage = stage_of(sim, device, &options);
        run(device, stage, 30, 0, 0, NULL);
        assert_unit_ms(device, 1, (1 + 3) * slower[rank]);
        pen_device_sync(device);
        pen_stage_destroy(stage);
        pen_device_destroy(device);
        pen_sim_profile_destroy(sim);
    }
}

/* Two devices that are alike in all but their numbers are one kind. */
static void test_equal_devices_have_one_name(void **state) {
    (void)state;
    static const char text[] = "{\"units\": [" UNITS "], \"devices\": [{\"speed\": 1}, {\"speed\": 2}, {\"speed\": 1},"
                               " {\"speed\": 1, \"memory_bytes\": 9}]}";
    static const char *const names[] = {"sim 0: device", "sim 1: device", "sim 0: device", "sim 3: device"};
    for (int rank = 0; rank < 4; rank++) {
        pen_sim_profile *sim;
        assert_int_equal(read_text(text, (pen_place){.rank = rank, .replica = rank}, &sim), PEN_OK);
        pen_device *device = device_of(sim);
        assert_string_equal(pen_device_name(device), names[rank]);
        pen_device_destroy(device);
        pen_sim_profile_destroy(sim);
    }
}

static void test_events_are_done_when_their_time_has_come(void **state) {
    (void)state;
    pen_sim_profile *sim = profile_of(0);
    pen_device *device = device_of(sim);
    pen_stage_options options;
    pen_stage *stage = stage_of(sim, device, &options);
    pen_event *first, *second;
    assert_int_equal(pen_event_create(device, &first), PEN_OK);
    assert_int_equal(pen_event_create(device, &second), PEN_OK);
    assert_true(pen_event_done(first));
    int64_t begin = pen_clock_ns();
    run(device, stage, ROWS, 0, 0, NULL); /* 3.7 + 2 · 7.4 ms, and again */
    pen_event_record(first);
    run(device, stage, ROWS, 0, 0, NULL);
    pen_event_record(second);
    int64_t due = pen_event_due_ns(first);
    assert_false(pen_event_done(second));
    assert_true(due >= begin + 18500000);
    assert_int_equal(pen_event_due_ns(second) - due, 18500000); /* one stream: one after the other */
    int64_t cpu = pen_clock_thread_cpu_ns();
    pen_clock_sleep_until(due);
    assert_true(pen_event_done(first));
    pen_device_sync(device);
    assert_true(pen_event_done(second));
    assert_true(pen_clock_ns() >= begin + 37000000);
    assert_true(pen_clock_thread_cpu_ns() - cpu < 10000000); /* and no core */
    pen_event_destroy(first);
    pen_event_destroy(second);
    pen_stage_destroy(stage);
    pen_device_destroy(device);
    pen_sim_profile_destroy(sim);
}

/* The same token for a position, whatever microbatch it is in and whoever is beside it. */
static void test_tokens_depend_on_seed_choice_and_position(void **state) {
    (void)state;
    pen_sim_profile *sim = profile_of(1);
    pen_device *device = device_of(sim);
    pen_stage_options options;
    pen_stage *stage = stage_of(sim, device, &options);
    int different = 0;
    for (int position = 1; position < 300; position++) {
        pen_pick picks[2] = {{.seed = 5, .position = position, .target = -1, .top_logprobs = 2},
                             {.seed = 5, .choice = 1, .position = position, .target = -1}};
        int32_t alone = run(device, stage, 1, position - 1, 1, picks)[0].token;
        const pen_choice *both = run(device, stage, 2, position - 1, 2, picks);
        assert_int_equal(both[0].token, alone);
        assert_int_equal(alone, pen_sim_token(5, 0, position, VOCAB));
        assert_int_equal(both[0].top_ids[0], alone);
        assert_in_range(alone, 0, VOCAB - 1);
        different += both[1].token != alone;
        different += pen_sim_token(6, 0, position, VOCAB) != alone;
        different += pen_sim_token(5, 0, position + 1, VOCAB) != alone;
    }
    assert_true(different > 3 * 299 * 98 / 100);
    pen_pick scored = {.seed = 5, .position = 1, .target = 77};
    assert_int_equal(run(device, stage, 1, 0, 1, &scored)[0].token, 77);
    pen_stage_destroy(stage);
    pen_device_destroy(device);
    pen_sim_profile_destroy(sim);
}

static void test_bad_profiles_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
        pen_status status;
    } cases[] = {
        {"{\"units\": [{\"name\": \"a\", \"time_ms\": 1}, {\"name\": \"b\", \"time_ms\": 1}]}", "needs a head",
         PEN_UNSUPPORTED},
        {"{\"units\": [" UNITS "], \"sim\": {\"fixed\": 0.5}}", "sim.fixed needs sim.rows", PEN_BAD_INPUT},
        {"{\"units\": [" UNITS "], \"sim\": {\"fixed\": 2, \"rows\": 1}}", "sim.fixed is no number", PEN_BAD_INPUT},
        {"{\"units\": [" UNITS "], \"sim\": {\"vocab\": 0}}", "sim.vocab is no number", PEN_BAD_INPUT},
        {"{\"units\": [" UNITS "], \"sim\": {\"slowdowns\": [{\"factor\": \"x\"}]}}",
         "sim.slowdowns[0].factor is no number", PEN_BAD_INPUT},
        {"{\"units\": [{\"name\": \"head\", \"time_ms\": 1, \"rows\": [2, 3], \"ms\": [1, 1]},"
         "{\"name\": \"head\", \"time_ms\": 1}]}",
         "units[0].rows is no ascending list", PEN_BAD_INPUT},
        {"{\"units\": [{\"name\": \"head\", \"time_ms\": 1, \"rows\": [1, 3], \"ms\": [1]},"
         "{\"name\": \"head\", \"time_ms\": 1}]}",
         "units[0].ms is no list of 2 times", PEN_BAD_INPUT},
        {"{\"units\": [{\"name\": \"head\", \"time_ms\": 1, \"rows\": [1], \"ms\": [-1]},"
         "{\"name\": \"head\", \"time_ms\": 1}]}",
         "units[0].ms[0] is no time", PEN_BAD_INPUT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pen_sim_profile *sim = NULL;
        assert_int_equal(read_text(cases[i].text, (pen_place){0}, &sim), cases[i].status);
        if (!strstr(pen_last_error(), cases[i].says))
            fail_msg("\"%s\" does not say \"%s\"", pen_last_error(), cases[i].says);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_is_counted_as_planned_and_not_used),
        cmocka_unit_test(test_units_take_what_the_profile_says),
        cmocka_unit_test(test_slowdowns_are_of_ranks_replicas_and_stages),
        cmocka_unit_test(test_equal_devices_have_one_name),
        cmocka_unit_test(test_events_are_done_when_their_time_has_come),
        cmocka_unit_test(test_tokens_depend_on_seed_choice_and_position),
        cmocka_unit_test(test_bad_profiles_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
