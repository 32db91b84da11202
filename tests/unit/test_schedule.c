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
    int prompt, output, given;
    bool score;
    int stop_after; /* tokens after which the caller ends it */
    int chosen;     /* tokens so far, with the given ones */
    int priority;
    int next;    /* position that must come next, or 0 or what is found again where it was paused */
    int reached; /* the furthest position that it has come to before this microbatch, or begins it with */
    int asked;   /* last position whose logits were wanted */
    bool done;
    int slot;
    int64_t parent; /* −1: none, or it has begun */
    int32_t tokens[400];
} model;

typedef struct flights {
    pen_microbatch ring[FLIGHTS];
    int oldest, count;
} flights;

static int found_again; /* positions that were not computed */
static int shared;      /* those of children */

/* Where a sequence begins, perhaps again: behind what is found of it, or with its parent's prompt but for the last row,
 * which had to be scheduled earlier. */
static void check_beginning(const pen_kvcache *cache, const model *models, model *s, const pen_microbatch *m, int i) {
    const pen_scheduled_run *run = &m->runs[i];
    assert_int_equal(pen_kvcache_told(cache, run->slot), 0);
    if (s->parent >= 0 && run->position == s->prompt - 1) {
        const model *parent = &models[s->parent];
        assert_true(parent->done || parent->reached >= s->prompt - 1 || run->position % PEN_KV_BLOCK == 0);
        shared += run->position;
    } else {
        assert_int_equal(run->position % PEN_KV_BLOCK, 0);
        found_again += run->position;
    }
    s->parent = -1;
}

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
        if (run->position != s->next || run->slot != s->slot) check_beginning(cache, models, s, m, i);
        s->slot = run->slot;
        if (run->position > s->reached) s->reached = run->position;
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
    for (int i = 0; i < m->run_count; i++) {
        model *s = &models[m->runs[i].sequence];
        if (s->next > s->reached) s->reached = s->next;
    }
    assert_int_equal(rows, m->rows);
    assert_int_equal(logits, m->logit_count);
    int copies;
    pen_kvcache_take_copies(cache, &copies);
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

/* Of the sequence before, or of the same parent: also of one that has ended, and of a child. */
static void become_child(model *s, const model *models, int before) {
    int64_t of = models[before].parent >= 0 && rand() % 4 ? models[before].parent : before;
    const model *parent = &models[of];
    if (parent->given > 0) return; /* such a one is alone */
    s->parent = of;
    s->prompt = parent->prompt;
    s->priority = parent->priority;
    s->given = s->chosen = 0;
    s->asked = s->prompt - 2;
    memcpy(s->tokens, parent->tokens, (size_t)s->prompt * sizeof *s->tokens);
}

static pen_step_cost *make_cost(int stages, double fixed_ms, double row_ms) {
    pen_step_cost *cost;
    assert_int_equal(pen_step_cost_create_even(stages, fixed_ms, row_ms, &cost), PEN_OK);
    return cost;
}

static uint64_t pauses, preemptions, forks, copies;

/* One random load until all is done. */
static void run_load(unsigned seed) {
    srand(seed);
    pen_schedule_options options = {.stages = 1 + rand() % 5,
                                    .sequences = 1 + rand() % 12,
                                    .rows = 1 + rand() % ROWS,
                                    .logit_rows = 1 + rand() % 40,
                                    .context = 400};
    if (rand() % 4 == 0) options.in_flight = 1 + rand() % 8;
    int priorities = 1 + rand() % 3;
    options.preempts = rand() % 2;
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
            s->given = s->score || rand() % 4 ? 0 : rand() % s->output;
            s->chosen = s->given;
            s->stop_after = s->score ? 0 : s->given + 1 + rand() % (s->output - s->given);
            s->asked = s->score ? -1 : s->prompt + s->given - 2;
            s->priority = rand() % priorities - 1;
            s->slot = -1;
            s->parent = -1;
            int text = rand() % 3; /* some begin alike */
            for (int p = 0; p < s->prompt + s->given; p++) s->tokens[p] = text * 1000 + p;
            if (added > 0 && !s->score && rand() % 2) become_child(s, models, added - 1);
            int64_t number;
            const pen_sequence_spec spec = {.tokens = s->tokens,
                                            .prompt = s->prompt,
                                            .output = s->output,
                                            .given = s->given,
                                            .score = s->score,
                                            .parent = s->parent,
                                            .priority = s->priority};
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
    if (priorities == 1 || !options.preempts) assert_int_equal(pen_schedule_preemptions(schedule), 0);
    preemptions += pen_schedule_preemptions(schedule);
    forks += pen_kvcache_counts(cache).forks;
    copies += pen_kvcache_counts(cache).copied;
    for (int g = 0; g < pools.count; g++) assert_int_equal(pen_kvcache_free_blocks(cache, g), pools.blocks[g]);
    for (int i = 0; i < FLIGHTS; i++) free(f.ring[i].runs);
    pen_schedule_destroy(schedule);
    pen_kvcache_destroy(cache);
    pen_step_cost_destroy(cost);
}

static void test_random_loads(void **state) {
    (void)state;
    for (unsigned seed = 1; seed <= 400; seed++) run_load(seed);
    print_message("%d pauses, %d preemptions, %d rows found again, %d shared\n", (int)pauses, (int)preemptions,
                  found_again, shared);
    assert_true(pauses > 50 && preemptions > 50 && found_again > 10000 && shared > 10000);
    assert_true(forks > 300 && copies > 200);
}

static pen_microbatch make_microbatch(void) {
    pen_microbatch m = {.runs = calloc(ROWS, sizeof *m.runs)};
    assert_non_null(m.runs);
    return m;
}

static const int32_t no_tokens[1024];

static int64_t add_text(pen_schedule *schedule, const int32_t *tokens, int prompt, int output, int64_t parent) {
    const pen_sequence_spec spec = {.tokens = tokens, .prompt = prompt, .output = output, .parent = parent};
    int64_t number;
    assert_int_equal(pen_schedule_add(schedule, &spec, &number), PEN_OK);
    return number;
}

static int64_t add(pen_schedule *schedule, int prompt, int output) {
    return add_text(schedule, no_tokens, prompt, output, -1);
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
    int rows = 0, chunks = 0, last = 48; /* √(2·512/8) ≈ 11 chunks of 47 rows, in whole blocks */
    for (; rows < 512; chunks++) {
        if (chunks >= 4) pen_schedule_complete(schedule);
        assert_true(next(schedule, cache, &m));
        if (chunks == 0) assert_int_equal(m.rows, 48);
        assert_true(m.rows <= last);                              /* the less is left, the smaller */
        if (chunks == 3) assert_false(next(schedule, cache, &m)); /* stages + 1 in flight */
        last = m.rows;
        rows += m.rows;
    }
    assert_int_equal(rows, 512);
    assert_in_range(chunks, 11, 20);
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

/* A prompt of 4,000 tokens arrives while others decode. Whenever a token of theirs has come back, its row is in the
 * next microbatch or the one behind it: no more than one chunk of the long prompt goes by, and others go on while it
 * does. */
static void hold_nobody(int stages, int rows, double fixed_ms) {
    enum { OTHERS = 9, LONG = 4000 };
    pen_step_cost *cost = make_cost(stages, fixed_ms, 1);
    pen_schedule_options options = {.stages = stages,
                                    .sequences = OTHERS + 1,
                                    .rows = rows,
                                    .logit_rows = 32,
                                    .context = 4096,
                                    .kv = {1, {1024}, {0}},
                                    .cost = cost};
    pen_kvcache *cache;
    pen_schedule *schedule;
    assert_int_equal(pen_kvcache_create(&options.kv, options.sequences, options.context, &cache), PEN_OK);
    assert_int_equal(pen_schedule_create(&options, cache, &schedule), PEN_OK);
    pen_microbatch ring[FLIGHTS];
    for (int i = 0; i < FLIGHTS; i++) ring[i] = make_microbatch();
    for (int i = 0; i < OTHERS; i++) add(schedule, 5, 900);
    int launched = 0, landed = 0, decoded = 0, read = 0; /* rows of the others, and of the long prompt */
    int ready_at[OTHERS], passed[OTHERS];                /* launches when the token was back, and prompt rows since */
    bool ready[OTHERS] = {false}, arrived = false;
    static int32_t text[LONG + 1];
    for (int i = 0; i < LONG; i++) text[i] = i + 1;
    while (read < LONG) {
        if (launched == 100 && !arrived) assert_int_equal(add_text(schedule, text, LONG, 1, -1), OTHERS);
        arrived = launched >= 100;
        pen_microbatch *m = &ring[launched % FLIGHTS];
        if (next(schedule, cache, m)) {
            int prompt = 0;
            for (int i = 0; i < m->run_count; i++) prompt += m->runs[i].sequence == OTHERS ? m->runs[i].rows : 0;
            assert_true(m->rows <= rows);
            for (int i = 0; i < m->run_count; i++) {
                int64_t s = m->runs[i].sequence;
                if (s == OTHERS) continue;
                decoded += prompt > 0;
                if (ready[s] && ready_at[s] >= 100) assert_true(passed[s] <= rows && launched - ready_at[s] <= 1);
                ready[s] = false;
            }
            for (int s = 0; s < OTHERS; s++) passed[s] += prompt;
            read += prompt;
            launched++;
            continue;
        }
        m = &ring[landed++ % FLIGHTS];
        for (int i = 0; i < m->run_count; i++) {
            int64_t s = m->runs[i].sequence;
            if (s == OTHERS || m->runs[i].logit_rows == 0) continue;
            pen_schedule_continue(schedule, s);
            ready[s] = true;
            ready_at[s] = launched;
            passed[s] = 0;
        }
        pen_schedule_complete(schedule);
    }
    /* Each of the others was in one of as many microbatches as are in flight. */
    int chunks = launched - 100;
    assert_true(chunks >= LONG / rows);
    assert_true(decoded >= OTHERS * (chunks / pen_schedule_limit(schedule) - 1));
    for (int i = 0; i < FLIGHTS; i++) free(ring[i].runs);
    pen_schedule_destroy(schedule);
    pen_kvcache_destroy(cache);
    pen_step_cost_destroy(cost);
}

static void test_a_long_prompt_holds_nobody(void **state) {
    (void)state;
    hold_nobody(1, 256, 8);
    hold_nobody(2, 64, 8);
    hold_nobody(3, 256, 8);
    hold_nobody(4, 256, 50);
}

/* Children of a prompt of 100 that takes two chunks, and somebody behind them, in slots for three. */
static void test_children_share_a_prompt_and_hold_nobody_up(void **state) {
    (void)state;
    pen_schedule_options options = {
        .stages = 2, .sequences = 3, .rows = 64, .logit_rows = 8, .context = 160, .kv = {1, {30}, {0}}};
    pen_kvcache *cache;
    pen_schedule *schedule;
    assert_int_equal(pen_kvcache_create(&options.kv, 3, 160, &cache), PEN_OK);
    assert_int_equal(pen_schedule_create(&options, cache, &schedule), PEN_OK);
    pen_microbatch m = make_microbatch();
    int64_t parent = add(schedule, 100, 8), first = add_text(schedule, no_tokens, 100, 8, parent);
    int64_t second = add_text(schedule, no_tokens, 100, 8, parent), stranger = add(schedule, 20, 8);
    assert_true(next(schedule, cache, &m));
    assert_int_equal(m.rows, 64);
    assert_int_equal(m.run_count, 1);
    assert_int_equal(pen_schedule_waiting(schedule), 2); /* the children */
    /* The parent ends its prompt here; the children have to wait for the next. */
    assert_true(next(schedule, cache, &m));
    assert_int_equal(m.run_count, 2);
    assert_int_equal(m.runs[0].sequence, parent);
    assert_int_equal(m.runs[1].sequence, stranger);
    /* The blocks of both, the last one once more. */
    assert_true(next(schedule, cache, &m));
    assert_int_equal(m.run_count, 1);
    assert_int_equal(m.runs[0].sequence, first);
    assert_int_equal(m.runs[0].position, 99);
    assert_int_equal(m.runs[0].logit_rows, 1);
    assert_int_equal(pen_kvcache_free_blocks(cache, 0), 30 - 7 - 2 - 1);
    assert_int_equal(pen_schedule_waiting(schedule), 1); /* there was no slot for the other */
    while (pen_schedule_in_flight(schedule) > 0) pen_schedule_complete(schedule);
    pen_schedule_finish(schedule, stranger);
    pen_schedule_finish(schedule, parent);
    /* Its parent has ended: what is found again is as good, but for what is no whole block. */
    assert_true(next(schedule, cache, &m));
    assert_int_equal(m.runs[0].sequence, second);
    assert_int_equal(m.runs[0].position, 96);
    assert_int_equal(m.runs[0].rows, 4);
    pen_schedule_finish(schedule, first);
    pen_schedule_finish(schedule, second);
    assert_int_equal(pen_kvcache_counts(cache).forks, 1);
    assert_int_equal(pen_kvcache_counts(cache).copied, 1);
    assert_int_equal(pen_kvcache_free_blocks(cache, 0), 30);
    free(m.runs);
    pen_schedule_destroy(schedule);
    pen_kvcache_destroy(cache);
}

/* Twelve children of a short prompt begin in one microbatch, and no block is copied where the prompt ends one. */
static void test_children_begin_together(void **state) {
    (void)state;
    for (int prompt = 32; prompt <= 33; prompt++) {
        pen_schedule_options options = {
            .stages = 2, .sequences = 12, .rows = 64, .logit_rows = 16, .context = 640, .kv = {1, {40}, {0}}};
        pen_kvcache *cache;
        pen_schedule *schedule;
        assert_int_equal(pen_kvcache_create(&options.kv, 12, 640, &cache), PEN_OK);
        assert_int_equal(pen_schedule_create(&options, cache, &schedule), PEN_OK);
        pen_microbatch m = make_microbatch();
        int64_t parent = add(schedule, prompt, 8);
        for (int i = 1; i < 12; i++) add_text(schedule, no_tokens, prompt, 8, parent);
        assert_true(next(schedule, cache, &m));
        assert_int_equal(m.run_count, 1);
        assert_true(next(schedule, cache, &m));
        assert_int_equal(m.run_count, 11);
        assert_int_equal(m.rows, 11);
        assert_int_equal(pen_kvcache_counts(cache).copied, prompt == 33 ? 0 : 11);
        free(m.runs);
        pen_schedule_destroy(schedule);
        pen_kvcache_destroy(cache);
    }
}

/* Of many who wait, some give up, wherever they are in the queue; the others start in the order in which they came. */
static void test_a_long_queue_keeps_its_order(void **state) {
    (void)state;
    enum { QUEUED = 3000 };
    pen_schedule_options options = {
        .stages = 1, .sequences = 4, .rows = 8, .logit_rows = 8, .context = 16, .kv = {1, {4}, {0}}};
    pen_kvcache *cache;
    pen_schedule *schedule;
    assert_int_equal(pen_kvcache_create(&options.kv, 4, 16, &cache), PEN_OK);
    assert_int_equal(pen_schedule_create(&options, cache, &schedule), PEN_OK);
    static bool gone[QUEUED];
    pen_microbatch m = make_microbatch();
    int64_t expected = 0;
    int added = 0, waiting = 0;
    srand(1);
    while (added < QUEUED || waiting > 0) {
        for (int i = rand() % 20; i > 0 && added < QUEUED; i--, waiting++)
            assert_int_equal(add(schedule, 1, 1), added++);
        for (int i = rand() % 6; i > 0 && waiting > 0; i--) {
            int victim = (int)expected + rand() % (added - (int)expected);
            if (gone[victim]) continue;
            gone[victim] = true;
            pen_schedule_finish(schedule, victim);
            waiting--;
        }
        assert_int_equal(pen_schedule_waiting(schedule), waiting);
        if (!next(schedule, cache, &m)) continue;
        for (int i = 0; i < m.run_count; i++, waiting--) {
            while (gone[expected]) expected++;
            assert_int_equal(m.runs[i].sequence, expected++);
            pen_schedule_finish(schedule, m.runs[i].sequence);
        }
        pen_schedule_complete(schedule);
    }
    free(m.runs);
    pen_schedule_destroy(schedule);
    pen_kvcache_destroy(cache);
}

/* ---- Priorities -------------------------------------------------------------------------------------------------- */

/* A schedule of `sequences` slots and `blocks` of KV, with its cache and a microbatch to fill. */
typedef struct machine {
    pen_kvcache *cache;
    pen_schedule *schedule;
    pen_microbatch m;
} machine;

static machine make_machine(int sequences, int blocks, int rows, bool preempts) {
    pen_schedule_options options = {.stages = 2,
                                    .sequences = sequences,
                                    .rows = rows,
                                    .logit_rows = 16,
                                    .context = 640,
                                    .kv = {1, {blocks}, {0}},
                                    .preempts = preempts};
    machine made = {.m = make_microbatch()};
    assert_int_equal(pen_kvcache_create(&options.kv, sequences, 640, &made.cache), PEN_OK);
    assert_int_equal(pen_schedule_create(&options, made.cache, &made.schedule), PEN_OK);
    return made;
}

static void free_machine(machine *made) {
    free(made->m.runs);
    pen_schedule_destroy(made->schedule);
    pen_kvcache_destroy(made->cache);
}

static int64_t add_urgent(pen_schedule *schedule, int prompt, int output, int priority, int text) {
    static int32_t texts[8][640];
    for (int i = 0; i < 640; i++) texts[text][i] = 1000 * text + i; /* nobody finds another's blocks */
    const pen_sequence_spec spec = {
        .tokens = texts[text], .prompt = prompt, .output = output, .parent = -1, .priority = priority};
    int64_t number;
    assert_int_equal(pen_schedule_add(schedule, &spec, &number), PEN_OK);
    return number;
}

static bool runs(const machine *made, int64_t sequence) {
    for (int i = 0; i < made->m.run_count; i++)
        if (made->m.runs[i].sequence == sequence) return true;
    return false;
}

/* The next microbatch goes through: all its choices come back, and whoever made one goes on. */
static void go_round(machine *made) {
    assert_true(next(made->schedule, made->cache, &made->m));
    for (int i = 0; i < made->m.run_count; i++)
        if (made->m.runs[i].logit_rows > 0) pen_schedule_continue(made->schedule, made->m.runs[i].sequence);
    pen_schedule_complete(made->schedule);
}

static void test_the_urgent_start_first(void **state) {
    (void)state;
    machine made = make_machine(1, 40, 64, false);
    const int priorities[] = {3, 0, 3, -2, 0, 7}, order[] = {3, 1, 4, 0, 2, 5};
    for (int i = 0; i < 6; i++) assert_int_equal(add_urgent(made.schedule, 20, 5, priorities[i], i), i);
    for (int i = 0; i < 6; i++) {
        assert_true(next(made.schedule, made.cache, &made.m));
        assert_int_equal(made.m.run_count, 1);
        assert_int_equal(made.m.runs[0].sequence, order[i]);
        pen_schedule_finish(made.schedule, order[i]);
        pen_schedule_complete(made.schedule);
    }
    assert_int_equal(pen_schedule_preemptions(made.schedule), 0);
    free_machine(&made);
}

/* For a slot the youngest of the least urgent goes, while a row of it is in flight; what that row chose is kept. */
static void test_a_slot_is_preempted(void **state) {
    (void)state;
    machine made = make_machine(3, 40, 64, true);
    int64_t low = add_urgent(made.schedule, 20, 30, 2, 0), lowest = add_urgent(made.schedule, 20, 30, 5, 1);
    int64_t younger = add_urgent(made.schedule, 20, 30, 5, 2);
    go_round(&made);
    assert_int_equal(made.m.run_count, 3);
    assert_true(next(made.schedule, made.cache, &made.m)); /* decodes, in flight */
    assert_int_equal(made.m.rows, 3);

    int64_t equal = add_urgent(made.schedule, 20, 30, 5, 3); /* preempts nobody */
    int64_t urgent = add_urgent(made.schedule, 20, 3, 1, 4);
    pen_microbatch other = make_microbatch(), first = made.m;
    made.m = other;
    assert_true(next(made.schedule, made.cache, &made.m));
    assert_int_equal(made.m.run_count, 1);
    assert_true(runs(&made, urgent));
    assert_int_equal(pen_schedule_preemptions(made.schedule), 1);
    assert_int_equal(pen_schedule_pauses(made.schedule), 0);
    assert_int_equal(pen_schedule_waiting(made.schedule), 2);
    for (int i = 0; i < first.run_count; i++) pen_schedule_continue(made.schedule, first.runs[i].sequence);
    pen_schedule_complete(made.schedule);
    pen_schedule_continue(made.schedule, urgent);
    pen_schedule_complete(made.schedule);
    free(first.runs);

    for (int i = 0; i < 3; i++) {
        go_round(&made);
        assert_int_equal(made.m.run_count, 3);
        assert_true(runs(&made, urgent) == (i < 2) && runs(&made, low) && runs(&made, lowest));
        if (i == 1) pen_schedule_finish(made.schedule, urgent);
    }
    /* The older of those who wait, who was put aside, is back and computes nothing again but an unfinished block. */
    const pen_scheduled_run *back = NULL;
    for (int i = 0; i < made.m.run_count; i++)
        if (made.m.runs[i].sequence == younger) back = &made.m.runs[i];
    assert_non_null(back);
    assert_int_equal(back->position, 16);
    assert_int_equal(back->rows, 6); /* prompt and two tokens */
    assert_int_equal(back->logit_rows, 1);
    assert_int_equal(back->logit_first, 5);
    assert_false(runs(&made, equal));
    assert_int_equal(pen_schedule_preemptions(made.schedule), 1);

    /* It does not make way twice for the same priority, as others do, but for a more urgent one. */
    int64_t next_urgent = add_urgent(made.schedule, 20, 3, 1, 5);
    go_round(&made);
    assert_true(runs(&made, next_urgent) && runs(&made, younger) && runs(&made, low) && !runs(&made, lowest));
    int64_t third = add_urgent(made.schedule, 20, 3, 1, 6);
    go_round(&made);
    assert_true(runs(&made, next_urgent) && runs(&made, younger) && runs(&made, third));
    int64_t most = add_urgent(made.schedule, 20, 3, 0, 7);
    go_round(&made);
    assert_true(runs(&made, next_urgent) && runs(&made, younger) && runs(&made, most));
    assert_int_equal(pen_schedule_preemptions(made.schedule), 4);
    free_machine(&made);
}

/* For KV as many go as must, and nobody where that would not do. */
static void test_memory_is_preempted(void **state) {
    (void)state;
    for (int rival = 0; rival < 2; rival++) {
        machine made = make_machine(8, 20, 320, true);
        int64_t first = add_urgent(made.schedule, 80, 2, rival ? 0 : 4, 0);
        int64_t second = add_urgent(made.schedule, 80, 2, 4, 1), third = add_urgent(made.schedule, 80, 2, 4, 2);
        go_round(&made);
        assert_int_equal(made.m.run_count, 3); /* 15 of 20 blocks */
        /* 9 blocks for its prompt, and one for each that runs: two must go. With 15 it would be all three. */
        int64_t urgent = add_urgent(made.schedule, rival ? 240 : 144, 2, 1, 3);
        assert_true(next(made.schedule, made.cache, &made.m));
        assert_int_equal(runs(&made, urgent), !rival);
        assert_int_equal(pen_schedule_preemptions(made.schedule), rival ? 0 : 2);
        assert_int_equal(runs(&made, first), true);
        assert_int_equal(runs(&made, second) && runs(&made, third), rival);
        free_machine(&made);
    }
}

/* Where blocks run out while all run, the least urgent gives its own up, though it is the oldest. */
static void test_the_least_urgent_pauses(void **state) {
    (void)state;
    machine made = make_machine(4, 8, 64, false);
    int64_t low = add_urgent(made.schedule, 30, 60, 1, 0), high = add_urgent(made.schedule, 30, 60, 0, 1);
    for (int i = 0; i < 36; i++) go_round(&made); /* 4 blocks each, and both need a fifth now */
    assert_int_equal(pen_schedule_pauses(made.schedule), 1);
    assert_true(runs(&made, high) && !runs(&made, low));
    for (int i = 0; i < 20; i++) go_round(&made);
    assert_true(runs(&made, high) && !runs(&made, low));
    pen_schedule_finish(made.schedule, high);
    go_round(&made);
    assert_true(runs(&made, low));
    assert_int_equal(pen_schedule_pauses(made.schedule), 1);
    assert_int_equal(pen_schedule_preemptions(made.schedule), 0);
    free_machine(&made);
}

/* While a child waits for its parent's prompt, nobody starts whom it would put aside again. */
static void test_nobody_starts_to_be_preempted(void **state) {
    (void)state;
    machine made = make_machine(2, 40, 32, true);
    int64_t low = add_urgent(made.schedule, 20, 30, 9, 0);
    go_round(&made);
    int64_t parent = add_urgent(made.schedule, 100, 5, 0, 1);
    static int32_t text[100];
    for (int i = 0; i < 100; i++) text[i] = 1000 + i;
    const pen_sequence_spec spec = {.tokens = text, .prompt = 100, .output = 5, .parent = parent};
    int64_t child;
    assert_int_equal(pen_schedule_add(made.schedule, &spec, &child), PEN_OK);
    pen_schedule_finish(made.schedule, low); /* a slot is free for whoever comes */
    low = add_urgent(made.schedule, 20, 30, 9, 2);
    for (int i = 0; i < 4; i++) {
        go_round(&made);
        assert_true(runs(&made, parent) && !runs(&made, low));
    }
    go_round(&made);
    assert_true(runs(&made, parent) && runs(&made, child));
    assert_int_equal(pen_schedule_preemptions(made.schedule), 0);
    pen_schedule_finish(made.schedule, parent);
    go_round(&made);
    assert_true(runs(&made, child) && runs(&made, low));
    free_machine(&made);
}

/* KV for all of everybody's tokens is enough: nothing is kept free that nobody can ever need. */
static void test_kv_for_all_lets_all_run(void **state) {
    (void)state;
    machine made = make_machine(3, 3, 64, false);
    for (int i = 0; i < 3; i++) add_urgent(made.schedule, 6, 8, 0, i);
    assert_true(next(made.schedule, made.cache, &made.m));
    assert_int_equal(made.m.run_count, 3);
    free_machine(&made);
}

/* Where all wait to be continued there is nothing to run, and nobody need give anything up. */
static void test_nobody_pauses_for_those_who_wait(void **state) {
    (void)state;
    machine made = make_machine(4, 20, 64, false);
    int64_t ids[3];
    for (int i = 0; i < 3; i++) ids[i] = add_urgent(made.schedule, 20, 4, 0, i);
    assert_true(next(made.schedule, made.cache, &made.m));
    assert_int_equal(made.m.run_count, 3);
    pen_schedule_complete(made.schedule); /* their tokens have come, and are held back */
    for (int i = 0; i < 3; i++) assert_false(next(made.schedule, made.cache, &made.m));
    assert_int_equal(pen_schedule_pauses(made.schedule), 0);
    for (int i = 0; i < 3; i++) pen_schedule_continue(made.schedule, ids[i]);
    assert_true(next(made.schedule, made.cache, &made.m));
    assert_int_equal(made.m.rows, 3);
    free_machine(&made);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_loads),
        cmocka_unit_test(test_a_long_prompt_is_in_flight_on_all_stages_at_once),
        cmocka_unit_test(test_decodes_are_spread_over_the_microbatches),
        cmocka_unit_test(test_nobody_pauses_for_those_who_wait),
        cmocka_unit_test(test_kv_for_all_lets_all_run),
        cmocka_unit_test(test_children_share_a_prompt_and_hold_nobody_up),
        cmocka_unit_test(test_children_begin_together),
        cmocka_unit_test(test_a_long_prompt_holds_nobody),
        cmocka_unit_test(test_a_long_queue_keeps_its_order),
        cmocka_unit_test(test_the_urgent_start_first),
        cmocka_unit_test(test_a_slot_is_preempted),
        cmocka_unit_test(test_memory_is_preempted),
        cmocka_unit_test(test_the_least_urgent_pauses),
        cmocka_unit_test(test_nobody_starts_to_be_preempted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
