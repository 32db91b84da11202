/*
 * The wire: what is encoded decodes to the same; and whatever bytes arrive, nothing beyond the limits gets through (run
 * under ASan, nothing beyond the buffers is touched either).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kvcache.h"
#include "wire.h"

static const pen_wire_limits limits = {.rows = 64,
                                       .logit_rows = 16,
                                       .sequences = 5,
                                       .context = 300,
                                       .kv = {.count = 2, .blocks = {70, 20}},
                                       .vocab = 1000,
                                       .plan_epoch = 3};

static int below(int n) {
    return rand() % n;
}

static void make_step(pen_step *step) {
    step->number = (uint64_t)below(1000) + 10;
    step->completed = step->number - (uint64_t)below(10);
    step->table_hash = (uint64_t)rand();
    step->rows = step->run_count = step->logit_count = step->block_count = 0;
    step->copy_count = below(4);
    for (int i = 0; i < step->copy_count; i++) {
        int group = below(2), blocks = limits.kv.blocks[group];
        step->copies[i] = (pen_kv_copy){.group = group, .from = below(blocks), .to = below(blocks)};
    }
    int runs = 1 + below(5);
    for (int i = 0; i < runs; i++) {
        int rows = 1 + below(12);
        int position = below(limits.context - rows), first = below(rows), logits = below(4);
        if (logits > rows - first) logits = rows - first;
        if (step->logit_count + logits > limits.logit_rows) logits = 0;
        int table = pen_kv_blocks_for(position);
        int count = pen_kv_blocks_for(position + rows) - table;
        step->runs[i] =
            (pen_step_run){below(limits.sequences), (uint32_t)rand(), position, rows, first, logits, table, count};
        for (int b = 0; b < 2 * count; b++)
            step->blocks[step->block_count++] = below(limits.kv.blocks[b < count ? 0 : 1]);
        for (int l = 0; l < logits; l++)
            step->picks[step->logit_count++] = (pen_pick){.temperature = 0.5f,
                                                          .top_p = 1,
                                                          .top_k = below(50),
                                                          .seed = (uint64_t)rand(),
                                                          .position = position + l + 1,
                                                          .target = below(limits.vocab + 1) - 1,
                                                          .top_logprobs = below(PEN_TOP_LOGPROBS + 1)};
        step->rows += rows;
        step->run_count++;
    }
}

static void assert_steps_equal(const pen_step *a, const pen_step *b) {
    assert_true(a->number == b->number && a->completed == b->completed && a->rows == b->rows &&
                a->run_count == b->run_count && a->logit_count == b->logit_count && a->block_count == b->block_count &&
                a->copy_count == b->copy_count && a->table_hash == b->table_hash);
    assert_memory_equal(a->runs, b->runs, (size_t)a->run_count * sizeof *a->runs);
    if (a->block_count) assert_memory_equal(a->blocks, b->blocks, (size_t)a->block_count * sizeof *a->blocks);
    if (a->copy_count) assert_memory_equal(a->copies, b->copies, (size_t)a->copy_count * sizeof *a->copies);
    if (a->logit_count) assert_memory_equal(a->picks, b->picks, (size_t)a->logit_count * sizeof *a->picks);
}

static void assert_within_limits(const pen_step *step) {
    int rows = 0, logits = 0, blocks = 0;
    assert_true(step->completed <= step->number);
    for (int i = 0; i < step->run_count; i++) {
        const pen_step_run *run = &step->runs[i];
        assert_in_range(run->sequence, 0, limits.sequences - 1);
        assert_in_range(run->rows, 1, limits.rows);
        assert_true(run->position >= 0 && run->position + run->rows <= limits.context);
        assert_true(run->logit_first >= 0 && run->logit_rows >= 0 && run->logit_first + run->logit_rows <= run->rows);
        assert_true(run->table_first >= 0 && run->table_count >= 0 &&
                    run->table_first + run->table_count <= pen_kv_blocks_for(limits.context));
        rows += run->rows;
        logits += run->logit_rows;
        for (int b = 0; b < 2 * run->table_count; b++, blocks++)
            assert_in_range(step->blocks[blocks], 0, limits.kv.blocks[b < run->table_count ? 0 : 1] - 1);
    }
    assert_true(rows == step->rows && rows <= limits.rows);
    assert_true(logits == step->logit_count && logits <= limits.logit_rows);
    assert_int_equal(blocks, step->block_count);
    for (int i = 0; i < step->copy_count; i++) {
        assert_in_range(step->copies[i].group, 0, 1);
        assert_in_range(step->copies[i].from, 0, limits.kv.blocks[step->copies[i].group] - 1);
        assert_in_range(step->copies[i].to, 0, limits.kv.blocks[step->copies[i].group] - 1);
    }
    for (int i = 0; i < logits; i++) {
        assert_true(step->picks[i].target >= -1 && step->picks[i].target < limits.vocab);
        assert_in_range(step->picks[i].top_logprobs, 0, PEN_TOP_LOGPROBS);
    }
}

/* Decodes from memory of exactly that size, so that ASan sees a read behind it. */
static pen_status decode_exact(const void *bytes, size_t length, pen_step *step) {
    void *copy = malloc(length ? length : 1);
    memcpy(copy, bytes, length);
    pen_status status = pen_wire_decode_step(copy, length, &limits, step);
    free(copy);
    return status;
}

static void test_steps_survive_the_wire_and_damage_does_not(void **state) {
    (void)state;
    pen_step sent, got;
    assert_int_equal(pen_step_create(&limits, &sent), PEN_OK);
    assert_int_equal(pen_step_create(&limits, &got), PEN_OK);
    unsigned char *message = malloc(pen_wire_step_bytes(&limits));
    int accepted = 0, refused = 0;
    srand(11);
    for (int i = 0; i < 3000; i++) {
        make_step(&sent);
        size_t length = pen_wire_encode_step(&sent, limits.plan_epoch, message);
        assert_true(length <= pen_wire_step_bytes(&limits));
        assert_int_equal(decode_exact(message, length, &got), PEN_OK);
        assert_steps_equal(&sent, &got);
        assert_int_not_equal(decode_exact(message, (size_t)below((int)length), &got), PEN_OK);
        for (int damage = 0; damage < 10; damage++) {
            unsigned char *harmed = malloc(length);
            assert_int_equal(pen_wire_encode_step(&sent, limits.plan_epoch, message), length);
            memcpy(harmed, message, length);
            /* Mostly where numbers are small: behind the magic, which would catch the rest. */
            for (int n = 1 + below(3); n > 0; n--)
                harmed[4 + below((int)length - 4)] = (unsigned char)(below(2) ? rand() : 255);
            if (decode_exact(harmed, length, &got) == PEN_OK) {
                assert_within_limits(&got);
                assert_int_equal(pen_wire_encode_step(&got, limits.plan_epoch, message), length);
                assert_memory_equal(message, harmed, length); /* no byte of it was overlooked */
                accepted++;
            } else {
                refused++;
            }
            free(harmed);
        }
    }
    assert_true(accepted > 100 && refused > 1000);
    free(message);
    pen_step_destroy(&sent);
    pen_step_destroy(&got);
}

static void test_the_header_is_checked_field_by_field(void **state) {
    (void)state;
    unsigned char message[64];
    double body = 1.5, got = 0;
    size_t length = pen_wire_encode_plain(PEN_MESSAGE_MEASURED, 9, 3, &body, sizeof body, message);
    pen_header header;
    assert_int_equal(pen_wire_header(message, length, 3, &header), PEN_OK);
    assert_int_equal(header.type, PEN_MESSAGE_MEASURED);
    assert_int_equal(header.sequence, 9);
    assert_int_equal(pen_wire_decode_plain(message, length, PEN_MESSAGE_MEASURED, 3, &got, sizeof got), PEN_OK);
    assert_true(got == 1.5);
    assert_int_not_equal(pen_wire_decode_plain(message, length, PEN_MESSAGE_METRICS, 3, &got, sizeof got), PEN_OK);
    assert_int_not_equal(pen_wire_decode_plain(message, length, PEN_MESSAGE_MEASURED, 3, &got, 4), PEN_OK);
    assert_int_not_equal(pen_wire_header(message, length, 4, &header), PEN_OK);     /* another plan */
    assert_int_not_equal(pen_wire_header(message, length - 1, 3, &header), PEN_OK); /* cut short */
    assert_int_not_equal(pen_wire_header(message, 7, 3, &header), PEN_OK);
    for (size_t byte = 0; byte < 6; byte++) { /* magic and version */
        message[byte] ^= 0x40;
        assert_int_not_equal(pen_wire_header(message, length, 3, &header), PEN_OK);
        message[byte] ^= 0x40;
    }
    memset(message + 6, 0, 2); /* type */
    assert_int_not_equal(pen_wire_header(message, length, 3, &header), PEN_OK);
    message[6] = PEN_MESSAGE_TYPES;
    assert_int_not_equal(pen_wire_header(message, length, 3, &header), PEN_OK);
}

static void test_choices_come_back_as_they_were_asked_for(void **state) {
    (void)state;
    pen_pick picks[3] = {{.top_logprobs = 0}, {.top_logprobs = 2}, {.top_logprobs = PEN_TOP_LOGPROBS}};
    pen_choice choices[3] = {{0}}, got[3] = {{0}};
    for (int i = 0; i < 3; i++) {
        choices[i] = (pen_choice){.token = 10 + i, .logprob = -0.5f * (float)i, .argmax = 20 + i};
        for (int k = 0; k < picks[i].top_logprobs; k++) {
            choices[i].top_ids[k] = k;
            choices[i].top_logprobs[k] = (float)-k;
        }
    }
    unsigned char *message = malloc(pen_wire_choices_bytes(&limits));
    size_t length = pen_wire_encode_choices(77, choices, picks, 3, 3, message);
    assert_int_equal(pen_wire_decode_choices(message, length, &limits, 77, picks, 3, got), PEN_OK);
    assert_memory_equal(choices, got, sizeof got);
    assert_int_not_equal(pen_wire_decode_choices(message, length, &limits, 78, picks, 3, got), PEN_OK);
    assert_int_not_equal(pen_wire_decode_choices(message, length, &limits, 77, picks, 2, got), PEN_OK);
    picks[0].top_logprobs = 1;
    assert_int_not_equal(pen_wire_decode_choices(message, length, &limits, 77, picks, 3, got), PEN_OK);
    picks[0].top_logprobs = 0;
    choices[1].token = limits.vocab;
    length = pen_wire_encode_choices(77, choices, picks, 3, 3, message);
    assert_int_not_equal(pen_wire_decode_choices(message, length, &limits, 77, picks, 3, got), PEN_OK);
    choices[1].bad_logits = 1; /* then its numbers do not count */
    length = pen_wire_encode_choices(77, choices, picks, 3, 3, message);
    assert_int_equal(pen_wire_decode_choices(message, length, &limits, 77, picks, 3, got), PEN_OK);
    free(message);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps_survive_the_wire_and_damage_does_not),
        cmocka_unit_test(test_the_header_is_checked_field_by_field),
        cmocka_unit_test(test_choices_come_back_as_they_were_asked_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
