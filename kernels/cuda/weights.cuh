/*
 * Packed weights as a lane of a warp reads them: 32 values of its row from a tile. cuda_kernels.h describes the layout,
 * weight.c makes it.
 */
#ifndef PEN_WEIGHTS_CUH
#define PEN_WEIGHTS_CUH

#include "device.cuh"

/* What types.def says of a type, as constants. Codes are signed where the type has no minima, but for a zero that is
 * subtracted later: that of Q8_0 and of tables is gone. */
enum code_table { TABLE_NULL, TABLE_pen_codes_iq4_nl, TABLE_pen_codes_mxfp4 };
struct weight_traits {
    int values, bytes; /* of a block */
    int bits, zero, share, d, m;
    code_table table;

    __host__ __device__ constexpr bool quantised() const { return bits > 0; }
    __host__ __device__ constexpr bool large() const {
        return values == PEN_CUDA_SUPER;
    } /* blocks of 256: factors are integers × d, m */
    __host__ __device__ constexpr bool minima() const { return m >= 0; }
    __host__ __device__ constexpr int plain_words() const {
        return 8 * bytes;
    } /* of 32 numbers, where there are no codes */
    __host__ __device__ constexpr int code_zero() const { return bits == 8 || table != TABLE_NULL ? 0 : zero; }
    __host__ __device__ constexpr int data_bytes() const {
        return 4 * PEN_CUDA_BLOCK * (quantised() ? bits : plain_words());
    }
    __host__ __device__ constexpr int d_bytes() const {
        return PEN_CUDA_BLOCK * (d < 0 ? 1 : 2) + (minima() ? 2 * PEN_CUDA_BLOCK : 0);
    }
    __host__ __device__ constexpr int tile_bytes() const {
        return data_bytes() + (!quantised() ? 0 : large() ? 2 * PEN_CUDA_BLOCK : d_bytes());
    }
    __host__ __device__ constexpr int super_bytes() const { return 8 * tile_bytes() + (large() ? d_bytes() : 0); }
};

template <int TYPE> struct traits_of;
#define PEN_TYPE(name, gguf, values, bytes)                                                                            \
    template <> struct traits_of<PEN_TYPE_##name> {                                                                    \
        static constexpr weight_traits traits = {values, bytes, 0, 0, 0, 0, 0, TABLE_NULL};                            \
    };
#define PEN_QUANT(name, gguf, values, bytes, bits, zero, share, d, m, codes)                                           \
    template <> struct traits_of<PEN_TYPE_##name> {                                                                    \
        static constexpr weight_traits traits = {values, bytes, bits, zero, share, d, m, TABLE_##codes};               \
    };
#include "types.def"

/* The tile'th tile of a group's data, and the factors behind its eight. */
template <int TYPE> __device__ const unsigned char *tile_at(const unsigned char *group, int tile) {
    constexpr weight_traits t = traits_of<TYPE>::traits;
    return group + (size_t)(tile / 8) * t.super_bytes() + (size_t)(tile % 8) * t.tile_bytes();
}
template <int TYPE> __device__ const unsigned char *super_factors(const unsigned char *group, int tile) {
    constexpr weight_traits t = traits_of<TYPE>::traits;
    return group + (size_t)(tile / 8) * t.super_bytes() + (size_t)8 * t.tile_bytes();
}

/* ---- Codes ----------------------------------------------------------------------------------------------------- */

/* The lane's `count` 32-bit words of a plane, in pieces of 16 bytes at most. */
template <int COUNT> __device__ void load_words(const unsigned char *plane, int lane, unsigned words[COUNT]) {
    if (COUNT == 1) {
        words[0] = reinterpret_cast<const unsigned *>(plane)[lane];
    } else if (COUNT == 2) {
        uint2 piece = reinterpret_cast<const uint2 *>(plane)[lane];
        words[0] = piece.x, words[1 % COUNT] = piece.y;
    } else {
#pragma unroll
        for (int i = 0; i < COUNT / 4; i++) {
            uint4 piece = reinterpret_cast<const uint4 *>(plane)[i * WARP + lane];
            unsigned *to = words + 4 * i % COUNT;
            to[0] = piece.x, to[1 % COUNT] = piece.y, to[2 % COUNT] = piece.z, to[3 % COUNT] = piece.w;
        }
    }
}

/* Adds the field of WIDTH bits of every code, moved to bit `to`. Returns the plane behind. */
template <int WIDTH>
__device__ const unsigned char *add_plane(const unsigned char *plane, int lane, int to, unsigned codes[8]) {
    const unsigned mask = 0x01010101U * ((1U << WIDTH) - 1);
    unsigned words[WIDTH];
    load_words<WIDTH>(plane, lane, words);
#pragma unroll
    for (int v = 0; v < 8; v++) codes[v] |= (words[v % WIDTH] >> WIDTH * (v / WIDTH) & mask) << to;
    return plane + WIDTH * 4 * WARP;
}

/* Bytes of a table that stand for the codes in the nibbles of `word`: those of the low ones, then of the high ones. */
__device__ inline uint2 look_up(const unsigned table[4], unsigned word) {
    unsigned half = 0x32103210U | (word & 0x88888888U) >> 1, found[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        unsigned low = __byte_perm(table[0], table[1], word >> 16 * i);
        unsigned high = __byte_perm(table[2], table[3], word >> 16 * i);
        found[i] = __byte_perm(low, high, half >> 16 * i);
    }
    return make_uint2(__byte_perm(found[0], found[1], 0x6420), __byte_perm(found[0], found[1], 0x7531));
}

template <code_table TABLE> __device__ void look_up_codes(unsigned codes[8], const unsigned words[4]) {
    /* pen_codes_iq4_nl − 128 and pen_codes_mxfp4 − 16 as signed bytes, the first one lowest */
    const unsigned iq4_nl[4] = {0xbfad9881U, 0xf6eaddcfU, 0x26190d01U, 0x71594535U};
    const unsigned mxfp4[4] = {0x03020100U, 0x0c080604U, 0xfdfeff00U, 0xf4f8fafcU};
#pragma unroll
    for (int v = 0; v < 4; v++) {
        uint2 found = look_up(TABLE == TABLE_pen_codes_mxfp4 ? mxfp4 : iq4_nl, words[v]);
        codes[v] = found.x;
        codes[v + 4] = found.y;
    }
}

/* The lane's 32 codes of a tile, four to a word, without the zero still to be subtracted. */
template <int TYPE> __device__ void load_codes(const unsigned char *tile, int lane, unsigned codes[8]) {
    constexpr weight_traits t = traits_of<TYPE>::traits;
    if constexpr (t.bits == 8) {
        load_words<8>(tile, lane, codes);
    } else if constexpr (t.table != TABLE_NULL) {
        unsigned words[4];
        load_words<4>(tile, lane, words);
        look_up_codes<t.table>(codes, words);
    } else {
        int to = 0;
#pragma unroll
        for (int v = 0; v < 8; v++) codes[v] = 0;
        if constexpr ((t.bits & 4) != 0) tile = add_plane<4>(tile, lane, 0, codes), to = 4;
        if constexpr ((t.bits & 2) != 0) tile = add_plane<2>(tile, lane, to, codes), to += 2;
        if constexpr ((t.bits & 1) != 0) tile = add_plane<1>(tile, lane, to, codes);
    }
}

/* ---- Factors --------------------------------------------------------------------------------------------------- */

/* d·scale and m·min of a lane's 32 values: of each half of them where the type has two scales. */
struct factors {
    float d[2], m[2];
};

__device__ inline float half_at(const unsigned char *halves, int lane) {
    return __half2float(reinterpret_cast<const __half *>(halves)[lane]);
}

template <int TYPE> __device__ factors load_factors(const unsigned char *group, int tile, int lane) {
    constexpr weight_traits t = traits_of<TYPE>::traits;
    const unsigned char *own = tile_at<TYPE>(group, tile) + t.data_bytes();
    const unsigned char *at = t.large() ? super_factors<TYPE>(group, tile) : own;
    factors f = {};
    if constexpr (t.d < 0) {
        unsigned exponent = at[lane];
        f.d[0] = __uint_as_float(exponent < 2 ? 0x00200000U << exponent : (exponent - 1) << 23);
        return f;
    }
    f.d[0] = half_at(at, lane);
    if constexpr (t.minima()) f.m[0] = half_at(at + 2 * WARP, lane);
    if constexpr (!t.large()) return f;
    uchar2 bytes = reinterpret_cast<const uchar2 *>(own)[lane];
    float d = f.d[0], m = -f.m[0]; /* the K-types' m has the other sign */
    if constexpr (t.share == 32) {
        f.d[0] = d * (float)bytes.x;
        f.m[0] = m * (float)bytes.y;
    } else if constexpr (t.minima()) {
        f.d[0] = d * (float)(bytes.x & 15), f.d[1] = d * (float)(bytes.y & 15);
        f.m[0] = m * (float)(bytes.x >> 4), f.m[1] = m * (float)(bytes.y >> 4);
    } else {
        f.d[0] = d * (float)(signed char)bytes.x, f.d[1] = d * (float)(signed char)bytes.y;
    }
    return f;
}

/* ---- Values ---------------------------------------------------------------------------------------------------- */

/* The lane's 32 weights of a tile: what was loaded of them, and each with the bits of pen_type_dequantize_row. */
template <int TYPE> struct lane_weights {
    static constexpr weight_traits t = traits_of<TYPE>::traits;
    unsigned words[t.quantised() ? 8 : t.plain_words()];
    factors f;

    __device__ lane_weights(const unsigned char *group, int tile, int lane) : f() {
        const unsigned char *data = tile_at<TYPE>(group, tile);
        if constexpr (t.quantised()) {
            load_codes<TYPE>(data, lane, words);
            f = load_factors<TYPE>(group, tile, lane);
        } else {
            load_words<t.plain_words()>(data, lane, words);
        }
    }

    __device__ float at(int i) const {
        if constexpr (t.quantised()) {
            int half = t.share == 16 ? i / 16 : 0,
                code = (int)(signed char)(words[i / 4] >> 8 * (i % 4)) - t.code_zero();
            float value = f.d[half] * (float)code;
            return t.minima() ? value + f.m[half] : value;
        } else if constexpr (TYPE == PEN_TYPE_F32) {
            return __uint_as_float(words[i]);
        } else if constexpr (TYPE == PEN_TYPE_BF16) {
            return __uint_as_float(words[i / 2] >> 16 * (i % 2) << 16);
        } else {
            return __half2float(__ushort_as_half((unsigned short)(words[i / 2] >> 16 * (i % 2))));
        }
    }
};

/* Calls call.template run<TYPE>() for the type. */
template <class Call> void for_type(pen_type type, Call call) {
    switch (type) {
#define PEN_TYPE(name, gguf, values, bytes)                                                                            \
    case PEN_TYPE_##name:                                                                                              \
        call.template run<PEN_TYPE_##name>();                                                                          \
        return;
#include "types.def"
    case PEN_TYPE_COUNT: return;
    }
}

#endif
