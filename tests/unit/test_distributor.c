/*
 * The distributor by itself: what goes where under each policy, in which order, what it counts, and what it learns.
 * That nothing is lost or doubled, whatever happens, is test_distribution's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "distributor.h"
#include "kernels.h"
#include "policy.h"
#include "prefix_memory.h"

enum { MOST = 4, UNBOUNDED = 1 << 20 };
#define MS INT64_C(1000000)
#define S  (1000 * MS)

/* Equal replicas of one slot, where a token of a prompt costs 1 ms and one of an output 10 ms. */
static pen_distributor *make(int replicas, const char *policy, int depth) {
    pen_token_cost costs[MOST];
    int slots[MOST];
    for (int i = 0; i < replicas; i++) {
        costs[i] = (pen_token_cost){1, 10};
        slots[i] = 1;
    }
    pen_distributor_options options = {
        .replicas = replicas, .policy = policy, .max_queue = 100, .depth = depth, .costs = costs, .slots = slots};
    pen_distributor *distributor;
    assert_int_equal(pen_distributor_create(&options, &distributor), PEN_OK);
    return distributor;
}

static int64_t admit(pen_distributor *distributor, pen_admission admission, int64_t now_ns) {
    int64_t id;
    if (admission.choices == 0) admission.choices = 1;
    assert_int_equal(pen_distributor_admit(distributor, &admission, now_ns, &id), PEN_OK);
    return id;
}

static pen_action expect(pen_distributor *distributor, int64_t now_ns, pen_action_kind kind, int64_t id) {
    pen_action action;
    assert_true(pen_distributor_next(distributor, now_ns, &action));
    assert_int_equal(action.kind, kind);
    assert_int_equal(action.stamp.id, id);
    return action;
}

static void expect_nothing(pen_distributor *distributor, int64_t now_ns) {
    pen_action action;
    assert_false(pen_distributor_next(distributor, now_ns, &action));
}

/* Admits and dispatches one; where it went. */
static int place(pen_distributor *distributor, int prompt, int output) {
    int64_t id = admit(distributor, (pen_admission){.prompt = prompt, .output = output}, 0);
    return expect(distributor, 0, PEN_ACTION_DISPATCH, id).replica;
}

static double outstanding(const pen_distributor *distributor, int replica) {
    return pen_distributor_account(distributor, replica).outstanding_ms;
}

static void assert_settled(const pen_distributor *distributor, int replicas) {
    assert_int_equal(pen_distributor_open(distributor), 0);
    assert_int_equal(pen_distributor_waiting(distributor), 0);
    for (int i = 0; i < replicas; i++) {
        pen_replica_account account = pen_distributor_account(distributor, i);
        assert_int_equal(account.requests, 0);
        assert_int_equal(account.waiting, 0);
        assert_true(account.outstanding_ms == 0);
    }
}

/* ---- Policies ---------------------------------------------------------------------------------------------------- */

static int choice(const char *policy, const pen_policy_view *views, int last) {
    return pen_policy_find(policy)->choose(views, 3, last);
}

static void test_each_policy_looks_at_its_own(void **state) {
    (void)state;
    /*                                alive, room, requests, slots, outstanding, cost, weight */
    const pen_policy_view views[3] = {
        {true, true, 1, 1, 300, 10, 2}, {true, true, 2, 1, 200, 10, 1}, {true, true, 3, 1, 190, 30, 1}};
    assert_int_equal(choice("round-robin", views, 1), 2);
    assert_int_equal(choice("round-robin", views, 2), 0);
    assert_int_equal(choice("least-requests", views, 1), 0);
    assert_int_equal(choice("least-cost", views, 1), 1);
    assert_int_equal(choice("weighted", views, 1), 0);
    assert_null(pen_policy_find("random"));
    assert_string_equal(pen_policies[0].name, "weighted");
}

static void test_only_replicas_that_live_and_have_room(void **state) {
    (void)state;
    const pen_policy_view views[3] = {
        {false, true, 0, 9, 0, 1, 1}, {true, false, 1, 9, 1, 1, 1}, {true, true, 9, 9, 9, 1, 1}};
    for (int p = 0; p < pen_policy_count; p++) {
        int expected = strcmp(pen_policies[p].name, "round-robin") == 0 ? -1 : 2; /* it waits for the next in turn */
        assert_int_equal(pen_policies[p].choose(views, 3, 2), expected);
        assert_int_equal(pen_policies[p].choose(views, 3, 1), 2);
        assert_int_equal(pen_policies[p].choose(views, 2, 1), -1);
    }
}

static void test_weighted_fills_free_slots_first(void **state) {
    (void)state;
    pen_policy_view views[3] = {
        {true, true, 4, 4, 100, 10, 1}, {true, true, 3, 4, 300, 10, 1}, {true, true, 2, 4, 400, 10, 1}};
    assert_int_equal(choice("weighted", views, 2), 1); /* the one with less of the two that have a slot */
    views[1].requests = 4;
    assert_int_equal(choice("weighted", views, 2), 2);
    views[2].requests = 9;
    assert_int_equal(choice("weighted", views, 2), 0); /* none has: the least work */
    /* Behind one of four, after 25 ms, a fast one has it done after 65 ms; one that starts it now but is slow after 80.
     */
    views[2] = (pen_policy_view){true, true, 3, 4, 60, 10, 0.5};
    assert_int_equal(choice("weighted", views, 2), 0);
    views[2].weight = 0.63;
    assert_int_equal(choice("weighted", views, 2), 2);
    /* Without room there the slow one must do. */
    views[2].weight = 0.5;
    views[0].has_room = false;
    assert_int_equal(choice("weighted", views, 2), 2);
}

static void test_equal_replicas_take_turns(void **state) {
    (void)state;
    for (int p = 0; p < pen_policy_count; p++) {
        pen_distributor *d = make(3, pen_policies[p].name, 10);
        for (int i = 0; i < 9; i++) assert_int_equal(place(d, 8, 4), i % 3);
        pen_distributor_destroy(d);
    }
}

static void test_unknown_policy(void **state) {
    (void)state;
    pen_distributor_options options = {.replicas = 1,
                                       .policy = "random",
                                       .max_queue = 1,
                                       .depth = 1,
                                       .costs = &(pen_token_cost){1, 1},
                                       .slots = &(int){1}};
    pen_distributor *distributor;
    assert_int_equal(pen_distributor_create(&options, &distributor), PEN_USAGE);
    assert_non_null(strstr(pen_last_error(), "random"));
}

/* Requests of 10, 100 and 50 tokens in turn: round-robin leaves one replica ten times as busy as another. */
static void test_three_lengths(void **state) {
    (void)state;
    static const int lengths[] = {10, 100, 50};
    for (int p = 0; p < pen_policy_count; p++) {
        pen_distributor *d = make(3, pen_policies[p].name, 1000);
        for (int i = 0; i < 90; i++) place(d, 1, lengths[i % 3]);
        double most = 0, fewest = 1e9;
        for (int i = 0; i < 3; i++) {
            most = outstanding(d, i) > most ? outstanding(d, i) : most;
            fewest = outstanding(d, i) < fewest ? outstanding(d, i) : fewest;
        }
        const char *name = pen_policies[p].name;
        bool counts_cost = strcmp(name, "weighted") == 0 || strcmp(name, "least-cost") == 0;
        if (counts_cost) assert_true(most / fewest < 1.07);
        if (!counts_cost) assert_true(most / fewest > 9);
        pen_distributor_destroy(d);
    }
}

/* ---- Order, room, time ------------------------------------------------------------------------------------------- */

static void test_urgency(void **state) {
    (void)state;
    pen_distributor *d = make(1, "weighted", 1);
    int64_t late = admit(d, (pen_admission){.prompt = 1, .priority = 5}, 0);
    int64_t plain = admit(d, (pen_admission){.prompt = 1, .priority = 0}, 1 * S);
    int64_t next = admit(d, (pen_admission){.prompt = 1, .priority = 0}, 1 * S);
    int64_t first = admit(d, (pen_admission){.prompt = 1, .priority = -1}, 2 * S);
    const int64_t order[] = {first, plain, late, next};
    const int64_t times[] = {5 * S - 1, 5 * S - 1, 5 * S, 5 * S}; /* the third has waited for 5 s by then */
    for (int i = 0; i < 4; i++) {
        pen_action action = expect(d, times[i], PEN_ACTION_DISPATCH, order[i]);
        assert_true(pen_distributor_started(d, action.replica, action.stamp));
    }
    /* Two that have both waited: the older one, whatever their priorities. */
    int64_t old = admit(d, (pen_admission){.prompt = 1, .priority = 9}, 10 * S);
    int64_t newer = admit(d, (pen_admission){.prompt = 1, .priority = -9}, 11 * S);
    pen_action action = expect(d, 20 * S, PEN_ACTION_DISPATCH, old);
    assert_true(action.waited_ns == 10 * S);
    expect_nothing(d, 20 * S);
    pen_distributor_started(d, action.replica, action.stamp);
    expect(d, 20 * S, PEN_ACTION_DISPATCH, newer);
    pen_distributor_destroy(d);
}

static void test_room_is_exact(void **state) {
    (void)state;
    pen_distributor *d = make(2, "round-robin", 2);
    pen_action sent[4];
    for (int i = 0; i < 4; i++)
        sent[i] = expect(d, 0, PEN_ACTION_DISPATCH, admit(d, (pen_admission){.prompt = 1, .output = 1}, 0));
    int64_t waits = admit(d, (pen_admission){.prompt = 1, .output = 1}, 0);
    pen_replica_load load = {.queued = 0}; /* says so, but what counts is what was sent */
    pen_distributor_report(d, 0, &load, 0);
    expect_nothing(d, 0);
    /* Round-robin waits for the next in turn, even though the other one has room. */
    assert_true(pen_distributor_started(d, 1, sent[1].stamp));
    expect_nothing(d, 0);
    assert_true(pen_distributor_started(d, 0, sent[0].stamp));
    assert_true(pen_distributor_started(d, 0, sent[0].stamp)); /* said twice, counted once */
    assert_int_equal(expect(d, 0, PEN_ACTION_DISPATCH, waits).replica, 0);
    /* A steal makes room at the victim only. */
    int64_t other = admit(d, (pen_admission){.prompt = 1, .output = 1}, 0);
    expect(d, 0, PEN_ACTION_DISPATCH, other);
    int64_t another = admit(d, (pen_admission){.prompt = 1, .output = 1}, 0);
    expect_nothing(d, 0);
    pen_stamp stolen = sent[2].stamp;
    stolen.hop = 1;
    assert_int_equal(pen_distributor_moved(d, 0, stolen, 1), PEN_OK);
    assert_int_equal(pen_distributor_account(d, 0).waiting, 1);
    assert_int_equal(pen_distributor_account(d, 1).waiting, 3);
    assert_int_equal(expect(d, 0, PEN_ACTION_ADOPTED, stolen.id).replica, 0);
    assert_int_equal(expect(d, 0, PEN_ACTION_DISPATCH, another).replica, 0);
    /* One that ends without a start makes room, too. */
    assert_true(pen_distributor_ended(d, 1, stolen));
    assert_int_equal(pen_distributor_account(d, 1).waiting, 2);
    pen_distributor_destroy(d);
}

static void test_the_buffer_is_bounded(void **state) {
    (void)state;
    pen_distributor *d = make(1, "weighted", 1);
    place(d, 1, 1); /* on its way: no longer in the buffer */
    pen_admission admission = {.prompt = 1, .output = 1, .choices = 1};
    int64_t id;
    for (int i = 0; i < 100; i++) {
        assert_true(pen_distributor_has_room(d));
        admit(d, admission, 0);
    }
    assert_false(pen_distributor_has_room(d));
    assert_int_equal(pen_distributor_admit(d, &admission, 0, &id), PEN_QUEUE_FULL);
    assert_int_equal(pen_distributor_waiting(d), 100);
    assert_int_equal(pen_distributor_open(d), 101);
    pen_distributor_destroy(d);
}

static void test_timeouts(void **state) {
    (void)state;
    pen_distributor *d = make(2, "least-requests", 1);
    pen_action a = expect(d, 0, PEN_ACTION_DISPATCH, admit(d, (pen_admission){.prompt = 1, .timeout_ns = 3 * S}, 0));
    pen_action b = expect(d, 0, PEN_ACTION_DISPATCH, admit(d, (pen_admission){.prompt = 1, .timeout_ns = 3 * S}, 0));
    int64_t patient = admit(d, (pen_admission){.prompt = 1}, 0);
    int64_t hasty = admit(d, (pen_admission){.prompt = 1, .timeout_ns = 2 * S}, 1 * S);
    expect_nothing(d, 3 * S - 1);
    expect(d, 3 * S, PEN_ACTION_EXPIRED, hasty);
    expect_nothing(d, 100 * S);
    /* What has begun does not expire when its replica is lost; what has not does. */
    assert_true(pen_distributor_started(d, a.replica, a.stamp));
    pen_distributor_lost(d, a.replica);
    pen_distributor_lost(d, b.replica);
    expect(d, 100 * S, PEN_ACTION_EXPIRED, b.stamp.id);
    expect_nothing(d, 100 * S); /* nobody lives */
    assert_int_equal(pen_distributor_waiting(d), 2);
    pen_distributor_cancel(d, patient);
    expect(d, 100 * S, PEN_ACTION_CANCELLED, patient);
    pen_distributor_cancel(d, a.stamp.id);
    expect(d, 100 * S, PEN_ACTION_CANCELLED, a.stamp.id);
    assert_settled(d, 2);
    pen_distributor_destroy(d);
}

/* ---- Costs ------------------------------------------------------------------------------------------------------- */

static void test_what_came_back_costs_no_more(void **state) {
    (void)state;
    pen_distributor *d = make(1, "weighted", 9);
    int64_t id = admit(d, (pen_admission){.prompt = 100, .output = 20, .choices = 2}, 0);
    pen_action a = expect(d, 0, PEN_ACTION_DISPATCH, id);
    assert_true(a.cost_ms == 100 + 400 && a.prompt_ms == 100);
    assert_true(outstanding(d, 0) == 500);
    pen_distributor_started(d, 0, a.stamp);
    assert_true(pen_distributor_progressed(d, 0, a.stamp, 0));
    assert_true(outstanding(d, 0) == 500);
    assert_true(pen_distributor_progressed(d, 0, a.stamp, 1));
    assert_true(outstanding(d, 0) == 390); /* with the first token the prompt is done */
    assert_true(pen_distributor_progressed(d, 0, a.stamp, 9));
    assert_true(outstanding(d, 0) == 300);
    assert_true(pen_distributor_progressed(d, 0, a.stamp, 60)); /* more than it was to make */
    assert_true(outstanding(d, 0) == 0);
    assert_true(pen_distributor_ended(d, 0, a.stamp));
    assert_false(pen_distributor_ended(d, 0, a.stamp));
    assert_false(pen_distributor_progressed(d, 0, a.stamp, 1));
    assert_settled(d, 1);
    pen_distributor_destroy(d);
}

static void test_costs_of_unlike_replicas(void **state) {
    (void)state;
    const pen_token_cost costs[] = {{1, 10}, {0.3, 5}};
    const int slots[] = {1, 1};
    pen_distributor_options options = {
        .replicas = 2, .policy = "weighted", .max_queue = 9, .depth = 9, .costs = costs, .slots = slots};
    pen_distributor *d;
    assert_int_equal(pen_distributor_create(&options, &d), PEN_OK);
    pen_admission admission = {.prompt = 100, .output = 10};
    pen_action fast = expect(d, 0, PEN_ACTION_DISPATCH, admit(d, admission, 0));
    assert_int_equal(fast.replica, 1);
    assert_true(fast.cost_ms == 80);
    assert_int_equal(expect(d, 0, PEN_ACTION_DISPATCH, admit(d, admission, 0)).replica, 1); /* 160 against 200 */
    pen_action slow = expect(d, 0, PEN_ACTION_DISPATCH, admit(d, admission, 0));
    assert_int_equal(slow.replica, 0);
    /* Where it is stolen it costs what it costs the thief; half of its output has come when that one is lost. */
    pen_stamp stolen = {slow.stamp.id, 0, 1};
    assert_int_equal(pen_distributor_taken(d, 1, stolen), PEN_OK);
    assert_true(outstanding(d, 0) == 0 && outstanding(d, 1) == 240);
    assert_int_equal(pen_distributor_account(d, 1).stolen, 1);
    pen_distributor_started(d, 1, stolen);
    pen_distributor_progressed(d, 1, stolen, 5);
    assert_true(outstanding(d, 1) == 185);
    pen_distributor_lost(d, 1);
    pen_action again = expect(d, 0, PEN_ACTION_DISPATCH, fast.stamp.id);
    assert_int_equal(again.stamp.attempt, 1);
    assert_int_equal(again.stamp.hop, 0);
    assert_true(again.cost_ms == 200);
    expect(d, 0, PEN_ACTION_DISPATCH, fast.stamp.id + 1);
    again = expect(d, 0, PEN_ACTION_DISPATCH, stolen.id);
    assert_true(again.prompt_ms == 105 && again.cost_ms == 155);
    assert_true(outstanding(d, 1) == 0);
    pen_distributor_destroy(d);
}

static void test_prefix_affinity(void **state) {
    (void)state;
    uint64_t mine[4], yours[4];
    for (uint64_t i = 0; i < 4; i++) {
        mine[i] = 1000 + i;
        yours[i] = i < 2 ? mine[i] : 2000 + i; /* the same beginning */
    }
    pen_distributor *d = make(2, "least-cost", 9);
    pen_admission first = {.prompt = 4 * PEN_KV_BLOCK, .output = 1, .prefix = mine, .prefix_count = 4};
    pen_admission second = {.prompt = 4 * PEN_KV_BLOCK + 5, .output = 1, .prefix = yours, .prefix_count = 4};
    pen_action a = expect(d, 0, PEN_ACTION_DISPATCH, admit(d, first, 0));
    assert_true(a.prompt_ms == 4 * PEN_KV_BLOCK);
    pen_distributor_ended(d, a.replica, a.stamp);
    /* It would be the other's turn. */
    pen_action b = expect(d, 0, PEN_ACTION_DISPATCH, admit(d, second, 0));
    assert_int_equal(b.replica, a.replica);
    assert_true(b.prompt_ms == 2 * PEN_KV_BLOCK + 5);
    pen_distributor_ended(d, b.replica, b.stamp);
    pen_action c = expect(d, 0, PEN_ACTION_DISPATCH, admit(d, first, 0));
    assert_int_equal(c.replica, a.replica);
    assert_true(c.prompt_ms == 1); /* the last token always needs computing */
    /* … but not at any price: here it would wait for what it saves and more. */
    for (int i = 0; i < 3; i++) place(d, 60, 1);
    pen_action e = expect(d, 0, PEN_ACTION_DISPATCH, admit(d, (pen_admission){.prompt = 300, .output = 1}, 0));
    pen_action f = expect(d, 0, PEN_ACTION_DISPATCH, admit(d, first, 0));
    assert_int_not_equal(e.replica, f.replica);
    pen_distributor_destroy(d);
}

static void test_prefix_memory_is_bounded(void **state) {
    (void)state;
    enum { LONG = 40000 };
    pen_prefix_memory *memory;
    assert_int_equal(pen_prefix_memory_create(&memory), PEN_OK);
    uint64_t *hashes = malloc(LONG * sizeof *hashes), old[8], hot[8];
    assert_non_null(hashes);
    for (uint64_t i = 0; i < LONG; i++) hashes[i] = (i + 1) * 0x9E3779B97F4A7C15U;
    for (uint64_t i = 0; i < 8; i++) {
        old[i] = 5 + i;
        hot[i] = 500 + i;
    }
    assert_int_equal(pen_prefix_memory_known(memory, old, 8), 0);
    pen_prefix_memory_remember(memory, old, 6);
    assert_int_equal(pen_prefix_memory_known(memory, old, 8), 6);
    assert_int_equal(pen_prefix_memory_known(memory, old + 3, 2), 2);
    for (int first = 0; first < LONG; first += 1000) {
        pen_prefix_memory_remember(memory, hot, 8);
        pen_prefix_memory_remember(memory, hashes + first, 1000);
    }
    assert_int_equal(pen_prefix_memory_known(memory, old, 8), 0); /* longest ago */
    assert_int_equal(pen_prefix_memory_known(memory, hot, 8), 8); /* used again and again */
    assert_int_equal(pen_prefix_memory_known(memory, hashes + LONG - 1000, 1000), 1000);
    /* A prompt that is longer than the memory: its beginning is known, not its end. */
    pen_prefix_memory_remember(memory, hashes, LONG);
    int known = pen_prefix_memory_known(memory, hashes, LONG);
    assert_in_range(known, 10000, 16384);
    pen_prefix_memory_destroy(memory);
    free(hashes);
}

static void test_predicted_time_to_first_token(void **state) {
    (void)state;
    const pen_token_cost costs[] = {{1, 10}, {1, 10}};
    const int slots[] = {2, 2};
    pen_distributor_options options = {
        .replicas = 2, .policy = "round-robin", .max_queue = 9, .depth = 1, .costs = costs, .slots = slots};
    pen_distributor *d;
    assert_int_equal(pen_distributor_create(&options, &d), PEN_OK);
    int64_t id = admit(d, (pen_admission){.prompt = 100, .output = 10}, 0);
    assert_true(pen_distributor_predict_ttft(d, id) == 100); /* it starts at once */
    pen_action a = expect(d, 0, PEN_ACTION_DISPATCH, id);
    assert_true(pen_distributor_predict_ttft(d, id) == 100);
    expect(d, 0, PEN_ACTION_DISPATCH, admit(d, (pen_admission){.prompt = 50, .output = 15}, 0));
    int64_t before = admit(d, (pen_admission){.prompt = 60, .output = 4, .priority = -1}, 0);
    pen_distributor_started(d, a.replica, a.stamp);
    pen_distributor_progressed(d, a.replica, a.stamp, 4);
    /* Before it at the first replica: 60 of a, and half of the 100 that one in the buffer costs: 1.5 requests, of which
     * half a request more than leaves a slot free: a third of 110. */
    id = admit(d, (pen_admission){.prompt = 7, .output = 4}, 0);
    assert_true(abs((int)(1000 * pen_distributor_predict_ttft(d, id)) - 43666) <= 1);
    (void)before;
    assert_true(pen_distributor_predict_ttft(d, 12345) == 0);
    pen_distributor_destroy(d);
}

/* ---- Lives ------------------------------------------------------------------------------------------------------- */

static void test_the_highest_hop_is_believed(void **state) {
    (void)state;
    pen_distributor *d = make(3, "round-robin", 3);
    pen_action a = expect(d, 0, PEN_ACTION_DISPATCH, admit(d, (pen_admission){.prompt = 9, .output = 9}, 0));
    pen_stamp first = {a.stamp.id, 0, 1}, second = {a.stamp.id, 0, 2};
    /* 0 → 1 → 2, heard of backwards. */
    assert_int_equal(pen_distributor_taken(d, 2, second), PEN_OK);
    assert_int_equal(pen_distributor_account(d, 2).requests, 1);
    assert_int_equal(pen_distributor_taken(d, 1, first), PEN_OK);
    assert_int_equal(pen_distributor_moved(d, 1, second, 2), PEN_OK);
    assert_int_equal(pen_distributor_moved(d, 0, first, 1), PEN_OK);
    assert_int_equal(pen_distributor_account(d, 2).requests, 1);
    assert_int_equal(pen_distributor_account(d, 2).stolen, 1);
    assert_int_equal(pen_distributor_account(d, 1).requests, 0);
    /* Both victims may forget it. */
    assert_int_equal(expect(d, 0, PEN_ACTION_ADOPTED, second.id).replica, 1);
    assert_int_equal(expect(d, 0, PEN_ACTION_ADOPTED, first.id).replica, 0);
    expect_nothing(d, 0);
    assert_false(pen_distributor_started(d, 0, a.stamp));
    assert_false(pen_distributor_started(d, 1, first));
    assert_false(pen_distributor_started(d, 1, second));
    assert_true(pen_distributor_started(d, 2, second));
    assert_true(pen_distributor_ended(d, 2, second));
    /* A victim that only now says so is answered, too. */
    assert_int_equal(pen_distributor_moved(d, 0, first, 1), PEN_OK);
    expect(d, 0, PEN_ACTION_ADOPTED, first.id);
    assert_settled(d, 3);
    pen_distributor_destroy(d);
}

static void test_a_cancel_follows_its_request(void **state) {
    (void)state;
    pen_distributor *d = make(3, "round-robin", 3);
    pen_action a = expect(d, 0, PEN_ACTION_DISPATCH, admit(d, (pen_admission){.prompt = 9, .output = 9}, 0));
    pen_stamp first = {a.stamp.id, 0, 1};
    pen_distributor_cancel(d, a.stamp.id);
    pen_distributor_cancel(d, a.stamp.id);
    assert_int_equal(expect(d, 0, PEN_ACTION_CANCEL, a.stamp.id).replica, 0);
    expect_nothing(d, 0);
    /* It was stolen meanwhile. The thief is told, and told again when it surely has it. */
    pen_distributor_moved(d, 0, first, 1);
    expect(d, 0, PEN_ACTION_ADOPTED, a.stamp.id);
    pen_action told = expect(d, 0, PEN_ACTION_CANCEL, a.stamp.id);
    assert_int_equal(told.replica, 1);
    assert_int_equal(told.stamp.hop, 1);
    expect_nothing(d, 0);
    pen_distributor_taken(d, 1, first);
    assert_int_equal(expect(d, 0, PEN_ACTION_CANCEL, a.stamp.id).replica, 1);
    expect_nothing(d, 0);
    /* Its replica is lost: the wish is all that is left of it. */
    pen_distributor_lost(d, 1);
    expect(d, 0, PEN_ACTION_CANCELLED, a.stamp.id);
    assert_settled(d, 3);
    /* A life of it that turns up later is not wanted. */
    pen_distributor_taken(d, 2, (pen_stamp){a.stamp.id, 0, 2});
    told = expect(d, 0, PEN_ACTION_CANCEL, a.stamp.id);
    assert_int_equal(told.replica, 2);
    assert_int_equal(told.stamp.hop, 2);
    pen_distributor_cancel(d, a.stamp.id);
    pen_distributor_cancel(d, 12345);
    expect_nothing(d, 0);
    pen_distributor_destroy(d);
}

static void test_losses(void **state) {
    (void)state;
    pen_distributor *d = make(3, "round-robin", 3);
    pen_action a = expect(d, 0, PEN_ACTION_DISPATCH, admit(d, (pen_admission){.prompt = 9, .output = 9}, 0));
    pen_action b = expect(d, 0, PEN_ACTION_DISPATCH, admit(d, (pen_admission){.prompt = 9, .output = 9}, 0));
    assert_int_equal(a.replica, 0);
    assert_int_equal(b.replica, 1);
    /* 0 says that it gave its request to 2, and dies: 2 may never have got it. */
    pen_distributor_moved(d, 0, (pen_stamp){a.stamp.id, 0, 1}, 2);
    expect(d, 0, PEN_ACTION_ADOPTED, a.stamp.id);
    pen_distributor_lost(d, 0);
    assert_false(pen_distributor_alive(d, 0));
    pen_action again = expect(d, 0, PEN_ACTION_DISPATCH, a.stamp.id);
    assert_int_equal(again.stamp.attempt, 1);
    assert_int_equal(again.stamp.hop, 0);
    assert_int_equal(again.replica, 2);
    /* 2 got it, after all. The new attempt is what counts. */
    pen_distributor_taken(d, 2, (pen_stamp){a.stamp.id, 0, 1});
    assert_int_equal(expect(d, 0, PEN_ACTION_CANCEL, a.stamp.id).stamp.attempt, 0);
    assert_false(pen_distributor_ended(d, 2, (pen_stamp){a.stamp.id, 0, 1}));
    /* 1 gave its own to 0, before it heard of the loss; and what 0 says itself counts no more. */
    pen_distributor_moved(d, 1, (pen_stamp){b.stamp.id, 0, 1}, 0);
    expect(d, 0, PEN_ACTION_ADOPTED, b.stamp.id);
    assert_int_equal(expect(d, 0, PEN_ACTION_DISPATCH, b.stamp.id).stamp.attempt, 1);
    pen_distributor_taken(d, 0, (pen_stamp){b.stamp.id, 1, 1});
    pen_distributor_moved(d, 0, (pen_stamp){b.stamp.id, 1, 1}, 2);
    expect_nothing(d, 0);
    assert_int_equal(pen_distributor_account(d, 0).requests, 0);
    assert_true(outstanding(d, 0) == 0);
    assert_int_equal(pen_distributor_open(d), 2);
    pen_distributor_destroy(d);
}

/* 100,000 requests, thousands of them open at a time, that end in any order. */
static void test_many_requests(void **state) {
    (void)state;
    enum { OPEN = 5000, ALL = 100000 };
    static pen_action open[OPEN];
    pen_distributor *d = make(4, "weighted", UNBOUNDED);
    srand(1);
    for (int i = 0; i < ALL; i++) {
        pen_action *slot = &open[rand() % OPEN];
        if (slot->cost_ms > 0) assert_true(pen_distributor_ended(d, slot->replica, slot->stamp));
        int64_t id = admit(d, (pen_admission){.prompt = 1 + rand() % 3000, .output = rand() % 300}, i);
        *slot = expect(d, i, PEN_ACTION_DISPATCH, id);
        if (rand() % 2) pen_distributor_progressed(d, slot->replica, slot->stamp, rand() % 100);
    }
    for (int i = 0; i < OPEN; i++)
        if (open[i].cost_ms > 0) assert_true(pen_distributor_ended(d, open[i].replica, open[i].stamp));
    assert_settled(d, 4);
    pen_distributor_destroy(d);
}

/* ---- Weights ----------------------------------------------------------------------------------------------------- */

/* What a toy replica has yet to do, one request after the other. */
typedef struct toy {
    pen_action queue[64];
    double left_ms[64];
    int count;
    double speed, busy_ms, planned_ms;
    double done_ms; /* by the profile, after the first seconds */
} toy;

static void toy_work(pen_distributor *d, int self, toy *t, double ms, bool counts) {
    while (t->count > 0 && ms > 0) {
        double takes = t->left_ms[0] / t->speed, spent = takes < ms ? takes : ms;
        ms -= spent;
        t->busy_ms += spent;
        t->planned_ms += spent * t->speed;
        if (counts) t->done_ms += spent * t->speed;
        t->left_ms[0] -= spent * t->speed;
        if (takes > spent) break;
        assert_true(pen_distributor_ended(d, self, t->queue[0].stamp));
        memmove(t->queue, t->queue + 1, sizeof t->queue - sizeof t->queue[0]);
        memmove(t->left_ms, t->left_ms + 1, sizeof t->left_ms - sizeof t->left_ms[0]);
        t->count--;
    }
}

/* Always 20 requests for two replicas, of which the second one is half as fast as its profile says, for 60 s. */
static double share_of_slowed(const char *policy, double *waits) {
    pen_distributor *d = make(2, policy, 64);
    static toy toys[2];
    memset(toys, 0, sizeof toys);
    toys[0].speed = 1;
    toys[1].speed = 0.5;
    srand(2);
    *waits = 0;
    for (int tick = 0; tick < 6000; tick++) {
        int64_t now_ns = tick * 10 * MS;
        while (pen_distributor_open(d) < 20)
            admit(d, (pen_admission){.prompt = rand() % 50, .output = 1 + rand() % 10}, now_ns);
        pen_action action;
        while (pen_distributor_next(d, now_ns, &action)) {
            toy *t = &toys[action.replica];
            t->queue[t->count] = action;
            t->left_ms[t->count++] = action.cost_ms;
        }
        for (int i = 0; i < 2; i++) {
            toy_work(d, i, &toys[i], 10, tick > 1000);
            pen_replica_load load = {
                .busy_s = toys[i].busy_ms * 1e-3, .planned_ms = toys[i].planned_ms, .full_ms = toys[i].busy_ms};
            if (tick % 10 == 0) pen_distributor_report(d, i, &load, now_ns);
        }
        if (tick > 1000) *waits += toys[1].count / 5000.0;
    }
    if (strcmp(policy, "weighted") == 0) {
        pen_replica_account fast = pen_distributor_account(d, 0), slow = pen_distributor_account(d, 1);
        assert_true(fast.speed > 0.99 && fast.speed < 1.01);
        assert_true(slow.speed > 0.49 && slow.speed < 0.51);
        assert_true(fast.utilisation > 0.95 && slow.utilisation > 0.95);
        assert_true(fast.weight / slow.weight > 1.95 && fast.weight / slow.weight < 2.05);
    }
    pen_distributor_destroy(d);
    return toys[1].done_ms / (toys[0].done_ms + toys[1].done_ms);
}

static void test_a_slowed_replica_gets_what_it_deserves(void **state) {
    (void)state;
    double weighted_waits, cost_waits;
    double weighted = share_of_slowed("weighted", &weighted_waits),
           by_cost = share_of_slowed("least-cost", &cost_waits);
    /* Both are never idle, so both do what they can. But without weights they hold equal work, and at the slow one all
     * of it waits twice as long. */
    assert_true(weighted > 0.95 / 3 && weighted < 1.05 / 3);
    assert_true(by_cost > 0.95 / 3 && by_cost < 1.05 / 3);
    assert_true(weighted_waits > 0.93 * 20 / 3 && weighted_waits < 1.07 * 20 / 3);
    assert_true(cost_waits > 0.93 * 10 && cost_waits < 1.07 * 10);
}

static void test_weight_follows_utilisation(void **state) {
    (void)state;
    pen_distributor *d = make(3, "weighted", 9);
    for (int i = 0; i < 3; i++) assert_true(pen_distributor_account(d, i).weight == 1);
    static const double busy[] = {0.97, 0.7, 0.2};
    for (int second = 0; second <= 20; second++) {
        for (int i = 0; i < 3; i++) {
            pen_replica_load load = {.busy_s = second * busy[i], .planned_ms = second * 5, .full_ms = second * 20};
            pen_distributor_report(d, i, &load, second * S);
            /* Reports in between change nothing. */
            double weight = pen_distributor_account(d, i).weight;
            load.busy_s += 0.5;
            pen_distributor_report(d, i, &load, second * S + S / 2);
            assert_true(pen_distributor_account(d, i).weight == weight);
        }
    }
    static const double expected[] = {0.5, 1, 1.5};
    for (int i = 0; i < 3; i++) {
        pen_replica_account account = pen_distributor_account(d, i);
        assert_true(account.weight / account.speed > 0.99 * expected[i]);
        assert_true(account.weight / account.speed < 1.01 * expected[i]);
        assert_true(account.utilisation > busy[i] - 0.01 && account.utilisation < busy[i] + 0.01);
        assert_true(account.speed > 0.249 && account.speed < 0.251); /* 20 ms a second are little, but they add up */
    }
    pen_distributor_destroy(d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_policy_looks_at_its_own),
        cmocka_unit_test(test_only_replicas_that_live_and_have_room),
        cmocka_unit_test(test_weighted_fills_free_slots_first),
        cmocka_unit_test(test_equal_replicas_take_turns),
        cmocka_unit_test(test_unknown_policy),
        cmocka_unit_test(test_three_lengths),
        cmocka_unit_test(test_urgency),
        cmocka_unit_test(test_room_is_exact),
        cmocka_unit_test(test_the_buffer_is_bounded),
        cmocka_unit_test(test_timeouts),
        cmocka_unit_test(test_what_came_back_costs_no_more),
        cmocka_unit_test(test_costs_of_unlike_replicas),
        cmocka_unit_test(test_prefix_affinity),
        cmocka_unit_test(test_prefix_memory_is_bounded),
        cmocka_unit_test(test_predicted_time_to_first_token),
        cmocka_unit_test(test_the_highest_hop_is_believed),
        cmocka_unit_test(test_a_cancel_follows_its_request),
        cmocka_unit_test(test_losses),
        cmocka_unit_test(test_many_requests),
        cmocka_unit_test(test_a_slowed_replica_gets_what_it_deserves),
        cmocka_unit_test(test_weight_follows_utilisation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
