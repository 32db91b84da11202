/*
 * Fuzzes letters between front end and leaders. An input is a letter; a mutation keeps its header most of the time.
 *
 * What is accepted lies within the letter, and says the same when it is written again.
 */
#include "front_wire.h"

#include <stdlib.h>
#include <string.h>

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { HEADER = 8, ENTRIES_MOST = 64 };
static const int64_t NOW_NS = INT64_C(1) << 60; /* of a machine that has been up for some decades */

static void require(bool truth) {
    if (!truth) abort();
}

static void decode_payload(const pen_queued *entry) {
    pen_request read, again;
    if (pen_payload_decode(entry->payload, entry->bytes, &read) != PEN_OK) return;
    pen_blob payload;
    require(pen_payload_encode(&read, &payload) == PEN_OK && payload.bytes == entry->bytes);
    require(pen_payload_decode(payload.data, payload.bytes, &again) == PEN_OK);
    size_t tokens = (size_t)read.prompt_count + (size_t)read.given;
    require(memcmp(read.prompt, again.prompt, tokens * sizeof *read.prompt) == 0);
    require(memcmp(read.stop_ids, again.stop_ids, (size_t)read.stop_count * sizeof *read.stop_ids) == 0);
    require(memcmp(read.biases, again.biases, (size_t)read.bias_count * sizeof *read.biases) == 0);
    free(payload.data);
}

static void decode_requests(const void *letter, size_t bytes, pen_letter_kind kind) {
    static pen_queued entries[ENTRIES_MOST];
    int count;
    if (pen_letter_decode_requests(letter, bytes, kind, NOW_NS, entries, ENTRIES_MOST, &count) != PEN_OK) {
        require(count == 0);
        return;
    }
    for (int i = 0; i < count; i++) {
        require(entries[i].arrived_ns <= NOW_NS && entries[i].cost_ms >= entries[i].prompt_ms);
        require(entries[i].deadline_ns == 0 || entries[i].deadline_ns > NOW_NS);
        decode_payload(&entries[i]);
    }
    pen_blob again;
    require(pen_letter_encode_requests(kind, entries, count, NOW_NS, &again) == PEN_OK && again.bytes == bytes);
    free(again.data);
    for (int i = 0; i < count; i++) free(entries[i].payload);
}

static void decode_notices(const void *letter, size_t bytes) {
    pen_notices notices = {0};
    pen_notice notice;
    pen_status status;
    size_t offset = 0;
    while (pen_notices_next(letter, bytes, &offset, &notice, &status)) {
        require(offset <= bytes && notice.top >= 0 && notice.top <= PEN_TOP_LOGPROBS);
        require(pen_notices_add(&notices, &notice) == PEN_OK);
    }
    if (status == PEN_OK && notices.count > 0) {
        pen_blob again = pen_notices_letter(&notices);
        require(again.bytes == bytes && memcmp(again.data, letter, bytes) == 0);
    }
    pen_notices_free(&notices);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    unsigned char *letter = malloc(size ? size : 1), body[256];
    require(letter != NULL);
    memcpy(letter, data, size);
    pen_letter_kind kind;
    if (pen_letter_kind_of(letter, size, &kind) == PEN_OK) {
        require(kind > 0 && kind < PEN_LETTER_KINDS);
        for (size_t bytes = 0; bytes <= sizeof body; bytes += 4)
            if (pen_letter_decode(letter, size, kind, body, bytes) == PEN_OK) require(size == HEADER + bytes);
        decode_requests(letter, size, kind);
        if (kind == PEN_LETTER_NOTICES) decode_notices(letter, size);
    }
    free(letter);
    return 0;
}

/* Mutates what is behind the header. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    if (size <= HEADER || seed % 8 == 0) return LLVMFuzzerMutate(data, size, max_size);
    return HEADER + LLVMFuzzerMutate(data + HEADER, size - HEADER, max_size - HEADER);
}
