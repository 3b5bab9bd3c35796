// A block of queries: where its rows stand, what they see, and the keys and values of its head.
#pragma once

#include "matrix.h"

namespace alibi {
namespace ALIBI_TARGET {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLargest = 3.40282347e38f;
constexpr float kLn2 = 0.69314718055994531f;

// Without, scores are products alone, whatever the slopes: what the bias costs is the difference to that build.
#ifdef ALIBI_WITHOUT_BIAS
constexpr bool kBias = false;
#else
constexpr bool kBias = true;
#endif

struct Block {
    int64_t batch, head, kv_head, number, first_row;
    int rows;
    float slope;   // in bits: times log2(e)
    float factor;  // what a product of query and key has yet to be multiplied by to be in bits
    int64_t base;  // position of the first row
    int64_t low_position, high_position;
    int64_t first_key, end_key;        // what some row sees
    int64_t common_first, common_end;  // what every row sees
    int64_t position[kBlock], lower[kBlock], upper[kBlock];
    alignas(64) float stand[kBlock];   // position - base: small within a group, so exact
    alignas(64) float slopes[kBlock];  // of each row: `slope` throughout where the rows are of one head
};

// Rows that blocks do not mix with others.
struct Group {
    int64_t first_row, end_row, first_block;

    int64_t rows() const { return end_row - first_row; }
};

ALIBI_INLINE int64_t groups_of(const Call& call) {
    return call.group_rows ? call.groups : 1;
}
ALIBI_INLINE Group group_at(const Call& call, int64_t number) {
    if (!call.group_rows) return {0, call.q_len, 0};
    return {call.group_rows[number], call.group_rows[number + 1], call.group_blocks[number]};
}
// The group of a block.
ALIBI_INLINE Group group_with(const Call& call, int64_t block) {
    int64_t low = 0, high = groups_of(call);
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (group_at(call, middle).first_block <= block ? low : high) = middle;
    }
    return group_at(call, low);
}
ALIBI_INLINE int64_t most_rows(const Call& call) {
    int64_t most = 0;
    for (int64_t g = 0; g < groups_of(call); ++g) most = largest(most, group_at(call, g).rows());
    return most;
}

ALIBI_INLINE int64_t blocks_in(int64_t rows) {
    return (rows + kBlock - 1) / kBlock;
}
ALIBI_INLINE int64_t blocks_of(const Call& call) {
    const Group last = group_at(call, groups_of(call) - 1);
    return last.first_block + blocks_in(last.rows());
}
ALIBI_INLINE int64_t tiles_of(const Call& call) {
    return (call.k_len + kTile - 1) / kTile;
}

ALIBI_INLINE float slope_of(const Call& call, int64_t batch, int64_t head) {
    return call.slopes[batch * call.slope_batch_stride + head * call.slope_head_stride];
}

// The same in bits, where it may pass the largest float.
ALIBI_INLINE float slope_in_bits(const Call& call, int64_t batch, int64_t head) {
    const float slope = slope_of(call, batch, head) * kLog2E;
    return slope > kLargest ? kLargest : slope < -kLargest ? -kLargest : slope;
}

// Whether products of the call's rows are taken in pairs, from the rows as they are.
ALIBI_INLINE bool takes_pairs(const Call& call) {
    return kHasPairs && call.type == kBFloat16 && call.head_dim % 2 == 0 && call.value_dim % 2 == 0;
}

// Whether they are taken by the matrix unit.
ALIBI_INLINE bool takes_matrix_unit(const Call& call) {
    return kHasMatrixUnit && takes_pairs(call);
}

// What a row of a call sees, and where it stands.
struct Place {
    int64_t position, lower, upper;
};

ALIBI_INLINE Place place_of(const Call& call, int64_t batch, int64_t row) {
    Place at = {row + call.offset, 0, call.k_len};
    if (call.position) {
        const int64_t index = batch * call.range_stride + row;
        at = {call.position[index], largest(0, call.lower[index]), smallest(call.k_len, call.upper[index])};
    } else {
        if (call.window_left >= 0) at.lower = largest(0, at.position - call.window_left);
        if (call.window_right >= 0) at.upper = smallest(call.k_len, at.position + call.window_right + 1);
    }
    if (at.upper <= at.lower) at.lower = at.upper = 0;
    return at;
}

// What follows from the places of a block's rows.
static void survey(Block& block) {
    block.first_key = block.common_end = INT64_MAX;
    block.end_key = block.common_first = 0;
    block.low_position = INT64_MAX;
    block.high_position = INT64_MIN;
    block.base = block.position[0];
    for (int i = 0; i < block.rows; ++i) {
        const int64_t position = block.position[i], lower = block.lower[i], upper = block.upper[i];
        block.stand[i] = static_cast<float>(position - block.base);
        block.low_position = smallest(block.low_position, position);
        block.high_position = largest(block.high_position, position);
        if (upper > lower) {
            block.first_key = smallest(block.first_key, lower);
            block.end_key = largest(block.end_key, upper);
        }
        // A row that sees nothing leaves no key common to all.
        block.common_first = largest(block.common_first, lower);
        block.common_end = smallest(block.common_end, upper);
    }
    if (block.end_key == 0) block.first_key = 0;
    for (int i = block.rows; i < kBlock; ++i) {
        block.position[i] = block.base;
        block.lower[i] = block.upper[i] = 0;
        block.stand[i] = 0.0f;
        block.slopes[i] = 0.0f;
    }
}

static void locate(Block& block, const Call& call, int64_t batch, int64_t head, int64_t number) {
    block.batch = batch;
    block.head = head;
    block.kv_head = head / (call.heads / call.kv_heads);
    const Group group = group_with(call, number);
    block.number = number;
    block.first_row = group.first_row + (number - group.first_block) * kBlock;
    block.rows = static_cast<int>(smallest(kBlock, group.end_row - block.first_row));
    block.slope = slope_in_bits(call, batch, head);
    block.factor = static_cast<float>(call.scale * 1.4426950408889634);
    for (int i = 0; i < block.rows; ++i) {
        const Place at = place_of(call, batch, block.first_row + i);
        block.position[i] = at.position;
        block.lower[i] = at.lower;
        block.upper[i] = at.upper;
        block.slopes[i] = block.slope;
    }
    survey(block);
}

// Some consecutive keys, as a block meets them.
struct Tile {
    int64_t first_key;
    int keys;
    bool masked;       // whether some row does not see some key
    float shift;       // base - first key
    const float* key;  // once brought; null where only the rows as they are have been asked for
    int64_t key_stride;
    const float* value;
    int64_t value_stride;
    const char* raw_key;  // in the call's own type
    const char* raw_value;
    const char* next_key;  // the tile that is likely to follow, to be fetched meanwhile; null where none is
    const char* next_value;
    alignas(64) int32_t lower[kBlock];  // what each row sees, counted from first_key; only where masked
    alignas(64) int32_t upper[kBlock];
};

ALIBI_INLINE int32_t within_tile(int64_t key, int64_t first) {
    return static_cast<int32_t>(key <= first ? 0 : key >= first + kTile ? kTile : key - first);
}

// Keys and values of one key head. What is not float is widened tile by tile into the stages, which stay in the nearest
// cache; where products are taken in pairs one of the two is never needed so, and its stage is null. A matrix unit
// needs the other only where what it holds is not finite.
struct KeyHead {
    const char* key;
    const char* value;
    int64_t key_step, value_step;  // bytes
    int64_t key_bytes, value_bytes;
    float* key_stage;  // kTile rows of padded elements
    float* value_stage;
};

ALIBI_INLINE KeyHead key_head(const Call& call, int64_t batch, int64_t kv_head, float* key_stage, float* value_stage) {
    const int64_t size = element_size(call.type);
    return {
        row_of(call.key, call.type, batch, kv_head, 0),
        row_of(call.value, call.type, batch, kv_head, 0),
        call.key.row_stride * size,
        call.value.row_stride * size,
        call.head_dim * size,
        call.value_dim * size,
        key_stage,
        value_stage
    };
}

static void enter_tile(
    Tile& tile, const Call& call, const Block& block, const KeyHead& head, int64_t number, int64_t next
) {
    const int64_t start = number * kTile;
    // Keys that no row sees at the two ends of what the block sees are left out of the products. A plan that backward
    // is given may name a tile past them: it has no keys.
    tile.first_key = start;
    tile.keys = static_cast<int>(largest(0, smallest(smallest(start + kTile, block.end_key), call.k_len) - start));
    tile.shift = static_cast<float>(block.base - start);
    tile.masked = start < block.common_first || start + tile.keys > block.common_end;
    tile.raw_key = head.key + start * head.key_step;
    tile.raw_value = head.value + start * head.value_step;
    tile.next_key = tile.next_value = nullptr;
    // Sweeps run against the direction that hardware follows.
    if (next >= 0 && (next + 1) * kTile <= call.k_len) {
        tile.next_key = head.key + next * kTile * head.key_step;
        tile.next_value = head.value + next * kTile * head.value_step;
    }
    if (call.type == kFloat32) {
        tile.key = reinterpret_cast<const float*>(tile.raw_key);
        tile.value = reinterpret_cast<const float*>(tile.raw_value);
        tile.key_stride = call.key.row_stride;
        tile.value_stride = call.value.row_stride;
    } else {
        tile.key = head.key_stage;
        tile.value = head.value_stage;
        tile.key_stride = round_up(call.head_dim, kWidth);
        tile.value_stride = round_up(call.value_dim, kWidth);
    }
    if (tile.masked) {
        for (int i = 0; i < kBlock; ++i) {
            tile.lower[i] = within_tile(block.lower[i], start);
            tile.upper[i] = within_tile(block.upper[i], start);
        }
    }
}

// Widened rows, where there is a stage for them.
ALIBI_INLINE void bring_keys(const Tile& tile, const Call& call, const KeyHead& head) {
    if (head.key_stage)
        widen_rows(head.key_stage, tile.key_stride, call.type, tile.raw_key, head.key_step, tile.keys, call.head_dim);
}

ALIBI_INLINE void bring_values(const Tile& tile, const Call& call, const KeyHead& head) {
    if (head.value_stage)
        widen_rows(
            head.value_stage, tile.value_stride, call.type, tile.raw_value, head.value_step, tile.keys, call.value_dim
        );
}

// Fetches what row `row` of this tile is in the next one, while this one is computed.
ALIBI_INLINE void fetch_next(const Tile& tile, const KeyHead& head, int row) {
    if (!tile.next_key) return;
    for (int64_t e = 0; e < head.key_bytes; e += 64) __builtin_prefetch(tile.next_key + row * head.key_step + e, 0, 2);
    for (int64_t e = 0; e < head.value_bytes; e += 64)
        __builtin_prefetch(tile.next_value + row * head.value_step + e, 0, 2);
}

ALIBI_INLINE bool sees(const Tile& tile, int row, int key) {
    return !tile.masked || (tile.lower[row] <= key && key < tile.upper[row]);
}

// Multiplies by 0 the probabilities that dropout drops: one that is not finite stays so, and with it its row. Four
// neighbouring keys share a counter, and tiles start at multiples of 4.
static void drop(float* weights, const Call& call, const Block& block, const Tile& tile, uint64_t threshold) {
    const uint64_t seed = static_cast<uint64_t>(*call.seed);
    const uint32_t stream = static_cast<uint32_t>(block.batch * call.heads + block.head);
    Words ramp;
    for (int lane = 0; lane < kWidth; ++lane) ramp[lane] = static_cast<uint32_t>(lane);
    for (int lane = 0; lane < block.rows; lane += kWidth) {
        const Words row = ramp + static_cast<uint32_t>(block.first_row + lane);
        for (int key = 0; key < tile.keys; key += 4) {
            Words words[4] = {
                Words{} + static_cast<uint32_t>((tile.first_key + key) / 4), row, Words{} + stream, Words{}
            };
            philox(words, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
            for (int i = 0; i < 4 && key + i < tile.keys; ++i) {
                float* at = weights + (key + i) * kBlock + lane;
                // A threshold of 2^32, from a probability next to 1, drops every score.
                const Ints kept = threshold >> 32 ? Ints{} : words[i] >= static_cast<uint32_t>(threshold);
                const Floats weight = load(at);
                store(at, select(kept, weight, weight * 0.0f));
            }
        }
    }
}

ALIBI_INLINE uint64_t drop_threshold(double p) {
    return static_cast<uint64_t>(__builtin_rint(p * 4294967296.0));
}
ALIBI_INLINE float drop_scale(double p) {
    return p > 0.0 ? 1.0f / static_cast<float>(1.0 - p) : 1.0f;
}

}  // namespace ALIBI_TARGET
}  // namespace alibi
