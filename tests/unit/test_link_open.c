/* Which link is chosen, from what the ranks say of themselves. */
#include "link_open.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { RANKS = 4, VERSION = 22809, SHARING = 23001 };

static pen_link_facts facts[RANKS];
static pen_link_choice choice;

/* Four ranks on two machines, each with a GPU of its own. */
static void each_has_a_gpu(int nccl) {
    for (int r = 0; r < RANKS; r++) {
        facts[r] = (pen_link_facts){.node = r / 2, .nccl = nccl};
        snprintf(facts[r].bus, sizeof facts[r].bus, "0000:%02x:00.0", r % 2 + 1);
    }
}

static void expect(pen_link_kind kind, bool warns, const char *reason) {
    assert_int_equal(pen_link_choose("auto", RANKS, facts, RANKS, &choice), PEN_OK);
    assert_string_equal(choice.reason, reason);
    assert_int_equal(choice.kind, kind);
    assert_int_equal(choice.warns, warns);
    if (kind == PEN_LINK_NCCL) {
        assert_int_equal(pen_link_choose("nccl", RANKS, facts, RANKS, &choice), PEN_OK);
        assert_int_equal(choice.kind, PEN_LINK_NCCL);
    } else {
        char refusal[600];
        snprintf(refusal, sizeof refusal, "--link nccl: %s; --link auto takes mpi then", reason);
        assert_int_equal(pen_link_choose("nccl", RANKS, facts, RANKS, &choice), PEN_UNSUPPORTED);
        assert_string_equal(pen_last_error(), refusal);
    }
    assert_int_equal(pen_link_choose("mpi", RANKS, facts, RANKS, &choice), PEN_OK);
    assert_int_equal(choice.kind, PEN_LINK_MPI);
}

static void test_gpus_of_their_own_take_nccl(void **state) {
    (void)state;
    each_has_a_gpu(VERSION);
    expect(PEN_LINK_NCCL, false, "all ranks have GPUs and NCCL 2.28.9");
}

static void test_a_rank_without_a_gpu_takes_all_to_mpi(void **state) {
    (void)state;
    each_has_a_gpu(VERSION);
    facts[2] = facts[3] = (pen_link_facts){.node = 1};
    expect(PEN_LINK_MPI, false, "rank 2 computes on no GPU");
    each_has_a_gpu(0);
    for (int r = 0; r < RANKS; r++) facts[r].bus[0] = '\0';
    expect(PEN_LINK_MPI, false, "rank 0 computes on no GPU");
}

static void test_nccl_that_is_missing_or_another(void **state) {
    (void)state;
    each_has_a_gpu(VERSION);
    facts[3].nccl = 0;
    strcpy(facts[3].missing, "no NCCL: libnccl.so.2: not found");
    expect(PEN_LINK_MPI, true, "rank 3 cannot use NCCL: no NCCL: libnccl.so.2: not found");
    facts[3].nccl = 22705;
    expect(PEN_LINK_MPI, true, "rank 0 has NCCL 2.28.9 and rank 3 has NCCL 2.27.5");
}

/* Neighbours on one GPU need a version and a switch on both sides; ranks of other replicas may sit anywhere. */
static void test_ranks_that_share_a_gpu(void **state) {
    (void)state;
    each_has_a_gpu(VERSION);
    strcpy(facts[1].bus, facts[0].bus);
    static const char reason[] = "ranks 0 and 1 have one GPU between them, at 0000:01:00.0, which NCCL allows from 2.30"
                                 " on with NCCL_MULTI_RANK_GPU_ENABLE=1; here is NCCL ";
    char text[300];
    snprintf(text, sizeof text, "%s2.28.9", reason);
    expect(PEN_LINK_MPI, true, text);
    for (int r = 0; r < RANKS; r++) facts[r].shares = true;
    expect(PEN_LINK_MPI, true, text);
    for (int r = 0; r < RANKS; r++) facts[r].nccl = SHARING;
    expect(PEN_LINK_NCCL, false, "all ranks have GPUs and NCCL 2.30.1");
    facts[0].shares = false;
    snprintf(text, sizeof text, "%s2.30.1", reason);
    expect(PEN_LINK_MPI, true, text);

    each_has_a_gpu(VERSION);
    strcpy(facts[2].bus, facts[1].bus);
    facts[2].node = facts[1].node;
    assert_int_equal(pen_link_choose("auto", 2, facts, RANKS, &choice), PEN_OK);
    assert_int_equal(choice.kind, PEN_LINK_NCCL);
    assert_int_equal(pen_link_choose("auto", 4, facts, RANKS, &choice), PEN_OK);
    assert_int_equal(choice.kind, PEN_LINK_MPI);
}

static void test_what_fits_the_stages(void **state) {
    (void)state;
    static const char *const between[] = {"mpi", "nccl"};
    assert_int_equal(pen_link_fits("auto", 1), PEN_OK);
    assert_int_equal(pen_link_fits("auto", 2), PEN_OK);
    assert_int_equal(pen_link_fits("local", 1), PEN_OK);
    assert_int_equal(pen_link_fits("local", 2), PEN_USAGE);
    assert_string_equal(pen_last_error(), "--link local does not fit 2 stages, which need mpi or nccl");
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pen_link_fits(between[i], 2), PEN_OK);
        assert_int_equal(pen_link_fits(between[i], 1), PEN_USAGE);
    }
    assert_string_equal(pen_last_error(), "--link nccl does not fit 1 stage, which needs local");
    assert_int_equal(pen_link_choose("auto", 1, facts, 1, &choice), PEN_OK);
    assert_int_equal(choice.kind, PEN_LINK_LOCAL);
}

int main(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpus_of_their_own_take_nccl),
        cmocka_unit_test(test_a_rank_without_a_gpu_takes_all_to_mpi),
        cmocka_unit_test(test_nccl_that_is_missing_or_another),
        cmocka_unit_test(test_ranks_that_share_a_gpu),
        cmocka_unit_test(test_what_fits_the_stages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
