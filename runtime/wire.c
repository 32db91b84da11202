/* The wire; see wire.h. */
#include "wire.h"

#include "bytes.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { MAGIC = 0x4b4e4550 /* "PENK" */, VERSION = 2 };

/* Second part of a step, before its runs, blocks and picks. */
typedef struct step_body {
    uint64_t completed, table_hash;
    int32_t rows, run_count, logit_count, block_count, copy_count, history_bytes;
} step_body;

/* What is told of a sequence, without the lists that follow it: biases, bans and tokens. */
typedef struct told_body {
    int32_t sequence;
    uint32_t epoch;
    int32_t first, count;
    pen_history_rules rules;
} told_body;

/* A choice without its list of best log-probabilities, which follows it: ids, then values. */
typedef struct choice_body {
    int32_t token;
    float logprob;
    int32_t argmax, bad_logits;
} choice_body;

/* What is copied as bytes has no holes. */
static_assert(sizeof(pen_header) == 24 && sizeof(step_body) == 40, "no padding");
static_assert(sizeof(told_body) == 44 && sizeof(pen_logit_bias) == 8, "no padding");
static_assert(sizeof(pen_step_run) == 32 && sizeof(pen_pick) == 40 && sizeof(pen_kv_copy) == 12 &&
                  sizeof(choice_body) == 16,
              "no padding");

/* In a group a run brings the blocks that its rows begin, never more than rows, and one that it shared; and the runs of
 * a step may bring a whole table between them, of sequences that begin with what others have computed. */
static int most_blocks(const pen_wire_limits *limits) {
    return (2 * limits->rows + pen_kv_blocks_for(limits->context)) * limits->kv.count;
}

static int most_copies(const pen_wire_limits *limits) {
    return limits->sequences * limits->kv.count;
}

size_t pen_wire_step_bytes(const pen_wire_limits *limits) {
    return sizeof(pen_header) + sizeof(step_body) + (size_t)limits->rows * sizeof(pen_step_run) +
           (size_t)most_blocks(limits) * sizeof(int32_t) + (size_t)most_copies(limits) * sizeof(pen_kv_copy) +
           (size_t)limits->logit_rows * sizeof(pen_pick);
}

size_t pen_wire_choices_bytes(const pen_wire_limits *limits) {
    return sizeof(pen_header) + (size_t)limits->logit_rows * (sizeof(choice_body) + PEN_TOP_LOGPROBS * 8);
}

/* No more biases or bans than there are ids. */
static size_t most_history_bytes(const pen_wire_limits *limits) {
    size_t vocab = (size_t)limits->vocab, context = (size_t)limits->context;
    size_t told = sizeof(told_body) + vocab * (sizeof(pen_logit_bias) + sizeof(int32_t)) + context * sizeof(int32_t);
    size_t bytes = sizeof(pen_header) + (size_t)limits->rows * told;
    return bytes < INT32_MAX ? bytes : INT32_MAX;
}

pen_status pen_step_create(const pen_wire_limits *limits, pen_step *step) {
    *step = (pen_step){
        .runs = calloc((size_t)limits->rows, sizeof *step->runs),
        .blocks = calloc((size_t)most_blocks(limits), sizeof *step->blocks),
        .copies = calloc((size_t)most_copies(limits), sizeof *step->copies),
        .picks = calloc((size_t)limits->logit_rows + 1, sizeof *step->picks),
    };
    if (step->runs && step->blocks && step->copies && step->picks) return PEN_OK;
    pen_step_destroy(step);
    return pen_fail(PEN_NO_MEMORY, "no memory for a step of %d rows", limits->rows);
}

void pen_step_destroy(pen_step *step) {
    free(step->runs);
    free(step->blocks);
    free(step->copies);
    free(step->picks);
    *step = (pen_step){0};
}

/* Writes the header of a finished message, now that its length is known. */
static size_t seal(void *message, const pen_writer *w, pen_message_type type, uint64_t sequence, uint32_t plan_epoch) {
    size_t length = (size_t)(w->at - (unsigned char *)message);
    pen_header header = {MAGIC, VERSION, (uint16_t)type, (uint32_t)length, plan_epoch, sequence};
    memcpy(message, &header, sizeof header);
    return length;
}

static pen_writer begin(void *message) {
    return (pen_writer){(unsigned char *)message + sizeof(pen_header)};
}

pen_status pen_wire_header(const void *message, size_t bytes, uint32_t plan_epoch, pen_header *header) {
    if (bytes < sizeof *header) return pen_fail(PEN_INTERNAL, "bad message: %zu bytes are no header", bytes);
    memcpy(header, message, sizeof *header);
    if (header->magic != MAGIC || header->version != VERSION)
        return pen_fail(PEN_INTERNAL, "bad message: magic %08x, version %u; expected %08x, %u", header->magic,
                        header->version, (unsigned)MAGIC, (unsigned)VERSION);
    if (header->length != bytes)
        return pen_fail(PEN_INTERNAL, "bad message: %u bytes by its header, %zu arrived", header->length, bytes);
    if (header->type == 0 || header->type >= PEN_MESSAGE_TYPES)
        return pen_fail(PEN_INTERNAL, "bad message: unknown type %u", header->type);
    if (header->plan_epoch != plan_epoch)
        return pen_fail(PEN_INTERNAL, "bad message: for plan %u, this is plan %u", header->plan_epoch, plan_epoch);
    return PEN_OK;
}

static pen_status open_message(const void *message, size_t bytes, uint32_t plan_epoch, pen_message_type type,
                               pen_header *header, pen_reader *r) {
    PEN_TRY(pen_wire_header(message, bytes, plan_epoch, header));
    if (header->type != type)
        return pen_fail(PEN_INTERNAL, "bad message: type %u where %u was expected", header->type, (unsigned)type);
    *r = (pen_reader){(const unsigned char *)message + sizeof *header, bytes - sizeof *header};
    return PEN_OK;
}

/* ---- Steps ------------------------------------------------------------------------------------------------------ */

size_t pen_wire_encode_step(const pen_step *step, uint32_t plan_epoch, void *message) {
    pen_writer w = begin(message);
    step_body body = {.completed = step->completed,
                      .table_hash = step->table_hash,
                      .rows = step->rows,
                      .run_count = step->run_count,
                      .logit_count = step->logit_count,
                      .block_count = step->block_count,
                      .copy_count = step->copy_count,
                      .history_bytes = step->history_bytes};
    pen_put(&w, &body, sizeof body);
    pen_put(&w, step->runs, (size_t)step->run_count * sizeof *step->runs);
    pen_put(&w, step->blocks, (size_t)step->block_count * sizeof *step->blocks);
    pen_put(&w, step->copies, (size_t)step->copy_count * sizeof *step->copies);
    pen_put(&w, step->picks, (size_t)step->logit_count * sizeof *step->picks);
    return seal(message, &w, PEN_MESSAGE_STEP, step->number, plan_epoch);
}

static bool within(int32_t value, int64_t low, int64_t high) {
    return value >= low && value <= high;
}

static pen_status check_blocks(const pen_step *step, const pen_wire_limits *limits) {
    const int32_t *block = step->blocks;
    for (int i = 0; i < step->run_count; i++)
        for (int g = 0; g < limits->kv.count; g++)
            for (int b = 0; b < step->runs[i].table_count; b++, block++)
                if (!within(*block, 0, limits->kv.blocks[g] - 1))
                    return pen_fail(PEN_INTERNAL, "bad step %" PRIu64 ": KV block %d of %d", step->number, *block,
                                    limits->kv.blocks[g]);
    return PEN_OK;
}

static pen_status check_copies(const pen_step *step, const pen_wire_limits *limits) {
    for (int i = 0; i < step->copy_count; i++) {
        const pen_kv_copy *copy = &step->copies[i];
        int blocks = within(copy->group, 0, limits->kv.count - 1) ? limits->kv.blocks[copy->group] : 0;
        if (!within(copy->from, 0, blocks - 1) || !within(copy->to, 0, blocks - 1))
            return pen_fail(PEN_INTERNAL, "bad step %" PRIu64 ": copy of block %d to %d in group %d", step->number,
                            copy->from, copy->to, copy->group);
    }
    return PEN_OK;
}

static pen_status check_runs(const pen_step *step, const pen_wire_limits *limits) {
    int64_t rows = 0, logits = 0, blocks = 0, table = pen_kv_blocks_for(limits->context);
    for (int i = 0; i < step->run_count; i++) {
        const pen_step_run *run = &step->runs[i];
        if (!within(run->sequence, 0, limits->sequences - 1) || !within(run->rows, 1, limits->rows) ||
            !within(run->position, 0, (int64_t)limits->context - run->rows) ||
            !within(run->logit_first, 0, run->rows) || !within(run->logit_rows, 0, run->rows - run->logit_first) ||
            !within(run->table_first, 0, table) || !within(run->table_count, 0, table - run->table_first))
            return pen_fail(PEN_INTERNAL,
                            "bad step %" PRIu64
                            ": run %d: sequence %d, position %d, %d rows, logits %d+%d, table %d+%d",
                            step->number, i, run->sequence, run->position, run->rows, run->logit_first, run->logit_rows,
                            run->table_first, run->table_count);
        rows += run->rows;
        logits += run->logit_rows;
        blocks += (int64_t)run->table_count * limits->kv.count;
    }
    if (rows != step->rows || logits != step->logit_count || blocks != step->block_count)
        return pen_fail(PEN_INTERNAL, "bad step %" PRIu64 ": its runs do not add up", step->number);
    PEN_TRY(check_blocks(step, limits));
    return check_copies(step, limits);
}

static pen_status check_picks(const pen_step *step, const pen_wire_limits *limits) {
    for (int i = 0; i < step->logit_count; i++) {
        const pen_pick *pick = &step->picks[i];
        if (!isfinite(pick->temperature) || !isfinite(pick->top_p) || !isfinite(pick->min_p) || pick->top_k < 0 ||
            !within(pick->target, -1, limits->vocab - 1) || !within(pick->position, 0, limits->context) ||
            !within(pick->top_logprobs, -1, PEN_TOP_LOGPROBS))
            return pen_fail(PEN_INTERNAL, "bad step %" PRIu64 ": pick %d", step->number, i);
    }
    return PEN_OK;
}

pen_status pen_wire_decode_step(const void *message, size_t bytes, const pen_wire_limits *limits, pen_step *step) {
    pen_header header;
    pen_reader r = {0};
    step_body body;
    PEN_TRY(open_message(message, bytes, limits->plan_epoch, PEN_MESSAGE_STEP, &header, &r));
    if (!pen_get(&r, &body, sizeof body) || !within(body.rows, 1, limits->rows) ||
        !within(body.run_count, 1, body.rows) || !within(body.logit_count, 0, limits->logit_rows) ||
        !within(body.block_count, 0, most_blocks(limits)) ||
        !within(body.history_bytes, 0, (int64_t)most_history_bytes(limits)) ||
        !within(body.copy_count, 0, most_copies(limits)) || body.completed > header.sequence)
        return pen_fail(PEN_INTERNAL, "bad step %" PRIu64 ": its sizes are out of bounds", header.sequence);
    step->number = header.sequence;
    step->completed = body.completed;
    step->rows = body.rows;
    step->run_count = body.run_count;
    step->logit_count = body.logit_count;
    step->block_count = body.block_count;
    step->copy_count = body.copy_count;
    step->table_hash = body.table_hash;
    step->history_bytes = body.history_bytes;
    if (!pen_get(&r, step->runs, (size_t)body.run_count * sizeof *step->runs) ||
        !pen_get(&r, step->blocks, (size_t)body.block_count * sizeof *step->blocks) ||
        !pen_get(&r, step->copies, (size_t)body.copy_count * sizeof *step->copies) ||
        !pen_get(&r, step->picks, (size_t)body.logit_count * sizeof *step->picks) || r.left != 0)
        return pen_fail(PEN_INTERNAL, "bad step %" PRIu64 ": %zu bytes do not hold it", header.sequence, bytes);
    PEN_TRY(check_runs(step, limits));
    return check_picks(step, limits);
}

uint64_t pen_wire_hash_table(uint64_t hash, const pen_step_run *run, int window, const int32_t *table) {
    int begin = pen_kv_first_seen(window, run->position), end = pen_kv_blocks_for(run->position + run->rows);
    return XXH3_64bits_withSeed(table + begin, (size_t)(end - begin) * sizeof *table, hash);
}

/* ---- Choices ---------------------------------------------------------------------------------------------------- */

static size_t top_of(const pen_pick *pick) {
    return pick->top_logprobs > 0 ? (size_t)pick->top_logprobs : 0;
}

size_t pen_wire_encode_choices(uint64_t number, const pen_choice *choices, const pen_pick *picks, int count,
                               uint32_t plan_epoch, void *message) {
    pen_writer w = begin(message);
    for (int i = 0; i < count; i++) {
        const pen_choice *choice = &choices[i];
        size_t top = top_of(&picks[i]);
        choice_body body = {choice->token, choice->logprob, choice->argmax, choice->bad_logits};
        pen_put(&w, &body, sizeof body);
        pen_put(&w, choice->top_ids, top * sizeof *choice->top_ids);
        pen_put(&w, choice->top_logprobs, top * sizeof *choice->top_logprobs);
    }
    return seal(message, &w, PEN_MESSAGE_CHOICES, number, plan_epoch);
}

pen_status pen_wire_decode_choices(const void *message, size_t bytes, const pen_wire_limits *limits, uint64_t number,
                                   const pen_pick *picks, int count, pen_choice *choices) {
    pen_header header;
    pen_reader r = {0};
    PEN_TRY(open_message(message, bytes, limits->plan_epoch, PEN_MESSAGE_CHOICES, &header, &r));
    if (header.sequence != number)
        return pen_fail(PEN_INTERNAL, "bad choices: of step %" PRIu64 ", waiting for step %" PRIu64, header.sequence,
                        number);
    for (int i = 0; i < count; i++) {
        pen_choice *choice = &choices[i];
        size_t top = top_of(&picks[i]);
        choice_body body;
        if (!pen_get(&r, &body, sizeof body) || !pen_get(&r, choice->top_ids, top * sizeof *choice->top_ids) ||
            !pen_get(&r, choice->top_logprobs, top * sizeof *choice->top_logprobs))
            return pen_fail(PEN_INTERNAL, "bad choices of step %" PRIu64 ": too short for %d", number, count);
        if (!body.bad_logits &&
            (!within(body.token, 0, limits->vocab - 1) || !within(body.argmax, 0, limits->vocab - 1)))
            return pen_fail(PEN_INTERNAL, "bad choices of step %" PRIu64 ": token %d", number, body.token);
        choice->token = body.token;
        choice->logprob = body.logprob;
        choice->argmax = body.argmax;
        choice->bad_logits = body.bad_logits;
    }
    if (r.left != 0) return pen_fail(PEN_INTERNAL, "bad choices of step %" PRIu64 ": too long for %d", number, count);
    return PEN_OK;
}

/* ---- Histories -------------------------------------------------------------------------------------------------- */

size_t pen_wire_told_bytes(const pen_told *told, int count) {
    size_t bytes = sizeof(pen_header);
    for (const pen_told *t = told; t < told + count; t++)
        bytes += sizeof(told_body) + (size_t)t->rules.bias_count * sizeof *t->biases +
                 ((size_t)t->rules.ban_count + (size_t)t->count) * sizeof(int32_t);
    return bytes;
}

size_t pen_wire_encode_history(uint64_t number, const pen_told *told, int count, uint32_t plan_epoch, void *message) {
    pen_writer w = begin(message);
    for (const pen_told *t = told; t < told + count; t++) {
        told_body body = {t->sequence, t->epoch, t->first, t->count, t->rules};
        pen_put(&w, &body, sizeof body);
        pen_put(&w, t->biases, (size_t)t->rules.bias_count * sizeof *t->biases);
        pen_put(&w, t->bans, (size_t)t->rules.ban_count * sizeof *t->bans);
        pen_put(&w, t->tokens, (size_t)t->count * sizeof *t->tokens);
    }
    return seal(message, &w, PEN_MESSAGE_HISTORY, number, plan_epoch);
}

static bool ids_within(const int32_t *ids, int32_t count, int vocab) {
    for (int32_t i = 0; i < count; i++)
        if (!within(ids[i], 0, vocab - 1)) return false;
    return true;
}

static bool check_told(const pen_told *t, const pen_wire_limits *limits) {
    const pen_history_rules *rules = &t->rules;
    if (!within(t->sequence, 0, limits->sequences - 1) || !within(t->first, 0, limits->context) ||
        !within(t->count, 0, limits->context - t->first) || !isfinite(rules->repetition) || rules->repetition <= 0 ||
        !isfinite(rules->presence) || !isfinite(rules->frequency) || !within(rules->prompt_count, 0, limits->context) ||
        !within(rules->bias_count, 0, limits->vocab) || !within(rules->ban_count, 0, limits->vocab))
        return false;
    return t->first == 0 || (rules->bias_count == 0 && rules->ban_count == 0);
}

static bool check_told_lists(const pen_told *t, int vocab) {
    if (!t->biases || !t->bans || !t->tokens) return false;
    for (int i = 0; i < t->rules.bias_count; i++)
        if (!within(t->biases[i].token, 0, vocab - 1) || !isfinite(t->biases[i].value)) return false;
    return ids_within(t->bans, t->rules.ban_count, vocab) && ids_within(t->tokens, t->count, vocab);
}

pen_status pen_wire_decode_history(const void *message, size_t bytes, const pen_wire_limits *limits, uint64_t number,
                                   pen_told *told, int *count) {
    pen_header header;
    pen_reader r = {0};
    PEN_TRY(open_message(message, bytes, limits->plan_epoch, PEN_MESSAGE_HISTORY, &header, &r));
    if (header.sequence != number)
        return pen_fail(PEN_INTERNAL, "bad histories: of step %" PRIu64 ", not of step %" PRIu64, header.sequence,
                        number);
    for (*count = 0; r.left > 0; ++*count) {
        told_body body;
        if (*count == limits->rows || !pen_get(&r, &body, sizeof body))
            return pen_fail(PEN_INTERNAL, "bad histories of step %" PRIu64 ": %zu bytes do not hold them", number,
                            bytes);
        pen_told *t = &told[*count];
        *t = (pen_told){body.sequence, body.epoch, body.first, body.count, body.rules, NULL, NULL, NULL};
        bool good = check_told(t, limits);
        if (good) {
            t->biases = pen_take(&r, t->rules.bias_count, sizeof *t->biases);
            t->bans = pen_take(&r, t->rules.ban_count, sizeof *t->bans);
            t->tokens = pen_take(&r, t->count, sizeof *t->tokens);
        }
        if (!good || !check_told_lists(t, limits->vocab))
            return pen_fail(PEN_INTERNAL, "bad histories of step %" PRIu64 ": number %d, of sequence %d", number,
                            *count, t->sequence);
    }
    return PEN_OK;
}

/* ---- The rest --------------------------------------------------------------------------------------------------- */

size_t pen_wire_encode_plain(pen_message_type type, uint64_t sequence, uint32_t plan_epoch, const void *body,
                             size_t body_bytes, void *message) {
    pen_writer w = begin(message);
    pen_put(&w, body, body_bytes);
    return seal(message, &w, type, sequence, plan_epoch);
}

pen_status pen_wire_decode_plain(const void *message, size_t bytes, pen_message_type type, uint32_t plan_epoch,
                                 void *body, size_t body_bytes) {
    pen_header header;
    pen_reader r = {0};
    PEN_TRY(open_message(message, bytes, plan_epoch, type, &header, &r));
    if (r.left != body_bytes)
        return pen_fail(PEN_INTERNAL, "bad message: type %u with %zu bytes where %zu were expected", header.type,
                        r.left, body_bytes);
    pen_get(&r, body, body_bytes);
    return PEN_OK;
}
