/* Lines of a batch's output; see batch_answer.h. */
#include "batch_answer.h"

#include "utf8.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LEAST_LOGPROB (-9999.0) /* JSON has no −∞ */

/* ---- Texts ------------------------------------------------------------------------------------------------------- */

static bool is_utf8(pen_text text) {
    for (size_t at = 0; at < text.length;) {
        int step = pen_utf8_next(text.data + at, text.length - at);
        if (step <= 0) return false;
        at += (size_t)step;
    }
    return true;
}

static int64_t characters(pen_text text) {
    int64_t count = 0;
    for (size_t i = 0; i < text.length; i++) count += ((unsigned char)text.data[i] & 0xc0) != 0x80;
    return count;
}

/* Bytes that are no text are written as OpenAI does: "bytes:\xe2\x82". */
static json_t *token_text(pen_text piece) {
    char name[512] = "bytes:";
    if (is_utf8(piece)) return json_stringn(piece.data ? piece.data : "", piece.length);
    size_t used = strlen(name);
    for (size_t i = 0; i < piece.length && used + 5 < sizeof name; i++)
        used += (size_t)snprintf(name + used, sizeof name - used, "\\x%02x", (unsigned char)piece.data[i]);
    return json_string(name);
}

/* A message may quote what is no text, or end within a character; a path may be no text either. */
static json_t *clean_text(const char *message) {
    char clean[4096];
    size_t used = 0, length = strlen(message);
    for (size_t at = 0; at < length && used + 4 < sizeof clean;) {
        int step = pen_utf8_next(message + at, length - at);
        if (step == 0) break;
        size_t bytes = (size_t)abs(step);
        memcpy(clean + used, step > 0 ? message + at : "?", step > 0 ? bytes : 1);
        used += step > 0 ? bytes : 1;
        at += bytes;
    }
    return json_stringn(clean, used);
}

/* Writes what the ids say. */
static pen_status decode(const pen_tokenizer *tokenizer, const pen_tokens *tokens, FILE *out) {
    pen_detokenizer *detokenizer;
    PEN_TRY(pen_detokenizer_create(tokenizer, 0, &detokenizer));
    for (size_t i = 0; i < tokens->count; i++) {
        pen_text text = pen_detokenizer_push(detokenizer, tokens->ids[i]);
        fwrite(text.data, 1, text.length, out);
    }
    pen_text rest = pen_detokenizer_finish(detokenizer);
    fwrite(rest.data, 1, rest.length, out);
    pen_detokenizer_destroy(detokenizer);
    return PEN_OK;
}

/* ---- Log-probabilities ------------------------------------------------------------------------------------------- */

/* OpenAI's four lists, an entry per token each. */
typedef struct token_lists {
    const pen_tokenizer *tokenizer;
    pen_detokenizer *detokenizer; /* of the text in which the tokens are */
    int best;                     /* to report */
    int64_t offset;               /* characters before the next token */
    json_t *tokens, *logprobs, *top, *offsets;
} token_lists;

static json_t *logprob(float value) {
    return json_real(fmax((double)value, LEAST_LOGPROB));
}

/* The best, and the token itself where it is none of them. Of tokens that read alike the better one stays. */
static json_t *best_of(const token_lists *lists, const pen_choice *choice) {
    json_t *object = json_object();
    for (int i = 0; i <= lists->best; i++) {
        bool own = i == lists->best;
        int32_t id = own ? choice->token : choice->top_ids[i];
        json_t *name = token_text(pen_tokenizer_piece(lists->tokenizer, id));
        const char *key = json_string_value(name);
        if (key && !json_object_get(object, key))
            json_object_set_new(object, key, logprob(own ? choice->logprob : choice->top_logprobs[i]));
        json_decref(name);
    }
    return object;
}

/* A token; `choice` is NULL where nothing was said of it. */
static void add_token(token_lists *lists, int32_t id, const pen_choice *choice) {
    json_array_append_new(lists->tokens, token_text(pen_tokenizer_piece(lists->tokenizer, id)));
    json_array_append_new(lists->logprobs, choice ? logprob(choice->logprob) : json_null());
    json_array_append_new(lists->top, choice ? best_of(lists, choice) : json_null());
    json_array_append_new(lists->offsets, json_integer(lists->offset));
    lists->offset += characters(pen_detokenizer_push(lists->detokenizer, id));
}

/* The tokens of the echoed prompt, and those of the completion that begin before a stop string. */
static pen_status add_tokens(token_lists *lists, const pen_batch_line *line, const pen_batch_part *part,
                             const pen_completion *c) {
    PEN_TRY(pen_detokenizer_create(lists->tokenizer, 0, &lists->detokenizer));
    for (size_t i = 0; line->echo && i < part->prompt.count; i++)
        add_token(lists, part->prompt.ids[i], i > 0 ? &part->scored[i] : NULL);
    pen_detokenizer_destroy(lists->detokenizer);
    PEN_TRY(pen_detokenizer_create(lists->tokenizer, PEN_DECODE_CONTINUED, &lists->detokenizer));
    int64_t end = lists->offset + characters((pen_text){c->text, c->length});
    for (size_t i = 0; i < c->output.count && !(c->stopped && lists->offset >= end); i++)
        add_token(lists, c->output.ids[i], &c->choices[i]);
    pen_detokenizer_destroy(lists->detokenizer);
    return PEN_OK;
}

static pen_status describe_tokens(const pen_batch_line *line, const pen_batch_part *part, const pen_completion *c,
                                  const pen_tokenizer *tokenizer, json_t **object) {
    token_lists lists = {.tokenizer = tokenizer,
                         .best = line->logprobs,
                         .tokens = json_array(),
                         .logprobs = json_array(),
                         .top = json_array(),
                         .offsets = json_array()};
    pen_status status = add_tokens(&lists, line, part, c);
    *object = json_pack("{s:o, s:o, s:o, s:o}", "tokens", lists.tokens, "token_logprobs", lists.logprobs,
                        "top_logprobs", lists.top, "text_offset", lists.offsets);
    return status;
}

/* ---- Completions ------------------------------------------------------------------------------------------------- */

/* The text of a completion, behind that of its prompt where that is echoed. */
static pen_status describe_text(const pen_batch_line *line, const pen_batch_part *part, const pen_batch_prompt *prompt,
                                const pen_completion *c, const pen_tokenizer *tokenizer, json_t **string) {
    char *text;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    if (!out) return pen_fail(PEN_NO_MEMORY, "no memory for an answer");
    pen_status status = PEN_OK;
    if (line->echo && prompt->ids) status = decode(tokenizer, &part->prompt, out);
    if (line->echo && !prompt->ids) fwrite(prompt->text.data, 1, prompt->text.length, out);
    if (c->length > 0) fwrite(c->text, 1, c->length, out);
    if (fclose(out) != 0 && status == PEN_OK) status = pen_fail(PEN_NO_MEMORY, "no memory for an answer");
    *string = status == PEN_OK ? json_stringn(text, length) : NULL;
    free(text);
    return status;
}

static pen_status describe_choice(const pen_batch_line *line, const pen_batch_part *parts, int index,
                                  const pen_tokenizer *tokenizer, json_t **choice) {
    int prompt = index / line->choices;
    const pen_completion *c = parts[prompt].completions[index % line->choices];
    json_t *text = NULL, *logprobs = NULL;
    PEN_TRY(describe_text(line, &parts[prompt], &line->prompts[prompt], c, tokenizer, &text));
    pen_status status = PEN_OK;
    if (line->logprobs >= 0) status = describe_tokens(line, &parts[prompt], c, tokenizer, &logprobs);
    *choice = json_pack("{s:i, s:o, s:o?, s:s}", "index", index, "text", text, "logprobs", logprobs, "finish_reason",
                        pen_completion_reason(c));
    return status;
}

pen_batch_usage pen_batch_count(const pen_batch_line *line, const pen_batch_part *parts) {
    pen_batch_usage usage = {0};
    for (int p = 0; p < line->prompt_count; p++) {
        usage.prompt_tokens += (int64_t)parts[p].prompt.count;
        for (int i = 0; i < line->choices; i++)
            usage.completion_tokens += (int64_t)parts[p].completions[i]->output.count;
    }
    return usage;
}

/* ---- Lines ------------------------------------------------------------------------------------------------------- */

/* Takes `line` over. Names are made from batch and line, so that they are the same when a line is computed again. */
static pen_status write_line(json_t *line, char **text, size_t *length) {
    char *dumped = line ? json_dumps(line, JSON_COMPACT) : NULL;
    json_decref(line);
    *text = NULL;
    if (dumped) {
        *length = strlen(dumped) + 1;
        *text = realloc(dumped, *length + 1);
        if (!*text) free(dumped);
    }
    if (!*text) return pen_fail(PEN_NO_MEMORY, "no memory for an answer");
    strcpy(*text + *length - 1, "\n");
    return PEN_OK;
}

typedef struct name {
    char text[64];
} name;

static name name_of(const char *prefix, pen_batch_origin origin) {
    name made;
    snprintf(made.text, sizeof made.text, "%s%016" PRIx64 "%08" PRIx64, prefix, origin.batch, (uint64_t)origin.line);
    return made;
}

static json_t *text_or_null(pen_text text) {
    return text.data ? json_stringn(text.data, text.length) : json_null();
}

pen_status pen_batch_answer(const pen_batch_line *line, const pen_batch_part *parts, const pen_tokenizer *tokenizer,
                            const char *model, pen_batch_origin origin, char **text, size_t *length) {
    json_t *choices = json_array();
    for (int i = 0; i < line->prompt_count * line->choices; i++) {
        json_t *choice;
        pen_status status = describe_choice(line, parts, i, tokenizer, &choice);
        if (status == PEN_OK && json_array_append_new(choices, choice) == 0) continue;
        json_decref(choices);
        return status == PEN_OK ? pen_fail(PEN_NO_MEMORY, "no memory for an answer") : status;
    }
    pen_batch_usage usage = pen_batch_count(line, parts);
    json_t *named = line->model.data ? text_or_null(line->model) : clean_text(model);
    json_t *body = json_pack("{s:s, s:s, s:I, s:o, s:o, s:{s:I, s:I, s:I}}", "id", name_of("cmpl-", origin).text,
                             "object", "text_completion", "created", (json_int_t)time(NULL), "model", named, "choices",
                             choices, "usage", "prompt_tokens", (json_int_t)usage.prompt_tokens, "completion_tokens",
                             (json_int_t)usage.completion_tokens, "total_tokens",
                             (json_int_t)(usage.prompt_tokens + usage.completion_tokens));
    json_t *answer = json_pack("{s:s, s:o, s:{s:i, s:s, s:o}, s:n}", "id", name_of("batch_req_", origin).text,
                               "custom_id", text_or_null(line->custom_id), "response", "status_code", 200, "request_id",
                               name_of("req_", origin).text, "body", body, "error");
    return write_line(answer, text, length);
}

static const char *code_of(pen_status status) {
    switch (status) {
    case PEN_BAD_INPUT: return "invalid_json";
    case PEN_UNSUPPORTED: return "unsupported";
    case PEN_INTERNAL: return "server_error";
    default: return "invalid_request";
    }
}

pen_status pen_batch_error(pen_text custom_id, pen_status status, const char *message, pen_batch_origin origin,
                           char **text, size_t *length) {
    json_t *line = json_pack("{s:s, s:o, s:n, s:{s:s, s:o, s:I}}", "id", name_of("batch_req_", origin).text,
                             "custom_id", text_or_null(custom_id), "response", "error", "code", code_of(status),
                             "message", clean_text(message), "line", (json_int_t)origin.line);
    return write_line(line, text, length);
}
