/* The division of a machine between its ranks, in the ways in which launchers bind them; and the efficiencies. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "machine.h"
#include "metrics.h"

enum { RANKS = 6 };

static pen_machine machines[RANKS];
static pen_share shares[RANKS];

/* Rank r sees `count` cores from `first` on. */
static void see(int r, int first, int count) {
    machines[r] = (pen_machine){.memory = 6000, .cores_installed = 8, .core_count = count};
    for (int i = 0; i < count; i++) machines[r].cpu[i] = (int16_t)(first + i);
}

static void divide(int ranks) {
    const pen_machine *all[RANKS];
    for (int r = 0; r < ranks; r++) all[r] = &machines[r];
    pen_machine_divide(all, ranks, shares);
    for (int r = 0; r < ranks; r++) {
        assert_true(shares[r].threads >= 1);
        assert_int_equal(shares[r].memory, 6000);
        if (!shares[r].own_cores) continue;
        for (int o = 0; o < r; o++)
            for (int i = 0; i < shares[r].threads; i++)
                for (int k = 0; k < shares[o].threads; k++) assert_int_not_equal(shares[r].cpu[i], shares[o].cpu[k]);
    }
}

static void test_one_mask_for_all_is_cut_into_runs(void **state) {
    (void)state;
    for (int r = 0; r < 3; r++) see(r, 0, 8);
    divide(3);
    assert_int_equal(shares[0].threads + shares[1].threads + shares[2].threads, 8);
    for (int r = 0; r < 3; r++) {
        assert_true(shares[r].threads == 2 || shares[r].threads == 3);
        assert_true(shares[r].own_cores && shares[r].may_spin);
        for (int i = 1; i < shares[r].threads; i++) assert_int_equal(shares[r].cpu[i], shares[r].cpu[i - 1] + 1);
    }
}

static void test_masks_of_their_own_are_kept(void **state) {
    (void)state;
    see(0, 0, 1);
    see(1, 5, 3);
    divide(2);
    assert_int_equal(shares[0].threads, 1);
    assert_int_equal(shares[0].cpu[0], 0);
    assert_int_equal(shares[1].threads, 3);
    assert_int_equal(shares[1].cpu[2], 7);
}

static void test_masks_that_overlap_are_dealt_out(void **state) {
    (void)state;
    see(0, 0, 8);
    see(1, 0, 2);
    see(2, 4, 4);
    divide(3);
    for (int r = 0; r < 3; r++) assert_true(shares[r].own_cores && shares[r].threads >= 1);
    assert_int_equal(shares[0].threads + shares[1].threads + shares[2].threads, 8);
    for (int i = 0; i < shares[1].threads; i++) assert_in_range(shares[1].cpu[i], 0, 1);
    for (int i = 0; i < shares[2].threads; i++) assert_in_range(shares[2].cpu[i], 4, 7);
}

static void test_more_ranks_than_cores_means_one_unpinned_thread_each(void **state) {
    (void)state;
    for (int r = 0; r < 3; r++) see(r, 0, 2);
    divide(3);
    for (int r = 0; r < 3; r++) {
        assert_int_equal(shares[r].threads, 1);
        assert_false(shares[r].own_cores);
        assert_false(shares[r].may_spin);
    }
}

static void test_a_quota_limits_threads_and_spinning(void **state) {
    (void)state;
    for (int r = 0; r < 2; r++) {
        see(r, 0, 8);
        machines[r].quota = 4.5;
    }
    divide(2);
    for (int r = 0; r < 2; r++) {
        assert_int_equal(shares[r].threads, 2);
        assert_true(shares[r].may_spin);
        machines[r].quota = 1.5;
    }
    divide(2);
    for (int r = 0; r < 2; r++) {
        assert_int_equal(shares[r].threads, 1);
        assert_false(shares[r].may_spin);
    }
}

static void test_a_wish_for_more_threads_gives_up_the_cores(void **state) {
    (void)state;
    see(0, 0, 4);
    divide(1);
    pen_share_set_threads(&shares[0], 0);
    assert_int_equal(shares[0].threads, 4);
    pen_share_set_threads(&shares[0], 2);
    assert_true(shares[0].threads == 2 && shares[0].own_cores);
    pen_share_set_threads(&shares[0], 3);
    assert_true(shares[0].threads == 3 && !shares[0].own_cores && !shares[0].may_spin);
}

static void test_this_machine_has_cores_and_memory(void **state) {
    (void)state;
    pen_machine machine;
    pen_machine_look(&machine);
    assert_true(machine.core_count >= 1 && machine.core_count <= machine.cores_installed);
    assert_true(machine.memory > 16u << 20);
    assert_true(machine.host[0] != '\0' && machine.id != 0);
}

static void test_ranks_know_how_many_numa_nodes_they_span(void **state) {
    (void)state;
    pen_machine machine;
    const pen_machine *all[] = {&machine, &machine, &machine};
    setenv("HWLOC_SYNTHETIC", "numa:2 core:4 pu:1", 1);
    pen_machine_look(&machine);
    unsetenv("HWLOC_SYNTHETIC");
    assert_int_equal(machine.core_count, 8);
    machine.quota = 0;
    static const int nodes[][3] = {{2}, {1, 1}, {1, 2, 1}};
    for (int ranks = 1; ranks <= 3; ranks++) {
        pen_machine_divide(all, ranks, shares);
        for (int r = 0; r < ranks; r++) assert_int_equal(pen_share_numa_nodes(&shares[r]), nodes[ranks - 1][r]);
    }
    pen_share_set_threads(&shares[1], 2); /* of cores 2, 3 and 4 */
    assert_int_equal(pen_share_numa_nodes(&shares[1]), 1);
    pen_share_set_threads(&shares[1], 4); /* more than its own: it is not pinned */
    assert_int_equal(pen_share_numa_nodes(&shares[1]), 0);
    machine = (pen_machine){.core_count = 3, .cpu = {0, 2, 1}, .numa = {0, 1, 0}}; /* not in order */
    pen_machine_divide(all, 1, shares);
    assert_int_equal(pen_share_numa_nodes(&shares[0]), 2);
}

static void test_where_there_is_no_device_threads_stay_where_they_are(void **state) {
    (void)state;
    assert_false(pen_machine_stay_near("ffff:1f:1f.7"));
    assert_false(pen_machine_stay_near(""));
}

static void test_efficiencies_of_a_worked_example(void **state) {
    (void)state;
    /* Busy 10, 15, 8 and 12 s in 20 s: a plan of 75 %, a bottleneck that is busy for 75 %, a pipeline for 56.25 %. */
    const double busy[] = {10, 15, 8, 12};
    pen_metrics stages[4] = {{.work_s = 20}};
    for (int s = 0; s < 4; s++) stages[s].seconds[PEN_BUSY] = busy[s];
    pen_efficiency e = pen_metrics_efficiency(stages, 4);
    assert_true(fabs(e.split - 0.75) < 1e-12);
    assert_true(fabs(e.schedule - 0.75) < 1e-12);
    assert_true(fabs(e.pipeline - 0.5625) < 1e-12);
    pen_metrics nothing = {0};
    e = pen_metrics_efficiency(&nothing, 1);
    assert_true(e.split == 0 && e.schedule == 0 && e.pipeline == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_mask_for_all_is_cut_into_runs),
        cmocka_unit_test(test_masks_of_their_own_are_kept),
        cmocka_unit_test(test_masks_that_overlap_are_dealt_out),
        cmocka_unit_test(test_more_ranks_than_cores_means_one_unpinned_thread_each),
        cmocka_unit_test(test_a_quota_limits_threads_and_spinning),
        cmocka_unit_test(test_a_wish_for_more_threads_gives_up_the_cores),
        cmocka_unit_test(test_this_machine_has_cores_and_memory),
        cmocka_unit_test(test_ranks_know_how_many_numa_nodes_they_span),
        cmocka_unit_test(test_where_there_is_no_device_threads_stay_where_they_are),
        cmocka_unit_test(test_efficiencies_of_a_worked_example),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
