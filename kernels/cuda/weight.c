/*
 * Weights on their way to the device: plain numbers as they are in the file; rows of codes are taken apart by types.c
 * and packed on the host, in pinned memory, as cuda_kernels.h describes.
 */
#include "cuda_device.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = PEN_CUDA_BLOCK, TILE = PEN_CUDA_BLOCK, SUPER_TILES = PEN_CUDA_SUPER / TILE };

/* Sizes in bytes of the pieces of a type of codes. */
typedef struct layout {
    size_t data, factors; /* of a tile: codes, and what scales them … */
    size_t super_factors; /* … and of what stands behind SUPER_TILES of them, in types with blocks of 256 */
} layout;

static layout layout_of(pen_type type) {
    const pen_type_info *info = pen_type_get(type);
    size_t d = info->quant.d < 0 ? 1 : 2, m = info->quant.m < 0 ? 0 : 2, own = ROWS * (d + m);
    bool large = info->block_values == PEN_CUDA_SUPER;
    return (layout){.data = (size_t)(ROWS * TILE * info->quant.bits / 8),
                    .factors = large ? 2 * ROWS : own,
                    .super_factors = large ? own : 0};
}

static size_t tiles_bytes(const layout *l, size_t tiles) {
    return tiles * (l->data + l->factors) + tiles / SUPER_TILES * l->super_factors;
}

static bool is_plain(pen_type type) {
    return pen_type_get(type)->quant.bits == 0;
}

static size_t group_bytes(pen_type type, int cols) {
    if (is_plain(type)) return ROWS * pen_type_row_bytes(type, cols);
    layout l = layout_of(type);
    return tiles_bytes(&l, (size_t)(cols / TILE));
}

static size_t group_count(int rows) {
    return (size_t)(rows + ROWS - 1) / ROWS;
}

size_t pen_cuda_weight_bytes(const pen_device *device, pen_type type, int rows, int cols) {
    (void)device;
    return is_plain(type) ? (size_t)rows * pen_type_row_bytes(type, cols) : group_count(rows) * group_bytes(type, cols);
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
    made->matrix.dense_from = pen_cuda_dense_from(pen_cuda(device), &made->matrix);
    *weight = &made->base;
    return PEN_OK;
}

void pen_cuda_weight_destroy(pen_weight *base) {
    pen_cuda_weight *weight = (pen_cuda_weight *)base;
    pen_cuda_release(pen_cuda(base->device), (void *)(uintptr_t)weight->matrix.data, weight->bytes);
    free(weight);
}

/* ---- Packing --------------------------------------------------------------------------------------------------- */

/* Adds the plane of `width` bits, from bit `from` of a row's 32 codes; a constant width makes it quick. Returns the
 * plane behind. */
static inline unsigned char *put_plane(unsigned char *plane, int row, int width, int from, const uint8_t *q) {
    uint32_t *words = (uint32_t *)(void *)plane, mask = 0x01010101U * ((1U << width) - 1);
    int piece = width < 4 ? width : 4;
    for (int run = 0; run < TILE / 4; run++) {
        int lane = row % 8 * 4 + run % 4, v = row / 8 * 2 + run / 4, word = v % width;
        uint32_t four;
        memcpy(&four, q + 4 * run, sizeof four); /* little-endian, as the GPU is */
        words[(word / piece * ROWS + lane) * piece + word % piece] |= (four >> from & mask) << width * (v / width);
    }
    return plane + ROWS * 4 * width;
}

/* The planes of 32 codes: the widest one holds the lowest bits. */
static void put_codes(const pen_quant *quant, const uint8_t *q, int row, unsigned char *data) {
    if (quant->bits & 8) data = put_plane(data, row, 8, 0, q);
    if (quant->bits & 4) data = put_plane(data, row, 4, 0, q);
    if (quant->bits & 2) data = put_plane(data, row, 2, quant->bits & 4, q);
    if (quant->bits & 1) put_plane(data, row, 1, quant->bits & 6, q);
}

/* Which of a group's factors a row's is. */
static int factor_of(int row) {
    return row % 8 * 4 + row / 8;
}

static void put_half(unsigned char *halves, int row, const unsigned char *block, int at) {
    memcpy(halves + 2 * factor_of(row), block + at, 2);
}

/* d and m of a block, as they are in the file. */
static void put_block_factors(const pen_quant *quant, const unsigned char *block, int row, unsigned char *to) {
    if (quant->d < 0)
        to[factor_of(row)] = block[0];
    else
        put_half(to, row, block, quant->d);
    if (quant->m >= 0) put_half(to + 2 * ROWS, row, block, quant->m);
}

/* The two bytes of a tile in a block of 256; half is its first share. */
static void put_scales(const pen_quant *quant, const pen_block *split, int tile, int row, unsigned char *to) {
    int share = tile * TILE / quant->share, at = 2 * factor_of(row);
    for (int i = 0; i < 2; i++)
        if (quant->share == TILE)
            to[at + i] = (unsigned char)(i == 0 ? split->scale[share] : split->min[share]);
        else
            to[at + i] = (unsigned char)(split->scale[share + i] | (quant->m < 0 ? 0 : split->min[share + i] << 4));
}

/* Tiles [0, tiles) of a row from its blocks. */
static void pack_row(pen_type type, const layout *l, const unsigned char *source, int row, int tiles,
                     unsigned char *out) {
    const pen_type_info *info = pen_type_get(type);
    const pen_quant *quant = &info->quant;
    size_t tile_bytes = l->data + l->factors;
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

static void pack(pen_cuda_weight *weight, int first, int rows, const void *source) {
    pen_cuda_device *device = pen_cuda(weight->base.device);
    pen_type type = weight->base.type;
    const pen_type_info *info = pen_type_get(type);
    layout l = layout_of(type);
    size_t row_bytes = pen_type_row_bytes(type, weight->base.cols), room = pen_cuda_staging_bytes(device->writes) / 4;
    int tiles = weight->base.cols / TILE, most = (int)(room / tiles_bytes(&l, SUPER_TILES)) * SUPER_TILES;
    for (int g = first / ROWS; g * ROWS < first + rows; g++)
        for (int t = 0; t < tiles; t += most) {
            int count = tiles - t < most ? tiles - t : most;
            size_t bytes = tiles_bytes(&l, (size_t)count);
            unsigned char *packed = pen_cuda_staging_room(device->writes, bytes);
            memset(packed, 0, bytes); /* rows past the end, and what bits are added to */
            for (int row = g * ROWS; row < (g + 1) * ROWS && row < first + rows; row++)
                pack_row(type, &l,
                         (const unsigned char *)source + row_bytes * (size_t)(row - first) +
                             (size_t)(t * TILE / info->block_values) * (size_t)info->block_bytes,
                         row % ROWS, count, packed);
            unsigned char *target = (unsigned char *)(uintptr_t)weight->matrix.data +
                                    weight->matrix.group_bytes * (size_t)g + tiles_bytes(&l, (size_t)t);
            cudaError_t error = cudaMemcpyAsync(target, packed, bytes, cudaMemcpyHostToDevice, device->stream);
            pen_cuda_check(device, error, "copying a weight to the GPU");
            pen_cuda_staging_sent(device->writes);
        }
}

void pen_cuda_weight_write(pen_weight *base, int first, int rows, const void *source) {
    pen_cuda_weight *weight = (pen_cuda_weight *)base;
    size_t row_bytes = pen_type_row_bytes(base->type, base->cols);
    unsigned char *data = (unsigned char *)(uintptr_t)weight->matrix.data;
    if (is_plain(base->type))
        pen_cuda_staging_write(pen_cuda(base->device)->writes, data + row_bytes * (size_t)first, source,
                               row_bytes * (size_t)rows);
    else
        pack(weight, first, rows, source);
}
