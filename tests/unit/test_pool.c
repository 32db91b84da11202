/* The thread pool: every task runs once, under contention too; pokes come; waiting costs nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "clock.h"
#include "pool.h"

#include <stdatomic.h>
#include <string.h>
#include <time.h>

enum { MOST_TASKS = 512 };

typedef struct counts {
    atomic_int runs[MOST_TASKS];
    int plain[MOST_TASKS]; /* unsynchronised on purpose: the pool's end of operation must order these */
    atomic_int threads;    /* bit per thread seen */
    int operation;
} counts;

static void count(void *context, int task, int thread) {
    counts *c = context;
    atomic_fetch_add(&c->runs[task], 1);
    atomic_fetch_or(&c->threads, 1 << thread);
    c->plain[task] = c->operation * 1000 + task;
}

static void check_many_operations(int threads, bool may_spin) {
    pen_pool *pool;
    assert_int_equal(pen_pool_create(threads, NULL, may_spin, &pool), PEN_OK);
    assert_int_equal(pen_pool_threads(pool), threads);
    counts c;
    for (int operation = 0; operation < 3000; operation++) {
        int tasks = operation % 7 ? operation % 13 : operation % MOST_TASKS;
        memset(&c, 0, sizeof c);
        c.operation = operation;
        pen_pool_run(pool, count, &c, tasks);
        for (int t = 0; t < MOST_TASKS; t++) {
            assert_int_equal(atomic_load(&c.runs[t]), t < tasks);
            assert_int_equal(c.plain[t], t < tasks ? operation * 1000 + t : 0);
        }
        if (tasks == 1) assert_int_equal(atomic_load(&c.threads), 1); /* not worth waking anybody */
    }
    pen_pool_destroy(pool);
}

static void test_every_task_runs_once(void **state) {
    (void)state;
    for (int threads = 1; threads <= 4; threads++) {
        check_many_operations(threads, true);
        check_many_operations(threads, false);
    }
}

static void busy(int64_t ns) {
    int64_t end = pen_clock_ns() + ns;
    while (pen_clock_ns() < end) {
    }
}

static void sleep_in_first(void *context, int task, int thread) {
    (void)thread;
    counts *c = context;
    atomic_fetch_add(&c->runs[task], 1);
    if (task > 0) return;
    int64_t deadline = pen_clock_ns() + 5000000000; /* done when somebody else has run all the others */
    while (atomic_load(&c->runs[MOST_TASKS - 1]) == 0 && pen_clock_ns() < deadline)
        pen_clock_sleep_until(pen_clock_ns() + 100000);
    c->plain[0] = atomic_load(&c->runs[MOST_TASKS - 1]);
}

static void test_idle_threads_take_from_others(void **state) {
    (void)state;
    pen_pool *pool;
    assert_int_equal(pen_pool_create(2, NULL, false, &pool), PEN_OK);
    counts c = {0};
    pen_pool_run(pool, sleep_in_first, &c, MOST_TASKS);
    assert_int_equal(c.plain[0], 1);
    for (int t = 0; t < MOST_TASKS; t++) assert_int_equal(atomic_load(&c.runs[t]), 1);
    pen_pool_destroy(pool);
}

static void busy_task(void *context, int task, int thread) {
    (void)context, (void)task, (void)thread;
    busy(50000);
}

static void long_task(void *context, int task, int thread) {
    (void)task;
    if (thread != 0) return;
    for (int i = 0; i < 40; i++) {
        busy(50000);
        pen_pool_poke(context);
    }
}

static void count_poke(void *context) {
    ++*(int *)context;
}

static void test_pokes_come_while_tasks_run(void **state) {
    (void)state;
    for (int threads = 1; threads <= 2; threads++) {
        pen_pool *pool;
        int pokes = 0;
        assert_int_equal(pen_pool_create(threads, NULL, false, &pool), PEN_OK);
        pen_pool_set_poke(pool, count_poke, &pokes);
        int64_t begin = pen_clock_ns();
        pen_pool_run(pool, busy_task, NULL, 100);
        int64_t most = (pen_clock_ns() - begin) / 200000 + 1;
        assert_in_range(pokes, 5, most); /* 100 × 50 µs on at most two threads, a poke per 200 µs */

        pokes = 0;
        pen_pool_run(pool, long_task, pool, 1);
        assert_true(pokes >= 3);
        pen_pool_set_poke(pool, NULL, NULL);
        pen_pool_run(pool, busy_task, NULL, 10);
        pen_pool_destroy(pool);
    }
}

static int64_t process_cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void test_an_idle_pool_uses_no_cpu(void **state) {
    (void)state;
    for (int may_spin = 0; may_spin <= 1; may_spin++) {
        pen_pool *pool;
        counts c = {0};
        assert_int_equal(pen_pool_create(3, NULL, may_spin, &pool), PEN_OK);
        pen_pool_run(pool, count, &c, 10);
        int64_t before = process_cpu_ns();
        pen_clock_sleep_until(pen_clock_ns() + 100000000);
        assert_true(process_cpu_ns() - before < 2000000); /* spinning ends after 50 µs a thread */
        pen_pool_destroy(pool);
    }
}

static void test_pinning_to_a_cpu_that_is_not_there_fails(void **state) {
    (void)state;
    const int cpus[] = {0, 1 << 20};
    pen_pool *pool;
    assert_int_equal(pen_pool_create(2, cpus, false, &pool), PEN_UNSUPPORTED);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_task_runs_once),
        cmocka_unit_test(test_idle_threads_take_from_others),
        cmocka_unit_test(test_pokes_come_while_tasks_run),
        cmocka_unit_test(test_an_idle_pool_uses_no_cpu),
        cmocka_unit_test(test_pinning_to_a_cpu_that_is_not_there_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
