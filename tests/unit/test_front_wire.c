/*
 * Letters between front end and leaders: what is written reads the same; and of whatever bytes arrive, what is accepted
 * lies within them (run under ASan, nothing beyond is touched either).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "front_wire.h"

enum { TOKENS_MOST = 50, STOPS_MOST = 5, BIASES_MOST = 4, ENTRIES_MOST = 6, HEADER = 8, ROUNDS = 300 };
static const int64_t NOW_NS = 1000000000000;

static int below(int n) {
    return rand() % n;
}

/* A request with room for what it points to. */
typedef struct drawn {
    pen_request request;
    int32_t tokens[TOKENS_MOST], stops[STOPS_MOST];
    pen_logit_bias biases[BIASES_MOST];
} drawn;

static void draw(drawn *d) {
    int prompt = 1 + below(TOKENS_MOST / 2);
    d->request = (pen_request){.prompt = d->tokens,
                               .prompt_count = prompt,
                               .given = below(TOKENS_MOST - prompt),
                               .max_tokens = below(100),
                               .score = below(2),
                               .pick = {.temperature = 0.25f * (float)below(8),
                                        .top_p = 0.5f,
                                        .min_p = 0.125f,
                                        .top_k = below(50),
                                        .seed = (uint64_t)rand() << 32 | (uint64_t)rand(),
                                        .choice = below(9),
                                        .position = below(9),
                                        .target = below(9) - 1,
                                        .top_logprobs = below(PEN_TOP_LOGPROBS + 1)},
                               .choices = below(5),
                               .stop_ids = d->stops,
                               .stop_count = below(STOPS_MOST + 1),
                               .priority = below(9) - 4,
                               .min_tokens = below(9),
                               .repetition_penalty = 1.25f,
                               .presence_penalty = 0.5f * (float)below(3),
                               .frequency_penalty = -0.5f,
                               .biases = d->biases,
                               .bias_count = below(BIASES_MOST + 1)};
    for (int i = 0; i < TOKENS_MOST; i++) d->tokens[i] = rand();
    for (int i = 0; i < STOPS_MOST; i++) d->stops[i] = rand();
    for (int i = 0; i < BIASES_MOST; i++) d->biases[i] = (pen_logit_bias){rand(), 0.5f * (float)below(99)};
}

static void assert_same_request(const pen_request *a, const pen_request *b) {
    pen_request x = *a, y = *b;
    assert_memory_equal(x.prompt, y.prompt, (size_t)(x.prompt_count + x.given) * sizeof *x.prompt);
    if (x.stop_count > 0) assert_memory_equal(x.stop_ids, y.stop_ids, (size_t)x.stop_count * sizeof *x.stop_ids);
    if (x.bias_count > 0) assert_memory_equal(x.biases, y.biases, (size_t)x.bias_count * sizeof *x.biases);
    assert_int_equal(x.prompt_count, y.prompt_count);
    assert_int_equal(x.given, y.given);
    assert_int_equal(x.max_tokens, y.max_tokens);
    assert_int_equal(x.score, y.score);
    assert_memory_equal(&x.pick, &y.pick, sizeof x.pick);
    assert_int_equal(x.choices, y.choices);
    assert_int_equal(x.stop_count, y.stop_count);
    assert_int_equal(x.bias_count, y.bias_count);
    assert_int_equal(x.priority, y.priority);
    assert_int_equal(x.min_tokens, y.min_tokens);
    assert_true(x.repetition_penalty == y.repetition_penalty && x.presence_penalty == y.presence_penalty &&
                x.frequency_penalty == y.frequency_penalty);
}

/* Reads everything that the request points to. */
static uint64_t sum_of(const pen_request *request) {
    uint64_t sum = 0;
    for (int i = 0; i < request->prompt_count + request->given; i++) sum += (uint32_t)request->prompt[i];
    for (int i = 0; i < request->stop_count; i++) sum += (uint32_t)request->stop_ids[i];
    for (int i = 0; i < request->bias_count; i++) sum += (uint32_t)request->biases[i].token;
    return sum;
}

/* A copy that ends where its memory ends, so that ASan sees who reads on. */
static unsigned char *copy_of(const void *data, size_t bytes) {
    unsigned char *copy = malloc(bytes ? bytes : 1);
    assert_non_null(copy);
    memcpy(copy, data, bytes);
    return copy;
}

static void corrupt(unsigned char *data, size_t from, size_t bytes) {
    for (int changes = 1 + below(3); changes > 0 && bytes > from; changes--) {
        unsigned char *at = data + from + (size_t)below((int)(bytes - from));
        *at = below(3) ? (unsigned char)(*at ^ 1 << below(8)) : below(2) ? 0xff : 0x7f;
    }
}

/* ---- Payloads ---------------------------------------------------------------------------------------------------- */

static void test_payloads_round_trip(void **state) {
    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        drawn d;
        draw(&d);
        pen_blob payload;
        int mine = 0;
        assert_int_equal(pen_payload_encode(&d.request, &payload), PEN_OK);
        pen_request read = {.context = &mine};
        assert_int_equal(pen_payload_decode(payload.data, payload.bytes, &read), PEN_OK);
        assert_same_request(&read, &d.request);
        assert_ptr_equal(read.context, &mine);
        free(payload.data);
    }
}

static void test_a_payload_is_whole_or_refused(void **state) {
    (void)state;
    drawn d;
    draw(&d);
    pen_blob payload;
    assert_int_equal(pen_payload_encode(&d.request, &payload), PEN_OK);
    for (size_t bytes = 0; bytes < payload.bytes; bytes++) {
        unsigned char *cut = copy_of(payload.data, bytes);
        pen_request read;
        assert_int_equal(pen_payload_decode(cut, bytes, &read), PEN_INTERNAL);
        free(cut);
    }
    unsigned char *longer = malloc(payload.bytes + 1);
    memcpy(longer, payload.data, payload.bytes);
    longer[payload.bytes] = 0;
    pen_request read;
    assert_int_equal(pen_payload_decode(longer, payload.bytes + 1, &read), PEN_INTERNAL);
    free(longer);
    free(payload.data);
}

static void test_corrupted_payloads(void **state) {
    (void)state;
    int accepted = 0, refused = 0;
    for (int round = 0; round < 20 * ROUNDS; round++) {
        drawn d;
        draw(&d);
        pen_blob payload;
        assert_int_equal(pen_payload_encode(&d.request, &payload), PEN_OK);
        corrupt(payload.data, 0, payload.bytes);
        pen_request read;
        if (pen_payload_decode(payload.data, payload.bytes, &read) == PEN_OK) {
            accepted++;
            (void)sum_of(&read);
            assert_true(read.prompt_count >= 0 && read.given >= 0 && read.stop_count >= 0 && read.bias_count >= 0);
        } else {
            refused++;
        }
        free(payload.data);
    }
    assert_true(accepted > 0 && refused > 0);
}

/* ---- Requests ---------------------------------------------------------------------------------------------------- */

static int draw_entries(pen_queued *entries) {
    int count = below(ENTRIES_MOST + 1);
    for (int i = 0; i < count; i++) {
        size_t bytes = (size_t)below(40);
        entries[i] = (pen_queued){.stamp = {rand(), below(5), below(5)},
                                  .priority = below(7) - 3,
                                  .arrived_ns = NOW_NS - below(1000000),
                                  .deadline_ns = below(2) ? 0 : NOW_NS + 1 + below(1000000),
                                  .cost_ms = 5 + below(10),
                                  .prompt_ms = below(5),
                                  .payload = malloc(bytes + 1),
                                  .bytes = bytes};
        for (size_t b = 0; b < bytes; b++) ((unsigned char *)entries[i].payload)[b] = (unsigned char)rand();
    }
    return count;
}

static void free_entries(pen_queued *entries, int count) {
    for (int i = 0; i < count; i++) free(entries[i].payload);
}

/* Clocks differ between machines: what was so long ago there is so long ago here. */
static void test_requests_round_trip(void **state) {
    (void)state;
    const int64_t there_ns = 77;
    for (int round = 0; round < ROUNDS; round++) {
        pen_queued entries[ENTRIES_MOST], read[ENTRIES_MOST];
        int count = draw_entries(entries), got;
        pen_blob letter;
        assert_int_equal(pen_letter_encode_requests(PEN_LETTER_GIVE, entries, count, NOW_NS, &letter), PEN_OK);
        assert_int_equal(
            pen_letter_decode_requests(letter.data, letter.bytes, PEN_LETTER_GIVE, there_ns, read, ENTRIES_MOST, &got),
            PEN_OK);
        assert_int_equal(got, count);
        for (int i = 0; i < count; i++) {
            assert_memory_equal(&read[i].stamp, &entries[i].stamp, sizeof read[i].stamp);
            assert_int_equal(read[i].priority, entries[i].priority);
            assert_int_equal(there_ns - read[i].arrived_ns, NOW_NS - entries[i].arrived_ns);
            assert_int_equal(read[i].deadline_ns,
                             entries[i].deadline_ns ? entries[i].deadline_ns - NOW_NS + there_ns : 0);
            assert_true(read[i].cost_ms == entries[i].cost_ms && read[i].prompt_ms == entries[i].prompt_ms);
            assert_int_equal(read[i].bytes, entries[i].bytes);
            assert_memory_equal(read[i].payload, entries[i].payload, entries[i].bytes);
        }
        pen_letter_kind kind;
        assert_int_equal(pen_letter_kind_of(letter.data, letter.bytes, &kind), PEN_OK);
        assert_int_equal(kind, PEN_LETTER_GIVE);
        free_entries(read, count);
        if (count > 0) { /* more than there is room for */
            assert_int_equal(
                pen_letter_decode_requests(letter.data, letter.bytes, PEN_LETTER_GIVE, 0, read, count - 1, &got),
                PEN_INTERNAL);
            assert_int_equal(got, 0);
        }
        free_entries(entries, count);
        free(letter.data);
    }
}

/* A deadline that is over stays one. */
static void test_an_old_deadline_is_not_forgotten(void **state) {
    (void)state;
    pen_queued entry = {.deadline_ns = NOW_NS - 5, .arrived_ns = NOW_NS - 9}, read;
    pen_blob letter;
    int count;
    assert_int_equal(pen_letter_encode_requests(PEN_LETTER_SUBMIT, &entry, 1, NOW_NS, &letter), PEN_OK);
    assert_int_equal(pen_letter_decode_requests(letter.data, letter.bytes, PEN_LETTER_SUBMIT, 100, &read, 1, &count),
                     PEN_OK);
    assert_int_equal(read.deadline_ns, 101);
    free(read.payload);
    free(letter.data);
}

static void test_a_letter_of_requests_is_whole_or_refused(void **state) {
    (void)state;
    int shorter = 0, refused = 0;
    for (int round = 0; round < ROUNDS / 10; round++) {
        pen_queued entries[ENTRIES_MOST], read[ENTRIES_MOST];
        int count = draw_entries(entries), got;
        pen_blob letter;
        assert_int_equal(pen_letter_encode_requests(PEN_LETTER_GIVE, entries, count, NOW_NS, &letter), PEN_OK);
        for (size_t bytes = 0; bytes < letter.bytes; bytes++) {
            unsigned char *cut = copy_of(letter.data, bytes);
            if (pen_letter_decode_requests(cut, bytes, PEN_LETTER_GIVE, NOW_NS, read, ENTRIES_MOST, &got) == PEN_OK) {
                assert_true(got < count); /* the end of an entry */
                free_entries(read, got);
                shorter++;
            } else {
                assert_int_equal(got, 0);
                refused++;
            }
            free(cut);
        }
        free_entries(entries, count);
        free(letter.data);
    }
    assert_true(shorter > 0 && refused > shorter);
}

static void test_corrupted_letters_of_requests(void **state) {
    (void)state;
    int accepted = 0, refused = 0;
    for (int round = 0; round < 20 * ROUNDS; round++) {
        pen_queued entries[ENTRIES_MOST], read[ENTRIES_MOST];
        int count = draw_entries(entries), got;
        pen_blob letter;
        assert_int_equal(pen_letter_encode_requests(PEN_LETTER_GIVE, entries, count, NOW_NS, &letter), PEN_OK);
        corrupt(letter.data, below(8) ? HEADER : 0, letter.bytes);
        pen_status status =
            pen_letter_decode_requests(letter.data, letter.bytes, PEN_LETTER_GIVE, NOW_NS, read, ENTRIES_MOST, &got);
        for (int i = 0; i < got; i++) {
            assert_true(read[i].cost_ms >= read[i].prompt_ms && read[i].prompt_ms >= 0);
            assert_true(read[i].arrived_ns <= NOW_NS && (read[i].deadline_ns == 0 || read[i].deadline_ns > NOW_NS));
            free(copy_of(read[i].payload, read[i].bytes));
        }
        assert_true(status == PEN_OK || got == 0);
        accepted += status == PEN_OK;
        refused += status != PEN_OK;
        free_entries(read, got);
        free_entries(entries, count);
        free(letter.data);
    }
    assert_true(accepted > 0 && refused > 0);
}

/* ---- Letters of a fixed body ------------------------------------------------------------------------------------- */

static void test_fixed_letters(void **state) {
    (void)state;
    for (int kind = 1; kind < PEN_LETTER_KINDS; kind++) {
        size_t bytes = (size_t)(kind % 4) * 8;
        unsigned char body[24], read[32];
        for (size_t i = 0; i < sizeof body; i++) body[i] = (unsigned char)rand();
        pen_blob letter;
        pen_letter_kind found;
        assert_int_equal(pen_letter_encode((pen_letter_kind)kind, body, bytes, &letter), PEN_OK);
        assert_int_equal(pen_letter_kind_of(letter.data, letter.bytes, &found), PEN_OK);
        assert_int_equal(found, kind);
        assert_int_equal(pen_letter_decode(letter.data, letter.bytes, found, read, bytes), PEN_OK);
        assert_memory_equal(read, body, bytes);
        assert_int_equal(pen_letter_decode(letter.data, letter.bytes, found, read, bytes + 8), PEN_INTERNAL);
        pen_letter_kind other = (pen_letter_kind)(kind % (PEN_LETTER_KINDS - 1) + 1);
        assert_int_equal(pen_letter_decode(letter.data, letter.bytes, other, read, bytes), PEN_INTERNAL);
        for (size_t cut = 0; cut < letter.bytes; cut++) {
            unsigned char *part = copy_of(letter.data, cut);
            assert_int_equal(pen_letter_decode(part, cut, found, read, bytes), PEN_INTERNAL);
            free(part);
        }
        ((unsigned char *)letter.data)[below(6)] ^= 0x40; /* magic or version */
        assert_int_equal(pen_letter_kind_of(letter.data, letter.bytes, &found), PEN_INTERNAL);
        free(letter.data);
    }
}

/* ---- Notices ----------------------------------------------------------------------------------------------------- */

static pen_notice draw_notice(void) {
    pen_notice notice = {.stamp = {rand(), below(3), below(3)},
                         .kind = (pen_notice_kind)below(3),
                         .index = below(9) - 1,
                         .position = below(1000),
                         .finish = (pen_finish)below(PEN_FINISHES),
                         .top = below(PEN_TOP_LOGPROBS + 1),
                         .choice = {.token = rand(), .logprob = -0.125f * (float)below(99), .argmax = rand()}};
    for (int i = 0; i < notice.top; i++) {
        notice.choice.top_ids[i] = rand();
        notice.choice.top_logprobs[i] = -0.5f * (float)below(99);
    }
    return notice;
}

static void test_notices_round_trip(void **state) {
    (void)state;
    enum { MOST = 200 };
    pen_notices notices = {0};
    for (int round = 0; round < ROUNDS / 10; round++) { /* the same memory is used again */
        static pen_notice said[MOST];
        int count = 1 + below(MOST), got = 0;
        for (int i = 0; i < count; i++) {
            said[i] = draw_notice();
            assert_int_equal(pen_notices_add(&notices, &said[i]), PEN_OK);
        }
        assert_int_equal(notices.count, count);
        pen_blob letter = pen_notices_letter(&notices);
        assert_int_equal(notices.count, 0);
        size_t offset = 0;
        pen_status status;
        for (pen_notice read; pen_notices_next(letter.data, letter.bytes, &offset, &read, &status); got++)
            assert_memory_equal(&read, &said[got], sizeof read);
        assert_int_equal(status, PEN_OK);
        assert_int_equal(got, count);
    }
    pen_notices_free(&notices);
}

static int count_notices(const unsigned char *letter, size_t bytes, pen_status *status) {
    int count = 0;
    size_t offset = 0;
    for (pen_notice read; pen_notices_next(letter, bytes, &offset, &read, status); count++) {
        assert_true(offset > HEADER && offset <= bytes);
        assert_true(read.top >= 0 && read.top <= PEN_TOP_LOGPROBS && read.finish < PEN_FINISHES);
        assert_true(read.kind <= PEN_NOTICE_DONE);
    }
    return count;
}

static void test_cut_and_corrupted_notices(void **state) {
    (void)state;
    int refused = 0, accepted = 0;
    for (int round = 0; round < ROUNDS; round++) {
        pen_notices notices = {0};
        int count = 1 + below(4);
        for (int i = 0; i < count; i++) {
            pen_notice notice = draw_notice();
            assert_int_equal(pen_notices_add(&notices, &notice), PEN_OK);
        }
        pen_blob letter = pen_notices_letter(&notices);
        pen_status status;
        for (size_t bytes = 0; bytes < letter.bytes; bytes++) {
            unsigned char *cut = copy_of(letter.data, bytes);
            assert_true(count_notices(cut, bytes, &status) < count);
            free(cut);
        }
        unsigned char *changed = copy_of(letter.data, letter.bytes);
        corrupt(changed, 0, letter.bytes);
        (void)count_notices(changed, letter.bytes, &status);
        refused += status != PEN_OK;
        accepted += status == PEN_OK;
        free(changed);
        pen_notices_free(&notices);
    }
    assert_true(refused > 0 && accepted > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_payloads_round_trip),
        cmocka_unit_test(test_a_payload_is_whole_or_refused),
        cmocka_unit_test(test_corrupted_payloads),
        cmocka_unit_test(test_requests_round_trip),
        cmocka_unit_test(test_an_old_deadline_is_not_forgotten),
        cmocka_unit_test(test_a_letter_of_requests_is_whole_or_refused),
        cmocka_unit_test(test_corrupted_letters_of_requests),
        cmocka_unit_test(test_fixed_letters),
        cmocka_unit_test(test_notices_round_trip),
        cmocka_unit_test(test_cut_and_corrupted_notices),
    };
    srand(6);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
