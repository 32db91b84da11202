/* Letters; see front_wire.h. */
#include "front_wire.h"

#include "bytes.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { MAGIC = 0x4c4e4550 /* "PENL" */, VERSION = 1 };

/* First bytes of every letter. Bodies begin behind it, aligned. */
typedef struct letter_header {
    uint32_t magic;
    uint16_t version, kind;
} letter_header;

/* A request in a queue, before its payload. */
typedef struct queued_body {
    pen_stamp stamp;
    int64_t waited_ns, left_ns; /* since it arrived; until it expires, 0: never */
    double cost_ms, prompt_ms;
    uint64_t bytes;
    int32_t priority, unused;
} queued_body;

/* The fixed part of a payload; prompt, stop ids and biases follow. */
typedef struct request_body {
    pen_pick pick;
    int32_t prompt_count, given, max_tokens, score, choices, stop_count, min_tokens, priority, bias_count;
    float repetition_penalty, presence_penalty, frequency_penalty;
} request_body;

typedef struct notice_body {
    pen_stamp stamp;
    int32_t kind, index, position, finish, top;
    int32_t token;
    float logprob;
    int32_t argmax;
} notice_body;

static_assert(sizeof(letter_header) == 8 && sizeof(queued_body) == 64 && sizeof(notice_body) == 48, "no padding");
static_assert(sizeof(request_body) == 88 && sizeof(pen_stamp) == 16, "no padding");

static pen_status no_memory(size_t bytes) {
    return pen_fail(PEN_NO_MEMORY, "no memory for a letter of %zu bytes", bytes);
}

static letter_header header_of(pen_letter_kind kind) {
    return (letter_header){MAGIC, VERSION, (uint16_t)kind};
}

pen_status pen_letter_kind_of(const void *letter, size_t bytes, pen_letter_kind *kind) {
    letter_header header;
    if (bytes < sizeof header) return pen_fail(PEN_INTERNAL, "bad letter: %zu bytes", bytes);
    memcpy(&header, letter, sizeof header);
    if (header.magic != MAGIC || header.version != VERSION || header.kind == 0 || header.kind >= PEN_LETTER_KINDS)
        return pen_fail(PEN_INTERNAL, "bad letter: magic %08x, version %u, kind %u", header.magic, header.version,
                        header.kind);
    *kind = (pen_letter_kind)header.kind;
    return PEN_OK;
}

static pen_status open_letter(const void *letter, size_t bytes, pen_letter_kind kind, pen_reader *r) {
    pen_letter_kind found = (pen_letter_kind)0;
    PEN_TRY(pen_letter_kind_of(letter, bytes, &found));
    if (found != kind)
        return pen_fail(PEN_INTERNAL, "bad letter: kind %u where %u was expected", (unsigned)found, (unsigned)kind);
    *r = (pen_reader){(const unsigned char *)letter + sizeof(letter_header), bytes - sizeof(letter_header)};
    return PEN_OK;
}

pen_status pen_letter_encode(pen_letter_kind kind, const void *body, size_t bytes, pen_blob *letter) {
    letter_header header = header_of(kind);
    *letter = (pen_blob){malloc(sizeof header + bytes), sizeof header + bytes};
    if (!letter->data) return no_memory(letter->bytes);
    pen_writer w = {letter->data};
    pen_put(&w, &header, sizeof header);
    pen_put(&w, body, bytes);
    return PEN_OK;
}

pen_status pen_letter_decode(const void *letter, size_t bytes, pen_letter_kind kind, void *body, size_t body_bytes) {
    pen_reader r = {0};
    PEN_TRY(open_letter(letter, bytes, kind, &r));
    if (r.left != body_bytes)
        return pen_fail(PEN_INTERNAL, "bad letter: kind %u with %zu bytes where %zu were expected", (unsigned)kind,
                        r.left, body_bytes);
    pen_get(&r, body, body_bytes);
    return PEN_OK;
}

/* ---- Requests ---------------------------------------------------------------------------------------------------- */

pen_status pen_payload_encode(const pen_request *request, pen_blob *payload) {
    request_body body = {.pick = request->pick,
                         .prompt_count = request->prompt_count,
                         .given = request->given,
                         .max_tokens = request->max_tokens,
                         .score = request->score,
                         .choices = request->choices,
                         .stop_count = request->stop_count,
                         .min_tokens = request->min_tokens,
                         .priority = request->priority,
                         .bias_count = request->bias_count,
                         .repetition_penalty = request->repetition_penalty,
                         .presence_penalty = request->presence_penalty,
                         .frequency_penalty = request->frequency_penalty};
    size_t tokens = ((size_t)request->prompt_count + (size_t)request->given) * sizeof(int32_t),
           stops = (size_t)request->stop_count * sizeof(int32_t),
           biases = (size_t)request->bias_count * sizeof(pen_logit_bias);
    payload->bytes = sizeof body + tokens + stops + biases;
    payload->data = malloc(payload->bytes);
    if (!payload->data) return no_memory(payload->bytes);
    pen_writer w = {payload->data};
    pen_put(&w, &body, sizeof body);
    pen_put(&w, request->prompt, tokens);
    pen_put(&w, request->stop_ids, stops);
    pen_put(&w, request->biases, biases);
    return PEN_OK;
}

pen_status pen_payload_decode(const void *payload, size_t bytes, pen_request *request) {
    pen_reader r = {payload, bytes};
    request_body body;
    bool good = pen_get(&r, &body, sizeof body) && body.prompt_count >= 0 && body.given >= 0 && body.stop_count >= 0 &&
                body.bias_count >= 0 && (int64_t)body.prompt_count + body.given <= INT32_MAX;
    const int32_t *prompt = NULL, *stop_ids = NULL;
    const pen_logit_bias *biases = NULL;
    if (good) {
        prompt = pen_take(&r, body.prompt_count + body.given, sizeof *prompt);
        stop_ids = prompt ? pen_take(&r, body.stop_count, sizeof *stop_ids) : NULL;
        biases = stop_ids ? pen_take(&r, body.bias_count, sizeof *biases) : NULL;
    }
    if (!biases || r.left != 0) return pen_fail(PEN_INTERNAL, "bad request: %zu bytes do not hold it", bytes);
    request->prompt = prompt;
    request->prompt_count = body.prompt_count;
    request->given = body.given;
    request->max_tokens = body.max_tokens;
    request->score = body.score != 0;
    request->pick = body.pick;
    request->choices = body.choices;
    request->stop_ids = stop_ids;
    request->stop_count = body.stop_count;
    request->min_tokens = body.min_tokens;
    request->priority = body.priority;
    request->repetition_penalty = body.repetition_penalty;
    request->presence_penalty = body.presence_penalty;
    request->frequency_penalty = body.frequency_penalty;
    request->biases = biases;
    request->bias_count = body.bias_count;
    return PEN_OK;
}

pen_status pen_letter_encode_requests(pen_letter_kind kind, const pen_queued *entries, int count, int64_t now_ns,
                                      pen_blob *letter) {
    letter_header header = header_of(kind);
    letter->bytes = sizeof header;
    for (int i = 0; i < count; i++) letter->bytes += sizeof(queued_body) + entries[i].bytes;
    letter->data = malloc(letter->bytes);
    if (!letter->data) return no_memory(letter->bytes);
    pen_writer w = {letter->data};
    pen_put(&w, &header, sizeof header);
    for (int i = 0; i < count; i++) {
        const pen_queued *entry = &entries[i];
        int64_t left_ns = entry->deadline_ns - now_ns;
        queued_body body = {.stamp = entry->stamp,
                            .waited_ns = now_ns - entry->arrived_ns,
                            .left_ns = entry->deadline_ns == 0 ? 0
                                       : left_ns > 1           ? left_ns
                                                               : 1,
                            .cost_ms = entry->cost_ms,
                            .prompt_ms = entry->prompt_ms,
                            .bytes = entry->bytes,
                            .priority = entry->priority};
        pen_put(&w, &body, sizeof body);
        pen_put(&w, entry->payload, entry->bytes);
    }
    return PEN_OK;
}

static pen_status read_entry(pen_reader *r, int64_t now_ns, pen_queued *entry) {
    queued_body body;
    if (!pen_get(r, &body, sizeof body) || body.bytes > r->left || !(body.cost_ms >= body.prompt_ms) ||
        !(body.prompt_ms >= 0) || body.waited_ns < 0 || body.left_ns < 0 || body.left_ns > INT64_MAX - now_ns)
        return pen_fail(PEN_INTERNAL, "bad letter: a request that it does not hold");
    *entry = (pen_queued){.stamp = body.stamp,
                          .priority = body.priority,
                          .arrived_ns = now_ns - body.waited_ns,
                          .deadline_ns = body.left_ns ? now_ns + body.left_ns : 0,
                          .cost_ms = body.cost_ms,
                          .prompt_ms = body.prompt_ms,
                          .payload = malloc(body.bytes ? body.bytes : 1),
                          .bytes = body.bytes};
    if (!entry->payload) return no_memory(body.bytes);
    pen_get(r, entry->payload, body.bytes);
    return PEN_OK;
}

pen_status pen_letter_decode_requests(const void *letter, size_t bytes, pen_letter_kind kind, int64_t now_ns,
                                      pen_queued *entries, int capacity, int *count) {
    pen_reader r = {0};
    *count = 0;
    pen_status status = open_letter(letter, bytes, kind, &r);
    while (status == PEN_OK && r.left > 0) {
        if (*count == capacity)
            status = pen_fail(PEN_INTERNAL, "bad letter: more than %d requests", capacity);
        else
            status = read_entry(&r, now_ns, &entries[*count]);
        if (status == PEN_OK) ++*count;
    }
    if (status == PEN_OK) return PEN_OK;
    while (*count > 0) free(entries[--*count].payload);
    return status;
}

/* ---- Notices ----------------------------------------------------------------------------------------------------- */

pen_status pen_notices_add(pen_notices *notices, const pen_notice *notice) {
    size_t top = (size_t)notice->top, most = sizeof(letter_header) + sizeof(notice_body) + top * 8;
    if (notices->bytes + most > notices->capacity) {
        size_t capacity = 2 * (notices->bytes + most);
        unsigned char *grown = realloc(notices->data, capacity);
        if (!grown) return no_memory(capacity);
        notices->data = grown;
        notices->capacity = capacity;
    }
    pen_writer w = {notices->data + notices->bytes};
    if (notices->bytes == 0) {
        letter_header header = header_of(PEN_LETTER_NOTICES);
        pen_put(&w, &header, sizeof header);
    }
    const pen_choice *choice = &notice->choice;
    notice_body body = {.stamp = notice->stamp,
                        .kind = (int32_t)notice->kind,
                        .index = notice->index,
                        .position = notice->position,
                        .finish = (int32_t)notice->finish,
                        .top = notice->top,
                        .token = choice->token,
                        .logprob = choice->logprob,
                        .argmax = choice->argmax};
    pen_put(&w, &body, sizeof body);
    pen_put(&w, choice->top_ids, top * sizeof *choice->top_ids);
    pen_put(&w, choice->top_logprobs, top * sizeof *choice->top_logprobs);
    notices->bytes = (size_t)(w.at - notices->data);
    notices->count++;
    return PEN_OK;
}

pen_blob pen_notices_letter(pen_notices *notices) {
    pen_blob letter = {notices->data, notices->bytes};
    notices->bytes = 0;
    notices->count = 0;
    return letter;
}

void pen_notices_free(pen_notices *notices) {
    free(notices->data);
    *notices = (pen_notices){0};
}

bool pen_notices_next(const void *letter, size_t bytes, size_t *offset, pen_notice *notice, pen_status *status) {
    pen_reader r = {0};
    if (*offset == 0) {
        *status = open_letter(letter, bytes, PEN_LETTER_NOTICES, &r);
        if (*status != PEN_OK) return false;
    } else {
        r = (pen_reader){(const unsigned char *)letter + *offset, bytes - *offset};
    }
    *status = PEN_OK;
    if (r.left == 0) return false;
    notice_body body;
    bool good = pen_get(&r, &body, sizeof body) && body.kind >= PEN_NOTICE_STARTED && body.kind <= PEN_NOTICE_DONE &&
                body.top >= 0 && body.top <= PEN_TOP_LOGPROBS && body.finish >= 0 && body.finish < PEN_FINISHES;
    if (good) {
        *notice = (pen_notice){.stamp = body.stamp,
                               .kind = (pen_notice_kind)body.kind,
                               .index = body.index,
                               .position = body.position,
                               .finish = (pen_finish)body.finish,
                               .top = body.top,
                               .choice = {.token = body.token, .logprob = body.logprob, .argmax = body.argmax}};
        size_t list = (size_t)body.top * sizeof(int32_t);
        good = pen_get(&r, notice->choice.top_ids, list) && pen_get(&r, notice->choice.top_logprobs, list);
    }
    if (!good) {
        *status = pen_fail(PEN_INTERNAL, "bad letter: notices that it does not hold");
        return false;
    }
    *offset = (size_t)(r.at - (const unsigned char *)letter);
    return true;
}
