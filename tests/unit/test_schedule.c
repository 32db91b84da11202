/*
 * The schedule's properties, on random loads with microbatches that come back late: every row of every sequence is
 * scheduled once and in order, no limit is exceeded, a decode row waits for the token before it, and everybody ends.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels.h"
#include "schedule.h"
#include "step_cost.h"

enum { SEQUENCES = 60, FLIGHTS = 16, ROWS = 256 };

/* What the test knows of a sequence. */
typedef struct model {
    int prompt, output;
    bool score;
    int stop_after; /* tokens after which the caller ends it */
    int chosen;     /* tokens so far */
    int next;       /* position that must come next, or 0 or what is found again where it was paused */
    int asked;      /* last position whose logits were wanted */
    bool done;
    int slot;
    int32_t tokens[400];
} model;

typedef struct flights {
    pen_microbatch ring[FLIGHTS];
    int oldest, count;
} flights;

static int found_again; /* positions that were not computed */

static void check_microbatch(const pen_schedule_options *options, pen_kvcache *cache, model *models,
                             const pen_microbatch *m) {
    int rows = 0, logits = 0;
    assert_in_range(m->rows, 1, options->rows);
    assert_true(m->logit_count <= options->logit_rows);
    for (int i = 0; i < m->run_count; i++) {
        const pen_scheduled_run *run = &m->runs[i];
        model *s = &models[run->sequence];
        assert_false(s->done);
        assert_in_range(run->slot, 0, options->sequences - 1);
        if (run->position != s->next || run->slot != s->slot) { /* it begins, perhaps again */
            assert_int_equal(run->position % PEN_KV_BLOCK, 0);
            assert_int_equal(pen_kvcache_told(cache, run->slot), 0);
            found_again += run->position;
        }
        s->slot = run->slot;
        for (int k = 0; k < i; k++) {
            assert_int_not_equal(m->runs[k].sequence, run->sequence);
            assert_int_not_equal(m->runs[k].slot, run->slot);
        }
        int known = s->prompt + s->chosen, end = run->position + run->rows;
        assert_true(end <= known);
        assert_true(pen_kvcache_end(cache, run->slot) >= pen_kv_blocks_for(end));
        /* Every position whose logits are wanted gets them once, in order. */
        int last = s->score ? s->prompt - 2 : s->prompt + s->output - 1;
        int want_first = s->asked + 1 > run->position ? s->asked + 1 : run->position;
        int want_end = end < last + 1 ? end : last + 1;
        assert_true(run->position <= s->asked + 1);
        assert_int_equal(run->logit_rows, want_end > want_first ? want_end - want_first : 0);
        if (run->logit_rows > 0) {
            assert_int_equal(run->position + run->logit_first, want_first);
            s->asked = want_end - 1;
        }
        s->next = end;
        rows += run->rows;
        logits += run->logit_rows;
        pen_kvcache_tell(cache, run->slot);
    }
    assert_int_equal(rows, m->rows);
    assert_int_equal(logits, m->logit_count);
    int copies;
    pen_kvcache_take_copies(cache, &copies);
    assert_int_equal(copies, 0);
}

static void finish(pen_schedule *schedule, model *s, int64_t number) {
    pen_schedule_finish(schedule, number);
    s->done = true;
}

static void land(pen_schedule *schedule, model *models, flights *f) {
    const pen_microbatch *m = &f->ring[f->oldest];
    for (int i = 0; i < m->run_count; i++) {
        const pen_scheduled_run *run = &m->runs[i];
        model *s = &models[run->sequence];
        if (s->done) continue;
        if (s->score) {
            if (run->position + run->rows == s->prompt) finish(schedule, s, run->sequence);
        } else if (run->logit_rows > 0) {
            s->tokens[s->prompt + s->chosen] = rand();
            if (++s->chosen == s->stop_after)
                finish(schedule, s, run->sequence);
            else
                pen_schedule_continue(schedule, run->sequence);
        }
    }
    pen_schedule_complete(schedule);
    f->oldest = (f->oldest + 1) % FLIGHTS;
    f->count--;
}

static pen_step_cost *make_cost(int stages, double fixed_ms, double row_ms) {
    pen_step_cost *cost;
    assert_int_equal(pen_step_cost_create_even(stages, fixed_ms, row_ms, &cost), PEN_OK);
    return cost;
}

static uint64_t pauses;

/* One random load until all is done. */
static void run_load(unsigned seed) {
    srand(seed);
    pen_schedule_options options = {.stages = 1 + rand() % 5,
                                    .sequences = 1 + rand() % 12,
                                    .rows = 1 + rand() % ROWS,
                                    .logit_rows = 1 + rand() % 40,
                                    .context = 400};
    if (rand() % 4 == 0) options.in_flight = 1 + rand() % 8;
    pen_step_cost *cost = make_cost(options.stages, rand() % 40, rand() % 4);
    options.cost = cost;
    pen_kvcache *cache;
    pen_schedule *schedule;
    int blocks = 25 + rand() % 100, window = 1 + rand() % 100;
    int held = pen_kv_blocks_held(window, options.rows, options.context);
    pen_kv_pools pools = {2, {blocks, held * (1 + rand() % options.sequences)}, {0, window}};
    options.kv = pools;
    assert_int_equal(pen_kvcache_create(&pools, options.sequences, options.context, &cache), PEN_OK);
    assert_int_equal(pen_schedule_create(&options, cache, &schedule), PEN_OK);
    int limit = pen_schedule_limit(schedule);
    assert_in_range(limit, 1, FLIGHTS);
    if (options.in_flight == 0) assert_int_equal(limit, options.stages == 1 ? 1 : options.stages + 1);
    model models[SEQUENCES] = {0};
    flights f = {0};
    for (int i = 0; i < FLIGHTS; i++) f.ring[i].runs = calloc(ROWS, sizeof *f.ring[i].runs);
    int added = 0, done = 0, steps = 0;
    while (done < SEQUENCES) {
        assert_true(++steps < 200000);
        if (added < SEQUENCES && rand() % 3 == 0) {
            model *s = &models[added];
            s->score = rand() % 4 == 0;
            s->prompt = 1 + rand() % (rand() % 2 ? 300 : 20);
            s->output = s->score ? 0 : 1 + rand() % 100;
            s->stop_after = s->score ? 0 : 1 + rand() % s->output;
            s->asked = s->score ? -1 : s->prompt - 2;
            s->slot = -1;
            int text = rand() % 3; /* some begin alike */
            for (int p = 0; p < s->prompt; p++) s->tokens[p] = text * 1000 + p;
            int64_t number;
            const pen_sequence_spec spec = {s->tokens, s->prompt, s->output, s->score};
            assert_int_equal(pen_schedule_add(schedule, &spec, &number), PEN_OK);
            assert_int_equal(number, added++);
        }
        /* Now and then somebody gives up, wherever the sequence is then. */
        int victim = rand() % SEQUENCES;
        if (victim < added && !models[victim].done && rand() % 200 == 0) finish(schedule, &models[victim], victim);
        if (rand() % 2) {
            pen_microbatch *m = &f.ring[(f.oldest + f.count) % FLIGHTS];
            if (pen_schedule_next(schedule, m)) {
                check_microbatch(&options, cache, models, m);
                f.count++;
                assert_int_equal(pen_schedule_in_flight(schedule), f.count);
                assert_true(f.count <= limit);
            } else if (f.count == 0) {
                /* With nothing in flight, nothing to run means that nobody is there. */
                for (int i = 0; i < added; i++) assert_true(models[i].done);
            }
        } else if (f.count > 0) {
            land(schedule, models, &f);
        }
        done = 0;
        for (int i = 0; i < added; i++) done += models[i].done;
    }
    while (f.count > 0) land(schedule, models, &f);
    pauses += pen_schedule_pauses(schedule);
    assert_int_equal(pen_kvcache_free_blocks(cache, 0), blocks);
    for (int i = 0; i < FLIGHTS; i++) free(f.ring[i].runs);
    pen_schedule_destroy(schedule);
    pen_kvcache_destroy(cache);
    pen_step_cost_destroy(cost);
}

static void test_random_loads(void **state) {
    (void)state;
    for (unsigned seed = 1; seed <= 60; seed++) run_load(seed);
    assert_true(pauses > 100 && found_again > 10000);
}

static pen_microbatch make_microbatch(void) {
    pen_microbatch m = {.runs = calloc(ROWS, sizeof *m.runs)};
    assert_non_null(m.runs);
    return m;
}

static const int32_t no_tokens[1024];

static int64_t add(pen_schedule *schedule, int prompt, int output) {
    const pen_sequence_spec spec = {.tokens = no_tokens, .prompt = prompt, .output = output};
    int64_t number;
    assert_int_equal(pen_schedule_add(schedule, &spec, &number), PEN_OK);
    return number;
}

/* As the leader does it, which tells the stages. */
static bool next(pen_schedule *schedule, pen_kvcache *cache, pen_microbatch *m) {
    if (!pen_schedule_next(schedule, m)) return false;
    for (int i = 0; i < m->run_count; i++) pen_kvcache_tell(cache, m->runs[i].slot);
    return true;
}

static void test_a_long_prompt_is_in_flight_on_all_stages_at_once(void **state) {
    (void)state;
    pen_step_cost *cost = make_cost(3, 8, 1);
    pen_schedule_options options = {
        .stages = 3, .sequences = 1, .rows = 256, .logit_rows = 4, .context = 1024, .kv = {1, {64}, {0}}, .cost = cost};
    pen_kvcache *cache;
    pen_schedule *schedule;
    assert_int_equal(pen_kvcache_create(&options.kv, 1, 1024, &cache), PEN_OK);
    assert_int_equal(pen_schedule_create(&options, cache, &schedule), PEN_OK);
    add(schedule, 512, 8);
    pen_microbatch m = make_microbatch();
    int rows = 0, chunks = 0, first = 0;
    for (; rows < 512; chunks++) {
        if (chunks >= 4) pen_schedule_complete(schedule);
        assert_true(next(schedule, cache, &m));
        if (chunks == 0) first = m.rows;
        if (rows + m.rows < 512) assert_int_equal(m.rows, first); /* even chunks */
        if (chunks == 3) assert_false(next(schedule, cache, &m)); /* stages + 1 in flight */
        rows += m.rows;
    }
    assert_int_equal(rows, 512);
    assert_int_equal(first, 48); /* √(2·512/8) ≈ 11 chunks of 47 rows, in whole blocks */
    free(m.runs);
    pen_schedule_destroy(schedule);
    pen_kvcache_destroy(cache);
    pen_step_cost_destroy(cost);
}

static void test_decodes_are_spread_over_the_microbatches(void **state) {
    (void)state;
    pen_step_cost *cost = make_cost(3, 0, 1);
    pen_schedule_options options = {
        .stages = 3, .sequences = 12, .rows = 64, .logit_rows = 64, .context = 64, .kv = {1, {48}, {0}}, .cost = cost};
    pen_kvcache *cache;
    pen_schedule *schedule;
    assert_int_equal(pen_kvcache_create(&options.kv, 12, 64, &cache), PEN_OK);
    assert_int_equal(pen_schedule_create(&options, cache, &schedule), PEN_OK);
    for (int i = 0; i < 12; i++) add(schedule, 1, 20);
    pen_microbatch m = make_microbatch();
    /* All prompts, one row each, then everybody decodes: twelve rows over four microbatches. */
    int rows = 0;
    while (rows < 12 && next(schedule, cache, &m)) rows += m.rows;
    assert_int_equal(rows, 12);
    while (pen_schedule_in_flight(schedule) > 0) pen_schedule_complete(schedule);
    for (int i = 0; i < 12; i++) pen_schedule_continue(schedule, i);
    for (int i = 0; i < 4; i++) {
        assert_true(next(schedule, cache, &m));
        assert_int_equal(m.rows, 3);
        assert_int_equal(m.run_count, 3);
    }
    assert_false(next(schedule, cache, &m));
    free(m.runs);
    pen_schedule_destroy(schedule);
    pen_kvcache_destroy(cache);
    pen_step_cost_destroy(cost);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_loads),
        cmocka_unit_test(test_a_long_prompt_is_in_flight_on_all_stages_at_once),
        cmocka_unit_test(test_decodes_are_spread_over_the_microbatches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
