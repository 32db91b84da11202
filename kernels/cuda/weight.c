/*
 * Weights on their way to the device: rows in GGUF layout are taken apart by types.c and packed on the host, by several
 * threads, in pinned memory, as cuda_kernels.h describes. The copy runs while the next rows are read and packed.
 */
#include "cuda_device.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = PEN_CUDA_BLOCK, TILE = PEN_CUDA_BLOCK, SUPER_TILES = PEN_CUDA_SUPER / TILE };

/* Sizes in bytes of a type's pieces. */
typedef struct layout {
    size_t data, factors; /* of a tile: codes or numbers, and what scales them … */
    size_t super_factors; /* … and of what stands behind SUPER_TILES of them, in types with blocks of 256 */
    size_t d;             /* f16, or MXFP4's exponent */
} layout;

static layout layout_of(pen_type type) {
    const pen_type_info *info = pen_type_get(type);
    if (!info->quant.bits) return (layout){.data = (size_t)(ROWS * TILE * info->block_bytes)};
    size_t d = info->quant.d < 0 ? 1 : 2, m = info->quant.m < 0 ? 0 : 2, own = ROWS * (d + m);
    bool large = info->block_values == PEN_CUDA_SUPER;
    return (layout){.data = (size_t)(ROWS * TILE * info->quant.bits / 8),
                    .factors = large ? 2 * ROWS : own,
                    .super_factors = large ? own : 0,
                    .d = d};
}

static size_t tiles_bytes(const layout *l, size_t tiles) {
    return tiles * (l->data + l->factors) + tiles / SUPER_TILES * l->super_factors;
}

static size_t group_bytes(pen_type type, int cols) {
    layout l = layout_of(type);
    return tiles_bytes(&l, (size_t)(cols / TILE));
}

static size_t group_count(int rows) {
    return (size_t)(rows + ROWS - 1) / ROWS;
}

size_t pen_cuda_weight_bytes(const pen_device *device, pen_type type, int rows, int cols) {
    (void)device;
    return group_count(rows) * group_bytes(type, cols);
}

pen_status pen_cuda_weight_create(pen_device *device, pen_type type, int rows, int cols, pen_weight **weight) {
    const pen_type_info *info = pen_type_get(type);
    int multiple = info->block_values > TILE ? info->block_values : TILE;
    if (cols % multiple)
        return pen_fail(PEN_UNSUPPORTED, "a %s weight of %d columns: a GPU needs a multiple of %d", info->name, cols,
                        multiple);
    pen_cuda_weight *made = calloc(1, sizeof *made);
    if (!made) return pen_fail(PEN_NO_MEMORY, "no memory for a weight");
    made->base = (pen_weight){.device = device, .type = type, .rows = rows, .cols = cols};
    made->bytes = pen_cuda_weight_bytes(device, type, rows, cols);
    made->matrix = (pen_cuda_matrix){.type = type, .rows = rows, .cols = cols, .group_bytes = group_bytes(type, cols)};
    pen_status status = pen_cuda_allocate(pen_cuda(device), made->bytes, &made->matrix.data);
    if (status != PEN_OK) {
        free(made);
        return status;
    }
    *weight = &made->base;
    return PEN_OK;
}

void pen_cuda_weight_destroy(pen_weight *base) {
    pen_cuda_weight *weight = (pen_cuda_weight *)base;
    pen_cuda_release(pen_cuda(base->device), (void *)(uintptr_t)weight->matrix.data, weight->bytes);
    free(weight);
}

/* ---- Packing --------------------------------------------------------------------------------------------------- */

/* `words` 32-bit words of a row in a plane that holds pieces of 16 bytes at most of ROWS rows. */
static inline void put_words(unsigned char *plane, int row, int count, const uint32_t *words) {
    int piece = count < 4 ? count : 4;
    for (int w = 0; w < count; w += piece)
        memcpy(plane + ((size_t)(w / piece * ROWS + row) * (size_t)piece) * sizeof *words, words + w,
               (size_t)piece * sizeof *words);
}

/* The plane of `width` bits, from bit `from` of 32 codes; a constant width makes it quick. Returns the plane behind. */
static inline unsigned char *put_plane(unsigned char *plane, int row, int width, int from, const uint8_t *q) {
    uint32_t words[8] = {0};
    for (int v = 0; v < TILE / 4; v++) {
        uint32_t four;
        memcpy(&four, q + 4 * v, sizeof four); /* little-endian, as the GPU is */
        words[v % width] |= (four >> from & 0x01010101U * ((1U << width) - 1)) << width * (v / width);
    }
    put_words(plane, row, width, words);
    return plane + ROWS * 4 * width;
}

/* The planes of 32 codes: the widest one holds the lowest bits. */
static void put_codes(const pen_quant *quant, const uint8_t *q, int row, unsigned char *data) {
    if (quant->bits & 8) data = put_plane(data, row, 8, 0, q);
    if (quant->bits & 4) data = put_plane(data, row, 4, 0, q);
    if (quant->bits & 2) data = put_plane(data, row, 2, quant->bits & 4, q);
    if (quant->bits & 1) put_plane(data, row, 1, quant->bits & 6, q);
}

static void put_half(unsigned char *halves, int row, const unsigned char *block, int at) {
    memcpy(halves + 2 * row, block + at, 2);
}

/* d and m of a block, as they are in the file. */
static void put_block_factors(const pen_quant *quant, const unsigned char *block, int row, unsigned char *to) {
    if (quant->d < 0)
        to[row] = block[0];
    else
        put_half(to, row, block, quant->d);
    if (quant->m >= 0) put_half(to + 2 * ROWS, row, block, quant->m);
}

/* The two bytes of a tile in a block of 256; half is its first share. */
static void put_scales(const pen_quant *quant, const pen_block *split, int tile, int row, unsigned char *to) {
    int share = tile * TILE / quant->share;
    for (int i = 0; i < 2; i++)
        if (quant->share == TILE)
            to[2 * row + i] = (unsigned char)(i == 0 ? split->scale[share] : split->min[share]);
        else
            to[2 * row + i] =
                (unsigned char)(split->scale[share + i] | (quant->m < 0 ? 0 : split->min[share + i] << 4));
}

/* Tiles [0, tiles) of a row from its blocks. */
static void pack_row(pen_type type, const layout *l, const unsigned char *source, int row, int tiles,
                     unsigned char *out) {
    const pen_type_info *info = pen_type_get(type);
    const pen_quant *quant = &info->quant;
    size_t tile_bytes = l->data + l->factors;
    if (!quant->bits) {
        for (int t = 0; t < tiles; t++) {
            uint32_t words[TILE];
            memcpy(words, source + (size_t)(t * TILE * info->block_bytes), (size_t)(TILE * info->block_bytes));
            put_words(out + tile_bytes * (size_t)t, row, TILE * info->block_bytes / 4, words);
        }
        return;
    }
    int each = info->block_values / TILE; /* tiles of a block */
    for (int b = 0; b < tiles / each; b++, source += info->block_bytes) {
        pen_block split;
        pen_type_split(type, source, &split);
        if (quant->bits == 8) /* signed bytes */
            for (int i = 0; i < info->block_values; i++) split.q[i] ^= 0x80;
        unsigned char *block = out + tiles_bytes(l, (size_t)(b * each));
        for (int t = 0; t < each; t++, block += tile_bytes) {
            put_codes(quant, split.q + t * TILE, row, block);
            if (each == 1)
                put_block_factors(quant, source, row, block + l->data);
            else
                put_scales(quant, &split, t, row, block + l->data);
        }
        if (each > 1) put_block_factors(quant, source, row, block);
    }
}

/* ---- Uploading ------------------------------------------------------------------------------------------------- */

/* A write under way. A group of rows is packed in one piece, or in several of `most` tiles where it is larger than what
 * the ring takes at once; pieces are numbered through the matrix, and lie in it one behind the other. */
typedef struct upload {
    pen_type type;
    layout layout;
    const unsigned char *source; /* of row `first` */
    size_t row_bytes, group_bytes;
    int first, end, rows; /* of the source; of the matrix */
    int tiles, most, pieces;
    int piece; /* the first one in `packed` */
    unsigned char *packed;
} upload;

static size_t offset_of(const upload *u, int piece) {
    return u->group_bytes * (size_t)(piece / u->pieces) +
           tiles_bytes(&u->layout, (size_t)(piece % u->pieces * u->most));
}

static void pack_piece(void *context, int task, int thread) {
    const upload *u = context;
    const pen_type_info *info = pen_type_get(u->type);
    int piece = u->piece + task, row = piece / u->pieces * ROWS, beyond = row + ROWS;
    int tile = piece % u->pieces * u->most, count = u->tiles - tile < u->most ? u->tiles - tile : u->most;
    unsigned char *out = u->packed + offset_of(u, piece) - offset_of(u, u->piece);
    const unsigned char *source = u->source + (size_t)(tile * TILE / info->block_values) * (size_t)info->block_bytes;
    (void)thread;
    if (beyond > u->rows) memset(out, 0, tiles_bytes(&u->layout, (size_t)count));
    for (; row < beyond && row < u->end; row++)
        pack_row(u->type, &u->layout, source + u->row_bytes * (size_t)(row - u->first), row % ROWS, count, out);
}

void pen_cuda_weight_write(pen_weight *base, int first, int rows, const void *source) {
    pen_cuda_weight *weight = (pen_cuda_weight *)base;
    pen_cuda_device *device = pen_cuda(base->device);
    upload u = {.type = base->type,
                .layout = layout_of(base->type),
                .source = source,
                .row_bytes = pen_type_row_bytes(base->type, base->cols),
                .group_bytes = weight->matrix.group_bytes,
                .first = first,
                .end = first + rows,
                .rows = base->rows,
                .tiles = base->cols / TILE};
    size_t room = pen_cuda_staging_bytes(device->writes) / 4;
    u.most = (int)(room / tiles_bytes(&u.layout, SUPER_TILES)) * SUPER_TILES;
    u.pieces = (u.tiles + u.most - 1) / u.most;
    int end = (u.end + ROWS - 1) / ROWS * u.pieces, count;
    for (u.piece = first / ROWS * u.pieces; u.piece < end; u.piece += count) {
        size_t begin = offset_of(&u, u.piece);
        for (count = 1; u.piece + count < end && offset_of(&u, u.piece + count + 1) - begin <= room;) count++;
        size_t bytes = offset_of(&u, u.piece + count) - begin;
        u.packed = pen_cuda_staging_room(device->writes, bytes);
        pen_pool_run(device->pool, pack_piece, &u, count);
        unsigned char *target = (unsigned char *)(uintptr_t)weight->matrix.data + begin;
        pen_cuda_check(device, cudaMemcpyAsync(target, u.packed, bytes, cudaMemcpyHostToDevice, device->stream),
                       "copying a weight to the GPU");
        pen_cuda_staging_sent(device->writes);
    }
}
