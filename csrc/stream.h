// A handful of rows against a piece of the keys: vectors run along the head dimension, and what takes time is to read
// keys and values.
#pragma once

#include "forward.h"

namespace alibi {
namespace ALIBI_TARGET {

// Rows that a call streams at most, whatever it is: what buffers have room for.
constexpr int64_t kStreamRows = 8;

// Rows up to which this is faster than rows in lanes, most of which would be empty: lanes cost the same for every row
// of a vector, and here each row costs what the first does beyond reading, so the more where its keys must be widened.
ALIBI_INLINE int64_t most_streamed(const Call& call) {
#if !defined(__AVX2__) && !defined(__aarch64__)
    // Half precision is widened in so many words.
    if (call.type == kFloat16) return 1;
#endif
    if (takes_matrix_unit(call) || (kWidth == 4 && call.type == kBFloat16)) return 2;
    // Heads that share keys see differently far, and with a summary each row streams what it has to read itself, where
    // lanes read for all what one of them needs.
    if (call.norms && call.heads > call.kv_heads) return kStreamRows;
    return call.type == kBFloat16 ? 3 : 5;
}

ALIBI_INLINE bool streams_rows(const Call& call) {
    return most_rows(call) * (call.heads / call.kv_heads) <= most_streamed(call) && call.head_dim >= kWidth &&
           call.value_dim >= kWidth && !(call.dropout > 0.0);
}

// One query of one head.
struct Line {
    int64_t batch, head, row, position, lower, upper;
    int64_t first_tile;  // tiles before it hold too little to matter, but for the one apart
    int64_t apart;       // or -1
    float slope;         // in bits
    const char* query;
};

// Rows that are worked on together: lines of one key head.
struct Unit {
    int64_t batch, kv_head, first_line;
    int lines;
    int64_t low, high;  // tiles that some row sees
    int64_t near;       // from this tile on keys are read first
    int64_t near_piece, near_end, far_piece, far_end;
};

// Some tiles for a unit; or one tile, for the rows that keep it apart.
struct Piece {
    int64_t unit, first, end;
    bool apart;
};

// Before a slot's sums of values: by row, the maximum and the sum of weights.
constexpr int64_t kHeader = 2 * kBlock;

struct Pieces {
    Piece* list;
    int64_t count;
    float* slots;
    int64_t slot_floats;
    char* memory;
    float* slot(int64_t piece) const { return slots + piece * slot_floats; }
};

// A row is met as whole vectors; where the dimension is no multiple of one, the last begins before the end of the one
// before it, and its lanes that repeat are blanked.
struct Cover {
    int64_t whole;  // vectors that repeat nothing
    int64_t tail;   // where the last begins, or -1
    Ints fresh;     // its lanes that repeat nothing
};

ALIBI_INLINE Cover cover(int64_t length) {
    Cover to = {length / kWidth, length % kWidth ? length - kWidth : -1, Ints{}};
    for (int lane = 0; lane < kWidth; ++lane) to.fresh[lane] = to.tail + lane >= to.whole * kWidth ? -1 : 0;
    return to;
}

// A query in the vectors of its cover, times scale * log2(e).
static void read_streamed(float* to, const Call& call, const char* row) {
    const Cover at = cover(call.head_dim);
    const float factor = static_cast<float>(call.scale * 1.4426950408889634);
    for (int64_t v = 0; v < at.whole; ++v) store(to + v * kWidth, load_as(call.type, row, v * kWidth) * factor);
    if (at.tail >= 0) store(to + at.whole * kWidth, only(at.fresh, load_as(call.type, row, at.tail)) * factor);
}

static void write_streamed(char* row, int64_t type, const float* from, int64_t length, float factor) {
    const Cover at = cover(length);
    // The tail first: what it repeats is written again.
    if (at.tail >= 0) store_as(type, row, at.tail, load(from + at.whole * kWidth) * factor);
    for (int64_t v = 0; v < at.whole; ++v) store_as(type, row, v * kWidth, load(from + v * kWidth) * factor);
}

// Scores of up to a vector of keys. Their partial sums are turned into one vector together, which costs a fifth of
// adding up each across its lanes.
template <DataType type>
ALIBI_INLINE Floats stream_scores(const Cover& at, const float* query, const char* keys, int64_t step, int count) {
    Floats parts[kWidth];
    for (int i = 0; i < kWidth; ++i) {
        const char* key = keys + (i < count ? i : count - 1) * step;
        Floats one = {}, two = {};
        int64_t v = 0;
        for (; v + 2 <= at.whole; v += 2) {
            one += load_as(type, key, v * kWidth) * load(query + v * kWidth);
            two += load_as(type, key, (v + 1) * kWidth) * load(query + (v + 1) * kWidth);
        }
        if (v < at.whole) one += load_as(type, key, v * kWidth) * load(query + v * kWidth);
        if (at.tail >= 0) two += only(at.fresh, load_as(type, key, at.tail)) * load(query + at.whole * kWidth);
        parts[i] = one + two;
    }
    transpose(parts);
    Floats dot = {};
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) dot += parts[i];
    return dot;
}

// The score of each key in bits, the first standing `away` before the row.
ALIBI_INLINE Floats with_bias(Floats dot, float away, float slope) {
    Floats distance;
    for (int i = 0; i < kWidth; ++i) distance[i] = away - static_cast<float>(i);
    return kBias ? dot - magnitude(distance) * slope : dot;
}

// Scores of a tile for the few rows of a block, the very numbers that forward had of them: added up in another order
// they would differ from its lse by more than all that follows rounds.
template <DataType type>
static void stream_tile_of(
    float* weights, const float* query, const Call& call, const Block& block, const Tile& tile, const KeyHead& head
) {
    const Cover at = cover(call.head_dim);
    const int64_t query_stride = round_up(call.head_dim, kWidth);
    const int lanes = static_cast<int>(round_up(block.rows, kWidth));
    for (int key = 0; key < tile.keys; ++key)
        for (int row = block.rows; row < lanes; ++row) weights[key * kBlock + row] = 0.0f;
    for (int row = 0; row < block.rows; ++row)
        for (int j = 0; j < tile.keys; j += kWidth) {
            const int here = static_cast<int>(smallest(kWidth, tile.keys - j));
            const Floats dot = stream_scores<type>(
                at, query + row * query_stride, tile.raw_key + j * head.key_step, head.key_step, here
            );
            const Floats score =
                with_bias(dot, block.stand[row] + tile.shift - static_cast<float>(j), block.slopes[row]);
            for (int i = 0; i < here; ++i) weights[(j + i) * kBlock + row] = score[i];
        }
}

static void stream_tile(
    float* weights, const float* query, const Call& call, const Block& block, const Tile& tile, const KeyHead& head
) {
    if (call.type == kFloat32) return stream_tile_of<kFloat32>(weights, query, call, block, tile, head);
    if (call.type == kBFloat16) return stream_tile_of<kBFloat16>(weights, query, call, block, tile, head);
    stream_tile_of<kFloat16>(weights, query, call, block, tile, head);
}

// out = out * fade + weights @ values
template <DataType type, int V>
ALIBI_INLINE void stream_values(
    float* out, float fade, const float* weights, const char* values, int64_t step, int count, int64_t first
) {
    Floats total[V] = {};
    for (int j = 0; j < count; ++j, values += step) {
        // Not splat(): a load that spreads a weight took 5 to 8% longer here (AVX-512), presumably waiting for the
        // store of the whole vector just before, and the scalar that an addition loads does not.
        const Floats weight = Floats{} + weights[j];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) total[v] += weight * load_as(type, values, first + v * kWidth);
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(out + v * kWidth, load(out + v * kWidth) * fade + total[v]);
}

template <DataType type>
static void stream_piece_of(
    const Call& call, const Unit& unit, const Line* lines, const float* query, const Piece& piece, float* slot
) {
    const Cover keys_at = cover(call.head_dim), values_at = cover(call.value_dim);
    const int64_t key_step = call.key.row_stride * element_size(type),
                  value_step = call.value.row_stride * element_size(type);
    const int64_t query_stride = round_up(call.head_dim, kWidth), out_stride = round_up(call.value_dim, kWidth);
    float* peaks = slot;
    float* sums = slot + kBlock;
    for (int i = 0; i < kBlock; ++i) {
        peaks[i] = -kInfinity;
        sums[i] = 0.0f;
    }
    __builtin_memset(slot + kHeader, 0, static_cast<size_t>(unit.lines * out_stride) * 4);
    alignas(64) float weights[kTile];
    for (int64_t tile = piece.first; tile < piece.end; ++tile)
        for (int r = 0; r < unit.lines; ++r) {
            const Line& line = lines[unit.first_line + r];
            if (piece.apart ? tile != line.apart : tile < line.first_tile) continue;
            const int64_t first = largest(tile * kTile, line.lower),
                          end = smallest(smallest((tile + 1) * kTile, call.k_len), line.upper);
            if (first >= end) continue;
            const int count = static_cast<int>(end - first);
            const char* keys = row_of(call.key, type, unit.batch, unit.kv_head, first);
            Floats high = splat(-kInfinity);
            for (int j = 0; j < count; j += kWidth) {
                const int here = static_cast<int>(smallest(kWidth, count - j));
                const Floats dot = stream_scores<type>(
                    keys_at, query + (unit.first_line + r) * query_stride, keys + j * key_step, key_step, here
                );
                Ints past;
                for (int i = 0; i < kWidth; ++i) past[i] = i < here ? 0 : -1;
                const float away = static_cast<float>(line.position - (first + j));
                const Floats score = select(past, splat(-kInfinity), with_bias(dot, away, line.slope));
                store(weights + j, score);
                high = larger(score, high);
            }
            float peak = peaks[r];
            for (int i = 0; i < kWidth; ++i) peak = high[i] > peak ? high[i] : peak;
            const float base = __builtin_fabsf(peak) == kInfinity ? 0.0f : peak;
            const float old = peaks[r], old_base = __builtin_fabsf(old) == kInfinity ? 0.0f : old;
            const float fade = old == -kInfinity ? 1.0f : exp2(splat(old_base - base))[0];
            Floats sum = {};
            for (int j = 0; j < count; j += kWidth) {
                const Floats weight = exp2(load(weights + j) - base);
                store(weights + j, weight);
                sum += weight;
            }
            peaks[r] = peak;
            sums[r] = sums[r] * fade + sum_of(sum);
            const char* values = row_of(call.value, type, unit.batch, unit.kv_head, first);
            float* out = slot + kHeader + r * out_stride;
            int64_t v = 0;
            for (; v + 4 <= values_at.whole; v += 4)
                stream_values<type, 4>(out + v * kWidth, fade, weights, values, value_step, count, v * kWidth);
            if (v + 2 <= values_at.whole) {
                stream_values<type, 2>(out + v * kWidth, fade, weights, values, value_step, count, v * kWidth);
                v += 2;
            }
            for (; v < values_at.whole; ++v)
                stream_values<type, 1>(out + v * kWidth, fade, weights, values, value_step, count, v * kWidth);
            if (values_at.tail >= 0)
                stream_values<type, 1>(out + v * kWidth, fade, weights, values, value_step, count, values_at.tail);
        }
}

static void stream_piece(
    const Call& call, const Unit& unit, const Line* lines, const float* query, const Piece& piece, float* slot
) {
    if (call.type == kFloat32) return stream_piece_of<kFloat32>(call, unit, lines, query, piece, slot);
    if (call.type == kBFloat16) return stream_piece_of<kBFloat16>(call, unit, lines, query, piece, slot);
    stream_piece_of<kFloat16>(call, unit, lines, query, piece, slot);
}

}  // namespace ALIBI_TARGET
}  // namespace alibi
