/* Lines of a batch; see batch_line.h. The fields of a request's body are a table. */
#include "batch_line.h"

#include <float.h>
#include <limits.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef enum kind {
    INTEGER, /* an int, min … max */
    NUMBER,  /* a float, min … max */
    FLAG,
    SEED,
    TEXT, /* a pen_text */
    PROMPT,
    STOP,
    BIASES,
    IGNORED, /* what OpenAI's clients send and nothing here depends on */
} kind;

typedef struct field {
    const char *name;
    kind kind;
    size_t offset; /* in pen_batch_line */
    double min, max, fallback;
} field;

#define AT(member) offsetof(pen_batch_line, member)

/* The defaults are OpenAI's, or else vLLM's. */
static const field fields[] = {
    {"model", TEXT, AT(model), 0, 0, 0},
    {"prompt", PROMPT, 0, 0, 0, 0},
    {"max_tokens", INTEGER, AT(max_tokens), 0, INT_MAX, 16},
    {"min_tokens", INTEGER, AT(min_tokens), 0, INT_MAX, 0},
    {"n", INTEGER, AT(choices), 1, 1024, 1},
    {"best_of", INTEGER, AT(best_of), 1, 1024, 0},
    {"temperature", NUMBER, AT(temperature), 0, 100, 1},
    {"top_p", NUMBER, AT(top_p), 0, 1, 1},
    {"top_k", INTEGER, AT(top_k), -1, INT_MAX, 0},
    {"min_p", NUMBER, AT(min_p), 0, 1, 0},
    {"seed", SEED, AT(seed), 0, 0, 0},
    {"repetition_penalty", NUMBER, AT(repetition_penalty), 0.01, 100, 1},
    {"presence_penalty", NUMBER, AT(presence_penalty), -2, 2, 0},
    {"frequency_penalty", NUMBER, AT(frequency_penalty), -2, 2, 0},
    {"priority", INTEGER, AT(priority), INT_MIN, INT_MAX, 0},
    {"logit_bias", BIASES, 0, -100, 100, 0},
    {"stop", STOP, 0, 0, 0, 0},
    {"ignore_eos", FLAG, AT(ignore_eos), 0, 0, 0},
    {"logprobs", INTEGER, AT(logprobs), 0, PEN_TOP_LOGPROBS, -1},
    {"echo", FLAG, AT(echo), 0, 0, 0},
    {"stream", FLAG, AT(stream), 0, 0, 0},
    {"user", IGNORED, 0, 0, 0, 0},
};
enum { FIELDS = sizeof fields / sizeof fields[0] };

static void *member(pen_batch_line *line, const field *f) {
    return (char *)line + f->offset;
}

static void set_defaults(pen_batch_line *line) {
    *line = (pen_batch_line){0};
    for (int i = 0; i < FIELDS; i++) {
        if (fields[i].kind == INTEGER) *(int *)member(line, &fields[i]) = (int)fields[i].fallback;
        if (fields[i].kind == NUMBER) *(float *)member(line, &fields[i]) = (float)fields[i].fallback;
    }
}

static pen_text text_of(const json_t *string) {
    return (pen_text){json_string_value(string), json_string_length(string)};
}

/* ---- Prompts: a text, ids, texts, or lists of ids --------------------------------------------------------------- */

static pen_status take_ids(const json_t *list, pen_batch_prompt *prompt) {
    size_t count = json_array_size(list);
    if (count == 0) return pen_fail(PEN_USAGE, "prompt is empty");
    prompt->ids = calloc(count, sizeof *prompt->ids);
    if (!prompt->ids) return pen_fail(PEN_NO_MEMORY, "no memory for a prompt of %zu tokens", count);
    prompt->count = (int)count; /* a line is not longer than INT_MAX */
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(list, i);
        json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value > INT32_MAX)
            return pen_fail(PEN_USAGE, "prompt: entry %zu is no token id", i);
        prompt->ids[i] = (int32_t)value;
    }
    return PEN_OK;
}

static pen_status take_one_prompt(const json_t *value, pen_batch_line *line) {
    pen_batch_prompt *prompt = &line->prompts[line->prompt_count++];
    if (json_is_array(value)) return take_ids(value, prompt);
    if (!json_is_string(value)) return pen_fail(PEN_USAGE, "prompt must be a text, token ids, or a list of either");
    prompt->text = text_of(value);
    return PEN_OK;
}

static pen_status take_prompts(const json_t *value, pen_batch_line *line) {
    bool several = json_is_array(value) && !json_is_integer(json_array_get(value, 0));
    size_t count = several ? json_array_size(value) : 1;
    if (count == 0) return pen_fail(PEN_USAGE, "prompt is empty");
    if (count > PEN_BATCH_COMPLETIONS_MOST)
        return pen_fail(PEN_USAGE, "prompt: %zu of them are more than %d", count, PEN_BATCH_COMPLETIONS_MOST);
    line->prompts = calloc(count, sizeof *line->prompts);
    if (!line->prompts) return pen_fail(PEN_NO_MEMORY, "no memory for %zu prompts", count);
    for (size_t i = 0; i < count; i++) PEN_TRY(take_one_prompt(several ? json_array_get(value, i) : value, line));
    return PEN_OK;
}

/* ---- The other fields -------------------------------------------------------------------------------------------- */

static pen_status take_stop(const json_t *value, pen_batch_line *line) {
    bool several = json_is_array(value);
    size_t count = several ? json_array_size(value) : 1;
    if (count > PEN_BATCH_STOPS_MOST) return pen_fail(PEN_USAGE, "stop: more than %d texts", PEN_BATCH_STOPS_MOST);
    for (size_t i = 0; i < count; i++) {
        const json_t *one = several ? json_array_get(value, i) : value;
        const char *text = json_string_value(one);
        if (!text || text[0] == '\0' || strlen(text) != json_string_length(one))
            return pen_fail(PEN_USAGE, "stop must be a text or a list of texts, none of them empty or with a NUL");
        line->stop[line->stop_count++] = text;
    }
    return PEN_OK;
}

static pen_status take_biases(const field *f, json_t *value, pen_batch_line *line) {
    if (!json_is_object(value) || json_object_size(value) > PEN_BATCH_BIASES_MOST)
        return pen_fail(PEN_USAGE, "logit_bias must be an object of token ids and numbers, at most %d",
                        PEN_BATCH_BIASES_MOST);
    line->biases = calloc(json_object_size(value) + 1, sizeof *line->biases);
    if (!line->biases) return pen_fail(PEN_NO_MEMORY, "no memory for logit_bias");
    const char *key;
    json_t *bias;
    json_object_foreach(value, key, bias) {
        bool digits = key[0] != '\0' && strspn(key, "0123456789") == strlen(key) && strlen(key) <= 9;
        double number = json_number_value(bias);
        if (!digits || !json_is_number(bias) || number < f->min || number > f->max)
            return pen_fail(PEN_USAGE, "logit_bias: '%.40s' is not a token id with a number from %g to %g", key, f->min,
                            f->max);
        line->biases[line->bias_count++] = (pen_logit_bias){(int32_t)atoi(key), (float)number};
    }
    for (int i = 0; i < line->bias_count; i++) /* "7" and "07" */
        for (int j = 0; j < i; j++)
            if (line->biases[i].token == line->biases[j].token)
                return pen_fail(PEN_USAGE, "logit_bias: token %d has two values", line->biases[i].token);
    return PEN_OK;
}

static pen_status take_field(const field *f, json_t *value, pen_batch_line *line) {
    double number = json_number_value(value);
    bool within = number >= f->min && number <= f->max;
    switch (f->kind) {
    case INTEGER:
        if (!json_is_integer(value) || !within)
            return pen_fail(PEN_USAGE, "%s must be a whole number from %.15g to %.15g", f->name, f->min, f->max);
        *(int *)member(line, f) = (int)json_integer_value(value);
        break;
    case NUMBER:
        if (!json_is_number(value) || !within)
            return pen_fail(PEN_USAGE, "%s must be a number from %g to %g", f->name, f->min, f->max);
        *(float *)member(line, f) = (float)number;
        break;
    case FLAG:
        if (!json_is_boolean(value)) return pen_fail(PEN_USAGE, "%s must be true or false", f->name);
        *(bool *)member(line, f) = json_is_true(value);
        break;
    case SEED:
        if (!json_is_integer(value)) return pen_fail(PEN_USAGE, "%s must be a whole number", f->name);
        line->seed = json_integer_value(value);
        line->seeded = true;
        break;
    case TEXT:
        if (!json_is_string(value)) return pen_fail(PEN_USAGE, "%s must be a text", f->name);
        *(pen_text *)member(line, f) = text_of(value);
        break;
    case PROMPT: return take_prompts(value, line);
    case STOP: return take_stop(value, line);
    case BIASES: return take_biases(f, value, line);
    case IGNORED: break;
    }
    return PEN_OK;
}

/* null is as good as nothing. */
static pen_status take_body(json_t *body, pen_batch_line *line) {
    const char *key;
    json_t *value;
    json_object_foreach(body, key, value) {
        if (json_is_null(value)) continue;
        int i = 0;
        while (i < FIELDS && strcmp(fields[i].name, key) != 0) i++;
        if (i == FIELDS) return pen_fail(PEN_USAGE, "body has a field '%.80s', which does not exist here", key);
        PEN_TRY(take_field(&fields[i], value, line));
    }
    return PEN_OK;
}

/* What holds between fields. */
static pen_status check_body(const pen_batch_line *line) {
    int choices = line->choices;
    if (line->prompt_count == 0) return pen_fail(PEN_USAGE, "body has no prompt");
    if (line->stream) return pen_fail(PEN_UNSUPPORTED, "stream: a batch has nobody to stream to");
    if (line->best_of != 0 && line->best_of != choices)
        return pen_fail(PEN_UNSUPPORTED, "best_of is %d and n is %d: all completions are returned", line->best_of,
                        choices);
    if (choices > PEN_BATCH_COMPLETIONS_MOST / line->prompt_count)
        return pen_fail(PEN_USAGE, "n: %d completions of %d prompts are more than %d", choices, line->prompt_count,
                        PEN_BATCH_COMPLETIONS_MOST);
    if (line->max_tokens == 0 && (!line->echo || choices > 1))
        return pen_fail(PEN_USAGE, "max_tokens can be 0 only with echo, and with n being 1");
    if (line->min_tokens > line->max_tokens)
        return pen_fail(PEN_USAGE, "min_tokens %d is more than max_tokens %d", line->min_tokens, line->max_tokens);
    return PEN_OK;
}

/* ---- The line ---------------------------------------------------------------------------------------------------- */

static pen_status check_target(const json_t *json) {
    const char *method = json_string_value(json_object_get(json, "method"));
    const char *url = json_string_value(json_object_get(json, "url"));
    if (!method || strcmp(method, "POST") != 0) return pen_fail(PEN_USAGE, "method must be \"POST\"");
    if (!url) return pen_fail(PEN_USAGE, "url must be \"/v1/completions\"");
    if (strcmp(url, "/v1/chat/completions") == 0)
        return pen_fail(PEN_UNSUPPORTED,
                        "url: there are no chat templates here yet: write the prompt as the model wants "
                        "it and send it to /v1/completions");
    if (strcmp(url, "/v1/completions") != 0)
        return pen_fail(PEN_UNSUPPORTED, "url: '%.80s' is not \"/v1/completions\"", url);
    return PEN_OK;
}

static pen_status check_keys(json_t *json) {
    static const char *const keys[] = {"custom_id", "method", "url", "body"};
    enum { KEYS = sizeof keys / sizeof keys[0] };
    const char *key;
    json_t *value;
    json_object_foreach(json, key, value) {
        int i = 0;
        while (i < KEYS && strcmp(keys[i], key) != 0) i++;
        if (i == KEYS) return pen_fail(PEN_USAGE, "the line has a field '%.80s', which does not exist here", key);
    }
    return PEN_OK;
}

pen_status pen_batch_line_parse(const char *text, size_t length, pen_batch_line *line) {
    set_defaults(line);
    json_error_t error;
    line->json = json_loadb(text, length, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!line->json && json_error_code(&error) == json_error_out_of_memory)
        return pen_fail(PEN_NO_MEMORY, "no memory for a line of %zu bytes", length);
    if (!line->json) return pen_fail(PEN_BAD_INPUT, "not a JSON object: %s (byte %d)", error.text, error.position);
    const json_t *custom_id = json_object_get(line->json, "custom_id");
    json_t *body = json_object_get(line->json, "body");
    if (json_is_string(custom_id)) line->custom_id = text_of(custom_id);
    if (!json_is_object(line->json)) return pen_fail(PEN_BAD_INPUT, "not a JSON object");
    if (!line->custom_id.data) return pen_fail(PEN_USAGE, "custom_id must be a text");
    PEN_TRY(check_keys(line->json));
    PEN_TRY(check_target(line->json));
    if (!json_is_object(body)) return pen_fail(PEN_USAGE, "body must be an object");
    PEN_TRY(take_body(body, line));
    return check_body(line);
}

void pen_batch_line_free(pen_batch_line *line) {
    for (int i = 0; i < line->prompt_count; i++) free(line->prompts[i].ids);
    free(line->prompts);
    free(line->biases);
    json_decref(line->json);
    *line = (pen_batch_line){0};
}
