/* A leader's requests; see live.h. */
#include "live.h"

#include <stdlib.h>
#include <string.h>

enum { LEAST_CAPACITY = 64 }; /* capacities are powers of two */

/* ---- Entries ---------------------------------------------------------------------------------------------------- */

pen_status pen_live_check(const pen_engine_options *options, const pen_request *request) {
    if (request->prompt_count < 1) return pen_fail(PEN_USAGE, "the prompt is empty");
    if (request->max_tokens < (request->score ? 0 : 1))
        return pen_fail(PEN_USAGE, "%d tokens cannot be generated", request->max_tokens);
    if (request->choices > 1 && request->max_tokens == 0)
        return pen_fail(PEN_USAGE, "%d completions of no tokens cannot be told apart", request->choices);
    if (request->given < 0 || (request->given > 0 && request->given >= request->max_tokens))
        return pen_fail(PEN_USAGE, "%d of %d tokens cannot be given", request->given, request->max_tokens);
    if (request->given > 0 && request->choices > 1)
        return pen_fail(PEN_USAGE, "%d completions cannot begin with the same %d tokens", request->choices,
                        request->given);
    if ((int64_t)request->prompt_count + request->max_tokens > options->context)
        return pen_fail(PEN_USAGE, "a prompt of %d tokens and %d new ones exceed the context of %d",
                        request->prompt_count, request->max_tokens, options->context);
    int positions = request->prompt_count + (request->max_tokens ? request->max_tokens - 1 : 0);
    int g = pen_kv_short_group(&options->kv, options->rows, positions);
    if (g >= 0)
        return pen_fail(PEN_NO_MEMORY, "a request of %d tokens holds %d blocks of KV at a time, and there are %d",
                        positions, pen_kv_blocks_held(options->kv.windows[g], options->rows, positions),
                        options->kv.blocks[g]);
    for (int i = 0; i < request->prompt_count + request->given; i++)
        if (request->prompt[i] < 0 || request->prompt[i] >= options->vocab)
            return pen_fail(PEN_USAGE, "token %d of the prompt is %d, and the vocabulary has %d", i, request->prompt[i],
                            options->vocab);
    for (int i = 0; i < request->bias_count; i++)
        if (request->biases[i].token < 0 || request->biases[i].token >= options->vocab)
            return pen_fail(PEN_USAGE, "a logit bias for token %d, and the vocabulary has %d", request->biases[i].token,
                            options->vocab);
    return PEN_OK;
}

static pen_history_rules rules_of(const pen_request *request) {
    return (pen_history_rules){
        .repetition = request->repetition_penalty == 0 ? 1 : request->repetition_penalty,
        .presence = request->presence_penalty,
        .frequency = request->frequency_penalty,
        .prompt_count = request->prompt_count,
        .ban_end = request->prompt_count + request->min_tokens,
        .bias_count = request->bias_count,
        .ban_count = request->min_tokens > 0 ? request->stop_count : 0,
    };
}

pen_status pen_live_create(const pen_request *request, pen_live **out) {
    size_t tokens = (size_t)request->prompt_count + (size_t)request->max_tokens;
    pen_live *live = malloc(sizeof *live + tokens * sizeof live->tokens[0]);
    if (!live) return pen_fail(PEN_NO_MEMORY, "no memory for a request of %zu tokens", tokens);
    *live = (pen_live){.request = *request, .output = request->given, .rules = rules_of(request)};
    live->has_rules = pen_history_wants_tokens(&live->rules) || live->rules.bias_count > 0 || live->rules.ban_count > 0;
    memcpy(live->tokens, request->prompt, (size_t)(request->prompt_count + request->given) * sizeof live->tokens[0]);
    live->request.prompt = live->tokens;
    *out = live;
    return PEN_OK;
}

/* ---- The table -------------------------------------------------------------------------------------------------- */

static pen_live **place_of(pen_live **entries, int capacity, int64_t sequence) {
    return &entries[sequence & (capacity - 1)];
}

pen_status pen_live_table_create(pen_live_table *table) {
    *table = (pen_live_table){.entries = calloc(LEAST_CAPACITY, sizeof *table->entries), .capacity = LEAST_CAPACITY};
    if (table->entries) return PEN_OK;
    table->capacity = 0;
    return pen_fail(PEN_NO_MEMORY, "no memory for requests");
}

void pen_live_table_destroy(pen_live_table *table) {
    for (int i = 0; i < table->capacity; i++) free(table->entries[i]);
    free(table->entries);
}

pen_live *pen_live_find(const pen_live_table *table, int64_t sequence) {
    pen_live *found = *place_of(table->entries, table->capacity, sequence);
    return found && found->sequence == sequence ? found : NULL;
}

pen_status pen_live_insert(pen_live_table *table, pen_live *live) {
    while (*place_of(table->entries, table->capacity, live->sequence)) {
        int capacity = 2 * table->capacity;
        pen_live **grown = calloc((size_t)capacity, sizeof *grown);
        if (!grown) return pen_fail(PEN_NO_MEMORY, "no memory for %d requests", table->count + 1);
        for (int i = 0; i < table->capacity; i++)
            if (table->entries[i]) *place_of(grown, capacity, table->entries[i]->sequence) = table->entries[i];
        free(table->entries);
        table->entries = grown;
        table->capacity = capacity;
    }
    *place_of(table->entries, table->capacity, live->sequence) = live;
    table->count++;
    return PEN_OK;
}

void pen_live_remove(pen_live_table *table, const pen_live *live) {
    *place_of(table->entries, table->capacity, live->sequence) = NULL;
    table->count--;
}
