/*
 * Models in several files: NAME-00001-of-0000N.gguf and so on, as llama.cpp's gguf-split and the gguf package write
 * them. Each file says in split.no, split.count and split.tensors.count which part of what it is. The names of the
 * others follow from the name of the one that was given, so no file can point at another.
 */
#include "gguf_private.h"

#include <stdlib.h>
#include <string.h>

enum { PARTS_MAX = 512, SUFFIX_MAX = 32 };

/* What a file says about the whole. */
typedef struct split {
    int64_t no, count, tensors;
} split;

static pen_status read_split(const pen_gguf *part, split *s) {
    *s = (split){0, 1, (int64_t)part->tensor_count};
    int64_t count;
    PEN_TRY(pen_gguf_i64_or(part, "split.count", 0, PARTS_MAX, 0, &count));
    if (count <= 1) return PEN_OK; /* 0 is what gguf-split leaves in a file that it has merged */
    s->count = count;
    PEN_TRY(pen_gguf_i64(part, "split.no", 0, count - 1, &s->no));
    return pen_gguf_i64(part, "split.tensors.count", 0, INT32_MAX, &s->tensors);
}

static size_t suffix(char text[SUFFIX_MAX], int64_t no, int64_t count) {
    return (size_t)snprintf(text, SUFFIX_MAX, "-%05d-of-%05d.gguf", (int)no + 1, (int)count);
}

/* Opens part `no` of what `given` is a part of. */
static pen_status open_part(const pen_gguf *given, const split *whole, int64_t no, pen_gguf **part) {
    char end[SUFFIX_MAX];
    size_t end_length = suffix(end, no, whole->count), stem = strlen(given->path) - end_length;
    char *path = malloc(stem + end_length + 1);
    if (!path) return pen_fail(PEN_NO_MEMORY, "%s: no memory to open the other files", given->path);
    memcpy(path, given->path, stem);
    memcpy(path + stem, end, end_length + 1);
    pen_status status = pen_gguf_open_file(path, part);
    free(path);
    if (status == PEN_OK) return PEN_OK;
    return pen_fail(status, "part %d of the %d of %s: %s", (int)no + 1, (int)whole->count, given->path,
                    pen_last_error());
}

static pen_status check_part(const pen_gguf *part, int64_t no, const split *whole) {
    split s;
    PEN_TRY(read_split(part, &s));
    if (s.count != whole->count || s.no != no)
        return pen_fail(PEN_BAD_INPUT, "%s: this is part %d of %d by its keys split.no and split.count", part->path,
                        (int)s.no + 1, (int)s.count);
    if (s.tensors != whole->tensors)
        return pen_fail(PEN_BAD_INPUT, "%s: key split.tensors.count is %lld, and %lld in another part", part->path,
                        (long long)s.tensors, (long long)whole->tensors);
    return PEN_OK;
}

/* Makes the first part the whole: everyone's tensors in one table. */
static pen_status merge(pen_gguf **parts, const split *whole) {
    pen_gguf *first = parts[0];
    size_t count = 0;
    for (int64_t i = 0; i < whole->count; i++) count += parts[i]->tensor_count;
    if (count != (size_t)whole->tensors)
        return pen_fail(PEN_BAD_INPUT, "%s: its %d parts have %zu tensors, split.tensors.count is %lld", first->path,
                        (int)whole->count, count, (long long)whole->tensors);
    pen_gguf_tensor *tensors = realloc(first->tensors, (count + 1) * sizeof *tensors);
    if (!tensors) return pen_fail(PEN_NO_MEMORY, "%s: no memory for %zu tensors", first->path, count);
    first->tensors = tensors;
    for (int64_t i = 1; i < whole->count; i++)
        for (size_t t = 0; t < parts[i]->tensor_count; t++) {
            tensors[first->tensor_count] = parts[i]->tensors[t];
            tensors[first->tensor_count++].part = (int)i;
        }
    return PEN_OK;
}

/* parts[whole->no] is open; opens and checks the others. */
static pen_status complete(pen_gguf **parts, const split *whole) {
    const pen_gguf *given = parts[whole->no];
    char end[SUFFIX_MAX];
    size_t end_length = suffix(end, whole->no, whole->count), length = strlen(given->path);
    if (whole->count > 1 && (length < end_length || strcmp(given->path + length - end_length, end) != 0))
        return pen_fail(PEN_BAD_INPUT, "%s is part %d of %d, so that its name must end in %s", given->path,
                        (int)whole->no + 1, (int)whole->count, end);
    for (int64_t i = 0; i < whole->count; i++) {
        if (i == whole->no) continue;
        PEN_TRY(open_part(given, whole, i, &parts[i]));
        PEN_TRY(check_part(parts[i], i, whole));
    }
    return merge(parts, whole);
}

pen_status pen_gguf_open(const char *path, pen_gguf **gguf) {
    *gguf = NULL;
    pen_gguf *given;
    split whole;
    PEN_TRY(pen_gguf_open_file(path, &given));
    pen_status status = read_split(given, &whole);
    pen_gguf **parts = status == PEN_OK ? calloc((size_t)whole.count, sizeof *parts) : NULL;
    if (!parts) {
        pen_gguf_close(given);
        return status == PEN_OK ? pen_fail(PEN_NO_MEMORY, "%s: no memory to open it", path) : status;
    }
    parts[whole.no] = given;
    status = complete(parts, &whole);
    if (status != PEN_OK) {
        for (int64_t i = 0; i < whole.count; i++) pen_gguf_close(parts[i]);
        free(parts);
        return status;
    }
    parts[0]->parts = parts;
    parts[0]->part_count = (int)whole.count;
    status = pen_gguf_index_tensors(parts[0]);
    if (status == PEN_OK)
        *gguf = parts[0];
    else
        pen_gguf_close(parts[0]);
    return status;
}
