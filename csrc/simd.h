// Vectors of floats in GCC's vector extensions: one source for every instruction set, intrinsics only where the
// compiler does not find the instruction. Everything lies in a namespace of the target: an inline function shared by
// two targets would be merged by the linker, and the machine would run whichever it kept.
#pragma once

#include <stdint.h>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#define ALIBI_INLINE static inline __attribute__((always_inline))

namespace alibi {
namespace ALIBI_TARGET {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
constexpr int kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kWidth = 4;
constexpr int kRegisters = 32;
#else
constexpr int kWidth = 4;
constexpr int kRegisters = 16;
#endif

typedef float Floats __attribute__((vector_size(kWidth * 4)));
typedef int32_t Ints __attribute__((vector_size(kWidth * 4)));
typedef uint32_t Words __attribute__((vector_size(kWidth * 4)));
typedef uint64_t Longs __attribute__((vector_size(kWidth * 4)));

// Whether bfloat16 pairs are multiplied as they stand: products of two are exact in float32.
#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

// Whether cores have a matrix unit that takes them so.
#if defined(__AMX_BF16__)
constexpr bool kHasMatrixUnit = true;
#else
constexpr bool kHasMatrixUnit = false;
#endif

constexpr float kInfinity = __builtin_huge_valf();

template <class To, class From>
ALIBI_INLINE To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From), "same bits");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

// Not `Floats{} + x`: -0 + 0 is 0, so compilers add before they spread, once for every scalar of a product.
ALIBI_INLINE Floats splat(float x) {
#if defined(__AVX512F__)
    return _mm512_set1_ps(x);
#elif defined(__AVX2__)
    return _mm256_set1_ps(x);
#else
    return Floats{x, x, x, x};
#endif
}
ALIBI_INLINE Ints splat_int(int32_t x) {
    return Ints{} + x;
}

ALIBI_INLINE Floats load(const float* from) {
    Floats x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}

ALIBI_INLINE void store(float* to, Floats x) {
    __builtin_memcpy(to, &x, sizeof x);
}

ALIBI_INLINE Ints load_ints(const int32_t* from) {
    Ints x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}

ALIBI_INLINE Floats select(Ints mask, Floats yes, Floats no) {
    return mask ? yes : no;
}

// Where either operand is NaN both return the second.
ALIBI_INLINE Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
    return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_max_ps(a, b);
#elif defined(__SSE2__)
    return _mm_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}

ALIBI_INLINE Floats smaller(Floats a, Floats b) {
#if defined(__AVX512F__)
    return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_min_ps(a, b);
#elif defined(__SSE2__)
    return _mm_min_ps(a, b);
#else
    return a < b ? a : b;
#endif
}

// Lanes of two vectors: from[lane] counts through a, then b. Constant wherever it is called, so one instruction.
ALIBI_INLINE Floats pick(Floats a, Floats b, Ints from) {
#if defined(__clang__) && defined(__AVX512F__)
    return _mm512_permutex2var_ps(a, (__m512i)from, b);
#elif defined(__clang__)
    Floats x;
#pragma clang loop unroll(full)
    for (int lane = 0; lane < kWidth; ++lane) x[lane] = from[lane] < kWidth ? a[from[lane]] : b[from[lane] - kWidth];
    return x;
#else
    return __builtin_shuffle(a, b, from);
#endif
}

// x where the mask is set, 0 elsewhere.
ALIBI_INLINE Floats only(Ints mask, Floats x) {
    return bits_of<Floats>(bits_of<Ints>(x) & mask);
}

ALIBI_INLINE Ints lanes_before(int count) {
    Ints lanes;
    for (int lane = 0; lane < kWidth; ++lane) lanes[lane] = lane < count ? -1 : 0;
    return lanes;
}

ALIBI_INLINE Floats magnitude(Floats x) {
    return bits_of<Floats>(bits_of<Ints>(x) & 0x7fffffff);
}

constexpr int log2_of(int n) {
    return n > 1 ? 1 + log2_of(n / 2) : 0;
}
constexpr int kHalvings = log2_of(kWidth);

// For each halving of a sum, the lanes that stand `reach` further on: a table, because compilers put vectors that are
// computed lane by lane together again at every use.
struct Turns {
    alignas(64) int32_t lanes[4][kWidth];
};

constexpr Turns make_turns() {
    Turns to = {};
    for (int round = 0; round < kHalvings; ++round)
        for (int lane = 0; lane < kWidth; ++lane) to.lanes[round][lane] = (lane + (kWidth >> (round + 1))) % kWidth;
    return to;
}

static constexpr Turns kTurns = make_turns();

ALIBI_INLINE float sum_of(Floats x) {
    // By halves: as deep as the logarithm of the width, where lane after lane would be one long chain.
#pragma GCC unroll 4
    for (int round = 0; round < kHalvings; ++round) x += pick(x, x, load_ints(kTurns.lanes[round]));
    return x[0];
}

ALIBI_INLINE bool all_of(Ints mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)mask) == 0xffff;
#elif defined(__AVX2__)
    return _mm256_movemask_ps((__m256)mask) == 0xff;
#else
    int32_t all = -1;
    for (int lane = 0; lane < kWidth; ++lane) all &= mask[lane];
    return all != 0;
#endif
}

// 2^x within 1 ulp; 0 below 2^-126, inf from 2^128, NaN for NaN, and exactly 1 for 0.
ALIBI_INLINE Floats exp2(Floats x) {
#if defined(__AVX512F__)
    // What is left of an infinity is 0, and an infinite power of 2 is inf or 0: nothing to be bounded.
    const Floats f = _mm512_reduce_ps(x, 8);
    const Floats whole = x - f;
#else
    // The bounds stand first so that a NaN passes through both.
    x = smaller(splat(128.0f), larger(splat(-127.0f), x));
    // Adding 1.5 * 2^23 leaves the integer in the low bits of the sum.
    const Floats shifted = x + 12582912.0f;
    const Floats f = x - (shifted - 12582912.0f);
#endif
    // Minimax on [-1/2, 1/2] with the constant fixed at 1: relative error 2^-28.9.
    Floats y = f * 1.53533620e-4f + 1.33988739e-3f;
    y = y * f + 9.61843692e-3f;
    y = y * f + 5.55033237e-2f;
    y = y * f + 2.40226477e-1f;
    y = y * f + 6.93147182e-1f;
    y = y * f + 1.0f;
#if defined(__AVX512F__)
    return _mm512_scalef_ps(y, whole);
#else
    // 2^whole: 0 at -127 and inf at 128, as multiplying needs them.
    return y * bits_of<Floats>((bits_of<Words>(shifted) << 23) + 0x3f800000u);
#endif
}

// log2(x), x positive and normal, as a whole number and what is left, within 1/2 of 0 and good to 2^-24: their sum in
// float32 would be as coarse as the whole number is large. Both 0 for 1; infinities and NaN come out in the rest.
ALIBI_INLINE Floats log2_apart(Floats x, Floats* whole) {
    const Ints bits = bits_of<Ints>(x);
    // Counted from sqrt(1/2), so that what remains of x lies around 1.
    const Ints power = (bits - 0x3f3504f3) >> 23;
    const Floats f = bits_of<Floats>(bits - (power << 23)) - 1.0f;
    // Minimax on [sqrt(1/2) - 1, sqrt(2) - 1] of log2(1 + f) / f - 1, weighed by f: absolute error 2^-27 of the
    // product. The 1 is left for last, where it adds f unrounded.
    Floats y = f * 1.25496104e-1f - 2.09954023e-1f;
    y = y * f + 2.17157960e-1f;
    y = y * f - 2.38570526e-1f;
    y = y * f + 2.87694812e-1f;
    y = y * f - 3.60719055e-1f;
    y = y * f + 4.80920434e-1f;
    y = y * f - 7.21347153e-1f;
    y = y * f + 4.42694902e-1f;
    y = y * f + f;
    *whole = __builtin_convertvector(power, Floats);
    return select(magnitude(x) < kInfinity, y, x);
}

// sum + the products of both halves of each lane, taken as bfloat16.
ALIBI_INLINE Floats add_pairs(Floats sum, Words a, Words b) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(sum, bits_of<__m512bh>(a), bits_of<__m512bh>(b));
#else
    sum += bits_of<Floats>(a << 16) * bits_of<Floats>(b << 16);
    return sum + bits_of<Floats>(a & 0xffff0000u) * bits_of<Floats>(b & 0xffff0000u);
#endif
}

// High and low halves of 32 x 32 bit products with a constant.
ALIBI_INLINE void multiply_words(Words x, uint32_t by, Words* high, Words* low) {
#if defined(__AVX512F__)
    const __m512i factor = _mm512_set1_epi32(static_cast<int>(by));
    const Longs even = (Longs)_mm512_mul_epu32((__m512i)x, factor);
    const Longs odd = (Longs)_mm512_mul_epu32((__m512i)((Longs)x >> 32), factor);
#elif defined(__AVX2__)
    const __m256i factor = _mm256_set1_epi32(static_cast<int>(by));
    const Longs even = (Longs)_mm256_mul_epu32((__m256i)x, factor);
    const Longs odd = (Longs)_mm256_mul_epu32((__m256i)((Longs)x >> 32), factor);
#else
    const Longs even = ((Longs)x & 0xffffffffull) * static_cast<uint64_t>(by);
    const Longs odd = ((Longs)x >> 32) * static_cast<uint64_t>(by);
#endif
    *low = (Words)((even & 0xffffffffull) | (odd << 32));
    *high = (Words)((even >> 32) | (odd & 0xffffffff00000000ull));
}

// Philox4x32-10 (Salmon et al., SC 2011), one counter a lane: the generator of dropout.py, bit for bit.
ALIBI_INLINE void philox(Words (&c)[4], uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; ++round) {
        Words high0, low0, high1, low1;
        multiply_words(c[0], 0xD2511F53u, &high0, &low0);
        multiply_words(c[2], 0xCD9E8D57u, &high1, &low1);
        c[0] = high1 ^ c[1] ^ key0;
        c[1] = low1;
        c[2] = high0 ^ c[3] ^ key1;
        c[3] = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

// 16-bit formats. Scalars are the fallback and the tails.

ALIBI_INLINE float from_bfloat16(uint16_t x) {
    return bits_of<float>(static_cast<uint32_t>(x) << 16);
}

ALIBI_INLINE uint16_t to_bfloat16(float x) {
    const uint32_t bits = bits_of<uint32_t>(x);
    if (x != x) return static_cast<uint16_t>((bits >> 16) | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

ALIBI_INLINE float from_float16(uint16_t x) {
    const uint32_t sign = static_cast<uint32_t>(x & 0x8000) << 16;
    const uint32_t body = x & 0x7fff;
    if (body >= 0x7c00) return bits_of<float>(sign | 0x7f800000 | (body & 0x3ff) << 13);
    // Below the normal range the value is body * 2^-24, and an int converts exactly, flushed or not.
    if (body < 0x400)
        return bits_of<float>(sign | bits_of<uint32_t>(static_cast<float>(body) * 5.9604644775390625e-8f));
    return bits_of<float>(sign | ((body << 13) + 0x38000000));
}

ALIBI_INLINE uint16_t to_float16(float x) {
    const uint32_t bits = bits_of<uint32_t>(x);
    const uint32_t sign = (bits >> 16) & 0x8000;
    const uint32_t body = bits & 0x7fffffff;
    if (body > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
    if (body >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
    if (body < 0x38800000) {
        // Adding 1/2 rounds to a multiple of 2^-24, the spacing below the normal range.
        const float rounded = bits_of<float>(body) + 0.5f;
        return static_cast<uint16_t>(sign | (bits_of<uint32_t>(rounded) - 0x3f000000));
    }
    return static_cast<uint16_t>(sign | ((body - 0x38000000 + 0xfff + ((body >> 13) & 1)) >> 13));
}

typedef uint16_t Halves __attribute__((vector_size(kWidth * 2)));

// kWidth elements from index `at` of a row of the call's type.
ALIBI_INLINE Floats load_bfloat16(const uint16_t* from) {
    Halves x;
    __builtin_memcpy(&x, from, sizeof x);
    return bits_of<Floats>(__builtin_convertvector(x, Words) << 16);
}

ALIBI_INLINE Floats load_float16(const uint16_t* from) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    Floats x;
    for (int lane = 0; lane < kWidth; ++lane) x[lane] = from_float16(from[lane]);
    return x;
#endif
}

// Rounded to nearest, in the lower half of each word.
ALIBI_INLINE Words bfloat16_bits(Floats x) {
    const Words bits = bits_of<Words>(x);
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Words quiet = (bits >> 16) | 0x40;
    return x == x ? rounded : quiet;
}

ALIBI_INLINE void store_bfloat16(uint16_t* to, Floats x) {
    const Halves packed = __builtin_convertvector(bfloat16_bits(x), Halves);
    __builtin_memcpy(to, &packed, sizeof packed);
}

ALIBI_INLINE void store_float16(uint16_t* to, Floats x) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
    );
#elif defined(__AVX2__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    for (int lane = 0; lane < kWidth; ++lane) to[lane] = to_float16(x[lane]);
#endif
}

}  // namespace ALIBI_TARGET
}  // namespace alibi
