/* Lists of ids; see tokens.h. */
#include "tokens.h"

#include <stdlib.h>
#include <string.h>

pen_status pen_tokens_append(pen_tokens *tokens, const int32_t *ids, size_t count) {
    if (count == 0) return PEN_OK;
    if (tokens->capacity - tokens->count < count) {
        size_t capacity = 2 * tokens->capacity + count + 16;
        int32_t *grown = realloc(tokens->ids, capacity * sizeof *grown);
        if (!grown) return pen_fail(PEN_NO_MEMORY, "no memory for %zu tokens", capacity);
        tokens->ids = grown;
        tokens->capacity = capacity;
    }
    memcpy(tokens->ids + tokens->count, ids, count * sizeof *ids);
    tokens->count += count;
    return PEN_OK;
}

void pen_tokens_free(pen_tokens *tokens) {
    free(tokens->ids);
    *tokens = (pen_tokens){0};
}
