/*
 * Weights as a lane of a warp reads them: from each tile of 32 rows × 32 values, eight values of four rows, which are
 * what the tensor cores want of the lane (tensor.cuh). cuda_kernels.h describes the layout, weight.c makes it.
 *
 * Lane 4·g + t has rows g, g + 8, g + 16 and g + 24 of a group. Of each it has two runs of four values: of packed types
 * those from 4t and from 16 + 4t, of plain ones those from 8t and from 8t + 4.
 */
#ifndef PEN_WEIGHTS_CUH
#define PEN_WEIGHTS_CUH

#include "device.cuh"

enum { LANE_ROWS = 4, RUN = 4 }; /* rows of a group, and values of a row side by side, that a lane has */

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
    __host__ __device__ constexpr int code_zero() const { return bits == 8 || table != TABLE_NULL ? 0 : zero; }
    __host__ __device__ constexpr int data_bytes() const { return 4 * PEN_CUDA_BLOCK * bits; }
    __host__ __device__ constexpr int d_bytes() const {
        return PEN_CUDA_BLOCK * (d < 0 ? 1 : 2) + (minima() ? 2 * PEN_CUDA_BLOCK : 0);
    }
    __host__ __device__ constexpr int tile_bytes() const {
        return data_bytes() + (large() ? 2 * PEN_CUDA_BLOCK : d_bytes());
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

/* ---- Packed types ---------------------------------------------------------------------------------------------- */

/* The lane's `count` 32-bit words of a plane, in pieces of 16 bytes at most. */
template <int COUNT> __device__ void load_words(const unsigned char *plane, int lane, unsigned words[COUNT]) {
    if constexpr (COUNT == 1) {
        words[0] = reinterpret_cast<const unsigned *>(plane)[lane];
    } else if constexpr (COUNT == 2) {
        uint2 piece = reinterpret_cast<const uint2 *>(plane)[lane];
        words[0] = piece.x, words[1] = piece.y;
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
            uint4 piece = reinterpret_cast<const uint4 *>(plane)[i / 4 * WARP + lane];
            words[i] = piece.x, words[i + 1] = piece.y, words[i + 2] = piece.z, words[i + 3] = piece.w;
        }
    }
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

template <code_table TABLE> __device__ void look_up_codes(const unsigned words[4], unsigned codes[8]) {
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

/* d·scale and m·min of the lane's rows: of each half of the 32 values where the type has two scales. */
struct factors {
    float d[LANE_ROWS][2], m[LANE_ROWS][2];
};

/* A lane's part of a tile of codes: as it lies in memory, so that many can be on their way at once. */
template <int TYPE> struct packed_tile {
    static constexpr weight_traits t = traits_of<TYPE>::traits;
    unsigned words[t.bits];
    uint2 own, d, m; /* 16 bits for each row; of MXFP4 d.x alone, 8 bits */

    /* Where the runs of lane 4·g + t begin. */
    static __device__ int run_at(int t4, int run) { return 16 * run + RUN * t4; }

    /* Where tiles lie: up to eight behind one another, in types with blocks of 256 within the eight of a block. */
    struct place {
        const unsigned char *tiles, *super_factors;
    };
    static __device__ place find(const pen_cuda_matrix &w, int group, int tile, int) {
        const unsigned char *eight = w.data + w.group_bytes * group + (size_t)(tile / 8) * t.super_bytes();
        return {eight + tile % 8 * t.tile_bytes(), eight + 8 * t.tile_bytes()};
    }

    /* The i'th from there. */
    __device__ void load(const place &from, int i, int lane) {
        const unsigned char *at = from.tiles + i * t.tile_bytes();
        load_plane<8>(at, lane, 0), load_plane<4>(at, lane, 0);
        load_plane<2>(at, lane, t.bits & 4), load_plane<1>(at, lane, t.bits & 6);
        at += t.data_bytes();
        own = d = m = make_uint2(0, 0);
        const uint2 *d_at = reinterpret_cast<const uint2 *>(t.large() ? from.super_factors : at);
        if constexpr (t.large()) own = reinterpret_cast<const uint2 *>(at)[lane / 4];
        if constexpr (t.d < 0)
            d.x = reinterpret_cast<const unsigned *>(at)[lane / 4];
        else
            d = d_at[lane / 4];
        if constexpr (t.minima()) m = d_at[8 + lane / 4];
    }

    /* Four codes to a word: word 2·s + h has run h of the lane's row s. A zero may still have to be subtracted. */
    __device__ void codes(unsigned out[8]) const {
        if constexpr (t.bits == 8) {
#pragma unroll
            for (int v = 0; v < 8; v++) out[v] = words[v];
        } else if constexpr (t.table != TABLE_NULL) {
            look_up_codes<t.table>(words, out);
        } else {
#pragma unroll
            for (int v = 0; v < 8; v++) out[v] = 0;
            add_plane<4>(0, out), add_plane<2>(t.bits & 4, out), add_plane<1>(t.bits & 6, out);
        }
    }

    __device__ factors scales() const {
        factors f;
#pragma unroll
        for (int s = 0; s < LANE_ROWS; s++) {
            unsigned scale = bits16(own, s);
            float dd, mm = t.minima() ? half_of(m, s) : 0;
            if constexpr (t.d < 0) {
                unsigned exponent = d.x >> 8 * s & 255;
                dd = __uint_as_float(exponent < 2 ? 0x00200000U << exponent : (exponent - 1) << 23);
            } else {
                dd = half_of(d, s);
            }
            f.d[s][0] = f.d[s][1] = dd, f.m[s][0] = f.m[s][1] = mm;
            if constexpr (!t.large()) continue;
            if constexpr (t.share == 32) { /* the K-types' m has the other sign */
                f.d[s][0] = dd * (float)(scale & 255);
                f.m[s][0] = -mm * (float)(scale >> 8);
            } else if constexpr (t.minima()) {
                f.d[s][0] = dd * (float)(scale & 15), f.d[s][1] = dd * (float)(scale >> 8 & 15);
                f.m[s][0] = -mm * (float)(scale >> 4 & 15), f.m[s][1] = -mm * (float)(scale >> 12);
            } else {
                f.d[s][0] = dd * (float)(signed char)scale, f.d[s][1] = dd * (float)(signed char)(scale >> 8);
            }
        }
        return f;
    }

  private:
    /* The plane of WIDTH bits, if the type has it, behind those of `before` bits. */
    template <int WIDTH> __device__ void load_plane(const unsigned char *tile, int lane, int before) {
        if constexpr ((t.bits & WIDTH) != 0) load_words<WIDTH>(tile + before * 4 * WARP, lane, words + before);
    }
    template <int WIDTH> __device__ void add_plane(int before, unsigned out[8]) const {
        if constexpr ((t.bits & WIDTH) != 0) {
            const unsigned mask = 0x01010101U * ((1U << WIDTH) - 1);
#pragma unroll
            for (int v = 0; v < 8; v++) out[v] |= (words[before + v % WIDTH] >> WIDTH * (v / WIDTH) & mask) << before;
        }
    }
    static __device__ unsigned bits16(uint2 rows, int s) {
        return (s < 2 ? rows.x : rows.y) >> 16 * (s % 2) & 0xffff;
    }
    static __device__ float half_of(uint2 rows, int s) {
        return __half2float(__ushort_as_half((unsigned short)bits16(rows, s)));
    }
};

/* ---- Plain types ----------------------------------------------------------------------------------------------- */

/* A lane's part of a tile of numbers, which lie as in the file, row after row. Rows past the end repeat the last. */
template <int TYPE> struct plain_tile {
    enum { WORDS = 2 * traits_of<TYPE>::traits.bytes }; /* of eight numbers */
    unsigned words[LANE_ROWS][WORDS];

    static __device__ int run_at(int t4, int run) { return 8 * t4 + RUN * run; }

    struct place {
        const unsigned char *rows[LANE_ROWS];
    };
    static __device__ place find(const pen_cuda_matrix &w, int group, int tile, int lane) {
        place found;
#pragma unroll
        for (int s = 0; s < LANE_ROWS; s++) {
            int row = min(WARP * group + lane / 4 + 8 * s, w.rows - 1);
            found.rows[s] = w.data + w.group_bytes / WARP * row + (size_t)(4 * tile + lane % 4) * (4 * WORDS);
        }
        return found;
    }

    __device__ void load(const place &from, int i, int) {
#pragma unroll
        for (int s = 0; s < LANE_ROWS; s++)
#pragma unroll
            for (int v = 0; v < WORDS; v += 4) {
                uint4 piece = reinterpret_cast<const uint4 *>(from.rows[s])[4 * i * (WORDS / 4) + v / 4];
                words[s][v] = piece.x, words[s][v + 1] = piece.y;
                words[s][v + 2] = piece.z, words[s][v + 3] = piece.w;
            }
    }
};

template <int TYPE, bool QUANTISED = traits_of<TYPE>::traits.quantised()> struct tile_of {
    typedef packed_tile<TYPE> type;
};
template <int TYPE> struct tile_of<TYPE, false> { typedef plain_tile<TYPE> type; };
template <int TYPE> using lane_tile = typename tile_of<TYPE>::type;

/* ---- Values ---------------------------------------------------------------------------------------------------- */

/* The lane's numbers, with the bits of pen_type_dequantize_row: value i of row s, where 4 are a run. */
template <int TYPE, bool QUANTISED = traits_of<TYPE>::traits.quantised()> struct lane_values : packed_tile<TYPE> {
    unsigned unpacked[8];
    factors f;

    __device__ lane_values(const pen_cuda_matrix &w, int group, int tile, int lane) {
        this->load(this->find(w, group, tile, lane), 0, lane);
        this->codes(unpacked);
        f = this->scales();
    }
    __device__ float at(int s, int i) const {
        constexpr weight_traits type = traits_of<TYPE>::traits;
        int half = type.share == 16 ? i / RUN : 0;
        int code = (int)(signed char)(unpacked[2 * s + i / RUN] >> 8 * (i % RUN)) - type.code_zero();
        float value = f.d[s][half] * (float)code;
        return type.minima() ? value + f.m[s][half] : value;
    }
};

template <int TYPE> struct lane_values<TYPE, false> : plain_tile<TYPE> {
    __device__ lane_values(const pen_cuda_matrix &w, int group, int tile, int lane) {
        this->load(this->find(w, group, tile, lane), 0, lane);
    }
    __device__ float at(int s, int i) const {
        if constexpr (TYPE == PEN_TYPE_F32)
            return __uint_as_float(this->words[s][i]);
        else if constexpr (TYPE == PEN_TYPE_BF16)
            return __uint_as_float(this->words[s][i / 2] >> 16 * (i % 2) << 16);
        else
            return __half2float(__ushort_as_half((unsigned short)(this->words[s][i / 2] >> 16 * (i % 2))));
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
