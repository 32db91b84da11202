/*
 * A leader's queue by itself: what starts first, what a thief asks for and gets, and how long what was given is
 * remembered. That nothing is lost or doubled between leaders is test_distribution's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "replica_queue.h"

enum { LEADERS = 4 };
#define MS INT64_C(1000000)
#define S  (1000 * MS)

static const pen_token_cost COST = {1, 10};

static pen_replica_queue *make(bool steals) {
    pen_replica_queue *queue;
    assert_int_equal(pen_replica_queue_create(0, LEADERS, steals, COST, &queue), PEN_OK);
    return queue;
}

/* Costs are 10 ms of prompt and the rest of output. */
static void push(pen_replica_queue *queue, int id, int priority, int64_t arrived_ns, double cost_ms) {
    pen_queued entry = {.stamp = {.id = id},
                        .priority = priority,
                        .arrived_ns = arrived_ns,
                        .cost_ms = cost_ms,
                        .prompt_ms = 10,
                        .payload = malloc(1),
                        .bytes = 1};
    assert_non_null(entry.payload);
    assert_int_equal(pen_replica_queue_push(queue, &entry), PEN_OK);
}

static void push_many(pen_replica_queue *queue, int count, double cost_ms) {
    for (int id = 0; id < count; id++) push(queue, id, 0, id, cost_ms);
}

static void expect_pop(pen_replica_queue *queue, int64_t now_ns, int id) {
    pen_queued entry;
    int priority;
    assert_true(pen_replica_queue_peek(queue, now_ns, &priority));
    assert_true(pen_replica_queue_pop(queue, now_ns, &entry));
    assert_int_equal(entry.stamp.id, id);
    assert_int_equal(entry.priority, priority);
    free(entry.payload);
}

static void hear(pen_replica_queue *queue, int replica, int queued, double queued_ms) {
    pen_replica_load load = {.queued = queued, .queued_ms = queued_ms};
    pen_replica_queue_hear(queue, replica, &load);
}

/* Whom the queue asks; −1: nobody. */
static int asks(pen_replica_queue *queue, int free_slots, int64_t now_ns) {
    pen_replica_load load = {.queued_ms = 3, .running_ms = 4};
    pen_steal_ask ask;
    int victim;
    if (!pen_replica_queue_ask(queue, &load, 0.5, free_slots, now_ns, &victim, &ask)) return -1;
    assert_true(ask.backlog_ms == 7 && ask.speed == 0.5 && ask.cost.prompt_ms == 1 && ask.cost.output_ms == 10);
    assert_int_equal(ask.free_slots, free_slots);
    assert_true(ask.most >= 8 && ask.most >= free_slots);
    return victim;
}

/* Gives to leader 2, who has `backlog_ms` and is so fast, from a queue that has `running_ms` to do before. */
static int give(pen_replica_queue *queue, double running_ms, double backlog_ms, double speed, pen_queued *given) {
    pen_steal_ask ask = {.backlog_ms = backlog_ms, .speed = speed, .cost = COST, .most = 100};
    pen_replica_load load = {.running_ms = running_ms, .queued_ms = pen_replica_queue_cost_ms(queue)};
    int count = pen_replica_queue_give(queue, 2, &ask, &load, 1, 0, given, 100);
    for (int i = 0; i < count; i++) {
        assert_int_equal(given[i].stamp.hop, 1);
        free(given[i].payload);
    }
    return count;
}

static void assert_balanced(const pen_replica_queue *queue) {
    pen_queue_counts c = pen_replica_queue_counts(queue);
    assert_int_equal(c.received + c.taken, c.started + c.given + c.removed + (uint64_t)pen_replica_queue_length(queue));
}

/* ---- The queue --------------------------------------------------------------------------------------------------- */

static void test_the_most_urgent_starts(void **state) {
    (void)state;
    pen_replica_queue *queue = make(true);
    push(queue, 1, 3, 0, 20);
    push(queue, 2, 0, 2 * S, 20);
    push(queue, 3, 0, 1 * S, 20);
    push(queue, 4, -1, 3 * S, 20);
    push(queue, 5, 0, 1 * S, 20);
    expect_pop(queue, 5 * S - 1, 4);
    expect_pop(queue, 5 * S - 1, 3);
    expect_pop(queue, 5 * S, 1); /* it has waited for 5 s */
    expect_pop(queue, 5 * S, 5);
    expect_pop(queue, 5 * S, 2);
    pen_queued entry;
    int priority;
    assert_false(pen_replica_queue_pop(queue, 5 * S, &entry));
    assert_false(pen_replica_queue_peek(queue, 5 * S, &priority));
    assert_balanced(queue);
    assert_true(pen_replica_queue_is_still(queue));
    pen_replica_queue_destroy(queue);
}

static void test_what_waits_for_too_long_leaves(void **state) {
    (void)state;
    pen_replica_queue *queue = make(true);
    push(queue, 1, 0, 0, 20);
    pen_queued entry = {.stamp = {.id = 2}, .arrived_ns = 0, .deadline_ns = 3 * S};
    assert_int_equal(pen_replica_queue_push(queue, &entry), PEN_OK);
    assert_false(pen_replica_queue_expire(queue, 3 * S - 1, &entry));
    assert_true(pen_replica_queue_expire(queue, 3 * S, &entry));
    assert_int_equal(entry.stamp.id, 2);
    assert_false(pen_replica_queue_expire(queue, 99 * S, &entry)); /* the other one has no deadline */
    assert_int_equal(pen_replica_queue_counts(queue).removed, 1);
    assert_balanced(queue);
    pen_replica_queue_destroy(queue);
}

static void test_cancels(void **state) {
    (void)state;
    pen_replica_queue *queue = make(true);
    push_many(queue, 3, 20);
    pen_queued entry;
    int thief;
    pen_stamp other_attempt = {.id = 1, .attempt = 1};
    assert_int_equal(pen_replica_queue_cancel(queue, other_attempt, &entry, &thief), PEN_CANCEL_ELSEWHERE);
    assert_int_equal(pen_replica_queue_cancel(queue, (pen_stamp){.id = 1}, &entry, &thief), PEN_CANCEL_QUEUED);
    assert_int_equal(entry.stamp.id, 1);
    free(entry.payload);
    assert_int_equal(pen_replica_queue_cancel(queue, (pen_stamp){.id = 1}, &entry, &thief), PEN_CANCEL_ELSEWHERE);
    assert_int_equal(pen_replica_queue_length(queue), 2);
    assert_true(pen_replica_queue_cost_ms(queue) == 40);
    assert_balanced(queue);
    pen_replica_queue_destroy(queue);
}

static void test_a_cancel_is_forwarded_until_the_move_is_known(void **state) {
    (void)state;
    pen_replica_queue *queue = make(true);
    pen_queued given[4], entry;
    int thief = -1;
    push(queue, 7, 0, 0, 20);
    assert_int_equal(give(queue, 1000, 0, 1, given), 1);
    assert_false(pen_replica_queue_is_still(queue));
    assert_int_equal(pen_replica_queue_cancel(queue, (pen_stamp){.id = 7}, &entry, &thief), PEN_CANCEL_GIVEN);
    assert_int_equal(thief, 2);
    assert_int_equal(entry.stamp.hop, 1);
    /* A cancel of its life with the thief, or of a later one, is none of this queue's. */
    pen_stamp later = {.id = 7, .hop = 1};
    assert_int_equal(pen_replica_queue_cancel(queue, later, &entry, &thief), PEN_CANCEL_ELSEWHERE);
    /* It comes back, and is given away once more: the last move counts. */
    entry = (pen_queued){.stamp = {.id = 7, .hop = 2}, .cost_ms = 20, .prompt_ms = 10};
    assert_int_equal(pen_replica_queue_push(queue, &entry), PEN_OK);
    pen_steal_ask ask = {.speed = 1, .cost = COST, .most = 1};
    pen_replica_load load = {.running_ms = 1000};
    assert_int_equal(pen_replica_queue_give(queue, 3, &ask, &load, 1, 0, given, 4), 1);
    assert_int_equal(pen_replica_queue_cancel(queue, (pen_stamp){.id = 7}, &entry, &thief), PEN_CANCEL_GIVEN);
    assert_int_equal(thief, 3);
    assert_int_equal(entry.stamp.hop, 3);
    /* Rank 0 knows: one after the other is forgotten. */
    pen_replica_queue_adopted(queue, (pen_stamp){.id = 7, .hop = 3});
    assert_int_equal(pen_replica_queue_cancel(queue, (pen_stamp){.id = 7}, &entry, &thief), PEN_CANCEL_GIVEN);
    assert_int_equal(thief, 2);
    pen_replica_queue_adopted(queue, later);
    assert_int_equal(pen_replica_queue_cancel(queue, (pen_stamp){.id = 7}, &entry, &thief), PEN_CANCEL_ELSEWHERE);
    assert_true(pen_replica_queue_is_still(queue));
    assert_int_equal(pen_replica_queue_counts(queue).taken, 1);
    assert_balanced(queue);
    pen_replica_queue_destroy(queue);
}

/* ---- Giving ------------------------------------------------------------------------------------------------------ */

static void test_the_least_urgent_half_is_given(void **state) {
    (void)state;
    pen_replica_queue *queue = make(true);
    pen_queued given[8];
    push_many(queue, 6, 20);
    push(queue, 6, -1, 6, 20);
    assert_int_equal(give(queue, 1000, 0, 1, given), 4); /* of seven */
    for (int i = 0; i < 4; i++) assert_int_equal(given[i].stamp.id, 5 - i);
    expect_pop(queue, 0, 6);
    expect_pop(queue, 0, 0);
    expect_pop(queue, 0, 1);
    assert_int_equal(pen_replica_queue_counts(queue).given, 4);
    assert_balanced(queue);
    pen_replica_queue_destroy(queue);
}

static void test_only_what_the_thief_does_sooner(void **state) {
    (void)state;
    pen_replica_queue *queue = make(true);
    pen_queued given[8];
    push_many(queue, 8, 100);
    /* Here the last one would be done after 800 ms. There the first would be after 650, the second after 750, when it
     * is done here after 700. */
    assert_int_equal(give(queue, 0, 550, 1, given), 1);
    assert_int_equal(given[0].stamp.id, 7);
    assert_int_equal(give(queue, 0, 600, 1, given), 0);
    /* The same thief, twice as fast. */
    assert_int_equal(give(queue, 0, 600, 2, given), 3);
    assert_int_equal(pen_replica_queue_length(queue), 4);
    /* A short one behind long ones. */
    push(queue, 20, -1, 0, 11);
    assert_int_equal(give(queue, 0, 320, 1, given), 0);
    push(queue, 21, 1, 0, 11);
    assert_int_equal(give(queue, 0, 320, 1, given), 1);
    assert_int_equal(given[0].stamp.id, 21);
    pen_replica_queue_destroy(queue);
}

/* What the thief starts at once is what has waited longest; the rest comes from the other end. */
static void test_free_slots_take_the_most_urgent(void **state) {
    (void)state;
    pen_replica_queue *queue = make(true);
    pen_queued given[8];
    push_many(queue, 8, 100);
    pen_steal_ask ask = {.speed = 1, .cost = COST, .free_slots = 2, .running = 2, .most = 3};
    pen_replica_load load = {.running = 4, .running_ms = 200};
    assert_int_equal(pen_replica_queue_give(queue, 1, &ask, &load, 1, 0, given, 8), 3);
    static const int ids[] = {0, 1, 7};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(given[i].stamp.id, ids[i]);
        free(given[i].payload);
    }
    /* The next one starts here when a quarter of 200 ms is gone, and is done after 450, one of four; the last one after
     * 775. There, one of four, too, but half as fast, each would be done after 800. */
    ask = (pen_steal_ask){.backlog_ms = 10000, .speed = 0.5, .cost = COST, .free_slots = 1, .running = 3, .most = 3};
    assert_int_equal(pen_replica_queue_give(queue, 1, &ask, &load, 1, 0, given, 8), 0);
    ask.speed = 0.95;
    assert_int_equal(pen_replica_queue_give(queue, 1, &ask, &load, 1, 0, given, 8), 1);
    assert_int_equal(given[0].stamp.id, 2);
    free(given[0].payload);
    expect_pop(queue, 0, 3);
    assert_balanced(queue);
    pen_replica_queue_destroy(queue);
}

static void test_costs_are_the_thiefs_there(void **state) {
    (void)state;
    pen_replica_queue *queue = make(true);
    pen_queued given[2];
    push_many(queue, 2, 110);
    pen_steal_ask ask = {.speed = 1, .cost = {3, 5}, .most = 1};
    pen_replica_load load = {.running_ms = 0};
    assert_int_equal(pen_replica_queue_give(queue, 1, &ask, &load, 1, 0, given, 2), 1);
    assert_true(given[0].prompt_ms == 30 && given[0].cost_ms == 80);
    free(given[0].payload);
    /* A thief ten times as slow would be done later. */
    ask.cost = (pen_token_cost){10, 100};
    assert_int_equal(pen_replica_queue_give(queue, 1, &ask, &load, 1, 0, given, 2), 0);
    pen_replica_queue_destroy(queue);
}

static void test_limits_of_a_gift(void **state) {
    (void)state;
    pen_replica_queue *queue = make(true);
    pen_queued given[8];
    pen_steal_ask ask = {.speed = 1, .cost = COST, .most = 2};
    pen_replica_load load = {.running_ms = 1000};
    assert_int_equal(pen_replica_queue_give(queue, 1, &ask, &load, 1, 0, given, 8), 0);
    push_many(queue, 9, 20);
    assert_int_equal(pen_replica_queue_give(queue, 1, &ask, &load, 1, 0, given, 8), 2);
    assert_int_equal(pen_replica_queue_give(queue, 1, &ask, &load, 1, 0, given + 2, 1), 1);
    for (int i = 0; i < 3; i++) free(given[i].payload);
    pen_replica_queue_drain(queue);
    assert_int_equal(pen_replica_queue_give(queue, 1, &ask, &load, 1, 0, given, 8), 0);
    pen_replica_queue_destroy(queue);
}

/* ---- Asking ------------------------------------------------------------------------------------------------------ */

static void test_who_is_asked(void **state) {
    (void)state;
    pen_replica_queue *queue = make(true);
    assert_int_equal(asks(queue, 1, 0), -1); /* nobody is known to have any */
    hear(queue, 0, 99, 99);                  /* itself */
    hear(queue, 1, 1, 50);
    hear(queue, 2, 1, 70);
    assert_int_equal(asks(queue, 0, 0), -1); /* it is not idle, and those queues are short */
    assert_int_equal(asks(queue, 1, 0), 2);
    assert_int_equal(asks(queue, 1, 0), -1); /* one at a time */
    pen_replica_queue_took(queue, 2, 1, 0);
    assert_int_equal(asks(queue, 1, 0), 1); /* 2 has given what it had */
    pen_replica_queue_took(queue, 1, 1, 0);
    assert_int_equal(asks(queue, 1, 0), -1);
    hear(queue, 3, 6, 10);
    assert_int_equal(asks(queue, 0, 0), 3); /* a long queue relieves who will be idle soon */
    pen_replica_queue_took(queue, 3, 1, 0);
    push_many(queue, 2, 20);
    hear(queue, 3, 7, 10);
    assert_int_equal(asks(queue, 9, 0), -1); /* it has its own to start */
    hear(queue, 3, 8, 10);
    assert_int_equal(asks(queue, 0, 0), 3);
    assert_int_equal(pen_replica_queue_counts(queue).asks, 4);
    /* Who is lost does not answer, and is not asked. */
    assert_false(pen_replica_queue_is_still(queue));
    pen_replica_queue_lost(queue, 3);
    hear(queue, 3, 50, 10);
    assert_int_equal(asks(queue, 9, 0), -1);
    hear(queue, 1, 50, 10);
    pen_replica_queue_drain(queue);
    assert_int_equal(asks(queue, 9, 0), -1);
    pen_replica_queue_destroy(queue);

    queue = make(false);
    hear(queue, 1, 50, 10);
    assert_int_equal(asks(queue, 9, 0), -1);
    pen_replica_queue_destroy(queue);
}

static void test_an_empty_answer_is_no_reason_to_ask_again(void **state) {
    (void)state;
    pen_replica_queue *queue = make(true);
    hear(queue, 1, 3, 90);
    hear(queue, 2, 3, 50);
    assert_int_equal(asks(queue, 1, 0), 1);
    pen_replica_queue_took(queue, 1, 0, 0);
    assert_int_equal(asks(queue, 1, 20 * MS - 1), -1);
    assert_int_equal(asks(queue, 1, 20 * MS), 2); /* somebody else */
    pen_replica_queue_took(queue, 2, 0, 20 * MS);
    assert_int_equal(asks(queue, 1, 60 * MS - 1), -1);
    assert_int_equal(asks(queue, 1, 60 * MS), 1);
    pen_replica_queue_took(queue, 1, 0, 60 * MS);
    hear(queue, 1, 3, 80); /* no news */
    assert_int_equal(asks(queue, 1, 140 * MS - 1), -1);
    hear(queue, 1, 4, 80);
    assert_int_equal(asks(queue, 1, 140 * MS), 1); /* news: the waits begin anew */
    pen_replica_queue_took(queue, 1, 0, 140 * MS);
    assert_int_equal(asks(queue, 1, 160 * MS), 1);
    pen_replica_queue_took(queue, 1, 1, 160 * MS);
    assert_int_equal(asks(queue, 1, 160 * MS), 1); /* it gave one, and may give more */
    /* While nothing changes, five a second. */
    pen_replica_queue_took(queue, 1, 0, 160 * MS);
    int count = 0;
    for (int64_t now_ns = 200 * MS; now_ns < 10 * S; now_ns += MS) {
        int victim = asks(queue, 1, now_ns);
        if (victim < 0) continue;
        pen_replica_queue_took(queue, victim, 0, now_ns);
        count++;
    }
    assert_in_range(count, 45, 55);
    pen_replica_queue_destroy(queue);
}

static void test_a_lost_thief_is_forgotten(void **state) {
    (void)state;
    pen_replica_queue *queue = make(true);
    pen_queued given[4], entry;
    int thief;
    push(queue, 7, 0, 0, 20);
    assert_int_equal(give(queue, 1000, 0, 1, given), 1);
    pen_replica_queue_lost(queue, 2);
    assert_int_equal(pen_replica_queue_cancel(queue, (pen_stamp){.id = 7}, &entry, &thief), PEN_CANCEL_ELSEWHERE);
    pen_replica_queue_adopted(queue, (pen_stamp){.id = 7, .hop = 1});
    assert_true(pen_replica_queue_is_still(queue));
    pen_replica_queue_destroy(queue);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_most_urgent_starts),
        cmocka_unit_test(test_what_waits_for_too_long_leaves),
        cmocka_unit_test(test_cancels),
        cmocka_unit_test(test_a_cancel_is_forwarded_until_the_move_is_known),
        cmocka_unit_test(test_the_least_urgent_half_is_given),
        cmocka_unit_test(test_only_what_the_thief_does_sooner),
        cmocka_unit_test(test_free_slots_take_the_most_urgent),
        cmocka_unit_test(test_costs_are_the_thiefs_there),
        cmocka_unit_test(test_limits_of_a_gift),
        cmocka_unit_test(test_who_is_asked),
        cmocka_unit_test(test_an_empty_answer_is_no_reason_to_ask_again),
        cmocka_unit_test(test_a_lost_thief_is_forgotten),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
