/*
 * Fuzzes messages between stages. An input is the limits that both sides know, and a message; a mutation keeps the
 * header right most of the time.
 *
 * What is accepted lies within the limits, and says nothing else when it is encoded again.
 */
#include "kvcache.h"
#include "wire.h"

#include <stdlib.h>
#include <string.h>

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { EPOCH = 3, LIMITS_BYTES = 6 };

static void require(bool truth) {
    if (!truth) abort();
}

static pen_wire_limits read_limits(const uint8_t *data) {
    return (pen_wire_limits){.rows = 1 + data[0],
                             .logit_rows = data[1],
                             .sequences = 1 + data[2] % 16,
                             .context = 16 * (1 + data[3]),
                             .vocab = 1 + 4 * data[5],
                             .kv = {.count = 1 + data[4] % 2, .blocks = {1 + data[4], 1 + data[4] / 2}},
                             .plan_epoch = EPOCH};
}

static void check_step(const pen_step *step, const pen_wire_limits *limits) {
    int rows = 0, logits = 0, block = 0, table = pen_kv_blocks_for(limits->context);
    for (int i = 0; i < step->run_count; i++) {
        const pen_step_run *run = &step->runs[i];
        require(run->sequence >= 0 && run->sequence < limits->sequences && run->rows > 0 && run->position >= 0);
        require(run->position + run->rows <= limits->context);
        require(run->logit_first >= 0 && run->logit_rows >= 0 && run->logit_first + run->logit_rows <= run->rows);
        require(run->table_first >= 0 && run->table_count >= 0 && run->table_first + run->table_count <= table);
        rows += run->rows;
        logits += run->logit_rows;
        for (int g = 0; g < limits->kv.count; g++)
            for (int b = 0; b < run->table_count; b++, block++)
                require(step->blocks[block] >= 0 && step->blocks[block] < limits->kv.blocks[g]);
    }
    require(rows == step->rows && rows <= limits->rows && step->completed <= step->number);
    require(logits == step->logit_count && logits <= limits->logit_rows && block == step->block_count);
    for (int c = 0; c < step->copy_count; c++) {
        const pen_kv_copy *copy = &step->copies[c];
        require(copy->group >= 0 && copy->group < limits->kv.count);
        require(copy->from >= 0 && copy->from < limits->kv.blocks[copy->group]);
        require(copy->to >= 0 && copy->to < limits->kv.blocks[copy->group]);
    }
    for (int l = 0; l < logits; l++) require(step->picks[l].target >= -1 && step->picks[l].target < limits->vocab);
    for (int l = 0; l < logits; l++) require(step->picks[l].top_logprobs <= PEN_TOP_LOGPROBS);
}

static void decode_step(const void *message, size_t bytes, const pen_wire_limits *limits) {
    pen_step step;
    if (pen_step_create(limits, &step) != PEN_OK) return;
    if (pen_wire_decode_step(message, bytes, limits, &step) == PEN_OK) {
        check_step(&step, limits);
        unsigned char *again = malloc(pen_wire_step_bytes(limits));
        require(again && pen_wire_encode_step(&step, EPOCH, again) == bytes && memcmp(again, message, bytes) == 0);
        free(again);
    }
    pen_step_destroy(&step);
}

static void decode_choices(const void *message, size_t bytes, const pen_wire_limits *limits, const pen_header *header) {
    int count = (int)(header->plan_epoch + bytes) % (limits->logit_rows + 1);
    pen_pick *picks = calloc((size_t)count + 1, sizeof *picks);
    pen_choice *choices = calloc((size_t)count + 1, sizeof *choices);
    require(picks && choices);
    for (int i = 0; i < count; i++) picks[i].top_logprobs = (i + (int)bytes) % (PEN_TOP_LOGPROBS + 1);
    if (pen_wire_decode_choices(message, bytes, limits, header->sequence, picks, count, choices) == PEN_OK) {
        for (int i = 0; i < count; i++)
            require(choices[i].bad_logits || (choices[i].token >= 0 && choices[i].token < limits->vocab));
        unsigned char *again = malloc(pen_wire_choices_bytes(limits));
        require(again && pen_wire_encode_choices(header->sequence, choices, picks, count, EPOCH, again) == bytes &&
                memcmp(again, message, bytes) == 0);
        free(again);
    }
    free(picks);
    free(choices);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < LIMITS_BYTES) return 0;
    pen_wire_limits limits = read_limits(data);
    size_t bytes = size - LIMITS_BYTES;
    unsigned char *message = malloc(bytes ? bytes : 1), body[256];
    require(message != NULL);
    memcpy(message, data + LIMITS_BYTES, bytes);
    pen_header header;
    if (pen_wire_header(message, bytes, EPOCH, &header) == PEN_OK) {
        require(header.length == bytes && header.type > 0 && header.type < PEN_MESSAGE_TYPES);
        for (size_t most = 0; most <= sizeof body; most += 8)
            if (pen_wire_decode_plain(message, bytes, header.type, EPOCH, body, most) == PEN_OK)
                require(bytes == sizeof header + most);
        decode_choices(message, bytes, &limits, &header);
    }
    decode_step(message, bytes, &limits);
    free(message);
    return 0;
}

/* Mutates what is behind the header and makes the header fit again. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    const size_t before = LIMITS_BYTES + sizeof(pen_header);
    if (size < before || seed % 8 == 0) return LLVMFuzzerMutate(data, size, max_size);
    if (seed % 8 == 1) {
        LLVMFuzzerMutate(data, LIMITS_BYTES, LIMITS_BYTES);
        return size;
    }
    size = before + LLVMFuzzerMutate(data + before, size - before, max_size - before);
    uint32_t length = (uint32_t)(size - LIMITS_BYTES);
    memcpy(data + LIMITS_BYTES + offsetof(pen_header, length), &length, sizeof length);
    return size;
}
