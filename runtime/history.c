/* Histories; see history.h. A table from token ids to edits: dense lists for the device, a hash table to find them. */
#include "history.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LEAST_CAPACITY = 64 };

/* What is behind an edit. */
typedef struct note {
    float bias;
    int32_t outputs; /* how often the output has the token */
    bool banned;
} note;

struct pen_history {
    pen_history_rules rules;
    int told;              /* tokens */
    bool banning;          /* no position has reached the end of the bans yet */
    int count, capacity;   /* of edits; the capacity is a power of two */
    pen_logit_edit *edits; /* [capacity] */
    note *notes;           /* [capacity], beside the edits */
    int32_t *places;       /* [2 · capacity]: index of an edit + 1, or 0; open addressing */
};

/* Makes room for `capacity` edits. */
static pen_status grow(pen_history *history, int capacity) {
    size_t room = (size_t)capacity;
    pen_logit_edit *edits = realloc(history->edits, room * sizeof *edits);
    if (edits) history->edits = edits;
    note *notes = realloc(history->notes, room * sizeof *notes);
    if (notes) history->notes = notes;
    int32_t *places = calloc(2 * room, sizeof *places);
    if (!edits || !notes || !places) {
        free(places);
        return pen_fail(PEN_NO_MEMORY, "no memory for a history of %d different tokens", capacity);
    }
    free(history->places);
    history->places = places;
    history->capacity = capacity;
    return PEN_OK;
}

/* Where the edit of a token is noted, or is to be. */
static int32_t *place_of(const pen_history *history, int32_t token) {
    uint32_t mask = 2 * (uint32_t)history->capacity - 1, at = (uint32_t)token * 2654435769U >> 7 & mask;
    while (history->places[at] != 0 && history->edits[history->places[at] - 1].token != token) at = (at + 1) & mask;
    return &history->places[at];
}

/* Index of the token's edit, which is made where there is none. */
static pen_status edit_of(pen_history *history, int32_t token, int *index) {
    if (history->count == history->capacity) {
        PEN_TRY(grow(history, 2 * history->capacity));
        for (int i = 0; i < history->count; i++) *place_of(history, history->edits[i].token) = i + 1;
    }
    int32_t *place = place_of(history, token);
    if (*place == 0) {
        history->edits[history->count] = (pen_logit_edit){.token = token, .scale = 1};
        history->notes[history->count] = (note){0};
        *place = ++history->count;
    }
    *index = *place - 1;
    return PEN_OK;
}

pen_status pen_history_create(pen_history **out) {
    pen_history *history = calloc(1, sizeof *history);
    if (!history) return pen_fail(PEN_NO_MEMORY, "no memory for a history");
    pen_status status = grow(history, LEAST_CAPACITY);
    if (status != PEN_OK) {
        pen_history_destroy(history);
        return status;
    }
    *out = history;
    return PEN_OK;
}

void pen_history_destroy(pen_history *history) {
    if (!history) return;
    free(history->edits);
    free(history->notes);
    free(history->places);
    free(history);
}

pen_status pen_history_begin(pen_history *history, const pen_history_rules *rules, const pen_logit_bias *biases,
                             const int32_t *bans) {
    history->rules = *rules;
    history->told = history->count = 0;
    history->banning = rules->ban_count > 0;
    memset(history->places, 0, 2 * (size_t)history->capacity * sizeof *history->places);
    int edit;
    for (int i = 0; i < rules->bias_count; i++) {
        PEN_TRY(edit_of(history, biases[i].token, &edit));
        history->edits[edit].add = history->notes[edit].bias = biases[i].value;
    }
    for (int i = 0; i < rules->ban_count; i++) {
        PEN_TRY(edit_of(history, bans[i], &edit));
        history->edits[edit].add = -INFINITY;
        history->notes[edit].banned = true;
    }
    return PEN_OK;
}

pen_status pen_history_append(pen_history *history, const int32_t *tokens, int count) {
    const pen_history_rules *rules = &history->rules;
    for (int i = 0; i < count; i++) {
        bool output = history->told++ >= rules->prompt_count;
        if (!output && rules->repetition == 1) continue;
        int index;
        PEN_TRY(edit_of(history, tokens[i], &index));
        pen_logit_edit *edit = &history->edits[index];
        edit->scale = rules->repetition;
        if (output) edit->less = rules->presence + rules->frequency * (float)++history->notes[index].outputs;
    }
    return PEN_OK;
}

int pen_history_count(const pen_history *history) {
    return history->told;
}

static void lift_bans(pen_history *history) {
    for (int i = 0; i < history->count; i++)
        if (history->notes[i].banned) history->edits[i].add = history->notes[i].bias;
    history->banning = false;
}

pen_logit_edits pen_history_edits(pen_history *history, int position) {
    if (history->banning && position >= history->rules.ban_end) lift_bans(history);
    return (pen_logit_edits){history->edits, history->count};
}
