/*
 * The plans of all replicas: alike ones have one plan for the average of their times, whatever differs has its own.
 * Ranks are made up from a simulated profile.
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
#include <unistd.h>

#include "kvcache.h"
#include "plan_model.h"
#include "replica_plans.h"
#include "sim_profile.h"

enum { REPLICAS = 3, STAGES = 2, RANKS = REPLICAS * STAGES, UNITS = 8 };

#define BLOCK(n) "{\"name\": \"block " #n "\", \"time_ms\": 4, \"weight_bytes\": 1000, \"kv_bytes_per_token\": 64}, "
#define MODEL                                                                                                          \
    "\"units\": [{\"name\": \"embedding\", \"time_ms\": 4}, " BLOCK(0) BLOCK(1) BLOCK(2) BLOCK(3) BLOCK(4)             \
        BLOCK(5) "{\"name\": \"head\", \"time_ms\": 4}], \"hidden\": 64, \"sim\": {\"vocab\": 100, \"context\": 640}"

/* Three replicas of two stages, each rank on a machine of its own. */
typedef struct cluster {
    char path[64];
    pen_config config;
    pen_sim_profile *sims[RANKS];
    pen_profile *profiles[RANKS];
    pen_rank_report ranks[RANKS];
    pen_plan_unit sizes[UNITS];
    pen_replica_plans *plans;
} cluster;

static void size_units(const pen_sim_profile *sim, pen_plan_unit *sizes) {
    pen_device *device;
    assert_int_equal(pen_sim_profile_device(sim, 1, &device), PEN_OK);
    const pen_plan_model_options options = {.workload = {.prompt_tokens = 64, .output_tokens = 32},
                                            .stages = STAGES,
                                            .device = device,
                                            .rows = 512,
                                            .logit_rows = 64,
                                            .context = 640,
                                            .sequences = 32,
                                            .positions = 96,
                                            .slots = 4};
    pen_plan_model_sizes(pen_sim_profile_model(sim), &options, sizes);
    pen_device_destroy(device);
}

static void write_file(char *path, const char *text) {
    strcpy(path, "/tmp/penstock-plans-XXXXXX");
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(write(file, text, strlen(text)), strlen(text));
    close(file);
}

/* `devices` as the file has them. */
static cluster *make_cluster(const char *devices) {
    cluster *c = calloc(1, sizeof *c);
    char text[2048];
    snprintf(text, sizeof text, "{%s, \"devices\": [%s]}", MODEL, devices);
    write_file(c->path, text);
    c->config = (pen_config){.method = "dp", .workload_prompt = 64, .workload_output = 32, .time_scale = 1};
    for (int r = 0; r < RANKS; r++) {
        pen_place place = {.rank = r, .replica = r / STAGES, .stage = r % STAGES};
        if (pen_sim_profile_read(c->path, &place, &c->sims[r]) != PEN_OK) fail_msg("%s", pen_last_error());
        assert_int_equal(pen_sim_profile_times(c->sims[r], &c->profiles[r]), PEN_OK);
        c->ranks[r] = (pen_rank_report){.node = r,
                                        .memory = UINT64_C(1) << 40,
                                        .wire_ms = 0.1,
                                        .send_ms = 0.1,
                                        .profile = c->profiles[r],
                                        .sizes = c->sizes};
        snprintf(c->ranks[r].device, sizeof c->ranks[r].device, "%s", c->profiles[r]->device);
    }
    size_units(c->sims[0], c->sizes);
    return c;
}

static void free_cluster(cluster *c) {
    pen_replica_plans_destroy(c->plans);
    for (int r = 0; r < RANKS; r++) {
        pen_profile_destroy(c->profiles[r]);
        pen_sim_profile_destroy(c->sims[r]);
    }
    unlink(c->path);
    free(c);
}

static pen_status solve(cluster *c) {
    pen_replica_plans_options options = {
        .model = pen_sim_profile_model(c->sims[0]),
        .config = &c->config,
        .replicas = REPLICAS,
        .stages = STAGES,
        .ranks = c->ranks,
        .rows = 512,
        .kv_tokens = 32 * 96,
    };
    return pen_replica_plans_solve(&options, &c->plans);
}

static void scale(cluster *c, int rank, double factor) {
    for (int k = 0; k < c->profiles[rank]->class_count; k++)
        for (int i = 0; i < c->profiles[rank]->classes[k].row_count; i++)
            c->profiles[rank]->classes[k].points[0][i].median *= factor;
}

/* The units of the first stage of each replica, as "4 4 6"; replicas that share a plan have a star: "4 4* 6". */
static void assert_splits(cluster *c, const char *expected) {
    char text[128] = "";
    if (solve(c) != PEN_OK) fail_msg("%s", pen_last_error());
    for (int r = 0; r < REPLICAS; r++) {
        const pen_plan *plan = pen_replica_plans_plan(c->plans, r);
        bool shared = false;
        assert_int_equal(plan->stage_count, STAGES);
        assert_int_equal(plan->stages[STAGES - 1].last, UNITS - 1);
        for (int q = 0; q < r; q++) {
            bool same = pen_replica_plans_plan(c->plans, q) == plan;
            assert_true(same == (pen_replica_plans_cost(c->plans, q) == pen_replica_plans_cost(c->plans, r)));
            shared = shared || same;
        }
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%d%s", r ? " " : "", plan->stages[0].last + 1,
                 shared ? "*" : "");
    }
    assert_string_equal(text, expected);
}

static void test_noise_makes_no_difference(void **state) {
    (void)state;
    cluster *c = make_cluster("{}");
    scale(c, 2, 1.04);
    scale(c, 4, 0.98);
    c->ranks[3].wire_ms = 0.4; /* nothing beside a stage's 16 ms */
    c->ranks[5].memory -= UINT64_C(1) << 35;
    assert_splits(c, "4 4* 4*");
    const pen_plan *plan = pen_replica_plans_plan(c->plans, 2);
    assert_float_equal(pen_plan_unit_ms(plan, 3, 0), 4 * (1 + 1.04 + 0.98) / 3, 1e-9);
    assert_float_equal(pen_plan_unit_ms(plan, 3, 1), 4, 1e-9);
    assert_float_equal(plan->devices[1].wire_ms, 2 * plan->devices[1].send_ms, 1e-9);
    assert_true(plan->devices[1].memory_bytes == (UINT64_C(1) << 40) - (UINT64_C(1) << 35));
    free_cluster(c);
}

/* What two ranks of one machine measure on one kind of device is one thing, however far apart. */
static void test_a_machine_has_one_time_for_a_device(void **state) {
    (void)state;
    cluster *c = make_cluster("{}");
    for (int r = 0; r < RANKS; r++) c->ranks[r].node = 7;
    scale(c, 2, 4);
    assert_splits(c, "4 4* 4*");
    assert_float_equal(pen_plan_unit_ms(pen_replica_plans_plan(c->plans, 0), 3, 1), 4 * 9 / 6.0, 1e-9);
    free_cluster(c);
}

static void test_other_speeds_have_other_plans(void **state) {
    (void)state;
    cluster *c = make_cluster("{\"speed\": 1}, {\"speed\": 1}, {\"speed\": 3}, {\"speed\": 1}, {}, {}");
    assert_splits(c, "4 6 4*");
    pen_step_shape shape = {.rows = 100, .logit_rows = 20, .decodes = 20, .decode_context = 10};
    double first = pen_step_cost_passage(pen_replica_plans_cost(c->plans, 0), &shape).most_ms;
    assert_true(pen_step_cost_passage(pen_replica_plans_cost(c->plans, 1), &shape).most_ms < 0.6 * first);
    free_cluster(c);
    /* The same device, on another machine where it is slower. */
    c = make_cluster("{}");
    scale(c, 3, 3);
    scale(c, 5, 3.1);
    assert_splits(c, "4 6 6*");
    free_cluster(c);
}

static void test_less_memory_has_a_plan_of_its_own(void **state) {
    (void)state;
    cluster *c = make_cluster("{}");
    c->ranks[4].memory = 1400000; /* the KV of a block alone is 196,608 bytes */
    if (solve(c) != PEN_OK) fail_msg("%s", pen_last_error());
    assert_ptr_equal(pen_replica_plans_plan(c->plans, 0), pen_replica_plans_plan(c->plans, 1));
    const pen_plan *less = pen_replica_plans_plan(c->plans, 2);
    assert_ptr_not_equal(pen_replica_plans_plan(c->plans, 0), less);
    assert_in_range(less->stages[0].last, 0, 2);
    assert_true(less->stages[0].memory_bytes <= 1400000);
    free_cluster(c);
}

/* A unit takes what it does on the device where it takes most. */
static void test_devices_with_other_layouts(void **state) {
    (void)state;
    cluster *c = make_cluster("{}");
    pen_plan_unit larger[UNITS];
    uint64_t before[STAGES];
    assert_splits(c, "4 4* 4*");
    for (int s = 0; s < STAGES; s++) before[s] = pen_replica_plans_plan(c->plans, 0)->stages[s].memory_bytes;
    pen_replica_plans_destroy(c->plans);
    memcpy(larger, c->sizes, sizeof larger);
    for (int u = 0; u < UNITS; u++) larger[u].workspace_bytes += 5000, larger[u].weight_bytes += 100;
    larger[1].weight_bytes -= 200;
    c->ranks[3].sizes = larger;
    assert_splits(c, "4 4* 4*");
    for (int s = 0; s < STAGES; s++)
        assert_int_equal(pen_replica_plans_plan(c->plans, 0)->stages[s].memory_bytes,
                         before[s] + 5000 + (s == 0 ? 300 : 400));
    free_cluster(c);
}

static void test_a_slow_wire_has_a_plan_of_its_own(void **state) {
    (void)state;
    cluster *c = make_cluster("{}");
    c->ranks[2].wire_ms = c->ranks[2].send_ms = 6; /* which the first stage has less units for */
    assert_splits(c, "4 3 4*");
    free_cluster(c);
}

/* `--profile FILE`: a device for all, for each stage, or for each rank. */
static void test_times_from_a_file(void **state) {
    (void)state;
    static const struct {
        const char *devices, *splits;
    } cases[] = {
        {"{}", "4 4* 4*"},
        {"{\"speed\": 3}, {}", "6 6* 6*"},
        {"{}, {}, {\"speed\": 3}, {}, {\"speed\": 3}, {}", "4 6 6*"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cluster *c = make_cluster("{}");
        char text[2048];
        snprintf(text, sizeof text, "{%s, \"devices\": [%s]}", MODEL, cases[i].devices);
        write_file(c->config.profile, text);
        for (int r = 0; r < RANKS; r++) c->ranks[r].profile = NULL;
        assert_splits(c, cases[i].splits);
        unlink(c->config.profile);
        free_cluster(c);
    }
    cluster *c = make_cluster("{}");
    write_file(c->config.profile, "{" MODEL ", \"devices\": [{}, {}, {}]}");
    for (int r = 0; r < RANKS; r++) c->ranks[r].profile = NULL;
    assert_int_equal(solve(c), PEN_BAD_INPUT);
    assert_non_null(strstr(pen_last_error(), "has 3 devices for 6 stages"));
    assert_null(c->plans);
    unlink(c->config.profile);
    free_cluster(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_noise_makes_no_difference),
        cmocka_unit_test(test_a_machine_has_one_time_for_a_device),
        cmocka_unit_test(test_other_speeds_have_other_plans),
        cmocka_unit_test(test_less_memory_has_a_plan_of_its_own),
        cmocka_unit_test(test_devices_with_other_layouts),
        cmocka_unit_test(test_a_slow_wire_has_a_plan_of_its_own),
        cmocka_unit_test(test_times_from_a_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
