/*
 * GGUF reader: parses and checks the whole header of one file, then answers questions about it; see gguf.h. A model in
 * several files is put together in gguf_split.c.
 *
 * The header's length is known only at its end, so it is read piece by piece, as far as the parser has come, into
 * memory of our own: a file that is changed or cut short later cannot pull validated bytes from under us. Everything
 * is kept as offsets until parsing is over, because that memory moves while it grows.
 *
 * Opening does all the checking. What is reachable from an opened pen_gguf lies within the header that was read.
 * Tensors lie apart from each other and where a file can have them, but perhaps past this file's end: of a file that is
 * still being downloaded the header is enough for many purposes, so pen_gguf_check_data is a question of its own, and
 * pen_gguf_read checks what it gets. Getters are in gguf_metadata.c.
 */
#include "gguf_private.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "GGUF values are copied as they are in the file");

enum {
    HEADER_STEP = 256 << 10, /* read ahead of the parser: small, so that hardly a foreign tensor's page is touched */
    HEADER_MAX = 256 << 20,  /* real ones are below 20 MB; keeps offsets in 32 bits and a sparse file out of memory */
    KEY_MAX = 65535,         /* these two by the GGUF specification */
    TENSOR_NAME_MAX = 64,
    DIMS_MAX = 4,
    KEY_BYTES_MIN = 8 + 1 + 4 + 1,            /* length, name, type, value */
    TENSOR_BYTES_MIN = 8 + 1 + 4 + 8 + 4 + 8, /* length, name, dimensions, shape, type, offset */
    ALIGNMENT_DEFAULT = 32,
};

/* No file is larger: so no sum over the tensors of many files overflows. */
static const uint64_t file_bytes_most = UINT64_C(1) << 50;

/* By pen_gguf_value; 0 where the size is not fixed. */
const uint8_t pen_gguf_value_bytes[PEN_GGUF_VALUE_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

/* A position in the header, and words for what is being read there. */
typedef struct reader {
    pen_gguf *gguf;
    uint64_t at;
    char what[PEN_GGUF_NAME_SHOWN + 32];
} reader;

/* A tensor as the header has it, before its data's place is known. */
typedef struct tensor_entry {
    uint32_t name, name_length;
    uint64_t offset;
} tensor_entry;

/* ---- Reading the header ---------------------------------------------------------------------------------------- */

static pen_status load(pen_gguf *gguf, uint64_t end) {
    if (end < gguf->header_bytes + HEADER_STEP) end = gguf->header_bytes + HEADER_STEP;
    if (end > gguf->file_bytes) end = gguf->file_bytes;
    unsigned char *grown = realloc(gguf->header, end);
    if (!grown) return pen_fail(PEN_NO_MEMORY, "%s: no memory for a header of %llu bytes", gguf->path, ULL(end));
    gguf->header = grown;
    while (gguf->header_bytes < end) {
        ssize_t got =
            pread(gguf->file, grown + gguf->header_bytes, end - gguf->header_bytes, (off_t)gguf->header_bytes);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return pen_fail(PEN_IO, "%s: cannot read the header: %s", gguf->path, strerror(errno));
        if (got == 0) return pen_fail(PEN_BAD_INPUT, "%s: the file was cut short while it was read", gguf->path);
        gguf->header_bytes += (uint64_t)got;
    }
    return PEN_OK;
}

/* Makes the next `bytes` of the header readable. */
static pen_status need(reader *r, uint64_t bytes) {
    pen_gguf *gguf = r->gguf;
    if (bytes > gguf->file_bytes - r->at)
        return pen_fail(PEN_BAD_INPUT, "%s: %s needs %llu bytes at offset %llu, but the file ends at %llu", gguf->path,
                        r->what, ULL(bytes), ULL(r->at), ULL(gguf->file_bytes));
    if (bytes > HEADER_MAX - r->at)
        return pen_fail(PEN_BAD_INPUT, "%s: %s: the header is larger than %d MiB", gguf->path, r->what,
                        HEADER_MAX >> 20);
    return r->at + bytes <= gguf->header_bytes ? PEN_OK : load(gguf, r->at + bytes);
}

static pen_status take(reader *r, void *value, size_t bytes) {
    PEN_TRY(need(r, bytes));
    memcpy(value, r->gguf->header + r->at, bytes);
    r->at += bytes;
    return PEN_OK;
}

static pen_status take_string(reader *r, uint32_t *start, uint32_t *length) {
    uint64_t bytes;
    PEN_TRY(take(r, &bytes, sizeof bytes));
    PEN_TRY(need(r, bytes));
    *start = (uint32_t)r->at;
    *length = (uint32_t)bytes;
    r->at += bytes;
    return PEN_OK;
}

/* A key or a tensor's name: it will stand in messages and in C strings, so it holds no control characters. */
static pen_status take_name(reader *r, uint32_t longest, uint32_t *start, uint32_t *length) {
    PEN_TRY(take_string(r, start, length));
    if (*length == 0 || *length > longest)
        return pen_fail(PEN_BAD_INPUT, "%s: the name of %s has %u bytes, not 1 to %u", r->gguf->path, r->what, *length,
                        longest);
    const unsigned char *name = r->gguf->header + *start;
    for (uint32_t i = 0; i < *length; i++)
        if (name[i] < 0x20 || name[i] == 0x7f)
            return pen_fail(PEN_BAD_INPUT, "%s: the name of %s holds the control character 0x%02x", r->gguf->path,
                            r->what, name[i]);
    return PEN_OK;
}

static void describe(reader *r, const char *kind, uint32_t name, uint32_t length) {
    if (length > PEN_GGUF_NAME_SHOWN) length = PEN_GGUF_NAME_SHOWN;
    snprintf(r->what, sizeof r->what, "%s %.*s", kind, (int)length, (const char *)r->gguf->header + name);
}

/* ---- Keys ------------------------------------------------------------------------------------------------------ */

static pen_status take_array(reader *r, pen_gguf_entry *entry) {
    const char *path = r->gguf->path;
    PEN_TRY(take(r, &entry->item_type, sizeof entry->item_type));
    PEN_TRY(take(r, &entry->count, sizeof entry->count));
    if (entry->item_type == PEN_GGUF_ARRAY) return pen_fail(PEN_UNSUPPORTED, "%s: %s is a nested array", path, r->what);
    if (entry->item_type >= PEN_GGUF_VALUE_COUNT)
        return pen_fail(PEN_BAD_INPUT, "%s: %s is an array of the unknown type %u", path, r->what, entry->item_type);

    /* The least that an element takes; a string's length field comes first. */
    size_t item_bytes = entry->item_type == PEN_GGUF_STRING ? 8 : pen_gguf_value_bytes[entry->item_type];
    if (entry->count > (r->gguf->file_bytes - r->at) / item_bytes)
        return pen_fail(PEN_BAD_INPUT, "%s: %s has %llu elements, more than the file could hold (cut short?)", path,
                        r->what, ULL(entry->count));
    entry->value = (uint32_t)r->at;
    if (entry->item_type != PEN_GGUF_STRING) {
        PEN_TRY(need(r, entry->count * item_bytes));
        r->at += entry->count * item_bytes;
        return PEN_OK;
    }
    if (entry->count > HEADER_MAX / item_bytes)
        return pen_fail(PEN_BAD_INPUT, "%s: %s has %llu strings, too many", path, r->what, ULL(entry->count));
    entry->strings = malloc((entry->count + 1) * sizeof *entry->strings);
    if (!entry->strings) return pen_fail(PEN_NO_MEMORY, "%s: no memory to index %s", path, r->what);
    for (uint64_t i = 0; i < entry->count; i++) {
        uint32_t start, length;
        entry->strings[i] = (uint32_t)r->at;
        PEN_TRY(take_string(r, &start, &length));
    }
    return PEN_OK;
}

static pen_status take_key(reader *r, size_t i) {
    pen_gguf *gguf = r->gguf;
    pen_gguf_entry *entry = &gguf->entries[i];
    snprintf(r->what, sizeof r->what, "key %zu", i);
    PEN_TRY(take_name(r, KEY_MAX, &entry->name, &entry->name_length));
    describe(r, "key", entry->name, entry->name_length);
    PEN_TRY(take(r, &entry->type, sizeof entry->type));
    entry->value = (uint32_t)r->at;

    if (entry->type >= PEN_GGUF_VALUE_COUNT)
        return pen_fail(PEN_BAD_INPUT, "%s: %s has the unknown type %u", gguf->path, r->what, entry->type);
    if (entry->type == PEN_GGUF_ARRAY) return take_array(r, entry);
    uint32_t start, length;
    if (entry->type == PEN_GGUF_STRING) return take_string(r, &start, &length);
    PEN_TRY(need(r, pen_gguf_value_bytes[entry->type]));
    if (entry->type == PEN_GGUF_BOOL && gguf->header[r->at] > 1)
        return pen_fail(PEN_BAD_INPUT, "%s: %s is neither true nor false: %u", gguf->path, r->what,
                        gguf->header[r->at]);
    r->at += pen_gguf_value_bytes[entry->type];
    return PEN_OK;
}

/* ---- Tensors --------------------------------------------------------------------------------------------------- */

static pen_status bad_tensor(const reader *r, const char *fault) {
    return pen_fail(PEN_BAD_INPUT, "%s: %s %s", r->gguf->path, r->what, fault);
}

/* The number of a tensor's bytes, from its shape; 0 for a type that we do not know. */
static pen_status tensor_bytes(const reader *r, pen_gguf_tensor *tensor) {
    int64_t values = 1;
    for (int d = 0; d < tensor->dims; d++)
        if (__builtin_mul_overflow(values, tensor->shape[d], &values))
            return bad_tensor(r, "has more values than 64 bits can count");
    if (!tensor->known) return PEN_OK;
    const pen_type_info *type = pen_type_get(tensor->type);
    if (tensor->shape[0] % type->block_values)
        return pen_fail(PEN_BAD_INPUT, "%s: %s has rows of %lld values, not a multiple of %s's %d", r->gguf->path,
                        r->what, (long long)tensor->shape[0], type->name, type->block_values);
    if (__builtin_mul_overflow((uint64_t)(values / type->block_values), (uint64_t)type->block_bytes, &tensor->bytes))
        return bad_tensor(r, "has more bytes than 64 bits can count");
    return PEN_OK;
}

static pen_status take_tensor(reader *r, size_t i, tensor_entry *entry) {
    pen_gguf_tensor *tensor = &r->gguf->tensors[i];
    snprintf(r->what, sizeof r->what, "tensor %zu", i);
    PEN_TRY(take_name(r, TENSOR_NAME_MAX, &entry->name, &entry->name_length));
    describe(r, "tensor", entry->name, entry->name_length);

    uint32_t dims;
    PEN_TRY(take(r, &dims, sizeof dims));
    if (dims < 1 || dims > DIMS_MAX)
        return pen_fail(PEN_BAD_INPUT, "%s: %s has %u dimensions, not 1 to %d", r->gguf->path, r->what, dims, DIMS_MAX);
    tensor->dims = (int)dims;
    for (int d = 0; d < DIMS_MAX; d++) {
        tensor->shape[d] = 1;
        if (d < tensor->dims) PEN_TRY(take(r, &tensor->shape[d], sizeof tensor->shape[d]));
        if (tensor->shape[d] < 1) return bad_tensor(r, "has a dimension that is zero or too large");
    }
    PEN_TRY(take(r, &tensor->gguf_type, sizeof tensor->gguf_type));
    tensor->known = pen_type_by_gguf(tensor->gguf_type, &tensor->type) == 0;
    PEN_TRY(take(r, &entry->offset, sizeof entry->offset));
    return tensor_bytes(r, tensor);
}

static int by_offset(const void *a, const void *b) {
    const pen_gguf_tensor *const *x = a, *const *y = b;
    return ((*x)->offset > (*y)->offset) - ((*x)->offset < (*y)->offset);
}

/* Even a tensor whose size we cannot know takes a byte. */
static uint64_t end_of(const pen_gguf_tensor *tensor) {
    return tensor->offset + (tensor->bytes ? tensor->bytes : 1);
}

static pen_status check_overlaps(const pen_gguf *gguf) {
    const pen_gguf_tensor **order = malloc((gguf->tensor_count + 1) * sizeof *order);
    if (!order) return pen_fail(PEN_NO_MEMORY, "%s: no memory to check the tensors", gguf->path);
    for (size_t i = 0; i < gguf->tensor_count; i++) order[i] = &gguf->tensors[i];
    qsort(order, gguf->tensor_count, sizeof *order, by_offset);
    pen_status status = PEN_OK;
    for (size_t i = 1; i < gguf->tensor_count && status == PEN_OK; i++)
        if (end_of(order[i - 1]) > order[i]->offset)
            status = pen_fail(PEN_BAD_INPUT, "%s: tensors %s and %s overlap", gguf->path, order[i - 1]->name,
                              order[i]->name);
    free(order);
    return status;
}

/* Gives every tensor its name and its place in the file, now that the header's end and alignment are known. */
static pen_status place_tensors(reader *r, const tensor_entry *entries) {
    pen_gguf *gguf = r->gguf;
    int64_t alignment;
    PEN_TRY(pen_gguf_i64_or(gguf, "general.alignment", 1, UINT32_MAX, ALIGNMENT_DEFAULT, &alignment));
    if (alignment & (alignment - 1))
        return pen_fail(PEN_BAD_INPUT, "%s: key general.alignment: %lld is not a power of two", gguf->path,
                        (long long)alignment);

    uint64_t start = (r->at + (uint64_t)alignment - 1) & ~((uint64_t)alignment - 1);
    char *name = gguf->tensor_names;
    for (size_t i = 0; i < gguf->tensor_count; i++) {
        pen_gguf_tensor *tensor = &gguf->tensors[i];
        describe(r, "tensor", entries[i].name, entries[i].name_length);
        if (entries[i].offset % (uint64_t)alignment)
            return pen_fail(PEN_BAD_INPUT, "%s: %s is at offset %llu, not a multiple of the alignment %lld", gguf->path,
                            r->what, ULL(entries[i].offset), (long long)alignment);
        if (entries[i].offset > file_bytes_most || tensor->bytes > file_bytes_most - entries[i].offset)
            return pen_fail(PEN_BAD_INPUT, "%s: %s has %llu bytes at offset %llu of the data, where no file reaches",
                            gguf->path, r->what, ULL(tensor->bytes), ULL(entries[i].offset));
        tensor->offset = start + entries[i].offset;
        if (end_of(tensor) > gguf->data_end) gguf->data_end = end_of(tensor);
        tensor->name = name;
        memcpy(name, gguf->header + entries[i].name, entries[i].name_length);
        name += entries[i].name_length + 1; /* the zeros are there */
    }
    return check_overlaps(gguf);
}

/* ---- Names to numbers ------------------------------------------------------------------------------------------ */

static pen_status directory_create(const pen_gguf *gguf, size_t capacity, pen_gguf_directory *directory) {
    size_t slots = 16;
    while (slots < capacity * 2) slots *= 2;
    directory->mask = slots - 1;
    directory->names = calloc(capacity + 1, sizeof *directory->names);
    directory->slots = calloc(slots, sizeof *directory->slots);
    if (!directory->names || !directory->slots)
        return pen_fail(PEN_NO_MEMORY, "%s: no memory for %zu names", gguf->path, capacity);
    return PEN_OK;
}

/* The slot that holds the name, or the empty one where it belongs. */
static size_t directory_slot(const pen_gguf_directory *directory, const char *name, size_t length) {
    size_t slot = XXH3_64bits(name, length) & directory->mask;
    for (; directory->slots[slot]; slot = (slot + 1) & directory->mask) {
        const pen_gguf_string *other = &directory->names[directory->slots[slot] - 1];
        if (other->length == length && !memcmp(other->data, name, length)) break;
    }
    return slot;
}

/* False where the name is there already. */
static bool directory_add(pen_gguf_directory *directory, const char *name, size_t length) {
    size_t slot = directory_slot(directory, name, length);
    if (directory->slots[slot]) return false;
    directory->names[directory->count] = (pen_gguf_string){name, length};
    directory->slots[slot] = (uint32_t)++directory->count;
    return true;
}

size_t pen_gguf_directory_find(const pen_gguf_directory *directory, const char *name) {
    return (size_t)directory->slots[directory_slot(directory, name, strlen(name))] - 1; /* 0 − 1: none */
}

static void directory_free(pen_gguf_directory *directory) {
    free(directory->names);
    free(directory->slots);
}

static pen_status index_keys(reader *r) {
    pen_gguf *gguf = r->gguf;
    PEN_TRY(directory_create(gguf, gguf->entry_count, &gguf->keys));
    for (size_t i = 0; i < gguf->entry_count; i++) {
        const pen_gguf_entry *entry = &gguf->entries[i];
        describe(r, "key", entry->name, entry->name_length);
        if (!directory_add(&gguf->keys, (const char *)gguf->header + entry->name, entry->name_length))
            return pen_fail(PEN_BAD_INPUT, "%s: %s is there twice", gguf->path, r->what);
    }
    return PEN_OK;
}

pen_status pen_gguf_index_tensors(pen_gguf *gguf) {
    PEN_TRY(directory_create(gguf, gguf->tensor_count, &gguf->tensor_index));
    for (size_t i = 0; i < gguf->tensor_count; i++) {
        const pen_gguf_tensor *tensor = &gguf->tensors[i];
        if (!directory_add(&gguf->tensor_index, tensor->name, strlen(tensor->name)))
            return pen_fail(PEN_BAD_INPUT, "%s: tensor %s is there twice", gguf->parts[tensor->part]->path,
                            tensor->name);
    }
    return PEN_OK;
}

/* ---- Opening --------------------------------------------------------------------------------------------------- */

static pen_status open_file(pen_gguf *gguf) {
    /* Non-blocking, or opening a FIFO would wait for its writer. */
    gguf->file = open(gguf->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat info;
    if (gguf->file < 0 || fstat(gguf->file, &info))
        return pen_fail(PEN_IO, "cannot open %s: %s", gguf->path, strerror(errno));
    if (!S_ISREG(info.st_mode)) return pen_fail(PEN_BAD_INPUT, "%s is not a regular file", gguf->path);
    gguf->file_bytes = (uint64_t)info.st_size;
    /* No read-ahead: only what a rank asks for comes into memory. Advice, so failure does not matter. */
    (void)posix_fadvise(gguf->file, 0, 0, POSIX_FADV_RANDOM);
    return PEN_OK;
}

static pen_status check_magic(reader *r, uint64_t *tensor_count, uint64_t *key_count) {
    const char *path = r->gguf->path;
    char magic[4];
    uint32_t version;
    PEN_TRY(take(r, magic, sizeof magic));
    if (memcmp(magic, "GGUF", sizeof magic))
        return pen_fail(PEN_BAD_INPUT, "%s is not a GGUF file (it does not begin with \"GGUF\")", path);
    PEN_TRY(take(r, &version, sizeof version));
    if (version && (version & 0xffff) == 0) return pen_fail(PEN_UNSUPPORTED, "%s is a big-endian GGUF file", path);
    if (version != 2 && version != 3)
        return pen_fail(PEN_UNSUPPORTED, "%s: GGUF version %u; versions 2 and 3 can be read", path, version);
    r->gguf->version = (int)version;
    PEN_TRY(take(r, tensor_count, sizeof *tensor_count));
    PEN_TRY(take(r, key_count, sizeof *key_count));

    /* Nothing is allocated for a count that this file could not hold. */
    uint64_t room = (r->gguf->file_bytes < HEADER_MAX ? r->gguf->file_bytes : HEADER_MAX) - r->at;
    if (*key_count > room / KEY_BYTES_MIN)
        return pen_fail(PEN_BAD_INPUT, "%s: %llu keys, more than the file could hold", path, ULL(*key_count));
    if (*tensor_count > room / TENSOR_BYTES_MIN)
        return pen_fail(PEN_BAD_INPUT, "%s: %llu tensors, more than the file could hold", path, ULL(*tensor_count));
    return PEN_OK;
}

static pen_status parse_counted(reader *r, tensor_entry *entries) {
    pen_gguf *gguf = r->gguf;
    size_t names_bytes = 1;
    for (size_t i = 0; i < gguf->entry_count; i++) PEN_TRY(take_key(r, i));
    for (size_t i = 0; i < gguf->tensor_count; i++) {
        PEN_TRY(take_tensor(r, i, &entries[i]));
        names_bytes += entries[i].name_length + 1;
    }
    gguf->tensor_names = calloc(names_bytes, 1);
    if (!gguf->tensor_names) return pen_fail(PEN_NO_MEMORY, "%s: no memory for the tensors' names", gguf->path);
    gguf->hash = XXH3_64bits_withSeed(gguf->header, r->at, gguf->file_bytes);
    PEN_TRY(index_keys(r));
    return place_tensors(r, entries);
}

static pen_status parse(pen_gguf *gguf) {
    reader r = {.gguf = gguf, .what = "the header"};
    uint64_t tensor_count, key_count;
    PEN_TRY(check_magic(&r, &tensor_count, &key_count));
    gguf->entries = calloc(key_count + 1, sizeof *gguf->entries);
    gguf->tensors = calloc(tensor_count + 1, sizeof *gguf->tensors);
    tensor_entry *entries = calloc(tensor_count + 1, sizeof *entries);
    pen_status status = PEN_NO_MEMORY;
    if (gguf->entries && gguf->tensors && entries) {
        gguf->entry_count = key_count;
        gguf->tensor_count = tensor_count;
        status = parse_counted(&r, entries);
    } else {
        pen_fail(status, "%s: no memory for %llu keys and %llu tensors", gguf->path, ULL(key_count), ULL(tensor_count));
    }
    free(entries);
    return status;
}

pen_status pen_gguf_open_file(const char *path, pen_gguf **gguf_out) {
    *gguf_out = NULL;
    pen_gguf *gguf = calloc(1, sizeof *gguf);
    if (!gguf) return pen_fail(PEN_NO_MEMORY, "%s: no memory to open it", path);
    gguf->file = -1;
    gguf->path = strdup(path);
    pen_status status = gguf->path ? open_file(gguf) : pen_fail(PEN_NO_MEMORY, "%s: no memory to open it", path);
    if (status == PEN_OK) status = parse(gguf);
    if (status == PEN_OK)
        *gguf_out = gguf;
    else
        pen_gguf_close(gguf);
    return status;
}

void pen_gguf_close(pen_gguf *gguf) {
    if (!gguf) return;
    for (int i = 1; i < gguf->part_count; i++) pen_gguf_close(gguf->parts[i]);
    free(gguf->parts);
    for (size_t i = 0; i < gguf->entry_count; i++) free(gguf->entries[i].strings);
    directory_free(&gguf->keys);
    directory_free(&gguf->tensor_index);
    free(gguf->entries);
    free(gguf->tensors);
    free(gguf->tensor_names);
    free(gguf->header);
    if (gguf->file >= 0) close(gguf->file);
    free(gguf->path);
    free(gguf);
}

/* ---- What an open file tells ----------------------------------------------------------------------------------- */

const char *pen_gguf_path(const pen_gguf *gguf) {
    return gguf->path;
}
int pen_gguf_version(const pen_gguf *gguf) {
    return gguf->version;
}
int pen_gguf_part_count(const pen_gguf *gguf) {
    return gguf->part_count;
}

uint64_t pen_gguf_file_bytes(const pen_gguf *gguf) {
    uint64_t bytes = 0;
    for (int i = 0; i < gguf->part_count; i++) bytes += gguf->parts[i]->file_bytes;
    return bytes;
}

uint64_t pen_gguf_hash(const pen_gguf *gguf) {
    uint64_t hash = gguf->hash;
    for (int i = 1; i < gguf->part_count; i++)
        hash = XXH3_64bits_withSeed(&gguf->parts[i]->hash, sizeof gguf->parts[i]->hash, hash);
    return hash;
}

size_t pen_gguf_tensor_count(const pen_gguf *gguf) {
    return gguf->tensor_count;
}

const pen_gguf_tensor *pen_gguf_tensor_at(const pen_gguf *gguf, size_t i) {
    assert(i < gguf->tensor_count);
    return &gguf->tensors[i];
}

const pen_gguf_tensor *pen_gguf_tensor_find(const pen_gguf *gguf, const char *name) {
    size_t i = pen_gguf_directory_find(&gguf->tensor_index, name);
    return i == PEN_GGUF_NONE ? NULL : &gguf->tensors[i];
}

const char *pen_gguf_type_name(uint32_t gguf_type) {
    static const char *const names[] = {
        [0] = "F32",     [1] = "F16",    [2] = "Q4_0",     [3] = "Q4_1",    [6] = "Q5_0",     [7] = "Q5_1",
        [8] = "Q8_0",    [9] = "Q8_1",   [10] = "Q2_K",    [11] = "Q3_K",   [12] = "Q4_K",    [13] = "Q5_K",
        [14] = "Q6_K",   [15] = "Q8_K",  [16] = "IQ2_XXS", [17] = "IQ2_XS", [18] = "IQ3_XXS", [19] = "IQ1_S",
        [20] = "IQ4_NL", [21] = "IQ3_S", [22] = "IQ2_S",   [23] = "IQ4_XS", [24] = "I8",      [25] = "I16",
        [26] = "I32",    [27] = "I64",   [28] = "F64",     [29] = "IQ1_M",  [30] = "BF16",    [34] = "TQ1_0",
        [35] = "TQ2_0",  [39] = "MXFP4",
    };
    const char *name = gguf_type < sizeof names / sizeof *names ? names[gguf_type] : NULL;
    return name ? name : "unknown";
}

static const pen_gguf *part_of(const pen_gguf *gguf, const pen_gguf_tensor *tensor) {
    return gguf->parts[tensor->part];
}

pen_status pen_gguf_check_data(const pen_gguf *gguf) {
    const pen_gguf_tensor *first = NULL; /* whose data is not all there */
    for (size_t i = 0; i < gguf->tensor_count; i++) {
        const pen_gguf_tensor *tensor = &gguf->tensors[i];
        bool whole = end_of(tensor) <= part_of(gguf, tensor)->file_bytes;
        if (whole || (first && first->part < tensor->part)) continue;
        if (!first || tensor->part < first->part || tensor->offset < first->offset) first = tensor;
    }
    if (!first) return PEN_OK;
    const pen_gguf *part = part_of(gguf, first);
    return pen_fail(PEN_BAD_INPUT, "%s is cut short: of %llu bytes %llu are missing, from tensor %s on", part->path,
                    ULL(part->data_end), ULL(part->data_end - part->file_bytes), first->name);
}

pen_status pen_gguf_read(const pen_gguf *gguf, const pen_gguf_tensor *tensor, uint64_t offset, size_t bytes,
                         void *target) {
    const pen_gguf *part = part_of(gguf, tensor);
    if (!tensor->known)
        return pen_fail(PEN_UNSUPPORTED, "%s: tensor %s has type %s (%u)", part->path, tensor->name,
                        pen_gguf_type_name(tensor->gguf_type), tensor->gguf_type);
    assert(offset <= tensor->bytes && bytes <= tensor->bytes - offset);
    uint64_t position = tensor->offset + offset, end = position + bytes;
    for (char *out = target; position < end;) {
        ssize_t got = pread(part->file, out, end - position, (off_t)position);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return pen_fail(PEN_IO, "%s: cannot read tensor %s: %s", part->path, tensor->name, strerror(errno));
        if (got == 0)
            return pen_fail(PEN_BAD_INPUT, "%s: tensor %s: the file ends at byte %llu, %llu short of its data",
                            part->path, tensor->name, ULL(position), ULL(end - position));
        out += got;
        position += (uint64_t)got;
    }
    return PEN_OK;
}
