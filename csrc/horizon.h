// The certified horizon, tested on line: tiles are swept from a block's own position outwards, and the sweep stops
// where an upper bound on the mass of all tiles beyond is a negligible share of the mass already met. docs/maths.md,
// section 7.
//
// Everything is in bits (base 2 logarithms), with the row's constant scale * q . center taken out of scores on both
// sides.
#pragma once

#include "block.h"
#include "host.h"

namespace alibi {
namespace ALIBI_TARGET {

// Bounds are tabulated at this many query norms. They are convex in the norm, so a chord between two is a bound as
// well.
constexpr int kLevels = 16;
// Past the rounding of the norms, and, in bits, of everything else in the test.
constexpr float kNormInflation = 1.001f;
// Past squares that are flushed to zero.
constexpr float kNormFloor = 1e-17f;
constexpr float kRoundingBits = 0.03f;
// Stands for "never": finite, for an infinity would make a NaN of the next sum.
constexpr double kHuge = 1e30;
// A mass from here on is that, whatever distance would take from it; no row has so much room.
constexpr double kNever = 1e29;
constexpr double kPassPart = 0.5;
// Stands where a block has no row.
constexpr float kNoRow = 1e30f;
constexpr int kChunkTiles = 16;
constexpr int64_t kCenterSamples = 128;

struct Horizon {
    int64_t tiles;
    float* centers;    // (batch, kv head, element)
    float* radii;      // (batch, kv head, tile): largest |key - center|; inf where a key or value is not finite
    float* reach;      // (batch, kv head): |center| + the largest finite radius
    float* levels;     // (batch, head, 2): lowest norm, and the step between levels; scaled
    int64_t* visible;  // (batch, 2): first and end of the keys that some row sees
    float* left;   // (batch, head, tile, level): mass of the tiles up to this one, the sink left out, from its last key
    float* right;  // the same of the tiles from this one on, from its first key; null where one-sided
    float* sink;   // (batch, head, level): mass of the sink tile, from its last key
    int64_t* sink_tile;  // (batch)
};

ALIBI_INLINE int64_t horizon_bytes(const Call& call, Horizon* into, char* memory) {
    const int64_t tiles = tiles_of(call), pairs = call.batch * call.heads, kv = call.batch * call.kv_heads;
    int64_t used = 0;
    auto take = [&](int64_t bytes) {
        char* at = memory ? memory + used : nullptr;
        used += round_up(bytes, 64);
        return at;
    };
    Horizon h;
    h.tiles = tiles;
    h.centers = reinterpret_cast<float*>(take(kv * call.head_dim * 4));
    h.radii = reinterpret_cast<float*>(take(kv * tiles * 4));
    h.reach = reinterpret_cast<float*>(take(kv * 4));
    h.levels = reinterpret_cast<float*>(take(pairs * 8));
    h.visible = reinterpret_cast<int64_t*>(take(call.batch * 16));
    h.left = reinterpret_cast<float*>(take(pairs * tiles * kLevels * 4));
    h.right = call.two_sided ? reinterpret_cast<float*>(take(pairs * tiles * kLevels * 4)) : nullptr;
    h.sink = reinterpret_cast<float*>(take(pairs * kLevels * 4));
    h.sink_tile = reinterpret_cast<int64_t*>(take(call.batch * 8));
    if (into) *into = h;
    return used;
}

// Whether reading the keys once can repay itself.
ALIBI_INLINE bool horizon_is_worthwhile(const Call& call) {
    if (!(call.tolerance > 0.0) || call.k_len <= 4 * kTile || (call.q_len < 16 && !call.norms)) return false;
    for (int64_t b = 0; b < call.batch; ++b)
        for (int64_t h = 0; h < call.heads; ++h)
            if (slope_of(call, b, h) > 0.0f) return true;
    return false;
}

struct Products {
    float square, with_center;
};

// |x - about|^2 of a row, or x . x and x . center.
ALIBI_INLINE float square_distance(int64_t type, const char* row, const float* about, int64_t length) {
    Floats sum = {};
    float rest = 0.0f;
    int64_t at = 0;
    for (; at + kWidth <= length; at += kWidth) {
        const Floats x = load_as(type, row, at) - load(about + at);
        sum += x * x;
    }
    for (; at < length; ++at) {
        const float x = element_as(type, row, at) - about[at];
        rest += x * x;
    }
    return sum_of(sum) + rest;
}

ALIBI_INLINE Products products(int64_t type, const char* row, const float* center, int64_t length) {
    Floats square = {}, dot = {};
    Products rest = {0.0f, 0.0f};
    int64_t at = 0;
    for (; at + kWidth <= length; at += kWidth) {
        const Floats x = load_as(type, row, at);
        square += x * x;
        dot += x * load(center + at);
    }
    for (; at < length; ++at) {
        const float x = element_as(type, row, at);
        rest.square += x * x;
        rest.with_center += x * center[at];
    }
    return {sum_of(square) + rest.square, sum_of(dot) + rest.with_center};
}

ALIBI_INLINE float square_norm(int64_t type, const char* row, int64_t length) {
    Floats sum = {};
    float rest = 0.0f;
    int64_t at = 0;
    for (; at + kWidth <= length; at += kWidth) {
        const Floats x = load_as(type, row, at);
        sum += x * x;
    }
    for (; at < length; ++at) {
        const float x = element_as(type, row, at);
        rest += x * x;
    }
    return sum_of(sum) + rest;
}

ALIBI_INLINE float scaled_norm(const Call& call, float square) {
    return static_cast<float>(__builtin_fabs(call.scale)) * (__builtin_sqrtf(square) * kNormInflation + kNormFloor);
}

ALIBI_INLINE bool is_finite(float x) {
    return __builtin_fabsf(x) < kInfinity;
}

// The keys of a batch element that any row sees: padding never enters a bound.
static void find_visible(const Horizon& horizon, const Call& call, int64_t batch) {
    int64_t first = call.k_len, end = 0;
    if (!call.position) {
        first = 0;
        end = call.k_len;
    } else {
        for (int64_t row = 0; row < call.q_len; ++row) {
            const int64_t lower = largest(0, call.lower[batch * call.range_stride + row]);
            const int64_t upper = smallest(call.k_len, call.upper[batch * call.range_stride + row]);
            if (upper <= lower) continue;
            first = smallest(first, lower);
            end = largest(end, upper);
        }
    }
    horizon.visible[batch * 2] = smallest(first, end);
    horizon.visible[batch * 2 + 1] = end;
    horizon.sink_tile[batch] = call.sink ? smallest(first, end) / kTile : -1;
}

// Any fixed vector may serve as the center; the mean of a sample is near the best one and costs no pass of its own.
static void find_center(const Horizon& horizon, const Call& call, int64_t batch, int64_t kv_head) {
    const int64_t index = batch * call.kv_heads + kv_head;
    float* center = horizon.centers + index * call.head_dim;
    if (call.center) {
        __builtin_memcpy(center, call.center + index * call.head_dim, static_cast<size_t>(call.head_dim) * 4);
        return;
    }
    const int64_t first = horizon.visible[batch * 2], count = horizon.visible[batch * 2 + 1] - first;
    const int64_t samples = smallest(count, kCenterSamples);
    for (int64_t i = 0; i < call.head_dim; ++i) center[i] = 0.0f;
    float used = 0.0f;
    for (int64_t s = 0; s < samples; ++s) {
        const char* row = row_of(call.key, call.type, batch, kv_head, first + s * count / samples);
        float check = 0.0f;
        for (int64_t i = 0; i < call.head_dim; ++i) check += element_as(call.type, row, i) * 0.0f;
        if (check != 0.0f) continue;
        used += 1.0f;
        for (int64_t i = 0; i < call.head_dim; ++i) center[i] += element_as(call.type, row, i);
    }
    for (int64_t i = 0; i < call.head_dim; ++i) {
        center[i] = used > 0.0f ? center[i] / used : 0.0f;
        if (!is_finite(center[i])) center[i] = 0.0f;
    }
}

static void find_levels(const Horizon& horizon, const Call& call, int64_t batch, int64_t head) {
    float low = kInfinity, high = 0.0f;
    for (int64_t row = 0; row < call.q_len; ++row) {
        const char* query = row_of(call.query, call.type, batch, head, row);
        const float norm = scaled_norm(call, square_norm(call.type, query, call.head_dim));
        if (!is_finite(norm)) continue;
        low = norm < low ? norm : low;
        high = norm > high ? norm : high;
    }
    float* levels = horizon.levels + (batch * call.heads + head) * 2;
    levels[0] = low < high ? low : high;
    levels[1] = (high - levels[0]) / (kLevels - 1);
    // Equal norms need a step nevertheless, or a row's place among the levels would be 0 / 0.
    if (!(levels[1] > 1e-6f * high)) levels[1] = 1e-6f * high + 1e-30f;
}

// From the summary that came with the call; rounded up.
ALIBI_INLINE float kept_radius(const Call& call, int64_t batch, int64_t kv_head, int64_t tile) {
    const double radius = call.norms[batch * call.norms_batch_stride + kv_head * call.norms_head_stride + tile];
    return static_cast<float>(radius) * (1.0f + 1e-6f);
}

static void find_radii(const Horizon& horizon, const Call& call, int64_t batch, int64_t kv_head, int64_t tile) {
    const int64_t index = batch * call.kv_heads + kv_head;
    if (call.norms) {
        horizon.radii[index * horizon.tiles + tile] = kept_radius(call, batch, kv_head, tile);
        return;
    }
    const float* center = horizon.centers + index * call.head_dim;
    const int64_t first = largest(tile * kTile, horizon.visible[batch * 2]);
    const int64_t end = smallest((tile + 1) * kTile, horizon.visible[batch * 2 + 1]);
    float most = -kInfinity, rest = 0.0f;
    Floats zeros = {};
    bool finite = true;
    for (int64_t j = first; j < end; ++j) {
        const char* key = row_of(call.key, call.type, batch, kv_head, j);
        const float square = square_distance(call.type, key, center, call.head_dim);
        finite &= is_finite(square);
        most = square > most ? square : most;
        // A zero for what is finite, NaN for what is not, which stays in a sum.
        const char* value = row_of(call.value, call.type, batch, kv_head, j);
        int64_t at = 0;
        for (; at + kWidth <= call.value_dim; at += kWidth) zeros += load_as(call.type, value, at) * 0.0f;
        for (; at < call.value_dim; ++at) rest += element_as(call.type, value, at) * 0.0f;
    }
    finite &= sum_of(zeros) + rest == 0.0f;
    float* radius = horizon.radii + index * horizon.tiles + tile;
    *radius = first >= end ? -kInfinity : finite ? __builtin_sqrtf(most) * kNormInflation + kNormFloor : kInfinity;
}

static void find_reach(const Horizon& horizon, const Call& call, int64_t kv_index) {
    const float* center = horizon.centers + kv_index * call.head_dim;
    float square = 0.0f, most = 0.0f;
    for (int64_t i = 0; i < call.head_dim; ++i) square += center[i] * center[i];
    for (int64_t t = 0; t < horizon.tiles; ++t) {
        const float radius = horizon.radii[kv_index * horizon.tiles + t];
        if (is_finite(radius) && radius > most) most = radius;
    }
    horizon.reach[kv_index] = __builtin_sqrtf(square) + most;
}

// log2(2^a + 2^b)
ALIBI_INLINE double add_logs(double a, double b) {
    const double high = a > b ? a : b, low = a > b ? b : a;
    const float gap = static_cast<float>(low - high);
    return gap < -40.0f ? high + 1e-12 : high + __builtin_log2f(1.0f + __builtin_exp2f(gap));
}

ALIBI_INLINE double tile_mass(float radius, double norm, double series) {
    if (radius == -kInfinity) return -kHuge;
    const double mass = norm * radius * 1.4426950408889634 + series;
    return mass < kHuge ? mass : kHuge;
}

// A mass seen from so many bits farther away.
ALIBI_INLINE double from_afar(double mass, double bits) {
    return mass < kNever ? mass - bits : mass;
}

static void tabulate(const Horizon& horizon, const Call& call, int64_t batch, int64_t head) {
    const double slope = slope_of(call, batch, head);
    if (!(slope > 0.0)) return;
    const int64_t index = batch * call.heads + head;
    const int64_t kv_index = batch * call.kv_heads + head / (call.heads / call.kv_heads);
    const float* radii = horizon.radii + kv_index * horizon.tiles;
    const double fade = slope * 1.4426950408889634 * kTile;
    const double series = __builtin_log2(__builtin_expm1(-slope * kTile) / __builtin_expm1(-slope));
    const int64_t sink = horizon.sink_tile[batch];
    float* left = horizon.left + index * horizon.tiles * kLevels;
    float* right = horizon.right ? horizon.right + index * horizon.tiles * kLevels : nullptr;
    for (int level = 0; level < kLevels; ++level) {
        const double norm = horizon.levels[index * 2] + static_cast<double>(horizon.levels[index * 2 + 1]) * level;
        double mass = -kHuge;
        for (int64_t t = 0; t < horizon.tiles; ++t) {
            mass = from_afar(mass, fade);
            if (t != sink) mass = add_logs(tile_mass(radii[t], norm, series), mass);
            left[t * kLevels + level] = static_cast<float>(mass);
        }
        horizon.sink[index * kLevels + level] =
            sink >= 0 ? static_cast<float>(tile_mass(radii[sink], norm, series)) : static_cast<float>(-kHuge);
        if (!right) continue;
        mass = -kHuge;
        for (int64_t t = horizon.tiles - 1; t >= 0; --t) {
            mass = add_logs(tile_mass(radii[t], norm, series), from_afar(mass, fade));
            right[t * kLevels + level] = static_cast<float>(mass);
        }
    }
}

// One block's side of the test.
struct Sight {
    bool active;
    const float* left;
    const float* right;
    const float* sink;
    int64_t sink_tile;
    int suspect;  // the row that failed last: the likeliest to fail again, so that a failing test costs one row
    float
        share[kBlock];  // log2 of what may be dropped, less what the test itself may be off by, less scale * q . center
    int32_t level[kBlock];
    float part[kBlock];  // how far the row's norm lies between its level and the next
    // The second lever: computed tiles may be passed over as long as what they hold is a negligible share too.
    bool may_pass;
    const float* radii;  // by tile
    alignas(
        64
    ) float pass_share[kBlock];        // log2 of the share that may be passed over, less what the test may be off by
    alignas(64) float passed[kBlock];  // part of that share that is used up
    float pass_part;  // what a tile may use up of it at most: tiles beyond fade, and their parts too shall fit
};

// log2 of the share of mass that a row may lose on one side, whose keys are at most `farthest` away.
ALIBI_INLINE double budget_of(const Call& call, float slope, int64_t farthest) {
    const double budget = __builtin_log2(call.tolerance / (call.two_sided ? 2.0 : 1.0));
    if (!call.learned_slopes) return budget;
    // The gradient of a slope weighs a key by its distance.
    return budget - __builtin_log2(1.0 + slope * static_cast<double>(kLn2) * static_cast<double>(largest(0, farthest)));
}

ALIBI_INLINE float largest_scale(const Call& call) {
    const float scale = static_cast<float>(__builtin_fabs(call.scale)) * kLog2E;
    return scale > 1.0f ? scale : 1.0f;
}

static void look(Sight& sight, const Horizon* horizon, const Call& call, const Block& block) {
    sight.may_pass = false;
    sight.active = horizon && block.slope > 0.0f && block.end_key > block.first_key;
    sight.sink_tile = -1;
    if (!sight.active) return;
    const int64_t index = block.batch * call.heads + block.head;
    const int64_t kv_index = block.batch * call.kv_heads + block.kv_head;
    sight.left = horizon->left + index * horizon->tiles * kLevels;
    sight.right = horizon->right ? horizon->right + index * horizon->tiles * kLevels : nullptr;
    sight.sink = horizon->sink + index * kLevels;
    sight.sink_tile = horizon->sink_tile[block.batch];
    sight.suspect = 0;
    // One half of the tolerance for what is never computed, the other for computed tiles that are passed over.
    const int64_t farthest = largest(block.high_position - block.first_key, block.end_key - block.low_position);
    const double budget = budget_of(call, block.slope, farthest) - 1.0;
    const double pass_budget = budget + (call.two_sided ? 1.0 : 0.0);
    const float coarse = 2.4e-7f * block.slope * static_cast<float>(farthest);
    bool bounded = true;
    const float* center = horizon->centers + kv_index * call.head_dim;
    const float low = horizon->levels[index * 2], step = horizon->levels[index * 2 + 1];
    const float rounding = static_cast<float>(call.head_dim) * 1.2e-7f * kLog2E * horizon->reach[kv_index];
    for (int i = 0; i < block.rows; ++i) {
        const char* query = row_of(call.query, call.type, block.batch, block.head, block.first_row + i);
        const Products with = products(call.type, query, center, call.head_dim);
        const float norm = scaled_norm(call, with.square);
        sight.share[i] = static_cast<float>(budget) - kRoundingBits - rounding * norm -
                         static_cast<float>(call.scale) * with.with_center * kLog2E;
        sight.pass_share[i] = static_cast<float>(pass_budget) - kRoundingBits - rounding * norm - coarse;
        sight.passed[i] = 0.0f;
        // Neither a product nor any part of it overflows.
        bounded &= __builtin_sqrtf(with.square) * horizon->reach[kv_index] * largest_scale(call) < 1e37f;
        const float place = (norm - low) / step;
        const float level = place > 0.0f ? __builtin_floorf(place) : 0.0f;
        sight.level[i] = level < kLevels - 2 ? static_cast<int32_t>(level) : kLevels - 2;
        // NaN and infinity stay in it and fail every test.
        sight.part[i] = place - static_cast<float>(sight.level[i]);
    }
    for (int i = block.rows; i < kBlock; ++i) {
        sight.pass_share[i] = kNoRow;
        sight.passed[i] = 0.0f;
    }
    sight.may_pass = bounded;
    const double kept = __builtin_exp2(-static_cast<double>(block.slope) * kTile);
    sight.pass_part = static_cast<float>(kPassPart * (1.0 - kept));
    sight.radii = horizon->radii + kv_index * horizon->tiles;
}

// log2 of a positive sum from below: the mantissa as it stands is a chord of the logarithm.
ALIBI_INLINE float log2_below(float x) {
    return static_cast<float>(bits_of<int32_t>(x)) * 1.1920928955078125e-7f - 127.0f;
}

ALIBI_INLINE float chord(const float* table, const Sight& sight, int row) {
    const float* at = table + sight.level[row];
    return at[0] + sight.part[row] * (at[1] - at[0]);
}

// Whether a row may lose the tiles up to `tile` (side > 0: on its left) or from it on (side < 0).
ALIBI_INLINE bool row_may_stop(
    const Sight& sight, const Block& block, int row, int side, int64_t tile, bool with_sink, float peak, float sum
) {
    const int64_t edge = side > 0 ? (tile + 1) * kTile : tile * kTile;
    // Nothing that the row sees lies beyond.
    if (side > 0 ? block.lower[row] >= edge || block.upper[row] == 0 : block.upper[row] <= edge) return true;
    // A NaN, which a weight left in the sum, would read as a large finite logarithm.
    if (!(sum < kInfinity)) return false;
    const int64_t distance = side > 0 ? block.position[row] - (edge - 1) : edge - block.position[row];
    // What peak, room and mass are rounded by where positions are so far out that they are large themselves.
    const float coarse =
        2.4e-7f * (__builtin_fabsf(peak) + __builtin_fabsf(block.slope * static_cast<float>(distance)));
    const float room = peak + log2_below(sum) + sight.share[row] - coarse;
    if (!(__builtin_fabsf(room) < kNever)) return false;
    const float* table = side > 0 ? sight.left : sight.right;
    const float near = chord(table + tile * kLevels, sight, row);
    if (!(near < kNever)) return false;
    float mass = near - block.slope * static_cast<float>(distance);
    if (with_sink) {
        const int64_t away = block.position[row] - ((sight.sink_tile + 1) * kTile - 1);
        const float sink = chord(sight.sink, sight, row);
        if (!(sink < kNever)) return false;
        mass = static_cast<float>(add_logs(mass, sink - block.slope * static_cast<float>(away)));
    }
    return mass <= room;
}

static bool may_stop(
    Sight& sight, const Block& block, int side, int64_t tile, bool with_sink, const float* peak, const float* sum
) {
    if (!sight.active) return false;
    if (!row_may_stop(sight, block, sight.suspect, side, tile, with_sink, peak[sight.suspect], sum[sight.suspect]))
        return false;
    for (int row = 0; row < block.rows; ++row)
        if (!row_may_stop(sight, block, row, side, tile, with_sink, peak[row], sum[row])) {
            sight.suspect = row;
            return false;
        }
    return true;
}

// Whether a block may pass over a tile whose scores are at most `most`, and if so charges every row with it: keys of a
// tile times the largest weight, as a part of the share that may be lost. docs/maths.md, section 7.11.
static bool may_pass_over(
    Sight& sight, const Block& block, int64_t tile, const float* most, const float* peak, const float* sum
) {
    // What is not finite must show, and would not in a maximum.
    if (!is_finite(sight.radii[tile])) return false;
    alignas(64) float passed[kBlock];
    for (int lane = 0; lane < block.rows; lane += kWidth) {
        const Floats high = load(most + lane), top = load(peak + lane), mass = load(sum + lane);
        const Floats mass_bits = __builtin_convertvector(bits_of<Ints>(mass), Floats) * 1.1920928955078125e-7f - 127.0f;
        const Floats room = top + mass_bits + load(sight.pass_share + lane) - magnitude(top) * 2.4e-7f;
        // A lane without a row has nothing to lose.
        const Ints idle = load(sight.pass_share + lane) >= kNoRow;
        const Floats part = select((high == -kInfinity) | idle, Floats{}, exp2(high + 6.0f - room));
        const Floats used = load(sight.passed + lane) + part;
        store(passed + lane, used);
        const Ints good = idle | ((used <= 1.0f) & (part <= sight.pass_part) & (mass < kInfinity));
        if (!all_of(good)) return false;
    }
    for (int lane = 0; lane < block.rows; lane += kWidth) store(sight.passed + lane, load(passed + lane));
    return true;
}

}  // namespace ALIBI_TARGET
}  // namespace alibi
