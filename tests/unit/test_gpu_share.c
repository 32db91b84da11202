/* Which GPU a rank takes, and how the ranks of several machines share memories. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "gpu_share.h"

#define GIB (UINT64_C(1) << 30)

static void test_each_rank_has_a_gpu_of_its_own_where_there_are_enough(void **state) {
    (void)state;
    for (int gpus = 1; gpus <= 8; gpus++)
        for (int ranks = 1; ranks <= gpus; ranks++)
            for (int local = 0; local < ranks; local++) assert_int_equal(pen_gpu_for(local, ranks, gpus), local);
}

static void test_too_few_gpus_are_shared_evenly_by_neighbours(void **state) {
    (void)state;
    for (int gpus = 1; gpus <= 8; gpus++)
        for (int ranks = gpus; ranks <= 20; ranks++) {
            int taken[8] = {0}, last = 0;
            for (int local = 0; local < ranks; local++) {
                int gpu = pen_gpu_for(local, ranks, gpus);
                assert_in_range(gpu, last, gpus - 1);
                taken[last = gpu]++;
            }
            for (int g = 0; g < gpus; g++) assert_in_range(taken[g], ranks / gpus, (ranks + gpus - 1) / gpus);
        }
}

/* Two machines: three ranks on two GPUs and one on the CPU of the first; a GPU with the same address and two CPU ranks
 * on the second. */
static const pen_memory memories[] = {
    {.node = 0, .bus = "0000:3b:00.0", .free = 76 * GIB, .held = GIB},
    {.node = 0, .bus = "0000:3b:00.0", .free = 76 * GIB, .held = 3 * GIB},
    {.node = 0, .bus = "0000:af:00.0", .free = 40 * GIB},
    {.node = 0, .free = 64 * GIB, .held = GIB},
    {.node = 1, .bus = "0000:3b:00.0", .free = 24 * GIB},
    {.node = 1, .free = 8 * GIB},
    {.node = 1, .free = 8 * GIB},
};
enum { RANKS = sizeof memories / sizeof *memories };

static void test_a_memory_is_shared_by_those_who_compute_in_it(void **state) {
    (void)state;
    const int sharers[RANKS] = {2, 2, 1, 1, 1, 2, 2};
    for (int r = 0; r < RANKS; r++) assert_int_equal(pen_memory_sharers(memories, RANKS, r), sharers[r]);
}

static void test_limits(void **state) {
    (void)state;
    const uint64_t limits[RANKS] = {30 * GIB, 30 * GIB,          30 * GIB,         64 * GIB - GIB / 4,
                                    18 * GIB, 4 * GIB - GIB / 4, 4 * GIB - GIB / 4};
    for (int r = 0; r < RANKS; r++) assert_int_equal(pen_memory_limit(memories, RANKS, r, 0.75), limits[r]);
}

static void test_of_little_nothing_is_held_back(void **state) {
    (void)state;
    const pen_memory small = {.free = GIB / 2};
    assert_int_equal(pen_memory_limit(&small, 1, 0, 0.9), GIB / 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_rank_has_a_gpu_of_its_own_where_there_are_enough),
        cmocka_unit_test(test_too_few_gpus_are_shared_evenly_by_neighbours),
        cmocka_unit_test(test_a_memory_is_shared_by_those_who_compute_in_it),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_of_little_nothing_is_held_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
