/* How evenly a load was spread: factors, windows, queues and utilisation from logs that are written by hand. */
#include "balance.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { REPLICAS = 2, STAGES = 2, REQUESTS = 4, SAMPLES = 512 };

typedef struct hand_log {
    pen_load_log log;
    pen_load_request requests[REQUESTS];
    int64_t ends[REQUESTS];
    pen_metrics stages[REPLICAS * STAGES];
    pen_load_sample samples[SAMPLES];
    uint64_t stolen[REPLICAS];
    double steal_s[REPLICAS];
} hand_log;

static int64_t ns_of(double seconds) {
    return llround(seconds * 1e9);
}

static void near(double got, double wanted, double tolerance) {
    if (!(fabs(got - wanted) <= tolerance)) fail_msg("%g is not %g", got, wanted);
}

/* Nothing happened yet, from second `begin` to second `end`. */
static void write_log(hand_log *hand, double begin, double end) {
    memset(hand, 0, sizeof *hand);
    hand->log = (pen_load_log){.replicas = REPLICAS,
                               .stages = STAGES,
                               .span_count = 1,
                               .requests = hand->requests,
                               .samples = hand->samples,
                               .stolen = hand->stolen,
                               .steal_s = hand->steal_s};
    hand->log.load.requests = REQUESTS;
    hand->log.spans[0] = (pen_load_span){.begin_ns = ns_of(begin), .end_ns = ns_of(end), .stages = hand->stages};
    for (int i = 0; i < REQUESTS; i++)
        hand->requests[i] =
            (pen_load_request){.token_ns = &hand->ends[i], .prompt_tokens = 5, .output_tokens = 1, .tokens = 1};
}

static void report(hand_log *hand, double at, int replica, int queued, int waiting, double busy_s) {
    assert_true(hand->log.sample_count < SAMPLES);
    hand->samples[hand->log.sample_count++] = (pen_load_sample){
        .time_ns = ns_of(at), .replica = replica, .queued = queued, .waiting = waiting, .busy_s = busy_s};
}

/* Both report every half second from `begin` to `end`, busy for these shares of the time. */
static void report_evenly(hand_log *hand, double begin, double end, const double busy[REPLICAS]) {
    for (double at = begin; at <= end; at += 0.5)
        for (int r = 0; r < REPLICAS; r++) report(hand, at + 0.01 * r, r, 1, 2, 100 + busy[r] * (at + 0.01 * r));
}

static pen_balance balance_of(const hand_log *hand) {
    pen_balance balance;
    assert_int_equal(pen_balance_of(&hand->log, &balance), PEN_OK);
    return balance;
}

static void test_of_each_replica_its_slowest_stage_counts(void **state) {
    (void)state;
    hand_log hand;
    write_log(&hand, 10, 14);
    static const double busy[REPLICAS * STAGES] = {1, 3, 2, 1};
    for (int s = 0; s < REPLICAS * STAGES; s++) hand.stages[s].seconds[PEN_BUSY] = busy[s];
    hand.stolen[1] = 7;
    hand.steal_s[1] = 0.002;
    pen_balance balance = balance_of(&hand);
    near(balance.replicas[0].utilisation, 0.75, 1e-12);
    near(balance.replicas[1].utilisation, 0.5, 1e-12);
    near(balance.factor, 1.5, 1e-12);
    assert_int_equal(balance.replicas[1].stolen, 7);
    near(balance.replicas[1].steal_share, 0.0005, 1e-12);
    assert_int_equal(balance.windows, 0);
    pen_balance_free(&balance);
    hand.stages[2].seconds[PEN_BUSY] = hand.stages[3].seconds[PEN_BUSY] = 0;
    balance = balance_of(&hand);
    assert_true(isinf(balance.factor)); /* one did nothing */
    pen_balance_free(&balance);
}

static void test_windows_are_of_five_seconds(void **state) {
    (void)state;
    hand_log hand;
    write_log(&hand, 10, 24);
    report_evenly(&hand, 8, 16, (const double[]){0.9, 0.6});
    report_evenly(&hand, 16.5, 26, (const double[]){0.9, 0.6});
    pen_balance balance = balance_of(&hand);
    assert_int_equal(balance.windows, 2); /* and a rest of 4 s */
    near(balance.worst_factor, 1.5, 1e-9);
    pen_balance_free(&balance);
    /* Twice as busy from 16 on: the second window is even. */
    for (int i = 0; i < hand.log.sample_count; i++) {
        pen_load_sample *s = &hand.samples[i];
        if (s->replica == 1 && s->time_ns > ns_of(15)) s->busy_s += 0.3 * ((double)s->time_ns * 1e-9 - 15);
    }
    hand.log.spans[0].begin_ns = ns_of(15);
    balance = balance_of(&hand);
    assert_int_equal(balance.windows, 1);
    near(balance.worst_factor, 1, 1e-3);
    pen_balance_free(&balance);
}

static void test_a_window_without_waiting_requests_does_not_count(void **state) {
    (void)state;
    hand_log hand;
    write_log(&hand, 10, 20);
    report_evenly(&hand, 8, 22, (const double[]){0.9, 0.6});
    for (int i = 0; i < hand.log.sample_count; i++)
        if (hand.samples[i].time_ns == ns_of(17)) hand.samples[i].waiting = 0; /* for a moment */
    pen_balance balance = balance_of(&hand);
    assert_int_equal(balance.windows, 1);
    pen_balance_free(&balance);
}

/* A replica that is at a long step says nothing: it is not taken for idle. */
static void test_a_window_must_lie_between_reports(void **state) {
    (void)state;
    hand_log hand;
    write_log(&hand, 10, 20);
    for (double at = 9; at <= 21; at += 0.5) report(&hand, at, 0, 1, 2, at);
    report(&hand, 11, 1, 1, 2, 1.5);
    report(&hand, 18, 1, 1, 2, 8.5);
    pen_balance balance = balance_of(&hand);
    assert_int_equal(balance.windows, 0);
    pen_balance_free(&balance);
    report(&hand, 20, 1, 1, 2, 10.5);
    hand.log.spans[0].begin_ns = ns_of(13);
    balance = balance_of(&hand);
    assert_int_equal(balance.windows, 1);
    near(balance.worst_factor, 1, 1e-9); /* both were busy all the time, as the next report shows */
    pen_balance_free(&balance);
}

static void test_a_replica_that_did_nothing_makes_the_factor_infinite(void **state) {
    (void)state;
    hand_log hand;
    write_log(&hand, 10, 15);
    report_evenly(&hand, 9, 16, (const double[]){0.9, 0});
    pen_balance balance = balance_of(&hand);
    assert_int_equal(balance.windows, 1);
    assert_true(isinf(balance.worst_factor));
    pen_balance_free(&balance);
}

static void test_queues_are_averaged_over_time(void **state) {
    (void)state;
    hand_log hand;
    write_log(&hand, 10, 20);
    report(&hand, 8, 0, 9, 0, 0); /* 9 until 9, 4 until 12, then 0 until 17, then 6 */
    report(&hand, 9, 0, 4, 0, 0);
    report(&hand, 12, 0, 0, 0, 0);
    report(&hand, 12, 1, 5, 0, 0); /* nothing known before */
    report(&hand, 17, 0, 6, 0, 0);
    report(&hand, 21, 0, 50, 0, 0);
    pen_balance balance = balance_of(&hand);
    near(balance.replicas[0].queue_mean, (4 * 2 + 6 * 3) / 10.0, 1e-12);
    assert_int_equal(balance.replicas[0].queue_most, 6);
    near(balance.replicas[1].queue_mean, 5 * 8 / 10.0, 1e-12);
    pen_balance_free(&balance);
}

static void test_requests_count_where_they_ended(void **state) {
    (void)state;
    hand_log hand;
    write_log(&hand, 10, 20);
    static const double arrived[REQUESTS] = {1, 10, 12, 13}, ended[REQUESTS] = {10, 12, 20, 21};
    for (int i = 0; i < REQUESTS; i++) {
        hand.requests[i].arrived_ns = ns_of(arrived[i]);
        hand.requests[i].replica = 1;
        hand.ends[i] = ns_of(ended[i]);
    }
    pen_balance balance = balance_of(&hand); /* the first ended just before, the last one later */
    assert_int_equal(balance.replicas[0].requests, 0);
    assert_int_equal(balance.replicas[1].requests, 2);
    near(balance.replicas[1].e2el.mean, (2000 + 8000) / 2.0, 1e-9);
    near(balance.replicas[1].tokens, 2 * (1 + 5), 1e-12);
    pen_balance_free(&balance);
    hand.requests[1].expired = true;
    balance = balance_of(&hand);
    assert_int_equal(balance.replicas[1].requests, 1);
    pen_balance_free(&balance);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_of_each_replica_its_slowest_stage_counts),
        cmocka_unit_test(test_windows_are_of_five_seconds),
        cmocka_unit_test(test_a_window_without_waiting_requests_does_not_count),
        cmocka_unit_test(test_a_window_must_lie_between_reports),
        cmocka_unit_test(test_a_replica_that_did_nothing_makes_the_factor_infinite),
        cmocka_unit_test(test_queues_are_averaged_over_time),
        cmocka_unit_test(test_requests_count_where_they_ended),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
