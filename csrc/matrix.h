// Products of small matrices, and the moves that bring rows into the layouts they want.
//
// Queries lie in vector lanes: a block of kBlock queries is stored transposed, [element][query], and every product is
// rows of broadcast scalars times vectors of lanes. Maxima and sums over keys are then vertical, and neither keys nor
// values are packed here; a matrix unit (matrix_unit.h) has its own products and moves.
#pragma once

#include "call.h"
#include "simd.h"

namespace alibi {
namespace ALIBI_TARGET {

// Vectors of lanes in a register tile. With 32 registers 8 rows of them hide the latency of multiply-add twice over.
constexpr int kVectors = 3;
constexpr int kRows = kRegisters == 32 ? 8 : 4;

template <int N>
struct Size {
    static constexpr int value = N;
};

// Calls body(Size<n>, first row) over `rows` rows in steps of at most Full, powers of two for the rest.
template <int Full, class Body>
ALIBI_INLINE void by_rows(int rows, const Body& body) {
    int row = 0;
    for (; row + Full <= rows; row += Full) body(Size<Full>{}, row);
    if constexpr (Full > 4) {
        if (rows - row >= 4) {
            body(Size<4>{}, row);
            row += 4;
        }
    }
    if constexpr (Full > 2) {
        if (rows - row >= 2) {
            body(Size<2>{}, row);
            row += 2;
        }
    }
    if (rows - row >= 1) body(Size<1>{}, row);
}

// Calls body(Size<vectors>, first lane) over the vectors that hold the first `lanes` lanes.
template <class Body>
ALIBI_INLINE void by_lanes(int lanes, const Body& body) {
    int lane = 0;
    for (; lane + (kVectors - 1) * kWidth < lanes; lane += kVectors * kWidth) body(Size<kVectors>{}, lane);
    if (lane >= lanes) return;
    if (lane + kWidth < lanes)
        body(Size<2>{}, lane);
    else
        body(Size<1>{}, lane);
}

template <int Rows, int Vectors>
struct Accumulators {
    Floats at[Rows][Vectors];
};

// How the scalars of a product lie: consecutive along the summed index, or along the rows.
enum Lie { kAlongSum, kAlongRows };

template <int Rows, int Vectors>
ALIBI_INLINE void clear(Accumulators<Rows, Vectors>& sum) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sum.at[r][v] = Floats{};
}

// sum = rows of kBlock lanes as they are in memory.
template <int Rows, int Vectors>
ALIBI_INLINE void collect(Accumulators<Rows, Vectors>& sum, const float* from) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sum.at[r][v] = load(from + r * kBlock + v * kWidth);
}

// sum += a @ b over `length` terms. The scalar of row r, term n is a[r * a_stride + n], or a[n * a_stride + r]; vector
// v of term n starts at b[n * b_stride + v * kWidth].
template <Lie lie, int Rows, int Vectors>
ALIBI_INLINE void multiply(
    Accumulators<Rows, Vectors>& sum, const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t length
) {
    for (int64_t n = 0; n < length; ++n) {
        Floats terms[Vectors];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) terms[v] = load(b + n * b_stride + v * kWidth);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            const Floats scalar = splat(lie == kAlongSum ? a[r * a_stride + n] : a[n * a_stride + r]);
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) sum.at[r][v] += scalar * terms[v];
        }
    }
}

// Terms that are added up one after the other; the error of a sum grows with the length of its chain.
constexpr int64_t kChain = 128;

// The same along the sum, and with `in_chains`, for what is longer than a chain, by halves of one.
template <bool in_chains, int Rows, int Vectors>
ALIBI_INLINE void multiply_rows(
    Accumulators<Rows, Vectors>& sum, const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t length
) {
    if constexpr (in_chains) {
        for (int64_t first = 0; first < length; first += kChain / 2) {
            const int64_t terms = length - first < kChain / 2 ? length - first : kChain / 2;
            Accumulators<Rows, Vectors> part;
            clear(part);
            multiply<kAlongSum>(part, a + first, a_stride, b + first * b_stride, b_stride, terms);
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < Vectors; ++v) sum.at[r][v] += part.at[r][v];
        }
    } else {
        multiply<kAlongSum>(sum, a, a_stride, b, b_stride, length);
    }
}

// The same for bfloat16 along the sum, in pairs: a holds rows `a_step` bytes apart, b a pair of terms a lane.
template <int Rows, int Vectors>
ALIBI_INLINE void multiply_pairs(
    Accumulators<Rows, Vectors>& sum, const char* a, int64_t a_step, const float* b, int64_t pairs
) {
    for (int64_t n = 0; n < pairs; ++n) {
        Words terms[Vectors];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) terms[v] = bits_of<Words>(load(b + n * kBlock + v * kWidth));
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            uint32_t pair;
            __builtin_memcpy(&pair, a + r * a_step + n * 4, 4);
            const Words scalar = Words{} + pair;
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) sum.at[r][v] = add_pairs(sum.at[r][v], terms[v], scalar);
        }
    }
}

// to[r][lanes] += a @ b for all `rows`, where lanes are the first `lanes` of each row of `to` and of b.
template <Lie lie>
ALIBI_INLINE void add_product(
    float* to, int64_t to_stride, int rows, int lanes, const float* a, int64_t a_stride, const float* b,
    int64_t b_stride, int64_t length
) {
    by_lanes(lanes, [&](auto vectors, int lane) __attribute__((always_inline)) {
        constexpr int V = decltype(vectors)::value;
        by_rows<kRows>(rows, [&](auto count, int row) __attribute__((always_inline)) {
            constexpr int R = decltype(count)::value;
            Accumulators<R, V> sum;
            clear(sum);
            multiply<lie>(sum, a + (lie == kAlongSum ? row * a_stride : row), a_stride, b + lane, b_stride, length);
            for (int r = 0; r < R; ++r)
                for (int v = 0; v < V; ++v) {
                    float* at = to + (row + r) * to_stride + lane + v * kWidth;
                    store(at, load(at) + sum.at[r][v]);
                }
        });
    });
}

constexpr int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}
constexpr int64_t smallest(int64_t a, int64_t b) {
    return a < b ? a : b;
}
constexpr int64_t largest(int64_t a, int64_t b) {
    return a > b ? a : b;
}

// Rows of the call's type

ALIBI_INLINE int64_t element_size(int64_t type) {
    return type == kFloat32 ? 4 : 2;
}

ALIBI_INLINE const char* row_of(const Tensor& tensor, int64_t type, int64_t batch, int64_t head, int64_t row) {
    const int64_t at = batch * tensor.batch_stride + head * tensor.head_stride + row * tensor.row_stride;
    return static_cast<const char*>(tensor.data) + at * element_size(type);
}

ALIBI_INLINE Floats load_as(int64_t type, const char* row, int64_t at) {
    if (type == kFloat32) return load(reinterpret_cast<const float*>(row) + at);
    const uint16_t* from = reinterpret_cast<const uint16_t*>(row) + at;
    return type == kBFloat16 ? load_bfloat16(from) : load_float16(from);
}

ALIBI_INLINE float element_as(int64_t type, const char* row, int64_t at) {
    if (type == kFloat32) return reinterpret_cast<const float*>(row)[at];
    const uint16_t from = reinterpret_cast<const uint16_t*>(row)[at];
    return type == kBFloat16 ? from_bfloat16(from) : from_float16(from);
}

ALIBI_INLINE void store_as(int64_t type, char* row, int64_t at, Floats x) {
    if (type == kFloat32) return store(reinterpret_cast<float*>(row) + at, x);
    uint16_t* to = reinterpret_cast<uint16_t*>(row) + at;
    return type == kBFloat16 ? store_bfloat16(to, x) : store_float16(to, x);
}

ALIBI_INLINE void element_to(int64_t type, char* row, int64_t at, float x) {
    if (type == kFloat32)
        reinterpret_cast<float*>(row)[at] = x;
    else
        reinterpret_cast<uint16_t*>(row)[at] = type == kBFloat16 ? to_bfloat16(x) : to_float16(x);
}

// to[0..length) = row * factor, and zeros up to `padded`.
ALIBI_INLINE void read_row(float* to, int64_t type, const char* row, int64_t length, int64_t padded, float factor) {
    int64_t at = 0;
    for (; at + kWidth <= length; at += kWidth) store(to + at, load_as(type, row, at) * factor);
    for (; at < length; ++at) to[at] = element_as(type, row, at) * factor;
    for (; at < padded; ++at) to[at] = 0.0f;
}

ALIBI_INLINE void write_row(char* row, int64_t type, const float* from, int64_t length, float factor) {
    int64_t at = 0;
    for (; at + kWidth <= length; at += kWidth) store_as(type, row, at, load(from + at) * factor);
    for (; at < length; ++at) element_to(type, row, at, from[at] * factor);
}

// For each round of a transpose, which lanes of two rows make up either of them: a table, as in sum_of().
struct Exchanges {
    alignas(64) int32_t upper[4][kWidth];
    alignas(64) int32_t lower[4][kWidth];
};

constexpr Exchanges make_exchanges() {
    Exchanges to = {};
    for (int round = 0; round < kHalvings; ++round)
        for (int lane = 0; lane < kWidth; ++lane) {
            const int reach = 1 << round;
            to.upper[round][lane] = lane & reach ? kWidth + lane - reach : lane;
            to.lower[round][lane] = lane & reach ? kWidth + lane : lane + reach;
        }
    return to;
}

static constexpr Exchanges kExchanges = make_exchanges();

// A kWidth x kWidth transpose in registers: log2(kWidth) rounds of pairwise exchanges, each halving what is misplaced.
ALIBI_INLINE void transpose(Floats (&x)[kWidth]) {
#pragma GCC unroll 4
    for (int round = 0; round < kHalvings; ++round) {
        const Ints upper = load_ints(kExchanges.upper[round]), lower = load_ints(kExchanges.lower[round]);
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) {
            if (i & 1 << round) continue;
            const Floats a = x[i], b = x[i + (1 << round)];
            x[i] = pick(a, b, upper);
            x[i + (1 << round)] = pick(a, b, lower);
        }
    }
}

// to[element][query] = factor * rows[query][element] for `count` queries; the other lanes of their vectors are zero.
ALIBI_INLINE void pack_transposed(
    float* to, int64_t type, const char* const* rows, int count, int64_t length, float factor
) {
    for (int first = 0; first < count; first += kWidth) {
        const int here = static_cast<int>(smallest(kWidth, count - first));
        int64_t at = 0;
        for (; at + kWidth <= length; at += kWidth) {
            Floats square[kWidth];
            // Asked once: sixteen questions a square are a tenth of the time of a short call.
            if (here == kWidth) {
#pragma GCC unroll 16
                for (int i = 0; i < kWidth; ++i) square[i] = load_as(type, rows[first + i], at) * factor;
            } else {
                for (int i = 0; i < kWidth; ++i)
                    square[i] = i < here ? load_as(type, rows[first + i], at) * factor : Floats{};
            }
            transpose(square);
#pragma GCC unroll 16
            for (int i = 0; i < kWidth; ++i) store(to + (at + i) * kBlock + first, square[i]);
        }
        for (; at < length; ++at)
            for (int i = 0; i < kWidth; ++i)
                to[at * kBlock + first + i] = i < here ? element_as(type, rows[first + i], at) * factor : 0.0f;
    }
}

// to[pair][query] = the bits of rows[query][2 * pair] and the element after it; the other lanes are zero.
ALIBI_INLINE void pack_pairs(float* to, const char* const* rows, int count, int64_t pairs) {
    for (int first = 0; first < count; first += kWidth) {
        const int here = static_cast<int>(smallest(kWidth, count - first));
        int64_t at = 0;
        for (; at + kWidth <= pairs; at += kWidth) {
            Floats square[kWidth];
            if (here == kWidth) {
#pragma GCC unroll 16
                for (int i = 0; i < kWidth; ++i) __builtin_memcpy(&square[i], rows[first + i] + at * 4, sizeof(Floats));
            } else {
                for (int i = 0; i < kWidth; ++i) {
                    square[i] = Floats{};
                    if (i < here) __builtin_memcpy(&square[i], rows[first + i] + at * 4, sizeof(Floats));
                }
            }
            transpose(square);
#pragma GCC unroll 16
            for (int i = 0; i < kWidth; ++i) store(to + (at + i) * kBlock + first, square[i]);
        }
        for (; at < pairs; ++at)
            for (int i = 0; i < kWidth; ++i) {
                uint32_t pair = 0;
                if (i < here) __builtin_memcpy(&pair, rows[first + i] + at * 4, 4);
                __builtin_memcpy(to + at * kBlock + first + i, &pair, 4);
            }
    }
}

// rows[query][element] = from[element][query] * factors[query] for `count` queries.
ALIBI_INLINE void unpack_transposed(
    char* const* rows, int64_t type, const float* from, int count, int64_t length, const float* factors
) {
    for (int first = 0; first < count; first += kWidth) {
        const int here = static_cast<int>(smallest(kWidth, count - first));
        const Floats factor = load(factors + first);
        int64_t at = 0;
        for (; at + kWidth <= length; at += kWidth) {
            Floats square[kWidth];
#pragma GCC unroll 16
            for (int i = 0; i < kWidth; ++i) square[i] = load(from + (at + i) * kBlock + first) * factor;
            transpose(square);
            if (here == kWidth) {
#pragma GCC unroll 16
                for (int i = 0; i < kWidth; ++i) store_as(type, rows[first + i], at, square[i]);
            } else {
                for (int i = 0; i < here; ++i) store_as(type, rows[first + i], at, square[i]);
            }
        }
        for (; at < length; ++at)
            for (int i = 0; i < here; ++i)
                element_to(type, rows[first + i], at, from[at * kBlock + first + i] * factors[first + i]);
    }
}

// to[row][0..padded) = the elements of `rows` rows `step` bytes apart, zeros past `length`.
template <DataType type>
ALIBI_INLINE void widen_rows_of(
    float* to, int64_t padded, const char* from, int64_t step, int64_t rows, int64_t length
) {
    for (int64_t row = 0; row < rows; ++row) read_row(to + row * padded, type, from + row * step, length, padded, 1.0f);
}

static void widen_rows(
    float* to, int64_t padded, int64_t type, const char* from, int64_t step, int64_t rows, int64_t length
) {
    if (type == kBFloat16) return widen_rows_of<kBFloat16>(to, padded, from, step, rows, length);
    if (type == kFloat16) return widen_rows_of<kFloat16>(to, padded, from, step, rows, length);
    widen_rows_of<kFloat32>(to, padded, from, step, rows, length);
}

// Whether every element of `rows` rows is finite: x * 0 is NaN for what is not, and NaN stays in a sum.
ALIBI_INLINE bool all_finite(const float* at, int64_t stride, int64_t rows, int64_t length) {
    Floats sum = {};
    float rest = 0.0f;
    for (int64_t row = 0; row < rows; ++row) {
        const float* x = at + row * stride;
        int64_t i = 0;
        for (; i + kWidth <= length; i += kWidth) sum += load(x + i) * 0.0f;
        for (; i < length; ++i) rest += x[i] * 0.0f;
    }
    return sum_of(sum) + rest == 0.0f;
}

}  // namespace ALIBI_TARGET
}  // namespace alibi
