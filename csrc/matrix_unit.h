// Products of bfloat16 on a core's matrix unit (Intel's AMX), 16 x 16 sums at a time.
//
// A register of it holds 16 rows of 64 bytes: 16 x 16 floats of a sum, 16 rows of 32 terms as they lie in memory, or 16
// rows of 16 pairs of terms. One instruction adds 16 rows of terms times 16 rows of pairs to a sum. Rows of keys and
// values are terms along the head dimension as they are; queries in lanes are pairs (pack_pairs), and so are weights,
// once two keys of a lane lie side by side. What is summed over keys needs the rows of a tile turned. The moves are
// written for every target, and called on those that have a unit.
#pragma once

#include "block.h"

namespace alibi {
namespace ALIBI_TARGET {

constexpr int kRegisterRows = 16;   // of a register
constexpr int kRegisterTerms = 32;  // summed by one instruction
constexpr int kRegisterBytes = 64;  // of a register's row

static_assert(kTile % kRegisterTerms == 0 && kBlock % kRegisterRows == 0, "whole registers");

#if defined(__AMX_BF16__) && !defined(ALIBI_UNIT_IN_WORDS)

ALIBI_INLINE void begin_registers() {
    alignas(64) uint8_t shape[64] = {1};
    for (int t = 0; t < 8; ++t) {
        shape[16 + 2 * t] = kRegisterBytes;
        shape[48 + t] = kRegisterRows;
    }
    asm volatile("ldtilecfg %0" : : "m"(shape));
}
ALIBI_INLINE void end_registers() {
    asm volatile("tilerelease");
}

// Written out: GCC's own intrinsics do not say that they read memory.
template <int T>
ALIBI_INLINE void load_register(const void* from, int64_t step) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(T), "r"(from), "r"(step) : "memory");
}
template <int T>
ALIBI_INLINE void store_register(void* to, int64_t step) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(T), "r"(to), "r"(step) : "memory");
}
template <int T>
ALIBI_INLINE void clear_register() {
    asm volatile("tilezero %%tmm%c0" : : "i"(T));
}
template <int Sum, int A, int B>
ALIBI_INLINE void multiply_registers() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(A), "i"(B));
}

#else

// The same in plain words, for sanitizers, which do not see what instructions of the unit read and write. A register
// that nothing was put into holds NaNs, and none may be used out of scope.
struct Registers {
    uint32_t at[8][kRegisterRows][16];
    bool in_use;
};

ALIBI_INLINE Registers& registers_there() {
    static thread_local Registers all;
    return all;
}

ALIBI_INLINE Registers& registers() {
    Registers& all = registers_there();
    if (!all.in_use) __builtin_trap();
    return all;
}

ALIBI_INLINE void begin_registers() {
    __builtin_memset(registers_there().at, 0xff, sizeof registers_there().at);
    registers_there().in_use = true;
}
ALIBI_INLINE void end_registers() {
    registers_there().in_use = false;
}

template <int T>
ALIBI_INLINE void load_register(const void* from, int64_t step) {
    for (int row = 0; row < kRegisterRows; ++row)
        __builtin_memcpy(registers().at[T][row], static_cast<const char*>(from) + row * step, kRegisterBytes);
}
template <int T>
ALIBI_INLINE void store_register(void* to, int64_t step) {
    for (int row = 0; row < kRegisterRows; ++row)
        __builtin_memcpy(static_cast<char*>(to) + row * step, registers().at[T][row], kRegisterBytes);
}
template <int T>
ALIBI_INLINE void clear_register() {
    __builtin_memset(registers().at[T], 0, sizeof registers().at[T]);
}
template <int Sum, int A, int B>
ALIBI_INLINE void multiply_registers() {
    Registers& all = registers();
    for (int row = 0; row < kRegisterRows; ++row)
        for (int lane = 0; lane < 16; ++lane) {
            float sum = bits_of<float>(all.at[Sum][row][lane]);
            for (int pair = 0; pair < 16; ++pair) {
                const uint32_t a = all.at[A][row][pair], b = all.at[B][pair][lane];
                sum += bits_of<float>(a << 16) * bits_of<float>(b << 16);
                sum += bits_of<float>(a & 0xffff0000u) * bits_of<float>(b & 0xffff0000u);
            }
            all.at[Sum][row][lane] = bits_of<uint32_t>(sum);
        }
}

#endif

// Lets this thread use the registers until the end of a scope.
class MatrixUnit {
 public:
    explicit MatrixUnit(bool wanted) : wanted_(wanted) {
        if (wanted_) begin_registers();
    }
    ~MatrixUnit() {
        if (wanted_) end_registers();
    }
    MatrixUnit(const MatrixUnit&) = delete;
    MatrixUnit& operator=(const MatrixUnit&) = delete;

 private:
    bool wanted_;
};

// Whether sums begin at 0 or go on from what is there.
enum Sums { kFresh, kRunning };

// What is rounded to bfloat16 comes in two parts, an upper one and what it leaves, which together are good to 2^-16.
enum Parts { kWhole, kTermsInTwo, kPairsInTwo };

// A product's operands: rows of 32 terms a step, and rows of pairs. Of what comes in two parts the lower ones lie
// `lower` bytes behind the upper ones.
struct Operands {
    const char* terms;
    int64_t terms_step;
    const char* pairs;
    int64_t pairs_step;
    int64_t steps;
    int64_t lower;
};

// One row of registers: to[16 rows][16 * Lanes] = (what it was, or 0) + terms @ pairs.
template <Sums sums, Parts parts, int Lanes>
ALIBI_INLINE void register_row(float* to, int64_t to_stride, const Operands& of, const char* terms, const char* pairs) {
    const auto start = [&](auto lane) __attribute__((always_inline)) {
        constexpr int L = decltype(lane)::value;
        if constexpr (sums == kRunning)
            load_register<L>(to + L * 16, to_stride * 4);
        else
            clear_register<L>();
    };
    const auto step = [&](auto lane, const char* b) __attribute__((always_inline)) {
        constexpr int L = decltype(lane)::value;
        load_register<4 + L>(b + L * kRegisterBytes, of.pairs_step);
        multiply_registers<L, 3, 4 + L>();
        if constexpr (parts == kTermsInTwo) multiply_registers<L, 7, 4 + L>();
        if constexpr (parts == kPairsInTwo) {
            load_register<7>(b + of.lower + L * kRegisterBytes, of.pairs_step);
            multiply_registers<L, 3, 7>();
        }
    };
    const auto end = [&](auto lane) __attribute__((always_inline)) {
        constexpr int L = decltype(lane)::value;
        store_register<L>(to + L * 16, to_stride * 4);
    };
    start(Size<0>{});
    if constexpr (Lanes > 1) start(Size<1>{});
    if constexpr (Lanes > 2) start(Size<2>{});
    for (int64_t n = 0; n < of.steps; ++n) {
        load_register<3>(terms + n * kRegisterBytes, of.terms_step);
        if constexpr (parts == kTermsInTwo) load_register<7>(terms + of.lower + n * kRegisterBytes, of.terms_step);
        const char* b = pairs + n * kRegisterRows * of.pairs_step;
        step(Size<0>{}, b);
        if constexpr (Lanes > 1) step(Size<1>{}, b);
        if constexpr (Lanes > 2) step(Size<2>{}, b);
    }
    end(Size<0>{});
    if constexpr (Lanes > 1) end(Size<1>{});
    if constexpr (Lanes > 2) end(Size<2>{});
}

// to[rows][lanes] = (what it was, or 0) + terms @ pairs. Rows and lanes are made up to whole registers, for which there
// must be room on both sides; a row of the sums depends on that row of the terms alone, a lane on that lane of the
// pairs.
template <Sums sums, Parts parts>
ALIBI_INLINE void matrix_product(float* to, int64_t to_stride, int64_t rows, int64_t lanes, const Operands& of) {
    for (int64_t lane = 0; lane < lanes; lane += 48) {
        const char* pairs = of.pairs + lane * 4;
        for (int64_t row = 0; row < rows; row += kRegisterRows) {
            float* place = to + row * to_stride + lane;
            const char* terms = of.terms + row * of.terms_step;
            if (lanes - lane > 32)
                register_row<sums, parts, 3>(place, to_stride, of, terms, pairs);
            else if (lanes - lane > 16)
                register_row<sums, parts, 2>(place, to_stride, of, terms, pairs);
            else
                register_row<sums, parts, 1>(place, to_stride, of, terms, pairs);
        }
    }
}

// Moves into these layouts

struct Halfway {
    alignas(64) uint16_t at[32];
};

constexpr Halfway make_halfway() {
    Halfway to = {};
    for (uint16_t i = 0; i < 16; ++i) {
        to.at[2 * i] = i;
        to.at[2 * i + 1] = static_cast<uint16_t>(16 + i);
    }
    return to;
}

// By turns an element of one half and one of the other.
static constexpr Halfway kHalfway = make_halfway();

// Two floats a lane as a pair of bfloat16, rounded to nearest.
ALIBI_INLINE Words pair_of(Floats first, Floats second) {
#if defined(__AVX512BF16__)
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    return (Words)_mm512_permutexvar_epi16(_mm512_load_si512(kHalfway.at), bits_of<__m512i>(both));
#else
    return bfloat16_bits(first) | bfloat16_bits(second) << 16;
#endif
}

// to[0..kWidth) = first, to[kWidth..2 kWidth) = second, rounded to nearest.
ALIBI_INLINE void store_terms(uint16_t* to, Floats first, Floats second) {
#if defined(__AVX512BF16__)
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    __builtin_memcpy(to, &both, sizeof both);
#else
    store_bfloat16(to, first);
    store_bfloat16(to + kWidth, second);
#endif
}

// The nearest number that bfloat16 holds, ties away from 0. What it leaves of x is exact, below the largest bfloat16
// and where that is no denormal; of a NaN at least one of the two is one.
ALIBI_INLINE Floats upper_part(Floats x) {
    return bits_of<Floats>((bits_of<Words>(x) + 0x8000u) & 0xffff0000u);
}

// The weights of two keys by lanes, rows of kBlock, become pairs in their place: the upper parts in the first row, what
// they leave in the second.
ALIBI_INLINE void store_pairs(float* at, Floats first, Floats second) {
    const Floats upper[2] = {upper_part(first), upper_part(second)};
    store(at, bits_of<Floats>((bits_of<Words>(upper[0]) >> 16) | bits_of<Words>(upper[1])));
    store(at + kBlock, bits_of<Floats>(pair_of(first - upper[0], second - upper[1])));
}

// The same for all keys of a tile, and zeros up to whole registers.
ALIBI_INLINE void pair_weights(float* weights, int keys, int lanes) {
    for (int lane = 0; lane < lanes; lane += kWidth)
        for (int key = 0; key < keys || key % kRegisterTerms; key += 2) {
            float* at = weights + key * kBlock + lane;
            store_pairs(at, key < keys ? load(at) : Floats{}, key + 1 < keys ? load(at + kBlock) : Floats{});
        }
}

// Terms that a row of weights has: queries, made up to whole registers.
constexpr int kRowTerms = (kBlock + kRegisterTerms - 1) / kRegisterTerms * kRegisterTerms;

constexpr int kTermsOfTile = kTile * kRowTerms;

// to[part][key][query] = weights[key][query] in two parts, zeros past `rows` queries, and for keys up to whole
// registers.
ALIBI_INLINE void take_terms(uint16_t* to, const float* weights, int keys, int rows) {
    // What stands in lanes without a query is no number that a sum could bear.
    const int whole = rows / kWidth * kWidth;
    const Ints some = lanes_before(rows - whole);
    for (int key = 0; key < keys; ++key) {
        const float* from = weights + key * kBlock;
        uint16_t* row = to + key * kRowTerms;
        for (int lane = 0; lane < kRowTerms; lane += 2 * kWidth) {
            Floats upper[2], rest[2];
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                const int first = lane + half * kWidth;
                Floats x = {};
                if (first < whole)
                    x = load(from + first);
                else if (first < rows)
                    x = only(some, load(from + first));
                upper[half] = upper_part(x);
                rest[half] = x - upper[half];
            }
            store_terms(row + lane, upper[0], upper[1]);
            store_terms(row + lane + kTermsOfTile, rest[0], rest[1]);
        }
    }
    const int64_t made_up = round_up(keys, kRegisterRows) - keys;
    for (int part = 0; part < 2; ++part)
        __builtin_memset(to + part * kTermsOfTile + keys * kRowTerms, 0, static_cast<size_t>(made_up * kRowTerms) * 2);
}

// to[pair][element] = the elements of rows 2 * pair and 2 * pair + 1, zeros past `count` rows and `length` elements,
// for kRowTerms rows of `padded` elements.
ALIBI_INLINE void pair_rows(float* to, int64_t padded, const char* const* rows, int count, int64_t length) {
    for (int pair = 0; pair < kRowTerms / 2; ++pair, to += padded) {
        const uint16_t* rows_of[2];
        for (int i = 0; i < 2; ++i)
            rows_of[i] = 2 * pair + i < count ? reinterpret_cast<const uint16_t*>(rows[2 * pair + i]) : nullptr;
        for (int64_t e = 0; e < padded; ++e) {
            uint32_t both = 0;
            if (e < length && rows_of[0]) both = rows_of[0][e];
            if (e < length && rows_of[1]) both |= static_cast<uint32_t>(rows_of[1][e]) << 16;
            __builtin_memcpy(to + e, &both, 4);
        }
    }
}

// to[element][key] = rows[key][element] for up to 32 elements of the keys of a tile, zeros up to whole registers.
ALIBI_INLINE void turn_rows(uint16_t* to, const char* from, int64_t step, int keys, int64_t length) {
#if defined(__AVX512BW__)
    const auto mask = length < kRegisterTerms ? (1u << length) - 1 : ~0u;
    for (int first = 0; first < keys; first += kRegisterTerms) {
        const char* block = from + first * step;
        const int here = static_cast<int>(smallest(kRegisterTerms, keys - first));
        const bool whole = here == kRegisterTerms && mask == ~0u;
        const auto row = [&](int key) __attribute__((always_inline)) {
            if (whole) return _mm512_loadu_si512(block + key * step);
            return key < here ? _mm512_maskz_loadu_epi16(mask, block + key * step) : _mm512_setzero_si512();
        };
        for (int high = 0; high < 2; ++high) {
            Floats square[16];
            // Of each quarter of 8 elements the lower or the upper 4, interleaved.
#pragma GCC unroll 16
            for (int pair = 0; pair < 16; ++pair) {
                const __m512i a = row(2 * pair), b = row(2 * pair + 1);
                square[pair] = (Floats)(high ? _mm512_unpackhi_epi16(a, b) : _mm512_unpacklo_epi16(a, b));
            }
            transpose(square);
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i)
                __builtin_memcpy(to + (i / 4 * 8 + i % 4 + 4 * high) * kTile + first, &square[i], sizeof square[i]);
        }
    }
#else
    const int64_t whole = round_up(keys, kRegisterTerms);
    for (int64_t e = 0; e < kRegisterTerms; ++e)
        for (int64_t key = 0; key < whole; ++key)
            to[e * kTile + key] =
                e < length && key < keys ? reinterpret_cast<const uint16_t*>(from + key * step)[e] : 0;
#endif
}

// Whether every element of some rows of bfloat16 is finite: in two parts a weight times an infinity would be inf - inf.
ALIBI_INLINE bool finite_rows(const char* from, int64_t step, int rows, int64_t length) {
#if defined(__AVX512BW__)
    const __m512i sizes = _mm512_set1_epi16(0x7fff);
    __m512i most = _mm512_setzero_si512();
    for (int row = 0; row < rows; ++row) {
        int64_t e = 0;
        for (; e + 32 <= length; e += 32)
            most = _mm512_max_epu16(most, _mm512_and_si512(sizes, _mm512_loadu_si512(from + row * step + e * 2)));
        if (e < length) {
            const __m512i rest = _mm512_maskz_loadu_epi16((1u << (length - e)) - 1, from + row * step + e * 2);
            most = _mm512_max_epu16(most, _mm512_and_si512(sizes, rest));
        }
    }
    return _mm512_cmpge_epu16_mask(most, _mm512_set1_epi16(0x7f80)) == 0;
#else
    bool finite = true;
    for (int row = 0; row < rows; ++row)
        for (int64_t e = 0; e < length; ++e)
            finite &= (reinterpret_cast<const uint16_t*>(from + row * step)[e] & 0x7f80) != 0x7f80;
    return finite;
#endif
}

// Rows as they are, with zeros up to whole registers both ways, where memory ends before these do.
ALIBI_INLINE void stage_rows(uint16_t* to, int64_t padded, const char* from, int64_t step, int rows, int64_t length) {
    for (int row = 0; row < rows; ++row) {
        __builtin_memcpy(to + row * padded, from + row * step, static_cast<size_t>(length) * 2);
        __builtin_memset(to + row * padded + length, 0, static_cast<size_t>(padded - length) * 2);
    }
    const int64_t whole = round_up(rows, kRegisterRows);
    __builtin_memset(to + rows * padded, 0, static_cast<size_t>((whole - rows) * padded) * 2);
}

// Floats in whose room rows of a tile are staged.
ALIBI_INLINE int64_t stage_floats(const Call& call) {
    return kTile * round_up(largest(call.head_dim, call.value_dim), kRegisterTerms) / 2;
}

// to[key][lane] = rows of the tile, keys or values, times rows of the block, which are packed in pairs.
ALIBI_INLINE void matrix_scores(
    float* to, const Call& call, const Tile& tile, const char* from, int64_t step, int64_t length, const float* pairs,
    int lanes, uint16_t* stage
) {
    const int64_t padded = round_up(length, kRegisterTerms);
    if (padded != length || tile.first_key + round_up(tile.keys, kRegisterRows) > call.k_len) {
        stage_rows(stage, padded, from, step, tile.keys, length);
        from = reinterpret_cast<const char*>(stage);
        step = padded * 2;
    }
    const Operands of = {from, step, reinterpret_cast<const char*>(pairs), kBlock * 4, padded / kRegisterTerms, 0};
    matrix_product<kFresh, kWhole>(to, kBlock, tile.keys, lanes, of);
}

// Rows of a tile turned: [element][key], elements and keys up to whole registers.
struct Turned {
    uint16_t* at;
    int64_t tile;  // which, -1 for none,
    int keys;      // and how many of its rows
};

// Floats in whose room a tile is turned.
ALIBI_INLINE int64_t turned_floats(int64_t length) {
    return round_up(length, kRegisterTerms) * kTile / 2;
}

// Turns rows of a tile, unless they are; false where not all are finite.
ALIBI_INLINE bool turn_tile(Turned& turned, int64_t tile, const char* rows, int64_t step, int keys, int64_t length) {
    if (turned.tile == tile && turned.keys >= keys) return true;
    if (!finite_rows(rows, step, keys, length)) return false;
    for (int64_t e = 0; e < length; e += kRegisterTerms)
        turn_rows(turned.at + e * kTile, rows + e * 2, step, keys, smallest(kRegisterTerms, length - e));
    turned.tile = tile;
    turned.keys = keys;
    return true;
}

// to[element][lane] += sums over keys of elements of their rows, turned, times weights by pairs of keys.
ALIBI_INLINE void add_over_keys(
    float* to, const Turned& turned, int keys, int64_t length, const float* pairs, int lanes
) {
    const Operands of = {reinterpret_cast<const char*>(turned.at),     kTile * 2,
                         reinterpret_cast<const char*>(pairs),         2 * kBlock * 4,
                         (keys + kRegisterTerms - 1) / kRegisterTerms, kBlock * 4};
    matrix_product<kRunning, kPairsInTwo>(to, kBlock, length, lanes, of);
}

// to[key][element] += sums over the block's queries of weights, as terms, times elements of their rows by pairs.
ALIBI_INLINE void add_over_queries(
    float* to, int64_t stride, const Tile& tile, const uint16_t* terms, const float* pairs
) {
    const Operands of = {reinterpret_cast<const char*>(terms), kRowTerms * 2,
                         reinterpret_cast<const char*>(pairs), stride * 4,
                         kRowTerms / kRegisterTerms,           kTermsOfTile * 2};
    matrix_product<kRunning, kTermsInTwo>(to, stride, tile.keys, stride, of);
}

}  // namespace ALIBI_TARGET
}  // namespace alibi
